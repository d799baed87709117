"""kill -9 of any one process during an import: nothing is lost, nothing is doubled."""

import asyncio
from pathlib import Path

import grpc
import pytest

from infra.local.cluster import Cluster, running
from recorrido.actions.v1 import action_pb2, actions_service_pb2, actions_service_pb2_grpc
from recorrido.ingest.v1.ingest_service_pb2 import RECORD_STATUS_DUPLICATE
from recorrido.ingest.v1.interaction_pb2 import Interaction
from recorrido.journey.v1 import journey_service_pb2, journey_service_pb2_grpc
from tests.support.interactions import interaction, record
from tests.support.truth import count_by_type, published, stored
from tests.support.wait import until

PROCESSES = ("eventstore", "nats", "postgres", "triton", "relay", "ingest", "inference", "journey", "actions")
TOTAL = 1_800
BATCH = 50
TEXT = "It broke after two days and nobody answers the phone."


@pytest.mark.timeout(400)
async def test_nothing_is_lost_or_doubled_whatever_dies(tmp_path: Path) -> None:
    interactions = [
        interaction(n, text=TEXT if n % 3 == 0 else "", csat=1 if n % 10 == 0 else None) for n in range(TOTAL)
    ]
    batches = [interactions[at : at + BATCH] for at in range(0, TOTAL, BATCH)]
    async with running(data=tmp_path) as cluster:
        async with grpc.aio.insecure_channel(cluster.address("ingest")) as channel:
            # Each kill takes its share of the import, so that every process dies while there is work for it.
            event_ids: list[str] = []
            for turn, name in enumerate([*PROCESSES, None]):
                share = batches[turn :: len(PROCESSES) + 1]
                sending = asyncio.create_task(_send(channel, share))
                if name is not None:
                    assert not sending.done()
                    await cluster.kill_and_restart(name)
                event_ids += await sending
            assert "" not in event_ids, "every interaction was accepted"
            assert len(set(event_ids)) == TOTAL
            # Sending again adds nothing.
            for batch in batches[:3]:
                assert {r.status for r in await record(channel, batch)} == {RECORD_STATUS_DUPLICATE}
        await _settled(cluster)

        events = await stored(cluster.environment["RECORRIDO_EVENTSTORE_URI"])
        counts = count_by_type(events)
        assert len({e.id for e in events}) == len(events)
        assert counts["recorrido.ingest.v1.InteractionRecorded"] == TOTAL
        assert counts["recorrido.inference.v1.FeedbackAnalyzed"] == TOTAL / 3
        assert counts["recorrido.actions.v1.ActionOpened"] == counts["recorrido.journey.v1.SignalRaised"]
        assert counts["recorrido.journey.v1.SignalRaised"] >= TOTAL / 10

        messages = await published(cluster.environment["RECORRIDO_NATS_URL"])
        assert [m.event_id for m in messages] == [str(e.id) for e in events], "once each, in the store's order"

        overview = await _overview(cluster)
        assert overview.interactions == TOTAL
        assert overview.customers == 100
        assert (overview.verbatims, overview.analyzed) == (TOTAL / 3, TOTAL / 3)
        assert overview.signals == counts["recorrido.journey.v1.SignalRaised"]
        assert await _open_recoveries(cluster) == counts["recorrido.actions.v1.ActionOpened"]


async def _send(channel: grpc.aio.Channel, batches: list[list[Interaction]]) -> list[str]:
    return [result.event_id for batch in batches for result in await record(channel, batch)]


async def _settled(cluster: Cluster) -> None:
    """Wait until every reaction has come to its effect and every read model has seen it."""

    async def done() -> bool:
        try:
            overview = await _overview(cluster)
            recoveries = await _open_recoveries(cluster)
        except grpc.aio.AioRpcError:
            return False
        return (
            overview.interactions == TOTAL
            and overview.analyzed == overview.verbatims == TOTAL / 3
            # Each bad rating is a signal; a verbatim may add its own, so the events themselves must come to rest.
            and overview.signals >= TOTAL / 10
            and recoveries == overview.signals
            and await _bus_is_drained(cluster)
        )

    await until(done, deadline_s=120)


async def _bus_is_drained(cluster: Cluster) -> bool:
    import nats

    client = await nats.connect(cluster.environment["RECORRIDO_NATS_URL"])
    try:
        consumers = await client.jetstream().consumers_info("RECORRIDO")
        return len(consumers) >= 3 and all(c.num_pending == 0 and c.num_ack_pending == 0 for c in consumers)
    finally:
        await client.close()


async def _overview(cluster: Cluster) -> journey_service_pb2.GetOverviewResponse:
    async with grpc.aio.insecure_channel(cluster.address("journey")) as channel:
        stub = journey_service_pb2_grpc.JourneyServiceStub(channel)
        return await stub.GetOverview(journey_service_pb2.GetOverviewRequest(), timeout=10)


async def _open_recoveries(cluster: Cluster) -> int:
    async with grpc.aio.insecure_channel(cluster.address("actions")) as channel:
        stub = actions_service_pb2_grpc.ActionsServiceStub(channel)
        request = actions_service_pb2.ListActionsRequest(kind=action_pb2.ACTION_KIND_RECOVERY, page_size=1)
        return (await stub.ListActions(request, timeout=10)).total
