"""Wires the ingest service: settings → store → handlers → gRPC."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from recorrido.ingest.v1 import (
    identity_service_pb2,
    identity_service_pb2_grpc,
    ingest_service_pb2,
    ingest_service_pb2_grpc,
    privacy_service_pb2,
    privacy_service_pb2_grpc,
    rejection_service_pb2,
    rejection_service_pb2_grpc,
)
from services.foundation import projection
from services.foundation.bus import Bus
from services.foundation.commit import GroupCommit
from services.foundation.config import PostgresDsn, ServiceSettings
from services.foundation.eventstore import EventStore
from services.foundation.execute import Executor
from services.foundation.limits import RateLimiter
from services.foundation.outlines import Outlines
from services.foundation.projection import ProjectionRunner
from services.foundation.run import Process, run
from services.ingest import masking
from services.ingest.api import (
    STREAM_BYTES,
    STREAM_BYTES_PER_CLIENT,
    STREAMS,
    STREAMS_PER_CLIENT,
    IngestServicer,
    Room,
)
from services.ingest.domain import History, Known
from services.ingest.erasure import Erasures
from services.ingest.handlers import Recorder, RejectionHandlers
from services.ingest.holdings import Holdings, HoldingsProjection
from services.ingest.identity import Links
from services.ingest.identity_api import IdentityServicer
from services.ingest.masking import Masker
from services.ingest.privacy_api import PrivacyServicer
from services.ingest.rejection import Rejections
from services.ingest.rejection_api import RejectionServicer
from services.ingest.views import RejectionQueries, RejectionsProjection

#: What is remembered of rejections: each is kept with all that came, 20 kB and more, and seldom asked for again.
REJECTION_EVENTS = 1_000


def _readable(read: Callable[[str], Any]) -> Callable[[str], str]:
    def check(value: str) -> str:
        read(value)
        return value

    return check


class IngestSettings(ServiceSettings):
    """What ingest is told."""

    postgres_dsn: PostgresDsn = Field(description="PostgreSQL that knows identities and what was rejected")
    rate_limit_per_client: float = Field(0.0, ge=0, description="interactions a second of one client; 0: any number")
    rate_limit_burst: float = Field(0.0, ge=0, description="interactions at once; 0: those of one second")
    mask_pii: Annotated[str, AfterValidator(_readable(masking.kinds_of))] = Field(
        "", description=f"what is masked in verbatims, some of {','.join(masking.Pii)}; empty: nothing"
    )
    mask_phone_regions: Annotated[str, AfterValidator(_readable(masking.regions_of))] = Field(
        ",".join(masking.DEFAULT_REGIONS), description="countries whose telephone numbers are known without a prefix"
    )
    queue_items: int = Field(10_000, gt=0, description="interactions that may wait for the store; beyond it QUEUE_FULL")
    cache_events: int = Field(
        400_000, gt=0, description="events of customers that are remembered whole, about 250 bytes each"
    )
    cache_outlines_mib: int = Field(
        64, ge=0, description="MiB for the outlines of further customers, eight bytes an event and 288 a customer"
    )
    streams: int = Field(STREAMS, gt=0, description="streams that may be open at once; beyond it TOO_MANY_STREAMS")
    streams_per_client: int = Field(
        STREAMS_PER_CLIENT, gt=0, description="the same of one client; beyond it TOO_MANY_STREAMS"
    )
    stream_bytes: int = Field(
        STREAM_BYTES, gt=0, description="bytes that all streams hold of what is not answered; beyond it STREAMS_FULL"
    )
    stream_bytes_per_client: int = Field(
        STREAM_BYTES_PER_CLIENT,
        gt=0,
        description="the same of one client; beyond it a further stream of it ends with STREAMS_FULL",
    )


async def wire(settings: IngestSettings, process: Process) -> None:
    store = await EventStore.connect(settings.eventstore_uri)
    process.on_close(store.close)
    process.watch("event store", store.ping)
    # The front door does not wait for PostgreSQL, and stays open without it.
    pool = await projection.lazy_pool(settings.postgres_dsn)
    process.on_close(pool.close)
    history = History()
    outlines = Outlines(history, settings.cache_outlines_mib * 1024 * 1024)
    customers = Executor(store, history, cache_events=settings.cache_events, outlines=outlines)
    wire_front_door(settings, process, store, pool, customers)
    wire_customers(settings, process, store, pool, customers)


def wire_front_door(
    settings: IngestSettings, process: Process, store: EventStore, pool: Any, customers: Executor[Known]
) -> None:
    """Wire recording, and what becomes of the interactions that are refused."""
    rejections = Executor(store, Rejections(), cache_events=REJECTION_EVENTS)
    recorder = Recorder(
        store,
        GroupCommit(customers, "interactions", max_items=settings.queue_items),
        GroupCommit(rejections, "rejections", max_items=settings.queue_items),
    )
    masker = Masker(masking.kinds_of(settings.mask_pii), masking.regions_of(settings.mask_phone_regions))
    room = Room(settings.streams, settings.streams_per_client, settings.stream_bytes, settings.stream_bytes_per_client)
    limiter = RateLimiter(settings.rate_limit_per_client, settings.rate_limit_burst)
    process.server.register(
        ingest_service_pb2_grpc.add_IngestServiceServicer_to_server,
        IngestServicer(recorder, limiter, process.server.stopping, masker, room),
        ingest_service_pb2.DESCRIPTOR.services_by_name["IngestService"].full_name,
    )
    process.background("rejections", ProjectionRunner(store, pool, RejectionsProjection()).run())
    process.server.register(
        rejection_service_pb2_grpc.add_RejectionServiceServicer_to_server,
        RejectionServicer(
            RejectionHandlers(store, customers, rejections, masker),
            RejectionQueries(store, pool),
            lambda: datetime.now(UTC),
            masker,
        ),
        rejection_service_pb2.DESCRIPTOR.services_by_name["RejectionService"].full_name,
    )


async def _erase(process: Process, settings: IngestSettings, erasures: Erasures) -> None:
    # The front door does not wait for the bus either.
    bus = await Bus.connect(settings.nats_url, name="ingest")
    process.on_close(bus.close)
    await erasures.run(bus)


def wire_customers(
    settings: IngestSettings, process: Process, store: EventStore, pool: Any, customers: Executor[Known]
) -> None:
    """Wire what is asked about customers."""
    runner = ProjectionRunner(store, pool, HoldingsProjection())
    process.background("holdings", runner.run())
    holdings = Holdings(store, pool, runner)
    erasures = Erasures(store, holdings, customers.forget)
    process.background("erasures", _erase(process, settings, erasures))
    process.server.register(
        privacy_service_pb2_grpc.add_PrivacyServiceServicer_to_server,
        PrivacyServicer(store, holdings, erasures),
        privacy_service_pb2.DESCRIPTOR.services_by_name["PrivacyService"].full_name,
    )
    process.server.register(
        identity_service_pb2_grpc.add_IdentityServiceServicer_to_server,
        IdentityServicer(Executor(store, Links()), holdings),
        identity_service_pb2.DESCRIPTOR.services_by_name["IdentityService"].full_name,
    )


if __name__ == "__main__":
    run("ingest", IngestSettings, wire)
