"""Playbooks against the running service: signals come in over the bus, actions are opened as the playbook says."""

import asyncio
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import msgspec
import nats
import pytest
import pytest_asyncio
from opentelemetry.context import Context

from recorrido.actions.v1 import playbook_pb2
from recorrido.actions.v1 import playbook_service_pb2 as pb
from recorrido.actions.v1.action_pb2 import OBLIGATION_ACCEPTANCE, PRIORITY_HIGH, PRIORITY_URGENT
from recorrido.actions.v1.events import Calendar, Playbook, PlaybookPublished, SignalAnswered
from recorrido.actions.v1.explanation_service_pb2 import ExplainActionRequest
from recorrido.actions.v1.explanation_service_pb2_grpc import ExplanationServiceStub
from recorrido.actions.v1.playbook_service_pb2_grpc import PlaybookServiceStub
from recorrido.ingest.v1.events import Customer, Interaction, InteractionRecorded
from recorrido.journey.v1.events import Evidence, SignalRaised
from services.actions.domain.action import ActionDecider
from services.actions.domain.playbooks import FIRST
from services.actions.handlers.playbooks import PlaybookBook
from services.actions.handlers.signals import SignalHandlers
from services.foundation import bus
from services.foundation.bus import Delivery, Done
from services.foundation.errors import ConflictError
from services.foundation.events import Pending, stream_name
from services.foundation.eventstore import NO_STREAM, StreamAppend
from services.foundation.execute import Executor
from tests.support.cli import answer, recorrido
from tests.support.cluster import running
from tests.support.office import IMPROVEMENT, RECOVERY, Office, connected, signal, unique
from tests.support.rpc_errors import info, refusal, violations
from tests.support.truth import stored
from tests.support.wait import until

CODE = grpc.StatusCode
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def office(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Office]:
    data = tmp_path_factory.mktemp("data")
    async with running(["relay", "actions"], data=data) as cluster, connected(cluster) as it:
        yield it


@pytest_asyncio.fixture(loop_scope="module")
async def playbooks(office: Office) -> AsyncIterator[Any]:
    """The service; what a test published is switched off at its end, for playbooks act on every signal."""
    async with grpc.aio.insecure_channel(office.cluster.address("actions")) as channel:
        stub = PlaybookServiceStub(channel)
        yield stub
        for published in (await stub.ListPlaybooks(pb.ListPlaybooksRequest())).playbooks:
            published.playbook.disabled = True
            await publish(stub, published.playbook)


def draft(place: str, **fields: Any) -> playbook_pb2.Playbook:
    """Return a playbook for the signals of one place, which no other test uses."""
    level = playbook_pb2.ServiceLevel(
        accept_within=playbook_pb2.Period(minutes=60),
        resolve_within=playbook_pb2.Period(days=2),
        escalations=[
            playbook_pb2.EscalationStep(
                obligation=OBLIGATION_ACCEPTANCE, after=playbook_pb2.Period(minutes=30), to="lead"
            )
        ],
    )
    match = playbook_pb2.SignalMatch(touchpoints=[place])
    given: dict[str, Any] = {
        "playbook_id": place,
        "name": "Care",
        "recoveries": [
            playbook_pb2.RecoveryRule(
                rule_id="call-back",
                match=match,
                priority=PRIORITY_HIGH,
                owner="desk",
                service_level=level,
                cool_down_days=14,
            )
        ],
    }
    return playbook_pb2.Playbook(**{**given, **fields})


def improving(place: str, customers: int) -> playbook_pb2.ImprovementRule:
    return playbook_pb2.ImprovementRule(
        rule_id="fix-it",
        match=playbook_pb2.SignalMatch(touchpoints=[place]),
        group_by=[playbook_pb2.CAUSE_PART_TOUCHPOINT, playbook_pb2.CAUSE_PART_NEED],
        customers=customers,
        within_days=7,
        priority=PRIORITY_URGENT,
        owner="process team",
    )


async def publish(stub: Any, playbook: playbook_pb2.Playbook, **fields: Any) -> pb.PublishedPlaybook:
    given = {"playbook": playbook, "actor": "maja", "request_id": unique("r")}
    answer: pb.PublishPlaybookResponse = await stub.PublishPlaybook(pb.PublishPlaybookRequest(**{**given, **fields}))
    return answer.published


