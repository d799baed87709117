"""The one writer: a thread that drains its queue into one SQLite transaction and acknowledges after COMMIT.

While a commit waits for the disk the next writes gather in the queue, so that the cost of an fsync is shared by all of
them: group commit without a timer.
"""

import asyncio
import itertools
import queue
import sqlite3
import threading
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from infra.eventstore import decide, retention
from infra.eventstore.clock import Clock
from infra.eventstore.database import (
    NAMES_PER_SELECT,
    SELECT_STREAM,
    SELECT_STREAMS,
    checksum,
    connect,
    stream_of,
)
from infra.eventstore.model import (
    ANY,
    END_OF_STREAM,
    EXISTS,
    METADATA_EVENT,
    NO_STREAM,
    TOMBSTONE_EVENT,
    Append,
    Committed,
    Delete,
    NewEvent,
    Outcome,
    Part,
    Refused,
    Stream,
    Violation,
    Written,
    metastream_of,
    original_of,
)

# A group ends at whichever comes first. More would delay the acknowledgement of its first member, and leave the event
# loop with nothing to parse meanwhile.
MAX_GROUP_WRITES: Final = 1024
MAX_GROUP_BYTES: Final = 2 * 1024 * 1024
# Streams whose state is kept in memory between transactions, about 300 bytes each; the rest is looked up.
MAX_CACHED_STREAMS: Final = 10_000
# Rows per INSERT: fewer statements mean fewer hand-overs of the interpreter lock between writer and event loop.
ROWS_PER_INSERT: Final = 64

Job = Callable[[sqlite3.Connection], Any]
_Item = tuple[Append | Delete | Job | None, asyncio.Future[Any]]
_Group = list[tuple[Append | Delete, asyncio.Future[Any]]]
_EVENT_COLUMNS: Final = "position, stream_id, revision, event_id, type, is_json, created, metadata, data, crc"
_STREAM_COLUMNS: Final = "id, name, last_revision, truncate_before, max_count, max_age_s, tombstoned"


class Writer:
    """Owns the writing connection. `submit` and `run` are called on the event loop, the rest is the thread's."""

    def __init__(self, path: Path, on_commit: Callable[[int], None], clock: Clock) -> None:
        """`on_commit` is called on the event loop with the new head position, before the acknowledgements."""
        self._clock = clock
        self._db = connect(path)
        self._on_commit = on_commit
        self._loop = asyncio.get_running_loop()
        self._queue: queue.SimpleQueue[_Item] = queue.SimpleQueue()
        # The one used last stands last.
        self._streams: OrderedDict[str, Stream] = OrderedDict()
        self.head, self._next_stream_id = _counters(self._db)
        self._thread = threading.Thread(target=self._work, name="eventstore-writer")
        self._thread.start()

    def submit(self, write: Append | Delete) -> asyncio.Future[Outcome]:
        """Queue a write; the future is done after it is on disk.

        Raises (through the future):
            sqlite3.Error: the transaction failed (disk full, I/O error); nothing of it was kept.
        """
        return self._enqueue(write)

    def run(self, job: Job) -> asyncio.Future[Any]:
        """Run maintenance between two transactions, on the writing connection."""
        return self._enqueue(job)

    async def close(self) -> None:
        """Finish what is queued, then close the database."""
        await self._enqueue(None)
        self._thread.join()

    def _enqueue(self, work: Append | Delete | Job | None) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = self._loop.create_future()
        self._queue.put((work, future))
        return future

    def _work(self) -> None:
        held: _Item | None = None
        while True:
            work, future = held or self._queue.get()
            held = None
            if isinstance(work, Append | Delete):
                group, held = self._gather(work, future)
                self._commit(group)
            elif work is None:
                self._db.close()
                self._settle([(future, None)])
                return
            else:
                self._maintain(work, future)

    def _gather(self, first: Append | Delete, future: asyncio.Future[Any]) -> tuple[_Group, "_Item | None"]:
        """What is queued already, up to the size of a group, and the first item that is not a write."""
        group: _Group = [(first, future)]
        size = _size(first)
        while len(group) < MAX_GROUP_WRITES and size < MAX_GROUP_BYTES:
            try:
                work, future = self._queue.get_nowait()
            except queue.Empty:
                break
            if not isinstance(work, Append | Delete):
                return group, (work, future)
            group.append((work, future))
            size += _size(work)
        return group, None

    def _commit(self, group: _Group) -> None:
        try:
            self._db.execute("BEGIN IMMEDIATE")
            transaction = _Transaction(self._db, self._streams, self.head, self._next_stream_id, self._clock.now())
            transaction.look_up([write for write, _ in group])
            outcomes = [transaction.take(write) for write, _ in group]
            transaction.save()
            self._db.execute("COMMIT")
        except Exception as error:  # noqa: BLE001 whatever went wrong, every caller must hear of it
            self._forget()
            self._settle([(future, error) for _, future in group])
            return
        self.head, self._next_stream_id = transaction.head, transaction.next_stream_id
        while len(self._streams) > MAX_CACHED_STREAMS:
            self._streams.popitem(last=False)
        self._settle([(future, outcome) for (_, future), outcome in zip(group, outcomes, strict=True)])

    def _maintain(self, job: Job, future: asyncio.Future[Any]) -> None:
        try:
            result = job(self._db)
        except Exception as error:  # noqa: BLE001 the caller must hear of it, and the writer must live on
            self._forget()
            result = error
        self._settle([(future, result)])

    def _forget(self) -> None:
        """Undo a failed transaction, also in memory."""
        self._streams.clear()
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")

    def _settle(self, results: list[tuple[asyncio.Future[Any], Any]]) -> None:
        self._loop.call_soon_threadsafe(self._acknowledge, self.head, results)

    def _acknowledge(self, head: int, results: list[tuple[asyncio.Future[Any], Any]]) -> None:
        self._on_commit(head)
        for future, result in results:
            if future.cancelled():  # the caller went away; what it wrote stays
                continue
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)


