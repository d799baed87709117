"""What a caller sees of every way a call can end: status, details, correlation id and trace."""

import asyncio
import contextlib
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc import StatusCode
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from recorrido.actions.v1 import actions_service_pb2 as pb
from recorrido.actions.v1 import actions_service_pb2_grpc as pb_grpc
from recorrido.relay.v1 import relay_service_pb2 as relay_pb
from recorrido.relay.v1 import relay_service_pb2_grpc as relay_pb_grpc
from services.foundation import errors, rpc, telemetry
from services.foundation.errors import RecorridoError, Violation
from services.foundation.events import CORRELATION_ID
from tests.support.rpc_errors import detail, info, violations

#: One of each; which there are is found below.
EXAMPLES: list[tuple[RecorridoError, StatusCode]] = [
    (errors.InvalidError([Violation("a", "required"), Violation("b[0]", "at most 3")]), StatusCode.INVALID_ARGUMENT),
    (errors.NotFoundError("GONE", "there is no x", {"x": "1"}), StatusCode.NOT_FOUND),
    (errors.DiffersError("REUSED", "used before", {"x": "1"}), StatusCode.ALREADY_EXISTS),
    (errors.RefusedError("ILLEGAL", "allowed now: y", {"allowed": "y"}), StatusCode.FAILED_PRECONDITION),
    (errors.OtherHistoryError("position 7"), StatusCode.FAILED_PRECONDITION),
    (errors.OtherTablesError("journey"), StatusCode.FAILED_PRECONDITION),
    (errors.NotErasedError("0af7651916cd", KeyError("x")), StatusCode.FAILED_PRECONDITION),
    (errors.ErasedError("0af7651916cd"), StatusCode.FAILED_PRECONDITION),
    (errors.ConflictError({"action-1": 7, "action-2": -1}), StatusCode.ABORTED),
    (errors.UnavailableError("event store", "no answer"), StatusCode.UNAVAILABLE),
    (errors.ExhaustedError("QUEUE_FULL", "7 commands wait already", 1.25), StatusCode.RESOURCE_EXHAUSTED),
]


def subclasses(of: type) -> set[type]:
    found: list[type] = of.__subclasses__()
    return {c for direct in found for c in (direct, *subclasses(direct))}


def ours() -> set[type]:
    return {c for c in subclasses(RecorridoError) if c.__module__.startswith("services.")}


def test_every_typed_error_has_a_status_and_an_example() -> None:
    assert ours() == set(rpc.STATUS)
    assert ours() == {type(error) for error, _ in EXAMPLES}


@dataclass
class Served:
    """A server whose GetAction does what `behaviour` does."""

    stub: Any
    behaviour: Callable[[pb.GetActionRequest], Awaitable[pb.GetActionResponse]]
    spans: InMemorySpanExporter
    channel: grpc.aio.Channel
    server: rpc.RpcServer

    async def failure(self, **options: Any) -> grpc.aio.AioRpcError:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self.stub.GetAction(pb.GetActionRequest(action_id="a"), **options)
        return caught.value


@pytest.fixture
async def served(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Served]:
    spans = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    monkeypatch.setattr(telemetry, "exported", lambda: True)
    monkeypatch.setattr(telemetry, "_TRACER", provider.get_tracer("test"))

    async def nothing(_: pb.GetActionRequest) -> pb.GetActionResponse:
        return pb.GetActionResponse()

    class Servicer(pb_grpc.ActionsServiceServicer):
        async def GetAction(self, request: pb.GetActionRequest, _context: Any) -> pb.GetActionResponse:  # noqa: N802
            return await it.behaviour(request)

    server = rpc.RpcServer("127.0.0.1:0", calls_per_client=3)
    server.register(
        pb_grpc.add_ActionsServiceServicer_to_server,
        Servicer(),  # type: ignore[abstract] # nobody calls the others
        pb.DESCRIPTOR.services_by_name["ActionsService"].full_name,
    )
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        it = Served(pb_grpc.ActionsServiceStub(channel), nothing, spans, channel, server)
        yield it
    await server.stop(0)


def raises(error: BaseException) -> Callable[[pb.GetActionRequest], Awaitable[pb.GetActionResponse]]:
    async def behaviour(_: pb.GetActionRequest) -> pb.GetActionResponse:
        raise error

    return behaviour


