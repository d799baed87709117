"""One consistent look at the read model, as of a time."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

import asyncpg
import msgspec

from recorrido.journey.v1.events import JourneyMap, Stage, Touchpoint
from services.foundation.errors import NotFoundError, UnavailableError
from services.foundation.projection import POSTGRES_DOWN
from services.journey.domain.maps import PublishedMap

#: Later than anything that will be recorded: what is known now.
NOW = datetime(9999, 1, 1, tzinfo=UTC)

#: The projection has not built its tables yet, or is being rebuilt.
_NOT_BUILT = (asyncpg.UndefinedTableError, asyncpg.InvalidSchemaNameError)

_DECODE_MAP = msgspec.json.Decoder(JourneyMap).decode


@dataclass(frozen=True)
class MapInForce:
    """The map that a query reads the history by; `published` None: there is none, and nothing is placed."""

    published: PublishedMap | None

    @property
    def map_id(self) -> str:
        return self.published.map.map_id if self.published else ""

    @property
    def version(self) -> int:
        return self.published.version if self.published else 0

    @cached_property
    def touchpoints(self) -> Mapping[str, tuple[Stage, Touchpoint]]:
        """Return stage and touchpoint by touchpoint id, in the order of the map."""
        stages = self.published.map.stages if self.published else ()
        return {t.touchpoint_id: (stage, t) for stage in stages for t in stage.touchpoints}


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything asked through `connection` sees the same rows. `position`: how far the projection had come."""

    connection: Any
    as_of: datetime
    position: int

    @property
    def then(self) -> str:
        """Return ` as of TIME` to end a message with, or nothing where it was asked what is known now."""
        return "" if self.as_of == NOW else f" as of {self.as_of.isoformat()}"

    async def map_in_force(self, map_id: str) -> MapInForce:
        """Return the latest version of `map_id` known at `as_of`; with an empty id, of the map published last.

        Raises:
            NotFoundError: no version of `map_id` was known.
        """
        row = await self.connection.fetchrow(
            """SELECT version, recorded_at, actor, body FROM journey_map
               WHERE recorded_at <= $1 AND ($2 = '' OR map_id = $2) ORDER BY position DESC LIMIT 1""",
            self.as_of,
            map_id,
        )
        if row is None and map_id:
            raise NotFoundError("JOURNEY_MAP_UNKNOWN", f"there is no journey map {map_id!r}{self.then}")
        return MapInForce(_published(row) if row else None)

    async def latest_maps(self) -> list[PublishedMap]:
        """Return the latest version of each map known at `as_of`, by map id."""
        rows = await self.connection.fetch(
            """SELECT DISTINCT ON (map_id) version, recorded_at, actor, body FROM journey_map
               WHERE recorded_at <= $1 ORDER BY map_id, position DESC""",
            self.as_of,
        )
        return [_published(row) for row in rows]


def _published(row: Any) -> PublishedMap:
    return PublishedMap(_DECODE_MAP(row["body"]), row["version"], row["recorded_at"], row["actor"])


class ReadModel:
    """The tables of the projection `schema`, behind a connection pool."""

    def __init__(self, pool: Any, schema: str) -> None:
        self._pool = pool
        self._schema = schema

    @asynccontextmanager
    async def snapshot(self, as_of: datetime | None = None) -> AsyncIterator[Snapshot]:
        """Look at what was recorded at or before `as_of` (None: at what is known now).

        Raises:
            UnavailableError: PostgreSQL does not answer, or the read model is not built yet.
        """
        try:
            async with (
                self._pool.acquire() as connection,
                connection.transaction(isolation="repeatable_read", readonly=True),
            ):
                await connection.execute(f"SET LOCAL search_path TO {self._schema}")
                position = await connection.fetchval("SELECT position FROM checkpoint")
                yield Snapshot(connection, as_of or NOW, max(position, 0))
        except (*POSTGRES_DOWN, *_NOT_BUILT) as error:
            raise UnavailableError("PostgreSQL", repr(error)) from error
