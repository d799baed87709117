"""What is done about it: `actions list|show|open|accept|…|watch`."""

import asyncio
import contextlib
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from inspect import Parameter, Signature
from typing import Annotated, Any, TypeVar

import grpc
import typer
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console
from rich.table import Table
from rich.text import Text

from recorrido.actions.v1 import actions_service_pb2 as pb
from recorrido.actions.v1.action_pb2 import ActionKind, ActionResult, ActionState, Priority, Target
from services.cli import clients, naming, show
from services.cli.clients import DEADLINE_S, Addresses
from services.cli.failures import CommandError
from services.cli.options import Actor, Json, Limit, RequestId, follow, moment, run

app = typer.Typer(help="Recoveries and improvements: what is done about it.", no_args_is_help=True)

_PAGE = 1000

MessageT = TypeVar("MessageT", bound=Message)


Kind = StrEnum("Kind", "RECOVERY IMPROVEMENT")
State = StrEnum("State", "OPEN ACCEPTED IN_PROGRESS REMEDIED COMPLETED VERIFIED DECLINED")
PriorityName = StrEnum("PriorityName", "LOW NORMAL HIGH URGENT")
Order = StrEnum("Order", "NEWEST OLDEST DUE")
Metric = StrEnum("Metric", "NPS CSAT CES SENTIMENT BAD_MOMENTS PAIN_SHARE VOLUME")
Remedy = StrEnum(
    "Remedy", "APOLOGY INFORMATION REFUND REPLACEMENT REPAIR SUBSTITUTE ASSISTANCE COMPENSATION GOODWILL OTHER"
)
Channel = StrEnum("Channel", "PHONE EMAIL CHAT MESSAGE LETTER IN_PERSON SOCIAL")
Result = StrEnum("Result", "HELPED NO_CHANGE WORSE UNREACHABLE")


def whole(given: str | list[str]) -> Any:
    """Return whole ids of actions for those that tables told in short."""
    if isinstance(given, str):
        return asyncio.run(naming.action_id(Addresses.configured(), given))
    return [whole(each) for each in given]


ActionId = Annotated[str, typer.Argument(metavar="ID", callback=whole, help="The action; `actions list` tells it.")]
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
    improvement: Annotated[
        str, typer.Option(metavar="ID", callback=whole, help="Only the recoveries of this improvement.")
    ] = "",
    playbook: Annotated[str, typer.Option(metavar="ID", help="Only those that this playbook opened.")] = "",
    overdue: Annotated[bool | None, typer.Option("--overdue/--in-time", help="Only what is late, or is not.")] = None,
    order: Annotated[Order, typer.Option(help="What comes first; due: what falls due next.")] = Order.NEWEST,
    limit: Limit = 50,
    as_json: Json = False,
) -> None:
    """List actions, newest first."""
    request = _message(
        pb.ListActionsRequest,
        state=state,
        kind=kind,
        customer_id=customer_id,
        owner=owner,
        touchpoint=touchpoint,
        need_path=need,
        priority=priority,
        improvement_id=improvement,
        playbook_id=playbook,
        overdue=overdue,
        order=order,
    )
    run(_list(request, limit, as_json=as_json))


async def _list(request: pb.ListActionsRequest, limit: int, *, as_json: bool) -> None:
    found = pb.ListActionsResponse()
    async with clients.actions(Addresses.configured()) as actions:
        while True:
            request.page_size = min(_PAGE, limit - len(found.actions))
            page = await actions.ListActions(request, timeout=DEADLINE_S)
            found.actions.extend(page.actions)
            found.total, found.more_than_total = page.total, page.more_than_total
            found.next_page_token = request.page_token = page.next_page_token
            if not page.next_page_token or len(found.actions) >= limit:
                break
    if not found.actions:
        await naming.check(Addresses.configured(), [request.touchpoint], request.need_path)
        if request.customer_id:
            await naming.check_customer(Addresses.configured(), request.customer_id)
    if as_json:
        show.print_json(found)
        return
    out = show.console()
    out.print(show.filled(_table(found, out.width)))
    if len(found.actions) < found.total:
        more = "more than " if found.more_than_total else ""
        out.print(f"{show.count(len(found.actions))} of {more}{show.count(found.total)} are shown; --limit shows more")


def _message(made: type[MessageT], **fields: Any) -> MessageT:
    """Return a message with these fields; names of enum values become their numbers, None is left out."""
    described: Any = made.DESCRIPTOR.fields_by_name
    return made(
        **{
            name: show.names(described[name].enum_type)[value.value] if isinstance(value, StrEnum) else value
            for name, value in fields.items()
            if value is not None
        }
    )


