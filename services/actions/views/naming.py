"""What the journey maps call the touchpoints that actions tell of: sources have names of their own for them."""

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import asyncpg
import msgspec

from recorrido.ingest.v1.events import Channel
from recorrido.journey.v1.events import JourneyMap
from services.foundation.errors import UnavailableError
from services.foundation.placement import named, place
from services.foundation.projection import answerable

#: A name is an extra: nobody waits longer for it, in seconds.
_PATIENCE_S = 1.0


class TouchpointNames:
    """Finds them in the read model of impact, which holds the maps and every raw touchpoint."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool
        self._maps: tuple[object, Sequence[JourneyMap]] = (None, ())

    async def of(self, touchpoints: Iterable[str]) -> Mapping[str, str]:
        """Return what maps call each raw touchpoint; those on no map are left out, all while PostgreSQL is away.

        Of several maps the one published last that places it says so. Where that places what different sources call so
        at different touchpoints, it is all of their names, joined by "or".
        """
        wanted = sorted({each for each in touchpoints if each})
        if not wanted:
            return {}
        try:
            async with asyncio.timeout(_PATIENCE_S):
                with answerable():
                    maps, rows = await self._read(wanted)
        except (UnavailableError, TimeoutError, asyncpg.UndefinedColumnError):
            # The last: an instance of an earlier version built its own tables again.
            return {}
        raws = defaultdict(list)
        for row in rows:
            source, name, channel = msgspec.json.decode(row["touchpoint"])
            raws[name].append((source, name, Channel.from_number(channel)))
        found = ((each, _name(maps, each, raws[each])) for each in wanted)
        return {each: name for each, name in found if name}

    async def _read(self, wanted: Sequence[str]) -> tuple[Sequence[JourneyMap], Sequence[Any]]:
        async with self._pool.acquire() as connection:
            newest = await connection.fetchval("SELECT max(position) FROM actions_measures.journey_map")
            known, maps = self._maps
            if known != newest:
                bodies = await connection.fetch("SELECT body FROM actions_measures.journey_map ORDER BY position DESC")
                maps = [msgspec.json.decode(row["body"], type=JourneyMap) for row in bodies]
                self._maps = newest, maps
            rows = await connection.fetch(
                "SELECT touchpoint FROM actions_measures.raw_touchpoint WHERE name = ANY($1::text[])", wanted
            )
        return maps, rows


def _name(maps: Sequence[JourneyMap], touchpoint: str, raws: Sequence[tuple[str, str, Channel]]) -> str:
    for map_ in maps:
        # Nothing may have happened there yet: then only the name itself tells.
        ids = {place(map_, *raw) for raw in raws} or {named(map_, touchpoint)}
        names = [t.name for stage in map_.stages for t in stage.touchpoints if t.touchpoint_id in ids]
        if names:
            return " or ".join(names)
    return ""
