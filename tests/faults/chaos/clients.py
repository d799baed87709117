"""Clients that record while parts die, and repeat what they have no answer for, as real ones do."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc

from recorrido.ingest.v1 import ingest_service_pb2 as pb
from recorrido.ingest.v1.ingest_service_pb2_grpc import IngestServiceStub
from tests.faults.chaos.plan import Plan
from tests.support.interactions import RETRIABLE

CHANNEL = (
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
)


@dataclass
class Tally:
    """What the clients were told. `wrong`: answers that no client should ever get."""

    acknowledged: dict[int, str] = field(default_factory=dict)
    #: Tried once, by clients that do not repeat, and not acknowledged.
    unknown: set[int] = field(default_factory=set)
    duplicates: int = 0
    calls: int = 0
    repeated: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    last_at: float = field(default_factory=time.monotonic)
    longest_pause_s: float = 0.0

    @property
    def settled(self) -> int:
        return len(self.acknowledged) + len(self.unknown)

    def take(self, number: int, result: pb.RecordResult) -> bool:
        """Note an answer; whether it was final."""
        if result.status == pb.RECORD_STATUS_REJECTED:
            self.repeated[result.problem.reason] += 1
            if result.problem.reason not in {"UNAVAILABLE", "CONFLICT"}:
                self.wrong.append(f"{number} was refused: {result.problem}")
                self.unknown.add(number)
                return True
            return False
        self.duplicates += result.status == pb.RECORD_STATUS_DUPLICATE
        if self.acknowledged.setdefault(number, result.event_id) != result.event_id:
            self.wrong.append(f"{number} is event {self.acknowledged[number]}, and now {result.event_id}")
        now = time.monotonic()
        self.longest_pause_s = max(self.longest_pause_s, now - self.last_at)
        self.last_at = now
        return True


class Client:
    """Records its share in single calls, batches and streams, and repeats what it has no answer for."""

    def __init__(self, plan: Plan, number: int, address: str, tally: Tally) -> None:
        self._plan = plan
        self._dice = random.Random(f"{plan.seed} client {number}")
        # Neighbours meet on the customers' streams.
        self._open = list(range(number, plan.interactions, plan.clients))[::-1]
        self._address = address
        self._tally = tally
        self._pause_s = 0.0

    async def run(self) -> None:
        async with grpc.aio.insecure_channel(self._address, options=CHANNEL) as channel:
            self._stub: Any = IngestServiceStub(channel)
            while self._open:
                how, size = self._dice.choice(
                    ((self._single, 8), (self._batch, 50), (self._batch, 200), (self._stream, 300))
                )
                share = [self._open.pop() for _ in range(min(size, len(self._open)))]
                # Some do not care whether it arrived: they never repeat.
                await self._once([n for n in share if n % 97 == 0])
                share = [n for n in share if n % 97]
                last = share[-3:]
                while share := await self._attempt(how, share):
                    self._pause_s = min(self._pause_s * 2 or 0.05, 1.0)
                    await asyncio.sleep(self._pause_s * self._dice.uniform(0.5, 1.0))
                self._pause_s = 0.0
                # And some repeat though they were answered.
                if last and self._dice.random() < 0.1:
                    await self._attempt(self._batch, last)

    async def _once(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            if await self._attempt(self._single, [number]):
                self._tally.unknown.add(number)

    async def _attempt(self, how: Callable[[list[int]], Any], numbers: list[int]) -> list[int]:
        """Send, and return what is to be sent again."""
        left = dict.fromkeys(numbers)
        self._tally.calls += 1
        try:
            async for number, result in how(numbers):
                if self._tally.take(number, result):
                    left.pop(number, None)
        except grpc.aio.AioRpcError as error:
            self._tally.repeated[error.code().name] += 1
            # The last is no answer of the server: it is what our own side says of a stream that breaks under its pen.
            ours = error.details() == "Internal error from Core"
            if error.code() not in {*RETRIABLE, grpc.StatusCode.RESOURCE_EXHAUSTED} and not ours:
                self._tally.wrong.append(f"{error.code().name}: {error.details()}")
        return list(left)

    def _timeout_s(self) -> float:
        # Now and then a client is in such a hurry that it does not hear the answer.
        return self._dice.uniform(0.01, 0.1) if self._dice.random() < 0.03 else 20.0

    async def _single(self, numbers: list[int]) -> AsyncIterator[tuple[int, pb.RecordResult]]:
        for number in numbers:
            request = pb.RecordInteractionRequest(interaction=self._plan.interaction(number))
            yield number, (await self._stub.RecordInteraction(request, timeout=self._timeout_s())).result

    async def _batch(self, numbers: list[int]) -> AsyncIterator[tuple[int, pb.RecordResult]]:
        request = pb.RecordInteractionsRequest(interactions=map(self._plan.interaction, numbers))
        response = await self._stub.RecordInteractions(request, timeout=self._timeout_s())
        for answered in zip(numbers, response.results, strict=True):
            yield answered

    async def _stream(self, numbers: list[int]) -> AsyncIterator[tuple[int, pb.RecordResult]]:
        parts = [numbers[at : at + 50] for at in range(0, len(numbers), 50)]
        requests = [
            pb.StreamInteractionsRequest(sequence=sequence, interactions=map(self._plan.interaction, part))
            for sequence, part in enumerate(parts)
        ]
        async for answer in self._stub.StreamInteractions(iter(requests), timeout=self._timeout_s()):
            for answered in zip(parts[answer.sequence], answer.results, strict=True):
                yield answered
