"""Pages of events. Reads see only what is committed, on their own connection, and never block the writer.

The queries run on the event loop: a page takes well under a millisecond from the page cache, and handing each row
across the interpreter lock to a reader thread would cost more than the query.
"""

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from infra.eventstore import retention
from infra.eventstore.clock import Clock
from infra.eventstore.database import SELECT_STREAM, CorruptedStoreError, checksum, connect, stream_of
from infra.eventstore.model import END_OF_STREAM, RecordedEvent, Stream, original_of

PAGE_EVENTS: Final = 128
# A page also ends here: it is built in memory before the first event of it is sent.
PAGE_BYTES: Final = 4 * 1024 * 1024
# Positions that one filtered page looks at, so that a filter that matches little does not hold the event loop.
FILTER_WINDOW: Final = 1024

_COLUMNS: Final = "e.position, s.name, e.revision, e.event_id, e.type, e.is_json, e.created, e.metadata, e.data, e.crc"
_SELECT: Final = f"SELECT {_COLUMNS} FROM events e CROSS JOIN streams s ON s.id = e.stream_id"  # noqa: S608


class Filter(NamedTuple):
    """Which events of $all to give: those whose stream name, or else event type, `matches`."""

    by_stream: bool
    matches: Callable[[str], bool]


class Page(NamedTuple):
    """`scanned_to` is the position up to which (inclusive) nothing was missed: from there the next page goes on."""

    events: list[RecordedEvent]
    scanned_to: int


class Reader:
    """Read-only views of the store. Not thread-safe: for the event loop.

    Every read raises CorruptedStoreError when an event fails its checksum: damage is never handed out.
    """

    def __init__(self, path: Path, clock: Clock) -> None:
        self._db = connect(path)
        self._clock = clock
        self._db.execute("PRAGMA query_only = ON")

    def close(self) -> None:
        self._db.close()

    def stream(self, name: str) -> Stream | None:
        """The stream as it is now; a metadata stream goes with its stream's tombstone."""
        row = self._db.execute(SELECT_STREAM, (name,)).fetchone()
        stream = None if row is None else stream_of(row)
        original = original_of(name)
        owner = None if original is None else self.stream(original)
        if owner is not None and owner.tombstoned:
            stream = stream or Stream(0, name)
            stream.tombstoned = True
        return stream

    def all_forwards(self, after: int, head: int, filter_: Filter | None, limit: int = PAGE_EVENTS) -> Page:
        """Events at positions in (after, head], lowest first."""
        end = head if filter_ is None else min(head, after + FILTER_WINDOW)
        events, complete = self._fetch(
            f"{_SELECT} WHERE e.position > ? AND e.position <= ? {self._where(filter_)} ORDER BY e.position LIMIT ?",
            (after, end, min(limit, PAGE_EVENTS)),
        )
        complete = complete and len(events) < min(limit, PAGE_EVENTS)
        return Page(events, end if complete else events[-1].position)

    def all_backwards(self, before: int, filter_: Filter | None, limit: int = PAGE_EVENTS) -> Page:
        """Events at positions below `before`, highest first; `scanned_to` is where to read on below."""
        start = 0 if filter_ is None else max(0, before - 1 - FILTER_WINDOW)
        events, complete = self._fetch(
            f"{_SELECT} WHERE e.position < ? AND e.position > ? {self._where(filter_)}"
            " ORDER BY e.position DESC LIMIT ?",
            (before, start, min(limit, PAGE_EVENTS)),
        )
        complete = complete and len(events) < min(limit, PAGE_EVENTS)
        return Page(events, start + 1 if complete else events[-1].position)

    def stream_forwards(self, stream: Stream, first: int, limit: int = PAGE_EVENTS) -> list[RecordedEvent]:
        """Visible events of the stream from revision `first` on; an empty list means that there are no more."""
        events, _ = self._fetch(
            f"{_SELECT} WHERE e.stream_id = ? AND e.revision >= ? AND e.revision < ? AND e.created >= ?"
            " ORDER BY e.revision LIMIT ?",
            (
                stream.id,
                max(first, retention.first_visible(stream)),
                END_OF_STREAM,
                self._oldest(stream),
                min(limit, PAGE_EVENTS),
            ),
        )
        return events

    def stream_backwards(self, stream: Stream, last: int, limit: int = PAGE_EVENTS) -> list[RecordedEvent]:
        """Visible events of the stream from revision `last` down."""
        events, _ = self._fetch(
            f"{_SELECT} WHERE e.stream_id = ? AND e.revision <= ? AND e.revision >= ? AND e.created >= ?"
            " ORDER BY e.revision DESC LIMIT ?",
            (
                stream.id,
                min(last, END_OF_STREAM - 1),
                retention.first_visible(stream),
                self._oldest(stream),
                min(limit, PAGE_EVENTS),
            ),
        )
        return events

    def event(self, link: str) -> RecordedEvent | None:
        """The event that a link names as "revision@stream", or None when it is not visible any more."""
        revision, _, name = link.partition("@")
        stream = self.stream(name)
        if stream is None or stream.tombstoned:
            return None
        events = self.stream_forwards(stream, int(revision), 1)
        return events[0] if events and events[0].revision == int(revision) else None

    def _oldest(self, stream: Stream) -> int:
        return retention.oldest_visible(stream, self._clock.now())

    def _where(self, filter_: Filter | None) -> str:
        if filter_ is None:
            return ""
        self._db.create_function("wanted", 1, filter_.matches, deterministic=True)
        return "AND wanted(s.name)" if filter_.by_stream else "AND wanted(e.type)"

    def _fetch(self, query: str, parameters: tuple[int, ...]) -> tuple[list[RecordedEvent], bool]:
        """The rows of a page, and whether none was left out for its bytes."""
        events: list[RecordedEvent] = []
        size = 0
        cursor = self._db.execute(query, parameters)
        for row in cursor:
            position, _, _, event_id, event_type, _, _, metadata, data, crc = row
            if checksum(event_id, event_type, metadata, data) != crc:
                raise CorruptedStoreError(f"the event at position {position} fails its checksum: restore a backup")
            events.append(RecordedEvent._make(row[:9]))
            size += len(data) + len(metadata)
            if size >= PAGE_BYTES:
                cursor.close()
                return events, False
        return events, True


def is_corruption(error: Exception) -> bool:
    """Whether an error of a read means damage on disk rather than a busy or failing disk."""
    return isinstance(error, CorruptedStoreError) or (
        isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError)
    )
