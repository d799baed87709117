"""Where a map places the touchpoints of a history."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from recorrido.journey.v1.events import JourneyMap
from services.foundation.placement import place
from services.journey.domain.history import RawTouchpoint


class Placements:
    """Where a map places each raw touchpoint, found once for each."""

    def __init__(self, map_: JourneyMap) -> None:
        self._map = map_
        ids = [t.touchpoint_id for stage in map_.stages for t in stage.touchpoints]
        self._numbers = {touchpoint_id: number for number, touchpoint_id in enumerate(ids)}
        self._found = np.empty(0, np.int32)

    def of(self, touchpoints: Sequence[RawTouchpoint]) -> NDArray[np.int32]:
        """Return, for each raw touchpoint, the number of its touchpoint in the map's order; -1: it is on none.

        The same list is given each time, and only grows. Threads may ask at once: each goes on from what it found.
        """
        found = self._found
        new = [self._number(raw) for raw in touchpoints[len(found) :]]
        if new:
            found = np.concatenate([found, np.array(new, np.int32)])
            self._found = found
        return found

    def _number(self, raw: RawTouchpoint) -> int:
        touchpoint_id = place(self._map, raw.source, raw.touchpoint, raw.channel)
        return -1 if touchpoint_id is None else self._numbers.get(touchpoint_id, -1)
