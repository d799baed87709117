"""Impact over gRPC: what was measured is exact, verification records it, and a fall reopens once."""

import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import grpc
import pytest
import pytest_asyncio
from msgspec import structs

from recorrido.actions.v1 import action_pb2, impact_pb2
from recorrido.actions.v1 import actions_service_pb2 as actions_pb
from recorrido.actions.v1 import impact_service_pb2 as pb
from recorrido.actions.v1.events import (
    ActionAccepted,
    ActionCompleted,
    ActionKind,
    ActionOpened,
    ActionResult,
    ActionStarted,
    ActionState,
    ActionVerified,
    Impact,
    Target,
)
from recorrido.actions.v1.explanation_service_pb2 import ExplainActionRequest, ExplainedRole
from recorrido.actions.v1.explanation_service_pb2_grpc import ExplanationServiceStub
from recorrido.actions.v1.impact_service_pb2_grpc import ImpactServiceStub
from recorrido.inference.v1.events import Analysis, FeedbackAnalyzed, PointKind
from recorrido.ingest.v1.events import (
    AnonymousAction,
    AnonymousAnalysis,
    AnonymousInteraction,
    AnonymousSignal,
    Customer,
    CustomerAnonymized,
    Interaction,
    InteractionRecorded,
    Rating,
    RatingMetric,
)
from recorrido.journey.v1.events import (
    Evidence,
    JourneyMap,
    JourneyMapPublished,
    MappingRule,
    SignalRaised,
    Stage,
    Touchpoint,
)
from services.actions.domain.impact import Samples, assess, moments, share
from services.foundation.events import Event, Pending
from services.foundation.eventstore import ANY, EventStore, StreamAppend
from tests.support.cli import answer, recorrido
from tests.support.cluster import running
from tests.support.office import ACCEPTED, IMPROVEMENT, Office, connected, unique
from tests.support.rpc_errors import info, refusal, violations
from tests.support.wait import until

NOW = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
DONE = NOW - timedelta(days=60)
BEGAN = DONE - timedelta(days=5)
DAY = timedelta(days=1)
V = impact_pb2.ImpactVerdict


@dataclass
class World:
    """A running actions service and what is written for it."""

    office: Office
    impacts: Any

    @property
    def store(self) -> EventStore:
        return self.office.store

    async def append(self, stream: str, *events: Event) -> list[Pending]:
        pending = [Pending(event, uuid4()) for event in events]
        await self.store.append([StreamAppend(stream, ANY, pending)])
        return pending

    async def answers(
        self, touchpoint: str, at: datetime, csats: Sequence[int], customers: int = 1_000
    ) -> list[Pending]:
        """Record one interaction an hour from `at` on, of one customer after the other."""
        said = [_interaction(touchpoint, at, hour, csat, hour % customers) for hour, csat in enumerate(csats)]
        return await self.append(f"customer-{uuid4()}", *said)

    async def improvement(self, target: Target | None, *, done: datetime | None = DONE, **verified: Any) -> str:
        key = str(uuid4())
        common = {"action_id": key, "actor": "maja"}
        events: list[Event] = [
            ActionOpened(
                **common,
                kind=ActionKind.IMPROVEMENT,
                title="Faster",
                request_id="1",
                target=target,
                occurred_at=BEGAN - 3 * DAY,
            ),
            ActionAccepted(**common, owner="maja", request_id="2", occurred_at=BEGAN - DAY),
            ActionStarted(**common, request_id="3", occurred_at=BEGAN),
        ]
        if done:
            events.append(
                ActionCompleted(**common, result=ActionResult.HELPED, request_id="4", occurred_at=done),
            )
        if verified:
            events.append(ActionVerified(**common, request_id="5", reason="seen", **verified))
        await self.append(f"action-{key}", *events)
        return key

    async def impact(self, action_id: str, **fields: Any) -> impact_pb2.Impact:
        found = await self.impacts.GetImpact(pb.GetImpactRequest(action_id=action_id, **fields))
        return found.impact  # type: ignore[no-any-return]

    async def measured(self, action_id: str, before: int, after: int, **fields: Any) -> impact_pb2.Impact:
        """Return the impact as soon as so many were heard before and after."""

        async def complete() -> impact_pb2.Impact | None:
            found = await self.impact(action_id, **fields)
            return found if (found.before.count, found.after.count) == (before, after) else None

        return await until(complete, 20, what=f"{before} before and {after} after")