_Planned = tuple[Part, Stream, decide.Plan]


class _Transaction:
    """The changes of one group: decided in memory, one write after the other, and saved with few statements."""

    def __init__(
        self, db: sqlite3.Connection, streams: OrderedDict[str, Stream], head: int, next_stream_id: int, now: int
    ) -> None:
        self._db = db
        self._streams = streams
        self._changed: dict[int, Stream] = {}
        self._rows: list[tuple[Any, ...]] = []
        self._places: dict[tuple[int, bytes], list[tuple[int, int]]] = {}
        self._metadata: dict[int, bytes] = {}
        self._now = now
        self.head = head
        self.next_stream_id = next_stream_id

    def look_up(self, writes: Sequence[Append | Delete]) -> None:
        """Look up what `writes` are about and is not known, many at once: most of it are streams that are new."""
        unknown = [name for name in dict.fromkeys(itertools.chain(*map(_streams, writes))) if name not in self._streams]
        for start in range(0, len(unknown), NAMES_PER_SELECT):
            names = unknown[start : start + NAMES_PER_SELECT]
            # What is left of the statement's places finds nothing.
            marks = names + [""] * (NAMES_PER_SELECT - len(names))
            found = {row[1]: row for row in self._db.execute(SELECT_STREAMS, marks)}
            for name in names:
                self._learn(name, found.get(name))

    def take(self, write: Append | Delete) -> Outcome:
        return self._append(write) if isinstance(write, Append) else self._delete(write)

    def save(self) -> None:
        for start in range(0, len(self._rows), ROWS_PER_INSERT):
            rows = self._rows[start : start + ROWS_PER_INSERT]
            self._db.execute(_insert("events", _EVENT_COLUMNS, len(rows)), [value for row in rows for value in row])
        changed = list(self._changed.values())
        for start in range(0, len(changed), ROWS_PER_INSERT):
            streams = changed[start : start + ROWS_PER_INSERT]
            self._db.execute(
                _insert("streams", _STREAM_COLUMNS, len(streams)),
                [value for stream in streams for value in _stream_row(stream)],
            )
        if self._rows:
            self._db.execute("UPDATE high_water SET position = ?", (self.head,))

    def _append(self, write: Append) -> Outcome:
        """Decide every part before applying any: a refusal leaves no trace."""
        refused = Refused()
        plans: list[_Planned] = []
        for part in write.parts:
            stream = self._stream(part.stream)
            plan = self._plan(stream, part)
            if plan is None:
                refused.violations.append(_violation(stream, part.expected))
            else:
                plans.append((part, stream, plan))
        for check in write.checks:
            stream = self._stream(check.stream)
            if not self._meets(stream, check.expected):
                refused.violations.append(_violation(stream, check.expected))
        if any(plan.fresh for _, _, plan in plans):
            # Only a whole append can be a repeat: who is told that it was written may rely on all of it being new.
            refused.violations += [
                _violation(stream, part.expected)
                for part, stream, plan in plans
                if plan.repeated is not None and part.expected not in (ANY, EXISTS)
            ]
        if refused.violations:
            return refused
        reviving = [
            (stream, stream.last_revision + 1) for _, stream, plan in plans if plan.fresh and stream.soft_deleted
        ]
        written = {
            stream.name: Written(stream.name, *(plan.repeated or (stream.last_revision, -1)))
            for _, stream, plan in plans
        }
        for stream, events in _runs(plans, write.order):
            written[stream.name] = Written(stream.name, *self._record(stream, events))
        for stream, first_revision in reviving:
            self._set_metadata(stream, retention.revival(self._current_metadata(stream), first_revision))
        return Committed(list(written.values()))

    def _plan(self, stream: Stream, part: Part) -> decide.Plan | None:
        places = self._known(stream, part)
        return decide.plan(stream, part.expected, part.events, places, meets=self._meets(stream, part.expected))

    def _meets(self, stream: Stream, expected: int) -> bool:
        has_metadata = expected == EXISTS and self._has_metadata(stream)
        return decide.meets(stream, expected, has_metadata=has_metadata)

    def _record(self, stream: Stream, events: Sequence[NewEvent]) -> tuple[int, int]:
        """Add `events` to the stream; gives back the revision and position of the last one."""
        self._changed[self._identify(stream)] = stream
        for event in events:
            self.head += 1
            stream.last_revision += 1
            self._add_row(stream, stream.last_revision, event)
        last = stream.last_revision, self.head
        original = original_of(stream.name)
        if original is not None:
            stream.max_count = 1  # of a stream's metadata only the last counts
            for event in events:
                if event.type == METADATA_EVENT:
                    self._follow_metadata(self._stream(original), stream, event.data)
        return last

    def _add_row(self, stream: Stream, revision: int, event: NewEvent) -> None:
        crc = checksum(event.id, event.type, event.metadata, event.data)
        is_json = int(event.is_json)
        self._rows.append(
            (self.head, stream.id, revision, event.id, event.type, is_json, self._now, event.metadata, event.data, crc)
        )
        self._places.setdefault((stream.id, event.id), []).append((revision, self.head))

    def _follow_metadata(self, stream: Stream, metastream: Stream, document: bytes) -> None:
        """Let `stream` obey its new metadata; setting metadata on a soft-deleted stream brings it back, empty."""
        was_deleted = stream.soft_deleted
        self._changed[self._identify(stream)] = stream
        self._metadata[metastream.id] = document
        retention.apply_metadata(stream, document)
        if was_deleted and "$tb" not in retention.parse(document):
            self._set_metadata(stream, retention.revival(document, stream.last_revision + 1))

    def _set_metadata(self, stream: Stream, document: bytes) -> None:
        event = NewEvent(uuid.uuid4().bytes, METADATA_EVENT, is_json=True, metadata=b"", data=document)
        self._record(self._stream(metastream_of(stream.name)), [event])

    def _delete(self, write: Delete) -> Outcome:
        stream = self._stream(write.stream)
        if not self._meets(stream, write.expected):
            return Refused([_violation(stream, write.expected)])
        if write.tombstone:
            stream.tombstoned = True
            self._changed[self._identify(stream)] = stream
            self.head += 1
            self._stream(metastream_of(stream.name)).tombstoned = True
            tombstone = NewEvent(uuid.uuid4().bytes, TOMBSTONE_EVENT, is_json=False, metadata=b"", data=b"")
            self._add_row(stream, END_OF_STREAM, tombstone)
            return Committed([Written(stream.name, END_OF_STREAM, self.head)])
        if stream.last_revision == NO_STREAM and not self._has_metadata(stream):
            return Refused([_violation(stream, write.expected)])
        self._set_metadata(stream, retention.deletion())
        return Committed([Written(stream.name, stream.last_revision, self.head)])

    def _stream(self, name: str) -> Stream:
        stream = self._streams.get(name)
        if stream is None:
            return self._learn(name, self._db.execute(SELECT_STREAM, (name,)).fetchone())
        self._streams.move_to_end(name)
        return stream

    def _learn(self, name: str, row: tuple[Any, ...] | None) -> Stream:
        # An id of 0 means "not stored": most looked-at streams that do not exist never will.
        stream = Stream(0, name) if row is None else stream_of(row)
        original = original_of(name)
        if original is not None and self._stream(original).tombstoned:
            stream.tombstoned = True  # with a stream goes its metadata
        self._streams[name] = stream
        return stream

    def _identify(self, stream: Stream) -> int:
        if stream.id == 0:
            stream.id = self.next_stream_id
            self.next_stream_id += 1
        return stream.id

    def _has_metadata(self, stream: Stream) -> bool:
        return self._stream(metastream_of(stream.name)).last_revision != NO_STREAM

    def _current_metadata(self, stream: Stream) -> bytes:
        metastream = self._stream(metastream_of(stream.name))
        if metastream.id in self._metadata:
            return self._metadata[metastream.id]
        row = self._db.execute(
            "SELECT data FROM events WHERE stream_id = ? AND revision = ?", (metastream.id, metastream.last_revision)
        ).fetchone()
        return b"{}" if row is None else bytes(row[0])

    def _known(self, stream: Stream, part: Part) -> dict[bytes, list[tuple[int, int]]]:
        """Where the ids of `part` already are in the stream. Truncated and soft-deleted events are forgotten."""
        if stream.last_revision in (NO_STREAM, part.expected):
            return {}
        ids = [event.id for event in part.events]
        known: dict[bytes, list[tuple[int, int]]] = {}
        for start in range(0, len(ids), 500):
            some = ids[start : start + 500]
            marks = ",".join("?" * len(some))
            for event_id, revision, position in self._db.execute(
                "SELECT event_id, revision, position FROM events INDEXED BY events_by_id"  # noqa: S608
                f" WHERE stream_id = ? AND event_id IN ({marks}) ORDER BY revision",
                (stream.id, *some),
            ):
                known.setdefault(event_id, []).append((revision, position))
        for event_id in ids:
            known.setdefault(event_id, []).extend(self._places.get((stream.id, event_id), ()))
        visible = {
            event_id: [place for place in places if place[0] >= stream.truncate_before]
            for event_id, places in known.items()
        }
        return {event_id: places for event_id, places in visible.items() if places}


