"""The gRPC server of every service: health, reflection, errors, deadlines, limits, traces and correlation."""

import asyncio
import contextlib
import math
import random
import time
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from datetime import datetime
from functools import lru_cache
from typing import Any, overload

import grpc
import structlog
from google.protobuf import any_pb2
from google.protobuf.message import DecodeError
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import error_details_pb2, status_pb2
from grpc import StatusCode
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio
from grpc_reflection.v1alpha import reflection
from grpc_status import rpc_status
from opentelemetry.context import attach
from opentelemetry.trace import SpanKind, set_span_in_context
from opentelemetry.trace import Status as SpanStatus
from opentelemetry.trace import StatusCode as SpanStatusCode

from services.foundation import telemetry
from services.foundation.errors import (
    ConflictError,
    DiffersError,
    ErasedError,
    ExhaustedError,
    InvalidError,
    NotErasedError,
    NotFoundError,
    OtherHistoryError,
    OtherTablesError,
    RecorridoError,
    RefusedError,
    UnavailableError,
    Violation,
)
from services.foundation.events import CORRELATION_ID
from services.foundation.limits import CALLS_PER_CLIENT, CallLimit

LOG = structlog.get_logger()

#: The largest legal request is 1,000 interactions with 16 KiB of words each, and their envelopes.
MAX_MESSAGE_BYTES = 24 * 1024 * 1024
#: For callers that set no deadline of their own, and the longest that any may set.
DEFAULT_DEADLINE_S = 30.0
#: The same for calls that answer with a stream of messages, which may be a long work and its progress.
STREAM_DEADLINE_S = 3600.0
#: How long the one message of such a call, and the end of its request, may take to come.
REQUEST_WITHIN_S = 10.0
#: gRPC refuses metadata of more than 8 KiB. The message is in it twice, once with up to three bytes for each.
_MAX_MESSAGE_BYTES = 512
_MAX_VIOLATIONS_BYTES = 4096
_MAX_DETAIL_BYTES = 1024
#: How long a connection may be silent before its caller is asked for a sign of life, and how long that may take.
SILENCE_MS = 30_000
CORRELATION_HEADER = "x-correlation-id"
#: Names the caller, who has a rate of its own.
CLIENT_HEADER = "x-client-id"

#: Who makes the call in progress: each call has a task, and so a context, of its own.
_CLIENT: ContextVar[str] = ContextVar("client")

#: The one table from expected failures to gRPC status codes.
STATUS: dict[type[RecorridoError], StatusCode] = {
    InvalidError: StatusCode.INVALID_ARGUMENT,
    NotFoundError: StatusCode.NOT_FOUND,
    DiffersError: StatusCode.ALREADY_EXISTS,
    RefusedError: StatusCode.FAILED_PRECONDITION,
    OtherHistoryError: StatusCode.FAILED_PRECONDITION,
    OtherTablesError: StatusCode.FAILED_PRECONDITION,
    NotErasedError: StatusCode.FAILED_PRECONDITION,
    ErasedError: StatusCode.FAILED_PRECONDITION,
    ConflictError: StatusCode.ABORTED,
    UnavailableError: StatusCode.UNAVAILABLE,
    ExhaustedError: StatusCode.RESOURCE_EXHAUSTED,
}


def metadata() -> dict[str, str]:
    """Return the metadata of events that the call in progress brings about: its correlation id."""
    return {CORRELATION_ID: structlog.contextvars.get_contextvars()["correlation_id"]}


@overload
def timestamp(at: datetime) -> Timestamp: ...


@overload
def timestamp(at: None) -> None: ...


def timestamp(at: datetime | None) -> Timestamp | None:
    """Return a moment for an answer; None where there is none."""
    if at is None:
        return None
    found = Timestamp()
    found.FromDatetime(at)
    return found


def client() -> str:
    """Return who makes the call in progress: `x-client-id`, else the address it comes from, without its port."""
    return _CLIENT.get()


@lru_cache(maxsize=1024)
def _address(peer: str) -> str:
    # ipv4:127.0.0.1:54321, ipv6:%5B::1%5D:54321, unix:/path
    peer = urllib.parse.unquote(peer)
    return (peer.rpartition(":")[0] if peer.startswith("ip") else peer)[:128]