def _interaction(touchpoint: str, at: datetime, hour: int, csat: int, customer: int) -> InteractionRecorded:
    return InteractionRecorded(
        interaction=Interaction(
            source="test",
            interaction_id=str(uuid4()),
            customer=Customer(customer_id=f"customer {customer}"),
            touchpoint=touchpoint,
            occurred_at=at + timedelta(hours=hour),
            ratings=(Rating(metric=RatingMetric.CSAT, value=csat),) if csat else (),
        )
    )


@contextlib.asynccontextmanager
async def world_of(data: Path) -> AsyncIterator[World]:
    async with (
        running(["actions"], data=data, env={"RECORRIDO_FALLS_EVERY_SECONDS": "0.2"}) as cluster,
        connected(cluster) as office,
        grpc.aio.insecure_channel(cluster.address("actions")) as channel,
    ):
        yield World(office, ImpactServiceStub(channel))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    async with world_of(tmp_path_factory.mktemp("data")) as it:
        yield it


pytestmark = pytest.mark.asyncio(loop_scope="module")


def csat_at(touchpoint: str) -> Target:
    return Target(metric="csat", touchpoint=touchpoint)


GOOD, BAD = 5, 1


async def test_what_got_better_here_and_not_elsewhere_helped(world: World) -> None:
    here, there = unique("here"), unique("there")
    await world.answers(there, BEGAN - 10 * DAY, [GOOD, BAD] * 50)
    await world.answers(there, DONE, [GOOD, BAD] * 50)
    await world.answers(here, BEGAN - 10 * DAY, [GOOD, BAD] * 50)
    # While it was worked on is neither before nor after.
    await world.answers(here, BEGAN, [BAD] * 48)
    await world.answers(here, DONE, [GOOD, GOOD, GOOD, BAD] * 25)
    key = await world.improvement(csat_at(here))
    found = await world.measured(key, 100, 100, comparison_touchpoints=[there])
    assert found.verdict == V.IMPACT_VERDICT_HELPED
    assert found.method == impact_pb2.IMPACT_METHOD_DIFFERENCE_IN_DIFFERENCES
    assert (found.before.mean, found.after.mean) == (50, 75)
    assert (found.comparison_before.mean, found.comparison_after.count) == (50, 100)
    assert found.effect.value == pytest.approx(25)
    assert found.effect.low > 0
    assert found.statement.endswith(": it helped.")
    assert found.before_to.ToDatetime(UTC) == BEGAN
    assert found.after_from.ToDatetime(UTC) == DONE
    assert list(found.comparison_touchpoints) == [there]
    alone = await world.impact(key, without_comparison=True)
    assert (alone.method, alone.HasField("comparison_before")) == (impact_pb2.IMPACT_METHOD_BEFORE_AFTER, False)
    told = await recorrido(world.office.cluster, "impact", key, "--against", there)
    assert found.statement in told.out
    assert (await answer(world.office.cluster, "impact", key))["impact"]["unit"] == "percentage points"
    # Everything else is what the other tests wrote, too.
    rest = await world.impact(key)
    assert rest.comparison_before.count >= 100


async def test_who_answers_often_does_not_count_as_many(world: World) -> None:
    here = unique("here")
    # The same answers: of as many customers, and of twelve who never change their minds.
    for at, csats in ((BEGAN - 10 * DAY, [GOOD, BAD] * 60), (DONE, [GOOD, GOOD, GOOD, BAD] * 30)):
        await world.answers(here, at, csats)
        await world.answers(here + " often", at, csats, customers=12)
    alone = {"without_comparison": True}
    many = await world.measured(await world.improvement(csat_at(here)), 120, 120, **alone)
    few = await world.measured(await world.improvement(csat_at(here + " often")), 120, 120, **alone)
    assert (many.before.customers, many.before.design_effect, many.verdict) == (120, 1, V.IMPACT_VERDICT_HELPED)
    assert (few.before.customers, few.before.effective_customers) == (12, 12)
    assert few.before.design_effect == pytest.approx(10 * 12 / 11, rel=0.02)
    assert (few.effect.value, few.verdict) == (many.effect.value, V.IMPACT_VERDICT_NO_EVIDENCE)
    assert few.effect.high - few.effect.low > 3 * (many.effect.high - many.effect.low)
    # The part of everything that was bad, of the same customers.
    target = action_pb2.Target(metric="bad_moments", touchpoint=here + " often")
    signals = [
        SignalRaised(
            signal_id=str(uuid4()),
            rule="bad_moment",
            customer_id=f"customer {number % 3}",
            touchpoint=here + " often",
            occurred_at=BEGAN - DAY,
        )
        for number in range(24)
    ]
    for each in signals:
        await world.append(f"signal-{each.signal_id}", each)
    key = await world.improvement(csat_at(here + " often"))

    async def counted() -> bool:
        found = await world.impact(key, target=target, **alone)
        return (found.before.mean, found.before.customers) == (20, 12)

    await until(counted, 20)
    found = await world.impact(key, target=target, **alone)
    # Three customers had all of them: 8 of 10 each, and nine had none.
    values = [80.0] * 3 + [0.0] * 9
    between = sum((each - 20) ** 2 for each in values) * 100 / 120**2 * 12 / 11
    assert found.before.design_effect == pytest.approx(between / (found.before.variance / 120))


