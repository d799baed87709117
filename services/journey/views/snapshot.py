"""One consistent look at the read model, as of a time."""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

import structlog

from recorrido.journey.v1.events import JourneyMap, Stage, Touchpoint
from services.foundation.errors import NotFoundError, UnavailableError
from services.foundation.projection import answerable
from services.journey.domain.history import History, microseconds, moment_of
from services.journey.domain.maps import PublishedMap
from services.journey.domain.placement import Placements
from services.journey.domain.reading import Reading
from services.journey.views.columns import Columns, Newest
from services.journey.views.names import Kind, key_of

LOG = structlog.get_logger()

#: Later than anything that will be recorded: what is known now.
NOW = datetime(9999, 1, 1, tzinfo=UTC)

#: Readings kept, with what was derived of them: those asked for last.
_KEPT_READINGS = 4


@dataclass(frozen=True)
class MapInForce:
    """The map that a query reads the history by; `published` None: there is none, and nothing is placed."""

    published: PublishedMap | None

    @property
    def map(self) -> JourneyMap:
        return self.published.map if self.published else JourneyMap()

    @property
    def map_id(self) -> str:
        return self.map.map_id

    @property
    def version(self) -> int:
        return self.published.version if self.published else 0

    @cached_property
    def touchpoints(self) -> Mapping[str, tuple[Stage, Touchpoint]]:
        """Return stage and touchpoint by touchpoint id, in the order of the map."""
        return {t.touchpoint_id: (stage, t) for stage in self.map.stages for t in stage.touchpoints}


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything asked through `connection` sees the same rows, of which those before `cut` were known at `as_of`.

    `position`: how far the projection had come in every partition.
    """

    connection: Any
    as_of: datetime
    position: int
    cut: int
    model: "Generation"

    @property
    def then(self) -> str:
        """Return ` as of TIME` to end a message with, or nothing where it was asked what is known now."""
        return "" if self.as_of == NOW else f" as of {self.as_of.isoformat()}"

    @property
    def history(self) -> History:
        return self.model.columns.history(self.cut)

    @property
    def present(self) -> History:
        """Return what is known now, whatever `as_of`."""
        return self.model.columns.history(self.position + 1)

    def history_before(self, cut: int) -> History:
        """Return what was known before both `cut` and this snapshot's."""
        return self.model.columns.history(min(cut, self.cut))

    def map_in_force(self, map_id: str) -> MapInForce:
        """Return the latest version of `map_id` known at `as_of`; with an empty id, of the map published last.

        Raises:
            NotFoundError: no version of `map_id` was known.
        """
        known = self.model.columns.maps_before(self.cut)
        found = [each for each in known if not map_id or each.map.map_id == map_id]
        if not found and map_id:
            raise NotFoundError("JOURNEY_MAP_UNKNOWN", f"there is no journey map {map_id!r}{self.then}")
        return MapInForce(found[-1] if found else None)

    def versions_of(self, map_id: str) -> list[PublishedMap]:
        """Return every version of a map known at `as_of`, oldest first."""
        return [each for each in self.model.columns.maps_before(self.cut) if each.map.map_id == map_id]

    def latest_maps(self) -> list[PublishedMap]:
        """Return the latest version of each map known at `as_of`, by map id."""
        latest = {each.map.map_id: each for each in self.model.columns.maps_before(self.cut)}
        return [latest[map_id] for map_id in sorted(latest)]

    def reading(self, in_force: MapInForce) -> Reading:
        """Return the history read by a map."""
        return self.model.reading(self.history, in_force)

    async def number_of(self, customer_id: str) -> int | None:
        """Return the number of a customer id in the columns, None where nothing ever happened under it."""
        key = await key_of(self.connection, Kind.CUSTOMER, customer_id)
        return None if key is None else self.model.columns.number_of(key)


class Generation:
    """The columns of tables of which no row changed yet, and what was derived of them.

    Who looks at them keeps them to the end of the question, also when rows changed and others look at new ones.
    `tables` tells which they are of, `erasures` how many customers had been erased from them, and `begun` how often
    there were other tables, maybe of another history.
    """

    def __init__(self, tables: int | None, erasures: int, columns: Columns, begun: int = 0) -> None:
        self.tables = tables
        self.erasures = erasures
        self.columns = columns
        self.begun = begun
        self._placements: dict[tuple[str, int], Placements] = {}
        self._readings: OrderedDict[tuple[int, str, int], Reading] = OrderedDict()

    def reading(self, history: History, in_force: MapInForce) -> Reading:
        """Return a history read by a published map; of those asked for last what was derived is kept."""
        key = (history.cut, in_force.map_id, in_force.version)
        reading = self._readings.pop(key, None)
        if reading is None or reading.history is not history:
            reading = Reading(history, in_force.map, self.placements(in_force))
        self._readings[key] = reading
        while len(self._readings) > _KEPT_READINGS:
            self._readings.popitem(last=False)
        return reading

    def placements(self, in_force: MapInForce) -> Placements:
        """Return where a published map places each raw touchpoint."""
        key = (in_force.map_id, in_force.version)
        if key not in self._placements:
            self._placements[key] = Placements(in_force.map)
        return self._placements[key]


