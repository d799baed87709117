"""A part hangs: it takes connections and answers nobody, as behind a network that is cut."""

import asyncio
import time
from collections.abc import Awaitable, Sequence
from pathlib import Path
from signal import SIGCONT, SIGSTOP
from typing import Any

import grpc
import pytest
from grpc import StatusCode

from recorrido.ingest.v1 import identity_service_pb2, identity_service_pb2_grpc
from recorrido.ingest.v1.events import InteractionRecorded
from services.foundation import projection
from services.foundation.errors import UnavailableError
from services.foundation.events import Event, stream_name
from services.foundation.eventstore import TIMEOUT_S
from services.foundation.projection import ProjectionRunner
from tests.support.cluster import running
from tests.support.front_door import DUPLICATE, RECORDED, front_door, of
from tests.support.relays import append, pending, store_of
from tests.support.rpc_errors import info
from tests.support.wait import until

#: What a busy machine may add.
GRACE_S = 3.0


async def _refused(call: Awaitable[Any]) -> tuple[grpc.aio.AioRpcError, float]:
    """Return how a call fails, and after how many seconds."""
    began = time.monotonic()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value, time.monotonic() - began


async def test_callers_hear_of_it_in_time_and_repeat(tmp_path: Path) -> None:
    """However many wait, and whatever for: UNAVAILABLE within the store's deadline, or their own where that is less."""
    async with front_door(tmp_path) as door:
        await door.one(of("early"))
        identities: Any = identity_service_pb2_grpc.IdentityServiceStub(door.channel)
        asked = identity_service_pb2.ListIdentitiesRequest(customer_id="early")
        # Its table may not be made yet.
        await until(lambda: identities.ListIdentities(asked), 20, ignoring=(grpc.aio.AioRpcError,))
        door.cluster.kill("eventstore", SIGSTOP)
        # The first is in an append, the others come while that is under way.
        first = asyncio.create_task(_refused(door.one(of("first"), timeout=30)))
        patient = [_refused(door.one(of("patient", n), timeout=30)) for n in range(20)]
        hasty = asyncio.create_task(_refused(door.one(of("hasty"), timeout=1)))
        reader = _refused(identities.ListIdentities(asked, timeout=30))
        batch = asyncio.create_task(door.many(*(of("batch", n) for n in range(3)), timeout=30))
        read_store = asyncio.create_task(door.store.read(stream_name("customer", "early")))
        answers = await asyncio.gather(first, reader, *patient)
        for error, took_s in answers:
            assert (error.code(), info(error).reason) == (StatusCode.UNAVAILABLE, "UNAVAILABLE")
            assert took_s < TIMEOUT_S + GRACE_S
        error, took_s = await hasty
        assert error.code() is StatusCode.DEADLINE_EXCEEDED
        assert took_s < 1 + GRACE_S
        assert {r.problem.reason for r in await batch} == {"UNAVAILABLE"}
        with pytest.raises(UnavailableError):
            await read_store
        door.cluster.kill("eventstore", SIGCONT)

        async def again(item: Any) -> Any:
            # Whether the append that was under way happened, nobody knew: repeating it settles that.
            return (await door.one(item, timeout=10)).status

        assert await until(lambda: again(of("first")), 20, ignoring=(grpc.aio.AioRpcError,)) in {RECORDED, DUPLICATE}
        assert {await again(of("patient", n)) for n in range(20)} <= {RECORDED, DUPLICATE}
        for customer_id, count in (("first", 1), ("patient", 20), ("early", 1)):
            assert len(await door.history(customer_id)) == count
        assert list((await identities.ListIdentities(asked)).identities) == []


class _Hanging:
    """A read model whose first write never ends."""

    name = "hanging"
    types: Sequence[type[Event]] = (InteractionRecorded,)
    ddl = "CREATE TABLE seen (event_id uuid NOT NULL)"

    def __init__(self) -> None:
        self.writes = 0

    async def apply(self, connection: Any, facts: Any) -> None:
        await connection.executemany("INSERT INTO seen VALUES ($1)", [(fact.recorded.event_id,) for fact in facts])
        self.writes += 1
        if self.writes == 1:
            await asyncio.Event().wait()


async def test_a_write_that_never_ends_is_begun_anew(tmp_path: Path) -> None:
    async with running(["postgres", "eventstore"], data=tmp_path) as cluster, store_of(cluster) as store:
        await append(store, range(50))
        pool = await projection.connect(cluster.environment["RECORRIDO_POSTGRES_DSN"])
        hanging = _Hanging()
        runner = ProjectionRunner(store, pool, hanging, write_within_s=1.0)
        running_on = asyncio.create_task(runner.run())
        assert await runner.wait_for(50, 20)
        running_on.cancel()
        await asyncio.wait({running_on})
        assert hanging.writes > 1
        ids = [row["event_id"] for row in await pool.fetch("SELECT event_id FROM hanging.seen")]
        await pool.close()
        assert sorted(ids) == sorted(pending(n).event_id for n in range(50)), "each once"
