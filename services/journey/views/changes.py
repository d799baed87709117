"""Who watches a customer waits here for a change of that customer; one look tells all who watch."""

import asyncio
import contextlib
import contextvars
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field

import numpy as np

from services.foundation.errors import UnavailableError
from services.foundation.projection import storable
from services.journey.domain.history import History, Ints
from services.journey.views.names import Kind, first_key
from services.journey.views.snapshot import Generation, ReadModel, Snapshot

LOOKING = "changes of customers"
#: Seconds between two looks, however many watch; where nobody does there are none.
LOOK_EVERY_S = 0.25
#: Seconds after which who watches looks anew though nothing happened to the customer: a loyalty level may change with
#: time alone.
ANEW_AFTER_S = 60.0


@dataclass(eq=False)
class Watch:
    """Waits for changes of what is recorded under a customer id, and of whoever it is linked to."""

    customer_id: str
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    _looking: asyncio.Task[None] | None = None

    async def changed(self) -> None:
        """Return when something has happened since this was called last, or a minute has gone by."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ANEW_AFTER_S):
                await self._changed.wait()
        self._changed.clear()
        if self._looking is not None and self._looking.done():
            # It ends by an error only, which is everybody's.
            self._looking.result()

    def wake(self) -> None:
        self._changed.set()

    def number(self, snapshot: Snapshot) -> int | None:
        # By the first key that the name could have: who has another, one in billions, is told a minute later at most.
        return snapshot.model.columns.number_of(first_key(Kind.CUSTOMER, storable(self.customer_id)))


class Changes:
    """Looks what was added to the read model, by whichever instance, and wakes who watches those customers."""

    def __init__(self, read_model: ReadModel) -> None:
        self._read_model = read_model
        self._watches: set[Watch] = set()
        self._looking: asyncio.Task[None] | None = None

    @contextlib.asynccontextmanager
    async def watch(self, customer_id: str) -> AsyncIterator[Watch]:
        """Watch a customer, also one of whom nothing is known yet."""
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(
                # Not in the trace of who happens to come first.
                self._look(),
                name=LOOKING,
                context=contextvars.Context(),
            )
            self._looking.add_done_callback(lambda _: self._wake_all())
        watch = Watch(customer_id, _looking=self._looking)
        self._watches.add(watch)
        try:
            yield watch
        finally:
            self._watches.discard(watch)
            if not self._watches and self._looking is not None:
                self._looking.cancel()
                self._looking = None

    def _wake_all(self) -> None:
        for watch in self._watches:
            watch.wake()

    async def _look(self) -> None:
        seen: tuple[Generation, int] | None = None
        while True:
            try:
                async with self._read_model.snapshot() as snapshot:
                    now = snapshot.model, snapshot.cut
                    if seen is None or seen[0] is not now[0]:
                        # Rows were erased or made anew, or nobody looked before.
                        self._wake_all()
                    elif seen[1] != now[1]:
                        await self._wake(snapshot, seen[1])
                seen = now
            except UnavailableError:
                # Who watches asks for themselves, and hears of it.
                self._wake_all()
                seen = None
            await asyncio.sleep(LOOK_EVERY_S)

    async def _wake(self, snapshot: Snapshot, since: int) -> None:
        history = snapshot.history
        links, signals, columns = history.links.position, history.signals, snapshot.model.columns
        published = len(columns.maps_before(snapshot.cut)) > len(columns.maps_before(since))
        about_everyone = signals.customer[int(np.searchsorted(signals.position, since)) :] < 0
        if published or (len(links) and links[-1] >= since) or about_everyone.any():
            # Anybody may have become somebody else's; by another map anything may be called otherwise; a signal about
            # everyone may have anybody's interactions as its evidence.
            self._wake_all()
            return
        rows = np.concatenate([*_customers(history, since), await _whose_actions(snapshot, since)]).astype(np.int64)
        changed = set(history.owners[rows[rows >= 0]].tolist())
        for watch in self._watches:
            number = watch.number(snapshot)
            if number is not None and number < len(history.owners) and int(history.owners[number]) in changed:
                watch.wake()


def _customers(history: History, since: int) -> Iterator[Ints]:
    """Yield the numbers of the customers that anything from the position `since` on is about; -1: of none."""
    for table in (history.interactions, history.signals, history.actions):
        yield table.customer[int(np.searchsorted(table.position, since)) :].astype(np.int64)
    about = history.analyses.interaction[int(np.searchsorted(history.analyses.position, since)) :]
    yield history.interactions.customer[about].astype(np.int64)


async def _whose_actions(snapshot: Snapshot, since: int) -> Ints:
    """Return whose actions changed from the position `since` on: only what opened one tells whose it is."""
    actions = snapshot.history.actions
    if not (actions.customer[int(np.searchsorted(actions.position, since)) :] < 0).any():
        return np.empty(0, np.int64)
    rows = await snapshot.connection.fetch(
        """SELECT DISTINCT customer FROM action_change
           WHERE customer <> 0 AND action_id IN (SELECT action_id FROM action_change
                                                 WHERE position >= $1 AND position < $2 AND customer = 0)""",
        since,
        snapshot.cut,
    )
    numbers = [snapshot.model.columns.number_of(row["customer"]) for row in rows]
    return np.array([number for number in numbers if number is not None], np.int64)
