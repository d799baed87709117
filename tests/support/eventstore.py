"""Start the event store node as its own process, on a free port, and wait until it is ready."""

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

READY = re.compile(r"^event store ready on (?P<address>\S+:\d+),")
REPOSITORY = Path(__file__).parents[2]


@dataclass
class Node:
    """A running node; `address` is "host:port"."""

    process: subprocess.Popen[str]
    address: str
    data: Path

    @property
    def uri(self) -> str:
        """The connection string for an official client."""
        return f"kurrentdb://{self.address}?tls=false"

    def kill(self) -> None:
        """Power loss, as far as a process can have one."""
        self.process.kill()
        self.process.wait()

    def stop(self, timeout_s: float = 5) -> int:
        """Ask the node to stop; gives back its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout_s)


def command(data: Path, listen: str = "127.0.0.1:0", *options: str) -> list[str]:
    return [sys.executable, "-m", "infra.eventstore", "--listen", listen, "--data", str(data), *options]


def start(data: Path, listen: str = "127.0.0.1:0", *options: str) -> Node:
    """Start a node and wait for its ready line; the caller stops it."""
    process = subprocess.Popen(
        command(data, listen, *options), stdout=subprocess.PIPE, text=True, cwd=REPOSITORY, env={**os.environ}
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    ready = READY.match(line)
    if ready is None:
        process.kill()
        raise RuntimeError(f"the event store did not start (exit code {process.wait()}): {line!r}")
    return Node(process, ready["address"], data)


@contextlib.contextmanager
def running(data: Path, listen: str = "127.0.0.1:0", *options: str) -> Iterator[Node]:
    """A node for as long as the context lasts."""
    node = start(data, listen, *options)
    try:
        yield node
    finally:
        if node.process.poll() is None:
            node.kill()
        if node.process.stdout is not None:
            node.process.stdout.close()


@contextlib.contextmanager
def connection_string(data: Path) -> Iterator[str]:
    """Where the contract tests go: to a node of our own, or to the server that RECORRIDO_TEST_KURRENTDB names."""
    real = os.environ.get("RECORRIDO_TEST_KURRENTDB")
    if real:
        yield real
    else:
        with running(data) as node:
            yield node.uri


def is_real_server() -> bool:
    return "RECORRIDO_TEST_KURRENTDB" in os.environ
