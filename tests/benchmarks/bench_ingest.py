"""How fast the front door is, as ratios to what the machine gives without it, side by side in one run.

    python tests/benchmarks/bench_ingest.py [--rounds 5] [--interactions 20000] [--calls 4000]

- RecordInteractions with 500 items each, from several callers at once, against bare AppendRecords calls of the same
  bytes, in the same portions, to the same node, through the official client.
- RecordInteraction with 64 calls in flight, against an empty grpc.aio echo of messages of the same size; and the CPU
  time that each process spends on a call, which says what bounds it where all of them share few cores.
- With `--turns N` instead: customers who take turns and of whom ingest remembers a tenth whole, N events each, with and
  without outlines of the others.
- The Python `eventsourcing` library appending the same events to its SQLite recorder, with durable commits.

Each is repeated, in turns; the ratio is that of the medians. Everything is acknowledged from disk.
"""

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import uvloop
from kurrentdbclient import AsyncKurrentDBClient, NewRecord, StreamState, StreamStateCheck

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[2] / "proto/gen")]

from recorrido.ingest.v1 import ingest_service_pb2 as pb
from recorrido.ingest.v1 import ingest_service_pb2_grpc as pb_grpc
from recorrido.ingest.v1.interaction_pb2 import Interaction
from tests.support.cluster import running
from tests.support.interactions import interaction

ITEMS = 500
CALLERS = 4
IN_FLIGHT = 64
TURNING = 2_000
WORDS = "The parcel came two days late and nobody told me why; I had to call three times to learn where it was. "


def interactions(name: str, count: int, customers: int = 0) -> Iterator[Interaction]:
    """Interactions of about 1 kB of JSON each with their metadata.

    Of customers who are new, as most are in an import, or of so many `customers` who take turns.
    """
    for number in range(count):
        made = interaction(number, text=WORDS * 4, csat=2)
        made.source = name
        made.customer.customer_id = f"{name} {number % customers if customers else number // 2}"
        yield made


async def in_flight(work: Sequence[Callable[[], Awaitable[Any]]], callers: int) -> list[float]:
    """Do all of `work`, `callers` at a time; return how long each took, in seconds."""
    left, took = iter(work), []

    async def caller() -> None:
        for each in left:
            started = time.perf_counter()
            await each()
            took.append(time.perf_counter() - started)

    await asyncio.gather(*(caller() for _ in range(callers)))
    return took


