"""What the adapter promises over the real node: all or nothing, and every conflicting stream by name."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import pytest
from kurrentdbclient import exceptions as kurrent

from recorrido.ingest.v1.events import Interaction, InteractionRecorded
from services.foundation.errors import ConflictError, RefusedError, UnavailableError
from services.foundation.events import Pending, Recorded, derived_id
from services.foundation.eventstore import ANY, NO_STREAM, Blank, CaughtUp, Checkpoint, EventStore, StreamAppend
from tests.support import eventstore as node


def pending(number: int) -> Pending:
    event = InteractionRecorded(interaction=Interaction(source="test", interaction_id=str(number)))
    return Pending(event, derived_id("test", str(number)), {"$correlationId": "c"})


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[EventStore]:
    with node.running(tmp_path) as running:
        store = await EventStore.connect(running.uri)
        yield store
        await store.close()


async def test_a_conflict_names_every_stream_however_many(store: EventStore) -> None:
    streams = [f"customer-{n:04} with a rather long name, as customers of some systems have" for n in range(1000)]
    await store.append([StreamAppend(s, NO_STREAM, [pending(n)]) for n, s in enumerate(streams)])
    with pytest.raises(ConflictError) as raised:
        await store.append(
            [StreamAppend(s, NO_STREAM, [pending(2000 + n)]) for n, s in enumerate([*streams, "customer-new"])]
        )
    assert raised.value.streams == dict.fromkeys(streams, 0)
    assert await store.read("customer-new") == [], "all or nothing"


async def test_reads_from_where_it_was_left(store: EventStore) -> None:
    await store.append([StreamAppend("customer-a", NO_STREAM, [pending(1), pending(2), pending(3)])])
    behind = await store.read("customer-a", after=1)
    assert [(e.revision, e.event_id) for e in behind] == [(2, pending(3).event_id)]
    assert behind[0].metadata["$correlationId"] == "c"
    assert await store.read("customer-nobody") == []


async def test_follows_only_the_types_that_were_asked_for(store: EventStore) -> None:
    await store.append([StreamAppend("customer-a", NO_STREAM, [pending(1)])])
    seen: list[Recorded] = []
    async for item in store.follow(None, ["recorrido.ingest.v1.Interaction"]):
        if isinstance(item, CaughtUp):
            break
        if isinstance(item, Recorded):
            seen.append(item)
    assert seen == [], "a name is not a prefix"


OF_INTEREST = [InteractionRecorded.type_name]


def blank(number: int) -> StreamAppend:
    return StreamAppend("other-a", ANY, [Pending(Blank(), derived_id("blank", str(number)))])


async def test_who_is_idle_learns_that_nothing_behind_is_of_interest(store: EventStore) -> None:
    first = await store.append([StreamAppend("customer-a", NO_STREAM, [pending(1)])])
    head, reached = first, []
    async with (
        asyncio.timeout(10),
        contextlib.aclosing(store.follow_in_batches(None, OF_INTEREST, size=10, idle_s=0.02)) as batches,
    ):
        async for batch in batches:
            # Fewer than the store tells a checkpoint for.
            if any(isinstance(item, CaughtUp) for item in batch):
                head = [await store.append([blank(number)]) for number in range(3)][-1]
            reached += [item.position for item in batch if not isinstance(item, CaughtUp)]
            if head > first and reached[-1] >= head:
                break
    assert reached[-1] == head == await store.head()


async def test_an_idle_checkpoint_passes_no_event_of_interest(store: EventStore) -> None:
    """Looks meet appends all the time: of each checkpoint, every event up to it was delivered before."""
    recorded: dict[int, int] = {}

    async def write() -> None:
        for number in range(300):
            if number % 3:
                await store.append([blank(number)])
            else:
                at = await store.append([StreamAppend("customer-a", ANY, [pending(number)])])
                recorded[at] = number

    await store.append([StreamAppend("customer-a", NO_STREAM, [pending(1000)])])
    got: list[int] = []
    checkpoints: list[tuple[int, int]] = []
    batches = store.follow_in_batches(None, OF_INTEREST, size=10, idle_s=0.0)
    writing: asyncio.Task[None] | None = None
    async with asyncio.timeout(30), contextlib.aclosing(batches):
        async for batch in batches:
            for item in batch:
                if isinstance(item, Recorded):
                    got.append(item.position)
                elif isinstance(item, Checkpoint):
                    checkpoints.append((item.position, len(got)))
                else:
                    writing = asyncio.create_task(write())
            if writing is not None and writing.done() and checkpoints[-1][0] == await store.head():
                break
    assert writing is not None
    await writing
    assert got[1:] == sorted(recorded)
    assert len(checkpoints) > 50, "it did look while it was written"
    assert [(at, before) for at, before in checkpoints if sum(p <= at for p in got) > before] == []


async def test_a_lost_store_is_unavailable(tmp_path: Path) -> None:
    with node.running(tmp_path) as running:
        store = await EventStore.connect(running.uri)
        running.kill()
        with pytest.raises(UnavailableError):
            await store.append([StreamAppend("customer-a", NO_STREAM, [pending(1)])])
        with pytest.raises(UnavailableError):
            await store.read("customer-a")
        await store.close()


class Answering:
    """A client that answers every append with one error, as the official one raises it."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    async def append_records(self, *_: object, **__: object) -> None:
        raise self._error


@pytest.mark.parametrize(
    ("raised", "told"),
    [
        (kurrent.GrpcError("the disk is full"), UnavailableError),
        (kurrent.ServiceUnavailableError(), UnavailableError),
        (kurrent.GrpcDeadlineExceededError(), UnavailableError),
        (kurrent.AbortedByServerError(), UnavailableError),
        (kurrent.MaximumAppendSizeExceededError(), RefusedError),
        (kurrent.RecordMaxSizeExceededError(stream_name="s", event_id=uuid4(), size=2, max_size=1), RefusedError),
        (kurrent.TransactionMaxSizeExceededError(size=2, max_size=1), RefusedError),
    ],
    ids=lambda case: getattr(case, "__name__", type(case).__name__),
)
async def test_what_can_never_succeed_is_not_waited_for(raised: Exception, told: type[Exception]) -> None:
    store = EventStore(Answering(raised))  # type: ignore[arg-type]
    with pytest.raises(told):
        await store.append([StreamAppend("customer-a", NO_STREAM, [pending(1)])])
