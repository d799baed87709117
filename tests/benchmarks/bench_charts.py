"""How often control charts raise a false alarm, and how soon they tell of a change: the tables of docs/journey.md.

And what other charts would do that are to find small changes sooner, at the same rate of false alarms.

python -m tests.benchmarks.bench_charts
"""

import math
from collections.abc import Callable

import numpy as np

from services.journey.domain.charts import FALSE_ALARM_POINTS, LEAST_BASELINE, WEIGHT, WIDTH, points
from services.journey.domain.history import Floats, Ints
from tests.support.chartsim import Process, arl, detection, in_control, normal, promoters, shares

PROCESSES: dict[str, Process] = {
    "normal subgroups": normal,
    "CSAT 80 %, about 30 answers a day": shares(0.8, 30),
    "CSAT 95 %, about 100 answers a day": shares(0.95, 100),
    "CSAT 80 %, about 1,000 answers a day; days differ by 3 points besides": shares(0.8, 1_000, 0.03),
    "a pain of 5 %, about 100 customers heard a day": shares(0.05, 100),
    "a pain of 1 %, about 100 customers heard a day": shares(0.01, 100),
    "NPS 30, 30 answers a day": promoters((0.2, 0.3, 0.5), 30),
    "NPS 88, 50 answers a day": promoters((0.02, 0.08, 0.90), 50),
}


# -- other charts ------------------------------------------------------------------------------------------------------

#: What each chart looks at, given one row of subgroups for each of several, and their sizes: it alarms where that is
#: above a threshold.
Statistic = Callable[[Floats, Ints], Floats]


def ewma(first: float = 1.0) -> Statistic:
    """Return the chart in use, with limits that a fast initial response narrows, at first to `first` of theirs.

    That of Steiner, 1999 ("FIR adjustment"), which is all but gone after 20 points.
    """
    growth = (-2 / math.log10(1 - first) - 1) / 19 if first < 1 else 0.0

    def statistic(subgroups: Floats, counts: Ints) -> Floats:
        rows = zip(subgroups, counts, strict=True)
        judged = np.array([points(row, count)[LEAST_BASELINE:] for row, count in rows])
        found, average = np.empty_like(judged), np.zeros(len(judged))
        for at in range(judged.shape[1]):
            average += WEIGHT * (judged[:, at] - average)
            limit = math.sqrt(WEIGHT / (2 - WEIGHT) * (1 - (1 - WEIGHT) ** (2 * at + 2)))
            narrowed = 1 - (1 - first) ** (1 + growth * at)
            found[:, at] = np.abs(average) / (limit * narrowed)
        return found

    return statistic


def changepoint(subgroups: Floats, counts: Ints) -> Floats:
    """D. M. Hawkins, P. Qiu and C. W. Kang, "The Changepoint Model for Statistical Process Control", JQT 35, 2003.

    The largest Student's t of any split of what was seen so far, each subgroup weighing as its size, made normal as in
    `charts.points`.
    """
    weights = np.cumsum(counts.astype(np.float64), axis=1)
    sums, squares = np.cumsum(counts * subgroups, axis=1), np.cumsum(counts * subgroups**2, axis=1)
    found = []
    for size in range(LEAST_BASELINE + 1, subgroups.shape[1] + 1):
        last, freedom = slice(size - 1, size), size - 2
        left, right = weights[:, 1 : size - 2], weights[:, last] - weights[:, 1 : size - 2]
        apart = sums[:, 1 : size - 2] / left - (sums[:, last] - sums[:, 1 : size - 2]) / right
        between = left * right / weights[:, last] * apart**2
        # What differs by less than numbers can hold does not differ.
        within = np.maximum(squares[:, last] - sums[:, last] ** 2 / weights[:, last] - between, 1e-9)
        t = (freedom * between / within).max(axis=1)
        found.append((8 * freedom + 1) / (8 * freedom + 3) * np.sqrt(freedom * np.log1p(t / freedom)))
    return np.array(found).T


OTHERS: dict[str, Statistic] = {
    "as it is": ewma(),
    "fast initial response, limits at first 0.5 of theirs": ewma(0.5),
    "… 0.7": ewma(0.7),
    "… 0.9": ewma(0.9),
    "changepoint model": changepoint,
}


