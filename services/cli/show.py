"""Answers as tables for people and as proto JSON for programs."""

import json
import os
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any, TextIO

from google.protobuf.descriptor import EnumDescriptor
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console, Group, RenderableType
from rich.measure import Measurement
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from recorrido.actions.v1.actions_service_pb2 import Action
from recorrido.inference.v1.analysis_pb2 import PointKind, Sentiment
from recorrido.ingest.v1.interaction_pb2 import Interaction, RatingMetric
from recorrido.journey.v1.journey_map_pb2 import Metric
from recorrido.journey.v1.journey_service_pb2 import ExpectationResult, ExpectationState, Scores

#: What is piped into a file or a pager is not squeezed into 80 columns.
_PIPED_WIDTH = 200
#: Columns of a terminal from which on ids are shown whole.
ROOM_FOR_IDS = 160
#: What a column of words wants at least, and one of longer words such as paths.
_FEW_WORDS = 16
#: And the last one, as long as other columns can be left out for it.
_MANY_WORDS = 28
_LONG_WORD = 20
_UUID_LENGTH = 36
#: What is told of one where there is less room; commands take that, too.
SHORT_ID = 8

_POINT_STYLES: dict[int, str] = {
    PointKind.POINT_KIND_PAIN: "red",
    PointKind.POINT_KIND_ITCH: "yellow",
    PointKind.POINT_KIND_DELIGHT: "green",
}
_SENTIMENT_STYLES: dict[int, str] = {Sentiment.SENTIMENT_NEGATIVE: "red", Sentiment.SENTIMENT_POSITIVE: "green"}


class FittingTable(Table):
    """A table that knows which of its columns are left out first where there is no room for all."""

    spared: Sequence[str] = ()


class _Console(Console):
    """Fits tables into a terminal: a number that is cut misleads, and words that are cut cannot be read elsewhere.

    Words go on in the next line. Where that is not enough, columns that matter less are left out, and it is said which;
    a table that is too wide still is printed as a block for each row.
    """

    def print(self, *objects: Any, **options: Any) -> None:
        super().print(*(self._fitted(each) if isinstance(each, FittingTable) else each for each in objects), **options)

    def _fitted(self, lines: FittingTable) -> RenderableType:
        every, left_out = lines.columns, list[str]()
        for name in lines.spared:
            if self._widths(lines, last=_MANY_WORDS):
                break
            if any(str(column.header) == name for column in lines.columns):
                lines.columns = [column for column in lines.columns if str(column.header) != name]
                left_out.append(name)
        if not (widths := self._widths(lines)):
            # There each has a line of its own, and room.
            lines.columns = every
            return _blocks(lines)
        fitted = _empty(str(lines.title or ""), show_header=lines.show_header)
        for column, width in zip(lines.columns, widths, strict=True):
            header = column.header if column.no_wrap else _folded(column.header, width)
            fitted.add_column(header, justify=column.justify, width=width, no_wrap=column.no_wrap)
        for row, cells in zip(lines.rows, zip(*(column.cells for column in lines.columns), strict=True), strict=True):
            fitted.add_row(*map(_folded, cells, widths), style=row.style)
        if not left_out:
            return fitted
        told = f"not shown for want of room: {', '.join(left_out)}; a wider terminal or --json tells"
        return Group(fitted, Text(told, style="dim"))

    def _widths(self, lines: Table, last: int = 0) -> list[int]:
        """Return what each column takes, nothing where a number or an id would be cut, or words have too little.

        The last column, where it holds words, has at least `last`, or all that it wants.
        What room is left is given to the narrowest of those that want more.
        """
        wanted, widths = [], []
        for column in lines.columns:
            cells = [*([column.header] if lines.show_header else []), *column.cells]
            measured = [Measurement.get(self, self.options, cell) for cell in cells]
            widest = max((each.maximum for each in measured), default=0)
            word = max((each.minimum for each in measured), default=0)
            wanted.append(widest)
            least = max(_FEW_WORDS, min(word, _LONG_WORD), last if column is lines.columns[-1] else 0)
            widths.append(widest if column.no_wrap else min(widest, least))
        room = self.width - sum(widths) - 2 * len(widths)
        while room > 0 and (growing := [n for n, width in enumerate(widths) if width < wanted[n]]):
            widths[min(growing, key=widths.__getitem__)] += 1
            room -= 1
        return widths if room >= 0 else []


def console(*, stderr: bool = False) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    if stream.isatty() or os.environ.get("COLUMNS"):
        return _Console(file=stream, highlight=False, markup=False, emoji=False)
    # Whoever reads lines of a pipe gets lines.
    return Console(file=stream, width=_PIPED_WIDTH, highlight=False, markup=False, emoji=False)


