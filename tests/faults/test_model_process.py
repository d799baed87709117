"""The process that runs the model dies, hangs, or stops for a while, or all of Triton hangs: nobody has to help."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from signal import SIGCONT, SIGKILL, SIGSTOP, Signals
from typing import Any

import grpc
import pytest
import pytest_asyncio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from infra.local import ports, supervisor
from infra.local.parts import catalogue
from recorrido.inference.v1.events import EVENTS, FeedbackAnalyzed
from services.foundation.events import Registry
from services.foundation.eventstore import EventStore
from tests.support.cluster import Cluster, running
from tests.support.front_door import of
from tests.support.interactions import record
from tests.support.triton import model_processes
from tests.support.wait import until

pytestmark = pytest.mark.asyncio(loop_scope="module")

INFERENCE = Registry(EVENTS)
#: Two kinds of words that the model tells apart, so that an answer to others' words shows.
WORDS = ("Muito bom, adorei, chegou antes do prazo!", "Awful, it came broken and nobody answers my calls.")
EXPECTED = (("pt", "SENTIMENT_POSITIVE"), ("en", "SENTIMENT_NEGATIVE"))
#: For how long a process stops that is then taken for dead: Triton waits a second for its sign of life.
PAUSE_S = 2.5


class Ward:
    """Inference with all it needs, and what it has said about whom."""

    def __init__(self, cluster: Cluster, store: EventStore) -> None:
        self.cluster = cluster
        self.store = store

    async def say(self, customer_id: str, count: int) -> None:
        async with grpc.aio.insecure_channel(self.cluster.address("ingest")) as channel:
            await record(channel, [of(customer_id, n, text=f"{WORDS[n % 2]} ({n})") for n in range(count)])

    async def heard(self, customer_id: str) -> list[tuple[int, Any]]:
        """Return the number of each interaction that was analysed, with what was said of it."""
        events = await self.store.read(f"customer-{customer_id}")
        said = [e for e in events if e.type_name not in INFERENCE]
        numbers = {str(e.event_id): number for number, e in enumerate(said)}
        results = [INFERENCE.decode(e) for e in events if e.type_name in INFERENCE]
        return [(numbers[each.interaction_event_id], each) for each in results]

    async def heard_at_least(self, customer_id: str, count: int) -> bool:
        return len(await self.heard(customer_id)) >= count

    async def each_is_understood_once(self, customer_id: str, count: int) -> None:
        """Wait until all were analysed; each once, and as its own words are."""
        await until(lambda: self.heard_at_least(customer_id, count), 90, what=f"{count} analyses of {customer_id}")
        heard = await self.heard(customer_id)
        assert sorted(number for number, _ in heard) == list(range(count))
        assert {type(event) for _, event in heard} == {FeedbackAnalyzed}
        said = {number: (event.analysis.language, event.analysis.sentiment) for number, event in heard}
        assert {number: answer for number, answer in said.items() if answer != EXPECTED[number % 2]} == {}

    async def serving(self) -> bool:
        async with grpc.aio.insecure_channel(self.cluster.address("inference")) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            status = (await stub.Check(health_pb2.HealthCheckRequest())).status
        return bool(status == health_pb2.HealthCheckResponse.SERVING)

    def log(self, part: str) -> str:
        return (self.cluster.data / "log" / f"{part}.log").read_text()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def ward(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Ward]:
    data, places = tmp_path_factory.mktemp("ward"), ports.free()
    known = catalogue(data, places)
    # A minute is for machines that are busy with other things.
    known["triton"] = replace(known["triton"], silent_s=15.0)
    async with running(["relay", "ingest", "inference"], data=data, ports=places, known=known) as cluster:
        store = await EventStore.connect(cluster.environment["RECORRIDO_EVENTSTORE_URI"])
        try:
            yield Ward(cluster, store)
        finally:
            await store.close()


async def _strike(cluster: Cluster, fault: str) -> None:
    """Stop or kill every process of the model in service."""

    def send(number: Signals) -> None:
        for pid in model_processes(cluster.pid("triton"), "2"):
            with contextlib.suppress(ProcessLookupError):  # one that stopped may have been replaced by now
                os.kill(pid, number)

    send(SIGKILL if fault == "dies" else SIGSTOP)
    if fault == "pauses":
        # What takes this long is the fault itself.
        await asyncio.sleep(PAUSE_S)
        send(SIGCONT)


@pytest.mark.parametrize("fault", ["dies", "hangs", "pauses"])
async def test_a_model_process_under_load(ward: Ward, fault: str) -> None:
    reloads = ward.log("inference").count("loading the model anew")
    # More than a batch of them, so that one is under way when it happens and others follow.
    await ward.say(fault, 400)
    await until(lambda: ward.heard_at_least(fault, 1), 60)
    await _strike(ward.cluster, fault)
    await ward.each_is_understood_once(fault, 400)
    await until(ward.serving, 60, what="serving")
    assert ward.log("inference").count("loading the model anew") > reloads


async def test_all_of_triton_freezes(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    """What loading the model anew cannot mend a new server does."""
    monkeypatch.setattr(supervisor, "LOOK_EVERY_S", 0.5)
    await ward.cluster.until_ready("triton")
    restarts = ward.cluster.restarts("triton")
    ward.cluster.kill("triton", SIGSTOP)
    await ward.say("patient", 100)
    await until(lambda: ward.cluster.restarts("triton") > restarts, 60, what="started again")
    await ward.each_is_understood_once("patient", 100)
    await until(ward.serving, 60, what="serving")
