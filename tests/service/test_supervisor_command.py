"""`python -m infra.local` as a person uses it, with real PostgreSQL and NATS."""

import asyncio
import contextlib
import json
import os
import socket
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import asdict
from pathlib import Path
from signal import SIGHUP, SIGINT, SIGKILL, SIGPIPE, SIGTERM, Signals
from typing import Any

import pytest

from infra.local import ports as port_numbers
from infra.local.ports import Ports
from tests.support.wait import until

ROOT = Path(__file__).parents[2]
STOPPED_WITHIN_S = 10.0


class Command:
    """A running `python -m infra.local …` and what it has written."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[str] = []
        self.reading = asyncio.create_task(self._read())

    async def ended(self, within_s: float = 20.0) -> tuple[int, str]:
        code = await asyncio.wait_for(self.process.wait(), within_s)
        await self.reading
        return code, "\n".join(self.lines)

    async def _read(self) -> None:
        told = self.process.stdout or self.process.stderr
        assert told is not None
        async for line in told:
            self.lines.append(line.decode().rstrip())


class Machine:
    """A data directory and ports to run on."""

    def __init__(self, data: Path, ports: Ports) -> None:
        self.data = data
        self.ports = ports
        self.commands: list[Command] = []

    async def start(self, *arguments: str, stdout: int = asyncio.subprocess.PIPE, **moved: str) -> Command:
        """Start a command; where its output goes elsewhere, what it complains of is kept."""
        places = {port_numbers.variable(name): str(port) for name, port in asdict(self.ports).items()}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "infra.local", *arguments),
            cwd=ROOT,
            env={**os.environ, **places, "RECORRIDO_DATA": str(self.data), **moved},
            stdout=stdout,
            stderr=asyncio.subprocess.STDOUT if stdout == asyncio.subprocess.PIPE else asyncio.subprocess.PIPE,
        )
        command = Command(process)
        self.commands.append(command)
        return command

    async def up(self, *parts: str) -> Command:
        """Start, and wait until all parts are ready."""
        command = await self.start("up", *parts)
        await until(
            lambda: any("all parts are ready" in line for line in command.lines) or command.process.returncode,
            30,
            what="up",
        )
        assert command.process.returncode is None, command.lines
        return command

    async def status(self) -> dict[str, Any]:
        _, text = await (await self.start("status", "--json")).ended()
        found: dict[str, Any] = json.loads(text)
        return found

    def ready_pid(self, name: str, *, other_than: set[int]) -> int | None:
        """Pid of a part that is ready and has been started again since it had one of those."""
        parts = json.loads((self.data / "run.json").read_text())["parts"]
        pids = [part["pid"] for part in parts if part["name"] == name and part["state"] == "ready"]
        return next((pid for pid in pids if pid not in other_than), None)

    def processes(self) -> list[str]:
        """Command lines of the processes that work on the data directory, whoever started them."""
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            with contextlib.suppress(OSError):
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if str(self.data) in line or str(self.data) in str((entry / "cwd").readlink()):
                    found.append(f"{entry.name}: {line}")
        return found


def listeners() -> list[str]:
    """Local addresses that are listened on, as the kernel writes them: 0100007F:1F90."""
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()]
    return [local for _, local, _, state, *_ in rows if state == "0A"]


@pytest.fixture
async def machine(tmp_path: Path) -> AsyncIterator[Machine]:
    machine = Machine(tmp_path / "var", port_numbers.free())
    yield machine
    for command in machine.commands:
        if command.process.returncode is None:
            command.process.kill()
        await command.ended()
    await until(lambda: not machine.processes())


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (SIGINT, "stopping: Ctrl-C (SIGINT)"),
        (SIGTERM, "stopping: asked by SIGTERM"),
        (SIGHUP, "stopping: the terminal was closed (SIGHUP)"),
    ],
)
async def test_a_signal_stops_everything_in_time_and_leaves_no_process(
    machine: Machine, number: Signals, told: str
) -> None:
    command = await machine.up("postgres", "nats")
    assert len(machine.processes()) > 2
    began = time.monotonic()
    command.process.send_signal(number)
    code, text = await command.ended(STOPPED_WITHIN_S)
    assert time.monotonic() - began < STOPPED_WITHIN_S
    assert machine.processes() == []
    assert code == 0
    # In order, not killed; at the end the parts are told of in their files alone.
    assert "database system is shut down" in (machine.data / "log" / "postgres.log").read_text()
    assert "Server Exiting" in (machine.data / "log" / "nats.log").read_text()
    assert told in text


async def test_a_signal_during_the_start_stops_it(machine: Machine) -> None:
    command = await machine.start("up", "postgres", "nats")
    await until(machine.processes)
    command.process.send_signal(SIGTERM)
    code, _ = await command.ended(STOPPED_WITHIN_S)
    assert machine.processes() == []
    assert code in (0, -SIGTERM)  # the latter when it came before Python listened


async def test_a_killed_supervisor_leaves_no_process_and_the_next_run_starts(machine: Machine) -> None:
    command = await machine.up("postgres", "nats")
    command.process.kill()
    await until(lambda: not machine.processes(), what="the parts to go")
    assert (await command.ended())[0] == -SIGKILL
    following = await machine.up("postgres", "nats")
    told = f"the run before, pid {command.process.pid}, was killed before it could stop its parts"
    assert [line for line in following.lines if told in line]
    following.process.terminate()
    await following.ended()
    assert not [line for line in (await machine.up("nats")).lines if "the run before" in line]


async def test_the_next_run_may_start_before_the_last_one_is_quite_gone(machine: Machine) -> None:
    for _ in range(3):
        command = await machine.up("postgres", "nats")
        command.process.kill()
        await command.process.wait()
    await machine.up("postgres", "nats")


async def test_it_ends_in_order_when_nobody_reads_it_any_more(machine: Machine) -> None:
    reader, writer = os.pipe()
    command = await machine.start("up", "nats", stdout=writer)
    os.close(writer)
    with os.fdopen(reader, "rb") as lines:
        assert await asyncio.to_thread(lines.readline), "as `up | head -1` reads it"
    code, text = await command.ended(STOPPED_WITHIN_S)
    assert (code, text) == (128 + SIGPIPE, "")
    assert machine.processes() == []
    assert not (machine.data / "run.json").exists(), "all of it was stopped before"


async def test_a_part_that_keeps_dying_ends_the_run_with_code_1(machine: Machine) -> None:
    command = await machine.up("postgres", "nats")
    killed: set[int] = set()
    while len(killed) < 5:
        killed.add(pid := await until(lambda: machine.ready_pid("nats", other_than=killed)))
        os.kill(pid, SIGKILL)
    code, text = await command.ended()
    assert code == 1
    assert "nats was ended by SIGKILL, and has now died 5 times within 60 s; giving up" in text
    assert "Server is ready" in text.split("It wrote last:")[1]
    assert machine.processes() == []


async def test_a_second_run_on_the_same_data_is_refused(machine: Machine) -> None:
    first = await machine.up("nats")
    code, text = await (await machine.start("up", "nats")).ended()
    assert code == 1
    assert f"{machine.data} is in use by another run, pid {first.process.pid}" in text
    assert first.process.returncode is None
    assert (await machine.status())["ready"]


async def test_a_data_directory_that_cannot_be_used_is_one_line(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for where, reason in (("/proc/nope", "No such file or directory"), (tmp_path / "file/var", "Not a directory")):
        code, text = await (await machine.start("up", "nats", RECORRIDO_DATA=str(where))).ended()
        assert code == 2
        (line,) = text.splitlines()
        assert f"{where} cannot be used for data and logs: {reason}" in line
        assert "RECORRIDO_DATA" in line
    code, text = await (await machine.start("status", RECORRIDO_DATA=str(tmp_path / "file"))).ended()
    assert (code, "Traceback" in text) == (2, False)


async def test_a_taken_port_is_told_once_and_before_anything_starts(machine: Machine) -> None:
    with socket.create_server(("127.0.0.1", machine.ports.nats_monitor)):
        code, text = await (await machine.start("up", "postgres", "nats")).ended()
    assert code == 1
    assert text.splitlines() == [
        (
            f"recorrido  | port {machine.ports.nats_monitor} of nats is taken by another program: "
            "stop that, or move ours with RECORRIDO_PORT_NATS_MONITOR"
        )
    ]
    assert not (machine.data / "log").exists()


async def test_a_wrong_port_is_told(machine: Machine) -> None:
    code, text = await (await machine.start("up", RECORRIDO_PORT_NATS="http")).ended()
    assert code == 2
    assert "RECORRIDO_PORT_NATS must be a port from 1 to 65535, not 'http'" in text


async def test_status_says_what_runs_and_where(machine: Machine) -> None:
    assert await (await machine.start("status")).ended() == (3, f"nothing runs on {machine.data}")
    assert not machine.data.exists()
    command = await machine.up("nats")
    code, text = await (await machine.start("status")).ended()
    assert code == 0
    assert f"127.0.0.1:{machine.ports.nats}  monitor 127.0.0.1:{machine.ports.nats_monitor}" in text
    command.process.send_signal(SIGTERM)
    await command.ended()
    assert (await machine.status()) == {"ready": False, "data": str(machine.data)}


async def test_everything_listens_on_loopback_only(machine: Machine) -> None:
    await machine.up("postgres", "nats")
    ours = {f"{port:04X}" for port in asdict(machine.ports).values()}
    listening = [local for local in listeners() if local.split(":")[1] in ours]
    assert len(listening) == 3
    assert all(local.startswith("0100007F:") for local in listening)
