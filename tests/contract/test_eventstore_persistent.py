"""Persistent subscriptions: groups of consumers, acknowledgements, retries, parking, checkpoints."""

import asyncio
import dataclasses
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import grpc
import pytest
from kurrentdbclient import AsyncKurrentDBClient, KurrentDBClient, NewEvent, StreamState
from kurrentdbclient import exceptions as refusals
from kurrentdbclient.events import RecordedEvent
from kurrentdbclient.protos.v1 import persistent_pb2, persistent_pb2_grpc, shared_pb2

from infra.eventstore import model
from infra.eventstore.group_settings import GroupSettings
from infra.eventstore.groups import Group
from infra.eventstore.store import Store
from tests.support import eventstore
from tests.support.wait import until

ANY = StreamState.ANY
DEADLINE_S = 30


@pytest.fixture
def stream() -> str:
    return f"customer-{uuid4()}"


@pytest.fixture
def group() -> str:
    return f"group-{uuid4()}"


def new(count: int) -> list[NewEvent]:
    return [NewEvent(type="Recorded", data=b"{}") for _ in range(count)]


async def take(subscription: AsyncIterator[RecordedEvent], count: int) -> list[RecordedEvent]:
    async with asyncio.timeout(DEADLINE_S):
        return [await anext(subscription) for _ in range(count)]


async def test_history_then_live(client: AsyncKurrentDBClient, stream: str, group: str) -> None:
    await client.append_to_stream(stream, current_version=ANY, events=new(3))
    await client.create_subscription_to_stream(group, stream)
    subscription = await client.read_subscription_to_stream(group, stream)
    events = await take(subscription, 3)
    await client.append_to_stream(stream, current_version=ANY, events=new(1))
    events += await take(subscription, 1)
    assert [event.stream_position for event in events] == [0, 1, 2, 3]
    assert {event.retry_count for event in events} == {0}
    await subscription.stop()


async def test_from_a_revision_and_from_the_end(client: AsyncKurrentDBClient, stream: str, group: str) -> None:
    await client.append_to_stream(stream, current_version=ANY, events=new(3))
    await client.create_subscription_to_stream(group, stream, stream_position=1)
    await client.create_subscription_to_stream(f"{group}-end", stream, from_end=True)
    await client.append_to_stream(stream, current_version=ANY, events=new(1))
    first = await client.read_subscription_to_stream(group, stream)
    second = await client.read_subscription_to_stream(f"{group}-end", stream)
    assert [event.stream_position for event in await take(first, 3)] == [1, 2, 3], "the revision itself is included"
    assert [event.stream_position for event in await take(second, 1)] == [3]
    await first.stop()
    await second.stop()


async def test_all_with_a_filter(client: AsyncKurrentDBClient, stream: str, group: str) -> None:
    for n in range(10):
        await client.append_to_stream(f"{stream}-{n % 2}", current_version=ANY, events=new(1))
    await client.create_subscription_to_all(group, filter_include=[f"{stream}-1"], filter_by_stream_name=True)
    subscription = await client.read_subscription_to_all(group)
    events = await take(subscription, 5)
    assert {event.stream_name for event in events} == {f"{stream}-1"}
    await subscription.stop()


async def test_what_was_acknowledged_does_not_come_back(client: AsyncKurrentDBClient, stream: str, group: str) -> None:
    await client.append_to_stream(stream, current_version=ANY, events=new(20))
    await client.create_subscription_to_stream(group, stream)
    subscription = await client.read_subscription_to_stream(group, stream, max_ack_delay=0.01)
    for event in (await take(subscription, 20))[:15]:
        await subscription.ack(event)
    await subscription.stop()

    again = await client.read_subscription_to_stream(group, stream)
    assert [event.stream_position for event in await take(again, 5)] == [15, 16, 17, 18, 19]
    await again.stop()


async def test_nack_retry_skip_and_park_then_replay(client: AsyncKurrentDBClient, stream: str, group: str) -> None:
    await client.append_to_stream(stream, current_version=ANY, events=new(3))
    await client.create_subscription_to_stream(group, stream)
    subscription = await client.read_subscription_to_stream(group, stream, max_ack_delay=0.01)
    retry, skip, park = await take(subscription, 3)
    await subscription.nack(retry, "retry")
    (again,) = await take(subscription, 1)
    assert (again.id, again.retry_count) == (retry.id, 1)
    await subscription.ack(again)
    await subscription.nack(skip, "skip")
    await subscription.nack(park, "park")
    await wait_for_parked(client, group, stream, 1)

    await client.replay_parked_events(group, stream)
    (replayed,) = await take(subscription, 1)
    assert replayed.id == park.id
    await subscription.ack(replayed)
    await wait_for_parked(client, group, stream, 0)
    await subscription.stop()


