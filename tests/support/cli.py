"""The `recorrido` command as a person runs it: a process of its own, told where the parts are by its environment."""

import asyncio
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from infra.local.cluster import Cluster
from infra.local.ports import Ports, variable

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def environment(ports: Ports, **more: str) -> dict[str, str]:
    """Return an environment for processes that use these ports."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "proto/gen")])
    places = {variable(name): str(port) for name, port in asdict(ports).items()}
    # COLUMNS is the width of the terminal that the tests run in; what goes to no terminal has none.
    inherited = {n: value for n, value in os.environ.items() if not n.startswith("RECORRIDO_") and n != "COLUMNS"}
    return {**inherited, "PYTHONPATH": paths, "RECORRIDO_ACTOR": "tester", **places, **more}


async def start(arguments: tuple[str, ...], env: Mapping[str, str]) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.cli.main", *arguments),
        env=env,
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        limit=64 * 1024 * 1024,
    )


async def recorrido(cluster: Cluster, *arguments: str, within_s: float = 60, **more: str) -> Result:
    """Run a command against the cluster to its end."""
    process = await start(arguments, environment(cluster.ports, **more))
    out, err = await asyncio.wait_for(process.communicate(), within_s)
    assert process.returncode is not None
    return Result(process.returncode, out.decode(), err.decode())


async def answer(cluster: Cluster, *arguments: str) -> Any:
    """Run a command that must succeed, with --json."""
    result = await recorrido(cluster, *arguments, "--json")
    assert (result.code, result.err) == (0, ""), result
    return result.json
