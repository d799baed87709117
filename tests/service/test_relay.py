"""The relay: every event once in the stream, in the store's order, with one relay or two, whatever goes away."""

import asyncio
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from signal import SIGCONT, SIGSTOP
from typing import Any

import grpc
import nats
import pytest
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc
from kurrentdbclient import StreamState
from msgspec import structs
from nats.js import api

from infra.local.cluster import Cluster, running
from recorrido.relay.v1 import relay_service_pb2 as pb
from services.foundation.bus import Bus, NotTheWriterError, headers_of, subject
from services.foundation.events import CAUSATION_ID, CORRELATION_ID, Place, Recorded, encode, stream_name
from services.foundation.eventstore import ANY, EventStore, StreamAppend
from services.relay import relay as relay_module
from services.relay.relay import PUBLISHING, STALLED_S, Relay, State
from tests.support.otlp import receiver
from tests.support.relays import TYPE, append, assert_stream_equals_store, pending, second_relay, status, store_of
from tests.support.wait import until

#: From the death of the publisher to the next event on the bus; it takes under one, two where it is frozen.
HANDOVER_S = 5.0


async def test_publishes_cloud_events_on_their_subjects(tmp_path: Path) -> None:
    async with running(["relay"], data=tmp_path) as cluster, store_of(cluster) as store:
        await append(store, range(7, 8))
        await assert_stream_equals_store(cluster, 1)
        client = await nats.connect(cluster.environment["RECORRIDO_NATS_URL"])
        message = await client.jetstream().get_msg("RECORRIDO", seq=1)
        await client.close()
        headers = dict(message.headers or {})
        assert message.subject == f"{TYPE}.customer-c%2E0%20%2A%3E%C3%A9"
        assert message.data == encode(pending(7).event)
        assert headers["ce-specversion"] == "1.0"
        assert headers["ce-id"] == headers["Nats-Msg-Id"] == str(pending(7).event_id)
        assert headers["ce-type"] == TYPE
        assert headers["ce-source"] == "/recorrido/ingest"
        assert headers["recorrido-revision"] == "0"
        assert headers["recorrido-correlation-id"] == "a b/%C4%8D"
        assert headers["traceparent"].startswith("00-")


async def test_a_stream_id_of_any_length_has_a_subject(tmp_path: Path) -> None:
    """NATS ends the connection of whoever names a subject longer than 4 KiB: one such event would stop all."""
    long = [stream_name("customer", "ž" * 2_000 + end) for end in "ab"]
    assert all(len(subject(TYPE, stream)) < 1_100 for stream in long)
    assert subject(TYPE, long[0]) != subject(TYPE, long[1])
    async with running(["relay"], data=tmp_path) as cluster, store_of(cluster) as store:
        await store.append([StreamAppend(stream, ANY, [pending(n)]) for n, stream in enumerate(long)])
        # A header takes no more than 64 KiB of what others wrote into an event's metadata either.
        told = structs.replace(pending(3), metadata={CORRELATION_ID: "ž" * 50_000, CAUSATION_ID: "c" * 70_000})
        await store.append([StreamAppend("customer-told", ANY, [told])])
        await append(store, range(7, 14))
        await assert_stream_equals_store(cluster, 10)


async def test_goes_on_after_being_killed(tmp_path: Path) -> None:
    async with running(["relay"], data=tmp_path) as cluster, store_of(cluster) as store:
        appending = asyncio.create_task(append(store, range(4_000)))
        for _ in range(3):
            await cluster.kill_and_restart("relay")
        await appending
        await assert_stream_equals_store(cluster, 4_000)


# -- parts that are down -------------------------------------------------------------------------------------------


async def healthy(cluster: Cluster) -> bool:
    async with grpc.aio.insecure_channel(cluster.address("relay")) as channel:
        answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


