"""Replays: a part of the history again, in a stream of its own, while the main stream goes on as if nothing was."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import nats
import pytest

from infra.local.cluster import Cluster, running
from recorrido.ingest.v1.events import CustomerAnonymized
from recorrido.journey.v1.events import SignalRaised
from recorrido.relay.v1 import relay_service_pb2 as pb
from recorrido.relay.v1 import relay_service_pb2_grpc as pb_grpc
from services.foundation.bus import MAX_REPLAYS, Bus
from services.foundation.events import Pending, derived_id
from services.foundation.eventstore import ANY, EventStore, StreamAppend
from services.relay import replay as replay_module
from services.relay.relay import publish
from services.relay.replay import Part, Replays
from tests.support.cli import answer, recorrido
from tests.support.relays import TYPE, append, assert_stream_equals_store, store_of
from tests.support.rpc_errors import info, violations
from tests.support.truth import Message, published
from tests.support.wait import until

SIGNAL = "recorrido.journey.v1.SignalRaised"


async def append_signal(store: EventStore, number: int) -> None:
    event = SignalRaised(signal_id=str(number), rule="test")
    await store.append([StreamAppend(f"signal-{number}", ANY, [Pending(event, derived_id("signal", str(number)))])])


async def republish(cluster: Cluster, replay_id: str = "team", **terms: Any) -> list[pb.RepublishResponse]:
    async with grpc.aio.insecure_channel(cluster.address("relay")) as channel:
        request = pb.RepublishRequest(replay_id=replay_id, **terms)
        return [r async for r in pb_grpc.RelayServiceStub(channel).Republish(request, timeout=60)]


async def failure(cluster: Cluster, replay_id: str = "team", **terms: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await republish(cluster, replay_id, **terms)
    return caught.value


async def main_stream(cluster: Cluster) -> list[Message]:
    return await published(cluster.environment["RECORRIDO_NATS_URL"])


async def replay(cluster: Cluster, replay_id: str = "team") -> list[Message]:
    return await published(cluster.environment["RECORRIDO_NATS_URL"], f"RECORRIDO_REPLAY_{replay_id}")


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    """A relay that has published 20 interactions with a signal behind each fifth."""
    async with running(["relay"], data=tmp_path) as started, store_of(started) as store:
        for number in range(20):
            await append(store, range(number, number + 1))
            if number % 5 == 4:
                await append_signal(store, number)
        await assert_stream_equals_store(started, 24)
        yield started


async def test_everything_again_as_it_was(cluster: Cluster) -> None:
    client = await nats.connect(cluster.environment["RECORRIDO_NATS_URL"])
    told = await republish(cluster)
    before = await main_stream(cluster)
    assert await replay(cluster) == before
    assert told[-1] == pb.RepublishResponse(
        stream="RECORRIDO_REPLAY_team",
        subjects="recorrido_replay.team.>",
        messages=24,
        position=before[-1].position,
        end_position=before[-1].position,
        complete=True,
    )
    stream = client.jetstream()
    first, again = [await stream.get_msg(name, seq=8) for name in ("RECORRIDO", "RECORRIDO_REPLAY_team")]
    await client.close()
    assert again.subject == f"recorrido_replay.team.{first.subject}"
    assert again.data == first.data
    for headers in (first.headers, again.headers):
        for name in ("traceparent", "Nats-Batch-Id", "Nats-Batch-Sequence", "Nats-Batch-Commit"):
            headers.pop(name, None)
        headers.pop("Nats-Expected-Last-Sequence", None)
    assert again.headers == first.headers
    assert await main_stream(cluster) == before


async def test_a_part_by_position_with_both_ends(cluster: Cluster) -> None:
    all_of_it = await main_stream(cluster)
    await republish(cluster, from_position=all_of_it[5].position, to_position=all_of_it[11].position)
    assert await replay(cluster) == all_of_it[5:12]


async def test_a_part_by_time_with_both_ends(cluster: Cluster) -> None:
    all_of_it = await main_stream(cluster)
    client = await nats.connect(cluster.environment["RECORRIDO_NATS_URL"])
    times = [
        datetime.fromisoformat((await client.jetstream().get_msg("RECORRIDO", seq=n)).headers["ce-time"])
        for n in range(1, 25)
    ]
    await client.close()
    await republish(cluster, from_time=times[5], to_time=times[11])
    assert await replay(cluster) == [
        m for m, time in zip(all_of_it, times, strict=True) if times[5] <= time <= times[11]
    ]
    assert 7 <= len(await replay(cluster)) < 24


async def test_a_part_by_type(cluster: Cluster) -> None:
    await republish(cluster, types=[SIGNAL])
    assert await replay(cluster) == [m for m in await main_stream(cluster) if m.type_name == SIGNAL]
    assert len(await replay(cluster)) == 4


async def test_nothing_to_publish_is_complete_too(cluster: Cluster) -> None:
    far = datetime.now(UTC) + timedelta(days=1)
    (*_, last) = await republish(cluster, from_time=far)
    assert (last.messages, last.complete) == (0, True)


async def test_repeating_adds_nothing_and_ends_where_it_ended(cluster: Cluster) -> None:
    first = await republish(cluster)
    async with store_of(cluster) as store:
        await append(store, range(100, 110))
    await assert_stream_equals_store(cluster, 34)
    again = await republish(cluster)
    assert again[-1] == first[-1]
    assert len(await replay(cluster)) == 24


async def test_a_name_is_for_one_part_only(cluster: Cluster) -> None:
    await republish(cluster, types=[TYPE])
    caught = await failure(cluster, types=[SIGNAL])
    assert caught.code() is grpc.StatusCode.ALREADY_EXISTS
    assert info(caught).reason == "REPLAY_DIFFERS"
    assert len(await replay(cluster)) == 20
    await republish(cluster, "other", types=[SIGNAL])
    assert len(await replay(cluster, "other")) == 4


async def test_there_is_a_limit_to_how_many(cluster: Cluster) -> None:
    for number in range(MAX_REPLAYS):
        await republish(cluster, f"r{number}", types=[SIGNAL])
    caught = await failure(cluster, "more", types=[SIGNAL])
    assert info(caught).reason == "TOO_MANY_REPLAYS"
    await republish(cluster, "r3", types=[SIGNAL])


async def test_what_cannot_be_a_part(cluster: Cluster) -> None:
    caught = await failure(
        cluster, "a.b", from_position=9, to_position=3, types=["recorrido.x>", "InteractionRecorded"]
    )
    assert caught.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert [field for field, _ in violations(caught)] == ["replay_id", "types[0]", "types[1]", "to_position"]
    now = datetime.now(UTC)
    caught = await failure(cluster, from_time=now, to_time=now - timedelta(seconds=1))
    assert [field for field, _ in violations(caught)] == ["to_time"]


@pytest.mark.timeout(240)
async def test_killed_halfway_it_goes_on_and_the_main_stream_does_not_notice(tmp_path: Path) -> None:
    async with running(["relay"], data=tmp_path) as cluster, store_of(cluster) as store:
        await append(store, range(8_000))
        await assert_stream_equals_store(cluster, 8_000, deadline_s=60)
        before = await main_stream(cluster)
        republishing = asyncio.create_task(republish(cluster))

        async def begun() -> bool:
            client = await nats.connect(cluster.environment["RECORRIDO_NATS_URL"])
            try:
                names = [s.config.name for s in await client.jetstream().streams_info() if s.state.messages > 500]
                return "RECORRIDO_REPLAY_team" in names
            finally:
                await client.close()

        await until(begun, deadline_s=30)
        appending = asyncio.create_task(append(store, range(8_000, 9_000)))
        await cluster.kill_and_restart("relay")
        with pytest.raises(grpc.aio.AioRpcError):
            await republishing
        halfway = len(await replay(cluster))
        assert 0 < halfway < 8_000
        told = await republish(cluster)
        assert told[0].messages == halfway
        assert told[-1].complete
        assert [r.position for r in told] == sorted(r.position for r in told)
        assert await replay(cluster) == before, "none lost, none twice, in the same order"
        await appending
        await assert_stream_equals_store(cluster, 9_000, deadline_s=60)


# -- the command ---------------------------------------------------------------------------------------------------


async def test_the_command_by_position_and_short_type(cluster: Cluster) -> None:
    all_of_it = await main_stream(cluster)
    position = str(all_of_it[8].position)
    told = await answer(cluster, "republish", "--from", position, "--type", "SignalRaised", "--as", "team")
    expected = [m for m in all_of_it[8:] if m.type_name == SIGNAL]
    assert await replay(cluster) == expected
    assert (told["stream"], told["messages"], told["complete"]) == ("RECORRIDO_REPLAY_team", str(len(expected)), True)


async def test_the_command_by_time_says_where_to_find_it(cluster: Cluster) -> None:
    done = await recorrido(cluster, "republish", "--from", "2020-01-01", "--to", "2099-01-01", "--as", "all-of-it")
    assert done.code == 0, done
    assert "RECORRIDO_REPLAY_all-of-it" in done.out
    assert "recorrido_replay.all-of-it.>" in done.out
    assert await replay(cluster, "all-of-it") == await main_stream(cluster)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--from", "soon"), 2, "neither a position"),
        (("--from", "0", "--type", "Nope"), 2, "InteractionRecorded"),
        (("--from", "0", "--as", "a.b"), 2, "1 to 64 letters"),
        (("--from", "9", "--to", "3"), 1, "at or after from_position"),
    ],
)
async def test_the_command_called_wrongly(cluster: Cluster, arguments: tuple[str, ...], code: int, said: str) -> None:
    done = await recorrido(cluster, "republish", *arguments, COLUMNS="200")
    assert (done.code, said in done.err) == (code, True), done


async def test_what_is_erased_never_comes_again_though_the_store_still_holds_it(cluster: Cluster) -> None:
    await republish(cluster, "before")
    held = await main_stream(cluster)
    (victim, *_) = [m for m in held if m.type_name == SIGNAL]
    async with store_of(cluster) as store:
        event = CustomerAnonymized(receipt_id="r", erased_positions=(str(victim.position),))
        await store.append([StreamAppend("erasure-r", ANY, [Pending(event, derived_id("r"))])])
        await assert_stream_equals_store(cluster, 25)
        wanted = [m.position for m in await main_stream(cluster) if m != victim]
        await republish(cluster, "after")
        assert [m.position for m in await replay(cluster, "after")] == wanted
        # A bus that lost everything is filled anew without it.
        await cluster.stop("relay")
        client = await nats.connect(cluster.environment["RECORRIDO_NATS_URL"])
        await client.jetstream().delete_stream("RECORRIDO")
        await client.close()
        await cluster.start("relay")

        async def filled() -> bool:
            return len(await main_stream(cluster)) >= len(wanted)

        await until(filled, deadline_s=30, ignoring=(nats.js.errors.NotFoundError,))
        assert [m.position for m in await main_stream(cluster)] == wanted


async def test_what_is_erased_while_it_is_published_again_does_not_stay(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = await main_stream(cluster)
    (victim, *_) = [m for m in held if m.type_name == SIGNAL]
    async with store_of(cluster) as store:

        async def erase_and_publish(*args: Any, **options: Any) -> int:
            event = CustomerAnonymized(receipt_id="r", erased_positions=(str(victim.position),))
            await store.append([StreamAppend("erasure-r", ANY, [Pending(event, derived_id("r"))])])
            return await publish(*args, **options)

        monkeypatch.setattr(replay_module, "publish", erase_and_publish)
        bus = await Bus.connect(cluster.environment["RECORRIDO_NATS_URL"], name="test")
        try:
            told = [p async for p in Replays(store, bus).republish(Part(replay_id="team"))]
        finally:
            await bus.close()
    assert await replay(cluster) == [m for m in held if m != victim]
    assert (told[-1].messages, told[-1].complete) == (len(held) - 1, True)
    assert victim in await main_stream(cluster)  # it is the erasure's to go through