def chunks(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


class Bench:
    """One run against one cluster."""

    def __init__(
        self, channel: grpc.aio.Channel, echo: grpc.aio.Channel, store: AsyncKurrentDBClient, pids: Mapping[str, int]
    ) -> None:
        #: Whose CPU time is told, by name.
        self.pids = pids
        self._stub: Any = pb_grpc.IngestServiceStub(channel)
        self._echo: Any = pb_grpc.IngestServiceStub(echo)
        self._store = store

    async def batches(self, count: int) -> tuple[float, list[Any]]:
        """Interactions per second through RecordInteractions, and what the store holds of them now."""
        name = uuid.uuid4().hex
        requests = [
            pb.RecordInteractionsRequest(interactions=chunk) for chunk in chunks(list(interactions(name, count)), ITEMS)
        ]
        start = await self._store.get_commit_position()
        begun = time.perf_counter()
        replies = await in_flight_results([lambda r=r: self._stub.RecordInteractions(r) for r in requests], CALLERS)
        rate = count / (time.perf_counter() - begun)
        assert all(r.status == pb.RECORD_STATUS_RECORDED for reply in replies for r in reply.results)
        written = [
            event
            async for event in await self._store.read_all(commit_position=start, filter_include=["recorrido.*"])
            if event.commit_position > start
        ]
        assert len(written) == count
        # A customer's two interactions side by side: no chunk of `bare` parts them.
        return rate, sorted(written, key=lambda event: (event.stream_name, event.stream_position))

    async def bare(self, written: Sequence[Any]) -> float:
        """Events per second of bare AppendRecords calls with the same bytes, for streams of another name."""
        name = uuid.uuid4().hex
        calls = []
        for chunk in chunks(written, ITEMS):
            streams = list(dict.fromkeys(e.stream_name for e in chunk))
            records = [
                NewRecord(f"customer-{name}-{e.stream_name}", e.type, e.data, e.metadata, uuid.uuid4()) for e in chunk
            ]
            checks = [StreamStateCheck(f"customer-{name}-{s}", StreamState.NO_STREAM) for s in streams]
            calls.append(lambda r=records, c=checks: self._store.append_records(r, c))
        begun = time.perf_counter()
        await in_flight(calls, CALLERS)
        return len(written) / (time.perf_counter() - begun)

    async def unary(self, count: int, *, echo: bool) -> tuple[float, list[float]]:
        """Calls per second with IN_FLIGHT at a time, and how long each took."""
        stub = self._echo if echo else self._stub
        requests = [pb.RecordInteractionRequest(interaction=i) for i in interactions(uuid.uuid4().hex, count)]
        begun = time.perf_counter()
        took = await in_flight([lambda r=r: stub.RecordInteraction(r) for r in requests], IN_FLIGHT)
        return count / (time.perf_counter() - begun), took


async def in_flight_results(work: Sequence[Callable[[], Awaitable[Any]]], callers: int) -> list[Any]:
    replies = []

    def kept(call: Callable[[], Awaitable[Any]]) -> Callable[[], Awaitable[Any]]:
        async def do() -> None:
            replies.append(await call())

        return do

    await in_flight([kept(call) for call in work], callers)
    return replies


# -- an empty server -----------------------------------------------------------------------------------------------


class Echo(pb_grpc.IngestServiceServicer):
    """Answers at once."""

    async def RecordInteraction(  # noqa: N802 - gRPC's name
        self, request: pb.RecordInteractionRequest, _context: Any
    ) -> pb.RecordInteractionResponse:
        status = pb.RECORD_STATUS_RECORDED
        return pb.RecordInteractionResponse(
            # As long as an event id.
            result=pb.RecordResult(status=status, event_id=f"{request.interaction.interaction_id:>36}"[:36])
        )


def echo_server(ports: "multiprocessing.Queue[int]") -> None:
    async def serve() -> None:
        server = grpc.aio.server()
        pb_grpc.add_IngestServiceServicer_to_server(Echo(), server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        ports.put(port)
        await server.wait_for_termination()

    uvloop.run(serve())


@contextlib.contextmanager
def echoing() -> Iterator[tuple[str, int]]:
    """Yield the address of an echo server and its process id."""
    ports: multiprocessing.Queue[int] = multiprocessing.Queue()
    server = multiprocessing.Process(target=echo_server, args=(ports,), daemon=True)
    server.start()
    try:
        assert server.pid is not None
        yield f"127.0.0.1:{ports.get(timeout=20)}", server.pid
    finally:
        server.kill()


# -- the `eventsourcing` library -----------------------------------------------------------------------------------


def eventsourcing_library(directory: Path, written: Sequence[Any], batch: int) -> float:
    """Events per second that its SQLite recorder takes, `batch` to a transaction, committed to disk."""
    from eventsourcing.persistence import StoredEvent
    from eventsourcing.sqlite import SQLiteApplicationRecorder, SQLiteDatastore

    datastore = SQLiteDatastore(str(directory / f"{uuid.uuid4().hex}.sqlite"))
    recorder = SQLiteApplicationRecorder(datastore)
    recorder.create_table()
    events = [
        StoredEvent(
            originator_id=uuid.uuid5(uuid.NAMESPACE_OID, e.stream_name),
            originator_version=e.stream_position + 1,
            topic=e.type,
            state=e.data,
        )
        for e in written
    ]
    begun = time.perf_counter()
    for chunk in chunks(events, batch):
        recorder.insert_events(chunk)
    rate = len(events) / (time.perf_counter() - begun)
    datastore.close()
    return rate


# -- more customers than are remembered ----------------------------------------------------------------------------


async def turns(each: int, customers: int = TURNING) -> dict[str, Any]:
    """Interactions per second of `customers` who take turns, `each` times, of whom a tenth fits into the cache."""
    figures: dict[str, Any] = {}
    for outlines_mib in (0, 64):
        env = {
            "RECORRIDO_CACHE_EVENTS": str(customers * each // 10),
            "RECORRIDO_CACHE_OUTLINES_MIB": str(outlines_mib),
        }
        with tempfile.TemporaryDirectory(dir=".", prefix="bench-") as directory:
            async with (
                running(["ingest"], data=Path(directory).resolve(), env=env) as cluster,
                grpc.aio.insecure_channel(cluster.address("ingest")) as channel,
            ):
                stub: Any = pb_grpc.IngestServiceStub(channel)
                made = list(interactions("turns", customers * each, customers))
                rates = []
                # The last tenth, when every customer has a history.
                for part in (made[: -len(made) // 10], made[-len(made) // 10 :]):
                    requests = [pb.RecordInteractionsRequest(interactions=chunk) for chunk in chunks(part, ITEMS)]
                    begun = time.perf_counter()
                    replies = await in_flight_results([partial(stub.RecordInteractions, r) for r in requests], CALLERS)
                    rates.append(round(len(part) / (time.perf_counter() - begun)))
                    assert all(r.status == pb.RECORD_STATUS_RECORDED for reply in replies for r in reply.results)
                figures[f"{customers} customers, {each} times each, outlines in {outlines_mib} MiB: first, last /s"] = (
                    rates
                )
    return figures


# -- all of it -----------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def parts(data: Path) -> AsyncIterator[Bench]:
    options = [("grpc.max_send_message_length", 24 * 1024 * 1024)]
    with echoing() as (echo, echo_pid):
        async with (
            running(["ingest"], data=data) as cluster,
            grpc.aio.insecure_channel(cluster.address("ingest"), options=options) as channel,
            grpc.aio.insecure_channel(echo) as echo_channel,
        ):
            client = AsyncKurrentDBClient(uri=cluster.environment["RECORRIDO_EVENTSTORE_URI"])
            await client.connect()
            pids = {"client": os.getpid(), "echo": echo_pid}
            pids |= {part: cluster.pid(part) for part in ("ingest", "eventstore")}
            yield Bench(channel, echo_channel, client, pids)
            await client.close()


def cpu_us(pid: int) -> float:
    """Microseconds of CPU time that a process has spent, in all its threads (man 5 proc)."""
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK") * 1e6


def percentile(values: Sequence[float], share: float) -> float:
    """Milliseconds."""
    return round(1000 * sorted(values)[min(len(values) - 1, int(len(values) * share))], 1)


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    return round(statistics.median(ours) / statistics.median(theirs), 2)


async def measure(rounds: int, count: int, calls: int, *, library: bool) -> dict[str, Any]:
    rates: dict[str, list[float]] = {}
    took: dict[str, list[float]] = {"ingest": [], "echo": []}
    cpu: dict[str, dict[str, list[float]]] = {}

    def note(name: str, rate: float) -> None:
        rates.setdefault(name, []).append(rate)

    with tempfile.TemporaryDirectory(dir=".", prefix="bench-") as directory:
        async with parts(Path(directory).resolve()) as bench:
            await bench.batches(ITEMS * CALLERS)
            await bench.unary(IN_FLIGHT * 4, echo=True)
            for _ in range(rounds):
                rate, written = await bench.batches(count)
                note("RecordInteractions of 500: interactions/s", rate)
                note("bare AppendRecords of 500: events/s", await bench.bare(written))
                for name in ("echo", "ingest"):
                    before = {part: cpu_us(pid) for part, pid in bench.pids.items()}
                    rate, each = await bench.unary(calls, echo=name == "echo")
                    for part, pid in bench.pids.items():
                        cpu.setdefault(name, {}).setdefault(part, []).append((cpu_us(pid) - before[part]) / calls)
                    note(f"unary, 64 in flight, {name}: calls/s", rate)
                    took[name] += each
                if library:
                    for batch in (1, ITEMS):
                        sample = written[: 2000 if batch == 1 else None]
                        note(
                            f"eventsourcing on SQLite, {batch} per transaction: events/s",
                            await asyncio.to_thread(eventsourcing_library, Path(directory), sample, batch),
                        )
    figures: dict[str, Any] = {name: [round(rate) for rate in each] for name, each in rates.items()}
    batches, bare, echo, unary, *other = rates.values()
    figures["ratio RecordInteractions / AppendRecords"] = ratio(batches, bare)
    figures["ratio unary / echo"] = ratio(unary, echo)
    for name, parts_cpu in cpu.items():
        figures[f"unary {name}: CPU per call, us"] = {p: round(statistics.median(c)) for p, c in parts_cpu.items()}
    for name, each in took.items():
        figures[f"unary {name}: p50, p99 ms"] = [percentile(each, 0.5), percentile(each, 0.99)]
    for batch, rate in zip((1, ITEMS), other, strict=False):
        ours = unary if batch == 1 else batches
        figures[f"ratio to eventsourcing, {batch} per transaction"] = ratio(ours, rate)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--interactions", type=int, default=20_000)
    parser.add_argument("--calls", type=int, default=4_000)
    parser.add_argument("--no-library", action="store_true", help="without the eventsourcing library")
    parser.add_argument("--turns", type=int, default=0, metavar="N", help="only customers who take turns, N times")
    arguments = parser.parse_args()
    if arguments.turns:
        print(json.dumps(uvloop.run(turns(arguments.turns)), indent=2))
        return
    figures = uvloop.run(
        measure(arguments.rounds, arguments.interactions, arguments.calls, library=not arguments.no_library)
    )
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    main()
