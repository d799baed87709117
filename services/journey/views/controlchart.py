"""Control charts to look at: how a score or a point went, and whether it left its limits."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import Enum
from functools import cache
from itertools import chain, pairwise

import numpy as np

from recorrido.inference.v1.events import PointKind
from recorrido.journey.v1.events import SignalRaised
from services.foundation.errors import InvalidError, NotFoundError, Violation
from services.journey.domain.charted import (
    CHARTED_DAYS,
    LEAST_ANSWERS,
    LENGTHS,
    Chart,
    Days,
    Series,
    Span,
    day_of,
    point_charts,
    point_name,
    score_charts,
    score_name,
    series,
)
from services.journey.domain.charts import course
from services.journey.domain.history import DAY_US, moment_of
from services.journey.domain.naming import unknown
from services.journey.domain.reading import Reading
from services.journey.domain.shifts import by_chart, run_end, signals_of

#: Of what is charted here: chart, subgroups, baseline.
METHOD = "ewma-self-starting/1"


class State(Enum):
    """Too few answers; what others are judged by, itself not; within the limits; out of them."""

    GAP = 1
    BASELINE = 2
    WITHIN = 3
    OUTSIDE = 4


@dataclass(frozen=True, slots=True)
class ChartPoint:
    """One day or week. `value` and `centre` are in the unit of the metric: percent, NPS points, sentiment.

    `centre` is the mean of all answers before it since the chart began, or began anew. `average` and `limit` (on either
    side of zero) are in standard deviations of a point. `in_run`: part of what took the average out of its limits.
    """

    since: datetime
    until: datetime
    answers: int
    state: State
    value: float | None = None
    centre: float | None = None
    average: float | None = None
    limit: float | None = None
    in_run: bool = False
    signal_id: str = ""


@dataclass(frozen=True, slots=True)
class ControlChart:
    """What is charted, oldest first. `length` is that of the last subgroups, in days.

    `not_charted` tells why the last of them have no limits; empty where they have.
    """

    metric: str
    need_path: str
    touchpoint_id: str
    name: str
    length: int
    points: Sequence[ChartPoint]
    not_charted: str = ""

    def between(self, since: datetime | None, until: datetime | None) -> "ControlChart":
        """Return it with the subgroups that ended after `since` and began before `until` only."""
        inside = [p for p in self.points if (not since or p.until > since) and (not until or p.since < until)]
        return replace(self, points=inside)


def score_chart(reading: Reading, touchpoint_id: str, metric: str, raised: Sequence[SignalRaised]) -> ControlChart:
    """Return the chart of a score (`charted.SCORES`) of a touchpoint of the map, of all that happened so far.

    `raised` are the signals of `shifts.SHIFT_RULES`, in the order of the store.

    Raises:
        InvalidError: the map has no such touchpoint.
    """
    touchpoint = next((t for _, t in reading.touchpoints if t.touchpoint_id == touchpoint_id), None)
    if touchpoint is None:
        labels = [(t.touchpoint_id, t.name) for _, t in reading.touchpoints]
        raise InvalidError([Violation("touchpoint_id", unknown(reading.map_, "touchpoint", touchpoint_id, labels))])
    span = _span(reading)
    for chart in score_charts(reading, span):
        if (chart.metric, chart.touchpoint_id) == (metric, touchpoint_id):
            return _drawn(reading, chart, span, raised)
    return ControlChart(metric, "", touchpoint_id, score_name(metric, touchpoint), 1, (), "nobody answered")


def point_chart(reading: Reading, kind: PointKind, need_path: str, raised: Sequence[SignalRaised]) -> ControlChart:
    """Return the chart of the part of the customers heard who told of a point, of all that happened so far.

    Raises:
        NotFoundError: nobody ever told of the need.
    """
    needs = reading.history.vocabulary.needs
    # The vocabulary may hold more than the history: what was told of later.
    if need_path not in {needs[number] for number in np.unique(reading.history.analyses.need).tolist()}:
        raise NotFoundError("NEED_UNKNOWN", f"nobody has told of a need {need_path!r}")
    span, metric = _span(reading), kind.name.lower()
    for chart in point_charts(reading, span, least=1):
        if (chart.metric, chart.need_path) == (metric, need_path):
            return _drawn(reading, chart, span, raised)
    return ControlChart(metric, need_path, "", point_name(metric, need_path), 1, (), "nobody told of it so")


def control_charts(reading: Reading, raised: Sequence[SignalRaised], newest: int) -> list[ControlChart]:
    """Return all charts that there are, each with its `newest` subgroups: scores in the order of the map, then points.

    What has too few answers for limits tells so.
    """
    span = _span(reading)
    order = {t.touchpoint_id: n for n, (_, t) in enumerate(reading.touchpoints)}
    charts = sorted(
        chain(score_charts(reading, span), point_charts(reading, span)),
        key=lambda each: (each.is_point, order.get(each.touchpoint_id, -1), each.metric, each.need_path),
    )
    return [_drawn(reading, each, span, raised, newest) for each in charts]


def _span(reading: Reading) -> Span:
    occurred = reading.history.interactions.occurred
    return Span.upto(int(occurred.max()) if len(occurred) else 0)


@dataclass(frozen=True, slots=True)
class _Part:
    """Some days of a chart from one signal to the next; `charted` None: too little for limits."""

    days: Days
    length: int
    charted: Series | None


def _drawn(
    reading: Reading, chart: Chart, span: Span, raised: Sequence[SignalRaised], newest: int = CHARTED_DAYS
) -> ControlChart:
    # Its subgroups are asked for again and again.
    chart = replace(chart, of=cache(chart.of))
    signals = {run_end(each): each for each in signals_of(reading, chart, by_chart(raised))}
    # What a signal told of is settled: the chart begins anew behind its run.
    bounds = [span.first, *sorted(day for day in signals if span.first < day < span.today), span.today]
    parts: list[_Part] = []
    length, why = 0, ""
    for days in pairwise(bounds):
        found = series(chart, span, days)
        why = found if isinstance(found, str) else ""
        # A part that is too short for a chart is shown as the one before.
        length = found.length if isinstance(found, Series) else length or _shown_by(chart, span)
        parts.append(_Part(days, length, None if isinstance(found, str) else found))
    points: list[ChartPoint] = []
    for part in reversed(parts):
        points = [*_shown(chart, span, signals, part, newest - len(points)), *points]
    first = next((n for n, each in enumerate(points) if each.answers), len(points))
    return ControlChart(chart.metric, chart.need_path, chart.touchpoint_id, chart.name, length, points[first:], why)


def _shown_by(chart: Chart, span: Span) -> int:
    """Return the length of subgroups where there is no chart: the shortest of which most hold enough."""
    for length in LENGTHS:
        count = chart.of(length, span.days).count[: span.size(length)]
        there = np.flatnonzero(count)
        if len(there) and (count[there[0] :] >= LEAST_ANSWERS).mean() > 0.5:
            return length
    return max(LENGTHS)


def _shown(
    chart: Chart, span: Span, signals: Mapping[int, SignalRaised], part: _Part, newest: int
) -> Iterator[ChartPoint]:
    """Yield the `newest` subgroups of a part of the chart, which begins anew only behind its own alarms.

    What a signal told of is settled: its run is the one that it names, and it stands at the end of that, also where the
    average goes otherwise by what came in late.
    """
    length, groups = part.length, chart.of(part.length, part.days)
    signal = signals.get(part.days[1])
    run_from = day_of(signal.inputs["run_from"]) if signal else span.today
    judged = dict(_judged(part.charted)) if part.charted else {}
    for number in span.within(part.days, length)[-newest:] if newest > 0 else ():
        count = int(groups.count[number])
        centre, average, limit, in_run = judged.get(number, _NOT_JUDGED)
        state = State.BASELINE if count >= LEAST_ANSWERS else State.GAP
        if average is not None and limit is not None:
            state = State.OUTSIDE if abs(average) > limit else State.WITHIN
        begin = max(span.begins(number, length), part.days[0])
        end = min(span.begins(number + 1, length), part.days[1])
        yield ChartPoint(
            since=moment_of(begin * DAY_US),
            until=moment_of(end * DAY_US),
            answers=count,
            state=state,
            value=float(groups.total[number] / count) if count else None,
            centre=centre,
            average=average,
            limit=limit,
            in_run=in_run or end > run_from,
            signal_id=signal.signal_id if signal and end == part.days[1] else "",
        )


_Judged = tuple[float | None, float | None, float | None, bool]
_NOT_JUDGED: _Judged = (None, None, None, False)


def _judged(left: Series) -> Iterator[tuple[int, _Judged]]:
    """Yield number, centre, average, limit and whether it is in the run of an alarm, of each subgroup of a series."""
    while len(left.number):
        went = course(left.charted, left.count)
        so_far, answers = np.cumsum(left.total), np.cumsum(left.count)
        for at, number in enumerate(left.number[: len(went.point)].tolist()):
            centre = float(so_far[at - 1] / answers[at - 1]) if at else None
            average, limit = float(went.average[at]), float(went.limit[at])
            known = not math.isnan(average)
            in_run = went.alarm is not None and at >= went.alarm.start
            yield number, (centre, average if known else None, limit if known else None, in_run)
        left = left.after(len(went.point) - 1)
