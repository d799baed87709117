"""What is done about it: `actions list|show|open|accept|…|watch`."""

import asyncio
import getpass
import json
import os
import sys
import uuid
from collections.abc import Iterable
from enum import StrEnum
from typing import Annotated, Any

import grpc
import typer
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console
from rich.table import Table
from rich.text import Text

from recorrido.actions.v1 import actions_service_pb2 as pb
from recorrido.actions.v1.action_pb2 import (
    ActionKind,
    ActionResult,
    ActionState,
    ContactChannel,
    Priority,
    RemedyKind,
    Target,
)
from services.cli import clients, show
from services.cli.clients import DEADLINE_S, Addresses
from services.cli.options import Json, Limit, moment, run

app = typer.Typer(help="Recoveries and improvements: what is done about it.", no_args_is_help=True)

_PAGE = 1000


class Kind(StrEnum):
    RECOVERY = "recovery"
    IMPROVEMENT = "improvement"


class State(StrEnum):
    OPEN = "open"
    ACCEPTED = "accepted"
    IN_PROGRESS = "in_progress"
    REMEDIED = "remedied"
    COMPLETED = "completed"
    VERIFIED = "verified"
    DECLINED = "declined"


class PriorityName(StrEnum):
    LOW = "low"
    NORMAL = "normal"
    HIGH = "high"
    URGENT = "urgent"


class Metric(StrEnum):
    NPS = "nps"
    CSAT = "csat"
    CES = "ces"
    SENTIMENT = "sentiment"
    BAD_MOMENTS = "bad_moments"
    PAIN_SHARE = "pain_share"
    VOLUME = "volume"


class Remedy(StrEnum):
    APOLOGY = "apology"
    INFORMATION = "information"
    REFUND = "refund"
    REPLACEMENT = "replacement"
    REPAIR = "repair"
    SUBSTITUTE = "substitute"
    ASSISTANCE = "assistance"
    COMPENSATION = "compensation"
    GOODWILL = "goodwill"
    OTHER = "other"


class Channel(StrEnum):
    PHONE = "phone"
    EMAIL = "email"
    CHAT = "chat"
    MESSAGE = "message"
    LETTER = "letter"
    IN_PERSON = "in_person"
    SOCIAL = "social"


class Result(StrEnum):
    HELPED = "helped"
    NO_CHANGE = "no_change"
    WORSE = "worse"
    UNREACHABLE = "unreachable"


def _me() -> str:
    return os.environ.get("RECORRIDO_ACTOR") or getpass.getuser()


ActionId = Annotated[str, typer.Argument(metavar="ID")]
Actor = Annotated[str, typer.Option(default_factory=_me, help="Who does it; RECORRIDO_ACTOR, else you.")]
RequestId = Annotated[
    str,
    typer.Option(
        default_factory=lambda: str(uuid.uuid4()),
        show_default=False,
        help="Repeating one changes nothing the second time.",
    ),
]
Revision = Annotated[int | None, typer.Option(min=0, help="Only if nobody changed it since this revision.")]
Reason = Annotated[str, typer.Option(help="Why.")]
DueAt = Annotated[
    Timestamp | None,
    typer.Option("--due", parser=moment, metavar="TIME", help="When it has to be completed (ISO 8601)."),
]


@app.command("list")
def list_actions(
    *,
    state: Annotated[State | None, typer.Option(help="Only in this state.")] = None,
    kind: Annotated[Kind | None, typer.Option(help="Only of this kind.")] = None,
    customer_id: Annotated[str, typer.Option("--customer", metavar="ID", help="Only for this customer.")] = "",
    owner: Annotated[str, typer.Option(help="Only those of this owner.")] = "",
    touchpoint: Annotated[str, typer.Option(help="Only those about this touchpoint.")] = "",
    need: Annotated[str, typer.Option(metavar="PATH", help="Only those about this need.")] = "",
    priority: Annotated[PriorityName | None, typer.Option(help="Only of this priority.")] = None,
    improvement: Annotated[str, typer.Option(metavar="ID", help="Only the recoveries of this improvement.")] = "",
    playbook: Annotated[str, typer.Option(metavar="ID", help="Only those that this playbook opened.")] = "",
    overdue: Annotated[bool | None, typer.Option("--overdue/--in-time", help="Only what is late, or is not.")] = None,
    limit: Limit = 50,
    as_json: Json = False,
) -> None:
    """List actions, newest first."""
    request = pb.ListActionsRequest(
        state=show.names(ActionState.DESCRIPTOR)[state.value] if state else ActionState.ACTION_STATE_UNSPECIFIED,
        kind=show.names(ActionKind.DESCRIPTOR)[kind.value] if kind else ActionKind.ACTION_KIND_UNSPECIFIED,
        customer_id=customer_id,
        owner=owner,
        touchpoint=touchpoint,
        need_path=need,
        priority=_priority(priority),
        improvement_id=improvement,
        playbook_id=playbook,
        overdue=overdue,
    )
    run(_list(request, limit, as_json=as_json))


