"""Health tells the truth: NOT_SERVING while a part is away, SERVING when it is back, and no process dies of it."""

from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.support.cluster import Cluster, running
from tests.support.wait import until

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


async def health(cluster: Cluster, service: str) -> int:
    async with grpc.aio.insecure_channel(cluster.address(service)) as channel:
        return (await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)).status


@pytest.mark.parametrize(
    ("part", "services"),
    [
        ("eventstore", ["relay", "ingest", "journey", "actions"]),
        ("nats", ["relay", "journey", "actions"]),
        ("postgres", ["journey", "actions"]),
    ],
)
async def test_a_part_that_is_away_shows_in_health(tmp_path: Path, part: str, services: list[str]) -> None:
    async with running(services, data=tmp_path) as cluster:

        async def all_are(status: int) -> bool:
            return {await health(cluster, service) for service in services} == {status}

        await until(lambda: all_are(SERVING), 20)
        await cluster.stop(part)
        await until(lambda: all_are(NOT_SERVING), 30)
        await cluster.start(part)
        await until(lambda: all_are(SERVING), 30)
        assert {cluster.restarts(service) for service in services} == {0}
