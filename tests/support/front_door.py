"""The ingest service as a caller sees it, and the store to look behind it."""

import contextlib
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import grpc
import pytest

from recorrido.ingest.v1 import ingest_service_pb2 as pb
from recorrido.ingest.v1 import interaction_pb2
from recorrido.ingest.v1.ingest_service_pb2_grpc import IngestServiceStub
from recorrido.ingest.v1.rejection_service_pb2_grpc import RejectionServiceStub
from services.foundation.events import Recorded
from services.foundation.eventstore import EventStore
from tests.support.cluster import Cluster, running
from tests.support.interactions import interaction

RECORDED, DUPLICATE, REJECTED = (
    pb.RECORD_STATUS_RECORDED,
    pb.RECORD_STATUS_DUPLICATE,
    pb.RECORD_STATUS_REJECTED,
)


class FrontDoor:
    """The service as a caller sees it, and the store to look behind it. Every test takes customers of its own."""

    def __init__(self, cluster: Cluster, store: EventStore, channel: grpc.aio.Channel) -> None:
        self.cluster = cluster
        self.store = store
        self.channel = channel
        self.stub: Any = IngestServiceStub(channel)
        self.rejections: Any = RejectionServiceStub(channel)

    async def one(self, item: interaction_pb2.Interaction, **options: Any) -> pb.RecordResult:
        response = await self.stub.RecordInteraction(pb.RecordInteractionRequest(interaction=item), **options)
        result: pb.RecordResult = response.result
        return result

    async def refusal(self, item: interaction_pb2.Interaction, **options: Any) -> grpc.aio.AioRpcError:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self.one(item, **options)
        return caught.value

    async def many(self, *items: interaction_pb2.Interaction, **options: Any) -> list[pb.RecordResult]:
        response = await self.stub.RecordInteractions(pb.RecordInteractionsRequest(interactions=items), **options)
        return list(response.results)

    async def history(self, customer_id: str) -> list[Recorded]:
        return await self.store.read(f"customer-{customer_id}")


@contextlib.asynccontextmanager
async def front_door(data: Path, env: Mapping[str, str] | None = None) -> AsyncIterator[FrontDoor]:
    """Run ingest on a directory of its own, with `env` for it."""
    async with (
        running(["ingest"], data=data, env=env) as cluster,
        grpc.aio.insecure_channel(cluster.address("ingest")) as channel,
    ):
        store = await EventStore.connect(cluster.environment["RECORRIDO_EVENTSTORE_URI"])
        try:
            yield FrontDoor(cluster, store, channel)
        finally:
            await store.close()


def of(customer_id: str, number: int = 1, **options: Any) -> interaction_pb2.Interaction:
    """Return an interaction of this customer."""
    made = interaction(number, **options)
    made.customer.customer_id = customer_id
    return made