def place() -> str:
    return unique("p").replace(" ", "-")


async def answers(office: Office, *signals: SignalRaised) -> Counter[str]:
    """Return the answers to these signals, once each has one."""
    wanted = {each.signal_id for each in signals}

    async def complete() -> Counter[str] | None:
        events = await stored(office.cluster.environment["RECORRIDO_EVENTSTORE_URI"])
        given = [e.data for e in events if e.type == "recorrido.actions.v1.SignalAnswered"]
        found = [msgspec.json.decode(data, type=SignalAnswered) for data in given]
        of_them = [each for each in found if each.signal_id in wanted]
        assert len({each.signal_id for each in of_them}) == len(of_them), "answered twice"
        return Counter(each.answer.name for each in of_them) if len(of_them) == len(wanted) else None

    return await until(complete, 30, what="answers")


# -- publishing ----------------------------------------------------------------------------------------------------


async def test_versions_are_kept_and_repetitions_change_nothing(playbooks: Any) -> None:
    where = place()
    first = await publish(playbooks, draft(where), request_id="r " + where, reason="to begin with")
    assert (first.version, first.actor, first.reason) == (1, "maja", "to begin with")
    assert first.playbook == draft(where)
    assert await publish(playbooks, draft(where), request_id="r " + where) == first
    assert (await publish(playbooks, draft(where))).version == 1
    second = await publish(playbooks, draft(where, name="Better care"), expected_version=1)
    assert second.version == 2
    error = await refusal(publish(playbooks, draft(where, name="Late"), expected_version=1))
    assert error.code() is CODE.ABORTED
    error = await refusal(publish(playbooks, draft(where, name="Another"), request_id="r " + where))
    assert info(error).reason == "REQUEST_ID_REUSED"

    async def get(version: int) -> pb.PublishedPlaybook:
        answer: pb.GetPlaybookResponse = await playbooks.GetPlaybook(
            pb.GetPlaybookRequest(playbook_id=where, version=version)
        )
        return answer.published

    assert await get(1) == first
    assert await get(0) == await get(2) == second
    listed = (await playbooks.ListPlaybooks(pb.ListPlaybooksRequest())).playbooks
    assert [each for each in listed if each.playbook.playbook_id == where] == [second]
    assert (await refusal(get(3))).code() is CODE.NOT_FOUND
    assert (await refusal(playbooks.GetPlaybook(pb.GetPlaybookRequest(playbook_id="Ž")))).code() is CODE.NOT_FOUND


async def test_every_problem_of_a_playbook_is_told(playbooks: Any) -> None:
    wrong = draft("Wrong Place", calendar=playbook_pb2.Calendar(time_zone="Mars"))
    wrong.recoveries[0].match.touchpoints[0] = "de*livery"
    wrong.recoveries[0].service_level.escalations[0].to = ""
    wrong.improvements.append(improving("x", 0))
    wrong.improvements[0].rule_id = "call-back"
    assert violations(await refusal(publish(playbooks, wrong))) == [
        ("playbook.playbook_id", "1 to 64 of a-z, 0-9 and -"),
        ("playbook.calendar.time_zone", "an IANA time zone, such as Europe/Ljubljana"),
        ("playbook.recoveries[0].match.touchpoints[0]", "'*' only at the end, where it matches any rest"),
        ("playbook.recoveries[0].service_level.escalations[0].to", "required, 1 to 128 characters, not blank"),
        ("playbook.improvements[0].rule_id", "unique in the playbook"),
        ("playbook.improvements[0].customers", "between 1 and 10,000"),
    ]
    # A priority of a newer contract is not taken for none.
    newer = draft(place())
    newer.recoveries[0].priority = 99  # type: ignore[assignment]
    told = [("playbook.recoveries[0].priority", "one of the known values")]
    assert violations(await refusal(publish(playbooks, newer))) == told
    tried = playbooks.DryRunPlaybook(pb.DryRunPlaybookRequest(playbook=newer))
    assert violations(await refusal(tried.read())) == told


# -- what is opened ------------------------------------------------------------------------------------------------


