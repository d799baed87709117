"""Group commit: commands of many callers that are under way at the same time share one append.

There is no timer. While an append is in flight, what comes gathers; when it is answered, what gathered goes. An idle
service therefore commits at once, and a busy one in large groups. What fills a group of its own meanwhile does not
wait: it is made ready and sent while the store works on the one before. Streams of an append in flight are left alone,
which keeps every stream in the order in which its commands came, and no two appends of ours ever conflict.
"""

import asyncio
import contextvars
from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import Generic, TypeVar

from msgspec import Struct

from services.foundation import telemetry
from services.foundation.errors import ExhaustedError, RecorridoError, UnavailableError
from services.foundation.execute import Executed, Executor, Intent

StateT = TypeVar("StateT")

#: What a caller that finds the queue full is told to wait, in seconds.
RETRY_AFTER_S = 1.0
#: A store limits what one append may hold; KurrentDB's default for a whole append was 1 MiB for years.
APPEND_BYTES = 1024 * 1024
#: Fewer commands than these cost less in the next append than in one of their own.
GROUP_ITEMS = 256
#: Appends in flight: one at the store and one on its way.
IN_FLIGHT = 2
#: What event type, metadata and envelope add to each event.
_ENVELOPE_BYTES = 512


class Submission(Generic[StateT]):
    """Commands of one caller, accepted: they are executed, but for what still waits when the caller is gone."""

    def __init__(self, count: int) -> None:
        self._outcomes: list[Executed[StateT] | Exception | None] = [None] * count
        self._open = count
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        #: The store did not answer for one of them; the others are not tried, which would take as long.
        self.lost: UnavailableError | None = None
        if not count:
            self._done.set_result(None)

    @property
    def abandoned(self) -> bool:
        """Whether the caller is gone."""
        return self._done.cancelled()

    async def results(self) -> list[Executed[StateT] | RecorridoError]:
        """Return what each command came to, in order: done, or why not. Raises what nobody expected."""
        await self._done
        results: list[Executed[StateT] | RecorridoError] = []
        for outcome in self._outcomes:
            assert outcome is not None
            if not isinstance(outcome, Executed | RecorridoError):
                raise outcome
            results.append(outcome)
        return results

    def _settle(self, index: int, outcome: Executed[StateT] | Exception) -> None:
        self._outcomes[index] = outcome
        self._open -= 1
        if isinstance(outcome, UnavailableError):
            self.lost = outcome
        if not self._open and not self._done.done():
            self._done.set_result(None)


class _Item(Struct, Generic[StateT], frozen=True):
    submission: Submission[StateT]
    index: int
    intent: Intent
    size: int

    def settle(self, outcome: Executed[StateT] | Exception) -> None:
        self.submission._settle(self.index, outcome)  # noqa: SLF001 - the two are one thing


