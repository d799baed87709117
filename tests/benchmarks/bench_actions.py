"""How fast actions are, with many of them: commands against bare appends, lists, the board, and watching.

    python tests/benchmarks/bench_actions.py [--actions 200000] [--rounds 3] [--plans]

Commands: accepting actions at an expected revision, by the service's own command path (decide, group commit, append)
and over gRPC against a running service, against as many bare appends at the expected revision at a time to the same
store in the same run; the ratio, of the former, is the median of the rounds. Over gRPC it is the client, the service
and its read models, too, that share the machine. Lists and the board are
asked over gRPC, one after the other, while nothing else happens. 1,000 watchers see one change. `--plans` shows what
PostgreSQL does for each list and for the board.
"""

import argparse
import asyncio
import random
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import uvloop

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[2] / "proto/gen"))

from infra.local.cluster import running
from recorrido.actions.v1 import action_pb2
from recorrido.actions.v1 import actions_service_pb2 as pb
from recorrido.actions.v1.actions_service_pb2_grpc import ActionsServiceStub
from recorrido.actions.v1.events import (
    ActionAccepted,
    ActionCompleted,
    ActionKind,
    ActionOpened,
    ActionResult,
    Priority,
)
from services.actions.domain.action import ActionDecider, stream_of
from services.actions.domain.commands import AcceptAction, OpenAction
from services.actions.handlers.commands import ActionCommands
from services.actions.handlers.playbooks import PlaybookBook
from services.actions.views.queries import BOARD_LINES, ActionQuery, board_sql, list_sql
from services.foundation import telemetry
from services.foundation.events import Pending, derived_id
from services.foundation.eventstore import NO_STREAM, EventStore, StreamAppend
from services.foundation.execute import Executor
from tests.support.wait import until

#: Less than this part of the rate of bare appends is too slow, and so is a slower list or board.
ENOUGH = 0.5
SLOWEST_S = 0.100
AT_ONCE = 64
WATCHERS = 1_000

TOUCHPOINTS = [f"touchpoint {n}" for n in range(30)]
NEEDS = [f"need {n // 6}/{n % 6}" for n in range(42)]
OWNERS = [f"owner {n}" for n in range(200)]
START = datetime(2026, 1, 1, tzinfo=UTC)


def history(number: int, chance: random.Random) -> list[Any]:
    """Return the events of one action: six of ten are closed, as a year's would be."""
    key = str(derived_id("bench", str(number)))
    at = START + timedelta(minutes=2 * number)
    kind = ActionKind.IMPROVEMENT if number % 50 == 0 else ActionKind.RECOVERY
    owner = chance.choice(OWNERS)
    who = {"action_id": key, "actor": owner}
    events: list[Any] = [
        ActionOpened(
            **who,
            kind=kind,
            customer_id=f"customer {chance.randrange(60_000)}" if kind is ActionKind.RECOVERY else "",
            title="Bad moment at delivery: CSAT 1 of 5",
            reasons=("CSAT 1 of 5", "5 days late"),
            touchpoint=chance.choice(TOUCHPOINTS),
            need_path=chance.choice(NEEDS),
            priority=chance.choice([Priority.NORMAL, Priority.NORMAL, Priority.HIGH, Priority.URGENT]),
            owner=owner,
            playbook_id="care" if number % 3 else "",
            due_at=at + timedelta(days=chance.randrange(1, 30)) if number % 4 else None,
            request_id="open",
            occurred_at=at,
        )
    ]
    if chance.random() < 0.8:
        events.append(ActionAccepted(**who, owner=owner, request_id="accept", occurred_at=at))
        if chance.random() < 0.75 and kind is ActionKind.RECOVERY:
            result = chance.choice([ActionResult.HELPED, ActionResult.NO_CHANGE])
            events.append(ActionCompleted(**who, result=result, request_id="done", occurred_at=at + timedelta(days=1)))
    return events


async def fill(store: EventStore, count: int) -> None:
    chance = random.Random(7)
    for at in range(0, count, 250):
        await store.append(
            [
                StreamAppend(
                    stream_of(events[0].action_id), NO_STREAM, [Pending(event, uuid.uuid4()) for event in events]
                )
                for events in (history(number, chance) for number in range(at, min(at + 250, count)))
            ]
        )


async def listed(stub: Any, count: int) -> bool:
    return bool((await stub.ListActions(pb.ListActionsRequest(page_size=1))).total >= count)


async def timed(call: Callable[[], Awaitable[Any]], times: int) -> list[float]:
    taken = []
    for _ in range(times):
        started = time.perf_counter()
        await call()
        taken.append(time.perf_counter() - started)
    return sorted(taken)


