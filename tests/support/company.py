"""A company with every part that holds something about a customer, seen from the outside and from behind."""

import contextlib
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import grpc
from google.protobuf.json_format import MessageToDict
from kurrentdbclient import AsyncKurrentDBClient

from infra.eventstore import messages
from recorrido.actions.v1 import actions_service_pb2 as actions_pb
from recorrido.actions.v1.actions_service_pb2_grpc import ActionsServiceStub
from recorrido.inference.v1.events import Analysis, FeedbackAnalyzed, PointKind, Sentiment
from recorrido.ingest.v1 import identity_pb2, identity_service_pb2, interaction_pb2
from recorrido.ingest.v1 import privacy_service_pb2 as pb
from recorrido.ingest.v1.identity_service_pb2_grpc import IdentityServiceStub
from recorrido.ingest.v1.ingest_service_pb2 import RECORD_STATUS_RECORDED, RECORD_STATUS_REJECTED
from recorrido.ingest.v1.privacy_service_pb2_grpc import PrivacyServiceStub
from recorrido.ingest.v1.rejection_service_pb2_grpc import RejectionServiceStub
from recorrido.journey.v1 import journey_service_pb2 as journey_pb
from recorrido.journey.v1.journey_service_pb2_grpc import JourneyServiceStub
from services.actions.views.projection import ActionsProjection
from services.foundation.events import Pending, Recorded
from services.foundation.eventstore import ANY, EventStore, StreamAppend
from services.ingest.holdings import HoldingsProjection
from services.ingest.privacy import QUEUE, ErasureRequested, receipt_id_of
from services.ingest.views import RejectionsProjection
from services.journey.views.projection import JourneyProjection
from tests.support.cluster import Cluster, running
from tests.support.interactions import interaction, record
from tests.support.truth import published
from tests.support.wait import until

PROJECTIONS = (JourneyProjection, ActionsProjection, HoldingsProjection, RejectionsProjection)
PARTS = ["relay", "ingest", "journey", "actions"]


