"""Control charts to look at: they are those that raise signals, as of any time, and say where there is none."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

import pytest

from recorrido.inference.v1.events import PointKind
from recorrido.journey.v1.events import JourneyMap, Stage, Touchpoint
from services.foundation.errors import InvalidError, NotFoundError
from services.journey.domain.charted import Span
from services.journey.views.controlchart import ChartPoint, State, control_charts, point_chart, score_chart
from tests.domain.test_journey_shifts import date_of, days, raised, reading, shifted
from tests.support.histories import START, Happened

CHANGED = [*days(0, 60, 0.85), *days(60, 80, 0.6)]


def outside(points: Sequence[ChartPoint]) -> list[ChartPoint]:
    return [each for each in points if each.state is State.OUTSIDE]


def test_what_is_shown_is_what_raised_the_signal() -> None:
    read = reading(CHANGED)
    (found,) = shifted(read)
    inputs = found.inputs
    for signals, signal_id in (([], ""), ([raised(found, read)], found.signal_id)):
        chart = score_chart(read, "parcel", "csat", signals)
        (point,) = outside(chart.points)
        assert (f"{point.until:%Y-%m-%d}", point.signal_id) == (inputs["run_until"], signal_id)
        assert (f"{point.average:.4f}", f"{point.limit:.4f}") == (inputs["average"], inputs["limit"])
        run = [each for each in chart.points if each.in_run]
        assert (f"{run[0].since:%Y-%m-%d}", len(run)) == (inputs["run_from"], int(inputs["run_subgroups"]))
        # The centre of the run's first day is the mean of all answers before it.
        assert f"{run[0].centre:.4f}" == inputs["centre"]
        # Every day that is over has its point and its share; what follows the run has a baseline of its own.
        assert [each.since for each in chart.points] == [START + timedelta(days=n) for n in range(79)]
        first = [e.csat == 5 for e in CHANGED if date_of(e.day) == "2026-01-01"]
        assert chart.points[0].value == pytest.approx(100 * sum(first) / len(first))
        states = [each.state for each in chart.points]
        at = states.index(State.OUTSIDE)
        assert states[:at] == [State.BASELINE] * 20 + [State.WITHIN] * (at - 20)
        assert set(states[at + 1 :]) == {State.BASELINE}
    # Behind a signal too little has happened for limits.
    assert "of 21 days with 20 answers there are" in chart.not_charted


def test_a_chart_of_earlier_is_the_beginning_of_a_later_one() -> None:
    whole = score_chart(reading(CHANGED), "parcel", "csat", []).points
    for today in (30, 47, 61, 70):
        then = score_chart(reading([e for e in CHANGED if e.day < today]), "parcel", "csat", []).points
        assert len(then) == today - 1
        # A day is as it was; only whether it is part of a run is known when the run has left the limits.
        assert then == [replace(each, in_run=now.in_run) for each, now in zip(whole, then, strict=False)]


def test_days_of_too_few_answers_are_gaps_that_are_shown() -> None:
    events = [e for e in days(0, 60, 0.85) if int(e.day) % 7 != 2 or e.day % 1 < 0.19]
    events = [e for e in events if int(e.day) != 33]
    points = score_chart(reading(events), "parcel", "csat", []).points
    gaps = {n for n, each in enumerate(points) if each.state is State.GAP}
    assert gaps == {33, *range(2, 59, 7)}
    assert (points[33].answers, points[33].value) == (0, None)
    assert (points[9].answers, points[9].average) == (8, None)
    assert points[9].value is not None


def test_few_answers_are_charted_by_weeks_and_fewer_not_at_all() -> None:
    by_weeks = score_chart(reading(days(0, 200, 0.8, a_day=5)), "parcel", "csat", [])
    assert (by_weeks.length, by_weeks.not_charted) == (7, "")
    assert {each.since.weekday() for each in by_weeks.points} == {0}
    few = score_chart(reading(days(0, 90, 0.8, a_day=5)), "parcel", "csat", [])
    assert few.not_charted == "of 21 days with 20 answers there are 0; of 21 weeks with 20 answers there are 13"
    assert {each.state for each in few.points} == {State.BASELINE}
    nearly_all = score_chart(reading(days(0, 60, 1.0)), "parcel", "csat", [])
    assert "nearly all are of one kind" in nearly_all.not_charted
    nobody = score_chart(reading(days(0, 60, 0.8)), "checkout", "nps", [])
    assert (nobody.name, nobody.not_charted, list(nobody.points)) == ("NPS of Checkout", "nobody answered", [])
    assert list(score_chart(reading([]), "checkout", "nps", []).points) == []


def tiled(points: Sequence[ChartPoint]) -> None:
    """Check that every day is in one subgroup."""
    assert [each.until for each in points[:-1]] == [each.since for each in points[1:]]


def test_no_day_is_lost_where_days_become_weeks() -> None:
    """The run of the signal ends within a week; behind it there are too few answers for days."""
    first = reading(CHANGED)
    (found,) = shifted(first)
    signal = raised(found, first)
    few = days(80, 260, 0.6, a_day=5)
    read = reading([*CHANGED, *few])
    chart = score_chart(read, "parcel", "csat", [signal])
    assert chart.length == 7
    tiled(chart.points)
    last = chart.points[-1].until
    assert sum(each.answers for each in chart.points) == sum(
        START + timedelta(days=e.day) < last for e in [*CHANGED, *few]
    )
    at = next(n for n, each in enumerate(chart.points) if each.signal_id)
    anew = chart.points[at + 1]
    assert (f"{anew.since:%Y-%m-%d}", anew.until.weekday()) == (found.inputs["run_until"], 0)
    assert 0 < (anew.until - anew.since).days < 7
    # What raises signals sees the same subgroups: a change later is told by those that are shown.
    worse = reading([*CHANGED, *few, *days(260, 290, 0.1, a_day=5)])
    (later,) = shifted(worse, [signal])
    (point,) = [each for each in outside(score_chart(worse, "parcel", "csat", [signal]).points) if each.since > last]
    assert (f"{point.until:%Y-%m-%d}", f"{point.average:.4f}") == (later.inputs["run_until"], later.inputs["average"])
    assert int(later.inputs["baseline_subgroups"]) + int(later.inputs["run_subgroups"]) == sum(
        each.answers >= 20
        for each in score_chart(worse, "parcel", "csat", [signal]).points
        if anew.since <= each.since <= point.since
    )


@pytest.mark.parametrize("weekday", range(7))
def test_a_week_of_which_not_all_is_looked_at_is_left_out_however_old_the_last_signal_is(weekday: int) -> None:
    today = 20_780 + weekday
    span = Span(today - 1_000, today)
    whole = span.within(span.days, 7)
    assert span.first <= span.begins(whole.start, 7) < span.first + 7
    assert [span.within((span.first - days, today), 7) for days in (1, 6, 7, 100)] == [whole] * 4


@pytest.mark.parametrize("late", ["there was none", "it was sooner", "they make weeks of days"])
def test_a_signal_stands_where_it_was_raised_whatever_comes_late(late: str) -> None:
    first = reading(CHANGED)
    (found,) = shifted(first)
    inputs = found.inputs
    begun = next(int(e.day) for e in CHANGED if date_of(e.day) == inputs["run_from"])
    came = {
        "there was none": [replace(e, customer=f"late {e.customer}") for e in days(begun, 80, 1.0, a_day=100)],
        "it was sooner": [replace(e, customer=f"late {e.customer}") for e in days(begun, 80, 0.0, a_day=40)],
        "they make weeks of days": days(-200, -199, 0.85),
    }[late]
    chart = score_chart(reading([*CHANGED, *came]), "parcel", "csat", [raised(found, first)])
    tiled(chart.points)
    (marked,) = [each for each in chart.points if each.signal_id]
    assert (marked.signal_id, f"{marked.until:%Y-%m-%d}") == (found.signal_id, inputs["run_until"])
    run = [each for each in chart.points if each.in_run]
    assert run[-1] == marked
    assert f"{run[0].since:%Y-%m-%d}" <= inputs["run_from"] < f"{run[0].until:%Y-%m-%d}"
    assert marked not in outside(chart.points)
    assert {(each.until - each.since).days > 1 for each in run} == {late == "they make weeks of days"}


def test_a_renamed_touchpoint_keeps_its_chart_and_its_signals() -> None:
    read = reading(CHANGED)
    (found,) = shifted(read)
    package = Touchpoint(touchpoint_id="package", name="Package", aliases=("parcel",))
    map_ = JourneyMap(map_id="shop", name="Shop", stages=(Stage(stage_id="all", name="All", touchpoints=(package,)),))
    chart = score_chart(reading(CHANGED, map_), "package", "csat", [raised(found, read)])
    assert [each.signal_id for each in outside(chart.points)] == [found.signal_id]
    with pytest.raises(InvalidError) as refused:
        score_chart(reading(CHANGED, map_), "parcel", "csat", [])
    (wrong,) = refused.value.violations
    assert (wrong.field, wrong.rule) == (
        "touchpoint_id",
        "no touchpoint 'parcel' in the map 'shop'; did you mean package? its touchpoints are: package",
    )


def words(first: int, last: int, hurt: int) -> list[Happened]:
    """Return what 40 customers a day say, `hurt` or one more or less of them of a slow delivery, twice."""
    found = []
    for day in range(first, last):
        for n in range(40):
            bad = n < hurt + day % 3 - 1
            told = (-0.8, PointKind.PAIN, "delivery/speed") if bad else (0.5, PointKind.NONE, "")
            found += [Happened(f"w{day} {n}", day + n / 40 + twice / 99, words=told) for twice in range(1 + bad)]
    return found


def test_a_point_is_charted_as_the_part_of_the_customers_heard() -> None:
    read = reading([*words(0, 60, 8), *words(60, 72, 20)])
    (found,) = [each for each in shifted(read) if each.need_path]
    chart = point_chart(read, PointKind.PAIN, "delivery/speed", [raised(found, read)])
    assert [each.value for each in chart.points[:3]] == pytest.approx([100 * n / 40 for n in (7, 8, 9)])
    assert {each.answers for each in chart.points} == {40}
    (point,) = outside(chart.points)
    assert (point.signal_id, point.average > 0) == (found.signal_id, True)
    assert list(point_chart(read, PointKind.ITCH, "delivery/speed", []).points) == []
    with pytest.raises(NotFoundError, match="nobody has told of a need 'price'"):
        point_chart(read, PointKind.PAIN, "price", [])
    # What others told of later nobody had told of then.
    read.history.vocabulary.needs.append("price")
    with pytest.raises(NotFoundError, match="nobody has told of a need 'price'"):
        point_chart(read, PointKind.PAIN, "price", [])


def test_all_charts_are_listed_with_their_newest_subgroups() -> None:
    read = reading([*words(0, 30, 8), *days(0, 30, 0.8)])
    found = control_charts(read, [], 5)
    assert [each.name for each in found] == ["sentiment of Checkout", "CSAT of Parcel", "pain about delivery/speed"]
    assert [each.points for each in found] == [
        score_chart(read, "checkout", "sentiment", []).points[-5:],
        score_chart(read, "parcel", "csat", []).points[-5:],
        point_chart(read, PointKind.PAIN, "delivery/speed", []).points[-5:],
    ]


def test_a_part_of_a_chart_is_judged_by_all_before_it() -> None:
    chart = score_chart(reading(CHANGED), "parcel", "csat", [])
    since, until = START + timedelta(days=50), START + timedelta(days=60)
    assert list(chart.between(since, until).points) == list(chart.points[50:60])
