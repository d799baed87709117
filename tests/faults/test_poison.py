"""Bytes that nobody can decode, and a consumer that never answers: the others go on."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable
from functools import partial
from typing import Any

import grpc
import nats
import pytest
import pytest_asyncio
from kurrentdbclient import AsyncKurrentDBClient, NewEvent, StreamState
from nats.js import api

from recorrido.actions.v1 import actions_service_pb2
from recorrido.actions.v1.actions_service_pb2_grpc import ActionsServiceStub
from recorrido.ingest.v1 import ingest_service_pb2 as pb
from recorrido.ingest.v1 import privacy_service_pb2, rejection_service_pb2
from recorrido.ingest.v1.ingest_service_pb2_grpc import IngestServiceStub
from recorrido.ingest.v1.privacy_service_pb2_grpc import PrivacyServiceStub
from recorrido.ingest.v1.rejection_service_pb2_grpc import RejectionServiceStub
from recorrido.journey.v1 import journey_service_pb2
from recorrido.journey.v1.journey_service_pb2_grpc import JourneyServiceStub
from tests.support.cli import recorrido
from tests.support.cluster import Cluster, running
from tests.support.event_types import oddities
from tests.support.front_door import DUPLICATE, RECORDED, of
from tests.support.relays import status
from tests.support.truth import stored
from tests.support.wait import until

pytestmark = pytest.mark.asyncio(loop_scope="module")

TYPE = "recorrido.ingest.v1.InteractionRecorded"
POISONS = {
    "no JSON": b"\xff\x00 no event",
    "another shape": b'{"interaction": [1, 2, 3]}',
    "empty": b"",
    "half of one": b'{"interaction": {"source": "te',
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    async with running(["ingest", "relay", "journey", "actions"], data=tmp_path_factory.mktemp("data")) as started:
        yield started


async def _record(cluster: Cluster, customer_id: str, numbers: range, csat: int | None = None) -> list[pb.RecordResult]:
    items = [of(customer_id, number, csat=csat) for number in numbers]
    async with grpc.aio.insecure_channel(cluster.address("ingest")) as channel:
        stub: Any = IngestServiceStub(channel)
        answer = await stub.RecordInteractions(pb.RecordInteractionsRequest(interactions=items), timeout=20)
    return list(answer.results)


async def _signals(cluster: Cluster, customer_id: str) -> int:
    request = journey_service_pb2.ListSignalsRequest(customer_id=customer_id)
    async with grpc.aio.insecure_channel(cluster.address("journey")) as channel:
        stub: Any = JourneyServiceStub(channel)
        return len((await stub.ListSignals(request, timeout=10)).signals)


async def _lag(cluster: Cluster) -> int:
    return (await status(cluster.address("relay"))).lag_events


async def _is(asked: Awaitable[int], wanted: int) -> bool:
    return await asked == wanted


async def _at_least(asked: Awaitable[int], wanted: int) -> bool:
    return await asked >= wanted


async def _in_store(cluster: Cluster, stream: str, *events: NewEvent) -> None:
    client = AsyncKurrentDBClient(uri=cluster.environment["RECORRIDO_EVENTSTORE_URI"])
    await client.connect()
    await client.append_to_stream(stream, events=events, current_version=StreamState.ANY)
    await client.close()


async def _dead(cluster: Cluster) -> dict[str, list[dict[str, str]]]:
    """Return the headers of the dead letters, by the consumer that buried them."""
    bus = await nats.connect(cluster.environment["RECORRIDO_NATS_URL"])
    js = bus.jetstream()
    found: dict[str, list[dict[str, str]]] = {}
    for sequence in range(1, (await js.stream_info("RECORRIDO_DEAD")).state.last_seq + 1):
        headers = dict((await js.get_msg("RECORRIDO_DEAD", seq=sequence)).headers or {})
        found.setdefault(headers["recorrido-dead-durable"], []).append(headers)
    await bus.close()
    return found


async def test_poison_in_the_store_becomes_a_dead_letter_and_stops_nobody(cluster: Cluster) -> None:
    """Somebody wrote under the name of our event: into a customer's stream, between what we recorded."""
    assert {r.status for r in await _record(cluster, "ana", range(3))} == {RECORDED}
    events = [NewEvent(type=TYPE, data=data, id=uuid.uuid4()) for data in POISONS.values()]
    ids = {str(event.id) for event in events}
    await _in_store(cluster, "customer-ana", *events)
    # Her stream is open as before, also for who has to read it.
    assert {r.status for r in await _record(cluster, "ana", range(3))} == {DUPLICATE}
    await cluster.kill_and_restart("ingest")
    assert [r.status for r in await _record(cluster, "ana", range(2, 5), csat=None)] == [DUPLICATE, RECORDED, RECORDED]
    assert {r.status for r in await _record(cluster, "ana", range(10, 13), csat=1)} == {RECORDED}
    assert {r.status for r in await _record(cluster, "ben", range(10, 13), csat=1)} == {RECORDED}

    async def buried() -> bool:
        dead = await _dead(cluster)
        return {h["ce-id"] for h in dead.get("journey-signals", [])} >= ids

    await until(buried, 20)
    for durable, letters in (await _dead(cluster)).items():
        mine = [h for h in letters if h["ce-id"] in ids]
        assert len(mine) == len(ids), f"{durable} buries each once"
        assert all(h["recorrido-dead-reason"].startswith("undecodable") for h in mine)
    # What came behind it had its effects, and the read models hold it.
    for customer_id in ("ana", "ben"):
        await until(partial(lambda c: _is(_signals(cluster, c), 3), customer_id), 20, what="signals")


