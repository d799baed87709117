"""Journey maps: how a new version is published.

Stream `journeymap-<map id>`; the version of a map is its event's revision + 1. What a valid map is stands in
`domain.mapcheck`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from recorrido.journey.v1.events import JourneyMap, JourneyMapPublished
from services.foundation.errors import DiffersError
from services.foundation.events import cause_of
from services.foundation.rules import Rules
from services.journey.domain.mapcheck import violations


@dataclass(frozen=True, slots=True)
class PublishJourneyMap:
    """Make `map` the next version of its map id. `request_id` is never empty."""

    map: JourneyMap
    actor: str
    request_id: str

    @property
    def cause(self) -> str:
        return cause_of(self.request_id, self.map, self.actor)


@dataclass(frozen=True, slots=True)
class PublishedMap:
    """One version of a map, as it was published."""

    map: JourneyMap
    version: int
    published_at: datetime
    actor: str


@dataclass(frozen=True, slots=True)
class MapState:
    """The latest map (None: none yet), its version, and which version each request published."""

    map: JourneyMap | None = None
    version: int = 0
    requests: Mapping[str, tuple[int, JourneyMap]] = field(default_factory=dict)

    def version_for(self, request_id: str) -> int:
        """Return the version that a request came to; the latest where it found its map published already."""
        return self.requests[request_id][0] if request_id in self.requests else self.version


class Maps:
    """The decider of a journey map."""

    types = (JourneyMapPublished,)

    def initial(self) -> MapState:
        return MapState()

    def evolve(self, state: MapState, event: JourneyMapPublished) -> MapState:
        published = event.map or JourneyMap()
        version = state.version + 1
        return replace(
            state,
            map=published,
            version=version,
            requests={**state.requests, event.request_id: (version, published)},
        )

    def decide(self, command: PublishJourneyMap, state: MapState) -> Sequence[JourneyMapPublished]:
        """Publish, unless this request did it before or the map is as it was.

        Raises:
            InvalidError: names every problem of the map.
            DiffersError: the same request_id published another map.
        """
        rules = Rules()
        rules.add(violations(command.map))
        rules.who_and_request(command.actor, command.request_id)
        rules.enforce()
        if command.request_id in state.requests:
            version, published = state.requests[command.request_id]
            if published != command.map:
                raise DiffersError(
                    "REQUEST_DIFFERS", f"request {command.request_id} published another map, as version {version}"
                )
            return []
        if command.map == state.map:
            return []
        return [
            JourneyMapPublished(
                map=command.map, version=state.version + 1, actor=command.actor, request_id=command.request_id
            )
        ]