async def rate(calls: Sequence[Callable[[], Awaitable[Any]]]) -> float:
    """Calls a second, AT_ONCE at a time."""
    waiting = iter(calls)

    async def work() -> None:
        for call in waiting:
            await call()

    started = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(AT_ONCE)))
    return len(calls) / (time.perf_counter() - started)


async def commands(stub: Any, store: EventStore, count: int) -> tuple[float, float, float]:
    """Return the rates of accepting actions here and over gRPC, and of appending such events."""
    opened = [
        pb.OpenActionRequest(
            kind=action_pb2.ACTION_KIND_RECOVERY,
            customer_id="bench",
            title="bench",
            actor="bench",
            request_id=str(uuid.uuid4()),
        )
        for _ in range(count)
    ]
    ids = [(await stub.OpenAction(request)).action.action_id for request in opened]

    def accepting(action_id: str) -> Callable[[], Awaitable[Any]]:
        request = pb.AcceptActionRequest(
            action_id=action_id, actor="bench", request_id=str(uuid.uuid4()), expected_revision=0
        )
        return lambda: stub.AcceptAction(request)

    streams = [f"bench-{uuid.uuid4()}" for _ in range(count)]
    event = ActionAccepted(action_id="bench", actor="bench", owner="bench", request_id="r", occurred_at=START)

    def appending(stream: str, expected: int) -> Callable[[], Awaitable[Any]]:
        return lambda: store.append([StreamAppend(stream, expected, [Pending(event, uuid.uuid4())])])

    await rate([appending(stream, NO_STREAM) for stream in streams])
    bare = await rate([appending(stream, 0) for stream in streams])
    here = await _accepting_here(store, count)
    return here, await rate([accepting(action_id) for action_id in ids]), bare


async def _accepting_here(store: EventStore, count: int) -> float:
    path = ActionCommands(store, Executor(store, ActionDecider()), PlaybookBook(store))
    now = datetime.now(UTC)
    opened = [
        OpenAction(
            kind=ActionKind.RECOVERY,
            customer_id="bench",
            title="bench",
            actor="bench",
            request_id=str(uuid.uuid4()),
            occurred_at=now,
        )
        for _ in range(count)
    ]

    def asking(command: Any, expected: int | None) -> Callable[[], Awaitable[Any]]:
        return lambda: path.execute(command, metadata={}, expected_revision=expected)

    await rate([asking(command, None) for command in opened])
    accepted = [
        AcceptAction(action_id=each.action_id, actor="bench", request_id="accept", occurred_at=now) for each in opened
    ]
    return await rate([asking(command, 0) for command in accepted])


LISTS: dict[str, dict[str, Any]] = {
    "everything": {},
    "open": {"state": action_pb2.ACTION_STATE_OPEN},
    "improvements that are accepted": {
        "kind": action_pb2.ACTION_KIND_IMPROVEMENT,
        "state": action_pb2.ACTION_STATE_ACCEPTED,
    },
    "of an owner": {"owner": OWNERS[3]},
    "of an owner, open": {"owner": OWNERS[3], "state": action_pb2.ACTION_STATE_OPEN},
    "of a touchpoint and a need": {"touchpoint": TOUCHPOINTS[1], "need_path": NEEDS[1]},
    "of a customer": {"customer_id": "customer 17"},
    "urgent": {"priority": action_pb2.PRIORITY_URGENT},
    "of a playbook, open": {"playbook_id": "care", "state": action_pb2.ACTION_STATE_OPEN},
    "overdue (none)": {"overdue": True},
    "of a playbook, urgent (counted)": {"playbook_id": "care", "priority": action_pb2.PRIORITY_URGENT},
    "by due time": {"order": pb.ACTION_ORDER_DUE},
    "open, by due time": {"state": action_pb2.ACTION_STATE_OPEN, "order": pb.ACTION_ORDER_DUE},
    "of an owner, by due time": {"owner": OWNERS[3], "order": pb.ACTION_ORDER_DUE},
    "of a touchpoint, by due time": {"touchpoint": TOUCHPOINTS[1], "order": pb.ACTION_ORDER_DUE},
}


async def reads(stub: Any, times: int) -> dict[str, list[float]]:
    taken = {}
    for name, fields in LISTS.items():
        request = pb.ListActionsRequest(**fields, page_size=100)
        taken[f"list {name}"] = await timed(lambda request=request: stub.ListActions(request), times)
    deep = pb.ListActionsRequest(page_size=1_000)
    for _ in range(20):
        deep.page_token = (await stub.ListActions(deep)).next_page_token
    deep.page_size = 100
    taken["list everything, page 200"] = await timed(lambda: stub.ListActions(deep), times)
    taken["board"] = await timed(lambda: stub.GetBoard(pb.GetBoardRequest()), times)
    return taken


