"""Where the services are, and connections to them whose failures people can read."""

import contextlib
import os
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import grpc

from recorrido.actions.v1.actions_service_pb2_grpc import ActionsServiceStub
from recorrido.actions.v1.playbook_service_pb2_grpc import PlaybookServiceStub
from recorrido.inference.v1.inference_service_pb2_grpc import InferenceServiceStub
from recorrido.ingest.v1.ingest_service_pb2_grpc import IngestServiceStub
from recorrido.journey.v1.journey_service_pb2_grpc import JourneyServiceStub
from services.cli.failures import CommandError, SettingError, explain, info

if TYPE_CHECKING:
    # Only the type stubs tell the asynchronous client from the blocking one.
    from recorrido.actions.v1.actions_service_pb2_grpc import ActionsServiceAsyncStub
    from recorrido.actions.v1.playbook_service_pb2_grpc import PlaybookServiceAsyncStub
    from recorrido.inference.v1.inference_service_pb2_grpc import InferenceServiceAsyncStub
    from recorrido.ingest.v1.ingest_service_pb2_grpc import IngestServiceAsyncStub
    from recorrido.journey.v1.journey_service_pb2_grpc import JourneyServiceAsyncStub

#: As the services limit it: 1,000 interactions with 16 KiB of words each, and their envelopes.
MAX_MESSAGE_BYTES = 24 * 1024 * 1024
DEADLINE_S = 30.0

_PORTS = {
    "eventstore": 2113,
    "nats": 4222,
    "relay": 50050,
    "ingest": 50051,
    "inference": 50052,
    "journey": 50053,
    "actions": 50054,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Addresses:
    """`host:port` of each service, and the URLs of the bus and the store."""

    relay: str
    ingest: str
    inference: str
    journey: str
    actions: str
    nats_url: str
    eventstore_uri: str

    @classmethod
    def local(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """The parts on this machine, each moved by `RECORRIDO_PORT_<NAME>` where that is set.

        Raises:
            SettingError: a value is no port.
        """

        def at(name: str) -> str:
            variable = f"RECORRIDO_PORT_{name.upper()}"
            value = environment.get(variable) or str(_PORTS[name])
            if not (value.isascii() and value.isdigit() and 0 < int(value) < 65536):
                raise SettingError(f"{variable} must be a port from 1 to 65535, not {value!r}")
            return f"127.0.0.1:{value}"

        return cls(
            **{name: at(name) for name in ("relay", "ingest", "inference", "journey", "actions")},
            nats_url=f"nats://{at('nats')}",
            eventstore_uri=f"esdb://{at('eventstore')}?tls=false",
        )

    @classmethod
    def configured(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """As `local`, unless `RECORRIDO_<SERVICE>_ADDRESS`, `_NATS_URL` or `_EVENTSTORE_URI` says otherwise."""
        local = cls.local(environment)

        def told(name: str) -> str:
            return environment.get(f"RECORRIDO_{name.upper()}_ADDRESS") or str(getattr(local, name))

        return cls(
            **{name: told(name) for name in ("relay", "ingest", "inference", "journey", "actions")},
            nats_url=environment.get("RECORRIDO_NATS_URL") or local.nats_url,
            eventstore_uri=environment.get("RECORRIDO_EVENTSTORE_URI") or local.eventstore_uri,
        )


@contextlib.asynccontextmanager
async def channel(service: str, address: str) -> AsyncIterator[grpc.aio.Channel]:
    """Connect to one service.

    Do not nest two of them: a failure that leaves the block is told as this service's.

    Raises:
        CommandError: a call in the block failed.
    """
    options = [
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        # A service that is started again is back within seconds; by default gRPC would look again after minutes.
        ("grpc.initial_reconnect_backoff_ms", 100),
        # What an attempt may take: on a busy machine it takes more than the pause before it.
        ("grpc.min_reconnect_backoff_ms", 5000),
        ("grpc.max_reconnect_backoff_ms", 1000),
        # Loopback and private addresses are not for a web proxy.
        ("grpc.enable_http_proxy", 0),
    ]
    async with grpc.aio.insecure_channel(address, options=options) as opened:
        try:
            yield opened
        except grpc.aio.AioRpcError as error:
            failure = CommandError(explain(error, service, address))
            failure.reason = info(error).reason
            raise failure from error


@contextlib.asynccontextmanager
async def ingest(addresses: Addresses) -> AsyncIterator["IngestServiceAsyncStub"]:
    async with channel("ingest", addresses.ingest) as opened:
        yield IngestServiceStub(opened)


@contextlib.asynccontextmanager
async def inference(addresses: Addresses) -> AsyncIterator["InferenceServiceAsyncStub"]:
    async with channel("inference", addresses.inference) as opened:
        yield InferenceServiceStub(opened)


@contextlib.asynccontextmanager
async def journey(addresses: Addresses) -> AsyncIterator["JourneyServiceAsyncStub"]:
    async with channel("journey", addresses.journey) as opened:
        yield JourneyServiceStub(opened)


@contextlib.asynccontextmanager
async def actions(addresses: Addresses) -> AsyncIterator["ActionsServiceAsyncStub"]:
    async with channel("actions", addresses.actions) as opened:
        yield ActionsServiceStub(opened)


@contextlib.asynccontextmanager
async def playbooks(addresses: Addresses) -> AsyncIterator["PlaybookServiceAsyncStub"]:
    async with channel("actions", addresses.actions) as opened:
        yield PlaybookServiceStub(opened)