async def test_events_that_make_no_sense_stop_nobody(cluster: Cluster) -> None:
    """Of every type there is, in the streams that the services read and follow."""
    before = [cluster.restarts(part) for part in cluster.parts]
    for stream in ("customer-odd", "action-odd", "signal-odd"):
        await _in_store(cluster, stream, *(NewEvent(type=t, data=data, id=uuid.uuid4()) for t, data in oddities()))
    assert {r.status for r in await _record(cluster, "after", range(3), csat=1)} == {RECORDED}
    refused = of("after", 10)
    refused.touchpoint = ""
    async with (
        grpc.aio.insecure_channel(cluster.address("ingest")) as ingest,
        grpc.aio.insecure_channel(cluster.address("actions")) as actions,
    ):
        record: Any = IngestServiceStub(ingest)
        await record.RecordInteractions(pb.RecordInteractionsRequest(interactions=[refused]), timeout=20)

        async def opened() -> int:
            stub: Any = ActionsServiceStub(actions)
            answer = await stub.ListActions(actions_service_pb2.ListActionsRequest(customer_id="after"), timeout=10)
            return int(answer.total)

        async def listed() -> int:
            stub: Any = RejectionServiceStub(ingest)
            request = rejection_service_pb2.ListRejectedRequest(customer_id="after")
            return int((await stub.ListRejected(request, timeout=10)).total)

        async def exported() -> int:
            stub: Any = PrivacyServiceStub(ingest)
            request = privacy_service_pb2.ExportCustomerRequest(customer_id="after")
            return len([each async for each in stub.ExportCustomer(request, timeout=20)])

        # The reactions, and every read model: of journey, actions, rejections and what is held.
        for asked, wanted in ((partial(_signals, cluster, "after"), 3), (opened, 1), (listed, 1), (exported, 3 + 1)):
            late = (grpc.aio.AioRpcError,)
            await until(partial(lambda a, w: _at_least(a(), w), asked, wanted), 60, ignoring=late, what=repr(asked))
    assert [cluster.restarts(part) for part in cluster.parts] == before