async def wait_for_parked(client: AsyncKurrentDBClient, group: str, stream: str, count: int) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while (await client.get_subscription_info(group, stream)).parked_message_count != count:
            pass


async def test_too_many_retries_park(client: AsyncKurrentDBClient, stream: str, group: str) -> None:
    await client.append_to_stream(stream, current_version=ANY, events=new(1))
    await client.create_subscription_to_stream(group, stream, max_retry_count=2)
    subscription = await client.read_subscription_to_stream(group, stream, max_ack_delay=0.01)
    for retries in range(3):
        (event,) = await take(subscription, 1)
        assert event.retry_count == retries
        await subscription.nack(event, "retry")
    await wait_for_parked(client, group, stream, 1)
    await subscription.stop()


async def test_an_event_without_an_answer_comes_again(client: AsyncKurrentDBClient, stream: str, group: str) -> None:
    await client.append_to_stream(stream, current_version=ANY, events=new(1))
    await client.create_subscription_to_stream(group, stream, message_timeout=0.2)
    subscription = await client.read_subscription_to_stream(group, stream)
    first, second = await take(subscription, 2)
    assert first.id == second.id
    assert second.retry_count == 1
    await subscription.stop()


async def test_consumers_share_and_inherit(client: AsyncKurrentDBClient, stream: str, group: str) -> None:
    await client.append_to_stream(stream, current_version=ANY, events=new(40))
    await client.create_subscription_to_stream(group, stream, consumer_strategy="RoundRobin")
    first = await client.read_subscription_to_stream(group, stream, event_buffer_size=10, max_ack_delay=0.01)
    second = await client.read_subscription_to_stream(group, stream, event_buffer_size=10, max_ack_delay=0.01)
    mine, lost = await take(first, 10), await take(second, 10)
    assert not {event.id for event in mine} & {event.id for event in lost}
    await second.stop()

    positions: Counter[int] = Counter()
    for event in mine:
        positions[event.stream_position] += 1
        await first.ack(event)
    while len(positions) < 40:
        (event,) = await take(first, 1)
        positions[event.stream_position] += 1
        await first.ack(event)
    assert set(positions) == set(range(40))
    await first.stop()


async def test_pinned_streams_stay_with_their_consumer(client: AsyncKurrentDBClient, stream: str, group: str) -> None:
    for n in range(8):
        await client.append_to_stream(f"{stream}-{n}", current_version=ANY, events=new(5))
    await client.create_subscription_to_all(
        group, filter_include=[f"{stream}.*"], filter_by_stream_name=True, consumer_strategy="Pinned"
    )
    owner: dict[str, int] = {}
    counted = 0
    done = asyncio.Event()

    async def consume(number: int) -> None:
        nonlocal counted
        subscription = await client.read_subscription_to_all(group, max_ack_delay=0.01)
        ready[number].set()
        async for event in subscription:
            await subscription.ack(event)
            assert owner.setdefault(event.stream_name, number) == number
            counted += 1
            if counted == 40:
                done.set()

    ready = [asyncio.Event(), asyncio.Event()]
    consumers = [asyncio.create_task(consume(number)) for number in range(2)]
    async with asyncio.timeout(DEADLINE_S):
        finished, _ = await asyncio.wait([asyncio.create_task(done.wait()), *consumers], return_when="FIRST_COMPLETED")
    for task in finished:
        task.result()
    for consumer in consumers:
        consumer.cancel()
    await asyncio.gather(*consumers, return_exceptions=True)


async def test_refusals(client: AsyncKurrentDBClient, stream: str, group: str) -> None:
    with pytest.raises(refusals.NotFoundError):
        await client.read_subscription_to_stream(group, stream)
    with pytest.raises(refusals.NotFoundError):
        await client.delete_subscription(group, stream)
    with pytest.raises(refusals.NotFoundError):
        await client.get_subscription_info(group, stream)
    await client.create_subscription_to_stream(group, stream, max_subscriber_count=1)
    with pytest.raises(refusals.AlreadyExistsError):
        await client.create_subscription_to_stream(group, stream)
    subscription = await client.read_subscription_to_stream(group, stream)
    with pytest.raises(refusals.MaximumSubscriptionsReachedError):
        await client.read_subscription_to_stream(group, stream)
    await subscription.stop()


