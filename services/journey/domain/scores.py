"""The three classic measures of an experience, from counts of answers.

Only whole points of the standard scales count; a rating on another scale is kept with its interaction and never
averaged into these.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from recorrido.ingest.v1.events import Rating, RatingMetric
from services.journey.domain import intervals
from services.journey.domain.intervals import Interval

#: The standard scales, both bounds inclusive.
SCALES = {RatingMetric.NPS: (0, 10), RatingMetric.CSAT: (1, 5), RatingMetric.CES: (1, 7)}

#: "How likely is it that you would recommend us?": 9 and 10 promote, 0 to 6 detract.
LOWEST_PROMOTER = 9
HIGHEST_DETRACTOR = 6
#: The boxes that count as satisfied (4, 5), and as easy (5, 6, 7).
CSAT_TOP_BOXES = 2
CES_TOP_BOXES = 3

NPS_METHOD = "nps/2003"
CSAT_METHOD = "csat-top-2-box/1"
CES_METHOD = "ces-2.0-top-3-box/1"
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
    method: str = NPS_METHOD


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


def answer(ratings: Sequence[Rating], metric: RatingMetric) -> int | None:
    """Return the answer on the metric's standard scale, or None where there is none (or none on that scale)."""
    lowest, highest = SCALES[metric]
    for rating in ratings:
        if rating.metric is metric and rating.value % 1 == 0 and lowest <= rating.value <= highest:
            return int(rating.value)
    return None


def net_promoter_score(promoters: int, passives: int, detractors: int) -> NetPromoterScore | None:
    """Return the percentage of promoters minus the percentage of detractors; None where nobody was asked.

    Source: F. F. Reichheld, "The One Number You Need to Grow", Harvard Business Review, December 2003.
    """
    count = promoters + passives + detractors
    if count == 0:
        return None
    value = 100 * (promoters - detractors) / count
    interval = intervals.net_promoters(promoters, passives, detractors)
    return NetPromoterScore(value, promoters, passives, detractors, count, interval)


def satisfaction_score(histogram: Sequence[int]) -> RatingScore | None:
    """Return CSAT from the answers per point 1 to 5: the share of 4 and 5, in percent.

    The "top two box" convention, as in N. T. Bendle, P. W. Farris, P. E. Pfeifer and D. J. Reibstein, "Marketing
    Metrics", 4th ed., 2020, section on customer satisfaction.
    """
    return _top_boxes(histogram, CSAT_TOP_BOXES, CSAT_METHOD)


def effort_score(histogram: Sequence[int]) -> RatingScore | None:
    """Return CES from the answers per point 1 to 7: the share of 5, 6 and 7 ("made it easy"), in percent.

    The question and its scale (CES 2.0): M. Dixon, N. Toman and R. DeLisi, "The Effortless Experience", 2013.
    """
    return _top_boxes(histogram, CES_TOP_BOXES, CES_METHOD)


def _top_boxes(histogram: Sequence[int], top: int, method: str) -> RatingScore | None:
    count = sum(histogram)
    if count == 0:
        return None
    total = sum(point * answers for point, answers in enumerate(histogram, 1))
    hits = sum(histogram[-top:])
    share = intervals.proportion(hits, count)
    percent = Interval(100 * share.low, 100 * share.high, share.method)
    return RatingScore(100 * hits / count, total / count, count, tuple(histogram), percent, method)


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
