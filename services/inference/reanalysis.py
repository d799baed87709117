"""The history understood anew: under another model version, or where understanding failed.

A reanalysis has a stream of its own with its terms and how far it is, so that it goes on after any failure. What it
records is decided as everything about feedback is, so that doing a part of it again changes nothing.
"""

import asyncio
import time
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from uuid import uuid4

from recorrido.inference.v1.events import (
    FeedbackAnalysisFailed,
    ReanalysisAdvanced,
    ReanalysisStarted,
)
from recorrido.ingest.v1.events import Customer, InteractionRecorded
from services.foundation.errors import DiffersError, ErasedError
from services.foundation.events import CAUSATION_ID, CORRELATION_ID, Event, Pending, Registry, stream_name
from services.foundation.eventstore import NO_STREAM, EventStore, StreamAppend
from services.foundation.execute import Executor, Intent
from services.inference.domain import MODEL_FAILED, Analysed, Problem, RecordAnalysis, Result, key_of
from services.inference.handlers import Handlers
from services.inference.history import Slice, Work, pages, spoken_in, verbatims_of
from services.inference.opinions import Verbatim
from services.inference.triton import MODEL

#: Texts analysed together. What customers say meanwhile waits behind one such batch at most.
BATCH = 64
#: Failures of the model on one text before it is taken for good.
TRIES = 3
#: How much of the work is done again after a failure.
CHECKPOINT_EVERY_S = 5.0

_STREAM = Registry((ReanalysisStarted, ReanalysisAdvanced))
_FAILURES = Registry((FeedbackAnalysisFailed,))


@dataclass(frozen=True, slots=True)
class Reanalysis:
    """What is asked for. An empty version is the one in service when it is first asked for."""

    reanalysis_id: str
    version: str
    slice: Slice
    actor: str


@dataclass(frozen=True, slots=True)
class Begun:
    """What stands in a reanalysis's stream."""

    started: ReanalysisStarted
    advanced: ReanalysisAdvanced | None
    revision: int

    def work(self) -> Work:
        done = self.advanced or ReanalysisAdvanced(position="0")
        return Work(
            end_position=int(self.started.end_position),
            position=int(done.position),
            verbatims=done.verbatims,
            analyzed=done.analyzed,
            known=done.known,
            failed=done.failed,
            complete=done.complete,
        )


class Pace:
    """Lets through so many texts a second; 0: any number."""

    def __init__(self, per_second: float) -> None:
        self._per_second = per_second
        self._next = 0.0
        #: Texts that go together: of a slow pace, those of a second.
        self.batch = max(1, min(BATCH, int(per_second))) if per_second else BATCH

    async def take(self, texts: int) -> None:
        """Wait until these texts may go."""
        if self._per_second:
            now = time.monotonic()
            await asyncio.sleep(self._next - now)
            self._next = max(self._next, now) + texts / self._per_second


