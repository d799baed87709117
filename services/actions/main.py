"""Wires actions: settings → store, bus and PostgreSQL → commands, recoveries and the list of actions → serve."""

from datetime import UTC, datetime

from pydantic import Field

from recorrido.actions.v1 import actions_service_pb2 as pb
from recorrido.actions.v1 import actions_service_pb2_grpc as pb_grpc
from services.actions.api import ActionsServicer
from services.actions.domain.action import ActionDecider
from services.actions.handlers.commands import ActionCommands
from services.actions.handlers.signals import Recoveries
from services.actions.views.history import Histories
from services.actions.views.projection import ActionsProjection
from services.actions.views.queries import ActionQueries
from services.actions.views.watching import Watchers
from services.foundation import projection
from services.foundation.bus import Bus
from services.foundation.config import PostgresDsn, ServiceSettings
from services.foundation.eventstore import EventStore
from services.foundation.execute import Executor
from services.foundation.projection import ProjectionRunner
from services.foundation.run import Process, run


class ActionsSettings(ServiceSettings):
    """What actions is told."""

    postgres_dsn: PostgresDsn = Field(description="PostgreSQL for the list of actions")


async def wire(settings: ActionsSettings, process: Process) -> None:
    store = await EventStore.connect(settings.eventstore_uri)
    process.on_close(store.close)
    process.watch("event store", store.ping)
    bus = await Bus.connect(settings.nats_url, name="actions")
    process.on_close(bus.close)
    process.watch("NATS", bus.ping)
    pool = await projection.connect(settings.postgres_dsn)
    process.on_close(pool.close)
    process.watch("PostgreSQL", lambda: projection.ping(pool))

    runner = ProjectionRunner(store, pool, ActionsProjection())
    await runner.prepare()
    watchers = Watchers(store)
    process.background("watching", watchers.run(await runner.last()))
    executor = Executor(store, ActionDecider())
    process.server.register(
        pb_grpc.add_ActionsServiceServicer_to_server,
        ActionsServicer(
            commands=ActionCommands(executor),
            queries=ActionQueries(pool),
            histories=Histories(store),
            watchers=watchers,
            clock=lambda: datetime.now(UTC),
            stopping=process.server.stopping,
        ),
        pb.DESCRIPTOR.services_by_name["ActionsService"].full_name,
    )
    process.background("list of actions", runner.run(available=process.server.availability("read model")))
    process.background(
        "recoveries",
        bus.react(Recoveries(executor).reaction, available=process.server.availability("event store")),
    )


if __name__ == "__main__":
    run("actions", ActionsSettings, wire)
