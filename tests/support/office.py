"""A running actions service and what tests ask of it."""

import contextlib
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import grpc

from recorrido.actions.v1 import action_pb2
from recorrido.actions.v1 import actions_service_pb2 as pb
from recorrido.actions.v1.actions_service_pb2_grpc import ActionsServiceStub
from recorrido.journey.v1.events import SignalRaised
from services.foundation import telemetry
from services.foundation.events import CORRELATION_ID, Pending, derived_id, stream_name
from services.foundation.eventstore import NO_STREAM, EventStore, StreamAppend
from tests.support.cluster import Cluster
from tests.support.wait import until

RECOVERY, IMPROVEMENT = action_pb2.ACTION_KIND_RECOVERY, action_pb2.ACTION_KIND_IMPROVEMENT
OPEN, ACCEPTED, COMPLETED = (
    action_pb2.ACTION_STATE_OPEN,
    action_pb2.ACTION_STATE_ACCEPTED,
    action_pb2.ACTION_STATE_COMPLETED,
)
TRACE = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{TRACE}-b7ad6b7169203331-01"


def unique(name: str) -> str:
    """Return a name that no other test uses: they share one store."""
    return f"{name} {uuid.uuid4()}"


@dataclass
class Office:
    """A running actions service, with the store for what other services write."""

    cluster: Cluster
    store: EventStore
    actions: Any

    async def open(self, **fields: Any) -> pb.Action:
        given = {
            "kind": RECOVERY,
            "customer_id": "ana",
            "title": "Call Ana",
            "actor": "maja",
            "request_id": unique("r"),
        }
        response = await self.actions.OpenAction(pb.OpenActionRequest(**{**given, **fields}))
        return response.action  # type: ignore[no-any-return]

    async def accept(self, action_id: str, **fields: Any) -> pb.Action:
        given = {"action_id": action_id, "actor": "luka", "request_id": unique("r")}
        response = await self.actions.AcceptAction(pb.AcceptActionRequest(**{**given, **fields}))
        return response.action  # type: ignore[no-any-return]

    async def complete(self, action_id: str, **fields: Any) -> pb.Action:
        given = {"action_id": action_id, "actor": "luka", "result": 1, "request_id": unique("r")}
        response = await self.actions.CompleteAction(pb.CompleteActionRequest(**{**given, **fields}))
        return response.action  # type: ignore[no-any-return]

    async def ask(self, call: str, action_id: str, **fields: Any) -> pb.Action:
        given = {"action_id": action_id, "actor": "luka", "request_id": unique("r")}
        response = await getattr(self.actions, call)(getattr(pb, f"{call}Request")(**{**given, **fields}))
        return response.action  # type: ignore[no-any-return]

    async def get(self, action_id: str) -> pb.GetActionResponse:
        return await self.actions.GetAction(pb.GetActionRequest(action_id=action_id))  # type: ignore[no-any-return]

    async def list(self, **fields: Any) -> pb.ListActionsResponse:
        return await self.actions.ListActions(pb.ListActionsRequest(**fields))  # type: ignore[no-any-return]

    async def until_listed(self, count: int, **fields: Any) -> pb.ListActionsResponse:
        """Wait until that many actions match."""

        async def complete() -> pb.ListActionsResponse | None:
            answer = await self.list(**fields)
            return answer if answer.total == count else None

        return await until(complete, 20, what=f"{count} listed", ignoring=(grpc.aio.AioRpcError,))

    async def raise_signals(self, *signals: SignalRaised) -> None:
        """Write as the journey service would, in one trace."""
        context = telemetry.extract({"traceparent": TRACEPARENT})
        await self.store.append(
            [
                StreamAppend(
                    stream_name("signal", signal.signal_id),
                    NO_STREAM,
                    [Pending(signal, event_id(signal), {CORRELATION_ID: f"about {signal.signal_id}"}, context)],
                )
                for signal in signals
            ]
        )


def event_id(signal: SignalRaised) -> uuid.UUID:
    return derived_id("test signal", signal.signal_id)


def signal(signal_id: str, **fields: Any) -> SignalRaised:
    given: dict[str, Any] = {
        "rule": "bad_moment",
        "rule_version": 1,
        "customer_id": "ana",
        "touchpoint": "delivery",
        "reasons": ("CSAT 1 of 5", "5 days late"),
        "need_path": "delivery/speed",
        "occurred_at": datetime(2026, 1, 1, tzinfo=UTC),
    }
    return SignalRaised(signal_id=signal_id, **{**given, **fields})


@contextlib.asynccontextmanager
async def connected(cluster: Cluster) -> AsyncIterator[Office]:
    store = await EventStore.connect(cluster.environment["RECORRIDO_EVENTSTORE_URI"])
    async with grpc.aio.insecure_channel(cluster.address("actions")) as channel:
        try:
            yield Office(cluster, store, ActionsServiceStub(channel))
        finally:
            await store.close()
