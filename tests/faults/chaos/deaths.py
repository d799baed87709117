"""Carries out the deaths that were planned."""

import time
from collections import Counter
from dataclasses import dataclass, field
from functools import partial

import grpc

from infra.local.cluster import Cluster
from recorrido.relay.v1 import relay_service_pb2
from tests.faults.chaos.clients import Tally
from tests.faults.chaos.plan import Plan
from tests.support.relays import status as relay_status
from tests.support.wait import until


@dataclass
class Deaths:
    """Who was killed, and how long it took until another relay published."""

    killed: Counter[str] = field(default_factory=Counter)
    handovers_s: list[float] = field(default_factory=list)


async def strike(cluster: Cluster, plan: Plan, tally: Tally, deaths: Deaths) -> None:
    for kill in plan.kills:
        await until(partial(lambda count: tally.settled >= count, kill.after), 600, what=f"{kill.after} answers")
        names = [await _publisher(cluster) if part == "relay" else part for part in kill.parts]
        killed = {name: cluster.supervisor.managed[name].process for name in names}
        for name in names:
            _kill(cluster, name, deaths)
        if "relay" in kill.parts:
            began = time.monotonic()
            heir = "standby" if "relay" in names else "relay"
            if cluster.supervisor.managed[heir].ready.is_set() and not {"nats", "eventstore"} & set(names):
                await until(partial(_publishes, cluster, heir), 60, what=f"{heir} takes over")
                deaths.handovers_s.append(time.monotonic() - began)
        if kill.twice:
            for name, process in killed.items():
                managed = cluster.supervisor.managed[name]
                await until(partial(lambda m, p: m.process is not p, managed, process), 30, what=f"{name} starts again")
                _kill(cluster, name, deaths)


def _kill(cluster: Cluster, name: str, deaths: Deaths) -> None:
    process = cluster.supervisor.managed[name].process
    if process is not None and not process.exited.is_set():
        cluster.kill(name)
        deaths.killed[name] += 1


async def _publishes(cluster: Cluster, name: str) -> bool:
    address = cluster.supervisor.managed[name].part.addresses[""]
    try:
        return (await relay_status(address)).state == relay_service_pb2.RELAY_STATE_PUBLISHING
    except grpc.aio.AioRpcError:
        return False


async def _publisher(cluster: Cluster) -> str:
    return "standby" if await _publishes(cluster, "standby") else "relay"
