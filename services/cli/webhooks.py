"""Who is told of actions by HTTP: `webhook register|list|pause|resume|rotate|replay|deliveries|delete`."""

from enum import StrEnum
from typing import Annotated, Any

import typer
from google.protobuf.timestamp_pb2 import Timestamp

from recorrido.actions.v1 import webhook_service_pb2 as pb
from recorrido.actions.v1.webhook_service_pb2_grpc import WebhookServiceStub
from services.cli import clients, naming, show
from services.cli.actions import Reason
from services.cli.clients import DEADLINE_S, Addresses
from services.cli.options import Actor, Json, Limit, RequestId, event_types, moment, one_of_types, run

app = typer.Typer(help="Who is told of actions by HTTP.", no_args_is_help=True)

WebhookId = Annotated[str, typer.Argument(metavar="ID", help="The webhook; `webhook list` tells it.")]


def action_type(text: str) -> str:
    """Read the name of a type of event of an action, or how some begin. Raises BadParameter."""
    of_actions = [type_ for type_ in event_types("actions") if type_.__struct_fields__[0] == "action_id"]
    if not text.endswith("*"):
        return one_of_types(text, of_actions)
    names = [str(type_.type_name) for type_ in of_actions]
    for prefix in (text[:-1], f"{_PACKAGE}{text[:-1]}"):
        if any(name.startswith(prefix) for name in names):
            return f"{prefix}*"
    told = ", ".join(name.removeprefix(_PACKAGE) for name in names)
    raise typer.BadParameter(f"no event of an action begins with {text[:-1]!r}; there are {told}")


_PACKAGE = "recorrido.actions.v1."


class State(StrEnum):
    PENDING = "pending"
    DELIVERED = "delivered"
    ABANDONED = "abandoned"


async def _ask(call: str, request: Any) -> Any:
    addresses = Addresses.configured()
    async with clients.channel("actions", addresses.actions) as channel:
        return await getattr(WebhookServiceStub(channel), call)(request, timeout=DEADLINE_S)


@app.command()
def register(
    url: Annotated[str, typer.Argument(metavar="URL", help="Where events are sent to, https.")],
    *,
    types: Annotated[
        list[str] | None,
        typer.Option(
            "--type",
            parser=action_type,
            metavar="NAME",
            help="Only this type of event of actions, such as ActionOpened, or those that begin so where * ends it;"
            " may be repeated.",
        ),
    ] = None,
    description: Annotated[str, typer.Option(help="What it is for.")] = "",
    actor: Actor,
    request_id: RequestId,
    as_json: Json = False,
) -> None:
    """Tell URL of every change of every action from now on; prints the secret, this once."""
    request = pb.RegisterWebhookRequest(
        url=url, event_types=types or [], description=description, actor=actor, request_id=request_id
    )

    async def work() -> None:
        answer = await _ask("RegisterWebhook", request)
        if as_json:
            show.print_json(answer)
            return
        show.console().print(f"webhook {answer.webhook.webhook_id}", soft_wrap=True)
        told = answer.secret or "was told before, and is not told again: webhook rotate makes another"
        show.console().print(f"secret {told}", soft_wrap=True)

    run(work())


@app.command("list")
def list_webhooks(*, as_json: Json = False) -> None:
    """List the webhooks, with how much waits and how much was abandoned."""

    async def work() -> None:
        answer = await _ask("ListWebhooks", pb.ListWebhooksRequest())
        if as_json:
            show.print_json(answer)
            return
        lines = show.table(
            *("url~", "types~", "state", "waiting#", "abandoned#", "registered (UTC)", "by", "key", "id"),
            spared=("registered (UTC)", "by", "key", "types", "abandoned", "waiting"),
        )
        for each in answer.webhooks:
            lines.add_row(
                show.plain(each.url),
                show.plain(", ".join(each.event_types) or "all"),
                show.name(pb.WebhookState.DESCRIPTOR, each.state),
                show.count(each.pending),
                show.count(each.abandoned),
                show.when(each.registered_at),
                show.plain(each.registered_by),
                each.key_id or "none: rotate",
                each.webhook_id,
            )
        show.console().print(show.filled(lines))

    run(work())


