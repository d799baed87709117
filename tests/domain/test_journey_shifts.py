"""Control charts: false alarms and detection as published; and what the rules that use them find in a history."""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from uuid import uuid5

import numpy as np
import pytest
from scipy import stats

from recorrido.inference.v1.events import PointKind
from recorrido.ingest.v1.events import Customer, Interaction, InteractionRecorded
from recorrido.journey.v1.events import JourneyMap, SignalRaised, Stage, Touchpoint
from services.journey.domain.charts import LEAST_BASELINE, WEIGHT, WIDTH, first_alarm, points, stabilised
from services.journey.domain.finding import Finding, watched
from services.journey.domain.maps import PublishedMap
from services.journey.domain.placement import Placements
from services.journey.domain.reading import Reading
from services.journey.domain.shifts import POINT_IMPROVED, POINT_WORSENED, SCORE_IMPROVED, SCORE_WORSENED, SHIFT_RULES
from services.journey.domain.signals import Seen
from services.journey.domain.watching import COVERAGE_LOST, TOUCHPOINT_SILENT, findings
from tests.domain.test_journey_signals import NAMESPACE
from tests.support.chartsim import Process, arl, detection, in_control, normal, promoters, shares
from tests.support.histories import START, Happened, history

# -- the chart ---------------------------------------------------------------------------------------------------------


def test_run_lengths_in_theory_are_those_published() -> None:
    """Lucas and Saccucci, 1990, table 3; Crowder, 1987, table 1."""
    assert [arl(0.5, 3.071, shift) for shift in (0, 0.5, 1, 2)] == pytest.approx([500, 88.8, 17.5, 3.63], rel=0.005)
    assert [arl(0.03, 2.437, shift) for shift in (0, 0.5, 1, 2)] == pytest.approx([500, 29.3, 12.6, 5.99], rel=0.005)
    scale = math.sqrt(0.5 / 1.5)
    assert scale == pytest.approx(0.57735)
    assert [arl(0.5, 2, shift) for shift in (0, 1, 2)] == pytest.approx([26.45, 4.91, 1.94], abs=0.01)
    assert arl(WEIGHT, WIDTH) == pytest.approx(4_106, rel=0.001)


@pytest.mark.parametrize(
    "process",
    [normal, shares(0.8, 30), shares(0.8, 1_000, 0.03), shares(0.01, 100), promoters((0.2, 0.3, 0.5), 30)],
    ids=["normal", "csat", "days differ", "rare", "nps"],
)
def test_false_alarms_are_as_rare_as_published(process: Process) -> None:
    found = in_control(process, charts=250, length=1_000)
    expected = found.points / arl(WEIGHT, WIDTH)
    low, high = stats.poisson.interval(0.999, expected)
    # Single answers are not normal, so somewhat more is allowed for; a wrong limit would give several times as many.
    assert low / 1.3 <= found.alarms <= high * 1.3


def test_a_change_is_told_the_sooner_the_larger_it_is() -> None:
    found = [detection(normal, 100, shift, 300) for shift in (1.0, 2.0, 3.0)]
    assert [each.told for each in found] == pytest.approx([1, 1, 1], abs=0.05)
    # The chart learns from what it sees, so it is somewhat later than one that knows its centre.
    assert [each.median for each in found] == pytest.approx(
        [arl(WEIGHT, WIDTH, shift) for shift in (1.0, 2.0, 3.0)], rel=0.3
    )


def test_points_are_standard_normal_whatever_the_sizes_are() -> None:
    dice = np.random.default_rng(5)
    count = dice.integers(20, 400, 60)
    mean = 40 + 12 * dice.standard_normal(60) / np.sqrt(count)
    found = points(mean, count)
    assert np.isnan(found[:LEAST_BASELINE]).all()
    for at in range(LEAST_BASELINE, 60):
        before, weight = mean[:at], count[:at]
        centre = np.average(before, weights=weight)
        sigma = math.sqrt((weight * (before - centre) ** 2).sum() / (at - 1))
        t = (mean[at] - centre) / (sigma * math.sqrt(1 / count[at] + 1 / weight.sum()))
        assert found[at] == pytest.approx(stats.norm.ppf(stats.t.cdf(t, at - 1)), abs=0.01)