@pytest.mark.parametrize("part", ["nats", "eventstore"])
async def test_waits_for_a_part_that_is_down_and_says_so(tmp_path: Path, part: str) -> None:
    async def unhealthy() -> bool:
        return not await healthy(cluster)

    async def back() -> bool:
        return await healthy(cluster)

    async with running(["relay"], data=tmp_path) as cluster:
        async with store_of(cluster) as store:
            await append(store, range(1_000))
        assert await healthy(cluster)
        await cluster.stop(part)
        await until(unhealthy, deadline_s=15)
        if part == "nats":
            async with store_of(cluster) as store:
                await append(store, range(1_000, 2_000))
        await cluster.start(part)
        if part == "eventstore":
            async with store_of(cluster) as store:
                await append(store, range(1_000, 2_000))
        await until(back, deadline_s=15)
        await assert_stream_equals_store(cluster, 2_000)
        assert cluster.restarts("relay") == 0


async def test_an_emptied_bus_is_filled_again(tmp_path: Path) -> None:
    """The store is the truth: who loses the whole bus loses nothing."""
    async with running(["relay"], data=tmp_path) as cluster, store_of(cluster) as store:
        await append(store, range(300))
        await assert_stream_equals_store(cluster, 300)
        client = await nats.connect(cluster.environment["RECORRIDO_NATS_URL"])
        await client.jetstream().delete_stream("RECORRIDO")
        await client.close()
        await cluster.kill_and_restart("relay")
        await append(store, range(300, 400))
        await assert_stream_equals_store(cluster, 400)


# -- two relays ----------------------------------------------------------------------------------------------------


async def test_a_standby_publishes_nothing_while_the_first_does(tmp_path: Path) -> None:
    async with running(["relay"], data=tmp_path) as cluster, store_of(cluster) as store:
        await append(store, range(100))
        async with second_relay(cluster) as second:
            await append(store, range(100, 5_000))
            await assert_stream_equals_store(cluster, 5_000)
            first = await status(cluster.address("relay"))
            assert (first.state, first.published, first.refused) == (pb.RELAY_STATE_PUBLISHING, 5_000, 0)
            other = await second.status()
            assert (other.state, other.published, other.batches, other.refused, other.takeovers) == (
                pb.RELAY_STATE_STANDING_BY,
                *(0, 0, 0, 0),
            )


async def moved(cluster: Cluster, beyond: int) -> bool:
    client = await nats.connect(cluster.environment["RECORRIDO_NATS_URL"])
    try:
        return (await client.jetstream().stream_info("RECORRIDO")).state.last_seq > beyond
    finally:
        await client.close()


async def standing_by(address: str) -> bool:
    return (await status(address)).state == pb.RELAY_STATE_STANDING_BY


async def until_publishing(address: str) -> float:
    """Wait until the relay at `address`, which has published nothing yet, publishes; return the seconds that took."""
    since = time.monotonic()

    async def publishing() -> bool:
        return (await status(address)).published > 0

    await until(publishing, deadline_s=30, ignoring=(grpc.aio.AioRpcError,))
    return time.monotonic() - since


async def flood(store: EventStore, stop: asyncio.Event) -> int:
    """Append until told to stop; return how many."""
    number = 0
    while not stop.is_set():
        await append(store, range(number, number + 100))
        number += 100
    return number


async def test_a_publisher_that_dies_under_load_is_replaced_in_seconds(tmp_path: Path) -> None:
    async with (
        running(["relay"], data=tmp_path) as cluster,
        store_of(cluster) as store,
        second_relay(cluster) as second,
    ):
        stop = asyncio.Event()
        flooding = asyncio.create_task(flood(store, stop))
        await until(lambda: moved(cluster, 500), deadline_s=30)
        cluster.kill("relay")
        took = [await until_publishing(second.address)]
        # The other way round, and worse: it does not even hang up.
        await until(lambda: standing_by(cluster.address("relay")), deadline_s=30, ignoring=(grpc.aio.AioRpcError,))
        second.process.send_signal(SIGSTOP)
        took.append(await until_publishing(cluster.address("relay")))
        second.process.send_signal(SIGCONT)
        stop.set()
        await assert_stream_equals_store(cluster, await flooding, deadline_s=60)
        assert max(took) < HANDOVER_S, took


