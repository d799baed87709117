"""What control charts chart, and in which subgroups.

Charted are NPS, CSAT, CES and sentiment of each touchpoint of the map, and of each point (a pain, an itch or a delight
about one need) the share of the customers who told of it, of those whose words were understood.

A subgroup is what happened in a day, where most days hold enough for that, else in a week (both UTC); one that holds
too little is a gap, which the chart passes over. Every day is in one: where a chart begins anew within a week, behind a
signal, the week is two subgroups, what was before and what came after.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from functools import cache
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from recorrido.inference.v1.events import PointKind
from recorrido.ingest.v1.events import RatingMetric
from recorrido.journey.v1.events import Touchpoint
from services.foundation.scales import SCALES
from services.journey.domain.charts import LEAST_BASELINE, stabilised
from services.journey.domain.finding import rows_by_touchpoint
from services.journey.domain.history import DAY_US, Flags, Floats, Ints
from services.journey.domain.reading import Reading

#: Answers (of points: customers heard) that make a subgroup; and how many of each kind, such as within the top boxes
#: and without, one has in the mean: with fewer a share is too far from normal.
LEAST_ANSWERS = 20
LEAST_OF_EACH = 1
#: How far back a chart goes, in days.
CHARTED_DAYS = 1_096
SENTIMENT = "sentiment"
#: What touchpoints are charted by, and what points.
SCORES = (*(question.name.lower() for question in SCALES), SENTIMENT)
POINTS = {kind.name.lower(): kind for kind in (PointKind.PAIN, PointKind.ITCH, PointKind.DELIGHT)}
#: Days in a subgroup, and how people call it.
LENGTHS = {1: "day", 7: "week"}
_ONE_DAY = date(1970, 1, 1)
#: The first of some days, and the first after them, counted from 1970.
Days = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Subgroups:
    """One entry per day or week: answers, the sum of their values, and how many are `top`."""

    count: Ints
    total: Floats
    top: Ints


@dataclass(frozen=True, slots=True)
class Span:
    """The days that charts look at, from `first` to the day before `today`; numbers count from 1970."""

    first: int
    today: int

    @classmethod
    def upto(cls, now: int) -> Self:
        """Return the days that charts look at when it is `now`, in microseconds."""
        today = now // DAY_US
        return cls(today - CHARTED_DAYS, today)

    @property
    def days(self) -> Days:
        return self.first, self.today

    def numbers(self, days: Ints, length: int) -> Ints:
        """Return the numbers of the subgroups of these days, from 0."""
        return (days + _shift(length)) // length - self._before(length)

    def number(self, day: int, length: int) -> int:
        return (day + _shift(length)) // length - self._before(length)

    def begins(self, number: int, length: int) -> int:
        """Return the first day of a subgroup."""
        return (number + self._before(length)) * length - _shift(length)

    def size(self, length: int) -> int:
        """Return how many subgroups are over."""
        return self.number(self.today, length)

    def within(self, days: Days, length: int) -> range:
        """Return the numbers of the subgroups of some days, also of those that these cut.

        At the ends of the span there are whole ones only: what is cut there is not over, or not all looked at.
        """
        begin, until = days
        first = self.number(begin if begin > self.first else self.first + length - 1, length)
        last = self.number(until + length - 1 if until < self.today else until, length)
        return range(first, last)

    def cut(self, days: Days, length: int) -> bool:
        """Return whether any of those is cut."""
        ends = [day for day in days if self.first < day < self.today]
        return any(self.begins(self.number(day, length), length) != day for day in ends)

    def _before(self, length: int) -> int:
        return (self.first + _shift(length)) // length


def _shift(length: int) -> int:
    # Weeks begin on Mondays; 1970 began on a Thursday.
    return 3 if length == 7 else 0


@dataclass(frozen=True, slots=True)
class Chart:
    """What is charted: `rows` are the interactions that it counts.

    `of` returns the subgroups of a length (in days) of what happened on some days; where those cut none, it may return
    those of other days too. `value` tells of each row what it counted for, `more_is_better` of those values.
    """

    metric: str
    need_path: str
    touchpoint_id: str
    name: str
    more_is_better: bool
    of: Callable[[int, Days], Subgroups]
    rows: Ints
    value: Callable[[Ints], Floats]

    @property
    def is_point(self) -> bool:
        return self.metric in POINTS

    @property
    def is_share(self) -> bool:
        """Return whether a subgroup's mean is the share of its top answers, in percent."""
        return self.is_point or self.metric in {"csat", "ces"}


def score_charts(reading: Reading, span: Span) -> Iterator[Chart]:
    """Yield the chart of each score of each touchpoint of the map that anybody answered."""
    history = reading.history
    charted: list[tuple[str, Flags, Floats, Flags]] = [
        (SENTIMENT, history.analysis >= 0, history.score, history.score > 0)
    ]
    for question, answers in history.answers.items():
        good = answers >= SCALES[question].lowest_good
        # NPS is what promoters are more than detractors, the others are shares.
        bad = (answers >= 0) & (answers <= SCALES[question].highest_bad) & (question is RatingMetric.NPS)
        charted.append((question.name.lower(), answers >= 0, _percent(good) - _percent(bad), good))
    day = history.interactions.occurred // DAY_US
    inside = (day >= span.first) & (day < span.today)
    for metric, asked, value, top in charted:
        for number, rows in rows_by_touchpoint(reading, np.flatnonzero(asked & inside)):
            touchpoint = reading.touchpoints[number][1]

            def of(length: int, days: Days, rows: Ints = rows, value: Floats = value, top: Flags = top) -> Subgroups:
                rows = _happened(rows, day, days) if span.cut(days, length) else rows
                at, size = span.numbers(day[rows], length), span.size(length) + 1
                return Subgroups(
                    np.bincount(at, minlength=size),
                    np.bincount(at, value[rows], minlength=size).astype(np.float64),
                    np.bincount(at[top[rows]], minlength=size),
                )

            yield Chart(
                metric, "", touchpoint.touchpoint_id, score_name(metric, touchpoint), True, of, rows, value.take
            )


