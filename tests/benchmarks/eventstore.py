"""How fast the event store node is, as ratios to what the machine gives without it, all in one run.

    python tests/benchmarks/eventstore.py [--events 20000]

Appends: 16 concurrent writers to distinct streams, 1 kB events, durable acknowledgements, against one bare process that
commits the same rows to the same schema with the same number of events per commit. Reads: all events through $all,
against an empty grpc.aio server that streams the same messages.
"""

import argparse
import asyncio
import json
import multiprocessing
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import uvloop
from kurrentdbclient.protos.v1 import shared_pb2, streams_pb2, streams_pb2_grpc
from kurrentdbclient.protos.v2.streams import streams_pb2 as v2

sys.path.insert(0, str(Path(__file__).parents[2]))

from infra.eventstore import database
from infra.eventstore.model import RecordedEvent
from infra.eventstore.wire import read_event
from infra.eventstore.writer import MAX_CACHED_STREAMS
from tests.support import eventstore

WRITERS = 16
DATA = b"x" * 1000


def requests(writer: int, batch: int, count: int) -> Iterator[bytes]:
    """Serialized AppendRecords requests for one writer's own stream."""
    schema = v2.SchemaInfo(format=v2.SCHEMA_FORMAT_JSON, name="recorrido.ingest.v1.InteractionRecorded")
    for _ in range(count):
        records = [
            v2.AppendRecord(record_id=str(uuid.uuid4()), schema=schema, data=DATA, stream=f"customer-{writer}")
            for _ in range(batch)
        ]
        yield v2.AppendRecordsRequest(records=records).SerializeToString()


def spread(writer: int, batch: int, count: int) -> Iterator[bytes]:
    """As `requests`, but each record goes to a stream of its own."""
    schema = v2.SchemaInfo(format=v2.SCHEMA_FORMAT_JSON, name="recorrido.ingest.v1.InteractionRecorded")
    for number in range(count):
        records = [
            v2.AppendRecord(
                record_id=str(uuid.uuid4()), schema=schema, data=DATA, stream=f"customer-{writer}-{number}-{record}"
            )
            for record in range(batch)
        ]
        yield v2.AppendRecordsRequest(records=records).SerializeToString()


async def append(
    address: str, batch: int, events: int, requests: Callable[[int, int, int], Iterator[bytes]] = requests
) -> float:
    """Events per second, acknowledged."""
    per_writer = max(1, events // batch // WRITERS)
    prepared = [list(requests(writer, batch, per_writer)) for writer in range(WRITERS)]
    async with grpc.aio.insecure_channel(address) as channel:
        call = channel.unary_unary("/kurrentdb.protocol.v2.streams.StreamsService/AppendRecords")

        async def write(writer: int) -> None:
            for request in prepared[writer]:
                await call(request)

        started = time.perf_counter()
        await asyncio.gather(*(write(writer) for writer in range(WRITERS)))
        return per_writer * WRITERS * batch / (time.perf_counter() - started)


def bare_sqlite(directory: Path, batch: int, events: int) -> float:
    """Events per second of one process that does nothing but insert the same rows and commit."""
    directory.mkdir()
    db = database.connect(database.create_or_open(directory))
    rows = [
        (
            n,
            n % WRITERS + 1,
            n // WRITERS,
            uuid.uuid4().bytes,
            "recorrido.ingest.v1.InteractionRecorded",
            1,
            n,
            b"",
            DATA,
            n,
        )
        for n in range(1, events + 1)
    ]
    started = time.perf_counter()
    for start in range(0, events, batch):
        db.execute("BEGIN IMMEDIATE")
        db.executemany("INSERT INTO events VALUES (?,?,?,?,?,?,?,?,?,?)", rows[start : start + batch])
        db.execute("COMMIT")
    rate = events / (time.perf_counter() - started)
    db.close()
    return rate


def read_request(count: int) -> bytes:
    options = streams_pb2.ReadReq.Options(
        all=streams_pb2.ReadReq.Options.AllOptions(start=shared_pb2.Empty()),
        count=count,
        no_filter=shared_pb2.Empty(),
        uuid_option=streams_pb2.ReadReq.Options.UUIDOption(string=shared_pb2.Empty()),
    )
    return streams_pb2.ReadReq(options=options).SerializeToString()


async def read(address: str, count: int) -> float:
    """Messages per second that a client gets without looking at them."""
    async with grpc.aio.insecure_channel(address) as channel:
        call = channel.unary_stream("/event_store.client.streams.Streams/Read")
        started = time.perf_counter()
        received = 0
        async for _ in call(read_request(count)):
            received += 1
        assert received == count, f"{received} of {count}"
        return received / (time.perf_counter() - started)


class EmptyStreams(streams_pb2_grpc.StreamsServicer):
    """Streams one message again and again."""

    async def Read(self, request: streams_pb2.ReadReq, context: Any) -> AsyncIterator[streams_pb2.ReadResp]:  # noqa: N802
        del context
        event_type = "recorrido.ingest.v1.InteractionRecorded"
        event = RecordedEvent(1, "customer-1", 1, uuid.uuid4().bytes, event_type, 1, time.time_ns(), b"", DATA)
        response = read_event(event, structured=False)
        for _ in range(request.options.count):
            yield response


def empty_server(ports: "multiprocessing.Queue[int]") -> None:
    async def serve() -> None:
        server = grpc.aio.server()
        streams_pb2_grpc.add_StreamsServicer_to_server(EmptyStreams(), server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        ports.put(port)
        await server.wait_for_termination()

    uvloop.run(serve())


def measure(events: int) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=".") as directory:
        for batch in (1, 10, 100, 500):
            size = min(events, 250 * WRITERS) if batch == 1 else events
            with eventstore.running(Path(directory) / f"node-{batch}") as node:
                ours = uvloop.run(append(node.address, batch, size))
                if batch == 500:
                    count = max(1, events // batch // WRITERS) * WRITERS * batch
                    figures["read $all /s"] = round(max(uvloop.run(read(node.address, count)) for _ in range(3)))
            # Group commit: in the node the writers share a commit, so the bare process commits as many at once.
            bare = bare_sqlite(Path(directory) / f"bare-{batch}", batch * WRITERS if batch == 1 else batch, size)
            figures[f"append in batches of {batch}: events/s"] = round(ours)
            figures[f"bare SQLite, batches of {batch}: events/s"] = round(bare)
            figures[f"append ratio, batches of {batch}"] = round(ours / bare, 2)
        with eventstore.running(Path(directory) / "node-streams") as node:
            # Enough streams that none of them is remembered when it is written to again.
            for name in ("new streams", "streams of long ago"):
                rate = uvloop.run(append(node.address, 500, max(events, 2 * MAX_CACHED_STREAMS), spread))
                figures[f"append in batches of 500 to {name}: events/s"] = round(rate)
    ports: multiprocessing.Queue[int] = multiprocessing.Queue()
    server = multiprocessing.Process(target=empty_server, args=(ports,), daemon=True)
    server.start()
    address = f"127.0.0.1:{ports.get(timeout=20)}"
    figures["empty server stream /s"] = round(max(uvloop.run(read(address, events)) for _ in range(3)))
    server.kill()
    figures["read ratio"] = round(figures["read $all /s"] / figures["empty server stream /s"], 2)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--events", type=int, default=24_000)
    print(json.dumps(measure(parser.parse_args().events), indent=2))


if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    main()
