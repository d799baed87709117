"""Streams of batches: answers in order, nothing ends a stream but its end, and nobody is in another's way."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from google.rpc import error_details_pb2
from grpc import StatusCode

from recorrido.ingest.v1 import ingest_service_pb2 as pb
from recorrido.ingest.v1 import interaction_pb2
from services.foundation.events import CORRELATION_ID
from services.foundation.telemetry import trace_id_of
from tests.support.front_door import DUPLICATE, RECORDED, REJECTED, FrontDoor, front_door, of
from tests.support.rpc_errors import detail, info
from tests.support.wait import until

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def door(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[FrontDoor]:
    async with front_door(tmp_path_factory.mktemp("ingest")) as opened:
        yield opened


def batch(sequence: int, *items: interaction_pb2.Interaction) -> pb.StreamInteractionsRequest:
    return pb.StreamInteractionsRequest(sequence=sequence, interactions=items)


async def answers(call: Any) -> list[pb.StreamInteractionsResponse]:
    return [answer async for answer in call]


async def read_on(call: Any, told: list[pb.StreamInteractionsResponse]) -> None:
    while (answer := await call.read()) is not grpc.aio.EOF:
        told.append(answer)
    # The end of a stream that failed raises nothing by itself.
    if await call.code() is not StatusCode.OK:
        raise grpc.aio.AioRpcError(
            await call.code(), await call.initial_metadata(), await call.trailing_metadata(), await call.details()
        )


async def streamed(
    door: FrontDoor, batches: Sequence[pb.StreamInteractionsRequest], **options: Any
) -> list[pb.StreamInteractionsResponse]:
    return await answers(door.stub.StreamInteractions(iter(batches), **options))


async def test_batches_are_answered_in_order_under_their_numbers(door: FrontDoor) -> None:
    numbers = [7, 3, 3, 0, 2**63]
    batches = [
        batch(number, *(of("streaming", index * 50 + n) for n in range(50))) for index, number in enumerate(numbers)
    ]
    told = await streamed(door, batches)
    assert [answer.sequence for answer in told] == numbers
    assert [len(answer.results) for answer in told] == [50] * 5
    results = [result for answer in told for result in answer.results]
    assert {result.status for result in results} == {RECORDED}
    # Batches of one stream are recorded in order.
    assert [str(r.event_id) for r in await door.history("streaming")] == [result.event_id for result in results]


async def test_what_is_wrong_with_a_batch_or_an_item_does_not_end_the_stream(door: FrontDoor) -> None:
    told = await streamed(
        door,
        [
            batch(1, of("mixed stream"), of("")),
            batch(2, *(of("crowd", n) for n in range(1001))),
            batch(3),
            batch(4, of("mixed stream"), of("mixed stream", text="other words")),
        ],
    )
    assert [[r.status for r in answer.results] for answer in told] == [
        [RECORDED, REJECTED],
        [],
        [],
        [DUPLICATE, REJECTED],
    ]
    assert [answer.problem.reason for answer in told] == ["", "INVALID", "", ""]
    assert told[1].problem.violations[0].rule == "at most 1000, has 1001"
    assert [told[0].results[1].problem.reason, told[3].results[1].problem.reason] == ["INVALID", "CONTENT_DIFFERS"]
    assert await door.history("crowd") == []


async def test_a_message_that_nobody_can_read_does_not_end_the_stream(door: FrontDoor) -> None:
    call: Any = door.channel.stream_stream(
        "/recorrido.ingest.v1.IngestService/StreamInteractions",
        response_deserializer=pb.StreamInteractionsResponse.FromString,
    )
    told = await answers(call(iter([b"\xff\xff", batch(2, of("after noise")).SerializeToString()])))
    assert [(answer.sequence, answer.problem.reason) for answer in told] == [(0, "INVALID"), (2, "")]
    assert len(await door.history("after noise")) == 1


async def test_events_of_a_stream_carry_its_correlation_id_and_trace(door: FrontDoor) -> None:
    trace = "0af7651916cd43dd8448eb211c80319c"
    metadata = (("x-correlation-id", "stream 7"), ("traceparent", f"00-{trace}-b7ad6b7169203331-01"))
    await streamed(door, [batch(1, of("traced stream"))], metadata=metadata)
    (recorded,) = await door.history("traced stream")
    assert recorded.metadata[CORRELATION_ID] == "stream 7"
    assert trace_id_of(recorded.metadata) == trace


async def test_batches_are_answered_while_the_stream_is_open(door: FrontDoor) -> None:
    call = door.stub.StreamInteractions()
    for number in range(5):
        await call.write(batch(number, of("conversation", number)))
        assert (await call.read()).sequence == number
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF
    assert await call.code() is StatusCode.OK


async def test_who_does_not_read_is_not_read_from_and_hinders_nobody(door: FrontDoor) -> None:
    # Much of a small thing is wrong, so that answers are large.
    bad = of("silent")
    for number in range(64):
        bad.attributes[f"{number}"] = "\0"
    call = door.stub.StreamInteractions()
    count = 80

    async def write() -> None:
        for number in range(count):
            await call.write(batch(number, of("silent", number), *[bad] * 100))
        await call.done_writing()

    writing = asyncio.create_task(write())
    seen: list[int] = []

    async def stalled() -> bool:
        # Others are served all the time.
        assert (await door.one(of("patient", len(seen)))).status == RECORDED
        seen.append(len(await door.history("silent")))
        return len(seen) > 30 and len(set(seen[-30:])) == 1

    await until(stalled, 60, what="nothing more is taken from who does not read")
    assert 0 < seen[-1] < count
    told = await answers(call)
    await writing
    assert [answer.sequence for answer in told] == list(range(count))
    assert {len(answer.results) for answer in told} == {101}


async def test_who_hangs_up_leaves_what_was_accepted_and_a_service_that_serves(door: FrontDoor) -> None:
    call = door.stub.StreamInteractions()
    await call.write(batch(1, of("hanging up", 1)))
    assert (await call.read()).sequence == 1
    await call.write(batch(2, of("hanging up", 2)))

    async def recorded() -> bool:
        return len(await door.history("hanging up")) == 2

    # Nobody reads the second answer.
    await until(recorded, 20)
    call.cancel()
    again = await door.many(*(of("hanging up", number) for number in (1, 2, 3)))
    assert [result.status for result in again] == [DUPLICATE, DUPLICATE, RECORDED]
    assert [str(r.event_id) for r in await door.history("hanging up")] == [result.event_id for result in again]


async def test_a_drain_answers_what_was_accepted_and_tells_the_rest(tmp_path: Path) -> None:
    async with front_door(tmp_path) as door:
        call = door.stub.StreamInteractions()
        batches = [batch(number, *(of(f"drained {n}", number) for n in range(100))) for number in range(120)]
        told: list[pb.StreamInteractionsResponse] = []

        async def write() -> None:
            for each in batches:
                await call.write(each)

        writing = asyncio.create_task(write())
        told.append(await call.read())
        stopping = asyncio.create_task(door.cluster.stop("ingest"))
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await read_on(call, told)
        assert ended.value.code() is StatusCode.UNAVAILABLE
        assert info(ended.value).reason == "UNAVAILABLE"
        await asyncio.gather(writing, return_exceptions=True)
        await stopping
        assert [answer.sequence for answer in told] == list(range(len(told)))
        assert len(told) < len(batches)
        # All that was answered is recorded, and nothing that was not: the caller goes on from there.
        histories = await asyncio.gather(*(door.history(f"drained {n}") for n in range(100)))
        assert [len(history) for history in histories] == [len(told)] * 100
        await door.cluster.start("ingest")
        rest = await streamed(door, batches[len(told) :], wait_for_ready=True)
        assert {r.status for answer in rest for r in answer.results} == {RECORDED}


async def test_a_client_has_a_rate_and_a_stream_keeps_to_it_by_waiting(tmp_path: Path) -> None:
    env = {"RECORRIDO_RATE_LIMIT_PER_CLIENT": "50", "RECORRIDO_RATE_LIMIT_BURST": "10"}
    async with front_door(tmp_path, env) as door:
        greedy, modest = (("x-client-id", "greedy"),), (("x-client-id", "modest"),)
        assert len(await door.many(*(of("limited", n) for n in range(60)), metadata=greedy)) == 60
        error = await door.refusal(of("limited", 61), metadata=greedy)
        assert (error.code(), info(error).reason) == (StatusCode.RESOURCE_EXHAUSTED, "RATE_LIMITED")
        assert (await door.one(of("limited", 62), metadata=modest)).status == RECORDED
        # Refused for its rate, it is not kept as rejected: the caller sends it again.
        assert "rejection_id" not in info(error).metadata
        batches = [batch(n, *(of("streamed", n * 10 + m) for m in range(10))) for n in range(5)]
        loop = asyncio.get_running_loop()
        began = loop.time()
        told = await streamed(door, batches, metadata=(("x-client-id", "streaming"),))
        assert loop.time() - began > 0.7
        assert {r.status for answer in told for r in answer.results} == {RECORDED}


async def test_a_full_queue_is_told_and_nothing_of_the_call_is_taken(tmp_path: Path) -> None:
    from signal import SIGCONT, SIGSTOP

    async with front_door(tmp_path, {"RECORRIDO_QUEUE_ITEMS": "10"}) as door:
        await door.one(of("early"))
        door.cluster.kill("eventstore", SIGSTOP)
        calls = [asyncio.create_task(door.one(of("queued", n))) for n in range(30)]
        done, waiting = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        refused = [call.exception() for call in done]
        assert all(
            isinstance(e, grpc.aio.AioRpcError)
            and (e.code(), info(e).reason) == (StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL")
            for e in refused
        )
        door.cluster.kill("eventstore", SIGCONT)
        results = await asyncio.gather(*waiting, return_exceptions=True)
        taken = [r for r in results if isinstance(r, pb.RecordResult)]
        assert 10 <= len(taken) < 30
        assert {r.status for r in taken} == {RECORDED}
        assert len(await door.history("queued")) == len(taken)


async def test_streams_are_counted_and_one_too_many_is_told_when_to_come_again(tmp_path: Path) -> None:
    from signal import SIGCONT, SIGSTOP

    async with front_door(tmp_path, {"RECORRIDO_STREAMS": "3", "RECORRIDO_QUEUE_ITEMS": "1"}) as door:
        await door.one(of("early"))
        # The store does not answer: they wait, for it or for room in the queue.
        door.cluster.kill("eventstore", SIGSTOP)
        calls = [asyncio.create_task(streamed(door, [batch(n, of(f"waits {n}"))])) for n in range(5)]
        done, waiting = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED, timeout=20)
        while len(done) < 2:
            more, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED, timeout=20)
            assert more
            done |= more
        for call in done:
            error = call.exception()
            assert isinstance(error, grpc.aio.AioRpcError)
            assert (error.code(), info(error).reason) == (StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_STREAMS")
            assert detail(error, error_details_pb2.RetryInfo).retry_delay.ToSeconds() == 1
        door.cluster.kill("eventstore", SIGCONT)
        told = [answer.results[0].status for answers in await asyncio.gather(*waiting) for answer in answers]
        assert told == [RECORDED] * 3

        async def hang_up() -> bool:
            call = door.stub.StreamInteractions()
            await call.write(batch(1, of("hangs up")))
            answer = await call.read()
            call.cancel()
            return answer is not grpc.aio.EOF

        # Who left made room, however the stream ended.
        for _ in range(5):
            await until(hang_up, ignoring=(grpc.aio.AioRpcError, asyncio.InvalidStateError))


async def test_one_client_cannot_hold_all_streams(tmp_path: Path) -> None:
    limits = {
        "RECORRIDO_STREAMS": "3",
        "RECORRIDO_STREAMS_PER_CLIENT": "2",
        "RECORRIDO_STREAM_BYTES_PER_CLIENT": "50000",
    }
    async with front_door(tmp_path, limits) as door:

        async def opened(client: str, number: int) -> Any:
            call = door.stub.StreamInteractions(metadata=(("x-client-id", client),))
            await call.write(batch(1, of(f"{client} {number}")))
            assert (await call.read()).results[0].status == RECORDED
            return call

        held = [await opened("greedy", number) for number in range(2)]
        for client, told in (("greedy", "greedy has 2 streams open already"), ("late", "3 streams are open already")):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                # It sends nothing: who writes to a stream that is being refused may be told only that it is over.
                await read_on(door.stub.StreamInteractions(metadata=(("x-client-id", client),)), [])
            error = caught.value
            assert (error.code(), info(error).reason) == (StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_STREAMS")
            assert error.details() == told
            assert detail(error, error_details_pb2.RetryInfo).retry_delay.ToSeconds() == 1
            if client == "greedy":
                held.append(await opened("another", 1))
        await held[0].done_writing()
        assert await held[0].read() == grpc.aio.EOF
        last = await opened("greedy", 3)
        for call in (held[1], held[2], last):
            await call.done_writing()
            assert await call.read() == grpc.aio.EOF
        # One stream alone is not refused what is more than the client's share: it is read as it is answered.
        batches = [batch(n, *(of("patient", n * 10 + i, text="x" * 15_000) for i in range(4))) for n in range(20)]
        told = await streamed(door, batches, metadata=(("x-client-id", "patient"),))
        assert [(a.sequence, [r.status for r in a.results]) for a in told] == [(n, [RECORDED] * 4) for n in range(20)]


async def test_what_all_streams_hold_is_bounded_and_who_finds_no_room_is_told_when_to_come_again(
    tmp_path: Path,
) -> None:
    # A client's second batch waits for its rate for minutes, and is held all the time.
    limits = {
        "RECORRIDO_STREAM_BYTES": "1000000",
        "RECORRIDO_STREAM_BYTES_PER_CLIENT": "500000",
        "RECORRIDO_RATE_LIMIT_PER_CLIENT": "0.1",
    }
    words = "x" * 15_000
    async with front_door(tmp_path, limits) as door:

        def large(sequence: int, customer_id: str) -> pb.StreamInteractionsRequest:
            return batch(sequence, *(of(customer_id, sequence * 100 + n, text=words) for n in range(40)))

        waiting = door.stub.StreamInteractions(metadata=(("x-client-id", "waits"),))
        await waiting.write(large(1, "held"))
        assert (await waiting.read()).sequence == 1
        await waiting.write(large(2, "held"))
        names = (f"turned away {number}" for number in itertools.count())

        async def refused() -> tuple[str, grpc.aio.AioRpcError] | None:
            name = next(names)
            try:
                await streamed(door, [large(1, name)], metadata=(("x-client-id", name),))
            except grpc.aio.AioRpcError as error:
                return name, error
            return None

        name, error = await until(refused, deadline_s=20)
        assert (error.code(), info(error).reason) == (StatusCode.RESOURCE_EXHAUSTED, "STREAMS_FULL")
        assert detail(error, error_details_pb2.RetryInfo).retry_delay.ToSeconds() == 1
        assert error.details() == f"streams hold {large(2, 'held').ByteSize():,} bytes already"
        assert await door.history(name) == []
        # Who holds its share has no room for more, however small.
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await streamed(door, [batch(1, of("more"))], metadata=(("x-client-id", "waits"),))
        error = caught.value
        assert (error.code(), info(error).reason) == (StatusCode.RESOURCE_EXHAUSTED, "STREAMS_FULL")
        assert error.details() == f"waits's streams hold {large(2, 'held').ByteSize():,} bytes already"
        assert detail(error, error_details_pb2.RetryInfo).retry_delay.ToSeconds() == 1
        assert await door.history("more") == []
        # Small ones find room beside it, and all do when the one that waits is gone.
        small = await streamed(door, [batch(1, of("beside"))], metadata=(("x-client-id", "small"),))
        assert [answer.results[0].status for answer in small] == [RECORDED]
        waiting.cancel()

        async def taken() -> bool:
            told = await streamed(door, [large(3, "taken")], metadata=(("x-client-id", "third"),))
            return [result.status for result in told[0].results] == [RECORDED] * 40

        await until(taken, deadline_s=20, ignoring=(grpc.aio.AioRpcError,))