def point_charts(reading: Reading, span: Span, least: int = LEAST_OF_EACH * LEAST_BASELINE) -> Iterator[Chart]:
    """Yield the chart of each point that was told of `least` times."""
    history = reading.history
    day = history.interactions.occurred // DAY_US
    heard = np.flatnonzero((history.analysis >= 0) & (day >= span.first) & (day < span.today))
    customers = len(history.owners)

    def different(rows: Ints, length: int) -> Ints:
        """Return how many different customers each subgroup has among `rows`."""
        # By sorting; numpy's unique hashes, which takes longer where many are alike.
        pairs = np.sort(span.numbers(day[rows], length) * customers + history.customer[rows])
        new = np.append(True, pairs[1:] != pairs[:-1])[: len(pairs)]
        return np.bincount(pairs[new] // max(customers, 1), minlength=span.size(length) + 1)

    @cache
    def of_all(length: int, days: Days) -> Ints:
        return different(_happened(heard, day, days), length)

    needs = history.vocabulary.needs
    code = history.point[heard].astype(np.int64) * len(needs) + history.need[heard]
    told_often = np.bincount(code, minlength=0) >= max(least, 1)
    for number in np.flatnonzero(told_often).tolist():
        kind, need = divmod(number, len(needs))
        metric = PointKind.from_number(kind).name.lower()
        # Of an unknown need there is nothing to be done.
        if need == 0 or metric not in POINTS:
            continue
        told = heard[code == number]

        def of(length: int, days: Days, told: Ints = told) -> Subgroups:
            if not span.cut(days, length):
                days = span.days
            hits = different(_happened(told, day, days), length)
            return Subgroups(of_all(length, days), _percent(hits), hits)

        def value(rows: Ints, code: int = number) -> Floats:
            return _percent(history.point[rows].astype(np.int64) * len(needs) + history.need[rows] == code)

        yield Chart(metric, needs[need], "", point_name(metric, needs[need]), metric == "delight", of, heard, value)


def score_name(metric: str, touchpoint: Touchpoint) -> str:
    """Return what people call the chart of a score."""
    return f"{metric if metric == SENTIMENT else metric.upper()} of {touchpoint.name}"


def point_name(metric: str, need_path: str) -> str:
    """Return what people call the chart of a point."""
    return f"{metric} about {need_path}"


def _happened(rows: Ints, day: Ints, days: Days) -> Ints:
    """Return those of the rows that happened on these days."""
    found: Ints = rows[(day[rows] >= days[0]) & (day[rows] < days[1])]
    return found


def _percent(hits: NDArray[Any]) -> Floats:
    return hits.astype(np.float64) * 100.0


@dataclass(frozen=True, slots=True)
class Series:
    """The subgroups of a chart that hold enough, oldest first. `length` is in days, `number` as `Span` counts them.

    `charted` is the mean on the scale on which it is charted; `total / count` is that in the unit of the chart.
    """

    length: int
    number: Ints
    charted: Floats
    count: Ints
    total: Floats

    def after(self, at: int) -> "Series":
        """Return what follows the subgroup that stands `at` here."""
        rest = slice(at + 1, None)
        return Series(self.length, self.number[rest], self.charted[rest], self.count[rest], self.total[rest])


def series(chart: Chart, span: Span, days: Days) -> Series | str:
    """Return what can be charted of some days, by days or else by weeks.

    Where it is too little, return why, in words.
    """
    why = []
    for length, name in LENGTHS.items():
        groups, within = chart.of(length, days), span.within(days, length)
        usable = within.start + np.flatnonzero(groups.count[within.start : within.stop] >= LEAST_ANSWERS)
        if len(usable) <= LEAST_BASELINE:
            what = "customers heard" if chart.is_point else "answers"
            why.append(f"of {LEAST_BASELINE + 1} {name}s with {LEAST_ANSWERS} {what} there are {len(usable)}")
            continue
        if 2 * len(usable) <= usable[-1] - usable[0]:
            why.append(f"more than half of the {name}s hold fewer than {LEAST_ANSWERS}")
            continue
        count, top = groups.count[usable], groups.top[usable]
        if min(top.mean(), (count - top).mean()) < LEAST_OF_EACH:
            why.append(f"nearly all are of one kind, with fewer than {LEAST_OF_EACH} other a {name}")
            continue
        total = groups.total[usable]
        return Series(length, usable, stabilised(top, count) if chart.is_share else total / count, count, total)
    return "; ".join(why)


def date_of(day: int) -> str:
    """Return a day, counted from 1970, as ISO 8601 has it."""
    return (_ONE_DAY + timedelta(days=day)).isoformat()


def day_of(text: str) -> int:
    """Return the number of a day, counted from 1970."""
    return (date.fromisoformat(text) - _ONE_DAY).days
