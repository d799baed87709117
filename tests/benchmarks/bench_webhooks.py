"""How fast webhooks are delivered, against a bare client that posts the same bodies, with a slow receiver beside.

    python tests/benchmarks/bench_webhooks.py [--deliveries 5000] [--rounds 3]

A running actions service has so many changes to tell to one receiver, and to another one that answers each request
after two seconds. Receivers are an aiohttp server in a process of its own. What the first one got is then posted to it
again, by a bare aiohttp client with as many requests at a time; the ratio of the rates is the median of the rounds. The
service also reads each event from the store, signs it, and notes in PostgreSQL what came of it.
"""

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import uvloop
from aiohttp import web

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[2] / "proto/gen")]

from infra.local.cluster import running
from recorrido.actions.v1 import webhook_service_pb2 as pb
from recorrido.actions.v1.events import ActionCommented
from recorrido.actions.v1.webhook_service_pb2_grpc import WebhookServiceStub
from services.actions.domain.action import stream_of
from services.actions.handlers.webhooks import AT_ONCE, content
from services.foundation import telemetry
from services.foundation.events import Pending
from services.foundation.eventstore import NO_STREAM, EventStore, StreamAppend
from tests.support.wait import until

SLOW_S = 2.0
TELL = ["recorrido.actions.v1.ActionCommented"]


async def receive() -> None:
    """Serve `/quick` and `/slow`, and on `/count` how many came to the former."""
    got = 0

    async def quick(request: web.Request) -> web.Response:
        nonlocal got
        await request.read()
        got += 1
        return web.Response()

    async def slow(request: web.Request) -> web.Response:
        await request.read()
        await asyncio.sleep(SLOW_S)
        return web.Response()

    async def count(_: web.Request) -> web.Response:
        return web.Response(text=str(got))

    application = web.Application()
    application.add_routes([web.post("/quick", quick), web.post("/slow", slow), web.get("/count", count)])
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.Event().wait()


async def fill(store: EventStore, count: int) -> None:
    events = [
        ActionCommented(action_id=str(uuid.uuid4()), actor="bench", text="called, nobody there " * 5, request_id="1")
        for _ in range(count)
    ]
    for at in range(0, count, 250):
        await store.append(
            [StreamAppend(stream_of(e.action_id), NO_STREAM, [Pending(e, uuid.uuid4())]) for e in events[at : at + 250]]
        )


async def bare(url: str, bodies: list[bytes]) -> float:
    """Posts a second."""
    waiting = iter(bodies)
    headers = {"content-type": "application/cloudevents+json", "webhook-id": "x" * 36, "webhook-signature": "x" * 47}

    async with aiohttp.ClientSession() as session:

        async def work() -> None:
            for body in waiting:
                async with session.post(url, data=body, headers=headers) as response:
                    await response.read()

        started = time.perf_counter()
        await asyncio.gather(*(work() for _ in range(AT_ONCE)))
        return len(bodies) / (time.perf_counter() - started)


class Desk:
    """Webhooks of a running service."""

    def __init__(self, stub: Any) -> None:
        self._stub = stub

    async def register(self, url: str) -> str:
        request = pb.RegisterWebhookRequest(url=url, event_types=TELL, actor="bench", request_id=str(uuid.uuid4()))
        return str((await self._stub.RegisterWebhook(request)).webhook.webhook_id)

    async def ask(self, call: str, key: str) -> None:
        request = getattr(pb, f"{call}Request")(webhook_id=key, actor="bench", request_id=str(uuid.uuid4()))
        await getattr(self._stub, call)(request)

    async def pending(self, key: str) -> int:
        lines = (await self._stub.ListWebhooks(pb.ListWebhooksRequest())).webhooks
        return next((int(line.pending) for line in lines if line.webhook_id == key), -1)


async def received(base: str) -> int:
    async with aiohttp.ClientSession() as session, session.get(f"{base}/count") as response:
        return int(await response.text())


async def told(desk: Desk, base: str, keys: tuple[str, ...], store: EventStore, count: int) -> float:
    """Return how many are delivered a second: all wait when the webhooks are resumed."""
    before = await received(base)
    for key in keys:
        await desk.ask("PauseWebhook", key)
    await fill(store, count)

    async def waiting() -> bool:
        return await desk.pending(keys[0]) == count

    async def done() -> bool:
        return await received(base) >= before + count

    await until(waiting, 300, every_s=0.2)
    for key in keys[::-1]:
        await desk.ask("ResumeWebhook", key)
    started = time.perf_counter()
    await until(done, 600, every_s=0.05)
    rate = count / (time.perf_counter() - started)

    async def noted() -> bool:
        return await desk.pending(keys[0]) == 0

    await until(noted, 60, every_s=0.2)
    return rate


async def main(deliveries: int, rounds: int) -> None:
    telemetry.set_up("bench", log_level="WARNING")
    receiver = await asyncio.create_subprocess_exec(
        sys.executable, __file__, "--receive", stdout=asyncio.subprocess.PIPE
    )
    assert receiver.stdout is not None
    base = f"http://127.0.0.1:{int(await receiver.stdout.readline())}"
    env = {"RECORRIDO_WEBHOOK_ALLOWED_NETWORKS": "127.0.0.0/8"}
    try:
        with tempfile.TemporaryDirectory(prefix="bench-webhooks-", ignore_cleanup_errors=True) as folder:
            async with (
                running(["actions"], data=Path(folder), env=env) as cluster,
                grpc.aio.insecure_channel(cluster.address("actions")) as channel,
            ):
                store = await EventStore.connect(cluster.environment["RECORRIDO_EVENTSTORE_URI"])
                desk = Desk(WebhookServiceStub(channel))
                keys = await desk.register(f"{base}/quick"), await desk.register(f"{base}/slow")
                ratios = []
                for _ in range(rounds):
                    rate = await told(desk, base, keys, store, deliveries)
                    events = [event async for event in store.read_all(None, TELL)][-deliveries:]
                    # The slow one rests, so that the bare client has the machine for itself.
                    await desk.ask("PauseWebhook", keys[1])
                    plain = await bare(f"{base}/quick", [content(event) for event in events])
                    await desk.ask("ResumeWebhook", keys[1])
                    ratios.append(rate / plain)
                    print(f"{rate:6,.0f} deliveries/s, {plain:6,.0f} bare posts/s, ratio {rate / plain:.2f}")
                waits = await desk.pending(keys[1])
                print(f"ratio {statistics.median(ratios):.2f}; for the slow receiver {waits:,} wait")
                await store.close()
    finally:
        receiver.kill()
        await receiver.wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--deliveries", type=int, default=5_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--receive", action="store_true", help="be the receiver")
    given = parser.parse_args()
    uvloop.run(receive() if given.receive else main(given.deliveries, given.rounds))