def _blocks(lines: Table) -> Group:
    """Return a table as a block for each row, with a line for each cell that says anything."""
    parts: list[RenderableType] = [Text(str(lines.title), style="bold")] if lines.title else []
    for cells in zip(*(column.cells for column in lines.columns), strict=True):
        block = Table.grid(padding=(0, 2))
        block.add_column(style="bold", no_wrap=True)
        block.add_column(overflow="fold")
        for column, cell in zip(lines.columns, cells, strict=True):
            if str(cell):
                block.add_row(str(column.header), _folded(cell))
        parts += [block, Text()]
    return Group(*parts)


def _folded(cell: RenderableType, width: int = 0) -> RenderableType:
    """Return a cell that goes on in the next line; a path or an id that is wider than `width` does so after a part."""
    whole = cell.copy() if isinstance(cell, Text) else Text(str(cell))
    if width and any(len(word) > width for word in whole.plain.split()):
        whole = Text(" ".join(_in_parts(word, width) for word in whole.plain.split()), style=whole.style)
    # rich breaks a line at spaces alone.
    whole.no_wrap, whole.overflow = False, "fold"
    return whole


def _in_parts(word: str, width: int) -> str:
    lines = [""]
    for part in re.findall(r"[^/_-]*[/_-]|[^/_-]+", word):
        if lines[-1] and len(lines[-1]) + len(part) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)


def dictionary(message: Message) -> dict[str, Any]:
    """Return the proto3 JSON mapping with every key that has no presence, so that programs can rely on them."""
    result: dict[str, Any] = MessageToDict(message, always_print_fields_with_no_presence=True)
    return result


def print_json(value: Message | dict[str, Any]) -> None:
    content = dictionary(value) if isinstance(value, Message) else value
    sys.stdout.write(json.dumps(content, ensure_ascii=False, indent=2) + "\n")


def print_json_line(message: Message, file: TextIO | None = None) -> None:
    """Print a message as one line, by default on standard output."""
    (file or sys.stdout).write(json.dumps(dictionary(message), ensure_ascii=False) + "\n")


def table(*columns: str, title: str = "", spared: Sequence[str] = ()) -> FittingTable:
    """Return an empty table. Without any column name there is no header.

    A column whose name ends in '#' holds numbers; one whose name ends in '~' gives way where the terminal is narrow.
    Those whose names are `spared` are left out there, in this order, as far as it takes.
    """
    empty = _empty(title, show_header=any(column.strip("#~") for column in columns))
    empty.spared = spared
    for column in columns:
        empty.add_column(
            Text(column.rstrip("#~"), no_wrap=True, overflow="ellipsis"),
            justify="right" if column.endswith("#") else "left",
            # What is copied, such as an id, stays whole as long as anything else can give way.
            no_wrap=not column.endswith("~"),
            overflow="ellipsis",
        )
    return empty


def _empty(title: str, *, show_header: bool) -> FittingTable:
    return FittingTable(
        title=title or None,
        title_justify="left",
        title_style="bold",
        header_style="bold",
        show_header=show_header,
        box=None,
    )


def progress(*, quiet: bool) -> Progress:
    """Return how far something is, on stderr; each task's field `told` says more."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[told]}"),
        TimeElapsedColumn(),
        console=console(stderr=True),
        disable=quiet,
    )


def filled(lines: Table) -> Table | Text:
    """Return the table without the columns in which no line says anything; without any line, that there is none."""
    if not lines.row_count:
        return Text(f"{lines.title}: none" if lines.title else "none")
    lines.columns = [column for column in lines.columns if any(str(cell) for cell in column.cells)]
    return lines


def note_if_nothing_was_recorded(as_of: Timestamp | None, *, anything: bool) -> None:
    """Say so where an answer as of a time is empty: that time is often mistaken for when something happened."""
    if as_of is not None and not anything:
        console(stderr=True).print(
            f"note: as of {when(as_of)} UTC nothing of it was recorded; --as-of is about when it was recorded, --from"
            " and --to are about when it happened",
            soft_wrap=True,
        )


def place(name: str, raw: str) -> str:
    """Return what the map calls a touchpoint, with what its source calls it in brackets where that differs."""
    if not name or name.casefold() == raw.casefold():
        return name or raw
    return f"{name} ({raw})" if raw else name


def title(action: Action) -> Text:
    """Return an action's title: where a signal's rule wrote it, with what the map calls the touchpoint."""
    named = bool(action.signal_id and action.touchpoint_name)
    return plain(titled(action.title, action.touchpoint, action.touchpoint_name) if named else action.title)


def titled(title_: str, touchpoint: str, name_: str) -> str:
    """Return a title that a signal's rule wrote, with the name of the touchpoint for what its source calls it."""
    raw = rf"^(.*? at |\d+ customers: ){re.escape(touchpoint)}(?![\w-])"
    return re.sub(raw, lambda found: f"{found[1]}{name_}", title_, count=1)


def plain(text: str) -> Text:
    """Return what somebody else wrote as one line without control characters or markup."""
    printable = "".join(c if c.isprintable() else " " for c in text)
    return Text(" ".join(printable.split()), no_wrap=True, overflow="ellipsis")


