"""What people say about the models' analyses: recorded, listed, and handed to the next training."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

from recorrido.inference.v1.events import Analysis, AnalysisCorrected, FeedbackAnalyzed
from services.foundation.errors import InvalidError, NotFoundError, RefusedError, Violation
from services.foundation.events import Recorded, Registry, stream_name
from services.foundation.eventstore import EventStore
from services.foundation.execute import Executor, Intent
from services.inference.domain import is_blank
from services.inference.opinions import CorrectAnalysis, Judged, Opinion, Verbatim, verbatims

_CORRECTIONS = Registry((AnalysisCorrected,))


@dataclass(frozen=True, slots=True)
class Lesson:
    """A correction that counts, and what the model had said before it."""

    verbatim: Verbatim
    correction: Opinion
    event: AnalysisCorrected
    before: Analysis | None


class CorrectionHandlers:
    """Corrections in the customers' streams."""

    def __init__(self, store: EventStore, executor: Executor[Judged]) -> None:
        self._store = store
        self._executor = executor

    async def correct(self, command: CorrectAnalysis, metadata: dict[str, str]) -> tuple[Analysis, str]:
        """Record what a person says; return the analysis that counts from now on, and the event's id.

        Raises:
            NotFoundError: INTERACTION_UNKNOWN, the customer's stream holds no such interaction.
            RefusedError: NO_WORDS, there is nothing to analyse.
            DiffersError: the request id was used for something else.
        """
        stream = stream_name("customer", command.customer_id)
        verbatim = await self._verbatim(command)
        if is_blank(verbatim.text):
            raise RefusedError("NO_WORDS", "the interaction has no verbatim")
        done = await self._executor.execute(Intent(stream, command, metadata, because=verbatim.recorded))
        event = done.state.requests[command.request_id]
        if done.events:
            return event.analysis or Analysis(), str(done.events[0].event_id)
        # It was done before, maybe with more words, or when ids were made otherwise: the id is to be looked up.
        said = (await self._verbatim(command)).opinions
        (event_id,) = (
            each.recorded.event_id
            for each in said
            if isinstance(each.event, AnalysisCorrected) and each.event.request_id == command.request_id
        )
        return event.analysis or Analysis(), str(event_id)

    async def _verbatim(self, command: CorrectAnalysis) -> Verbatim:
        found = (await self.of(command.customer_id)).get(command.interaction_event_id)
        if found is None:
            raise NotFoundError(
                "INTERACTION_UNKNOWN",
                f"nothing is recorded of customer {command.customer_id!r} with event id {command.interaction_event_id}",
            )
        return found

    async def of(self, customer_id: str) -> dict[str, Verbatim]:
        """Return the customer's interactions by their event ids, with all that was said about them."""
        stream = stream_name("customer", customer_id)
        return verbatims([each async for each in self._store.read_through(stream)])

    async def export(self, after: int) -> AsyncGenerator[Lesson, None]:
        """Yield the corrections that count and stand behind position `after`, oldest first.

        Raises:
            InvalidError: no event stands there.
            UnavailableError: the store does not answer.
        """
        if after > await self._store.head():
            raise InvalidError([Violation("after_position", "a position that the history has")])
        async with aclosing(self._store.read_all(after or None, [AnalysisCorrected.type_name])) as history:
            async for recorded in history:
                lesson = await self._lesson(recorded) if recorded.position > after else None
                if lesson is not None:
                    yield lesson

    async def _lesson(self, recorded: Recorded) -> Lesson | None:
        event: AnalysisCorrected | None = _CORRECTIONS.read(recorded)
        if event is None:
            return None
        # Read anew: a correction that was overruled, or erased, while others were handed out teaches nothing.
        known = verbatims([each async for each in self._store.read_through(recorded.stream)])
        verbatim = known.get(event.interaction_event_id)
        counting = verbatim.correction if verbatim else None
        if verbatim is None or counting is None or counting.recorded.event_id != recorded.event_id:
            return None
        before = [
            opinion.event.analysis
            for opinion in verbatim.opinions
            if isinstance(opinion.event, FeedbackAnalyzed) and opinion.recorded.revision < recorded.revision
        ]
        return Lesson(verbatim, counting, event, before[-1] if before else None)
