"""The rows of the read model as columns in memory, kept up by reading what was added.

A question that looks at the whole history, by whatever map, as of whatever time, is then a few passes over arrays:
some 70 bytes an interaction, of which a prefix is what was known at a time.
"""

import asyncio
import json
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Generic, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from recorrido.ingest.v1.events import Channel
from recorrido.journey.v1.events import JourneyMap
from services.journey.domain.history import (
    Analyses,
    Flags,
    History,
    Index,
    Interactions,
    Ints,
    Links,
    Marks,
    Ratings,
    RawTouchpoint,
    Scale,
    Table,
    Vocabulary,
    microseconds,
)
from services.journey.domain.maps import PublishedMap
from services.journey.views.names import Kind, texts_of

#: Rows read at once.
CHUNK = 250_000
#: The tables of `Columns`. Interactions first: other rows lead to them.
_TABLES = ("_interactions", "_analyses", "_ratings", "_links", "_signals", "_actions", "_erasures")
#: Histories kept, each with what was derived of it: those asked for last.
KEPT_HISTORIES = 4

_EPOCH_US = 946_684_800_000_000  # PostgreSQL counts from 2000

TableT = TypeVar("TableT", bound=Table)
ResultT = TypeVar("ResultT")


@dataclass(frozen=True, slots=True)
class _Column:
    """How a column is read: its PostgreSQL width as numpy knows it, and what numbers it is turned into."""

    name: str
    sql: str
    wire: str
    kept: str
    codes: Kind | None = None


def _column(name: str, wire: str, kept: str, sql: str = "", codes: Kind | None = None) -> _Column:
    return _Column(name, sql or name, wire, kept, codes)


_CLOCK = (_column("position", ">i8", "i8"), _column("recorded", ">i8", "i8", "recorded_at"))
_INTERACTIONS = (
    *_CLOCK,
    _column("occurred", ">i8", "i8", "occurred_at"),
    _column("customer", ">i8", "i4", codes=Kind.CUSTOMER),
    _column("touchpoint", ">i8", "i4", codes=Kind.TOUCHPOINT),
    _column("profile", ">i8", "i4", codes=Kind.PROFILE),
    _column("amount", ">i8", "i8"),
    _column("episode", ">i8", "i8", "CASE episode_id WHEN '' THEN 0 ELSE hashtextextended(episode_id, 0) END"),
    _column("currency", ">i2", "i2"),
    *(_column(name, ">i2", "i1") for name in ("kind", "nps", "csat", "ces", "outcome", "referral")),
    _column("has_words", "?", "?"),
)
_ANALYSES = (
    *_CLOCK,
    _column("interaction", ">i8", "i4"),
    _column("need", ">i8", "i4", codes=Kind.NEED),
    _column("score", ">f8", "f8", "sentiment_score"),
    _column("sentiment", ">i2", "i1"),
    _column("point", ">i2", "i1"),
    _column("failed", "?", "?"),
    _column("corrected", "?", "?"),
)
_RATINGS = (
    _column("position", ">i8", "i8", "interaction"),
    _column("recorded", ">i8", "i8", "0::bigint"),
    _column("interaction", ">i8", "i4"),
    _column("scale", ">i8", "i4", codes=Kind.SCALE),
    _column("value", ">f8", "f8"),
)
_LINKS = (
    *_CLOCK,
    _column("identity", ">i8", "i4", codes=Kind.CUSTOMER),
    _column("customer", ">i8", "i4", codes=Kind.CUSTOMER),
)
_MARKS = (*_CLOCK, _column("customer", ">i8", "i4", codes=Kind.CUSTOMER))