async def test_what_is_not_done_or_not_heard_is_too_early_to_tell(world: World) -> None:
    here = unique("here")
    open_ = await world.improvement(csat_at(here), done=None)
    found = await world.impact(open_)
    assert (found.verdict, found.statement) == (
        V.IMPACT_VERDICT_TOO_EARLY,
        "Too early to say: it is not done yet.",
    )
    recent = await world.impact(await world.improvement(csat_at(here), done=NOW - 2 * DAY))
    assert "2.0 days ago" in recent.statement
    few = await world.impact(await world.improvement(csat_at(here)))
    assert few.statement == "Too early to say: 0 heard before, and it takes 30."
    assert not few.HasField("effect")


async def test_words_are_measured_as_they_were_understood_last(world: World) -> None:
    here = unique("here")
    stream = f"customer-{uuid4()}"
    for at, kind, score in ((BEGAN - 4 * DAY, PointKind.PAIN, -0.5), (DONE, PointKind.DELIGHT, 0.5)):
        said = await world.append(stream, *(_interaction(here, at, hour, 0, hour) for hour in range(40)))
        for need, each_kind, each_score in (("other", PointKind.NONE, 0.25), ("delivery/speed", kind, score)):
            await world.append(
                stream,
                *(
                    FeedbackAnalyzed(
                        interaction_event_id=str(each.event_id),
                        customer_id="ana",
                        analysis=Analysis(need_path=need, point=each_kind, sentiment_score=each_score),
                    )
                    for each in said
                ),
            )
    key = await world.improvement(Target(metric="sentiment", touchpoint=here, need_path="delivery"))
    found = await world.measured(key, 40, 40, without_comparison=True)
    assert (found.before.mean, found.after.mean, found.verdict) == (-0.5, 0.5, V.IMPACT_VERDICT_HELPED)
    pains = await world.impact(
        key, target=action_pb2.Target(metric="pain_share", touchpoint=here), without_comparison=True
    )
    assert (pains.before.mean, pains.after.mean, pains.verdict) == (100, 0, V.IMPACT_VERDICT_HELPED)
    volume = await world.impact(key, target=action_pb2.Target(metric="volume", touchpoint=here))
    assert (volume.before.count, volume.before.mean * 28) == (28, pytest.approx(40))


