"""Publishing maps, and the reaction that raises signals."""

import asyncio
from collections.abc import Sequence
from typing import Any

from recorrido.actions.v1.events import ActionCompleted, ActionOpened
from recorrido.inference.v1.events import Analysis, FeedbackAnalyzed
from recorrido.ingest.v1.events import Interaction, InteractionRecorded
from recorrido.journey.v1.events import JourneyMap
from services.foundation.bus import Answer, Delivery, Done, Reaction, Skip, answer_to
from services.foundation.errors import NotFoundError
from services.foundation.events import CAUSATION_ID, CORRELATION_ID, Recorded, Registry, stream_name
from services.foundation.eventstore import EventStore
from services.foundation.execute import Executor, Intent
from services.journey.domain.finding import Finding, watched
from services.journey.domain.history import microseconds
from services.journey.domain.mapcheck import ID
from services.journey.domain.maps import Maps, PublishedMap, PublishJourneyMap
from services.journey.domain.reading import Reading
from services.journey.domain.signals import (
    FAILED_RESULTS,
    RaiseSignal,
    Seen,
    Signals,
    bad_moment,
    hurt_in_deed,
    hurt_in_words,
    recovery_failed,
)

# -- maps -----------------------------------------------------------------------------------------------------------


class MapHandlers:
    """Publishes maps and reads them back from their streams, so that an author sees at once what was published."""

    def __init__(self, store: EventStore) -> None:
        self._store = store
        self._executor = Executor(store, Maps())
        self._registry = Registry(Maps.types)

    async def publish(self, command: PublishJourneyMap) -> PublishedMap:
        """Publish a new version, where it differs, and return the version that the command came to.

        Raises:
            InvalidError: names every problem of the map.
            DiffersError: the same request_id published another map.
        """
        done = await self._executor.execute(Intent(_map_stream(command.map.map_id), command))
        return await self.get(command.map.map_id, done.state.version_for(command.request_id))

    async def get(self, map_id: str, version: int = 0) -> PublishedMap:
        """Return a version of a map (0: the latest). Raises NotFoundError."""
        recorded = await self._store.read(_map_stream(map_id)) if ID.fullmatch(map_id) else []
        published = [(event, r) for r in recorded if (event := self._registry.read(r)) is not None]
        if not published:
            raise NotFoundError("JOURNEY_MAP_UNKNOWN", f"there is no journey map {map_id!r}")
        if not 0 <= version <= len(published):
            raise NotFoundError("MAP_VERSION_UNKNOWN", f"{map_id!r} has versions 1 to {len(published)}")
        event, at = published[version - 1]
        return PublishedMap(event.map or JourneyMap(), event.version, at.recorded_at, event.actor)


def _map_stream(map_id: str) -> str:
    return stream_name("journeymap", map_id)


# -- signals --------------------------------------------------------------------------------------------------------

#: Events read at once, looking back from an analysis for its interaction; each further look takes four times as many.
FIRST_LOOK = 64
#: Signals that one look at the whole history may raise; what is left comes with the next.
MAX_RAISED = 500


