"""An OTLP receiver that keeps the spans and metric names it is sent: what a collector would see."""

import contextlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

import grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc


@dataclass(frozen=True)
class Seen:
    """One span: which service made it, in which trace, under which parent."""

    service: str
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    attributes: dict[str, str]


@dataclass
class Receiver:
    endpoint: str = ""
    spans: list[Seen] = field(default_factory=list)
    metrics: set[tuple[str, str]] = field(default_factory=set)
    #: The last told value of each sum, over all its attributes.
    sums: dict[tuple[str, str], float] = field(default_factory=dict)

    def trace(self, trace_id: str) -> dict[str, Seen]:
        return {s.span_id: s for s in list(self.spans) if s.trace_id == trace_id}

    def edges(self, trace_id: str) -> Iterator[tuple[tuple[str, str], tuple[str, str]]]:
        """Yield parent and child as (service, span name) for every parent that was seen."""
        spans = self.trace(trace_id)
        for child in spans.values():
            parent = spans.get(child.parent_id)
            if parent is not None:
                yield (parent.service, parent.name), (child.service, child.name)


class _Traces(trace_service_pb2_grpc.TraceServiceServicer):
    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver

    async def Export(self, request: Any, context: Any) -> Any:  # noqa: ARG002, N802 - gRPC's names
        for resource in request.resource_spans:
            service = _text(resource.resource.attributes).get("service.name", "")
            for scope in resource.scope_spans:
                self._receiver.spans.extend(
                    Seen(
                        service,
                        s.name,
                        s.trace_id.hex(),
                        s.span_id.hex(),
                        s.parent_span_id.hex(),
                        _text(s.attributes),
                    )
                    for s in scope.spans
                )
        return trace_service_pb2.ExportTraceServiceResponse()


class _Metrics(metrics_service_pb2_grpc.MetricsServiceServicer):
    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver

    async def Export(self, request: Any, context: Any) -> Any:  # noqa: ARG002, N802 - gRPC's names
        for resource in request.resource_metrics:
            service = _text(resource.resource.attributes).get("service.name", "")
            for metric in (metric for scope in resource.scope_metrics for metric in scope.metrics):
                self._receiver.metrics.add((service, metric.name))
                if metric.HasField("sum"):
                    told = sum(point.as_int + point.as_double for point in metric.sum.data_points)
                    self._receiver.sums[service, metric.name] = told
        return metrics_service_pb2.ExportMetricsServiceResponse()


def _text(attributes: Any) -> dict[str, str]:
    return {a.key: a.value.string_value or str(a.value.int_value) for a in attributes}


@contextlib.asynccontextmanager
async def receiver() -> AsyncIterator[Receiver]:
    """Receive on a free port for the block."""
    kept = Receiver()
    server = grpc.aio.server()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(_Traces(kept), server)  # type: ignore[no-untyped-call]
    metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(_Metrics(kept), server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    kept.endpoint = f"http://127.0.0.1:{port}"
    try:
        yield kept
    finally:
        await server.stop(None)
