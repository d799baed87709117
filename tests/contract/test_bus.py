"""Reactions over the real bus: what counts as a try, what is buried, and what survives the way there."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from signal import SIGCONT, SIGSTOP
from uuid import uuid4

import nats
import pytest
import structlog

from recorrido.ingest.v1.events import Interaction, InteractionRecorded
from services.foundation import bus as bus_module
from services.foundation.bus import (
    DEAD_LETTERS,
    MAX_TRIES,
    STREAM,
    Answer,
    Bus,
    Delivery,
    Done,
    Reaction,
    Retry,
    Skip,
    headers_of,
    subject,
)
from services.foundation.errors import OtherHistoryError, RefusedError, UnavailableError
from services.foundation.events import CORRELATION_ID, Place, Recorded, encode
from tests.support.cluster import Cluster, running
from tests.support.wait import until

CORRELATION = "100% of ž/orders"


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with running(["nats"], data=tmp_path) as cluster:
        yield cluster


@contextlib.asynccontextmanager
async def connected(cluster: Cluster) -> AsyncIterator[Bus]:
    bus = await Bus.connect(cluster.environment["RECORRIDO_NATS_URL"], name="test")
    try:
        yield bus
    finally:
        await bus.close()


async def publish(bus: Bus, *numbers: int) -> None:
    batch = []
    for number in numbers:
        event = InteractionRecorded(interaction=Interaction(source="test", interaction_id=str(number)))
        metadata = {CORRELATION_ID: CORRELATION}
        recorded = Recorded(
            event.type_name, encode(event), metadata, uuid4(), f"customer-{number}", 0, number, datetime.now(UTC)
        )
        batch.append((subject(recorded.type_name, recorded.stream), recorded.data, headers_of(recorded, {})))
    await bus.publish(batch, expected_last=(await bus.last()).sequence)


async def always(_: Recorded) -> bool:
    return True


class Truth:
    """A store of the same history as the bus; `held` tells what it still holds."""

    def __init__(self, held: Callable[[Recorded], Awaitable[bool]]) -> None:
        self._held = held

    async def holds(self, recorded: Recorded) -> bool:
        return await self._held(recorded)

    async def check(self, place: Place | None) -> None:
        """What is published by these tests is taken for true."""


@contextlib.asynccontextmanager
async def reacting(
    bus: Bus,
    handle: Callable[[Sequence[Delivery]], Awaitable[Sequence[Answer]]],
    held: Callable[[Recorded], Awaitable[bool]] = always,
) -> AsyncIterator[None]:
    task = asyncio.create_task(bus.react(Reaction("test", [InteractionRecorded], handle), Truth(held)))
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def dead(bus: Bus) -> int:
    return (await bus._js.stream_info(DEAD_LETTERS)).state.messages


def number(delivery: Delivery) -> int:
    return int(delivery.event.interaction.interaction_id)


async def test_the_correlation_id_arrives_as_it_was(cluster: Cluster) -> None:
    seen: list[str] = []

    async def handle(deliveries: Sequence[Delivery]) -> list[Answer]:
        seen.extend(d.recorded.metadata[CORRELATION_ID] for d in deliveries)
        return [Done()] * len(deliveries)

    async with connected(cluster) as bus:
        await publish(bus, 1)
        async with reacting(bus, handle):
            await until(lambda: seen == [CORRELATION])


async def test_waiting_for_a_part_is_no_try_however_often_we_restart(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bus_module, "ACK_WAIT_S", 0.2)
    waiting = 0

    async def handle(deliveries: Sequence[Delivery]) -> list[Answer]:
        nonlocal waiting
        waiting += len(deliveries)
        raise UnavailableError("Triton", "away")

    for _ in range(MAX_TRIES + 3):
        async with connected(cluster) as bus:
            if waiting == 0:
                await publish(bus, *range(5))
            before = waiting

            def more(before: int = before) -> bool:
                return waiting > before

            async with reacting(bus, handle):
                await until(more)
    done: list[int] = []

    async def works_again(deliveries: Sequence[Delivery]) -> list[Answer]:
        done.extend(map(number, deliveries))
        return [Done()] * len(deliveries)

    async with connected(cluster) as bus:
        async with reacting(bus, works_again):
            await until(lambda: sorted(done) == [0, 1, 2, 3, 4])
        assert await dead(bus) == 0


async def test_a_poison_message_is_buried_after_its_tries_and_spoils_no_other(cluster: Cluster) -> None:
    tries: list[int] = []
    done: set[int] = set()

    async def handle(deliveries: Sequence[Delivery]) -> list[Answer]:
        answers: list[Answer] = []
        for delivery in deliveries:
            if number(delivery) == 3:
                tries.append(delivery.tries)
                answers.append(Retry("poison", delay_s=0.01))
            else:
                done.add(number(delivery))
                answers.append(Done())
        return answers

    async with connected(cluster) as bus:
        await publish(bus, *range(5))
        async with reacting(bus, handle):
            await until(lambda: _is(dead(bus), 1))
        assert tries == list(range(1, MAX_TRIES + 1))
        assert done == {0, 1, 2, 4}


async def test_an_unknown_exception_is_tried_alone(cluster: Cluster) -> None:
    done: set[int] = set()

    async def handle(deliveries: Sequence[Delivery]) -> list[Answer]:
        if any(number(d) == 3 for d in deliveries):
            raise ValueError("nobody thought of that")
        done.update(map(number, deliveries))
        return [Done()] * len(deliveries)

    async with connected(cluster) as bus:
        await publish(bus, *range(5))
        async with reacting(bus, handle):
            await until(lambda: done == {0, 1, 2, 4})
        assert await dead(bus) == 0, "it has more tries"


async def test_what_can_never_succeed_is_buried_at_once_with_its_reason(cluster: Cluster) -> None:
    async def handle(deliveries: Sequence[Delivery]) -> list[Answer]:
        return [Skip("no customer of ours\r\nat all")] * len(deliveries)

    async with connected(cluster) as bus:
        await publish(bus, 1)
        async with reacting(bus, handle):
            await until(lambda: _is(dead(bus), 1))
        message = await bus._js.get_msg(DEAD_LETTERS, seq=1)
        assert message.headers is not None
        assert message.headers["recorrido-dead-reason"] == "no customer of ours%0D%0Aat all"
        assert message.headers["recorrido-dead-durable"] == "test"


async def _is(asked: Awaitable[int], wanted: int) -> bool:
    return await asked == wanted


@pytest.mark.parametrize("answer", [Skip("never"), Retry("not now", delay_s=0.01)], ids=["skipped", "tried too often"])
@pytest.mark.parametrize("seen", [[False], [True, False]], ids=["before", "while it is buried"])
async def test_an_event_that_was_erased_does_not_come_to_rest_among_the_dead_letters(
    cluster: Cluster, answer: Answer, seen: list[bool]
) -> None:
    told = list(seen)
    handled: list[int] = []

    async def held(recorded: Recorded) -> bool:
        return recorded.position != 1 or told.pop(0)

    async def handle(deliveries: Sequence[Delivery]) -> list[Answer]:
        handled.extend(map(number, deliveries))
        return [answer] * len(deliveries)

    async with connected(cluster) as bus:
        await publish(bus, 1, 2)
        async with reacting(bus, handle, held):
            await until(lambda: settled(bus), 20)
        assert set(handled) == {1, 2}
        assert told == []
        assert await dead(bus) == 1
        (letter,) = [await bus._js.get_last_msg(DEAD_LETTERS, "recorrido_dead.>")]
        assert "customer-2" in (letter.headers or {})["recorrido-dead-subject"]


async def settled(bus: Bus, sequence: int = 2) -> bool:
    with contextlib.suppress(nats.js.errors.NotFoundError):
        info = await bus._js.consumer_info(STREAM, "test")
        return info.ack_floor is not None and info.ack_floor.stream_seq == sequence
    return False


async def test_burying_waits_until_the_store_can_tell_whether_it_holds_the_event(cluster: Cluster) -> None:
    asked = 0

    async def held(_: Recorded) -> bool:
        nonlocal asked
        asked += 1
        if asked == 1:
            raise UnavailableError("event store", "away")
        return True

    async def handle(deliveries: Sequence[Delivery]) -> list[Answer]:
        return [Skip("never")] * len(deliveries)

    async def buried() -> bool:
        return await dead(bus) == 1

    async with connected(cluster) as bus:
        await publish(bus, 1)
        async with reacting(bus, handle, held):
            await until(buried, 20)
    assert asked >= 2


async def test_a_server_that_stood_still_is_told_and_its_late_answer_does_no_harm(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    async with connected(cluster) as bus:

        async def silent() -> bool:
            return not await bus.ping()

        assert await bus.ping()
        cluster.kill("nats", SIGSTOP)
        assert await until(silent, 20)
        cluster.kill("nats", SIGCONT)
        assert await until(bus.ping, 20)
    assert not [each for each in caplog.records if each.name.startswith("nats") and each.levelno >= logging.ERROR]


async def test_headers_that_no_message_can_have_are_refused_in_words(cluster: Cluster) -> None:
    """JetStream would refuse the batch again and again; whoever publishes has to know which event it is."""
    async with connected(cluster) as bus:
        event = InteractionRecorded(interaction=Interaction(source="test", interaction_id="1"))
        stream = "customer-" + "ž" * 11_000
        recorded = Recorded(event.type_name, encode(event), {}, uuid4(), stream, 0, 1, datetime.now(UTC))
        message = subject(recorded.type_name, stream), recorded.data, headers_of(recorded, {})
        with pytest.raises(RefusedError, match=f"event {recorded.event_id} comes to 6.* bytes of headers") as refused:
            await bus.publish([message], expected_last=0)
        assert refused.value.reason == "HEADERS_TOO_LARGE"
        await publish(bus, 1)


async def test_a_message_that_only_says_to_be_an_event_holds_up_no_other(cluster: Cluster) -> None:
    """It was published past the store, which has another event at its place, or none."""
    seen: list[int] = []

    class Knows(Truth):
        async def check(self, place: Place | None) -> None:
            if place is not None and place.position == 666:
                raise OtherHistoryError("position 666")

    async def handle(deliveries: Sequence[Delivery]) -> list[Answer]:
        seen.extend(map(number, deliveries))
        return [Done()] * len(deliveries)

    async with connected(cluster) as bus:
        await publish(bus, 1, 666, 2)
        task = asyncio.create_task(bus.react(Reaction("test", [InteractionRecorded], handle), Knows(always)))
        await until(lambda: len(seen) == 2)
        await publish(bus, 3)
        await until(lambda: 3 in seen)
        assert sorted(seen) == [1, 2, 3]
        task.cancel()
        await asyncio.wait([task])


async def test_what_was_away_is_told_to_be_back_also_where_nothing_was_left_to_handle(cluster: Cluster) -> None:
    asked = 0
    told: list[bool] = []

    class Away(Truth):
        async def check(self, place: Place | None) -> None:  # noqa: ARG002 - as the store has it
            nonlocal asked
            asked += 1
            if asked == 1:
                raise UnavailableError("event store", "away")

    async def handle(_: Sequence[Delivery]) -> list[Answer]:
        raise AssertionError("nobody can decode it")

    async with connected(cluster) as bus:
        recorded = Recorded(
            InteractionRecorded.type_name, b"no event", {}, uuid4(), "customer-a", 0, 1, datetime.now(UTC)
        )
        message = subject(recorded.type_name, recorded.stream), recorded.data, headers_of(recorded, {})
        await bus.publish([message], expected_last=0)
        reaction = Reaction("test", [InteractionRecorded], handle)
        task = asyncio.create_task(bus.react(reaction, Away(always), available=told.append))
        await until(lambda: dead(bus), 20)
        await until(lambda: told == [False, True])
        task.cancel()
        await asyncio.wait([task])


async def test_what_is_held_of_a_stream_that_was_deleted_settles_nothing_of_the_next(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another instance of the service may be at work already on the messages that have the same places there."""
    monkeypatch.setattr(bus_module, "RECHECK_EVERY_S", 0.05)
    mended, looked, got, release = asyncio.Event(), set[int](), asyncio.Event(), asyncio.Event()
    seen: list[int] = []

    class Replaced(Truth):
        async def check(self, place: Place | None) -> None:
            if place is None or place.position > 10:
                await mended.wait()
            else:
                if mended.is_set():
                    looked.add(place.position)
                raise OtherHistoryError(f"position {place.position}")

    async def handle(deliveries: Sequence[Delivery]) -> list[Answer]:
        if not release.is_set():
            got.set()
            await release.wait()
            return [Retry("again", 0.01)] * len(deliveries)
        seen.extend(map(number, deliveries))
        return [Done()] * len(deliveries)

    reaction = Reaction("test", [InteractionRecorded], handle)
    told: list[bool] = []
    async with connected(cluster) as bus, connected(cluster) as another:
        await publish(bus, 1, 2, 3)
        tasks = [asyncio.create_task(bus.react(reaction, Replaced(always), available=told.append))]
        await until(lambda: told == [False])
        await another._js.delete_stream(STREAM)
        await another.ensure_streams()
        await publish(another, 11, 12, 13)
        tasks.append(asyncio.create_task(another.react(reaction, Truth(always))))
        await asyncio.wait_for(got.wait(), 20)
        mended.set()
        await until(lambda: looked == {1, 2, 3} and told[-1])
        # Whatever it settles comes before what is asked behind it.
        await asyncio.gather(bus.last(), bus.ping())
        release.set()
        await until(lambda: sorted(seen) == [11, 12, 13])
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def test_what_is_done_of_a_stream_that_was_deleted_acknowledges_nothing_of_the_next(cluster: Cluster) -> None:
    """Another instance of the service may be at work already on the messages that have the same places there."""
    begun, finish, got, release = asyncio.Event(), asyncio.Event(), asyncio.Event(), asyncio.Event()
    seen: set[int] = set()

    async def handle(deliveries: Sequence[Delivery]) -> list[Answer]:
        if number(deliveries[0]) < 10:
            begun.set()
            await finish.wait()
        elif not release.is_set():
            got.set()
            await release.wait()
            return [Retry("again", 0.01)] * len(deliveries)
        seen.update(map(number, deliveries))
        return [Done()] * len(deliveries)

    reaction = Reaction("test", [InteractionRecorded], handle)
    async with connected(cluster) as bus, connected(cluster) as another:
        await publish(bus, 1, 2, 3)
        with structlog.testing.capture_logs() as logs:
            tasks = [asyncio.create_task(bus.react(reaction, Truth(always)))]
            await asyncio.wait_for(begun.wait(), 20)
            await another._js.delete_stream(STREAM)
            await another.ensure_streams()
            await publish(another, 11, 12, 13)
            tasks.append(asyncio.create_task(another.react(reaction, Truth(always))))
            await asyncio.wait_for(got.wait(), 20)
            finish.set()
            await until(lambda: [log for log in logs if log["event"] == "consumer lost, resuming"], 20)
        # Whatever it settles comes before what is asked behind it.
        await asyncio.gather(bus.last(), bus.ping())
        release.set()
        await until(lambda: seen == {1, 2, 3, 11, 12, 13})
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def test_what_is_done_of_a_stream_that_is_gone_is_done_again_of_the_next(cluster: Cluster) -> None:
    """The one instance of the service comes to the stream that the relay fills anew."""
    begun, finish = asyncio.Event(), asyncio.Event()
    seen: set[int] = set()

    async def handle(deliveries: Sequence[Delivery]) -> list[Answer]:
        begun.set()
        await finish.wait()
        seen.update(map(number, deliveries))
        return [Done()] * len(deliveries)

    async with connected(cluster) as bus:
        await publish(bus, 1, 2, 3)
        async with reacting(bus, handle):
            await asyncio.wait_for(begun.wait(), 20)
            await bus._js.delete_stream(STREAM)
            finish.set()
            await until(lambda: 1 in seen)
            await bus.ensure_streams()
            await publish(bus, 11, 12)
            await until(lambda: {11, 12} <= seen, 20)
            await until(lambda: settled(bus), 20)