async def test_a_signal_opens_what_the_playbook_says_and_when_it_is_due(office: Office, playbooks: Any) -> None:
    where, customer = place(), unique("customer")
    await publish(playbooks, draft(where))
    raised, other = signal(unique("s"), customer_id=customer, touchpoint=where), signal(unique("s"), touchpoint="else")
    await office.raise_signals(raised, other)
    (opened,) = (await office.until_listed(1, customer_id=customer)).actions
    assert (opened.priority, opened.owner, opened.signal_id) == (PRIORITY_HIGH, "desk", raised.signal_id)
    assert (opened.playbook_id, opened.playbook_version, opened.playbook_rule) == (where, 1, "call-back")
    at = opened.opened_at.ToDatetime()
    assert opened.accept_by.ToDatetime() == at + timedelta(hours=1)
    assert opened.due_at.ToDatetime() == at + timedelta(days=2)
    history = (await office.get(opened.action_id)).history
    assert [entry.actor for entry in history] == [f"playbook:{where}/call-back@1"]
    # What no rule matches opens nothing.
    assert not (await office.list(playbook_id=where, customer_id="ana")).total

    # A newer version is for newer signals, and a customer is left alone for a while.
    await publish(playbooks, draft(where, name="Another"))
    again = signal(unique("s"), customer_id=customer, touchpoint=where, reasons=("NPS 2",))
    await office.raise_signals(again)
    assert await answers(office, raised, again) == {"OPENED": 1, "COOLING_DOWN": 1}

    async def joined() -> Sequence[Any]:
        return [entry for entry in (await office.get(opened.action_id)).history if again.signal_id in entry.summary]

    (entry,) = await until(joined)
    assert entry.reason == "NPS 2"

    # Reopened, it is due as long after as the playbook says.
    await office.accept(opened.action_id)
    await office.complete(opened.action_id)
    reopened = await office.ask("ReopenAction", opened.action_id, reason="again")
    assert reopened.due_at.ToDatetime() == reopened.updated_at.ToDatetime() + timedelta(days=2)


async def test_fifty_customers_with_one_cause_are_one_improvement_with_fifty_recoveries(
    office: Office, playbooks: Any
) -> None:
    where = place()
    await publish(playbooks, draft(where, improvements=[improving(where, 20)]))
    signals = [
        signal(unique("s"), customer_id=unique("customer"), touchpoint=where, need_path="delivery/speed")
        for _ in range(50)
    ]
    # The same customer again, and another need, count for nothing here.
    twice = signal(unique("s"), customer_id=signals[0].customer_id, touchpoint=where, need_path="delivery/speed")
    elsewhere = signal(unique("s"), customer_id=unique("customer"), touchpoint=where, need_path="price")
    await office.raise_signals(*signals[:19], twice, elsewhere)
    await office.until_listed(20, playbook_id=where, kind=RECOVERY)
    assert not (await office.list(playbook_id=where, kind=IMPROVEMENT)).total
    await office.raise_signals(*signals[19:])
    (improvement,) = (await office.until_listed(1, playbook_id=where, kind=IMPROVEMENT)).actions
    linked = await office.until_listed(50, improvement_id=improvement.action_id)
    assert {each.signal_id for each in linked.actions} == {each.signal_id for each in signals}
    assert (improvement.owner, improvement.priority, improvement.touchpoint, improvement.need_path) == (
        "process team",
        PRIORITY_URGENT,
        where,
        "delivery/speed",
    )
    assert improvement.target.metric == "bad_moments"
    assert improvement.reasons[0] == "20 customers within 7 days"


