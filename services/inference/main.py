"""Wires the inference service: settings → store, bus and Triton → handlers → gRPC and the reaction."""

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

from recorrido.inference.v1 import inference_service_pb2, inference_service_pb2_grpc
from services.foundation.bus import Bus
from services.foundation.config import HostAndPort, ServiceSettings
from services.foundation.eventstore import EventStore
from services.foundation.execute import Executor
from services.foundation.run import Process, run
from services.inference.api import InferenceServicer, Parts
from services.inference.comparison import Comparisons
from services.inference.corrections import CorrectionHandlers
from services.inference.domain import Feedback
from services.inference.handlers import Handlers
from services.inference.opinions import Corrections
from services.inference.reanalysis import Reanalyses
from services.inference.taxonomy import load
from services.inference.triton import Triton

#: The one that comes with the model in this repository.
TAXONOMY = Path(__file__).parents[2] / "infra/triton/taxonomy.yaml"


def _readable(path: Path) -> Path:
    load(path)
    return path


class InferenceSettings(ServiceSettings):
    """What inference is told."""

    triton_address: HostAndPort = Field(description="host:port of Triton's gRPC endpoint")
    model_version: str = Field("", pattern="^[0-9]*$", description="the model version in service; empty: the newest")
    taxonomy: Annotated[Path, AfterValidator(_readable)] = Field(
        TAXONOMY, description="YAML file of the customers' needs, the one that the model was trained with"
    )


async def wire(settings: InferenceSettings, process: Process) -> None:
    store = await EventStore.connect(settings.eventstore_uri)
    process.on_close(store.close)
    process.watch("event store", store.ping)
    bus = await Bus.connect(settings.nats_url, name="inference")
    process.on_close(bus.close)
    process.watch("NATS", bus.ping)
    triton = Triton(settings.triton_address, settings.model_version)
    process.on_close(triton.close)

    executor = Executor(store, Feedback())
    handlers = Handlers(triton, executor)
    parts = Parts(
        handlers=handlers,
        corrections=CorrectionHandlers(store, Executor(store, Corrections())),
        reanalyses=Reanalyses(store, handlers, executor),
        comparisons=Comparisons(store, handlers),
        taxonomy=load(settings.taxonomy),
        stopping=process.server.stopping,
    )
    process.server.register(
        inference_service_pb2_grpc.add_InferenceServiceServicer_to_server,
        InferenceServicer(parts),
        inference_service_pb2.DESCRIPTOR.services_by_name["InferenceService"].full_name,
    )
    process.background("readiness of triton", triton.watch(process.server.availability("triton")))
    process.background(
        "feedback", bus.react(handlers.reaction, store, available=process.server.availability("feedback"))
    )


if __name__ == "__main__":
    run("inference", InferenceSettings, wire)
