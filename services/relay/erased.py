"""Events that are erased, though the store holds them until it is scavenged: they must not come onto the bus again."""

from recorrido.ingest.v1.events import CustomerAnonymized
from services.foundation.events import Recorded, Registry
from services.foundation.eventstore import EventStore

_REGISTRY = Registry((CustomerAnonymized,))


class ErasedEvents:
    """What is erased of the history from a position on (None: of all of it)."""

    def __init__(self, store: EventStore, start: int | None) -> None:
        self._store = store
        # An event is erased by one that comes behind it.
        self._read_to = start
        self._positions: set[int] = set()

    async def refresh(self) -> None:
        """Learn what was erased since. Raises UnavailableError."""
        async for recorded in self._store.read_all(self._read_to, _REGISTRY.type_names):
            event: CustomerAnonymized | None = _REGISTRY.read(recorded)
            if event is not None:
                self._positions.update(int(each) for each in event.erased_positions if each.isdecimal())
            self._read_to = recorded.position

    def __contains__(self, recorded: Recorded) -> bool:
        return recorded.position in self._positions
