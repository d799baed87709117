"""A journey map with what really happens on it: one SVG, or an HTML page that holds it and the same in tables.

Nothing is told by colour alone: each touchpoint has its number in the curve and on its card, and its state in words.
"""

from dataclasses import dataclass
from html import escape
from itertools import pairwise

from recorrido.inference.v1.analysis_pb2 import POINT_KIND_DELIGHT, POINT_KIND_ITCH, POINT_KIND_PAIN
from recorrido.journey.v1 import journey_service_pb2 as pb
from services.cli import show
from services.cli.pictures.drawing import (
    BAD,
    FONT,
    GOOD,
    INK,
    LINE,
    PLAIN,
    QUIET,
    SILENT,
    in_two_lines,
    picture,
    shortened,
    shortened_path,
    tag,
    text,
    title,
)

_COLUMN, _GAP, _SIDE = 206.0, 10.0, 64.0
_HEAD, _CURVE, _CARD = 92.0, 190.0, 160.0
#: Of the name of a touchpoint, which has one or two.
_NAME_LINE = 15.0
#: Stages beside each other on a page.
_ABREAST = 6
_STATES = {pb.HEARING_HEARD: "heard", pb.HEARING_UNHEARD: "nobody tells", pb.HEARING_SILENT: "silent"}
_KINDS = {POINT_KIND_PAIN: ("▼", BAD), POINT_KIND_ITCH: ("◆", PLAIN), POINT_KIND_DELIGHT: ("▲", GOOD)}


@dataclass(frozen=True, slots=True)
class MapData:
    """The answers that a map is drawn from, all of one map and one time."""

    published: pb.PublishedMap
    scores: pb.GetScoresResponse
    coverage: pb.GetCoverageResponse
    points: pb.ListPointsResponse
    flow: pb.Flow


@dataclass(frozen=True, slots=True)
class _Place:
    """A touchpoint, its number on the picture, and everything known of it."""

    number: int
    covered: pb.TouchpointCoverage
    scores: pb.Scores
    points: list[pb.Point]
    felt: pb.StepExperience

    @property
    def expected(self) -> list[str]:
        """Return what is, of what is expected, in words."""
        return show.expected(self.covered.expected)

    @property
    def silent(self) -> bool:
        return self.covered.hearing == pb.HEARING_SILENT


def _places(data: MapData) -> list[_Place]:
    scores = {each.touchpoint_id: each.scores for each in data.scores.touchpoints if each.touchpoint_id}
    felt = {step.id: step.experience for step in data.flow.steps if step.id}
    return [
        _Place(
            number,
            covered,
            scores.get(covered.touchpoint_id, pb.Scores()),
            [point for point in data.points.points if point.touchpoint_id == covered.touchpoint_id],
            felt.get(covered.touchpoint_id, pb.StepExperience()),
        )
        for number, covered in enumerate(data.coverage.touchpoints, 1)
    ]


def svg(data: MapData) -> str:
    """Return a self-contained SVG, of all stages beside each other."""
    places = _places(data)
    return _drawn(data, places, range(len(data.published.map.stages)))


def _drawn(data: MapData, places: list[_Place], shown: range, key: str = "") -> str:
    """Return a picture of the stages whose numbers are `shown`; `key` tells it from others of the same page."""
    stages = data.published.map.stages
    by_stage = [[p for p in places if p.covered.stage_id == stages[n].stage_id] for n in shown]
    width = 2 * _SIDE + max(len(by_stage), _LEAST_COLUMNS) * (_COLUMN + _GAP)
    cards_at = _HEAD + 46 + _CURVE + 24
    height = cards_at + max((len(column) for column in by_stage), default=0) * (_CARD + _GAP) + 56
    busiest = max((p.covered.interactions for p in places), default=0)
    part = "" if len(shown) == len(stages) else f", stages {shown.start + 1} to {shown.stop} of {len(stages)}"
    parts = [_heading(data, width, part)]
    spots: list[tuple[_Place, float]] = []
    for n, (number, column) in enumerate(zip(shown, by_stage, strict=True)):
        x = _SIDE + n * (_COLUMN + _GAP)
        parts.append(_stage(stages[number].name, x))
        for m, place in enumerate(column):
            spots.append((place, x + _COLUMN * (m + 0.5) / len(column)))
            parts.append(_card(place, x, cards_at + m * (_CARD + _GAP), busiest))
    parts.append(_curve(spots, width, _lasting(places)))
    parts += [text(_SIDE, height - 30 + 16 * n, line, size=11, fill=QUIET) for n, line in enumerate(_LEGEND)]
    name, described = f"{_name(data)}{part}", _in_words(data, places)
    return picture(width, height, "".join(parts), name=name, description=described, key=key)


