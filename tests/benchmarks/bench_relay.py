"""How fast the relay is, as a ratio to publishing the same messages with nothing around it, all in one run.

    python tests/benchmarks/bench_relay.py [--events 20000] [--rounds 3]

Relay: from the event store (embedded node, read over gRPC) to JetStream, every event acknowledged as on disk. Bare: the
same subjects, headers and bodies, made before, published with nats-py to the same server: once as its asynchronous
publishing does it, message by message with up to 4,000 acknowledgements outstanding, and once in the atomic batches
that the relay uses, which is as fast as nats-py gets here.
"""

import argparse
import asyncio
import contextlib
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import nats
import uvloop
from nats.js import api

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[2] / "proto/gen"))

from infra.local.cluster import running
from recorrido.ingest.v1.events import Interaction, InteractionRecorded, Verbatim
from services.foundation import telemetry
from services.foundation.bus import STREAM, Bus, headers_of, subject
from services.foundation.events import Pending, Recorded, derived_id
from services.foundation.eventstore import ANY, EventStore, StreamAppend
from services.relay.relay import BATCH_SIZE, Relay

Message = tuple[str, bytes, dict[str, str]]
IN_FLIGHT = 4000
#: Less than this part of publish_async's rate is too slow.
ENOUGH = 0.7


async def fill(store: EventStore, count: int) -> None:
    words = "The parcel came two weeks late and the box was open; nobody answers the phone. " * 8
    for at in range(0, count, 500):
        await store.append(
            [
                StreamAppend(
                    f"customer-{n % 997}",
                    ANY,
                    [
                        Pending(
                            InteractionRecorded(
                                interaction=Interaction(
                                    source="bench", interaction_id=str(n), verbatim=Verbatim(text=words)
                                )
                            ),
                            derived_id("bench", str(n)),
                        )
                    ],
                )
                for n in range(at, min(at + 500, count))
            ]
        )


async def empty(url: str) -> None:
    client = await nats.connect(url)
    with contextlib.suppress(nats.js.errors.NotFoundError):
        await client.jetstream().delete_stream(STREAM)
    await client.close()
    bus = await Bus.connect(url, name="bench")
    await bus.close()


async def relay(uri: str, url: str, count: int) -> float:
    """Events per second from start to the last acknowledgement, connecting not included."""
    store, bus = await EventStore.connect(uri), await Bus.connect(url, name="bench")
    working = Relay(store, bus)
    started = time.perf_counter()
    task = asyncio.create_task(working.run())
    while working.status.published < count:  # noqa: ASYNC110 - it counts without telling
        await asyncio.sleep(0.005)
    seconds = time.perf_counter() - started
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await bus.close()
    await store.close()
    return count / seconds


async def bare_async(url: str, messages: Sequence[Message]) -> float:
    """Messages per second of nats-py's publish_async."""
    client = await nats.connect(url)
    stream = client.jetstream(publish_async_max_pending=IN_FLIGHT)
    started = time.perf_counter()
    acks = [await stream.publish_async(to, body, headers=headers) for to, body, headers in messages]
    await stream.publish_async_completed()
    seconds = time.perf_counter() - started
    assert all(isinstance(ack.result(), api.PubAck) for ack in acks)
    await client.close()
    return len(messages) / seconds


async def bare_batches(url: str, messages: Sequence[Message]) -> float:
    """Messages per second in atomic batches."""
    bus = await Bus.connect(url, name="bench")
    sequence = 0
    started = time.perf_counter()
    for at in range(0, len(messages), BATCH_SIZE):
        sequence = await bus.publish(messages[at : at + BATCH_SIZE], expected_last=sequence)
    seconds = time.perf_counter() - started
    await bus.close()
    return len(messages) / seconds


async def measure(count: int, rounds: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        async with running(["nats", "eventstore"], data=Path(folder)) as cluster:
            uri = cluster.environment["RECORRIDO_EVENTSTORE_URI"]
            url = cluster.environment["RECORRIDO_NATS_URL"]
            store = await EventStore.connect(uri)
            await fill(store, count)
            events: list[Recorded] = [event async for event in store.read_all(None)]
            await store.close()
            messages = [
                (
                    subject(event.type_name, event.stream),
                    event.data,
                    headers_of(event, {"traceparent": event.metadata["traceparent"]}),
                )
                for event in events
            ]
            size = sum(len(body) for _, body, _ in messages) // len(messages)
            say(f"{len(messages):,} messages of {size:,} bytes and their headers, {rounds} rounds")
            ways: dict[str, Callable[[], Awaitable[float]]] = {
                "bare, publish_async": lambda: bare_async(url, messages),
                "bare, atomic batches": lambda: bare_batches(url, messages),
                "relay, store to bus": lambda: relay(uri, url, len(messages)),
            }
            rates: dict[str, list[float]] = {name: [] for name in ways}
            for _ in range(rounds):
                for name, way in ways.items():
                    await empty(url)
                    rates[name].append(await way())
    reached = rates["relay, store to bus"]
    ratios = {}
    for name, found in rates.items():
        ratios[name] = statistics.median(ours / theirs for ours, theirs in zip(reached, found, strict=True))
        say(
            f"{name:<22}{statistics.median(found):>9,.0f}/s"
            + ("" if found is reached else f"   relay is at {ratios[name]:.0%} of it")
        )
    return ratios["bare, publish_async"]


def say(line: str) -> None:
    sys.stdout.write(line + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    telemetry.set_up("bench", log_level="ERROR")
    ratio = uvloop.run(measure(options.events, options.rounds))
    return 0 if ratio >= ENOUGH else 1


if __name__ == "__main__":
    sys.exit(main())