class _Growing(Generic[TableT]):
    """A table that rows are added to; views of it that were given out stay as they are."""

    def __init__(self, table: type[TableT], columns: Sequence[_Column], source: str, key: str = "position") -> None:
        assert [c.name for c in columns] == [f.name for f in fields(table)]
        self.columns, self.source, self.key = columns, source, key
        self.names = frozenset(column.name for column in columns)
        self._table = table
        self._arrays = {c.name: np.empty(0, c.kept) for c in columns}
        self._length = 0
        #: For each row the latest time that any row up to it was recorded at: clocks may jump back.
        self._latest = np.empty(0, np.int64)

    def add(self, rows: Mapping[str, NDArray[Any]]) -> None:
        end = self._length + len(rows["position"])
        for name, array in self._arrays.items():
            self._arrays[name] = _room(array, self._length, end)
            self._arrays[name][self._length : end] = rows[name]
        self._latest = _room(self._latest, self._length, end)
        before = self._latest[self._length - 1] if self._length else 0
        self._latest[self._length : end] = np.maximum(np.maximum.accumulate(rows["recorded"]), before)
        self._length = end

    def without(self, gone: Flags, rows: Mapping[str, NDArray[Any]], moved: Index | None) -> "_Growing[TableT]":
        """Return another one that has `rows` in place of those that are `gone`, all in the order of their positions.

        `moved` tells of each row of interactions where it stands now.
        """
        other = _Growing(self._table, self.columns, self.source, self.key)
        mine = {name: array[: self._length] for name, array in self._arrays.items()}
        if moved is not None:
            mine["interaction"] = moved[mine["interaction"]]
        if gone.any() or len(rows["position"]):
            position = np.concatenate([mine["position"][~gone], rows["position"]])
            order = np.argsort(position, kind="stable")
            mine = {
                name: np.concatenate([array[~gone], rows[name].astype(array.dtype)])[order]
                for name, array in mine.items()
            }
        # Without room to grow in: what is added to either goes into arrays of its own.
        other._arrays = mine
        other._length = len(mine["position"])
        other._latest = np.maximum.accumulate(mine["recorded"])
        return other

    def view(self) -> TableT:
        return self._table(**{name: array[: self._length] for name, array in self._arrays.items()})

    def last(self, upto: int) -> tuple[int, int] | None:
        """Return position and time of the last row at or before a position."""
        at = int(np.searchsorted(self._arrays["position"][: self._length], upto, side="right")) - 1
        return None if at < 0 else (int(self._arrays["position"][at]), int(self._arrays["recorded"][at]))

    def first_after(self, moment: int) -> int | None:
        """Return the position of the first row that was recorded after `moment`."""
        at = int(np.searchsorted(self._latest[: self._length], moment, side="right"))
        return int(self._arrays["position"][at]) if at < self._length else None


