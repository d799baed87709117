"""Why there is an action, and whether it helped: `explain` and `impact`."""

import textwrap
from collections.abc import Iterable, Mapping
from typing import Annotated

import typer
from rich.text import Text
from rich.tree import Tree

from recorrido.actions.v1 import explanation_service_pb2, impact_pb2, impact_service_pb2
from recorrido.actions.v1.action_pb2 import Target
from recorrido.actions.v1.explanation_service_pb2 import ExplainedEvent, ExplainedRole
from recorrido.actions.v1.explanation_service_pb2_grpc import ExplanationServiceStub
from recorrido.actions.v1.impact_service_pb2_grpc import ImpactServiceStub
from services.cli import clients, correct, naming, show
from services.cli.actions import Metric, whole
from services.cli.clients import DEADLINE_S, Addresses
from services.cli.options import Json, run

_STYLES = {
    impact_pb2.IMPACT_VERDICT_HELPED: "green",
    impact_pb2.IMPACT_VERDICT_GOT_WORSE: "red",
    impact_pb2.IMPACT_VERDICT_TOO_EARLY: "yellow",
}
#: A cause that many share has many customers, and the words of each are a call.
_CUSTOMERS_QUOTED = 10
_QUOTED = 240

ActionId = Annotated[str, typer.Argument(metavar="ACTION", callback=whole, help="The action; `actions list` tells it.")]


def impact(
    action_id: ActionId,
    *,
    metric: Annotated[Metric | None, typer.Option(help="Instead of the improvement's own target.")] = None,
    touchpoint: Annotated[str, typer.Option(help="With --metric: where.")] = "",
    need: Annotated[str, typer.Option(metavar="PATH", help="With --metric: about which need.")] = "",
    window_days: Annotated[int, typer.Option(min=7, max=366, help="How long before and after.")] = 28,
    against: Annotated[
        list[str] | None, typer.Option(help="Compare with this touchpoint, not with all others; may be repeated.")
    ] = None,
    alone: Annotated[bool, typer.Option("--alone", help="Do not compare.")] = False,
    map_id: Annotated[
        str, typer.Option("--map", metavar="ID", help="Whose touchpoints they are; without it, what the target says.")
    ] = "",
    as_json: Json = False,
) -> None:
    """Tell whether an improvement helped: before and after, and how sure that is."""
    if not metric and (touchpoint or need):
        raise typer.BadParameter("--touchpoint and --need go with --metric")
    request = impact_service_pb2.GetImpactRequest(
        action_id=action_id,
        target=Target(metric=metric.value, touchpoint=touchpoint, need_path=need) if metric else None,
        window_days=window_days,
        comparison_touchpoints=against or [],
        without_comparison=alone,
        map_id=map_id,
    )

    async def work() -> None:
        addresses = Addresses.configured()
        await naming.check(addresses, [touchpoint, *(against or ())], need)
        async with clients.channel("actions", addresses.actions) as channel:
            answer = await ImpactServiceStub(channel).GetImpact(request, timeout=DEADLINE_S)
        show.print_json(answer) if as_json else _tell_impact(answer.impact)

    run(work())


def _tell_impact(found: impact_pb2.Impact) -> None:
    out = show.console()
    out.print(Text(found.statement, style=_STYLES.get(found.verdict, "")), soft_wrap=True)
    if found.other_map_ids:
        # Which interactions are meant depends on the map.
        others = " and ".join(found.other_map_ids)
        out.print(
            show.plain(
                f"{found.target.touchpoint} is what the map {found.target.map_id} places there;"
                f" {others} would place others there: --map"
            ),
            soft_wrap=True,
        )
    lines = show.table("", "from (UTC)", "to (UTC)", "n#", "mean#", "elsewhere n#", "elsewhere#")
    for name, since, until, sample, other in (
        ("before", found.before_from, found.before_to, found.before, found.comparison_before),
        ("after", found.after_from, found.after_to, found.after, found.comparison_after),
    ):
        if since.ToNanoseconds() >= until.ToNanoseconds():
            continue  # It is still to come.
        elsewhere = (show.count(other.count), f"{other.mean:.2f}") if other.count else ("", "")
        mean = f"{sample.mean:.2f}" if sample.count else ""
        lines.add_row(name, show.when(since), show.when(until), show.count(sample.count), mean, *elsewhere)
    out.print(show.filled(lines))


