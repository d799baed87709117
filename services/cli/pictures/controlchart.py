"""A control chart as a picture: how it went, with the centre that it is judged by, and the average with its limits."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise

from recorrido.inference.v1.analysis_pb2 import POINT_KIND_ITCH, POINT_KIND_PAIN
from recorrido.journey.v1 import journey_service_pb2 as pb
from recorrido.journey.v1.journey_map_pb2 import METRIC_NPS, METRIC_SENTIMENT
from services.cli import show
from services.cli.pictures.drawing import BAD, GOOD, INK, LINE, PLAIN, QUIET, picture, shortened, tag, text, title

_WIDTH, _LEFT, _RIGHT = 1080.0, 76.0, 26.0
_TOP, _HIGH, _BETWEEN = 124.0, 190.0, 62.0
_DATES = 6
#: Of an empty span a band that something can be drawn into.
_LEAST_SPAN = 1e-6

STATES = {
    pb.CHART_STATE_GAP: "too few answers",
    pb.CHART_STATE_BASELINE: "not judged: baseline",
    pb.CHART_STATE_WITHIN: "within the limits",
    pb.CHART_STATE_OUTSIDE: "out of the limits",
}

At = Callable[[float], float]


def unit(chart: pb.ControlChart, value: float) -> str:
    """Return a value of a chart in the unit of its metric."""
    if chart.metric == METRIC_SENTIMENT:
        return f"{value:+.2f}"
    return f"{value:+.0f}" if chart.metric == METRIC_NPS else f"{value:.1f} %"


def is_better(chart: pb.ControlChart, point: pb.ChartPoint) -> bool:
    """Return whether a point that is out of the limits is so for the better: of pains and itches fewer are."""
    return (point.average > 0) != (chart.kind in {POINT_KIND_PAIN, POINT_KIND_ITCH})


def outside(chart: pb.ControlChart) -> list[pb.ChartPoint]:
    return [point for point in chart.points if point.state == pb.CHART_STATE_OUTSIDE]


def in_words(chart: pb.ControlChart) -> str:
    """Return what a chart tells, in a sentence or two."""
    told = []
    for each in outside(chart):
        how = "better" if is_better(chart, each) else "worse"
        told.append(
            f"{_subgroup(chart)} of {_day(each)}, with {unit(chart, each.value)} {how} than {unit(chart, each.centre)}"
        )
    if told:
        return f"Out of its limits {len(told)} {'time' if len(told) == 1 else 'times'}: {'; '.join(told)}."
    return f"No limits: {chart.not_charted}." if chart.not_charted else "Within its limits all the time."


def svg(found: pb.GetControlChartResponse) -> str:
    """Return a self-contained SVG."""
    chart, method = found.chart, found.method
    points = chart.points
    height = _TOP + 2 * _HIGH + _BETWEEN + 60
    name = f"{chart.name}: control chart"
    head = (
        text(20, 32, shortened(name, _WIDTH - 40, 18, bold=True), size=18, more='font-weight="600"')
        + text(20, 56, shortened(in_words(chart), _WIDTH - 40, 13), size=13)
        + text(20, 78, method_in_words(method), size=12, fill=QUIET)
        + text(20, 96, "; ".join(method.sources), size=12, fill=QUIET)
    )
    if not any(point.HasField("value") for point in points):
        empty = text(_WIDTH / 2, _TOP + 40, "Nothing to chart.", size=14, fill=QUIET, anchor="middle")
        return picture(_WIDTH, _TOP + 80, head + empty, name=name, description=in_words(chart))
    step = (_WIDTH - _LEFT - _RIGHT) / len(points)

    def x(n: int) -> float:
        return _LEFT + step * (n + 0.5)

    body = (
        head + _values(chart, x, step) + _averages(chart, x, step) + _dates(chart, x, _TOP + 2 * _HIGH + _BETWEEN + 22)
    )
    legend = (
        "Upper: ● a subgroup, ○ baseline, ◆ out of the limits; dotted over gaps; the long line: what it is judged by."
    )
    body += text(20, height - 10, legend, size=11, fill=QUIET)
    return picture(_WIDTH, height, body, name=name, description=in_words(chart))


def method_in_words(method: pb.ControlChartMethod) -> str:
    """Return how it is charted, and how often it errs."""
    return (
        f"EWMA, weight {method.weight:g}, limits {method.width:g} standard deviations of it, self-starting from"
        f" {method.least_baseline} subgroups of {method.least_answers} or more; one false alarm in"
        f" {show.count(method.false_alarm_points)} points"
    )


def _values(chart: pb.ControlChart, x: Callable[[int], float], step: float) -> str:
    """Return the upper panel: the values and the centre, in the unit of the metric."""
    counted = [(n, p) for n, p in enumerate(chart.points) if p.state != pb.CHART_STATE_GAP]
    shown = [p.value for _, p in counted] or [p.value for p in chart.points if p.HasField("value")]
    y = _scale(shown + [p.centre for _, p in counted if p.HasField("centre")], _TOP)
    low, high = min(shown), max(shown)
    parts = [title(f"{chart.name} by {_subgroup(chart)}"), _frame(_TOP)]
    parts += [text(_LEFT - 8, y(v) + 4, unit(chart, v), size=11, fill=QUIET, anchor="end") for v in _apart(low, high)]
    for (n, one), (m, other) in pairwise(counted):
        gap = {} if m == n + 1 else {"stroke_dasharray": "1 4"}
        line = {"x1": x(n), "x2": x(m)}
        parts.append(tag("line", **line, y1=y(one.value), y2=y(other.value), stroke=PLAIN, stroke_width=1.2, **gap))
        if one.HasField("centre") and other.HasField("centre") and one.state != pb.CHART_STATE_OUTSIDE:
            parts.append(tag("line", **line, y1=y(one.centre), y2=y(other.centre), stroke=GOOD, stroke_width=2))
    size = max(1.2, min(4.0, 0.35 * step))
    parts += [_mark(chart, p, x(n), y(p.value), size) for n, p in counted]
    return tag("g", "".join(parts))


def _mark(chart: pb.ControlChart, point: pb.ChartPoint, x: float, y: float, size: float) -> str:
    told = [f"{_day(point)}: {unit(chart, point.value)} of {show.count(point.answers)}", STATES[point.state]]
    if point.HasField("centre"):
        told.append(f"judged by {unit(chart, point.centre)}")
    if point.HasField("average"):
        told.append(f"average {point.average:+.2f}, limits ±{point.limit:.2f}")
    if point.signal_id:
        told.append(f"signal {point.signal_id}")
    name = title("; ".join(told))
    if point.state == pb.CHART_STATE_OUTSIDE:
        wide = size + 4
        corners = f"{x:.1f},{y - wide:.1f} {x + wide:.1f},{y:.1f} {x:.1f},{y + wide:.1f} {x - wide:.1f},{y:.1f}"
        label = text(x, y - wide - 4, unit(chart, point.value), size=11, anchor="middle", more=_HALO)
        colour = GOOD if is_better(chart, point) else BAD
        return tag("g", name + tag("polygon", points=corners, fill=colour) + label)
    if point.state == pb.CHART_STATE_BASELINE:
        return tag("g", name + tag("circle", cx=x, cy=y, r=size, fill="#ffffff", stroke=PLAIN, stroke_width=1))
    return tag("g", name + tag("circle", cx=x, cy=y, r=size, fill=INK if point.in_run else PLAIN))


_HALO = 'font-weight="600" paint-order="stroke" stroke="#ffffff" stroke-width="3"'


def _averages(chart: pb.ControlChart, x: Callable[[int], float], step: float) -> str:
    """Return the lower panel: the average and its limits, in standard deviations of a point."""
    top = _TOP + _HIGH + _BETWEEN
    parts = [title("The moving average and its limits, in standard deviations of a point"), _frame(top)]
    parts.append(text(_LEFT, top - 10, "Moving average and its limits, in standard deviations of a point", size=12))
    judged = [(n, p) for n, p in enumerate(chart.points) if p.HasField("average")]
    if not judged:
        why = shortened(chart.not_charted or "No baseline yet.", _WIDTH - _LEFT - _RIGHT, 13)
        parts.append(text(_WIDTH / 2, top + _HIGH / 2, why, size=13, fill=QUIET, anchor="middle"))
        return tag("g", "".join(parts))
    widest = max(max(abs(p.average), p.limit) for _, p in judged)
    y = _scale([-widest, widest], top)
    parts += [text(_LEFT - 8, y(v) + 4, f"{v:+.1f}", size=11, fill=QUIET, anchor="end") for v in (-widest, 0.0, widest)]
    parts.append(tag("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=y(0), y2=y(0), stroke=GOOD, stroke_width=1))
    for part in _unbroken(judged):
        for line, style in (
            ([(n, p.limit) for n, p in part], {"stroke": BAD, "stroke_dasharray": "6 3"}),
            ([(n, -p.limit) for n, p in part], {"stroke": BAD, "stroke_dasharray": "6 3"}),
            ([(n, p.average) for n, p in part], {"stroke": INK, "stroke_width": 2}),
        ):
            corners = " ".join(f"{x(n):.1f},{y(value):.1f}" for n, value in line)
            parts.append(tag("polyline", points=corners, fill="none", **style))
    size = max(1.2, min(3.0, 0.35 * step))
    parts += [tag("circle", cx=x(n), cy=y(p.average), r=size, fill=INK) for n, p in judged]
    for n, p in judged:
        if p.state == pb.CHART_STATE_OUTSIDE:
            colour = GOOD if is_better(chart, p) else BAD
            parts.append(
                tag("circle", cx=x(n), cy=y(p.average), r=size + 4, fill="none", stroke=colour, stroke_width=2)
            )
    return tag("g", "".join(parts))


def _unbroken(judged: Iterable[tuple[int, pb.ChartPoint]]) -> Iterator[list[tuple[int, pb.ChartPoint]]]:
    """Yield the parts between which the chart began anew."""
    part: list[tuple[int, pb.ChartPoint]] = []
    for each in judged:
        part.append(each)
        if each[1].state == pb.CHART_STATE_OUTSIDE:
            yield part
            part = []
    if part:
        yield part


def _scale(values: Sequence[float], top: float) -> At:
    low, high = min(values), max(values)
    span = max(high - low, _LEAST_SPAN)
    return lambda value: top + 16 + (_HIGH - 32) * (high - value) / span


def _apart(low: float, high: float) -> Sequence[float]:
    return [low] if high - low < _LEAST_SPAN else [low, (low + high) / 2, high]


def _frame(top: float) -> str:
    return tag(
        "rect", x=_LEFT, y=top, width=_WIDTH - _LEFT - _RIGHT, height=_HIGH, fill="none", stroke=LINE, stroke_width=1
    )


def _dates(chart: pb.ControlChart, x: Callable[[int], float], y: float) -> str:
    every = max(1, len(chart.points) // _DATES)
    # The first stands where the axis begins, and is not cut off there.
    return "".join(
        text(max(x(n), _LEFT + 30), y, _day(chart.points[n]), size=11, fill=QUIET, anchor="middle")
        for n in range(0, len(chart.points), every)
        if x(n) < _WIDTH - _RIGHT - 40 or n == 0
    )


def _day(point: pb.ChartPoint) -> str:
    return show.when(getattr(point, "from"))[:10]


def _subgroup(chart: pb.ControlChart) -> str:
    return show.name(pb.Period.DESCRIPTOR, chart.subgroup)