async def test_a_touchpoint_that_is_renamed_in_between_is_measured_as_one(world: World) -> None:
    """By the map in force: also what only its rules place there, and what was aimed at under the old name."""
    old, new, elsewhere = unique("old"), unique("new"), unique("elsewhere")
    await world.answers(old, BEGAN - 4 * DAY, [BAD] * 40)
    await world.answers(elsewhere, BEGAN - 4 * DAY, [GOOD] * 40)
    await world.answers(old, DONE, [GOOD] * 20)
    raws = await world.answers(f"{old} in the app", DONE, [GOOD] * 20)
    await world.answers(elsewhere, DONE, [GOOD] * 40)
    key = await world.improvement(Target(metric="csat", touchpoint=old))
    await world.measured(key, 40, 20)

    there = Touchpoint(touchpoint_id=new, name="New", aliases=(old,))
    rule = MappingRule(source="test", touchpoint=f"{old} in*", touchpoint_id=new)
    stage = Stage(stage_id="all", name="All", touchpoints=(there,))
    map_ = JourneyMap(map_id=new, name="Shop", stages=(stage,), mapping_rules=(rule,))
    await world.append(f"journeymap-{new}", JourneyMapPublished(map=map_, version=1, actor="maja"))
    for touchpoint in (old, new):
        target = action_pb2.Target(metric="csat", touchpoint=touchpoint)
        found = await world.measured(key, 40, 40, target=target, comparison_touchpoints=[elsewhere])
        assert (found.before.mean, found.after.mean, found.verdict) == (0, 100, V.IMPACT_VERDICT_HELPED)
        assert (found.comparison_before.count, found.comparison_after.count) == (40, 40)
    own = await world.measured(key, 40, 40, without_comparison=True)
    assert (own.target.touchpoint, own.effect.value) == (old, 100)
    # What the map does not name is what the sources name.
    other = action_pb2.Target(metric="csat", touchpoint=elsewhere)
    assert (await world.impact(key, target=other, comparison_touchpoints=[new])).comparison_after.count == 40

    # A bad moment is where the interaction was that shows it, though its signal tells the name only.
    for each in raws[:10]:
        raised = SignalRaised(
            signal_id=str(uuid4()),
            rule="bad_moment",
            touchpoint=f"{old} in the app",
            occurred_at=each.event.interaction.occurred_at,  # type: ignore[attr-defined]
            evidence=(Evidence(event_id=str(each.event_id)),),
        )
        await world.append(f"signal-{raised.signal_id}", raised)
    bad = {"target": action_pb2.Target(metric="bad_moments", touchpoint=new), "without_comparison": True}

    async def counted() -> bool:
        return (await world.impact(key, **bad)).after.mean == 25

    await until(counted, 20)
    assert (own.target.map_id, list(own.other_map_ids)) == (new, [])

    # Another map has a touchpoint of the same id, and places nothing there.
    another = unique("another")
    stage = Stage(stage_id="all", name="All", touchpoints=(Touchpoint(touchpoint_id=new, name="Else"),))
    map_ = JourneyMap(map_id=another, name="Else", stages=(stage,))
    await world.append(f"journeymap-{another}", JourneyMapPublished(map=map_, version=1, actor="maja"))
    by_id = {"target": action_pb2.Target(metric="csat", touchpoint=new), "without_comparison": True}

    async def published() -> impact_pb2.Impact | None:
        answer = await world.impact(key, **by_id)
        return answer if answer.target.map_id == another else None

    last = await until(published, 20)
    assert (last.after.count, list(last.other_map_ids)) == (0, [new])
    for fields in (
        {**by_id, "map_id": new},
        {**by_id, "target": action_pb2.Target(metric="csat", touchpoint=new, map_id=new)},
    ):
        meant = await world.impact(key, **fields)
        assert (meant.after.count, meant.target.map_id, list(meant.other_map_ids)) == (40, new, [another])
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await world.impact(key, **by_id, map_id="nowhere")
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND
    assert new in str(refused.value.details())


async def test_what_is_compared_with_is_of_the_map_of_the_target(world: World) -> None:
    here, other, raw = unique("here"), unique("other"), unique("raw")
    for at, csat in ((BEGAN - 4 * DAY, BAD), (DONE, GOOD)):
        await world.answers(here, at, [csat] * 40)
        await world.answers(raw, at, [GOOD] * 40)
    rule = MappingRule(source="test", touchpoint=raw, touchpoint_id=other)
    # The one published last has the name, too, and would place something else at it.
    for map_id, ids, rules in ((f"{here} map", (here, other), (rule,)), (f"{other} map", (other, f"{other} only"), ())):
        touchpoints = tuple(Touchpoint(touchpoint_id=each, name=each) for each in ids)
        map_ = JourneyMap(map_id=map_id, name="Shop", stages=(Stage(stage_id="all", touchpoints=touchpoints),))
        published = JourneyMapPublished(map=structs.replace(map_, mapping_rules=rules), version=1, actor="maja")
        await world.append(f"journeymap-{map_id}", published)
    key = await world.improvement(csat_at(here))
    last = action_pb2.Target(metric="csat", touchpoint=f"{other} only")

    async def heard_all() -> bool:
        return (await world.impact(key, target=last)).target.map_id == f"{other} map"

    await until(heard_all, 20)
    found = await world.measured(key, 40, 40, comparison_touchpoints=[other])
    assert (found.target.map_id, found.comparison_before.count, found.comparison_after.count) == (f"{here} map", 40, 40)

    # What is on another map only is no reason to compare with nothing in silence.
    wrong = [other, f"{other} only"]
    ((field, rule_told),) = violations(await refusal(world.impact(key, comparison_touchpoints=wrong)))
    assert field == "comparison_touchpoints[1]"
    assert (f"{here} map" in rule_told, f"{other} map" in rule_told) == (True, True)
    told = await recorrido(world.office.cluster, "impact", key, "--against", f"{other} only")
    assert (told.code, f"{other} map" in told.err) == (1, True)


