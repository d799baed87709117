"""What is reckoned over columns, against the same from lists and dictionaries only; and by a prefix of the history."""

import math
import random
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from msgspec import structs

from recorrido.inference.v1.events import PointKind
from recorrido.ingest.v1.events import Channel, Outcome, ReferralDirection
from recorrido.journey.v1.events import (
    EpisodeRules,
    Evidence,
    Goal,
    JourneyMap,
    LoyaltyLevel,
    LoyaltyRule,
    LoyaltyRules,
    MappingRule,
    Persona,
    PersonaCondition,
    SignalRaised,
    Stage,
    Touchpoint,
)
from services.foundation.errors import InvalidError
from services.journey.domain import intervals
from services.journey.domain.experience import experience
from services.journey.domain.history import DAY_US, History, Scale, microseconds, stable_order
from services.journey.domain.intervals import Sample
from services.journey.domain.loyalty import DEFAULT_RULES, levels, loyalty, standing
from services.journey.domain.placement import Placements
from services.journey.domain.quoting import Quoting, quotable
from services.journey.domain.reading import Reading
from services.journey.domain.watching import ABOUT_TO_FALL, TOUCHPOINT_SILENT, findings, is_import
from services.journey.views import scores as scoring
from services.journey.views.ladder import ladder
from services.journey.views.money import share_of_wallet
from services.journey.views.overview import overview
from services.journey.views.points import KINDS, points
from services.journey.views.preview import preview
from services.journey.views.scores import Grouping, Period, grouped, period_number, period_start, scores
from services.journey.views.selection import Selection
from services.journey.views.signals import Signal, places
from services.journey.views.snapshot import MapInForce
from tests.support.histories import START, Happened, Linked, at, history, random_events

MAP = JourneyMap(
    map_id="shop",
    name="Shop",
    stages=(
        Stage(
            stage_id="buy",
            name="Buy",
            touchpoints=(Touchpoint(touchpoint_id="checkout", name="Checkout"),),
        ),
        Stage(
            stage_id="receive",
            name="Receive",
            touchpoints=(
                Touchpoint(touchpoint_id="delivery", name="Delivery", aliases=("parcel",)),
                Touchpoint(touchpoint_id="hotline", name="Hotline"),
            ),
        ),
    ),
    mapping_rules=(MappingRule(touchpoint="help", channel=Channel.PHONE, touchpoint_id="hotline"),),
    personas=(
        Persona(
            persona_id="young-vip",
            name="Young VIP",
            conditions=(
                PersonaCondition(attribute="age", values=("y*",)),
                PersonaCondition(attribute="vip", values=("yes",)),
            ),
        ),
        Persona(persona_id="young", name="Young", conditions=(PersonaCondition(attribute="age", values=("young",)),)),
    ),
    goals=(Goal(goal_id="received", name="Received", touchpoint_ids=("delivery",)),),
    episodes=EpisodeRules(goal_ids=("received",), inactivity_hours=72),
)


def reading(found: History, map_: JourneyMap = MAP) -> Reading:
    return Reading(found, map_, Placements(map_))


class Truth:
    """The same history, event by event."""

    def __init__(self, events: Sequence[Happened | Linked]) -> None:
        self.owner: dict[str, str] = {}
        for event in events:
            if isinstance(event, Linked):
                self.owner[event.identity] = event.customer or event.identity
        happened = [(n, e) for n, e in enumerate(events) if isinstance(e, Happened)]
        self.all = [e for _, e in happened]
        self.of: dict[str, list[Happened]] = defaultdict(list)
        for _, event in sorted(happened, key=lambda pair: (pair[1].day, pair[0])):
            self.of[self.whose(event)].append(event)
        self.told: dict[str, dict[str, str]] = defaultdict(dict)
        for event in self.all:
            self.told[self.whose(event)] |= event.told

    def whose(self, event: Happened) -> str:
        return self.owner.get(event.customer, event.customer)

    def place(self, event: Happened) -> str:
        if event.touchpoint == "help" and event.channel is Channel.PHONE:
            return "hotline"
        return {"checkout": "checkout", "parcel": "delivery"}.get(event.touchpoint, "")

    def persona(self, event: Happened) -> str:
        told = self.told[self.whose(event)]
        if told.get("age") != "young":
            return ""
        return "young-vip" if told.get("vip") == "yes" else "young"


def is_bad(e: Happened) -> bool:
    hurt = e.words is not None and e.words[0] <= -0.5 and e.words[1] is PointKind.PAIN
    return 0 <= e.nps <= 6 or 0 <= e.csat <= 2 or 0 <= e.ces <= 3 or e.outcome is Outcome.FAILED or hurt


