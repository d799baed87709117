"""Watching: every change of every action to whoever asks, as soon as it is recorded.

One subscription to the store serves all watchers of this process. A change is folded and put into words once, whoever
waits for it.
"""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any

import structlog

from recorrido.actions.v1.events import ActionKind
from services.actions.domain.action import Action, evolve
from services.actions.domain.rules import MAX_ID
from services.actions.views.history import REGISTRY, HistoryEntry, entry
from services.foundation.errors import ExhaustedError, OtherHistoryError, UnavailableError
from services.foundation.events import Place, Recorded
from services.foundation.eventstore import CaughtUp, Checkpoint, EventStore
from services.foundation.execute import Folded
from services.foundation.flow import batches
from services.foundation.projection import RECHECK_EVERY_S
from services.foundation.rules import MAX_CUSTOMER_ID, Rules

LOG = structlog.get_logger()

MAX_WATCHERS = 5_000
#: Changes that may wait for a watcher; one that is further behind has to come again.
MAX_BEHIND = 2_000
#: Actions whose latest state is kept.
_KEPT = 20_000
_BATCH = 256
_RETRY_AFTER_S = 1.0


@dataclass(slots=True)
class ActionChange:
    """One change and the action after it. `message` is room for what is made of it, once for all watchers."""

    action: Action
    entry: HistoryEntry
    position: int
    message: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """What to watch; None or empty: whatever it is. Raises InvalidError."""

    action_id: str = ""
    kind: ActionKind | None = None
    customer_id: str = ""
    owner: str = ""
    touchpoint: str = ""
    improvement_id: str = ""
    after_position: int = 0

    def __post_init__(self) -> None:
        rules = Rules()
        rules.text("action_id", self.action_id, MAX_ID)
        rules.text("customer_id", self.customer_id, MAX_CUSTOMER_ID)
        rules.text("owner", self.owner, MAX_ID)
        rules.text("touchpoint", self.touchpoint, MAX_ID)
        rules.text("improvement_id", self.improvement_id, MAX_ID)
        rules.require(self.after_position >= 0, "after_position", "not negative")
        rules.enforce()

    def concerns(self, action: Action) -> bool:
        return (
            self.action_id in ("", action.action_id)
            and self.kind in (None, action.kind)
            and self.customer_id in ("", action.customer_id)
            and self.owner in ("", action.owner)
            and self.touchpoint in ("", action.touchpoint)
            and self.improvement_id in ("", action.improvement_id, action.action_id)
        )


@dataclass(frozen=True, slots=True)
class Seen:
    """What a watcher is told: changes, oldest first, the position to go on from, and whether the store is away."""

    changes: Sequence[ActionChange]
    position: int
    store_away: bool


