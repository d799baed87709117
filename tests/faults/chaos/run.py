"""The run: every part, a second relay, clients, deaths, rest, and the proof."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import nats
from kurrentdbclient import AsyncKurrentDBClient

from infra.local import ports as port_numbers
from infra.local.cluster import Cluster, started
from infra.local.logs import Console
from infra.local.parts import catalogue
from infra.local.probes import serves_grpc
from tests.faults.chaos.clients import Client, Tally
from tests.faults.chaos.deaths import Deaths, strike
from tests.faults.chaos.folds import compare_read_models, unfolded
from tests.faults.chaos.plan import Plan
from tests.faults.chaos.proof import Report, counts, verify
from tests.support import eventstore as node
from tests.support.wait import until

PROGRESS_EVERY_S = 2.0


class UnsettledError(Exception):
    """Something is still under way; the text tells what."""


async def _is_settled(cluster: Cluster, pool: Any) -> bool:
    """Whether everything recorded is on the bus, came to its effects and is in the read models.

    Raises:
        UnsettledError: not yet.
    """
    uri, url = cluster.environment["RECORRIDO_EVENTSTORE_URI"], cluster.environment["RECORRIDO_NATS_URL"]
    client = AsyncKurrentDBClient(uri=uri)
    await client.connect()
    bus = await nats.connect(url)
    try:
        head = await client.get_commit_position()
        newest = await client.read_all(filter_include=[r"^recorrido\..*"], backwards=True, limit=1)
        (last,) = [event async for event in newest]
        js = bus.jetstream()
        message = await js.get_msg("RECORRIDO", seq=(await js.stream_info("RECORRIDO")).state.last_seq)
        consumers = await js.consumers_info("RECORRIDO")
        if (message.headers or {}).get("ce-id") != str(last.id):
            raise UnsettledError("the bus is behind the store")
        if busy := [c.name for c in consumers if c.num_pending or c.num_ack_pending]:
            raise UnsettledError(f"{busy} have messages to handle")
        if behind := await unfolded(cluster, pool):
            raise UnsettledError(f"{behind} are behind the store")
        # What came meanwhile may have effects of its own.
        return head == await client.get_commit_position()
    finally:
        await bus.close()
        await client.close()


async def _dead_letters(cluster: Cluster) -> int:
    bus = await nats.connect(cluster.environment["RECORRIDO_NATS_URL"])
    try:
        state = (await bus.jetstream().stream_info("RECORRIDO_DEAD")).state
        return int(state.messages)
    finally:
        await bus.close()


@contextlib.asynccontextmanager
async def _with_standby(data: Path) -> AsyncIterator[Cluster]:
    """Start every part, and a second relay that stands by."""
    data.mkdir(parents=True, exist_ok=True)  # noqa: ASYNC240 - before anything runs
    ports = port_numbers.free()
    known = catalogue(data, ports)
    relay = known["relay"]
    address = f"127.0.0.1:{port_numbers.free().relay}"
    known["standby"] = replace(
        relay,
        name="standby",
        env={**relay.env, "RECORRIDO_LISTEN": address},
        addresses={"": address},
        ready=serves_grpc(address),
    )
    with (data / "console.log").open("w") as log:
        async with started([], data=data, ports=ports, known=known, console=Console(log)) as cluster:
            await cluster.until_ready()
            yield cluster


async def chaos(plan: Plan, data: Path, tell: Callable[[str], None] = lambda _: None) -> Report:
    """Carry out the plan on a directory of its own, and verify. `tell` hears how far it is."""
    report = Report(plan, Tally(), Deaths())
    tally, deaths = report.tally, report.deaths
    async with _with_standby(data) as cluster:
        tell(f"all parts are ready, data and logs in {data}")
        began = tally.last_at = time.monotonic()
        telling = asyncio.create_task(_tell(plan, tally, deaths, tell))
        clients = [Client(plan, n, cluster.address("ingest"), tally).run() for n in range(plan.clients)]
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(strike(cluster, plan, tally, deaths))
                for client in clients:
                    group.create_task(client)
        finally:
            telling.cancel()
        report.recording_s = time.monotonic() - began
        tell("all is sent; waiting until everything came to its effects")
        await cluster.until_ready()
        began = time.monotonic()
        pool = await asyncpg.create_pool(cluster.environment["RECORRIDO_POSTGRES_DSN"])
        await until(
            lambda: _is_settled(cluster, pool),
            max(120, plan.interactions / 100),
            every_s=0.2,
            what="that all comes to rest",
            ignoring=(UnsettledError, asyncpg.PostgresError, nats.errors.Error, grpc.aio.AioRpcError),
        )
        await pool.close()
        report.settling_s = time.monotonic() - began
        tell("all is settled; verifying")
        await verify(cluster, report)
        report.check("there are no dead letters", ["x"] * await _dead_letters(cluster))
        restarts = {name: cluster.restarts(name) for name in cluster.parts}
        report.check("no part died but by our hand", [n for n, count in restarts.items() if count > deaths.killed[n]])
        tell("folding the history anew")
        await compare_read_models(cluster, report)
    checking = await asyncio.create_subprocess_exec(
        *node.command(data / "eventstore"), "--check", cwd=node.REPOSITORY, stdout=asyncio.subprocess.DEVNULL
    )
    report.check("the store's file is sound, to every checksum", [] if await checking.wait() == 0 else ["--check"])
    return report


async def _tell(plan: Plan, tally: Tally, deaths: Deaths, tell: Callable[[str], None]) -> None:
    began, before = time.monotonic(), 0
    while True:
        await asyncio.sleep(PROGRESS_EVERY_S)
        rate, before = (tally.settled - before) / PROGRESS_EVERY_S, tally.settled
        tell(
            f"{time.monotonic() - began:5.0f} s  {tally.settled:>9,} of {plan.interactions:,}  {rate:>6,.0f}/s  "
            f"killed {deaths.killed.total()}: {counts(deaths.killed)}"
        )