def _status(code: StatusCode, message: str) -> status_pb2.Status:
    # google.rpc.code_pb2 would name the number, but the event store's client registers a copy of that file of its
    # own, and two cannot live in one process.
    return status_pb2.Status(code=code.value[0], message=message)


def _name(status: status_pb2.Status) -> str:
    return next(code.name for code in StatusCode if code.value[0] == status.code)


def status_of(error: RecorridoError) -> status_pb2.Status:
    """Return the rich status of an expected failure: ErrorInfo with its reason, BadRequest with its violations.

    It travels as metadata, of which gRPC takes 8 KiB, so a long list of violations ends with how many more there are.
    """
    status = _status(STATUS[type(error)], _cut(error.message, _MAX_MESSAGE_BYTES))
    facts = {name: _cut(value, _MAX_DETAIL_BYTES) for name, value in error.details.items()}
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain="recorrido", metadata=facts)
    details: list[Any] = [info]
    if isinstance(error, InvalidError):
        details.append(_bad_request(error.violations))
    if isinstance(error, UnavailableError | ConflictError | ExhaustedError):
        after_s = error.retry_after_s if isinstance(error, ExhaustedError) else 0.5
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(math.ceil(after_s * 1000))
        details.append(retry)
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status


def _cut(text: str, most_bytes: int) -> str:
    return text.encode()[:most_bytes].decode(errors="ignore")


def _bad_request(violations: Sequence[Violation]) -> error_details_pb2.BadRequest:
    told = error_details_pb2.BadRequest()
    for index, violation in enumerate(violations):
        told.field_violations.add(field=violation.field, description=violation.rule)
        if told.ByteSize() > _MAX_VIOLATIONS_BYTES:
            del told.field_violations[-1]
            told.field_violations.add(description=f"and {len(violations) - index} more")
            break
    return told


