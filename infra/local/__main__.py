"""Run the parts on this machine: `python -m infra.local up`, and `status` from another terminal."""

import argparse
import asyncio
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from infra.local import directory
from infra.local import ports as port_numbers
from infra.local.cluster import Cluster, started
from infra.local.logs import Console
from infra.local.parts import ROOT, UnknownPartError
from infra.local.supervisor import PartFailedError, State

BAD_SETTING = 2
NOT_RUNNING = 3

#: Who asks for the end, by the signal that does.
_ASKED = {
    signal.SIGINT: "Ctrl-C (SIGINT)",
    signal.SIGTERM: "asked by SIGTERM",
    signal.SIGHUP: "the terminal was closed (SIGHUP)",
    signal.SIGPIPE: "nobody reads what is told any more, as behind `head`",
}
#: What a shell tells of a program that SIGPIPE ended.
READER_GONE = 128 + signal.SIGPIPE


def main() -> int:
    """Run a command.

    0: stopped, or all are ready; 1: a part failed or nothing started; 2: a bad setting; 3: `status`, not ready;
    141: whoever read the output went away.
    """
    options = _options()
    data = Path(options.data or os.environ.get("RECORRIDO_DATA") or ROOT / "var").absolute()
    console = Console(quiet=getattr(options, "quiet", False))
    try:
        if options.command == "status":
            return status(data, as_json=options.json)
        return asyncio.run(up(options.part, data, console))
    except BrokenPipeError:
        _to_nobody()
        return READER_GONE
    except (directory.UnusableError, port_numbers.BadPortError) as error:
        console.complain(str(error))
        return BAD_SETTING


async def up(parts: list[str], data: Path, console: Console) -> int:
    """Run the parts until a signal asks us to stop or a part fails for good; the exit code."""
    loop = asyncio.get_running_loop()
    asked: asyncio.Future[signal.Signals] = loop.create_future()

    def ask(number: signal.Signals) -> None:
        if not asked.done():
            asked.set_result(number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, ask, number)

    def reader_gone() -> None:
        _to_nobody()
        ask(signal.SIGPIPE)

    console.reader_gone = reader_gone
    ports = port_numbers.from_environment(os.environ)
    try:
        began = time.monotonic()
        async with started(parts, data=data, ports=ports, console=console) as cluster:
            failure = await _until_ended(cluster, asked, began, console)
            if failure:
                console.complain(str(failure))
            # A second request is for those who do not want to wait for an orderly end.
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, _kill, cluster, number, console)
            console.say("stopping, as a part failed" if failure else f"stopping: {_ASKED[asked.result()]}")
            stopping = time.monotonic()
    except (port_numbers.PortError, directory.InUseError, UnknownPartError) as error:
        console.complain(str(error))
        return 1
    console.say(f"stopped in {time.monotonic() - stopping:.1f} s")
    if failure:
        return 1
    return READER_GONE if asked.result() is signal.SIGPIPE else 0


def _to_nobody() -> None:
    """Let go nowhere what is told from now on, and what waits to be written, of which Python would complain."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def _kill(cluster: Cluster, number: signal.Signals, console: Console) -> None:
    console.complain(f"{number.name} once more: killing what is left")
    cluster.supervisor.kill()


async def _until_ended(
    cluster: Cluster, asked: asyncio.Future[signal.Signals], began: float, console: Console
) -> PartFailedError | None:
    """Wait for the request to stop, which gives None, or for a part that failed for good."""

    async def announce() -> None:
        await cluster.until_ready()
        took = f"all parts are ready after {time.monotonic() - began:.1f} s"
        console.say(f"{took}; data and logs are in {cluster.data}; Ctrl-C stops")

    announcing = asyncio.create_task(announce())
    failing = asyncio.create_task(cluster.supervisor.until_failure())
    try:
        either: set[asyncio.Future[Any]] = {asked, failing}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        return failing.result() if failing.done() else None
    finally:
        for task in (announcing, failing):
            task.cancel()
        await asyncio.gather(announcing, failing, return_exceptions=True)


def status(data: Path, *, as_json: bool) -> int:
    """Print what runs and where; the exit code says whether all of it is ready."""
    run = directory.read(data) if directory.is_held(data) else {}
    parts: list[dict[str, Any]] = run.get("parts", [])
    ready = bool(parts) and all(part["state"] == State.READY for part in parts)
    if as_json:
        _print(json.dumps({"ready": ready, "data": str(data), **run}, indent=2))
    elif not parts:
        _print(f"nothing runs on {data}")
    else:
        _print(f"run {run['pid']} on {data}, since {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(run['since']))}")
        for part in parts:
            places = "  ".join(f"{name} {place}".strip() for name, place in part["addresses"].items())
            again = f"  ({part['restarts']} restarts)" if part["restarts"] else ""
            _print(f"  {part['name']:<10}  {part['state']:<10}  {part['pid'] or '-':>7}  {places}{again}")
    return 0 if ready else NOT_RUNNING


def _print(text: str) -> None:
    print(text, flush=True)  # noqa: T201 - a program's answer


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m infra.local", description=__doc__)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--data", metavar="DIR", help="data and logs; RECORRIDO_DATA, else var/ of the repository")
    commands = parser.add_subparsers(dest="command", required=True)
    upping = commands.add_parser("up", parents=[common], help="run the parts until Ctrl-C")
    upping.add_argument("part", nargs="*", help="only these parts and those that they need")
    upping.add_argument("--quiet", action="store_true", help="leave out the lines of the parts; they are in DIR/log")
    asking = commands.add_parser("status", parents=[common], help="what runs, and where")
    asking.add_argument("--json", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
