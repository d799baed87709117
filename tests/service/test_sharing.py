"""Several runners of one projection in front of one store: each its share, nothing twice, nothing seen too early."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid5

import asyncpg
import pytest
import pytest_asyncio

from recorrido.actions.v1.events import ActionKind, ActionOpened
from recorrido.inference.v1.events import Analysis, FeedbackAnalyzed, PointKind
from recorrido.ingest.v1.events import (
    AnonymousInteraction,
    Customer,
    CustomerAnonymized,
    IdentityLinked,
    Interaction,
    InteractionRecorded,
    Rating,
    RatingMetric,
    Verbatim,
)
from recorrido.journey.v1.events import Evidence, SignalRaised
from services.foundation import projection as foundation
from services.foundation.events import Event, Pending, Registry
from services.foundation.eventstore import ANY, EventStore, StreamAppend
from services.foundation.lease import Shares
from services.foundation.rebuild import rebuild
from services.foundation.sharing import PARTITIONS, SharedRunner, partition_of
from services.journey.views.overview import overview
from services.journey.views.projection import JourneyProjection
from services.journey.views.snapshot import ReadModel
from tests.support.cluster import Cluster, running
from tests.support.tables import dump
from tests.support.wait import until

pytestmark = pytest.mark.asyncio(loop_scope="module")
START = datetime(2026, 1, 1, tzinfo=UTC)
NAMESPACE = UUID(int=6)
EVERYTHING = set(range(PARTITIONS))


@dataclass
class Stage:
    """A store and a database, and the names of the read models that were built in it."""

    cluster: Cluster
    store: EventStore
    pool: Any

    async def dsn_pool(self) -> Any:
        """Return a pool of its own, as another process would have."""
        return await foundation.connect(self.cluster.environment["RECORRIDO_POSTGRES_DSN"])

    async def append(self, stream: str, event: Event, event_id: UUID) -> None:
        await self.store.append([StreamAppend(stream, ANY, [Pending(event, event_id)])])

    async def position(self, schema: str) -> int:
        """Return what all partitions have passed."""
        return int(await self.pool.fetchval(f"SELECT min(event_position) FROM {schema}.checkpoint") or -1)

    async def last(self) -> int:
        """Return the position of the last event that the projection folds."""
        types = Registry(JourneyProjection.types).type_names
        return [each.position async for each in self.store.read_all(None, types)][-1]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    async with running(["eventstore", "postgres"], data=tmp_path_factory.mktemp("sharing")) as cluster:
        store = await EventStore.connect(cluster.environment["RECORRIDO_EVENTSTORE_URI"])
        pool = await foundation.connect(cluster.environment["RECORRIDO_POSTGRES_DSN"])
        try:
            yield Stage(cluster, store, pool)
        finally:
            await pool.close()
            await store.close()


def projection(schema: str) -> JourneyProjection:
    view = JourneyProjection()
    view.name = schema
    return view


@contextlib.asynccontextmanager
async def instance(stage: Stage, schema: str) -> AsyncIterator[SharedRunner]:
    """Project as one instance of the service does; at the end it is gone all at once, as by kill -9."""
    pool = await stage.dsn_pool()
    runner = SharedRunner(stage.store, pool, projection(schema), batch_size=20)
    task = asyncio.create_task(runner.run())
    try:
        yield runner
    finally:
        pool.terminate()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def holders(stage: Stage, schema: str) -> dict[int, set[int]]:
    """Return which partitions each connection holds, of those that share the work."""
    rows = await stage.pool.fetch(
        """SELECT pid, objid::int AS part FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 2
           AND classid = (hashtext($1)::bigint & 4294967295)::oid""",
        f"partitions of {schema}",
    )
    found: dict[int, set[int]] = {row["pid"]: set() for row in rows if row["part"] == PARTITIONS}
    for row in rows:
        if row["part"] < PARTITIONS:
            found[row["pid"]].add(row["part"])
    return found


async def shared_among(stage: Stage, schema: str, *sizes: int) -> None:
    async def so() -> bool:
        held = (await holders(stage, schema)).values()
        return sorted(map(len, held)) == sorted(sizes) and set().union(*held) == EVERYTHING

    await until(so, 20, what=f"shares of {sizes}")


def life(number: int) -> Iterator[tuple[str, Event, UUID]]:
    """Yield the events of one customer; names are shared with others, and so is an event id, by a strange writer."""
    who = f"customer {number}"
    stream = f"customer-{who}"
    for visit in range(3):
        event_id = uuid5(NAMESPACE, f"{number} {visit}")
        interaction = Interaction(
            source="shop",
            interaction_id=str(visit),
            customer=Customer(customer_id=who),
            touchpoint=f"touchpoint {(number + visit) % 7}",
            occurred_at=START + timedelta(hours=number + visit),
            verbatim=Verbatim(text=f"words of {who}"),
            ratings=(Rating(metric=RatingMetric.CSAT, value=1.0 + number % 5),),
            attributes={"customer.age": f"age {number % 3}"},
        )
        yield stream, InteractionRecorded(interaction=interaction), event_id
        if visit == 0:
            yield stream, InteractionRecorded(interaction=interaction), uuid5(NAMESPACE, "of many")
        analysis = Analysis(point=PointKind.PAIN, sentiment_score=-0.5, need_path=f"need {number % 4}")
        analyzed = FeedbackAnalyzed(interaction_event_id=str(event_id), customer_id=who, analysis=analysis)
        yield stream, analyzed, uuid5(NAMESPACE, f"{event_id} analysis")
    linked = IdentityLinked(identity_customer_id=f"device:{number}", customer_id=who)
    yield f"identity-{number}", linked, uuid5(NAMESPACE, f"{number} linked")
    evidence = (Evidence(event_id=str(uuid5(NAMESPACE, f"{number} 0"))),)
    raised = SignalRaised(signal_id=f"s{number}", rule="bad_moment", customer_id=who, evidence=evidence)
    yield f"signal-s{number}", raised, uuid5(NAMESPACE, f"{number} raised")
    opened = ActionOpened(action_id=f"a{number}", kind=ActionKind.RECOVERY, customer_id=who, title="Call")
    yield f"action-a{number}", opened, uuid5(NAMESPACE, f"{number} opened")


async def live(stage: Stage, numbers: range) -> None:
    for number in numbers:
        for stream, event, event_id in life(number):
            await stage.append(stream, event, event_id)


async def erase(stage: Stage, number: int) -> None:
    """Anonymize a customer, whose events the store still holds: those of many partitions, and one at a time."""
    of_theirs = [
        each
        async for each in stage.store.read_all(None, Registry(JourneyProjection.types).type_names)
        if each.stream
        in {f"customer-customer {number}", f"identity-{number}", f"signal-s{number}", f"action-a{number}"}
    ]
    left = AnonymousInteraction(
        pseudonym=f"nobody {number}",
        position=str(of_theirs[0].position),
        occurred_at=START,
        recorded_at=of_theirs[0].recorded_at,
        source="shop",
        touchpoint="touchpoint 1",
        had_words=True,
    )
    erased = CustomerAnonymized(
        receipt_id=f"r{number}",
        erased_positions=tuple(str(each.position) for each in of_theirs),
        interactions=(left,),
    )
    await stage.append(f"erasure-r{number}", erased, uuid5(NAMESPACE, f"{number} erased"))


async def alone(stage: Stage, schema: str) -> dict[str, list[tuple[Any, ...]]]:
    """Return the rows that one runner makes of the history, without anybody beside it."""
    runner = SharedRunner(stage.store, stage.pool, projection(schema))
    await runner.prepare()
    await runner.last()
    for recorded in [each async for each in stage.store.read_all(None, Registry(JourneyProjection.types).type_names)]:
        await runner.write([recorded])
    rows = await dump(stage.pool, schema)
    rows.pop("checkpoint")
    return rows


# -- the tests ---------------------------------------------------------------------------------------------------------


async def test_the_work_is_shared_evenly_and_taken_over(stage: Stage) -> None:
    schema = "evenly"
    async with contextlib.AsyncExitStack() as others:
        async with instance(stage, schema):
            await shared_among(stage, schema, 8)
            await others.enter_async_context(instance(stage, schema))
            await shared_among(stage, schema, 4, 4)
            await others.enter_async_context(instance(stage, schema))
            await shared_among(stage, schema, 3, 3, 2)
        await shared_among(stage, schema, 4, 4)


async def test_rows_are_those_of_one_instance_though_one_dies_and_customers_are_erased(stage: Stage) -> None:
    schema = "together"
    async with instance(stage, schema):
        async with instance(stage, schema):
            await shared_among(stage, schema, 4, 4)
            await live(stage, range(20))
            await erase(stage, 3)
            await live(stage, range(20, 30))
            await until(lambda: written_by(stage, schema, 2), 20, what="both write")
            writing = asyncio.create_task(live(stage, range(30, 50)))
            await until(lambda: stage.position(schema), 20)
        # In the middle of it one of them is gone.
        await erase(stage, 21)
        await writing
        async with instance(stage, schema):
            await shared_among(stage, schema, 4, 4)
            await live(stage, range(50, 60))
            await erase(stage, 55)
            last = await stage.last()
            await until(lambda: passed(stage, schema, last), 30)
    shared = await dump(stage.pool, schema)
    shared.pop("checkpoint")
    assert shared == await alone(stage, "by_one")
    assert len(shared["erasure"]) == 3
    assert not any("customer 21'" in str(row) for rows in shared.values() for row in rows)
    async with ReadModel(stage.pool, schema).snapshot() as snapshot:
        now = overview(snapshot.reading(snapshot.map_in_force("")))
    # 3 of each of 57 customers, 1 of each who was erased; in each partition 1 of those that have one id.
    assert (now.interactions, now.signals) == (57 * 3 + 3 + PARTITIONS, 57)


async def written_by(stage: Stage, schema: str, instances: int) -> bool:
    """Return whether the checkpoints were moved by so many transactions, each of which moved one instance's."""
    return bool(
        await stage.pool.fetchval(f"SELECT count(DISTINCT xmin::text) FROM {schema}.checkpoint WHERE position > 0")
        == instances
    )


