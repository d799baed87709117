"""Control charts on simulated answers: how long they run, and how long they should."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.journey.domain.charts import LEAST_BASELINE, Alarm, first_alarm, stabilised

Dice = np.random.Generator
#: Means and counts of so many subgroups, of which those from the second number on are shifted by so many standard
#: deviations of a subgroup's mean.
Process = Callable[[Dice, int, int, float], tuple[NDArray[np.float64], NDArray[np.int64]]]


def arl(weight: float, width: float, shift: float = 0.0, nodes: int = 80) -> float:
    """Return the average run length of a two-sided EWMA chart with known parameters and fixed limits.

    The integral equation of S. V. Crowder, Technometrics 29, 1987, by Gauss-Legendre quadrature. `shift` is in standard
    deviations of a point.
    """
    bound = width * math.sqrt(weight / (2 - weight))
    at, part = (each * bound for each in np.polynomial.legendre.leggauss(nodes))

    def moves(since: NDArray[np.float64]) -> NDArray[np.float64]:
        point = (at - (1 - weight) * since) / weight - shift
        density: NDArray[np.float64] = np.exp(-(point**2) / 2) / math.sqrt(2 * math.pi) / weight * part
        return density

    lengths = np.linalg.solve(np.eye(nodes) - moves(at[:, None]), np.ones(nodes))
    return float(1 + moves(np.zeros(1)) @ lengths)


def normal(dice: Dice, size: int, since: int, shift: float) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return subgroups as the theory has them: normal, of one size."""
    values = dice.standard_normal(size)
    values[since:] += shift
    return values, np.full(size, 30)


def shares(share: float, answers: int, between: float = 0.0) -> Process:
    """Return the top boxes of about so many answers a day; the days' own share has the standard deviation `between`."""

    def process(dice: Dice, size: int, since: int, shift: float) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        counts = np.maximum(dice.poisson(answers, size), 20)
        own = share + between * dice.standard_normal(size)
        own[since:] += shift * math.sqrt(share * (1 - share) / answers + between**2)
        return stabilised(dice.binomial(counts, np.clip(own, 0, 1)), counts), counts

    return process


def promoters(chances: tuple[float, float, float], answers: int) -> Process:
    """Return the NPS of so many answers a day, of which these parts detract, are passive, and promote."""

    def process(dice: Dice, size: int, since: int, shift: float) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        assert since >= size or not shift, "only as it is"
        told = dice.multinomial(answers, chances, size)
        return (told[:, 2] - told[:, 0]) / answers, np.full(size, answers)

    return process


@dataclass(frozen=True)
class InControl:
    """Charts on which nothing ever changes: points looked at, and the false alarms among them."""

    points: int
    alarms: int

    @property
    def arl(self) -> float:
        """Return the mean run length: run lengths are all but exponential, so time at risk by alarms estimates it."""
        return self.points / max(self.alarms, 1)


def in_control(process: Process, charts: int, length: int, seed: int = 0) -> InControl:
    """Run charts of `length` points beyond their baselines, each to its first alarm."""
    dice = np.random.default_rng(seed)
    size = LEAST_BASELINE + length
    found = [first_alarm(*process(dice, size, size, 0.0)) for _ in range(charts)]
    points = sum(length if alarm is None else alarm.at + 1 - LEAST_BASELINE for alarm in found)
    return InControl(points, sum(alarm is not None for alarm in found))


@dataclass(frozen=True)
class Detection:
    """Of charts that shift: the part that tells within the time given, and the median of points until it does."""

    told: float
    median: float


def detection(
    process: Process, baseline: int, shift: float, charts: int, *, within: int = 100, seed: int = 0
) -> Detection:
    """Run charts that shift after `baseline` subgroups; those with a false alarm before that are left out."""
    dice = np.random.default_rng(seed)
    alarms: list[Alarm | None] = [
        first_alarm(*process(dice, baseline + within, baseline, shift)) for _ in range(charts)
    ]
    after = [alarm for alarm in alarms if alarm is None or alarm.at >= baseline]
    delays = [math.inf if alarm is None else alarm.at - baseline + 1 for alarm in after]
    return Detection(sum(map(math.isfinite, delays)) / len(delays), float(np.median(delays)))