def _alarms(seen: Floats, threshold: float) -> Floats:
    """Return after how many points each chart alarms first; as many as there are where it does not."""
    over = seen > threshold
    first: Floats = np.where(over.any(axis=1), over.argmax(axis=1), seen.shape[1]).astype(np.float64)
    return first


def _rate(seen: Floats, threshold: float) -> float:
    """Return the false alarms per point at risk."""
    first, length = _alarms(seen, threshold), seen.shape[1]
    return float((first < length).sum() / np.minimum(first + 1, length).sum())


def threshold_of(quiet: Floats) -> float:
    """Return the threshold at which charts of what never changes raise as few false alarms as the chart in use."""
    low, high = 2.5, 6.0
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if _rate(quiet, middle) > 1 / FALSE_ALARM_POINTS else (low, middle)
    return high


def compare(statistic: Statistic, charts: int = 4_000, length: int = 400) -> list[str]:
    """Return the threshold of as few false alarms as the chart in use has; how early they are, and what it finds."""
    dice = np.random.default_rng(1)

    def of(values: Floats) -> Floats:
        return statistic(values, np.full(values.shape, 30))

    quiet = of(dice.standard_normal((charts, LEAST_BASELINE + length)))
    threshold = threshold_of(quiet)
    first = _alarms(quiet, threshold)
    cells = [f"{threshold:.2f}", f"{(first < 20).mean():.1%}", f"{(first < 100).mean():.1%}"]
    for baseline, shift in ((20, 1.0), (20, 1.5), (40, 1.0), (100, 0.5), (100, 1.0)):
        seen = dice.standard_normal((charts, baseline + 100))
        seen[:, baseline:] += shift
        delay = _alarms(of(seen), threshold) - (baseline - LEAST_BASELINE)
        told = delay[delay >= 0]
        median = np.median(np.where(told < 100, told + 1, math.inf))
        cells.append(f"{(told < 100).mean():.0%}, {median:g}")
    return cells


def borne(statistic: Statistic, charts: int = 2_000, length: int = 400) -> list[str]:
    """Return points between false alarms of each process, at the threshold that normal subgroups give the chart."""
    threshold, cells = 0.0, []
    for process in PROCESSES.values():
        dice, size = np.random.default_rng(2), LEAST_BASELINE + length
        drawn = [process(dice, size, size, 0.0) for _ in range(charts)]
        seen = statistic(np.array([mean for mean, _ in drawn]), np.array([count for _, count in drawn]))
        # The first are the normal ones.
        threshold = threshold or threshold_of(seen)
        cells.append(f"{1 / max(_rate(seen, threshold), 1e-9):,.0f}")
    return cells


def main() -> None:
    print(f"false alarms; {arl(WEIGHT, WIDTH):,.0f} points between two in theory")
    for name, process in PROCESSES.items():
        found = in_control(process, 1_000, 4_000)
        error = found.arl / max(found.alarms, 1) ** 0.5
        print(f"| {name} | {found.arl:,.0f} ± {1.96 * error:,.0f} |")
    print("told within 100 points, and median of points until then; mean in theory")
    for shift in (0.5, 1.0, 1.5, 2.0, 3.0):
        cells = []
        for baseline in (20, 40, 100, 400):
            found_after = detection(normal, baseline, shift, 2_000)
            cells.append(f"{found_after.told:.0%}, {found_after.median:g}")
        print(f"| {shift:g} | {' | '.join(cells)} | {arl(WEIGHT, WIDTH, shift):.1f} |")
    print("others: threshold; false alarms within 20 and 100 points; told, median: 1 and 1.5 after 20, 1 after 40, …")
    for name, statistic in OTHERS.items():
        print(f"| {name} | {' | '.join(compare(statistic))} |")
    print(f"points between false alarms: {', '.join(PROCESSES)}")
    for name in ("as it is", "changepoint model"):
        print(f"| {name} | {' | '.join(borne(OTHERS[name]))} |")


if __name__ == "__main__":
    main()