def _table(found: pb.ListActionsResponse, width: int) -> Table:
    lines = show.table(
        *("id", "opened (UTC)", "kind", "state", "customer~", "owner", "due next (UTC)", "result", "title~"),
        spared=("opened (UTC)", "kind", "owner", "state"),
    )
    for each in found.actions:
        lines.add_row(
            show.short_id(each.action_id, width),
            show.when(each.opened_at),
            show.name(ActionKind.DESCRIPTOR, each.kind),
            show.name(ActionState.DESCRIPTOR, each.state),
            show.plain(each.customer_id),
            show.plain(each.owner),
            Text(due_next(each), style="red" if each.overdue else ""),
            show.name(ActionResult.DESCRIPTOR, each.result),
            show.title(each),
        )
    return lines


def due_next(action: pb.Action) -> str:
    """Return when it has to be accepted, while it is open, or completed: whichever comes first."""
    accept_by = show.when(action.accept_by) if action.state == ActionState.ACTION_STATE_OPEN else ""
    return min(filter(None, (accept_by, show.when(action.due_at))), default="")


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
    lines = show.table("recorded (UTC)", "who~", "trace", "what~", "why~", title="History", spared=("trace",))
    for entry in found.history:
        lines.add_row(
            show.when(entry.recorded_at),
            show.plain(entry.actor),
            show.plain(entry.trace_id),
            show.plain(entry.summary),
            show.plain(entry.reason),
        )
    out.print(show.filled(lines))


def _details(action: pb.Action) -> Table:
    lines = show.table("", "~")
    for title, text in (
        ("title", show.title(action).plain),
        ("kind", show.name(ActionKind.DESCRIPTOR, action.kind)),
        ("state", show.name(ActionState.DESCRIPTOR, action.state)),
        ("customer", action.customer_id),
        ("why", "; ".join(action.reasons)),
        ("touchpoint", show.place(action.touchpoint_name, action.touchpoint)),
        ("need", action.need_path),
        ("priority", show.name(Priority.DESCRIPTOR, action.priority)),
        ("owner", action.owner),
        ("result", show.name(ActionResult.DESCRIPTOR, action.result)),
        ("opened", show.when(action.opened_at)),
        ("accept by", show.when(action.accept_by)),
        ("complete by", show.when(action.due_at)),
        ("overdue", "yes" if action.overdue else ""),
        ("escalated to", action.escalated_to),
        ("closed", show.when(action.closed_at)),
        ("signal", action.signal_id),
        ("playbook", _playbook(action)),
        ("improvement", action.improvement_id),
        ("target", _target(action.target)),
        ("reopened", f"{action.reopened} times" if action.reopened else ""),
        ("allowed now", ", ".join(_COMMANDS.get(each, each) for each in action.allowed)),
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


def _target(target: Target) -> str:
    where = target.touchpoint
    if where and target.map_id:
        where += f" of the map {target.map_id}"
    return " ".join(filter(None, (target.metric, where, target.need_path)))


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
    improvement: Annotated[
        str, typer.Option(metavar="ID", callback=whole, help="The improvement that a recovery belongs to.")
    ] = "",
    target: Annotated[Metric | None, typer.Option(help="What an improvement is to move, where it hurts.")] = None,
    map_id: Annotated[
        str,
        typer.Option("--map", metavar="ID", help="With --target: whose touchpoint it is."),
    ] = "",
    new_customer: Annotated[
        bool, typer.Option("--new-customer", help="Also for somebody of whom nothing was recorded yet.")
    ] = False,
    actor: Actor,
    request_id: RequestId,
    as_json: Json = False,
) -> None:
    """Open a recovery or an improvement by hand."""
    if map_id and not (target and touchpoint):
        raise typer.BadParameter("--map goes with --target and --touchpoint")
    if kind is Kind.RECOVERY and not customer_id.strip():
        raise typer.BadParameter("--customer is required for a recovery")
    request = _message(
        pb.OpenActionRequest,
        kind=kind,
        customer_id=customer_id,
        title=title,
        reasons=reason or (),
        touchpoint=touchpoint,
        need_path=need,
        priority=priority,
        owner=owner,
        due_at=due_at,
        improvement_id=improvement,
        target=Target(metric=target.value, touchpoint=touchpoint, need_path=need, map_id=map_id) if target else None,
        actor=actor,
        request_id=request_id,
    )
    run(naming.check(Addresses.configured(), [touchpoint], need, map_id))
    if customer_id and not new_customer:
        otherwise = "--new-customer opens it all the same, for somebody who is new"
        run(naming.check_customer(Addresses.configured(), customer_id, otherwise))
    _change("OpenAction", request, as_json=as_json)


