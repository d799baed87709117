"""Where customers and touchpoints stand: `customer`, `watch`, `scores`, `points`, `ladder`, `signals`, `overview`."""

import itertools
from collections.abc import Iterator, Sequence
from enum import StrEnum
from typing import Annotated, Any

import grpc
import typer
from google.protobuf.timestamp_pb2 import Timestamp
from rich.table import Table
from rich.text import Text

from recorrido.actions.v1.action_pb2 import ActionState
from recorrido.inference.v1.analysis_pb2 import PointKind
from recorrido.ingest.v1.interaction_pb2 import Channel, CustomerKind, Outcome
from recorrido.journey.v1 import journey_service_pb2 as pb
from recorrido.journey.v1.journey_map_pb2 import LoyaltyLevel, Metric
from services.cli import clients, naming, show
from services.cli.clients import DEADLINE_S, Addresses
from services.cli.options import AsOf, From, Json, Limit, MapId, To, follow, run

_PAGE = 1000
#: The last moments, visits to stages and points that one line has room for.
_CURVE = 40
_STAGES = 8
_POINTS = 5


class Point(StrEnum):
    PAIN = "pain"
    ITCH = "itch"
    DELIGHT = "delight"


def customer(
    customer_id: Annotated[str, typer.Argument(metavar="ID", help="The customer's own id, or that of an identity.")],
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
        Text(kind, style="bold"), show.plain(found.customer_id), f"· {show.counted(found.total_entries, 'interaction')}"
    )
    out.print(show.filled(_about(found)))
    out.print(show.filled(_timeline(found)))
    if len(found.entries) < found.total_entries:
        out.print(f"the first {show.count(len(found.entries))} are shown; --limit shows more")


def _about(found: pb.GetCustomerJourneyResponse) -> Table:
    lines = show.table("", "~")

    def tell(name: str, text: str) -> None:
        if text:
            lines.add_row(name, show.plain(text))

    tell("persona", found.persona.name)
    tell("loyalty", _loyalty(found.loyalty))
    felt = found.experience
    if felt.HasField("lasting_impression"):
        curve = show.sparkline([moment.value for moment in felt.moments[-_CURVE:]], -1, 1)
        peak, end = (f"{each.value:+.2f} at {each.touchpoint_name}" for each in (felt.peak, felt.end))
        lines.add_row("experience", f"{curve}  lasting impression {felt.lasting_impression:+.2f}")
        tell("", f"peak {peak}, end {end}")
    path = [f"{each.stage_name}{' again' if each.re_entry else ''}" for each in found.stage_path]
    tell("stages", " → ".join(path[-_STAGES:]))
    reached = sum(1 for each in found.episodes if each.goal_ids)
    lines.add_row("episodes", f"{show.count(len(found.episodes))}, {show.count(reached)} of them reached a goal")
    tell("spent", ", ".join(f"{each.amount} {each.currency_code}" for each in found.spent))
    if found.HasField("share_of_wallet"):
        lines.add_row("share of wallet", f"{100 * found.share_of_wallet.share:.0f} %")
    told = [f"{show.point(each.kind)} {each.need_path or each.touchpoint_name}" for each in found.points[:_POINTS]]
    tell("points", ", ".join(told))
    tell("signals", ", ".join(map(_signal, found.signals[:_POINTS])))
    tell("actions", ", ".join(_action(each, found.signals) for each in found.actions[:_POINTS]))
    tell("recorded under", ", ".join(found.customer_ids[1:]))
    return lines


def _action(action: pb.CustomerAction, signals: Sequence[pb.Signal]) -> str:
    title = action.title
    for each in signals:
        if each.signal_id == action.signal_id and each.touchpoint_name:
            title = show.titled(title, each.touchpoint, each.touchpoint_name)
    return f"{title} ({show.name(ActionState.DESCRIPTOR, action.state)})"


def _signal(found: pb.Signal) -> str:
    return found.rule.replace("_", " ") + (
        f" at {found.touchpoint_name or found.touchpoint}" if found.touchpoint else ""
    )


def _loyalty(found: pb.Loyalty) -> str:
    level = show.name(LoyaltyLevel.DESCRIPTOR, found.level).removeprefix("loyalty level ") or "no rule applies"
    return f"{level}: {'; '.join(found.reasons)}" if found.reasons else level


