"""Two instances of the service: they share the work, answer the same, and one goes on when the other dies."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid5

import grpc

from infra.local import ports as port_numbers
from infra.local.parts import catalogue
from infra.local.probes import serves_grpc
from recorrido.ingest.v1.events import Channel, Customer, Interaction, InteractionRecorded, Rating, RatingMetric
from recorrido.journey.v1 import journey_map_pb2 as maps
from recorrido.journey.v1 import journey_service_pb2 as pb
from recorrido.journey.v1.events import SignalRaised
from recorrido.journey.v1.journey_service_pb2_grpc import JourneyServiceStub
from services.foundation import projection as foundation
from services.foundation.events import NAMESPACE, Pending, Registry
from services.foundation.eventstore import ANY, EventStore, StreamAppend
from services.foundation.sharing import PARTITIONS, SharedRunner
from services.journey.views.projection import JourneyProjection
from tests.support.cluster import Cluster, running
from tests.support.tables import dump
from tests.support.wait import until

START = datetime(2026, 1, 1, tzinfo=UTC)
CUSTOMERS = 150
VISITS = 8

QUESTIONS: list[tuple[str, Any]] = [
    ("GetOverview", pb.GetOverviewRequest()),
    ("GetScores", pb.GetScoresRequest(group_by=[pb.GROUPING_TOUCHPOINT], period=pb.PERIOD_MONTH)),
    ("GetCoverage", pb.GetCoverageRequest()),
    ("GetFlow", pb.GetFlowRequest()),
    ("GetLoyaltyLadder", pb.GetLoyaltyLadderRequest()),
    ("ListSignals", pb.ListSignalsRequest(page_size=1000)),
    *(("GetCustomerJourney", pb.GetCustomerJourneyRequest(customer_id=f"c{n}")) for n in range(5)),
]


@dataclass
class Two:
    cluster: Cluster
    store: EventStore
    pool: Any
    stubs: list[Any]

    async def record(self, visit: int) -> None:
        """Every customer's interaction of one day, in a few appends; every tenth customer has a bad moment."""
        for first in range(0, CUSTOMERS, 25):
            appends = []
            for number in range(first, first + 25):
                interaction = Interaction(
                    source="shop",
                    interaction_id=str(visit),
                    customer=Customer(customer_id=f"c{number}"),
                    touchpoint=("checkout", "parcel", "elsewhere")[(number + visit) % 3],
                    channel=Channel.WEB,
                    occurred_at=START + timedelta(days=visit, minutes=number),
                    ratings=(Rating(metric=RatingMetric.CSAT, value=1.0 if number % 10 == 0 else 5.0),),
                )
                pending = Pending(InteractionRecorded(interaction=interaction), uuid5(NAMESPACE, f"{number} {visit}"))
                appends.append(StreamAppend(f"customer-c{number}", ANY, [pending]))
            await self.store.append(appends)

    async def is_shared(self) -> bool:
        """Return whether the partitions are held by two, half each."""
        rows = await self.pool.fetch(
            """SELECT count(*) AS parts FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 2 AND objid < $2
               AND classid = (hashtext($1)::bigint & 4294967295)::oid GROUP BY pid""",
            "partitions of journey",
            PARTITIONS,
        )
        return [row["parts"] for row in rows] == [PARTITIONS / 2] * 2

    async def has_all(self) -> bool:
        """Return whether the read model has the whole history, all signals among it."""
        head = await self.store.head()
        answers = [await stub.GetOverview(pb.GetOverviewRequest()) for stub in self.stubs]
        hurt = len(range(0, CUSTOMERS, 10)) * VISITS
        return all((each.signals, each.position >= head) == (hurt, True) for each in answers)

    async def ask_all(self, stub: Any) -> list[Any]:
        answers = [await getattr(stub, method)(question) for method, question in QUESTIONS]
        for answer in answers:
            # How far the store was read behind the last event that matters.
            if hasattr(answer, "position"):
                answer.position = 0
        return answers


@contextlib.asynccontextmanager
async def two_instances(data: Path) -> AsyncIterator[Two]:
    ports = port_numbers.free()
    known = catalogue(data, ports)
    # It listens where a part would that is not among these.
    address = ports.of("ingest")
    second = replace(
        known["journey"],
        name="journey-2",
        env={**known["journey"].env, "RECORRIDO_LISTEN": address},
        ready=serves_grpc(address),
        addresses={"": address},
    )
    parts = ["relay", "journey", "journey-2"]
    async with (
        running(parts, data=data, ports=ports, known={**known, "journey-2": second}) as cluster,
        grpc.aio.insecure_channel(cluster.address("journey")) as one,
        grpc.aio.insecure_channel(address) as other,
    ):
        store = await EventStore.connect(cluster.environment["RECORRIDO_EVENTSTORE_URI"])
        pool = await foundation.connect(cluster.environment["RECORRIDO_POSTGRES_DSN"])
        try:
            yield Two(cluster, store, pool, [JourneyServiceStub(one), JourneyServiceStub(other)])
        finally:
            await pool.close()
            await store.close()


async def test_two_instances_count_everything_once_and_one_goes_on_alone(tmp_path: Path) -> None:
    async with two_instances(tmp_path) as two:
        touchpoints = [maps.Touchpoint(touchpoint_id=each, name=each) for each in ("checkout", "parcel")]
        map_ = maps.JourneyMap(
            map_id="shop", name="Shop", stages=[maps.Stage(stage_id="buy", name="Buy", touchpoints=touchpoints)]
        )
        await two.stubs[0].PublishJourneyMap(pb.PublishJourneyMapRequest(map=map_, actor="ana"))
        await until(two.is_shared, 30)
        for visit in range(3):
            await two.record(visit)
        recording = asyncio.create_task(two.record(3))
        # It comes again by itself: until then the other has all to do, and afterwards half of it.
        two.cluster.kill("journey")
        await recording
        for visit in range(4, 6):
            await two.record(visit)
        await two.cluster.until_ready("journey")
        await until(two.is_shared, 30)
        for visit in range(6, VISITS):
            await two.record(visit)
        await until(two.has_all, 60, every_s=0.2, ignoring=(grpc.aio.AioRpcError,))

        ours, theirs = [await two.ask_all(stub) for stub in two.stubs]
        assert ours == theirs
        now, coverage = ours[0], ours[2]
        assert (now.interactions, now.customers) == (CUSTOMERS * VISITS, CUSTOMERS)
        # Every third is on no map.
        assert sum(each.interactions for each in coverage.touchpoints) == CUSTOMERS * VISITS * 2 // 3
        raised = Counter([each.stream async for each in two.store.read_all(None, [SignalRaised.type_name])])
        assert set(raised.values()) == {1}
        assert len(raised) == len(range(0, CUSTOMERS, 10)) * VISITS

        shared = await dump(two.pool, "journey")
        view = JourneyProjection()
        view.name = "alone"
        runner = SharedRunner(two.store, two.pool, view)
        await runner.prepare()
        await runner.last()
        await runner.write([each async for each in two.store.read_all(None, Registry(view.types).type_names)])
        alone = await dump(two.pool, "alone")
        progress = [each async for each in two.stubs[1].RebuildReadModel(pb.RebuildReadModelRequest())]
        assert progress[-1].done
        rebuilt = await dump(two.pool, "journey")
        for rows in (shared, alone, rebuilt):
            assert len(rows.pop("checkpoint")) == PARTITIONS
        assert shared == alone == rebuilt
        for stub in two.stubs:
            assert await two.ask_all(stub) == ours