@dataclass
class Company:
    cluster: Cluster
    store: EventStore
    ingest: grpc.aio.Channel
    privacy: Any
    identities: Any
    rejections: Any
    journey: Any
    actions: Any
    #: How many actions there should be by now.
    recoveries: int = 0

    # -- what happens --

    async def happened(self, customer_id: str, number: int, *, text: str = "", csat: int | None = None) -> str:
        made = interaction(number, text=text, csat=csat)
        made.customer.customer_id = customer_id
        made.attributes["note"] = text
        made.episode_id = f"order {number}"
        made.amount.currency_code, made.amount.amount = "EUR", f"{number}.90"
        made.referral.direction = interaction_pb2.REFERRAL_DIRECTION_GIVEN
        made.referral.other_customer_id = "a friend"
        (result,) = await record(self.ingest, [made])
        assert result.status == RECORD_STATUS_RECORDED
        return result.event_id

    async def understood(self, customer_id: str, event_id: str, *, pain: bool) -> None:
        analysis = Analysis(
            sentiment=Sentiment.NEGATIVE if pain else Sentiment.POSITIVE,
            sentiment_score=-0.9 if pain else 0.9,
            point=PointKind.PAIN if pain else PointKind.DELIGHT,
            need_path="delivery/speed",
        )
        event = FeedbackAnalyzed(interaction_event_id=event_id, customer_id=customer_id, analysis=analysis)
        await self.store.append([StreamAppend(f"customer-{customer_id}", ANY, [Pending(event, uuid4())])])

    async def link(self, device: str, customer_id: str, *, unlink: bool = False) -> None:
        request: dict[str, Any] = {
            "identity": identity_pb2.Identity(kind=identity_pb2.IDENTITY_KIND_DEVICE, value=device),
            "customer_id": customer_id,
            "actor": "agent",
            "request_id": str(uuid4()),
        }
        if unlink:
            await self.identities.UnlinkIdentity(identity_service_pb2.UnlinkIdentityRequest(**request))
        else:
            await self.identities.LinkIdentity(identity_service_pb2.LinkIdentityRequest(**request))

    async def refused(self, customer_id: str, number: int, text: str) -> str:
        made = interaction(number, text=text)
        made.customer.customer_id = customer_id
        made.touchpoint = ""
        (result,) = await record(self.ingest, [made])
        assert result.status == RECORD_STATUS_REJECTED
        return result.problem.rejection_id

    async def erase(self, customer_id: str, request_id: str = "") -> pb.ErasureReceipt:
        request = pb.EraseCustomerRequest(customer_id=customer_id, request_id=request_id or str(uuid4()))
        response: pb.EraseCustomerResponse = await self.privacy.EraseCustomer(request, timeout=30, wait_for_ready=True)
        return response.receipt

    async def export(self, customer_id: str) -> list[dict[str, Any]]:
        call = self.privacy.ExportCustomer(pb.ExportCustomerRequest(customer_id=customer_id))
        return [json.loads(each.cloud_event) async for each in call]

    async def receipt(self, receipt_id: str) -> pb.ErasureReceipt:
        response: pb.GetErasureResponse = await self.privacy.GetErasure(pb.GetErasureRequest(receipt_id=receipt_id))
        return response.receipt

    async def got_to(self, step: int, customer_id: str, request_id: str) -> bool:
        """Whether an erasure is asked for (0), its facts recorded (1), a stream wiped (2), the receipt recorded (3)."""
        told = await self.store.read(f"erasure-{receipt_id_of(customer_id, request_id)}")
        match step:
            case 0:
                return bool(told or await self.pending())
            case 1:
                return bool(told)
            case 2:
                return bool(told and not await self.store.read(f"customer-{customer_id}"))
            case _:
                return bool(told and told[-1].type_name.endswith("CustomerErased"))

    async def pending(self) -> list[Recorded]:
        """The erasures that are asked for and not finished."""
        return [each for each in await self.store.read(QUEUE) if each.type_name == ErasureRequested.type_name]

    # -- what is known --

    async def settled(self, *, news: int | None = 0) -> None:
        """Wait until there are `news` more actions (None: any number), and bus and read models know the history."""
        wanted = None if news is None else self.recoveries + news

        async def so() -> bool:
            events = [event async for event in self.store.read_all(None)]
            listed = await self.actions.ListActions(actions_pb.ListActionsRequest(page_size=1))
            self.recoveries = listed.total
            on_bus = await published(self.cluster.environment["RECORRIDO_NATS_URL"])
            return (
                wanted in (None, listed.total)
                and on_bus[-1].position == events[-1].position
                and all([await self._knows(each, events) for each in PROJECTIONS])
            )

        not_yet = (grpc.aio.AioRpcError, asyncpg.UndefinedTableError, IndexError)
        await until(so, deadline_s=60, every_s=0.2, ignoring=not_yet)

    async def _knows(self, projection: Any, events: Sequence[Recorded]) -> bool:
        types = {each.type_name for each in projection.types}
        last = max((event.position for event in events if event.type_name in types), default=-1)
        connection = await asyncpg.connect(self.cluster.environment["RECORRIDO_POSTGRES_DSN"])
        try:
            return bool(await connection.fetchval(f"SELECT min(position) FROM {projection.name}.checkpoint") >= last)
        finally:
            await connection.close()

    async def answers(self, *, as_of: Sequence[datetime | None] = (None,)) -> list[Any]:
        """What the services answer to every question that counts, but for texts and ids."""
        found: list[Any] = []
        for moment in as_of:
            for request, method in (
                (journey_pb.GetScoresRequest(), self.journey.GetScores),
                (journey_pb.ListPointsRequest(), self.journey.ListPoints),
                (journey_pb.GetOverviewRequest(), self.journey.GetOverview),
                (journey_pb.GetLoyaltyLadderRequest(), self.journey.GetLoyaltyLadder),
            ):
                if moment is not None:
                    request.as_of.FromDatetime(moment)
                answer = MessageToDict(await method(request))
                answer.pop("position", None)
                for point in answer.get("points", ()):
                    point.pop("examples", None)
                if moment is None and (periods := answer.get("periods")):
                    # A span that is not asked for ends with the last event that is known, which may be an erased one.
                    periods[0].pop("from")
                    periods[-1].pop("to")
                found.append(answer)
        listed = await self.actions.ListActions(actions_pb.ListActionsRequest(page_size=1000))
        found.append(sorted((a.kind, a.touchpoint, a.need_path, a.opened_at.ToJsonString()) for a in listed.actions))
        return found

    async def rows(self) -> str:
        """Every row of every read model, as text."""
        pool = await asyncpg.connect(self.cluster.environment["RECORRIDO_POSTGRES_DSN"])
        try:
            tables = await pool.fetch(
                """SELECT schemaname, tablename FROM pg_tables
                   WHERE schemaname IN ('journey', 'actions', 'ingest', 'rejections')"""
            )
            texts = []
            for schema, table in tables:
                for row in await pool.fetch(f"SELECT * FROM {schema}.{table}"):
                    values = [v.decode() if isinstance(v, bytes) else str(v) for v in row.values()]
                    texts.append(f"{schema}.{table}: {' | '.join(values)}")
            return "\n".join(sorted(texts))
        finally:
            await pool.close()

    async def rebuild(self) -> None:
        """Forget the read models, so that they are made anew of the history."""
        connection = await asyncpg.connect(self.cluster.environment["RECORRIDO_POSTGRES_DSN"])
        for service in ("ingest", "journey", "actions"):
            await self.cluster.stop(service)
        for schema in ("ingest", "rejections", "journey", "actions"):
            await connection.execute(f"DROP SCHEMA {schema} CASCADE")
        await connection.close()
        for service in ("ingest", "journey", "actions"):
            await self.cluster.start(service)

    async def scavenge(self) -> None:
        async with grpc.aio.insecure_channel(self.cluster.address("eventstore")) as channel:
            start: Any = channel.unary_unary(
                "/event_store.client.operations.Operations/StartScavenge",
                response_deserializer=messages.ScavengeResp.FromString,
            )
            scavenge_id = (await start(b"", timeout=5, wait_for_ready=True)).scavenge_id
        client = AsyncKurrentDBClient(uri=self.cluster.environment["RECORRIDO_EVENTSTORE_URI"])
        await client.connect()
        async with await client.subscribe_to_stream(f"$scavenges-{scavenge_id}", timeout=30) as progress:
            async for event in progress:
                if event.type == "$scavengeCompleted":
                    break
        await client.close()


@contextlib.asynccontextmanager
async def company(data: Path, parts: Sequence[str] = PARTS) -> AsyncIterator[Company]:
    async with running(parts, data=data) as cluster:
        store = await EventStore.connect(cluster.environment["RECORRIDO_EVENTSTORE_URI"])
        async with (
            grpc.aio.insecure_channel(cluster.address("ingest")) as ingest,
            grpc.aio.insecure_channel(cluster.address("journey")) as journey,
            grpc.aio.insecure_channel(cluster.address("actions")) as actions,
        ):
            try:
                yield Company(
                    cluster,
                    store,
                    ingest,
                    PrivacyServiceStub(ingest),
                    IdentityServiceStub(ingest),
                    RejectionServiceStub(ingest),
                    JourneyServiceStub(journey),
                    ActionsServiceStub(actions),
                )
            finally:
                await store.close()
