"""Control charts: whether a series of subgroup means goes on as it was, or something has changed.

The chart is the exponentially weighted moving average (EWMA) of S. W. Roberts, "Control Chart Tests Based on Geometric
Moving Averages", Technometrics 1, 1959, with limits that grow with the number of points, as in S. H. Steiner, "EWMA
Control Charts with Time-Varying Control Limits and Fast Initial Response", Journal of Quality Technology 31, 1999.

What it weighs is self-starting (D. M. Hawkins, "Self-Starting Cusum Charts for Location and Scale", The Statistician
36, 1987; C. P. Quesenberry, "SPC Q Charts for Start-Up Processes and Short or Long Runs", Journal of Quality
Technology 23, 1991): each subgroup is judged by the mean and the spread of all subgroups before it, in a way that makes
the points independent and standard normal however short the baseline is. So the false-alarm rate is that of a chart
whose parameters are known, and no phase I of its own is needed beyond a least number of subgroups. The spread is that
between subgroups, for their sizes: days differ by more than the sampling of answers explains (D. B. Laney, "Improved
Control Charts for Attributes", Quality Engineering 14, 2002).

The weight is small because single answers are anything but normal: C. M. Borror, D. C. Montgomery and G. C. Runger,
"Robustness of the EWMA Control Chart to Non-Normality", Journal of Quality Technology 31, 1999. Its run lengths:
S. V. Crowder, "A Simple Method for Studying Run-Length Distributions of Exponentially Weighted Moving Average Charts",
Technometrics 29, 1987, and J. M. Lucas and M. S. Saccucci, "Exponentially Weighted Moving Average Control Schemes:
Properties and Enhancements", Technometrics 32, 1990.
"""

import math
from dataclasses import dataclass

import numpy as np

from services.journey.domain.history import Floats, Ints

#: Weight of the newest point, and width of the limits in standard deviations of the average.
WEIGHT = 0.1
WIDTH = 3.5
#: Points between two alarms, in the mean, while nothing changes: Crowder's integral equation for these two.
FALSE_ALARM_POINTS = 4_106
#: Where chart, limits, points, spread and rates are published, in short; in full above.
SOURCES = ("Roberts, 1959", "Steiner, 1999", "Hawkins, 1987", "Quesenberry, 1991", "Laney, 2002", "Crowder, 1987")
#: Subgroups that a baseline has at least.
LEAST_BASELINE = 20


@dataclass(frozen=True, slots=True)
class Alarm:
    """Where a chart left its limits. `at` and `start` are numbers of subgroups: the last and the first of the run.

    The run is what has been on one side of the centre since the average last was on the other. `average` and `limit`
    are in standard deviations of a point; `average` is negative where the values fell. `sigma`, in units of the values,
    is the standard deviation of one answer that explains how the subgroups before the run differ.
    """

    at: int
    start: int
    average: float
    limit: float
    sigma: float


def stabilised(hits: Ints, count: Ints) -> Floats:
    """Return the shares `hits` of `count` on a scale, 0 to π/2, on which their variance is 1/(4 `count`) for any share.

    F. J. Anscombe, "The Transformation of Poisson, Binomial and Negative-Binomial Data", Biometrika 35, 1948. On it
    small shares are far less skewed, so that a pain that few tell of raises no more false alarms than another.
    """
    angles: Floats = np.arcsin(np.sqrt((hits + 0.375) / (count + 0.75)))
    return angles


def points(mean: Floats, count: Ints) -> Floats:
    """Return each subgroup as a point of the chart: standard normal while nothing changes.

    The first LEAST_BASELINE, and those before which nothing varied, are NaN. `mean` and `count` are of the answers of
    each subgroup; counts are positive.

    They are the recursive residuals of R. L. Brown, J. Durbin and J. M. Evans, "Techniques for Testing the Constancy of
    Regression Relationships over Time", Journal of the Royal Statistical Society B 37, 1975, for a mean of weighted
    observations; divided by the spread before them they have Student's t, made normal by D. L. Wallace, "Bounds on
    Normal Approximations to Student's and the Chi-Square Distributions", Annals of Mathematical Statistics 30, 1959.
    """
    found = np.full(len(mean), np.nan)
    if len(mean) <= LEAST_BASELINE:
        return found
    weight = count.astype(np.float64)
    so_far = np.cumsum(weight)
    centre = np.cumsum(weight * mean) / so_far
    residual = (mean[1:] - centre[:-1]) / np.sqrt(1 / weight[1:] + 1 / so_far[:-1])
    # Of the subgroups before each; the first two have no spread before them.
    freedom = np.arange(1, len(residual), dtype=np.float64)
    spread = np.cumsum(residual**2)[:-1] / freedom
    # What differs by less than numbers can hold does not differ.
    varies = spread > 1e-12
    t = residual[1:] / np.sqrt(np.where(varies, spread, 1.0))
    normal = np.sign(t) * (8 * freedom + 1) / (8 * freedom + 3) * np.sqrt(freedom * np.log1p(t**2 / freedom))
    found[2:] = np.where(varies, normal, np.nan)
    found[:LEAST_BASELINE] = np.nan
    return found


@dataclass(frozen=True, slots=True)
class Course:
    """How a chart went, as far as it went: to its first alarm, or to its end.

    One entry for each subgroup: the point, the average and its limit, in standard deviations of a point; NaN where the
    baseline was too short to judge by.
    """

    point: Floats
    average: Floats
    limit: Floats
    alarm: Alarm | None


def course(mean: Floats, count: Ints) -> Course:
    """Return how the chart of these subgroups, oldest first, goes until it leaves its limits for the first time."""
    point = points(mean, count)
    averages, limits = np.full(len(point), np.nan), np.full(len(point), np.nan)
    average, remembered, start, side = 0.0, 1.0, 0, 0.0
    for at, value in enumerate(point.tolist()):
        if math.isnan(value):
            continue
        average += WEIGHT * (value - average)
        remembered *= (1 - WEIGHT) ** 2
        limit = WIDTH * math.sqrt(WEIGHT / (2 - WEIGHT) * (1 - remembered))
        averages[at], limits[at] = average, limit
        if average * side <= 0:
            start, side = at, average
        if abs(average) > limit:
            before, weight = mean[:start], count[:start]
            spread = (weight * (before - np.average(before, weights=weight)) ** 2).sum() / (start - 1)
            alarm = Alarm(at, start, average, limit, math.sqrt(spread))
            upto = slice(at + 1)
            return Course(point[upto], averages[upto], limits[upto], alarm)
    return Course(point, averages, limits, None)


def first_alarm(mean: Floats, count: Ints) -> Alarm | None:
    """Return where the chart of these subgroups, oldest first, leaves its limits for the first time; None: nowhere."""
    return course(mean, count).alarm