async def test_the_connection_of_a_killed_publisher_tells_at_once(tmp_path: Path) -> None:
    """The supervisor needs longer to start a relay again than the standby to notice that it died."""
    async with (
        running(["relay"], data=tmp_path) as cluster,
        store_of(cluster) as store,
        second_relay(cluster) as second,
    ):
        await append(store, range(1_000))
        await assert_stream_equals_store(cluster, 1_000)
        cluster.kill("relay")

        async def publishing() -> bool:
            return (await second.status()).state == pb.RELAY_STATE_PUBLISHING

        await until(publishing, deadline_s=HANDOVER_S)
        assert (await second.status()).takeovers == 1
        await append(store, range(1_000, 2_000))
        await assert_stream_equals_store(cluster, 2_000)
        assert (await second.status()).published == 1_000


async def test_a_publisher_thawed_after_its_replacement_publishes_nothing_twice(tmp_path: Path) -> None:
    async with (
        running(["relay"], data=tmp_path) as cluster,
        store_of(cluster) as store,
        second_relay(cluster) as second,
    ):
        await append(store, range(500))
        await assert_stream_equals_store(cluster, 500)
        cluster.kill("relay", SIGSTOP)
        await append(store, range(500, 1_000))
        await assert_stream_equals_store(cluster, 1_000)
        assert (await second.status()).published == 500
        cluster.kill("relay", SIGCONT)

        # It read those 500 events too, and the stream refused them.
        await until(lambda: standing_by(cluster.address("relay")), deadline_s=15)
        await append(store, range(1_000, 1_500))
        await assert_stream_equals_store(cluster, 1_500)
        assert (await status(cluster.address("relay"))).published == 500


async def test_a_publisher_that_only_says_so_is_not_believed(tmp_path: Path) -> None:
    async with running(["nats", "eventstore"], data=tmp_path) as cluster, store_of(cluster) as store:
        bus = await Bus.connect(cluster.environment["RECORRIDO_NATS_URL"], name="test")
        async with bus.answering(PUBLISHING), second_relay(cluster):
            await append(store, range(10))
            await assert_stream_equals_store(cluster, 10, deadline_s=STALLED_S + 10)
        await bus.close()


async def test_who_stands_by_is_healthy_while_it_could_take_over(tmp_path: Path) -> None:
    async with running(["relay"], data=tmp_path) as cluster, store_of(cluster) as store:

        async def is_ready(ready: bool) -> bool:  # noqa: FBT001 - the one thing that is asked
            state = (await status(cluster.address("relay"))).state
            return await healthy(cluster) is ready and (state == pb.RELAY_STATE_STANDING_BY) is ready

        async def until_ready(*, ready: bool = True) -> None:
            await until(lambda: is_ready(ready), deadline_s=15, ignoring=(grpc.aio.AioRpcError,))

        await append(store, range(10))
        await assert_stream_equals_store(cluster, 10)
        bus = await Bus.connect(cluster.environment["RECORRIDO_NATS_URL"], name="test")
        client = await nats.connect(cluster.environment["RECORRIDO_NATS_URL"])
        place = (await bus.last()).place
        assert place is not None
        # Of a history that is not the store's, which whoever publishes would have to go on from.
        other = Recorded(TYPE, b"{}", {}, uuid.uuid4(), place.stream, place.revision, place.position, datetime.now(UTC))
        poison = {"subject": subject(TYPE, place.stream), "payload": b"{}", "headers": headers_of(other, {})}

        # It was not able to publish; another publishes then.
        at = (await client.jetstream().publish(**poison)).seq
        await append(store, range(10, 11))
        await until_ready(ready=False)
        async with bus.answering(PUBLISHING):
            await client.jetstream().delete_msg("RECORRIDO", at)
            await until_ready()
            # Nor could it take over.
            at = (await client.jetstream().publish(**poison)).seq
            await until_ready(ready=False)
            await client.jetstream().delete_msg("RECORRIDO", at)
            await until_ready()
            await cluster.stop("eventstore")
            await until_ready(ready=False)
            await cluster.start("eventstore")
            await until_ready()
        await assert_stream_equals_store(cluster, 11)
        await client.close()
        await bus.close()