def _reader(deserialize: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """Return a deserializer that gives an error for what cannot be read, for the call to answer with.

    A call that reads a stream of requests finds the error among them, and may go on.
    """

    def read(raw: bytes) -> Any:
        try:
            return deserialize(raw)
        except DecodeError:
            return InvalidError([Violation("request", "a message of this method's type, its texts valid UTF-8")])

    return read


class _SlowRequestError(Exception):
    """The one message of a request, or its end, did not come in time."""


class _Methods(grpc.GenericRpcHandler):
    """A service's methods with `_call` around each.

    An interceptor would do the same at every call anew, which costs as much as an empty call itself.
    """

    def __init__(self, handler: grpc.GenericRpcHandler, calls: CallLimit) -> None:
        self._handler = handler
        self._calls = calls
        self._wrapped: dict[str, Any] = {}

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        method = handler_call_details.method
        if method not in self._wrapped:
            found = self._handler.service(handler_call_details)
            if found is None:
                return None
            self._wrapped[method] = _wrapped(method[1:], found, self._calls)
        return self._wrapped[method]


class _Registrar:
    """Takes what generated code registers in place of the server."""

    def __init__(self, server: grpc.aio.Server, calls: CallLimit) -> None:
        self._server = server
        self._calls = calls

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        self._server.add_generic_rpc_handlers(tuple(_Methods(handler, self._calls) for handler in handlers))

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        """Do nothing: the same methods come as generic handlers, which is all that grpc.aio looks at."""


def _wrapped(method: str, handler: Any, calls: CallLimit) -> Any:
    inner, longest_s, wrap = _kind(handler, calls)
    service, _, name = method.partition("/")
    attributes = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": name}

    async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        return await _call(inner, method, attributes, request, context, longest_s=longest_s())

    return wrap(
        call,
        request_deserializer=handler.request_deserializer and _reader(handler.request_deserializer),
        response_serializer=handler.response_serializer,
    )


def _kind(handler: Any, calls: CallLimit) -> tuple[Any, Callable[[], float], Callable[..., Any]]:
    """Return the function that answers, what tells the longest it may take, and what makes a handler of it.

    To gRPC every request is a stream: only so can it be read to its end (see `_request`).
    """
    if handler.request_streaming and handler.response_streaming:
        # Lasts as long as both sides like.
        return _written(handler.stream_stream), lambda: math.inf, grpc.stream_stream_rpc_method_handler
    if handler.request_streaming:
        return handler.stream_unary, lambda: STREAM_DEADLINE_S, grpc.stream_unary_rpc_method_handler
    if handler.response_streaming:
        answer = _asked_soon(_written(handler.unary_stream))
        return answer, lambda: STREAM_DEADLINE_S, grpc.stream_stream_rpc_method_handler
    answer = _limited(handler.unary_unary, calls)
    return answer, lambda: DEFAULT_DEADLINE_S, grpc.stream_unary_rpc_method_handler


async def _request(context: grpc.aio.ServicerContext[Any, Any]) -> Any:
    """Return the one message of a request when the request has ended. Raises InvalidError.

    gRPC itself would call when the message is there, and when the answer is complete before the caller has closed its
    side of the HTTP/2 stream, gRPC's C core resets the stream (RST_STREAM with NO_ERROR, RFC 9113, section 8.1). A
    caller that closes its side in a frame of its own, as Rust's and Node.js's do, may take that for a failure:
    UNAVAILABLE, by chance, of what was done.
    """
    request = await context.read()
    if request is grpc.aio.EOF or await context.read() is not grpc.aio.EOF:
        raise InvalidError([Violation("request", "exactly one message")])
    if isinstance(request, InvalidError):
        raise request
    return request


def _limited(inner: Any, calls: CallLimit) -> Any:
    """Return a handler that has `inner` answer the one message of a request, if its client may have one more call.

    It is counted before its message is read, which may be large; how long that may take its deadline tells.
    """

    async def call(_requests: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        caller = client()
        calls.enter(caller)
        try:
            return await inner(await _request(context), context)
        finally:
            calls.leave(caller)

    return call


def _asked_soon(inner: Any) -> Any:
    """Return a handler that has `inner` answer the one message of a request, if that comes in a part of its deadline.

    Raises:
        _SlowRequestError: it does not.
    """

    async def call(_requests: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        try:
            async with asyncio.timeout(REQUEST_WITHIN_S):
                request = await _request(context)
        except TimeoutError as error:
            raise _SlowRequestError from error
        await inner(request, context)

    return call


def _written(inner: Any) -> Any:
    """Return a handler that writes what the generator `inner` yields, so that its deadline covers a slow reader too."""

    async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        async with contextlib.aclosing(inner(request, context)) as replies:
            async for reply in replies:
                await context.write(reply)

    return call


async def _call(
    inner: Any,
    method: str,
    attributes: Mapping[str, str],
    request: Any,
    context: grpc.aio.ServicerContext[Any, Any],
    *,
    longest_s: float,
) -> Any:
    headers = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
    # Kept with every event of the call, so a caller may not make it long.
    correlation = headers.get(CORRELATION_HEADER, "")[:128] or _new_id()
    _CLIENT.set(headers.get(CLIENT_HEADER, "")[:128] or _address(context.peer()))
    remaining = context.time_remaining()
    budget = longest_s if remaining is None else min(remaining, longest_s)
    started = time.monotonic()
    # Like the client, neither this nor the span is ever taken back.
    structlog.contextvars.bind_contextvars(correlation_id=correlation)
    span = telemetry.start_span(
        method,
        SpanKind.SERVER,
        parent=telemetry.extract(headers),
        attributes={**attributes, "correlation_id": correlation},
    )
    attach(set_span_in_context(span))
    context.set_trailing_metadata(((CORRELATION_HEADER, correlation),))
    code, status = "CANCELLED", None
    deadline = asyncio.timeout(None if math.isinf(budget) else budget)
    try:
        async with deadline:
            reply = await inner(request, context)
        code = "OK"
        return reply  # noqa: TRY300 - an else would stand far from its call
    except RecorridoError as error:
        status = status_of(error)
    except _SlowRequestError:
        status = _status(StatusCode.DEADLINE_EXCEEDED, f"the request did not end within {REQUEST_WITHIN_S:g} s")
    except Exception as error:
        if deadline.expired():
            status = _status(StatusCode.DEADLINE_EXCEEDED, f"not done within {budget:.1f} s")
        else:
            LOG.exception("call failed", method=method)
            span.record_exception(error)
            status = _status(StatusCode.INTERNAL, "internal error; the log has it by trace id")
    finally:
        if status is not None:
            code = _name(status)
            span.set_status(SpanStatus(SpanStatusCode.ERROR, code))
        span.end()
        LOG.debug("call", method=method, code=code, seconds=round(time.monotonic() - started, 4))
    # Metadata given here takes the place of what was set before.
    rich = rpc_status.to_status(status)
    try:
        return await context.abort(
            rich.code, rich.details, (*rich.trailing_metadata, (CORRELATION_HEADER, correlation))
        )
    except grpc.aio.InternalError:
        # gRPC has ended the call itself, as one whose message is too large: there is nobody to tell.
        raise asyncio.CancelledError from None


def _new_id() -> str:
    """Return a random UUID (RFC 9562, version 4); that nobody could guess it is not needed, and takes its time."""
    hexadecimal = f"{random.getrandbits(128):032x}"
    return f"{hexadecimal[:8]}-{hexadecimal[8:12]}-4{hexadecimal[13:16]}-a{hexadecimal[17:20]}-{hexadecimal[20:]}"


class RpcServer:
    """One gRPC server. `register(adder, servicer, full_name)` before `start`."""

    def __init__(self, listen: str, *, calls_per_client: int = CALLS_PER_CLIENT) -> None:
        """Serve on `listen` (host:port; port 0: a free one), at most `calls_per_client` at once that are no streams."""
        self._listen = listen
        self._calls = CallLimit(calls_per_client)
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
                ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
                # A second process on the same port must fail, not share the calls.
                ("grpc.so_reuseport", 0),
                # Who is frozen, or behind a network that is cut, is given up though nothing says so: gRPC itself would
                # keep its streams, and what they hold, for two hours.
                ("grpc.keepalive_time_ms", SILENCE_MS),
                ("grpc.keepalive_timeout_ms", SILENCE_MS),
                ("grpc.http2.ping_timeout_ms", SILENCE_MS),
                ("grpc.http2.max_pings_without_data", 0),
            ],
        )
        self._names: list[str] = []
        self._unavailable: set[str] = set()
        self._health = health_aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        self.port = 0
        #: Set when the server begins to stop: calls that could last for ever end then.
        self.stopping = asyncio.Event()

    def register(self, add: Callable[[Any, Any], None], servicer: Any, full_name: str) -> None:
        add(servicer, _Registrar(self._server, self._calls))
        self._names.append(full_name)

    async def start(self) -> None:
        """Listen. Raises OSError when the port is taken."""
        services: Sequence[str] = [*self._names, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name]
        reflection.enable_server_reflection([*services, reflection.SERVICE_NAME], self._server)
        try:
            self.port = self._server.add_insecure_port(self._listen)
        except RuntimeError as error:
            raise OSError(f"cannot listen on {self._listen}: is the port taken?") from error
        await self._server.start()
        await self._tell()
        LOG.info("serving", address=f"{self._listen.rpartition(':')[0]}:{self.port}")

    def availability(self, part: str) -> Callable[[bool], None]:
        """Return a function that tells whether `part` answers; while any does not, health is NOT_SERVING."""

        def tell(available: bool) -> None:  # noqa: FBT001 - a callback with one meaning
            before = bool(self._unavailable)
            (self._unavailable.discard if available else self._unavailable.add)(part)
            if bool(self._unavailable) != before:
                self._background = asyncio.ensure_future(self._tell())

        return tell

    async def stop(self, grace_s: float) -> None:
        """Refuse new calls, let running ones finish within `grace_s`."""
        self.stopping.set()
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace_s)

    async def _tell(self) -> None:
        serving = health_pb2.HealthCheckResponse.SERVING
        status = health_pb2.HealthCheckResponse.NOT_SERVING if self._unavailable else serving
        for name in ("", *self._names):
            await self._health.set(name, status)
