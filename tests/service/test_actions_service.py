"""Actions over gRPC with its real event store, relay, NATS and PostgreSQL."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import grpc
import nats
import pytest
import pytest_asyncio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from recorrido.actions.v1 import action_pb2
from recorrido.actions.v1 import actions_service_pb2 as pb
from services.actions.views import queries
from services.foundation import bus
from services.foundation.events import CAUSATION_ID, CORRELATION_ID, derived_id, stream_name
from tests.support.cli import answer
from tests.support.cluster import Cluster, running
from tests.support.office import (
    ACCEPTED,
    COMPLETED,
    IMPROVEMENT,
    OPEN,
    RECOVERY,
    TRACE,
    TRACEPARENT,
    Office,
    connected,
    event_id,
    signal,
    unique,
)
from tests.support.rpc_errors import info, refusal, violations
from tests.support.truth import stored
from tests.support.wait import until


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def office(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Office]:
    """One running service for the tests that break nothing."""
    async with running(["relay", "actions"], data=tmp_path_factory.mktemp("data")) as cluster, connected(cluster) as it:
        yield it


CODE = grpc.StatusCode
pytestmark = pytest.mark.asyncio(loop_scope="module")


# -- by hand -------------------------------------------------------------------------------------------------------


async def test_an_action_from_opening_to_completion(office: Office) -> None:
    customer = unique("customer")
    opened = await office.open(
        customer_id=customer, reasons=["late", "rude"], touchpoint="delivery", need_path="delivery/speed"
    )
    assert (opened.kind, opened.state, opened.revision) == (RECOVERY, OPEN, 0)
    assert (opened.customer_id, opened.title, opened.reasons) == (customer, "Call Ana", ["late", "rude"])
    assert (opened.touchpoint, opened.need_path, opened.signal_id) == ("delivery", "delivery/speed", "")
    assert opened.opened_at == opened.updated_at

    accepted = await office.accept(opened.action_id, owner="tina")
    assert (accepted.state, accepted.owner, accepted.revision) == (ACCEPTED, "tina", 1)
    completed = await office.complete(opened.action_id, note="sent flowers")
    assert (completed.state, completed.result, completed.revision) == (COMPLETED, action_pb2.ACTION_RESULT_HELPED, 2)
    assert completed.opened_at == opened.opened_at
    assert completed.updated_at.ToDatetime() > accepted.updated_at.ToDatetime() > opened.updated_at.ToDatetime()

    got = await office.get(opened.action_id)
    assert got.action == completed
    assert [(h.event_type, h.actor, h.summary) for h in got.history] == [
        ("recorrido.actions.v1.ActionOpened", "maja", "opened the recovery: Call Ana"),
        ("recorrido.actions.v1.ActionAccepted", "luka", "accepted it for tina"),
        ("recorrido.actions.v1.ActionCompleted", "luka", "completed it: helped"),
    ]
    assert [(h.reason, h.revision) for h in got.history] == [("late; rude", 0), ("", 1), ("sent flowers", 2)]
    recorded = await office.store.read(stream_name("action", opened.action_id))
    assert [h.event_id for h in got.history] == [str(r.event_id) for r in recorded]
    assert [h.recorded_at.ToDatetime(UTC) for h in got.history] == [r.recorded_at for r in recorded]

    async def listed_as_it_is() -> bool:
        return list((await office.list(customer_id=customer)).actions) == [completed]

    await until(listed_as_it_is)


async def test_a_change_belongs_to_its_callers_trace_and_correlation(office: Office) -> None:
    request = pb.OpenActionRequest(kind=IMPROVEMENT, title="Faster refunds", actor="maja", request_id=unique("r"))
    response = await office.actions.OpenAction(
        request, metadata=(("traceparent", TRACEPARENT), ("x-correlation-id", "order-77"))
    )
    got = await office.get(response.action.action_id)
    assert [h.trace_id for h in got.history] == [TRACE]
    (recorded,) = await office.store.read(stream_name("action", response.action.action_id))
    assert recorded.metadata[CORRELATION_ID] == "order-77"


async def test_repeating_a_request_answers_the_same_and_records_nothing(office: Office) -> None:
    ids = [unique("r") for _ in range(3)]
    opened = await office.open(request_id=ids[0])
    assert await office.open(request_id=ids[0]) == opened
    accepted = await office.accept(opened.action_id, request_id=ids[1], expected_revision=0)
    assert await office.accept(opened.action_id, request_id=ids[1], expected_revision=0) == accepted
    completed = await office.complete(opened.action_id, request_id=ids[2])
    assert await office.complete(opened.action_id, request_id=ids[2]) == completed
    assert await office.open(request_id=ids[0]) == completed
    assert len((await office.get(opened.action_id)).history) == 3


async def test_many_repetitions_at_once_open_one_action(office: Office) -> None:
    request_id = unique("r")
    opened = await asyncio.gather(*(office.open(request_id=request_id) for _ in range(20)))
    assert {(each.action_id, each.revision) for each in opened} == {(opened[0].action_id, 0)}
    assert len((await office.get(opened[0].action_id)).history) == 1


async def test_a_request_id_of_something_else_already_exists(office: Office) -> None:
    request_id = unique("r")
    opened = await office.open(request_id=request_id)
    error = await refusal(office.open(request_id=request_id, title="Something else"))
    assert (error.code(), info(error).reason) == (CODE.ALREADY_EXISTS, "REQUEST_ID_REUSED")
    error = await refusal(office.accept(opened.action_id, request_id=request_id))
    assert (error.code(), info(error).reason) == (CODE.ALREADY_EXISTS, "REQUEST_ID_REUSED")
    assert (await office.get(opened.action_id)).action == opened


async def test_an_illegal_move_tells_what_is_allowed(office: Office) -> None:
    opened = await office.open()
    error = await refusal(office.complete(opened.action_id))
    assert (error.code(), info(error).reason) == (CODE.FAILED_PRECONDITION, "ILLEGAL_TRANSITION")
    assert info(error).metadata["state"] == "OPEN"
    assert info(error).metadata["allowed"].split(",") == list(opened.allowed)
    assert "AcceptAction" in opened.allowed
    assert f"allowed now: {', '.join(opened.allowed)}" in (error.details() or "")


async def test_an_unknown_action_is_not_found(office: Office) -> None:
    unknown = str(uuid.uuid4())
    for call in (office.get(unknown), office.accept(unknown), office.complete(unknown)):
        error = await refusal(call)
        assert (error.code(), info(error).reason) == (CODE.NOT_FOUND, "ACTION_NOT_FOUND")


@pytest.mark.parametrize(("expected", "code"), [(None, CODE.FAILED_PRECONDITION), (0, CODE.ABORTED)])
async def test_of_two_people_who_accept_at_once_one_wins(
    office: Office, expected: int | None, code: grpc.StatusCode
) -> None:
    opened = await office.open()
    people = [f"person {number}" for number in range(8)]
    calls = [office.accept(opened.action_id, actor=person, expected_revision=expected) for person in people]
    results = await asyncio.gather(*calls, return_exceptions=True)
    (winner,) = [each for each in results if isinstance(each, pb.Action)]
    losers = [each for each in results if isinstance(each, grpc.aio.AioRpcError)]
    assert [error.code() for error in losers] == [code] * 7
    for error in losers:
        if expected is None:
            assert info(error).metadata["owner"] == winner.owner
        else:
            assert error.details() == f"changed meanwhile: action-{opened.action_id} is at revision 1"
    history = (await office.get(opened.action_id)).history
    assert [h.event_type.rpartition(".")[2] for h in history] == ["ActionOpened", "ActionAccepted"]
    assert history[1].actor == winner.owner


# -- bad input -----------------------------------------------------------------------------------------------------

LONG = "x" * 1_048_576
BAD: Sequence[tuple[str, dict[str, Any], list[tuple[str, str]]]] = [
    ("open", {"kind": 0}, [("kind", "RECOVERY or IMPROVEMENT")]),
    ("open", {"kind": 99}, [("kind", "RECOVERY or IMPROVEMENT")]),
    ("open", {"priority": 99}, [("priority", "one of the known values")]),
    ("open", {"customer_id": ""}, [("customer_id", "required")]),
    ("open", {"customer_id": "an\0a"}, [("customer_id", "no control characters")]),
    ("open", {"title": LONG}, [("title", "at most 200 characters")]),
    ("open", {"title": "", "actor": "", "request_id": ""}, [(f, "required") for f in ("title", "actor", "request_id")]),
    ("open", {"reasons": ["why"] * 1_001}, [("reasons", "at most 20")]),
    ("open", {"reasons": ["why", LONG]}, [("reasons[1]", "at most 1,024 characters")]),
    ("accept", {"action_id": LONG}, [("action_id", "at most 128 characters")]),
    ("accept", {"actor": "\x1b[31m"}, [("actor", "no control characters")]),
    ("accept", {"owner": LONG}, [("owner", "at most 128 characters")]),
    ("complete", {"result": 0}, [("result", "HELPED, NO_CHANGE, WORSE or UNREACHABLE")]),
    ("complete", {"result": 99}, [("result", "HELPED, NO_CHANGE, WORSE or UNREACHABLE")]),
    ("complete", {"note": LONG}, [("note", "at most 4,096 characters")]),
    ("complete", {"request_id": ""}, [("request_id", "required")]),
    ("get", {"action_id": ""}, [("action_id", "required")]),
    ("get", {"action_id": "\0"}, [("action_id", "no control characters")]),
    ("list", {"state": 99}, [("state", "one of the known values")]),
    ("list", {"kind": 99}, [("kind", "one of the known values")]),
    ("list", {"page_size": 1_001}, [("page_size", "between 1 and 1,000")]),
    ("list", {"page_size": -1}, [("page_size", "between 1 and 1,000")]),
    ("list", {"customer_id": "\0"}, [("customer_id", "no control characters")]),
    ("list", {"owner": LONG}, [("owner", "at most 128 characters")]),
    ("list", {"page_token": "not ours"}, [("page_token", "a next_page_token, as it was given")]),
    ("list", {"page_token": "čšž"}, [("page_token", "a next_page_token, as it was given")]),
    ("list", {"page_token": LONG}, [("page_token", "a next_page_token, as it was given")]),
]


@pytest.mark.parametrize(("call", "fields", "broken"), BAD)
async def test_bad_input_names_its_field(
    office: Office, call: str, fields: dict[str, Any], broken: list[tuple[str, str]]
) -> None:
    if call in {"accept", "complete", "get"}:
        fields = {"action_id": str(uuid.uuid4()), **fields}
    error = await refusal(getattr(office, call)(**fields))
    assert error.code() is CODE.INVALID_ARGUMENT
    told = violations(error)
    assert [field for field, _ in told] == [field for field, _ in broken]
    assert all(rule.startswith(beginning) for (_, rule), (_, beginning) in zip(told, broken, strict=True))


# -- lists ---------------------------------------------------------------------------------------------------------


async def test_pages_follow_each_other_whatever_is_opened_meanwhile(office: Office) -> None:
    customer = unique("customer")
    opened = [(await office.open(customer_id=customer)).action_id for _ in range(25)]
    await office.until_listed(25, customer_id=customer)
    pages, token = [], ""
    while True:
        page = await office.list(customer_id=customer, page_size=10, page_token=token)
        pages.append([action.action_id for action in page.actions])
        token = page.next_page_token
        if not token:
            break
        await office.open(customer_id=customer)
        await office.until_listed(25 + len(pages), customer_id=customer)
    assert [len(page) for page in pages] == [10, 10, 5]
    assert [each for page in pages for each in page] == opened[::-1]
    assert page.total == 27


async def test_the_last_page_is_known_as_such(office: Office) -> None:
    customer = unique("customer")
    for _ in range(4):
        await office.open(customer_id=customer)
    await office.until_listed(4, customer_id=customer)
    first = await office.list(customer_id=customer, page_size=2)
    second = await office.list(customer_id=customer, page_size=2, page_token=first.next_page_token)
    assert (len(second.actions), second.next_page_token) == (2, "")
    assert not (await office.list(customer_id=unique("nobody"))).actions


async def test_filters_hold_together(office: Office) -> None:
    customer, owner = unique("customer"), unique("owner")
    kinds = [RECOVERY, IMPROVEMENT, RECOVERY, IMPROVEMENT]
    ids = [(await office.open(customer_id=customer, kind=kind)).action_id for kind in kinds]
    await office.accept(ids[0], owner=owner)
    await office.accept(ids[1], owner=owner)
    await office.ask("StartAction", ids[1])
    await office.complete(ids[1])
    await office.until_listed(1, customer_id=customer, state=COMPLETED)

    async def found(**filters: Any) -> list[int]:
        page = await office.list(customer_id=customer, **filters)
        assert page.total == len(page.actions)
        return [ids.index(action.action_id) for action in page.actions]

    assert await found() == [3, 2, 1, 0]
    assert await found(state=OPEN) == [3, 2]
    assert await found(state=ACCEPTED) == [0]
    assert await found(kind=RECOVERY) == [2, 0]
    assert await found(owner=owner) == [1, 0]
    assert await found(owner=owner, kind=IMPROVEMENT, state=COMPLETED) == [1]
    assert await found(owner=owner, kind=IMPROVEMENT, state=OPEN) == []


async def test_what_falls_due_next_comes_first_on_every_page(office: Office) -> None:
    customer = unique("customer")
    hours = [9, None, 3, 3, 26, None, 1, 5]
    now = datetime.now(UTC)
    due = [None if h is None else now + timedelta(hours=h) for h in hours]
    ids = [(await office.open(customer_id=customer, due_at=at)).action_id for at in due]
    # What is done does not fall due any more.
    await office.accept(ids[6])
    await office.complete(ids[6])
    await office.until_listed(1, customer_id=customer, state=COMPLETED)

    async def paged(**fields: Any) -> list[int]:
        found: list[int] = []
        token = ""
        while True:
            page = await office.list(customer_id=customer, page_size=3, page_token=token, **fields)
            assert (page.total, page.more_than_total) == (8, False)
            found += [ids.index(each.action_id) for each in page.actions]
            token = page.next_page_token
            if not token:
                return found

    assert await paged(order=pb.ACTION_ORDER_DUE) == [2, 3, 7, 0, 4, 1, 5, 6]
    assert await paged(order=pb.ACTION_ORDER_OLDEST) == list(range(8))
    assert await paged(order=pb.ACTION_ORDER_NEWEST) == await paged() == list(range(8))[::-1]
    sooner = now + timedelta(hours=2)
    moved = await office.ask("RescheduleAction", ids[0], due_at=sooner, reason="she leaves tomorrow")
    assert moved.due_at.ToDatetime(UTC) == sooner

    async def comes_first() -> bool:
        return (await paged(order=pb.ACTION_ORDER_DUE))[:2] == [0, 2]

    await until(comes_first, 20)
    first = await office.list(customer_id=customer, page_size=3, order=pb.ACTION_ORDER_DUE)
    for order in (pb.ACTION_ORDER_OLDEST, pb.ACTION_ORDER_NEWEST):
        error = await refusal(office.list(customer_id=customer, order=order, page_token=first.next_page_token))
        assert violations(error) == [("page_token", "used with the filters it was given for")]
    assert violations(await refusal(office.list(order=99))) == [("order", "one of the known values")]
    listed = await answer(office.cluster, "actions", "list", "--customer", customer, "--order", "due")
    assert [ids.index(each["actionId"]) for each in listed["actions"]] == [0, 2, 3, 7, 4, 1, 5, 6]


async def test_what_combines_filters_is_counted_to_a_limit(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, place = unique("owner"), unique("place")
    for _ in range(4):
        await office.open(owner=owner, touchpoint=place)
    await office.until_listed(4, owner=owner, touchpoint=place)
    pool = await asyncpg.create_pool(office.cluster.environment["RECORRIDO_POSTGRES_DSN"], min_size=1, max_size=1)
    try:
        for most, told in ((3, (3, True)), (4, (4, False))):
            monkeypatch.setattr(queries, "MAX_COUNTED", most)
            page = await queries.ActionQueries(pool).list(queries.ActionQuery(owner=owner, touchpoint=place))
            assert ((page.total, page.more), len(page.actions)) == (told, 4)
            # What is counted as it changes has no limit.
            page = await queries.ActionQueries(pool).list(queries.ActionQuery(owner=owner))
            assert (page.total, page.more) == (4, False)
    finally:
        await pool.close()


async def test_a_page_token_belongs_to_its_filters(office: Office) -> None:
    customer = unique("customer")
    for _ in range(2):
        await office.open(customer_id=customer)
    await office.until_listed(2, customer_id=customer)
    token = (await office.list(customer_id=customer, page_size=1)).next_page_token
    error = await refusal(office.list(customer_id="somebody else", page_size=1, page_token=token))
    assert violations(error) == [("page_token", "used with the filters it was given for")]


# -- signals -------------------------------------------------------------------------------------------------------


async def test_a_signal_opens_a_recovery(office: Office) -> None:
    customer = unique("customer")
    raised = signal(unique("s"), customer_id=customer)
    await office.raise_signals(raised)
    (action,) = (await office.until_listed(1, customer_id=customer)).actions
    assert action.action_id == str(derived_id("recovery", raised.signal_id))
    assert (action.kind, action.state, action.signal_id) == (RECOVERY, OPEN, raised.signal_id)
    assert action.title == "Bad moment at delivery: CSAT 1 of 5"
    assert list(action.reasons) == ["CSAT 1 of 5", "5 days late"]
    assert (action.touchpoint, action.need_path) == ("delivery", "delivery/speed")

    got = await office.get(action.action_id)
    assert got.action == action
    assert [(h.actor, h.trace_id) for h in got.history] == [("rule:bad_moment@1", TRACE)]
    (recorded,) = await office.store.read(stream_name("action", action.action_id))
    assert recorded.metadata[CAUSATION_ID] == str(event_id(raised))
    assert recorded.metadata[CORRELATION_ID] == f"about {raised.signal_id}"
    (cause,) = await office.store.read(stream_name("signal", raised.signal_id))
    assert action.opened_at.ToDatetime(UTC) == cause.recorded_at

    worked_on = await office.complete((await office.accept(action.action_id)).action_id)
    assert worked_on.state == COMPLETED


async def test_a_signal_of_nobody_becomes_a_dead_letter(office: Office) -> None:
    raised = signal(unique("s"), customer_id="")
    customer = unique("customer")
    await office.raise_signals(raised, signal(unique("s"), customer_id=customer))
    await office.until_listed(1, customer_id=customer)
    client = await nats.connect(office.cluster.environment["RECORRIDO_NATS_URL"])
    try:
        letters = await client.jetstream().pull_subscribe(
            "recorrido_dead.actions-recoveries.>", stream=bus.DEAD_LETTERS, durable="reader"
        )
        (letter,) = await letters.fetch(1, timeout=10)
    finally:
        await client.close()
    assert letter.headers["ce-id"] == str(event_id(raised))
    assert letter.headers["recorrido-dead-reason"] == "customer_id: required, 1 to 256 characters, not blank"


# -- the service itself --------------------------------------------------------------------------------------------


async def test_the_service_is_served_by_its_full_name(office: Office) -> None:
    async with grpc.aio.insecure_channel(office.cluster.address("actions")) as channel:
        call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(
            iter([reflection_pb2.ServerReflectionRequest(list_services="")])
        )
        answer = await call.read()
        health = await health_pb2_grpc.HealthStub(channel).Check(
            health_pb2.HealthCheckRequest(service="recorrido.actions.v1.ActionsService")
        )
    names = {service.name for service in answer.list_services_response.service}
    assert "recorrido.actions.v1.ActionsService" in names
    assert health.status == health_pb2.HealthCheckResponse.SERVING


async def rows(cluster: Cluster) -> list[asyncpg.Record]:
    connection = await asyncpg.connect(cluster.environment["RECORRIDO_POSTGRES_DSN"])
    try:
        found: list[asyncpg.Record] = await connection.fetch("SELECT * FROM actions.action ORDER BY action_id")
        return found
    finally:
        await connection.close()


async def opened_signals(cluster: Cluster) -> list[str]:
    events = await stored(cluster.environment["RECORRIDO_EVENTSTORE_URI"])
    return sorted(e.stream_name for e in events if e.type == "recorrido.actions.v1.ActionOpened")


async def test_signals_delivered_again_open_nothing_again(tmp_path: Any) -> None:
    signals = [signal(f"s-{number}", customer_id=f"customer {number}") for number in range(40)]
    async with running(["relay", "actions"], data=tmp_path) as cluster, connected(cluster) as office:
        await office.raise_signals(*signals)
        await office.until_listed(40)
        first = (await office.list()).actions[0]
        await office.accept(first.action_id)
        await office.until_listed(1, state=ACCEPTED)
        before = await opened_signals(cluster)
        assert len(before) == len(set(before)) == 40

        # A consumer that is new to the server gets everything from the beginning, and a new process knows nothing.
        await cluster.stop("actions")
        client = await nats.connect(cluster.environment["RECORRIDO_NATS_URL"])
        await client.jetstream().delete_consumer(bus.STREAM, "actions-recoveries")
        await cluster.start("actions")

        async def settled() -> bool:
            consumer = await client.jetstream().consumer_info(bus.STREAM, "actions-recoveries")
            return consumer.num_pending == consumer.num_ack_pending == 0 and consumer.delivered.consumer_seq == 40

        await until(settled, 20, ignoring=(nats.js.errors.NotFoundError,))
        await client.close()
        assert await opened_signals(cluster) == before
        assert (await office.get(first.action_id)).action.state == ACCEPTED


async def test_a_killed_service_loses_and_doubles_nothing_and_its_list_is_the_fold(tmp_path: Any) -> None:
    async with running(["relay", "actions"], data=tmp_path) as cluster, connected(cluster) as office:
        for wave in range(3):
            signals = [signal(f"s-{wave}-{n}", customer_id=f"customer {n}") for n in range(100)]
            await office.raise_signals(*signals)
            cluster.kill("actions")
        await office.until_listed(300)
        opened = await opened_signals(cluster)
        assert len(opened) == len(set(opened)) == 300
        listed = (await office.list(page_size=1_000)).actions
        for action in listed[::50]:
            await office.accept(action.action_id)
        await office.until_listed(6, state=ACCEPTED)
        listed = (await office.list(page_size=1_000)).actions
        folded = [await office.get(action.action_id) for action in listed]
        assert [each.action for each in folded] == list(listed)

        # The list can be thrown away: it is made again from the history.
        before = await rows(cluster)
        await cluster.stop("actions")
        connection = await asyncpg.connect(cluster.environment["RECORRIDO_POSTGRES_DSN"])
        await connection.execute("DROP SCHEMA actions CASCADE")
        await connection.close()
        await cluster.start("actions")
        await office.until_listed(6, state=ACCEPTED)
        assert await rows(cluster) == before


async def test_without_postgresql_actions_go_on_and_the_list_catches_up(tmp_path: Any) -> None:
    async with running(["relay", "actions"], data=tmp_path) as cluster, connected(cluster) as office:
        opened = await office.open()
        await office.until_listed(1)
        await cluster.stop("postgres")
        accepted = await office.accept(opened.action_id)
        assert (await office.get(opened.action_id)).action == accepted
        error = await refusal(office.list())
        assert (error.code(), info(error).metadata["part"]) == (CODE.UNAVAILABLE, "PostgreSQL")

        async with grpc.aio.insecure_channel(cluster.address("actions")) as channel:

            async def health() -> int:
                answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
                return int(answer.status)

            async def not_serving() -> bool:
                return await health() == health_pb2.HealthCheckResponse.NOT_SERVING

            async def serving() -> bool:
                return await health() == health_pb2.HealthCheckResponse.SERVING

            await until(not_serving, 20)
            await cluster.start("postgres")
            await office.until_listed(1, state=ACCEPTED)
            await until(serving, 20)