#: Of the width, for the legend.
_LEAST_COLUMNS = 5


def _lasting(places: list[_Place]) -> dict[int, list[str]]:
    """Return what stays in mind, by the numbers of the touchpoints: where most cases have their peak, and their end."""
    told = [place for place in places if place.felt.count]
    marks: dict[int, list[str]] = {}
    if told:
        marks.setdefault(max(told, key=lambda p: (p.felt.peaks, p.number)).number, []).append("peak")
        marks.setdefault(max(told, key=lambda p: (p.felt.ends, p.number)).number, []).append("end")
    return marks


_LEGEND = (
    "▼ pain   ◆ itch   ▲ delight, with the part of all customers heard who told of it.   The bar: interactions.",
    "Of what is expected: ✗ missed, ✓ met, ? not known with so few answers.   ★ moment of truth.   Dashed: silent.",
)


def _name(data: MapData) -> str:
    return f"{data.published.map.name}, version {data.published.version}"


def _heading(data: MapData, width: float, part: str) -> str:
    found, total = data.coverage, data.scores.total
    counted = [
        f"{show.count(total.interactions)} interactions of {show.count(total.customers)} customers",
        f"{found.all.heard} of {found.all.touchpoints} touchpoints heard, {found.all.silent} silent",
        f"{found.moments_of_truth.heard} of {found.moments_of_truth.touchpoints} moments of truth heard",
    ]
    placed = f"{show.percent(found.interactions_on_map / max(found.interactions, 1))} of the interactions on the map"
    lines = [counted, [placed, *_score_texts(total)]]
    return text(_SIDE, 36, f"{_name(data)}{part}", size=20, more='font-weight="600"') + "".join(
        text(_SIDE, 60 + 18 * n, shortened("   ·   ".join(line), width - 2 * _SIDE, 13), size=13, fill=QUIET)
        for n, line in enumerate(lines)
    )


def _score_texts(found: pb.Scores) -> list[str]:
    texts = []
    if found.nps.count:
        texts.append(f"NPS {found.nps.value:+.0f} ({show.count(found.nps.count)})")
    if found.csat.count:
        texts.append(f"CSAT {found.csat.value:.0f} % ({show.count(found.csat.count)})")
    if found.ces.count:
        texts.append(f"CES {found.ces.value:.0f} % ({show.count(found.ces.count)})")
    return texts


def _stage(name: str, x: float) -> str:
    y, high, tip = _HEAD, 34.0, 10.0
    # An arrow, though any stage may follow any: people read a map from left to right.
    corners = [
        (x, y),
        (x + _COLUMN - tip, y),
        (x + _COLUMN, y + high / 2),
        (x + _COLUMN - tip, y + high),
        (x, y + high),
    ]
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in corners)
    label = text(
        x + 12, y + 22, shortened(name, _COLUMN - 30, 14, bold=True), size=14, fill="#ffffff", more='font-weight="600"'
    )
    return tag("g", title(name) + tag("polygon", points=points, fill=PLAIN) + label)


def _curve(spots: list[tuple[_Place, float]], width: float, marks: dict[int, list[str]]) -> str:
    top = _HEAD + 50

    def y(value: float) -> float:
        return top + _CURVE * (1 - value) / 2

    parts = []
    for value, name in ((1.0, "good"), (0.0, "neutral"), (-1.0, "bad")):
        parts.append(tag("line", x1=_SIDE, x2=width - _SIDE, y1=y(value), y2=y(value), stroke=LINE, stroke_width=1))
        parts.append(text(_SIDE - 8, y(value) + 4, name, size=11, fill=QUIET, anchor="end"))
    told = [(place, x, y(place.felt.mean)) for place, x in spots if place.felt.count]
    if not told:
        parts.append(text(width / 2, y(0) - 8, "Nothing tells how it felt.", size=13, fill=QUIET, anchor="middle"))
        return tag("g", title("Experience curve") + "".join(parts))
    for (one, x0, y0), (other, x1, y1) in pairwise(told):
        # Over touchpoints of which nothing is known the line is no more than a guide.
        gap = {} if other.number == one.number + 1 else {"stroke_dasharray": "2 5"}
        parts.append(tag("line", x1=x0, y1=y0, x2=x1, y2=y1, stroke=PLAIN, stroke_width=2, **gap))
    parts += [_spot(place, x, at, marks.get(place.number, [])) for place, x, at in told]
    return tag("g", title("Experience curve: how it felt at each touchpoint, mean from bad to good") + "".join(parts))


