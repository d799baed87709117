"""Command → decide → append, for batches: each interaction has a result of its own, whatever becomes of the others."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from msgspec import Struct
from opentelemetry.context import get_current

from recorrido.ingest.v1.events import InteractionRecorded, InteractionRejected, RejectionResubmitted, RejectionState
from services.foundation import telemetry
from services.foundation.commit import GroupCommit, Submission
from services.foundation.errors import (
    ConflictError,
    DiffersError,
    ExhaustedError,
    InvalidError,
    RecorridoError,
    RefusedError,
)
from services.foundation.events import CAUSATION_ID, Pending, derived_id
from services.foundation.eventstore import TOMBSTONED, EventStore, StreamAppend
from services.foundation.execute import Executed, Executor, Intent, event_id_of
from services.ingest.contradiction import explained
from services.ingest.domain import History, Known, RecordInteraction
from services.ingest.masking import Masker
from services.ingest.rejection import (
    Discard,
    KeepRejected,
    Kept,
    Rejection,
    Rejections,
    Resubmit,
    check_resubmission,
    discarded,
    stream_of,
    unknown,
)

#: How often a resubmission is decided again while others write to the customer's stream.
_ATTEMPTS = 8


class Recording(Struct, frozen=True):
    """What became of one interaction. `event_id` is that of its event, `duplicate` when that was there before."""

    event_id: str
    duplicate: bool


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why an interaction is not recorded. It is kept under `rejection_id`; empty: it is not."""

    error: RecorridoError
    rejection_id: str = ""


Result = Recording | Refusal


@dataclass(frozen=True, slots=True)
class Batch:
    """Interactions of one sender: for each a command, or why there is none.

    `keep` gives what to keep of the n-th when it is refused. `metadata` goes with every event.
    """

    commands: Sequence[RecordInteraction | InvalidError]
    keep: Callable[[int], Kept]
    client_id: str
    metadata: Mapping[str, str]


class Recorder:
    """Records interactions, and keeps those that are refused.

    Both have a queue of their own, so that no flood of bad interactions is in the way of good ones.
    """

    def __init__(self, store: EventStore, customers: GroupCommit[Known], rejections: GroupCommit[Rejection]) -> None:
        self._store = store
        self._customers = customers
        self._rejections = rejections
        self._results = telemetry.METER.create_counter("recorrido.ingest.interactions", unit="{interaction}")
        self._differs = telemetry.METER.create_counter("recorrido.ingest.content_differs", unit="{interaction}")
        self._not_kept = telemetry.METER.create_counter("recorrido.ingest.rejections_not_kept", unit="{interaction}")

    def accept(self, batch: Batch) -> "Accepted":
        """Take the whole batch, or nothing of it. Raises ExhaustedError (QUEUE_FULL)."""
        return Accepted(self, batch, self._customers.submit(*_intents(batch)))

    async def accept_when_room(self, batch: Batch) -> "Accepted":
        """Take the batch as soon as there is room for it."""
        return Accepted(self, batch, await self._customers.submit_when_room(*_intents(batch)))

    async def results(self, batch: Batch, submission: Submission[Known]) -> list[Result]:
        outcomes = iter(await submission.results())
        results = [Refusal(c) if isinstance(c, InvalidError) else _result(c, next(outcomes)) for c in batch.commands]
        refused = [
            (index, result.error)
            for index, result in enumerate(results)
            if isinstance(result, Refusal) and isinstance(result.error, InvalidError | DiffersError)
        ]
        if contradictions := sum(isinstance(error, DiffersError) for _, error in refused):
            self._differs.add(contradictions)
        # A store that has just not answered takes its time not to answer again.
        if refused and submission.lost is None:
            if contradictions:
                refused = await self._explain(batch, refused)
            kept = await self._keep(batch, refused)
            for (index, error), rejection_id in zip(refused, kept, strict=True):
                results[index] = Refusal(error, rejection_id)
        self._count(results)
        return results

    async def _explain(
        self, batch: Batch, refused: Sequence[tuple[int, InvalidError | DiffersError]]
    ) -> list[tuple[int, InvalidError | DiffersError]]:
        """Return the refusals, of contradictions with the fields in which they differ from what is recorded."""
        found = [
            (command, error)
            for index, error in refused
            if isinstance(error, DiffersError) and isinstance(command := batch.commands[index], RecordInteraction)
        ]
        told = iter(await explained(self._store, found))
        return [(index, next(told) if isinstance(error, DiffersError) else error) for index, error in refused]

    async def _keep(self, batch: Batch, refused: Sequence[tuple[int, InvalidError | DiffersError]]) -> list[str]:
        """Return the ids under which they are kept now, empty for those that are not."""
        commands = [KeepRejected(batch.keep(index), error, batch.client_id) for index, error in refused]
        ids = [command.kept.rejection_id for command in commands]
        context = get_current()
        intents = [Intent(stream_of(i), c, batch.metadata, context) for i, c in zip(ids, commands, strict=True)]
        try:
            outcomes = await self._rejections.submit(intents, [c.size_bytes for c in commands]).results()
        except ExhaustedError:
            outcomes = [ExhaustedError("QUEUE_FULL", "", 0.0)] * len(ids)
        kept = [i if isinstance(outcome, Executed) else "" for i, outcome in zip(ids, outcomes, strict=True)]
        if lost := kept.count(""):
            self._not_kept.add(lost)
        return kept

    def _count(self, results: Sequence[Result]) -> None:
        counts = Counter(_name(result) for result in results)
        for name, count in counts.items():
            self._results.add(count, {"result": name})


