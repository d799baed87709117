"""The three classic measures of an experience, from counts of answers.

Only whole points of the standard scales count; a rating on another scale is kept with its interaction and never
averaged into these.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from recorrido.ingest.v1.events import RatingMetric
from services.foundation.scales import SCALES
from services.journey.domain import intervals
from services.journey.domain.intervals import Interval

SENTIMENT_METHOD = "mean-sentiment/1"
CUSTOM_METHOD = "mean-raw/1"


@dataclass(frozen=True, slots=True)
class NetPromoterScore:
    """`value` is in percentage points, -100 to 100."""

    value: float
    promoters: int
    passives: int
    detractors: int
    count: int
    interval: Interval
    method: str = SCALES[RatingMetric.NPS].method


@dataclass(frozen=True, slots=True)
class RatingScore:
    """`value` is the top boxes' share in percent, and so is its interval; `mean` is in scale points.

    `histogram` counts from the lowest point.
    """

    value: float
    mean: float
    count: int
    histogram: tuple[int, ...]
    interval: Interval
    method: str


@dataclass(frozen=True, slots=True)
class MeanScore:
    """A mean on a scale of its own; `value` and interval are in points of that scale."""

    value: float
    count: int
    interval: Interval
    method: str


def net_promoter_score(promoters: int, passives: int, detractors: int) -> NetPromoterScore | None:
    """Return the percentage of promoters minus the percentage of detractors; None where nobody was asked.

    Sources of the three measures: `services.foundation.scales`.
    """
    count = promoters + passives + detractors
    if count == 0:
        return None
    value = 100 * (promoters - detractors) / count
    interval = intervals.net_promoters(promoters, passives, detractors)
    return NetPromoterScore(value, promoters, passives, detractors, count, interval)


def satisfaction_score(histogram: Sequence[int]) -> RatingScore | None:
    """Return CSAT from the answers per point 1 to 5: the share of 4 and 5, in percent."""
    return _top_boxes(histogram, RatingMetric.CSAT)


def effort_score(histogram: Sequence[int]) -> RatingScore | None:
    """Return CES from the answers per point 1 to 7: the share of 5, 6 and 7 ("made it easy"), in percent."""
    return _top_boxes(histogram, RatingMetric.CES)


def _top_boxes(histogram: Sequence[int], metric: RatingMetric) -> RatingScore | None:
    scale, count = SCALES[metric], sum(histogram)
    if count == 0:
        return None
    total = sum(point * answers for point, answers in enumerate(histogram, scale.lowest))
    hits = sum(histogram[scale.lowest_good - scale.lowest :])
    share = intervals.proportion(hits, count)
    percent = Interval(100 * share.low, 100 * share.high, share.method)
    return RatingScore(100 * hits / count, total / count, count, tuple(histogram), percent, scale.method)


def mean_sentiment(count: int, total: float, squares: float) -> MeanScore | None:
    """Return the mean of the sentiment of analysed words, -1 to 1; None where there are none."""
    return mean_score(count, total, squares, lowest=-1.0, highest=1.0, method=SENTIMENT_METHOD)


def mean_score(
    count: int, total: float, squares: float, *, lowest: float, highest: float, method: str = CUSTOM_METHOD
) -> MeanScore | None:
    """Return the mean of answers on one scale, from their sum and the sum of their squares; None where none is."""
    if count == 0:
        return None
    interval = intervals.mean(count, total, squares, lowest=lowest, highest=highest)
    return MeanScore(total / count, count, interval, method)
