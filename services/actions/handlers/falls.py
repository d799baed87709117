"""Verified improvements whose measure falls again are reopened, once for each verification."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Protocol

import structlog

from recorrido.actions.v1.events import Impact
from services.actions.domain.action import stream_of
from services.actions.domain.commands import ReopenAction
from services.actions.domain.rules import MAX_REASON, cut
from services.foundation import telemetry
from services.foundation.errors import RecorridoError, UnavailableError
from services.foundation.events import derived_id
from services.foundation.execute import Executor, Intent

LOG = structlog.get_logger()

#: Who reopens.
ACTOR = "impact"


class Fall(Protocol):
    """The measure of a verified improvement fell."""

    @property
    def action_id(self) -> str: ...
    @property
    def revision(self) -> int: ...
    @property
    def verification(self) -> str: ...
    @property
    def impact(self) -> Impact: ...


class Falls:
    """Looks at what is verified, again and again."""

    def __init__(
        self,
        executor: Executor,  # type: ignore[type-arg]
        verified: Callable[[], Awaitable[Sequence[str]]],
        fall: Callable[[str, datetime], Awaitable[Fall | None]],
        clock: Callable[[], datetime],
    ) -> None:
        """Reopen what falls.

        Args:
            executor: of actions.
            verified: returns the ids of the improvements that are verified.
            fall: returns the fall of an improvement at a moment, None where there is none.
            clock: tells the present moment, UTC.
        """
        self._executor = executor
        self._verified = verified
        self._fall = fall
        self._clock = clock
        self._unseen = telemetry.METER.create_counter(
            "recorrido.actions.falls.unseen", description="verified improvements that could not be looked at, by reason"
        )

    async def run(self, every_s: float, ready: Awaitable[object]) -> None:
        """Look every `every_s` seconds, for ever, as soon as the measures are `ready`."""
        await ready
        while True:
            try:
                for action_id in await self._verified():
                    await self.look(action_id)
            except UnavailableError as error:
                LOG.warning("watching for falls waits", error=error.message)
            await asyncio.sleep(every_s)

    async def look(self, action_id: str) -> None:
        """Reopen the improvement if its measure fell. Raises UnavailableError."""
        now = self._clock()
        try:
            fall = await self._fall(action_id, now)
        except UnavailableError:
            raise
        except RecorridoError as error:
            # What is left of one that was erased with its customer is a figure, which nobody need watch. Anything else,
            # as a map that the store does not hold any more, is looked at again, and somebody has to know of it.
            if error.reason != "ACTION_NOT_FOUND":
                self._unseen.add(1, {"reason": error.reason})
                LOG.warning("verified improvement cannot be watched", action_id=action_id, error=error.message)
            return
        if fall is None:
            return
        command = ReopenAction(
            action_id=action_id,
            actor=ACTOR,
            reason=cut(f"it fell after it was verified: {fall.impact.statement}", MAX_REASON),
            request_id=str(derived_id("fall", action_id, fall.verification)),
            occurred_at=now,
            impact=fall.impact,
        )
        try:
            await self._executor.execute(
                Intent(stream_of(action_id), command, expected_revision=fall.revision),
            )
        except UnavailableError:
            raise
        except RecorridoError as error:
            # Somebody was faster; the next look sees it as it is then.
            LOG.info("fallen improvement changed meanwhile", action_id=action_id, error=error.message)
