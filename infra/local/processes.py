"""Processes and their groups: one program started so that it cannot outlive us, and what the kernel says of it."""

import asyncio
import contextlib
import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from signal import SIGKILL, Signals, pidfd_send_signal

from infra.local.logs import PartLog

KILLED_WITHIN_S = 1.0

# The kernel kills the program when our thread ends, however it ends. The shell closes the gap before that request:
# if we were gone by then, it has another parent than us and does not start the program.
_TIED_TO_US = ("setpriv", "--pdeathsig=KILL", "sh", "-c", '[ "$PPID" = "$0" ] && exec "$@"')


@dataclass(frozen=True, slots=True)
class Stat:
    """What the kernel says of a process; `started_ticks` (clock ticks since boot) tells two users of a pid apart."""

    group: int
    started_ticks: int


def stat(pid: int) -> Stat | None:
    """The process with this pid; None when there is none or when it is dead and only not yet collected."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The name, in parentheses, may itself hold spaces and parentheses.
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else Stat(group=int(fields[2]), started_ticks=int(fields[19]))


def members(group: int) -> dict[int, Stat]:
    """The living processes of a process group."""
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return {pid: found for pid in pids if (found := stat(pid)) and found.group == group}


async def gone(group: int, *, within_s: float = KILLED_WITHIN_S) -> bool:
    """Wait until a process group has no living process; False where that takes too long."""
    deadline = time.monotonic() + within_s
    while members(group):
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(0.01)
    return True


class Process:
    """A running program in a process group of its own, its output going to `log`."""

    def __init__(self, argv: Sequence[str], env: Mapping[str, str], log: PartLog, *, cwd: Path) -> None:
        # No preexec_fn: it would run Python between fork and exec, which the gRPC threads of ours do not survive.
        self._program = subprocess.Popen(
            [*_TIED_TO_US, str(os.getpid()), *argv],
            env=env,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self.pid = self._program.pid
        found = stat(self.pid)
        self.started_ticks = found.started_ticks if found else 0
        self.exited = asyncio.Event()
        self._log = log
        assert self._program.stdout is not None
        self._output = self._program.stdout.fileno()
        os.set_blocking(self._output, False)
        self._handle = os.pidfd_open(self.pid)
        loop = asyncio.get_running_loop()
        loop.add_reader(self._output, self._read)
        loop.add_reader(self._handle, self._collect)

    @property
    def ending(self) -> str:
        """How it ended, in words."""
        code = self._program.returncode
        if code is None:
            return "is running"
        return f"was ended by {Signals(-code).name}" if code < 0 else f"exited with code {code}"

    def signal(self, number: Signals) -> None:
        """Send a signal to the program itself; nothing happens when it has ended."""
        # Not through the program: that would collect it when it has just died, and its number could become another's.
        with contextlib.suppress(ProcessLookupError):
            if not self.exited.is_set():
                pidfd_send_signal(self._handle, number)

    def kill(self) -> None:
        """Kill the program and everything in its group; nothing happens when it has ended."""
        # It may be gone already without our having been told.
        with contextlib.suppress(ProcessLookupError):
            if not self.exited.is_set():
                os.killpg(self.pid, SIGKILL)

    async def stop(self, number: Signals, *, within_s: float) -> bool:
        """Ask it to end and, where that takes too long, kill it; True when it went by itself."""
        self.signal(number)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.exited.wait(), within_s)
        by_itself = self.exited.is_set()
        self.kill()
        with contextlib.suppress(TimeoutError):  # stuck in the kernel: nobody can do more
            await asyncio.wait_for(self.exited.wait(), KILLED_WITHIN_S)
        await gone(self.pid)
        return by_itself

    def _read(self) -> bool:
        """Pass on what it wrote; False at the end, and when there is nothing to read for now."""
        try:
            chunk = os.read(self._output, 65536)
        except BlockingIOError:
            return False
        if chunk:
            self._log.feed(chunk)
        else:
            asyncio.get_running_loop().remove_reader(self._output)
        return bool(chunk)

    def _collect(self) -> None:
        """The program has ended: take its children down, read its last words, let the kernel forget it."""
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._handle)
        os.close(self._handle)
        # Before the program is collected, so that the number cannot have become another group's.
        os.killpg(self.pid, SIGKILL)
        while self._read():
            pass
        self._log.end()
        loop.remove_reader(self._output)
        self._program.wait()
        assert self._program.stdout is not None
        self._program.stdout.close()
        self.exited.set()