@pytest.mark.parametrize("share", [0.02, 0.1, 0.5, 0.9])
def test_shares_are_charted_on_a_scale_on_which_they_vary_alike(share: float) -> None:
    counts = np.full(20_000, 200)
    found = stabilised(np.random.default_rng(1).binomial(counts, share), counts)
    assert found.std() == pytest.approx(1 / math.sqrt(4 * 200), rel=0.05)
    assert found.mean() == pytest.approx(math.asin(math.sqrt(share)), abs=0.01)


def test_where_nothing_ever_varied_nothing_is_told() -> None:
    same = np.full(60, 100.0)
    assert first_alarm(same, np.full(60, 30)) is None
    assert np.isnan(points(np.append(same, 99.0), np.full(61, 30))).all()


# -- what is found -----------------------------------------------------------------------------------------------------

SHOP = JourneyMap(
    map_id="shop",
    name="Shop",
    stages=(
        Stage(
            stage_id="all",
            name="All",
            touchpoints=(
                Touchpoint(touchpoint_id="checkout", name="Checkout"),
                Touchpoint(touchpoint_id="parcel", name="Parcel", moment_of_truth=True),
            ),
        ),
    ),
)


def reading(events: Sequence[Happened], map_: JourneyMap = SHOP) -> Reading:
    return Reading(history(*events), map_, Placements(map_))


def raised(found: Finding, read: Reading) -> SignalRaised:
    """Return the signal that would be recorded."""
    event = InteractionRecorded(interaction=Interaction(customer=Customer(customer_id="c"), touchpoint="raw"))
    positions = [int(read.history.interactions.position[row]) for row in found.rows]
    seen = [Seen(event, uuid5(NAMESPACE, str(position)), "customer-c", 0, position) for position in positions]
    return watched(found, seen, read.map_.map_id, 1)


def shifted(read: Reading, before: Sequence[SignalRaised] = ()) -> list[Finding]:
    return [each for each in findings(read, (), before) if each.rule in SHIFT_RULES]


def days(
    first: int,
    last: int,
    satisfied: float,
    *,
    seed: int = 1,
    a_day: int = 40,
    every: int = 1,
    touchpoint: str = "parcel",
) -> list[Happened]:
    """Return CSAT answers of so many customers a day, this part of them satisfied."""
    dice = random.Random(f"{seed} {first} {satisfied}")
    return [
        Happened(f"c{day} {n}", day + n / a_day, touchpoint, csat=5 if dice.random() < satisfied else 2)
        for day in range(first, last, every)
        for n in range(a_day)
    ]


def test_a_score_that_goes_on_as_it_was_raises_nothing() -> None:
    assert shifted(reading(days(0, 120, 0.8))) == []


def test_a_score_that_worsened_is_told_with_all_that_the_chart_reckoned_with() -> None:
    events = [*days(0, 60, 0.85), *days(60, 76, 0.6)]
    read = reading(events)
    (found,) = shifted(read)
    assert (found.rule, found.version, found.touchpoint_id, found.customer) == (SCORE_WORSENED, 1, "parcel", -1)
    inputs = dict(found.inputs)
    assert {name: inputs[name] for name in ("metric", "chart", "weight", "width", "subgroup", "run_gaps")} == {
        "metric": "csat",
        "chart": "ewma",
        "weight": "0.1",
        "width": "3.5",
        "subgroup": "day",
        "run_gaps": "0",
    }
    # Day 60 is the second of March; the run begins about there and ends with the point that left the limits.
    assert "2026-02-26" <= inputs["run_from"] <= "2026-03-04" < inputs["run_until"] <= "2026-03-18"
    assert float(inputs["average"]) < -float(inputs["limit"]) < 0
    before = [e.csat == 5 for e in events if date_of(e.day) < inputs["run_from"]]
    since = [e.csat == 5 for e in events if inputs["run_from"] <= date_of(e.day) < inputs["run_until"]]
    assert len(before) == 40 * int(inputs["baseline_subgroups"])
    assert float(inputs["centre"]) == pytest.approx(100 * np.mean(before), abs=1e-3)
    assert float(inputs["level"]) == pytest.approx(100 * np.mean(since), abs=1e-3)
    # One answer's: 100 times the root of p(1 - p), estimated from how the days differ.
    assert float(inputs["sigma"]) == pytest.approx(100 * np.std(before), rel=0.25)
    assert "CSAT of Parcel fell from 8" in found.reasons[0]
    table = read.history.interactions
    assert all(table.csat[row] == 2 for row in found.rows)
    assert len(found.rows) == 10
    first, last = (int(inputs[f"{end}_position"]) for end in ("first", "last"))
    run = [10 * (n + 1) for n, e in enumerate(events) if inputs["run_from"] <= date_of(e.day) < inputs["run_until"]]
    assert (first, last, int(inputs["run_interactions"])) == (run[0], run[-1], len(run))
    signal = raised(found, read)
    assert (signal.customer_id, signal.map_id, signal.touchpoint_id) == ("", "shop", "parcel")


