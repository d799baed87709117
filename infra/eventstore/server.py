"""Puts the services on one port and takes them down again."""

import asyncio
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from kurrentdbclient.protos.v1 import gossip_pb2_grpc, persistent_pb2_grpc, streams_pb2_grpc
from kurrentdbclient.protos.v2.streams import streams_pb2_grpc as v2_pb2_grpc

from infra.eventstore.database import StoreError, locked
from infra.eventstore.limits import Limits
from infra.eventstore.node import Gossip, Unimplemented, operations, server_features
from infra.eventstore.persistent import PersistentSubscriptions
from infra.eventstore.requests import Registrar
from infra.eventstore.scavenge import Scavenger
from infra.eventstore.store import Store
from infra.eventstore.streams_v1 import StreamsV1
from infra.eventstore.streams_v2 import StreamsV2

log = logging.getLogger(__name__)

# Subscriptions never end by themselves, so that a drain would wait for ever: they are cut after this long.
STOP_GRACE_S: Final = 0.5

_V1: Final = "event_store.client"
METHODS: Final = [
    (f"{_V1}.streams.Streams", "Read", ["position", "events"]),
    (f"{_V1}.streams.Streams", "Append", []),
    (f"{_V1}.streams.Streams", "BatchAppend", ["deadline_duration"]),
    (f"{_V1}.streams.Streams", "Delete", []),
    (f"{_V1}.streams.Streams", "Tombstone", []),
    ("kurrentdb.protocol.v2.streams.StreamsService", "AppendSession", []),
    ("kurrentdb.protocol.v2.streams.StreamsService", "AppendRecords", []),
    *(
        (f"{_V1}.persistent_subscriptions.PersistentSubscriptions", method, ["stream", "all"])
        for method in ("Create", "Update", "Delete", "Read", "GetInfo", "ReplayParked", "List", "RestartSubsystem")
    ),
    (f"{_V1}.operations.Operations", "StartScavenge", []),
    (f"{_V1}.operations.Operations", "StopScavenge", []),
    (f"{_V1}.gossip.Gossip", "Read", []),
    (f"{_V1}.server_features.ServerFeatures", "GetSupportedMethods", []),
]


class PortTakenError(StoreError):
    exit_code = 3


@dataclass(frozen=True)
class Settings:
    """Where to listen ("host:port"; port 0 takes a free one) and where the data is."""

    listen: str
    data: Path
    limits: Limits = field(default_factory=Limits)


async def serve(settings: Settings, stop: asyncio.Event) -> None:
    """Serve until `stop` is set; prints one line when ready.

    Raises:
        StoreError: the port is taken, the data directory is in use, or the data is corrupted.
    """
    with locked(settings.data):
        store = Store.open(settings.data)
        try:
            await _serve(settings, store, stop)
        finally:
            await store.close()


async def _serve(settings: Settings, store: Store, stop: asyncio.Event) -> None:
    server = grpc.aio.server(
        options=[
            ("grpc.so_reuseport", 0),  # or a second node could take the same port
            ("grpc.max_receive_message_length", settings.limits.max_message_bytes),
            ("grpc.max_send_message_length", -1),
            # Clients of this protocol ping on idle connections; do not take that for an attack.
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.max_ping_strikes", 0),
        ]
    )
    host, _, _ = settings.listen.rpartition(":")
    try:
        port = server.add_insecure_port(settings.listen)
    except RuntimeError:
        port = 0
    if port == 0:
        raise PortTakenError(f"cannot listen on {settings.listen}: the port is taken or the address is not ours")
    healthy = health.aio.HealthServicer()
    methods = Registrar(server)
    health_pb2_grpc.add_HealthServicer_to_server(healthy, methods)
    streams_pb2_grpc.add_StreamsServicer_to_server(StreamsV1(store, settings.limits), methods)  # type: ignore[no-untyped-call]
    v2_pb2_grpc.add_StreamsServiceServicer_to_server(StreamsV2(store, settings.limits), methods)  # type: ignore[no-untyped-call]
    gossip_pb2_grpc.add_GossipServicer_to_server(Gossip(host, port), methods)  # type: ignore[no-untyped-call]
    subscriptions = PersistentSubscriptions(store)
    await subscriptions.load()
    persistent_pb2_grpc.add_PersistentSubscriptionsServicer_to_server(subscriptions, methods)  # type: ignore[no-untyped-call]
    scavenger = Scavenger(store)
    methods.add_generic_rpc_handlers((server_features(METHODS), operations(scavenger), Unimplemented()))
    await server.start()
    await healthy.set("", health_pb2.HealthCheckResponse.SERVING)
    print(f"event store ready on {host}:{port}, data in {settings.data}, position {store.head}", flush=True)  # noqa: T201
    await stop.wait()
    await healthy.enter_graceful_shutdown()
    await subscriptions.close()
    await server.stop(STOP_GRACE_S)
    await scavenger.stop()
