"""A flow as a picture: steps one under the other in the order of the map, what follows what as arcs.

Forward arcs are on the right, those that go back on the left; the thicker, the more cases.
"""

import math
from collections.abc import Sequence

from recorrido.journey.v1 import journey_service_pb2 as pb
from services.cli import show
from services.cli.pictures.drawing import BAD, GOOD, INK, LINE, PLAIN, QUIET, picture, shortened, tag, text, title

#: The edges drawn: the most frequent, until they make up so much of all.
_ENOUGH = 0.95
_MOST_EDGES = 40
_BOX, _ROW, _HIGH, _TOP = 280.0, 66.0, 46.0, 96.0
_LABELS = 18
_LETTERS = 11.0


def svg(found: pb.GetFlowResponse) -> str:
    """Return a self-contained SVG."""
    flow = found.flow
    name = f"How journeys run: {found.map_id or 'without a map'}"
    edges = _drawn(flow)
    rows = {(step.id, step.name): n for n, step in enumerate(flow.steps)}
    reach = max((abs(_row(rows, e, "to") - _row(rows, e, "from")) for e in edges), default=0)
    side = 90.0 + _bulge(reach)
    width, height = 2 * side + _BOX, _TOP + max(len(rows), 1) * _ROW + 30
    middle = width / 2
    parts = [_heading(flow, edges, name)]
    taken: list[tuple[float, float]] = []
    labels = []
    parts += [_arc(rows, edge, middle) for edge in sorted(edges, key=lambda e: e.count)]
    for n, edge in enumerate(edges):
        if n < _LABELS and (label := _label(rows, edge, middle, taken)):
            labels.append(label)
    parts += [_box(step, rows[step.id, step.name], middle) for step in flow.steps]
    if not flow.steps:
        parts.append(text(middle, _TOP + 30, "No case meets the filter.", size=14, fill=QUIET, anchor="middle"))
    return picture(width, height, "".join(parts + labels), name=name, description=_in_words(flow))


def _drawn(flow: pb.Flow) -> Sequence[pb.FlowEdge]:
    total, so_far, edges = sum(edge.count for edge in flow.edges), 0, []
    for edge in flow.edges[:_MOST_EDGES]:
        if so_far >= _ENOUGH * total:
            break
        edges.append(edge)
        so_far += edge.count
    return edges


def _row(rows: dict[tuple[str, str], int], edge: pb.FlowEdge, end: str) -> int:
    return rows[edge.from_id, edge.from_name] if end == "from" else rows[edge.to_id, edge.to_name]


def _bulge(distance: int) -> float:
    return 34.0 + 26.0 * math.pow(distance, 0.8)


def _heading(flow: pb.Flow, edges: Sequence[pb.FlowEdge], name: str) -> str:
    drawn, all_of_them = sum(e.count for e in edges), sum(e.count for e in flow.edges)
    shown = (
        f"{len(edges)} of {len(flow.edges)} edges are drawn: {show.percent(drawn / max(all_of_them, 1))} of all steps"
    )
    ends = (
        f"{show.count(flow.cases)} cases: {show.count(flow.reached_goal)} reached a goal,"
        f" {show.count(flow.dropped_off)} dropped off, {show.count(flow.open)} may go on"
    )
    return (
        text(20, 32, name, size=18, more='font-weight="600"')
        + text(20, 54, ends, size=13)
        + text(20, 74, f"{shown}; right: onward, left (dashed): back", size=12, fill=QUIET)
    )


def _ends(rows: dict[tuple[str, str], int], edge: pb.FlowEdge, middle: float) -> tuple[float, float, float, float]:
    """Return from where, to where and how far out an arc goes: y, y, x at the box, x of its bend."""
    start, end = _row(rows, edge, "from"), _row(rows, edge, "to")
    side = -1 if end < start else 1
    # What leaves is a bit lower than what arrives.
    y0, y1 = _TOP + start * _ROW + _HIGH * 0.68, _TOP + end * _ROW + _HIGH * 0.32
    x = middle + side * _BOX / 2
    return y0, y1, x, x + side * _bulge(abs(end - start))


