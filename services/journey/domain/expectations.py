"""What a map expects of a touchpoint, beside what is: on one scale each, and only as sure as the answers are many."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from recorrido.journey.v1.events import Expectation, Metric
from services.journey.domain.intervals import Interval


class Met(Enum):
    """Whether what is true is at least what is expected: yes, no, or the answers are too few to tell."""

    MET = 1
    MISSED = 2
    NOT_KNOWN = 3


class Score(Protocol):
    """A score on its metric's own range, with the number of answers and its interval."""

    @property
    def value(self) -> float: ...
    @property
    def count(self) -> int: ...
    @property
    def interval(self) -> Interval: ...
    @property
    def method(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Expected:
    """One expectation. All numbers are on the metric's own range: percentage points of NPS, percent, -1 to 1.

    `gap` is value minus target and `interval` that of the gap; both and `value` are None where nobody was asked.
    """

    metric: Metric
    target: float
    met: Met
    value: float | None = None
    count: int = 0
    gap: float | None = None
    interval: Interval | None = None
    method: str = ""


def held_against(expected: Sequence[Expectation], scores: Mapping[Metric, Score | None]) -> tuple[Expected, ...]:
    """Hold the scores of a touchpoint against what its map expects, each against its own metric's only.

    It is met, or missed, where the whole 95 % interval of the score is at or above the target, or below it: so of
    expectations that are just met or just not, one in twenty at most is told wrongly. (A comparison with a fixed number
    by a confidence interval is the test of the same level: L. D. Brown, G. Casella and J. T. G. Hwang, "Optimal
    Confidence Sets, Bioequivalence, and the Limaçon of Pascal", Journal of the American Statistical Association 90,
    1995.)
    """
    return tuple(_held(each, scores.get(each.metric)) for each in expected)


def _held(expectation: Expectation, score: Score | None) -> Expected:
    target = expectation.target
    if score is None:
        return Expected(expectation.metric, target, Met.NOT_KNOWN)
    gap = Interval(score.interval.low - target, score.interval.high - target, score.interval.method)
    met = Met.MET if gap.low >= 0 else Met.MISSED if gap.high < 0 else Met.NOT_KNOWN
    return Expected(expectation.metric, target, met, score.value, score.count, score.value - target, gap, score.method)
