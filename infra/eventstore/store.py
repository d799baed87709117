"""The store as the gRPC services see it: writes, reads, and the news of a commit."""

import asyncio
from pathlib import Path
from typing import Any

from infra.eventstore.clock import Clock
from infra.eventstore.database import create_or_open, latest_created, quick_check
from infra.eventstore.model import Append, Delete, Outcome
from infra.eventstore.reader import Reader
from infra.eventstore.writer import Job, Writer


class Store:
    """Open on one data directory; for one event loop."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.head = 0
        self._waiting: set[asyncio.Future[None]] = set()
        self.clock = Clock(latest_created(path))
        self._writer = Writer(path, self._committed, self.clock)
        self.head = self._writer.head
        self.read = Reader(path, self.clock)

    @classmethod
    def open(cls, directory: Path) -> "Store":
        """Open or create the store in `directory`, which the caller has locked.

        Raises:
            CorruptedStoreError: the file is damaged; nothing was changed.
        """
        path = create_or_open(directory)
        quick_check(path)
        return cls(path)

    async def write(self, write: Append | Delete) -> Outcome:
        """Decide and store; done once it is on disk.

        A caller that is cancelled meanwhile does not take its write back: it may happen all the same.
        """
        return await self._writer.submit(write)

    @property
    def size(self) -> int:
        """Bytes on disk, with the write-ahead log."""
        log = self.path.with_name(f"{self.path.name}-wal")
        return sum(file.stat().st_size for file in (self.path, log) if file.exists())

    async def maintain(self, job: Job) -> Any:
        """Run `job` on the writing connection, between transactions; gives back what it gives back."""
        return await self._writer.run(job)

    async def beyond(self, position: int) -> int:
        """Wait until something is committed after `position`; gives back the head."""
        while self.head <= position:
            waiter = asyncio.get_running_loop().create_future()
            self._waiting.add(waiter)
            try:
                await waiter
            finally:
                self._waiting.discard(waiter)
        return self.head

    async def close(self) -> None:
        await self._writer.close()
        self.read.close()

    def _committed(self, head: int) -> None:
        if head == self.head:
            return
        self.head = head
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_result(None)