async def _list(request: pb.ListActionsRequest, limit: int, *, as_json: bool) -> None:
    found = pb.ListActionsResponse()
    async with clients.actions(Addresses.configured()) as actions:
        while True:
            request.page_size = min(_PAGE, limit - len(found.actions))
            page = await actions.ListActions(request, timeout=DEADLINE_S)
            found.actions.extend(page.actions)
            found.total = page.total
            found.next_page_token = request.page_token = page.next_page_token
            if not page.next_page_token or len(found.actions) >= limit:
                break
    if as_json:
        show.print_json(found)
        return
    out = show.console()
    out.print(show.filled(_table(found)))
    if len(found.actions) < found.total:
        out.print(f"{show.count(len(found.actions))} of {show.count(found.total)} are shown; --limit shows more")


def _priority(name: PriorityName | None) -> Any:
    return show.names(Priority.DESCRIPTOR)[name.value] if name else Priority.PRIORITY_UNSPECIFIED


def _table(found: pb.ListActionsResponse) -> Table:
    lines = show.table("opened (UTC)", "kind", "state", "customer~", "title~", "owner", "due (UTC)", "result", "id")
    for each in found.actions:
        lines.add_row(
            show.when(each.opened_at),
            show.name(ActionKind.DESCRIPTOR, each.kind),
            show.name(ActionState.DESCRIPTOR, each.state),
            show.plain(each.customer_id),
            show.plain(each.title),
            show.plain(each.owner),
            Text(show.when(each.due_at), style="red" if each.overdue else ""),
            show.name(ActionResult.DESCRIPTOR, each.result),
            each.action_id,
        )
    return lines


@app.command("show")
def show_action(action_id: ActionId, *, as_json: Json = False) -> None:
    """Show an action with its whole history."""
    run(_show(action_id, as_json=as_json))


async def _show(action_id: str, *, as_json: bool) -> None:
    async with clients.actions(Addresses.configured()) as actions:
        found = await actions.GetAction(pb.GetActionRequest(action_id=action_id), timeout=DEADLINE_S)
    if as_json:
        show.print_json(found)
        return
    out = show.console()
    out.print(_details(found.action))
    lines = show.table("recorded (UTC)", "who", "what~", "why~", "trace", title="History")
    for entry in found.history:
        lines.add_row(
            show.when(entry.recorded_at),
            show.plain(entry.actor),
            show.plain(entry.summary),
            show.plain(entry.reason),
            show.plain(entry.trace_id),
        )
    out.print(show.filled(lines))


def _details(action: pb.Action) -> Table:
    lines = show.table("", "~")
    for title, text in (
        ("title", action.title),
        ("kind", show.name(ActionKind.DESCRIPTOR, action.kind)),
        ("state", show.name(ActionState.DESCRIPTOR, action.state)),
        ("customer", action.customer_id),
        ("why", "; ".join(action.reasons)),
        ("touchpoint", action.touchpoint),
        ("need", action.need_path),
        ("priority", show.name(Priority.DESCRIPTOR, action.priority)),
        ("owner", action.owner),
        ("result", show.name(ActionResult.DESCRIPTOR, action.result)),
        ("opened", show.when(action.opened_at)),
        ("accept by", show.when(action.accept_by)),
        ("due", show.when(action.due_at) + (", overdue" if action.overdue else "")),
        ("escalated to", action.escalated_to),
        ("closed", show.when(action.closed_at)),
        ("signal", action.signal_id),
        ("playbook", _playbook(action)),
        ("improvement", action.improvement_id),
        ("target", f"{action.target.metric} {action.target.touchpoint} {action.target.need_path}".strip()),
        ("reopened", f"{action.reopened} times" if action.reopened else ""),
        ("allowed now", ", ".join(action.allowed)),
        ("id", action.action_id),
        ("revision", str(action.revision)),
    ):
        if text:
            lines.add_row(Text(title, style="bold"), show.plain(text))
    return lines


