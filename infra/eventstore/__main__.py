"""`python -m infra.eventstore`: run the node, check its data, or back it up."""

import argparse
import asyncio
import logging
import signal
import sys
from pathlib import Path

import uvloop

from infra.eventstore.backup import back_up
from infra.eventstore.database import StoreError, create_or_open, existing, full_check, locked
from infra.eventstore.limits import Limits
from infra.eventstore.server import Settings, serve

# Writer thread and event loop share the interpreter lock; at the default of 5 ms a busy loop would hold back the
# writer for longer than its commit takes.
SWITCH_INTERVAL_S = 0.0005


def main() -> int:
    arguments = _parse()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        if arguments.check:
            with locked(existing(arguments.data)):
                count = full_check(create_or_open(arguments.data))
            print(f"event store in {arguments.data} is sound: {count} events")  # noqa: T201
        elif arguments.backup:
            count = back_up(arguments.data, arguments.backup)
            print(f"event store in {arguments.data} backed up to {arguments.backup}: {count} events")  # noqa: T201
        else:
            sys.setswitchinterval(SWITCH_INTERVAL_S)
            limits = Limits(arguments.max_event_bytes, arguments.max_append_bytes)
            uvloop.run(_serve(Settings(arguments.listen, arguments.data, limits)))
    except StoreError as error:
        print(f"event store: {error}", file=sys.stderr, flush=True)  # noqa: T201
        return error.exit_code
    return 0


async def _serve(settings: Settings) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await serve(settings, stop)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m infra.eventstore", description=__doc__)
    parser.add_argument("--listen", default="127.0.0.1:2113", metavar="HOST:PORT", help="port 0 takes a free one")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="created when absent")
    parser.add_argument("--max-event-bytes", type=int, default=Limits.max_event_bytes)
    parser.add_argument("--max-append-bytes", type=int, default=Limits.max_append_bytes)
    parser.add_argument("--check", action="store_true", help="check every event's checksum, then exit (0: sound)")
    parser.add_argument("--backup", type=Path, metavar="FILE", help="copy the store, also while a node serves it")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