def bad_moment(said: Pending, touchpoint: str, *evidence: Evidence) -> SignalRaised:
    return SignalRaised(
        signal_id=str(uuid4()),
        rule="bad_moment",
        touchpoint=touchpoint,
        occurred_at=said.event.interaction.occurred_at,  # type: ignore[attr-defined]
        evidence=evidence,
    )


async def test_bad_moments_and_the_erased_stay_in_the_sums(world: World) -> None:
    here, receipt = unique("here"), str(uuid4())
    said = await world.answers(here, BEGAN - 4 * DAY, [BAD] * 40)
    await world.answers(here, DONE, [GOOD] * 40)
    raised = [bad_moment(each, here) for each in said[:30]]
    for each in raised:
        await world.append(f"signal-{each.signal_id}", each)
    key = await world.improvement(None)
    asked = {"target": action_pb2.Target(metric="bad_moments", touchpoint=here), "without_comparison": True}

    async def counted() -> impact_pb2.Impact | None:
        found = await world.impact(key, **asked)
        return found if found.before.mean == 75 and found.after.count == 40 else None

    before = await until(counted, 20)
    assert (before.before.count, before.verdict) == (40, V.IMPACT_VERDICT_HELPED)

    # One interaction and one signal are erased; what is left of them counts as they did.
    everything = [item async for item in world.store.read_all(None)]
    one = next(item for item in everything if item.event_id == said[0].event_id)
    signal = next(item for item in everything if item.stream == f"signal-{raised[0].signal_id}")
    gone = CustomerAnonymized(
        receipt_id=receipt,
        erased_positions=(str(one.position), str(signal.position)),
        interactions=(
            AnonymousInteraction(
                pseudonym="p",
                position=str(one.position),
                occurred_at=said[0].event.interaction.occurred_at,  # type: ignore[attr-defined]
                touchpoint=here,
                ratings=(Rating(metric=RatingMetric.CSAT, value=BAD),),
                analyses=(AnonymousAnalysis(position="1", failure_reason="X"),),
            ),
        ),
        signals=(
            AnonymousSignal(
                position=str(signal.position),
                occurred_at=raised[0].occurred_at,
                touchpoint=here,
                rule="bad_moment",
            ),
        ),
    )
    await world.append(f"erasure-{receipt}", gone)
    dsn = world.office.cluster.environment["RECORRIDO_POSTGRES_DSN"]
    connection = await asyncpg.connect(dsn)
    try:

        async def forgotten() -> bool:
            left = "SELECT count(*) FROM actions_measures.heard WHERE position = $1 AND event_id IS NULL"
            return bool(await connection.fetchval(left, one.position))

        await until(forgotten, 20)
        # The sums are those of the rows, to the last one.
        sums = await connection.fetchrow("SELECT sum(interactions) AS n, sum(csat) AS c FROM actions_measures.tally")
        rows = await connection.fetchrow("SELECT count(*) AS n, count(csat) AS c FROM actions_measures.heard")
        assert tuple(map(int, sums)) == tuple(rows)
    finally:
        await connection.close()
    after = await world.impact(key, **asked)
    assert (after.before, after.after, after.effect) == (before.before, before.after, before.effect)


