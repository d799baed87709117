"""Rules that watch scores and points by control charts (`domain.charts`): what has changed, for better or worse.

Charted are NPS, CSAT, CES and sentiment of each touchpoint of the map, and of each point (a pain, an itch or a delight
about one need) the share of the customers who told of it, of those whose words were understood.

A subgroup is what happened in a day, where most days hold enough for that, else in a week (both UTC); one that holds
too little is a gap, which the chart passes over. After a signal a chart begins anew with what happened after its run.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recorrido.inference.v1.events import PointKind
from recorrido.ingest.v1.events import RatingMetric
from recorrido.journey.v1.events import SignalRaised
from services.foundation.scales import SCALES
from services.journey.domain.charts import LEAST_BASELINE, WEIGHT, WIDTH, Alarm, first_alarm, stabilised
from services.journey.domain.finding import NEWS_DAYS, Finding, rows_by_touchpoint, touchpoint_id_of
from services.journey.domain.history import DAY_US, Flags, Floats, Ints
from services.journey.domain.reading import Reading

SCORE_WORSENED = "score_worsened"
SCORE_IMPROVED = "score_improved"
POINT_WORSENED = "point_worsened"
POINT_IMPROVED = "point_improved"
SHIFT_RULES = (SCORE_WORSENED, SCORE_IMPROVED, POINT_WORSENED, POINT_IMPROVED)
#: Of all four; raise it whenever a threshold here or in `domain.charts` changes.
SHIFT_VERSION = 1

#: Answers (of points: customers heard) that make a subgroup; and how many of each kind, such as within the top boxes
#: and without, one has in the mean: with fewer a share is too far from normal.
LEAST_ANSWERS = 20
LEAST_OF_EACH = 1
#: How far back a chart goes, in days.
CHARTED_DAYS = 1_096
#: Interactions that a signal names.
EVIDENCE = 10

_POINTS = {kind.name.lower(): kind for kind in (PointKind.PAIN, PointKind.ITCH, PointKind.DELIGHT)}
#: Days in a subgroup, and how people call it.
_LENGTHS = {1: "day", 7: "week"}
_ONE_DAY = date(1970, 1, 1)


@dataclass(frozen=True, slots=True)
class _Subgroups:
    """One entry per day or week: answers, the sum of their values, and how many are `top`."""

    count: Ints
    total: Floats
    top: Ints


@dataclass(frozen=True, slots=True)
class _Span:
    """The days that charts look at, from `first` to the day before `today`; numbers count from 1970."""

    first: int
    today: int

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

    def _before(self, length: int) -> int:
        return (self.first + _shift(length)) // length


def _shift(length: int) -> int:
    # Weeks begin on Mondays; 1970 began on a Thursday.
    return 3 if length == 7 else 0


@dataclass(frozen=True, slots=True)
class _Chart:
    """What is charted: `of` returns its subgroups of a length in days, `rows` the interactions that it counts.

    `value` tells of each row what it counted for, `more_is_better` of those values.
    """

    metric: str
    need_path: str
    touchpoint_id: str
    name: str
    more_is_better: bool
    of: Callable[[int], _Subgroups]
    rows: Ints
    value: Callable[[Ints], Floats]

    @property
    def is_point(self) -> bool:
        return self.metric in _POINTS

    @property
    def is_share(self) -> bool:
        """Return whether a subgroup's mean is the share of its top answers, in percent."""
        return self.is_point or self.metric in {"csat", "ces"}


@dataclass(frozen=True, slots=True)
class _Shift:
    """An alarm, the days that its run began and ended on (exclusive), and how many subgroups of it are gaps.

    `centre` and `level` are the means of the answers before the run and of those in it, `sigma` the standard deviation
    of one, all in the unit of the chart.
    """

    alarm: Alarm
    centre: float
    level: float
    sigma: float
    length: int
    since: int
    until: int
    gaps: int


