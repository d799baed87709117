"""The data directory: one run at a time, and what the run leaves on record for `status` and for the next run."""

import contextlib
import fcntl
import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, TextIO

from infra.local import processes

LEFTOVERS_GONE_WITHIN_S = 5.0


class InUseError(Exception):
    """Another run uses the data directory, or its processes do not leave it; the text says which."""


class UnusableError(Exception):
    """The data directory cannot be made or written to; the text names it, the variable and the reason."""


@contextlib.asynccontextmanager
async def held(data: Path) -> AsyncIterator[int]:
    """Use the data directory alone; ends the processes that a killed run may have left, and yields its pid, or 0.

    Raises:
        InUseError: another run uses it.
        UnusableError: it cannot be made or written to.
    """
    # The kernel gives the lock back however we end; the file itself means nothing.
    with _open_lock(data) as lock:
        if not _try_lock(lock.fileno()):
            pid = read(data).get("pid", "unknown")
            raise InUseError(f"{data} is in use by another run, pid {pid}: stop that, or set RECORRIDO_DATA")
        killed = int(read(data).get("pid", 0))
        await _end_leftovers(data)
        try:
            yield killed
        finally:
            _record(data).unlink(missing_ok=True)


def is_held(data: Path) -> bool:
    """Whether a run uses the data directory now. Raises UnusableError."""
    try:
        if not data.exists():
            return False
    except PermissionError as error:
        raise _unusable(data, error) from error
    with _open_lock(data) as lock:
        return not _try_lock(lock.fileno())


def write(data: Path, run: dict[str, Any]) -> None:
    """Record the run: its pid, state, and for each part name, state, pid, restarts and addresses."""
    fresh = _record(data).with_suffix(".new")
    fresh.write_text(json.dumps({"pid": os.getpid(), "boot": _boot(), **run}, indent=2))
    fresh.replace(_record(data))


def read(data: Path) -> dict[str, Any]:
    """The last record, empty when there is none."""
    try:
        record: dict[str, Any] = json.loads(_record(data).read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return {}
    return record


async def _end_leftovers(data: Path) -> None:
    record = read(data)
    if record.get("boot") != _boot():
        return
    for part in record["parts"]:
        group, since = part["pid"], part["started_ticks"]
        leader = processes.stat(group) if group else None
        if not group or (leader and leader.started_ticks != since):
            continue  # the number is somebody else's by now
        for pid, found in processes.members(group).items():
            if found.started_ticks >= since:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        if not await processes.gone(group, within_s=LEFTOVERS_GONE_WITHIN_S):
            raise InUseError(f"{part['name']} of an earlier run does not end, process group {group}")


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _open_lock(data: Path) -> TextIO:
    try:
        data.mkdir(parents=True, exist_ok=True)
        return (data / "run.lock").open("a")
    except OSError as error:
        raise _unusable(data, error) from error


def _unusable(data: Path, error: OSError) -> UnusableError:
    # Which path the error is about matters where it is not the directory itself.
    at = f" ({error.filename})" if error.filename not in (None, str(data)) else ""
    return UnusableError(
        f"{data} cannot be used for data and logs: {error.strerror}{at}; choose a directory with RECORRIDO_DATA"
    )


def _boot() -> str:
    """Which boot of the machine this is: pids of another one mean nothing."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _record(data: Path) -> Path:
    return data / "run.json"
