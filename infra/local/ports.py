"""The ports of all parts: one variable each, checked before anything is started."""

import random
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

HOST = "127.0.0.1"
_VARIABLE = "RECORRIDO_PORT_"


class PortError(Exception):
    """A port is given twice or is taken; the text names the port, the part and the variable."""


class BadPortError(PortError):
    """What a variable holds is no port; the text names both."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """A port on loopback for everything that listens. A name's first word is the part that listens there."""

    eventstore: int = 2113
    nats: int = 4222
    nats_monitor: int = 8222
    postgres: int = 54329
    triton_grpc: int = 8001
    triton_http: int = 8000
    triton_metrics: int = 8002
    relay: int = 50050
    ingest: int = 50051
    inference: int = 50052
    journey: int = 50053
    actions: int = 50054

    def of(self, name: str) -> str:
        """The address of a port: `ingest` gives `127.0.0.1:50051`."""
        return f"{HOST}:{getattr(self, name)}"

    def names_of(self, part: str) -> list[str]:
        """Names of the ports that a part listens on."""
        return [field.name for field in fields(self) if _part(field.name) == part]


def from_environment(environment: Mapping[str, str]) -> Ports:
    """The ports, each moved by its variable `RECORRIDO_PORT_<NAME>` where that is set.

    Raises:
        BadPortError: a value is no port.
    """
    moved = {}
    for field in fields(Ports):
        value = environment.get(variable(field.name))
        if not value:
            continue
        if not (value.isascii() and value.isdigit() and 0 < int(value) < 65536):
            raise BadPortError(f"{variable(field.name)} must be a port from 1 to 65535, not {value!r}")
        moved[field.name] = int(value)
    return Ports(**moved)


def free() -> Ports:
    """Ports that nobody listens on now, for a test."""
    # Below the range that the kernel gives to outgoing connections, or one of those could take the port before
    # the part does; at random, so that test runs side by side do not meet.
    numbers = random.SystemRandom().sample(range(12000, 32000), 400)
    unused = (number for number in numbers if not _taken(number))
    return Ports(**{field.name: next(unused) for field in fields(Ports)})


def check(ports: Ports, parts: list[str]) -> None:
    """Make sure that each of the parts can listen.

    Raises:
        PortError: one text with a line for each port that is taken or given twice.
    """
    seen: dict[int, str] = {}
    problems = []
    for name, number in asdict(ports).items():
        if _part(name) not in parts:
            continue
        if number in seen:
            problems.append(
                f"port {number} is given to {_part(seen[number])} and to {_part(name)}: "
                f"change {variable(seen[number])} or {variable(name)}"
            )
        elif _taken(number):
            problems.append(
                f"port {number} of {_part(name)} is taken by another program: "
                f"stop that, or move ours with {variable(name)}"
            )
        seen.setdefault(number, name)
    if problems:
        raise PortError("\n".join(problems))


def variable(name: str) -> str:
    """The environment variable that moves a port."""
    return f"{_VARIABLE}{name.upper()}"


def _part(name: str) -> str:
    return name.split("_", 1)[0]


def _taken(number: int) -> bool:
    with socket.socket() as probe:
        # Connections of an earlier run that wait for their end do not hold a port; listeners do.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, number))
        except OSError:
            return True
    return False
