"""The exact command line and environment of a `tritonserver` bound to one address.

Everything here is a pure function of its arguments, so that the local supervisor, the tests and `python -m
infra.triton` start the very same server.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from infra.triton import shared_memory
from infra.triton.install import MODELS, Installation

#: How long the server waits for its models to unload. They need a second; on a busy machine more.
EXIT_TIMEOUT_S = 20
#: What the encoder can run on, and the precision of the graph for it.
PROVIDERS = {"cpu": "int8", "cuda": "fp16", "tensorrt": "fp32"}


@dataclass(frozen=True, slots=True)
class TritonSettings:
    """How one server runs. Ports are TCP ports on `address`; the three must differ."""

    http_port: int = 8000
    grpc_port: int = 8001
    metrics_port: int = 8002
    address: str = "127.0.0.1"
    model_repository: Path = MODELS
    # OTLP over HTTP, the only transport of Triton's exporter; None switches tracing off.
    otlp_traces_url: str | None = None
    # Threads of ONNX Runtime in each model instance. One: the gRPC front end and the services need the other cores.
    threads: int = 1
    # What ONNX Runtime runs the encoder on: cpu, cuda or tensorrt.
    provider: str = "cpu"
    # Seconds that a step of a model's work may take before its process ends itself; None: 30 on a CPU, else 900.
    stuck_seconds: float | None = None
    exit_timeout_seconds: int = EXIT_TIMEOUT_S
    # What the names of the Python backend's shared memory begin with.
    shared_memory: str = field(default_factory=lambda: shared_memory.prefix(os.getpid()))


def otlp_traces_url(environment: Mapping[str, str]) -> str | None:
    """Where Triton sends its spans, from the standard OpenTelemetry variables; None when nothing is set.

    `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT` is taken as it is when its protocol is HTTP. `OTEL_EXPORTER_OTLP_ENDPOINT`
    gets `/v1/traces` appended; where it is the gRPC endpoint (the default protocol of this project) with the well-known
    port 4317, its HTTP sibling 4318 is used, because Triton has no gRPC exporter. Any other gRPC endpoint has no known
    HTTP sibling, so `RECORRIDO_TRITON_OTLP_TRACES_URL` must name one; it wins over all.
    """
    if explicit := environment.get("RECORRIDO_TRITON_OTLP_TRACES_URL"):
        return explicit
    protocol = environment.get("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    protocol = environment.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", protocol)
    traces = environment.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    if traces and protocol.startswith("http"):
        return traces
    endpoint = traces or environment.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    if not endpoint:
        return None
    parts = urlsplit(endpoint if "//" in endpoint else f"http://{endpoint}")
    if protocol.startswith("http"):
        return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/v1/traces"))
    if parts.port == 4317:
        return urlunsplit((parts.scheme, f"{parts.hostname}:4318", "/v1/traces", "", ""))
    return None


def command(settings: TritonSettings, installation: Installation) -> tuple[list[str], dict[str, str]]:
    """The argument vector and the whole environment of the server.

    The environment is complete and meant to replace the caller's: Triton's embedded Python must not see another
    environment's PYTHONHOME or packages.
    """
    argv = [
        str(installation.server / "bin" / "tritonserver"),
        f"--model-repository={settings.model_repository}",
        f"--backend-directory={installation.server / 'backends'}",
        # Explicit: models load at start, later only when asked, so that a half-copied version is never picked up.
        "--model-control-mode=explicit",
        "--load-model=*",
        f"--http-address={settings.address}",
        f"--http-port={settings.http_port}",
        f"--grpc-address={settings.address}",
        f"--grpc-port={settings.grpc_port}",
        f"--metrics-address={settings.address}",
        f"--metrics-port={settings.metrics_port}",
        f"--exit-timeout-secs={settings.exit_timeout_seconds}",
        "--allow-gpu-metrics=false",
        "--disable-auto-complete-config",
        f"--backend-config=python,shm-region-prefix-name={settings.shared_memory}",
    ]
    if settings.provider == "cpu":
        # Memory that a GPU could read directly: there is none, and looking for one is a warning at each start.
        argv += ["--pinned-memory-pool-byte-size=0"]
    if settings.otlp_traces_url:
        argv += [
            "--trace-config=mode=opentelemetry",
            "--trace-config=level=TIMESTAMPS",
            "--trace-config=rate=1",
            f"--trace-config=opentelemetry,url={settings.otlp_traces_url}",
            "--trace-config=opentelemetry,resource=service.name=triton",
        ]
    environment = {
        # The embedded Python finds its standard library and packages through the first python3 on PATH.
        "PATH": f"{installation.venv / 'bin'}:/usr/bin:/bin",
        "LD_LIBRARY_PATH": f"{installation.libpython.parent}:{installation.libraries}",
        "PYTHONPATH": str(installation.site_packages),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
        "LANG": "C.UTF-8",
        "OMP_NUM_THREADS": str(settings.threads),
        "OPENBLAS_NUM_THREADS": "1",
        "RECORRIDO_ORT_THREADS": str(settings.threads),
        "RECORRIDO_MODEL_PROVIDER": settings.provider,
        "RECORRIDO_MODEL_STUCK_S": "" if settings.stuck_seconds is None else str(settings.stuck_seconds),
    }
    return argv, environment
