"""One projection, kept up to date by several instances together.

The history is parted by stream: all events of a customer are in one partition. Each partition has a checkpoint of its
own and is written by who holds its lease. The checkpoint is moved, from where it is known to be, in the transaction of
the rows: so nothing is written twice, whoever believes to hold a lease. Every instance reads the whole history. What
all partitions have passed (the lowest position of the checkpoints) is complete: readers look no farther.
"""

import asyncio
import zlib
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Any, Protocol

import asyncpg
import structlog

from services.foundation.events import Event, Recorded
from services.foundation.eventstore import CaughtUp, Checkpoint
from services.foundation.lease import LOOK_EVERY_S, Shares
from services.foundation.projection import (
    MADE_FOR,
    Projection,
    ProjectionRunner,
    columns_of,
    place_of,
)

LOG = structlog.get_logger()

#: More instances than this have nothing to project. Another number means other rows: all is built anew.
PARTITIONS = 8
#: How often who waits for the others looks where they are.
_MEET_EVERY_S = 0.05


def partition_of(stream: str) -> int:
    """Return the partition that a stream belongs to, always and everywhere the same."""
    return zlib.crc32(stream.encode()) % PARTITIONS


class SharedProjection(Projection, Protocol):
    """A read model whose rows come of one partition each, but for what `together` does."""

    #: Events that change rows of several partitions: applied when all have come to them, before any goes on.
    together: type[Event]

    def forget(self) -> None:
        """Drop what is remembered of the rows: others have written meanwhile."""


class SharedRunner(ProjectionRunner):
    """Keeps its share of a projection up to date; all of it where `run` is not called."""

    _projection: SharedProjection

    checkpoint_ddl = f"""CREATE TABLE checkpoint (
    partition smallint PRIMARY KEY CHECK (partition < {PARTITIONS}), position bigint NOT NULL,
    event_position bigint, event_id uuid, stream bytea, revision bigint
)"""
    checkpoint_rows = f"INSERT INTO checkpoint SELECT n, -1 FROM generate_series(0, {PARTITIONS - 1}) AS n"  # noqa: S608 - a constant of ours

    #: The partitions that are written here, how far each was read, and the position of the last event in its rows.
    _held: frozenset[int] = frozenset(range(PARTITIONS))
    _at: dict[int, int]
    _has: dict[int, int]

    async def _project(self, available: Callable[[bool], None]) -> None:
        async with self._pool.acquire() as connection:
            shares = Shares(connection, f"partitions of {self._schema}", PARTITIONS)
            await shares.join()
            while True:
                self._held = await shares.take()
                LOG.info("projecting", projection=self._schema, partitions=sorted(self._held))
                await self._begin(available)
                following = asyncio.create_task(self._follow_held())
                try:
                    await self._until_shared_anew(shares, following)
                finally:
                    # What is being written is undone, and done again by who holds it next.
                    following.cancel()
                    await asyncio.gather(following, return_exceptions=True)

    async def _until_shared_anew(self, shares: Shares, following: asyncio.Task[None]) -> None:
        while True:
            done, _ = await asyncio.wait({following}, timeout=LOOK_EVERY_S)
            if done:
                following.result()
            held, wanted = await shares.look()
            if held != self._held or wanted != held:
                return

    async def _follow_held(self) -> None:
        while self._held:
            try:
                await self._follow()
            except asyncpg.TransactionRollbackError as error:
                LOG.info("others moved on, starting over", projection=self._schema, error=str(error)[:200])
                await self._load()
        # There are more instances than partitions.
        await asyncio.Event().wait()

    async def _load(self) -> None:
        """Read where the rows stand: going on is from the last event before which every held partition is complete."""
        self._projection.forget()
        async with self._pool.acquire() as connection:
            # Who was overtaken may have been by another version.
            self._check_tables(await connection.fetchval(MADE_FOR, self._schema))
            rows = await connection.fetch(f"SELECT * FROM {self._schema}.checkpoint")  # noqa: S608 - a constant of ours
        held = [row for row in rows if row["partition"] in self._held]
        self._at = {row["partition"]: row["position"] for row in held}
        self._has = {row["partition"]: _event_position(row) for row in held}
        self._places = list({place_of(row) for row in rows})
        lasts = [place_of(row) for row in held or rows]
        self._last = None if None in lasts else min((last for last in lasts if last), key=lambda last: last.position)
        self.position = self._last.position if self._last else 0

    async def write(self, batch: Sequence[Recorded | CaughtUp | Checkpoint]) -> None:
        """Fold what follows the rows into those of the held partitions."""
        together = self._projection.together.type_name
        for is_together, some in groupby(batch, key=lambda item: getattr(item, "type_name", "") == together):
            if not is_together:
                await super().write(list(some))
                continue
            for item in some:
                assert isinstance(item, Recorded)
                await self._cross(item)

    async def _fold(self, recorded: Sequence[Recorded], position: int) -> None:
        last = recorded[-1].place if recorded else self._last
        newest = last.position if last else -1
        behind = {part: at for part, at in self._at.items() if at < position or self._has[part] < newest}
        facts = list(self._facts(list(self._new(recorded))))
        if behind:
            async with self._transaction() as connection:
                moved = await connection.execute(
                    """UPDATE checkpoint AS c SET position = $1, event_position = $2, event_id = $3, stream = $4,
                              revision = $5
                       FROM unnest($6::smallint[], $7::bigint[]) AS held (partition, position)
                       WHERE c.partition = held.partition AND c.position = held.position""",
                    position,
                    *columns_of(last),
                    list(behind),
                    list(behind.values()),
                )
                if moved != f"UPDATE {len(behind)}":
                    raise asyncpg.SerializationError(f"checkpoints of {self._schema} are not at {behind}")
                await self._apply(connection, facts)
            self._at |= dict.fromkeys(behind, position)
            self._has |= dict.fromkeys(behind, newest)
        await self._reached(position, last, len(facts))

    def _new(self, recorded: Sequence[Recorded]) -> Iterator[Recorded]:
        """Yield the events of the held partitions that are not in the rows yet.

        What stands between the last event in the rows and the checkpoint came with another history, behind the same
        beginning.
        """
        for item in recorded:
            if item.position > self._has.get(partition_of(item.stream), item.position):
                yield item

    async def _cross(self, recorded: Recorded) -> None:
        """Apply an event that concerns all partitions, when all have come to it; whoever sees that first does it."""
        before = self._last.position if self._last else -1
        while True:
            async with self._transaction() as connection:
                # Whoever writes begins with a checkpoint: they wait here.
                await connection.execute("LOCK TABLE checkpoint IN SHARE ROW EXCLUSIVE MODE")
                reached = [_event_position(row) for row in await connection.fetch("SELECT * FROM checkpoint")]
                if max(reached) >= recorded.position:
                    raise asyncpg.SerializationError(f"others are behind position {recorded.position} already")
                if min(reached) >= before:
                    await connection.execute(
                        """UPDATE checkpoint SET position = $1, event_position = $2, event_id = $3, stream = $4,
                                  revision = $5""",
                        recorded.position,
                        *columns_of(recorded.place),
                    )
                    await self._apply(connection, list(self._facts([recorded])))
                    break
            await asyncio.sleep(_MEET_EVERY_S)
        self._at = dict.fromkeys(self._at, recorded.position)
        self._has = dict.fromkeys(self._has, recorded.position)
        await self._reached(recorded.position, recorded.place, 1)


def _event_position(row: Any) -> int:
    return -1 if row["event_position"] is None else int(row["event_position"])
