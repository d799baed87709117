"""One at a time: what several instances of a service may do, but only one of them at any moment.

A lease is a session-level advisory lock of PostgreSQL
(https://www.postgresql.org/docs/current/explicit-locking.html#ADVISORY-LOCKS). It is held as long as its connection
lives, so whoever dies or is cut off gives it up, without a clock that two machines would have to agree on. While the
loss of a connection is not noticed, two may believe that they hold it: what is done under a lease has to be idempotent
all the same; the lease only keeps it from being done twice for nothing.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

#: How often who waits for a lease looks whether it is free.
LOOK_EVERY_S = 1.0


@contextlib.asynccontextmanager
async def held(pool: Any, name: str, *, look_every_s: float = LOOK_EVERY_S) -> AsyncIterator[Any]:
    """Wait for the lease `name`, hold it for the block, and give its connection.

    A query on that connection proves that the lease is still held; where it fails, the lease is lost.
    """
    while True:
        async with pool.acquire() as connection:
            if await connection.fetchval("SELECT pg_try_advisory_lock(hashtext($1), 1)", name):
                # The pool gives up all advisory locks of a connection that is returned to it.
                yield connection
                return
        await asyncio.sleep(look_every_s)


#: Who says nothing for so long loses what it held: it is frozen, or its network is cut.
SILENT_S = 10


class Shares:
    """Parts 0 to `count` - 1 of one work, each held by one instance at a time, about as many by each instance.

    An instance is there as long as its connection is; what it held is free when it dies, and is taken by the others
    when they look next. Looking has to go on for as long as anything is held.
    """

    def __init__(self, connection: Any, name: str, count: int) -> None:
        self._connection = connection
        self._name = name
        self._count = count

    async def join(self) -> None:
        """Become one of those among whom the work is shared."""
        await self._connection.execute(f"SET idle_session_timeout = '{SILENT_S}s'")
        await self._connection.execute("SELECT pg_advisory_lock_shared(hashtext($1), $2)", self._name, self._count)

    async def look(self) -> tuple[frozenset[int], frozenset[int]]:
        """Return what this instance holds, and what it should hold now."""
        rows = await self._connection.fetch(
            """SELECT objid::int AS part, pid = pg_backend_pid() AS mine FROM pg_locks
               WHERE locktype = 'advisory' AND objsubid = 2 AND granted
                 AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
                 AND classid = (hashtext($1)::bigint & 4294967295)::oid""",
            self._name,
        )
        instances = sum(row["part"] == self._count for row in rows)
        taken = {row["part"] for row in rows} - {self._count}
        mine = sorted(row["part"] for row in rows if row["mine"] and row["part"] != self._count)
        fair = -(-self._count // max(instances, 1))
        free = [part for part in range(self._count) if part not in taken]
        return frozenset(mine), frozenset([*mine, *free][:fair])

    async def take(self) -> frozenset[int]:
        """Give up and take what is needed to hold what this instance should; return what it holds then."""
        mine, wanted = await self.look()
        for part in mine - wanted:
            await self._connection.execute("SELECT pg_advisory_unlock(hashtext($1), $2)", self._name, part)
        taken = {
            part
            for part in sorted(wanted - mine)
            # Another instance may have been first.
            if await self._connection.fetchval("SELECT pg_try_advisory_lock(hashtext($1), $2)", self._name, part)
        }
        return frozenset((mine & wanted) | taken)
