"""Settings from the environment, with every problem reported at once."""

import sys
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from services.foundation.limits import CALLS_PER_CLIENT


def _host_and_port(value: str) -> str:
    host, _, port = value.rpartition(":")
    if not host or not port.isdigit() or not 0 <= int(port) <= 65535:
        raise ValueError("expected host:port")
    return value


def _starts_with(*schemes: str) -> AfterValidator:
    def check(value: str) -> str:
        if not value.startswith(schemes):
            raise ValueError(f"expected an address that starts with {' or '.join(schemes)}")
        return value

    return AfterValidator(check)


HostAndPort = Annotated[str, AfterValidator(_host_and_port)]


class ServiceSettings(BaseSettings):
    """What every service is told; each field is read from `RECORRIDO_<NAME>`."""

    model_config = SettingsConfigDict(env_prefix="RECORRIDO_", frozen=True)

    listen: HostAndPort = Field(description="host:port of the gRPC server; port 0 takes a free one")
    eventstore_uri: Annotated[str, _starts_with("esdb://", "esdb+discover://", "kurrentdb://", "kdb://")] = Field(
        description="connection string of KurrentDB or of the embedded event store"
    )
    nats_url: Annotated[str, _starts_with("nats://", "tls://")] = Field(description="NATS server with JetStream")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="DEBUG, INFO, WARNING or ERROR: the least that is told"
    )
    log_format: Literal["console", "json"] = Field("console", description="console for people, json for programs")
    calls_per_client: int = Field(
        CALLS_PER_CLIENT,
        gt=0,
        description="calls of one client in progress at once, but for streams; beyond it TOO_MANY_CALLS",
    )
    drain_seconds: float = Field(5.0, gt=0, le=600, description="how long running calls may take after a stop signal")


PostgresDsn = Annotated[str, _starts_with("postgresql://", "postgres://")]

SettingsT = TypeVar("SettingsT", bound=ServiceSettings)


def load(settings: type[SettingsT]) -> SettingsT:
    """Read `settings` from the environment; on any problem print all of them and exit with 2."""
    try:
        return settings()  # type: ignore[call-arg]  # the environment gives them
    except ValidationError as error:
        prefix = settings.model_config.get("env_prefix", "")
        for problem in error.errors():
            name = prefix + "_".join(str(part) for part in problem["loc"]).upper()
            field = settings.model_fields.get(str(problem["loc"][0])) if problem["loc"] else None
            hint = f" ({field.description})" if field and field.description else ""
            said = "required" if problem["type"] == "missing" else _said(problem)
            print(f"{name}: {said}{hint}", file=sys.stderr)  # noqa: T201 - before logging is set up
        raise SystemExit(2) from None


def _said(problem: Any) -> str:
    """Return what is wrong in the words of our own checks; a value that is wrong by its type or range is no secret."""
    message = str(problem["msg"])
    if problem["type"] == "value_error":
        return message.removeprefix("Value error, ")
    expected = message.removeprefix("Input should be ").partition(", unable to parse")[0]
    return f"expected {expected}, not {problem['input']!r:.60}"
