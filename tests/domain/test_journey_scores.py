"""NPS, CSAT and CES against counting on the fingers."""

from statistics import mean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recorrido.ingest.v1.events import Rating, RatingMetric
from services.foundation.scales import answer
from services.journey.domain.scores import effort_score, net_promoter_score, satisfaction_score


def test_nobody_asked_is_no_score() -> None:
    assert net_promoter_score(0, 0, 0) is None
    assert satisfaction_score([0] * 5) is None
    assert effort_score([0] * 7) is None


@given(st.lists(st.integers(0, 10), min_size=1))
def test_nps_is_promoters_minus_detractors_in_percent(answers: list[int]) -> None:
    promoters = [a for a in answers if a in {9, 10}]
    detractors = [a for a in answers if a in range(7)]
    score = net_promoter_score(len(promoters), len(answers) - len(promoters) - len(detractors), len(detractors))
    assert score is not None
    assert score.value == pytest.approx(100 * len(promoters) / len(answers) - 100 * len(detractors) / len(answers))
    assert -100 <= score.value <= 100
    assert score.count == len(answers)


@given(st.lists(st.integers(1, 5), min_size=1))
def test_csat_is_the_share_of_4_and_5(answers: list[int]) -> None:
    score = satisfaction_score([answers.count(point) for point in range(1, 6)])
    assert score is not None
    assert score.value == pytest.approx(100 * sum(a >= 4 for a in answers) / len(answers))
    assert score.mean == pytest.approx(mean(answers))
    assert score.count == sum(score.histogram) == len(answers)


@given(st.lists(st.integers(1, 7), min_size=1))
def test_ces_is_the_share_of_5_6_and_7(answers: list[int]) -> None:
    score = effort_score([answers.count(point) for point in range(1, 8)])
    assert score is not None
    assert score.value == pytest.approx(100 * sum(a >= 5 for a in answers) / len(answers))
    assert score.mean == pytest.approx(mean(answers))


@pytest.mark.parametrize(
    ("metric", "value", "expected"),
    [
        (RatingMetric.NPS, 0, 0),
        (RatingMetric.NPS, 10, 10),
        (RatingMetric.NPS, 11, None),
        (RatingMetric.CSAT, 0, None),
        (RatingMetric.CSAT, 5, 5),
        (RatingMetric.CSAT, 4.5, None),
        (RatingMetric.CES, 7, 7),
        (RatingMetric.CES, float("nan"), None),
        (RatingMetric.CES, float("inf"), None),
    ],
)
def test_only_points_of_the_standard_scale_are_answers(
    metric: RatingMetric, value: float, expected: int | None
) -> None:
    ratings = (Rating(metric=RatingMetric.CUSTOM, value=3.0, name="shoes"), Rating(metric=metric, value=float(value)))
    assert answer(ratings, metric) == expected


def test_other_scales_are_no_answer() -> None:
    assert answer((Rating(metric=RatingMetric.CUSTOM, value=3.0, name="CSAT"),), RatingMetric.CSAT) is None