def _spot(place: _Place, x: float, y: float, marks: list[str]) -> str:
    felt = place.felt
    colour = GOOD if felt.mean >= 0 else BAD
    told = (
        f"{place.covered.name}: felt {felt.mean:+.2f} ({show.count(felt.count)} moments), the peak of"
        f" {show.count(felt.peaks)} cases and the end of {show.count(felt.ends)}"
    )
    parts = [title(told)]
    if marks:
        # Above the curve where it is low, below where it is high: never out of the picture.
        side = -1 if felt.mean < 0.5 else 1
        parts.append(tag("circle", cx=x, cy=y, r=15.0, fill="none", stroke=INK, stroke_width=2))
        at = y + (-22 if side < 0 else 31)
        halo = 'font-weight="600" paint-order="stroke" stroke="#ffffff" stroke-width="3"'
        parts.append(text(x, at, " and ".join(marks), size=12, anchor="middle", more=halo))
    parts.append(tag("circle", cx=x, cy=y, r=11.0, fill=colour, stroke="#ffffff", stroke_width=1.5))
    parts.append(text(x, y + 4, str(place.number), size=11, fill="#ffffff", anchor="middle"))
    return tag("g", "".join(parts))


def _card(place: _Place, x: float, y: float, busiest: int) -> str:
    covered = place.covered
    frame = {"stroke_dasharray": "5 4"} if place.silent else {}
    ink = QUIET if place.silent else INK
    parts = [
        title(_card_in_words(place)),
        tag(
            "rect",
            x=x,
            y=y,
            width=_COLUMN,
            height=_CARD,
            rx=6,
            fill=SILENT if place.silent else "#ffffff",
            stroke=QUIET if place.silent else LINE,
            stroke_width=1.5,
            **frame,
        ),
        text(x + 10, y + 20, f"{place.number}", size=12, fill=QUIET),
    ]
    name = f"{'★ ' if covered.moment_of_truth else ''}{covered.name}"
    for n, line in enumerate(in_two_lines(name, _COLUMN - 38, 12, bold=True)):
        y += _NAME_LINE * n
        parts.append(text(x + 30, y + 20, line, size=12, fill=ink, more='font-weight="600"'))
    if place.silent:
        last = (
            f"silent since {show.when(covered.last_at)[:10]}"
            if covered.HasField("last_at")
            else "silent: nothing happened yet"
        )
        return tag("g", "".join([*parts, text(x + 10, y + 42, last, size=12, fill=QUIET)]))
    volume = f"{show.count(covered.interactions)} interactions"
    long = (_COLUMN - 20) * covered.interactions / max(busiest, 1)
    parts.append(text(x + 10, y + 40, f"{volume} · {_STATES[covered.hearing]}", size=11, fill=QUIET))
    parts.append(tag("rect", x=x + 10, y=y + 46, width=max(long, 1.0), height=4, fill=PLAIN))
    scores = shortened(" · ".join(_score_texts(place.scores)), _COLUMN - 20, 11) or "no ratings"
    parts.append(text(x + 10, y + 66, scores, size=11, fill=ink if _score_texts(place.scores) else QUIET))
    below = y + 84
    if place.expected:
        missed = any(each.state == pb.EXPECTATION_STATE_MISSED for each in covered.expected)
        held = shortened(", ".join(place.expected), _COLUMN - 20, 11, bold=True)
        parts.append(text(x + 10, below, held, size=11, fill=BAD if missed else PLAIN, more='font-weight="600"'))
        below += 17
    for n, point in enumerate(_told_most(place)):
        sign, colour = _KINDS[point.kind]
        need = shortened_path(point.need_path or "need not known", _COLUMN - 72, 11)
        line = f"{sign} {need} {show.percent(point.share)}"
        parts.append(text(x + 10, below + 16 * n, line, size=11, fill=colour))
    return tag("g", "".join(parts))


