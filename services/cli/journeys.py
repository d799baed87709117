"""Where customers and touchpoints stand: `customer`, `scores`, `points`, `signals`, `overview`."""

from enum import StrEnum
from typing import Annotated

import typer
from google.protobuf.timestamp_pb2 import Timestamp
from rich.table import Table
from rich.text import Text

from recorrido.inference.v1.analysis_pb2 import PointKind
from recorrido.ingest.v1.interaction_pb2 import Channel, CustomerKind, Outcome
from recorrido.journey.v1 import journey_service_pb2 as pb
from services.cli import clients, show
from services.cli.clients import DEADLINE_S, Addresses
from services.cli.options import AsOf, From, Json, Limit, MapId, To, run

_PAGE = 1000


class Point(StrEnum):
    PAIN = "pain"
    ITCH = "itch"
    DELIGHT = "delight"


def customer(
    customer_id: Annotated[str, typer.Argument(metavar="ID")],
    *,
    as_of: AsOf = None,
    map_id: MapId = "",
    limit: Limit = 100,
    as_json: Json = False,
) -> None:
    """Show a customer's journey, in the order in which it happened."""
    run(_customer(customer_id, as_of, map_id, limit, as_json=as_json))


async def _customer(customer_id: str, as_of: Timestamp | None, map_id: str, limit: int, *, as_json: bool) -> None:
    found: pb.GetCustomerJourneyResponse | None = None
    async with clients.journey(Addresses.configured()) as journey:
        while found is None or (found.next_page_token and len(found.entries) < limit):
            page = await journey.GetCustomerJourney(
                pb.GetCustomerJourneyRequest(
                    customer_id=customer_id,
                    as_of=as_of,
                    map_id=map_id,
                    page_size=min(_PAGE, limit - (len(found.entries) if found else 0)),
                    page_token=found.next_page_token if found else "",
                ),
                timeout=DEADLINE_S,
            )
            if found is None:
                found = page
            else:
                found.entries.extend(page.entries)
                found.next_page_token = page.next_page_token
    if as_json:
        show.print_json(found)
        return
    out = show.console()
    kind = show.name(CustomerKind.DESCRIPTOR, found.kind) or "customer"
    out.print(
        Text(kind, style="bold"), show.plain(found.customer_id), f"· {show.count(found.total_entries)} interactions"
    )
    out.print(show.filled(_timeline(found)))
    if len(found.entries) < found.total_entries:
        out.print(f"the first {show.count(len(found.entries))} are shown; --limit shows more")


def _timeline(found: pb.GetCustomerJourneyResponse) -> Table:
    lines = show.table("when (UTC)", "stage", "touchpoint~", "channel", "outcome", "rating", "point", "need", "words~")
    for entry in found.entries:
        what = entry.interaction
        lines.add_row(
            show.when(entry.occurred_at),
            show.plain(entry.stage_name or "not on the map"),
            show.plain(entry.touchpoint_name or what.touchpoint),
            show.name(Channel.DESCRIPTOR, what.channel),
            show.name(Outcome.DESCRIPTOR, what.outcome),
            show.plain(show.ratings(what)),
            show.point(entry.analysis.point),
            show.plain(entry.analysis.need_path or entry.analysis_failure),
            show.plain(what.verbatim.text),
        )
    return lines


def scores(
    *,
    as_of: AsOf = None,
    map_id: MapId = "",
    from_time: From = None,
    to_time: To = None,
    as_json: Json = False,
) -> None:
    """Show NPS, CSAT and CES in total and for each touchpoint, with the number of answers."""
    request = pb.GetScoresRequest(
        as_of=as_of,
        map_id=map_id,
        selection=pb.Selection(to=to_time, **{"from": from_time}),  # type: ignore[arg-type]
    )
    run(_scores(request, as_json=as_json))


async def _scores(request: pb.GetScoresRequest, *, as_json: bool) -> None:
    async with clients.journey(Addresses.configured()) as journey:
        found = await journey.GetScores(request, timeout=DEADLINE_S)
    if as_json:
        show.print_json(found)
        return
    lines = show.table(*show.SCORE_COLUMNS)
    lines.add_row("all", *show.scores(found.total), style="bold")
    for each in found.touchpoints:
        title = each.name if each.touchpoint_id else f"{each.name} (not on the map)"
        lines.add_row(show.plain(title), *show.scores(each.scores))
    show.console().print(lines)


def points(
    *,
    kind: Annotated[Point | None, typer.Option(help="Only this kind.")] = None,
    as_of: AsOf = None,
    map_id: MapId = "",
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many at most.")] = 20,
    as_json: Json = False,
) -> None:
    """Show pain, itch and delight points, those of most customers first."""
    wanted = show.names(PointKind.DESCRIPTOR)[kind.value] if kind else PointKind.POINT_KIND_UNSPECIFIED
    run(_points(pb.ListPointsRequest(as_of=as_of, map_id=map_id, kind=wanted, limit=limit), as_json=as_json))


