"""Options that several commands share."""

import asyncio
import difflib
import getpass
import importlib
import os
import uuid
from collections.abc import Coroutine
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from google.protobuf.timestamp_pb2 import Timestamp

Json = Annotated[bool, typer.Option("--json", help="Print the answer as proto JSON.")]
MapId = Annotated[str, typer.Option("--map", metavar="ID", help="The journey map; without it, the one published last.")]
Actor = Annotated[
    str,
    typer.Option(
        default_factory=lambda: os.environ.get("RECORRIDO_ACTOR") or getpass.getuser(),
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
    known = {
        event.type_name.rpartition(".")[2]: event.type_name
        for package in ("ingest", "inference", "journey", "actions")
        for event in importlib.import_module(f"recorrido.{package}.v1.events").EVENTS
    }
    name = text.rpartition(".")[2]
    if text not in {name, known.get(name)} or name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        meant = f"did you mean {near[0]}? " if near else ""
        raise typer.BadParameter(f"{text!r} is no event; {meant}there are {', '.join(known)}")
    return str(known[name])


AsOf = Annotated[
    Timestamp | None,
    typer.Option(parser=moment, metavar="TIME", help="Answer with what was known then (ISO 8601; UTC without offset)."),
]
From = Annotated[
    Timestamp | None, typer.Option("--from", parser=moment, metavar="TIME", help="Only what happened at or after.")
]
To = Annotated[Timestamp | None, typer.Option("--to", parser=moment, metavar="TIME", help="Only what happened before.")]


def run(work: Coroutine[Any, Any, None]) -> None:
    """Run a command's work to its end."""
    asyncio.run(work)
