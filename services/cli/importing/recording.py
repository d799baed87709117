"""Records many interactions, and waits until they are understood and placed."""

import asyncio
import math
import random
import time
import zlib
from collections import Counter
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import grpc
from rich.console import Console, RenderableType
from rich.progress import Progress, TaskID
from rich.text import Text

from recorrido.ingest.v1.ingest_service_pb2 import (
    Problem,
    RecordInteractionsRequest,
    RecordResult,
    RecordStatus,
    Unreadable,
)
from recorrido.ingest.v1.interaction_pb2 import Interaction
from recorrido.journey.v1.journey_service_pb2 import GetOverviewRequest, GetOverviewResponse
from services.cli.clients import DEADLINE_S
from services.cli.failures import CommandError

if TYPE_CHECKING:
    from recorrido.ingest.v1.ingest_service_pb2_grpc import IngestServiceAsyncStub
    from recorrido.journey.v1.journey_service_pb2_grpc import JourneyServiceAsyncStub

Answer = TypeVar("Answer")
#: By which a caller knows an item again.
Tag = TypeVar("Tag")

BATCH_SIZE = 500
#: A request's limit is 24 MiB, for the services as for us.
BATCH_BYTES = 8 * 1024 * 1024
LANES = 4
#: A part that was killed is back within seconds; a longer silence is for a person to look at.
PATIENCE_S = 120.0
#: Somebody who forgot to start the services should hear it soon.
FIRST_ANSWER_S = 5.0
POLL_S = 1.0
#: How often a pipe is told how far it is.
TOLD_EVERY_S = 10.0
REJECTIONS_SHOWN = 5
#: Who says what an import says.
ACTOR = "recorrido import"

#: The call may not have been done, or not to its end; all that we call is idempotent.
_AGAIN = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
}
#: Reasons for which an item is neither taken nor kept among the rejected, now or later.
_FOR_GOOD = {"STREAM_CLOSED", "TOO_LARGE"}


@dataclass(slots=True)
class Summary:
    """What came of the interactions."""

    recorded: int = 0
    duplicates: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    #: The first few, as source, id and problem.
    rejections: list[tuple[str, str, Problem]] = field(default_factory=list)
    seconds: float = 0.0

    def count(self, interaction: Interaction, result: RecordResult) -> None:
        if result.status == RecordStatus.RECORD_STATUS_RECORDED:
            self.recorded += 1
        elif result.status == RecordStatus.RECORD_STATUS_DUPLICATE:
            self.duplicates += 1
        else:
            self.rejected[result.problem.reason] += 1
            if len(self.rejections) < REJECTIONS_SHOWN:
                self.rejections.append((interaction.source, interaction.interaction_id, result.problem))


class Steps(Progress):
    """How far the steps are that are not done: on a terminal one line that changes, in a pipe a line now and then."""

    def __init__(self, console: Console) -> None:
        # It draws itself when it is made.
        self._began, self._told = time.monotonic(), -math.inf
        super().__init__(console=console, transient=True)

    def get_renderables(self) -> Iterable[RenderableType]:
        steps = [
            f"{each.description} {each.completed:,.0f}{'' if each.total is None else f' of {each.total:,.0f}'}"
            for each in self.tasks
            if not each.finished
        ]
        yield Text(" · ".join([*steps, f"{time.monotonic() - self._began:.0f} s"]), no_wrap=True, overflow="ellipsis")

    def update(self, task_id: TaskID, **changes: Any) -> None:
        """As it is in every `Progress`, and tell of it where nobody sees the line change."""
        super().update(task_id, **changes)
        now = time.monotonic()
        if not self.console.is_terminal and now - self._told >= TOLD_EVERY_S and not self.finished:
            self._told = now
            self.console.print(*self.get_renderables())