async def test_a_signal_about_everyone_opens_an_improvement_where_a_rule_names_it(
    office: Office, playbooks: Any
) -> None:
    where = place()
    named = improving(where, 1)
    named.match.rules.extend(["score_worsened", "point_worsened", "coverage_lost"])
    unnamed = improving(where, 1)
    unnamed.rule_id = "anything"
    await publish(playbooks, draft(where, improvements=[named, unnamed]))
    about = {"customer_id": "", "map_id": "shop", "map_version": 1, "touchpoint_id": where, "need_path": ""}
    customer = unique("customer")
    interaction = InteractionRecorded(interaction=Interaction(customer=Customer(customer_id=customer)))
    stream = stream_name("customer", customer)
    await office.store.append([StreamAppend(stream, NO_STREAM, [Pending(interaction, uuid.uuid4())])])
    (recorded,) = await office.store.read(stream)
    event_id = str(recorded.event_id)
    seen = Evidence(event_id=event_id, event_type=recorded.type_name, position=str(recorded.position))
    fell = signal(
        unique("s"),
        rule="score_worsened",
        reasons=("CSAT fell from 81.0 % to 70.2 %",),
        inputs={"metric": "csat"},
        evidence=(seen,),
        **about,
    )
    again = signal(unique("s"), rule="score_worsened", inputs={"metric": "csat"}, **about)
    hurts = signal(unique("s"), rule="point_worsened", inputs={"metric": "pain"}, **{**about, "need_path": "price"})
    silent = signal(unique("s"), rule="touchpoint_silent", **about)
    await office.raise_signals(fell, again, hurts, silent)
    await answers(office, fell, again, hurts)
    # The same cause again opens nothing while its improvement is open; what no rule names opens nothing at all.
    listed = (await office.until_listed(2, playbook_id=where)).actions
    assert {(each.kind, each.playbook_rule, each.customer_id) for each in listed} == {(IMPROVEMENT, "fix-it", "")}
    score, point = sorted(listed, key=lambda each: each.need_path)
    assert score.title == "Score worsened at delivery: CSAT fell from 81.0 % to 70.2 %"
    assert list(score.reasons) == ["CSAT fell from 81.0 % to 70.2 %"]
    assert (score.target.metric, score.target.touchpoint, score.target.need_path) == ("csat", where, "")
    assert score.target.map_id == "shop"
    assert (point.target.metric, point.target.need_path) == ("pain_share", "price")
    async with grpc.aio.insecure_channel(office.cluster.address("actions")) as channel:
        explained = await ExplanationServiceStub(channel).ExplainAction(ExplainActionRequest(action_id=score.action_id))
    assert event_id in str(explained)
    assert "(erased)" not in str(explained)


async def test_the_guard_refuses_and_says_so(office: Office, playbooks: Any) -> None:
    where = place()
    await publish(playbooks, draft(where, max_per_hour=10))
    signals = [signal(unique("s"), customer_id=unique("customer"), touchpoint=where) for _ in range(60)]
    await office.raise_signals(*signals[:30])
    await answers(office, *signals[:30])
    await office.raise_signals(*signals[30:])
    given = await answers(office, *signals)
    # The hour may have turned meanwhile; then there are two.
    assert given["OPENED"] in (10, 20)
    assert given["OPENED"] + given["REFUSED_BY_GUARD"] == 60
    await office.until_listed(given["OPENED"], playbook_id=where)
    events = await stored(office.cluster.environment["RECORRIDO_EVENTSTORE_URI"])
    said = [e for e in events if e.type == "recorrido.actions.v1.GuardTripped" and where.encode() in e.data]
    assert len(said) == given["OPENED"] // 10


async def test_a_signal_that_comes_late_is_answered_by_what_was_in_force_then(office: Office, playbooks: Any) -> None:
    where, late, prompt = place(), unique("late"), unique("prompt")
    first = draft(where)
    await publish(playbooks, first)
    await office.cluster.stop("relay")
    await office.raise_signals(signal(unique("s"), customer_id=late, touchpoint=where))
    second = draft(where)
    second.recoveries[0].owner = "another desk"
    await publish(playbooks, second)
    await office.raise_signals(signal(unique("s"), customer_id=prompt, touchpoint=where))
    await office.cluster.start("relay")
    listed = (await office.until_listed(2, playbook_id=where)).actions
    assert {each.customer_id: (each.owner, each.playbook_version) for each in listed} == {
        late: ("desk", 1),
        prompt: ("another desk", 2),
    }