async def test_answers_tell_what_the_map_calls_a_touchpoint(world: World) -> None:
    raw, other, unknown = unique("checkout_v2"), unique("checkout"), unique("unknown")
    (said,) = await world.answers(raw, BEGAN, [BAD])
    rules = [MappingRule(source=source, touchpoint=raw, touchpoint_id=f"{other}-{source}") for source in ("test", "x")]
    touchpoints = (
        Touchpoint(touchpoint_id=rules[0].touchpoint_id, name="Checkout"),
        Touchpoint(touchpoint_id=rules[1].touchpoint_id, name="Till", aliases=(other,)),
    )
    stage = Stage(stage_id="all", name="All", touchpoints=touchpoints)
    map_ = JourneyMap(map_id=other, name="Shop", stages=(stage,), mapping_rules=tuple(rules))
    await world.append(f"journeymap-{other}", JourneyMapPublished(map=map_, version=1, actor="maja"))
    evidence = Evidence(event_id=str(said.event_id), event_type=said.event.type_name)
    signal = bad_moment(said, raw, evidence)
    await world.append(f"signal-{signal.signal_id}", signal)
    keys = {}
    for touchpoint in (raw, other, unknown):
        keys[touchpoint] = key = str(uuid4())
        opened = ActionOpened(
            action_id=key,
            kind=ActionKind.IMPROVEMENT,
            title="Faster",
            touchpoint=touchpoint,
            signal_id=signal.signal_id if touchpoint == raw else "",
            request_id="1",
            occurred_at=BEGAN,
        )
        await world.append(f"action-{key}", opened)

    async def name(touchpoint: str) -> str:
        return (await world.office.get(keys[touchpoint])).action.touchpoint_name  # type: ignore[no-any-return]

    async def placed() -> bool:
        return await name(raw) == "Checkout"

    await until(placed, 20)
    # Of what was never heard of, the name itself tells.
    assert (await name(other), await name(unknown)) == ("Till", "")
    (listed,) = (await world.office.until_listed(1, touchpoint=raw)).actions
    assert (listed.touchpoint, listed.touchpoint_name) == (raw, "Checkout")
    board = await world.office.actions.GetBoard(actions_pb.GetBoardRequest())
    names = {line.key: line.name for line in board.by_touchpoint}
    assert (names[raw], names[unknown]) == ("Checkout", "")
    assert {line.name for line in board.by_state} == {""}
    async with grpc.aio.insecure_channel(world.office.cluster.address("actions")) as channel:
        explained = await ExplanationServiceStub(channel).ExplainAction(ExplainActionRequest(action_id=keys[raw]))
    (told,) = [each for each in explained.events if each.role == ExplainedRole.EXPLAINED_ROLE_SIGNAL]
    assert told.summary.startswith("bad_moment at Checkout: ")
    assert told.details["touchpoint"] == raw
    # Another source calls another place so: both are meant by the name alone.
    elsewhere = _interaction(raw, BEGAN, 0, GOOD, 1)
    elsewhere = structs.replace(elsewhere, interaction=structs.replace(elsewhere.interaction, source="x"))
    await world.append(f"customer-{uuid4()}", elsewhere)

    async def both() -> bool:
        return await name(raw) == "Checkout or Till"

    await until(both, 20)
    shown = await recorrido(world.office.cluster, "actions", "show", keys[raw])
    assert f"Checkout or Till ({raw})" in shown.out


async def test_a_bad_moment_of_the_erased_stays_where_a_rule_places_it(world: World) -> None:
    """Of a long history the interactions are told of in other parts of the erasure than the signals."""
    raw, here, receipt = unique("raw"), unique("here"), str(uuid4())
    said = await world.answers(raw, BEGAN - 4 * DAY, [BAD] * 40)
    await world.answers(raw, DONE, [GOOD] * 40)
    raised = [bad_moment(each, raw, Evidence(event_id=str(each.event_id))) for each in said[:30]]
    for each in raised:
        await world.append(f"signal-{each.signal_id}", each)
    touchpoint = Touchpoint(touchpoint_id=here, name="Here")
    rule = MappingRule(source="test", touchpoint=raw, touchpoint_id=here)
    stage = Stage(stage_id="all", name="All", touchpoints=(touchpoint,))
    map_ = JourneyMap(map_id=here, name="Shop", stages=(stage,), mapping_rules=(rule,))
    await world.append(f"journeymap-{here}", JourneyMapPublished(map=map_, version=1, actor="maja"))
    key = await world.improvement(None)
    asked = {"target": action_pb2.Target(metric="bad_moments", touchpoint=here), "without_comparison": True}

    async def counted() -> impact_pb2.Impact | None:
        found = await world.impact(key, **asked)
        return found if found.before.mean == 75 and found.after.count == 40 else None

    before = await until(counted, 20)
    everything = [item async for item in world.store.read_all(None)]
    ids, streams = {each.event_id for each in said[:30]}, {f"signal-{each.signal_id}" for each in raised}
    interactions = tuple(
        AnonymousInteraction(
            pseudonym="p",
            position=str(item.position),
            occurred_at=each.event.interaction.occurred_at,  # type: ignore[attr-defined]
            source="test",
            touchpoint=raw,
        )
        for each, item in zip(said, [item for item in everything if item.event_id in ids], strict=False)
    )
    signals = tuple(
        AnonymousSignal(
            pseudonym="p", position=str(item.position), occurred_at=each.occurred_at, touchpoint=raw, rule="bad_moment"
        )
        for each, item in zip(raised, [item for item in everything if item.stream in streams], strict=True)
    )
    gone = [
        CustomerAnonymized(receipt_id=receipt, erased_positions=tuple(e.position for e in some), **{kind: some})
        for kind, some in (("interactions", interactions), ("signals", signals))
    ]
    await world.append(f"erasure-{receipt}", *gone)
    at = (await world.store.read(f"erasure-{receipt}"))[-1].position

    async def erased() -> impact_pb2.Impact | None:
        found = await world.impact(key, **asked)
        return found if int(found.position) >= at else None

    after = await until(erased, 20)
    assert (after.before.count, after.before.mean) == (before.before.count, before.before.mean)


