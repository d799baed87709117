"""What the front door refused: `rejected list|show|resubmit|discard`."""

import json
import re
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from google.protobuf.json_format import MessageToJson, ParseDict, ParseError
from google.protobuf.timestamp_pb2 import Timestamp
from rich.table import Table

from recorrido.ingest.v1 import rejection_service_pb2 as pb
from recorrido.ingest.v1.ingest_service_pb2 import RecordStatus
from recorrido.ingest.v1.interaction_pb2 import Interaction
from recorrido.ingest.v1.rejection_pb2 import RejectionState
from recorrido.ingest.v1.rejection_service_pb2_grpc import RejectionServiceStub
from services.cli import show
from services.cli.clients import DEADLINE_S, Addresses, channel
from services.cli.failures import CommandError
from services.cli.options import Actor, Json, Limit, run, since, until

app = typer.Typer(help="Interactions that were refused: why, and what becomes of them.", no_args_is_help=True)

_PAGE = 1000


class State(StrEnum):
    OPEN = "open"
    RESUBMITTED = "resubmitted"
    DISCARDED = "discarded"


#: Why the front door refuses, and keeps.
_REASONS = ("INVALID", "CONTENT_DIFFERS")


def reason_of(text: str) -> str:
    """Read a reason. Raises BadParameter: nothing is kept for such a one."""
    if text.upper() not in _REASONS:
        # As an import tells it.
        hint = "; what an import could not read is kept as INVALID" if text.upper() == "UNREADABLE" else ""
        raise typer.BadParameter(f"{text!r} is none of {', '.join(_REASONS)}{hint}")
    return text.upper()


RejectionId = Annotated[str, typer.Argument(metavar="ID", help="The rejection; `rejected list` tells it.")]


@app.command("list")
def list_rejected(
    *,
    state: Annotated[State | None, typer.Option(help="Only in this state.")] = None,
    source: Annotated[str, typer.Option(help="Only from this source.")] = "",
    reason: Annotated[
        str | None,
        typer.Option(parser=reason_of, metavar="NAME", help="Only for this reason: INVALID or CONTENT_DIFFERS."),
    ] = None,
    field: Annotated[str, typer.Option(help="Only where this field broke a rule, such as ratings.value.")] = "",
    customer_id: Annotated[str, typer.Option("--customer", metavar="ID", help="Only of this customer.")] = "",
    from_time: Annotated[Timestamp | None, since("Only rejected at or after.")] = None,
    to_time: Annotated[Timestamp | None, until("Only rejected before.")] = None,
    limit: Limit = 50,
    as_json: Json = False,
) -> None:
    """List what was refused, newest first."""
    request = pb.ListRejectedRequest(
        state=show.names(RejectionState.DESCRIPTOR)[state.value]
        if state
        else RejectionState.REJECTION_STATE_UNSPECIFIED,
        source=source,
        reason=reason or "",
        field=field,
        customer_id=customer_id,
        from_time=from_time,
        to_time=to_time,
    )
    run(_list(request, limit, as_json=as_json))


async def _list(request: pb.ListRejectedRequest, limit: int, *, as_json: bool) -> None:
    found = pb.ListRejectedResponse()
    address = Addresses.configured().ingest
    async with channel("ingest", address) as opened:
        stub = RejectionServiceStub(opened)
        while True:
            request.page_size = min(_PAGE, limit - len(found.rejections))
            page = await stub.ListRejected(request, timeout=DEADLINE_S)
            found.rejections.extend(page.rejections)
            found.total = page.total
            found.next_page_token = request.page_token = page.next_page_token
            if not page.next_page_token or len(found.rejections) >= limit:
                break
    if as_json:
        show.print_json(found)
        return
    out = show.console()
    lines = show.table(
        *("id", "rejected (UTC)", "state", "source", "interaction~", "customer~", "why~"),
        spared=("rejected (UTC)", "state", "source", "customer"),
    )
    for each in found.rejections:
        lines.add_row(
            each.rejection_id,
            show.when(each.rejected_at),
            show.name(RejectionState.DESCRIPTOR, each.state),
            show.plain(each.interaction.source),
            show.plain(each.interaction.interaction_id),
            show.plain(each.interaction.customer.customer_id),
            show.plain(_why(each)),
        )
    out.print(show.filled(lines))
    if len(found.rejections) < found.total:
        out.print(f"{show.count(len(found.rejections))} of {show.count(found.total)} are shown; --limit shows more")


def _why(rejection: pb.Rejection) -> str:
    broken = "; ".join(f"{each.field}: {each.rule}" for each in rejection.violations)
    return broken or f"{rejection.reason}: {rejection.message}"