def _arc(rows: dict[tuple[str, str], int], edge: pb.FlowEdge, middle: float) -> str:
    y0, y1, x, bend = _ends(rows, edge, middle)
    thick = 1.2 + 9 * edge.share
    back = bend < x
    outward = 1 if bend > x else -1
    told = (
        f"{edge.from_name} → {edge.to_name}: {show.count(edge.count)} times in {show.count(edge.cases)} cases"
        f" ({show.percent(edge.share)}), half within {show.hours(edge.median_hours)}"
    )
    tip = x + outward * 1.0
    head = f"{tip:.1f},{y1:.1f} {tip + outward * 8:.1f},{y1 - 4:.1f} {tip + outward * 8:.1f},{y1 + 4:.1f}"
    path = f"M{x:.1f},{y0:.1f} C{bend:.1f},{y0:.1f} {bend:.1f},{y1:.1f} {tip + outward * 7:.1f},{y1:.1f}"
    dashes = {"stroke_dasharray": "6 3"} if back else {}
    line = tag("path", d=path, fill="none", stroke=PLAIN, stroke_width=thick, stroke_opacity=0.55, **dashes)
    return tag("g", title(told) + line + tag("polygon", points=head, fill=PLAIN))


def _label(rows: dict[tuple[str, str], int], edge: pb.FlowEdge, middle: float, taken: list[tuple[float, float]]) -> str:
    y0, y1, x, bend = _ends(rows, edge, middle)
    # The middle of the curve, three quarters of the way to its bend.
    at, y = x + 0.75 * (bend - x), (y0 + y1) / 2 + 4
    told = f"{show.percent(edge.share)} · {show.hours(edge.median_hours)}"
    if any(abs(y - other) < _LETTERS + 4 and abs(at - where) < 100 for where, other in taken):
        return ""
    taken.append((at, y))
    anchor = "start" if bend > x else "end"
    at += 5 if bend > x else -5
    halo = 'paint-order="stroke" stroke="#ffffff" stroke-width="3" stroke-linejoin="round"'
    return text(at, y, told, size=_LETTERS, anchor=anchor, more=halo)


def _box(step: pb.FlowStep, row: int, middle: float) -> str:
    x, y = middle - _BOX / 2, _TOP + row * _ROW
    lost = step.drop_off
    told = [f"{show.count(step.cases)} cases ({show.percent(step.share)})"]
    if step.starts:
        told.append(f"{show.count(step.starts)} begin here")
    if step.ends:
        told.append(f"{show.count(step.ends)} end here")
    if lost.cases:
        told.append(f"{show.count(lost.cases)} drop off, {show.count(lost.came_back)} of them came back later")
    frame = tag("rect", x=x, y=y, width=_BOX, height=_HIGH, rx=6, fill="#ffffff", stroke=LINE, stroke_width=1.5)
    # How many come by, and how many of them drop off: bars along the lower edge, and in words beside the name.
    whole = (_BOX - 24) * step.share
    bars = tag("rect", x=x + 12, y=y + _HIGH - 9, width=max(whole, 1.0), height=4, fill=GOOD)
    line = f"{show.percent(step.share)} of cases"
    extra = ""
    if lost.cases:
        bars += tag("rect", x=x + 12, y=y + _HIGH - 9, width=max(whole * lost.share, 1.0), height=4, fill=BAD)
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
    )


def _in_words(flow: pb.Flow) -> str:
    if not flow.cases:
        return "No case meets the filter."
    ways = "; ".join(f"{show.percent(way.share)} went {' → '.join(way.names[:12])}" for way in flow.variants[:3])
    edges = "; ".join(f"{e.from_name} → {e.to_name} in {show.percent(e.share)}" for e in flow.edges[:8])
    return f"{show.count(flow.cases)} cases. The most frequent ways: {ways}. What follows what most often: {edges}."