def date_of(day: float) -> str:
    return (np.datetime64(START.date()) + int(day)).astype(str)  # type: ignore[no-any-return]


def test_a_score_that_improved_is_told_as_such() -> None:
    (found,) = shifted(reading([*days(0, 60, 0.6), *days(60, 76, 0.9)]))
    assert found.rule == SCORE_IMPROVED


@pytest.mark.parametrize("metric", ["nps", "ces", "sentiment"])
def test_every_score_is_charted(metric: str) -> None:
    def answered(event: Happened) -> Happened:
        good = event.csat == 5
        match metric:
            case "nps":
                return replace(event, csat=-1, nps=10 if good else 3)
            case "ces":
                return replace(event, csat=-1, ces=6 if good else 2)
        score, need = (0.8, "") if good else (-0.6, "")
        return replace(event, csat=-1, words=(score, PointKind.NONE, need))

    (found,) = shifted(reading([answered(e) for e in [*days(0, 60, 0.85), *days(60, 76, 0.6)]]))
    assert (found.rule, found.inputs["metric"], found.touchpoint_id) == (SCORE_WORSENED, metric, "parcel")


def test_one_change_is_one_signal_and_the_next_change_another() -> None:
    before, after = days(0, 60, 0.85), days(60, 140, 0.6)
    at_first = reading([*before, *after[: 16 * 40]])
    (found,) = shifted(at_first)
    signal = raised(found, at_first)
    for upto in (17, 20, 40, 79):
        assert shifted(reading([*before, *after[: upto * 40]]), [signal]) == []
    # Whoever did not see that it was raised finds the same cause again.
    again = shifted(reading([*before, *after[: 17 * 40]]))
    assert [each.signal_id for each in again] == [found.signal_id]
    read = reading([*before, *after, *days(140, 160, 0.9)])
    (other,) = shifted(read, [signal])
    assert (other.rule, other.inputs["after_signal_id"]) == (SCORE_IMPROVED, signal.signal_id)
    assert other.signal_id != found.signal_id
    assert shifted(read, [signal, raised(other, read)]) == []


@pytest.mark.parametrize(("lasted", "rules"), [(7, []), (25, [SCORE_IMPROVED])])
def test_a_return_is_a_signal_where_it_was_away_for_longer_than_a_baseline(lasted: int, rules: list[str]) -> None:
    back = 60 + lasted
    outage = [*days(0, 60, 0.85), *days(60, back, 0.45)]
    at_first = reading(outage[: 65 * 40])
    (found,) = shifted(at_first)
    assert found.rule == SCORE_WORSENED
    signal = raised(found, at_first)
    # A short one is part of the baseline of what came after it, for as long as signals are news, and longer.
    for upto in (10, 20, 30):
        read = reading([*outage, *days(back, back + upto, 0.85)])
        assert [each.rule for each in shifted(read, [signal])] == rules


def test_what_comes_in_late_counts_where_it_happened_and_raises_nothing_twice() -> None:
    events = [*days(0, 60, 0.85), *days(60, 76, 0.6)]
    read = reading(events)
    (found,) = shifted(read)
    # Late answers from within the run, some good and some bad: the run may be another one, the cause is not.
    late = [Happened(f"late {n}", 58 + n % 16 + 0.5, "parcel", csat=2 if n % 3 else 5) for n in range(160)]
    with_late = reading([*events, *late])
    assert [each.signal_id for each in shifted(with_late)] == [found.signal_id]
    assert shifted(with_late, [raised(found, read)]) == []
    # Where all good answers of the run came late, nothing had happened.
    good = [Happened(f"good {n}", 60 + n % 16 + n / 1e4, "parcel", csat=5) for n in range(1_200)]
    assert [f for f in shifted(reading([*events, *good])) if f.rule == SCORE_WORSENED] == []