async def test_verification_records_what_was_measured_and_refuses_what_got_worse(world: World) -> None:
    better, worse = unique("better"), unique("worse")
    for touchpoint, first, then in ((better, BAD, GOOD), (worse, GOOD, BAD)):
        await world.answers(touchpoint, BEGAN - 4 * DAY, [first] * 40)
        await world.answers(touchpoint, DONE, [then] * 40)
    good, bad = await world.improvement(csat_at(better)), await world.improvement(csat_at(worse))
    helped, harmed = await world.measured(good, 40, 40), await world.measured(bad, 40, 40)
    assert (helped.verdict, harmed.verdict) == (V.IMPACT_VERDICT_HELPED, V.IMPACT_VERDICT_GOT_WORSE)
    fields = {"reason": "CSAT", "request_id": unique("verify")}
    await world.office.ask("VerifyAction", good, **fields)
    await world.office.ask("VerifyAction", good, **fields)
    entry = (await world.office.get(good)).history[-1]
    assert "it helped." in entry.reason
    recorded = (await world.store.read(f"action-{good}"))[-1]
    assert b'"verdict":"IMPACT_VERDICT_HELPED"' in recorded.data
    error = await refusal(world.office.ask("VerifyAction", bad, reason="I think so"))
    assert info(error).reason == "GOT_WORSE"
    done = await world.office.ask("VerifyAction", bad, reason="they ask other customers now", despite_impact=True)
    assert done.state == action_pb2.ACTION_STATE_VERIFIED
    # What cannot be measured, as its map is none, is not verified as if there were nothing to measure.
    lost = await world.improvement(structs.replace(csat_at(worse), map_id="nowhere"))
    error = await refusal(world.office.ask("VerifyAction", lost, reason="I think so"))
    assert info(error).reason == "JOURNEY_MAP_UNKNOWN"
    done = await world.office.ask("VerifyAction", lost, reason="it is a slip of the pen", despite_impact=True)
    assert done.state == action_pb2.ACTION_STATE_VERIFIED


async def test_a_target_of_no_map_is_told_when_it_is_opened(world: World) -> None:
    map_id = unique("map")
    target = action_pb2.Target(metric="csat", touchpoint="till", map_id=map_id)
    wanted = {"kind": IMPROVEMENT, "customer_id": "", "target": target, "request_id": unique("open")}
    error = await refusal(world.office.open(**wanted))
    assert (error.code(), info(error).reason) == (grpc.StatusCode.NOT_FOUND, "JOURNEY_MAP_UNKNOWN")
    # Nothing was opened, and the map is known as soon as it is published.
    await world.append(f"journeymap-{map_id}", JourneyMapPublished(map=JourneyMap(map_id=map_id), version=1))
    assert (await world.office.open(**wanted)).target.map_id == map_id


