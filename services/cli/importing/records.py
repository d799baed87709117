"""What every format's reader gives: one record after another, each with its place in the file."""

import gzip
import io
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from services.cli.failures import CommandError

#: A line, row or JSON value that is longer is told as a bad one: memory stays bounded, whatever the file holds.
RECORD_LIMIT = 1024 * 1024
#: What of an unreadable record is kept.
_RAW_LIMIT = 1000

_CANONICAL = msgspec.json.Encoder(order="sorted")
_GZIP = b"\x1f\x8b"


@dataclass(frozen=True, slots=True)
class Record:
    """One row, call or event of a file; without `content` where it cannot be read."""

    #: Of the file it stands in.
    file: str
    #: Where it begins, from 1; of a file of records without lines, the record's number.
    line: int
    content: Mapping[str, Any] | None
    #: Its number within what it belongs to, from 1: the event's in its trace, else the record's in the file.
    position: int
    #: Why it cannot be read, and how it began.
    problem: str = ""
    raw: str = ""

    @property
    def digest(self) -> str:
        """SHA-256, hexadecimal, of the content."""
        return sha256(_CANONICAL.encode(self.content)).hexdigest()


def unreadable(file: str, line: int, position: int, problem: str, raw: str) -> Record:
    return Record(file, line, None, position, problem, raw[:_RAW_LIMIT])


class BrokenFileError(Exception):
    """The rest of the file cannot be read; the text tells where and why."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A file's content, uncompressed, and how much of the file itself was taken."""

    path: Path
    content: "io.BufferedReader[Any]"
    file: BinaryIO

    @property
    def taken_bytes(self) -> int:
        return self.file.tell()


@contextmanager
def opened(path: Path) -> Iterator[Opened]:
    """Open a file, whether it is gzipped or not.

    Raises:
        CommandError: it cannot be opened.
        BrokenFileError: it cannot be read to its end; only from within the block.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise CommandError(f"{path}: cannot be read: {error.strerror}") from error
    with file:
        packed = file.peek(2)[:2] == _GZIP
        content: io.BufferedReader[Any] = io.BufferedReader(gzip.GzipFile(fileobj=file)) if packed else file
        try:
            yield Opened(path, content, file)
        except (OSError, EOFError, zlib.error) as error:
            raise BrokenFileError(f"cannot be read any further: {getattr(error, 'strerror', None) or error}") from error


def digest(path: Path) -> str:
    """Return the SHA-256, hexadecimal, of the file as it lies there.

    Raises:
        CommandError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            found = sha256()
            while block := file.read(1024 * 1024):
                found.update(block)
    except OSError as error:
        raise CommandError(f"{path}: cannot be read: {error.strerror}") from error
    return found.hexdigest()
