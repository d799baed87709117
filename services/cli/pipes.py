"""Output that goes nowhere: nobody reads it any more, as `head` leaves it behind; nobody ever did; the disk is full."""

import asyncio
import io
import os
import select
import sys
from pathlib import Path
from typing import Any, TextIO

from services.cli.failures import CommandError

#: What a shell tells of a program that SIGPIPE ended: 128 and the number of the signal. The signal itself would come
#: from every connection that a service closes, too.
EXIT_CODE = 141
_LOOK_EVERY_S = 0.5


class ReaderGoneError(SystemExit):
    """Nobody reads what we write: no failure of ours, and nobody to tell of it."""

    def __init__(self) -> None:
        super().__init__(EXIT_CODE)


class _Output(io.FileIO):
    def write(self, data: Any, /) -> int:
        try:
            return super().write(data) or 0
        except OSError as error:
            # What is buffered still, and what is told on the way out, goes nowhere.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            if isinstance(error, BrokenPipeError):
                raise ReaderGoneError from None
            raise CommandError(f"what there is to tell cannot be written: {error.strerror}") from error


async def until_the_reader_goes() -> None:
    """Return when nobody reads standard output any more."""
    output = select.poll()
    # Of errors a poll tells though none is asked for, and that its reader is gone is one of a pipe (poll(2), POLLERR).
    output.register(sys.stdout.fileno(), 0)
    while not output.poll(0):  # noqa: ASYNC110 - a pipe tells nobody of it
        await asyncio.sleep(_LOOK_EVERY_S)


def end_with_the_reader() -> None:
    """From now on a write to standard output or error that nobody reads any more raises ReaderGoneError.

    One that fails otherwise raises CommandError; one that was closed from the start takes everything.
    """
    sys.stdout, sys.stderr = _opened(sys.stdout), _opened(sys.stderr)


def _opened(stream: TextIO | None) -> TextIO:
    if stream is None:
        return Path(os.devnull).open("w", encoding="utf-8")
    stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(_Output(stream.fileno(), "wb", closefd=False)),
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=stream is sys.stderr or stream.isatty() or bool(os.environ.get("PYTHONUNBUFFERED")),
    )
