"""What the adapter promises over the real node: all or nothing, and every conflicting stream by name."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from kurrentdbclient import exceptions as kurrent

from recorrido.ingest.v1.events import Interaction, InteractionRecorded
from services.foundation.errors import ConflictError, RefusedError, UnavailableError
from services.foundation.events import Pending, Recorded, derived_id
from services.foundation.eventstore import NO_STREAM, CaughtUp, EventStore, StreamAppend
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
        (kurrent.RecordMaxSizeExceededError(stream_name="s", event_id="e", size=2, max_size=1), RefusedError),
        (kurrent.TransactionMaxSizeExceededError(size=2, max_size=1), RefusedError),
    ],
    ids=lambda case: getattr(case, "__name__", type(case).__name__),
)
async def test_what_can_never_succeed_is_not_waited_for(raised: Exception, told: type[Exception]) -> None:
    store = EventStore(Answering(raised))  # type: ignore[arg-type]
    with pytest.raises(told):
        await store.append([StreamAppend("customer-a", NO_STREAM, [pending(1)])])