def _playbook(action: pb.Action) -> str:
    if not action.playbook_id:
        return ""
    return f"{action.playbook_id}, rule {action.playbook_rule}, version {action.playbook_version}"


@app.command("open")
def open_action(
    title: Annotated[str, typer.Argument(help="What is to be done.")],
    *,
    kind: Annotated[Kind, typer.Option(help="For one customer, or for everyone.")] = Kind.RECOVERY,
    customer_id: Annotated[str, typer.Option("--customer", metavar="ID", help="Required for a recovery.")] = "",
    reason: Annotated[list[str] | None, typer.Option(help="Why; may be given several times.")] = None,
    touchpoint: Annotated[str, typer.Option(help="Where it hurts.")] = "",
    need: Annotated[str, typer.Option(metavar="PATH", help="The need at stake, such as delivery/speed.")] = "",
    priority: Annotated[PriorityName | None, typer.Option(help="Without it, normal.")] = None,
    owner: Annotated[str, typer.Option(help="Whose it is before anybody accepted it.")] = "",
    due_at: DueAt = None,
    improvement: Annotated[str, typer.Option(metavar="ID", help="The improvement that a recovery belongs to.")] = "",
    target: Annotated[Metric | None, typer.Option(help="What an improvement is to move, where it hurts.")] = None,
    actor: Actor,
    request_id: RequestId,
    as_json: Json = False,
) -> None:
    """Open a recovery or an improvement by hand."""
    if kind is Kind.RECOVERY and not customer_id.strip():
        raise typer.BadParameter("--customer is required for a recovery")
    request = pb.OpenActionRequest(
        kind=show.names(ActionKind.DESCRIPTOR)[kind.value],
        customer_id=customer_id,
        title=title,
        reasons=reason or (),
        touchpoint=touchpoint,
        need_path=need,
        priority=_priority(priority),
        owner=owner,
        due_at=due_at,
        improvement_id=improvement,
        target=Target(metric=target.value, touchpoint=touchpoint, need_path=need) if target else None,
        actor=actor,
        request_id=request_id,
    )

    async def work() -> None:
        async with clients.actions(Addresses.configured()) as actions:
            answer = await actions.OpenAction(request, timeout=DEADLINE_S)
        _tell(answer.action, as_json=as_json)

    run(work())


@app.command("accept")
def accept_action(
    action_id: ActionId,
    *,
    owner: Annotated[str, typer.Option(help="Who will work on it; without it, the actor.")] = "",
    reason: Reason = "",
    actor: Actor,
    request_id: RequestId,
    expected_revision: Revision = None,
    as_json: Json = False,
) -> None:
    """Take an action on."""
    request = pb.AcceptActionRequest(
        action_id=action_id,
        actor=actor,
        owner=owner,
        reason=reason,
        request_id=request_id,
        expected_revision=expected_revision,
    )
    _change("AcceptAction", request, as_json=as_json)


@app.command("complete")
def complete_action(
    action_id: ActionId,
    *,
    result: Annotated[Result, typer.Option(help="What the customer, or the measure, said at the end.")],
    note: Annotated[str, typer.Option(help="What was done.")] = "",
    actor: Actor,
    request_id: RequestId,
    expected_revision: Revision = None,
    as_json: Json = False,
) -> None:
    """Finish an action with its result."""
    request = pb.CompleteActionRequest(
        action_id=action_id,
        actor=actor,
        result=show.names(ActionResult.DESCRIPTOR)[result.value],
        note=note,
        request_id=request_id,
        expected_revision=expected_revision,
    )

    _change("CompleteAction", request, as_json=as_json)


@app.command("decline")
def decline_action(
    action_id: ActionId,
    *,
    reason: Annotated[str, typer.Option(help="Why.")],
    actor: Actor,
    request_id: RequestId,
    expected_revision: Revision = None,
    as_json: Json = False,
) -> None:
    """Say that it will not be done, and why."""
    request = pb.DeclineActionRequest(
        action_id=action_id,
        reason=reason,
        actor=actor,
        request_id=request_id,
        expected_revision=expected_revision,
    )
    _change("DeclineAction", request, as_json=as_json)


