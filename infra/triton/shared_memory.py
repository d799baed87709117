"""The shared memory that Triton's Python backend talks to its models through.

The backend makes a region for each instance and removes it when it stops. Of a server that was killed they stay, some
MiB each, in memory, for ever: so each server names its regions after its process, and the next one to start removes
those whose process is gone.
"""

import os
from pathlib import Path

REGIONS = Path("/dev/shm")  # noqa: S108 - where POSIX shared memory lies on Linux
_NAME = "recorrido_triton_"


def prefix(process: int) -> str:
    """What the names of a server's regions begin with, `process` being the id of who starts it or becomes it."""
    return f"{_NAME}{process}_"


def clear(regions: Path = REGIONS) -> int:
    """Remove the regions of processes that are gone; how many these were. Those of other users are let be."""
    removed = 0
    for region in regions.glob(f"{_NAME}*"):
        process = region.name.removeprefix(_NAME).partition("_")[0]
        if process.isdecimal() and not _lives(int(process)):
            try:
                region.unlink(missing_ok=True)
            except PermissionError:
                continue
            removed += 1
    return removed


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