async def test_who_stands_by_could_not_take_over_while_the_bus_cannot_take_what_comes_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay_module, "RECHECK_EVERY_S", 0.05)
    monkeypatch.setattr(relay_module, "WATCH_EVERY_S", 0.05)
    told: list[bool] = []
    async with running(["nats", "eventstore"], data=tmp_path) as cluster, store_of(cluster) as store:
        buses = [await Bus.connect(cluster.environment["RECORRIDO_NATS_URL"], name="test") for _ in range(2)]
        relay = Relay(store, buses[0])
        task = asyncio.create_task(relay.run(able=told.append))
        await append(store, range(10))
        await assert_stream_equals_store(cluster, 10)
        long = "customer-" + "ž" * 11_000
        await store.append([StreamAppend(long, ANY, [pending(10)])])
        await until(lambda: not told[-1])
        async with buses[1].answering(PUBLISHING):
            await until(lambda: relay.status.state is State.STANDING_BY)
            assert not told[-1]
            # What its log says is to be done.
            await store._client.tombstone_stream(long, current_version=StreamState.ANY)
            async with grpc.aio.insecure_channel(cluster.address("eventstore")) as channel:
                scavenge: Any = channel.unary_unary("/event_store.client.operations.Operations/StartScavenge")
                await scavenge(b"", timeout=5)
            await until(lambda: told[-1])
            assert relay.status.state is State.STANDING_BY
        task.cancel()
        await asyncio.wait([task])
        for bus in buses:
            await bus.close()


async def test_who_stands_by_tells_once_that_the_store_is_away(tmp_path: Path) -> None:
    looks = 0

    class Looking(EventStore):
        async def check(self, place: Place | None) -> None:
            nonlocal looks
            looks += 1
            await super().check(place)

    def told(logs: Sequence[Mapping[str, Any]]) -> int:
        return [log["event"] for log in logs].count("publishing waits")

    async with running(["nats", "eventstore"], data=tmp_path) as cluster:
        bus, another = [await Bus.connect(cluster.environment["RECORRIDO_NATS_URL"], name="test") for _ in range(2)]
        store = await Looking.connect(cluster.environment["RECORRIDO_EVENTSTORE_URI"])
        await append(store, range(1))
        (event,) = [each async for each in store.read_all(None)]
        await bus.publish([(subject(TYPE, event.stream), event.data, headers_of(event, {}))], expected_last=0)
        relay = Relay(store, bus)
        async with another.answering(PUBLISHING):
            # The server knows of it before what comes behind it on the same connection.
            assert await another.ping()
            with structlog.testing.capture_logs() as logs:
                task = asyncio.create_task(relay.run())
                await until(lambda: relay.status.state is State.STANDING_BY)
                await cluster.stop("eventstore")
                await until(lambda: relay.status.state is State.WAITING)
                enough = looks + 2
                await until(lambda: looks >= enough)
                assert told(logs) == 1
                await cluster.start("eventstore")
                await until(lambda: relay.status.state is State.STANDING_BY)
                await cluster.stop("eventstore")
                await until(lambda: told(logs) == 2)
            task.cancel()
            await asyncio.wait([task])
        await store.close()
        for each in (bus, another):
            await each.close()


async def test_the_stream_refuses_whoever_does_not_follow_its_end(tmp_path: Path) -> None:
    """The fence itself: a batch behind a wrong sequence leaves nothing behind."""
    async with running(["nats"], data=tmp_path) as cluster:
        bus = await Bus.connect(cluster.environment["RECORRIDO_NATS_URL"], name="test")
        events = [
            Recorded(TYPE, b"{}", {}, pending(n).event_id, "customer-ž", n, n + 5, datetime.now(UTC)) for n in range(3)
        ]
        batch = [(f"{TYPE}.customer-{e.revision}", e.data, headers_of(e, {})) for e in events]
        assert await bus.publish(batch, expected_last=0) == 3
        with pytest.raises(NotTheWriterError):
            await bus.publish(batch, expected_last=0)
        last = await bus.last()
        assert (last.sequence, last.place, last.messages) == (3, events[-1].place, 3)
        await bus.close()