#: Each call that changes one action: the command, what it does, and its own options (type and help, and the default;
#: none: required). All of them take the action, who does it, the request and the revision, too.
_CHANGES: Sequence[tuple[str, str, str, Mapping[str, tuple[Any, Any]]]] = (
    (
        "accept",
        "AcceptAction",
        "Take an action on.",
        {
            "owner": (Annotated[str, typer.Option(help="Who will work on it; without it, the actor.")], ""),
            "reason": (Reason, ""),
        },
    ),
    (
        "complete",
        "CompleteAction",
        "Finish an action with its result.",
        {
            "result": (
                Annotated[Result, typer.Option(help="What the customer, or the measure, said at the end.")],
                ...,
            ),
            "note": (Annotated[str, typer.Option(help="What was done.")], ""),
        },
    ),
    ("decline", "DeclineAction", "Say that it will not be done, and why.", {"reason": (Reason, ...)}),
    (
        "assign",
        "AssignAction",
        "Give an action to somebody.",
        {"owner": (Annotated[str, typer.Option(help="Who has it from now on.")], ...), "reason": (Reason, "")},
    ),
    (
        "prioritize",
        "PrioritizeAction",
        "Say how urgent an action is.",
        {"priority": (Annotated[PriorityName, typer.Option(help="From now on.")], ...), "reason": (Reason, "")},
    ),
    (
        "reschedule",
        "RescheduleAction",
        "Say by when an action has to be completed.",
        {"due_at": (DueAt, ...), "reason": (Reason, ...)},
    ),
    ("start", "StartAction", "Begin to work on an action.", {"reason": (Reason, "")}),
    (
        "contact",
        "RecordContact",
        "Tell that somebody tried to speak to the customer of a recovery.",
        {
            "channel": (Annotated[Channel, typer.Option(help="How.")], ...),
            "reached": (
                Annotated[bool, typer.Option("--reached/--missed", help="Whether the customer was reached.")],
                ...,
            ),
            "note": (Annotated[str, typer.Option(help="What was said.")], ""),
        },
    ),
    (
        "remedy",
        "OfferRemedy",
        "Tell what the customer of a recovery was offered.",
        {
            "remedy": (Annotated[Remedy, typer.Option("--kind", help="What kind of remedy.")], ...),
            "note": (Annotated[str, typer.Option(help="What exactly.")], ""),
        },
    ),
    (
        "verify",
        "VerifyAction",
        "Tell that an improvement helped, and what shows it.",
        {
            "reason": (Annotated[str, typer.Option(help="What shows it.")], ...),
            "despite_impact": (
                Annotated[bool, typer.Option("--despite-impact", help="Though the measure got worse.")],
                False,
            ),
        },
    ),
    ("reopen", "ReopenAction", "Take an action up again.", {"reason": (Reason, ...), "due_at": (DueAt, None)}),
    (
        "comment",
        "CommentAction",
        "Add a comment to an action.",
        {"text": (Annotated[str, typer.Option(help="What to say.")], ...)},
    ),
)


#: Commands by the calls that they make, as the service tells what is allowed.
_COMMANDS = {call: name for name, call, _, _ in _CHANGES} | {"OpenAction": "open", "LinkActions": "link"}
_CALL = re.compile(rf"\b({'|'.join(_COMMANDS)})\b")


def _add(name: str, call: str, does: str, options: Mapping[str, tuple[Any, Any]]) -> None:
    def command(*, as_json: bool, **fields: Any) -> None:
        _change(call, _message(getattr(pb, f"{call}Request"), **fields), as_json=as_json)

    def parameter(of: str, type_: Any, default: Any) -> Parameter:
        given = Parameter.empty if default is ... else default
        return Parameter(of, Parameter.KEYWORD_ONLY, annotation=type_, default=given)

    told: Any = command
    # There typer reads the options.
    told.__signature__ = Signature(
        [
            Parameter("action_id", Parameter.POSITIONAL_OR_KEYWORD, annotation=ActionId),
            *(parameter(of, *option) for of, option in options.items()),
            parameter("actor", Actor, ...),
            parameter("request_id", RequestId, ...),
            parameter("expected_revision", Revision, None),
            parameter("as_json", Json, False),
        ]
    )
    told.__annotations__ = {each.name: each.annotation for each in told.__signature__.parameters.values()}
    app.command(name, help=does)(command)


for _each in _CHANGES:
    _add(*_each)