async def test_a_fall_after_the_verification_reopens_once_and_a_steady_one_stays(world: World) -> None:
    verified_at = NOW - 21 * DAY

    def verification(touchpoint: str) -> dict[str, Any]:
        impact: Impact = assess(csat_at(touchpoint), Samples(share(50, 100), share(90, 100)))
        return {"impact": impact, "occurred_at": verified_at}

    # What is left of one whose customer was erased has nothing to look at.
    left = AnonymousAction(
        pseudonym="p",
        position="1",
        kind=ActionKind.IMPROVEMENT,
        state=ActionState.VERIFIED,
        opened_at=verified_at,
        updated_at=verified_at,
    )
    await world.append("erasure-falls", CustomerAnonymized(receipt_id="falls", actions=(left,)))
    verified = {"kind": IMPROVEMENT, "state": action_pb2.ACTION_STATE_VERIFIED}

    async def listed() -> bool:
        return any(each.title == "(erased)" for each in (await world.office.list(**verified)).actions)

    await until(listed, 20)
    # One whose map is not there cannot be watched, which somebody has to know of, and holds up no other.
    lost = unique("lost")
    blind = structs.replace(verification(lost)["impact"], target=structs.replace(csat_at(lost), map_id="nowhere"))
    unseen = await world.improvement(csat_at(lost), impact=blind, occurred_at=verified_at)

    async def told() -> Sequence[str]:
        log = (world.office.cluster.data / "log/actions.log").read_text(encoding="utf-8")
        return [line for line in log.splitlines() if "cannot be watched" in line]

    assert {unseen in line and "nowhere" in line for line in await until(told, 20)} == {True}
    await world.office.ask("ReopenAction", unseen, reason="its map is gone")
    steady, fallen = unique("steady"), unique("fallen")
    await world.answers(steady, verified_at, [*[GOOD] * 9, BAD] * 10)
    await world.answers(fallen, verified_at, [GOOD, BAD] * 50)
    stays = await world.improvement(csat_at(steady), **verification(steady))
    falls = await world.improvement(csat_at(fallen), **verification(fallen))

    async def reopened() -> bool:
        return bool((await world.office.get(falls)).action.state == ACCEPTED)

    await until(reopened, 30)
    (entry,) = [each for each in (await world.office.get(falls)).history if each.event_type.endswith("ActionReopened")]
    assert entry.actor == "impact"
    assert "it got worse" in entry.reason
    # Others of the same age, looked at after it, show that it was looked at again since.
    later = await world.improvement(csat_at(fallen), **verification(fallen))

    async def later_reopened() -> bool:
        return bool((await world.office.get(later)).action.state == ACCEPTED)

    await until(later_reopened, 30)
    assert world.office.cluster.restarts("actions") == 0
    for key, count in ((falls, 1), (stays, 0)):
        history = (await world.office.get(key)).history
        assert [each.event_type.endswith("ActionReopened") for each in history].count(True) == count


async def test_words_that_are_understood_anew_are_no_fall_nor_is_what_is_watched_no_more(world: World) -> None:
    verified_at, long_ago = NOW - 21 * DAY, NOW - 100 * DAY
    steady, fallen, old = unique("steady"), unique("fallen"), unique("old")

    async def said(touchpoint: str, at: datetime, *scores: float) -> None:
        stream = f"customer-{uuid4()}"
        words = await world.append(stream, *(_interaction(touchpoint, at, hour, 0, hour) for hour in range(40)))
        for score in scores:
            analysis = Analysis(need_path="other", sentiment_score=score)
            await world.append(
                stream, *(FeedbackAnalyzed(interaction_event_id=str(w.event_id), analysis=analysis) for w in words)
            )

    async def verified(touchpoint: str, at: datetime) -> str:
        samples = Samples(moments(40, -20, 10), moments(40, 20, 10))
        impact = structs.replace(
            assess(Target(metric="sentiment", touchpoint=touchpoint), samples),
            after_from=at - 29 * DAY,
            after_to=at - DAY,
        )
        return await world.improvement(impact.target, impact=impact, occurred_at=at)

    # It was verified by what the model before understood, and the one of now finds less in all of it.
    for touchpoint, *scores in ((steady, 0.5, -0.25), (fallen, 0.5)):
        await said(touchpoint, verified_at - 20 * DAY, *scores)
        await said(touchpoint, verified_at, -0.25)
    await said(old, long_ago - 20 * DAY, 0.5)
    await said(old, long_ago + 11 * 7 * DAY, -0.25)
    stay = [await verified(steady, verified_at), await verified(old, long_ago)]
    # What fell indeed is reopened, and a second one shows that all were looked at since.
    for _ in range(2):
        falls = await verified(fallen, verified_at)

        async def reopened(key: str = falls) -> bool:
            return bool((await world.office.get(key)).action.state == ACCEPTED)

        await until(reopened, 30)
    for each in stay:
        assert (await world.office.get(each)).action.state == action_pb2.ACTION_STATE_VERIFIED


async def test_what_cannot_be_measured_is_refused(world: World) -> None:
    recovery = await world.office.open()
    assert info(await refusal(world.impact(recovery.action_id))).reason == "NOT_AN_IMPROVEMENT"
    about_nothing = await world.office.open(kind=IMPROVEMENT, customer_id="")
    assert info(await refusal(world.impact(about_nothing.action_id))).reason == "NO_TARGET"
    assert (await refusal(world.impact("nothing"))).code() is grpc.StatusCode.NOT_FOUND
    wrong = {"window_days": 6, "target": action_pb2.Target(metric="joy"), "comparison_touchpoints": [""]}
    assert [field for field, _ in violations(await refusal(world.impact("x", **wrong)))] == [
        "target.metric",
        "window_days",
        "comparison_touchpoints[0]",
    ]
