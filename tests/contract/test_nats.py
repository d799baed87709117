"""NATS as the services find it: JetStream on disk, its limits, what survives."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import nats
import pytest
from nats.js.api import StreamConfig

from infra.nats.__main__ import MAX_PAYLOAD_BYTES
from tests.support.cluster import Cluster, running


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with running(["nats"], data=tmp_path) as cluster:
        yield cluster


async def test_a_message_may_be_8_mib_and_no_more(cluster: Cluster) -> None:
    client = await nats.connect(cluster.environment["RECORRIDO_NATS_URL"])
    stream = client.jetstream()
    await stream.add_stream(StreamConfig(name="large", subjects=["large"]))
    assert client.max_payload == MAX_PAYLOAD_BYTES == 8 * 1024 * 1024
    await stream.publish("large", b"x" * MAX_PAYLOAD_BYTES)
    with pytest.raises(nats.errors.MaxPayloadError):
        await stream.publish("large", b"x" * (MAX_PAYLOAD_BYTES + 1))
    await client.close()


async def test_every_write_is_synced_to_disk(cluster: Cluster) -> None:
    host, port = cluster.address("nats_monitor").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET /jsz HTTP/1.0\r\n\r\n")
    body = (await reader.read()).partition(b"\r\n\r\n")[2]
    writer.close()
    config = json.loads(body)["config"]
    assert config["sync_always"] is True
    assert Path(config["store_dir"]).is_relative_to(cluster.data)


async def test_acknowledged_messages_survive_a_kill_and_a_restart(tmp_path: Path) -> None:
    async with running(["nats"], data=tmp_path) as cluster:
        client = await nats.connect(cluster.environment["RECORRIDO_NATS_URL"])
        stream = client.jetstream()
        await stream.add_stream(StreamConfig(name="kept", subjects=["kept"]))
        for number in range(50):
            await stream.publish("kept", str(number).encode())
        await cluster.kill_and_restart("nats")
        await client.close()
    async with running(["nats"], data=tmp_path) as cluster:
        client = await nats.connect(cluster.environment["RECORRIDO_NATS_URL"])
        info = await client.jetstream().stream_info("kept")
        assert info.state.messages == 50
        await client.close()