class ReadModel:
    """The tables of the projection `schema`, behind a connection pool, and their columns in memory."""

    def __init__(self, pool: Any, schema: str) -> None:
        self._pool = pool
        self._schema = schema
        self._generation = Generation(None, 0, Columns())
        self._changing = asyncio.Lock()
        self._built = False

    @asynccontextmanager
    async def snapshot(self, as_of: datetime | None = None) -> AsyncIterator[Snapshot]:
        """Look at what was recorded at or before `as_of` (None: at what is known now).

        Raises:
            UnavailableError: PostgreSQL does not answer, or the read model is not built yet.
        """
        with answerable():
            async with self._pool.acquire() as connection:
                while True:
                    known = self._known()
                    async with connection.transaction(isolation="repeatable_read", readonly=True):
                        found = await self._look(connection, as_of, known)
                        if found is not None:
                            yield found
                            return

    def _known(self) -> tuple[Generation, Newest | None]:
        return self._generation, self._generation.columns.newest()

    async def _look(
        self, connection: Any, as_of: datetime | None, known: tuple[Generation, Newest | None]
    ) -> Snapshot | None:
        """Return what there is to see; None where a customer was erased meanwhile, unseen by this transaction.

        `known` is what was known before the transaction began.
        """
        await connection.execute(f"SET LOCAL search_path TO {self._schema}")
        if not self._built:
            # To ask tables that are not there yet would be an error in PostgreSQL's log.
            self._built = await connection.fetchval("SELECT to_regclass('checkpoint') IS NOT NULL")
            if not self._built:
                raise UnavailableError("PostgreSQL", "the read model is not built yet")
        # Tables that were built anew have another oid; an erasure changes rows that were read.
        row = await connection.fetchrow(
            """SELECT min(position) AS position, min(tableoid::bigint) AS tables,
                      (SELECT count(*) FROM erasure) AS erasures
               FROM checkpoint"""
        )
        position, erasures = row["position"], row["erasures"]
        # What was known before is there; else PostgreSQL came back from a backup.
        before, newest = known
        if row["tables"] == before.tables and (
            erasures < before.erasures or (erasures == before.erasures and not await _is_there(connection, newest))
        ):
            await self._begin_anew(before)
        generation = await self._read(connection, position, row["tables"], erasures)
        if generation is None:
            return None
        # Others may have read on meanwhile; these rows go to `position` only.
        cut = min(generation.columns.cut(None if as_of is None else microseconds(as_of)), position + 1)
        return Snapshot(connection, as_of or NOW, max(position, 0), cut, generation)

    async def _read(self, connection: Any, position: int, tables: int, erasures: int) -> Generation | None:
        """Return the columns of the tables, read up to `position`; None where more is erased from them already."""
        while True:
            async with self._changing:
                now = self._generation
                if now.tables != tables or now.columns.broken:
                    self._generation = Generation(tables, erasures, Columns(), now.begun + (now.tables != tables))
                elif now.erasures < erasures:
                    rest = await now.columns.after_erasures(connection)
                    if not await _is_there(connection, rest.newest()):
                        self._generation = _restored(now)
                        continue
                    self._generation = Generation(tables, erasures, rest, now.begun)
                elif now.erasures > erasures:
                    return None
                generation = self._generation
            if await generation.columns.refresh(connection, position):
                return generation

    async def _begin_anew(self, known: Generation) -> None:
        async with self._changing:
            if self._generation is known:
                self._generation = _restored(known)


def _restored(known: Generation) -> Generation:
    LOG.warning("the read model came back from a backup: all of it is read anew", known=known.columns.position)
    return Generation(None, 0, Columns(), known.begun)


async def _is_there(connection: Any, newest: Newest | None) -> bool:
    if newest is None:
        return True
    found = await connection.fetchval(
        f"SELECT EXISTS (SELECT FROM {newest.table} WHERE position = $1 AND recorded_at = $2)",  # noqa: S608 - a constant of ours
        newest.position,
        moment_of(newest.recorded),
    )
    return bool(found)