def watch(
    customer_id: Annotated[str, typer.Argument(metavar="ID", help="The customer's own id, or that of an identity.")],
    *,
    map_id: MapId = "",
    count: Annotated[int, typer.Option(min=0, help="End after so many updates; 0 goes on until Ctrl-C.")] = 0,
    as_json: Json = False,
) -> None:
    """Show a customer's newest interactions, and each that comes or changes."""
    follow(_watch(pb.WatchCustomerJourneyRequest(customer_id=customer_id, map_id=map_id), count, as_json=as_json))


async def _watch(request: pb.WatchCustomerJourneyRequest, count: int, *, as_json: bool) -> None:
    out = show.console()
    updates = 0
    async with clients.journey(Addresses.configured()) as journey:
        known = pb.GetCustomerJourneyRequest(customer_id=request.customer_id, map_id=request.map_id, page_size=1)
        try:
            await journey.GetCustomerJourney(known)
        except grpc.aio.AioRpcError as error:
            if error.code() != grpc.StatusCode.NOT_FOUND:
                raise
            # One who is still to come may be watched too; but a misspelt id must not look like silence.
            show.console(stderr=True).print(
                f"note: nothing is known of {request.customer_id!r} yet; waiting for what comes, Ctrl-C stops",
                soft_wrap=True,
            )
        async for update in journey.WatchCustomerJourney(request):
            if as_json:
                show.print_json(update)
            elif not update.HasField("loyalty"):
                out.print(show.plain(f"Nothing is known of {request.customer_id!r} any more."))
            else:
                out.print(show.plain(_loyalty(update.loyalty)))
                out.print(show.filled(_timeline(update)))
            updates += 1
            if updates == count:
                return


def _timeline(found: pb.GetCustomerJourneyResponse | pb.WatchCustomerJourneyResponse) -> Table:
    lines = show.table(
        *("when (UTC)", "stage", "touchpoint~", "channel", "outcome", "rating", "point", "need~", "words~"),
        spared=("channel", "stage", "outcome", "need"),
    )
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


class Group(StrEnum):
    TOUCHPOINT = "touchpoint"
    STAGE = "stage"
    CHANNEL = "channel"
    PERSONA = "persona"
    NEED = "need"
    SOURCE = "source"


class Every(StrEnum):
    DAY = "day"
    WEEK = "week"
    MONTH = "month"
    QUARTER = "quarter"
    YEAR = "year"


Per = Annotated[Every | None, typer.Option("--per", help="A line per period; gaps stay gaps.")]
Persona = Annotated[str, typer.Option(metavar="ID", help="Only customers of this persona.")]
Stage = Annotated[str, typer.Option(metavar="ID", help="Only this stage.")]
Touchpoint = Annotated[str, typer.Option(metavar="ID", help="Only this touchpoint.")]
Need = Annotated[str, typer.Option(metavar="PATH", help="Only what tells of this need, or of one within it.")]
Source = Annotated[str, typer.Option(metavar="NAME", help="Only what this source recorded.")]
OnChannel = Annotated[str, typer.Option("--channel", metavar="NAME", help="Only this channel, such as web.")]


def _selection(  # noqa: PLR0917 - one per option
    from_time: Timestamp | None, to_time: Timestamp | None, persona: str, stage: str, touchpoint: str,
    need: str, source: str, channel: str,
) -> pb.Selection:  # fmt: skip
    channels = show.names(Channel.DESCRIPTOR)
    if channel and channel not in channels:
        raise typer.BadParameter(f"{channel!r} is no channel; there are {', '.join(channels)}")
    return pb.Selection(
        to=to_time,
        persona_id=persona,
        stage_id=stage,
        touchpoint_id=touchpoint,
        need_path=need,
        source=source,
        channel=channels.get(channel, Channel.CHANNEL_UNSPECIFIED),
        **{"from": from_time},
    )


