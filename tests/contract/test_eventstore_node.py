"""The node as a process: readiness, durability, refusal to start on what is not sound."""

import asyncio
import resource
import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from kurrentdbclient import AsyncKurrentDBClient, KurrentDBClient, NewEvent, StreamState
from kurrentdbclient import exceptions as refusals
from kurrentdbclient.protos.v1 import shared_pb2, streams_pb2

from infra.eventstore.limits import Limits
from tests.support import eventstore

ANY = StreamState.ANY

pytestmark = pytest.mark.skipif(eventstore.is_real_server(), reason="about our own node")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def node(data: Path) -> Iterator[eventstore.Node]:
    with eventstore.running(data) as node:
        yield node


def new(count: int) -> list[NewEvent]:
    return [NewEvent(type="Recorded", data=b"x" * 100) for _ in range(count)]


def run(data: Path, *options: str, listen: str = "127.0.0.1:0") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        eventstore.command(data, listen, *options),
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
        cwd=eventstore.REPOSITORY,
    )


def test_health_and_features_and_gossip(node: eventstore.Node) -> None:
    with grpc.insecure_channel(node.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        answer = health.Check(health_pb2.HealthCheckRequest(), timeout=5)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        features: Any = channel.unary_unary("/event_store.client.server_features.ServerFeatures/GetSupportedMethods")
        assert b"appendrecords" in features(b"", timeout=5)
    client = KurrentDBClient(f"esdb+discover://{node.address}?tls=false")
    client.append_to_stream("s", current_version=ANY, events=new(1))
    client.close()


async def test_a_call_is_answered_when_its_request_has_ended(node: eventstore.Node) -> None:
    """Who ends it before that has gRPC reset the stream, of which the Rust client makes UNAVAILABLE."""
    client = AsyncKurrentDBClient(node.uri)
    await client.append_to_stream("s", current_version=ANY, events=new(1))
    await client.close()
    options = streams_pb2.ReadReq.Options(
        stream=streams_pb2.ReadReq.Options.StreamOptions(
            stream_identifier=shared_pb2.StreamIdentifier(stream_name=b"s"), start=shared_pb2.Empty()
        ),
        count=10,
        no_filter=shared_pb2.Empty(),
        uuid_option=streams_pb2.ReadReq.Options.UUIDOption(string=shared_pb2.Empty()),
    )
    request = streams_pb2.ReadReq(options=options).SerializeToString()
    read = "/event_store.client.streams.Streams/Read"
    async with grpc.aio.insecure_channel(node.address) as channel:
        open_ended: Any = channel.stream_stream(read)()
        await open_ended.write(request)
        answer = asyncio.ensure_future(open_ended.read())
        # What the node sent before the end of a later call on the same connection is here then.
        reading: Any = channel.unary_stream(read)
        for _ in range(3):
            assert len([message async for message in reading(request)]) == 1
        assert not answer.done()
        await open_ended.done_writing()
        assert await answer
        assert await open_ended.read() == grpc.aio.EOF
        nothing: Any = channel.stream_stream(read)()
        await nothing.done_writing()
        assert await nothing.code() == grpc.StatusCode.INTERNAL
        twice: Any = channel.stream_stream(read)()
        await twice.write(request)
        await twice.write(request)
        assert await twice.code() == grpc.StatusCode.INTERNAL


@pytest.mark.parametrize(
    "method", ["event_store.client.streams.Streams/Read", "kurrentdb.protocol.v2.streams.StreamsService/AppendRecords"]
)
def test_a_message_that_is_too_large_is_refused_and_no_fault_of_the_node(tmp_path: Path, method: str) -> None:
    told = tmp_path / "stderr"
    with told.open("wb") as stderr:
        process = subprocess.Popen(
            eventstore.command(tmp_path / "data"), stdout=subprocess.PIPE, stderr=stderr, text=True
        )
    assert process.stdout is not None
    ready = eventstore.READY.match(process.stdout.readline())
    assert ready
    node = eventstore.Node(process, ready["address"], tmp_path)
    options = [("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(node.address, options) as channel:
        call: Any = channel.unary_stream(f"/{method}")
        with pytest.raises(grpc.RpcError) as refused:
            list(call(b"\x0a" * (Limits().max_message_bytes + 1)))
        assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert node.stop() == 0
    assert told.read_text() == ""


def test_what_is_not_there_says_so(node: eventstore.Node) -> None:
    client = KurrentDBClient(node.uri)
    with pytest.raises(refusals.GrpcError, match="not implemented by this single-node event store"):
        client.get_projection_statistics(name="x")
    client.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_it_stops_promptly_with_subscribers_connected(node: eventstore.Node, number: signal.Signals) -> None:
    client = AsyncKurrentDBClient(node.uri)
    subscription = await client.subscribe_to_all()
    node.process.send_signal(number)
    started = time.monotonic()
    assert await asyncio.to_thread(node.process.wait, 5) == 0
    assert time.monotonic() - started < 3
    with pytest.raises((refusals.KurrentDBClientError, StopAsyncIteration)):
        await anext(subscription)
    await client.close()


def test_everything_is_there_after_a_restart(data: Path) -> None:
    events = new(10)
    with eventstore.running(data) as node:
        client = KurrentDBClient(node.uri)
        position = client.append_to_stream("s", current_version=ANY, events=events)
        client.set_stream_metadata("t", metadata={"$maxCount": 1})
        client.close()
        assert node.stop() == 0
    with eventstore.running(data) as node:
        client = KurrentDBClient(node.uri)
        assert [event.id for event in client.get_stream("s")] == [event.id for event in events]
        assert client.append_to_stream("s", current_version=ANY, events=events) == position, "still a repeat"
        assert client.append_to_stream("s", current_version=9, events=new(1)) > position
        client.append_to_stream("t", current_version=ANY, events=new(3))
        assert len(client.get_stream("t")) == 1
        client.close()


@pytest.mark.parametrize("count", [100, 1000])
async def test_every_acknowledged_event_survives_a_kill(data: Path, count: int) -> None:
    """Sixteen writers append until the process is killed between two acknowledgements."""
    enough = asyncio.Event()
    acknowledged: list[tuple[str, NewEvent]] = []
    with eventstore.running(data) as node:
        client = AsyncKurrentDBClient(node.uri)

        async def write(stream: str) -> None:
            while True:
                events = new(3)
                await client.append_to_stream(stream, current_version=ANY, events=events)
                acknowledged.extend((stream, event) for event in events)
                if len(acknowledged) >= count:
                    enough.set()

        writers = [asyncio.create_task(write(f"w-{n}")) for n in range(16)]
        async with asyncio.timeout(30):
            await enough.wait()
        node.kill()
        for writer in writers:
            writer.cancel()
        await asyncio.gather(*writers, return_exceptions=True)
        await client.close()

    with eventstore.running(data) as node:
        reader = KurrentDBClient(node.uri)
        stored = [(event.stream_name, event.id) for event in reader.read_all()]
        assert len(set(stored)) == len(stored)
        assert {(stream, event.id) for stream, event in acknowledged} <= set(stored)
        for n in range(16):
            positions = [event.stream_position for event in reader.get_stream(f"w-{n}")]
            assert positions == list(range(len(positions)))
        # The answer that the kill swallowed: repeating the last append of each writer changes nothing.
        for stream, event in acknowledged[-50:]:
            reader.append_to_stream(stream, current_version=ANY, events=event)
        assert len(list(reader.read_all())) == len(stored)
        reader.close()


async def test_sixteen_writers_to_the_same_streams_keep_every_stream_whole(node: eventstore.Node) -> None:
    client = AsyncKurrentDBClient(node.uri)
    won = 0

    async def race(stream: str) -> None:
        nonlocal won
        for _ in range(10):
            version = await client.get_current_version(stream)
            try:
                await client.append_to_stream(stream, current_version=version, events=new(1))
                won += 1
            except refusals.WrongCurrentVersionError:
                continue

    await asyncio.gather(*(race(f"s-{n % 3}") for n in range(16)))
    streams = [await client.get_stream(f"s-{n}") for n in range(3)]
    assert sum(map(len, streams)) == won
    for stream in streams:
        assert [event.stream_position for event in stream] == list(range(len(stream)))
    await client.close()


def test_a_taken_port_is_named(node: eventstore.Node, tmp_path: Path) -> None:
    result = run(tmp_path / "other", listen=node.address)
    assert result.returncode == 3
    assert result.stderr.splitlines()[-1].startswith(f"event store: cannot listen on {node.address}")


def test_a_data_directory_in_use_is_named(node: eventstore.Node) -> None:
    result = run(node.data)
    assert result.returncode == 4
    (line,) = result.stderr.splitlines()
    assert f"in use by another event store node (process {node.process.pid})" in line


def test_a_disk_that_is_full_loses_nothing_and_works_again_with_space(node: eventstore.Node) -> None:
    client = KurrentDBClient(node.uri)
    kept: list[NewEvent] = []

    def append(events: list[NewEvent]) -> None:
        client.append_to_stream("s", current_version=ANY, events=events)
        kept.extend(events)

    append(new(10))
    largest = max(path.stat().st_size for path in node.data.iterdir())
    _, hard = resource.prlimit(node.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(node.process.pid, resource.RLIMIT_FSIZE, (largest + 200_000, hard))
    refused = new(10)
    with pytest.raises(refusals.KurrentDBClientError):  # noqa: PT012 one of them meets the end of the disk
        for _ in range(10_000):
            refused = new(10)
            append(refused)
    assert [event.id for event in client.get_stream("s")] == [event.id for event in kept], "reads go on"

    resource.prlimit(node.process.pid, resource.RLIMIT_FSIZE, (hard, hard))
    append(refused)
    append(new(500))
    assert [event.id for event in client.get_stream("s")] == [event.id for event in kept]
    client.close()
    assert node.stop() == 0
    assert run(node.data, "--check").returncode == 0


def test_a_torn_write_ahead_log_is_repaired(data: Path) -> None:
    with eventstore.running(data) as node:
        client = KurrentDBClient(node.uri)
        for _ in range(5):
            client.append_to_stream("s", current_version=ANY, events=new(1))
        client.close()
        node.kill()
    log = data / "events.db-wal"
    log.write_bytes(log.read_bytes()[:-1000] + bytes(500))
    with eventstore.running(data) as node:
        client = KurrentDBClient(node.uri)
        assert [event.stream_position for event in client.get_stream("s")] == [0, 1, 2, 3]
        client.append_to_stream("s", current_version=3, events=new(1))
        client.close()


class TestDamage:
    @pytest.fixture
    def damaged(self, data: Path) -> Path:
        """A closed store of 2,000 events in the file `data / "events.db"`."""
        with eventstore.running(data) as node:
            client = KurrentDBClient(node.uri)
            for n in range(20):
                events = [NewEvent(type="Recorded", data=b"needle-%d-%d" % (n, m)) for m in range(100)]
                client.append_to_stream(f"s-{n}", current_version=ANY, events=events)
            client.close()
            assert node.stop() == 0
        return data

    def test_overwritten_pages_are_refused_at_the_start(self, damaged: Path) -> None:
        with (damaged / "events.db").open("r+b") as file:
            file.seek(5 * 4096)
            file.write(b"\xff" * 8192)
        result = run(damaged)
        assert result.returncode == 5
        (line,) = result.stderr.splitlines()
        assert "is corrupted" in line
        assert "restore a backup" in line

    def test_another_kind_of_file_is_refused(self, data: Path) -> None:
        data.mkdir()
        (data / "events.db").write_bytes(b"not a database at all" * 1000)
        assert run(data).returncode == 5
        (data / "events.db").unlink()
        sqlite3.connect(data / "events.db").execute("CREATE TABLE t (x)").connection.close()
        result = run(data)
        assert result.returncode == 5
        assert "is not an event store database" in result.stderr

    def test_a_flipped_bit_is_never_handed_out(self, damaged: Path) -> None:
        path = damaged / "events.db"
        content = path.read_bytes()
        assert content.count(b"needle-7-42") == 1
        path.write_bytes(content.replace(b"needle-7-42", b"noodle-7-42"))

        check = run(damaged, "--check")
        assert check.returncode == 5
        assert "fails its checksum" in check.stderr
        with eventstore.running(damaged) as node:
            client = KurrentDBClient(node.uri)
            assert len(client.get_stream("s-6")) == 100
            with pytest.raises(refusals.GrpcError, match="checksum"):
                client.get_stream("s-7")
            client.close()

    def test_a_check_of_nothing_is_refused(self, tmp_path: Path) -> None:
        result = run(tmp_path / "nothing", "--check")
        assert result.returncode == 1
        assert "there is no event store" in result.stderr
        assert not (tmp_path / "nothing").exists()

    def test_a_sound_store_passes_the_check(self, damaged: Path) -> None:
        result = run(damaged, "--check")
        assert result.returncode == 0
        assert "is sound: 2000 events" in result.stdout


def test_positions_are_never_given_twice(data: Path) -> None:
    stream = f"s-{uuid4()}"
    with eventstore.running(data) as node:
        client = KurrentDBClient(node.uri)
        position = client.append_to_stream(stream, current_version=ANY, events=new(3))
        client.close()
        node.stop()
    with sqlite3.connect(data / "events.db") as db:
        db.execute("DELETE FROM events")  # as a scavenge may
    db.close()
    with eventstore.running(data) as node:
        client = KurrentDBClient(node.uri)
        assert client.append_to_stream(stream, current_version=ANY, events=new(1)) == position + 1
        client.close()