async def test_what_is_no_playbook_in_the_store_stops_no_other(office: Office, playbooks: Any) -> None:
    broken, good = place(), place()
    nowhere = Playbook(playbook_id=broken, name="Mars", calendar=Calendar(time_zone="Mars/Olympus"))
    event = PlaybookPublished(playbook=nowhere, version=1, actor="somebody", request_id="r")
    await office.store.append([StreamAppend(f"playbook-{broken}", NO_STREAM, [Pending(event, uuid.uuid4())])])
    await publish(playbooks, draft(good))
    await office.raise_signals(signal(unique("s"), customer_id=unique("c"), touchpoint=good))
    await office.until_listed(1, playbook_id=good)
    get = pb.GetPlaybookRequest(playbook_id=broken)
    assert (await refusal(playbooks.GetPlaybook(get))).code() is CODE.NOT_FOUND


async def test_a_playbook_that_is_switched_off_opens_nothing(office: Office, playbooks: Any) -> None:
    off, on = place(), place()
    await publish(playbooks, draft(off, disabled=True))
    await publish(playbooks, draft(on))
    await office.raise_signals(signal(unique("s"), customer_id=unique("c"), touchpoint=off))
    await office.raise_signals(signal(unique("s"), customer_id=unique("c"), touchpoint=on))
    await office.until_listed(1, playbook_id=on)
    assert not (await office.list(touchpoint=off)).total


async def test_a_dry_run_tells_what_would_have_been_opened_and_records_nothing(office: Office, playbooks: Any) -> None:
    where, since = place(), datetime.now(UTC)
    await publish(playbooks, draft("off-" + where, disabled=True))
    customers = [unique("customer") for _ in range(6)]
    signals = [signal(unique("s"), customer_id=customer, touchpoint=where) for customer in [*customers, *customers[:2]]]
    await office.raise_signals(*signals)
    planned = draft(where, improvements=[improving(where, 3)], max_per_hour=5)
    request = pb.DryRunPlaybookRequest(playbook=planned, max_openings=4)
    getattr(request, "from").FromDatetime(since)
    found = [each async for each in playbooks.DryRunPlaybook(request)]
    openings = [each.opening for each in found if each.HasField("opening")]
    assert [(each.kind, each.playbook_rule) for each in openings] == [
        (RECOVERY, "call-back"),
        (RECOVERY, "call-back"),
        (RECOVERY, "call-back"),
        (IMPROVEMENT, "fix-it"),
    ]
    assert [each.signal_id for each in openings[:3]] == [each.signal_id for each in signals[:3]]
    first = openings[0]
    assert first.due_at.ToDatetime() == first.opened_at.ToDatetime() + timedelta(days=2)
    assert openings[3].customers == 3
    summary = found[-1].summary
    # The improvement took one of the five; the sixth customer and nobody else is refused.
    assert (summary.recoveries, summary.improvements, summary.refused_by_guard) == (4, 1, 2)
    assert summary.cooled_down == 2
    assert summary.busiest_count == 5
    assert not (await office.list(touchpoint=where)).total
    # One that is asked before it takes its signals.
    await publish(playbooks, draft("a-" + where, recoveries=draft(where).recoveries))
    beside = [each async for each in playbooks.DryRunPlaybook(request)][-1].summary
    assert (beside.recoveries, beside.taken_by_others, beside.by_others, beside.improvements) == (0, 8, 6, 1)
    request.alone = True
    assert [each async for each in playbooks.DryRunPlaybook(request)][-1].summary == summary
    wrong = await refusal(playbooks.DryRunPlaybook(pb.DryRunPlaybookRequest(playbook=draft("No"))).read())
    assert wrong.code() is CODE.INVALID_ARGUMENT


async def test_three_instances_that_handle_the_same_signals_come_to_the_same(office: Office, playbooks: Any) -> None:
    where = place()
    await publish(playbooks, draft(where, improvements=[improving(where, 10)]))
    people = [unique("customer") for _ in range(30)]
    signals = [signal(unique("s"), customer_id=people[n % 30], touchpoint=where) for n in range(60)]
    await office.raise_signals(*signals)
    recorded = [(await office.store.read(stream_name("signal", each.signal_id)))[0] for each in signals]
    deliveries = [Delivery(event, it, Context()) for event, it in zip(signals, recorded, strict=True)]

    async def handle(some: list[Delivery]) -> None:
        executor, book = Executor(office.store, ActionDecider()), PlaybookBook(office.store)
        handlers = SignalHandlers(office.store, executor, book)

        async def done() -> bool:
            return all(isinstance(each, Done) for each in await handlers.handle(some))

        await until(done, 60, ignoring=(ConflictError,))

    # Beside the service itself, which has them from the bus.
    await asyncio.gather(handle(deliveries), handle(deliveries[::-1]))
    assert await answers(office, *signals) == {"OPENED": 30, "COOLING_DOWN": 30}
    (improvement,) = (await office.until_listed(1, playbook_id=where, kind=IMPROVEMENT)).actions
    recoveries = await office.until_listed(30, playbook_id=where, kind=RECOVERY)
    assert {each.customer_id for each in recoveries.actions} == set(people)
    await office.until_listed(30, improvement_id=improvement.action_id)


