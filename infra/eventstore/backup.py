"""A consistent copy of the store, also while a node serves it."""

import os
import sqlite3
from contextlib import closing
from pathlib import Path

from infra.eventstore.database import DATABASE, StoreError, connect, existing, full_check


def back_up(directory: Path, target: Path) -> int:
    """Copy the store in `directory` to the file `target`; gives back the number of events in the copy.

    The copy holds everything that was acknowledged before the call. It is checked before it gets its name, so that
    `target` is either a sound backup or absent. To restore, put it into an empty data directory as `events.db`.

    Raises:
        StoreError: there is no store, the target exists, or the copy cannot be written.
    """
    source_path = existing(directory) / DATABASE
    if target.exists():
        raise StoreError(f"{target} exists already; a backup never overwrites")
    unfinished = target.with_name(f"{target.name}.unfinished")
    unfinished.unlink(missing_ok=True)
    try:
        with closing(connect(source_path)) as source, closing(sqlite3.connect(unfinished)) as copy:
            source.backup(copy)
            copy.execute("PRAGMA journal_mode = DELETE")  # one file, no write-ahead log beside it
        with unfinished.open("rb") as file:
            os.fsync(file.fileno())
        count = full_check(unfinished)
    except sqlite3.Error as error:
        raise StoreError(f"cannot back up {source_path} to {target}: {error}") from error
    unfinished.rename(target)
    # The name, too, has to be on the disk before anybody relies on it.
    folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return count