@app.command("assign")
def assign_action(
    action_id: ActionId,
    *,
    owner: Annotated[str, typer.Option(help="Who has it from now on.")],
    reason: Reason = "",
    actor: Actor,
    request_id: RequestId,
    expected_revision: Revision = None,
    as_json: Json = False,
) -> None:
    """Give an action to somebody."""
    request = pb.AssignActionRequest(
        action_id=action_id,
        owner=owner,
        reason=reason,
        actor=actor,
        request_id=request_id,
        expected_revision=expected_revision,
    )
    _change("AssignAction", request, as_json=as_json)


@app.command("start")
def start_action(
    action_id: ActionId,
    *,
    reason: Reason = "",
    actor: Actor,
    request_id: RequestId,
    expected_revision: Revision = None,
    as_json: Json = False,
) -> None:
    """Begin to work on an action."""
    request = pb.StartActionRequest(
        action_id=action_id,
        reason=reason,
        actor=actor,
        request_id=request_id,
        expected_revision=expected_revision,
    )
    _change("StartAction", request, as_json=as_json)


@app.command("contact")
def record_contact(
    action_id: ActionId,
    *,
    channel: Annotated[Channel, typer.Option(help="How.")],
    reached: Annotated[bool, typer.Option("--reached/--missed", help="Whether the customer was reached.")],
    note: Annotated[str, typer.Option(help="What was said.")] = "",
    actor: Actor,
    request_id: RequestId,
    expected_revision: Revision = None,
    as_json: Json = False,
) -> None:
    """Tell that somebody tried to speak to the customer of a recovery."""
    request = pb.RecordContactRequest(
        action_id=action_id,
        channel=show.names(ContactChannel.DESCRIPTOR)[channel.value],
        reached=reached,
        note=note,
        actor=actor,
        request_id=request_id,
        expected_revision=expected_revision,
    )
    _change("RecordContact", request, as_json=as_json)


@app.command("remedy")
def offer_remedy(
    action_id: ActionId,
    *,
    remedy: Annotated[Remedy, typer.Option("--kind", help="What kind of remedy.")],
    note: Annotated[str, typer.Option(help="What exactly.")] = "",
    actor: Actor,
    request_id: RequestId,
    expected_revision: Revision = None,
    as_json: Json = False,
) -> None:
    """Tell what the customer of a recovery was offered."""
    request = pb.OfferRemedyRequest(
        action_id=action_id,
        remedy=show.names(RemedyKind.DESCRIPTOR)[remedy.value],
        note=note,
        actor=actor,
        request_id=request_id,
        expected_revision=expected_revision,
    )
    _change("OfferRemedy", request, as_json=as_json)


@app.command("verify")
def verify_action(
    action_id: ActionId,
    *,
    reason: Annotated[str, typer.Option(help="What shows it.")],
    actor: Actor,
    request_id: RequestId,
    expected_revision: Revision = None,
    as_json: Json = False,
) -> None:
    """Tell that an improvement helped, and what shows it."""
    request = pb.VerifyActionRequest(
        action_id=action_id,
        reason=reason,
        actor=actor,
        request_id=request_id,
        expected_revision=expected_revision,
    )
    _change("VerifyAction", request, as_json=as_json)


@app.command("reopen")
def reopen_action(
    action_id: ActionId,
    *,
    reason: Annotated[str, typer.Option(help="Why.")],
    due_at: DueAt = None,
    actor: Actor,
    request_id: RequestId,
    expected_revision: Revision = None,
    as_json: Json = False,
) -> None:
    """Take an action up again."""
    request = pb.ReopenActionRequest(
        action_id=action_id,
        reason=reason,
        due_at=due_at,
        actor=actor,
        request_id=request_id,
        expected_revision=expected_revision,
    )
    _change("ReopenAction", request, as_json=as_json)


@app.command("comment")
def comment_action(
    action_id: ActionId,
    *,
    text: Annotated[str, typer.Option(help="What to say.")],
    actor: Actor,
    request_id: RequestId,
    expected_revision: Revision = None,
    as_json: Json = False,
) -> None:
    """Add a comment to an action."""
    request = pb.CommentActionRequest(
        action_id=action_id,
        text=text,
        actor=actor,
        request_id=request_id,
        expected_revision=expected_revision,
    )
    _change("CommentAction", request, as_json=as_json)