def explain(action_id: ActionId, *, as_json: Json = False) -> None:
    """Show why there is an action, event by event as they stand in the store, and what came of it."""

    async def work() -> None:
        addresses = Addresses.configured()
        async with clients.channel("actions", addresses.actions) as channel:
            request = explanation_service_pb2.ExplainActionRequest(action_id=action_id)
            answer = await ExplanationServiceStub(channel).ExplainAction(request, timeout=DEADLINE_S)
        if as_json:
            show.print_json(answer)
            return
        await _quote(addresses, answer.events)
        out = show.console()
        out.print(_tree(answer))
        if answer.left_out:
            out.print(f"{show.count(answer.left_out)} signals and recoveries more are not shown")

    run(work())


async def _quote(addresses: Addresses, events: Iterable[ExplainedEvent]) -> None:
    """Add the customer's words to the summary of each interaction, which itself holds none."""
    said = [e for e in events if e.role == ExplainedRole.EXPLAINED_ROLE_INTERACTION and not e.erased]
    wanted: dict[str, set[str]] = {}
    for each in said:
        wanted.setdefault(each.stream.removeprefix("customer-"), set()).add(each.event_id)
    words = await correct.words(addresses, dict(list(wanted.items())[:_CUSTOMERS_QUOTED]))
    for each in said:
        if text := words.get(each.event_id):
            each.summary += f": “{textwrap.shorten(text, _QUOTED, placeholder=' …')}”"


def _tree(answer: explanation_service_pb2.ExplainActionResponse) -> Tree:
    events = {each.event_id: each for each in answer.events}
    opening = next(each for each in answer.events if each.role == ExplainedRole.EXPLAINED_ROLE_OPENING)
    root = Tree(_line(opening))
    why = root.add("because of")
    if opening.because_of:
        _causes(why, opening, events, {opening.event_id})
    else:
        why.add(_by_hand(opening))
    for title, role in (
        ("since then", ExplainedRole.EXPLAINED_ROLE_EFFECT),
        ("recoveries under it", ExplainedRole.EXPLAINED_ROLE_RECOVERY),
    ):
        some = [each for each in answer.events if each.role == role]
        if some:
            branch = root.add(title)
            for each in some:
                line = branch.add(_line(each))
                # What brought it about other than the action itself.
                others = [key for key in each.because_of if key != opening.event_id]
                for key in others:
                    _causes(line.add(_line(events[key])), events[key], events, {opening.event_id, key})
    return root


def _by_hand(opening: ExplainedEvent) -> Text:
    reason = opening.details["reason"]
    told = f"because: {reason}" if reason else "and told no reason"
    when, who = show.when(opening.recorded_at), opening.details["actor"]
    return show.plain(f"a person's decision, not a signal's: {who} opened it by hand on {when} UTC, {told}")


def _causes(branch: Tree, event: ExplainedEvent, events: Mapping[str, ExplainedEvent], above: set[str]) -> None:
    for key in event.because_of:
        if key not in above:
            _causes(branch.add(_line(events[key])), events[key], events, above | {key})


def _line(event: ExplainedEvent) -> Text:
    role = show.name(ExplainedRole.DESCRIPTOR, event.role)
    line = Text.assemble((f"{role}: ", "bold"), show.plain(event.summary).plain)
    if event.role == ExplainedRole.EXPLAINED_ROLE_EFFECT and event.details["reason"]:
        # A comment has its words there.
        leads = ": " if event.event_type.endswith(".ActionCommented") else ", because: "
        line.append(leads + show.plain(event.details["reason"]).plain)
    facts = [f"{name} {event.details[name]}" for name in _FACTS if name in event.details]
    if facts:
        line.append(f"  {', '.join(facts)}", style="cyan")
    place = "" if event.erased else f" {event.stream}@{event.revision} position {event.position}"
    line.append(f"\n{event.event_id}{place}", style="dim")
    if not event.erased:
        line.append(f"\n{show.when(event.recorded_at)} UTC trace {event.trace_id or 'none'}", style="dim")
    return line


_FACTS = ("touchpoint", "rule", "rule_version", "model", "model_version", "taxonomy_version")
