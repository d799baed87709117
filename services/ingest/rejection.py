"""What the front door refused: kept as it came, until somebody mends or discards it. Pure."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from recorrido.ingest.v1.events import (
    AlteredValue,
    BrokenRule,
    Interaction,
    InteractionRejected,
    RejectionDiscarded,
    RejectionResubmitted,
    RejectionState,
)
from services.foundation.errors import InvalidError, NotFoundError, RecorridoError, RefusedError
from services.foundation.events import Event, derived_id, encode, stream_name
from services.foundation.rules import MAX_NAME, Rules

#: Lengths in characters.
MAX_ID = 64
MAX_NOTE = 1024
_MAX_MESSAGE = 4096
MAX_FIELD = 200
MAX_RULE = 300

RejectionEvent = InteractionRejected | RejectionResubmitted | RejectionDiscarded


def stream_of(rejection_id: str) -> str:
    return stream_name("rejection", rejection_id)


# -- what is kept --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Kept:
    """An interaction as far as an event can hold it. `digest` is of what came, and names it."""

    interaction: Interaction
    altered: tuple[AlteredValue, ...]
    digest: str

    @property
    def rejection_id(self) -> str:
        return str(derived_id("rejection", self.digest))


# -- commands ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class KeepRejected:
    """The intention to keep what was refused with `error`."""

    kept: Kept
    error: RecorridoError
    client_id: str

    @property
    def cause(self) -> str:
        return self.kept.rejection_id

    @property
    def event(self) -> InteractionRejected:
        broken = self.error.violations if isinstance(self.error, InvalidError) else ()
        return InteractionRejected(
            rejection_id=self.kept.rejection_id,
            interaction=self.kept.interaction,
            altered=self.kept.altered,
            reason=self.error.reason,
            message=self.error.message[:_MAX_MESSAGE],
            violations=tuple(BrokenRule(field=v.field[:MAX_FIELD], rule=v.rule[:MAX_RULE]) for v in broken),
            client_id=self.client_id,
        )

    @property
    def size_bytes(self) -> int:
        return len(encode(self.event))


@dataclass(frozen=True, slots=True, kw_only=True)
class Resubmit:
    """The intention to mark as recorded, under `event_id`, what was refused."""

    rejection_id: str
    interaction: Interaction
    event_id: str
    corrected: bool
    actor: str

    @property
    def cause(self) -> str:
        return "resubmit"


@dataclass(frozen=True, slots=True, kw_only=True)
class Discard:
    """The intention not to record what was refused. Raises InvalidError."""

    rejection_id: str
    reason: str
    actor: str

    def __post_init__(self) -> None:
        rules = Rules()
        rules.text("rejection_id", self.rejection_id, MAX_ID, required=True)
        rules.text("reason", self.reason, MAX_NOTE, required=True)
        rules.text("actor", self.actor, MAX_NAME, required=True)
        rules.enforce()

    @property
    def cause(self) -> str:
        return "discard"


def check_resubmission(rejection_id: str, actor: str) -> None:
    """Raise InvalidError where a request to resubmit is not well formed."""
    rules = Rules()
    rules.text("rejection_id", rejection_id, MAX_ID, required=True)
    rules.text("actor", actor, MAX_NAME, required=True)
    rules.enforce()


def check_id(rejection_id: str) -> None:
    """Raise InvalidError where this cannot be the id of a rejection."""
    rules = Rules()
    rules.text("rejection_id", rejection_id, MAX_ID, required=True)
    rules.enforce()


# -- a rejection's history -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Rejection:
    """A rejection as it stands. Without `rejected` there is none."""

    state: RejectionState = RejectionState.UNSPECIFIED
    rejected: InteractionRejected = field(default_factory=InteractionRejected)
    actor: str = ""
    note: str = ""
    event_id: str = ""


class Rejections:
    """Decides about one rejection's stream."""

    types: Sequence[type[Event]] = (InteractionRejected, RejectionResubmitted, RejectionDiscarded)

    def initial(self) -> Rejection:
        return Rejection()

    def evolve(self, state: Rejection, event: RejectionEvent) -> Rejection:
        return evolve(state, event)

    def decide(self, command: KeepRejected | Resubmit | Discard, state: Rejection) -> Sequence[Event]:
        """Keep once, resolve once.

        Raises:
            NotFoundError: nothing was rejected under this id.
            RefusedError: REJECTION_DISCARDED, REJECTION_RESUBMITTED: it was resolved otherwise.
        """
        return list(_decide(command, state))


def evolve(state: Rejection, event: RejectionEvent) -> Rejection:
    """Return the rejection after `event`."""
    if isinstance(event, InteractionRejected):
        return Rejection(RejectionState.OPEN, event)
    if isinstance(event, RejectionResubmitted):
        note = f"recorded {'as corrected' if event.corrected else 'as it was'}"
        return Rejection(RejectionState.RESUBMITTED, state.rejected, event.actor, note, event.event_id)
    return Rejection(RejectionState.DISCARDED, state.rejected, event.actor, event.reason)


def _decide(command: KeepRejected | Resubmit | Discard, state: Rejection) -> Iterator[Event]:
    if isinstance(command, KeepRejected):
        if state.state is RejectionState.UNSPECIFIED:
            yield command.event
        return
    if state.state is RejectionState.UNSPECIFIED:
        raise unknown(command.rejection_id)
    if isinstance(command, Resubmit):
        if state.state is RejectionState.DISCARDED:
            raise discarded(state)
        if state.state is RejectionState.OPEN:
            customer = command.interaction.customer
            yield RejectionResubmitted(
                rejection_id=command.rejection_id,
                event_id=command.event_id,
                source=command.interaction.source,
                interaction_id=command.interaction.interaction_id,
                customer_id=customer.customer_id if customer else "",
                corrected=command.corrected,
                actor=command.actor,
            )
        return
    if state.state is RejectionState.RESUBMITTED:
        raise RefusedError(
            "REJECTION_RESUBMITTED", f"it was resubmitted by {state.actor}", {"event_id": state.event_id}
        )
    if state.state is RejectionState.OPEN:
        yield RejectionDiscarded(rejection_id=command.rejection_id, reason=command.reason, actor=command.actor)


def unknown(rejection_id: str) -> NotFoundError:
    return NotFoundError("REJECTION_UNKNOWN", f"nothing was rejected under {rejection_id!r}")


def discarded(rejection: Rejection) -> RefusedError:
    return RefusedError("REJECTION_DISCARDED", f"discarded by {rejection.actor}: {rejection.note}")
