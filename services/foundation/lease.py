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
