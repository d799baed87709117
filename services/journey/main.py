"""Wires the journey: settings → store, bus, PostgreSQL → maps, projection, signals → gRPC."""

from pydantic import Field

from recorrido.journey.v1 import journey_service_pb2 as pb
from recorrido.journey.v1.journey_service_pb2_grpc import add_JourneyServiceServicer_to_server
from services.foundation import projection
from services.foundation.bus import Bus
from services.foundation.config import PostgresDsn, ServiceSettings
from services.foundation.eventstore import EventStore
from services.foundation.rebuild import rebuild
from services.foundation.run import Process, run
from services.foundation.sharing import SharedRunner
from services.journey.api import JourneyService
from services.journey.domain.quoting import Quoting
from services.journey.handlers import MapHandlers, SignalHandlers, WatchHandlers
from services.journey.views.projection import BATCH, JourneyProjection
from services.journey.views.snapshot import ReadModel
from services.journey.watch import watch


class Settings(ServiceSettings):
    postgres_dsn: PostgresDsn = Field(description="PostgreSQL that holds the read models")
    quote_verbatims: Quoting = Field(
        Quoting.UNLESS_REFUSED, description="whose words may be examples: unless_refused, if_permitted or never"
    )


async def wire(settings: Settings, process: Process) -> None:
    store = await EventStore.connect(settings.eventstore_uri)
    process.on_close(store.close)
    process.watch("event store", store.ping)
    pool = await projection.connect(settings.postgres_dsn)
    process.on_close(pool.close)
    process.watch("PostgreSQL", lambda: projection.ping(pool))
    bus = await Bus.connect(settings.nats_url, name="journey")
    process.on_close(bus.close)
    process.watch("NATS", bus.ping)

    view = JourneyProjection()
    runner = SharedRunner(store, pool, view, batch_size=BATCH)
    process.background("projection", runner.run(available=process.server.availability("read model")))
    reaction = SignalHandlers(store).reaction
    process.background("signals", bus.react(reaction, store, available=process.server.availability("signals")))
    read_model = ReadModel(pool, view.name)
    process.background("watch", watch(pool, read_model, WatchHandlers(store)))
    process.server.register(
        add_JourneyServiceServicer_to_server,
        JourneyService(
            MapHandlers(store),
            read_model,
            lambda: rebuild(store, pool, JourneyProjection, SharedRunner),
            settings.quote_verbatims,
        ),
        pb.DESCRIPTOR.services_by_name["JourneyService"].full_name,
    )


if __name__ == "__main__":
    run("journey", Settings, wire)
