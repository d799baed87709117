"""Identities: the names under which a customer is seen before, or beside, their customer id. Pure.

Whatever is recorded under an identity stays in the identity's own history, under the customer id `<prefix>:<value>`.
A link says whose it is from now on; reads follow the links in force at the time that they ask about.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from msgspec import structs

from recorrido.ingest.v1.events import Identity, IdentityKind, IdentityLinked, IdentityUnlinked
from services.foundation.errors import DiffersError, RefusedError, Violation
from services.foundation.events import Event, derived_id, stream_name
from services.foundation.rules import MAX_CUSTOMER_ID, Rules, text

PREFIXES: Mapping[IdentityKind, str] = {
    IdentityKind.ANONYMOUS_ID: "anonymous",
    IdentityKind.EMAIL_HASH: "email",
    IdentityKind.LOYALTY_CARD: "loyalty",
    IdentityKind.DEVICE: "device",
    IdentityKind.OTHER: "other",
}

#: Lengths in characters. With its prefix an identity is no longer than a customer id may be.
MAX_VALUE = 240

_SHA256 = re.compile(r"[0-9a-f]{64}")

IdentityEvent = IdentityLinked | IdentityUnlinked


def customer_id_of(identity: Identity) -> str:
    """Return the customer id of what is recorded under an identity, such as `device:4711`."""
    return f"{PREFIXES[identity.kind]}:{identity.value}"


def is_identity(customer_id: str) -> bool:
    """Return whether a customer id is of an identity's form, which no customer's own id may be."""
    return customer_id.partition(":")[0] in PREFIXES.values() and ":" in customer_id


def stream_of(identity: Identity) -> str:
    """Return the stream of an identity's links; its name does not tell the value."""
    return stream_name("identity", str(derived_id("identity", identity.kind.value, identity.value)))


# -- commands ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Change:
    """What both commands say; one that exists is well formed."""

    identity: Identity
    customer_id: str
    actor: str
    request_id: str

    def __post_init__(self) -> None:
        rules = Rules()
        rules.add(identity_violations(self.identity))
        rules.add(customer_violations(self.customer_id))
        rules.who_and_request(self.actor, self.request_id)
        rules.enforce()

    @property
    def cause(self) -> str:
        """The request and what it says: a store that finds two events under one id takes them for the same."""
        return f"{self.request_id}\x1f{self.customer_id}\x1f{self.actor}"

    @property
    def stream(self) -> str:
        return stream_of(self.identity)

    def _fields(self) -> dict[str, Any]:
        return {
            "identity": self.identity,
            "customer_id": self.customer_id,
            "actor": self.actor,
            "request_id": self.request_id,
            "identity_customer_id": customer_id_of(self.identity),
        }


class LinkIdentity(_Change):
    """Say that an identity is a customer's. Raises InvalidError with every rule broken."""

    def event(self) -> IdentityLinked:
        return IdentityLinked(**self._fields())


class UnlinkIdentity(_Change):
    """Say that an identity is not, or no longer, a customer's. Raises InvalidError with every rule broken."""

    def event(self) -> IdentityUnlinked:
        return IdentityUnlinked(**self._fields())


Command = LinkIdentity | UnlinkIdentity


def identity_violations(identity: Identity) -> Iterator[Violation]:
    if identity.kind is IdentityKind.UNSPECIFIED:
        yield Violation("identity.kind", "one of the known kinds")
    if identity.kind is IdentityKind.EMAIL_HASH:
        # An address itself would be personal data in a place that nobody expects it.
        if not _SHA256.fullmatch(identity.value):
            yield Violation("identity.value", "the SHA-256 of the address, 64 lower-case hexadecimal digits")
    else:
        yield from text("identity.value", identity.value, MAX_VALUE, required=True)


def customer_violations(customer_id: str, field: str = "customer_id") -> Iterator[Violation]:
    yield from text(field, customer_id, MAX_CUSTOMER_ID, required=True)
    if is_identity(customer_id):
        # Links of links would have to be followed, and could go round.
        yield Violation(field, "a customer's own id, not an identity")


# -- links ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Link:
    """Whose an identity is; `customer_id` is empty while it is nobody's. `requests` tells repetitions apart."""

    customer_id: str = ""
    requests: Mapping[str, IdentityEvent] = field(default_factory=dict)


class Links:
    """Decides about one identity."""

    types: Sequence[type[Event]] = (IdentityLinked, IdentityUnlinked)

    def initial(self) -> Link:
        return Link()

    def evolve(self, state: Link, event: IdentityEvent) -> Link:
        now = event.customer_id if isinstance(event, IdentityLinked) else ""
        return Link(now, {**state.requests, event.request_id: event})

    def decide(self, command: Command, state: Link) -> Sequence[IdentityEvent]:
        """Link or unlink; nothing for a repetition, or a link that is in force.

        Raises:
            RefusedError: IDENTITY_TAKEN, it is another customer's; IDENTITY_NOT_LINKED, it is not this customer's.
            DiffersError: REQUEST_ID_REUSED, the request_id was used for another change of this identity.
        """
        event = command.event()
        done = state.requests.get(command.request_id)
        if done is not None:
            if type(done) is type(event) and structs.asdict(done) == structs.asdict(event):
                return []
            raise DiffersError("REQUEST_ID_REUSED", "this request_id was used for another change of this identity")
        if isinstance(command, UnlinkIdentity):
            if state.customer_id == command.customer_id:
                return [event]
            now = f"it is linked to {state.customer_id}" if state.customer_id else "it is linked to nobody"
            raise RefusedError("IDENTITY_NOT_LINKED", now, {"customer_id": state.customer_id})
        if state.customer_id in ("", command.customer_id):
            return [] if state.customer_id else [event]
        raise RefusedError(
            "IDENTITY_TAKEN",
            f"it is linked to {state.customer_id}; unlink it first",
            {"customer_id": state.customer_id},
        )
