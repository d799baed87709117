"""The history, page by page: the verbatims of a slice of it, with all that was said about them."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

from recorrido.ingest.v1.events import Customer, Interaction, InteractionRecorded
from services.foundation.errors import UnavailableError
from services.foundation.events import Event, Recorded, Registry
from services.foundation.eventstore import EventStore
from services.inference.domain import is_blank
from services.inference.opinions import Verbatim, verbatims

T = TypeVar("T")

#: Events read at once. Each page is a call of its own: work on it may take long.
PAGE = 512
#: Streams read at the same time.
READERS = 16
RETRY_EVERY_S = 1.0

_INTERACTIONS = Registry((InteractionRecorded,))


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """What part of the history is meant: interactions that happened from `from_time` on and before `to_time`.

    No customers or sources: all of them.
    """

    from_time: datetime | None = None
    to_time: datetime | None = None
    customer_ids: frozenset[str] = frozenset()
    sources: frozenset[str] = frozenset()

    def holds(self, interaction: Interaction, recorded: Recorded) -> bool:
        happened = interaction.occurred_at or recorded.recorded_at
        customer = interaction.customer or Customer()
        return (
            (self.from_time is None or happened >= self.from_time)
            and (self.to_time is None or happened < self.to_time)
            and (not self.customer_ids or customer.customer_id in self.customer_ids)
            and (not self.sources or interaction.source in self.sources)
        )


@dataclass(slots=True)
class Work:
    """How far a walk through the history is; whoever watches it reads this now and then.

    `position` of `end_position` in the store. `verbatims` were looked at: each was understood before (`known`), is now
    (`analyzed`), or cannot be (`failed`). `waiting_for` names a part that is away.
    """

    end_position: int = 0
    position: int = 0
    verbatims: int = 0
    analyzed: int = 0
    known: int = 0
    failed: int = 0
    waiting_for: str = ""
    complete: bool = False

    async def patiently(self, call: Callable[[], Awaitable[T]]) -> T:
        """Return what `call` returns, waiting for parts that are away for as long as it takes."""
        while True:
            try:
                result = await call()
            except UnavailableError as error:
                self.waiting_for = error.part
                await asyncio.sleep(RETRY_EVERY_S)
            else:
                self.waiting_for = ""
                return result


async def pages(
    store: EventStore, work: Work, event_type: type[Event], after: int | None = None
) -> AsyncGenerator[list[Recorded], None]:
    """Yield the events of a type behind position `after`, up to the work's end, in pages that are not empty."""
    last = after

    async def read() -> list[Recorded]:
        # The event of the start position is part of the answer.
        limit = PAGE + (last is not None)
        return [each async for each in store.read_all(last, [event_type.type_name], limit=limit)]

    while True:
        found = await work.patiently(read)
        page = [each for each in found if (last is None or each.position > last) and each.position <= work.end_position]
        if not page:
            return
        last = page[-1].position
        yield page


def spoken_in(page: Iterable[Recorded], part: Slice) -> list[Verbatim]:
    """Return the interactions of a page that have words and are meant, without what was said about them."""
    events = [(recorded, _INTERACTIONS.read(recorded)) for recorded in page]
    found = [Verbatim(recorded, event.interaction or Interaction()) for recorded, event in events if event is not None]
    return [each for each in found if not is_blank(each.text) and part.holds(each.interaction, each.recorded)]


async def verbatims_of(store: EventStore, recorded: Iterable[Recorded]) -> dict[str, Verbatim]:
    """Return the verbatims of the streams that these events stand in, by their event ids. Raises UnavailableError."""
    readers = asyncio.Semaphore(READERS)

    async def read(stream: str) -> dict[str, Verbatim]:
        async with readers:
            return verbatims([each async for each in store.read_through(stream)])

    found: Sequence[dict[str, Verbatim]] = await asyncio.gather(*map(read, {each.stream for each in recorded}))
    return {event_id: verbatim for each in found for event_id, verbatim in each.items()}
