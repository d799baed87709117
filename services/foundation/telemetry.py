"""Traces, metrics and logs: set up once in `main`, then used by the adapters of store, bus and RPC.

Spans are always made, so that every event carries the trace it belongs to; they are recorded, and leave the process
over OTLP, when `OTEL_EXPORTER_OTLP_ENDPOINT` is set.
"""

import logging
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from typing import Any

import structlog
from opentelemetry import metrics, trace
from opentelemetry.context import Context, attach, detach
from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, ParentBased
from opentelemetry.trace import Link, NonRecordingSpan, Span, SpanContext, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

_IDS = RandomIdGenerator()
_PROPAGATOR = TraceContextTextMapPropagator()
_TRACER = trace.get_tracer("recorrido")
#: Instruments are made from this meter by the adapter that knows what it counts.
METER = metrics.get_meter("recorrido")


def set_up(service: str, *, log_level: str = "INFO", log_format: str = "console") -> None:
    """Install providers, exporters and log processors for this process. `log_format` is `console` or `json`."""
    resource = Resource.create({"service.name": service, "service.version": version("recorrido")})
    # What nobody will see is not recorded, which takes most of a span's time. Its ids are made all the same, and a
    # caller who records is followed.
    traces = TracerProvider(resource=resource, sampler=ParentBased(ALWAYS_ON if exported() else ALWAYS_OFF))
    if exported():
        traces.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        # Without a provider what is measured goes nowhere, and costs next to nothing.
        reader = PeriodicExportingMetricReader(OTLPMetricExporter())
        metrics.set_meter_provider(MeterProvider([reader], resource=resource))
    trace.set_tracer_provider(traces)

    renderer = (
        structlog.processors.JSONRenderer()
        if log_format == "json"
        else structlog.dev.ConsoleRenderer(
            colors=bool(os.environ.get("FORCE_COLOR")),
            pad_event_to=0,
            # The richer ones show local variables, which hold what customers said.
            exception_formatter=structlog.dev.plain_traceback,
        )
    )
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        _add_trace_id,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    if log_format == "json":
        shared.append(structlog.processors.format_exc_info)
    structlog.configure(
        processors=[_Waiting(), *shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[log_level]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    # Libraries log through the standard library; they get the same shape.
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(_Seldom())
    handler.addFilter(_brief)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
            foreign_pre_chain=shared,
        )
    )
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)


class _Waiting:
    """Lets what waits for a part say so twice a minute, not at each look.

    Its events begin with `waiting`, or end in `wait` or `waits`.
    """

    def __init__(self, pause_s: float = 30.0) -> None:
        self._pause_s = pause_s
        self._last: dict[tuple[str, ...], float] = {}

    def __call__(self, _logger: Any, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        name = str(event.get("event"))
        if name.startswith("waiting") or name.endswith((" wait", " waits")):
            # A part that is away says so in several ways one after the other.
            error = str(event.get("error")).partition(":")[0]
            key = (name, error, *(str(event.get(who)) for who in ("projection", "durable", "webhook_id")))
            if time.monotonic() - self._last.get(key, -math.inf) < self._pause_s:
                raise structlog.DropEvent
            self._last[key] = time.monotonic()
        return event


class _Seldom(logging.Filter):
    """Lets a library say the same thing once a minute: a collector that is away is told, not repeated at every try."""

    def __init__(self, pause_s: float = 60.0) -> None:
        super().__init__()
        self._pause_s = pause_s
        self._last: dict[tuple[str, str], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        key = record.name, str(record.msg)
        due = record.created - self._last.get(key, 0.0) >= self._pause_s
        if due:
            self._last[key] = record.created
        return due


def _brief(record: logging.LogRecord) -> bool:
    """Take the traceback off what asyncpg says while PostgreSQL is away: the error itself tells all."""
    if record.name == "asyncpg.pool" and record.exc_info and record.exc_info[1] is not None:
        record.msg, record.exc_info = f"{record.msg}: {record.exc_info[1]!r}", None
    return True


@cache
def exported() -> bool:
    """Return whether spans leave the process: one that nothing continues need not be made where they do not."""
    return bool(os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT"))


def shut_down() -> None:
    """Send what is still buffered."""
    for provider in (trace.get_tracer_provider(), metrics.get_meter_provider()):
        shutdown = getattr(provider, "shutdown", None)
        if shutdown is not None:
            shutdown()


def _add_trace_id(_logger: object, _method: str, event: MutableMapping[str, object]) -> MutableMapping[str, object]:
    context = trace.get_current_span().get_span_context()
    if context.is_valid:
        event["trace_id"] = trace.format_trace_id(context.trace_id)
    return event


def extract(headers: Mapping[str, str]) -> Context:
    """Return the context that `traceparent` and `tracestate` carry; an empty one where they are absent or bad."""
    return _PROPAGATOR.extract(headers, Context())


def inject(context: Context | None = None) -> dict[str, str]:
    """Return the headers that carry `context` (None: the current one)."""
    carrier: dict[str, str] = {}
    _PROPAGATOR.inject(carrier, context)
    return carrier


def context_of(span: Span) -> Context:
    return trace.set_span_in_context(span, Context())


def start_span(
    name: str,
    kind: SpanKind,
    *,
    parent: Context | None = None,
    links: tuple[Link, ...] = (),
    attributes: Mapping[str, str | int] | None = None,
) -> Span:
    """Start a span that the caller ends. `parent` None: the current one."""
    above = trace.get_current_span(parent).get_span_context()
    if above.is_valid and not above.trace_flags.sampled:
        # Nobody will see what is below it either: no span of its own is needed to carry the trace on.
        return NonRecordingSpan(above)
    if not above.is_valid and not exported():
        # Nor this one; what carries the trace is its ids.
        return NonRecordingSpan(SpanContext(_IDS.generate_trace_id(), _IDS.generate_span_id(), is_remote=False))
    return _TRACER.start_span(name, context=parent, kind=kind, links=links, attributes=attributes)


@contextmanager
def span(
    name: str,
    kind: SpanKind = SpanKind.INTERNAL,
    *,
    parent: Context | None = None,
    links: tuple[Link, ...] = (),
    attributes: Mapping[str, str | int] | None = None,
) -> Iterator[Span]:
    """Make a span the current one for the block; an exception marks it failed."""
    it = start_span(name, kind, parent=parent, links=links, attributes=attributes)
    token = attach(trace.set_span_in_context(it))
    try:
        yield it
    except Exception as error:
        it.record_exception(error)
        it.set_status(Status(StatusCode.ERROR, f"{type(error).__name__}: {error}"))
        raise
    finally:
        detach(token)
        it.end()


def trace_id_of(metadata: Mapping[str, str]) -> str:
    """Return the trace id, hexadecimal, that `metadata` carries, or an empty string."""
    context = trace.get_current_span(extract(metadata)).get_span_context()
    return trace.format_trace_id(context.trace_id) if context.is_valid else ""