def when(timestamp: Timestamp) -> str:
    """Return UTC to the minute."""
    return f"{timestamp.ToDatetime():%Y-%m-%d %H:%M}" if timestamp.seconds or timestamp.nanos else ""


def age(seconds: float) -> str:
    """Return days, or hours where it is less than one."""
    hours = seconds / 3600
    return f"{hours / 24:.1f} d" if hours >= 24 else f"{hours:.1f} h"


def short_id(text: str, width: int) -> str:
    """Return a UUID's first block where a terminal of `width` columns has no room for all of it."""
    return text[:SHORT_ID] if width < ROOM_FOR_IDS and len(text) == _UUID_LENGTH else text


def name(enum: EnumDescriptor, value: int) -> str:
    """Return an enum value in words: CHANNEL_WORD_OF_MOUTH is `word of mouth`, unspecified is nothing."""
    known = enum.values_by_number.get(value)
    text = known.name.removeprefix(_prefix(enum)) if known else str(value)
    return "" if text == "UNSPECIFIED" else text.replace("_", " ").lower()


def names(enum: EnumDescriptor) -> dict[str, Any]:
    """Return the values of an enum by their names in lower case, without the unspecified one."""
    return {each.name.removeprefix(_prefix(enum)).lower(): each.number for each in enum.values if each.number}


def _prefix(enum: EnumDescriptor) -> str:
    return str(enum.values_by_number[0].name).removesuffix("UNSPECIFIED")


def count(value: int) -> str:
    return f"{value:,}"


def counted(value: int, what: str) -> str:
    return f"{count(value)} {what}{'s' if value != 1 else ''}"


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def part(count_: int, of: int) -> str:
    return f"{count(count_)} ({percent(count_ / max(of, 1))})"


def hours(value: float) -> str:
    """Return a duration in its fitting unit."""
    for unit, size in (("d", 24.0), ("h", 1.0)):
        if value >= size:
            return f"{value / size:.1f} {unit}"
    return f"{60 * value:.0f} min"


def point(kind: int) -> Text:
    return Text(name(PointKind.DESCRIPTOR, kind), style=_POINT_STYLES.get(kind, ""))


def sentiment(value: int) -> Text:
    return Text(name(Sentiment.DESCRIPTOR, value), style=_SENTIMENT_STYLES.get(value, ""))


_BLOCKS = "▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float], lowest: float, highest: float) -> str:
    """Return one block per value, the lowest for `lowest`."""
    steps = len(_BLOCKS) - 1
    return "".join(_BLOCKS[round(steps * (value - lowest) / (highest - lowest))] for value in values)


def ratings(interaction: Interaction) -> str:
    return ", ".join(
        f"{each.name or RatingMetric.Name(each.metric).removeprefix('RATING_METRIC_')} {each.value:g}"
        for each in interaction.ratings
    )


SCORE_COLUMNS = ("touchpoint~", "interactions#", "customers#", "NPS (n)#", "CSAT (n)#", "CES (n)#", "negative (n)#")


def scores(found: Scores) -> list[str]:
    """Return the cells of one line of scores but the first; a score without answers is left empty."""
    heard = found.sentiment
    words = heard.negative + heard.neutral + heard.positive
    return [
        count(found.interactions),
        count(found.customers),
        _with_count(f"{found.nps.value:+.0f}", found.nps.count),
        _with_count(f"{found.csat.value:.0f} %", found.csat.count),
        _with_count(f"{found.ces.value:.0f} %", found.ces.count),
        _with_count(f"{100 * heard.negative / max(words, 1):.0f} %", words),
    ]


_EXPECTED = {
    ExpectationState.EXPECTATION_STATE_MET: "✓",
    ExpectationState.EXPECTATION_STATE_MISSED: "✗",
    ExpectationState.EXPECTATION_STATE_NOT_KNOWN: "?",
}


def expected(found: Iterable[ExpectationResult]) -> list[str]:
    """Return what is, of what is expected, such as `✗ CSAT 78 of 90`: what is missed first, then what is not known."""
    order = [ExpectationState.EXPECTATION_STATE_MISSED, ExpectationState.EXPECTATION_STATE_NOT_KNOWN]
    ordered = sorted(found, key=lambda each: order.index(each.state) if each.state in order else len(order))
    return [
        f"{_EXPECTED.get(each.state, '')} {_metric(each.metric)} {_value(each)} of {each.target:g}" for each in ordered
    ]


def _metric(metric: int) -> str:
    return "sentiment" if metric == Metric.METRIC_SENTIMENT else name(Metric.DESCRIPTOR, metric).upper()


def _value(found: ExpectationResult) -> str:
    if not found.HasField("value"):
        return "unasked"
    if found.metric == Metric.METRIC_SENTIMENT:
        return f"{found.value:.2f}"
    whole = f"{found.value:.0f}"
    # What is missed by less than a half must not look as if it were met.
    return f"{found.value:.1f}" if float(whole) == found.target != found.value else whole


def _with_count(value: str, answers: int) -> str:
    return f"{value} ({count(answers)})" if answers else ""
