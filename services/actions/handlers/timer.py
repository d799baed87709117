"""The clock: deadlines that are over become events.

Nothing is remembered here. Deadlines stand in the events of their actions, the read model orders them by time, and an
action decides whether one of its deadlines still means something. So nothing is lost when the process dies, whatever
fell due meanwhile is told when it is back, and telling it twice changes nothing.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import Any

import asyncpg
import structlog

from services.actions.domain.action import Action, stream_of
from services.actions.domain.commands import PassDeadline
from services.foundation.errors import UnavailableError
from services.foundation.events import CORRELATION_ID
from services.foundation.execute import Executor, Intent
from services.foundation.projection import POSTGRES_DOWN

LOG = structlog.get_logger()

#: How late a deadline is noticed at most, while everything is up.
LOOK_EVERY_S = 1.0
#: How soon to look again while the read model is behind what was just recorded.
_SOON_S = 0.02
BATCH = 500

#: A lease's connection, the moment, and how many: the actions and their deadlines that are over.
Overdue = Callable[[Any, datetime, int], Awaitable[Sequence[tuple[str, str]]]]


class Timer:
    """Records what falls due. `lease` lets one instance at a time do so; `clock` tells the present moment, UTC."""

    def __init__(
        self,
        executor: Executor[Action],
        overdue: Overdue,
        lease: Callable[[], AbstractAsyncContextManager[Any]],
        clock: Callable[[], datetime],
    ) -> None:
        self._executor = executor
        self._overdue = overdue
        self._lease = lease
        self._clock = clock
        #: What was seen to and may still be in the read model.
        self._passed: set[tuple[str, str]] = set()

    async def run(self) -> None:
        """Look for ever, whenever the lease is ours; while a part is down, wait for it."""
        while True:
            try:
                async with self._lease() as connection:
                    LOG.info("timer begins")
                    self._passed.clear()
                    while True:
                        found = await self.look(connection)
                        await asyncio.sleep(_SOON_S if found else LOOK_EVERY_S)
            except (UnavailableError, asyncpg.PostgresError, *POSTGRES_DOWN) as error:
                # Also while the read model is made anew.
                LOG.warning("timer waits", error=repr(error)[:200])
                await asyncio.sleep(LOOK_EVERY_S)

    async def look(self, connection: Any) -> int:
        """Record the next batch of what is over by now; return how many deadlines that concerned."""
        now = self._clock()
        found = await self._overdue(connection, now, BATCH)
        news = [each for each in found if each not in self._passed]
        self._passed.intersection_update(found)
        intents = [
            Intent(
                stream_of(action_id),
                PassDeadline(action_id=action_id, deadline_id=deadline_id, now=now),
                {CORRELATION_ID: action_id},
            )
            for action_id, deadline_id in news
        ]
        for each, outcome in zip(news, await self._executor.execute_all(intents), strict=True):
            if outcome.error is None:
                self._passed.add(each)
            else:
                LOG.warning("deadline is tried again", action_id=each[0], error=outcome.error.message)
        return len(found)