def _told_most(place: _Place) -> list[pb.Point]:
    """Return at most three points: pains first, and one of each kind where there is room."""
    first = {kind: [p for p in place.points if p.kind == kind] for kind in _KINDS}
    chosen = [points[0] for points in first.values() if points]
    rest = [p for p in place.points if p not in chosen]
    order = list(_KINDS)
    return sorted([*chosen, *rest][:3], key=lambda p: (order.index(p.kind), -p.customers))


def _card_in_words(place: _Place) -> str:
    covered = place.covered
    told = [f"{place.number} {covered.name}"]
    if covered.moment_of_truth:
        told.append("moment of truth")
    told += [
        f"{show.count(covered.interactions)} interactions",
        _STATES.get(covered.hearing, ""),
        *_score_texts(place.scores),
    ]
    if place.felt.count:
        told.append(f"felt {place.felt.mean:+.2f}")
    told += [f"of what is expected: {each}" for each in place.expected]
    if covered.owner:
        told.append(f"owner {covered.owner}")
    return "; ".join(told)


def _in_words(data: MapData, places: list[_Place]) -> str:
    stages = ", ".join(stage.name for stage in data.published.map.stages)
    silent = ", ".join(place.covered.name for place in places if place.silent) or "none"
    return (
        f"A journey map with the stages {stages}. {show.count(data.coverage.interactions)} interactions;"
        f" {data.coverage.all.heard} of {data.coverage.all.touchpoints} touchpoints are heard. Silent: {silent}."
    )


# -- the page ----------------------------------------------------------------------------------------------------------

_STYLE = f"""
:root {{ color-scheme: light dark; --ink: {INK}; --ground: #ffffff; --quiet: {QUIET}; --line: {LINE};
  --silent: {SILENT}; --focus: {GOOD}; }}
@media (prefers-color-scheme: dark) {{ :root {{ --ink: #ececec; --ground: #16181b; --quiet: #b0b0b0; --line: #45494f;
  --silent: #26292e; --focus: #7db8ee; }} }}
* {{ box-sizing: border-box; }}
body {{ font: 15px/1.5 {FONT}; color: var(--ink); background: var(--ground); margin: 2rem; }}
h1 {{ font-size: 1.4rem; }} h2 {{ font-size: 1.1rem; margin-top: 2rem; }}
figure {{ margin: 0 0 1rem; overflow-x: auto; }} figure svg {{ max-width: max(100%, 60rem); height: auto; }}
.wide {{ overflow-x: auto; }}
figure:focus-visible, .wide:focus-visible {{ outline: 3px solid var(--focus); }}
table {{ border-collapse: collapse; font-size: 0.9rem; min-width: 60rem; }}
caption {{ text-align: left; color: var(--quiet); padding-bottom: 0.4rem; }}
th, td {{ border-bottom: 1px solid var(--line); padding: 0.25rem 0.7rem; text-align: left; vertical-align: top; }}
td.number, th.number {{ text-align: right; font-variant-numeric: tabular-nums; }}
td.number, td:first-child {{ white-space: nowrap; }}
td.words {{ min-width: 16rem; }}
tr.silent td, tr.silent th {{ background: var(--silent); color: var(--quiet); }}
thead th {{ border-bottom: 2px solid var(--quiet); }}
@media (max-width: 40rem) {{ body {{ margin: 0.75rem; }} th, td {{ padding: 0.25rem 0.35rem; }} }}
@media print {{
  :root {{ color-scheme: light; --ink: {INK}; --ground: #ffffff; --quiet: {QUIET}; --line: {LINE};
    --silent: {SILENT}; }}
  @page {{ size: A3 landscape; margin: 12mm; }}
  body {{ margin: 0; font-size: 11px; }}
  figure, .wide {{ overflow: visible; }} table {{ min-width: 0; }}
  figure {{ break-after: page; }} figure svg {{ width: 100%; height: auto; max-height: 260mm; }}
  thead {{ display: table-header-group; }} tr {{ break-inside: avoid; }}
}}
"""