def scores(
    *,
    as_of: AsOf = None,
    map_id: MapId = "",
    from_time: From = None,
    to_time: To = None,
    by: Annotated[list[Group] | None, typer.Option(help="A line for each; can be given several times.")] = None,
    per: Per = None,
    persona: Persona = "",
    stage: Stage = "",
    touchpoint: Touchpoint = "",
    need: Need = "",
    source: Source = "",
    channel: OnChannel = "",
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many groups at most.")] = 1_000,
    as_json: Json = False,
) -> None:
    """Show NPS, CSAT and CES in total and for each touchpoint, or by what is asked, with answers and intervals."""
    groups, periods = show.names(pb.Grouping.DESCRIPTOR), show.names(pb.Period.DESCRIPTOR)
    request = pb.GetScoresRequest(
        as_of=as_of,
        map_id=map_id,
        selection=_selection(from_time, to_time, persona, stage, touchpoint, need, source, channel),
        group_by=[groups[each.value] for each in by or []],
        period=periods[per.value] if per else pb.PERIOD_UNSPECIFIED,
        limit=limit,
    )
    run(_scores(request, as_json=as_json))


async def _scores(request: pb.GetScoresRequest, *, as_json: bool) -> None:
    async with clients.journey(Addresses.configured()) as journey:
        found = await journey.GetScores(request, timeout=DEADLINE_S)
    if not found.total.interactions:
        await naming.check_selection(Addresses.configured(), request.selection, request.map_id)
    if as_json:
        show.print_json(found)
        return
    show.note_if_nothing_was_recorded(_as_of(request), anything=bool(found.total.interactions))
    out = show.console()
    if request.group_by or request.period:
        out.print(show.filled(_group_table(found, request)))
        if found.left_out:
            out.print(f"and {show.count(found.left_out)} groups of fewer interactions; --limit shows more")
        return
    lines = show.table(show.SCORE_COLUMNS[0], "id", *show.SCORE_COLUMNS[1:], *_INTERVALS, EXPECTED, spared=_SPARED)
    lines.add_row("all", "", *_scored(found.total), "", style="bold")
    for each in found.touchpoints:
        # What the options hid is not what is missing there.
        if _chosen(request.selection) and not each.scores.interactions:
            continue
        title = each.name if each.touchpoint_id else f"{each.name} (not on the map)"
        lines.add_row(show.plain(title), each.touchpoint_id, *_scored(each.scores), _expected(each, request.selection))
    out.print(show.filled(lines))


#: What is, of what the map expects.
EXPECTED = "of what is expected~"
#: Of 95 %.
_INTERVALS = ("NPS 95 %#", "CSAT 95 %#", "CES 95 %#")
_SPARED = (
    "id",
    "customers",
    *(each.rstrip("#") for each in reversed(_INTERVALS)),
    EXPECTED.rstrip("~"),
    "interactions",
)


def _as_of(request: Any) -> Timestamp | None:
    return request.as_of if request.HasField("as_of") else None


def _scored(found: pb.Scores) -> list[str]:
    """Return the cells of one line of scores but the first, and those of its intervals."""
    rated = ((found.nps, "+.0f"), (found.csat, ".0f"), (found.ces, ".0f"))
    return [
        *show.scores(found),
        *(f"{r.interval.low:{unit}} to {r.interval.high:{unit}}" if r.count else "" for r, unit in rated),
    ]


def _chosen(selection: pb.Selection) -> set[str]:
    """Return by what some of the interactions were chosen, but for the time: of a time it is told what is silent."""
    return {field.name for field, _ in selection.ListFields()} - {"from", "to"}


def _expected(found: pb.TouchpointScores | pb.ScoreGroup, selection: pb.Selection) -> Text:
    # Where a part of a touchpoint was chosen, the rest of it may have been asked.
    part = _chosen(selection) - {"stage_id", "touchpoint_id"}
    told = [e for e in found.expected if not part or e.HasField("value")]
    return show.plain(", ".join(show.expected(told)))


def _group_table(found: pb.GetScoresResponse, request: pb.GetScoresRequest) -> Table:
    names = [show.name(pb.Grouping.DESCRIPTOR, each) for each in request.group_by]
    keys = [column for name in names for column in (f"{name}~", *(["id"] if name in _WITH_IDS else []))]
    period = [f"{show.name(pb.Period.DESCRIPTOR, request.period)} from"] if request.period else []
    lines = show.table(*keys, *period, *show.SCORE_COLUMNS[1:], *_INTERVALS, EXPECTED, spared=_SPARED)
    for each in found.groups:
        start = [f"{each.period_start.ToDatetime():%Y-%m-%d}"] if request.period else []
        told: list[Text | str] = []
        for by, name, key in zip(names, each.names, each.keys, strict=True):
            told += [show.plain(name or "none"), *([key] if by in _WITH_IDS else [])]
        lines.add_row(*told, *start, *_scored(each.scores), _expected(each, request.selection))
    return lines


