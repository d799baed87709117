"""What runs on one machine, as data: each part's command, environment, readiness, needs and end."""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGINT, SIGTERM, Signals

from infra.local import probes
from infra.local.ports import Ports
from infra.triton.launch import EXIT_TIMEOUT_S

ROOT = Path(__file__).resolve().parents[2]


class UnknownPartError(Exception):
    """There is no part of that name; the text lists those that there are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One program to keep running.

    `needs` names the parts that have to be ready first and to stop later. What a `chatty` part
    writes before it is ready is a banner; of the errors in it those that match `harmless` mean nothing.
    `env` is added to our own environment. One that has not passed `answers` for `silent_s` seconds, however often
    asked, hangs, and is killed and started again.
    `addresses` says where it listens: `{"": "127.0.0.1:8222"}`, or with a word for each port where it has several.
    """

    name: str
    argv: tuple[str, ...]
    ready: probes.Probe
    env: Mapping[str, str] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    addresses: Mapping[str, str] = field(default_factory=dict)
    start_within_s: float = 60.0
    answers: probes.Probe | None = None
    silent_s: float = 60.0
    stop_signal: Signals = SIGTERM
    stop_within_s: float = 2.5
    chatty: bool = False
    harmless: str = ""


#: What Triton says at each start on a machine without a GPU, whatever it is told, and of the folder beside the versions
#: that holds the pictures of the model card.
_TRITON_ALWAYS = "CudaDriverHelper has not been initialized|no pinned memory pool|ignore version directory 'card'"


def settings(ports: Ports) -> dict[str, str]:
    """The environment that tells a service (or a test) where the other parts are."""
    return {
        "RECORRIDO_EVENTSTORE_URI": f"esdb://{ports.of('eventstore')}?tls=false",
        "RECORRIDO_NATS_URL": f"nats://{ports.of('nats')}",
        "RECORRIDO_POSTGRES_DSN": f"postgresql://recorrido@{ports.of('postgres')}/recorrido",
        "RECORRIDO_TRITON_ADDRESS": ports.of("triton_grpc"),
    }


def catalogue(data: Path, ports: Ports) -> dict[str, Part]:
    """All parts by name, with their data below `data`."""
    where = settings(ports)
    stores = ("postgres", "nats", "eventstore")
    parts = [
        _infra(
            "postgres",
            ports,
            args=("--data", str(data / "postgres"), "--port", str(ports.postgres)),
            ready=probes.accepts_sql(where["RECORRIDO_POSTGRES_DSN"]),
            stop_signal=SIGINT,  # its fast shutdown; SIGTERM would wait for the clients to leave
        ),
        _infra(
            "nats",
            ports,
            args=(
                *("--data", str(data / "nats"), "--port", str(ports.nats)),
                *("--monitor-port", str(ports.nats_monitor)),
            ),
            ready=probes.has_jetstream(where["RECORRIDO_NATS_URL"]),
        ),
        _infra(
            "eventstore",
            ports,
            args=("--listen", ports.of("eventstore"), "--data", str(data / "eventstore")),
            ready=probes.serves_grpc(ports.of("eventstore")),
        ),
        _infra(
            "triton",
            ports,
            args=(
                *("--grpc-port", str(ports.triton_grpc), "--http-port", str(ports.triton_http)),
                *("--metrics-port", str(ports.triton_metrics)),
                *("--model-repository", str(ROOT / "infra/triton/models")),
            ),
            ready=probes.answers_http(ports.of("triton_http"), "/v2/health/ready", "/v2/models/feedback/ready"),
            # It calls itself ready while its models' processes hang, and waits for ever for one that dies while it is
            # loaded. Inference loads the model anew; where that does not help, this does.
            answers=probes.infers(ports.of("triton_http"), "feedback"),
            stop_within_s=EXIT_TIMEOUT_S + 2.0,  # it looks once a second whether its models are unloaded
            harmless=_TRITON_ALWAYS if os.environ.get("RECORRIDO_MODEL_PROVIDER", "cpu") == "cpu" else "",
        ),
        _service("relay", ports, needs=("nats", "eventstore")),
        _service("ingest", ports, needs=stores),
        _service("inference", ports, needs=(*stores, "triton")),
        _service("journey", ports, needs=stores),
        _service("actions", ports, needs=stores),
    ]
    return {part.name: part for part in parts}


def with_needs(parts: Mapping[str, Part], names: list[str]) -> list[Part]:
    """The named parts and all that they need, each after its needs.

    Raises:
        UnknownPartError: a name is not in `parts`.
    """
    ordered: dict[str, Part] = {}

    def add(name: str) -> None:
        if name not in parts:
            raise UnknownPartError(f"there is no part {name!r}; there are {', '.join(parts)}")
        for need in parts[name].needs:
            add(need)
        ordered.setdefault(name, parts[name])

    for name in names:
        add(name)
    return list(ordered.values())


def _infra(
    name: str,
    ports: Ports,
    *,
    args: tuple[str, ...],
    ready: probes.Probe,
    answers: probes.Probe | None = None,
    stop_signal: Signals = SIGTERM,
    stop_within_s: float = 2.5,
    harmless: str = "",
) -> Part:
    return Part(
        name=name,
        argv=(sys.executable, "-m", f"infra.{name}", *args),
        env=_python(),
        ready=ready,
        answers=answers,
        addresses=_addresses(name, ports),
        stop_signal=stop_signal,
        stop_within_s=stop_within_s,
        chatty=True,
        harmless=harmless,
    )


def _service(name: str, ports: Ports, *, needs: tuple[str, ...]) -> Part:
    return Part(
        name=name,
        argv=(sys.executable, "-m", f"services.{name}.main"),
        env={**_python(), **settings(ports), "RECORRIDO_LISTEN": ports.of(name)},
        ready=probes.serves_grpc(ports.of(name)),
        needs=needs,
        addresses=_addresses(name, ports),
        stop_within_s=4.0,  # calls in flight are finished
    )


def _python() -> dict[str, str]:
    paths = [str(ROOT), str(ROOT / "proto/gen"), os.environ.get("PYTHONPATH", "")]
    return {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONUNBUFFERED": "1"}


def _addresses(part: str, ports: Ports) -> dict[str, str]:
    return {name.removeprefix(part).strip("_"): ports.of(name) for name in ports.names_of(part)}
