"""Playbooks as YAML files: `playbook publish|list|show|dry-run|schema`."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from recorrido.actions.v1 import playbook_service_pb2 as pb
from recorrido.actions.v1.action_pb2 import ActionKind, ActionState, Priority
from recorrido.actions.v1.actions_service_pb2 import ListActionsRequest
from recorrido.actions.v1.playbook_pb2 import ImprovementRule, Period, RecoveryRule, ServiceLevel
from services.cli import clients, playbookfile, show
from services.cli.clients import DEADLINE_S, Addresses
from services.cli.options import Actor, From, Json, RequestId, To, run

if TYPE_CHECKING:
    from recorrido.actions.v1.playbook_service_pb2_grpc import PlaybookServiceAsyncStub

app = typer.Typer(help="Playbooks: which signals open what, for whom, and by when.", no_args_is_help=True)

File = Annotated[str, typer.Argument(metavar="FILE", help="A YAML file, or the name of a shipped playbook.")]


@app.command()
def publish(
    file: File,
    *,
    reason: Annotated[str, typer.Option(help="Why there is a new version.")] = "",
    expected_version: Annotated[
        int | None, typer.Option(min=0, help="Only if this is the present version; 0: if there is none.")
    ] = None,
    actor: Actor,
    request_id: RequestId,
    as_json: Json = False,
) -> None:
    """Publish a playbook, or a new version of it; it acts on signals from now on."""
    request = pb.PublishPlaybookRequest(
        playbook=playbookfile.load(file),
        actor=actor,
        reason=reason,
        request_id=request_id,
        expected_version=expected_version,
    )

    async def work() -> None:
        async with clients.playbooks(Addresses.configured()) as playbooks:
            answer = await playbooks.PublishPlaybook(request, timeout=DEADLINE_S)
        if as_json:
            show.print_json(answer)
        else:
            published = answer.published
            show.console().print(f"{published.playbook.playbook_id}: version {published.version} is in force")
            for notice in [*answer.notices, *await _left_as_they_are()]:
                show.console(stderr=True).print(f"note: {notice}", soft_wrap=True)

    run(work())


async def publish_if_none(playbooks: "PlaybookServiceAsyncStub", name: str, actor: str) -> bool:
    """Publish a shipped playbook where there is none at all; return whether it was published."""
    if (await playbooks.ListPlaybooks(pb.ListPlaybooksRequest(), timeout=DEADLINE_S)).playbooks:
        return False
    request = pb.PublishPlaybookRequest(
        playbook=playbookfile.load(name), actor=actor, request_id=f"shipped/{name}", reason="as it is shipped"
    )
    await playbooks.PublishPlaybook(request, timeout=DEADLINE_S)
    return True


async def _left_as_they_are() -> list[str]:
    """Tell of what was opened before: a playbook is for what its signals open from now on."""
    request = ListActionsRequest(state=ActionState.ACTION_STATE_OPEN, page_size=1)
    async with clients.actions(Addresses.configured()) as actions:
        found = await actions.ListActions(request, timeout=DEADLINE_S)
    if not found.total:
        return []
    more = "more than " if found.more_than_total else ""
    told = (
        f"{more}{show.count(found.total)} actions that are open already keep their owner and due time, or have none:"
        " 'recorrido actions list --state open' shows them, actions assign and actions reschedule give them some"
    )
    return [told]


@app.command("list")
def list_playbooks(*, as_json: Json = False) -> None:
    """List the playbooks, each in its present version."""

    async def work() -> None:
        async with clients.playbooks(Addresses.configured()) as playbooks:
            found = await playbooks.ListPlaybooks(pb.ListPlaybooksRequest(), timeout=DEADLINE_S)
        if as_json:
            show.print_json(found)
            return
        lines = show.table(
            *("playbook", "name~", "version#", "on", "published (UTC)", "by", "recoveries#", "improvements#"),
            spared=("by", "published (UTC)", "on"),
        )
        for each in found.playbooks:
            lines.add_row(
                each.playbook.playbook_id,
                show.plain(each.playbook.name),
                str(each.version),
                "no" if each.playbook.disabled else "yes",
                show.when(each.published_at),
                show.plain(each.actor),
                str(len(each.playbook.recoveries)),
                str(len(each.playbook.improvements)),
            )
        show.console().print(show.filled(lines))

    run(work())


@app.command("show")
def show_playbook(
    playbook_id: Annotated[str, typer.Argument(metavar="ID", help="The playbook; `playbook list` tells it.")],
    *,
    version: Annotated[int, typer.Option(min=0, help="0 is the present one.")] = 0,
    as_json: Json = False,
) -> None:
    """Show a playbook: its rules, owners and due times."""

    async def work() -> None:
        async with clients.playbooks(Addresses.configured()) as playbooks:
            found = await playbooks.GetPlaybook(
                pb.GetPlaybookRequest(playbook_id=playbook_id, version=version), timeout=DEADLINE_S
            )
        if as_json:
            show.print_json(found)
        else:
            _print(found.published)

    run(work())


def _print(published: pb.PublishedPlaybook) -> None:
    out, playbook = show.console(), published.playbook
    off = " · switched off" if playbook.disabled else ""
    out.print(f"{playbook.playbook_id} · {show.plain(playbook.name)} · version {published.version}{off}")
    where = playbook.calendar.time_zone or "UTC, around the clock"
    out.print(f"calendar {where} · at most {show.count(playbook.max_per_hour or 500)} actions an hour")
    lines = show.table(
        *("rule", "opens~", "touchpoints~", "needs~", "priority", "owner", "accept", "resolve", "escalates~"),
        spared=("priority", "escalates"),
    )
    for rule in playbook.recoveries:
        days = f", {rule.cool_down_days} days apart" if rule.cool_down_days else ""
        lines.add_row(rule.rule_id, f"recovery{days}", *_rule(rule))
    for cause in playbook.improvements:
        lines.add_row(
            cause.rule_id, f"improvement: {cause.customers} customers in {cause.within_days} d", *_rule(cause)
        )
    out.print(show.filled(lines))


def _rule(rule: RecoveryRule | ImprovementRule) -> list[str]:
    level: ServiceLevel = rule.service_level
    return [
        ", ".join(rule.match.touchpoints),
        ", ".join(rule.match.need_paths),
        show.name(Priority.DESCRIPTOR, rule.priority),
        rule.owner,
        _period(level.accept_within),
        _period(level.resolve_within),
        ", ".join(f"{_period(step.after) or 'at once'} → {step.to}" for step in level.escalations),
    ]


def _period(period: Period) -> str:
    hours, minutes = divmod(period.minutes, 60)
    parts = ((period.days, "d"), (hours, "h"), (minutes, "m"))
    return " ".join(f"{number}{unit}" for number, unit in parts if number)


@app.command("dry-run")
def dry_run(
    file: File,
    *,
    start: From = None,
    end: To = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many openings to show; all are counted.")] = 20,
    alone: Annotated[bool, typer.Option("--alone", help="Without the other playbooks that are published.")] = False,
    as_json: Json = False,
) -> None:
    """Show what a draft would have opened, when and why, over the signals of the past; nothing is recorded."""
    request = pb.DryRunPlaybookRequest(playbook=playbookfile.load(file), to=end, max_openings=limit, alone=alone)
    if start is not None:
        # `from` is a word of Python.
        getattr(request, "from").CopyFrom(start)
    run(_dry_run(request, as_json=as_json))


async def _dry_run(request: pb.DryRunPlaybookRequest, *, as_json: bool) -> None:
    lines = show.table(
        "when (UTC)",
        "opens",
        "rule",
        "customer~",
        "what~",
        "complete by (UTC)",
        "owner",
        spared=("opens", "owner", "complete by (UTC)"),
    )
    summary, told, progress = pb.DryRunSummary(), [], show.console(stderr=True)
    async with clients.playbooks(Addresses.configured()) as playbooks:
        async for answer in playbooks.DryRunPlaybook(request):
            if answer.HasField("opening"):
                told.append(answer.opening)
            elif answer.HasField("progress") and sys.stderr.isatty():
                progress.print(f"{show.count(answer.progress.signals)} signals", end="\r")
            elif answer.HasField("summary"):
                summary = answer.summary
    if as_json:
        show.print_json({"openings": [show.dictionary(each) for each in told], "summary": show.dictionary(summary)})
        return
    for each in told:
        lines.add_row(
            show.when(each.opened_at),
            show.name(ActionKind.DESCRIPTOR, each.kind),
            each.playbook_rule,
            show.plain(each.customer_id),
            show.plain(each.title),
            show.when(each.due_at),
            show.plain(each.owner),
        )
    out = show.console()
    if told:
        out.print(show.filled(lines))
    _summarize(out, summary)


def _summarize(out: Console, summary: pb.DryRunSummary) -> None:
    out.print(
        f"{show.count(summary.signals)} signals would have opened {show.count(summary.recoveries)} recoveries and"
        f" {show.count(summary.improvements)} improvements"
    )
    for count, what in (
        (summary.unmatched, "match no rule"),
        (summary.cooled_down, "came while the customer was left alone"),
        (summary.refused_by_guard, "would have been refused by the guard"),
        (summary.taken_by_others, "match a rule of it, and one of another playbook before"),
        (summary.by_others, "recoveries would have been opened by other playbooks"),
    ):
        if count:
            out.print(f"{show.count(count)} {what}")
    if summary.busiest_count:
        out.print(f"at most {show.count(summary.busiest_count)} in an hour: {show.when(summary.busiest_hour)} UTC")
    rules: Table = show.table("rule", "matched#", "opened#")
    for rule in summary.rules:
        rules.add_row(rule.playbook_rule, show.count(rule.matched), show.count(rule.opened))
    if summary.rules:
        out.print(rules)
    for notice in summary.notices:
        out.print(f"note: {notice}", soft_wrap=True)


@app.command("schema")
def print_schema() -> None:
    """Print the JSON Schema of the file, for editors."""
    show.print_json(playbookfile.schema())
