"""Options that several commands share."""

import asyncio
import difflib
import getpass
import importlib
import os
import uuid
from collections.abc import Coroutine, Iterable
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from google.protobuf.timestamp_pb2 import Timestamp

from services.cli import pipes

Json = Annotated[bool, typer.Option("--json", help="Print the answer as proto JSON.")]
MapId = Annotated[str, typer.Option("--map", metavar="ID", help="The journey map; without it, the one published last.")]
Actor = Annotated[
    str,
    typer.Option(
        default_factory=lambda: os.environ.get("RECORRIDO_ACTOR") or getpass.getuser(),
        show_default=False,
        help="Who does it; RECORRIDO_ACTOR, else you.",
    ),
]
RequestId = Annotated[
    str,
    typer.Option(
        default_factory=lambda: str(uuid.uuid4()),
        show_default=False,
        help="Repeating one changes nothing the second time.",
    ),
]
Limit = Annotated[int, typer.Option(min=1, help="How many at most.")]


def moment(text: str) -> Timestamp:
    """Read ISO 8601; a time without an offset is UTC.

    Raises:
        BadParameter: it is no time.
    """
    try:
        found = datetime.fromisoformat(text)
        timestamp = Timestamp()
        timestamp.FromDatetime(found if found.tzinfo else found.replace(tzinfo=UTC))
    except (ValueError, OverflowError):
        raise typer.BadParameter(f"{text!r} is no ISO 8601 time such as 2026-09-30T12:00:00Z") from None
    return timestamp


def event_type(text: str) -> str:
    """Return the full name of a type of event, which may be told by its last part.

    Raises:
        BadParameter: there is none of that name; those that there are are told.
    """
    return one_of_types(
        text, [type_ for package in ("ingest", "inference", "journey", "actions") for type_ in event_types(package)]
    )


def event_types(package: str) -> list[Any]:
    """Return the events of a service."""
    return list(importlib.import_module(f"recorrido.{package}.v1.events").EVENTS)


def one_of_types(text: str, types: Iterable[Any]) -> str:
    """As `event_type`, of these alone."""
    known = {type_.type_name.rpartition(".")[2]: type_.type_name for type_ in types}
    name = text.rpartition(".")[2]
    if text not in {name, known.get(name)} or name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        meant = f"did you mean {near[0]}? " if near else ""
        raise typer.BadParameter(f"{text!r} is no event; {meant}there are {', '.join(known)}")
    return str(known[name])


def _span(context: typer.Context, end: str, value: Timestamp | None) -> Timestamp | None:
    """Keep one end of a time span until the other is known, whichever is read first."""
    ends = context.meta.setdefault("span", {})
    ends[end] = value
    start, stop = ends.get("--from"), ends.get("--to")
    if start is not None and stop is not None and stop.ToNanoseconds() <= start.ToNanoseconds():
        raise typer.BadParameter("has to be after --from", param_hint="--to")
    return value


def _since(context: typer.Context, value: Timestamp | None) -> Timestamp | None:
    return _span(context, "--from", value)


def _until(context: typer.Context, value: Timestamp | None) -> Timestamp | None:
    return _span(context, "--to", value)


def since(does: str) -> Any:
    """Return the option --from, which has to be before --to."""
    return typer.Option("--from", parser=moment, callback=_since, metavar="TIME", help=does)


def until(does: str) -> Any:
    """Return the option --to, which has to be after --from."""
    return typer.Option("--to", parser=moment, callback=_until, metavar="TIME", help=does)


AsOf = Annotated[
    Timestamp | None,
    typer.Option(parser=moment, metavar="TIME", help="Answer with what was known then (ISO 8601; UTC without offset)."),
]
From = Annotated[Timestamp | None, since("Only what happened at or after.")]
To = Annotated[Timestamp | None, until("Only what happened before.")]


def run(work: Coroutine[Any, Any, None]) -> None:
    """Run a command's work to its end."""
    asyncio.run(work)


def follow(work: Coroutine[Any, Any, None]) -> None:
    """Run what tells of all that comes: to its end, or until nobody reads it any more, also while nothing comes.

    Raises:
        ReaderGoneError: nobody does.
    """

    async def while_read() -> None:
        following = asyncio.current_task()
        assert following is not None
        reading = asyncio.create_task(pipes.until_the_reader_goes())
        reading.add_done_callback(lambda ended: None if ended.cancelled() else following.cancel())
        try:
            await work
        except asyncio.CancelledError:
            if reading.done():
                raise pipes.ReaderGoneError from None
            raise
        finally:
            reading.cancel()

    asyncio.run(while_read())
