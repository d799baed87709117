"""Scavenge: take what retention and deletion made invisible off the disk, while the node goes on serving.

The work is cut into small transactions that take their turn between those of the clients. SQLite overwrites what is
deleted with zeros (`secure_delete`), the freed pages go back to the file system, and the write-ahead log, which may
still hold the old content, is emptied at the end.
"""

import asyncio
import json
import logging
import sqlite3
import time
import uuid
from collections.abc import Mapping
from functools import partial
from typing import Final

from infra.eventstore import retention
from infra.eventstore.database import stream_of
from infra.eventstore.model import ANY, END_OF_STREAM, Append, NewEvent, Part, Stream
from infra.eventstore.store import Store

log = logging.getLogger(__name__)

# Rows or pages per transaction: a few milliseconds during which no client's append can start.
STEP: Final = 500
TRUNCATE_ATTEMPTS: Final = 20


class Scavenger:
    """At most one scavenge at a time, in the background.

    Progress is told as the real server tells it: $scavengeStarted and $scavengeCompleted in `$scavenges-<id>`.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._task: asyncio.Task[None] | None = None
        self.id = ""

    @property
    def running(self) -> bool:
        return self._task is not None and not self._task.done()

    def start(self) -> None:
        self.id = str(uuid.uuid4())
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        started = time.monotonic()
        await self._tell("$scavengeStarted", {})
        size_before = self._store.size
        try:
            events = await self._remove_invisible()
            await self._shrink()
        except sqlite3.Error as error:
            log.exception("scavenge failed")
            await self._tell("$scavengeCompleted", {"result": "Errored", "error": str(error)})
            return
        saved = max(0, size_before - self._store.size)
        seconds = round(time.monotonic() - started, 3)
        log.info("scavenge removed %d events and freed %d bytes in %.1f s", events, saved, seconds)
        facts = {"result": "Success", "eventsRemoved": events, "spaceSaved": saved, "timeTakenSeconds": seconds}
        await self._tell("$scavengeCompleted", facts)

    async def _remove_invisible(self) -> int:
        removed, after = 0, 0
        while True:
            streams = await self._store.maintain(partial(_limited_streams, after=after))
            if not streams:
                return removed
            for stream in streams:
                now = self._store.clock.now()
                while step := await self._store.maintain(partial(_remove_step, stream=stream, now=now)):
                    removed += step
            after = streams[-1].id

    async def _shrink(self) -> None:
        while await self._store.maintain(_free_step):
            pass
        for _ in range(TRUNCATE_ATTEMPTS):  # a reader in the middle of a page, or a backup, can be in the way
            if await self._store.maintain(_truncate_log):
                return
            await asyncio.sleep(0.1)
        log.warning("the write-ahead log could not be emptied: removed data may stay in it until the node restarts")

    async def _tell(self, event_type: str, facts: Mapping[str, object]) -> None:
        data = json.dumps({"scavengeId": self.id, **facts}).encode()
        event = NewEvent(uuid.uuid4().bytes, event_type, is_json=True, metadata=b"", data=data)
        await self._store.write(Append([Part(f"$scavenges-{self.id}", ANY, [event])]))


def _limited_streams(db: sqlite3.Connection, after: int) -> list[Stream]:
    """The next streams that may have invisible events, by id."""
    rows = db.execute(
        "SELECT id, name, last_revision, truncate_before, max_count, max_age_s, tombstoned FROM streams WHERE id > ?"
        " AND (truncate_before > 0 OR max_count NOT NULL OR max_age_s NOT NULL OR tombstoned) ORDER BY id LIMIT ?",
        (after, STEP),
    )
    return [stream_of(row) for row in rows]


def _remove_step(db: sqlite3.Connection, stream: Stream, now: int) -> int:
    """Delete up to STEP invisible events of a stream; gives back how many it found.

    The revision to go on from is kept with the stream, so that its last events may go too; only a tombstone stays.
    """
    first = END_OF_STREAM if stream.tombstoned else retention.first_visible(stream)
    oldest = retention.oldest_visible(stream, now)
    cursor = db.execute(
        "DELETE FROM events WHERE position IN (SELECT position FROM events INDEXED BY events_by_revision"
        " WHERE stream_id = ? AND (revision < ? OR created < ?) AND revision < ? LIMIT ?)",
        (stream.id, first, oldest, END_OF_STREAM, STEP),
    )
    return cursor.rowcount


def _free_step(db: sqlite3.Connection) -> int:
    """Give up to STEP free pages back to the file system; gives back how many are left."""
    db.execute(f"PRAGMA incremental_vacuum({STEP})").fetchall()
    (left,) = db.execute("PRAGMA freelist_count").fetchone()
    return int(left)


def _truncate_log(db: sqlite3.Connection) -> bool:
    (busy, _, _) = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    return not busy
