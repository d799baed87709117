"""kill -9 at every step of an erasure: it is taken up again and comes to its end, whoever waits for it."""

import asyncio
import contextlib
from functools import partial
from pathlib import Path
from uuid import uuid4

import grpc
import pytest

from recorrido.journey.v1 import journey_service_pb2 as journey_pb
from services.ingest.privacy import receipt_id_of
from tests.support.company import company
from tests.support.interactions import interaction, record
from tests.support.wait import until

#: Who dies after which step: the one that carries it out, after each.
KILLS = [*((step, "ingest") for step in range(4)), (1, "eventstore"), (2, "eventstore"), (2, "nats")]


@pytest.mark.timeout(300)
async def test_an_erasure_is_finished_whatever_is_killed_and_whoever_waits(tmp_path: Path) -> None:
    async with company(tmp_path) as c:
        # One customer for every kill, and one who stays.
        customers = len(KILLS) + 1
        made = [interaction(n, customers=customers, text="MARKER", csat=1) for n in range(customers * 10)]
        await record(c.ingest, made)
        await c.settled(news=len(made))
        for number, (step, victim) in enumerate(KILLS):
            customer_id, request_id = f"customer {number}", str(uuid4())
            erasing = asyncio.create_task(c.erase(customer_id, request_id))
            await until(partial(c.got_to, step, customer_id, request_id), deadline_s=20, every_s=0.002)
            await c.cluster.kill_and_restart(victim)
            with contextlib.suppress(grpc.aio.AioRpcError):
                await erasing
            receipt_id = receipt_id_of(customer_id, request_id)
            receipt = await until(
                partial(c.receipt, receipt_id), deadline_s=30, ignoring=(grpc.aio.AioRpcError,), what=f"{step} {victim}"
            )
            assert (receipt.interactions, receipt.signals, receipt.actions) == (10, 10, 10), (step, victim)
            assert await c.store.read(f"customer-{customer_id}") == []
            receipts = [e for e in await c.store.read(f"erasure-{receipt_id}") if "CustomerErased" in e.type_name]
            assert len(receipts) == 1
        await c.settled()
        overview = await c.journey.GetOverview(journey_pb.GetOverviewRequest())
        assert (overview.interactions, overview.signals) == (len(made), len(made))
        rows = await c.rows()
        stays = f"customer {customers - 1}"
        assert [n for n in range(customers) if f"| customer {n} |" in rows] == [customers - 1]
        assert stays in rows
        assert rows.count("MARKER") > 0
        assert await c.pending() == []
