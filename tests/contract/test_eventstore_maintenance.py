"""Backup and scavenge while the node serves."""

import asyncio
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from kurrentdbclient import AsyncKurrentDBClient, KurrentDBClient, NewEvent, StreamState
from kurrentdbclient import exceptions as refusals

from infra.eventstore import messages
from tests.support import eventstore

ANY = StreamState.ANY
SECRET = b"Ana Novak, +386 40 123 456"

pytestmark = pytest.mark.skipif(eventstore.is_real_server(), reason="about our own node")


@pytest.fixture
def node(tmp_path: Path) -> Iterator[eventstore.Node]:
    with eventstore.running(tmp_path / "data") as node:
        yield node


@pytest.fixture
def client(node: eventstore.Node) -> Iterator[KurrentDBClient]:
    client = KurrentDBClient(node.uri)
    yield client
    client.close()


def new(count: int, data: bytes = b"x" * 1000) -> list[NewEvent]:
    return [NewEvent(type="Recorded", data=data) for _ in range(count)]


def scavenge(node: eventstore.Node, client: KurrentDBClient) -> str:
    """Start a scavenge and wait for its end; gives back its result."""
    with grpc.insecure_channel(node.address) as channel:
        start: Any = channel.unary_unary(
            "/event_store.client.operations.Operations/StartScavenge",
            response_deserializer=messages.ScavengeResp.FromString,
        )
        scavenge_id = start(b"", timeout=5).scavenge_id
    with client.subscribe_to_stream(f"$scavenges-{scavenge_id}", timeout=30) as progress:
        done = next(event for event in progress if event.type == "$scavengeCompleted")
    return done.data.decode()


def on_disk(node: eventstore.Node, needle: bytes) -> bool:
    return any(needle in path.read_bytes() for path in node.data.iterdir())


def test_what_was_deleted_is_gone_from_the_disk(node: eventstore.Node, client: KurrentDBClient) -> None:
    client.append_to_stream("customer-1", current_version=ANY, events=new(300, SECRET))
    client.append_to_stream("customer-2", current_version=ANY, events=new(300, SECRET))
    client.append_to_stream("customer-3", current_version=ANY, events=new(300, b"stays"))
    assert on_disk(node, SECRET)
    client.delete_stream("customer-1", current_version=ANY)
    client.tombstone_stream("customer-2", current_version=ANY)

    assert '"eventsRemoved": 600' in scavenge(node, client)

    assert not on_disk(node, SECRET)
    assert len(client.get_stream("customer-3")) == 300
    kept = [event.type for event in client.read_all(filter_exclude=()) if event.stream_name.startswith("customer-")]
    assert kept == ["Recorded"] * 300 + ["$streamDeleted"]
    with pytest.raises(refusals.NotFoundError):
        client.get_stream("customer-1")
    client.append_to_stream("customer-1", current_version=ANY, events=new(1))
    assert client.get_current_version("customer-1") == 300, "the numbering survives"
    with pytest.raises(refusals.StreamIsDeletedError):
        client.get_stream("customer-2")


def test_retention_is_carried_out_and_space_given_back(node: eventstore.Node, client: KurrentDBClient) -> None:
    for _ in range(20):
        client.append_to_stream("s", current_version=ANY, events=new(200))
    client.set_stream_metadata("s", metadata={"$maxCount": 5})
    size = sum(path.stat().st_size for path in node.data.iterdir())

    assert '"result": "Success"' in scavenge(node, client)

    assert sum(path.stat().st_size for path in node.data.iterdir()) < size / 10
    assert [event.stream_position for event in client.get_stream("s")] == list(range(3995, 4000))
    assert len([event for event in client.read_all() if event.stream_name == "s"]) == 5


async def test_a_scavenge_disturbs_nobody(node: eventstore.Node) -> None:
    client = AsyncKurrentDBClient(node.uri)
    for n in range(20):
        await client.append_to_stream(f"old-{n}", current_version=ANY, events=new(200))
        await client.delete_stream(f"old-{n}", current_version=ANY)
    done = asyncio.Event()

    async def write(stream: str) -> int:
        count = 0
        while not done.is_set():
            await client.append_to_stream(stream, current_version=ANY, events=new(5))
            count += 5
        return count

    writers = [asyncio.create_task(write(f"new-{n}")) for n in range(4)]
    result = await asyncio.to_thread(lambda: scavenge(node, KurrentDBClient(node.uri)))
    done.set()
    counts = await asyncio.gather(*writers)

    assert '"eventsRemoved": 4000' in result
    for n, count in enumerate(counts):
        assert len(await client.get_stream(f"new-{n}")) == count
    await client.close()


def back_up(node: eventstore.Node, target: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        eventstore.command(node.data, "127.0.0.1:0", "--backup", str(target)),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        cwd=eventstore.REPOSITORY,
    )


async def test_a_backup_while_running_is_a_store(node: eventstore.Node, tmp_path: Path) -> None:
    client = AsyncKurrentDBClient(node.uri)
    before = new(500)
    await client.append_to_stream("before", current_version=ANY, events=before)
    target = tmp_path / "backup.db"
    backup = asyncio.create_task(asyncio.to_thread(back_up, node, target))
    while not backup.done():
        await client.append_to_stream("meanwhile", current_version=ANY, events=new(5))
    result = await backup
    assert result.returncode == 0, result.stderr
    await client.close()

    restored = tmp_path / "restored"
    restored.mkdir()
    shutil.copy(target, restored / "events.db")
    with eventstore.running(restored) as copy:
        reader = KurrentDBClient(copy.uri)
        assert [event.id for event in reader.get_stream("before")] == [event.id for event in before]
        assert reader.append_to_stream("before", current_version=499, events=new(1))
        reader.close()

    again = back_up(node, target)
    assert again.returncode == 1
    assert "a backup never overwrites" in again.stderr
