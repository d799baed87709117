"""Whether scores and points go on as they were: `chart`."""

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from recorrido.inference.v1.analysis_pb2 import PointKind
from recorrido.journey.v1 import journey_service_pb2 as pb
from recorrido.journey.v1.journey_map_pb2 import Metric
from services.cli import clients, show
from services.cli.clients import DEADLINE_S, Addresses
from services.cli.options import AsOf, From, Json, MapId, To, run
from services.cli.pictures import controlchart, drawing

#: The last subgroups that one line has room for, and one of a narrow terminal.
_COURSE = 60
_SHORT_COURSE = 15


class Charted(StrEnum):
    NPS = "nps"
    CSAT = "csat"
    CES = "ces"
    SENTIMENT = "sentiment"
    PAIN = "pain"
    ITCH = "itch"
    DELIGHT = "delight"


def chart(
    what: Annotated[Charted | None, typer.Argument(help="A score, or a kind of point; without it, all charts.")] = None,
    *,
    touchpoint: Annotated[str, typer.Option(metavar="ID", help="Of a score: the touchpoint of the map.")] = "",
    need: Annotated[str, typer.Option(metavar="PATH", help="Of a point: the need that it is about.")] = "",
    as_of: AsOf = None,
    map_id: MapId = "",
    from_time: From = None,
    to_time: To = None,
    limit: Annotated[
        int,
        typer.Option(min=1, help="Of one chart: the newest days or weeks to list; those out of its limits always are."),
    ] = 20,
    svg: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw one chart into this file.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Also the charts that have too few answers for limits.")] = False,
    as_json: Json = False,
) -> None:
    """Show by control charts whether scores and points go on as they were, or left their limits."""
    if what is None:
        for given, option in ((touchpoint, "--touchpoint"), (need, "--need"), (svg, "--svg")):
            if given:
                raise typer.BadParameter("say what of it, such as csat or pain", param_hint=option)
        if from_time or to_time:
            raise typer.BadParameter("is for one chart: say which, such as csat or pain", param_hint="--from, --to")
        request_all = pb.ListControlChartsRequest(as_of=as_of, map_id=map_id, points=_COURSE)
        run(_charts(request_all, every=every, as_json=as_json))
        return
    metrics, kinds = show.names(Metric.DESCRIPTOR), show.names(PointKind.DESCRIPTOR)
    needed, given = ("--touchpoint", touchpoint) if what.value in metrics else ("--need", need)
    if not given:
        raise typer.BadParameter(f"{what.value} of what? say {needed}", param_hint=needed)
    if touchpoint and need:
        raise typer.BadParameter("a chart is of a touchpoint's score or about a need, not both", param_hint="--need")
    request = pb.GetControlChartRequest(
        as_of=as_of,
        map_id=map_id,
        touchpoint_id=touchpoint,
        need_path=need,
        metric=metrics.get(what.value, 0),
        kind=kinds.get(what.value, 0),
        to=to_time,
        **{"from": from_time},
    )
    run(_chart(request, limit, svg, as_json=as_json))


async def _chart(request: pb.GetControlChartRequest, limit: int, svg: Path | None, *, as_json: bool) -> None:
    async with clients.journey(Addresses.configured()) as journey:
        found = await journey.GetControlChart(request, timeout=DEADLINE_S)
    if svg:
        drawing.save(svg, controlchart.svg(found))
    if as_json:
        show.print_json(found)
        return
    out, drawn = show.console(), found.chart
    if svg:
        out.print(show.plain(f"{svg}: {drawn.name}, {show.count(len(drawn.points))} points"))
        return
    out.print(show.plain(drawn.name), _course(drawn, out.width))
    out.print(controlchart.in_words(drawn))
    if drawn.not_charted and controlchart.outside(drawn):
        out.print(
            "Since then it is charted anew: what came next, good or bad, only makes up a new baseline and is not"
            f" judged, until there is enough of it: {drawn.not_charted}."
        )
    day = show.name(pb.Period.DESCRIPTOR, drawn.subgroup)
    lines = show.table(
        *(f"{day} from", "answers#", "value#", "centre#", "average#", "limits#", "signal", "state~"),
        spared=("signal", "average", "limits"),
    )
    for each in listed(drawn.points, limit):
        lines.add_row(
            show.when(getattr(each, "from"))[:10],
            show.count(each.answers),
            controlchart.unit(drawn, each.value) if each.HasField("value") else "",
            controlchart.unit(drawn, each.centre) if each.HasField("centre") else "",
            f"{each.average:+.2f}" if each.HasField("average") else "",
            f"±{each.limit:.2f}" if each.HasField("limit") else "",
            show.short_id(each.signal_id, out.width),
            _state(drawn, each),
        )
    out.print(show.filled(lines))
    out.print(controlchart.method_in_words(found.method))


def listed(points: Sequence[pb.ChartPoint], limit: int) -> list[pb.ChartPoint]:
    """Return the newest, and before them those out of their limits, which the words above are about."""
    newest = len(points) - limit
    return [each for n, each in enumerate(points) if n >= newest or each.state == pb.CHART_STATE_OUTSIDE]


async def _charts(request: pb.ListControlChartsRequest, *, every: bool, as_json: bool) -> None:
    async with clients.journey(Addresses.configured()) as journey:
        found = await journey.ListControlCharts(request, timeout=DEADLINE_S)
    if as_json:
        show.print_json(found)
        return
    out = show.console()
    charted = [each for each in found.charts if every or not each.not_charted or controlchart.outside(each)]
    out.print(show.filled(_chart_table(charted, out.width)))
    if left := len(found.charts) - len(charted):
        out.print(f"{show.count(left)} more have too few answers for limits: --all shows them, and what they lack")
    out.print(controlchart.method_in_words(found.method))


def _chart_table(charts: Sequence[pb.ControlChart], width: int) -> Table:
    lines = show.table(
        "chart~", "touchpoint or need~", "by", "course", "centre#", "last#", "state~", spared=("by", "centre", "last")
    )
    for each in charts:
        judged = [point for point in each.points if point.state != pb.CHART_STATE_GAP]
        last = judged[-1] if judged else pb.ChartPoint()
        out = controlchart.outside(each)
        state = _state(each, out[-1]) if out else each.not_charted or _state(each, last)
        lines.add_row(
            show.plain(each.name),
            show.plain(each.touchpoint_id or each.need_path),
            show.name(pb.Period.DESCRIPTOR, each.subgroup),
            _course(each, width),
            controlchart.unit(each, last.centre) if last.HasField("centre") else "",
            controlchart.unit(each, last.value) if last.HasField("value") else "",
            state,
        )
    return lines


def _course(drawn: pb.ControlChart, width: int) -> str:
    """Return the last values as blocks between the lowest and the highest of them; a gap stays empty."""
    newest = drawn.points[-(_COURSE if width >= show.ROOM_FOR_IDS else _SHORT_COURSE) :]
    values = [each.value for each in newest if each.state != pb.CHART_STATE_GAP]
    if not values:
        return ""
    low, high = min(values), max(*values, min(values) + 1e-9)
    return "".join(
        " " if each.state == pb.CHART_STATE_GAP else show.sparkline([each.value], low, high) for each in newest
    )


def _state(drawn: pb.ControlChart, point: pb.ChartPoint) -> Text:
    if point.state != pb.CHART_STATE_OUTSIDE:
        return Text(controlchart.STATES.get(point.state, ""))
    better = controlchart.is_better(drawn, point)
    when = show.when(getattr(point, "from"))[:10]
    return Text(f"{'better' if better else 'worse'}: out of the limits {when}", style="green" if better else "red")
