"""The read model against a naive fold of the same history, as of any time, on a real PostgreSQL.

Histories are random but seeded: late and out-of-order events, duplicates, clocks that jump, analyses before their
interaction, repeated analyses, and maps published while events flow.
"""

import asyncio
import contextlib
import random
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import mean
from typing import Any
from uuid import UUID, uuid5

import pytest
from msgspec import structs

from recorrido.actions.v1.events import ActionAccepted, ActionCompleted, ActionOpened
from recorrido.inference.v1.events import (
    Analysis,
    AnalysisCorrected,
    FeedbackAnalysisFailed,
    FeedbackAnalyzed,
    PointKind,
    Sentiment,
)
from recorrido.ingest.v1.events import (
    AnonymousAnalysis,
    AnonymousInteraction,
    Channel,
    Customer,
    CustomerAnonymized,
    CustomerKind,
    IdentityLinked,
    IdentityUnlinked,
    Interaction,
    InteractionRecorded,
    Money,
    Outcome,
    Rating,
    RatingMetric,
    Referral,
    ReferralDirection,
    Verbatim,
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
from services.foundation import projection as foundation
from services.foundation.errors import InvalidError, NotFoundError
from services.foundation.events import Recorded, Registry, encode
from services.foundation.placement import place
from services.foundation.projection import ProjectionRunner
from services.journey.domain.history import microseconds
from services.journey.views import columns
from services.journey.views.overview import overview
from services.journey.views.points import KINDS, points, words
from services.journey.views.projection import JourneyProjection
from services.journey.views.scores import MAX_UNCOVERED, Scores, scores
from services.journey.views.selection import Selection
from services.journey.views.signals import signals
from services.journey.views.snapshot import ReadModel, Snapshot
from services.journey.views.timeline import customer_journey
from tests.support.cluster import running
from tests.support.tables import dump

START = datetime(2026, 1, 1, tzinfo=UTC)
NAMESPACE = UUID(int=5)
LETTERS = str.maketrans("0123456789.", "abcdefghijk")
REGISTRY = Registry(JourneyProjection.types)


# -- histories -----------------------------------------------------------------------------------------------------


def event_id(name: str) -> UUID:
    return uuid5(NAMESPACE, name)


def a_map(map_id: str, *rules: tuple[str, str, Channel, str], touchpoints: Iterable[str]) -> JourneyMap:
    return JourneyMap(
        map_id=map_id,
        name=map_id,
        stages=tuple(
            Stage(
                stage_id=f"stage-{touchpoint}",
                name=touchpoint.upper(),
                touchpoints=(Touchpoint(touchpoint_id=touchpoint, name=touchpoint.title()),),
            )
            for touchpoint in touchpoints
        ),
        mapping_rules=tuple(
            MappingRule(source=source, touchpoint=name, channel=channel, touchpoint_id=to)
            for source, name, channel, to in rules
        ),
    )


ANY_CHANNEL = Channel.UNSPECIFIED
MAPS = [
    a_map("shop", ("", "order*", ANY_CHANNEL, "checkout"), touchpoints=["checkout", "parcel", "silent"]),
    a_map("shop", ("app", "", ANY_CHANNEL, "in-app"), touchpoints=["in-app", "checkout", "parcel"]),
    a_map("care", ("", "", Channel.PHONE, "call"), touchpoints=["call", "help"]),
    a_map("shop", touchpoints=["order_paid", "help"]),
    a_map(
        "care", ("", "par*", ANY_CHANNEL, "help"), ("app", "help", ANY_CHANNEL, "call"), touchpoints=["call", "help"]
    ),
]


@dataclass
class History:
    """Grows event by event, with a clock that mostly goes forward."""

    dice: random.Random

    def __post_init__(self) -> None:
        self.recorded: list[Recorded] = []
        self._clock = START

    def add(self, event: Any, name: str) -> None:
        # Equal times and jumps back both happen.
        self._clock += timedelta(seconds=self.dice.choice([0, 0, 1, 1, 2, 5, 60, -20, -80]))
        self.recorded.append(
            Recorded(
                type_name=event.type_name,
                data=encode(event),
                metadata={},
                event_id=event_id(name),
                stream="any",
                revision=0,
                position=self.recorded[-1].position + 10 if self.recorded else 1,
                recorded_at=self._clock,
            )
        )


#: How often each occurs.
KINDS_OF_EVENTS = {
    "interaction": 12,
    "analysis": 8,
    "failure": 2,
    "signal": 2,
    "map": 1,
    "again": 1,
    "link": 3,
    "action": 1,
}


def random_history(seed: int, events: int) -> Sequence[Recorded]:  # noqa: C901 - a case for each kind
    dice = random.Random(seed)
    history = History(dice)
    versions: dict[str, int] = defaultdict(int)
    maps = iter(MAPS)
    for number in range(events):
        about = f"interaction {dice.randrange(events // 2)}"
        match dice.choices(
            ["interaction", "analysis", "failure", "signal", "map", "again", "link", "action"],
            [12, 8, 2, 2, 1, 1, 3, 1],
        )[0]:
            case "interaction":
                history.add(random_interaction(dice), about)
            case "analysis":
                told = random_analysis(dice, about)
                if dice.randrange(4):
                    history.add(told, f"analysis {number}")
                else:
                    judged = AnalysisCorrected(interaction_event_id=told.interaction_event_id, analysis=told.analysis)
                    history.add(judged, f"correction {number}")
            case "failure":
                failed = FeedbackAnalysisFailed(
                    interaction_event_id=str(event_id(about)), reason="TOO_LARGE", message=str(number)
                )
                history.add(failed, f"failure {number}")
            case "signal":
                signal = SignalRaised(
                    signal_id=f"s{number}",
                    customer_id=f"c{dice.randrange(4)}",
                    evidence=(Evidence(event_id=str(event_id(about))),),
                )
                history.add(signal, f"signal {number}")
            case "map":
                if map_ := next(maps, None):
                    versions[map_.map_id] += 1
                    version = versions[map_.map_id]
                    history.add(JourneyMapPublished(map=map_, version=version), f"{map_.map_id} {version}")
            case "action":
                history.add(random_action(dice), f"action {number}")
            case "link":
                history.add(random_link(dice), f"link {number}")
            case "again" if repeatable := [r for r in history.recorded if "Identity" not in r.type_name]:
                one = dice.choice(repeatable)
                again = REGISTRY.decode(one)
                history.add(again, "")
                copy = history.recorded.pop()
                history.recorded.append(
                    Recorded(
                        type_name=one.type_name,
                        data=one.data,
                        metadata={},
                        event_id=one.event_id,
                        stream="any",
                        revision=0,
                        position=copy.position,
                        recorded_at=copy.recorded_at,
                    )
                )
    return history.recorded


def random_interaction(dice: random.Random) -> InteractionRecorded:
    scales = {RatingMetric.NPS: range(11), RatingMetric.CSAT: range(1, 6), RatingMetric.CES: range(1, 8)}
    asked = dice.sample(list(scales), dice.randrange(3))
    return InteractionRecorded(
        interaction=Interaction(
            source=dice.choice(["web", "app"]),
            interaction_id=str(dice.random()),
            customer=Customer(customer_id=f"c{dice.randrange(4)}", kind=dice.choice(list(CustomerKind))),
            touchpoint=dice.choice(["order_paid", "order_placed", "parcel", "help"]),
            channel=dice.choice([Channel.WEB, Channel.PHONE]),
            # Days apart, in any order, sometimes at the same moment.
            occurred_at=START - timedelta(days=dice.randrange(40)),
            # Letters: a row of digits is masked where words are quoted, as a telephone number.
            verbatim=Verbatim(text=f"words {dice.random()}".translate(LETTERS)) if dice.random() < 0.7 else None,
            ratings=(
                *(Rating(metric=metric, value=float(dice.choice(scales[metric]))) for metric in asked),
                *random_rating(dice),
            ),
            episode_id=dice.choice(["", "", "order 1", "order 2"]),
            amount=dice.choice([None, None, Money(currency_code="EUR", amount="12.30")]),
            outcome=dice.choice(list(Outcome)),
            referral=dice.choice([None, None, Referral(direction=ReferralDirection.GIVEN)]),
            attributes=dice.choice([{}, {"customer.segment": "young", "other": "x"}, {"customer.segment": "old"}]),
        )
    )


def random_rating(dice: random.Random) -> Sequence[Rating]:
    """Two scales of one name: nothing may ever mix them."""
    highest = dice.choice([5.0, 10.0, None])
    if highest is None:
        return ()
    value = float(dice.randrange(1, int(highest)))
    return (Rating(metric=RatingMetric.CUSTOM, name="mood", value=value, scale_min=1.0, scale_max=highest),)


def random_action(dice: random.Random) -> ActionOpened | ActionAccepted | ActionCompleted:
    action_id = f"action {dice.randrange(3)}"
    opened = ActionOpened(action_id=action_id, customer_id=f"c{dice.randrange(4)}", title="Make good")
    return dice.choice([opened, ActionAccepted(action_id=action_id), ActionCompleted(action_id=action_id)])


def random_link(dice: random.Random) -> IdentityLinked | IdentityUnlinked:
    """c2 and c3 are now and then somebody's: also another's at once, as no service of ours would let them."""
    identity, customer = dice.choice(["c2", "c3"]), dice.choice(["c0", "c1"])
    if dice.random() < 0.4:
        return IdentityUnlinked(identity_customer_id=identity, customer_id=customer)
    return IdentityLinked(identity_customer_id=identity, customer_id=customer)


def random_analysis(dice: random.Random, about: str) -> FeedbackAnalyzed:
    return FeedbackAnalyzed(
        interaction_event_id=str(event_id(about)),
        analysis=Analysis(
            sentiment=dice.choice(list(Sentiment)[1:]),
            sentiment_score=dice.choice([-1.0, -0.5, 0.0, 0.25, 1.0]),
            point=dice.choice(list(PointKind)[1:]),
            need_path=dice.choice(["", "delivery", "delivery/speed"]),
        ),
    )


# -- the naive fold ------------------------------------------------------------------------------------------------


@dataclass
class Known:
    """What is known as of a time, from lists and dictionaries only."""

    interactions: list[tuple[Recorded, Interaction]]
    analyses: dict[str, Analysis]
    failures: dict[str, str]
    map: JourneyMap
    map_version: int
    signals: list[tuple[Recorded, SignalRaised]]
    owners: dict[str, str]

    def owner(self, customer_id: str) -> str:
        return self.owners.get(customer_id, customer_id)

    def customer(self, interaction: Interaction) -> str:
        assert interaction.customer is not None
        return self.owner(interaction.customer.customer_id)

    def place(self, interaction: Interaction) -> str:
        return place(self.map, interaction.source, interaction.touchpoint, interaction.channel) or ""


def before(history: Sequence[Recorded], as_of: datetime | None) -> Sequence[Recorded]:
    """What was known then: all that stands before the first event recorded later, repetitions apart."""
    seen: set[UUID] = set()
    for n, recorded in enumerate(history):
        event = REGISTRY.decode(recorded)
        about = getattr(event, "interaction_event_id", None)
        tells = recorded.event_id not in seen if about is None else UUID(about) in seen
        if tells and as_of is not None and recorded.recorded_at > as_of:
            return history[:n]
        seen.add(recorded.event_id)
    return history


def known(history: Sequence[Recorded], as_of: datetime | None, map_id: str) -> Known:
    truth = Known([], {}, {}, JourneyMap(), 0, [], {})
    seen: set[Any] = set()
    for recorded in before(history, as_of):
        match event := REGISTRY.decode(recorded):
            case InteractionRecorded() if recorded.event_id not in seen:
                truth.interactions.append((recorded, event.interaction))
            case AnalysisCorrected() if UUID(event.interaction_event_id) in seen:
                truth.analyses[event.interaction_event_id] = event.analysis
                seen.add(("judged", event.interaction_event_id))
            case FeedbackAnalyzed() if (
                UUID(event.interaction_event_id) in seen and ("judged", event.interaction_event_id) not in seen
            ):
                truth.analyses[event.interaction_event_id] = event.analysis
            case FeedbackAnalysisFailed() if UUID(event.interaction_event_id) in seen:
                truth.failures[event.interaction_event_id] = f"{event.reason}: {event.message}"
            case SignalRaised() if event.signal_id not in seen:
                truth.signals.append((recorded, event))
                seen.add(event.signal_id)
            case JourneyMapPublished() if recorded.event_id not in seen and map_id in {"", event.map.map_id}:
                truth.map, truth.map_version = event.map, event.version
            case IdentityLinked() | IdentityUnlinked():
                identity = event.identity_customer_id
                truth.owners[identity] = event.customer_id if isinstance(event, IdentityLinked) else identity
        seen.add(recorded.event_id)
    truth.failures = {about: why for about, why in truth.failures.items() if about not in truth.analyses}
    return truth


def expected_scores(truth: Known, chosen: Sequence[tuple[Recorded, Interaction]]) -> dict[str, Any]:
    def answers(metric: RatingMetric) -> list[int]:
        return [int(r.value) for _, i in chosen for r in i.ratings if r.metric is metric]

    nps, csat, ces = answers(RatingMetric.NPS), answers(RatingMetric.CSAT), answers(RatingMetric.CES)
    heard = [truth.analyses[str(r.event_id)].sentiment for r, _ in chosen if str(r.event_id) in truth.analyses]
    return {
        "interactions": len(chosen),
        "customers": len({truth.customer(i) for _, i in chosen}),
        "nps": 100 * (sum(a > 8 for a in nps) - sum(a < 7 for a in nps)) / len(nps) if nps else None,
        "csat": 100 * sum(a > 3 for a in csat) / len(csat) if csat else None,
        "csat mean": mean(csat) if csat else None,
        "csat histogram": tuple(csat.count(point) for point in range(1, 6)) if csat else None,
        "ces": 100 * sum(a > 4 for a in ces) / len(ces) if ces else None,
        "ces mean": mean(ces) if ces else None,
        "ces histogram": tuple(ces.count(point) for point in range(1, 8)) if ces else None,
        "sentiment": tuple(heard.count(s) for s in (Sentiment.NEGATIVE, Sentiment.NEUTRAL, Sentiment.POSITIVE)),
    }


def flat(found: Scores) -> dict[str, Any]:
    return {
        "interactions": found.interactions,
        "customers": found.customers,
        "nps": found.nps and found.nps.value,
        "csat": found.csat and found.csat.value,
        "csat mean": found.csat and found.csat.mean,
        "csat histogram": found.csat and found.csat.histogram,
        "ces": found.ces and found.ces.value,
        "ces mean": found.ces and found.ces.mean,
        "ces histogram": found.ces and found.ces.histogram,
        "sentiment": found.sentiment,
    }


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == (pytest.approx(value) if isinstance(value, float) else value), name


# -- comparing -----------------------------------------------------------------------------------------------------


async def compare_everything(snapshot: Snapshot, truth: Known, map_id: str) -> None:
    if map_id and not truth.map_version:
        with pytest.raises(NotFoundError):
            snapshot.map_in_force(map_id)
        return
    in_force = snapshot.map_in_force(map_id)
    assert (in_force.map_id, in_force.version) == (truth.map.map_id, truth.map_version)
    await compare_scores(snapshot, truth, map_id)
    await compare_points(snapshot, truth, map_id)
    await compare_timelines(snapshot, truth, map_id)
    await compare_signals(snapshot, truth)
    if not map_id:
        await compare_overview(snapshot, truth)


async def compare_scores(snapshot: Snapshot, truth: Known, map_id: str) -> None:
    in_force = snapshot.map_in_force(map_id)
    since, until = START - timedelta(days=30), START - timedelta(days=7)
    for bounds in ({}, {"since": since}, {"until": until}, {"since": since, "until": until}):
        chosen = [
            (r, i)
            for r, i in truth.interactions
            if ("since" not in bounds or i.occurred_at >= since) and ("until" not in bounds or i.occurred_at < until)
        ]
        total, per_touchpoint = scores(snapshot.reading(in_force), Selection(**bounds))
        assert_same(flat(total), expected_scores(truth, chosen))
        on_map = [t.touchpoint_id for stage in truth.map.stages for t in stage.touchpoints]
        uncovered = sorted({i.touchpoint for _, i in chosen if not truth.place(i)})
        assert [t.touchpoint_id or t.name for t in per_touchpoint] == [*on_map, *uncovered]
        for found in per_touchpoint:
            here = [
                (r, i)
                for r, i in chosen
                if truth.place(i) == found.touchpoint_id and (found.touchpoint_id or i.touchpoint == found.name)
            ]
            assert_same(flat(found.scores), expected_scores(truth, here))


async def compare_points(snapshot: Snapshot, truth: Known, map_id: str) -> None:
    groups: dict[Any, list[tuple[Recorded, Interaction]]] = defaultdict(list)
    for recorded, interaction in truth.interactions:
        analysis = truth.analyses.get(str(recorded.event_id))
        if analysis and analysis.point is not PointKind.NONE:
            touchpoint_id = truth.place(interaction)
            where = touchpoint_id.title() if touchpoint_id else interaction.touchpoint
            groups[analysis.point, analysis.need_path, touchpoint_id, where].append((recorded, interaction))
    heard = {truth.customer(i) for _, i in truth.interactions if i.verbatim}
    expected = {}
    for group, mentions in groups.items():
        customers = {truth.customer(i) for _, i in mentions}
        in_time = sorted(mentions, key=lambda m: (m[1].occurred_at, m[0].position))
        newest = [*{truth.customer(i): (r, i) for r, i in in_time}.values()]
        newest.sort(key=lambda m: (m[1].occurred_at, m[0].position), reverse=True)
        expected[group] = (
            len(customers),
            len(mentions),
            pytest.approx(len(customers) / max(len(heard), len(customers))),
            pytest.approx(mean(truth.analyses[str(r.event_id)].sentiment_score for r, _ in mentions)),
            tuple([i.verbatim.text for _, i in newest[:5] if i.verbatim][:3]),
        )
    in_force = snapshot.map_in_force(map_id)
    reading = snapshot.reading(in_force)

    def ask(kinds: Sequence[PointKind] = KINDS, limit: int = 1000) -> Sequence[Any]:
        return points(reading, Selection(), kinds=kinds, limit=limit, moment=0).points

    found = ask()
    examples = await words(snapshot.connection, found)
    assert {
        (p.kind, p.need_path, p.touchpoint_id, p.touchpoint_name): (
            p.customers,
            p.mentions,
            p.share,
            p.mean_sentiment,
            said,
        )
        for p, said in zip(found, examples, strict=True)
    } == expected
    ranks = [(not p.need_path, -p.customers, -p.mentions) for p in found]
    assert ranks == sorted(ranks)
    unknown = points(reading, Selection(), kinds=KINDS, limit=1, moment=0).unknown
    without: dict[PointKind, list[str]] = defaultdict(list)
    for (kind, need_path, *_), mentions in groups.items():
        if not need_path:
            without[kind] += [truth.customer(i) for _, i in mentions]
    assert {u.kind: (u.customers, u.mentions, u.share) for u in unknown} == {
        kind: (len(set(told)), len(told), pytest.approx(len(set(told)) / max(len(heard), len(set(told)))))
        for kind, told in without.items()
    }
    assert ask(limit=3) == found[:3]
    assert ask([PointKind.PAIN]) == [p for p in found if p.kind is PointKind.PAIN]


async def compare_timelines(snapshot: Snapshot, truth: Known, map_id: str) -> None:
    in_force = snapshot.map_in_force(map_id)
    for customer_id in ("c0", "c1", "c2", "c3"):
        mine = [(r, i) for r, i in truth.interactions if truth.customer(i) == truth.owner(customer_id)]
        if not mine:
            with pytest.raises(NotFoundError):
                await customer_journey(snapshot, in_force, customer_id, page_size=3, page_token="")
            continue
        entries, token = [], ""
        while True:
            page = await customer_journey(snapshot, in_force, customer_id, page_size=3, page_token=token)
            assert (page.customer_id, page.total) == (truth.owner(customer_id), len(mine))
            kinds = [i.customer.kind for _, i in mine if i.customer.kind is not CustomerKind.UNSPECIFIED]
            assert page.kind is (kinds[-1] if kinds else CustomerKind.UNSPECIFIED)
            entries += page.entries
            token = page.next_page_token
            if not token:
                break
        assert [
            (e.event_id, e.recorded_at, e.interaction, e.touchpoint_id, e.analysis, e.analysis_failure, e.signal_ids)
            for e in entries
        ] == [
            (
                r.event_id,
                r.recorded_at,
                i,
                truth.place(i),
                truth.analyses.get(str(r.event_id)),
                truth.failures.get(str(r.event_id), ""),
                tuple(s.signal_id for _, s in truth.signals if any(e.event_id == str(r.event_id) for e in s.evidence)),
            )
            for r, i in sorted(mine, key=lambda m: (m[1].occurred_at, m[0].position))
        ]


async def compare_signals(snapshot: Snapshot, truth: Known) -> None:
    for customer_id in ("", "c1", "c3"):
        found, token = [], ""
        while True:
            page, token = await signals(snapshot, customer_id, page_size=2, page_token=token)
            found += page
            if not token:
                break
        mine = [each for each in truth.signals if truth.owner(each[1].customer_id) == truth.owner(customer_id)]
        expected = reversed(mine if customer_id else truth.signals)
        assert [(s.raised, s.raised_at) for s in found] == [(s, r.recorded_at) for r, s in expected]


async def compare_overview(snapshot: Snapshot, truth: Known) -> None:
    now = overview(snapshot.reading(snapshot.map_in_force("")))
    ids = {str(r.event_id) for r, _ in truth.interactions}
    assert now.interactions == len(ids)
    assert now.customers == len({truth.customer(i) for _, i in truth.interactions})
    assert now.verbatims == sum(i.verbatim is not None for _, i in truth.interactions)
    assert now.analyzed == len(ids & truth.analyses.keys())
    assert now.analysis_failed == len(ids & truth.failures.keys())
    assert now.signals == len(truth.signals)
    uncovered = [(i.source, i.touchpoint, i.channel) for _, i in truth.interactions if not truth.place(i)]
    assert now.uncovered_interactions == len(uncovered)
    assert {(u.source, u.touchpoint, u.channel): u.interactions for u in now.uncovered} == {
        raw: uncovered.count(raw) for raw in uncovered
    }
    assert sorted((u.interactions for u in now.uncovered), reverse=True) == [u.interactions for u in now.uncovered]


# -- the tests -----------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def postgres(data: Path) -> AsyncIterator[Any]:
    async with running(["postgres"], data=data) as cluster:
        pool = await foundation.connect(cluster.environment["RECORRIDO_POSTGRES_DSN"])
        try:
            yield pool
        finally:
            await pool.close()


async def project(pool: Any, history: Sequence[Recorded], *, schema: str = "journey", batch: int = 50) -> ReadModel:
    view = JourneyProjection()
    view.name = schema
    runner = ProjectionRunner(None, pool, view)
    await runner.prepare()
    await runner.last()
    for at in range(0, len(history), batch):
        await runner.write(history[at : at + batch])
    return ReadModel(pool, schema)


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_every_query_is_exact_as_of_any_time(tmp_path: Path, seed: int) -> None:
    history = random_history(seed, 240)
    times = sorted({r.recorded_at for r in history})
    dice = random.Random(seed)
    chosen = [times[0] - timedelta(microseconds=1), times[0], *dice.sample(times, 8), None]
    chosen += [times[len(times) // 2] - timedelta(microseconds=1)]
    async with postgres(tmp_path) as pool:
        read_model = await project(pool, history)
        for as_of in chosen:
            for map_id in ("", "shop", "care"):
                async with read_model.snapshot(as_of) as snapshot:
                    await compare_everything(snapshot, known(history, as_of, map_id), map_id)


async def test_the_rows_do_not_depend_on_how_the_history_was_cut(tmp_path: Path) -> None:
    history = random_history(4, 400)
    async with postgres(tmp_path) as pool:
        await project(pool, history, schema="at_once", batch=len(history))
        await project(pool, history, schema="one_by_one", batch=1)
        at_once, one_by_one = await dump(pool, "at_once"), await dump(pool, "one_by_one")
        assert at_once == one_by_one
        assert [name for name, rows in at_once.items() if not rows] == ["erasure"]


async def test_a_published_map_places_the_history_anew_and_leaves_interactions_alone(tmp_path: Path) -> None:
    history = [r for r in random_history(5, 300) if r.type_name != JourneyMapPublished.type_name]
    later = History(random.Random(0))
    later.recorded = list(history)
    async with postgres(tmp_path) as pool:
        read_model = await project(pool, history)
        untouched = "SELECT ctid, xmin, event_id FROM journey.interaction ORDER BY position"
        before = await pool.fetch(untouched)
        for version, map_ in enumerate((MAPS[0], MAPS[1]), 1):
            later.add(JourneyMapPublished(map=map_, version=version), f"map {version}")
            await project(pool, later.recorded[-1:])
            async with read_model.snapshot() as snapshot:
                await compare_everything(snapshot, known(later.recorded, None, ""), "")
        assert await pool.fetch(untouched) == before


async def test_pages_hold_what_was_known_at_the_first_one(tmp_path: Path) -> None:
    history = History(random.Random(0))
    customer = Customer(customer_id="c")

    def happened(day: int) -> None:
        interaction = Interaction(
            source="web", customer=customer, touchpoint="x", occurred_at=START + timedelta(days=day)
        )
        history.add(InteractionRecorded(interaction=interaction), f"day {day}")

    for day in (1, 3, 5):
        happened(day)
    async with postgres(tmp_path) as pool:
        read_model = await project(pool, history.recorded)

        async def page(token: str, **other: Any) -> Any:
            async with read_model.snapshot(other.pop("as_of", None)) as snapshot:
                asked = {"customer_id": "c", "page_size": 2, "page_token": token, **other}
                return await customer_journey(snapshot, snapshot.map_in_force(""), **asked)

        first = await page("")
        for day in (2, 4, 6):
            happened(day)
        await project(pool, history.recorded[3:])
        second = await page(first.next_page_token)
        days = [(e.occurred_at - START).days for e in [*first.entries, *second.entries]]
        assert (days, second.total, second.next_page_token) == ([1, 3, 5], 3, "")
        assert (await page("")).total == 6
        history.add(InteractionRecorded(interaction=Interaction(customer=Customer(customer_id="device:1"))), "device")
        history.add(IdentityLinked(identity_customer_id="device:1", customer_id="c"), "linked")
        await project(pool, history.recorded[6:])
        linked = await page("")
        assert (linked.total, (await page(linked.next_page_token)).total) == (7, 7)
        history.add(IdentityUnlinked(identity_customer_id="device:1", customer_id="c"), "unlinked")
        await project(pool, history.recorded[8:])
        assert ((await page("")).total, (await page(linked.next_page_token)).total) == (6, 7)
        for other in ({"customer_id": "d"}, {"as_of": START}):
            with pytest.raises(InvalidError, match="page_token"):
                await page(first.next_page_token, **other)
        history.add(JourneyMapPublished(map=MAPS[0], version=1), "a map between two pages")
        await project(pool, history.recorded[9:])
        with pytest.raises(InvalidError, match="page_token"):
            await page(first.next_page_token)
        for bad in ("x", "é", "bm9uc2Vuc2U=", first.next_page_token[:-2]):
            with pytest.raises(InvalidError, match="page_token"):
                await page(bad)


async def test_touchpoints_on_no_map_do_not_fill_the_answer(tmp_path: Path) -> None:
    """A source that writes an id into the touchpoint's name makes as many names as it has visits."""
    history = History(random.Random(0))
    for number in range(MAX_UNCOVERED + 20):
        for visit in range(1 + (number < 5)):
            happened = Interaction(
                source="web", customer=Customer(customer_id="c"), touchpoint=f"page/{number:04}", occurred_at=START
            )
            history.add(InteractionRecorded(interaction=happened), f"{number} {visit}")
    async with postgres(tmp_path) as pool:
        read_model = await project(pool, history.recorded)
        async with read_model.snapshot() as snapshot:
            total, touchpoints = scores(snapshot.reading(snapshot.map_in_force("")), Selection())
    assert total.interactions == MAX_UNCOVERED + 25
    assert len(touchpoints) == MAX_UNCOVERED
    assert {t.name for t in touchpoints if t.scores.interactions == 2} == {f"page/{n:04}" for n in range(5)}


async def test_events_of_strange_writers_do_not_stop_the_projection(tmp_path: Path) -> None:
    history = History(random.Random(0))
    history.add(InteractionRecorded(), "nothing in it")
    odd = Interaction(customer=Customer(customer_id="a\0b"), touchpoint="\0", ratings=(Rating(value=1e300),))
    history.add(InteractionRecorded(interaction=odd), "NUL")
    history.add(FeedbackAnalyzed(interaction_event_id="no id"), "analysis of nothing")
    history.add(FeedbackAnalysisFailed(interaction_event_id=str(event_id("NUL")), message="\0"), "failure")
    history.add(SignalRaised(signal_id="s", evidence=(Evidence(event_id="no id"),)), "signal")
    history.add(JourneyMapPublished(), "no map")
    history.add(IdentityLinked(), "link of nothing")
    history.add(IdentityLinked(identity_customer_id="a\0b", customer_id="\0"), "link with NUL")
    async with postgres(tmp_path) as pool:
        read_model = await project(pool, history.recorded)
        async with read_model.snapshot() as snapshot:
            now = overview(snapshot.reading(snapshot.map_in_force("")))
        assert (now.interactions, now.customers, now.analyzed, now.analysis_failed, now.signals) == (2, 2, 0, 1, 1)


async def test_two_projections_at_once_do_not_count_twice(tmp_path: Path) -> None:
    history = random_history(6, 200)
    async with postgres(tmp_path) as pool:
        results = await asyncio.gather(*(project(pool, history, batch=200) for _ in range(2)), return_exceptions=True)
        assert sum(isinstance(result, Exception) for result in results) == 1
        async with ReadModel(pool, "journey").snapshot() as snapshot:
            await compare_everything(snapshot, known(history, None, ""), "")


async def _time_does_not_go_back(pool: Any, read_model: ReadModel, history: History) -> None:
    """Record a link, last of all, and erase it."""

    async def now() -> int:
        async with read_model.snapshot() as snapshot:
            return snapshot.history.last_recorded

    late = max(each.recorded_at for each in history.recorded) + timedelta(hours=1)
    linked = IdentityLinked(identity_customer_id="device:1", customer_id="ana")
    for name, event in (
        ("link", linked),
        (
            "link erased",
            CustomerAnonymized(receipt_id="s", erased_positions=(str(history.recorded[-1].position + 10),)),
        ),
    ):
        history.add(event, name)
        history.recorded[-1] = structs.replace(history.recorded[-1], recorded_at=late)
        await project(pool, history.recorded[-1:])
        assert await now() == microseconds(late)


async def test_a_question_keeps_to_what_it_began_with(tmp_path: Path) -> None:
    """A customer is erased between two steps of a question: it is answered by the rows of before, to its end."""
    history = History(random.Random(0))
    for customer_id in ("ana", "bor", "cid"):
        happened = Interaction(source="web", customer=Customer(customer_id=customer_id), occurred_at=START)
        history.add(InteractionRecorded(interaction=happened), customer_id)

    async def total(snapshot: Snapshot, customer_id: str) -> tuple[str, int]:
        in_force = snapshot.map_in_force("")
        journey = await customer_journey(snapshot, in_force, customer_id, page_size=10, page_token="")
        return journey.customer_id, journey.total

    async with postgres(tmp_path) as pool:
        read_model = await project(pool, history.recorded)
        async with read_model.snapshot() as before:
            gone = (str(history.recorded[0].position),)
            history.add(CustomerAnonymized(receipt_id="r", erased_positions=gone), "erased")
            await project(pool, history.recorded[-1:])
            async with read_model.snapshot() as after:
                assert await total(after, "cid") == ("cid", 1)
                with pytest.raises(NotFoundError):
                    await total(after, "ana")
            assert [await total(before, each) for each in ("ana", "bor", "cid")] == [
                ("ana", 1),
                ("bor", 1),
                ("cid", 1),
            ]
            assert len(before.history.interactions) == 3
        async with read_model.snapshot() as now:
            assert len(now.history.interactions) == 2


async def test_who_gives_up_takes_nothing_from_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was being read for a caller who went away is read to its end, and not once more."""
    history = random_history(8, 60)
    asked, going_on = asyncio.Event(), asyncio.Event()
    copied = []
    copy = columns._copy

    async def slowly(connection: Any, query: str, wanted: Any) -> Any:
        copied.append(query)
        asked.set()
        await going_on.wait()
        return await copy(connection, query, wanted)

    async def ask(read_model: ReadModel) -> int:
        async with read_model.snapshot() as snapshot:
            return len(snapshot.history.interactions)

    async with postgres(tmp_path) as pool:
        read_model = await project(pool, history)
        monkeypatch.setattr(columns, "_copy", slowly)
        hasty, patient = asyncio.create_task(ask(read_model)), asyncio.create_task(ask(read_model))
        await asked.wait()
        hasty.cancel()
        await asyncio.sleep(0)
        going_on.set()
        assert await patient == await pool.fetchval("SELECT count(*) FROM journey.interaction")
        with pytest.raises(asyncio.CancelledError):
            await hasty
    assert len(copied) == len(set(copied))


async def test_of_an_erased_customer_statistics_stay_and_the_rows_are_those_of_a_rebuild(tmp_path: Path) -> None:
    history = History(random.Random(0))
    told = {"customer.street": "Main Street 1"}
    for name, customer_id in (("ana's", "ana"), ("bor's", "bor")):
        happened = Interaction(
            source="web",
            customer=Customer(customer_id=customer_id),
            touchpoint="parcel",
            occurred_at=START,
            verbatim=Verbatim(text=f"{name} words, {customer_id}@example.com"),
            ratings=(Rating(metric=RatingMetric.CSAT, value=1.0),),
            attributes=told if customer_id == "ana" else {},
        )
        history.add(InteractionRecorded(interaction=happened), name)
        analysis = Analysis(point=PointKind.PAIN, sentiment=Sentiment.NEGATIVE, sentiment_score=-0.9, need_path="price")
        history.add(FeedbackAnalyzed(interaction_event_id=str(event_id(name)), analysis=analysis), f"{name} analysis")
    interaction, analysed = history.recorded[:2]
    left = AnonymousInteraction(
        pseudonym="nobody-1",
        position=str(interaction.position),
        occurred_at=START,
        recorded_at=interaction.recorded_at,
        source="web",
        touchpoint="parcel",
        ratings=(Rating(metric=RatingMetric.CSAT, value=1.0),),
        had_words=True,
        analyses=(
            AnonymousAnalysis(position=str(analysed.position), recorded_at=analysed.recorded_at, analysis=analysis),
        ),
    )
    erased = [str(interaction.position), str(analysed.position)]
    async with postgres(tmp_path) as pool:
        read_model = await project(pool, history.recorded)

        async def told_now(as_of: datetime | None = None) -> Any:
            async with read_model.snapshot(as_of) as snapshot:
                read = snapshot.reading(snapshot.map_in_force(""))
                found = points(read, Selection(), kinds=KINDS, limit=10, moment=0).points
                return scores(read, Selection()), found, await words(snapshot.connection, found)

        then = history.recorded[-1].recorded_at
        all_scores, found, examples = await told_now()
        assert set(examples[0]) == {"ana's words, [email]", "bor's words, [email]"}
        history.add(CustomerAnonymized(receipt_id="r", erased_positions=tuple(erased), interactions=(left,)), "erased")
        await project(pool, history.recorded[-1:])
        for as_of in (None, then):
            assert (await told_now(as_of))[:2] == (all_scores, found)
            assert (await told_now(as_of))[2] == [("bor's words, [email]",)]
        async with read_model.snapshot() as snapshot:
            with pytest.raises(NotFoundError):
                await customer_journey(snapshot, snapshot.map_in_force(""), "ana", page_size=9, page_token="")
        await _time_does_not_go_back(pool, read_model, history)
        # What the store holds from now on: everything but the events that were erased.
        kept = [each for each in history.recorded[2:] if not isinstance(REGISTRY.decode(each), IdentityLinked)]
        await project(pool, kept, schema="anew")
        rows = await dump(pool, "journey")
        assert rows == await dump(pool, "anew")
        assert not any("ana" in str(row) or "Main Street" in str(row) for table in rows.values() for row in table)