# -- failures ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("error", "code"), EXAMPLES, ids=lambda value: type(value).__name__)
async def test_a_typed_error_reaches_the_caller_whole(served: Served, error: RecorridoError, code: StatusCode) -> None:
    served.behaviour = raises(error)
    caught = await served.failure()
    assert caught.code() is code
    assert caught.details() == error.message
    told = info(caught)
    assert (told.reason, told.domain, dict(told.metadata)) == (error.reason, "recorrido", error.details)
    broken = [("a", "required"), ("b[0]", "at most 3")] if isinstance(error, errors.InvalidError) else []
    assert violations(caught) == broken
    retry = detail(caught, error_details_pb2.RetryInfo)
    assert (retry is not None) is (code in {StatusCode.ABORTED, StatusCode.UNAVAILABLE, StatusCode.RESOURCE_EXHAUSTED})
    if isinstance(error, errors.ExhaustedError):
        assert retry.retry_delay.ToMilliseconds() == 1250


def test_a_conflict_names_the_streams_and_where_they_are() -> None:
    error, _ = next((e, c) for e, c in EXAMPLES if isinstance(e, errors.ConflictError))
    assert error.message == "changed meanwhile: action-1 is at revision 7, action-2 does not exist"


@pytest.mark.parametrize("error", [ValueError("password is hunter2"), KeyError("x"), TimeoutError("of a part's own")])
async def test_an_unknown_error_tells_nothing_but_that(served: Served, error: Exception) -> None:
    served.behaviour = raises(error)
    caught = await served.failure()
    assert caught.code() is StatusCode.INTERNAL
    assert caught.details() == "internal error; the log has it by trace id"
    assert "hunter2" not in str(caught.trailing_metadata())


async def test_a_very_long_message_still_arrives(served: Served) -> None:
    served.behaviour = raises(errors.NotFoundError("GONE", "m" * 100_000))
    caught = await served.failure()
    assert caught.code() is StatusCode.NOT_FOUND
    assert caught.details() == "m" * 512


async def test_a_very_long_detail_still_arrives(served: Served) -> None:
    served.behaviour = raises(errors.DiffersError("REUSED", "used before", {"types": "ñ" * 100_000, "x": "1"}))
    caught = await served.failure()
    assert caught.code() is StatusCode.ALREADY_EXISTS
    assert dict(info(caught).metadata) == {"types": "ñ" * 512, "x": "1"}


async def test_a_call_without_a_deadline_gets_one(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rpc, "DEFAULT_DEADLINE_S", 0.1)
    cancelled = asyncio.Event()

    async def hang(_: pb.GetActionRequest) -> pb.GetActionResponse:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        raise AssertionError

    served.behaviour = hang
    caught = await served.failure()
    assert caught.code() is StatusCode.DEADLINE_EXCEEDED
    assert caught.details() == "not done within 0.1 s"
    assert cancelled.is_set()


async def test_the_callers_deadline_ends_the_work(served: Served) -> None:
    ended = asyncio.Event()

    async def hang(_: pb.GetActionRequest) -> pb.GetActionResponse:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        raise AssertionError

    served.behaviour = hang
    assert (await served.failure(timeout=0.1)).code() is StatusCode.DEADLINE_EXCEEDED
    async with asyncio.timeout(5):
        await ended.wait()