async def passed(stage: Stage, schema: str, position: int) -> bool:
    return await stage.position(schema) >= position


async def test_nothing_is_seen_and_nobody_erased_before_all_have_come_to_it(stage: Stage) -> None:
    schema = "waiting"
    await live(stage, range(99, 100))
    begun = await stage.last()
    async with stage.pool.acquire() as connection, instance(stage, schema):
        await shared_among(stage, schema, 8)
        await until(lambda: passed(stage, schema, begun), 20)
        # An instance that holds its half and does nothing.
        idle = Shares(connection, f"partitions of {schema}", PARTITIONS)
        await idle.join()
        await until(lambda: half(idle), 20)
        held = await idle.take()
        before = await stage.position(schema)
        await live(stage, range(100, 110))
        theirs, ours = [
            next(n for n in range(100, 110) if (partition_of(f"customer-customer {n}") in held) is is_held)
            for is_held in (True, False)
        ]
        await erase(stage, ours)
        erased = await stage.last()
        await live(stage, range(110, 113))

        async def as_far_as_it_can() -> bool:
            return bool(
                await stage.pool.fetchval(f"SELECT count(*) FROM {schema}.checkpoint WHERE event_position > $1", before)
                == PARTITIONS - len(held)
            )

        await until(as_far_as_it_can, 20)
        await until(lambda: waits_at(stage, schema, erased), 20)
        async with ReadModel(stage.pool, schema).snapshot() as snapshot:
            assert snapshot.position <= erased
            assert await snapshot.number_of(f"customer {theirs}") is None
            assert await snapshot.number_of(f"customer {ours}") is None
        assert await stage.pool.fetchval(f"SELECT count(*) FROM {schema}.interaction WHERE position > $1", erased) == 0
        for part in held:
            await connection.execute("SELECT pg_advisory_unlock(hashtext($1), $2)", f"partitions of {schema}", part)
        await connection.execute(
            "SELECT pg_advisory_unlock_shared(hashtext($1), $2)", f"partitions of {schema}", PARTITIONS
        )
        last = await stage.last()
        await until(lambda: passed(stage, schema, last), 20)
        async with ReadModel(stage.pool, schema).snapshot() as snapshot:
            assert await snapshot.number_of(f"customer {theirs}") is not None
            assert await snapshot.number_of(f"customer {ours}") is None