#: What has an id beside its name, which the options take.
_WITH_IDS = frozenset({Group.TOUCHPOINT.value, Group.STAGE.value, Group.PERSONA.value})


def points(
    *,
    kind: Annotated[Point | None, typer.Option(help="Only this kind.")] = None,
    as_of: AsOf = None,
    map_id: MapId = "",
    from_time: From = None,
    to_time: To = None,
    persona: Persona = "",
    stage: Stage = "",
    touchpoint: Touchpoint = "",
    need: Need = "",
    source: Source = "",
    channel: OnChannel = "",
    trend_days: Annotated[int, typer.Option(min=0, help="Days that the trend compares; 0 means 30.")] = 0,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many of each kind at most.")] = 20,
    as_json: Json = False,
) -> None:
    """Show what hurts, then what is wished for, then what delights, each by customers; and what moves the scores."""
    request = pb.ListPointsRequest(
        as_of=as_of,
        map_id=map_id,
        limit=limit,
        trend_days=trend_days,
        selection=_selection(from_time, to_time, persona, stage, touchpoint, need, source, channel),
    )
    run(_points(request, [kind] if kind else list(Point), as_json=as_json))


async def _points(request: pb.ListPointsRequest, kinds: list[Point], *, as_json: bool) -> None:
    numbers = show.names(PointKind.DESCRIPTOR)
    found = pb.ListPointsResponse()
    async with clients.journey(Addresses.configured()) as journey:
        for kind in kinds:
            request.kind = numbers[kind.value]
            page = await journey.ListPoints(request, timeout=DEADLINE_S)
            points, unknown = [*found.points, *page.points], [*found.unknown, *page.unknown]
            # All else is the same whatever the kind.
            found.CopyFrom(page)
            del found.points[:], found.unknown[:]
            found.points.extend(points)
            found.unknown.extend(unknown)
    if not found.points:
        await naming.check_selection(Addresses.configured(), request.selection, request.map_id)
    if as_json:
        show.print_json(found)
        return
    show.note_if_nothing_was_recorded(_as_of(request), anything=bool(found.points))
    out = show.console()
    out.print(show.filled(point_table(found)))
    for line in unknown_needs(found):
        out.print(line)
    if found.drivers:
        out.print(_driver_table(found))


def _driver_table(found: pb.ListPointsResponse) -> Table:
    lines = show.table(
        "need~",
        "metric",
        "difference#",
        "effect (g)#",
        "95 %",
        "answers with#",
        "without#",
        title="What moves the scores",
        spared=("effect (g)",),
    )
    for each in found.drivers:
        lines.add_row(
            each.need_path,
            show.name(Metric.DESCRIPTOR, each.metric).upper(),
            f"{each.difference:+.2f}",
            f"{each.effect:+.2f}",
            f"{each.interval.low:+.2f} to {each.interval.high:+.2f}",
            show.count(each.with_need),
            show.count(each.without_need),
        )
    return lines


def _trend(point: pb.Point) -> str:
    """Return an arrow where the change is more than chance, and the change in percentage points."""
    if not point.HasField("trend"):
        return ""
    trend = point.trend
    arrow = "↑" if trend.interval.low > 0 else "↓" if trend.interval.high < 0 else " "
    return f"{arrow}{100 * (trend.since - trend.before):+.1f}"


def unknown_needs(found: pb.ListPointsResponse) -> Iterator[str]:
    """Return, in words, how many told of something whose need is not known."""
    for each in found.unknown:
        mentions = show.counted(each.mentions, "mention")
        kind = show.name(PointKind.DESCRIPTOR, each.kind)
        told = f"{show.counted(each.customers, 'customer')} ({100 * each.share:.1f} %) in {mentions}"
        yield f"{kind}, need not known: {told}"