async def test_info_list_update_delete(client: AsyncKurrentDBClient, stream: str, group: str) -> None:
    await client.create_subscription_to_stream(group, stream, max_retry_count=3, message_timeout=5)
    info = await client.get_subscription_info(group, stream)
    assert (info.event_source, info.group_name, info.max_retry_count, info.message_timeout) == (stream, group, 3, 5)
    await client.update_subscription_to_stream(group, stream, max_retry_count=7)
    assert (await client.get_subscription_info(group, stream)).max_retry_count == 7
    assert group in {info.group_name for info in await client.list_subscriptions()}
    assert [info.group_name for info in await client.list_subscriptions_to_stream(stream)] == [group]

    subscription = await client.read_subscription_to_stream(group, stream)
    await client.delete_subscription(group, stream)
    with pytest.raises((refusals.KurrentDBClientError, StopAsyncIteration)):
        await take(subscription, 1)
    with pytest.raises(refusals.NotFoundError):
        await client.get_subscription_info(group, stream)


def test_with_the_synchronous_client(uri: str, stream: str, group: str) -> None:
    client = KurrentDBClient(uri)
    client.append_to_stream(stream, current_version=ANY, events=new(5))
    client.create_subscription_to_stream(group, stream)
    with client.read_subscription_to_stream(group, stream) as subscription:
        for event in subscription:
            subscription.ack(event)
            if event.stream_position == 4:
                subscription.stop()
    client.close()


@pytest.mark.skipif(eventstore.is_real_server(), reason="kills the node")
async def test_groups_and_checkpoints_survive_a_restart(tmp_path: Path) -> None:
    with eventstore.running(tmp_path) as node:
        client = AsyncKurrentDBClient(node.uri)
        await client.append_to_stream("s", current_version=ANY, events=new(100))
        await client.create_subscription_to_stream("g", "s", checkpoint_after=0.01)
        subscription = await client.read_subscription_to_stream("g", "s", max_ack_delay=0.01)
        for event in await take(subscription, 60):
            await subscription.ack(event)
        await subscription.stop()
        await client.close()
        assert node.stop() == 0
    with eventstore.running(tmp_path) as node:
        client = AsyncKurrentDBClient(node.uri)
        subscription = await client.read_subscription_to_stream("g", "s")
        assert [event.stream_position for event in await take(subscription, 40)] == list(range(60, 100))
        await subscription.stop()
        await client.close()


async def test_an_answer_that_names_no_event_is_refused(
    client: AsyncKurrentDBClient, uri: str, stream: str, group: str
) -> None:
    await client.create_subscription_to_stream(group, stream)
    options = persistent_pb2.ReadReq.Options(group_name=group, buffer_size=10)
    options.stream_identifier.stream_name = stream.encode()
    options.uuid_option.string.SetInParent()
    wrong = persistent_pb2.ReadReq.Ack(ids=[shared_pb2.UUID(string="no uuid")])
    async with grpc.aio.insecure_channel(urlsplit(uri).netloc) as channel, asyncio.timeout(DEADLINE_S):
        call = persistent_pb2_grpc.PersistentSubscriptionsStub(channel).Read()  # type: ignore[no-untyped-call]
        await call.write(persistent_pb2.ReadReq(options=options))
        await call.write(persistent_pb2.ReadReq(ack=wrong))
        assert (await call.read()).WhichOneof("content") == "subscription_confirmation"
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call.read()
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_write_that_fails_does_not_end_a_group(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    event = model.NewEvent(uuid4().bytes, "Recorded", True, b"", b"{}")
    await store.write(model.Append([model.Part("s", model.ANY, [event])]))
    times: dict[str, Any] = {"message_timeout_s": 0.05, "checkpoint_after_s": 0.05}
    counts = dict.fromkeys((field.name for field in dataclasses.fields(GroupSettings) if field.type in (int, "int")), 0)
    settings = GroupSettings(
        stream="s",
        name="g",
        start="",
        strategy="RoundRobin",
        resolve_links=False,
        extra_statistics=False,
        filter=None,
        **times,
        **{**counts, "max_checkpoint_count": 1000},
    )
    group = Group(store, settings, -1)
    consumer = group.join(10, "test")
    try:
        await store.maintain(lambda db: db.execute("PRAGMA query_only = ON").fetchall())
        async with asyncio.timeout(DEADLINE_S):
            # Nobody answers in time, and it cannot be parked either: it comes again.
            for _ in range(3):
                assert await consumer.outbox.get() is not None
            assert group.parked == 0
            await store.maintain(lambda db: db.execute("PRAGMA query_only = OFF").fetchall())
            await store.beyond(1)
        await until(lambda: (group.parked, group.checkpoint) == (1, 0))
    finally:
        await group.close()
        await store.close()
