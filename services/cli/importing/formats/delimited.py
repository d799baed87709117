"""CSV and TSV files as strangers write them: any delimiter and encoding, broken rows among good ones."""

import codecs
import contextlib
import csv
import io
import zlib
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from services.cli.failures import CommandError
from services.cli.importing.mapping import CsvOptions
from services.cli.importing.records import RECORD_LIMIT, BrokenFileError, Opened, Record, unreadable

_SAMPLE_BYTES = 1024 * 1024
#: A row whose cells have line breaks may be longer than a line.
_ROW_LIMIT = 2 * RECORD_LIMIT
_DELIMITERS = (",", ";", "\t", "|")
_MARK = "\ufeff"
#: The longer first: UTF-32's mark begins as UTF-16's does.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


class _Lines(Iterator[str]):
    """The lines of a file, counted; those taken for a row can be put back."""

    def __init__(self, text: io.TextIOWrapper) -> None:
        self._text = text
        self._again: deque[str] = deque()
        self._size = 0
        self._begun = False
        #: Those of the row that is being read.
        self.taken: list[str] = []
        #: Of the line given last.
        self.number = 0

    def __next__(self) -> str:
        line = self._again.popleft() if self._again else self._read()
        if not line:
            raise StopIteration
        self.number += 1
        self._size += len(line)
        self.taken.append(line)
        if self._size > _ROW_LIMIT or len(line) >= RECORD_LIMIT:
            raise csv.Error(f"is longer than {RECORD_LIMIT:,} characters")
        return line

    def _read(self) -> str:
        line = self._text.readline(RECORD_LIMIT)
        if not self._begun:
            # The mark is no part of the first column's name.
            line, self._begun = line.removeprefix(_MARK), True
        ended = line.endswith(("\n", "\r"))
        while len(line) == RECORD_LIMIT and not ended:
            more = self._text.readline(RECORD_LIMIT)
            ended = not more or more.endswith(("\n", "\r"))
        return line

    def begin(self) -> int:
        """Return the number of the next line, with which a row begins."""
        self.taken.clear()
        self._size = 0
        return self.number + 1

    def put_back(self, keep: int) -> None:
        """Put back all lines of the row but the first `keep`."""
        back = self.taken[keep:]
        self._again.extendleft(reversed(back))
        self.number -= len(back)
        del self.taken[keep:]


def records(source: Opened, options: CsvOptions, wanted: Collection[str]) -> Iterator[Record]:
    """Yield the rows; those that cannot be read have no content.

    Args:
        source: the file.
        options: what the mapping says of it.
        wanted: the columns that the mapping looks at.

    Raises:
        CommandError: it has no header line with the wanted columns, or another encoding.
        BrokenFileError: it cannot be read to its end.
    """
    encoding = options.encoding or _encoding(source)
    text = io.TextIOWrapper(source.content, encoding, errors="surrogateescape", newline="")
    try:
        yield from _rows(source, _Lines(text), options, wanted, encoding)
    except UnicodeError as error:
        raise BrokenFileError(f"cannot be read as {encoding} any further: {error}") from error
    finally:
        text.detach()


def _encoding(source: Opened) -> str:
    sample = b""
    # Where the file is cut off is told when it is read to there.
    with contextlib.suppress(EOFError, zlib.error):
        while len(sample) < _SAMPLE_BYTES and (more := source.content.read1()):
            sample += more
    source.content.seek(0)
    for mark, encoding in _MARKS:
        if sample.startswith(mark):
            return encoding
    try:
        # The sample may end within a character.
        codecs.getincrementaldecoder("utf-8")().decode(sample)
    except UnicodeDecodeError as error:
        line = sample.count(b"\n", 0, error.start) + 1
        raise CommandError(
            f"{source.path}, line {line}: is not UTF-8; state the file's encoding in the mapping, "
            "such as csv: {encoding: cp1250}"
        ) from None
    return "utf-8"


def _rows(
    source: Opened, lines: _Lines, options: CsvOptions, wanted: Collection[str], encoding: str
) -> Iterator[Record]:
    name = source.path.name
    reader, columns = _begun(source, lines, options, wanted)
    position = 0
    while True:
        line = lines.begin()
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            # A quote that is not closed swallows the lines after it: they are rows of their own.
            lines.put_back(keep=1)
            problem = str(error)
        else:
            if not row:
                continue
            problem = "" if len(row) == len(columns) else f"has {len(row)} fields, not {len(columns)}"
        position += 1
        raw = "".join(lines.taken)
        if not _decoded(raw):
            problem = f"has bytes that are not {encoding}"
        if problem:
            yield unreadable(name, line, position, problem, raw)
        else:
            yield Record(name, line, dict(zip(columns, row, strict=True)), position)


def _decoded(raw: str) -> bool:
    """Whether every byte was of the file's encoding; others were decoded as surrogates, which no text has."""
    try:
        raw.encode()
    except UnicodeEncodeError:
        return False
    return True


def _begun(source: Opened, lines: _Lines, options: CsvOptions, wanted: Collection[str]) -> tuple[Any, Sequence[str]]:
    """Return a reader of the rows, and their columns."""
    csv.field_size_limit(RECORD_LIMIT)
    found: dict[str, list[str]] = {}
    for delimiter in [options.delimiter] if options.delimiter else _DELIMITERS:
        try:
            head = next(_reader(lines, delimiter, options))
        except (csv.Error, StopIteration):
            head = []
        lines.put_back(keep=0)
        found[delimiter] = [column.strip() for column in head]
    if options.columns:
        size = len(options.columns)
        delimiter = min(found, key=lambda each: abs(len(found[each]) - size))
        _require(source, options.columns, wanted)
        return _reader(lines, delimiter, options), options.columns
    delimiter = max(found, key=lambda each: (len({*found[each]} & {*wanted}), len(found[each])))
    _require(source, found[delimiter], wanted)
    reader = _reader(lines, delimiter, options)
    next(reader)
    return reader, found[delimiter]


def _reader(lines: _Lines, delimiter: str, options: CsvOptions) -> Any:
    if not options.quote:
        return csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_NONE, quotechar=None, strict=True)
    return csv.reader(lines, delimiter=delimiter, quotechar=options.quote, strict=True)


def _require(source: Opened, columns: Sequence[str], wanted: Collection[str]) -> None:
    if not columns:
        raise CommandError(f"{source.path}: is empty; it should begin with a line that names the columns")
    missing = sorted({*wanted} - {*columns})
    if missing:
        raise CommandError(
            f"{source.path}: has no column {', '.join(map(repr, missing))}; its first line has "
            f"{', '.join(map(repr, columns))}. A file without such a line needs csv: {{columns: […]}} in the mapping"
        )
    twice = sorted(column for column in wanted if list(columns).count(column) > 1)
    if twice:
        raise CommandError(f"{source.path}: has several columns {', '.join(map(repr, twice))}")
