"""The real Triton on free ports, for tests and benchmarks.

with triton() as server:
    server.analyze(["Muito bom"])
"""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException

from infra.triton import shared_memory
from infra.triton.install import build_models, find
from infra.triton.launch import PROVIDERS, TritonSettings, command

OUTPUTS = (
    "LANGUAGE",
    "SENTIMENT",
    "SENTIMENT_SCORE",
    "POINT",
    "NEED",
    "CONFIDENCE",
    "EMOTION",
    "INTENT",
    "EFFORT",
    "URGENCY",
    "MORE_CONFIDENCE",
    "UNSURE",
    "SENTENCES",
    "ERROR",
    "CHECK",
)
START_SECONDS = 60


def free_ports(count: int) -> list[int]:
    """Ports of the loopback interface that nobody listens on just now, all different."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def infer(
    client: Any,
    texts: Sequence[bytes],
    timeout_seconds: float | None = None,
    outputs: Sequence[str] = OUTPUTS,
    version: str = "",
) -> dict[str, Any]:
    """The outputs of `feedback` for one request, by name; each array has a row per text."""
    tensor = grpcclient.InferInput("TEXT", [len(texts), 1], "BYTES")
    tensor.set_data_from_numpy(np.array(texts, dtype=object).reshape(-1, 1))
    wanted = [grpcclient.InferRequestedOutput(name) for name in outputs]
    result = client.infer("feedback", [tensor], version, outputs=wanted, client_timeout=timeout_seconds)
    return {name: result.as_numpy(name) for name in outputs}


def model_processes(triton_pid: int, version: str) -> list[int]:
    """Triton's children that run this version of the model: one for each instance."""
    lists = Path(f"/proc/{triton_pid}/task").glob("*/children")
    children = [int(pid) for children in lists for pid in children.read_text().split()]
    found = [pid for pid in children if f"/{version}/model.py" in Path(f"/proc/{pid}/cmdline").read_text()]
    assert found
    return found


@dataclass
class Server:
    """A server process; `start` and `stop` may be called again and again."""

    settings: TritonSettings
    log: Path
    process: subprocess.Popen[bytes] | None = field(default=None)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.settings.grpc_port}"

    def start(self) -> None:
        """Start and wait until the server and its models are ready, at most START_SECONDS."""
        installation = find()
        build_models(installation, self.settings.model_repository, PROVIDERS[self.settings.provider])
        shared_memory.clear()
        argv, environment = command(self.settings, installation)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(argv, env=environment, stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + START_SECONDS
        while not self.ready():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise AssertionError(f"Triton did not become ready:\n{self.log.read_text()[-4000:]}")
            time.sleep(0.02)

    def ready(self) -> bool:
        with closing(grpcclient.InferenceServerClient(self.address)) as client:
            try:
                return bool(client.is_server_ready() and client.is_model_ready("feedback"))
            except InferenceServerException:
                return False

    def stop(self) -> float:
        """Ask it to end, as the supervisor does; returns the seconds it took."""
        assert self.process is not None
        started = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(timeout=20)
        return time.monotonic() - started

    def freeze(self) -> None:
        """Let it take connections and do nothing, until `thaw`."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGCONT)

    def kill(self) -> None:
        """End the server and the processes of its models at once."""
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def analyze(self, texts: Sequence[bytes | str], version: str = "") -> dict[str, Any]:
        """One request on a connection of its own; the empty version is the newest."""
        raw = [text.encode() if isinstance(text, str) else text for text in texts]
        with closing(grpcclient.InferenceServerClient(self.address)) as client:
            return infer(client, raw, version=version)


@contextmanager
def triton(log: Path, **settings: Any) -> Iterator[Server]:
    """A ready server, ended afterwards. `settings` are fields of TritonSettings; ports are free ones."""
    http, grpc, metrics = free_ports(3)
    server = Server(TritonSettings(http_port=http, grpc_port=grpc, metrics_port=metrics, **settings), log)
    server.start()
    try:
        yield server
    finally:
        server.kill()
