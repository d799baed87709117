"""Erasing a customer: one after the other, each to its end, whatever dies on the way.

What is to be erased waits in a queue in the event store. The steps of one erasure, each of which finds what the one
before it left and does nothing twice:

1. find the customer's streams; record what is left of their events, and which events go (`CustomerAnonymized`): those
   that stood in the store when it was asked for, and what came of them since;
2. wipe these streams, or their beginnings; begin again, until nothing new was found;
3. wait until the bus holds all of it, and overwrite it there; look once more for what was under way;
4. record the receipt (`CustomerErased`), and cut the request off the queue.
"""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from uuid import UUID, uuid4

import structlog

from recorrido.ingest.v1.events import CustomerAnonymized, CustomerErased, IdentityLinked
from services.foundation.bus import Bus
from services.foundation.errors import ConflictError, RefusedError, UnavailableError
from services.foundation.events import CORRELATION_ID, Event, Pending, Recorded, Registry, derived_id, encode
from services.foundation.eventstore import ANY, NO_STREAM, Blank, EventStore, StreamAppend
from services.ingest.holdings import Holdings
from services.ingest.privacy import QUEUE, Erased, ErasureRequested, anonymize, going, parts, receipt, receipt_stream

LOG = structlog.get_logger()

T = TypeVar("T")

#: Another process may have taken in a request and died.
LOOK_EVERY_S = 2.0
AGAIN_AFTER_S = 0.5
#: The relay is seldom more than a moment behind.
LOOK_AT_BUS_EVERY_S = 0.1
LOOKS_BEFORE_TOLD = 20
#: Rounds until nothing new is found: a customer who goes on being busy is erased with the next request.
MAX_ROUNDS = 50
#: What one append may hold, and what a part takes besides.
APPEND_BYTES = 512 * 1024
#: Streams that are read or wiped at the same time.
AT_ONCE = 16

_REQUESTS = Registry((ErasureRequested,))
_RECEIPTS = Registry((CustomerAnonymized, CustomerErased))


@dataclass(frozen=True, slots=True)
class _Receipt:
    """A receipt's stream as far as it is written."""

    parts: Sequence[CustomerAnonymized]
    erased: CustomerErased | None
    revision: int
    position: int

    @property
    def done(self) -> set[int]:
        return {int(position) for part in self.parts for position in part.erased_positions}


def _past(events: Sequence[Recorded]) -> tuple[Sequence[Recorded], int | None]:
    """Return the events of an identity's stream before its present link, and that link's revision (None: none).

    It was the customer's once. What went before its present link cannot be told without naming them.
    """
    if events and events[-1].type_name == IdentityLinked.type_name:
        return events[:-1], events[-1].revision
    return events, None


