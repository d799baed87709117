"""The event store is replaced by an older backup: nothing goes on over another history as if nothing had happened."""

import asyncio
import contextlib
import shutil
import sys
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import grpc
import msgspec
import nats
import pytest
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc
from kurrentdbclient import AsyncKurrentDBClient, NewEvent, StreamState
from kurrentdbclient.exceptions import NotFoundError

from infra.eventstore import messages
from infra.local.cluster import Cluster, running
from recorrido.ingest.v1.events import Interaction, InteractionRecorded
from services.foundation import bus as bus_module
from services.foundation.bus import Answer, Bus, Delivery, Done, Reaction, Skip, answer_to, headers_of, subject
from services.foundation.errors import OtherHistoryError, UnavailableError
from services.foundation.events import Event
from services.foundation.eventstore import ANY, EventStore, StreamAppend
from services.foundation.execute import Executor, Intent
from services.foundation.projection import Fact, ProjectionRunner
from services.ingest.domain import History, RecordInteraction
from tests.support import eventstore as node
from tests.support.front_door import DUPLICATE, RECORDED, front_door, of
from tests.support.relays import append, assert_stream_equals_store, pending, status, store_of
from tests.support.rpc_errors import info
from tests.support.truth import published
from tests.support.wait import until


async def _healthy(cluster: Cluster) -> bool:
    async with grpc.aio.insecure_channel(cluster.address("relay")) as channel:
        answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


async def _replace_store(cluster: Cluster, backup: Path | None) -> None:
    """Put a backup, or nothing, in the store's place."""
    data = cluster.data / "eventstore"
    shutil.rmtree(data)
    data.mkdir()
    if backup is not None:
        shutil.copy(backup, data / "events.db")
    await cluster.start("eventstore")


async def _back_up(cluster: Cluster, to: Path) -> None:
    directory = str(cluster.data / "eventstore")
    command = [sys.executable, "-m", "infra.eventstore", "--data", directory]
    process = await asyncio.create_subprocess_exec(*command, "--backup", str(to), cwd=node.REPOSITORY)
    assert await process.wait() == 0


@pytest.mark.parametrize(("kept", "later"), [(0, 40), (10, 5)])
@pytest.mark.parametrize("relay", ["stopped", "running"])
async def test_nothing_is_published_of_another_history(tmp_path: Path, kept: int, later: int, relay: str) -> None:
    """Bus of 30 events; the store then begins with `kept` of them and goes on differently, shorter or longer."""
    async with running(["relay"], data=tmp_path / "data") as cluster:
        async with store_of(cluster) as store:
            await append(store, range(kept))
            await _back_up(cluster, tmp_path / "backup.db")
            await append(store, range(kept, 30))
            await assert_stream_equals_store(cluster, 30)
        before = await published(cluster.environment["RECORRIDO_NATS_URL"])
        if relay == "stopped":
            await cluster.stop("relay")
        await cluster.stop("eventstore")
        await _replace_store(cluster, tmp_path / "backup.db" if kept else None)
        async with store_of(cluster) as store:
            await append(store, range(100, 100 + later))
            if relay == "stopped":
                cluster.supervisor.start_part("relay")

            def told() -> list[str]:
                lines = (cluster.data / "log/relay.log").read_text().splitlines()
                return [line for line in lines if "the event store was replaced" in line]

            await until(lambda: bool(told()), deadline_s=20)

            async def unhealthy() -> bool:
                return not await _healthy(cluster)

            await until(unhealthy, ignoring=(grpc.aio.AioRpcError,))
            assert len(told()) == 1
            assert "docs/eventstore.md" in told()[0]
            assert await published(cluster.environment["RECORRIDO_NATS_URL"]) == before
            assert cluster.restarts("relay") == 0

            # What the guide says: without the stream, the relay fills it from the store as it is now.
            client = await nats.connect(cluster.environment["RECORRIDO_NATS_URL"])
            await client.jetstream().delete_stream("RECORRIDO")
            await client.close()
            await until(lambda: _healthy(cluster), deadline_s=20)
            await assert_stream_equals_store(cluster, kept + later)


