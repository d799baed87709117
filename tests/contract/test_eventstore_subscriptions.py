"""Subscriptions: catch-up, the way into live, filters and checkpoints, with both official Python clients."""

import asyncio
import random
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import pytest
from kurrentdbclient import AsyncKurrentDBClient, KurrentDBClient, NewEvent, StreamState
from kurrentdbclient import exceptions as refusals
from kurrentdbclient.events import RecordedEvent

from tests.support import eventstore

ANY = StreamState.ANY
DEADLINE_S = 30


@pytest.fixture
def stream() -> str:
    return f"customer-{uuid4()}"


def new(count: int, kind: str = "Recorded") -> list[NewEvent]:
    return [NewEvent(type=kind, data=b"{}") for _ in range(count)]


async def take(subscription: AsyncIterator[RecordedEvent], count: int) -> list[RecordedEvent]:
    async with asyncio.timeout(DEADLINE_S):
        return [await anext(subscription) for _ in range(count)]


async def test_all_from_the_start_then_live(client: AsyncKurrentDBClient, stream: str) -> None:
    await client.append_to_stream(stream, current_version=ANY, events=new(3))
    subscription = await client.subscribe_to_all(
        filter_include=[stream], filter_by_stream_name=True, include_caught_up=True
    )
    history = await take(subscription, 4)
    assert [event.is_caught_up for event in history] == [False, False, False, True]
    await client.append_to_stream(stream, current_version=ANY, events=new(2))
    live = await take(subscription, 2)
    assert [event.stream_position for event in live] == [3, 4]
    await subscription.stop()


async def test_all_after_a_position_excludes_it(client: AsyncKurrentDBClient, stream: str) -> None:
    position = await client.append_to_stream(stream, current_version=ANY, events=new(1))
    await client.append_to_stream(stream, current_version=ANY, events=new(1))
    subscription = await client.subscribe_to_all(commit_position=position)
    (event,) = await take(subscription, 1)
    assert (event.stream_name, event.stream_position) == (stream, 1)
    await subscription.stop()


async def test_all_from_the_end(client: AsyncKurrentDBClient, stream: str) -> None:
    await client.append_to_stream(stream, current_version=ANY, events=new(3))
    subscription = await client.subscribe_to_all(from_end=True)
    await client.append_to_stream(stream, current_version=ANY, events=new(1))
    (event,) = await take(subscription, 1)
    assert (event.stream_name, event.stream_position) == (stream, 3)
    await subscription.stop()


async def test_a_position_that_was_never_given_out(client: AsyncKurrentDBClient) -> None:
    """A follower whose store was replaced must hear of it instead of waiting for ever."""
    if eventstore.is_real_server():
        pytest.skip("KurrentDB waits for the position")
    subscription = await client.subscribe_to_all(commit_position=10**12)
    with pytest.raises(refusals.InvalidCommitPositionError):
        await take(subscription, 1)


async def test_checkpoints_lead_past_what_the_filter_leaves_out(client: AsyncKurrentDBClient, stream: str) -> None:
    start = await client.append_to_stream(stream, current_version=ANY, events=new(1, "Wanted"))
    head = await client.append_to_stream(stream, current_version=ANY, events=new(500, "Other"))
    subscription = await client.subscribe_to_all(
        commit_position=start,
        filter_include=["Wanted"],
        include_checkpoints=True,
        include_caught_up=True,
        window_size=10,
        checkpoint_interval_multiplier=2,
    )
    seen: list[RecordedEvent] = []
    while not seen or not seen[-1].is_caught_up:
        seen += await take(subscription, 1)
    checkpoints = [event.commit_position for event in seen if event.is_checkpoint]
    assert checkpoints
    assert checkpoints[-1] == head
    await client.append_to_stream(stream, current_version=ANY, events=new(100, "Other"))
    (live,) = await take(subscription, 1)
    assert live.is_checkpoint, "also live, a follower's checkpoint moves on"
    assert live.commit_position > head
    await subscription.stop()


