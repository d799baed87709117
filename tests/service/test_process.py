"""The life of a service process: its settings, its start, and its ordered stop."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from infra.local.cluster import running
from infra.local.parts import ROOT
from services.foundation.rpc import RpcServer
from tests.support.wait import until

SERVICES = ("relay", "ingest", "inference", "journey", "actions")
GOOD = {
    "RECORRIDO_LISTEN": "127.0.0.1:0",
    "RECORRIDO_EVENTSTORE_URI": "esdb://127.0.0.1:1?tls=false",
    "RECORRIDO_NATS_URL": "nats://127.0.0.1:1",
    "RECORRIDO_POSTGRES_DSN": "postgresql://recorrido@127.0.0.1:1/recorrido",
    "RECORRIDO_TRITON_ADDRESS": "127.0.0.1:1",
}


def command(service: str, *options: str) -> list[str]:
    return [sys.executable, "-m", f"services.{service}.main", *options]


def environment(**settings: str) -> dict[str, str]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("RECORRIDO_")}
    return {**inherited, "PYTHONPATH": f"{ROOT}:{ROOT / 'proto/gen'}", **settings}


def run(service: str, *options: str, **settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(service, *options),
        env=environment(**settings),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@pytest.mark.parametrize("service", SERVICES)
def test_checks_its_settings(service: str) -> None:
    assert run(service, "--check-config", **GOOD).returncode == 0


def test_names_every_problem_of_its_settings_at_once() -> None:
    checked = run(
        "journey", "--check-config", RECORRIDO_LISTEN="nowhere", RECORRIDO_LOG_LEVEL="LOUD", RECORRIDO_DRAIN_SECONDS="0"
    )
    assert checked.returncode == 2
    problems = {line.split(":")[0] for line in checked.stderr.splitlines()}
    assert problems == {
        "RECORRIDO_LISTEN",
        "RECORRIDO_EVENTSTORE_URI",
        "RECORRIDO_NATS_URL",
        "RECORRIDO_POSTGRES_DSN",
        "RECORRIDO_LOG_LEVEL",
        "RECORRIDO_DRAIN_SECONDS",
    }
    assert "RECORRIDO_LISTEN: expected host:port (" in checked.stderr
    assert "RECORRIDO_NATS_URL: required (" in checked.stderr
    assert "RECORRIDO_LOG_LEVEL: expected 'DEBUG', 'INFO', 'WARNING' or 'ERROR', not 'LOUD' (" in checked.stderr
    assert "RECORRIDO_DRAIN_SECONDS: expected greater than 0, not '0' (" in checked.stderr


async def test_stops_while_it_waits_for_a_part() -> None:
    process = await asyncio.create_subprocess_exec(
        *command("relay"), env=environment(**GOOD), cwd=ROOT, stderr=asyncio.subprocess.PIPE
    )
    assert process.stderr is not None
    assert b"waiting for the event store" in await asyncio.wait_for(process.stderr.readline(), 20)
    process.send_signal(signal.SIGTERM)
    assert await asyncio.wait_for(process.wait(), 10) == 0


async def test_a_taken_port_is_a_clear_error(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        async with running(["nats", "eventstore"], data=tmp_path) as cluster:
            process = await asyncio.create_subprocess_exec(
                *command("relay"),
                env=environment(**{**GOOD, **cluster.environment, "RECORRIDO_LISTEN": f"127.0.0.1:{port}"}),
                cwd=ROOT,
                stderr=asyncio.subprocess.PIPE,
            )
            _, errors = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}: is the port taken?" in errors.decode()
    assert "Traceback" not in errors.decode()


async def test_running_calls_end_and_new_ones_are_refused_while_it_drains() -> None:
    """A stop loses no call that was accepted."""
    started, finish = asyncio.Event(), asyncio.Event()

    async def slow(request: bytes, _context: grpc.aio.ServicerContext) -> bytes:
        started.set()
        await finish.wait()
        return request

    server = RpcServer("127.0.0.1:0")
    methods = {"Slow": grpc.unary_unary_rpc_method_handler(slow)}
    handler = grpc.method_handlers_generic_handler("recorrido.Test", methods)
    server.register(lambda _, s: s.add_generic_rpc_handlers((handler,)), None, "recorrido.Test")
    await server.start()
    try:
        async with asyncio.timeout(30), grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            call = channel.unary_unary("/recorrido.Test/Slow")(b"kept")
            await started.wait()
            stopping = asyncio.create_task(server.stop(20))

            async def refused() -> bool:
                try:
                    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as other:
                        await other.unary_unary("/recorrido.Test/Slow")(b"late", timeout=1)
                except grpc.aio.AioRpcError as error:
                    return error.code() is grpc.StatusCode.UNAVAILABLE
                return False

            await until(refused, 10)
            finish.set()
            assert await call == b"kept"
            await stopping
    finally:
        # Whatever failed above: a server that is still there would keep the test run from ending.
        await server.stop(0)


async def test_health_tells_when_a_part_is_missing() -> None:
    server = RpcServer("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)

        async def status() -> int:
            return (await stub.Check(health_pb2.HealthCheckRequest())).status

        assert await status() == health_pb2.HealthCheckResponse.SERVING
        one, other = server.availability("triton"), server.availability("PostgreSQL")
        one(False)
        other(False)
        one(True)
        await until(lambda: _is(status, health_pb2.HealthCheckResponse.NOT_SERVING))
        other(True)
        await until(lambda: _is(status, health_pb2.HealthCheckResponse.SERVING))
    await server.stop(0)


async def _is(status, wanted: int) -> bool:  # noqa: ANN001 - a closure of the test above
    return await status() == wanted