def shifts(reading: Reading, now: int, raised: Sequence[SignalRaised]) -> Iterator[Finding]:
    """Find charts that left their limits within the last NEWS_DAYS.

    `raised` are the signals of these rules that were raised before, in the order of the store. What they told of is
    settled: their charts go on with what happened after it, whatever comes in late.
    """
    today = now // DAY_US
    span = _Span(today - CHARTED_DAYS, today)
    settled = {
        _key(each.map_id, each.inputs["metric"], each.need_path, each.touchpoint_id): each
        for each in raised
        if {"metric", "run_until"} <= each.inputs.keys()
    }
    for chart in chain(_scores(reading, span), _points(reading, span)):
        last = _last_signal(reading, chart, settled)
        shift = _first_news(chart, span, _day(last.inputs["run_until"]) if last else span.first)
        if shift is not None:
            yield _finding(reading, chart, shift, last.signal_id if last else "")


def _key(map_id: str, metric: str, need_path: str, touchpoint_id: str) -> tuple[str, ...]:
    # A point is charted over everyone; its signal names the touchpoint that most of it was told at.
    return (metric, need_path) if metric in _POINTS else (metric, map_id, touchpoint_id)


def _last_signal(
    reading: Reading, chart: _Chart, settled: Mapping[tuple[str, ...], SignalRaised]
) -> SignalRaised | None:
    # Under an earlier name it is the same touchpoint.
    aliases = next((t.aliases for _, t in reading.touchpoints if t.touchpoint_id == chart.touchpoint_id), ())
    names = (chart.touchpoint_id, *aliases)
    keys = [_key(reading.map_.map_id, chart.metric, chart.need_path, name) for name in names]
    return next((settled[key] for key in keys if key in settled), None)


# -- what is charted ---------------------------------------------------------------------------------------------------