@pytest.mark.parametrize("how", ["delete", "tombstone"])
async def test_an_erased_customer_is_no_other_history(tmp_path: Path, how: str) -> None:
    """The last message's event was deleted with its stream and scavenged away; the relay goes on."""
    async with running(["relay"], data=tmp_path) as cluster, store_of(cluster) as store:
        await append(store, range(7, 10))
        await store.append([StreamAppend("customer-gone", ANY, [pending(50)])])
        await assert_stream_equals_store(cluster, 4)
        await cluster.stop("relay")
        client = AsyncKurrentDBClient(uri=cluster.environment["RECORRIDO_EVENTSTORE_URI"])
        await client.connect()
        remove = client.tombstone_stream if how == "tombstone" else client.delete_stream
        await remove("customer-gone", current_version=StreamState.ANY)
        await client.close()
        await _scavenge(cluster)
        await cluster.start("relay")
        await append(store, range(10, 20))

        async def complete() -> bool:
            return len(await published(cluster.environment["RECORRIDO_NATS_URL"])) == 14

        await until(complete)
        assert (await status(cluster.address("relay"))).published == 10


async def _scavenge(cluster: Cluster) -> None:
    async with grpc.aio.insecure_channel(cluster.address("eventstore")) as channel:
        start = channel.unary_unary(
            f"/{messages.OPERATIONS_PACKAGE}.Operations/StartScavenge",
            request_serializer=messages.StartScavengeReq.SerializeToString,
            response_deserializer=messages.ScavengeResp.FromString,
        )
        scavenge = (await start(messages.StartScavengeReq())).scavenge_id
    client = AsyncKurrentDBClient(uri=cluster.environment["RECORRIDO_EVENTSTORE_URI"])
    await client.connect()

    async def done() -> bool:
        told = await client.get_stream(f"$scavenges-{scavenge}")
        return told[-1].type == "$scavengeCompleted" and b"Success" in told[-1].data

    await until(done, ignoring=(NotFoundError,))
    await client.close()


# -- who follows the store -----------------------------------------------------------------------------------------


async def test_a_follower_does_not_go_on_over_another_history(tmp_path: Path) -> None:
    """Also where the store was replaced while it was being followed."""
    with node.running(tmp_path / "one") as one:
        store = await EventStore.connect(one.uri)
        await append(store, range(30))
        events = store.follow(None)
        for _ in range(30):
            await anext(events)
        one.kill()
        with node.running(tmp_path / "two", one.address) as two:
            other = await EventStore.connect(two.uri)
            await append(other, range(100, 160))
            with pytest.raises(OtherHistoryError, match="position 30"):
                async for _ in events:
                    pass
            await other.close()
        await store.close()


class _Seen:
    """A read model that keeps the ids of what it saw."""

    name = "seen"
    types: Sequence[type[Event]] = (InteractionRecorded,)
    ddl = "CREATE TABLE seen (event_id uuid NOT NULL)"

    async def apply(self, connection: Any, facts: Any) -> None:
        rows: list[Fact] = list(facts)
        await connection.executemany("INSERT INTO seen VALUES ($1)", [(fact.recorded.event_id,) for fact in rows])


