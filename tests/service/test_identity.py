"""Identities over gRPC: linked at the front door, followed by journey and actions, exact as of any time."""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from recorrido.actions.v1 import actions_service_pb2 as actions_pb
from recorrido.actions.v1.actions_service_pb2_grpc import ActionsServiceStub
from recorrido.ingest.v1 import identity_pb2
from recorrido.ingest.v1 import identity_service_pb2 as pb
from recorrido.ingest.v1.identity_service_pb2_grpc import IdentityServiceStub
from recorrido.ingest.v1.ingest_service_pb2 import RECORD_STATUS_RECORDED
from recorrido.journey.v1 import journey_service_pb2 as journey_pb
from recorrido.journey.v1.journey_service_pb2_grpc import JourneyServiceStub
from services.foundation.eventstore import EventStore
from tests.support.cluster import Cluster, running
from tests.support.interactions import interaction, record
from tests.support.rpc_errors import info, violations
from tests.support.wait import until

DEVICE = identity_pb2.Identity(kind=identity_pb2.IDENTITY_KIND_DEVICE, value="4711")
CARD = identity_pb2.Identity(kind=identity_pb2.IDENTITY_KIND_LOYALTY_CARD, value="A 9/é")


@dataclass
class Company:
    cluster: Cluster
    store: EventStore
    ingest: grpc.aio.Channel
    identities: Any
    journey: Any
    actions: Any

    async def happened(self, customer_id: str, number: int, **fields: Any) -> None:
        made = interaction(number, **fields)
        made.customer.customer_id = customer_id
        (result,) = await record(self.ingest, [made])
        assert result.status == RECORD_STATUS_RECORDED

    async def link(self, identity: identity_pb2.Identity, customer: str, request: str) -> pb.LinkIdentityResponse:
        request_ = pb.LinkIdentityRequest(identity=identity, customer_id=customer, actor="agent", request_id=request)
        response: pb.LinkIdentityResponse = await self.identities.LinkIdentity(request_)
        return response

    async def unlink(self, identity: identity_pb2.Identity, customer: str, request: str) -> None:
        request_ = pb.UnlinkIdentityRequest(identity=identity, customer_id=customer, actor="agent", request_id=request)
        await self.identities.UnlinkIdentity(request_)

    async def read_model(self) -> datetime:
        """Wait until the journey knows the whole history; give a time between all so far and all that follows."""

        async def complete() -> bool:
            now = await self.journey.GetOverview(journey_pb.GetOverviewRequest())
            return bool(now.position >= await self.store.head())

        await until(complete, deadline_s=30, ignoring=(grpc.aio.AioRpcError,))
        (last,) = [e async for e in self.store.read_all(await self.store.head())]
        return await until(lambda: datetime.now(UTC) if datetime.now(UTC) > last.recorded_at else None)

    async def history(self, customer_id: str, as_of: datetime | None = None) -> tuple[str, list[str]]:
        """Whose history it is, and the interactions in it; nothing where nothing is known."""
        request = journey_pb.GetCustomerJourneyRequest(customer_id=customer_id)
        if as_of is not None:
            request.as_of.FromDatetime(as_of)
        try:
            found = await self.journey.GetCustomerJourney(request)
        except grpc.aio.AioRpcError as error:
            assert error.code() is grpc.StatusCode.NOT_FOUND  # noqa: PT017 - nothing known is an answer here
            return "", []
        return found.customer_id, [entry.interaction.interaction_id for entry in found.entries]

    async def customers(self, as_of: datetime | None = None) -> int:
        request = journey_pb.GetScoresRequest()
        if as_of is not None:
            request.as_of.FromDatetime(as_of)
        return int((await self.journey.GetScores(request)).total.customers)


@contextlib.asynccontextmanager
async def company(data: Path) -> AsyncIterator[Company]:
    async with running(["relay", "ingest", "journey", "actions"], data=data) as cluster:
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
                    IdentityServiceStub(ingest),
                    JourneyServiceStub(journey),
                    ActionsServiceStub(actions),
                )
            finally:
                await store.close()