def _scores(reading: Reading, span: _Span) -> Iterator[_Chart]:
    history = reading.history
    charted: list[tuple[str, Flags, Floats, Flags]] = [
        ("sentiment", history.analysis >= 0, history.score, history.score > 0)
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

            def of(length: int, rows: Ints = rows, value: Floats = value, top: Flags = top) -> _Subgroups:
                at, size = span.numbers(day[rows], length), span.size(length) + 1
                return _Subgroups(
                    np.bincount(at, minlength=size),
                    np.bincount(at, value[rows], minlength=size).astype(np.float64),
                    np.bincount(at[top[rows]], minlength=size),
                )

            label = metric if metric == "sentiment" else metric.upper()
            yield _Chart(
                metric, "", touchpoint.touchpoint_id, f"{label} of {touchpoint.name}", True, of, rows, value.take
            )


def _points(reading: Reading, span: _Span) -> Iterator[_Chart]:
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

    of_all = {length: different(heard, length) for length in _LENGTHS}
    needs = history.vocabulary.needs
    code = history.point[heard].astype(np.int64) * len(needs) + history.need[heard]
    told_often = np.bincount(code, minlength=0) >= LEAST_OF_EACH * LEAST_BASELINE
    for number in np.flatnonzero(told_often).tolist():
        kind, need = divmod(number, len(needs))
        metric = PointKind.from_number(kind).name.lower()
        # Of an unknown need there is nothing to be done.
        if need == 0 or metric not in _POINTS:
            continue
        told = heard[code == number]

        def of(length: int, told: Ints = told) -> _Subgroups:
            hits = different(told, length)
            return _Subgroups(of_all[length], _percent(hits), hits)

        def value(rows: Ints, code: int = number) -> Floats:
            return _percent(history.point[rows].astype(np.int64) * len(needs) + history.need[rows] == code)

        name = f"{metric} about {needs[need]}"
        yield _Chart(metric, needs[need], "", name, metric == "delight", of, heard, value)


def _percent(hits: NDArray[Any]) -> Floats:
    return hits.astype(np.float64) * 100.0


# -- what is found -----------------------------------------------------------------------------------------------------


def _first_news(chart: _Chart, span: _Span, begin: int) -> _Shift | None:
    """Return the first shift that is news, of those after the day `begin`."""
    for length in _LENGTHS:
        groups = chart.of(length)
        first = max(span.number(begin + length - 1, length), 0)
        usable = np.flatnonzero(groups.count[: span.size(length)] >= LEAST_ANSWERS)
        usable = usable[usable >= first]
        if len(usable) <= LEAST_BASELINE or 2 * len(usable) <= usable[-1] - usable[0]:
            continue
        count, top = groups.count[usable], groups.top[usable]
        if min(top.mean(), (count - top).mean()) < LEAST_OF_EACH:
            continue
        total = groups.total[usable]
        charted = stabilised(top, count) if chart.is_share else total / count
        while (alarm := first_alarm(charted, count)) is not None:
            start, end = int(usable[alarm.start]), int(usable[alarm.at])
            until = span.begins(end + 1, length)
            if until >= span.today - NEWS_DAYS:
                before, run = slice(0, alarm.start), slice(alarm.start, alarm.at + 1)
                centre = float(total[before].sum() / count[before].sum())
                level = float(total[run].sum() / count[run].sum())
                # On the scale of `stabilised` a share changes by 1 / (2 root of p(1 - p)) of what it does by itself.
                scale = 2 * math.sqrt(max(centre * (100 - centre), 0.0)) if chart.is_share else 1.0
                gaps = end - start + 1 - (alarm.at - alarm.start + 1)
                return _Shift(
                    alarm,
                    centre,
                    level,
                    alarm.sigma * scale,
                    length,
                    since=span.begins(start, length),
                    until=until,
                    gaps=gaps,
                )
            after = slice(alarm.at + 1, None)
            charted, total, count, usable = charted[after], total[after], count[after], usable[after]
        return None
    return None


def _finding(reading: Reading, chart: _Chart, shift: _Shift, last_signal_id: str) -> Finding:
    history, alarm = reading.history, shift.alarm
    occurred = history.interactions.occurred[chart.rows]
    run = chart.rows[(occurred >= shift.since * DAY_US) & (occurred < shift.until * DAY_US)]
    value = chart.value(run)
    rose = alarm.average > 0
    told = run[value > shift.centre if rose else value < shift.centre]
    newest = told[np.argsort(history.interactions.occurred[told], kind="stable")][-EVIDENCE:]
    touchpoint_id, where = chart.touchpoint_id, ""
    if chart.is_point:
        touchpoint_id = _where_most(reading, run[value > 0])
        where = f", most of it at {touchpoint_id}" if touchpoint_id else ""
    better = rose == chart.more_is_better
    worsened, improved = (POINT_WORSENED, POINT_IMPROVED) if chart.is_point else (SCORE_WORSENED, SCORE_IMPROVED)
    positions = history.interactions.position[run]
    analysed = history.analysis[run]
    last = max(int(positions.max()), int(history.analyses.position[analysed[analysed >= 0]].max(initial=0)))
    form = {"sentiment": "{:+.2f}", "nps": "{:.1f}"}.get(chart.metric, "{:.1f} %")
    before, level, since = form.format(shift.centre), form.format(shift.level), _date(shift.since)
    return Finding(
        rule=improved if better else worsened,
        version=SHIFT_VERSION,
        # A chart raises one signal after another: whatever its limits turn out to be, none twice.
        cause=("shift", *_key(reading.map_.map_id, chart.metric, chart.need_path, chart.touchpoint_id), last_signal_id),
        customer=-1,
        touchpoint_id=touchpoint_id,
        rows=tuple(newest.tolist()),
        reasons=(f"{chart.name} {'rose' if rose else 'fell'} from {before} to {level} since {since}{where}",),
        inputs={
            "metric": chart.metric,
            "chart": "ewma",
            "weight": f"{WEIGHT:g}",
            "width": f"{WIDTH:g}",
            "average": f"{alarm.average:.4f}",
            "limit": f"{alarm.limit:.4f}",
            "centre": f"{shift.centre:.4f}",
            "sigma": f"{shift.sigma:.4f}",
            "level": f"{shift.level:.4f}",
            "subgroup": _LENGTHS[shift.length],
            "baseline_subgroups": str(alarm.start),
            "run_from": since,
            "run_until": _date(shift.until),
            "run_subgroups": str(alarm.at - alarm.start + 1),
            "run_gaps": str(shift.gaps),
            "run_interactions": str(len(run)),
            "first_position": str(int(positions.min())),
            "last_position": str(last),
            "after_signal_id": last_signal_id,
        },
        need_path=chart.need_path,
    )


def _where_most(reading: Reading, rows: Ints) -> str:
    """Return the touchpoint that most of these interactions were at, empty where it is on no map."""
    if not len(rows):
        return ""
    return touchpoint_id_of(reading, int(np.bincount(reading.place[rows] + 1).argmax()) - 1)


def _date(day: int) -> str:
    return (_ONE_DAY + timedelta(days=day)).isoformat()


def _day(text: str) -> int:
    return (date.fromisoformat(text) - _ONE_DAY).days