async def test_a_consumer_is_the_same_after_the_server_was_restarted(cluster: Cluster) -> None:
    """Whoever starts over old data is not told that it was lost."""

    async def handle(deliveries: Sequence[Delivery]) -> list[Answer]:
        return [Done()] * len(deliveries)

    async def settle(sequence: int) -> None:
        async with connected(cluster) as bus, reacting(bus, handle):
            await publish(bus, sequence)
            await until(lambda: settled(bus, sequence), 20)

    with structlog.testing.capture_logs() as logs:
        await settle(1)
        await cluster.stop("nats")
        await cluster.start("nats")
        await settle(2)
    assert [log for log in logs if log["event"] == "consumer lost, resuming"] == []


async def test_tries_of_a_stream_that_was_deleted_are_none_of_the_next(cluster: Cluster) -> None:
    """Its messages have the same sequences: one of them would be buried before it was tried as often as it may be."""
    tries: list[tuple[int, int]] = []
    finish = asyncio.Event()

    async def handle(deliveries: Sequence[Delivery]) -> list[Answer]:
        tries.extend((number(delivery), delivery.tries) for delivery in deliveries)
        if len(tries) < 3:
            return [Retry("again", 0.01)]
        await finish.wait()
        return [Done()]

    async with connected(cluster) as bus:
        await publish(bus, 1)
        async with reacting(bus, handle):
            await until(lambda: tries == [(1, 1), (1, 2), (1, 3)])
            await bus._js.delete_stream(STREAM)
            await bus.ensure_streams()
            await publish(bus, 11)
            finish.set()
            await until(lambda: len(tries) > 3, 20)
        assert tries[3] == (11, 1)


