"""What is done about it: `actions list|show|open|accept|complete`."""

import getpass
import os
import uuid
from enum import StrEnum
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from recorrido.actions.v1 import actions_service_pb2 as pb
from recorrido.actions.v1.action_pb2 import ActionKind, ActionResult, ActionState
from services.cli import clients, show
from services.cli.clients import DEADLINE_S, Addresses
from services.cli.options import Json, Limit, run

app = typer.Typer(help="Recoveries and improvements: what is done about it.", no_args_is_help=True)

_PAGE = 1000


class Kind(StrEnum):
    RECOVERY = "recovery"
    IMPROVEMENT = "improvement"


class State(StrEnum):
    OPEN = "open"
    ACCEPTED = "accepted"
    COMPLETED = "completed"


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


@app.command("list")
def list_actions(
    *,
    state: Annotated[State | None, typer.Option(help="Only in this state.")] = None,
    kind: Annotated[Kind | None, typer.Option(help="Only of this kind.")] = None,
    customer_id: Annotated[str, typer.Option("--customer", metavar="ID", help="Only for this customer.")] = "",
    owner: Annotated[str, typer.Option(help="Only those of this owner.")] = "",
    limit: Limit = 50,
    as_json: Json = False,
) -> None:
    """List actions, newest first."""
    request = pb.ListActionsRequest(
        state=show.names(ActionState.DESCRIPTOR)[state.value] if state else ActionState.ACTION_STATE_UNSPECIFIED,
        kind=show.names(ActionKind.DESCRIPTOR)[kind.value] if kind else ActionKind.ACTION_KIND_UNSPECIFIED,
        customer_id=customer_id,
        owner=owner,
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


def _table(found: pb.ListActionsResponse) -> Table:
    lines = show.table("opened (UTC)", "kind", "state", "customer~", "title~", "owner", "result", "id")
    for each in found.actions:
        lines.add_row(
            show.when(each.opened_at),
            show.name(ActionKind.DESCRIPTOR, each.kind),
            show.name(ActionState.DESCRIPTOR, each.state),
            show.plain(each.customer_id),
            show.plain(each.title),
            show.plain(each.owner),
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
    lines = show.table("recorded (UTC)", "who", "what~", "trace", title="History")
    for entry in found.history:
        lines.add_row(
            show.when(entry.recorded_at), show.plain(entry.actor), show.plain(entry.summary), show.plain(entry.trace_id)
        )
    out.print(lines)


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
        ("owner", action.owner),
        ("result", show.name(ActionResult.DESCRIPTOR, action.result)),
        ("opened", show.when(action.opened_at)),
        ("signal", action.signal_id),
        ("id", action.action_id),
        ("revision", str(action.revision)),
    ):
        if text:
            lines.add_row(Text(title, style="bold"), show.plain(text))
    return lines


@app.command("open")
def open_action(
    title: Annotated[str, typer.Argument(help="What is to be done.")],
    *,
    kind: Annotated[Kind, typer.Option(help="For one customer, or for everyone.")] = Kind.RECOVERY,
    customer_id: Annotated[str, typer.Option("--customer", metavar="ID", help="Required for a recovery.")] = "",
    reason: Annotated[list[str] | None, typer.Option(help="Why; may be given several times.")] = None,
    touchpoint: Annotated[str, typer.Option(help="Where it hurts.")] = "",
    need: Annotated[str, typer.Option(metavar="PATH", help="The need at stake, such as delivery/speed.")] = "",
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
    actor: Actor,
    request_id: RequestId,
    expected_revision: Revision = None,
    as_json: Json = False,
) -> None:
    """Take an action on."""
    request = pb.AcceptActionRequest(
        action_id=action_id, actor=actor, owner=owner, request_id=request_id, expected_revision=expected_revision
    )

    async def work() -> None:
        async with clients.actions(Addresses.configured()) as actions:
            answer = await actions.AcceptAction(request, timeout=DEADLINE_S)
        _tell(answer.action, as_json=as_json)

    run(work())


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

    async def work() -> None:
        async with clients.actions(Addresses.configured()) as actions:
            answer = await actions.CompleteAction(request, timeout=DEADLINE_S)
        _tell(answer.action, as_json=as_json)

    run(work())


def _tell(action: pb.Action, *, as_json: bool) -> None:
    if as_json:
        show.print_json(action)
    else:
        show.console().print(_details(action))