@pytest.mark.parametrize("headers", [None, {"ce-id": "no id", "recorrido-position": "no number"}], ids=["bare", "odd"])
async def test_poison_on_the_bus_becomes_a_dead_letter_and_stops_nobody(
    cluster: Cluster, headers: dict[str, str] | None
) -> None:
    """Somebody published on our subjects past the store; the relay finds its place all the same, also anew."""
    customer_id = f"past the store {'odd' if headers else 'bare'}"
    assert {r.status for r in await _record(cluster, customer_id, range(3), csat=1)} == {RECORDED}
    await until(lambda: _signals(cluster, customer_id), 20)
    before = len((await _dead(cluster)).get("journey-signals", []))
    bus = await nats.connect(cluster.environment["RECORRIDO_NATS_URL"])
    for poison in (b"\xff", b"{}"):
        await bus.jetstream().publish(f"{TYPE}.nobody", poison, headers=headers)
    await cluster.kill_and_restart("relay")
    for poison in (b"", b"[]"):
        await bus.jetstream().publish(f"{TYPE}.nobody", poison, headers=headers)
    assert {r.status for r in await _record(cluster, customer_id, range(3, 6), csat=1)} == {RECORDED}

    await until(lambda: _is(_signals(cluster, customer_id), 6), 20, what="signals")

    async def buried() -> bool:
        return len((await _dead(cluster))["journey-signals"]) == before + 4

    await until(buried, 20)
    assert cluster.restarts("journey") == 0
    js = bus.jetstream()

    async def complete() -> bool:
        """Whether all that is in the store is on the bus, once and in order, whatever else there is."""
        last = (await js.stream_info("RECORRIDO")).state.last_seq
        found = [dict((await js.get_msg("RECORRIDO", seq=n)).headers or {}) for n in range(1, last + 1)]
        events = await stored(cluster.environment["RECORRIDO_EVENTSTORE_URI"])
        return [h["ce-id"] for h in found if "ce-type" in h] == [str(e.id) for e in events]

    await until(complete, 10, every_s=0.2)
    await bus.close()
    await until(lambda: _is(_lag(cluster), 0), 10)
    # Whoever looks on is shown what there is.
    shown = await recorrido(cluster, "events", "--from-start", "--limit", "12", "--json")
    assert (shown.code, len(shown.out.splitlines())) == (0, 12), shown


async def test_a_consumer_that_never_acks_holds_up_nobody_and_is_given_no_more_than_its_share(cluster: Cluster) -> None:
    bus = await nats.connect(cluster.environment["RECORRIDO_NATS_URL"])
    js = bus.jetstream()
    config = api.ConsumerConfig(
        durable_name="silent",
        ack_policy=api.AckPolicy.EXPLICIT,
        max_ack_pending=10,
        ack_wait=60,
        filter_subject=f"{TYPE}.>",
    )
    await js.add_consumer("RECORRIDO", config)
    silent = await js.pull_subscribe_bind(durable="silent", stream="RECORRIDO")
    assert {r.status for r in await _record(cluster, "carla", range(40), csat=1)} == {RECORDED}
    taken = await silent.fetch(100, timeout=30)
    # A fetch ends with what is there at the moment.
    while len(taken) < 10:
        taken += await silent.fetch(100, timeout=30)
    with pytest.raises(nats.errors.TimeoutError):
        await silent.fetch(100, timeout=0.5)
    info = await js.consumer_info("RECORRIDO", "silent")
    assert len(taken) == info.num_ack_pending == 10
    assert info.num_pending >= 30

    await until(lambda: _is(_signals(cluster, "carla"), 40), 60, what="signals")

    async def others_are_done() -> bool:
        durables = [c for c in await js.consumers_info("RECORRIDO") if c.config.durable_name not in (None, "silent")]
        return len(durables) >= 2 and not any(c.num_pending or c.num_ack_pending for c in durables)

    await until(others_are_done, 60)
    # When it comes to its senses it is given the rest.
    waiting = info.num_pending
    for message in taken:
        await message.ack()
    while waiting:
        some = await silent.fetch(10, timeout=30)
        waiting -= len(some)
        await asyncio.gather(*(message.ack() for message in some))
    await js.delete_consumer("RECORRIDO", "silent")
    await bus.close()
