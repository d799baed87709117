"""Relays beside the cluster's own, and events for them to carry."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass

import grpc

from infra.local.cluster import Cluster
from infra.local.parts import ROOT
from infra.local.ports import free
from recorrido.ingest.v1.events import Interaction, InteractionRecorded
from recorrido.relay.v1 import relay_service_pb2 as pb
from recorrido.relay.v1 import relay_service_pb2_grpc as pb_grpc
from services.foundation.events import Pending, derived_id, stream_name
from services.foundation.eventstore import ANY, EventStore, StreamAppend
from tests.support.truth import published, stored
from tests.support.wait import until

TYPE = "recorrido.ingest.v1.InteractionRecorded"


def pending(number: int) -> Pending:
    event = InteractionRecorded(interaction=Interaction(source="test", interaction_id=str(number)))
    return Pending(event, derived_id("test", str(number)), {"$correlationId": "a b/č"})


async def append(store: EventStore, numbers: range, batch: int = 100) -> None:
    """Append one event for each number: every seventh to one of seven streams, each other to its own."""
    for at in range(numbers.start, numbers.stop, batch):
        some = range(at, min(at + batch, numbers.stop))
        await store.append(
            [StreamAppend(stream_name("customer", f"c.{n % 7} *>é"), ANY, [pending(n)]) for n in some if n % 7 == 0]
            + [StreamAppend(stream_name("customer", f"other{n}"), ANY, [pending(n)]) for n in some if n % 7]
        )


@contextlib.asynccontextmanager
async def store_of(cluster: Cluster) -> AsyncIterator[EventStore]:
    store = await EventStore.connect(cluster.environment["RECORRIDO_EVENTSTORE_URI"])
    try:
        yield store
    finally:
        await store.close()


async def assert_stream_equals_store(cluster: Cluster, count: int, deadline_s: float = 30) -> None:
    """Wait until the bus holds `count` messages; they are the store's events, once each, in its order."""
    uri, url = cluster.environment["RECORRIDO_EVENTSTORE_URI"], cluster.environment["RECORRIDO_NATS_URL"]
    events = [str(e.id) for e in await stored(uri)]
    assert len(events) == count

    async def complete() -> bool:
        return len(await published(url)) >= count

    await until(complete, deadline_s=deadline_s)
    assert [m.event_id for m in await published(url)] == events


async def status(address: str) -> pb.GetStatusResponse:
    async with grpc.aio.insecure_channel(address) as channel:
        return await pb_grpc.RelayServiceStub(channel).GetStatus(pb.GetStatusRequest(), timeout=5)


@dataclass(frozen=True)
class Second:
    """A relay of our own beside the cluster's, which nobody restarts."""

    address: str
    process: asyncio.subprocess.Process

    async def status(self) -> pb.GetStatusResponse:
        return await status(self.address)


@contextlib.asynccontextmanager
async def second_relay(cluster: Cluster) -> AsyncIterator[Second]:
    """Start another relay and wait until it stands by; at the end it stops when it is told to."""
    address = f"127.0.0.1:{free().relay}"
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "services.relay.main",
        cwd=ROOT,
        env={
            **os.environ,
            **cluster.environment,
            "RECORRIDO_LISTEN": address,
            "PYTHONPATH": f"{ROOT}:{ROOT / 'proto/gen'}",
        },
        stderr=asyncio.subprocess.DEVNULL,
    )
    second = Second(address, process)

    async def standing_by() -> bool:
        return (await second.status()).state == pb.RELAY_STATE_STANDING_BY

    try:
        await until(standing_by, deadline_s=30, ignoring=(grpc.aio.AioRpcError,))
        yield second
    finally:
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 10) == 0
