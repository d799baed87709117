"""Confidence intervals, each with the name of its method. All are for 95 %."""

import math
from dataclasses import dataclass

from services.foundation.intervals import wilson

CONFIDENCE = 0.95
#: The normal quantile of 97.5 %.
Z = 1.959963984540054


@dataclass(frozen=True, slots=True)
class Interval:
    """What is true lies within these bounds in 95 of 100 such cases."""

    low: float
    high: float
    method: str


def proportion(hits: int, count: int) -> Interval:
    """Return the interval of a share, 0 to 1.

    Wilson's score interval (`services.foundation.intervals`).
    """
    return Interval(*wilson(hits, count), "wilson/1927")


def net_promoters(promoters: int, passives: int, detractors: int) -> Interval:
    """Return the interval of NPS, in percentage points.

    The difference of two shares of one sample, with half an answer added to each of the four outcomes that two
    yes-or-no questions can have: the promoter's, the detractor's, and two that are passive (A. Agresti and Y. Min,
    "Simple improved confidence intervals for comparing matched proportions", Statistics in Medicine 24, 2005).
    """
    count = promoters + passives + detractors + 2
    up, down = (promoters + 0.5) / count, (detractors + 0.5) / count
    half = Z * math.sqrt((up + down - (up - down) ** 2) / count)
    return Interval(100 * max(-1.0, up - down - half), 100 * min(1.0, up - down + half), "agresti-min/2005")


def mean(count: int, total: float, squares: float, *, lowest: float, highest: float) -> Interval:
    """Return the interval of a mean of `count` values, from their sum and the sum of their squares.

    The mean and 1.96 standard errors, within the bounds of the scale. One value at each end of the scale is added, so
    that few values that happen to agree do not look certain, as A. Agresti and B. A. Coull do for shares ("Approximate
    Is Better than 'Exact' for Interval Estimation of Binomial Proportions", The American Statistician 52, 1998).
    """
    more = count + 2
    added = (total + lowest + highest) / more
    variance = (squares + lowest**2 + highest**2) / more - added**2
    half = Z * math.sqrt(max(variance, 0.0) / more)
    return Interval(max(lowest, added - half), min(highest, added + half), "adjusted-z/1998")


def difference(hits: int, count: int, hits_before: int, count_before: int) -> Interval:
    """Return the interval of a share now minus the share before.

    R. G. Newcombe, "Interval estimation for the difference between independent proportions: comparison of eleven
    methods", Statistics in Medicine 17, 1998, method 10: the Wilson intervals of both, combined.
    """
    now, then = hits / count, hits_before / count_before
    one, other = proportion(hits, count), proportion(hits_before, count_before)
    down = math.sqrt((now - one.low) ** 2 + (other.high - then) ** 2)
    up = math.sqrt((one.high - now) ** 2 + (then - other.low) ** 2)
    return Interval(now - then - down, now - then + up, "newcombe/1998")


@dataclass(frozen=True, slots=True)
class Sample:
    """What is left of a sample of values: how many, their sum and the sum of their squares."""

    count: int
    total: float
    squares: float

    @property
    def mean(self) -> float:
        return self.total / self.count

    @property
    def spread(self) -> float:
        """Return the sum of the squared distances from the mean."""
        return max(self.squares - self.total**2 / self.count, 0.0)


def hedges_g(one: Sample, other: Sample) -> tuple[float, Interval] | None:
    """Return the standardised difference of two means, and its interval; None where nothing varies.

    Hedges' g with its small-sample correction and the large-sample variance: L. V. Hedges and I. Olkin, "Statistical
    Methods for Meta-Analysis", 1985, chapter 5. Both samples have at least two values.
    """
    freedom = one.count + other.count - 2
    pooled = math.sqrt((one.spread + other.spread) / freedom)
    if pooled == 0:
        return None
    effect = (one.mean - other.mean) / pooled * (1 - 3 / (4 * freedom - 1))
    error = math.sqrt(1 / one.count + 1 / other.count + effect**2 / (2 * (one.count + other.count)))
    return effect, Interval(effect - Z * error, effect + Z * error, "hedges-olkin/1985")
