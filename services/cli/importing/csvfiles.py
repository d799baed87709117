"""Reads CSV files as strangers write them, and notes every row that cannot be used."""

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from services.cli.failures import CommandError

Row = Mapping[str, str]
Value = TypeVar("Value")

#: A cell of one field may be as long as the longest verbatim and more; csv's own limit is 128 KiB.
_CELL_LIMIT = 16 * 1024 * 1024


class BadRowError(Exception):
    """A row cannot be used; the text tells why."""


@dataclass(frozen=True, slots=True)
class BadRow:
    file: str
    line: int
    problem: str


@dataclass(slots=True)
class BadRows:
    """How many rows were passed over, and the first few of them."""

    count: int = 0
    first: list[BadRow] = field(default_factory=list)

    def note(self, file: str, line: int, problem: str, keep: int = 5) -> None:
        self.count += 1
        if len(self.first) < keep:
            self.first.append(BadRow(file, line, problem))


def require(folder: Path, columns: Mapping[str, Sequence[str]]) -> None:
    """Make sure that each file is there with its columns.

    Raises:
        CommandError: every missing file and column is named.
    """
    if not folder.is_dir():
        raise CommandError(f"{folder}: there is no such folder")
    problems = []
    for name, wanted in columns.items():
        path = folder / name
        if not path.is_file():
            problems.append(f"{path}: is missing")
            continue
        found = _header(path)
        problems += [f"{path}: has no column {column!r}" for column in wanted if column not in found]
    if problems:
        raise CommandError("\n  ".join(["nothing was sent:", *problems]))


def _header(path: Path) -> list[str]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return next(csv.reader(file), [])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> CommandError:
    if isinstance(error, UnicodeDecodeError):
        where = str(path)
        # Files are decoded in blocks, so only the whole tells where it went wrong.
        content = path.read_bytes()
        try:
            content.decode()
        except UnicodeDecodeError as whole:
            line = content.count(b"\n", 0, whole.start) + 1
            where = f"{path}, line {line}"
        return CommandError(f"{where}: cannot be read as UTF-8 CSV: it is not UTF-8")
    return CommandError(f"{path}: cannot be read as UTF-8 CSV: {getattr(error, 'strerror', None) or error}")


def _complete(row: Row, fields: int) -> Row:
    # DictReader keeps what is too much under the key None and fills up what is missing with None.
    if None in row or None in row.values():
        raise BadRowError(f"does not have {fields} fields")
    return row


def rows(path: Path, read: Callable[[Row], Value], bad: BadRows) -> Iterator[Value]:
    """Yield what `read` makes of each row; rows for which it raises BadRowError are noted and passed over.

    Raises:
        CommandError: the file cannot be read any further.
    """
    csv.field_size_limit(_CELL_LIMIT)
    try:
        # A byte order mark would become part of the first column's name.
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            fields = len(reader.fieldnames or ())
            while True:
                # A cell may hold line breaks, so a row begins where the last one ended.
                line = reader.line_num + 1
                try:
                    row = next(reader)
                    value = read(_complete(row, fields))
                except StopIteration:
                    return
                except (BadRowError, csv.Error) as problem:
                    bad.note(path.name, line, str(problem))
                else:
                    yield value
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from error
