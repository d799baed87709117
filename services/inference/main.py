"""Wires the inference service: settings → store, bus and Triton → handlers → gRPC and the reaction."""

from pydantic import Field

from recorrido.inference.v1 import inference_service_pb2, inference_service_pb2_grpc
from services.foundation.bus import Bus
from services.foundation.config import HostAndPort, ServiceSettings
from services.foundation.eventstore import EventStore
from services.foundation.execute import Executor
from services.foundation.run import Process, run
from services.inference.api import InferenceServicer
from services.inference.domain import Feedback
from services.inference.handlers import Handlers
from services.inference.triton import Triton


class InferenceSettings(ServiceSettings):
    """What inference is told."""

    triton_address: HostAndPort = Field(description="host:port of Triton's gRPC endpoint")


async def wire(settings: InferenceSettings, process: Process) -> None:
    store = await EventStore.connect(settings.eventstore_uri)
    process.on_close(store.close)
    process.watch("event store", store.ping)
    bus = await Bus.connect(settings.nats_url, name="inference")
    process.on_close(bus.close)
    process.watch("NATS", bus.ping)
    triton = Triton(settings.triton_address)
    process.on_close(triton.close)

    handlers = Handlers(triton, Executor(store, Feedback()))
    process.server.register(
        inference_service_pb2_grpc.add_InferenceServiceServicer_to_server,
        InferenceServicer(handlers),
        inference_service_pb2.DESCRIPTOR.services_by_name["InferenceService"].full_name,
    )
    process.background("readiness of triton", triton.watch(process.server.availability("triton")))
    process.background("feedback", bus.react(handlers.reaction, available=process.server.availability("feedback")))


if __name__ == "__main__":
    run("inference", InferenceSettings, wire)