def is_glad(e: Happened) -> bool:
    delighted = e.words is not None and e.words[0] >= 0.5 and e.words[1] is PointKind.DELIGHT
    return (e.nps >= 9 or e.csat >= 4 or e.ces >= 5 or delighted) and not is_bad(e)


SEEDS = pytest.mark.parametrize("seed", range(4))


# -- scores by any grouping --------------------------------------------------------------------------------------------

KEYS: dict[Grouping, Callable[[Truth, Happened], str]] = {
    Grouping.TOUCHPOINT: Truth.place,
    Grouping.STAGE: lambda t, e: {"checkout": "buy", "": ""}.get(t.place(e), "receive"),
    Grouping.CHANNEL: lambda _, e: e.channel.value,
    Grouping.PERSONA: Truth.persona,
    Grouping.NEED: lambda _, e: e.words[2] if e.words else "",
    Grouping.SOURCE: lambda _, e: e.source,
}


def month_of(event: Happened) -> datetime:
    return (START + timedelta(days=event.day)).replace(day=1, hour=0, minute=0)


@SEEDS
def test_scores_in_total_are_the_same_to_the_last_digit_whatever_map_groups_them(seed: int) -> None:
    dice = random.Random(seed)
    scale = Scale("mood", 0, 10)
    happened = [
        Happened(
            f"c{dice.randrange(9)}",
            dice.randrange(90),
            dice.choice(["checkout", "parcel", "hotline", "stand", "post"]),
            words=(dice.randrange(-10_000, 10_001) / 1e4, PointKind.NONE, ""),
            mood=(scale, dice.randrange(101) / 10),
        )
        for _ in range(200)
    ]
    mapped, unmapped = (scores(reading(history(*happened), each), Selection())[0] for each in (MAP, JourneyMap()))
    assert mapped.mean_sentiment is not None
    assert mapped == unmapped
    exact = math.fsum(each.words[0] for each in happened if each.words) / 200
    assert mapped.mean_sentiment.value == pytest.approx(exact, abs=1e-12)