@pytest.mark.parametrize("seed", range(3))
def test_looking_every_day_finds_what_the_chart_of_the_whole_history_tells(seed: int) -> None:
    """Each point depends on those before it only: so whoever looks when, restarted or not, raises the same signals."""
    dice = random.Random(seed)
    events = []
    for first, satisfied in ((0, 0.8), (50, 0.6), (100, 0.8), (150, 0.55)):
        events += days(first, first + 50, satisfied + dice.uniform(-0.05, 0.05), seed=seed)
    of_day = [e.csat == 5 for e in events]
    day = np.array([int(e.day) for e in events])
    counts = np.bincount(day)
    means = stabilised(np.bincount(day, of_day).astype(np.int64), counts)
    expected, begin = [], 0
    while (alarm := first_alarm(means[begin:], counts[begin:])) is not None:
        expected.append(begin + alarm.at)
        begin += alarm.at + 1
    known: list[SignalRaised] = []
    for today in range(20, 211, 5):
        # Somebody comes by on the day of the look, so that the day before is over.
        read = reading([*[e for e in events if e.day < today], Happened("today", today)])
        # Sometimes whoever looks does not yet see what was raised just now.
        seen = known[: len(known) - 1] if dice.random() < 0.2 else known
        new = {each.signal_id: raised(each, read) for each in shifted(read, seen)}
        known += [new[key] for key in new if key not in {each.signal_id for each in known}]
    ends = [(np.datetime64(each.inputs["run_until"]) - np.datetime64(START.date())).astype(int) - 1 for each in known]
    assert len(expected) >= 3
    assert ends == expected


def test_a_touchpoint_that_was_renamed_keeps_its_chart() -> None:
    events = [*days(0, 60, 0.85), *days(60, 76, 0.6)]
    read = reading(events)
    (found,) = shifted(read)
    signal = raised(found, read)
    renamed = JourneyMap(
        map_id="shop",
        name="Shop",
        stages=(
            Stage(
                stage_id="all",
                name="All",
                touchpoints=(Touchpoint(touchpoint_id="package", name="Package", aliases=("parcel",)),),
            ),
        ),
    )
    assert [each.touchpoint_id for each in shifted(reading(events, renamed))] == ["package"]
    assert shifted(reading(events, renamed), [signal]) == []


def test_days_of_too_few_answers_are_gaps() -> None:
    def busy(event: Happened) -> bool:
        return int(event.day) % 7 not in {2, 3}

    week = [e for e in [*days(0, 60, 0.85), *days(60, 84, 0.74)] if busy(e)]
    (found,) = shifted(reading(week))
    inputs = found.inputs
    assert inputs["subgroup"] == "day"
    run = (np.datetime64(inputs["run_until"]) - np.datetime64(inputs["run_from"])).astype(int)
    assert int(inputs["run_gaps"]) > 0
    assert int(inputs["run_gaps"]) + int(inputs["run_subgroups"]) == run
    # Few bad answers on the days between are no point of the chart, and raise nothing.
    assert (
        shifted(
            reading(
                [
                    *[e for e in days(0, 80, 0.85) if busy(e)],
                    *(
                        Happened(f"x{day} {n}", day + n / 20, "parcel", csat=1)
                        for day in range(2, 80, 7)
                        for n in range(19)
                    ),
                ]
            )
        )
        == []
    )


def test_where_a_day_holds_too_little_it_is_weeks() -> None:
    events = [*days(0, 7 * 40, 0.8, a_day=6), *days(7 * 40, 7 * 44, 0.4, a_day=6)]
    (found,) = shifted(reading(events))
    assert found.inputs["subgroup"] == "week"
    # Weeks begin on Mondays.
    assert {
        np.datetime64(found.inputs[name]).astype("datetime64[D]").astype(int) % 7 for name in ("run_from", "run_until")
    } == {4}
    assert shifted(reading(days(0, 7 * 60, 0.8, a_day=2))) == []


def test_what_is_long_over_is_no_news_and_a_short_history_tells_nothing() -> None:
    old = [*days(0, 60, 0.85), *days(60, 130, 0.6)]
    assert shifted(reading(old)) == []
    assert shifted(reading([*days(0, 15, 0.9), *days(15, 19, 0.3)])) == []


