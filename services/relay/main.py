"""Wires the relay: settings → store and bus → publish, watch and republish."""

from pydantic import Field

from recorrido.relay.v1 import relay_service_pb2 as pb
from recorrido.relay.v1 import relay_service_pb2_grpc as pb_grpc
from services.foundation.bus import Bus, StreamLimits
from services.foundation.config import ServiceSettings
from services.foundation.eventstore import EventStore
from services.foundation.run import Process, run
from services.relay.api import RelayServicer
from services.relay.relay import Relay
from services.relay.replay import Replays


class RelaySettings(ServiceSettings):
    """What the relay is told."""

    bus_max_bytes: int | None = Field(
        None, gt=0, description="size of the stream RECORRIDO, the oldest events go first"
    )
    bus_replicas: int | None = Field(None, ge=1, le=5, description="copies of each stream in a NATS cluster")


async def wire(settings: RelaySettings, process: Process) -> None:
    store = await EventStore.connect(settings.eventstore_uri)
    process.on_close(store.close)
    limits = StreamLimits(settings.bus_max_bytes, settings.bus_replicas)
    bus = await Bus.connect(settings.nats_url, name="relay", limits=limits)
    process.on_close(bus.close)
    relay = Relay(store, bus)
    process.server.register(
        pb_grpc.add_RelayServiceServicer_to_server,
        RelayServicer(relay, Replays(store, bus)),
        pb.DESCRIPTOR.services_by_name["RelayService"].full_name,
    )
    process.background("relay", relay.run(able=process.server.availability("publishing")))
    process.background(
        "lag", relay.watch(bus=process.server.availability("NATS"), store=process.server.availability("event store"))
    )


if __name__ == "__main__":
    run("relay", RelaySettings, wire)
