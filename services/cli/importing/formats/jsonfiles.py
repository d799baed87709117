"""JSON Lines, and files of one JSON array or of objects spread over lines, however large."""

import re
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import msgspec

from services.cli.importing.records import RECORD_LIMIT, Opened, Record, unreadable

_MARK = b"\xef\xbb\xbf"
_BLOCK = 64 * 1024
# What decides where a value ends: outside of a string its brackets and commas, inside the quote that closes it.
_OUTSIDE = re.compile(rb'["\[\]{},]')
_INSIDE = re.compile(rb'["\\]')
# An object that is spread over lines; in a file of lines each line holds a whole one.
_SPREAD = re.compile(rb"\s*\{\s*\n")

#: Numbers keep their decimals as they were written.
_DECODER = msgspec.json.Decoder(float_hook=Decimal)


def records(source: Opened) -> Iterator[Record]:
    """Yield the objects of a file; what is no JSON object has no content."""
    first = source.content.peek(1)
    if first.startswith(_MARK):
        source.content.read(len(_MARK))
        first = first.removeprefix(_MARK)
    if first.lstrip().startswith(b"["):
        pieces = _values(source, of_array=True)
    elif _SPREAD.match(first):
        pieces = _values(source, of_array=False)
    else:
        pieces = _lines(source)
    for position, (line, piece, problem) in enumerate(pieces, 1):
        yield _record(source.path.name, line, position, piece, problem)


def decode(piece: bytes) -> Any:
    """Read a JSON value.

    Raises:
        ValueError: it is none, or nested too deep.
    """
    try:
        return _DECODER.decode(piece)
    except RecursionError:
        raise ValueError("is nested too deep") from None


def _record(file: str, line: int, position: int, piece: bytes, problem: str) -> Record:
    content: Any = None
    if not problem:
        try:
            content = decode(piece)
        except ValueError as error:
            problem = f"is no JSON: {str(error).removeprefix('JSON is malformed: ')}"
        else:
            problem = "" if isinstance(content, dict) else "is no JSON object"
    if problem:
        return unreadable(file, line, position, problem, piece.decode(errors="replace"))
    return Record(file, line, content, position)


def _lines(source: Opened) -> Iterator[tuple[int, bytes, str]]:
    """Yield each line that is not blank, with its number and what is wrong with it by itself."""
    number = 0
    while line := source.content.readline(RECORD_LIMIT):
        number += 1
        problem = ""
        if len(line) == RECORD_LIMIT and not line.endswith(b"\n"):
            problem = f"is longer than {RECORD_LIMIT:,} bytes"
            while (more := source.content.readline(RECORD_LIMIT)) and not more.endswith(b"\n"):
                pass
        if line.strip():
            yield number, line, problem


def _values(source: Opened, *, of_array: bool) -> Iterator[tuple[int, bytes, str]]:
    """Yield each value of the array that the file is, or of the file; with the line on which it begins."""
    scanner = _Scanner(of_array=of_array)
    while block := source.content.read1(_BLOCK):
        yield from scanner.feed(block)
    yield from scanner.end()


class _Scanner:
    """Finds where values end, without holding more than one."""

    def __init__(self, *, of_array: bool) -> None:
        self._of_array = of_array
        self._depth = 0
        self._in_string = False
        #: The last byte of the block before was a backslash within a string.
        self._escaped = False
        self._after = False
        self._held = bytearray()
        self._size = 0
        #: Line breaks before the value that is held, and within it.
        self._lines_before = 0
        self._lines_within = 0

    def feed(self, block: bytes) -> Iterator[tuple[int, bytes, str]]:
        begin, at = 0, int(self._escaped)
        self._escaped = False
        while found := (_INSIDE if self._in_string else _OUTSIDE).search(block, at):
            token, at = found[0], found.end()
            if token == b'"':
                self._in_string = not self._in_string
            elif token == b"\\":
                self._escaped = at == len(block)
                at += 1
            elif self._ends(token):
                # What divides an array's values, or ends it, is part of none.
                end = at - len(token) if self._of_array else at
                yield from self._value(block[begin:end])
                self._pass(block[end:at])
                begin = at
            elif self._depth == 1 and token == b"[" and self._of_array:
                self._pass(block[begin:at])
                begin = at
        self._hold(block[begin:])

    def _ends(self, token: bytes) -> bool:
        """Follow a bracket or comma; whether a value ends with it."""
        if self._after:
            return False
        if token == b",":
            return self._of_array and self._depth == 1
        self._depth += 1 if token in b"[{" else -1
        self._after = self._of_array and self._depth == 0
        return self._depth == 0

    def end(self) -> Iterator[tuple[int, bytes, str]]:
        """Yield what is left when the file ends."""
        yield from self._value(b"", "stands after the array" if self._after else "is cut off: the file ends within it")

    def _hold(self, more: bytes) -> None:
        self._lines_within += more.count(b"\n")
        self._size += len(more)
        self._held += more[: max(0, RECORD_LIMIT - len(self._held))]

    def _pass(self, more: bytes) -> None:
        """Let go of what is held, and of this."""
        self._lines_before += self._lines_within + more.count(b"\n")
        self._lines_within = self._size = 0
        self._held.clear()

    def _value(self, more: bytes, problem: str = "") -> Iterator[tuple[int, bytes, str]]:
        self._hold(more)
        piece = bytes(self._held)
        stripped = piece.lstrip()
        if stripped:
            if self._size > RECORD_LIMIT:
                problem = f"is longer than {RECORD_LIMIT:,} bytes"
            leading = piece[: len(piece) - len(stripped)]
            yield self._lines_before + leading.count(b"\n") + 1, stripped, problem
        self._pass(b"")
