"""Records many interactions, and waits until they are understood and placed."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import grpc
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.text import Text

from recorrido.ingest.v1.ingest_service_pb2 import (
    Problem,
    RecordInteractionsRequest,
    RecordStatus,
)
from recorrido.ingest.v1.interaction_pb2 import Interaction
from recorrido.journey.v1.journey_service_pb2 import GetOverviewRequest, GetOverviewResponse
from services.cli.clients import DEADLINE_S
from services.cli.failures import CommandError

if TYPE_CHECKING:
    from recorrido.ingest.v1.ingest_service_pb2_grpc import IngestServiceAsyncStub
    from recorrido.journey.v1.journey_service_pb2_grpc import JourneyServiceAsyncStub

Answer = TypeVar("Answer")

BATCH_SIZE = 500
IN_FLIGHT = 4
#: A part that was killed is back within seconds; a longer silence is for a person to look at.
PATIENCE_S = 120.0
POLL_S = 1.0
REJECTIONS_SHOWN = 5

#: The call may not have been done, or not to its end; all that we call is idempotent.
_AGAIN = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
}
#: Reasons for which an item is refused now and may be taken later.
_ITEM_AGAIN = {"CONFLICT", "UNAVAILABLE"}


@dataclass(slots=True)
class Summary:
    """What came of the interactions."""

    recorded: int = 0
    duplicates: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    #: The first few, as source, id and problem.
    rejections: list[tuple[str, str, Problem]] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def sent(self) -> int:
        return self.recorded + self.duplicates + self.rejected.total()


class _Rate(ProgressColumn):
    """Things per second, over the whole time."""

    def render(self, task: Task) -> Text:
        elapsed = task.finished_time if task.finished else task.elapsed
        return Text(f"{task.completed / elapsed:,.0f}/s" if elapsed else "")


def progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description:<13}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeElapsedColumn(),
        console=console,
    )


def batches(customers: Iterable[Sequence[Interaction]]) -> Iterator[list[Interaction]]:
    """Group the customers' interactions into pieces of work of about BATCH_SIZE.

    A customer is in one piece only, so that pieces in flight at the same time do not meet on a stream; a customer
    with more is a larger piece.
    """
    piece: list[Interaction] = []
    for interactions in customers:
        if piece and len(piece) + len(interactions) > BATCH_SIZE:
            yield piece
            piece = []
        piece.extend(interactions)
    if piece:
        yield piece


async def record(
    ingest: "IngestServiceAsyncStub",
    customers: Iterable[Sequence[Interaction]],
    advance: Callable[[int], None],
    patience_s: float = PATIENCE_S,
) -> Summary:
    """Send everything, IN_FLIGHT batches at a time; `advance` is told how many more are settled.

    Raises:
        AioRpcError: a failure that will not go away, or that has lasted for `patience_s`.
    """
    summary = Summary()
    started = time.monotonic()
    pieces = batches(customers)

    async def work() -> None:
        for piece in pieces:
            for first in range(0, len(piece), BATCH_SIZE):
                await _record_batch(ingest, piece[first : first + BATCH_SIZE], summary, advance, patience_s)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(IN_FLIGHT):
                group.create_task(work())
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
    summary.seconds = time.monotonic() - started
    return summary


async def _record_batch(
    ingest: "IngestServiceAsyncStub",
    batch: list[Interaction],
    summary: Summary,
    advance: Callable[[int], None],
    patience_s: float,
) -> None:
    pause = Pause(patience_s)
    while batch:
        request = RecordInteractionsRequest(interactions=batch)
        answer = await patiently(partial(ingest.RecordInteractions, request, timeout=DEADLINE_S), pause)
        again: list[Interaction] = []
        for interaction, result in zip(batch, answer.results, strict=True):
            if result.status == RecordStatus.RECORD_STATUS_RECORDED:
                summary.recorded += 1
            elif result.status == RecordStatus.RECORD_STATUS_DUPLICATE:
                summary.duplicates += 1
            elif result.problem.reason in _ITEM_AGAIN and not pause.over:
                again.append(interaction)
            else:
                summary.rejected[result.problem.reason] += 1
                if len(summary.rejections) < REJECTIONS_SHOWN:
                    summary.rejections.append((interaction.source, interaction.interaction_id, result.problem))
        advance(len(batch) - len(again))
        batch = again
        if batch:
            await pause.wait()


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