def _room(array: NDArray[Any], used: int, wanted: int) -> NDArray[Any]:
    """Return an array with room for `wanted`: the same one, or a copy half as long again."""
    if wanted <= len(array):
        return array
    larger = np.empty(max(wanted, len(array) * 3 // 2), array.dtype)
    larger[:used] = array[:used]
    return larger


class _Codes:
    """Numbers from 0 on in place of keys, in the order in which they are met. `reserved` numbers stand for key 0."""

    def __init__(self, reserved: int) -> None:
        self._numbers: dict[int, int] = {0: 0} if reserved else {}
        self._none = 0 if reserved else -1
        self._next = len(self._numbers)

    def turn(self, keys: NDArray[np.int64]) -> tuple[NDArray[np.int32], list[int]]:
        """Return the numbers of keys, and the keys that were new, in the order of their numbers."""
        unique, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
        new = [int(unique[n]) for n in np.argsort(first) if unique[n] != 0 and int(unique[n]) not in self._numbers]
        for key in new:
            self._numbers[key] = self._next
            self._next += 1
        numbers = np.array([self._numbers.get(int(key), self._none) for key in unique], np.int32)
        return numbers[inverse], new

    def number(self, key: int) -> int | None:
        return self._numbers.get(key)

    def without(self, numbers: Iterable[int]) -> "_Codes":
        """Return others that know nothing of these numbers, nor give them again."""
        gone, other = set(numbers), _Codes(reserved=False)
        other._numbers = {key: number for key, number in self._numbers.items() if number not in gone}
        other._none, other._next = self._none, self._next
        return other


@dataclass(frozen=True, slots=True)
class MapVersion:
    position: int
    recorded: int
    published: PublishedMap


@dataclass(frozen=True, slots=True)
class Newest:
    """A row: the name of its table, its position, and when it was recorded, in microseconds."""

    table: str
    position: int
    recorded: int


class Columns:
    """What the tables of a schema hold, as far as it was read.

    Rows are added only: where some were erased, others take over. `broken`: half of something was added, and nothing
    more will be.
    """

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self.broken = False
        self.position = -1
        self.vocabulary = Vocabulary()
        self.maps: list[MapVersion] = []
        self._codes = {kind: _Codes(reserved=kind in {Kind.NEED, Kind.PROFILE}) for kind in Kind}
        self._interactions = _Growing(Interactions, _INTERACTIONS, "interaction")
        self._analyses = _Growing(Analyses, _ANALYSES, "analysis")
        self._ratings = _Growing(Ratings, _RATINGS, "rating", "interaction")
        self._links = _Growing(Links, _LINKS, "identity_link")
        self._signals = _Growing(Marks, _MARKS, "signal")
        self._actions = _Growing(Marks, _MARKS, "action_change")
        self._erasures = _Growing(Table, _CLOCK, "erasure")
        self._histories: OrderedDict[int, History] = OrderedDict()

    @property
    def _tables(self) -> tuple[_Growing[Any], ...]:
        return tuple(getattr(self, name) for name in _TABLES)

    async def refresh(self, connection: Any, position: int) -> bool:
        """Read what was added up to `position`; return whether it is there. It is not where these are broken."""
        async with self._lock:
            if position > self.position and not self.broken:
                # Who asked may give up; what is being read serves the next.
                await _to_its_end(self._add(connection, position))
        return not self.broken

    async def after_erasures(self, connection: Any) -> "Columns":
        """Return others without what was erased since, read as far as these; these stay as they are.

        Where these are broken, who waited for that learns it here: the others begin anew.
        """
        async with self._lock:
            return Columns() if self.broken else await _to_its_end(self._without_erased(connection))

    def newest(self) -> Newest | None:
        """Return the newest of all rows: tables that lack it are not those that were read."""
        # Ratings have no time of their own, and stand and fall with their interactions.
        lasts = [(table.source, table.last(self.position)) for table in self._tables if table is not self._ratings]
        found = [Newest(source, *last) for source, last in lasts if last is not None]
        found += [Newest("journey_map", each.position, each.recorded) for each in self.maps[-1:]]
        return max(found, key=lambda each: each.position, default=None)

    async def _without_erased(self, connection: Any) -> "Columns":
        rows = await connection.fetch("SELECT positions FROM erasure WHERE position > $1", self.position)
        erased = np.unique(np.array([each for row in rows for each in row["positions"]], np.int64))
        erased = erased[erased <= self.position]
        other = Columns()
        other.position, other.maps = self.position, list(self.maps)
        other.vocabulary = Vocabulary(*(list(getattr(self.vocabulary, each.name)) for each in fields(Vocabulary)))
        other._codes = {kind: codes.without(()) for kind, codes in self._codes.items()}
        before = self._interactions.view().position
        gone = np.isin(before, erased)
        for name in _TABLES:
            table: _Growing[Any] = getattr(self, name)
            mine, keys = table.view(), [table.key]
            out, moved = np.isin(mine.position, erased), None
            if table is not self._interactions and "interaction" in table.names:
                # Of an interaction everything goes, wherever it stands; what stays leads to where interactions are now.
                out |= gone[mine.interaction]
                keys = ["position", "interaction"] if table.key == "position" else keys
                moved = np.searchsorted(other._interactions.view().position, before).astype(np.int32)
            setattr(other, name, table.without(out, await other._replaced(connection, table, keys, erased), moved))
        other._forget_unused()
        return other

    async def _replaced(
        self, connection: Any, table: _Growing[Any], keys: Sequence[str], erased: Ints
    ) -> Mapping[str, NDArray[Any]]:
        """Return what stands in a table, whose rows of before are given, in place of what was erased."""
        places = f"ANY('{{{','.join(map(str, erased.tolist()))}}}'::bigint[])"
        rows = await _copy(
            connection,
            f"""SELECT {", ".join(column.sql for column in table.columns)} FROM {table.source}
                WHERE ({" OR ".join(f"{key} = {places}" for key in keys)}) AND {table.key} <= {self.position}
                ORDER BY {table.key}""",  # noqa: S608 - numbers and constants of ours
            table.columns,
        )
        return await self._coded(connection, table.columns, rows)

    def _forget_unused(self) -> None:
        """Forget customers, and what was told of customers, that no row speaks of any more."""
        told, links = self._interactions.view(), self._links.view()
        marks = self._signals.view().customer, self._actions.view().customer
        profiles = _unused(len(self.vocabulary.profiles), told.profile, np.zeros(1, np.int64))
        customers = _unused(len(self.vocabulary.customers), told.customer, links.identity, links.customer, *marks)
        for number in profiles:
            self.vocabulary.profiles[number] = {}
        for number in customers:
            self.vocabulary.customers[number] = 0
        self._codes[Kind.PROFILE] = self._codes[Kind.PROFILE].without(profiles)
        self._codes[Kind.CUSTOMER] = self._codes[Kind.CUSTOMER].without(customers)

    async def _add(self, connection: Any, position: int) -> None:
        try:
            for table, last in zip(self._tables, await self._lasts(connection, position), strict=True):
                await self._read(connection, table, last)
            await self._read_maps(connection, position)
        except BaseException:
            self.broken = True
            raise
        self.position = position

    async def _lasts(self, connection: Any, upto: int) -> Sequence[int]:
        """Return how far each table is to be read, all in one question: mostly little was added, to few of them."""
        lasts = ", ".join(
            f"(SELECT max({t.key}) FROM {t.source} WHERE {t.key} > {self.position} AND {t.key} <= {upto})"  # noqa: S608 - numbers and constants of ours
            for t in self._tables
        )
        row = await connection.fetchrow(f"SELECT {lasts}")
        return [self.position if last is None else last for last in row.values()]

    async def _read(self, connection: Any, table: _Growing[Any], last: int) -> None:
        after = self.position
        key, columns = table.key, ", ".join(column.sql for column in table.columns)
        while after < last:
            end = await connection.fetchval(
                f"SELECT max({key}) FROM (SELECT {key} FROM {table.source} WHERE {key} > {after} AND {key} <= {last}"  # noqa: S608
                f" ORDER BY {key} LIMIT {CHUNK}) chunk"
            )
            rows = await _copy(
                connection,
                f"SELECT {columns} FROM {table.source} WHERE {key} > {after} AND {key} <= {end} ORDER BY {key}",  # noqa: S608
                table.columns,
            )
            table.add(await self._coded(connection, table.columns, rows))
            after = end

    async def _coded(
        self, connection: Any, columns: Sequence[_Column], rows: dict[str, NDArray[Any]]
    ) -> dict[str, NDArray[Any]]:
        for column in columns:
            if column.codes is not None:
                numbers, new = self._codes[column.codes].turn(rows[column.name])
                rows[column.name] = numbers
                await self._learn(connection, column.codes, new)
            elif column.name == "interaction":
                positions = self._interactions.view().position
                rows[column.name] = np.searchsorted(positions, rows[column.name]).astype(np.int32)
            elif column.sql in {"recorded_at", "occurred_at"}:
                rows[column.name] = rows[column.name] + _EPOCH_US
        return rows

    async def _learn(self, connection: Any, kind: Kind, keys: Sequence[int]) -> None:
        known = self.vocabulary
        if kind is Kind.CUSTOMER:
            # Whose they are is asked for one by one; a million names need not be at hand.
            known.customers.extend(keys)
            return
        texts = await texts_of(connection, kind, keys)
        learn: Callable[[str], None]
        match kind:
            case Kind.TOUCHPOINT:
                learn = lambda text: known.touchpoints.append(_raw_touchpoint(text))  # noqa: E731
            case Kind.NEED:
                learn = known.needs.append
            case Kind.PROFILE:
                learn = lambda text: known.profiles.append(json.loads(text))  # noqa: E731
            case Kind.SCALE:
                learn = lambda text: known.scales.append(Scale(*json.loads(text)))  # noqa: E731
        for key in keys:
            learn(texts[key])

    async def _read_maps(self, connection: Any, upto: int) -> None:
        rows = await connection.fetch(
            """SELECT position, recorded_at, version, actor, body FROM journey_map
               WHERE position > $1 AND position <= $2 ORDER BY position""",
            self.position,
            upto,
        )
        for row in rows:
            published = PublishedMap(_DECODE_MAP(row["body"]), row["version"], row["recorded_at"], row["actor"])
            recorded = microseconds(row["recorded_at"])
            self.maps.append(MapVersion(row["position"], recorded, published))

    def cut(self, moment: int | None) -> int:
        """Return the position before which everything was known at `moment` (microseconds; None: now).

        It is that of the first event recorded after the moment: so a later event is never known without an earlier one,
        though the store's clock may jump back.
        """
        if moment is None:
            return self.position + 1
        firsts = [first for table in self._tables[:2] + self._tables[3:] if (first := table.first_after(moment))]
        firsts += [each.position for each in self.maps if each.recorded > moment]
        return min(firsts, default=self.position + 1)

    def history(self, cut: int) -> History:
        """Return what was known before `cut`."""
        if cut in self._histories:
            self._histories.move_to_end(cut)
            return self._histories[cut]
        history = History(cut, self.vocabulary, *(table.view().before(cut) for table in self._tables))
        self._histories[cut] = history
        while len(self._histories) > KEPT_HISTORIES:
            self._histories.popitem(last=False)
        return history

    def maps_before(self, cut: int) -> Sequence[PublishedMap]:
        """Return every version of every map that was published before `cut`, in the order of the store."""
        return [each.published for each in self.maps if each.position < cut]

    def number_of(self, customer_key: int) -> int | None:
        """Return the number of a customer in the columns, given the key of their name."""
        return self._codes[Kind.CUSTOMER].number(customer_key)


async def _to_its_end(work: Coroutine[Any, Any, ResultT]) -> ResultT:
    """Do it to its end, also where who asked gives up."""
    doing = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(doing)
    except asyncio.CancelledError:
        try:
            await asyncio.wait({doing})
        finally:
            # For who is told twice to stop.
            doing.cancel()
        raise


def _unused(size: int, *columns: NDArray[Any]) -> list[int]:
    """Return the numbers below `size` that are in none of the columns."""
    used = np.zeros(size, bool)
    for column in columns:
        used[column[column >= 0]] = True
    found: list[int] = np.flatnonzero(~used).tolist()
    return found


_DECODE_MAP = msgspec.json.Decoder(JourneyMap).decode


def _raw_touchpoint(text: str) -> RawTouchpoint:
    source, touchpoint, channel = json.loads(text)
    return RawTouchpoint(source, touchpoint, Channel.from_number(channel))


async def _copy(connection: Any, query: str, columns: Sequence[_Column]) -> dict[str, NDArray[Any]]:
    """Return what a query gives, column by column, by way of PostgreSQL's binary COPY format.

    None of the columns may be NULL: then each row is of one length, and the whole answer is one array.
    Format: https://www.postgresql.org/docs/current/sql-copy.html, "Binary Format".
    """
    answer = bytearray()

    async def take(data: bytes) -> None:
        answer.extend(data)

    await connection.copy_from_query(query, output=take, format="binary")
    row = np.dtype(
        [("fields", ">i2")] + [pair for c in columns for pair in ((f"{c.name}_length", ">i4"), (c.name, c.wire))]
    )
    header = 19
    count = (len(answer) - header - 2) // row.itemsize
    rows = np.frombuffer(answer, row, count, header)
    return {c.name: rows[c.name].astype(c.wire.replace(">", "<")) for c in columns}
