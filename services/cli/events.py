"""Follow the bus: `events`."""

from typing import Annotated

import typer

from services.cli.options import event_type, follow


def events(
    *,
    only: Annotated[
        str | None,
        typer.Option("--type", parser=event_type, metavar="NAME", help="Only this type, such as InteractionRecorded."),
    ] = None,
    from_start: Annotated[
        bool, typer.Option("--from-start", help="Begin with the first event that the bus holds.")
    ] = False,
    limit: Annotated[int, typer.Option(min=0, help="Stop after so many; 0 goes on until Ctrl-C.")] = 0,
    timeout: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="Stop after so long; 0 goes on until Ctrl-C.")
    ] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print each event as one line of JSON.")] = False,
) -> None:
    """Follow the events of all services as the bus carries them."""
    # The client of the bus takes as long to import as all else together, and only who needs it is to wait for it.
    from services.cli.bus import print_events  # noqa: PLC0415

    follow(print_events(only, limit, timeout or None, from_start=from_start, as_json=as_json))
