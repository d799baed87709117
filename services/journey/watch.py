"""Looking at the whole history again and again, for what no single event tells."""

import asyncio
import time
from typing import Any

import structlog

from services.foundation.errors import RecorridoError
from services.foundation.projection import POSTGRES_DOWN
from services.journey.domain.shifts import SHIFT_RULES
from services.journey.domain.watching import findings, is_import
from services.journey.handlers import WatchHandlers
from services.journey.views.signals import signals_by_rules
from services.journey.views.snapshot import ReadModel

LOG = structlog.get_logger()

#: Seconds between two looks, where anything was recorded in between. While a history is imported, there are none until
#: nothing more comes for so long. More where a look takes long: watching takes a tenth of a processor at most.
EVERY_S = 5.0
_REST = 9


async def watch(pool: Any, read_model: ReadModel, handlers: WatchHandlers) -> None:
    """Look for ever; of several instances one does, and another when it is gone."""
    while True:
        try:
            # Read what there is, whoever watches: so the first question does not wait for the whole history.
            async with read_model.snapshot():
                pass
            async with pool.acquire() as guard:
                # Held by the connection: it is free again when this process is gone.
                if await guard.fetchval("SELECT pg_try_advisory_lock(hashtext('journey watch'))"):
                    try:
                        await _look(read_model, handlers)
                    finally:
                        await guard.execute("SELECT pg_advisory_unlock(hashtext('journey watch'))")
        except (RecorridoError, *POSTGRES_DOWN) as error:
            LOG.info("watching waits", error=str(error)[:200])
        await asyncio.sleep(EVERY_S)


async def _look(read_model: ReadModel, handlers: WatchHandlers) -> None:
    looked, last, head = -1, -1, await handlers.head()
    while True:
        async with read_model.snapshot() as snapshot:
            if handlers.turn_to(snapshot.model.begun):
                looked, last = -1, -1
            in_force = snapshot.map_in_force("")
            reading = snapshot.reading(in_force)
            versions = snapshot.versions_of(in_force.map_id)
            shifts = [each.raised for each in await signals_by_rules(snapshot, SHIFT_RULES)]
        begun = time.monotonic()
        # A part of a history that is read or imported just now tells of a present that never was.
        # Where nothing more came for a while, it is all there is: a store may hold later events that are not for us.
        whole = snapshot.cut == last or (snapshot.position >= head and not is_import(reading.history, last))
        if whole and snapshot.cut != looked:
            found = await asyncio.to_thread(findings, reading, versions, shifts)
            raised = await handlers.raise_all(reading, found, in_force.version)
            if raised:
                LOG.info("signals raised", found=len(found), new=raised)
            looked = snapshot.cut
        last, head = snapshot.cut, await handlers.head()
        await asyncio.sleep(max(EVERY_S, _REST * (time.monotonic() - begun)))
