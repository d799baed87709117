"""Deadlines against a real store and a real database, under a clock that the test moves."""

import asyncio
import contextlib
import functools
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import pytest_asyncio

from recorrido.actions.v1.events import (
    ActionKind,
    ActionResult,
    EscalationStep,
    Obligation,
    Period,
    Priority,
    ServiceLevel,
)
from recorrido.journey.v1.events import SignalRaised
from services.actions.domain.action import Action, ActionDecider, stream_of
from services.actions.domain.calendars import BusinessTime
from services.actions.domain.commands import AcceptAction, CompleteAction, OpenAction, OpenRecovery, Terms
from services.actions.domain.deadlines import scheduled
from services.actions.handlers.timer import Timer
from services.actions.views import due
from services.actions.views.projection import ActionsProjection
from services.foundation import lease, projection
from services.foundation.eventstore import EventStore
from services.foundation.execute import Executor, Intent
from services.foundation.projection import ProjectionRunner
from tests.support.cluster import running
from tests.support.truth import stored
from tests.support.wait import until

NOW = datetime(2026, 3, 2, 9, 0, tzinfo=UTC)
HOUR = timedelta(hours=1)


@dataclass
class Office:
    """The parts of a service that deadlines need, and a clock; every timer is a new process to them."""

    uri: str
    store: EventStore
    pool: Any
    now: datetime = NOW

    def executor(self) -> Executor[Action]:
        return Executor(self.store, ActionDecider())

    def timer(self) -> Timer:
        held = lambda: lease.held(self.pool, "test timer", look_every_s=0.05)  # noqa: E731 - what main gives it, too
        return Timer(self.executor(), due.overdue, held, lambda: self.now)

    @contextlib.asynccontextmanager
    async def ticking(self, count: int = 1) -> AsyncIterator[list[asyncio.Task[None]]]:
        """Run so many timers, as so many instances would."""
        tasks = [asyncio.create_task(self.timer().run()) for _ in range(count)]
        try:
            yield tasks
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def do(self, *commands: Any) -> None:
        intents = [Intent(stream_of(command.action_id), command) for command in commands]
        for outcome in await self.executor().execute_all(intents):
            assert outcome.error is None

    async def pending(self, ids: Sequence[str]) -> int:
        """Return how many deadlines of these actions are to come."""
        return int(await self.pool.fetchval("SELECT count(*) FROM actions.deadline WHERE action_id = ANY($1)", ids))

    async def told(self, *ids: str) -> list[tuple[str, str]]:
        """Return stream and type of what the clock recorded of these actions."""
        events = await stored(self.uri)
        wanted = {stream_of(each) for each in ids}
        return [
            (event.stream_name, event.type.rpartition(".")[2])
            for event in events
            if event.stream_name in wanted
            and event.type.rpartition(".")[2] in {"ActionDueSoon", "ActionOverdue", "ActionEscalated", "ActionAssigned"}
        ]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def office(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Office]:
    async with running(["postgres", "eventstore"], data=tmp_path_factory.mktemp("data")) as cluster:
        uri = cluster.environment["RECORRIDO_EVENTSTORE_URI"]
        store = await EventStore.connect(uri)
        pool = await projection.connect(cluster.environment["RECORRIDO_POSTGRES_DSN"])
        runner = ProjectionRunner(store, pool, ActionsProjection())
        await runner.prepare()
        following = asyncio.create_task(runner.run())
        try:
            yield Office(uri, store, pool)
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
            await pool.close()
            await store.close()


pytestmark = pytest.mark.asyncio(loop_scope="module")

LEVEL = ServiceLevel(
    accept_within=Period(minutes=120),
    resolve_within=Period(minutes=480),
    remind_before=Period(minutes=60),
    escalations=(EscalationStep(obligation=Obligation.RESOLUTION, after=Period(minutes=60), to="boss", reassign=True),),
)


def recovery(number: int, level: ServiceLevel = LEVEL, after: timedelta = timedelta()) -> OpenRecovery:
    schedule = scheduled(NOW + after, level, BusinessTime(None))
    terms = Terms(playbook_id="p", version=1, rule_id="r", priority=Priority.HIGH, owner="desk", schedule=schedule)
    signal = SignalRaised(signal_id=f"s-{number}", customer_id=f"customer {number}", rule="bad_moment")
    return OpenRecovery(signal=signal, occurred_at=NOW, terms=terms)


def improvement(number: int, due_at: datetime) -> OpenAction:
    return OpenAction(
        kind=ActionKind.IMPROVEMENT,
        title="x",
        actor="maja",
        request_id=f"r-{number}",
        occurred_at=NOW,
        due_at=due_at,
    )