@SEEDS
def test_scores_by_any_grouping_are_those_of_the_events_in_each_group(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = random_events(seed)
    truth, dice = Truth(events), random.Random(seed)
    for several in (False, False, False, True, True, True):
        if several:
            # As where there are very many combinations, and customers.
            monkeypatch.setattr(scoring, "_MOST_CELLS", 0)
            monkeypatch.setattr(scoring, "_MOST_SHORT", 0)
        groupings = dice.sample(list(Grouping), dice.randrange(1, 4))
        period = dice.choice([None, Period.MONTH])
        expected: dict[Any, list[Happened]] = defaultdict(list)
        for event in truth.all:
            keys = tuple(KEYS[grouping](truth, event) for grouping in groupings)
            expected[keys, month_of(event) if period else None].append(event)
        found, left_out = grouped(reading(history(*events)), Selection(), groupings, period, 10_000)
        assert left_out == 0
        assert {(g.keys, g.period_start) for g in found if g.scores.interactions} == set(expected)
        for group in found:
            mine = expected.get((group.keys, group.period_start), [])
            check_scores(group.scores, mine, truth)
        if period:
            # Every month of every group is there, heard or not.
            months = {g.period_start for g in found}
            assert len(found) == len(months) * len({g.keys for g in found})
            assert len(months) == 14


def check_scores(found: Any, events: Sequence[Happened], truth: Truth) -> None:
    assert found.interactions == len(events)
    assert found.customers == len({truth.whose(e) for e in events})
    nps = [e.nps for e in events if e.nps >= 0]
    csat = [e.csat for e in events if e.csat >= 0]
    spoken = [e.words[0] for e in events if e.words]
    assert (found.nps is None) == (not nps)
    if nps:
        value = 100 * (sum(n >= 9 for n in nps) - sum(n <= 6 for n in nps)) / len(nps)
        assert (found.nps.count, found.nps.value) == (len(nps), pytest.approx(value))
        assert found.nps.interval.low <= value <= found.nps.interval.high or len(nps) < 5
    assert (found.csat.mean if found.csat else None) == (pytest.approx(statistics.mean(csat)) if csat else None)
    mean = found.mean_sentiment
    assert (mean.value if mean else None) == (pytest.approx(statistics.mean(spoken)) if spoken else None)
    moods = defaultdict(list)
    for event in events:
        if event.mood:
            moods[event.mood[0]].append(event.mood[1])
    assert {scale: (score.count, score.value) for scale, score in found.custom} == {
        scale: (len(values), pytest.approx(statistics.mean(values))) for scale, values in moods.items()
    }


def test_two_scales_of_one_name_are_never_mixed() -> None:
    short, long = Scale("mood", 1, 5), Scale("mood", 1, 10)
    total, _ = scores(
        reading(history(Happened("a", 1, mood=(short, 5)), Happened("b", 1, mood=(long, 1)))), Selection()
    )
    assert [(scale, score.value) for scale, score in total.custom] == [(short, 5), (long, 1)]


def test_the_limit_leaves_out_the_smallest_groups_and_tells_how_many() -> None:
    events = [Happened("a", day, f"t{min(day, 3)}") for day in range(8)]
    found, left_out = grouped(reading(history(*events), JourneyMap()), Selection(), [Grouping.TOUCHPOINT], None, 10)
    assert ([g.scores.interactions for g in found], left_out) == ([8], 0)
    found, left_out = grouped(reading(history(*events)), Selection(), [Grouping.SOURCE, Grouping.CHANNEL], None, 1)
    assert (len(found), left_out) == (1, 0)
    sources = [Happened("a", day, source=f"s{min(day, 3)}") for day in range(8)]
    found, left_out = grouped(reading(history(*sources)), Selection(), [Grouping.SOURCE], None, 2)
    assert [(g.keys, g.scores.interactions) for g in found] == [(("s0",), 1), (("s3",), 5)]
    assert left_out == 2


@pytest.mark.parametrize(
    ("period", "start"),
    [
        (Period.DAY, "2026-01-01"),
        (Period.WEEK, "2025-12-29"),
        (Period.MONTH, "2026-01-01"),
        (Period.QUARTER, "2026-01-01"),
        (Period.YEAR, "2026-01-01"),
    ],
)  # fmt: skip
def test_periods_begin_when_people_say(period: Period, start: str) -> None:
    (group,), _ = grouped(reading(history(Happened("a", 0.9))), Selection(), [], period, 10)
    assert group.period_start is not None
    assert f"{group.period_start:%Y-%m-%d %H:%M}" == f"{start} 00:00"
    assert period_start(0, Period.WEEK).weekday() == 0


@pytest.mark.parametrize("period", list(Period))
def test_every_time_is_in_the_period_that_began_last(period: Period) -> None:
    dice = random.Random(1)
    moments = [START + timedelta(seconds=dice.randrange(-4_000_000_000, 4_000_000_000)) for _ in range(300)]
    numbers = period_number(np.array([microseconds(each) for each in moments], np.int64), period).tolist()
    for moment, number in zip(moments, numbers, strict=True):
        assert period_start(number, period) <= moment < period_start(number + 1, period)


def test_too_many_periods_are_refused() -> None:
    far = history(Happened("a", -20_000), Happened("a", 0))
    with pytest.raises(InvalidError, match="period"):
        grouped(reading(far), Selection(), [], Period.DAY, 10)


@SEEDS
def test_a_selection_is_the_events_that_meet_it(seed: int) -> None:
    events = random_events(seed)
    truth, read = Truth(events), reading(history(*events))
    cases: list[tuple[Selection, Callable[[Happened], bool]]] = [
        (Selection(since=START + timedelta(days=40)), lambda e: e.day >= 40),
        (Selection(until=START + timedelta(days=40)), lambda e: e.day < 40),
        (Selection(stage_id="receive"), lambda e: truth.place(e) in {"delivery", "hotline"}),
        (Selection(touchpoint_id="delivery"), lambda e: truth.place(e) == "delivery"),
        (Selection(channel=Channel.PHONE), lambda e: e.channel is Channel.PHONE),
        (Selection(persona_id="young"), lambda e: truth.persona(e) == "young"),
        (Selection(source="app"), lambda e: e.source == "app"),
        (Selection(need_path="delivery"), lambda e: bool(e.words) and e.words[2].startswith("delivery/")),
        (Selection(need_path="deli"), lambda _: False),
    ]
    for selection, meant in cases:
        check_scores(scores(read, selection)[0], [e for e in truth.all if meant(e)], truth)
    for wrong in ({"stage_id": "x"}, {"touchpoint_id": "x"}, {"persona_id": "x"}):
        with pytest.raises(InvalidError, match="selection"):
            scores(read, Selection(**wrong))


# -- points ------------------------------------------------------------------------------------------------------------


@SEEDS
def test_points_tell_severity_trend_and_money(seed: int) -> None:
    events = random_events(seed)
    truth, moment = Truth(events), at(400)
    found = points(reading(history(*events)), Selection(), kinds=KINDS, limit=1000, moment=moment, trend_days=100)
    heard = {truth.whose(e) for e in truth.all if e.words}
    assert found.heard == len(heard)
    for point in found.points:
        mine = [
            e
            for e in truth.all
            if e.words
            and (e.words[1], e.words[2]) == (point.kind, point.need_path)
            and (truth.place(e) or e.touchpoint) == (point.touchpoint_id or point.touchpoint_name)
        ]
        who = {truth.whose(e) for e in mine}
        assert (point.mentions, point.customers) == (len(mine), len(who))
        sign = 1 if point.kind is PointKind.DELIGHT else -1
        assert point.severity == pytest.approx(statistics.mean(max(0, sign * e.words[0]) for e in mine if e.words))
        spent = sum(e.euros for e in truth.all if truth.whose(e) in who and 35 < e.day <= 400)
        assert [(a.currency_code, float(a.amount)) for a in point.money_at_stake] == ([("EUR", spent)] if spent else [])
        spans = [(300, 400), (200, 300)]
        told = [{truth.whose(e) for e in mine if low < e.day <= high} for low, high in spans]
        of = [{truth.whose(e) for e in truth.all if e.words and low < e.day <= high} for low, high in spans]
        assert point.trend is not None
        assert point.trend.since == pytest.approx(len(told[0]) / len(of[0]))
        assert point.trend.before == pytest.approx(len(told[1]) / len(of[1]))


def test_who_does_not_permit_it_is_counted_and_not_quoted() -> None:
    pain = (-0.8, PointKind.PAIN, "price")
    events = [
        Happened("yes", 1, words=pain, told={"may_quote": "Yes"}),
        Happened("device", 2, words=pain, told={"may_quote": "no"}),
        Happened("unasked", 3, words=pain, told={"may_quote": "perhaps"}),
        Happened("changed", 4, words=pain, told={"may_quote": "no"}),
        Happened("changed", 5, words=pain, told={"may_quote": "true"}),
    ]
    before, linked = history(*events), history(*events, Linked("device", "yes"))

    def quoted(found: History, quoting: Quoting, now: History) -> list[int]:
        (point,) = points(
            reading(found), Selection(), kinds=KINDS, limit=9, moment=at(9), quotable=quotable(now, quoting)
        ).points
        assert (point.mentions, point.touchpoint_id) == (5, "checkout")
        return [position // 10 for position in point.example_positions]

    # Of each customer what they said last.
    assert quoted(before, Quoting.UNLESS_REFUSED, before) == [5, 3, 1]
    assert quoted(before, Quoting.IF_PERMITTED, before) == [5, 1]
    assert quoted(before, Quoting.NEVER, before) == []
    # What was told last by whoever is linked counts for all their words, and what is known now as of any time.
    assert quoted(linked, Quoting.UNLESS_REFUSED, linked) == [5, 3]
    assert quoted(before, Quoting.UNLESS_REFUSED, linked) == [5, 3]


@SEEDS
def test_drivers_are_the_needs_that_go_with_other_answers(seed: int) -> None:
    events = random_events(seed)
    found = points(reading(history(*events)), Selection(), kinds=KINDS, limit=5, moment=at(400)).drivers
    rated = [e for e in Truth(events).all if e.words and e.csat >= 0]
    mine = {d.need_path: d for d in found if d.metric.name == "CSAT"}
    assert set(mine) == {"delivery/speed", "delivery/news", "price"}
    for need, driver in mine.items():
        with_need = [e.csat for e in rated if e.words and e.words[2] == need]
        without = [e.csat for e in rated if e.words and e.words[2] != need]
        assert (driver.with_need, driver.without_need) == (len(with_need), len(without))
        assert driver.difference == pytest.approx(statistics.mean(with_need) - statistics.mean(without))
        assert driver.interval.low < driver.effect < driver.interval.high
    effects = [abs(d.effect) for d in found if d.metric.name == "CSAT"]
    assert effects == sorted(effects, reverse=True)


# -- the ladder --------------------------------------------------------------------------------------------------------

RULES = LoyaltyRules(
    window_days=120,
    rules=(
        LoyaltyRule(level=LoyaltyLevel.AT_RISK, inactive_days_at_least=100),
        LoyaltyRule(level=LoyaltyLevel.AT_RISK, csat_at_most=2, open_bad_moments_at_least=2),
        LoyaltyRule(level=LoyaltyLevel.ADVOCATE, referrals_at_least=1, nps_at_least=8),
        LoyaltyRule(level=LoyaltyLevel.LOYAL, purchases_at_least=2),
        LoyaltyRule(level=LoyaltyLevel.SATISFIED, nps_at_least=5, nps_at_most=9),
    ),
)


def level_of(events: Sequence[Happened], rules: LoyaltyRules, day: float) -> tuple[LoyaltyLevel | None, int]:
    """Where a customer stands by their events, in the order in which they happened; None: not there yet."""
    past = [e for e in events if e.day <= day]
    if not past:
        return None, 0
    inside = [e for e in past if e.day > day - (rules.window_days or 365)]
    nps = next((e.nps for e in reversed(inside) if e.nps >= 0), None)
    csat = next((e.csat for e in reversed(inside) if e.csat >= 0), None)
    bad = 0
    for event in inside:
        bad = 0 if is_glad(event) else bad + is_bad(event)
    facts = {
        "nps": nps,
        "csat": csat,
        "open_bad_moments": bad,
        "purchases": sum(e.euros > 0 for e in inside),
        "referrals": sum(e.referral is ReferralDirection.GIVEN for e in inside),
        "inactive_days": day - past[-1].day,
    }
    for number, rule in enumerate(rules.rules, 1):
        holds = True
        for name in LoyaltyRule.__struct_fields__[1:]:
            bound, fact = getattr(rule, name), facts[name.removesuffix("_at_least").removesuffix("_at_most")]
            if bound is not None:
                holds &= fact is not None and (fact >= bound if name.endswith("least") else fact <= bound)
        if holds:
            return rule.level, number
    return LoyaltyLevel.UNSPECIFIED, 0


@SEEDS
@pytest.mark.parametrize("rules", [RULES, DEFAULT_RULES], ids=["own", "default"])
def test_everyone_stands_where_their_own_events_put_them(seed: int, rules: LoyaltyRules) -> None:
    events = random_events(seed)
    truth, found = Truth(events), history(*events)
    names = list(dict.fromkeys(_names(events)))
    for day in (0, 50, 133.5, 250, 400):
        stands = standing(found, rules, at(day))
        level, decided = levels(stands, rules)
        for number, name in enumerate(names):
            expected, rule = level_of(truth.of.get(name, []), rules, day)
            assert bool(stands.known[number]) == (expected is not None), (name, day)
            assert (level[number], decided[number]) == ((expected or LoyaltyLevel.UNSPECIFIED).number, rule), (
                name,
                day,
            )
            if expected is not None:
                alone = found.of_customer(number)
                told = loyalty(alone, rules, at(day))
                assert (told.level, told.rule) == (expected, rule)
                assert bool(told.reasons) == bool(rule)


def _names(events: Sequence[Happened | Linked]) -> list[str]:
    names = []
    for event in events:
        names += [event.customer] if isinstance(event, Happened) else [event.customer or "", event.identity]
    return [name for name in names if name]


@SEEDS
def test_the_ladder_counts_who_rose_and_fell_and_was_won_back(seed: int) -> None:
    events = random_events(seed)
    truth = Truth(events)
    map_ = JourneyMap(map_id="m", stages=MAP.stages, loyalty=RULES)
    since, until = START + timedelta(days=100), START + timedelta(days=300)
    found = ladder(
        reading(history(*events), map_), moment=at(400), since=since, until=until, period=Period.QUARTER, persona_id=""
    )
    # July and October begin on these.
    days = [100, 181, 273, 300]
    for period, (low, high) in zip(found.periods, pairwise(days), strict=True):
        pairs = Counter(
            (before[0], after[0])
            for mine in truth.of.values()
            for before, after in [(level_of(mine, RULES, low), level_of(mine, RULES, high))]
            if before[0] is not None and after[0] is not None
        )
        moved = {pair: count for pair, count in pairs.items() if pair[0] is not pair[1]}
        assert {(t.source, t.target): t.customers for t in period.transitions} == moved
        both = {p: n for p, n in moved.items() if LoyaltyLevel.UNSPECIFIED not in p}
        assert period.rose == sum(n for (a, b), n in both.items() if b.number > a.number)
        assert period.fell == sum(n for (a, b), n in both.items() if b.number < a.number)
    hurt = {who: [e for e in mine if 100 < e.day <= 300 and is_bad(e)] for who, mine in truth.of.items()}
    hurt = {who: bad for who, bad in hurt.items() if bad}
    last = {who: [e for e in truth.of[who] if e.day <= 300 and (is_bad(e) or is_glad(e))][-1] for who in hurt}
    assert found.recovery is not None
    assert found.recovery.had_bad_moment == len(hurt)
    assert found.recovery.recovered == sum(is_glad(each) for each in last.values())
    given = [e for e in truth.all if 100 < e.day <= 300 and e.referral is ReferralDirection.GIVEN]
    words = found.word_of_mouth
    assert (words.given, words.recommending_customers) == (len(given), len({truth.whose(e) for e in given}))


def test_how_soon_somebody_was_won_back() -> None:
    events = [Happened("a", 1, csat=1), Happened("a", 2, csat=1), Happened("a", 4, csat=5), Happened("a", 9, csat=5)]
    found = ladder(
        reading(history(*events, Happened("b", 1, csat=2))),
        moment=at(10), since=None, until=None, period=Period.YEAR, persona_id="",
    )  # fmt: skip
    assert found.recovery is not None
    assert (found.recovery.had_bad_moment, found.recovery.recovered, found.recovery.median_hours) == (2, 1, 48)
    assert [(c.level, c.customers) for c in found.levels if c.customers] == [
        (LoyaltyLevel.AT_RISK, 1),
        (LoyaltyLevel.SATISFIED, 1),
    ]


# -- episodes, experience, wallet --------------------------------------------------------------------------------------


@SEEDS
def test_episodes_are_those_of_ids_goals_and_gaps(seed: int) -> None:
    events = random_events(seed)
    truth = Truth(events)
    found = reading(history(*events))
    # Interactions by the episode they fall into, as sets of their places among all interactions.
    place = {id(e): n for n, e in enumerate(truth.all)}
    expected: set[frozenset[int]] = set()
    for mine in truth.of.values():
        named: dict[int, set[int]] = defaultdict(set)
        rest: list[set[int]] = []
        last: Happened | None = None
        for event in mine:
            if event.episode:
                named[event.episode].add(place[id(event)])
                continue
            missed = last is not None and last.outcome in {Outcome.FAILED, Outcome.ABANDONED}
            ended = last is None or event.day - last.day > 3 or (truth.place(last) == "delivery" and not missed)
            if ended:
                rest.append(set())
            rest[-1].add(place[id(event)])
            last = event
        expected |= {frozenset(each) for each in [*named.values(), *rest]}
    groups: dict[int, set[int]] = defaultdict(set)
    for row, number in enumerate(found.episode.tolist()):
        groups[number].add(row)
    assert {frozenset(each) for each in groups.values()} == expected
    assert found.episodes == len(expected)


def felt(*values: float) -> Any:
    column = np.array(values)
    return experience(column, np.arange(len(column)))


def test_a_better_end_makes_the_memory_better_though_it_adds_pain() -> None:
    short, long = felt(-0.2, -0.9), felt(-0.2, -0.9, -0.3)
    assert short.lasting_impression == pytest.approx(-0.9)
    assert long.lasting_impression == pytest.approx(-0.6)
    assert sum([-0.2, -0.9, -0.3]) < sum([-0.2, -0.9])


def test_the_peak_is_the_moment_farthest_from_neutral_and_silence_tells_nothing() -> None:
    found = felt(0.9, math.nan, -0.9, 0.1, math.nan)
    assert (found.peak, found.end, found.rows) == (2, 3, (0, 2, 3))
    assert found.mean == pytest.approx(0.1 / 3)
    nothing = felt(math.nan)
    assert (nothing.peak, nothing.end, nothing.lasting_impression, nothing.mean) == (None, None, None, None)


def test_share_of_wallet_is_what_is_spent_with_us_by_what_was_told() -> None:
    told = {"category_spend": "200", "category_currency": "EUR"}
    events = [Happened("a", -400, euros=500), Happened("a", 1, euros=60), Happened("a", 2, euros=-10, told=told)]
    found = share_of_wallet(history(*events).of_customer(0), at(3))
    assert found is not None
    assert (found.share, found.with_us.amount, found.in_category.amount) == (0.25, "50.00", "200.00")
    assert share_of_wallet(history(*events[:2]).of_customer(0), at(3)) is None
    odd = [Happened("a", 1, euros=60, told={**told, "category_spend": bad}) for bad in ("much", "10", "-5", "NaN")]
    assert [share_of_wallet(history(each).of_customer(0), at(3)) for each in odd] == [None] * 4


# -- rules that watch --------------------------------------------------------------------------------------------------


def found_by(*events: Happened | Linked) -> list[tuple[str, str, str]]:
    read = reading(history(*events))
    return [(f.rule, f.touchpoint_id, f.reasons[0]) for f in findings(read)]


def test_answers_that_fall_and_fall_again_are_found_once() -> None:
    falling = [Happened("a", 1, nps=10), Happened("device", 2, nps=9), Happened("a", 3, nps=8), Linked("device", "a")]
    assert found_by(*falling) == [(ABOUT_TO_FALL, "checkout", "NPS 10 → 9 → 8")]
    # Two falls only, a rise in between, a fall that is a bad moment, and one that is no news.
    assert found_by(*falling[:2]) == []
    assert found_by(*falling, Happened("a", 4, nps=9)) == []
    assert found_by(*falling, Happened("a", 4, nps=3)) == []
    assert found_by(*falling, Happened("b", 60)) == []
    one, again = (reading(history(*each)) for each in (falling, [*falling, Happened("b", 5)]))
    assert [f.signal_id for f in findings(one)] == [f.signal_id for f in findings(again)]
    deeper = reading(history(*falling, Happened("a", 4, nps=7)))
    assert [f.signal_id for f in findings(deeper)] != [f.signal_id for f in findings(one)]


def test_a_touchpoint_is_silent_when_chance_does_not_explain_it() -> None:
    busy = [Happened("a", day / 2, "parcel") for day in range(60)]
    assert found_by(*busy, Happened("b", 32)) == []
    ((rule, touchpoint, _),) = found_by(*busy, Happened("b", 36))
    assert (rule, touchpoint) == (TOUCHPOINT_SILENT, "delivery")
    assert found_by(*busy[:15], Happened("b", 36)) == []
    assert found_by(*busy, Happened("b", 90)) == []


def test_what_was_long_ago_when_it_was_recorded_is_an_import() -> None:
    live = [Happened("a", 1000 + n) for n in range(50)]
    old = [Happened("a", n) for n in range(60)]
    found = history(*live, *old)
    assert is_import(found, 510)
    assert not is_import(history(*live), -1)
    # Nothing new is no import, and so are some late events among many that are not.
    assert not is_import(found, 10 * 111)
    assert not is_import(history(*live, *old[:40]), -1)


def test_regular_touchpoints_raise_few_false_alarms() -> None:
    """Poisson arrivals, looked at every day for three years: alarms are as rare as the rule says."""
    dice = np.random.default_rng(0)
    alarms = looks = 0
    for _ in range(20):
        days = np.cumsum(dice.exponential(1 / 3, 600))
        for day in range(100, int(days[-1]), 5):
            past = days[days <= day]
            since = day - past[-1]
            rate = (past > past[-1] - 90).sum() / 90
            alarms += since >= 1 and math.exp(-rate * since) < 0.001
            looks += 1
    assert alarms / looks < 0.003


# -- previews and prefixes ---------------------------------------------------------------------------------------------


def test_a_preview_tells_what_would_move() -> None:
    events = [
        Happened("a", 1, csat=5),
        Happened("a", 2, "elsewhere", csat=1),
        Happened("b", 1, "parcel"),
        Happened("b", 9, "help"),
    ]
    draft = JourneyMap(
        map_id="shop",
        name="Shop",
        stages=MAP.stages,
        mapping_rules=(MappingRule(touchpoint="elsewhere", touchpoint_id="checkout"),),
        loyalty=LoyaltyRules(rules=(LoyaltyRule(level=LoyaltyLevel.LOYAL, purchases_at_least=0),)),
    )
    found = preview(reading(history(*events)), MapInForce(None), draft, moment=at(10))
    assert (found.uncovered, found.moved, found.episodes) == ((2, 1), 1, (3, 2))
    checkout = next(each for each in found.touchpoints if each.touchpoint_id == "checkout")
    assert checkout.before is not None
    assert checkout.after is not None
    assert (checkout.before.interactions, checkout.after.interactions) == (1, 2)
    assert {level.name: (before, after) for level, before, after in found.levels if before or after} == {
        "UNSPECIFIED": (1, 0),
        "AT_RISK": (1, 0),
        "LOYAL": (0, 2),
    }
    assert {key: pair for key, *pair in found.personas} == {"": [2, 2], "young-vip": [0, 0], "young": [0, 0]}
    assert "mapping_rules[0]" in {change.path for change in found.changes}


@SEEDS
def test_what_was_known_is_what_a_replay_up_to_there_tells(seed: int) -> None:
    """The same columns cut off, and columns that were never longer."""
    events = random_events(seed, 120)
    for upto in (0, 1, 17, 60, 119):
        cut_off, replayed = reading(history(*events, upto=upto)), reading(history(*events[:upto]))
        assert answers(cut_off) == answers(replayed)


def answers(read: Reading) -> list[Any]:
    moment, persona = at(400), {"persona_id": ""}
    return [
        scores(read, Selection()),
        grouped(read, Selection(), [Grouping.PERSONA, Grouping.NEED], Period.MONTH, 10_000),
        points(read, Selection(), kinds=KINDS, limit=100, moment=moment),
        ladder(read, moment=moment, since=None, until=None, period=Period.MONTH, **persona),
        overview(read),
        [(f.rule, f.cause, f.rows, f.reasons) for f in findings(read)],
    ]


# -- intervals ---------------------------------------------------------------------------------------------------------


def test_intervals_are_those_of_their_papers() -> None:
    # R. G. Newcombe, Statistics in Medicine 17, 1998: 81 of 263, and 56 of 70 against 48 of 80.
    wilson = intervals.proportion(81, 263)
    assert (round(wilson.low, 4), round(wilson.high, 4)) == (0.2553, 0.3662)
    newcombe = intervals.difference(56, 70, 48, 80)
    assert (round(newcombe.low, 4), round(newcombe.high, 4)) == (0.0524, 0.3339)


@pytest.mark.parametrize("shares", [(0.3, 0.5, 0.2), (0.7, 0.2, 0.1), (0.05, 0.05, 0.9)])
@pytest.mark.parametrize("count", [15, 100])
def test_the_interval_of_nps_holds_the_truth_in_95_of_100_cases(shares: tuple[float, ...], count: int) -> None:
    dice = np.random.default_rng(1)
    truth = 100 * (shares[0] - shares[2])
    draws = dice.multinomial(count, shares, 4000).tolist()
    held = [i.low <= truth <= i.high for i in (intervals.net_promoters(*draw) for draw in draws)]
    assert 0.93 <= statistics.mean(held) <= 0.99


def test_the_interval_of_a_mean_holds_the_truth_in_95_of_100_cases() -> None:
    dice = np.random.default_rng(2)
    held = 0
    for _ in range(4000):
        values = dice.choice([-1.0, -0.5, 0.2, 0.8], 30, p=[0.1, 0.2, 0.3, 0.4])
        found = intervals.mean(30, values.sum(), (values**2).sum(), lowest=-1, highest=1)
        held += found.low <= -0.1 - 0.1 + 0.06 + 0.32 <= found.high
    assert 0.93 <= held / 4000 <= 0.985


def test_hedges_g_is_the_standardised_difference() -> None:
    one, other = [5, 4, 5, 3, 4], [2, 3, 1, 2]

    def sample(values: Sequence[int]) -> Sample:
        return Sample(len(values), sum(values), sum(v * v for v in values))

    found = intervals.hedges_g(sample(one), sample(other))
    assert found is not None
    pooled = math.sqrt((4 * statistics.variance(one) + 3 * statistics.variance(other)) / 7)
    expected = (statistics.mean(one) - statistics.mean(other)) / pooled * (1 - 3 / 27)
    assert found[0] == pytest.approx(expected)
    assert found[1].low < expected < found[1].high
    assert intervals.hedges_g(sample([1, 1]), sample([1, 1])) is None


@pytest.mark.parametrize("bits", [0, 1, 15, 16, 17, 33, 49, 62])
@pytest.mark.parametrize("count", [0, 1, 1000])
def test_numbers_are_ordered_as_numpy_orders_them(bits: int, count: int) -> None:
    keys = np.random.default_rng(bits).integers(-(2**bits), 2**bits, count, endpoint=True)
    for column in (keys, np.sort(keys)[::-1], keys.astype(np.int32)):
        assert stable_order(column).tolist() == np.argsort(column, kind="stable").tolist()


def test_days_are_days() -> None:
    assert timedelta(days=1) // timedelta(microseconds=1) == DAY_US


def test_a_signal_is_where_the_map_places_what_it_is_about() -> None:
    """One name is another touchpoint on another channel."""
    read = reading(
        history(
            Happened("a", 1, touchpoint="help", channel=Channel.PHONE),
            Happened("a", 2, touchpoint="help", channel=Channel.WEB),
            Happened("a", 3, touchpoint="checkout"),
        ),
        structs.replace(
            MAP, mapping_rules=(*MAP.mapping_rules, MappingRule(touchpoint="help", touchpoint_id="delivery"))
        ),
    )
    by_phone, on_the_web, bought = (str(position) for position in read.history.interactions.position)

    def name(*positions: str, **fields: Any) -> str:
        evidence = tuple(Evidence(position=each) for each in positions)
        (found,) = places(read, [Signal(SignalRaised(evidence=evidence, **fields), START)])
        return found

    assert name(by_phone, touchpoint="help") == "Hotline"
    assert name(on_the_web, touchpoint="help") == "Delivery"
    assert name(on_the_web, by_phone, bought, touchpoint="help") == "Checkout or Delivery or Hotline"
    # Of what is no interaction's position, and of none, the name alone tells.
    assert name("1", touchpoint="help") == name(touchpoint="help") == "Delivery or Hotline"
    assert name("", touchpoint="nowhere") == ""
    # A touchpoint of a map is that one, also under an earlier name.
    assert name(bought, touchpoint="help", touchpoint_id="parcel") == "Delivery"
    assert name(bought, touchpoint="help", touchpoint_id="gone") == ""


def test_names_that_signals_go_by_are_looked_for_once_however_many_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    read = reading(history(*(Happened("a", 1, touchpoint=f"page/{n}") for n in range(100))), MAP)
    looked: list[int] = []

    class Seen(list[Any]):
        def __iter__(self) -> Any:
            looked.append(len(self))
            return super().__iter__()

    vocabulary = read.history.vocabulary
    monkeypatch.setattr(vocabulary, "touchpoints", Seen(vocabulary.touchpoints))
    asked = [Signal(SignalRaised(touchpoint=name), START) for name in ("", "page/7", "checkout") * 10]
    assert places(read, asked) == [""] * 30
    assert len(looked) <= 1
