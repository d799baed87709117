"""To tell what a contradiction contradicts is a courtesy: it costs little, however many there are of however much."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from signal import SIGSTOP

import pytest
import pytest_asyncio
from msgspec import structs

from recorrido.ingest.v1.events import (
    Channel,
    Customer,
    CustomerKind,
    Interaction,
    InteractionRecorded,
)
from services.foundation.errors import DiffersError
from services.foundation.events import Pending, Recorded, derived_id
from services.foundation.eventstore import ANY, EventStore, StreamAppend
from services.ingest import contradiction, domain
from services.ingest.domain import RecordInteraction
from tests.support import eventstore as node

NOW = datetime(2026, 3, 1, tzinfo=UTC)


@pytest_asyncio.fixture
async def running(tmp_path: Path) -> AsyncIterator[node.Node]:
    with node.running(tmp_path) as started:
        yield started


def said(customer_id: str, number: int) -> Interaction:
    return Interaction(
        source="crm",
        interaction_id=str(number),
        customer=Customer(customer_id=customer_id, kind=CustomerKind.BUYER),
        touchpoint="shop",
        channel=Channel.STORE,
        occurred_at=NOW,
    )


def contradicting(customer_id: str, number: int) -> tuple[RecordInteraction, DiffersError]:
    other = structs.replace(said(customer_id, number), touchpoint="elsewhere")
    command = RecordInteraction.of(other, NOW)
    return command, domain.contradiction("recorded", command.digest)


async def record(store: EventStore, customer_id: str, count: int) -> None:
    events = [
        Pending(InteractionRecorded(interaction=said(customer_id, n)), derived_id(customer_id, str(n)))
        for n in range(count)
    ]
    await store.append([StreamAppend(f"customer-{customer_id}", ANY, events)])


async def test_a_customer_is_read_once_and_no_more_than_so_much_of_all(
    running: node.Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await EventStore.connect(running.uri)
    for customer_id in ("a", "b", "c"):
        await record(store, customer_id, 50)
    read: list[int] = []
    original = EventStore.read

    async def counted(self: EventStore, stream: str, *given: int) -> list[Recorded]:
        events = await original(self, stream, *given)
        read.append(len(events))
        return events

    monkeypatch.setattr(EventStore, "read", counted)
    monkeypatch.setattr(contradiction, "READ", 20)
    found = await contradiction.explained(store, [contradicting("a", n) for n in (3, 17, 30, 45)])
    assert [error.details["fields"] for error in found] == ["touchpoint"] * 4
    assert {error.message.split(" (")[0] for error in found} == {
        "touchpoint differs from what was recorded under this source and interaction_id"
    }
    assert read == [20, 20, 10]

    read.clear()
    found = await contradiction.explained(store, [contradicting("a", 3), contradicting("b", 19)])
    assert [error.details["fields"] for error in found] == ["touchpoint"] * 2
    assert read == [20, 20], "no farther than what was looked for"

    read.clear()
    monkeypatch.setattr(contradiction, "LOOKED_THROUGH", 70)
    found = await contradiction.explained(store, [contradicting(name, n) for n in (10, 49) for name in ("a", "b", "c")])
    assert ["fields" in error.details for error in found] == [True, True, False, True, False, False]
    assert sum(read) == 70
    await store.close()


async def test_a_store_that_does_not_answer_is_not_waited_for(
    running: node.Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await EventStore.connect(running.uri)
    await record(store, "a", 1)
    running.process.send_signal(SIGSTOP)
    monkeypatch.setattr(contradiction, "WITHIN_S", 0.2)
    given = [contradicting("a", 0), contradicting("b", 0)]
    assert await contradiction.explained(store, given) == [error for _, error in given]
    running.kill()
    await store.close()
