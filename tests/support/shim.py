"""A slow disk and a wrong clock for one part, without privileges: a library that is preloaded into its process.

It is compiled when it is first asked for. A program that is linked statically, as NATS is, cannot be given it.
"""

import contextlib
import shutil
import subprocess
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from infra.local import ports as port_numbers
from infra.local.cluster import Cluster, running
from infra.local.parts import catalogue

SOURCE = Path(__file__).with_name("shim.c")


@dataclass(frozen=True)
class Shim:
    """What is wrong with the part's machine, changed while it runs."""

    directory: Path

    @property
    def environment(self) -> dict[str, str]:
        return {"LD_PRELOAD": str(self.directory / "shim.so"), "FAULTS_DIR": str(self.directory)}

    def slow_disk(self, ms: int) -> None:
        """Let every fsync take `ms` longer."""
        self._set("fsync_ms", ms)

    def clock(self, off_s: int) -> None:
        """Let the clock of the day be off by so many seconds."""
        self._set("clock_s", off_s)

    @property
    def syncing(self) -> bool:
        """Whether an fsync is held up now."""
        return (self.directory / "syncing").exists()

    def _set(self, name: str, value: int) -> None:
        fresh = self.directory / f"{name}.new"
        fresh.write_text(str(value))
        fresh.replace(self.directory / name)


def compiled(directory: Path) -> Shim:
    """Return the shim, made in `directory`; skips the test where there is no C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("there is no C compiler to make tests/support/shim.c with")
    directory.mkdir()
    command = [compiler, "-shared", "-fPIC", "-O2", "-Wall", "-Werror", "-o", str(directory / "shim.so"), str(SOURCE)]
    subprocess.run([*command, "-ldl"], check=True)
    return Shim(directory)


@contextlib.asynccontextmanager
async def shimmed(parts: Sequence[str], which: Sequence[str], tmp_path: Path) -> AsyncIterator[tuple[Cluster, Shim]]:
    """Run `parts`, those of `which` on a machine with faults."""
    shim = compiled(tmp_path / "shim")
    data, ports = tmp_path / "data", port_numbers.free()
    known = catalogue(data, ports)
    known |= {name: replace(known[name], env={**known[name].env, **shim.environment}) for name in which}
    async with running(parts, data=data, ports=ports, known=known) as cluster:
        yield cluster, shim