async def _each(work: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Do all of it, some at a time; return the results in order."""
    free = asyncio.Semaphore(AT_ONCE)

    async def one(each: Coroutine[Any, Any, T]) -> T:
        async with free:
            return await each

    return await asyncio.gather(*map(one, work))


class Erasures:
    """Takes requests in, and carries them out while `run` runs."""

    def __init__(self, store: EventStore, holdings: Holdings, forget: Callable[[str], None]) -> None:
        """`forget` is told the streams that were cut."""
        self._store = store
        self._holdings = holdings
        self._forget = forget
        self._asked = asyncio.Event()
        self._finished = asyncio.Condition()

    async def request(self, customer_id: str, receipt_id: str, secret: str) -> None:
        """Take an erasure in, once.

        Raises:
            RefusedError: IDENTITY_LINKED, it is an identity of a customer's.
            UnavailableError: the store or the read model does not answer.
        """
        pending = [request.receipt_id for _, request in await self._requests()]
        if receipt_id in pending or await self.receipt(receipt_id) is not None:
            return
        held = await self._holdings.held(customer_id)
        if held.owner:
            raise RefusedError(
                "IDENTITY_LINKED",
                f"it is linked to {held.owner}: unlink it, or erase that customer",
                {"customer_id": held.owner},
            )
        asked = ErasureRequested(customer_id=customer_id, receipt_id=receipt_id, secret=secret)
        await self._append(QUEUE, ANY, [asked], receipt_id, derived_id(QUEUE, receipt_id))
        self._asked.set()

    async def receipt(self, receipt_id: str) -> CustomerErased | None:
        """Return the receipt, None while there is none. Raises UnavailableError."""
        return (await self._written(receipt_id)).erased

    async def wait(self, receipt_id: str) -> CustomerErased:
        """Wait for a receipt, for as long as it takes."""
        while (found := await self.receipt(receipt_id)) is None:
            try:
                async with asyncio.timeout(LOOK_EVERY_S), self._finished:
                    await self._finished.wait()
            except TimeoutError:
                continue
        return found

    async def run(self, bus: Bus) -> None:
        """Carry out what is asked for, for ever; what does not succeed now is tried again."""
        while True:
            try:
                while requests := await self._requests():
                    asked, request = requests[0]
                    await self._erase(request, asked.position, bus)
                    # KurrentDB keeps a stream's last event, which is then none that names anybody.
                    await self._append(QUEUE, ANY, [Blank()], request.receipt_id)
                    await self._store.truncate(QUEUE, asked.revision + 1)
                    async with self._finished:
                        self._finished.notify_all()
            except (UnavailableError, ConflictError) as error:
                # A conflict's message names streams, and with them the customer.
                LOG.warning("erasure waits", error=error.reason)
                await asyncio.sleep(AGAIN_AFTER_S)
            except Exception:
                # The front door stays open, whatever is wrong here.
                LOG.exception("erasure failed, trying again")
                await asyncio.sleep(LOOK_EVERY_S)
            else:
                self._asked.clear()
                try:
                    await asyncio.wait_for(self._asked.wait(), LOOK_EVERY_S)
                except TimeoutError:
                    continue

    # -- one erasure -----------------------------------------------------------------------------------------------

    async def _erase(self, request: ErasureRequested, asked: int, bus: Bus) -> None:
        """Erase what was recorded up to the position `asked`."""
        written = await self._written(request.receipt_id)
        if written.erased is not None:
            return
        LOG.info("erasing a customer", receipt_id=request.receipt_id)
        on_bus: set[int] = set()
        while True:
            for _ in range(MAX_ROUNDS):
                if not await self._erase_what_is_there(request, asked):
                    break
            written = await self._written(request.receipt_id)
            if written.erased is not None:
                return
            if written.done <= on_bus:
                break
            # The bus's last message is then none of those that go, so the relay finds the place to go on from.
            await self._until_published(bus, written.position)
            held = await self._holdings.held(request.customer_id, asked)
            await bus.erase([*held.streams, *held.shared], written.done)
            on_bus = written.done
        done = receipt(request.receipt_id, written.parts)
        await self._append(receipt_stream(request.receipt_id), written.revision, [done], request.receipt_id)
        LOG.info("erased a customer", receipt_id=request.receipt_id, events=done.events)

    async def _erase_what_is_there(self, request: ErasureRequested, asked: int) -> bool:
        """Record what is left of the events that go, then wipe them; return whether there were any."""
        held = await self._holdings.held(request.customer_id, asked)
        written = await self._written(request.receipt_id)
        if written.erased is not None:
            return False  # another process came to the end; what came since is not meant
        own = dict(await self._read(held.streams))
        cuts = {stream: count for stream, count in going(own, asked).items() if count}
        shared = {stream: _past(events) for stream, events in await self._read(held.shared)}
        all_going = [*(own[stream][:count] for stream, count in cuts.items()), *(past for past, _ in shared.values())]
        await self._record(request, written, anonymize(all_going, request.secret, held.ids, written.done))
        await _each([self._cut(stream, own[stream], count) for stream, count in cuts.items()])
        for stream, (past, first_kept) in shared.items():
            if first_kept is not None and past:
                await self._store.truncate(stream, first_kept)
            elif past:
                await self._wipe(stream, past)
        return any(all_going)

    async def _read(self, streams: Sequence[str]) -> list[tuple[str, list[Recorded]]]:
        async def read(stream: str) -> tuple[str, list[Recorded]]:
            return stream, [recorded async for recorded in self._store.read_through(stream)]

        return await _each([read(stream) for stream in streams])

    async def _cut(self, stream: str, events: Sequence[Recorded], count: int) -> None:
        """Take the first `count` of a stream's events out of it."""
        if count == len(events):
            await self._wipe(stream, events)
        else:
            await self._store.truncate(stream, events[count].revision)
        self._forget(stream)

    async def _wipe(self, stream: str, events: Sequence[Recorded]) -> None:
        try:
            await self._store.wipe(stream, events[-1])
        except ConflictError:
            # More came behind them. The next round sees to it; these go now, so that it has less to do than this one.
            await self._store.truncate(stream, events[-1].revision + 1)

    async def _record(self, request: ErasureRequested, written: _Receipt, erased: Sequence[Erased]) -> None:
        """Record what goes and what is left. Whoever dies in between goes on with what is not recorded."""
        revision = written.revision
        batch: list[CustomerAnonymized] = []
        size = 0
        for part in parts(request.receipt_id, erased):
            batch.append(part)
            size += len(encode(part))
            if size >= APPEND_BYTES:
                await self._append(receipt_stream(request.receipt_id), revision, batch, request.receipt_id)
                revision += len(batch)
                batch, size = [], 0
        if batch:
            await self._append(receipt_stream(request.receipt_id), revision, batch, request.receipt_id)

    async def _until_published(self, bus: Bus, position: int) -> None:
        """Wait until the bus has the event of that position, and so all those before it."""
        looks = 0
        while ((await bus.last()).position or 0) < position:
            looks += 1
            if looks == LOOKS_BEFORE_TOLD:
                LOG.warning("erasure waits for the relay to publish what was recorded", position=position)
            await asyncio.sleep(LOOK_AT_BUS_EVERY_S)

    # -- streams ---------------------------------------------------------------------------------------------------

    async def _requests(self) -> list[tuple[Recorded, ErasureRequested]]:
        """Return the requests that are not finished, oldest first."""
        recorded = await self._store.read(QUEUE)
        return [(each, request) for each in recorded if (request := _REQUESTS.read(each)) is not None]

    async def _written(self, receipt_id: str) -> _Receipt:
        recorded = await self._store.read(receipt_stream(receipt_id))
        events = [_RECEIPTS.read(each) for each in recorded]
        return _Receipt(
            parts=[event for event in events if isinstance(event, CustomerAnonymized)],
            erased=next((event for event in events if isinstance(event, CustomerErased)), None),
            revision=recorded[-1].revision if recorded else NO_STREAM,
            position=recorded[-1].position if recorded else 0,
        )

    async def _append(
        self, stream: str, expected: int, events: Sequence[Event], receipt_id: str, event_id: UUID | None = None
    ) -> None:
        # An id of its own for each: of two workers at the same revision one conflicts, and reads what the other wrote.
        metadata = {CORRELATION_ID: receipt_id}
        pending = [Pending(event, event_id or uuid4(), metadata) for event in events]
        await self._store.append([StreamAppend(stream, expected, pending)])