@contextlib.asynccontextmanager
async def _projected(store: EventStore, pool: Any) -> AsyncIterator[list[bool]]:
    """Run the projection for the block; gives what it tells of its availability."""
    told: list[bool] = []
    task = asyncio.create_task(ProjectionRunner(store, pool, _Seen()).run(available=told.append))
    try:
        yield told
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_a_read_model_does_not_go_on_over_another_history(tmp_path: Path) -> None:
    async with running(["postgres", "eventstore"], data=tmp_path / "data") as cluster:
        pool = await asyncpg.create_pool(cluster.environment["RECORRIDO_POSTGRES_DSN"])

        async def ids() -> list[Any]:
            return [row["event_id"] for row in await pool.fetch("SELECT event_id FROM seen.seen")]

        async def filled(count: int) -> bool:
            with contextlib.suppress(asyncpg.PostgresError):
                return len(await ids()) == count
            return False

        async with store_of(cluster) as store:
            await append(store, range(10))
            await _back_up(cluster, tmp_path / "backup.db")
            await append(store, range(10, 30))
            async with _projected(store, pool):
                await until(lambda: filled(30))
        await cluster.stop("eventstore")
        await _replace_store(cluster, tmp_path / "backup.db")
        async with store_of(cluster) as store:
            await append(store, range(100, 140))
            async with _projected(store, pool) as told:
                await until(lambda: told)
                assert told == [False]
                assert len(await ids()) == 30, "as it was"
                # What the guide says: without its schema it is built anew.
                await pool.execute("DROP SCHEMA seen CASCADE")
                await until(lambda: filled(50))
                assert told[-1] is True
                assert set(await ids()) == {pending(n).event_id for n in [*range(10), *range(100, 140)]}
        await pool.close()


async def test_a_read_model_finds_what_was_recorded_behind_its_last_event(tmp_path: Path) -> None:
    """A backup from between its last event and its checkpoint holds all that it read, and may go on differently."""
    async with running(["postgres", "eventstore"], data=tmp_path / "data") as cluster:
        pool = await asyncpg.create_pool(cluster.environment["RECORRIDO_POSTGRES_DSN"])

        async def state() -> tuple[int, int]:
            with contextlib.suppress(asyncpg.PostgresError):
                return (
                    await pool.fetchval("SELECT count(*) FROM seen.seen"),
                    await pool.fetchval("SELECT position FROM seen.checkpoint"),
                )
            return 0, 0

        async def is_at(count: int, position: int) -> bool:
            found = await state()
            return found[0] == count and found[1] >= position

        async def other_events(count: int) -> None:
            client = AsyncKurrentDBClient(uri=cluster.environment["RECORRIDO_EVENTSTORE_URI"])
            await client.connect()
            events = [NewEvent(type="recorrido.other.v1.Thing", data=b"{}") for _ in range(count)]
            await client.append_to_stream("other-x", events=events, current_version=StreamState.ANY)
            await client.close()

        async with store_of(cluster) as store:
            await append(store, range(10))
            await _back_up(cluster, tmp_path / "backup.db")
            await other_events(500)
            async with _projected(store, pool):
                await until(lambda: is_at(10, 500))
        await cluster.stop("eventstore")
        await _replace_store(cluster, tmp_path / "backup.db")
        async with store_of(cluster) as store:
            await append(store, range(100, 140))
            await other_events(500)
            async with _projected(store, pool):
                await until(lambda: is_at(50, 540))
        await pool.close()