async def record(
    ingest: "IngestServiceAsyncStub",
    items: AsyncIterable[tuple[Interaction, Tag]],
    settled: Callable[[Sequence[tuple[Tag, RecordResult]]], None],
    unreadable: Callable[[Tag], Unreadable | None] = lambda _: None,
    patience_s: float = PATIENCE_S,
) -> Summary:
    """Send everything in LANES batches at a time; `settled` is told, batch by batch, what became of the items.

    `unreadable` tells what could not be read of an item; None: it is whole.
    Items are taken as they can be sent, so that however many there are, few are held. A customer is in one lane only:
    batches in flight at the same time do not meet on a stream, and each customer's come in their order.

    Raises:
        AioRpcError: a failure that will not go away, or that has lasted for `patience_s`.
        CommandError: some items found a part missing for as long; `settled` is not told of them.
    """
    summary = Summary()
    started = time.monotonic()
    lanes = [Lane[Tag]() for _ in range(LANES)]

    async def fill() -> None:
        async for interaction, tag in items:
            await lanes[zlib.crc32(interaction.customer.customer_id.encode()) % LANES].put(interaction, tag)
        for lane in lanes:
            await lane.end()

    async def drain(lane: Lane[Tag]) -> None:
        while batch := await lane.batches.get():
            await _record_batch(ingest, batch, summary, settled, unreadable, patience_s=patience_s)

    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(fill())
            for lane in lanes:
                group.create_task(drain(lane))
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
    summary.seconds = time.monotonic() - started
    return summary


class Lane(Generic[Tag]):
    """Items on their way, in batches that a request can hold."""

    def __init__(self) -> None:
        #: An empty one is the last.
        self.batches: asyncio.Queue[list[tuple[Interaction, Tag]]] = asyncio.Queue(maxsize=1)
        self._next: list[tuple[Interaction, Tag]] = []
        self._size = 0

    async def put(self, interaction: Interaction, tag: Tag) -> None:
        size = interaction.ByteSize()
        if len(self._next) == BATCH_SIZE or (self._next and self._size + size > BATCH_BYTES):
            await self._give()
        self._next.append((interaction, tag))
        self._size += size

    async def end(self) -> None:
        if self._next:
            await self._give()
        await self._give()

    async def _give(self) -> None:
        batch, self._next, self._size = self._next, [], 0
        await self.batches.put(batch)


async def _record_batch(
    ingest: "IngestServiceAsyncStub",
    batch: list[tuple[Interaction, Tag]],
    summary: Summary,
    settled: Callable[[Sequence[tuple[Tag, RecordResult]]], None],
    unreadable: Callable[[Tag], Unreadable | None],
    *,
    patience_s: float,
) -> None:
    pause = Pause(patience_s)
    while batch:
        request = RecordInteractionsRequest(
            interactions=[interaction for interaction, _ in batch],
            unreadable={n: lacks for n, (_, tag) in enumerate(batch) if (lacks := unreadable(tag)) is not None},
        )
        answer = await patiently(partial(ingest.RecordInteractions, request, timeout=DEADLINE_S), pause)
        again: list[tuple[Interaction, Tag]] = []
        done: list[tuple[Tag, RecordResult]] = []
        for (interaction, tag), result in zip(batch, answer.results, strict=True):
            if _open(result):
                again.append((interaction, tag))
            else:
                summary.count(interaction, result)
                done.append((tag, result))
        settled(done)
        if again and pause.over:
            # Not settled: whoever resumes sends them again.
            problem = next(r.problem for r in answer.results if _open(r))
            told = f"ingest: {len(again)} neither recorded nor kept: {problem.reason}: {problem.message}"
            raise CommandError(f"{told}; repeat the command, nothing is recorded twice")
        batch = again
        if batch:
            await pause.wait()


def _open(result: RecordResult) -> bool:
    """Whether ingest has to be asked again: it neither recorded an item nor kept it, as when a part did not answer."""
    problem = result.problem
    refused = result.status == RecordStatus.RECORD_STATUS_REJECTED
    return refused and not problem.rejection_id and problem.reason not in _FOR_GOOD


class Pause:
    """Waits between tries: longer each time, at random so that callers do not come back together."""

    def __init__(self, patience_s: float) -> None:
        self._until = time.monotonic() + patience_s
        self._delay_s = 0.1

    @property
    def over(self) -> bool:
        """Whether patience has ended."""
        return time.monotonic() > self._until

    async def wait(self) -> None:
        await asyncio.sleep(self._delay_s * random.uniform(0.5, 1.5))  # noqa: S311 - no secret
        self._delay_s = min(self._delay_s * 2, 3.0)


