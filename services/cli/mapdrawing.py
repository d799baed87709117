"""A journey map as a picture, with what really happens on it: `map --html FILE`, `map --svg FILE`."""

from pathlib import Path
from typing import Annotated

import typer
from google.protobuf.timestamp_pb2 import Timestamp

from recorrido.journey.v1 import journey_service_pb2 as pb
from services.cli import clients, show
from services.cli.clients import DEADLINE_S, Addresses
from services.cli.failures import CommandError
from services.cli.options import AsOf, From, MapId, To, run
from services.cli.pictures import drawing, mapchart

_POINTS = 1000


def draw(
    context: typer.Context,
    *,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw a map into this page.")] = None,
    svg: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw a map into this picture.")] = None,
    map_id: MapId = "",
    from_time: From = None,
    to_time: To = None,
    as_of: AsOf = None,
) -> None:
    """Journey maps: the journey as it is meant to be and, with --html or --svg, as it really is."""
    if context.invoked_subcommand is None:
        if not html and not svg:
            raise typer.BadParameter("say where to draw: --html FILE, --svg FILE", param_hint="--html")
        run(_draw(html, svg, map_id, (from_time, to_time), as_of))
    elif html or svg:
        raise typer.BadParameter(f"goes without {context.invoked_subcommand}", param_hint="--html, --svg")


async def _draw(
    html: Path | None,
    svg: Path | None,
    map_id: str,
    span: tuple[Timestamp | None, Timestamp | None],
    as_of: Timestamp | None,
) -> None:
    selection = pb.Selection(to=span[1], **{"from": span[0]})  # type: ignore[arg-type]
    async with clients.journey(Addresses.configured()) as journey:
        scores = await journey.GetScores(
            pb.GetScoresRequest(as_of=as_of, map_id=map_id, selection=selection), timeout=DEADLINE_S
        )
        if not scores.map_id:
            raise CommandError("no journey map is published; `recorrido map publish` does it")
        found = await journey.GetJourneyMap(
            pb.GetJourneyMapRequest(map_id=scores.map_id, version=scores.map_version), timeout=DEADLINE_S
        )
        # What follows is of the same map, also when another one is published meanwhile.
        one = scores.map_id
        covered = pb.GetCoverageRequest(as_of=as_of, map_id=one, to=span[1], **{"from": span[0]})  # type: ignore[arg-type]
        data = mapchart.MapData(
            found.published,
            scores,
            await journey.GetCoverage(covered, timeout=DEADLINE_S),
            await journey.ListPoints(
                pb.ListPointsRequest(as_of=as_of, map_id=one, limit=_POINTS, selection=selection), timeout=DEADLINE_S
            ),
            (
                await journey.GetFlow(
                    pb.GetFlowRequest(as_of=as_of, map_id=one, filter=pb.FlowFilter(selection=selection)),
                    timeout=DEADLINE_S,
                )
            ).flow,
        )
    told = f"{data.published.map.map_id}, version {data.published.version}"
    for path, text in ((html, mapchart.html), (svg, mapchart.svg)):
        if path:
            drawing.save(path, text(data))
            show.console().print(f"{path}: {told}, {show.count(scores.total.interactions)} interactions")