async def test_a_message_too_large_is_refused_before_it_is_read(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    called: list[int] = []

    async def note(request: pb.GetActionRequest) -> pb.GetActionResponse:
        called.append(len(request.action_id))
        return pb.GetActionResponse()

    served.behaviour = note
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await served.stub.GetAction(pb.GetActionRequest(action_id="x" * (rpc.MAX_MESSAGE_BYTES + 1)))
    assert caught.value.code() is StatusCode.RESOURCE_EXHAUSTED
    await served.stub.GetAction(pb.GetActionRequest(action_id="a"))
    assert called == [1]
    await served.server.stop(5)
    # It is no fault of ours.
    assert [record.getMessage() for record in caplog.records] == []


# -- where a request ends ------------------------------------------------------------------------------------------


async def held_open(call: Any, request: bytes, later: Callable[[], Awaitable[Any]]) -> bytes:
    """Send a request without its end; return what answers it once it has ended, and nothing before."""
    await call.write(request)
    answer = asyncio.ensure_future(call.read())
    # What the server sent before the end of a later call on the same connection is here then.
    for _ in range(3):
        await later()
    assert not answer.done()
    await call.done_writing()
    first: bytes = await answer
    return first


async def test_a_call_is_answered_when_its_request_has_ended(served: Served) -> None:
    """Who is answered before that has gRPC reset the stream, of which clients on Rust's HTTP/2 make UNAVAILABLE."""
    method = "/recorrido.actions.v1.ActionsService/GetAction"
    request = pb.GetActionRequest(action_id="a").SerializeToString()
    open_ended: Any = served.channel.stream_stream(method)
    call = open_ended()
    await held_open(call, request, lambda: served.stub.GetAction(pb.GetActionRequest()))
    assert await call.read() == grpc.aio.EOF
    assert await call.code() is StatusCode.OK
    for messages in (0, 2):
        call = open_ended()
        for _ in range(messages):
            await call.write(request)
        await call.done_writing()
        assert await call.code() is StatusCode.INVALID_ARGUMENT
        assert await call.details() == "request: exactly one message"


async def test_who_never_ends_a_request_is_held_to_the_deadline(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rpc, "DEFAULT_DEADLINE_S", 0.1)
    call: Any = served.channel.stream_stream("/recorrido.actions.v1.ActionsService/GetAction")()
    await call.write(pb.GetActionRequest(action_id="a").SerializeToString())
    assert await call.code() is StatusCode.DEADLINE_EXCEEDED


# -- how much of the server a client may have ----------------------------------------------------------------------


async def test_a_client_has_no_more_calls_in_progress_than_it_may(served: Served) -> None:
    waiting, go = asyncio.Semaphore(0), asyncio.Event()

    async def wait(request: pb.GetActionRequest) -> pb.GetActionResponse:
        if request.action_id == "wait":
            waiting.release()
            await go.wait()
        return pb.GetActionResponse()

    served.behaviour = wait
    mine = ((rpc.CLIENT_HEADER, "shop"),)
    calls = [served.stub.GetAction(pb.GetActionRequest(action_id="wait"), metadata=mine) for _ in range(2)]
    # One whose request does not come is in progress, too.
    silent: Any = served.channel.stream_stream("/recorrido.actions.v1.ActionsService/GetAction")(metadata=mine)
    async with asyncio.timeout(10):
        for _ in calls:
            await waiting.acquire()
        # It is there before what comes behind it on the same connection.
        await silent.wait_for_connection()
        caught = await served.failure(metadata=mine)
    assert caught.code() is StatusCode.RESOURCE_EXHAUSTED
    assert (info(caught).reason, caught.details()) == ("TOO_MANY_CALLS", "shop has 3 calls in progress already")
    assert detail(caught, error_details_pb2.RetryInfo).retry_delay.ToMilliseconds() == 1000
    await served.stub.GetAction(pb.GetActionRequest(action_id="a"), metadata=((rpc.CLIENT_HEADER, "bank"),))
    silent.cancel()
    go.set()
    await asyncio.gather(*calls)
    # Those that are over are counted no more, whichever way they ended.
    for _ in range(4):
        await served.stub.GetAction(pb.GetActionRequest(action_id="a"), metadata=mine)
    served.behaviour = raises(ValueError("x"))
    assert [(await served.failure(metadata=mine)).code() for _ in range(4)] == [StatusCode.INTERNAL] * 4


# -- correlation and trace -----------------------------------------------------------------------------------------


def correlation(metadata: Any) -> str:
    found: str = dict(metadata)[rpc.CORRELATION_HEADER]
    return found


async def called(served: Served, *headers: tuple[str, str]) -> str:
    call = served.stub.GetAction(pb.GetActionRequest(), metadata=headers)
    await call
    return correlation(await call.trailing_metadata())


async def test_the_correlation_id_comes_back(served: Served) -> None:
    assert await called(served, (rpc.CORRELATION_HEADER, "order-77")) == "order-77"
    made = await called(served)
    assert str(uuid.UUID(made)) == made
    assert await called(served) != made


async def test_the_correlation_id_comes_back_with_a_failure(served: Served) -> None:
    for error in (errors.NotFoundError("GONE", "there is no x"), ValueError("x")):
        served.behaviour = raises(error)
        caught = await served.failure(metadata=((rpc.CORRELATION_HEADER, "order-77"),))
        assert correlation(caught.trailing_metadata()) == "order-77"


async def test_events_of_a_call_carry_its_correlation_id(served: Served) -> None:
    seen = {}

    async def note(_: pb.GetActionRequest) -> pb.GetActionResponse:
        seen.update(rpc.metadata())
        return pb.GetActionResponse()

    served.behaviour = note
    await called(served, (rpc.CORRELATION_HEADER, "order-77"))
    assert seen == {CORRELATION_ID: "order-77"}


async def test_a_long_correlation_id_is_cut(served: Served) -> None:
    assert await called(served, (rpc.CORRELATION_HEADER, "x" * 4_000)) == "x" * 128


async def test_the_callers_trace_goes_on(served: Served) -> None:
    inside = {}

    async def note(_: pb.GetActionRequest) -> pb.GetActionResponse:
        inside.update(telemetry.inject())
        return pb.GetActionResponse()

    served.behaviour = note
    trace_id, caller = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    await called(served, ("traceparent", f"00-{trace_id}-{caller}-01"))
    (span,) = served.spans.get_finished_spans()
    assert span.name == "recorrido.actions.v1.ActionsService/GetAction"
    assert f"{span.context.trace_id:032x}" == trace_id
    assert span.parent is not None
    assert f"{span.parent.span_id:016x}" == caller
    assert inside["traceparent"] == f"00-{trace_id}-{span.context.span_id:016x}-01"


async def test_a_broken_traceparent_starts_a_new_trace(served: Served) -> None:
    await called(served, ("traceparent", "not-a-trace"))
    (span,) = served.spans.get_finished_spans()
    assert span.parent is None


async def test_a_failed_call_is_a_failed_span_with_its_code(served: Served) -> None:
    served.behaviour = raises(errors.NotFoundError("GONE", "there is no x"))
    await served.failure()
    (span,) = served.spans.get_finished_spans()
    assert (span.status.is_ok, span.status.description) == (False, "NOT_FOUND")
    # An expected failure is an answer, not an incident.
    assert [event.name for event in span.events] == []


# -- calls that answer with a stream -------------------------------------------------------------------------------


@dataclass
class Streaming:
    """A server whose Republish does what `behaviour` does."""

    stub: Any
    behaviour: Callable[[], AsyncGenerator[relay_pb.RepublishResponse, None]]
    spans: InMemorySpanExporter
    channel: grpc.aio.Channel

    def call(self, **options: Any) -> Any:
        return self.stub.Republish(relay_pb.RepublishRequest(replay_id="a"), **options)

    async def failure(self, **options: Any) -> grpc.aio.AioRpcError:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            [_ async for _ in self.call(**options)]
        return caught.value


@pytest.fixture
async def streaming(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Streaming]:
    spans = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    monkeypatch.setattr(telemetry, "exported", lambda: True)
    monkeypatch.setattr(telemetry, "_TRACER", provider.get_tracer("test"))

    class Servicer(relay_pb_grpc.RelayServiceServicer):
        async def Republish(self, _request: Any, _context: Any) -> AsyncIterator[relay_pb.RepublishResponse]:  # noqa: N802
            async with contextlib.aclosing(it.behaviour()) as replies:
                async for reply in replies:
                    yield reply

    server = rpc.RpcServer("127.0.0.1:0")
    server.register(
        relay_pb_grpc.add_RelayServiceServicer_to_server,
        Servicer(),  # type: ignore[abstract] # nobody calls the others
        relay_pb.DESCRIPTOR.services_by_name["RelayService"].full_name,
    )
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        it = Streaming(relay_pb_grpc.RelayServiceStub(channel), _replies, spans, channel)
        yield it
    await server.stop(0)


async def _replies() -> AsyncGenerator[relay_pb.RepublishResponse, None]:
    for messages in (1, 2, 3):
        yield relay_pb.RepublishResponse(messages=messages)


async def test_a_stream_arrives_whole_with_its_correlation_id_and_in_one_span(streaming: Streaming) -> None:
    trace_id, caller = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    inside = {}

    async def note() -> AsyncGenerator[relay_pb.RepublishResponse, None]:
        async for reply in _replies():
            inside.update(telemetry.inject())
            yield reply

    streaming.behaviour = note
    call = streaming.call(
        metadata=((rpc.CORRELATION_HEADER, "order-77"), ("traceparent", f"00-{trace_id}-{caller}-01"))
    )
    assert [reply.messages async for reply in call] == [1, 2, 3]
    assert correlation(await call.trailing_metadata()) == "order-77"
    (span,) = streaming.spans.get_finished_spans()
    assert span.name == "recorrido.relay.v1.RelayService/Republish"
    assert f"{span.context.trace_id:032x}" == trace_id
    assert inside["traceparent"] == f"00-{trace_id}-{span.context.span_id:016x}-01"
    assert span.status.is_ok


async def test_a_stream_is_answered_when_its_request_has_ended(streaming: Streaming) -> None:
    call: Any = streaming.channel.stream_stream("/recorrido.relay.v1.RelayService/Republish")()

    async def another() -> None:
        assert [reply.messages async for reply in streaming.call()] == [1, 2, 3]

    first = await held_open(call, relay_pb.RepublishRequest(replay_id="a").SerializeToString(), another)
    assert relay_pb.RepublishResponse.FromString(first).messages == 1


@pytest.mark.parametrize("messages", [0, 1])
async def test_a_request_for_a_stream_is_there_soon_though_its_answer_may_take_long(
    streaming: Streaming, monkeypatch: pytest.MonkeyPatch, messages: int
) -> None:
    monkeypatch.setattr(rpc, "REQUEST_WITHIN_S", 0.1)
    call: Any = streaming.channel.stream_stream("/recorrido.relay.v1.RelayService/Republish")()
    for _ in range(messages):
        await call.write(relay_pb.RepublishRequest(replay_id="a").SerializeToString())
    async with asyncio.timeout(10):
        assert await call.code() is StatusCode.DEADLINE_EXCEEDED
    assert await call.details() == "the request did not end within 0.1 s"

    async def slowly() -> AsyncGenerator[relay_pb.RepublishResponse, None]:
        done = asyncio.Event()
        asyncio.get_running_loop().call_later(0.2, done.set)
        await done.wait()
        yield relay_pb.RepublishResponse(messages=7)

    streaming.behaviour = slowly
    assert [reply.messages async for reply in streaming.call()] == [7]


@pytest.mark.parametrize(("error", "code"), EXAMPLES, ids=lambda value: type(value).__name__)
async def test_a_typed_error_ends_a_stream_after_what_came_before(
    streaming: Streaming, error: RecorridoError, code: StatusCode
) -> None:
    async def fail() -> AsyncGenerator[relay_pb.RepublishResponse, None]:
        yield relay_pb.RepublishResponse(messages=7)
        raise error

    streaming.behaviour = fail
    call = streaming.call(metadata=((rpc.CORRELATION_HEADER, "order-77"),))
    assert (await call.read()).messages == 7
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert caught.value.code() is code
    assert info(caught.value).reason == error.reason
    assert correlation(caught.value.trailing_metadata()) == "order-77"
    (span,) = streaming.spans.get_finished_spans()
    assert (span.status.is_ok, span.status.description) == (False, code.name)


async def test_an_unknown_error_in_a_stream_tells_nothing_but_that(streaming: Streaming) -> None:
    async def fail() -> AsyncGenerator[relay_pb.RepublishResponse, None]:
        yield relay_pb.RepublishResponse()
        raise ValueError("password is hunter2")

    streaming.behaviour = fail
    caught = await streaming.failure()
    assert (caught.code(), caught.details()) == (StatusCode.INTERNAL, "internal error; the log has it by trace id")


async def test_a_stream_may_take_longer_than_other_calls_but_not_for_ever(
    streaming: Streaming, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rpc, "DEFAULT_DEADLINE_S", 0.0)
    monkeypatch.setattr(rpc, "STREAM_DEADLINE_S", 0.2)
    closed = asyncio.Event()

    async def hang() -> AsyncGenerator[relay_pb.RepublishResponse, None]:
        try:
            yield relay_pb.RepublishResponse()
            await asyncio.Event().wait()
        finally:
            closed.set()

    streaming.behaviour = hang
    caught = await streaming.failure()
    assert (caught.code(), caught.details()) == (StatusCode.DEADLINE_EXCEEDED, "not done within 0.2 s")
    assert closed.is_set()


async def test_a_reader_that_does_not_read_is_held_to_the_deadline(
    streaming: Streaming, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rpc, "STREAM_DEADLINE_S", 0.2)
    closed = asyncio.Event()

    async def endless() -> AsyncGenerator[relay_pb.RepublishResponse, None]:
        try:
            while True:
                yield relay_pb.RepublishResponse(stream="x" * 1_000_000)
        finally:
            closed.set()

    streaming.behaviour = endless
    call = streaming.call()
    async with asyncio.timeout(10):
        await closed.wait()
    call.cancel()


async def test_who_hangs_up_ends_the_work_of_a_stream(streaming: Streaming) -> None:
    closed = asyncio.Event()

    async def hang() -> AsyncGenerator[relay_pb.RepublishResponse, None]:
        try:
            yield relay_pb.RepublishResponse()
            await asyncio.Event().wait()
        finally:
            closed.set()

    streaming.behaviour = hang
    call = streaming.call()
    await call.read()
    call.cancel()
    async with asyncio.timeout(5):
        await closed.wait()
