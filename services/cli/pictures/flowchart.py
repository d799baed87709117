"""A flow as a picture: steps one under the other in the order of the map, what follows what as lines beside them.

Forward lines are on the right, those that go back on the left. Each has an upright of its own and its own ends at the
two steps, so that no line lies on another: short ones are inside, and ends are in the order in which lines cross least.
The thicker, the more cases; the colour is that of the step that is left. In a browser, pointing at a step, or reaching
it with the keyboard, leaves its lines alone.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

from recorrido.journey.v1 import journey_service_pb2 as pb
from services.cli import show
from services.cli.pictures.drawing import BAD, GOOD, INK, LINE, PLAIN, QUIET, picture, shortened, tag, text, title

#: The edges drawn: the most frequent, until they make up so much of all.
_ENOUGH = 0.95
_MOST_EDGES = 40
_BOX, _LEAST_HIGH, _BETWEEN, _TOP = 280.0, 50.0, 18.0, 96.0
#: Between two ends of lines at a step; between step and first upright, where the labels are; between two uprights.
_END, _GUTTER, _LANE = 17.0, 104.0, 12.0
_MARGIN = 24.0
_LETTERS = 10.0
_ROUND = 5.0
#: Dark enough on white for thin lines (WCAG 2.2, 1.4.11), and told apart from their neighbours.
_COLOURS = (PLAIN, "#0b5fa5", "#7a3e9d", "#1b6e4a", "#8f4f00")


@dataclass(frozen=True, slots=True)
class _Line:
    """An edge between two rows; `side` is 1 on the right, -1 on the left."""

    edge: pb.FlowEdge
    start: int
    end: int

    @property
    def side(self) -> int:
        return -1 if self.end < self.start else 1

    @property
    def span(self) -> int:
        return abs(self.end - self.start)


class _Layout:
    """Where rows, ends and uprights are."""

    def __init__(self, lines: Sequence[_Line], rows: int) -> None:
        self.lines = lines
        self._ends = {(row, side): list(_ends(lines, row, side)) for row in range(rows) for side in (-1, 1)}
        most = [max(len(self._ends[row, -1]), len(self._ends[row, 1])) for row in range(rows)]
        self.high = [max(_LEAST_HIGH, _END * (count + 1)) for count in most]
        self.top = [_TOP, *(_TOP + below for below in accumulate(high + _BETWEEN for high in self.high))]
        self.height = self.top[-1] + 12

    def y(self, line: _Line, *, leaves: bool) -> float:
        """Return where an end of a line is."""
        row = line.start if leaves else line.end
        ends = self._ends[row, line.side]
        return self.top[row] + self.high[row] * (ends.index((line, leaves)) + 1) / (len(ends) + 1)

    @cached_property
    def lanes(self) -> dict[int, int]:
        """Return the number of the upright of each line (by its place), from the inside; none lies on another."""
        taken: dict[int, list[list[tuple[float, float]]]] = {-1: [], 1: []}
        found = {}
        for n in sorted(range(len(self.lines)), key=lambda n: (self.lines[n].span, n)):
            line = self.lines[n]
            low, high = sorted((self.y(line, leaves=True), self.y(line, leaves=False)))
            lanes = taken[line.side]
            lane = next((k for k, used in enumerate(lanes) if all(high < a or low > b for a, b in used)), len(lanes))
            if lane == len(lanes):
                lanes.append([])
            lanes[lane].append((low - _ROUND, high + _ROUND))
            found[n] = lane
        return found

    def width(self, side: int) -> float:
        """Return the room that the lines of a side take."""
        lanes = [lane + 1 for n, lane in self.lanes.items() if self.lines[n].side == side]
        return _MARGIN + (_GUTTER + _LANE * max(lanes) if lanes else 0)


def _ends(lines: Sequence[_Line], row: int, side: int) -> Iterator[tuple[_Line, bool]]:
    """Yield the ends of lines at one side of a step from top to bottom, and whether the line leaves there.

    What comes from above, or goes up, is above, the nearest first; what goes down, or comes from below, is below, the
    nearest last: then an upright inside is crossed by no end of one outside. In between are the steps that repeat.
    """
    mine = [line for line in lines if line.side == side and row in (line.start, line.end)]
    above = [line for line in mine if line.span and (line.end == row if side == 1 else line.start == row)]
    below = [line for line in mine if line.span and line not in above]
    yield from ((line, line.start == row) for line in sorted(above, key=lambda line: line.span))
    for line in mine:
        if not line.span:
            yield line, False
            yield line, True
    yield from ((line, line.start == row) for line in sorted(below, key=lambda line: -line.span))


def svg(found: pb.GetFlowResponse) -> str:
    """Return a self-contained SVG."""
    flow = found.flow
    name = f"How journeys run: {found.map_id or 'without a map'}"
    edges = _drawn(flow)
    rows = {(step.id, step.name): n for n, step in enumerate(flow.steps)}
    lines = [_Line(e, rows[e.from_id, e.from_name], rows[e.to_id, e.to_name]) for e in edges]
    layout = _Layout(lines, len(rows))
    left, right = (max(layout.width(side), _LEAST_SIDE) for side in (-1, 1))
    width, height = left + _BOX + right, max(layout.height, _TOP + 80)
    parts = [f"<style>{_style(len(rows))}</style>", _heading(flow, edges, name)]
    # The thickest first: the thin ones stay to be seen.
    parts += [_arc(layout, n, left) for n in sorted(range(len(lines)), key=lambda n: -lines[n].edge.count)]
    parts += [_box(step, n, layout, left) for n, step in enumerate(flow.steps)]
    if not flow.steps:
        parts.append(
            text(left + _BOX / 2, _TOP + 30, "No case meets the filter.", size=14, fill=QUIET, anchor="middle")
        )
    return picture(width, height, "".join(parts), name=name, description=_in_words(flow))


#: So much beside the steps, for the heading.
_LEAST_SIDE = 260.0


def _style(rows: int) -> str:
    """Return what leaves the lines of a step alone while it is pointed at."""
    alone = (f"svg:has(.step{n}:is(:hover,:focus)) .line:not(.of{n}){{opacity:.07}}" for n in range(rows))
    return f"{''.join(alone)}.line:hover path{{stroke-width:6}}"


def _drawn(flow: pb.Flow) -> Sequence[pb.FlowEdge]:
    total, so_far, edges = sum(edge.count for edge in flow.edges), 0, []
    for edge in flow.edges[:_MOST_EDGES]:
        if so_far >= _ENOUGH * total:
            break
        edges.append(edge)
        so_far += edge.count
    return edges


def endings(flow: pb.Flow, told: Callable[[int], str]) -> str:
    """Return, in words, how cases ended, each number as it is `told`; of what there is none, nothing."""
    counts = (
        (flow.reached_goal, "reached a goal"),
        (flow.dropped_off, "dropped off"),
        (flow.no_goal, "had no goal"),
        (flow.open, "may go on"),
    )
    return ", ".join(f"{told(count)} {how}" for count, how in counts if count) or "none"


def _heading(flow: pb.Flow, edges: Sequence[pb.FlowEdge], name: str) -> str:
    drawn, all_of_them = sum(e.count for e in edges), sum(e.count for e in flow.edges)
    shown = (
        f"{len(edges)} of {len(flow.edges)} edges are drawn: {show.percent(drawn / max(all_of_them, 1))} of all steps"
    )
    ends = f"{show.count(flow.cases)} cases: {endings(flow, show.count)}"
    return (
        text(20, 32, name, size=18, more='font-weight="600"')
        + text(20, 54, ends, size=13)
        + text(20, 74, f"{shown}; right: onward, left (dashed): back; colours: by the step left", size=12, fill=QUIET)
    )


def _arc(layout: _Layout, n: int, left: float) -> str:
    line = layout.lines[n]
    edge, side = line.edge, line.side
    x = left + (_BOX if side > 0 else 0)
    y0, y1 = layout.y(line, leaves=True), layout.y(line, leaves=False)
    lane = x + side * (_GUTTER + _LANE * layout.lanes[n])
    down = math.copysign(_ROUND, y1 - y0)
    tip = x + side * 1.0
    path = (
        f"M{x:.1f},{y0:.1f} H{lane - side * _ROUND:.1f} Q{lane:.1f},{y0:.1f} {lane:.1f},{y0 + down:.1f}"
        f" V{y1 - down:.1f} Q{lane:.1f},{y1:.1f} {lane - side * _ROUND:.1f},{y1:.1f} H{tip + side * 7:.1f}"
    )
    told = (
        f"{edge.from_name} → {edge.to_name}: {show.count(edge.count)} times in {show.count(edge.cases)} cases"
        f" ({show.percent(edge.share)}), half within {show.hours(edge.median_hours)}"
    )
    colour = _COLOURS[line.start % len(_COLOURS)]
    head = f"{tip:.1f},{y1:.1f} {tip + side * 8:.1f},{y1 - 4:.1f} {tip + side * 8:.1f},{y1 + 4:.1f}"
    dashes = {"stroke_dasharray": "6 3"} if side < 0 else {}
    thick = 1.2 + 5 * edge.share
    drawn = tag("path", d=path, fill="none", stroke=colour, stroke_width=thick, **dashes)
    halo = 'paint-order="stroke" stroke="#ffffff" stroke-width="2" stroke-linejoin="round"'
    label = text(
        x + side * 6,
        y0 - 2 - thick / 2,
        f"{show.percent(edge.share)} · {show.hours(edge.median_hours)}",
        size=_LETTERS,
        fill=colour,
        anchor="start" if side > 0 else "end",
        more=halo,
    )
    content = title(told) + drawn + tag("polygon", points=head, fill=colour) + label
    return tag("g", content, class_=f"line of{line.start} of{line.end}")


def _box(step: pb.FlowStep, row: int, layout: _Layout, x: float) -> str:
    y, high = layout.top[row], layout.high[row]
    lost = step.drop_off
    told = [f"{show.count(step.cases)} cases ({show.percent(step.share)})"]
    if step.starts:
        told.append(f"{show.count(step.starts)} begin here")
    if step.ends:
        told.append(f"{show.count(step.ends)} end here")
    if lost.cases:
        told.append(f"{show.count(lost.cases)} drop off, {show.count(lost.came_back)} of them came back later")
    frame = tag("rect", x=x, y=y, width=_BOX, height=high, rx=6, fill="#ffffff", stroke=LINE, stroke_width=1.5)
    # How many come by, and how many of them drop off: bars along the lower edge, and in words beside the name.
    whole = (_BOX - 24) * step.share
    bars = tag("rect", x=x + 12, y=y + high - 9, width=max(whole, 1.0), height=4, fill=GOOD)
    line = f"{show.percent(step.share)} of cases"
    extra = ""
    if lost.cases:
        bars += tag("rect", x=x + 12, y=y + high - 9, width=max(whole * lost.share, 1.0), height=4, fill=BAD)
        extra = text(x + _BOX - 12, y + 32, f"{show.percent(lost.share)} drop off", size=11, fill=BAD, anchor="end")
    name = shortened(step.name, _BOX - 24, 13, bold=True)
    return tag(
        "g",
        title(f"{step.name}: {'; '.join(told)}")
        + frame
        + text(x + 12, y + 17, name, size=13, fill=INK, more='font-weight="600"')
        + text(x + 12, y + 32, line, size=11, fill=QUIET)
        + extra
        + bars,
        class_=f"step{row}",
        tabindex=0,
    )


def _in_words(flow: pb.Flow) -> str:
    if not flow.cases:
        return "No case meets the filter."
    ways = "; ".join(f"{show.percent(way.share)} went {' → '.join(way.names[:12])}" for way in flow.variants[:3])
    edges = "; ".join(f"{e.from_name} → {e.to_name} in {show.percent(e.share)}" for e in flow.edges[:8])
    return f"{show.count(flow.cases)} cases. The most frequent ways: {ways}. What follows what most often: {edges}."
