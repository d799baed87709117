"""PostgreSQL, or the event store, comes back from a backup while journey runs: it goes on with what is there now."""

import asyncio
import random
import shutil
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import structlog
from msgspec import structs

from infra.local.cluster import running
from recorrido.ingest.v1.events import Customer, Interaction, InteractionRecorded, Rating, RatingMetric
from services.foundation import projection
from services.foundation.events import Pending, Recorded, derived_id
from services.foundation.eventstore import ANY, EventStore, StreamAppend
from services.foundation.sharing import SharedRunner
from services.journey import watch as watching
from services.journey.domain.watching import findings
from services.journey.handlers import WatchHandlers
from services.journey.views.projection import JourneyProjection
from services.journey.views.snapshot import ReadModel
from tests.service.test_journey_erasures import erasure, see
from tests.service.test_journey_views import History, project, random_history
from tests.support.relays import store_of
from tests.support.wait import until


def another(history: Sequence[Recorded], events: int) -> Sequence[Recorded]:
    """Return what a store has at the places of a history's last events that came back from a backup and went on."""
    other = random_history(99, len(history))
    return [
        structs.replace(each, position=at.position, recorded_at=at.recorded_at + timedelta(microseconds=3))
        for each, at in zip(other[-events:], history[-events:], strict=True)
    ]


def _copy(data: Path, to: Path) -> None:
    """Copy files with whose they are: PostgreSQL does not run as root."""
    subprocess.run(["cp", "-a", data, to], check=True)


@pytest.mark.parametrize("lost", ["an erasure", "events", "events, and another was erased"])
async def test_tables_that_come_back_from_a_backup_are_read_anew(tmp_path: Path, lost: str) -> None:
    history = History(random.Random(6))
    history.recorded = list(random_history(6, 240))
    async with running(["postgres"], data=tmp_path / "data") as cluster:
        data, backup = cluster.data / "postgres", tmp_path / "backup"
        pool = await projection.connect(cluster.environment["RECORRIDO_POSTGRES_DSN"])
        read_model = await project(pool, history.recorded[:200])
        await see(read_model)
        await cluster.stop("postgres")
        _copy(data, backup)
        await cluster.start("postgres")
        await until(lambda: projection.ping(pool), deadline_s=20)
        await project(pool, history.recorded[200:])
        await see(read_model)
        if lost == "an erasure":
            history.add(erasure("c0", history.recorded, random.Random(1)), "erased")
            await project(pool, history.recorded[-1:])
        before = await see(read_model)

        await cluster.stop("postgres")
        shutil.rmtree(data)
        _copy(backup, data)
        await cluster.start("postgres")
        await until(lambda: projection.ping(pool), deadline_s=20)
        if lost != "an erasure":
            await project(pool, another(history.recorded, 41))
            if "another" in lost:
                history.add(erasure("c1", history.recorded[:200], random.Random(2)), "another erased")
                await project(pool, history.recorded[-1:])
        with structlog.testing.capture_logs() as logs:
            now = await asyncio.wait_for(see(read_model), 30)
        assert now == await see(ReadModel(pool, "journey")) != before
        assert [each["log_level"] for each in logs if "came back from a backup" in each["event"]] == ["warning"]
        # What comes then is added as ever.
        assert await see(read_model) == now
        await pool.close()


def answered(nps: int) -> Pending:
    told = Interaction(
        source="shop",
        interaction_id=str(nps),
        customer=Customer(customer_id="dora"),
        touchpoint="parcel",
        occurred_at=datetime.now(UTC),
        ratings=(Rating(metric=RatingMetric.NPS, value=nps),),
    )
    return Pending(InteractionRecorded(interaction=told), derived_id("answered", str(nps)))


async def test_in_a_store_that_comes_back_what_was_raised_in_the_old_one_is_raised_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a restart, once the tables of the old history are dropped; the cause may stand where it stood."""
    monkeypatch.setattr(watching, "EVERY_S", 0.1)

    async def raised(store: EventStore) -> list[Recorded]:
        return [each async for each in store.read_all(None, ["recorrido.journey.v1.SignalRaised"])]

    async def tell(store: EventStore) -> None:
        for nps in (10, 9, 8):
            await store.append([StreamAppend("customer-dora", ANY, [answered(nps)])])

    async with running(["postgres", "eventstore"], data=tmp_path) as cluster, store_of(cluster) as store:
        pool = await projection.connect(cluster.environment["RECORRIDO_POSTGRES_DSN"])
        read_model = ReadModel(pool, "journey")
        told: list[bool] = []
        tasks = [
            asyncio.create_task(SharedRunner(store, pool, JourneyProjection()).run(available=told.append)),
            asyncio.create_task(watching.watch(pool, read_model, WatchHandlers(store))),
        ]
        await tell(store)
        (before,) = await until(lambda: raised(store), deadline_s=30)
        await cluster.stop("eventstore")
        shutil.rmtree(cluster.data / "eventstore")
        (cluster.data / "eventstore").mkdir()
        told.clear()
        await cluster.start("eventstore")
        await until(lambda: told[-1:] == [False], deadline_s=30)
        # What is read is still of the old history: of what stands at its places now nothing is said.
        await tell(store)
        async with read_model.snapshot() as snapshot:
            reading = snapshot.reading(snapshot.map_in_force(""))
        assert (await WatchHandlers(store).raise_all(reading, findings(reading), 0), await raised(store)) == (0, [])
        await pool.execute("DROP SCHEMA journey CASCADE")
        (after,) = await until(lambda: raised(store), deadline_s=30)
        assert (after.stream, after.event_id) == (before.stream, before.event_id)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await pool.close()
