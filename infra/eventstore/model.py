"""The words every module shares: events as they arrive and as they are kept, streams, writes and their outcomes."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

# Expected and actual stream states, in KurrentDB's numbering. A state >= 0 is the revision of the last event.
NO_STREAM: Final = -1
ANY: Final = -2
EXISTS: Final = -4
DELETED: Final = -5
TOMBSTONED: Final = -6

# KurrentDB's "deleted" event number: the revision of a tombstone, and the $tb of a soft-deleted stream.
END_OF_STREAM: Final = 2**63 - 1

METADATA_EVENT: Final = "$metadata"
TOMBSTONE_EVENT: Final = "$streamDeleted"


def metastream_of(stream: str) -> str:
    return f"$${stream}"


def original_of(metastream: str) -> str | None:
    """The stream whose metadata `metastream` holds, or None when it is an ordinary stream."""
    return metastream[2:] if metastream.startswith("$$") else None


class NewEvent(NamedTuple):
    """An event as a client proposes it; `id` is the 16 bytes of its UUID."""

    id: bytes
    type: str
    is_json: bool
    metadata: bytes
    data: bytes

    @property
    def size(self) -> int:
        """Bytes that count against the append limits."""
        return len(self.type) + len(self.metadata) + len(self.data)


class RecordedEvent(NamedTuple):
    """An event as it is kept. `created` is in ticks of 100 ns since the Unix epoch."""

    position: int
    stream: str
    revision: int
    id: bytes
    type: str
    is_json: int
    created: int
    metadata: bytes
    data: bytes


@dataclass(slots=True)
class Stream:
    """What the writer knows of a stream. `last_revision` is -1 before its first event."""

    id: int
    name: str
    last_revision: int = NO_STREAM
    truncate_before: int = 0
    max_count: int | None = None
    max_age_s: int | None = None
    tombstoned: bool = False

    @property
    def soft_deleted(self) -> bool:
        return self.truncate_before == END_OF_STREAM

    @property
    def state(self) -> int:
        """Its revision, or the constant of why it has none."""
        if self.tombstoned:
            return TOMBSTONED
        return DELETED if self.soft_deleted else self.last_revision


class Check(NamedTuple):
    """The state in which a stream must be for the whole append to happen."""

    stream: str
    expected: int


class Part(NamedTuple):
    """The events of one append that go to one stream, and the state that the stream must be in."""

    stream: str
    expected: int
    events: Sequence[NewEvent]


class Violation(NamedTuple):
    """A stream that was not as expected. `last_revision` is there even when the stream is soft-deleted."""

    stream: str
    expected: int
    actual: int
    last_revision: int


class Written(NamedTuple):
    """The acknowledgement of one part: the revision and position of its last event.

    For a repeated append both are those of the first time. Both are -1 when the part had no events and the stream
    is empty.
    """

    stream: str
    revision: int
    position: int


@dataclass(slots=True)
class Append:
    """All or nothing: the parts go to distinct streams, the checks guard streams that are only looked at.

    `order` names the stream of each event, over all parts, when they are to be recorded interleaved; without it the
    parts follow each other.
    """

    parts: Sequence[Part]
    checks: Sequence[Check] = ()
    order: Sequence[str] = ()


@dataclass(slots=True)
class Delete:
    """A soft delete (the stream can be written again) or a tombstone (never again)."""

    stream: str
    expected: int
    tombstone: bool = False


@dataclass(slots=True)
class Committed:
    parts: list[Written]

    @property
    def position(self) -> int:
        return max((part.position for part in self.parts), default=-1)


@dataclass(slots=True)
class Refused:
    violations: list[Violation] = field(default_factory=list)


Outcome = Committed | Refused
