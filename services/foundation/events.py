"""Events as they are kept and carried: names, ids, envelopes and the registry that decodes them."""

import uuid
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from hashlib import sha1, sha256
from typing import Any, ClassVar, NamedTuple, Protocol
from uuid import UUID

import msgspec
from msgspec import Struct, field
from opentelemetry.context import Context

#: Namespace of every id that Recorrido derives. Changing it would break idempotency over the whole history.
NAMESPACE = uuid.uuid5(uuid.NAMESPACE_DNS, "recorrido")
_NAMESPACE_BYTES = NAMESPACE.bytes

CORRELATION_ID = "$correlationId"
CAUSATION_ID = "$causationId"

_ENCODER = msgspec.json.Encoder()


class Event(Protocol):
    """A generated struct of `recorrido.<service>.v1.events`."""

    type_name: ClassVar[str]


def derived_id(*causes: str) -> UUID:
    """Return the id of what `causes` bring about: the same causes give the same id, always and everywhere."""
    # As uuid.uuid5 makes it (RFC 9562, section 5.5), in half its time.
    name = "\x1f".join(causes).encode()
    return UUID(bytes=sha1(_NAMESPACE_BYTES + name, usedforsecurity=False).digest()[:16], version=5)


def cause_of(request_id: str, *said: object) -> str:
    """Return the cause of what a request brings about: its id, and a digest (SHA-256) of what it says.

    A store takes the second of two events of one id for a repetition of the first. So what differs must not come to
    one, though it comes under the same request id.
    """
    return f"{request_id}\x1f{sha256(_ENCODER.encode(said)).hexdigest()}"


def stream_name(category: str, identity: str) -> str:
    """Return `category-identity`; a category holds no dash, so the first dash ends it."""
    assert "-" not in category
    return f"{category}-{identity}"


def encode(event: Event) -> bytes:
    """Encode as proto3 JSON."""
    return _ENCODER.encode(event)


class Pending(Struct, frozen=True, gc=False):
    """An event about to be appended. `context` is the trace it belongs to (None: the current one)."""

    event: Event
    event_id: UUID
    metadata: Mapping[str, str] = field(default_factory=dict)
    context: Context | None = None


class Place(NamedTuple):
    """An event's place in the history, and which event it is: enough to tell whether a history is still the same."""

    position: int
    event_id: UUID
    stream: str
    revision: int


class Recorded(Struct, frozen=True, gc=False):
    """An event as the store holds it.

    `revision` counts from 0 in its stream; `position` orders all events of the store; `recorded_at` is UTC.
    """

    type_name: str
    data: bytes
    metadata: Mapping[str, str]
    event_id: UUID
    stream: str
    revision: int
    position: int
    recorded_at: datetime

    @property
    def place(self) -> Place:
        return Place(self.position, self.event_id, self.stream, self.revision)


class Registry:
    """Decodes the event types that a reader cares for; a reader passes over every other type."""

    def __init__(self, types: Iterable[type[Event]]) -> None:
        self._decoders = {t.type_name: msgspec.json.Decoder(t) for t in types}

    @property
    def type_names(self) -> Sequence[str]:
        return tuple(self._decoders)

    def __contains__(self, type_name: str) -> bool:
        return type_name in self._decoders

    def decode(self, recorded: Recorded) -> Any:
        """Return the event's struct. Raises KeyError for a type it does not know, msgspec.DecodeError for bad JSON."""
        return self._decoders[recorded.type_name].decode(recorded.data)

    def read(self, recorded: Recorded) -> Any:
        """Return the event's struct; None where it is of another type, or what is no event of ours under its name."""
        try:
            return self.decode(recorded)
        except (KeyError, msgspec.MsgspecError):
            return None
