"""Group commit: commands of many callers that are under way at the same time share one append.

There is no timer. While one append is in flight, what comes gathers; when it is answered, what gathered goes. An idle
service therefore commits at once, and a busy one in large groups. One append at a time keeps every stream in the order
in which its commands came, and no two of ours ever conflict.
"""

import asyncio
import contextvars
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from services.foundation import telemetry
from services.foundation.errors import ExhaustedError, RecorridoError, UnavailableError
from services.foundation.execute import Executed, Executor, Intent

StateT = TypeVar("StateT")

#: What a caller that finds the queue full is told to wait, in seconds.
RETRY_AFTER_S = 1.0
#: A store limits what one append may hold; KurrentDB's default for a whole append was 1 MiB for years.
APPEND_BYTES = 1024 * 1024
#: What event type, metadata and envelope add to each event.
_ENVELOPE_BYTES = 512


class Submission(Generic[StateT]):
    """Commands of one caller, accepted: they are executed whether or not anybody waits for their results."""

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


@dataclass(frozen=True, slots=True)
class _Item(Generic[StateT]):
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
    ) -> None:
        """Commit through `executor`.

        Args:
            executor: executes the groups.
            name: what is committed, for metrics.
            max_items: commands that may wait. A single submission may be larger while nothing else waits.
            max_bytes: the same in bytes of what they will append.
            append_bytes: about how much goes into one append.
        """
        self._executor = executor
        self._max_items = max_items
        self._max_bytes = max_bytes
        self._append_bytes = append_bytes
        self._queue: deque[_Item[StateT]] = deque()
        self._bytes = 0
        self._worker: asyncio.Task[None] | None = None
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
        if self._worker is None and self._queue:
            # In a context of its own: the worker outlives the call that happens to start it.
            self._worker = asyncio.create_task(self._work(), context=contextvars.Context())
        return submission

    async def submit_when_room(self, intents: Sequence[Intent], sizes: Sequence[int]) -> Submission[StateT]:
        """As `submit`, but wait while the queue is full."""
        while True:
            try:
                return self.submit(intents, sizes)
            except ExhaustedError:
                await self._taken.wait()

    async def _work(self) -> None:
        try:
            while self._queue:
                if group := self._take():
                    self._sizes.record(len(group), self._attributes)
                    await self._commit(group)
        finally:
            self._worker = None

    def _take(self) -> list[_Item[StateT]]:
        group: list[_Item[StateT]] = []
        size = taken = 0
        while self._queue and (not group or size + self._queue[0].size <= self._append_bytes):
            item = self._queue.popleft()
            self._bytes -= item.size
            taken += 1
            if item.submission.lost is not None:
                item.settle(item.submission.lost)
            elif not item.submission.abandoned:
                group.append(item)
                size += item.size
        self._waiting.add(-taken, self._attributes)
        self._taken.set()
        self._taken.clear()
        return group

    def _give_up(self, error: UnavailableError) -> None:
        """Tell all who wait: who came while the store did not answer must not wait as long again for the same."""
        self._waiting.add(-len(self._queue), self._attributes)
        while self._queue:
            self._queue.popleft().settle(error)
        self._bytes = 0
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