class _Watcher:
    """What waits for one watcher."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch
        self.waiting: list[ActionChange] = []
        self.too_slow = False
        self.woken = asyncio.Event()

    def give(self, changes: Sequence[ActionChange]) -> None:
        concerned = [change for change in changes if self.watch.concerns(change.action)]
        if not concerned:
            return
        if len(self.waiting) + len(concerned) > MAX_BEHIND:
            # What it has not read is dropped, so that it takes no room; it comes again for it.
            self.too_slow = True
            self.waiting.clear()
        else:
            self.waiting.extend(concerned)
        self.woken.set()

    async def take(self) -> Sequence[ActionChange]:
        await self.woken.wait()
        self.woken.clear()
        if self.too_slow:
            raise ExhaustedError("WATCHER_TOO_SLOW", "behind the changes; go on from the last position", 0.1)
        taken, self.waiting = self.waiting, []
        return taken


class Watchers:
    """Follows the store for all watchers."""

    def __init__(self, store: EventStore) -> None:
        self._store = store
        self._watchers: set[_Watcher] = set()
        self._states: OrderedDict[str, Folded[Action]] = OrderedDict()
        #: How far the store was followed, and the last event of ours on the way.
        self._position = 0
        self._last: Place | None = None
        self._live = asyncio.Event()
        #: The store does not answer; or it is another one, which no watch can go on in.
        self._away = False
        self._replaced: OtherHistoryError | None = None

    async def run(self, start: Place | None) -> None:
        """Follow the store for ever, from `start` on; while it is away, or another one, wait for it."""
        self._last = start
        while True:
            try:
                await self._follow()
            except (OtherHistoryError, UnavailableError) as error:
                LOG.warning("watching waits", error=error.message)
                self._replaced = error if isinstance(error, OtherHistoryError) else None
                self._tell(away=True)
                await asyncio.sleep(RECHECK_EVERY_S)

    def _tell(self, *, away: bool) -> None:
        self._away = away
        for watcher in self._watchers:
            watcher.woken.set()

    async def _follow(self) -> None:
        types = REGISTRY.type_names
        events = self._store.follow_in_batches(self._last, types, size=_BATCH, lost=lambda: self._tell(away=True))
        async for batch in events:
            recorded = [item for item in batch if isinstance(item, Recorded)]
            changes = await self._changes(recorded) if self._watchers else []
            for watcher in self._watchers if changes else ():
                watcher.give(changes)
            if recorded:
                self._last = recorded[-1].place
            places = [item.position for item in batch if isinstance(item, Recorded | Checkpoint)]
            self._position = max([self._position, *places])
            if any(isinstance(item, CaughtUp) for item in batch):
                self._replaced = None
                self._live.set()
                self._tell(away=False)

    async def watch(self, watch: Watch) -> AsyncGenerator[Seen, None]:
        """Yield what changes, for ever. Nothing has changed where it only tells that it began, or of the store.

        Raises:
            ExhaustedError: TOO_MANY_WATCHERS, or WATCHER_TOO_SLOW: it did not read what waited for it.
            OtherHistoryError: the history does not reach to `after_position`, or the store was replaced.
            UnavailableError: the store does not answer.
        """
        if len(self._watchers) >= MAX_WATCHERS:
            raise ExhaustedError("TOO_MANY_WATCHERS", f"there are {MAX_WATCHERS:,} watchers", _RETRY_AFTER_S)
        watcher = _Watcher(watch)
        await self._live.wait()
        self._watchers.add(watcher)
        try:
            begun = self._position
            after = watch.after_position or begun
            if after > begun:
                await self._reach(after)
            seen = Seen((), after, self._away)
            yield seen
            if after < begun:
                async for changes in self._missed(watch, after, begun):
                    seen = Seen(changes, changes[-1].position, self._away)
                    yield seen
            while True:
                if self._replaced is not None:
                    raise self._replaced
                changes = [change for change in await watcher.take() if change.position > after]
                if changes or self._away is not seen.store_away:
                    seen = Seen(changes, changes[-1].position if changes else seen.position, self._away)
                    yield seen
        finally:
            self._watchers.discard(watcher)

    async def _reach(self, position: int) -> None:
        """Make sure that there is such a position. Raises OtherHistoryError, UnavailableError."""
        async for _ in self._store.read_all(position, REGISTRY.type_names, limit=1):
            pass

    async def _missed(self, watch: Watch, after: int, until: int) -> AsyncGenerator[Sequence[ActionChange], None]:
        """Yield what was recorded behind `after`, up to `until`."""
        events = self._store.read_all(after, REGISTRY.type_names)
        async for batch in batches(events, size=_BATCH):
            recorded = [item for item in batch if after < item.position <= until]
            changes = [change for change in await self._changes(recorded) if watch.concerns(change.action)]
            if changes:
                yield changes
            if batch[-1].position > until:
                return

    async def _changes(self, recorded: Sequence[Recorded]) -> Sequence[ActionChange]:
        found = []
        for item in recorded:
            event = REGISTRY.read(item)
            if event is None:
                # Not one of ours; whoever follows the history tells it.
                continue
            state = await self._state_after(item)
            if state is not None:
                found.append(ActionChange(state, entry(event, item), item.position))
        return found

    async def _state_after(self, recorded: Recorded) -> Action | None:
        """Return the action after an event; None where its stream was deleted since."""
        known = self._states.get(recorded.stream)
        if known is not None and known.revision == recorded.revision - 1:
            state = evolve(known.state, REGISTRY.decode(recorded))
        elif recorded.revision == 0:
            state = evolve(Action(), REGISTRY.decode(recorded))
        else:
            state = Action()
            history = await self._store.read(recorded.stream, limit=recorded.revision + 1)
            if not any(item.event_id == recorded.event_id for item in history):
                return None
            for item in history:
                if item.revision <= recorded.revision and (event := REGISTRY.read(item)) is not None:
                    state = evolve(state, event)
        self._states[recorded.stream] = Folded(state, recorded.revision)
        self._states.move_to_end(recorded.stream)
        while len(self._states) > _KEPT:
            self._states.popitem(last=False)
        return state
