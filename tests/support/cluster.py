"""Real parts for tests: the very supervisor of `make run`, on free ports and a directory of the test's own.

async with running(["ingest"], data=tmp_path) as cluster:
    channel = grpc.aio.insecure_channel(cluster.address("ingest"))
"""

from infra.local.cluster import Cluster, running
from infra.local.supervisor import PartFailedError

__all__ = ["Cluster", "PartFailedError", "running"]
