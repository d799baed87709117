"""Wires actions: settings → store, bus and PostgreSQL → commands, recoveries and the list of actions → serve."""

from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from recorrido.actions.v1 import actions_service_pb2 as pb
from recorrido.actions.v1 import actions_service_pb2_grpc as pb_grpc
from recorrido.actions.v1 import explanation_service_pb2 as explanation_pb
from recorrido.actions.v1 import explanation_service_pb2_grpc as explanation_grpc
from recorrido.actions.v1 import impact_service_pb2 as impact_pb
from recorrido.actions.v1 import impact_service_pb2_grpc as impact_grpc
from recorrido.actions.v1 import playbook_service_pb2 as playbook_pb
from recorrido.actions.v1 import playbook_service_pb2_grpc as playbook_pb_grpc
from recorrido.actions.v1 import webhook_service_pb2 as webhook_pb
from recorrido.actions.v1 import webhook_service_pb2_grpc as webhook_grpc
from services.actions.api import ActionsServicer
from services.actions.domain.action import ActionDecider
from services.actions.domain.webhooks import Keyring, networks
from services.actions.explanation_api import ExplanationServicer
from services.actions.handlers.commands import ActionCommands
from services.actions.handlers.falls import Falls
from services.actions.handlers.playbooks import PlaybookBook
from services.actions.handlers.signals import SignalHandlers
from services.actions.handlers.timer import Timer
from services.actions.handlers.webhooks import WebhookHandlers
from services.actions.impact_api import ImpactServicer
from services.actions.playbook_api import PlaybookServicer
from services.actions.receivers import Receivers
from services.actions.views import due
from services.actions.views.dry_runs import DryRuns
from services.actions.views.explanation import Explanations
from services.actions.views.history import Histories
from services.actions.views.impact import Impacts
from services.actions.views.measures import Measures, MeasuresProjection
from services.actions.views.naming import TouchpointNames
from services.actions.views.outbox import Outbox, OutboxProjection, OutboxRunner
from services.actions.views.projection import ActionsProjection
from services.actions.views.queries import ActionQueries
from services.actions.views.watching import Watchers
from services.actions.webhook_api import WebhookServicer
from services.foundation import lease, projection
from services.foundation.bus import Bus
from services.foundation.config import PostgresDsn, ServiceSettings
from services.foundation.eventstore import EventStore
from services.foundation.execute import Executor
from services.foundation.projection import ProjectionRunner
from services.foundation.run import Process, run


def _networks(value: str) -> str:
    networks(value)
    return value


def _keys(value: str) -> str:
    Keyring.read(value)
    return value


Networks = Annotated[str, AfterValidator(_networks)]
Keys = Annotated[str, AfterValidator(_keys)]


class ActionsSettings(ServiceSettings):
    """What actions is told."""

    postgres_dsn: PostgresDsn = Field(description="PostgreSQL for the list of actions")
    falls_every_seconds: float = Field(3600.0, gt=0, description="how often verified improvements are looked at again")
    webhook_allowed_networks: Networks = Field(
        "",
        description="networks that webhooks may reach though not public, also over http, such as 10.1.0.0/16,fd00::/8",
    )
    webhook_keys: Keys = Field(
        "",
        repr=False,
        description="keys that webhooks' secrets are derived from: base64 of 32 bytes or more, separated by commas,"
        " the one for new secrets first",
    )
    webhook_timeout_seconds: float = Field(15.0, gt=0, le=30, description="how long a receiver of webhooks may take")
    webhook_retry_seconds: float = Field(5.0, gt=0, description="about how long to wait after a first failed delivery")
    webhook_give_up_seconds: float = Field(86400.0, ge=0, description="after how long a failing delivery is abandoned")


def clock() -> datetime:
    return datetime.now(UTC)


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
    measures = ProjectionRunner(store, pool, MeasuresProjection())
    await measures.prepare()
    queries = ActionQueries(pool)
    impacts, names = Impacts(store, Measures(pool), queries), TouchpointNames(pool)
    process.server.register(
        impact_grpc.add_ImpactServiceServicer_to_server,
        ImpactServicer(impacts, clock),
        impact_pb.DESCRIPTOR.services_by_name["ImpactService"].full_name,
    )
    process.server.register(
        explanation_grpc.add_ExplanationServiceServicer_to_server,
        ExplanationServicer(Explanations(store, queries, names)),
        explanation_pb.DESCRIPTOR.services_by_name["ExplanationService"].full_name,
    )
    executor, book = Executor(store, ActionDecider()), PlaybookBook(store)
    process.server.register(
        pb_grpc.add_ActionsServiceServicer_to_server,
        ActionsServicer(
            commands=ActionCommands(store, executor, book),
            queries=queries,
            histories=Histories(store),
            watchers=watchers,
            impacts=impacts,
            names=names,
            clock=clock,
            stopping=process.server.stopping,
        ),
        pb.DESCRIPTOR.services_by_name["ActionsService"].full_name,
    )
    process.server.register(
        playbook_pb_grpc.add_PlaybookServiceServicer_to_server,
        PlaybookServicer(book, DryRuns(store), clock, process.server.stopping),
        playbook_pb.DESCRIPTOR.services_by_name["PlaybookService"].full_name,
    )
    process.background("list of actions", runner.run(available=process.server.availability("read model")))
    process.background("measures", measures.run(available=process.server.availability("measures")))
    falls = Falls(executor, impacts.verified, impacts.fall, clock)
    process.background("falls", falls.run(settings.falls_every_seconds, measures.caught_up.wait()))
    signals = SignalHandlers(store, executor, book)
    timer = Timer(executor, due.overdue, lambda: lease.held(pool, "actions timer"), clock)
    process.background("timer", timer.run())
    process.background(
        "recoveries",
        bus.react(signals.reaction, store, available=process.server.availability("recoveries")),
    )
    await _wire_webhooks(settings, process, store, pool)


async def _wire_webhooks(settings: ActionsSettings, process: Process, store: EventStore, pool: Any) -> None:
    filling, outbox = OutboxRunner(store, pool, OutboxProjection()), Outbox(pool, settings.webhook_timeout_seconds)
    await filling.prepare()
    receivers = Receivers(networks(settings.webhook_allowed_networks), settings.webhook_timeout_seconds)
    process.on_close(receivers.close)
    keyring = Keyring.read(settings.webhook_keys)
    webhooks = WebhookHandlers(
        store,
        outbox,
        receivers,
        keyring,
        clock,
        first_wait_s=settings.webhook_retry_seconds,
        give_up_s=settings.webhook_give_up_seconds,
    )
    process.server.register(
        webhook_grpc.add_WebhookServiceServicer_to_server,
        WebhookServicer(webhooks, outbox, receivers, keyring, clock),
        webhook_pb.DESCRIPTOR.services_by_name["WebhookService"].full_name,
    )
    process.background("outbox", filling.run(available=process.server.availability("outbox")))
    process.background("webhooks", webhooks.run())


if __name__ == "__main__":
    run("actions", ActionsSettings, wire)
