"""The examples for subscribers do what docs/events.md says of them, against a real bus."""

import asyncio
import os
import sqlite3
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import nats
import pytest

from infra.local.cluster import Cluster, running
from infra.local.parts import ROOT
from recorrido.relay.v1 import relay_service_pb2 as pb
from recorrido.relay.v1 import relay_service_pb2_grpc as pb_grpc
from services.foundation.events import encode
from tests.support.relays import TYPE, append, assert_stream_equals_store, pending, store_of
from tests.support.wait import until

COUNT = 30


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with running(["relay"], data=tmp_path / "data") as started, store_of(started) as store:
        await append(store, range(COUNT))
        await assert_stream_equals_store(started, COUNT)
        yield started


async def started(cluster: Cluster, *command: str) -> asyncio.subprocess.Process:
    # A bare environment: an example may need nothing of ours.
    return await asyncio.create_subprocess_exec(
        *command,
        cwd=cluster.data,
        env={"PATH": os.environ["PATH"], "NATS": cluster.address("nats")},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def lines(cluster: Cluster, *command: str, within_s: float = 30) -> list[str]:
    process = await started(cluster, *command)
    out, err = await asyncio.wait_for(process.communicate(), within_s)
    assert process.returncode == 0, err.decode()
    return out.decode().splitlines()


def python(cluster: Cluster, *arguments: str) -> tuple[str, ...]:
    url = cluster.environment["RECORRIDO_NATS_URL"]
    return (sys.executable, str(ROOT / "examples/subscribe.py"), "--nats", url, *arguments)


def bash(*arguments: str) -> tuple[str, ...]:
    return ("bash", str(ROOT / "examples/subscribe.sh"), TYPE, "my-team", *arguments)


async def acknowledged(cluster: Cluster, durable: str) -> int:
    client = await nats.connect(cluster.environment["RECORRIDO_NATS_URL"])
    try:
        return int((await client.jetstream().consumer_info("RECORRIDO", durable)).ack_floor.stream_seq)
    finally:
        await client.close()


def order(numbers: range) -> list[int]:
    """The order in which `append` records: each seventh before the others of its hundred."""
    return [n for n in numbers if n % 7 == 0] + [n for n in numbers if n % 7]


async def test_python_handles_each_event_once_and_goes_on_where_it_was(cluster: Cluster) -> None:
    first = await lines(cluster, *python(cluster, "--limit", str(COUNT)))
    assert len(first) == COUNT
    assert all(line.startswith(f"new  {TYPE} customer-") for line in first)
    async with store_of(cluster) as store:
        await append(store, range(COUNT, COUNT + 5))
    assert len(await lines(cluster, *python(cluster, "--limit", "5"))) == 5
    # Another durable starts from the beginning; what was handled has no second effect.
    again = await lines(cluster, *python(cluster, "--durable", "other", "--limit", str(COUNT)))
    assert all(line.startswith("again") for line in again)
    with sqlite3.connect(cluster.data / "subscribe.sqlite") as state:
        bodies = [row[0].encode() for row in state.execute("SELECT body FROM seen ORDER BY rowid")]
    assert bodies == [encode(pending(n).event) for n in [*order(range(COUNT)), *order(range(COUNT, COUNT + 5))]]


async def test_python_reads_a_replay_to_its_end(cluster: Cluster) -> None:
    async with grpc.aio.insecure_channel(cluster.address("relay")) as channel:
        request = pb.RepublishRequest(replay_id="lost")
        assert [r async for r in pb_grpc.RelayServiceStub(channel).Republish(request)][-1].complete
    seen = await lines(cluster, *python(cluster, "--replay", "lost"))
    assert len(seen) == COUNT


async def test_bash_prints_each_event_and_goes_on_where_it_was(cluster: Cluster) -> None:
    seen = await lines(cluster, *bash("20"))
    found = [line.split("\t") for line in seen]
    assert [(type_name, event_id) for type_name, event_id, _, _ in found] == [
        (TYPE, str(pending(n).event_id)) for n in order(range(COUNT))[:20]
    ]
    assert [body.encode() for *_, body in found] == [encode(pending(n).event) for n in order(range(COUNT))[:20]]
    await until(lambda: _is(cluster, "my-team", 20))
    assert len(await lines(cluster, *bash(str(COUNT - 20)))) == COUNT - 20


async def _is(cluster: Cluster, durable: str, sequence: int) -> bool:
    return await acknowledged(cluster, durable) == sequence


async def test_bash_waits_for_what_is_not_there_yet(cluster: Cluster) -> None:
    process = await started(cluster, *bash(str(COUNT + 1)))
    assert process.stdout is not None
    for _ in range(COUNT):
        await asyncio.wait_for(process.stdout.readline(), 10)
    async with store_of(cluster) as store:
        await append(store, range(COUNT, COUNT + 1))
    line = await asyncio.wait_for(process.stdout.readline(), 10)
    assert str(pending(COUNT).event_id) in line.decode()
    assert await asyncio.wait_for(process.wait(), 10) == 0


async def test_bash_says_what_is_wrong(cluster: Cluster) -> None:
    await cluster.stop("relay")
    client = await nats.connect(cluster.environment["RECORRIDO_NATS_URL"])
    await client.jetstream().delete_stream("RECORRIDO")
    await client.close()
    process = await started(cluster, *bash())
    _, err = await asyncio.wait_for(process.communicate(), 10)
    assert process.returncode == 1
    assert b"stream not found" in err
