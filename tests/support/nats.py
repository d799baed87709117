"""NATS with a configuration of the test's own."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from infra.local.ports import free
from infra.nats.__main__ import program


def _configure(data: Path, port: int, max_payload: int) -> Path:
    data.mkdir(parents=True, exist_ok=True)
    config = data / "nats.conf"
    config.write_text(f'listen: "127.0.0.1:{port}"\nmax_payload: {max_payload}\njetstream {{ store_dir: "{data}" }}\n')
    return config


@contextlib.asynccontextmanager
async def nats_server(data: Path, *, max_payload: int, port: int = 0) -> AsyncIterator[str]:
    """Run a server with JetStream for the block; gives its address. Whoever connects waits until it listens."""
    port = port or free().nats
    config = _configure(data, port, max_payload)
    server = program()
    assert server is not None
    process = await asyncio.create_subprocess_exec(server, "--config", str(config), stderr=asyncio.subprocess.DEVNULL)
    try:
        yield f"nats://127.0.0.1:{port}"
    finally:
        process.terminate()
        await asyncio.wait_for(process.wait(), 10)
