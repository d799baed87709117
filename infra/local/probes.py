"""Readiness: each probe uses a part the way its clients do, and raises until that works."""

import asyncio
import json
from collections.abc import Awaitable, Callable

import asyncpg
import grpc
import nats
from grpc_health.v1 import health_pb2, health_pb2_grpc

Probe = Callable[[], Awaitable[None]]
"""Returns when the part is ready; raises whatever its client raises, or `NotReadyError`, while it is not."""

TRY_TIMEOUT_S = 2.0


class NotReadyError(Exception):
    """The part answers, but says that it is not ready."""


def serves_grpc(address: str) -> Probe:
    """The gRPC health service reports the whole server as serving."""

    async def probe() -> None:
        async with grpc.aio.insecure_channel(address) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=TRY_TIMEOUT_S)
        if answer.status != health_pb2.HealthCheckResponse.SERVING:
            raise NotReadyError(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))

    return probe


def answers_http(address: str, *paths: str) -> Probe:
    """Every path answers GET with status 200."""

    async def probe() -> None:
        for path in paths:
            status = await _http(address, "GET", path)
            if status.split()[1:2] != [b"200"]:
                raise NotReadyError(f"{path}: {status.decode(errors='replace')}")

    return probe


def infers(address: str, model: str) -> Probe:
    """Triton's model answers a question, or is too busy to (503)."""
    question = {"inputs": [{"name": "TEXT", "shape": [1, 1], "datatype": "BYTES", "data": ["ok"]}]}

    async def probe() -> None:
        status = await _http(address, "POST", f"/v2/models/{model}/infer", json.dumps(question).encode())
        if status.split()[1:2] not in ([b"200"], [b"503"]):
            raise NotReadyError(status.decode(errors="replace"))

    return probe


async def _http(address: str, method: str, path: str, body: bytes = b"") -> bytes:
    """Return the status line of the answer."""
    host, port = address.rsplit(":", 1)
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        writer.write(head.encode() + body)
        return (await reader.readline()).rstrip()
    finally:
        writer.close()


def accepts_sql(dsn: str) -> Probe:
    """PostgreSQL lets us in and answers a query."""

    async def probe() -> None:
        connection = await asyncpg.connect(dsn, timeout=TRY_TIMEOUT_S)
        try:
            await connection.fetchval("select 1")
        finally:
            await connection.close()

    return probe


def has_jetstream(url: str) -> Probe:
    """NATS lets us in and JetStream answers for the account."""

    async def probe() -> None:
        # First a plain connection: the client's own first attempt answers a refusal with a wait of two seconds.
        host, port = url.removeprefix("nats://").split(":")
        _, writer = await asyncio.open_connection(host, int(port))
        writer.close()
        client = await nats.connect(url, allow_reconnect=False, connect_timeout=TRY_TIMEOUT_S)
        try:
            await client.jetstream(timeout=TRY_TIMEOUT_S).account_info()
        finally:
            await client.close()

    return probe
