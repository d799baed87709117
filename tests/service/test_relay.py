"""The relay: every event once in the stream, in the store's order, with one relay or two, whatever goes away."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import nats
import pytest
from nats.js import api

from infra.local.cluster import Cluster, running
from infra.local.parts import ROOT
from recorrido.ingest.v1.events import Interaction, InteractionRecorded
from services.foundation.events import Pending, derived_id, encode, stream_name
from services.foundation.eventstore import ANY, EventStore, StreamAppend
from tests.support.truth import published, stored
from tests.support.wait import until

TYPE = "recorrido.ingest.v1.InteractionRecorded"


def pending(number: int) -> Pending:
    event = InteractionRecorded(interaction=Interaction(source="test", interaction_id=str(number)))
    return Pending(event, derived_id("test", str(number)), {"$correlationId": "a b/č"})


async def append(store: EventStore, numbers: range, batch: int = 100) -> None:
    for at in range(numbers.start, numbers.stop, batch):
        some = range(at, min(at + batch, numbers.stop))
        await store.append(
            [StreamAppend(stream_name("customer", f"c.{n % 7} *>é"), ANY, [pending(n)]) for n in some if n % 7 == 0]
            + [StreamAppend(stream_name("customer", f"other{n}"), ANY, [pending(n)]) for n in some if n % 7]
        )


@contextlib.asynccontextmanager
async def store_of(cluster: Cluster) -> AsyncIterator[EventStore]:
    store = await EventStore.connect(cluster.environment["RECORRIDO_EVENTSTORE_URI"])
    try:
        yield store
    finally:
        await store.close()


async def assert_stream_equals_store(cluster: Cluster, count: int) -> None:
    uri, url = cluster.environment["RECORRIDO_EVENTSTORE_URI"], cluster.environment["RECORRIDO_NATS_URL"]
    events = [str(e.id) for e in await stored(uri)]
    assert len(events) == count

    async def complete() -> bool:
        return len(await published(url)) >= count

    await until(complete, deadline_s=30)
    assert [m.event_id for m in await published(url)] == events


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


async def test_goes_on_after_being_killed(tmp_path: Path) -> None:
    async with running(["relay"], data=tmp_path) as cluster, store_of(cluster) as store:
        appending = asyncio.create_task(append(store, range(4_000)))
        for _ in range(3):
            await cluster.kill_and_restart("relay")
        await appending
        await assert_stream_equals_store(cluster, 4_000)


@pytest.mark.parametrize("part", ["nats", "eventstore"])
async def test_waits_for_a_part_that_is_down(tmp_path: Path, part: str) -> None:
    async with running(["relay"], data=tmp_path) as cluster:
        async with store_of(cluster) as store:
            await append(store, range(1_000))
        await cluster.stop(part)
        if part == "nats":
            async with store_of(cluster) as store:
                await append(store, range(1_000, 2_000))
        await cluster.start(part)
        if part == "eventstore":
            async with store_of(cluster) as store:
                await append(store, range(1_000, 2_000))
        await assert_stream_equals_store(cluster, 2_000)
        assert cluster.restarts("relay") == 0


async def test_a_second_relay_takes_over_without_gap_or_repetition(tmp_path: Path) -> None:
    async with running(["relay"], data=tmp_path) as cluster, store_of(cluster) as store:
        second = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "services.relay.main",
            cwd=ROOT,
            env={
                **os.environ,
                **cluster.environment,
                "RECORRIDO_LISTEN": "127.0.0.1:0",
                "PYTHONPATH": f"{ROOT}:{ROOT / 'proto/gen'}",
            },
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            await append(store, range(2_000))
            await cluster.stop("relay")
            await append(store, range(2_000, 3_000))
            await assert_stream_equals_store(cluster, 3_000)
        finally:
            second.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(second.wait(), 10) == 0


async def test_the_stream_refuses_whoever_does_not_follow_its_end(tmp_path: Path) -> None:
    """The fence itself: a batch behind a wrong sequence leaves nothing behind."""
    from services.foundation.bus import Bus, NotTheWriterError

    async with running(["nats"], data=tmp_path) as cluster:
        bus = await Bus.connect(cluster.environment["RECORRIDO_NATS_URL"], name="test")
        headers = {"recorrido-position": "7"}
        batch = [(f"{TYPE}.customer-{n}", b"{}", headers) for n in range(3)]
        assert await bus.publish(batch, expected_last=0) == 3
        with pytest.raises(NotTheWriterError):
            await bus.publish(batch, expected_last=0)
        last = await bus.last()
        assert (last.sequence, last.position) == (3, 7)
        await bus.close()


async def test_streams_keep_their_last_message(tmp_path: Path) -> None:
    """Where to go on is read from the last message, so no limit by age may take it away."""
    async with running(["relay"], data=tmp_path) as cluster:
        client = await nats.connect(cluster.environment["RECORRIDO_NATS_URL"])
        config = (await client.jetstream().stream_info("RECORRIDO")).config
        await client.close()
        assert not config.max_age
        assert config.discard == api.DiscardPolicy.OLD
        assert config.storage == api.StorageType.FILE