@app.command()
def pause(webhook_id: WebhookId, *, reason: Reason = "", actor: Actor, request_id: RequestId) -> None:
    """Send nothing until it is resumed; what happens meanwhile waits."""
    _change("PauseWebhook", "paused", webhook_id=webhook_id, reason=reason, actor=actor, request_id=request_id)


@app.command()
def resume(webhook_id: WebhookId, *, reason: Reason = "", actor: Actor, request_id: RequestId) -> None:
    """Send again, what waited first."""
    _change("ResumeWebhook", "resumed", webhook_id=webhook_id, reason=reason, actor=actor, request_id=request_id)


@app.command()
def delete(webhook_id: WebhookId, *, reason: Reason = "", actor: Actor, request_id: RequestId) -> None:
    """Delete it for good; what waits is not sent."""
    _change("DeleteWebhook", "deleted", webhook_id=webhook_id, reason=reason, actor=actor, request_id=request_id)


@app.command()
def replay(
    webhook_id: WebhookId,
    *,
    since: Annotated[
        Timestamp | None, typer.Option(parser=moment, metavar="TIME", help="Only of events recorded since (ISO 8601).")
    ] = None,
    delivered: Annotated[bool, typer.Option("--delivered", help="What was delivered, too.")] = False,
    reason: Reason = "",
    actor: Actor,
    request_id: RequestId,
) -> None:
    """Send again what was abandoned."""
    fields = {"webhook_id": webhook_id, "reason": reason, "actor": actor, "request_id": request_id}
    _change("ReplayWebhook", "is sent again", recorded_since=since, delivered_too=delivered, **fields)


@app.command()
def rotate(
    webhook_id: WebhookId, *, reason: Reason = "", actor: Actor, request_id: RequestId, as_json: Json = False
) -> None:
    """Make another secret and print it, this once; for a day both sign."""
    request = pb.RotateWebhookSecretRequest(webhook_id=webhook_id, reason=reason, actor=actor, request_id=request_id)

    async def work() -> None:
        answer = await _ask("RotateWebhookSecret", request)
        if as_json:
            show.print_json(answer)
        else:
            show.console().print(f"secret {answer.secret or 'was told before, and is not told again'}", soft_wrap=True)

    run(work())


@app.command()
def deliveries(
    webhook_id: WebhookId,
    *,
    state: Annotated[State | None, typer.Option(help="Only in this state.")] = None,
    limit: Limit = 50,
    as_json: Json = False,
) -> None:
    """List the deliveries of a webhook, those of the last events first."""
    number = show.names(pb.DeliveryState.DESCRIPTOR)[state.value] if state else pb.DELIVERY_STATE_UNSPECIFIED
    request = pb.ListDeliveriesRequest(webhook_id=webhook_id, state=number, page_size=min(limit, 1000))

    async def work() -> None:
        answer = await _ask("ListDeliveries", request)
        if not answer.deliveries:
            known = (await _ask("ListWebhooks", pb.ListWebhooksRequest())).webhooks
            if webhook_id not in (ids := [each.webhook_id for each in known]):
                raise naming.unknown("webhook", webhook_id, ids, "recorrido webhook list")
        if as_json:
            show.print_json(answer)
            return
        lines = show.table("event", "position#", "state", "attempts#", "next (UTC)", "answer~", "id")
        for each in answer.deliveries:
            waits = each.state == pb.DELIVERY_STATE_PENDING
            lines.add_row(
                each.event_type.rpartition(".")[2],
                str(each.position),
                show.name(pb.DeliveryState.DESCRIPTOR, each.state),
                show.count(each.attempts),
                show.when(each.next_at) if waits else "",
                show.plain(each.last_error or (str(each.last_status) if each.last_status else "")),
                each.delivery_id,
            )
        show.console().print(show.filled(lines))

    run(work())


def _change(call: str, done: str, **fields: Any) -> None:
    async def work() -> None:
        await _ask(call, getattr(pb, f"{call}Request")(**fields))
        show.console().print(f"{done}: {fields['webhook_id']}", soft_wrap=True)

    run(work())
