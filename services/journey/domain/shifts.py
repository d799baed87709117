"""Rules that watch scores and points by control charts (`domain.charts`): what has changed, for better or worse.

What is charted stands in `domain.charted`. After a signal a chart begins anew with what happened after its run.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from recorrido.journey.v1.events import SignalRaised
from services.journey.domain.charted import (
    LENGTHS,
    POINTS,
    Chart,
    Span,
    date_of,
    day_of,
    point_charts,
    score_charts,
    series,
)
from services.journey.domain.charts import WEIGHT, WIDTH, Alarm, first_alarm
from services.journey.domain.finding import NEWS_DAYS, Finding, touchpoint_id_of
from services.journey.domain.history import DAY_US, Ints
from services.journey.domain.reading import Reading

SCORE_WORSENED = "score_worsened"
SCORE_IMPROVED = "score_improved"
POINT_WORSENED = "point_worsened"
POINT_IMPROVED = "point_improved"
SHIFT_RULES = (SCORE_WORSENED, SCORE_IMPROVED, POINT_WORSENED, POINT_IMPROVED)
#: Of all four; raise it whenever a threshold here or in `domain.charts` changes.
SHIFT_VERSION = 1

#: Interactions that a signal names.
EVIDENCE = 10


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
    span, settled = Span.upto(now), by_chart(raised)
    for chart in chain(score_charts(reading, span), point_charts(reading, span)):
        before = signals_of(reading, chart, settled)
        begin, last_signal_id = (run_end(before[-1]), before[-1].signal_id) if before else (span.first, "")
        shift = _first_news(chart, span, begin)
        if shift is not None:
            yield _finding(reading, chart, shift, last_signal_id)


_Key = tuple[str, ...]


def by_chart(raised: Sequence[SignalRaised]) -> Mapping[_Key, Sequence[SignalRaised]]:
    """Return the signals of these rules by the chart that raised each, in their order."""
    found: dict[_Key, list[SignalRaised]] = {}
    for each in raised:
        if {"metric", "run_until"} <= each.inputs.keys():
            key = _key(each.map_id, each.inputs["metric"], each.need_path, each.touchpoint_id)
            found.setdefault(key, []).append(each)
    return found


def _key(map_id: str, metric: str, need_path: str, touchpoint_id: str) -> _Key:
    # A point is charted over everyone; its signal names the touchpoint that most of it was told at.
    return (metric, need_path) if metric in POINTS else (metric, map_id, touchpoint_id)


def signals_of(
    reading: Reading, chart: Chart, settled: Mapping[_Key, Sequence[SignalRaised]]
) -> Sequence[SignalRaised]:
    """Return the signals that a chart raised, oldest first."""
    # Under an earlier name it is the same touchpoint.
    aliases = next((t.aliases for _, t in reading.touchpoints if t.touchpoint_id == chart.touchpoint_id), ())
    keys = (_key(reading.map_.map_id, chart.metric, chart.need_path, name) for name in (chart.touchpoint_id, *aliases))
    # What it raised under an earlier name comes before all that it raised under this one.
    return [each for key in reversed(list(keys)) for each in settled.get(key, ())]


def run_end(signal: SignalRaised) -> int:
    """Return the day, counted from 1970, that the run of a signal ended before."""
    return day_of(signal.inputs["run_until"])


# -- what is found -----------------------------------------------------------------------------------------------------


def _first_news(chart: Chart, span: Span, begin: int) -> _Shift | None:
    """Return the first shift that is news, of those after the day `begin`."""
    left = series(chart, span, (begin, span.today))
    if isinstance(left, str):
        return None
    while (alarm := first_alarm(left.charted, left.count)) is not None:
        start, end, length = int(left.number[alarm.start]), int(left.number[alarm.at]), left.length
        until = span.begins(end + 1, length)
        if until >= span.today - NEWS_DAYS:
            before, run = slice(0, alarm.start), slice(alarm.start, alarm.at + 1)
            centre = float(left.total[before].sum() / left.count[before].sum())
            level = float(left.total[run].sum() / left.count[run].sum())
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
        left = left.after(alarm.at)
    return None


def _finding(reading: Reading, chart: Chart, shift: _Shift, last_signal_id: str) -> Finding:
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
    before, level, since = form.format(shift.centre), form.format(shift.level), date_of(shift.since)
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
            "subgroup": LENGTHS[shift.length],
            "baseline_subgroups": str(alarm.start),
            "run_from": since,
            "run_until": date_of(shift.until),
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