class SignalHandlers:
    """Raises a signal for every bad moment and failed recovery, once, in the trace of the event that told of it."""

    def __init__(self, store: EventStore) -> None:
        self._store = store
        self._executor = Executor(store, Signals())
        self._registry = Registry((InteractionRecorded, FeedbackAnalyzed, ActionOpened))

    @property
    def reaction(self) -> Reaction:
        return Reaction(
            durable="journey-signals",
            types=(InteractionRecorded, FeedbackAnalyzed, ActionCompleted),
            handle=self.handle,
            batch_size=256,
            description="raises a signal for every bad moment and every failed recovery",
        )

    async def handle(self, deliveries: Sequence[Delivery]) -> Sequence[Answer]:
        """Answer each delivery; all signals of a batch are raised by one append."""
        answers: list[Answer] = [Done() for _ in deliveries]
        intents = {}
        for index, found in enumerate(await asyncio.gather(*(self._decide(d) for d in deliveries))):
            if isinstance(found, Skip):
                answers[index] = found
            elif found is not None:
                intents[index] = found
        executed = await self._executor.execute_all(list(intents.values()))
        for index, outcome in zip(intents, executed, strict=True):
            answers[index] = answer_to(outcome.error)
        return answers

    async def _decide(self, delivery: Delivery) -> Intent | Skip | None:
        seen = _seen(delivery.event, delivery.recorded)
        match delivery.event:
            case InteractionRecorded(interaction=happened) if hurt_in_deed(happened or Interaction()):
                signal = bad_moment(seen)
            # What is said of the history when it is analysed again is no news.
            case FeedbackAnalyzed(analysis=words, reanalysis_id="") if hurt_in_words(words or Analysis()):
                about = await self._interaction_of(delivery)
                if about is None and await self._is_erased(delivery.recorded):
                    return None
                if about is None:
                    return Skip(f"{seen.stream} holds no interaction {delivery.event.interaction_event_id}")
                signal = bad_moment(about, seen)
            case ActionCompleted(result=result) if result in FAILED_RESULTS:
                opened = await self._opening_of(delivery)
                signal = recovery_failed(opened, seen) if opened else None
            case _:
                return None
        if signal is None:
            return None
        cause = delivery.recorded
        command = RaiseSignal(signal)
        return Intent(
            command.stream,
            command,
            {
                CAUSATION_ID: str(cause.event_id),
                CORRELATION_ID: cause.metadata.get(CORRELATION_ID, str(cause.event_id)),
            },
            delivery.context,
            because=cause,
        )

    async def _opening_of(self, delivery: Delivery) -> Seen | None:
        """Return the event that opened an action; None where it was erased."""
        first = await self._store.read(delivery.recorded.stream, limit=1)
        opened = [(event, each) for each in first if isinstance(event := self._registry.read(each), ActionOpened)]
        return _seen(*opened[0]) if opened else None

    async def _is_erased(self, recorded: Recorded) -> bool:
        there = await self._store.read(recorded.stream, after=recorded.revision - 1, limit=1)
        return not any(event.event_id == recorded.event_id for event in there)

    async def _interaction_of(self, delivery: Delivery) -> Seen | None:
        """Return the interaction that an analysis is about, from the customer's stream.

        The store is asked, because the read model may lag behind the bus. It stands before the analysis and mostly
        close to it, so a long history is read only as far back as needed.
        """
        wanted = delivery.event.interaction_event_id
        end, look = delivery.recorded.revision, FIRST_LOOK
        while end > 0:
            start = max(0, end - look)
            for recorded in await self._store.read(delivery.recorded.stream, after=start - 1, limit=end - start):
                if str(recorded.event_id) == wanted:
                    event = self._registry.read(recorded)
                    return _seen(event, recorded) if isinstance(event, InteractionRecorded) else None
            end, look = start, look * 4
        return None


def _seen(event: Any, recorded: Recorded) -> Seen:
    return Seen(event, recorded.event_id, recorded.stream, recorded.revision, recorded.position)


class WatchHandlers:
    """Raises what the rules that watch over everyone find, once for each cause."""

    def __init__(self, store: EventStore) -> None:
        self._store = store
        self._executor = Executor(store, Signals())
        self._registry = Registry((InteractionRecorded,))
        self._raised: set[str] = set()
        self._columns = 0

    def turn_to(self, columns: int) -> bool:
        """Return whether these are other columns than those looked at last, maybe of another history.

        Then what was raised is forgotten.
        """
        if columns == self._columns:
            return False
        self._columns = columns
        self._raised.clear()
        return True

    async def head(self) -> int:
        """Return the position of the last event in the store."""
        return await self._store.head()

    async def raise_all(self, reading: Reading, found: Sequence[Finding], map_version: int) -> int:
        """Raise the signals of what was found that were not raised before; return how many are new."""
        new = {each.signal_id: each for each in found if each.signal_id not in self._raised}
        told, raised = reading.history.interactions, 0
        for signal_id, each in list(new.items())[:MAX_RAISED]:
            places = [(int(told.position[row]), int(told.recorded[row])) for row in each.rows]
            seen = [one for place in places if (one := await self._at(*place)) is not None]
            # Of a customer that was erased nothing is said; about everyone, what is left is evidence enough.
            if len(seen) == len(places) or (seen and each.customer < 0):
                signal = watched(each, seen, reading.map_.map_id, map_version)
                done = await self._executor.execute(Intent(stream_name("signal", signal_id), RaiseSignal(signal)))
                raised += len(done.events)
            self._raised.add(signal_id)
        return raised

    async def _at(self, position: int, recorded_us: int) -> Seen | None:
        """Return the interaction at a position of the store; None where it was erased, or another store has another."""
        async for recorded in self._store.read_all(position, self._registry.type_names, limit=1):
            same = microseconds(recorded.recorded_at) == recorded_us
            if recorded.position == position and same and (event := self._registry.read(recorded)) is not None:
                return _seen(event, recorded)
        return None
