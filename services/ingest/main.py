"""Wires the ingest service: settings → store → handlers → gRPC."""

from recorrido.ingest.v1 import ingest_service_pb2, ingest_service_pb2_grpc
from services.foundation.config import ServiceSettings
from services.foundation.eventstore import EventStore
from services.foundation.execute import Executor
from services.foundation.run import Process, run
from services.ingest.api import IngestServicer
from services.ingest.domain import History
from services.ingest.handlers import Handlers


async def wire(settings: ServiceSettings, process: Process) -> None:
    store = await EventStore.connect(settings.eventstore_uri)
    process.on_close(store.close)
    process.server.register(
        ingest_service_pb2_grpc.add_IngestServiceServicer_to_server,
        IngestServicer(Handlers(Executor(store, History()))),
        ingest_service_pb2.DESCRIPTOR.services_by_name["IngestService"].full_name,
    )


if __name__ == "__main__":
    run("ingest", ServiceSettings, wire)