def _runs(plans: list[_Planned], order: Sequence[str]) -> Iterator[tuple[Stream, list[NewEvent]]]:
    """The new events in the order to record them, in runs that go to the same stream."""
    if not order:
        yield from ((stream, list(plan.fresh)) for _, stream, plan in plans if plan.fresh)
        return
    by_name = {
        part.stream: (stream, iter(part.events), {id(event) for event in plan.fresh}) for part, stream, plan in plans
    }
    for name, run in itertools.groupby(order):
        stream, events, fresh = by_name[name]
        # `run` comes first: it must end the zip, or an event of the next run would be lost.
        wanted = [event for _, event in zip(run, events, strict=False) if id(event) in fresh]
        if wanted:
            yield stream, wanted


def _violation(stream: Stream, expected: int) -> Violation:
    return Violation(stream.name, expected, stream.state, stream.last_revision)


def _stream_row(stream: Stream) -> tuple[Any, ...]:
    return (
        stream.id,
        stream.name,
        stream.last_revision,
        stream.truncate_before,
        stream.max_count,
        stream.max_age_s,
        int(stream.tombstoned),
    )


def _streams(write: Append | Delete) -> Iterator[str]:
    if isinstance(write, Delete):
        yield write.stream
    else:
        yield from (part.stream for part in write.parts)
        yield from (check.stream for check in write.checks)


def _size(write: Append | Delete) -> int:
    return sum(event.size for part in write.parts for event in part.events) if isinstance(write, Append) else 0


@lru_cache(maxsize=2 * ROWS_PER_INSERT)
def _insert(table: str, columns: str, rows: int) -> str:
    row = f"({','.join('?' * (columns.count(',') + 1))})"
    # Events are only ever added; a stream's row is replaced by its new state.
    verb = "INSERT" if table == "events" else "REPLACE"
    return f"{verb} INTO {table} ({columns}) VALUES {','.join([row] * rows)}"


def _counters(db: sqlite3.Connection) -> tuple[int, int]:
    """The head position and the next stream id."""
    ((head,),) = db.execute("SELECT max((SELECT position FROM high_water), ifnull(max(position), 0)) FROM events")
    ((last_id,),) = db.execute("SELECT ifnull(max(id), 0) FROM streams")
    return head, last_id + 1