@pytest.mark.parametrize(
    ("filters", "wanted"),
    [
        ({"filter_include": ["A.*"]}, {"Ab", "Aa"}),
        ({"filter_include": ["Aa", "B"]}, {"Aa", "B"}),
        ({"filter_include": ["A"], "filter_by_prefix": True}, {"Aa", "Ab"}),
        ({"filter_include": ["A", "B"], "filter_by_prefix": True}, {"Aa", "Ab", "B"}),
    ],
)
async def test_event_type_filters(
    client: AsyncKurrentDBClient, stream: str, filters: dict[str, Any], wanted: set[str]
) -> None:
    position = await client.append_to_stream(stream, current_version=ANY, events=new(1, "Start"))
    types = ["Aa", "B", "Ab", "C"] * 5
    for kind in types:
        await client.append_to_stream(stream, current_version=ANY, events=new(1, kind))
    subscription = await client.subscribe_to_all(commit_position=position, **filters)
    expected = [kind for kind in types if kind in wanted]
    assert [event.type for event in await take(subscription, len(expected))] == expected
    await subscription.stop()


async def test_a_stream_that_does_not_exist_yet(client: AsyncKurrentDBClient, stream: str) -> None:
    subscription = await client.subscribe_to_stream(stream)
    await client.append_to_stream(stream, current_version=ANY, events=new(2))
    assert [event.stream_position for event in await take(subscription, 2)] == [0, 1]
    await subscription.stop()


async def test_a_stream_after_a_revision_or_from_its_end(client: AsyncKurrentDBClient, stream: str) -> None:
    await client.append_to_stream(stream, current_version=ANY, events=new(3))
    after = await client.subscribe_to_stream(stream, stream_position=1)
    from_end = await client.subscribe_to_stream(stream, from_end=True)
    await client.append_to_stream(stream, current_version=ANY, events=new(1))
    assert [event.stream_position for event in await take(after, 2)] == [2, 3]
    assert [event.stream_position for event in await take(from_end, 1)] == [3]
    await after.stop()
    await from_end.stop()


def test_with_the_synchronous_client(uri: str, stream: str) -> None:
    client = KurrentDBClient(uri)
    client.append_to_stream(stream, current_version=ANY, events=new(2))
    with client.subscribe_to_all(filter_include=[stream], filter_by_stream_name=True) as subscription:
        assert [next(subscription).stream_position for _ in range(2)] == [0, 1]
        client.append_to_stream(stream, current_version=ANY, events=new(1))
        assert next(subscription).stream_position == 2
    client.close()


@pytest.mark.parametrize("seed", range(3))
async def test_no_gap_and_no_duplicate_on_the_way_into_live(
    client: AsyncKurrentDBClient, stream: str, seed: int
) -> None:
    """Subscribers join at random moments and positions while writers keep appending."""
    chance = random.Random(seed)
    category = f"{stream}-{seed}"
    start = await client.append_to_stream(f"{category}-0", current_version=ANY, events=new(1))
    positions = [start]
    progress = asyncio.Condition()

    async def write(writer: int) -> None:
        for _ in range(60):
            events = new(chance.randint(1, 5))
            await client.append_to_stream(f"{category}-{writer}", current_version=ANY, events=events)
            position = await client.append_to_stream(f"{category}-{writer}", current_version=ANY, events=new(1))
            async with progress:
                positions.append(position)
                progress.notify_all()

    async def follow() -> tuple[int, list[RecordedEvent]]:
        enough = chance.randint(1, 200)
        async with progress:
            await progress.wait_for(lambda: len(positions) >= enough)
        after = chance.choice(positions)
        subscription = await client.subscribe_to_all(
            commit_position=after, filter_include=[category], filter_by_stream_name=True, filter_by_prefix=True
        )
        seen = []
        async with asyncio.timeout(DEADLINE_S):
            async for event in subscription:
                if event.type == "End":
                    break
                seen.append(event)
        await subscription.stop()
        return after, seen

    followers = [asyncio.create_task(follow()) for _ in range(6)]
    await asyncio.gather(*(write(writer) for writer in range(4)))
    await client.append_to_stream(f"{category}-0", current_version=ANY, events=new(1, "End"))
    written = [
        event
        async for event in await client.read_all(
            commit_position=start, filter_include=[category], filter_by_stream_name=True, filter_by_prefix=True
        )
    ][:-1]
    for follower in followers:
        after, seen = await follower
        expected = [event.id for event in written if event.commit_position > after]
        assert [event.id for event in seen] == expected
