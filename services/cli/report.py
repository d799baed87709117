"""How things stand, on one screen: `report`."""

from dataclasses import dataclass
from typing import Any

from google.protobuf.message import Message
from rich.console import Console
from rich.text import Text

from recorrido.actions.v1 import actions_service_pb2 as actions_pb
from recorrido.actions.v1.action_pb2 import ActionKind, ActionState
from recorrido.inference.v1.analysis_pb2 import PointKind
from recorrido.journey.v1 import journey_service_pb2 as pb
from services.cli import clients, show
from services.cli.clients import DEADLINE_S, Addresses
from services.cli.journeys import overview_table, point_table, unknown_needs
from services.cli.options import Json, run

_POINTS = 8
_RECOVERIES = 5


@dataclass(frozen=True, slots=True)
class Report:
    overview: pb.GetOverviewResponse
    scores: pb.GetScoresResponse
    pains: pb.ListPointsResponse
    recoveries: actions_pb.ListActionsResponse


async def read(addresses: Addresses) -> Report:
    """Ask the services.

    Raises:
        CommandError: one of them does not answer.
    """
    async with clients.journey(addresses) as journey:
        overview = await journey.GetOverview(pb.GetOverviewRequest(), timeout=DEADLINE_S)
        scores = await journey.GetScores(pb.GetScoresRequest(), timeout=DEADLINE_S)
        pains = await journey.ListPoints(
            pb.ListPointsRequest(kind=PointKind.POINT_KIND_PAIN, limit=_POINTS), timeout=DEADLINE_S
        )
    async with clients.actions(addresses) as actions:
        recoveries = await actions.ListActions(
            actions_pb.ListActionsRequest(
                kind=ActionKind.ACTION_KIND_RECOVERY, state=ActionState.ACTION_STATE_OPEN, page_size=_RECOVERIES
            ),
            timeout=DEADLINE_S,
        )
    return Report(overview, scores, pains, recoveries)


def show_report(found: Report, addresses: Addresses, out: Console) -> None:
    out.rule(Text("Recorrido", style="bold"), align="left")
    out.print(overview_table(found.overview))
    # Only the scores: how many there are of each is above, and on its own page.
    lines = show.table(show.SCORE_COLUMNS[0], *show.SCORE_COLUMNS[3:], title="Scores")
    lines.add_row("all", *show.scores(found.scores.total)[2:], style="bold")
    for each in found.scores.touchpoints:
        if each.scores.nps.count or each.scores.csat.count or each.scores.ces.count:
            lines.add_row(show.plain(each.name), *show.scores(each.scores)[2:])
    out.print(lines)
    out.print(point_table(found.pains, "Top pain points"))
    for line in unknown_needs(found.pains):
        out.print(line)
    total = show.count(found.recoveries.total)
    recoveries = show.table(
        "opened (UTC)", "customer", "what to make good~", title=f"Open recoveries: {total}, the newest"
    )
    for action in found.recoveries.actions:
        recoveries.add_row(show.when(action.opened_at), show.plain(action.customer_id), show.title(action))
    out.print(recoveries)
    show_addresses(addresses, out)


def show_addresses(addresses: Addresses, out: Console) -> None:
    lines = show.table("", "", title="Where to call")
    for name in ("ingest", "inference", "journey", "actions"):
        lines.add_row(f"{name} (gRPC)", getattr(addresses, name))
    lines.add_row("events (NATS)", addresses.nats_url)
    lines.add_row("event store", addresses.eventstore_uri)
    out.print(lines)


def report(*, as_json: Json = False) -> None:
    """Show customers, interactions, scores, top pain points, open recoveries and where to call."""
    run(_report(as_json=as_json))


async def _report(*, as_json: bool) -> None:
    addresses = Addresses.configured()
    found = await read(addresses)
    if not as_json:
        show_report(found, addresses, show.console())
        return
    parts: dict[str, Message] = {
        "overview": found.overview,
        "scores": found.scores,
        "pains": found.pains,
        "openRecoveries": found.recoveries,
    }
    content: dict[str, Any] = {key: show.dictionary(part) for key, part in parts.items()}
    show.print_json(content)