async def test_each_deadline_is_told_once_whoever_dies_in_between(office: Office) -> None:
    opened = recovery(1)
    key = opened.action_id
    await office.do(opened)
    await until(lambda: _is(office, 5, key), what="deadlines in the read model")
    seen: Sequence[tuple[float, list[str]]] = [
        (1, ["ActionDueSoon"]),
        (2.5, ["ActionOverdue"]),
        (7, ["ActionDueSoon"]),
        (8, ["ActionOverdue"]),
        (9, ["ActionEscalated", "ActionAssigned"]),
    ]
    for index, (hours, _) in enumerate(seen, 1):
        office.now = NOW + hours * HOUR
        # Each time another process, which knows nothing.
        async with office.ticking():
            await until(functools.partial(_tells, office, key, [name for _, news in seen[:index] for name in news]))
    await until(lambda: _is(office, 0, key))
    assert len(await office.store.read(stream_of(key))) == 1 + 6
    assert (await office.executor().load(stream_of(key))).state.owner == "boss"


async def _is(office: Office, pending: int, *ids: str) -> bool:
    return await office.pending(ids) == pending


async def _tells(office: Office, key: str, expected: list[str]) -> bool:
    told = [name for _, name in await office.told(key)]
    assert len(told) <= len(expected), told
    return told == expected


async def test_what_fell_due_while_nobody_looked_is_told_in_its_order(office: Office) -> None:
    opened = recovery(2)
    await office.do(opened)
    await until(lambda: _is(office, 5, opened.action_id))
    office.now = NOW + 99 * HOUR
    async with office.ticking():
        names = ["DueSoon", "Overdue", "DueSoon", "Overdue", "Escalated", "Assigned"]
        await until(lambda: _tells(office, opened.action_id, [f"Action{name}" for name in names]))
        await until(lambda: _is(office, 0, opened.action_id))


async def test_what_was_done_in_time_does_not_fall_due(office: Office) -> None:
    first, second = recovery(3), recovery(4)
    who = {"actor": "luka", "occurred_at": NOW}
    await office.do(first, second)
    await office.do(
        AcceptAction(action_id=first.action_id, request_id="r-1", **who),
        AcceptAction(action_id=second.action_id, request_id="r-2", **who),
        CompleteAction(action_id=second.action_id, request_id="r-3", result=ActionResult.HELPED, **who),
    )
    await until(lambda: _is(office, 3, first.action_id, second.action_id), what="what is left of the first")
    office.now = NOW + 9 * HOUR
    async with office.ticking():
        names = ["DueSoon", "Overdue", "Escalated", "Assigned"]
        await until(lambda: _tells(office, first.action_id, [f"Action{name}" for name in names]))
    assert await office.told(second.action_id) == []


async def test_one_timer_works_and_another_takes_over(office: Office) -> None:
    early = [improvement(n, NOW + 10 * HOUR) for n in range(20)]
    late = improvement(20, NOW + 20 * HOUR)
    ids = [each.action_id for each in (*early, late)]
    await office.do(*early, late)
    await until(lambda: _is(office, 42, *ids))
    held = "FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 2 AND granted"

    async def holders() -> int:
        return int(await office.pool.fetchval(f"SELECT count(*) {held}"))

    async with office.ticking(3) as timers:
        await until(holders)
        office.now = NOW + 11 * HOUR
        await until(lambda: _is(office, 2, *ids))
        assert await holders() == 1
        # Whoever held it loses its connection; the lease is free for another.
        await office.pool.fetchval(f"SELECT pg_terminate_backend(pid) {held}")
        office.now = NOW + 21 * HOUR
        await until(lambda: _is(office, 0, *ids), 20)
        assert not any(timer.done() for timer in timers)
    told = Counter(await office.told(*ids))
    assert set(told.values()) == {1}
    assert Counter(name for _, name in told) == {"ActionDueSoon": 21, "ActionOverdue": 21}


async def _look_to_the_end(office: Office, timer: Timer) -> None:
    async with office.pool.acquire() as connection:
        while await timer.look(connection):  # noqa: ASYNC110 - as a timer does
            await asyncio.sleep(0.02)


async def test_two_who_both_believe_that_they_hold_the_lease_tell_everything_once(office: Office) -> None:
    opened = [improvement(n, NOW + 10 * HOUR) for n in range(100, 400)]
    ids = [each.action_id for each in opened]
    await office.do(*opened)
    await until(lambda: _is(office, 600, *ids))
    office.now = NOW + 11 * HOUR
    await asyncio.gather(_look_to_the_end(office, office.timer()), _look_to_the_end(office, office.timer()))
    told = Counter(await office.told(*ids))
    assert len(told) == 600
    assert set(told.values()) == {1}


async def test_ten_thousand_fall_due_in_the_same_minute(office: Office) -> None:
    count = 10_000
    level = ServiceLevel(resolve_within=Period(minutes=600))
    ids = []
    for at in range(1_000, 1_000 + count, 1_000):
        opened = [recovery(n, level, timedelta(milliseconds=5 * n)) for n in range(at, at + 1_000)]
        ids += [each.action_id for each in opened]
        await office.do(*opened)
    await until(lambda: _is(office, count, *ids), 60)
    office.now = NOW + 10 * HOUR + timedelta(minutes=1)
    await _look_to_the_end(office, office.timer())
    assert Counter(await office.told(*ids)) == {(stream_of(each), "ActionOverdue"): 1 for each in ids}