async def test_signals_delivered_again_after_a_kill_come_to_the_same(tmp_path: Path) -> None:
    where = place()
    async with running(["relay", "actions"], data=tmp_path) as cluster, connected(cluster) as office:
        async with grpc.aio.insecure_channel(cluster.address("actions")) as channel:
            stub = PlaybookServiceStub(channel)
            first = draft(where, improvements=[improving(where, 5)])
            tried = [each async for each in stub.DryRunPlaybook(pb.DryRunPlaybookRequest(playbook=first))]
            request = pb.PublishPlaybookRequest(playbook=first, actor="maja", request_id="first")
            told = await stub.PublishPlaybook(request)
            # What opened a recovery until now and opens none from now on is said before and then.
            assert list(tried[-1].summary.notices) == list(told.notices) == [FIRST]
            assert not (await stub.PublishPlaybook(request)).notices
        signals = [signal(f"s-{n}", customer_id=f"customer {n % 40}", touchpoint=where) for n in range(120)]
        for wave in range(3):
            await office.raise_signals(*signals[wave * 40 : wave * 40 + 40])
            cluster.kill("actions")
        given = await answers(office, *signals)
        assert given == {"OPENED": 40, "COOLING_DOWN": 80}
        (improvement,) = (await office.until_listed(1, kind=IMPROVEMENT)).actions
        await office.until_listed(40, improvement_id=improvement.action_id)

        # A consumer that is new to the server gets everything from the beginning, and a new process knows nothing.
        before = await actions_of(office)
        await cluster.stop("actions")
        client = await nats.connect(cluster.environment["RECORRIDO_NATS_URL"])
        await client.jetstream().delete_consumer(bus.STREAM, "actions-recoveries")
        await cluster.start("actions")

        async def settled() -> bool:
            consumer = await client.jetstream().consumer_info(bus.STREAM, "actions-recoveries")
            return consumer.num_pending == consumer.num_ack_pending == 0 and consumer.delivered.consumer_seq >= 120

        await until(settled, 30, ignoring=(nats.js.errors.NotFoundError,))
        await client.close()
        assert await actions_of(office) == before


async def actions_of(office: Office) -> Counter[tuple[str, str]]:
    events = await stored(office.cluster.environment["RECORRIDO_EVENTSTORE_URI"])
    return Counter((event.stream_name, event.type) for event in events if event.type.startswith("recorrido.actions."))


async def test_a_playbook_on_the_command_line(office: Office, playbooks: Any) -> None:  # noqa: ARG001 - switched off again
    cluster = office.cluster
    tried = await recorrido(cluster, "playbook", "dry-run", "standard")
    assert tried.code == 0, tried
    assert "signals would have opened" in tried.out
    published = await answer(cluster, "playbook", "publish", "standard", "--reason", "to begin with")
    assert published["published"]["version"] == 1
    again = await recorrido(cluster, "playbook", "publish", "standard", "--expected-version", "0")
    assert again.code == 1
    assert again.err.startswith("error: ")
    shown = await recorrido(cluster, "playbook", "show", "standard")
    assert "money-or-delivery" in shown.out
    assert "4h" in shown.out
    listed = await recorrido(cluster, "playbook", "list")
    assert "standard" in listed.out
    wrong = await recorrido(cluster, "playbook", "publish", "nothing.yaml")
    assert (wrong.code, wrong.err.splitlines()[0]) == (
        1,
        "error: nothing.yaml: there is no such file; shipped playbooks are standard",
    )
