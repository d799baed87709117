"""Become a Triton server: `python -m infra.triton --grpc-port 8001 …`.

The process is replaced (exec), so its id stays and signals reach the server itself.
"""

import argparse
import os
import sys
from pathlib import Path

from infra.triton import shared_memory
from infra.triton.install import DEFAULT_VENV, MODELS, InstallationError, build_models, find
from infra.triton.launch import PROVIDERS, TritonSettings, command, otlp_traces_url


def main() -> None:
    defaults = TritonSettings()
    parser = argparse.ArgumentParser(prog="python -m infra.triton", description="Run Triton on the loopback interface.")
    parser.add_argument("--http-port", type=int, default=defaults.http_port)
    parser.add_argument("--grpc-port", type=int, default=defaults.grpc_port)
    parser.add_argument("--metrics-port", type=int, default=defaults.metrics_port)
    parser.add_argument("--address", default=defaults.address)
    parser.add_argument("--model-repository", type=Path, default=MODELS)
    parser.add_argument("--threads", type=int, default=defaults.threads, help="ONNX Runtime threads per model instance")
    parser.add_argument("--provider", choices=PROVIDERS, default=os.environ.get("RECORRIDO_MODEL_PROVIDER", "cpu"))
    parser.add_argument("--venv", type=Path, default=DEFAULT_VENV, help="environment made by infra.triton.install")
    arguments = parser.parse_args()
    settings = TritonSettings(
        http_port=arguments.http_port,
        grpc_port=arguments.grpc_port,
        metrics_port=arguments.metrics_port,
        address=arguments.address,
        model_repository=arguments.model_repository,
        otlp_traces_url=otlp_traces_url(os.environ),
        threads=arguments.threads,
        provider=arguments.provider,
    )
    try:
        installation = find(arguments.venv)
        # Nothing to do, but after an update that brought another model.
        build_models(installation, settings.model_repository, PROVIDERS[settings.provider])
        argv, environment = command(settings, installation)
    except InstallationError as error:
        sys.exit(f"error: {error}")
    shared_memory.clear()
    os.execve(argv[0], argv, environment)  # noqa: S606 - no shell is wanted


if __name__ == "__main__":
    main()
