"""Building a read model anew beside the one in use, and putting it in its place."""

import contextlib
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Any

import structlog

from services.foundation.errors import ConflictError, UnavailableError
from services.foundation.events import Place, Registry
from services.foundation.eventstore import BATCH_BYTES, EventStore, size_bytes
from services.foundation.flow import batches
from services.foundation.projection import POSTGRES_DOWN, Projection, ProjectionRunner, beside_of, lock_of

LOG = structlog.get_logger()

_BATCH = 1000


@dataclass(frozen=True, slots=True)
class Progress:
    """`events` were projected, up to `position` of `head`. `done`: what was built is in use."""

    position: int
    head: int
    events: int
    done: bool


async def rebuild(
    store: EventStore, pool: Any, make: Callable[[], Projection], runner: type[ProjectionRunner] = ProjectionRunner
) -> AsyncGenerator[Progress, None]:
    """Fold the history into a schema beside that of the projection that `make` returns, then swap them.

    Questions are answered from the old rows until then, and the runner that keeps them up goes on with the new ones.

    Raises:
        ConflictError: another rebuild of the same read model runs.
        UnavailableError: PostgreSQL or the store is lost; the old rows stay in use.
    """
    live = make().name
    try:
        async with pool.acquire() as guard:
            if not await guard.fetchval("SELECT pg_try_advisory_lock(hashtext($1))", lock_of(live)):
                raise ConflictError({f"rebuild of {live}": 0})
            try:
                async for progress in _rebuild(store, pool, make, runner, live):
                    yield progress
            finally:
                # What was given up holds what may be erased later.
                await guard.execute(f"DROP SCHEMA IF EXISTS {beside_of(live)} CASCADE")
                await guard.execute("SELECT pg_advisory_unlock(hashtext($1))", lock_of(live))
    except POSTGRES_DOWN as error:
        raise UnavailableError("PostgreSQL", repr(error)) from error


async def _rebuild(
    store: EventStore, pool: Any, make: Callable[[], Projection], kind: type[ProjectionRunner], live: str
) -> AsyncGenerator[Progress, None]:
    projection = make()
    projection.name = beside = beside_of(live)
    await pool.execute(f"DROP SCHEMA IF EXISTS {beside} CASCADE")
    runner = kind(store, pool, projection, batch_size=_BATCH)
    await runner.prepare()
    await runner.last()
    head, events, types = await store.head(), 0, Registry(projection.types).type_names
    while True:
        behind = store.read_all(runner.position or None, types)
        async with contextlib.aclosing(
            batches(behind, size=_BATCH, weight=size_bytes, max_weight=BATCH_BYTES)
        ) as several:
            async for batch in several:
                new = [each for each in batch if each.position > runner.position]
                await runner.write(new)
                events += len(new)
                yield Progress(runner.position, max(head, runner.position), events, done=False)
        if await _swap(pool, live, beside, await runner.last()):
            LOG.info("read model rebuilt", projection=live, events=events)
            yield Progress(runner.position, runner.position, events, done=True)
            return


async def _swap(pool: Any, live: str, beside: str, last: Place | None) -> bool:
    """Put one schema in the place of the other, unless the other has read farther; return whether it was done."""
    async with pool.acquire() as connection, connection.transaction():
        # Whoever writes the live rows begins with its checkpoint: it waits here, and then finds another one.
        await connection.execute(f"LOCK TABLE {live}.checkpoint IN ACCESS EXCLUSIVE MODE")
        reached = await connection.fetchval(f"SELECT max(event_position) FROM {live}.checkpoint")  # noqa: S608 - a name of ours
        if reached is not None and reached > (last.position if last else -1):
            return False
        await connection.execute(f"DROP SCHEMA {live} CASCADE")
        await connection.execute(f"ALTER SCHEMA {beside} RENAME TO {live}")
    return True
