"""Which touchpoint of a map an interaction belongs to: an opinion of the map, never a fact of the interaction."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from recorrido.ingest.v1.events import Channel
from recorrido.journey.v1.events import JourneyMap, MappingRule
from services.journey.domain.history import RawTouchpoint


def place(map_: JourneyMap, source: str, touchpoint: str, channel: Channel) -> str | None:
    """Return the id of the touchpoint that `map_` places an interaction at, or None: the map does not cover it.

    The first rule that matches wins. Where none does, it is the touchpoint whose id, or else one of whose aliases,
    equals the raw name.
    """
    for rule in map_.mapping_rules:
        if matches(rule, source, touchpoint, channel):
            return rule.touchpoint_id
    touchpoints = [t for stage in map_.stages for t in stage.touchpoints]
    named = (t.touchpoint_id for t in touchpoints if t.touchpoint_id == touchpoint)
    return next(named, None) or next((t.touchpoint_id for t in touchpoints if touchpoint in t.aliases), None)


def matches(rule: MappingRule, source: str, touchpoint: str, channel: Channel) -> bool:
    """Return whether every condition that the rule gives holds."""
    return (
        _text_matches(rule.source, source)
        and _text_matches(rule.touchpoint, touchpoint)
        and rule.channel in (Channel.UNSPECIFIED, channel)
    )


def _text_matches(condition: str, value: str) -> bool:
    if condition == "" or condition.endswith("*"):
        return value.startswith(condition[:-1])
    return condition == value


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
