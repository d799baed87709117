"""Keeps parts running: in the order of their needs, restarted when they die, stopped in reverse."""

import asyncio
import contextlib
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from signal import SIGCONT, SIGSTOP, Signals
from typing import Any

from infra.local.logs import Console, PartLog
from infra.local.parts import Part
from infra.local.probes import Probe
from infra.local.processes import Process, gone

#: From when on those who wait for the end are told what for.
TELL_AFTER_S = 3.0
PROBE_EVERY_S = 0.05
PROBE_TIMEOUT_S = 5.0
LOOK_EVERY_S = 10.0
#: One question may be lost in what answers all others, so it is asked anew: after more than an answer takes under load.
ASK_AGAIN_S = 20.0


class PartFailedError(Exception):
    """A part does not become ready or keeps dying; the text names it and shows its last lines."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Restarts:
    """How often a part may die: the `limit`-th death in `window_s` is one too many. Pauses double in between."""

    limit: int = 5
    window_s: float = 60.0
    first_pause_s: float = 0.1
    longest_pause_s: float = 5.0

    def pause_s(self, deaths: int) -> float:
        return min(self.first_pause_s * 2.0 ** max(deaths - 1, 0), self.longest_pause_s)


class State(StrEnum):
    WAITING = "waiting"  # for the parts that it needs
    STARTING = "starting"
    READY = "ready"
    RESTARTING = "restarting"  # it died; the next start comes after a pause
    STOPPED = "stopped"


@dataclass(slots=True)
class Managed:
    """A part and how it fares."""

    part: Part
    log: PartLog
    state: State = State.WAITING
    process: Process | None = None
    keeper: asyncio.Task[None] | None = None
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    stopped: asyncio.Event = field(default_factory=asyncio.Event)
    deaths: deque[float] = field(default_factory=deque)
    restarts: int = 0
    killed_by_us: bool = False


class Supervisor:
    """Runs `parts`, which come in an order where each follows its needs. Use it from one event loop."""

    def __init__(
        self,
        parts: Sequence[Part],
        *,
        cwd: Path,
        logs: Path,
        console: Console,
        restarts: Restarts | None = None,
        changed: Callable[[Sequence[Managed]], None],
    ) -> None:
        """`changed` is told how all parts fare whenever one of them has changed its state."""
        self.managed = {
            part.name: Managed(part, PartLog(part.name, logs, console, harmless=part.harmless)) for part in parts
        }
        self._cwd = cwd
        self._console = console
        self._restarts = restarts or Restarts()
        self._changed = changed
        self._failure: asyncio.Future[PartFailedError] = asyncio.get_running_loop().create_future()

    def start(self) -> None:
        """Start every part as soon as its needs are ready; returns at once."""
        for name in self.managed:
            self.start_part(name)

    async def until_ready(self, *names: str) -> None:
        """Wait until these parts are ready, all of them where none is named.

        Raises:
            PartFailedError: some part has failed for good.
        """

        async def all_ready() -> None:
            for name in names or self.managed:
                await self.managed[name].ready.wait()

        ready = asyncio.create_task(all_ready())
        either: set[asyncio.Future[Any]] = {ready, self._failure}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ready.cancel()
        if self._failure.done():
            raise self._failure.result()

    async def until_failure(self) -> PartFailedError:
        """Wait for a part to fail for good, which the other parts run on after."""
        return await asyncio.shield(self._failure)

    def start_part(self, name: str) -> None:
        """Start a part, or start it again after `stop_part`; `until_ready` tells when it is ready."""
        managed = self.managed[name]
        managed.stopped.clear()
        managed.deaths.clear()
        managed.keeper = asyncio.create_task(self._keep(managed), name=f"keep {name}")
        managed.keeper.add_done_callback(self._kept)

    async def stop_part(self, name: str) -> None:
        """Stop a part, and only this part, until `start_part`; kill it when it takes too long."""
        managed = self.managed[name]
        if managed.keeper:
            managed.keeper.cancel()
            await asyncio.wait({managed.keeper})
        if managed.process:
            part = managed.part
            if not await managed.process.stop(part.stop_signal, within_s=part.stop_within_s):
                self._console.complain(f"{name} did not stop within {part.stop_within_s:.1f} s and was killed")
        self._enter(managed, State.STOPPED)
        managed.stopped.set()

    async def stop(self) -> None:
        """Stop everything, each part after those that need it; what takes longer than it may is killed."""
        for managed in self.managed.values():
            if managed.keeper:  # nothing is started any more
                managed.keeper.cancel()
            # What it says while others leave is for the file; what is wrong is told still.
            managed.log.held = True
        stopping = [asyncio.create_task(self._stop_in_turn(managed)) for managed in self.managed.values()]
        _, late = await asyncio.wait(stopping, timeout=TELL_AFTER_S)
        if late:
            asked = [each.part for each in self.managed.values() if not each.stopped.is_set() and self._is_free(each)]
            waited = " and ".join(f"{part.name} (at most {part.stop_within_s:g} s)" for part in asked)
            self._console.say(f"waiting for {waited} to end; Ctrl-C again kills what is left")
            await asyncio.wait(late)
        for managed in self.managed.values():
            managed.log.close()

    def kill(self) -> None:
        """Kill everything at once, in no order."""
        for managed in self.managed.values():
            if managed.process:
                managed.process.kill()

    def signal(self, name: str, number: Signals) -> None:
        """Send a signal to a part that runs. Should it die of that, it is restarted, whatever the limit."""
        managed = self.managed[name]
        assert managed.process is not None
        managed.killed_by_us = number not in (SIGSTOP, SIGCONT)
        managed.process.signal(number)

    async def _stop_in_turn(self, managed: Managed) -> None:
        await asyncio.gather(*(other.stopped.wait() for other in self._dependents(managed)))
        await self.stop_part(managed.part.name)

    def _is_free(self, managed: Managed) -> bool:
        """Whether nothing that runs needs it."""
        return all(other.stopped.is_set() for other in self._dependents(managed))

    def _dependents(self, managed: Managed) -> list[Managed]:
        return [other for other in self.managed.values() if managed.part.name in other.part.needs]

    async def _keep(self, managed: Managed) -> None:
        part = managed.part
        self._enter(managed, State.WAITING)
        for need in part.needs:
            await self.managed[need].ready.wait()
        while True:
            started = time.monotonic()
            process = Process(part.argv, {**os.environ, **part.env}, managed.log, cwd=self._cwd)
            managed.process = process
            managed.log.held = part.chatty
            self._enter(managed, State.STARTING)
            if await self._becomes_ready(managed, process):
                address = " ".join(part.addresses.values())
                managed.log.held = False
                self._console.say(f"{part.name} is ready after {time.monotonic() - started:.1f} s  {address}")
                self._enter(managed, State.READY)
                watching = asyncio.create_task(self._end_if_silent(part, process))
                try:
                    await process.exited.wait()
                finally:
                    watching.cancel()
            pause_s = self._after_death(managed, process)
            self._enter(managed, State.RESTARTING)
            await gone(process.pid)
            await asyncio.sleep(pause_s)

    async def _becomes_ready(self, managed: Managed, process: Process) -> bool:
        """Whether it became ready; False when it ended before."""
        part = managed.part
        reason: list[str] = []
        probing = asyncio.create_task(_probe(part, reason))
        dying = asyncio.create_task(process.exited.wait())
        try:
            first, _ = await asyncio.wait(
                {probing, dying}, timeout=part.start_within_s, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            probing.cancel()
            dying.cancel()
        if not first:
            said = f"{part.name} was not ready within {part.start_within_s:g} s ({' '.join(reason)})"
            raise PartFailedError(_with_last_lines(said, managed))
        # Another program on the port may have answered for one that died of the port being taken.
        return not process.exited.is_set()

    async def _end_if_silent(self, part: Part, process: Process) -> None:
        """Kill a process that hangs, once it does; for ever where it never does."""
        while part.answers:
            try:
                async with asyncio.timeout(part.silent_s):
                    await _answer(part.answers)
            except TimeoutError:
                self._console.complain(f"{part.name} has not answered for {part.silent_s:g} s: killing it")
                process.kill()
                return
            await asyncio.sleep(LOOK_EVERY_S)

    def _after_death(self, managed: Managed, process: Process) -> float:
        """Count the death; seconds to wait before the next start."""
        name, now, restarts = managed.part.name, time.monotonic(), self._restarts
        if managed.killed_by_us:
            managed.killed_by_us = False
        else:
            managed.deaths.append(now)
        while managed.deaths and managed.deaths[0] < now - restarts.window_s:
            managed.deaths.popleft()
        if len(managed.deaths) >= restarts.limit:
            said = (
                f"{name} {process.ending}, and has now died {len(managed.deaths)} times within "
                f"{restarts.window_s:g} s; giving up"
            )
            raise PartFailedError(_with_last_lines(said, managed))
        managed.restarts += 1
        pause_s = restarts.pause_s(len(managed.deaths))
        said = f"{name} {process.ending}; starting it again in {pause_s:.1f} s"
        # What the console was spared tells why it died.
        self._console.complain(_with_last_lines(said, managed) if managed.log.held else said)
        return pause_s

    def _kept(self, keeper: asyncio.Task[None]) -> None:
        if keeper.cancelled() or self._failure.done():
            return
        error = keeper.exception()
        if not isinstance(error, PartFailedError):
            error = PartFailedError(f"{keeper.get_name()}: {error!r}")
        self._failure.set_result(error)

    def _enter(self, managed: Managed, state: State) -> None:
        managed.state = state
        if state is State.READY:
            managed.ready.set()
        else:
            managed.ready.clear()
        self._changed(list(self.managed.values()))


async def _answer(answers: Probe) -> None:
    """Return when it answers, however long that takes and however often it has to be asked."""
    while True:
        with contextlib.suppress(Exception):  # every client library has errors of its own for "not now"
            # Not `wait_for`: in Python 3.11 it swallows a cancellation that comes together with the answer.
            async with asyncio.timeout(ASK_AGAIN_S):
                return await answers()
        await asyncio.sleep(PROBE_EVERY_S)


async def _probe(part: Part, reason: list[str]) -> None:
    """Return when the part is ready; leaves in `reason` what kept it from being so."""
    while True:
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_S):
                return await part.ready()
        except Exception as error:  # noqa: BLE001 - every client library has errors of its own for "not yet"
            reason[:] = [f"{type(error).__name__}: {error}"]
        await asyncio.sleep(PROBE_EVERY_S)


def _with_last_lines(said: str, managed: Managed) -> str:
    lines = [f"    {line}" for line in managed.log.last] or ["    nothing"]
    return "\n".join([f"{said}. It wrote last:", *lines])
