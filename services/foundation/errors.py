"""The expected failures of every service, each with a stable reason that clients may switch on.

`foundation.rpc` holds the one table that maps them to gRPC status codes.
"""

import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Violation:
    """One field and the rule it breaks, such as `ratings[0].value`, `between 0 and 10`."""

    field: str
    rule: str


class RecorridoError(Exception):
    """An expected failure. `reason` is upper case and stable; `details` are strings for the caller."""

    def __init__(self, reason: str, message: str, details: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.details = dict(details or {})


class InvalidError(RecorridoError):
    """The request can never succeed as it is; every broken rule is named."""

    def __init__(self, violations: Sequence[Violation]) -> None:
        text = "; ".join(f"{v.field}: {v.rule}" for v in violations)
        super().__init__("INVALID", text or "invalid request")
        self.violations = tuple(violations)


class NotFoundError(RecorridoError):
    """What was asked for is not known."""


class DiffersError(RecorridoError):
    """The same key was used before for something else."""


class RefusedError(RecorridoError):
    """Not allowed in the present state; the message tells what is."""


class OtherHistoryError(RefusedError):
    """The event store was replaced: it does not hold `what` was read from it before."""

    def __init__(self, what: str) -> None:
        super().__init__(
            "OTHER_HISTORY",
            f"the event store was replaced: it does not hold {what}, which was read from it before; bring back the"
            " right store, or reset what was made of the old one (docs/eventstore.md)",
        )


class OtherTablesError(RefusedError):
    """Another version of the service made the tables of a read model anew: this one must not write them any more."""

    def __init__(self, schema: str) -> None:
        super().__init__(
            "OTHER_TABLES",
            f"another version made the tables of {schema} anew; stop this one, or start it again to make them its own",
        )


class NotErasedError(RefusedError):
    """A read model cannot apply an erasure: to pass it over would keep what is to be gone.

    It tells the kind of the error and `where` it was raised only: the error itself may quote what is to be erased.
    """

    def __init__(self, event_id: str, error: Exception) -> None:
        super().__init__(
            "NOT_ERASED",
            f"the read model cannot apply erasure {event_id}: {kind_of(error)}; it stands still until that is mended",
        )
        self.where = "".join(traceback.format_tb(error.__traceback__))


def kind_of(error: Exception) -> str:
    """Return the type of an error, and what PostgreSQL calls it, without anything that it quotes."""
    state = getattr(error, "sqlstate", None)
    return f"{type(error).__name__} (SQLSTATE {state})" if state else type(error).__name__


class ErasedError(RecorridoError):
    """What it was to be recorded because of was erased; so nothing is."""

    def __init__(self, event_id: str) -> None:
        super().__init__("ERASED", f"event {event_id} was erased")


class ConflictError(RecorridoError):
    """Somebody else changed a stream first. `streams` maps each to its actual revision (-1: no stream)."""

    def __init__(self, streams: Mapping[str, int]) -> None:
        now = [f"{s} is at revision {r}" if r >= 0 else f"{s} does not exist" for s, r in sorted(streams.items())]
        super().__init__("CONFLICT", f"changed meanwhile: {', '.join(now[:5])}")
        self.streams = dict(streams)


class UnavailableError(RecorridoError):
    """A part this service needs does not answer now; the same call may succeed later."""

    def __init__(self, part: str, message: str) -> None:
        super().__init__("UNAVAILABLE", f"{part}: {message}", {"part": part})
        self.part = part


class ExhaustedError(RecorridoError):
    """More than is taken at present; the same call may succeed after `retry_after_s` seconds."""

    def __init__(self, reason: str, message: str, retry_after_s: float) -> None:
        super().__init__(reason, message)
        self.retry_after_s = retry_after_s