async def test_two_relays_that_both_believe_to_be_the_only_one(tmp_path: Path) -> None:
    """Exactly once must not hang on the standing by: here nobody asks, and both publish all the time."""

    class Alone(Relay):
        async def _stand_by(self, _able: Callable[[bool], None]) -> str:
            return "for the test"

    async with running(["nats", "eventstore"], data=tmp_path) as cluster, store_of(cluster) as store:
        buses = [await Bus.connect(cluster.environment["RECORRIDO_NATS_URL"], name="test") for _ in range(2)]
        relays = [Alone(store, bus) for bus in buses]
        tasks = [asyncio.create_task(relay.run()) for relay in relays]
        await append(store, range(4_000), batch=20)
        await assert_stream_equals_store(cluster, 4_000)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for bus in buses:
            await bus.close()
        assert sum(relay.status.published for relay in relays) == 4_000
        assert sum(relay.status.refused for relay in relays) > 0, "they did not meet: this run proves nothing"


# -- what it tells -------------------------------------------------------------------------------------------------


async def test_the_lag_is_what_the_store_has_and_the_stream_has_not(tmp_path: Path) -> None:
    async with running(["relay"], data=tmp_path) as cluster, store_of(cluster) as store:
        await append(store, range(10))
        await assert_stream_equals_store(cluster, 10)

        # Somebody claims to publish and does not, so that the lag stays.
        bus = await Bus.connect(cluster.environment["RECORRIDO_NATS_URL"], name="test")
        async with bus.answering(PUBLISHING):
            cluster.kill("relay")
            await cluster.until_ready("relay")
            for count in (50, 5_000):
                await append(store, range(10, 10 + count))

                async def seen(count: int = count) -> pb.GetStatusResponse | None:
                    found = await status(cluster.address("relay"))
                    # Exact where it is small; else by the density of the first ones, which is even here.
                    return found if abs(found.lag_events - count) <= count * (count > 200) * 0.02 else None

                found = await until(seen, deadline_s=30, ignoring=(grpc.aio.AioRpcError,))
                assert found is not None
                assert found.state == pb.RELAY_STATE_STANDING_BY
                assert 0 < found.lag_seconds < 60

        async def none() -> bool:
            found = await status(cluster.address("relay"))
            return found.lag_events == 0 and found.lag_seconds == 0

        await assert_stream_equals_store(cluster, 5_010)
        await until(none)
        await bus.close()


async def test_its_metrics_are_sent(tmp_path: Path) -> None:
    async with receiver() as otlp:
        telemetry = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": otlp.endpoint,
            "OTEL_EXPORTER_OTLP_INSECURE": "true",
            "OTEL_METRIC_EXPORT_INTERVAL": "200",
        }
        async with running(["relay"], data=tmp_path, env=telemetry) as cluster, store_of(cluster) as store:
            await append(store, range(10))
            names = ("published", "batches", "takeovers", "publishing", "lag.events", "lag.seconds")
            expected = {("relay", f"recorrido.relay.{name}") for name in names}
            await until(lambda: expected <= otlp.metrics, deadline_s=15)


async def test_streams_keep_their_last_message(tmp_path: Path) -> None:
    """Where to go on is read from the last message, so no limit by age may take it away."""
    async with running(["relay"], data=tmp_path) as cluster:
        client = await nats.connect(cluster.environment["RECORRIDO_NATS_URL"])
        config = (await client.jetstream().stream_info("RECORRIDO")).config
        await client.close()
        assert not config.max_age
        assert config.discard == api.DiscardPolicy.OLD
        assert config.storage == api.StorageType.FILE


async def test_a_last_message_that_was_removed_does_not_stop_it(tmp_path: Path) -> None:
    async with running(["relay"], data=tmp_path) as cluster, store_of(cluster) as store:
        await append(store, range(10))
        await assert_stream_equals_store(cluster, 10)
        client = await nats.connect(cluster.environment["RECORRIDO_NATS_URL"])
        await client.jetstream().delete_msg("RECORRIDO", 10)
        await client.close()
        await cluster.kill_and_restart("relay")
        await append(store, range(10, 20))
        # The store still holds it, so it comes again.
        await assert_stream_equals_store(cluster, 20)