def told(
    first: int, last: int, pain: float, *, kind: PointKind = PointKind.PAIN, loud: int = 0, seed: int = 2
) -> list[Happened]:
    """Return words of 60 customers a day, this part of which tell of late delivery; `loud`: one says it so often."""
    dice = random.Random(f"{seed} {first} {pain}")
    score = 0.7 if kind is PointKind.DELIGHT else -0.7
    events = []
    for day in range(first, last):
        for n in range(60):
            hurt = dice.random() < pain
            words = (score, kind, "delivery/speed") if hurt else (0.1, PointKind.NONE, "")
            events.append(Happened(f"c{n}", day + n / 100, "parcel" if n % 3 else "checkout", words=words))
        events += [Happened("c0", day + 0.7, "parcel", words=(score, kind, "delivery/speed")) for _ in range(loud)]
    return events


def of_points(found: Sequence[Finding]) -> list[Finding]:
    return [each for each in found if each.rule in {POINT_WORSENED, POINT_IMPROVED}]


@pytest.mark.parametrize(
    ("kind", "rule"),
    [(PointKind.PAIN, POINT_WORSENED), (PointKind.ITCH, POINT_WORSENED), (PointKind.DELIGHT, POINT_IMPROVED)],
)
def test_more_of_a_point_is_told_by_its_need(kind: PointKind, rule: str) -> None:
    read = reading([*told(0, 60, 0.15, kind=kind), *told(60, 78, 0.4, kind=kind)])
    (found,) = of_points(shifted(read))
    assert (found.rule, found.need_path, found.inputs["metric"]) == (rule, "delivery/speed", kind.name.lower())
    # Two thirds of them spoke at the parcel.
    assert found.touchpoint_id == "parcel"
    assert f"{kind.name.lower()} about delivery/speed rose from 1" in found.reasons[0]
    assert all(read.history.need[row] > 0 for row in found.rows)
    assert of_points(shifted(read, [raised(found, read)])) == []


def test_a_pain_that_few_told_of_is_told_when_it_spreads() -> None:
    before = told(0, 60, 0.005)
    assert of_points(shifted(reading([*before, *told(60, 78, 0.005)]))) == []
    (found,) = of_points(shifted(reading([*before, *told(60, 68, 0.15)])))
    assert (found.rule, found.need_path) == (POINT_WORSENED, "delivery/speed")


def test_a_point_counts_customers_not_words() -> None:
    events = [*told(0, 60, 0.15), *told(60, 78, 0.15, loud=40)]
    assert of_points(shifted(reading(events))) == []


def test_less_of_a_pain_is_an_improvement() -> None:
    (found,) = of_points(shifted(reading([*told(0, 60, 0.4), *told(60, 78, 0.15)])))
    assert (found.rule, found.need_path) == (POINT_IMPROVED, "delivery/speed")


# -- coverage lost -----------------------------------------------------------------------------------------------------


def lost(events: Sequence[Happened], map_: JourneyMap = SHOP, versions: Sequence[PublishedMap] = ()) -> list[Finding]:
    return [f for f in findings(reading(events, map_), versions) if f.rule in {COVERAGE_LOST, TOUCHPOINT_SILENT}]


def visits(first: float, last: float, heard: Callable[[int], bool]) -> list[Happened]:
    """Return an interaction at the parcel each quarter of a day, with a rating where it is heard."""
    times = np.arange(first, last, 0.25).tolist()
    return [Happened(f"c{n}", day, "parcel", csat=4 if heard(n) else -1) for n, day in enumerate(times)]


