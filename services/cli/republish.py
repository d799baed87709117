"""Publish a part of the history again, for a subscriber who lost what it had made of it: `republish`."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer
from google.protobuf.timestamp_pb2 import Timestamp

from recorrido.relay.v1 import relay_service_pb2 as pb
from recorrido.relay.v1.relay_service_pb2_grpc import RelayServiceStub
from services.cli import show
from services.cli.clients import Addresses, channel
from services.cli.options import event_type, moment, run

if TYPE_CHECKING:
    from recorrido.relay.v1.relay_service_pb2_grpc import RelayServiceAsyncStub

#: A part that takes longer is gone on with by the same command.
_WITHIN_S = 3600.0


@dataclass(frozen=True, slots=True)
class Place:
    """A place in the history: one of the two."""

    position: int | None = None
    time: Timestamp | None = None


def place(text: str) -> Place:
    """Read a position in the store, or ISO 8601.

    Raises:
        BadParameter: it is neither.
    """
    if text.isdigit():
        return Place(position=int(text))
    try:
        return Place(time=moment(text))
    except typer.BadParameter:
        raise typer.BadParameter(
            f"{text!r} is neither a position (recorrido-position of a message) nor a time such as 2026-09-30T12:00:00Z"
        ) from None


def replay_name(text: str) -> str:
    """Read the name of a replay.

    Raises:
        BadParameter: NATS could not take it as a part of a subject.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", text):
        raise typer.BadParameter("1 to 64 letters, digits, - and _")
    return text


def republish(
    *,
    start: Annotated[
        Place,
        typer.Option(
            "--from",
            parser=place,
            metavar="POSITION|TIME",
            help="Begin with the event at this position, or with what was recorded at or after a time. 0: everything.",
        ),
    ],
    end: Annotated[
        Place | None,
        typer.Option(
            "--to",
            parser=place,
            metavar="POSITION|TIME",
            help="End with the event at this position, or with what was recorded by then; without it, with what the "
            "bus holds now.",
        ),
    ] = None,
    types: Annotated[
        list[str] | None,
        typer.Option("--type", parser=event_type, metavar="NAME", help="Only this type; may be given several times."),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option("--as", parser=replay_name, metavar="NAME", help="Name of the replay. The same again goes on."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print how it ended as proto JSON.")] = False,
) -> None:
    """Publish a part of the history again, into a stream of its own; the main stream is not touched."""
    request = pb.RepublishRequest(replay_id=name or f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}", types=types or [])
    if start.time is not None:
        request.from_time.CopyFrom(start.time)
    elif start.position is not None:
        request.from_position = start.position
    if end is not None and end.time is not None:
        request.to_time.CopyFrom(end.time)
    elif end is not None and end.position is not None:
        request.to_position = end.position
    run(_republish(request, as_json=as_json))


async def _republish(request: pb.RepublishRequest, *, as_json: bool) -> None:
    told: Sequence[pb.RepublishResponse] = ()
    bar = show.progress(quiet=as_json)
    if not as_json:
        bar.console.print(
            f"Replay {request.replay_id}: should it be cut off, the same with --as goes on.", markup=False
        )
    async with channel("relay", Addresses.configured().relay) as opened:
        stub: RelayServiceAsyncStub = RelayServiceStub(opened)
        with bar:
            task = bar.add_task("Republishing", total=None, told="")
            async for progress in stub.Republish(request, timeout=_WITHIN_S):
                told = (*told[:1], progress)
                first = told[0].position
                span = max(progress.end_position - first, 1)
                done = span if progress.complete else progress.position - first
                bar.update(task, total=span, completed=done, told=f"{progress.messages:,} messages")
    last = told[-1]
    if as_json:
        show.print_json(last)
        return
    out = show.console()
    out.print(f"{last.messages:,} messages are in the stream {last.stream}.")
    if not last.messages:
        out.print("Nothing that is asked for was recorded there.")
        return
    out.print(f"Subscribe to {last.subjects} there, until nothing is pending; then go on with your own consumer.")
    out.print("The stream forgets them after seven days; delete it when you are done.")