async def half(shares: Shares) -> bool:
    _, wanted = await shares.look()
    return len(wanted) == PARTITIONS // 2


async def waits_at(stage: Stage, schema: str, position: int) -> bool:
    """Return whether those who can have come to the event before `position`."""
    types = Registry(JourneyProjection.types).type_names
    before = max([each.position async for each in stage.store.read_all(None, types) if each.position < position])
    return bool(await stage.pool.fetchval(f"SELECT max(event_position) FROM {schema}.checkpoint") == before)


async def test_who_is_frozen_in_a_write_keeps_nobody_from_writing(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.foundation.projection.SILENT_S", 1)
    schema = "frozen_in_a_write"
    pool = await stage.dsn_pool()
    frozen = SharedRunner(stage.store, pool, projection(schema))
    await frozen.prepare()
    await live(stage, range(200, 202))
    writing = contextlib.AsyncExitStack()
    connection = await writing.enter_async_context(frozen._transaction())
    await connection.execute("UPDATE checkpoint SET position = position")
    async with instance(stage, schema):
        last = await stage.last()
        await until(lambda: passed(stage, schema, last), 15)
    with contextlib.suppress(*foundation.POSTGRES_DOWN):
        await writing.aclose()
    pool.terminate()


async def told_by(runner: SharedRunner, count: int) -> list[bool]:
    """Run until it told of its availability so often, and return what."""
    told: list[bool] = []
    task = asyncio.create_task(runner.run(available=told.append))
    await until(lambda: len(told) >= count, 20, what=f"{count} answers")
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return told


async def test_no_partition_goes_on_over_another_history(stage: Stage) -> None:
    """The store was replaced by a backup that ends between the partitions: some of them had read farther."""
    schema = "replaced"
    await live(stage, range(210, 212))
    before = await alone(stage, schema)
    await stage.pool.execute(
        f"UPDATE {schema}.checkpoint SET event_position = event_position + 1000, position = position + 1000,"
        " event_id = gen_random_uuid() WHERE partition = 5"
    )
    await live(stage, range(212, 214))
    assert await told_by(SharedRunner(stage.store, stage.pool, projection(schema)), 1) == [False]
    rows = await dump(stage.pool, schema)
    rows.pop("checkpoint")
    assert rows == before


async def test_what_came_behind_the_last_event_is_found(stage: Stage) -> None:
    """A backup from between the last event and the checkpoint holds all that was read, and goes on differently."""
    schema = "behind"
    await live(stage, range(220, 222))
    await alone(stage, schema)
    await stage.pool.execute(f"UPDATE {schema}.checkpoint SET position = position + 1000000")
    await live(stage, range(222, 230))
    async with instance(stage, schema):
        last = await stage.last()
        await until(lambda: passed(stage, schema, last), 20)
    rows = await dump(stage.pool, schema)
    rows.pop("checkpoint")
    assert rows == await alone(stage, "behind_alone")


async def test_who_is_of_another_version_writes_no_more(stage: Stage) -> None:
    """Tables that a newer version made anew are left to it: they are neither filled by the older one nor dropped."""
    schema = "versions"
    await live(stage, range(240, 242))
    newer = projection(schema)
    newer.types = [each for each in newer.types if each is not ActionOpened]
    older = SharedRunner(stage.store, stage.pool, projection(schema))
    told: list[bool] = []
    running_on = asyncio.create_task(older.run(available=told.append))
    last = await stage.last()
    await until(lambda: passed(stage, schema, last), 20, ignoring=(asyncpg.UndefinedTableError,))
    await SharedRunner(stage.store, stage.pool, newer).prepare()
    await live(stage, range(242, 243))
    await until(lambda: told[-1] is False, 20, what="the older one stops")
    assert await stage.pool.fetchval(f"SELECT count(*) FROM {schema}.interaction") == 0
    assert await stage.pool.fetchval(f"SELECT max(position) FROM {schema}.checkpoint") == -1
    await stage.pool.execute(f"DROP SCHEMA {schema} CASCADE")
    await until(lambda: told[-1] is True, 20, what="it is built anew")
    running_on.cancel()
    await asyncio.gather(running_on, return_exceptions=True)


@pytest.mark.parametrize("how", ["given up", "killed"])
async def test_a_rebuild_leaves_nothing_behind(stage: Stage, how: str) -> None:
    """A copy that nobody keeps up would hold who is erased later."""
    schema = f"left_{how[-2:]}"
    await live(stage, range(250, 252))
    runner = SharedRunner(stage.store, stage.pool, projection(schema))
    await runner.prepare()
    building = rebuild(stage.store, stage.pool, lambda: projection(schema), SharedRunner)
    assert not (await anext(building)).done

    async def there() -> set[str]:
        rows = await stage.pool.fetch("SELECT nspname FROM pg_namespace WHERE nspname LIKE $1", f"{schema}%")
        return {row["nspname"] for row in rows}

    await runner.prepare()
    assert await there() == {schema, f"{schema}_beside"}, "it goes on"
    await building.aclose()
    if how == "killed":
        await stage.pool.execute(f"CREATE SCHEMA {schema}_beside")
        await runner.prepare()
    assert await there() == {schema}


async def test_another_number_of_partitions_is_another_read_model() -> None:
    """What tells tables apart names the number."""
    assert f"partition < {PARTITIONS}" in SharedRunner.checkpoint_ddl


async def test_who_says_nothing_loses_its_share(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = await stage.dsn_pool()
    connection = await pool.acquire()
    frozen = Shares(connection, "partitions of frozen", PARTITIONS)
    with monkeypatch.context() as patch:
        patch.setattr("services.foundation.lease.SILENT_S", 1)
        await frozen.join()
    assert await frozen.take() == EVERYTHING
    async with instance(stage, "frozen"):
        await shared_among(stage, "frozen", 8)
    with contextlib.suppress(*foundation.POSTGRES_DOWN):
        await pool.release(connection)
    pool.terminate()