async def test_reads_follow_links_and_an_unlink_restores_both_histories_as_of_any_time(tmp_path: Path) -> None:
    async with company(tmp_path) as c:
        await c.happened("ana", 1)
        await c.happened("device:4711", 2)
        await c.happened("bor", 3)
        apart = await c.read_model()
        linked = await c.link(DEVICE, "ana", "r1")
        assert (linked.identity_customer_id, linked.customer_id) == ("device:4711", "ana")
        await c.happened("device:4711", 4)
        await c.happened("loyalty:A 9/é", 5)
        together = await c.read_model()
        await c.unlink(DEVICE, "ana", "r2")
        parted = await c.read_model()
        await c.link(DEVICE, "bor", "r3")
        await c.link(CARD, "bor", "r4")
        await c.happened("device:4711", 6)
        await c.read_model()

        expected: dict[datetime | None, tuple[dict[str, tuple[str, list[str]]], int]] = {
            apart: (
                {"ana": ("ana", ["1"]), "device:4711": ("device:4711", ["2"]), "bor": ("bor", ["3"])},
                3,
            ),
            together: (
                {"ana": ("ana", ["1", "2", "4"]), "device:4711": ("ana", ["1", "2", "4"]), "bor": ("bor", ["3"])},
                3,
            ),
            parted: (
                {"ana": ("ana", ["1"]), "device:4711": ("device:4711", ["2", "4"]), "bor": ("bor", ["3"])},
                4,
            ),
            None: (
                {
                    "ana": ("ana", ["1"]),
                    "device:4711": ("bor", ["2", "3", "4", "5", "6"]),
                    "bor": ("bor", ["2", "3", "4", "5", "6"]),
                },
                2,
            ),
        }
        for as_of, (histories, customers) in expected.items():
            assert {each: await c.history(each, as_of) for each in histories} == histories
            assert await c.customers(as_of) == customers
        # Nothing was moved: what was recorded under the device is in its own stream.
        assert len(await c.store.read("customer-device:4711")) == 3

        async def listed(customer: str, as_of: datetime | None = None) -> list[tuple[str, str, bool]]:
            request = pb.ListIdentitiesRequest(customer_id=customer)
            if as_of is not None:
                request.as_of.FromDatetime(as_of)
            found = await c.identities.ListIdentities(request)
            return [(i.identity_customer_id, i.linked_by, i.HasField("unlinked_at")) for i in found.identities]

        assert await listed("ana") == [("device:4711", "agent", True)]
        assert await listed("bor") == [("device:4711", "agent", False), ("loyalty:A 9/é", "agent", False)]
        assert await listed("ana", apart) == []
        assert await listed("ana", together) == [("device:4711", "agent", True)]
        assert await listed("ana", parted) == []


async def test_refusals_name_the_owner_and_repetitions_change_nothing(tmp_path: Path) -> None:
    async with company(tmp_path) as c:
        await c.link(DEVICE, "ana", "r1")
        await c.link(DEVICE, "ana", "r1")
        await c.link(DEVICE, "ana", "another")
        for attempt, reason, code in (
            (c.link(DEVICE, "bor", "r2"), "IDENTITY_TAKEN", grpc.StatusCode.FAILED_PRECONDITION),
            (c.unlink(DEVICE, "bor", "r3"), "IDENTITY_NOT_LINKED", grpc.StatusCode.FAILED_PRECONDITION),
            (c.link(DEVICE, "bor", "r1"), "REQUEST_ID_REUSED", grpc.StatusCode.ALREADY_EXISTS),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await attempt
            assert (info(caught.value).reason, caught.value.code()) == (reason, code)
            if code is grpc.StatusCode.FAILED_PRECONDITION:
                assert info(caught.value).metadata["customer_id"] == "ana"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await c.link(identity_pb2.Identity(kind=77, value="x"), "email:x", "")  # type: ignore[arg-type]
        assert [field for field, _ in violations(caught.value)] == ["identity.kind", "customer_id", "request_id"]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await c.identities.ListIdentities(pb.ListIdentitiesRequest(as_of=Timestamp(seconds=2**40)))
        assert [field for field, _ in violations(caught.value)] == ["customer_id", "as_of"]
        links = [e async for e in c.store.read_all(None) if "Identity" in e.type_name]
        assert len(links) == 1
        assert "4711" not in links[0].stream


async def test_recoveries_of_an_identity_are_found_with_the_customer(tmp_path: Path) -> None:
    async with company(tmp_path) as c:
        await c.happened("device:4711", 1, csat=1)
        await c.happened("ana", 2, csat=1)

        async def of(customer_id: str) -> list[str]:
            found = await c.actions.ListActions(actions_pb.ListActionsRequest(customer_id=customer_id))
            return sorted(action.customer_id for action in found.actions)

        async def are(customer_id: str, expected: list[str]) -> None:
            async def so() -> bool:
                return await of(customer_id) == expected

            await until(so, deadline_s=30, what=f"recoveries of {customer_id}")

        await are("device:4711", ["device:4711"])
        await are("ana", ["ana"])
        await c.link(DEVICE, "ana", "r1")
        await are("ana", ["ana", "device:4711"])
        await are("device:4711", ["ana", "device:4711"])
        await c.unlink(DEVICE, "ana", "r2")
        await are("ana", ["ana"])
        await are("device:4711", ["device:4711"])


async def test_the_front_door_stays_open_without_postgresql(tmp_path: Path) -> None:
    async with company(tmp_path) as c:
        await c.cluster.stop("postgres")
        await c.happened("ana", 1)
        await c.link(DEVICE, "ana", "r1")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await c.identities.ListIdentities(pb.ListIdentitiesRequest(customer_id="ana"))
        assert (caught.value.code(), info(caught.value).reason) == (grpc.StatusCode.UNAVAILABLE, "UNAVAILABLE")
        await c.cluster.start("postgres")

        async def listed() -> int:
            return len((await c.identities.ListIdentities(pb.ListIdentitiesRequest(customer_id="ana"))).identities)

        assert await until(listed, deadline_s=30, ignoring=(grpc.aio.AioRpcError,)) == 1