async def patiently(call: Callable[[], Awaitable[Answer]], pause: Pause) -> Answer:
    """Call until it is done.

    Raises:
        AioRpcError: a failure that will not go away, or patience has ended.
    """
    while True:
        try:
            return await call()
        except grpc.aio.AioRpcError as error:
            if error.code() not in _AGAIN or pause.over:
                raise
        await pause.wait()


async def overview(journey: "JourneyServiceAsyncStub", patience_s: float = PATIENCE_S) -> GetOverviewResponse:
    return await patiently(lambda: journey.GetOverview(GetOverviewRequest(), timeout=DEADLINE_S), Pause(patience_s))


class Settling:
    """Watches the read models until they hold what was recorded after `before`, words and signals included."""

    def __init__(self, before: GetOverviewResponse, recorded: int) -> None:
        self._before = before
        self._interactions = before.interactions + recorded
        self._verbatims: int | None = None
        self._last: GetOverviewResponse | None = None
        self._unchanged = 0

    def done(self, now: GetOverviewResponse) -> bool:
        """Whether everything has arrived; to be asked with every new overview."""
        # The position moves with every event of anybody; what is counted tells when our own work is through.
        same = self._last is not None and _counts(self._last) == _counts(now)
        self._unchanged = self._unchanged + 1 if same else 0
        self._last = now
        if self._verbatims is None and now.interactions >= self._interactions:
            # Fixed now, so that others who go on recording do not keep us waiting.
            self._verbatims = now.verbatims
        heard = self._verbatims is not None and now.analyzed + now.analysis_failed >= self._verbatims
        # Signals follow the analyses; they have no count to wait for.
        return heard and self._unchanged >= 2

    def placed(self, now: GetOverviewResponse) -> tuple[int, int]:
        """How many of our interactions the read models hold, and how many there will be."""
        expected = self._interactions - self._before.interactions
        return min(now.interactions - self._before.interactions, expected), expected

    def understood(self, now: GetOverviewResponse) -> tuple[int, int]:
        """How many verbatims were analysed since the start, and how many there are to analyse as far as is known."""
        start = self._before.analyzed + self._before.analysis_failed
        return now.analyzed + now.analysis_failed - start, now.verbatims - start


def _counts(now: GetOverviewResponse) -> tuple[int, ...]:
    return now.interactions, now.verbatims, now.analyzed, now.analysis_failed, now.signals


async def settle(
    journey: "JourneyServiceAsyncStub",
    before: GetOverviewResponse,
    recorded: int,
    bars: Progress,
    patience_s: float = PATIENCE_S,
) -> GetOverviewResponse:
    """Wait until what was recorded is placed and understood, and tell how far it is.

    Raises:
        AioRpcError: journey has not answered for `patience_s`.
        CommandError: nothing has moved for `patience_s`.
    """
    settling = Settling(before, recorded)
    placing = bars.add_task("placing", total=recorded)
    understanding = bars.add_task("understanding", total=None)
    # How many moments are bad is not known before all are looked at.
    signalling = bars.add_task("signals", total=None)
    moved = time.monotonic()
    last: tuple[int, ...] = ()
    while True:
        now = await overview(journey, patience_s)
        for task, (completed, total) in (
            (placing, settling.placed(now)),
            (understanding, settling.understood(now)),
        ):
            bars.update(task, completed=completed, total=total)
        signals = now.signals - before.signals
        bars.update(signalling, completed=signals)
        if settling.done(now):
            bars.update(signalling, total=signals)
            return now
        if _counts(now) != last:
            moved, last = time.monotonic(), _counts(now)
        elif time.monotonic() - moved > patience_s:
            waiting = now.verbatims - now.analyzed - now.analysis_failed
            raise CommandError(
                f"nothing has moved for {patience_s:.0f} s: {now.interactions:,} interactions are placed, "
                f"{waiting:,} verbatims wait to be understood. All is recorded and goes on by itself; "
                "'recorrido overview' tells how far it is"
            )
        await asyncio.sleep(POLL_S)
