"""What would change if a draft of a map were published."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from recorrido.journey.v1.events import JourneyMap, LoyaltyLevel
from services.journey.domain.history import History
from services.journey.domain.loyalty import levels, rules_of, standing
from services.journey.domain.mapdiff import Change, changes
from services.journey.domain.placement import Placements
from services.journey.domain.reading import Reading
from services.journey.views.ladder import ALL_LEVELS
from services.journey.views.scores import Scores, scores
from services.journey.views.selection import Selection
from services.journey.views.snapshot import MapInForce


@dataclass(frozen=True, slots=True)
class TouchpointPreview:
    """None where the map does not have the touchpoint."""

    touchpoint_id: str
    name: str
    before: Scores | None
    after: Scores | None


@dataclass(frozen=True, slots=True)
class Preview:
    """Pairs are before and after. `against_version` 0: there is no map of this id yet."""

    against_version: int
    changes: Sequence[Change]
    touchpoints: Sequence[TouchpointPreview]
    uncovered: tuple[int, int]
    moved: int
    personas: Sequence[tuple[str, int, int]]
    levels: Sequence[tuple[LoyaltyLevel, int, int]]
    episodes: tuple[int, int]


def preview(before: Reading, in_force: MapInForce, draft: JourneyMap, *, moment: int) -> Preview:
    """Read the same history by the map in force and by a draft, as of `moment` (microseconds)."""
    history = before.history
    after = Reading(history, draft, Placements(draft))
    return Preview(
        against_version=in_force.version,
        changes=changes(before.map_, draft),
        touchpoints=_touchpoints(before, after),
        uncovered=(int((before.place < 0).sum()), int((after.place < 0).sum())),
        moved=_moved(before, after),
        personas=_personas(before, after),
        levels=_levels(history, before.map_, draft, moment),
        episodes=(before.episodes, after.episodes),
    )


def _touchpoints(before: Reading, after: Reading) -> list[TouchpointPreview]:
    found = [
        {each.touchpoint_id: each for each in scores(reading, Selection())[1] if each.touchpoint_id}
        for reading in (before, after)
    ]
    old, new = found
    return [
        TouchpointPreview(
            key,
            (new.get(key) or old[key]).name,
            old[key].scores if key in old else None,
            new[key].scores if key in new else None,
        )
        for key in dict.fromkeys([*new, *old])
    ]


def _moved(before: Reading, after: Reading) -> int:
    def ids(reading: Reading) -> np.ndarray:
        names = [t.touchpoint_id for _, t in reading.touchpoints]
        return np.array([*names, ""], object)[reading.placements.of(reading.history.vocabulary.touchpoints)]

    elsewhere = ids(before) != ids(after)
    return int(np.asarray(elsewhere, bool)[before.history.interactions.touchpoint].sum())


def _personas(before: Reading, after: Reading) -> list[tuple[str, int, int]]:
    customers = before.history.customers_of(np.arange(len(before.history.interactions)))

    def counted(reading: Reading) -> dict[str, int]:
        names = [*(persona.persona_id for persona in reading.map_.personas), ""]
        numbers = reading.personas[customers]
        counts = np.bincount(np.where(numbers < 0, len(names) - 1, numbers), minlength=len(names))
        return dict(zip(names, counts.tolist(), strict=True))

    old, new = counted(before), counted(after)
    return [(key, old.get(key, 0), new.get(key, 0)) for key in dict.fromkeys([*new, *old])]


def _levels(
    history: History, before: JourneyMap, after: JourneyMap, moment: int
) -> list[tuple[LoyaltyLevel, int, int]]:
    found = []
    for map_ in (before, after):
        rules = rules_of(map_.loyalty)
        at = standing(history, rules, moment)
        found.append(np.bincount(levels(at, rules)[0][at.known], minlength=len(ALL_LEVELS)))
    return [(level, int(found[0][level.number]), int(found[1][level.number])) for level in ALL_LEVELS]