@app.command("show")
def show_rejected(
    rejection_id: RejectionId,
    *,
    interaction: Annotated[
        bool, typer.Option("--interaction", help="Print the interaction alone, as JSON to correct and resubmit.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show what was refused, every rule it breaks, and what became of it."""
    run(_show(rejection_id, interaction=interaction, as_json=as_json))


async def _show(rejection_id: str, *, interaction: bool, as_json: bool) -> None:
    async with channel("ingest", Addresses.configured().ingest) as opened:
        found = await RejectionServiceStub(opened).GetRejected(
            pb.GetRejectedRequest(rejection_id=rejection_id), timeout=DEADLINE_S
        )
    if interaction:
        sys.stdout.write(MessageToJson(found.rejection.interaction, ensure_ascii=False) + "\n")
    elif as_json:
        show.print_json(found)
    else:
        _print(found.rejection)


def _print(rejection: pb.Rejection) -> None:
    out = show.console()
    lines = show.table("", "~")
    for title, text in (
        ("id", rejection.rejection_id),
        ("state", show.name(RejectionState.DESCRIPTOR, rejection.state)),
        ("rejected", show.when(rejection.rejected_at)),
        ("reason", rejection.reason),
        ("sent by", rejection.client_id),
        ("source", rejection.interaction.source),
        ("interaction", rejection.interaction.interaction_id),
        ("customer", rejection.interaction.customer.customer_id),
        ("touchpoint", rejection.interaction.touchpoint),
        ("words", rejection.interaction.verbatim.text),
        ("resolved", show.when(rejection.resolved_at)),
        ("by", rejection.actor),
        ("how", rejection.note),
        ("recorded as", rejection.event_id),
    ):
        if text:
            lines.add_row(title, show.plain(text))
    out.print(lines)
    if rejection.violations:
        out.print(_pairs("Rules broken", [(each.field, each.rule) for each in rejection.violations]))
    else:
        out.print(show.plain(rejection.message))
    if rejection.altered:
        out.print(_pairs("Not kept as it came", [(each.field, each.note) for each in rejection.altered]))


def _pairs(title: str, pairs: list[tuple[str, str]]) -> Table:
    lines = show.table("field", "~", title=title)
    for field, text in pairs:
        lines.add_row(show.plain(field), show.plain(text))
    return lines


@app.command()
def resubmit(
    rejection_id: RejectionId,
    *,
    corrected: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="A corrected interaction as JSON, see show --interaction; - reads it from stdin."
        ),
    ] = None,
    actor: Actor,
    as_json: Json = False,
) -> None:
    """Record it now, as it was or as corrected. Doing so twice records it once."""
    request = pb.ResubmitRejectedRequest(rejection_id=rejection_id, actor=actor)
    if corrected is not None:
        request.interaction.CopyFrom(_read(corrected))
    run(_resubmit(request, as_json=as_json))


def _read(path: Path) -> Interaction:
    try:
        content = sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
    except OSError as error:
        raise CommandError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        told = json.loads(content)
        if not isinstance(told, dict):
            raise ParseError("expected keys and values")  # noqa: TRY301 - told as the others are
        return ParseDict(told, Interaction())
    except json.JSONDecodeError as error:
        raise CommandError(f"{path}, line {error.lineno}, column {error.colno}: is no JSON: {error.msg}") from error
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise CommandError(f"{path}, line {line}: cannot be read: it is not UTF-8 text") from error
    except ParseError as error:
        unknown = _UNKNOWN_KEY.search(str(error))
        wrong = f"{unknown[2] or 'Interaction'}: unknown key {unknown[1]!r}" if unknown else str(error).splitlines()[0]
        raise CommandError(
            f"{path}: is no interaction: {wrong}; 'rejected show ID --interaction' prints one"
        ) from error


#: How protobuf tells of a key that a message does not have, and where.
_UNKNOWN_KEY = re.compile(r'has no field named "([^"]*)"(?: at "([^"]*)")?')


async def _resubmit(request: pb.ResubmitRejectedRequest, *, as_json: bool) -> None:
    async with channel("ingest", Addresses.configured().ingest) as opened:
        found = await RejectionServiceStub(opened).ResubmitRejected(request, timeout=DEADLINE_S)
    if as_json:
        show.print_json(found)
        return
    news = found.result.status == RecordStatus.RECORD_STATUS_RECORDED
    show.console().print(f"{'recorded' if news else 'was recorded before'}: {found.result.event_id}")


@app.command()
def discard(
    rejection_id: RejectionId,
    *,
    reason: Annotated[
        str | None, typer.Option(help="Why it will not be recorded; needed, and asked for on a terminal.")
    ] = None,
    actor: Actor,
    as_json: Json = False,
) -> None:
    """Say that it will not be recorded, and why. It stays to be seen."""
    if reason is None and sys.stdin.isatty():
        reason = typer.prompt("Why will it not be recorded?", err=True)
    if reason is None or not reason.strip():
        raise typer.BadParameter("tell why it will not be recorded", param_hint="--reason")
    request = pb.DiscardRejectedRequest(rejection_id=rejection_id, reason=reason, actor=actor)
    run(_discard(request, as_json=as_json))


async def _discard(request: pb.DiscardRejectedRequest, *, as_json: bool) -> None:
    async with channel("ingest", Addresses.configured().ingest) as opened:
        found = await RejectionServiceStub(opened).DiscardRejected(request, timeout=DEADLINE_S)
    if as_json:
        show.print_json(found)
        return
    show.console().print(f"{show.name(RejectionState.DESCRIPTOR, found.rejection.state)}: {found.rejection.note}")
