"""How journeys really run, and what of the map is heard: `flow`, `coverage`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from google.protobuf.timestamp_pb2 import Timestamp
from rich.table import Table
from rich.text import Text

from recorrido.ingest.v1.interaction_pb2 import Channel, Outcome
from recorrido.journey.v1 import journey_service_pb2 as pb
from services.cli import clients, show
from services.cli.clients import DEADLINE_S, Addresses
from services.cli.options import AsOf, From, Json, MapId, To, moment, run, since, until
from services.cli.pictures import drawing, flowchart

OFF_MAP = "not on the map"


class Level(StrEnum):
    TOUCHPOINT = "touchpoint"
    STAGE = "stage"


class Case(StrEnum):
    EPISODE = "episode"
    CUSTOMER = "customer"


class Ending(StrEnum):
    GOAL = "goal"
    DROPPED_OFF = "dropped_off"
    OPEN = "open"
    NO_GOAL = "no_goal"


def flow(
    *,
    by: Annotated[Level, typer.Option(help="What a step is.")] = Level.TOUCHPOINT,
    case: Annotated[Case, typer.Option(help="What is followed from its beginning to its end.")] = Case.EPISODE,
    persona: Annotated[str, typer.Option(metavar="ID", help="Only customers of this persona.")] = "",
    touchpoint: Annotated[str, typer.Option(metavar="ID", help="Only cases that come by.")] = "",
    outcome: Annotated[str, typer.Option(metavar="NAME", help="Only cases with such an outcome: failed, late.")] = "",
    goal: Annotated[str, typer.Option(metavar="ID", help="Only cases that reached it.")] = "",
    ending: Annotated[Ending | None, typer.Option(help="Only cases that ended so.")] = None,
    from_time: Annotated[Timestamp | None, since("Only cases that began then.")] = None,
    to_time: Annotated[Timestamp | None, until("Only cases that began before.")] = None,
    compare_persona: Annotated[str, typer.Option(metavar="ID", help="Compare with this persona.")] = "",
    compare_from: Annotated[
        Timestamp | None, typer.Option(parser=moment, metavar="TIME", help="Compare with cases that began then.")
    ] = None,
    compare_to: Annotated[
        Timestamp | None, typer.Option(parser=moment, metavar="TIME", help="Compare with cases that began before.")
    ] = None,
    variants: Annotated[int, typer.Option(min=1, max=1000, help="The most frequent ways to name.")] = 10,
    as_of: AsOf = None,
    map_id: MapId = "",
    svg: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw it into this file.")] = None,
    as_json: Json = False,
) -> None:
    """Show what follows what over everyone, how long it takes, where journeys end and what happened then."""
    outcomes = show.names(Outcome.DESCRIPTOR)
    if outcome and outcome not in outcomes:
        raise typer.BadParameter(f"{outcome!r} is no outcome; there are {', '.join(outcomes)}", param_hint="--outcome")

    def filter_(persona_id: str, since: Timestamp | None, until: Timestamp | None) -> pb.FlowFilter:
        selection = pb.Selection(persona_id=persona_id, touchpoint_id=touchpoint, to=until, **{"from": since})  # type: ignore[arg-type]
        return pb.FlowFilter(
            selection=selection,
            outcome=outcomes.get(outcome, 0),
            goal_id=goal,
            ending=show.names(pb.FlowEnding.DESCRIPTOR).get(ending.value if ending else "", 0),
        )

    comparing = bool(compare_persona or compare_from or compare_to)
    request = pb.GetFlowRequest(
        as_of=as_of,
        map_id=map_id,
        level=show.names(pb.FlowLevel.DESCRIPTOR)[by.value],
        case=show.names(pb.FlowCase.DESCRIPTOR)[case.value],
        filter=filter_(persona, from_time, to_time),
        compare_with=filter_(compare_persona or persona, compare_from, compare_to) if comparing else None,
        variants=variants,
    )
    run(_flow(request, svg, as_json=as_json))


async def _flow(request: pb.GetFlowRequest, svg: Path | None, *, as_json: bool) -> None:
    async with clients.journey(Addresses.configured()) as journey:
        found = await journey.GetFlow(request, timeout=DEADLINE_S)
    if svg:
        drawing.save(svg, flowchart.svg(found))
    if as_json:
        show.print_json(found)
    elif svg:
        show.console().print(f"{svg}: the flow of {show.count(found.flow.cases)} cases")
    else:
        _print_flow(found)


def _print_flow(found: pb.GetFlowResponse) -> None:
    out, flow_ = show.console(), found.flow
    out.print(
        f"{show.count(flow_.cases)} cases of {show.count(flow_.customers)} customers:"
        f" {flowchart.endings(flow_, lambda count: show.part(count, flow_.cases))}"
    )
    if not flow_.cases:
        return
    if flow_.HasField("drop_off_rate"):
        out.print(f"{show.percent(flow_.drop_off_rate)} of those that set out for a goal and are over dropped off")
    out.print(f"half of them take {show.hours(flow_.median_hours)}, nine of ten at most {show.hours(flow_.p90_hours)}")
    out.print(_steps(flow_))
    out.print(_edges(flow_))
    ways = show.table("#", "#", "half take#", "way~", title=f"Ways: {show.count(flow_.different_variants)} different")
    for way in flow_.variants:
        names = [*way.names, *(["…"] if way.steps > len(way.names) else [])]
        ways.add_row(
            show.count(way.cases), show.percent(way.share), show.hours(way.median_hours), show.plain(" → ".join(names))
        )
    out.print(ways)
    if found.HasField("compared"):
        out.print(_changes(found))


def _steps(flow_: pb.Flow) -> Table:
    columns = ("cases#", "begin#", "end#", "again#", "came back#", "dropped off#", "returned later#", "felt#")
    lines = show.table(
        *("step~", "id"), *columns, spared=("id", "returned later", "came back", "dropped off", "again", "felt")
    )
    for step in flow_.steps:
        lost = step.drop_off
        lines.add_row(
            show.plain(step.name or OFF_MAP),
            step.id,
            f"{show.count(step.cases)} {show.percent(step.share)}",
            show.count(step.starts),
            show.count(step.ends),
            show.count(step.repeats),
            show.count(step.returning_cases),
            f"{show.count(lost.cases)} {show.percent(lost.share)}" if lost.cases else "",
            f"{show.count(lost.came_back)} in {show.hours(lost.median_hours)}" if lost.came_back else "",
            f"{step.experience.mean:+.2f} ({show.count(step.experience.count)})" if step.experience.count else "",
        )
    return lines


#: Lines of a terminal that people read.
_SHOWN = 25


def _edges(flow_: pb.Flow) -> Table:
    rest = len(flow_.edges) - _SHOWN
    title = f"What follows what ({rest} rarer ones: --json)" if rest > 0 else "What follows what"
    lines = show.table(
        "from~", "to~", "times#", "cases#", "half within#", "nine of ten within#", title=title, spared=("cases",)
    )
    for edge in flow_.edges[:_SHOWN]:
        lines.add_row(
            show.plain(edge.from_name),
            show.plain(edge.to_name),
            show.count(edge.count),
            f"{show.count(edge.cases)} {show.percent(edge.share)}",
            show.hours(edge.median_hours),
            show.hours(edge.p90_hours),
        )
    return lines


def _changes(found: pb.GetFlowResponse) -> Table:
    title = f"Compared with {show.count(found.compared.cases)} other cases (* clear: 95 %)"
    lines = show.table("from~", "to~", "here#", "there#", "difference#", "half within#", "there#", title=title)
    for each in found.changes[:_SHOWN]:
        difference = 100 * (each.share - each.compared_share)
        lines.add_row(
            show.plain(each.from_name),
            Text("dropped off", style="italic") if each.drop_off else show.plain(each.to_name),
            show.percent(each.share),
            show.percent(each.compared_share),
            f"{difference:+.1f}{' *' if each.significant else '  '}",
            "" if each.drop_off else show.hours(each.median_hours),
            "" if each.drop_off else show.hours(each.compared_median_hours),
        )
    return lines


def coverage(
    *,
    from_time: From = None,
    to_time: To = None,
    as_of: AsOf = None,
    map_id: MapId = "",
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Touchpoints on no map, at most.")] = 20,
    as_json: Json = False,
) -> None:
    """Show which touchpoints of the map are heard, which are silent, and which real ones are on no map."""
    request = pb.GetCoverageRequest(as_of=as_of, map_id=map_id, to=to_time, limit=limit, **{"from": from_time})
    run(_coverage(request, as_json=as_json))


async def _coverage(request: pb.GetCoverageRequest, *, as_json: bool) -> None:
    async with clients.journey(Addresses.configured()) as journey:
        found = await journey.GetCoverage(request, timeout=DEADLINE_S)
    if as_json:
        show.print_json(found)
        return
    out = show.console()
    for name, counts in (("touchpoints", found.all), ("moments of truth (★)", found.moments_of_truth)):
        unheard = counts.touchpoints - counts.heard - counts.silent
        out.print(
            f"{counts.heard} of {counts.touchpoints} {name} are heard, {unheard} unheard (something happens, and nobody"
            f" tells), {counts.silent} silent (nothing happens)"
        )
    out.print(f"{show.part(found.interactions_on_map, found.interactions)} interactions are on the map")
    if expected := found.all.met + found.all.missed + found.all.not_known:
        out.print(
            f"of {expected} scores that the map expects {found.all.met} are met, {found.all.missed} missed"
            f" and {found.all.not_known} not known with so few answers"
        )
    lines = show.table(
        *("stage~", "id", "touchpoint~", "id", "hearing", "★", "interactions#", "rated#", "verbatims#"),
        *("last heard", "of what is expected~", "owner~"),
        spared=("owner", "id", "last heard", "verbatims", "rated", "of what is expected"),
    )
    for each in found.touchpoints:
        hearing = show.name(pb.Hearing.DESCRIPTOR, each.hearing)
        lines.add_row(
            show.plain(each.stage_name),
            each.stage_id,
            show.plain(each.name),
            each.touchpoint_id,
            Text(hearing, style=_HEARING_STYLES.get(each.hearing, "")),
            "★" if each.moment_of_truth else "",
            show.count(each.interactions),
            show.count(each.rated),
            show.count(each.verbatims),
            show.when(each.last_heard_at),
            show.plain(", ".join(show.expected(each.expected))),
            show.plain(each.owner),
        )
    out.print(show.filled(lines))
    if found.off_map:
        rest = f" ({show.count(found.left_out)} more: --limit)" if found.left_out else ""
        others = show.table("source", "touchpoint", "channel", "interactions#", "last", title=f"On no map{rest}")
        for other in found.off_map:
            others.add_row(
                show.plain(other.source),
                show.plain(other.touchpoint),
                show.name(Channel.DESCRIPTOR, other.channel),
                show.count(other.interactions),
                show.when(other.last_at),
            )
        out.print(others)


_HEARING_STYLES: dict[int, str] = {
    pb.HEARING_HEARD: "green",
    pb.HEARING_UNHEARD: "yellow",
    pb.HEARING_SILENT: "dim",
}