def point_table(found: pb.ListPointsResponse, title: str = "") -> Table:
    """Return the points whose need is known, one a line."""
    lines = show.table(
        "point",
        "need~",
        "touchpoint~",
        "id",
        "customers#",
        "share#",
        "trend#",
        "severity#",
        "mentions#",
        "at stake#",
        "an example~",
        title=title,
        spared=("id", "mentions", "severity", "trend", "share", "at stake"),
    )
    for each in found.points:
        if not each.need_path:
            continue
        lines.add_row(
            show.point(each.kind),
            each.need_path,
            show.plain(each.touchpoint_name or each.touchpoint_id),
            each.touchpoint_id,
            show.count(each.customers),
            f"{100 * each.share:.1f} %",
            _trend(each),
            f"{each.severity:.2f}",
            show.count(each.mentions),
            ", ".join(f"{float(amount.amount):,.0f} {amount.currency_code}" for amount in each.money_at_stake),
            show.plain(each.examples[0]) if each.examples else "",
        )
    return lines


class Rule(StrEnum):
    """What raises signals, as docs/journey.md tells."""

    BAD_MOMENT = "bad_moment"
    RECOVERY_FAILED = "recovery_failed"
    ABOUT_TO_FALL = "about_to_fall"
    TOUCHPOINT_SILENT = "touchpoint_silent"
    COVERAGE_LOST = "coverage_lost"
    SCORE_WORSENED = "score_worsened"
    SCORE_IMPROVED = "score_improved"
    POINT_WORSENED = "point_worsened"
    POINT_IMPROVED = "point_improved"


def signals(
    *,
    customer_id: Annotated[str, typer.Option("--customer", metavar="ID", help="Only those of this customer.")] = "",
    rule: Annotated[Rule | None, typer.Option(help="Only those of this rule.")] = None,
    as_of: AsOf = None,
    limit: Limit = 50,
    as_json: Json = False,
) -> None:
    """Show what somebody should look at, what was raised last first."""
    run(_signals(customer_id, rule.value if rule else "", as_of, limit, as_json=as_json))