@app.command("link")
def link_actions(
    action_ids: Annotated[list[str], typer.Argument(metavar="RECOVERY…")],
    *,
    improvement: Annotated[str, typer.Option("--to", metavar="ID", help="The improvement; empty takes them away.")],
    reason: Reason = "",
    actor: Actor,
    request_id: RequestId,
    as_json: Json = False,
) -> None:
    """Put recoveries under the improvement that removes their cause."""
    request = pb.LinkActionsRequest(
        improvement_id=improvement, action_ids=action_ids, actor=actor, reason=reason, request_id=request_id
    )

    async def work() -> None:
        async with clients.actions(Addresses.configured()) as actions:
            answer = await actions.LinkActions(request, timeout=DEADLINE_S)
        if as_json:
            show.print_json(answer)
        else:
            show.console().print(f"{show.count(len(answer.actions))} recoveries are under {improvement or 'none'}")

    run(work())


@app.command("watch")
def watch_actions(
    *,
    action_id: Annotated[str, typer.Option("--action", metavar="ID", help="Only this one.")] = "",
    kind: Annotated[Kind | None, typer.Option(help="Only of this kind.")] = None,
    customer_id: Annotated[str, typer.Option("--customer", metavar="ID", help="Only for this customer.")] = "",
    owner: Annotated[str, typer.Option(help="Only those of this owner.")] = "",
    touchpoint: Annotated[str, typer.Option(help="Only those about this touchpoint.")] = "",
    improvement: Annotated[str, typer.Option(metavar="ID", help="This improvement and its recoveries.")] = "",
    after: Annotated[int, typer.Option(metavar="POSITION", min=0, help="Go on behind this position.")] = 0,
    limit: Annotated[int, typer.Option(min=0, help="End after so many changes; 0 is never.")] = 0,
    as_json: Json = False,
) -> None:
    """Show every change as soon as it is recorded, until Ctrl-C."""
    request = pb.WatchActionsRequest(
        action_id=action_id,
        kind=show.names(ActionKind.DESCRIPTOR)[kind.value] if kind else ActionKind.ACTION_KIND_UNSPECIFIED,
        customer_id=customer_id,
        owner=owner,
        touchpoint=touchpoint,
        improvement_id=improvement,
        after_position=after,
    )
    run(_watch(request, limit, as_json=as_json))


#: The end of a watch that means: come again from where you were.
_COME_AGAIN = (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED)


async def _watch(request: pb.WatchActionsRequest, limit: int, *, as_json: bool) -> None:
    out, told = show.console(), 0
    async with clients.actions(Addresses.configured()) as actions:
        while True:
            try:
                async for answer in actions.WatchActions(request):
                    for each in answer.changes:
                        _tell_change(out, each, as_json=as_json)
                        told += 1
                        if told == limit:
                            return
                    request.after_position = answer.position
            except grpc.aio.AioRpcError as error:
                if error.code() not in _COME_AGAIN:
                    raise
                await asyncio.sleep(1)
            else:
                return


def _tell_change(out: Console, change: pb.ActionChange, *, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps(show.dictionary(change), ensure_ascii=False) + "\n")
        sys.stdout.flush()
        return
    entry = change.change
    line = Text(show.when(entry.recorded_at) + " ")
    line.append_text(show.plain(f"{entry.actor} {entry.summary}"))
    line.append(f"  {change.action.action_id}", style="dim")
    out.print(line)


def board_table(title: str, found: Iterable[pb.BoardLine]) -> Table:
    lines = show.table(f"{title}~", "kind", "actions#", "overdue#", "mean age#", "oldest#")
    for each in found:
        number = getattr(ActionState, each.key, None) if title == "state" else None
        key = show.name(ActionState.DESCRIPTOR, number) if number else each.key
        lines.add_row(
            show.plain(key or "none"),
            show.name(ActionKind.DESCRIPTOR, each.kind),
            show.count(each.count),
            show.count(each.overdue) if each.overdue else "",
            age(each.mean_age_s),
            age(each.oldest_age_s),
        )
    return lines


def age(seconds: float) -> str:
    hours = seconds / 3600
    return f"{hours / 24:.1f} d" if hours >= 24 else f"{hours:.1f} h"


def _change(call: str, request: Any, *, as_json: bool) -> None:
    async def work() -> None:
        async with clients.actions(Addresses.configured()) as actions:
            answer = await getattr(actions, call)(request, timeout=DEADLINE_S)
        _tell(answer.action, as_json=as_json)

    run(work())


def _tell(action: pb.Action, *, as_json: bool) -> None:
    if as_json:
        show.print_json(action)
    else:
        show.console().print(_details(action))