async def test_what_is_skipped_of_a_stream_that_was_deleted_is_buried_of_the_next_alone(cluster: Cluster) -> None:
    """There it may have another sequence, and so a letter of its own."""
    begun, finish = asyncio.Event(), asyncio.Event()

    async def handle(deliveries: Sequence[Delivery]) -> list[Answer]:
        begun.set()
        await finish.wait()
        return [Skip("never")] * len(deliveries)

    event = InteractionRecorded(interaction=Interaction(source="test", interaction_id="1"))
    recorded = Recorded(event.type_name, encode(event), {}, uuid4(), "customer-1", 0, 1, datetime.now(UTC))
    message = subject(recorded.type_name, recorded.stream), recorded.data, headers_of(recorded, {})
    async with connected(cluster) as bus:
        # Of no type that is reacted to.
        await bus._js.publish("recorrido.test.v1.Other.a", b"{}")
        await bus.publish([message], expected_last=1)
        async with reacting(bus, handle):
            await asyncio.wait_for(begun.wait(), 20)
            await bus._js.delete_stream(STREAM)
            await bus.ensure_streams()
            await bus.publish([message], expected_last=0)
            finish.set()
            await until(lambda: dead(bus), 20)

            async def acknowledged() -> bool:
                floor = (await bus._js.consumer_info(STREAM, "test")).ack_floor
                return floor is not None and floor.stream_seq == 1

            await until(acknowledged, 20, ignoring=(nats.js.errors.NotFoundError,))
        assert await dead(bus) == 1