async def _signals(customer_id: str, rule: str, as_of: Timestamp | None, limit: int, *, as_json: bool) -> None:
    found = pb.ListSignalsResponse()
    async with clients.journey(Addresses.configured()) as journey:
        while True:
            page = await journey.ListSignals(
                pb.ListSignalsRequest(
                    customer_id=customer_id,
                    rule=rule,
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
    if customer_id and not found.signals:
        await naming.check_customer(Addresses.configured(), customer_id)
    if as_json:
        show.print_json(found)
        return
    show.note_if_nothing_was_recorded(as_of, anything=bool(found.signals))
    out = show.console()
    out.print(_signal_table(found, out.width) if found.signals else "none")


def _signal_table(found: pb.ListSignalsResponse, width: int) -> Table:
    # They are in the order in which they were raised; what it is about, the reasons tell, too.
    lines = show.table(
        *("raised (UTC)", "happened (UTC)", "signal", "customer~", "touchpoint~", "need~", "why~"),
        spared=("happened (UTC)", "need", "signal"),
    )
    for each in found.signals:
        lines.add_row(
            show.when(each.raised_at),
            show.when(each.occurred_at),
            show.short_id(each.signal_id, width),
            # Whole: it goes on in the next line, and no command takes it in short.
            show.plain(each.customer_id),
            show.plain(show.place(each.touchpoint_name, each.touchpoint)),
            show.plain(each.need_path),
            show.plain("; ".join(each.reasons)),
        )
    return lines


def ladder(
    *,
    as_of: AsOf = None,
    map_id: MapId = "",
    from_time: From = None,
    to_time: To = None,
    per: Per = None,
    persona: Persona = "",
    as_json: Json = False,
) -> None:
    """Show how many customers are at risk, satisfied, loyal and advocates, who rose and fell, and who was won back."""
    periods = show.names(pb.Period.DESCRIPTOR)
    request = pb.GetLoyaltyLadderRequest(
        as_of=as_of,
        map_id=map_id,
        to=to_time,
        period=periods[per.value] if per else pb.PERIOD_UNSPECIFIED,
        persona_id=persona,
    )
    if from_time is not None:
        getattr(request, "from").CopyFrom(from_time)
    run(_ladder(request, as_json=as_json))


async def _ladder(request: pb.GetLoyaltyLadderRequest, *, as_json: bool) -> None:
    async with clients.journey(Addresses.configured()) as journey:
        found = await journey.GetLoyaltyLadder(request, timeout=DEADLINE_S)
    if as_json:
        show.print_json(found)
        return
    show.note_if_nothing_was_recorded(_as_of(request), anything=any(each.customers for each in found.levels))
    out = show.console()
    # What was before anybody came is left out, and what is since nobody came or moved unless it is asked for.
    empty = itertools.takewhile(lambda period: not any(each.customers for each in period.levels), found.periods)
    first, end = len(list(empty)), len(found.periods)
    while end > first and not request.HasField("to") and not _anything_happened(found.periods, end - 1):
        end -= 1
    periods = found.periods[first:end]
    lines = show.table("level", "customers#", "share#", "over time")
    for each in reversed(found.levels):
        course = [period.levels[each.level].customers for period in periods]
        lines.add_row(
            show.name(LoyaltyLevel.DESCRIPTOR, each.level) or "no rule applies",
            show.count(each.customers),
            f"{100 * each.share:.1f} %" if each.level else "",
            show.sparkline(course, 0, max([*course, 1])),
        )
    out.print(lines)
    moves = show.table("from", "to", "rose#", "rose at~", "fell#", "fell at~", spared=("to",))
    for period in periods:
        since, until = (f"{time.ToDatetime():%Y-%m-%d}" for time in (getattr(period, "from"), period.to))
        risen, fallen = (
            ", ".join(f"{each.name} ({show.count(each.customers)})" for each in places[:3])
            for places in (period.rose_at, period.fell_at)
        )
        moves.add_row(
            since, until, show.count(period.rose), show.plain(risen), show.count(period.fell), show.plain(fallen)
        )
    out.print(show.filled(moves))
    if periods and end < len(found.periods):
        out.print(f"nobody came or moved since {periods[-1].to.ToDatetime():%Y-%m-%d}; --to shows the time since")
    won = found.recovery
    if won.had_bad_moment:
        soon = f", half of them within {show.age(3600 * won.median_hours)}" if won.recovered else ""
        out.print(
            f"service recovery: {show.count(won.recovered)} of {show.count(won.had_bad_moment)} customers with a bad"
            f" moment ended glad, {100 * won.rate:.0f} %"
            f" ({100 * won.interval.low:.0f} to {100 * won.interval.high:.0f} %){soon}"
        )
    words = found.word_of_mouth
    out.print(
        f"word of mouth: {show.count(words.given)} recommendations given by {show.count(words.recommending_customers)}"
        f" customers, {show.count(words.recommended_customers)} customers came by one"
    )


def _anything_happened(periods: Sequence[pb.LadderPeriod], number: int) -> bool:
    """Whether in a period anybody came, or moved to another level."""
    now, before = periods[number], periods[number - 1] if number else pb.LadderPeriod()
    standing, stood = (sum(each.customers for each in period.levels) for period in (now, before))
    return bool(now.transitions) or standing != stood


def rebuild(
    model: Annotated[str, typer.Argument(metavar="READ-MODEL", help="Which one; there is journey.")] = "journey",
    *,
    as_json: Json = False,
) -> None:
    """Build a read model from the history, beside the one in use, and put it in its place."""
    if model != "journey":
        raise typer.BadParameter(f"{model!r} is no read model that can be rebuilt; there is journey")
    run(_rebuild(as_json=as_json))


async def _rebuild(*, as_json: bool) -> None:
    out = show.console(stderr=True)
    last = pb.RebuildReadModelResponse()
    async with clients.journey(Addresses.configured()) as journey:
        with out.status("rebuilding") as status:
            async for last in journey.RebuildReadModel(pb.RebuildReadModelRequest()):
                part = last.position / max(last.head, 1)
                status.update(f"rebuilding: {100 * part:.0f} %, {show.count(last.events)} events")
    if as_json:
        show.print_json(last)
    else:
        show.console().print(f"rebuilt from {show.count(last.events)} events, and in use")


def overview(*, as_of: AsOf = None, as_json: Json = False) -> None:
    """Show what is recorded, understood and placed so far."""
    run(_overview(pb.GetOverviewRequest(as_of=as_of), as_json=as_json))


async def _overview(request: pb.GetOverviewRequest, *, as_json: bool) -> None:
    async with clients.journey(Addresses.configured()) as journey:
        found = await journey.GetOverview(request, timeout=DEADLINE_S)
    if as_json:
        show.print_json(found)
        return
    show.note_if_nothing_was_recorded(_as_of(request), anything=bool(found.interactions))
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