class Reanalyses:
    """Analyses the history again."""

    def __init__(self, store: EventStore, handlers: Handlers, executor: Executor[Analysed]) -> None:
        self._store = store
        self._handlers = handlers
        self._executor = executor

    # -- under another version -------------------------------------------------------------------------------------

    async def begin(self, asked: Reanalysis) -> Begun:
        """Return the reanalysis as far as it is, after recording its terms if it is new.

        Raises:
            DiffersError: its id was used with other terms.
            NotFoundError: Triton serves no such version.
            UnavailableError: Triton or the store does not answer.
        """
        stream = stream_name("reanalysis", asked.reanalysis_id)
        version = await self._handlers.require(asked.version) if asked.version else ""
        known = await self._begun(stream)
        if known is None:
            part = asked.slice
            started = ReanalysisStarted(
                reanalysis_id=asked.reanalysis_id,
                model=MODEL,
                model_version=version or await self._handlers.require(""),
                from_time=part.from_time,
                to_time=part.to_time,
                customers=len(part.customer_ids),
                sources=tuple(sorted(part.sources)),
                end_position=str(await self._store.head()),
                actor=asked.actor,
            )
            await self._append(stream, NO_STREAM, started, asked.reanalysis_id)
            return Begun(started, None, 0)
        if (version and version != known.started.model_version) or not _is_of(known.started, asked.slice):
            raise DiffersError(
                "REANALYSIS_DIFFERS",
                f"reanalysis {asked.reanalysis_id} was asked for with other terms; name it differently",
            )
        await self._handlers.require(known.started.model_version)
        return known

    async def run(self, begun: Begun, part: Slice, work: Work, pace: Pace) -> None:
        """Go on to the end; how far it is shows in `work`. Parts that are away are waited for.

        Raises:
            ConflictError: somebody else is at it.
        """
        if work.complete:
            return
        started, revision = begun.started, begun.revision
        stream = stream_name("reanalysis", started.reanalysis_id)
        saved_at = time.monotonic()
        async with aclosing(pages(self._store, work, InteractionRecorded, work.position or None)) as found:
            async for page in found:
                spoken = spoken_in(page, part)
                for start in range(0, len(spoken), pace.batch):
                    batch = spoken[start : start + pace.batch]
                    await self._again(batch, started, work, pace)
                    work.position = batch[-1].recorded.position
                    if time.monotonic() - saved_at >= CHECKPOINT_EVERY_S:
                        revision = await self._advance(stream, revision, started.reanalysis_id, work)
                        saved_at = time.monotonic()
                work.position = page[-1].position
        work.position = work.end_position
        await self._advance(stream, revision, started.reanalysis_id, replace(work, complete=True))
        work.complete = True

    async def _again(self, batch: Sequence[Verbatim], started: ReanalysisStarted, work: Work, pace: Pace) -> None:
        async def unknown() -> list[Verbatim]:
            states = {s: await self._executor.load(s) for s in {each.recorded.stream for each in batch}}
            return [
                each
                for each in batch
                if not states[each.recorded.stream].state.get(
                    key_of(str(each.recorded.event_id), MODEL, started.model_version)
                )
            ]

        todo = await work.patiently(unknown)
        await pace.take(len(todo))
        await self._record(todo, started.model_version, work, started.reanalysis_id)
        work.known += len(batch) - len(todo)
        work.verbatims += len(batch)

    async def _begun(self, stream: str) -> Begun | None:
        recorded = await self._store.read(stream)
        events = [event for each in recorded if (event := _STREAM.read(each)) is not None]
        if not events or not isinstance(events[0], ReanalysisStarted):
            return None
        advanced = events[-1] if isinstance(events[-1], ReanalysisAdvanced) else None
        return Begun(events[0], advanced, recorded[-1].revision)

    async def _advance(self, stream: str, revision: int, reanalysis_id: str, work: Work) -> int:
        advanced = ReanalysisAdvanced(
            reanalysis_id=reanalysis_id,
            position=str(work.position),
            verbatims=work.verbatims,
            analyzed=work.analyzed,
            known=work.known,
            failed=work.failed,
            complete=work.complete,
        )
        await work.patiently(lambda: self._append(stream, revision, advanced, reanalysis_id))
        return revision + 1

    async def _append(self, stream: str, expected: int, event: Event, reanalysis_id: str) -> None:
        # An id of its own: of two at the same revision, one conflicts.
        pending = Pending(event, uuid4(), {CORRELATION_ID: reanalysis_id})
        await self._store.append([StreamAppend(stream, expected, [pending])])

    async def whole(self) -> Work:
        """Return work that ends where the history ends now. Raises UnavailableError."""
        return Work(end_position=await self._store.head())

    # -- where it failed -------------------------------------------------------------------------------------------

    async def retry(self, part: Slice, version: str, work: Work, pace: Pace) -> None:
        """Try again what failed and what nobody understood since; how far it is shows in `work`."""
        seen: set[str] = set()
        async with aclosing(pages(self._store, work, FeedbackAnalysisFailed)) as found:
            async for page in found:
                known = await work.patiently(partial(verbatims_of, self._store, page))
                failures = [failed for each in page if (failed := _FAILURES.read(each)) is not None]
                about = dict.fromkeys(failed.interaction_event_id for failed in failures)
                meant = [
                    known[event_id]
                    for event_id in about
                    if event_id in known
                    and event_id not in seen
                    and part.holds(known[event_id].interaction, known[event_id].recorded)
                ]
                seen.update(about)
                todo = [
                    each
                    for each in meant
                    if each.counting is None or isinstance(each.counting.event, FeedbackAnalysisFailed)
                ]
                work.verbatims += len(meant)
                work.known += len(meant) - len(todo)
                for start in range(0, len(todo), pace.batch):
                    batch = todo[start : start + pace.batch]
                    await pace.take(len(batch))
                    await self._record(batch, version, work)
                work.position = page[-1].position
        work.position = work.end_position
        work.complete = True

    # -- both ------------------------------------------------------------------------------------------------------

    async def _record(self, batch: Sequence[Verbatim], version: str, work: Work, reanalysis_id: str = "") -> None:
        results = await work.patiently(lambda: self._analyze([each.text for each in batch], version))
        intents = [
            Intent(
                each.recorded.stream,
                RecordAnalysis(
                    str(each.recorded.event_id),
                    (each.interaction.customer or Customer()).customer_id,
                    result,
                    reanalysis_id,
                ),
                {CAUSATION_ID: str(each.recorded.event_id), CORRELATION_ID: reanalysis_id or _correlation(each)},
                because=each.recorded,
            )
            for each, result in zip(batch, results, strict=True)
        ]
        executed = await work.patiently(lambda: self._executor.execute_all(intents))
        for result, outcome in zip(results, executed, strict=True):
            if outcome.error is not None and not isinstance(outcome.error, ErasedError):
                raise outcome.error
            if isinstance(result, Problem):
                work.failed += 1
            elif outcome.error is None:
                work.analyzed += 1

    async def _analyze(self, texts: Sequence[str], version: str) -> list[Result]:
        results = await self._handlers.analyze(texts, version)
        for _ in range(TRIES - 1):
            failed = [i for i, r in enumerate(results) if isinstance(r, Problem) and r.reason == MODEL_FAILED]
            if not failed:
                break
            again = await self._handlers.analyze([texts[i] for i in failed], version)
            for index, result in zip(failed, again, strict=True):
                results[index] = result
        return results


def _correlation(verbatim: Verbatim) -> str:
    return verbatim.recorded.metadata.get(CORRELATION_ID, str(verbatim.recorded.event_id))


def _is_of(started: ReanalysisStarted, part: Slice) -> bool:
    # Of the customers only the number is known.
    return (started.from_time, started.to_time, started.customers, frozenset(started.sources)) == (
        part.from_time,
        part.to_time,
        len(part.customer_ids),
        part.sources,
    )