@pytest.mark.parametrize(
    ("replaced", "mended"),
    [("before", "the stream is deleted"), ("while it waits", "the right store is brought back")],
)
async def test_nothing_is_done_because_of_another_history(
    tmp_path: Path, replaced: str, mended: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a reaction gets from the bus is of no store that is there; what it is to do waits until that is mended.

    Also where the store was replaced while the reaction waits for a part that is away.
    """
    waits = replaced == "while it waits"
    monkeypatch.setattr(bus_module, "RECHECK_EVERY_S", 0.1)
    handled: list[UUID] = []
    told: list[bool] = []

    async def handle(deliveries: Sequence[Delivery]) -> list[Done]:
        if waits:
            raise UnavailableError("a part", "away")
        handled.extend(delivery.recorded.event_id for delivery in deliveries)
        return [Done()] * len(deliveries)

    async with running(["relay"], data=tmp_path / "data") as cluster, store_of(cluster) as store:
        await append(store, range(10))
        await assert_stream_equals_store(cluster, 10)
        bus = await Bus.connect(cluster.environment["RECORRIDO_NATS_URL"], name="test")
        with structlog.testing.capture_logs() as logs:
            react = bus.react(Reaction("test", [InteractionRecorded], handle), store, available=told.append)
            task = asyncio.create_task(react) if waits else None
            if waits:
                await until(lambda: told, deadline_s=20)
            await cluster.stop("eventstore")
            shutil.copytree(cluster.data / "eventstore", tmp_path / "right")
            await _replace_store(cluster, None)
            await append(store, range(100, 140))
            waits = False
            task = task or asyncio.create_task(react)
            await until(lambda: [log for log in logs if log["event"] == "nothing is done"], deadline_s=20)
        assert (handled, told[-1]) == ([], False)
        if mended == "the stream is deleted":
            client = await nats.connect(cluster.environment["RECORRIDO_NATS_URL"])
            await client.jetstream().delete_stream("RECORRIDO")
            await client.close()
        else:
            await cluster.stop("eventstore")
            await _replace_store(cluster, tmp_path / "right" / "events.db")
        expected = range(100, 140) if mended == "the stream is deleted" else range(10)
        await until(lambda: len(handled) >= len(expected) and told[-1], deadline_s=30)
        assert sorted(handled) == sorted(pending(n).event_id for n in expected)
        task.cancel()
        await asyncio.wait([task])
        await bus.close()


@pytest.mark.parametrize("answer", [Done(), Skip("never")], ids=["done", "skipped"])
async def test_what_was_decided_about_another_history_settles_nothing(
    tmp_path: Path, answer: Answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store is replaced while events are handled: that it does not hold them is no erasure."""
    monkeypatch.setattr(bus_module, "RECHECK_EVERY_S", 0.1)
    handled: Counter[UUID] = Counter()

    async def handle(deliveries: Sequence[Delivery]) -> list[Answer]:
        if not handled:
            await cluster.stop("eventstore")
            shutil.copytree(cluster.data / "eventstore", tmp_path / "right")
            await _replace_store(cluster, None)
            await append(store, range(100, 140))
        handled.update(delivery.recorded.event_id for delivery in deliveries)
        return [answer] * len(deliveries)

    async with running(["relay"], data=tmp_path / "data") as cluster, store_of(cluster) as store:
        await append(store, range(10))
        await assert_stream_equals_store(cluster, 10)
        bus = await Bus.connect(cluster.environment["RECORRIDO_NATS_URL"], name="test")
        client = await nats.connect(cluster.environment["RECORRIDO_NATS_URL"])
        with structlog.testing.capture_logs() as logs:
            task = asyncio.create_task(bus.react(Reaction("test", [InteractionRecorded], handle), store))
            await until(lambda: [log for log in logs if log["event"] == "nothing is done"], deadline_s=30)
        first = dict(handled)
        consumer = await client.jetstream().consumer_info("RECORRIDO", "test")
        assert consumer.ack_floor is not None
        assert (consumer.ack_floor.stream_seq, consumer.num_ack_pending) == (0, len(first))
        await cluster.stop("eventstore")
        await _replace_store(cluster, tmp_path / "right" / "events.db")

        async def settled() -> bool:
            consumer = await client.jetstream().consumer_info("RECORRIDO", "test")
            return consumer.ack_floor is not None and consumer.ack_floor.stream_seq == 10

        await until(settled, deadline_s=30)
        assert set(handled) == {pending(n).event_id for n in range(10)}
        assert all(handled[each] > 1 for each in first)
        letters = (await client.jetstream().stream_info("RECORRIDO_DEAD")).state.messages
        assert letters == (10 if isinstance(answer, Skip) else 0)
        task.cancel()
        await asyncio.wait([task])
        await client.close()
        await bus.close()


async def test_a_message_of_no_event_holds_up_no_other_where_something_is_to_be_recorded_because_of_it(
    tmp_path: Path,
) -> None:
    """It was published past the store, and before an event that is newer than it claims to be."""
    done: list[UUID] = []

    async with running(["relay"], data=tmp_path / "data") as cluster, store_of(cluster) as store:
        executor = Executor(store, History())

        async def handle(deliveries: Sequence[Delivery]) -> list[Answer]:
            because = [delivery.recorded for delivery in deliveries]
            now = datetime.now(UTC)
            commands = [RecordInteraction.of(Interaction.from_proto(of("ana", n)), now) for n in range(len(because))]
            intents = [Intent(each.stream, each, because=of_it) for each, of_it in zip(commands, because, strict=True)]
            answers = [answer_to(each.error) for each in await executor.execute_all(intents)]
            done.extend(delivery.recorded.event_id for delivery in deliveries)
            return answers

        await append(store, range(1))
        await assert_stream_equals_store(cluster, 1)
        (real,) = [event async for event in store.read_all(None)]
        bus = await Bus.connect(cluster.environment["RECORRIDO_NATS_URL"], name="test")
        forged = msgspec.structs.replace(real, event_id=uuid4(), stream="customer-nobody", revision=0)
        message = subject(forged.type_name, forged.stream), forged.data, headers_of(forged, {})
        await cluster.stop("relay")
        await bus.publish([message], expected_last=(await bus.last()).sequence)
        await append(store, range(1, 2))
        newer = [event async for event in store.read_all(None)][-1]
        message = subject(newer.type_name, newer.stream), newer.data, headers_of(newer, {})
        await bus.publish([message], expected_last=(await bus.last()).sequence)
        task = asyncio.create_task(bus.react(Reaction("test", [InteractionRecorded], handle), store))
        await until(lambda: newer.event_id in done, deadline_s=30)
        assert forged.event_id not in done
        task.cancel()
        await asyncio.wait([task])
        await bus.close()


async def test_an_event_of_another_history_is_not_taken_for_erased(tmp_path: Path) -> None:
    with node.running(tmp_path / "one") as one:
        store = await EventStore.connect(one.uri)
        await append(store, range(30))
        recorded = [event async for event in store.read_all(None)][-1]
        assert await store.holds(recorded)
        one.kill()
        with node.running(tmp_path / "two", one.address) as two:
            other = await EventStore.connect(two.uri)
            await append(other, range(100, 160))
            await until(store.ping)
            with pytest.raises(OtherHistoryError):
                await store.holds(recorded)
            command = RecordInteraction.of(Interaction.from_proto(of("ana", 1)), datetime.now(UTC))
            with pytest.raises(UnavailableError, match="event store"):
                await Executor(store, History()).execute(Intent(command.stream, command, because=recorded))
            assert await other.read(command.stream) == []
            await other.close()
        await store.close()


async def test_the_front_door_forgets_what_it_knows_of_another_history(tmp_path: Path) -> None:
    """Also where a stream came to the revision that it had before, by other interactions."""
    async with front_door(tmp_path / "data") as door:
        await door.one(of("ana", 1))
        await _back_up(door.cluster, tmp_path / "backup.db")
        await door.many(of("ana", 2), *(of("béla", number) for number in range(5)))
        await door.cluster.stop("eventstore")
        await _replace_store(door.cluster, tmp_path / "backup.db")
        async with store_of(door.cluster) as store:
            beside = RecordInteraction.of(Interaction.from_proto(of("ana", 3)), datetime.now(UTC))
            elsewhere = await Executor(store, History()).execute(Intent(beside.stream, beside))
        assert elsewhere.revision == 1

        async def contradicted() -> grpc.aio.AioRpcError | None:
            error = await door.refusal(of("ana", 3, text="other words"))
            return None if error.code() is grpc.StatusCode.UNAVAILABLE else error

        error = await until(contradicted, deadline_s=20)
        assert info(error).reason == "CONTENT_DIFFERS"
        assert (await door.one(of("ana", 3))).status == DUPLICATE
        assert [result.status for result in await door.many(of("ana", 2), of("béla", 1))] == [RECORDED] * 2
        assert [len(await door.history(customer)) for customer in ("ana", "béla")] == [3, 1]
