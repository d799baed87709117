"""The SQLite file: schema, connections, the lock on the data directory, integrity.

One file holds everything. SQLite's write-ahead log makes a commit atomic and a torn tail harmless (frames are
checksummed and an incomplete transaction is ignored); the CRC on each event finds what SQLite does not: flipped bits in
data that still looks like a database.
"""

import fcntl
import os
import sqlite3
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final

from infra.eventstore.model import Stream

DATABASE: Final = "events.db"
APPLICATION_ID: Final = 0x5245434F  # "RECO"
SCHEMA_VERSION: Final = 1

SCHEMA: Final = """
CREATE TABLE streams (
    id              INTEGER PRIMARY KEY,
    name            TEXT NOT NULL UNIQUE,
    last_revision   INTEGER NOT NULL,  -- -1: only its metadata was written so far
    truncate_before INTEGER NOT NULL,
    max_count       INTEGER,
    max_age_s       INTEGER,
    tombstoned      INTEGER NOT NULL
) STRICT;

CREATE TABLE events (
    position  INTEGER PRIMARY KEY,
    stream_id INTEGER NOT NULL,
    revision  INTEGER NOT NULL,
    event_id  BLOB NOT NULL,
    type      TEXT NOT NULL,
    is_json   INTEGER NOT NULL,
    created   INTEGER NOT NULL,        -- ticks of 100 ns since the Unix epoch
    metadata  BLOB NOT NULL,
    data      BLOB NOT NULL,
    crc       INTEGER NOT NULL
) STRICT;

CREATE UNIQUE INDEX events_by_revision ON events (stream_id, revision);
-- Not unique: at a stated revision KurrentDB lets the same id be written again.
CREATE INDEX events_by_id ON events (stream_id, event_id);

-- The highest position ever given out, so that none is given twice after a scavenge of the last events.
CREATE TABLE high_water (position INTEGER NOT NULL) STRICT;
INSERT INTO high_water VALUES (0);

CREATE TABLE subscriptions (
    stream     TEXT NOT NULL,
    group_name TEXT NOT NULL,
    settings   BLOB NOT NULL,
    checkpoint INTEGER NOT NULL,
    PRIMARY KEY (stream, group_name)
) STRICT, WITHOUT ROWID;
"""


_STREAMS: Final = "SELECT id, name, last_revision, truncate_before, max_count, max_age_s, tombstoned FROM streams"
SELECT_STREAM: Final = f"{_STREAMS} WHERE name = ?"
# One statement for any number of them, so that it is prepared once.
NAMES_PER_SELECT: Final = 64
SELECT_STREAMS: Final = f"{_STREAMS} WHERE name IN ({','.join('?' * NAMES_PER_SELECT)})"


class StoreError(Exception):
    """The store cannot be opened or used; the message is for a person, `exit_code` for the shell."""

    exit_code = 1


class DirectoryInUseError(StoreError):
    exit_code = 4


class CorruptedStoreError(StoreError):
    exit_code = 5


def checksum(event_id: bytes, event_type: str, metadata: bytes, data: bytes) -> int:
    return zlib.crc32(data, zlib.crc32(metadata, zlib.crc32(event_type.encode(), zlib.crc32(event_id))))


def stream_of(row: tuple[Any, ...]) -> Stream:
    """A row of SELECT_STREAM as a stream."""
    stream = Stream(*row)
    stream.tombstoned = bool(stream.tombstoned)  # SQLite has no booleans
    return stream


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Keep every other node out of `directory` for as long as the context lasts (the lock dies with the process)."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            owner = lock.read().strip() or "unknown"
            raise DirectoryInUseError(
                f"data directory {directory} is in use by another event store node (process {owner})"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def existing(directory: Path) -> Path:
    """The directory itself.

    Raises:
        StoreError: there is no store in it.
    """
    if not (directory / DATABASE).exists():
        raise StoreError(f"there is no event store in {directory}")
    return directory


def create_or_open(directory: Path) -> Path:
    """Make sure that `directory` holds a sound database of ours; gives back its path.

    Raises:
        CorruptedStoreError: the file is damaged or belongs to something else. Nothing is repaired or overwritten.
    """
    path = directory / DATABASE
    fresh = not path.exists()
    with _corruption_named(path), closing(sqlite3.connect(path, isolation_level=None)) as db:
        if fresh:
            # Must come before the first table; lets a scavenge give pages back to the file system bit by bit.
            db.execute("PRAGMA auto_vacuum = INCREMENTAL")
            db.execute("PRAGMA journal_mode = WAL")
            db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            db.executescript(f"BEGIN; {SCHEMA} COMMIT;")
        (application_id,) = db.execute("PRAGMA application_id").fetchone()
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if application_id != APPLICATION_ID:
            raise CorruptedStoreError(f"{path} is not an event store database (application id {application_id})")
        if version != SCHEMA_VERSION:
            raise CorruptedStoreError(f"{path} has schema version {version}; this node reads {SCHEMA_VERSION}")
    return path


def connect(path: Path) -> sqlite3.Connection:
    """A connection that commits durably: COMMIT returns after fsync of the write-ahead log."""
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10)
    db.execute("PRAGMA synchronous = FULL")
    db.execute("PRAGMA cache_size = -65536")
    # Erased means erased: freed space is overwritten with zeros, not only unlinked.
    db.execute("PRAGMA secure_delete = ON")
    # Checkpoints copy the log into the database; 16 MiB between two of them keeps their fsyncs rare.
    db.execute("PRAGMA wal_autocheckpoint = 4096")
    return db


def quick_check(path: Path) -> None:
    """Refuse a file whose structure is broken; reads every page once.

    Raises:
        CorruptedStoreError: with SQLite's own first finding.
    """
    with _corruption_named(path), closing(connect(path)) as db:
        (finding,) = db.execute("PRAGMA quick_check(1)").fetchone()
        if finding != "ok":
            raise CorruptedStoreError(f"{path} is corrupted: {' '.join(finding.split())}; restore a backup")


def latest_created(path: Path) -> int:
    """When the last event was recorded, in ticks; 0 in an empty store."""
    with closing(connect(path)) as db:
        row = db.execute("SELECT created FROM events ORDER BY position DESC LIMIT 1").fetchone()
    return 0 if row is None else int(row[0])


def full_check(path: Path, *, progress: Callable[[int], None] = lambda _: None) -> int:
    """Check structure, indexes and the CRC of every event; gives back the number of events.

    Raises:
        CorruptedStoreError: with the first finding.
    """
    with _corruption_named(path), closing(connect(path)) as db:
        (finding,) = db.execute("PRAGMA integrity_check(1)").fetchone()
        if finding != "ok":
            raise CorruptedStoreError(f"{path} is corrupted: {' '.join(finding.split())}; restore a backup")
        count = 0
        rows = db.execute("SELECT position, event_id, type, metadata, data, crc FROM events")
        for position, event_id, event_type, metadata, data, crc in rows:
            if checksum(event_id, event_type, metadata, data) != crc:
                raise CorruptedStoreError(f"{path} is corrupted: event at position {position} fails its checksum")
            count += 1
            if count % 10_000 == 0:
                progress(count)
        return count


@contextmanager
def _corruption_named(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError) and "malformed" not in str(error):
            raise StoreError(f"cannot open {path}: {error}") from error
        raise CorruptedStoreError(f"{path} is corrupted: {error}; restore a backup") from error