async def watching(address: str, stub: Any) -> float:
    """Return how long it takes until 1,000 watchers have seen a change, from asking for it."""
    channels = [grpc.aio.insecure_channel(address, options=[("bench", n)]) for n in range(10)]
    try:
        stubs = [ActionsServiceStub(channel) for channel in channels]
        request = pb.WatchActionsRequest(customer_id="watched")
        watches = [stubs[n % 10].WatchActions(request) for n in range(WATCHERS)]
        await asyncio.gather(*(watch.read() for watch in watches))
        started = time.perf_counter()
        await stub.OpenAction(
            pb.OpenActionRequest(
                kind=action_pb2.ACTION_KIND_RECOVERY,
                customer_id="watched",
                title="bench",
                actor="bench",
                request_id=str(uuid.uuid4()),
            )
        )
        await asyncio.gather(*(watch.read() for watch in watches))
        return time.perf_counter() - started
    finally:
        await asyncio.gather(*(channel.close() for channel in channels))


async def show_plans(dsn: str) -> None:
    connection = await asyncpg.connect(dsn)
    queries = [ActionQuery(), ActionQuery(owner=OWNERS[3]), ActionQuery(touchpoint=TOUCHPOINTS[1], need_path=NEEDS[1])]
    queries.append(ActionQuery(customer_id="customer 17"))
    for query in queries:
        for statement, values in list_sql(query):
            print(f"\n-- {query.filters}")
            await _explain(connection, statement, values)
    for dimension, column in (("state", ""), ("owner", "owner")):
        print(f"\n-- board by {dimension}")
        await _explain(connection, board_sql(dimension, column), ["", BOARD_LINES])
    await connection.close()


async def _explain(connection: Any, statement: str, values: Sequence[Any]) -> None:
    for row in await connection.fetch(f"EXPLAIN (ANALYZE, BUFFERS OFF, COSTS OFF) {statement}", *values):
        print("  ", row[0])


async def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--actions", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--commands", type=int, default=1_000, help="in each round")
    parser.add_argument("--reads", type=int, default=200, help="of each kind")
    parser.add_argument("--plans", action="store_true", help="show what PostgreSQL does")
    given = parser.parse_args()
    telemetry.set_up("bench", log_level="WARNING")
    with tempfile.TemporaryDirectory(prefix="bench-actions-", ignore_cleanup_errors=True) as folder:
        async with running(["actions"], data=Path(folder)) as cluster:
            store = await EventStore.connect(cluster.environment["RECORRIDO_EVENTSTORE_URI"])
            async with grpc.aio.insecure_channel(cluster.address("actions")) as channel:
                stub = ActionsServiceStub(channel)
                started = time.perf_counter()
                await fill(store, given.actions)
                filled = time.perf_counter()
                await until(lambda: listed(stub, given.actions), 600, every_s=0.2)
                print(
                    f"{given.actions:,} actions: recorded in {filled - started:.0f} s,"
                    f" in the list {time.perf_counter() - filled:.0f} s later"
                )
                if given.plans:
                    await show_plans(cluster.environment["RECORRIDO_POSTGRES_DSN"])
                slowest = _tell_reads(await reads(stub, given.reads))
                rates = [await commands(stub, store, given.commands) for _ in range(given.rounds)]
                ratio = statistics.median(command / bare for command, _, bare in rates)
                for command, remote, bare in rates:
                    print(
                        f"{command:6,.0f} commands/s, {bare:6,.0f} bare appends/s, ratio {command / bare:.2f};"
                        f" over gRPC {remote:6,.0f}/s, ratio {remote / bare:.2f}"
                    )
                seen = await watching(cluster.address("actions"), stub)
                print(f"{WATCHERS:,} watchers saw a change within {1000 * seen:.0f} ms")
            await store.close()
    good = ratio >= ENOUGH and slowest <= SLOWEST_S
    print(
        f"ratio {ratio:.2f} (at least {ENOUGH}), slowest p99 {1000 * slowest:.0f} ms (at most {1000 * SLOWEST_S:.0f})"
    )
    return 0 if good else 1


def _tell_reads(taken: dict[str, list[float]]) -> float:
    slowest = 0.0
    for name, times in taken.items():
        p99 = times[min(len(times) - 1, int(len(times) * 0.99))]
        slowest = max(slowest, p99)
        print(f"{name:36} p50 {1000 * times[len(times) // 2]:6.1f} ms  p99 {1000 * p99:6.1f} ms")
    return slowest


if __name__ == "__main__":
    raise SystemExit(uvloop.run(main()))