def test_a_touchpoint_that_nobody_tells_of_any_more_lost_its_coverage() -> None:
    half = visits(0, 40, lambda n: n % 2 == 0)
    quiet = visits(40, 45, lambda _: False)
    (found,) = lost([*half, *quiet])
    assert (found.rule, found.touchpoint_id, found.inputs["lost"]) == (COVERAGE_LOST, "parcel", "unheard")
    assert found.inputs["moment_of_truth"] == "true"
    assert (found.inputs["interactions_before"], found.inputs["heard_before"]) == ("159", "80")
    assert (found.inputs["interactions_since"], found.inputs["days_unheard"]) == ("21", "5.250")
    # B(81, 80 + 21) / B(81, 80).
    expected = math.prod((80 + n) / (161 + n) for n in range(21))
    assert float(found.inputs["probability"]) == pytest.approx(expected, rel=0.01)
    assert found.reasons == ("Parcel: nobody told in the last 21 interactions, after 80 of 159",)
    # The last that was heard, and the newest of those that were not.
    assert len(found.rows) == 10
    # It goes on: the same cause. Somebody tells: it is over, and another silence is another cause.
    (longer,) = lost([*half, *visits(40, 50, lambda _: False)])
    assert longer.signal_id == found.signal_id
    assert lost([*half, *quiet, Happened("x", 45.1, "parcel", csat=5)]) == []
    (again,) = lost([*half, *quiet, Happened("x", 45.1, "parcel", csat=5), *visits(45.5, 51, lambda _: False)])
    assert again.signal_id != found.signal_id


def test_chance_too_few_voices_and_old_news_are_no_lost_coverage() -> None:
    half = visits(0, 40, lambda n: n % 2 == 0)
    assert lost([*half, *visits(40, 41.5, lambda _: False)]) == []
    # A touchpoint that is seldom heard may well be quiet for twenty times.
    assert lost([*visits(0, 100, lambda n: n % 16 == 0), *visits(100, 105, lambda _: False)]) == []
    assert lost([*visits(0, 9, lambda n: n % 2 == 0), *visits(9, 14, lambda _: False)]) == []
    assert lost([*half, *visits(40, 80, lambda _: False)]) == []


def test_a_touchpoint_where_nothing_happens_is_silent_and_not_unheard() -> None:
    (found,) = lost([*visits(0, 40, lambda n: n % 2 == 0), Happened("x", 45, "checkout")])
    assert found.rule == TOUCHPOINT_SILENT


def version(number: int, *touchpoints: Touchpoint) -> PublishedMap:
    map_ = JourneyMap(map_id="shop", name="Shop", stages=(Stage(stage_id="all", name="All", touchpoints=touchpoints),))
    return PublishedMap(map_, number, START, "ana")


def test_a_map_that_drops_a_touchpoint_that_is_heard_loses_coverage() -> None:
    checkout, parcel = SHOP.stages[0].touchpoints
    events = [*visits(0, 40, lambda n: n % 2 == 0), Happened("x", 40, "checkout")]
    first, second, third = version(1, checkout, parcel), version(2, checkout), version(3, checkout)
    (found,) = lost(events, second.map, [first, second])
    assert (found.rule, found.touchpoint_id) == (COVERAGE_LOST, "parcel")
    assert dict(found.inputs) == {
        "lost": "dropped",
        "moment_of_truth": "true",
        "heard": "80",
        "dropped_in_version": "2",
    }
    assert found.reasons == ("Parcel: told of 80 times, and not in the map since version 2",)
    # Once, whatever comes after; until it is there again, and dropped again.
    (later,) = lost([*events, Happened("y", 41, "parcel", nps=9)], third.map, [first, second, third])
    assert later.signal_id == found.signal_id
    assert lost(events, first.map, [first, second, version(3, checkout, parcel)]) == []
    (again,) = lost(events, second.map, [first, second, version(3, checkout, parcel), version(4, checkout)])
    assert again.signal_id != found.signal_id


def test_a_touchpoint_that_moved_on_or_that_nobody_tells_of_may_be_dropped() -> None:
    checkout, parcel = SHOP.stages[0].touchpoints
    events = [*visits(0, 40, lambda n: n % 2 == 0), Happened("x", 40, "checkout")]
    renamed = version(2, checkout, Touchpoint(touchpoint_id="package", name="Package", aliases=("parcel",)))
    assert lost(events, renamed.map, [version(1, checkout, parcel), renamed]) == []
    merged = version(2, Touchpoint(touchpoint_id="checkout", name="Checkout", aliases=("parcel",)))
    assert lost(events, merged.map, [version(1, checkout, parcel), merged]) == []
    unheard = [*visits(0, 40, lambda _: False), Happened("x", 40, "checkout")]
    second = version(2, checkout)
    assert lost(unheard, second.map, [version(1, checkout, parcel), second]) == []
    assert lost([*events, Happened("x", 90, "checkout")], second.map, [version(1, checkout, parcel), second]) == []