@app.command("link")
def link_actions(
    action_ids: Annotated[
        list[str], typer.Argument(metavar="RECOVERY…", callback=whole, help="Their ids; `actions list` tells them.")
    ],
    *,
    improvement: Annotated[
        str, typer.Option("--to", metavar="ID", callback=whole, help="The improvement; empty takes them away.")
    ],
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
        with _in_commands():
            async with clients.actions(Addresses.configured()) as actions:
                answer = await actions.LinkActions(request, timeout=DEADLINE_S)
        if as_json:
            show.print_json(answer)
        else:
            count = len(answer.actions)
            told = "1 recovery is" if count == 1 else f"{show.count(count)} recoveries are"
            show.console().print(f"{told} under {improvement or 'none'}")

    run(work())


@app.command("watch")
def watch_actions(
    *,
    action_id: Annotated[str, typer.Option("--action", metavar="ID", callback=whole, help="Only this one.")] = "",
    kind: Annotated[Kind | None, typer.Option(help="Only of this kind.")] = None,
    customer_id: Annotated[str, typer.Option("--customer", metavar="ID", help="Only for this customer.")] = "",
    owner: Annotated[str, typer.Option(help="Only those of this owner.")] = "",
    touchpoint: Annotated[str, typer.Option(help="Only those about this touchpoint.")] = "",
    improvement: Annotated[
        str, typer.Option(metavar="ID", callback=whole, help="This improvement and its recoveries.")
    ] = "",
    after: Annotated[int, typer.Option(metavar="POSITION", min=0, help="Go on behind this position.")] = 0,
    limit: Annotated[int, typer.Option(min=0, help="End after so many changes; 0 is never.")] = 0,
    as_json: Json = False,
) -> None:
    """Show every change as soon as it is recorded, until Ctrl-C."""
    request = _message(
        pb.WatchActionsRequest,
        action_id=action_id,
        kind=kind,
        customer_id=customer_id,
        owner=owner,
        touchpoint=touchpoint,
        improvement_id=improvement,
        after_position=after,
    )
    follow(_watch(request, limit, as_json=as_json))


#: The end of a watch that means: come again from where you were.
_COME_AGAIN = (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED)


async def _watch(request: pb.WatchActionsRequest, limit: int, *, as_json: bool) -> None:
    await naming.check(Addresses.configured(), [request.touchpoint], "")
    out, notes, told, away = show.console(), show.console(stderr=True), 0, False
    async with clients.actions(Addresses.configured()) as actions:
        while True:
            try:
                async for answer in actions.WatchActions(request):
                    if answer.store_away is not away:
                        away = answer.store_away
                        notes.print(
                            "the event store is away, changes are shown when it is back" if away else "it is back"
                        )
                    for each in answer.changes:
                        _tell_change(out, each, as_json=as_json)
                        told += 1
                        if told == limit:
                            return
                    request.after_position = answer.position
            except grpc.aio.AioRpcError as error:
                # Before the watch began, nobody was there.
                lost = error.code() is grpc.StatusCode.UNAVAILABLE and request.after_position
                if error.code() not in _COME_AGAIN and not lost:
                    raise
                if lost:
                    notes.print("the connection was lost, trying again")
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
        key = show.name(ActionState.DESCRIPTOR, number) if number else show.place(each.name, each.key)
        lines.add_row(
            show.plain(key or "none"),
            show.name(ActionKind.DESCRIPTOR, each.kind),
            show.count(each.count),
            show.count(each.overdue) if each.overdue else "",
            show.age(each.mean_age_s),
            show.age(each.oldest_age_s),
        )
    return lines


def _change(call: str, request: Any, *, as_json: bool) -> None:
    async def work() -> None:
        with _in_commands():
            async with clients.actions(Addresses.configured()) as actions:
                answer = await getattr(actions, call)(request, timeout=DEADLINE_S)
        _tell(answer.action, as_json=as_json)
        if call == "VerifyAction" and not as_json:
            await _tell_shown(request.action_id)

    run(work())


async def _tell_shown(action_id: str) -> None:
    """Tell what was verified, by what the measure shows: it may be nothing."""
    async with clients.actions(Addresses.configured()) as actions:
        found = await actions.GetAction(pb.GetActionRequest(action_id=action_id), timeout=DEADLINE_S)
    told = [each for each in found.history if each.event_type.endswith(".ActionVerified")][-1:]
    for each in told:
        show.console(stderr=True).print(f"note: {each.actor} {each.summary}: {each.reason}", soft_wrap=True)


@contextlib.contextmanager
def _in_commands() -> Iterator[None]:
    """Name commands in a refusal as they are typed here."""
    try:
        yield
    except CommandError as error:
        raise CommandError(_CALL.sub(lambda call: _COMMANDS[call[0]], str(error))) from error


def _tell(action: pb.Action, *, as_json: bool) -> None:
    if as_json:
        show.print_json(action)
    else:
        show.console().print(_details(action))
