"""Run everything on this machine: `run`."""

import asyncio
import contextlib
import json
import os
import signal
from asyncio.subprocess import PIPE, STDOUT, Process
from collections.abc import Sequence
from typing import Annotated

import grpc
import typer
from grpc_health.v1 import health_pb2, health_pb2_grpc
from rich.console import Console
from rich.text import Text

from recorrido.journey.v1.journey_service_pb2 import (
    GetCustomerJourneyRequest,
    GetOverviewRequest,
    TimelineEntry,
)
from services.cli import clients, machine, sample, show
from services.cli.clients import DEADLINE_S, Addresses
from services.cli.failures import CommandError
from services.cli.importing.commands import load_sample
from services.cli.report import read, show_report

# When we are killed, the kernel asks it to stop. The shell closes the gap before that request: if we were gone by then,
# it has another parent than us and does not start the program.
_TIED_TO_US = ("setpriv", "--pdeathsig=TERM", "sh", "-c", '[ "$PPID" = "$0" ] && exec "$@"')
_LINE_LIMIT_BYTES = 1024 * 1024
_POLL_S = 0.25


def run(
    *,
    with_sample: Annotated[
        bool, typer.Option("--sample/--no-sample", help="Load the sample company when the store is empty.")
    ] = True,
    with_report: Annotated[
        bool, typer.Option("--report/--no-report", help="Print how things stand when all is up.")
    ] = True,
    quiet: Annotated[
        bool, typer.Option("--quiet", help="Leave out the parts' own log lines; files keep them.")
    ] = False,
) -> None:
    """Start every part on this machine and stay until Ctrl-C."""
    raise typer.Exit(asyncio.run(_run(with_sample=with_sample, with_report=with_report, quiet=quiet)))


async def _run(*, with_sample: bool, with_report: bool, quiet: bool) -> int:
    # Whatever address the environment tells for other commands, the sample goes into what we start here.
    addresses = Addresses.local()
    out = show.console()
    supervisor = await asyncio.create_subprocess_exec(
        *_TIED_TO_US,
        str(os.getpid()),
        *machine.PROGRAM,
        "up",
        *(["--quiet"] if quiet else []),
        env=machine.environment(colour=out.is_terminal),
        stdout=PIPE,
        stderr=STDOUT,
        limit=_LINE_LIMIT_BYTES,
        # In a group of its own it gets a Ctrl-C from us alone; to get it twice means `now`.
        process_group=0,
    )
    loop = asyncio.get_running_loop()
    welcoming = asyncio.create_task(
        _welcome(supervisor, addresses, out, with_sample=with_sample, with_report=with_report)
    )

    speaks = asyncio.Event()
    asked: list[signal.Signals] = []

    def stop(number: signal.Signals) -> None:
        asked.append(number)
        welcoming.cancel()
        with contextlib.suppress(ProcessLookupError):
            # As long as it loads, there is nothing to stop, and Python would tell of a Ctrl-C at length.
            supervisor.send_signal(number if speaks.is_set() else signal.SIGTERM)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, stop, number)
    try:
        await _pass_on(supervisor, out, speaks)
        code = await supervisor.wait()
    finally:
        welcoming.cancel()
        await asyncio.gather(welcoming, return_exceptions=True)
        if supervisor.returncode is None:
            # Nobody reads us any more. What runs is stopped in order, and what it says is taken in meanwhile.
            supervisor.terminate()
            await supervisor.communicate()
    if asked and -code == signal.SIGTERM:
        # It had started nothing yet.
        return 0
    if code < 0:
        out.print(
            Text.assemble(
                ("error:", "red"),
                f" the supervisor, pid {supervisor.pid}, was ended by {signal.Signals(-code).name}, and every part with"
                " it; nothing recorded is lost: start it again with 'recorrido run'",
            ),
            soft_wrap=True,
        )
    return code if code >= 0 else 128 - code


async def _pass_on(supervisor: Process, out: Console, speaks: asyncio.Event) -> None:
    """Print what the supervisor writes, above a progress bar where there is one."""
    assert supervisor.stdout is not None
    async for line in supervisor.stdout:
        speaks.set()
        out.print(Text.from_ansi(line.decode(errors="replace").rstrip("\r\n")), soft_wrap=True)


async def _welcome(
    supervisor: Process, addresses: Addresses, out: Console, *, with_sample: bool, with_report: bool
) -> None:
    """When all is up: load the sample if it is wanted, and tell how things stand."""
    try:
        await _until_ready(supervisor, addresses)
        if with_sample and (why := await _why_sample(addresses)):
            out.print(why, style="bold")
            await load_sample(addresses, sample.generate(), out, wait=True)
        if with_report:
            show_report(await read(addresses), addresses, out)
        out.print("Recorrido is up; Ctrl-C stops it.", style="bold")
    except CommandError as error:
        out.print(Text.assemble(("error:", "red"), f" {error}"), soft_wrap=True)
    except Exception:  # noqa: BLE001 - told below, and not the end of what runs
        # Nobody awaits us; what is up stays up, but what went wrong must be seen.
        out.print_exception()


async def _until_ready(supervisor: Process, addresses: Addresses) -> None:
    for service in ("relay", "ingest", "inference", "journey", "actions"):
        async with grpc.aio.insecure_channel(getattr(addresses, service)) as channel:
            while not await _serving(channel):  # noqa: ASYNC110 - another process becomes ready
                await asyncio.sleep(_POLL_S)
    # Another run may listen there, while ours is about to tell that its ports are taken.
    while True:
        # In a group of its own a Ctrl-C does not reach it.
        asking = await asyncio.create_subprocess_exec(
            *machine.STATUS, env=machine.environment(), stdout=PIPE, process_group=0
        )
        answer, _ = await asking.communicate()
        status = json.loads(answer or b"{}")
        if status.get("ready") and status.get("pid") == supervisor.pid:
            return
        await asyncio.sleep(_POLL_S)


async def _serving(channel: grpc.aio.Channel) -> bool:
    try:
        answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=2)
    except grpc.aio.AioRpcError:
        return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


_EMPTY = "The store is empty: here is a sample company."
_CUT_OFF = "The sample company is here in part, as its loading was cut off: here is the rest."


async def _why_sample(addresses: Addresses) -> str:
    """Why the sample is to be loaded: nothing was ever recorded, or its loading was cut off; else nothing."""
    from services.cli.bus import connect, messages_held  # noqa: PLC0415 - it takes long, and few commands need it

    client = await connect(addresses.nats_url)
    try:
        # Read models may still be catching up, so their emptiness alone tells nothing.
        events = await messages_held(client)
    finally:
        await client.close()
    async with clients.journey(addresses) as journey:
        if not events:
            found = await journey.GetOverview(GetOverviewRequest(), timeout=DEADLINE_S)
            return "" if found.interactions else _EMPTY

        async def known(number: int) -> Sequence[TimelineEntry]:
            request = GetCustomerJourneyRequest(customer_id=sample.customer_id(sample.SEED, number))
            try:
                return (await journey.GetCustomerJourney(request, timeout=DEADLINE_S)).entries
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.NOT_FOUND:
                    return ()
                raise

        # Another version told other things under the same ids: what was begun by one is not finished by another.
        first = next(iter(sample.generate(1)))[0]
        begun = (first.interaction_id, first.occurred_at)
        if begun not in [(each.interaction.interaction_id, each.occurred_at) for each in await known(0)]:
            return ""
        return "" if await known(sample.CUSTOMERS - 1) else _CUT_OFF