class GroupCommit(Generic[StateT]):
    """A bounded queue of commands before one executor."""

    def __init__(
        self,
        executor: Executor[StateT],
        name: str,
        *,
        max_items: int = 10_000,
        max_bytes: int = 64 * 1024 * 1024,
        append_bytes: int = APPEND_BYTES,
        group_items: int = GROUP_ITEMS,
    ) -> None:
        """Commit through `executor`.

        Args:
            executor: executes the groups.
            name: what is committed, for metrics.
            max_items: commands that may wait. A single submission may be larger while nothing else waits.
            max_bytes: the same in bytes of what they will append.
            append_bytes: about how much goes into one append.
            group_items: so many commands, or `append_bytes`, are worth an append of their own while one is in flight.
        """
        self._executor = executor
        self._max_items = max_items
        self._max_bytes = max_bytes
        self._append_bytes = append_bytes
        self._group_items = group_items
        self._busy: set[str] = set()
        self._queue: deque[_Item[StateT]] = deque()
        self._bytes = 0
        #: What was last found waiting for streams in flight, as commands and bytes: until one is answered it cannot go.
        self._held, self._held_bytes = 0, 0
        self._starting = False
        self._under_way: set[asyncio.Task[None]] = set()
        self._taken = asyncio.Event()
        self._attributes = {"queue": name}
        self._sizes = telemetry.METER.create_histogram("recorrido.commit.group", unit="{command}")
        self._refused = telemetry.METER.create_counter("recorrido.commit.refused", unit="{command}")
        self._waiting = telemetry.METER.create_up_down_counter("recorrido.commit.waiting", unit="{command}")

    def submit(self, intents: Sequence[Intent], sizes: Sequence[int]) -> Submission[StateT]:
        """Accept all of `intents`, whose events take about `sizes` bytes, or none.

        An intent's own `context` tells its trace: the append has many.

        Raises:
            ExhaustedError: QUEUE_FULL; the queue holds as much as it may.
        """
        size = sum(sizes) + len(sizes) * _ENVELOPE_BYTES
        if self._queue and (len(self._queue) + len(intents) > self._max_items or self._bytes + size > self._max_bytes):
            self._refused.add(len(intents), self._attributes)
            raise ExhaustedError("QUEUE_FULL", f"{len(self._queue)} commands wait already", RETRY_AFTER_S)
        submission: Submission[StateT] = Submission(len(intents))
        for index, (intent, bytes_) in enumerate(zip(intents, sizes, strict=True)):
            self._queue.append(_Item(submission, index, intent, bytes_ + _ENVELOPE_BYTES))
        self._bytes += size
        self._waiting.add(len(intents), self._attributes)
        if not self._starting:
            # Soon, so that what comes in the same moment goes together; in a context of its own, because the append
            # outlives the call that happens to start it.
            self._starting = True
            asyncio.get_running_loop().call_soon(self._start, context=contextvars.Context())
        return submission

    async def submit_when_room(self, intents: Sequence[Intent], sizes: Sequence[int]) -> Submission[StateT]:
        """As `submit`, but wait while the queue is full."""
        while True:
            try:
                return self.submit(intents, sizes)
            except ExhaustedError:
                await self._taken.wait()

    def _start(self) -> None:
        self._starting = False
        while self._queue and (not self._under_way or self._worth_another()):
            group = self._take()
            if not group:
                return
            self._sizes.record(len(group), self._attributes)
            streams = {item.intent.stream for item in group}
            self._busy |= streams
            task = asyncio.create_task(self._commit(group))
            self._under_way.add(task)
            task.add_done_callback(partial(self._finished, streams))

    def _worth_another(self) -> bool:
        items, size = len(self._queue) - self._held, self._bytes - self._held_bytes
        full = items >= self._group_items or size >= self._append_bytes
        return full and len(self._under_way) < IN_FLIGHT

    def _finished(self, streams: set[str], task: asyncio.Task[None]) -> None:
        self._busy -= streams
        self._held, self._held_bytes = 0, 0
        self._under_way.discard(task)
        self._start()

    def _take(self) -> list[_Item[StateT]]:
        """Take what goes into one append, in order; what is for streams in flight stays."""
        group: list[_Item[StateT]] = []
        stays: list[_Item[StateT]] = []
        size = taken = 0
        while self._queue and (not group or size + self._queue[0].size <= self._append_bytes):
            item = self._queue.popleft()
            if item.intent.stream in self._busy:
                stays.append(item)
                continue
            self._bytes -= item.size
            taken += 1
            if item.submission.lost is not None:
                item.settle(item.submission.lost)
            elif not item.submission.abandoned:
                group.append(item)
                size += item.size
        self._queue.extendleft(reversed(stays))
        self._held, self._held_bytes = len(stays), sum(item.size for item in stays)
        self._waiting.add(-taken, self._attributes)
        self._taken.set()
        self._taken.clear()
        return group

    def _give_up(self, error: UnavailableError) -> None:
        """Tell all who wait: who came while the store did not answer must not wait as long again for the same."""
        self._waiting.add(-len(self._queue), self._attributes)
        while self._queue:
            self._queue.popleft().settle(error)
        self._bytes = self._held = self._held_bytes = 0
        self._taken.set()
        self._taken.clear()

    async def _commit(self, group: list[_Item[StateT]]) -> None:
        """Execute a group; what is wrong with some of it is told to those alone."""
        while group:
            try:
                results = await self._executor.execute_all([item.intent for item in group])
            except UnavailableError as error:
                for item in group:
                    item.settle(error)
                self._give_up(error)
                return
            except Exception as error:  # noqa: BLE001 - it is raised to the caller that it belongs to
                if len(group) == 1:
                    group[0].settle(error)
                    return
                half = len(group) // 2
                await self._commit(group[:half])
                group = group[half:]
            else:
                for item, result in zip(group, results, strict=True):
                    item.settle(result.error or result)
                return