def _name(result: Result) -> str:
    if isinstance(result, Refusal):
        return result.error.reason
    return "DUPLICATE" if result.duplicate else "RECORDED"


@dataclass(frozen=True, slots=True)
class Accepted:
    """A batch that will be recorded, but for what still waits when whoever asked for its results is gone."""

    _recorder: Recorder
    _batch: Batch
    _submission: Submission[Known]

    async def results(self) -> list[Result]:
        """Return one result per interaction, in order."""
        return await self._recorder.results(self._batch, self._submission)


def _intents(batch: Batch) -> tuple[list[Intent], list[int]]:
    valid = [command for command in batch.commands if isinstance(command, RecordInteraction)]
    context = get_current()
    return [Intent(c.stream, c, batch.metadata, context) for c in valid], [c.size_bytes for c in valid]


def _result(command: RecordInteraction, outcome: Executed[Known] | RecorridoError) -> Result:
    if isinstance(outcome, RecorridoError):
        return Refusal(outcome)
    if outcome.events:
        return Recording(str(outcome.events[0].event_id), duplicate=False)
    before = Intent(command.stream, command.as_recorded(outcome.state))
    return Recording(str(event_id_of(before, InteractionRecorded)), duplicate=True)


class RejectionHandlers:
    """Resolves what was refused."""

    def __init__(
        self, store: EventStore, customers: Executor[Known], rejections: Executor[Rejection], masker: Masker
    ) -> None:
        self._store = store
        self._masker = masker
        self._customers = customers
        self._rejections = rejections
        self._history = History()
        self._decider = Rejections()

    async def discard(self, command: Discard, metadata: Mapping[str, str]) -> None:
        """Raises NotFoundError, RefusedError, ConflictError and UnavailableError."""
        await self._rejections.execute(Intent(stream_of(command.rejection_id), command, metadata))

    async def resubmit(
        self,
        rejection_id: str,
        corrected: RecordInteraction | None,
        actor: str,
        *,
        now: datetime,
        metadata: Mapping[str, str],
    ) -> Recording:
        """Record what was refused, or what it was corrected to, and resolve the rejection, in one append.

        Raises:
            InvalidError: it still breaks rules.
            DiffersError: its key is recorded with other content.
            NotFoundError: there is no such rejection.
            RefusedError: it was discarded, or is not kept as it came and is not corrected either; STREAM_CLOSED, the
                customer's stream was closed for good.
            ConflictError: others kept changing the customer's stream.
            UnavailableError: the store does not answer.
        """
        check_resubmission(rejection_id, actor)
        for attempt in range(_ATTEMPTS):
            folded = await self._rejections.load(stream_of(rejection_id))
            rejection = folded.state
            if rejection.state is RejectionState.UNSPECIFIED:
                raise unknown(rejection_id)
            if rejection.state is RejectionState.RESUBMITTED:
                return Recording(rejection.event_id, duplicate=True)
            if rejection.state is RejectionState.DISCARDED:
                raise discarded(rejection)
            command = corrected or _as_it_came(rejection, now, self._masker)
            record = Intent(command.stream, command)
            event_id = event_id_of(record, InteractionRecorded)
            resubmit = Resubmit(
                rejection_id=rejection_id,
                interaction=command.interaction,
                event_id=str(event_id),
                corrected=corrected is not None,
                actor=actor,
            )
            customer = await self._customers.load(command.stream)
            (resolution,) = self._decider.decide(resubmit, rejection)
            resolve = Intent(stream_of(rejection_id), resubmit)
            appends = [
                StreamAppend(
                    resolve.stream,
                    folded.revision,
                    [Pending(resolution, event_id_of(resolve, RejectionResubmitted), metadata)],
                )
            ]
            try:
                recorded = self._history.decide(command, customer.state)
            except DiffersError as error:
                (told,) = await explained(self._store, [(command, error)])
                raise told from error
            if recorded:
                caused = {**metadata, CAUSATION_ID: _rejected_event_id(rejection_id)}
                appends.append(
                    StreamAppend(command.stream, customer.revision, [Pending(recorded[0], event_id, caused)])
                )
            try:
                await self._store.append(appends)
            except ConflictError as conflict:
                if TOMBSTONED in conflict.streams.values():
                    raise RefusedError("STREAM_CLOSED", f"{command.stream} was closed for good") from conflict
                if attempt == _ATTEMPTS - 1:
                    raise
                continue
            return Recording(str(event_id), duplicate=not recorded)
        raise AssertionError("unreachable: the last attempt returns or raises")


def _as_it_came(rejection: Rejection, now: datetime, masker: Masker) -> RecordInteraction:
    interaction = rejection.rejected.interaction
    if rejection.rejected.altered or interaction is None:
        fields = ", ".join(each.field for each in rejection.rejected.altered[:5])
        raise RefusedError("REJECTION_ALTERED", f"not kept as it came, so it needs a corrected one: {fields}")
    return RecordInteraction.of(interaction, now, mask=masker.interaction)


def _rejected_event_id(rejection_id: str) -> str:
    # As KeepRejected makes it: it is named by what it is about.
    return str(derived_id(stream_of(rejection_id), rejection_id, InteractionRejected.type_name, "0"))
