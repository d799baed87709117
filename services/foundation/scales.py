"""The standard questions about an experience: their scales, and which answers on them are good and bad ones."""

from collections.abc import Sequence
from dataclasses import dataclass

from recorrido.ingest.v1 import interaction_pb2
from recorrido.ingest.v1.events import Rating, RatingMetric


@dataclass(frozen=True, slots=True)
class Scale:
    """Whole points, all bounds inclusive: `lowest` to `highest_bad` are bad answers, `lowest_good` to `highest` good.

    `method` names how the answers make a score.
    """

    lowest: int
    highest: int
    highest_bad: int
    lowest_good: int
    method: str

    @property
    def points(self) -> int:
        return self.highest - self.lowest + 1


def _scale(metric: RatingMetric, *, highest_bad: int, lowest_good: int, method: str) -> Scale:
    # The bounds stand in the contract, for callers in every language.
    options = interaction_pb2.RatingMetric.DESCRIPTOR.values_by_name[metric.value].GetOptions()
    bounds = options.Extensions[interaction_pb2.scale]
    return Scale(bounds.lowest, bounds.highest, highest_bad, lowest_good, method)


#: NPS, "How likely is it that you would recommend us?": 9 and 10 promote, 0 to 6 detract (F. F. Reichheld, "The One
#: Number You Need to Grow", Harvard Business Review, December 2003). CSAT: the top two boxes are satisfied (N. T.
#: Bendle, P. W. Farris, P. E. Pfeifer and D. J. Reibstein, "Marketing Metrics", 4th ed., 2020). CES 2.0, "The company
#: made it easy for me": 5, 6 and 7 agree (M. Dixon, N. Toman and R. DeLisi, "The Effortless Experience", 2013). The
#: middle point of CSAT and CES is neither.
SCALES = {
    RatingMetric.NPS: _scale(RatingMetric.NPS, highest_bad=6, lowest_good=9, method="nps/2003"),
    RatingMetric.CSAT: _scale(RatingMetric.CSAT, highest_bad=2, lowest_good=4, method="csat-top-2-box/1"),
    RatingMetric.CES: _scale(RatingMetric.CES, highest_bad=3, lowest_good=5, method="ces-2.0-top-3-box/1"),
}


def answer(ratings: Sequence[Rating], metric: RatingMetric) -> int | None:
    """Return the answer on the metric's standard scale, or None where there is none (or none on that scale)."""
    scale = SCALES[metric]
    for rating in ratings:
        if rating.metric is metric and rating.value % 1 == 0 and scale.lowest <= rating.value <= scale.highest:
            return int(rating.value)
    return None