def html(data: MapData) -> str:
    """Return a self-contained page: the picture, and all that is in it as tables."""
    places, name = _places(data), escape(_name(data))
    parts = _abreast(len(data.published.map.stages))
    sections = [_touchpoint_table(places), _point_table(data), _off_map_table(data)]
    figures = [
        f'<figure tabindex="0" aria-label="The journey map, {n} of {len(parts)}">{_drawn(data, places, part, f"-{n}")}'
        "</figure>\n"
        for n, part in enumerate(parts, 1)
    ]
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{name}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n<h1>{name}</h1>\n"
        f"<p>{escape(_in_words(data, places))}</p>\n"
        f"{''.join(figures)}{''.join(sections)}</main>\n</body>\n</html>\n"
    )


def _abreast(stages: int) -> list[range]:
    """Return which stages are beside each other, on a picture of their own: as many as a screen is wide, and evenly."""
    rows = max(-(-stages // _ABREAST), 1)
    first, more = divmod(stages, rows)
    parts, start = [], 0
    for n in range(rows):
        parts.append(range(start, start + first + (n < more)))
        start = parts[-1].stop
    return parts


def _touchpoint_table(places: list[_Place]) -> str:
    heads = [
        "#",
        "stage",
        "touchpoint",
        "state",
        "interactions",
        "customers",
        "scores",
        "of what is expected",
        "felt",
        "last heard",
        "owner",
    ]
    lines = []
    for place in places:
        covered = place.covered
        cells = [
            str(place.number),
            covered.stage_name,
            f"{'★ ' if covered.moment_of_truth else ''}{covered.name}",
            _STATES.get(covered.hearing, ""),
            show.count(covered.interactions),
            show.count(covered.customers),
            ", ".join(_score_texts(place.scores)),
            ", ".join(place.expected),
            f"{place.felt.mean:+.2f} ({show.count(place.felt.count)})" if place.felt.count else "",
            show.when(covered.last_heard_at),
            covered.owner,
        ]
        lines.append((cells, "silent" if place.silent else ""))
    return _table("Touchpoints", "★ is a moment of truth; times are UTC.", heads, lines, numbers={0, 4, 5, 8})


def _point_table(data: MapData) -> str:
    names = {POINT_KIND_PAIN: "pain", POINT_KIND_ITCH: "itch", POINT_KIND_DELIGHT: "delight"}
    lines = [
        (
            [
                f"{_KINDS[p.kind][0]} {names[p.kind]}",
                p.need_path or "not known",
                p.touchpoint_name,
                show.count(p.customers),
                show.percent(p.share),
                p.examples[0] if p.examples else "",
            ],
            "",
        )
        for p in sorted(data.points.points[:50], key=lambda p: list(_KINDS).index(p.kind))
    ]
    heads = ["point", "need", "touchpoint", "customers", "share", "in their words"]
    return _table(
        "Points",
        "Those of most customers, at most 50: what hurts, what is wished for, what delights.",
        heads,
        lines,
        numbers={3, 4},
    )


def _off_map_table(data: MapData) -> str:
    lines = [
        ([each.source, each.touchpoint, show.count(each.interactions), show.when(each.last_at)], "")
        for each in data.coverage.off_map
    ]
    more = (
        f"{show.count(data.coverage.left_out)} further ones are left out." if data.coverage.left_out else "All of them."
    )
    return _table("On no map", more, ["source", "touchpoint", "interactions", "last"], lines, numbers={2})


def _table(name: str, caption: str, heads: list[str], lines: list[tuple[list[str], str]], numbers: set[int]) -> str:
    if not lines:
        return f"<h2>{escape(name)}</h2>\n<p>None.</p>\n"

    def kind(n: int) -> str:
        return ' class="number"' if n in numbers else ' class="words"' if heads[n] == "in their words" else ""

    head = "".join(f'<th scope="col"{kind(n)}>{escape(each)}</th>' for n, each in enumerate(heads))
    body = "".join(
        f"<tr{f' class={style!r}' if style else ''}>"
        + "".join(f"<td{kind(n)}>{escape(cell)}</td>" for n, cell in enumerate(cells))
        + "</tr>\n"
        for cells, style in lines
    )
    return (
        f'<h2>{escape(name)}</h2>\n<div class="wide" tabindex="0" role="region" aria-label="{escape(name)}">'
        f"<table>\n<caption>{escape(caption)}</caption>\n<thead><tr>{head}</tr></thead>\n"
        f"<tbody>\n{body}</tbody>\n</table></div>\n"
    )
