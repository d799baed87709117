"""What a map expects beside what is: met, missed, or not known with so few answers; never across scales."""

import numpy as np
import pytest

from recorrido.inference.v1.events import PointKind
from recorrido.journey.v1.events import Expectation, JourneyMap, Metric, Stage, Touchpoint
from services.journey.domain.expectations import Met
from services.journey.domain.history import Scale
from services.journey.domain.placement import Placements
from services.journey.domain.reading import Reading
from services.journey.domain.scores import satisfaction_score
from services.journey.views.coverage import coverage
from services.journey.views.scores import Grouping, Period, Scores, grouped, scores
from services.journey.views.selection import Selection
from tests.support.histories import Happened, history

TARGETS = (
    Expectation(metric=Metric.NPS, target=30),
    Expectation(metric=Metric.CSAT, target=80),
    Expectation(metric=Metric.CES, target=75),
    Expectation(metric=Metric.SENTIMENT, target=0.2),
)
CHECKOUT = Touchpoint(touchpoint_id="checkout", name="Checkout", expected=TARGETS)
MAP = JourneyMap(
    map_id="shop",
    name="Shop",
    stages=(Stage(stage_id="all", name="All", touchpoints=(CHECKOUT, Touchpoint(touchpoint_id="help", name="Help"))),),
)


def reading(*events: Happened) -> Reading:
    return Reading(history(*events), MAP, Placements(MAP))


def rated(satisfied: int, dissatisfied: int) -> list[Happened]:
    return [Happened(f"c{n}", n / 9, csat=5 if n < satisfied else 1) for n in range(satisfied + dissatisfied)]


@pytest.mark.parametrize(
    ("satisfied", "dissatisfied", "met"),
    [(95, 5, Met.MET), (60, 40, Met.MISSED), (80, 20, Met.NOT_KNOWN), (3, 0, Met.NOT_KNOWN), (0, 2, Met.MISSED)],
)
def test_a_score_meets_or_misses_only_with_enough_answers(satisfied: int, dissatisfied: int, met: Met) -> None:
    _, (checkout, help_) = scores(reading(*rated(satisfied, dissatisfied)), Selection())
    nps, csat, ces, sentiment = checkout.expected
    share = 100 * satisfied / (satisfied + dissatisfied)
    assert (csat.met, csat.count, csat.target) == (met, satisfied + dissatisfied, 80)
    assert (csat.value, csat.gap) == pytest.approx((share, share - 80))
    assert csat.interval is not None
    bounds = checkout.scores.csat.interval  # type: ignore[union-attr]
    assert (csat.interval.low, csat.interval.high) == pytest.approx((bounds.low - 80, bounds.high - 80))
    assert (csat.method, csat.interval.method) == ("csat-top-2-box/1", "wilson/1927")
    # What nobody was asked is not missed.
    for each in (nps, ces, sentiment):
        assert (each.met, each.value, each.gap, each.count) == (Met.NOT_KNOWN, None, None, 0)
    assert help_.expected == ()


def test_each_metric_is_held_against_its_own_answers() -> None:
    events = [Happened(f"c{n}", n, nps=10, words=(-0.6, PointKind.NONE, "")) for n in range(40)]
    _, (checkout, _) = scores(reading(*events), Selection())
    assert [each.met for each in checkout.expected] == [Met.MET, Met.NOT_KNOWN, Met.NOT_KNOWN, Met.MISSED]
    assert [each.value for each in checkout.expected] == [100, None, None, pytest.approx(-0.6)]


def test_a_scale_of_the_companys_own_is_held_against_nothing() -> None:
    """Also where it is called so: 90 of 100 is no CSAT, and no share of satisfied customers."""
    own = [Happened(f"c{n}", n, mood=(Scale("csat", 0, 100), 90.0)) for n in range(50)]
    _, (checkout, _) = scores(reading(*own), Selection())
    assert {each.met for each in checkout.expected} == {Met.NOT_KNOWN}
    assert {each.value for each in checkout.expected} == {None}


def test_coverage_and_time_series_tell_the_same_of_their_time() -> None:
    read = reading(*rated(95, 5))
    _, (checkout, _) = scores(read, Selection())
    found = coverage(read, None, None, 10)
    assert [each.expected for each in found.touchpoints] == [checkout.expected, ()]
    groups, _ = grouped(read, Selection(), [Grouping.CHANNEL, Grouping.TOUCHPOINT], Period.WEEK, 100)
    by_week = [each.expected[1] for each in groups]
    assert [each.count for each in by_week] == [each.scores.csat.count for each in groups]  # type: ignore[union-attr]
    assert sum(each.count for each in by_week) == 100
    assert len(by_week) == 3
    assert by_week[-1].met is Met.MISSED
    groups, _ = grouped(read, Selection(), [Grouping.STAGE], None, 100)
    assert [each.expected for each in groups] == [()]


def test_what_is_just_met_is_rarely_told_as_missed() -> None:
    """A simulation: with a true share of exactly the target, as often in 100 as the interval promises."""
    dice = np.random.default_rng(3)
    wrong = {Met.MET: 0, Met.MISSED: 0, Met.NOT_KNOWN: 0}
    for satisfied in dice.binomial(150, 0.8, 2_000).tolist():
        score = satisfaction_score([150 - satisfied, 0, 0, 0, satisfied])
        wrong[Scores(csat=score).against(CHECKOUT)[1].met] += 1
    # It is right that it is met, but with so many answers nobody can know.
    assert 0 < wrong[Met.MISSED] < 2_000 * 0.04
    assert wrong[Met.MET] + wrong[Met.MISSED] < 2_000 * 0.065
