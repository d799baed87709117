"""A set of parts that run together on one data directory: what `up` starts, and what tests start."""

import contextlib
import os
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from signal import SIGKILL, Signals
from typing import Any

from infra.local import directory
from infra.local import ports as port_numbers
from infra.local.keys import webhook_keys
from infra.local.logs import Console
from infra.local.parts import ROOT, Part, catalogue, settings, with_needs
from infra.local.ports import Ports
from infra.local.supervisor import Managed, Restarts, State, Supervisor


class Cluster:
    """The running parts. Everything that can fail for good raises `PartFailedError`."""

    def __init__(self, supervisor: Supervisor, data: Path, ports: Ports) -> None:
        self.data = data
        self.ports = ports
        self.supervisor = supervisor

    @property
    def parts(self) -> list[str]:
        """Names of the parts, each after its needs."""
        return list(self.supervisor.managed)

    @property
    def environment(self) -> dict[str, str]:
        """Where the parts are, as a service is told: `RECORRIDO_NATS_URL` and the like."""
        return settings(self.ports)

    def address(self, name: str) -> str:
        """`host:port` of a part, or of one port where a part has several: `triton_grpc`, `nats_monitor`."""
        return self.ports.of(name)

    def pid(self, name: str) -> int:
        """Pid of a part's process, which is also the number of its process group."""
        process = self.supervisor.managed[name].process
        assert process is not None
        return process.pid

    def restarts(self, name: str) -> int:
        """How often a part was started again after it died."""
        return self.supervisor.managed[name].restarts

    def state(self, name: str) -> State:
        return self.supervisor.managed[name].state

    def kill(self, name: str, number: Signals = SIGKILL) -> None:
        """Send a signal to a part, by default the deadly one; returns before it has worked.

        The supervisor starts the part again, and such deaths do not count as `it keeps dying`. With SIGSTOP and
        SIGCONT a part is frozen and thawed.
        """
        self.supervisor.signal(name, number)

    async def kill_and_restart(self, name: str, number: Signals = SIGKILL) -> None:
        """Kill a part and wait until it has been started again and is ready."""
        process = self.supervisor.managed[name].process
        assert process is not None
        self.kill(name, number)
        await process.exited.wait()
        self.supervisor.managed[name].ready.clear()
        await self.until_ready(name)

    async def stop(self, name: str) -> None:
        """Stop one part and leave it stopped; the parts that need it run on without it."""
        await self.supervisor.stop_part(name)

    async def start(self, name: str) -> None:
        """Start a part that was stopped, and wait until it is ready."""
        self.supervisor.start_part(name)
        await self.until_ready(name)

    async def until_ready(self, *names: str) -> None:
        """Wait until these parts are ready, all of them where none is named."""
        await self.supervisor.until_ready(*names)


@contextlib.asynccontextmanager
async def started(
    parts: Sequence[str],
    *,
    data: Path,
    ports: Ports,
    env: Mapping[str, str] | None = None,
    restarts: Restarts | None = None,
    console: Console | None = None,
    known: Mapping[str, Part] | None = None,
) -> AsyncIterator[Cluster]:
    """Start the parts, and those that they need, without waiting until they are ready; stop them at the end.

    Args:
        parts: names; all parts where it is empty.
        data: absolute path of the directory for data and logs; made when missing, used by one run at a time.
        ports: where the parts listen.
        env: added to the environment of every part.
        restarts: how often a part may die.
        console: where lines are shown; they are also kept in `data/log`.
        known: the parts to choose from, where it is not the catalogue.

    Raises:
        InUseError: another run uses `data`.
        UnusableError: `data` cannot be made or written to.
        PortError: a port is taken.
        UnknownPartError: there is no part of a given name.
    """
    assert data.is_absolute()
    available = known or catalogue(data, ports)
    wanted = with_needs(available, list(parts) or list(available))
    since = time.time()

    def record(managed: Sequence[Managed]) -> None:
        directory.write(data, {"since": since, "parts": [_record(each) for each in managed]})

    shown = console or Console()
    async with directory.held(data) as killed:
        if killed:
            shown.say(f"the run before, pid {killed}, was killed before it could stop its parts; nothing is left of it")
        chosen = [replace(part, env={**part.env, **_own_keys(part, data), **(env or {})}) for part in wanted]
        port_numbers.check(ports, [part.name for part in chosen])
        supervisor = Supervisor(
            chosen,
            cwd=ROOT,
            logs=data / "log",
            console=shown,
            restarts=restarts,
            changed=record,
        )
        supervisor.start()
        try:
            yield Cluster(supervisor, data, ports)
        finally:
            await supervisor.stop()


@contextlib.asynccontextmanager
async def running(
    parts: Sequence[str] = (),
    *,
    data: Path,
    ports: Ports | None = None,
    env: Mapping[str, str] | None = None,
    restarts: Restarts | None = None,
    known: Mapping[str, Part] | None = None,
) -> AsyncIterator[Cluster]:
    """As `started`, on free ports, and with every part ready: what a test wants.

    Raises:
        PartFailedError: a part cannot be started; the text shows its last lines.
    """
    places = ports or port_numbers.free()
    async with started(parts, data=data, ports=places, env=env, restarts=restarts, known=known) as cluster:
        await cluster.until_ready()
        yield cluster


def _own_keys(part: Part, data: Path) -> dict[str, str]:
    name = "RECORRIDO_WEBHOOK_KEYS"
    return {name: webhook_keys(data)} if part.name == "actions" and name not in os.environ else {}


def _record(managed: Managed) -> dict[str, Any]:
    process = managed.process
    return {
        "name": managed.part.name,
        "state": managed.state,
        "pid": process.pid if process else None,
        "started_ticks": process.started_ticks if process else None,
        "restarts": managed.restarts,
        "addresses": dict(managed.part.addresses),
    }
