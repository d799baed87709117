"""Whether an improvement helped: `impact`."""

from typing import Annotated

import typer
from rich.text import Text

from recorrido.actions.v1 import impact_pb2, impact_service_pb2
from recorrido.actions.v1.action_pb2 import Target
from recorrido.actions.v1.impact_service_pb2_grpc import ImpactServiceStub
from services.cli import clients, show
from services.cli.actions import Metric
from services.cli.clients import DEADLINE_S, Addresses
from services.cli.options import Json, run

_STYLES = {
    impact_pb2.IMPACT_VERDICT_HELPED: "green",
    impact_pb2.IMPACT_VERDICT_GOT_WORSE: "red",
    impact_pb2.IMPACT_VERDICT_TOO_EARLY: "yellow",
}

ActionId = Annotated[str, typer.Argument(metavar="ACTION")]


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
    )

    async def work() -> None:
        addresses = Addresses.configured()
        async with clients.channel("actions", addresses.actions) as channel:
            answer = await ImpactServiceStub(channel).GetImpact(request, timeout=DEADLINE_S)
        show.print_json(answer) if as_json else _tell_impact(answer.impact)

    run(work())


def _tell_impact(found: impact_pb2.Impact) -> None:
    out = show.console()
    out.print(Text(found.statement, style=_STYLES.get(found.verdict, "")), soft_wrap=True)
    lines = show.table("", "from (UTC)", "to (UTC)", "n#", "mean#", "elsewhere n#", "elsewhere#")
    for name, since, until, sample, other in (
        ("before", found.before_from, found.before_to, found.before, found.comparison_before),
        ("after", found.after_from, found.after_to, found.after, found.comparison_after),
    ):
        elsewhere = (show.count(other.count), f"{other.mean:.2f}") if other.count else ("", "")
        lines.add_row(
            name, show.when(since), show.when(until), show.count(sample.count), f"{sample.mean:.2f}", *elsewhere
        )
    out.print(show.filled(lines))