async def _points(request: pb.ListPointsRequest, *, as_json: bool) -> None:
    async with clients.journey(Addresses.configured()) as journey:
        found = await journey.ListPoints(request, timeout=DEADLINE_S)
    if as_json:
        show.print_json(found)
    else:
        show.console().print(point_table(found))


def point_table(found: pb.ListPointsResponse, title: str = "") -> Table:
    lines = show.table("point", "need~", "touchpoint~", "customers#", "share#", "mentions#", "an example~", title=title)
    for each in found.points:
        lines.add_row(
            show.point(each.kind),
            each.need_path or "not known",
            show.plain(each.touchpoint_name or each.touchpoint_id),
            show.count(each.customers),
            f"{100 * each.share:.1f} %",
            show.count(each.mentions),
            show.plain(each.examples[0]) if each.examples else "",
        )
    return lines


def signals(
    *,
    customer_id: Annotated[str, typer.Option("--customer", metavar="ID", help="Only those of this customer.")] = "",
    as_of: AsOf = None,
    limit: Limit = 50,
    as_json: Json = False,
) -> None:
    """Show what somebody should look at, what was raised last first."""
    run(_signals(customer_id, as_of, limit, as_json=as_json))


async def _signals(customer_id: str, as_of: Timestamp | None, limit: int, *, as_json: bool) -> None:
    found = pb.ListSignalsResponse()
    async with clients.journey(Addresses.configured()) as journey:
        while True:
            page = await journey.ListSignals(
                pb.ListSignalsRequest(
                    customer_id=customer_id,
                    as_of=as_of,
                    page_size=min(_PAGE, limit - len(found.signals)),
                    page_token=found.next_page_token,
                ),
                timeout=DEADLINE_S,
            )
            found.signals.extend(page.signals)
            found.next_page_token = page.next_page_token
            if not found.next_page_token or len(found.signals) >= limit:
                break
    if as_json:
        show.print_json(found)
        return
    out = show.console()
    out.print(_signal_table(found, out.width))


def _signal_table(found: pb.ListSignalsResponse, width: int) -> Table:
    wide = width >= show.ROOM_FOR_IDS
    # They are in the order in which they were raised; when it happened can be looked up.
    times = ("raised (UTC)", "happened (UTC)") if wide else ("raised (UTC)",)
    lines = show.table(*times, "customer~", "touchpoint~", "why~", "need~", "signal")
    *_, customer_id, touchpoint, _why, need, _signal = lines.columns
    if not wide:
        # The reasons have what room there is.
        for column in (customer_id, touchpoint, need):
            column.max_width = width // 8
    for each in found.signals:
        lines.add_row(
            *(show.when(time) for time in (each.raised_at, each.occurred_at)[: len(times)]),
            show.plain(show.short_id(each.customer_id, width)),
            show.plain(each.touchpoint),
            show.plain("; ".join(each.reasons)),
            show.plain(each.need_path),
            show.short_id(each.signal_id, width),
        )
    return lines


def overview(*, as_of: AsOf = None, as_json: Json = False) -> None:
    """Show what is recorded, understood and placed so far."""
    run(_overview(pb.GetOverviewRequest(as_of=as_of), as_json=as_json))


async def _overview(request: pb.GetOverviewRequest, *, as_json: bool) -> None:
    async with clients.journey(Addresses.configured()) as journey:
        found = await journey.GetOverview(request, timeout=DEADLINE_S)
    if as_json:
        show.print_json(found)
        return
    out = show.console()
    out.print(overview_table(found))
    if found.uncovered:
        lines = show.table("source", "touchpoint", "channel", "interactions#", title="Not on the map")
        for each in found.uncovered:
            lines.add_row(
                show.plain(each.source),
                show.plain(each.touchpoint),
                show.name(Channel.DESCRIPTOR, each.channel),
                show.count(each.interactions),
            )
        out.print(lines)


def overview_table(found: pb.GetOverviewResponse) -> Table:
    lines = show.table("", "#")
    lines.add_row("customers", show.count(found.customers))
    lines.add_row("interactions", show.count(found.interactions))
    lines.add_row("  not on the map", show.count(found.uncovered_interactions))
    lines.add_row("verbatims", show.count(found.verbatims))
    lines.add_row("  understood", show.count(found.analyzed))
    if found.analysis_failed:
        lines.add_row("  not understood", show.count(found.analysis_failed))
    lines.add_row("signals", show.count(found.signals))
    return lines
