"""What a rule that watches over everyone found, and the signal that it makes."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from msgspec import structs

from recorrido.ingest.v1.events import Customer, Interaction, InteractionRecorded
from recorrido.journey.v1.events import SignalRaised
from services.foundation.events import derived_id
from services.journey.domain.history import Ints
from services.journey.domain.reading import Reading
from services.journey.domain.signals import Seen

#: What is older than this, in days, is no news.
NEWS_DAYS = 30


@dataclass(frozen=True, slots=True)
class Finding:
    """What a rule found. `rows` are interactions of the history, oldest first; `cause` is what it is found once for.

    `customer` is the number of the customer it is about, -1: of no single one.
    """

    rule: str
    version: int
    cause: tuple[str, ...]
    customer: int
    touchpoint_id: str
    rows: tuple[int, ...]
    reasons: tuple[str, ...]
    inputs: Mapping[str, str] = field(default_factory=dict)
    need_path: str = ""

    @property
    def signal_id(self) -> str:
        """Return the id of the one signal of this cause."""
        return str(derived_id(*self.cause))


def position_of(reading: Reading, row: int) -> str:
    """Return the position of an interaction in the store, as part of a cause."""
    return str(int(reading.history.interactions.position[row]))


def touchpoint_id_of(reading: Reading, place: int) -> str:
    """Return the id of a touchpoint by its number in the map, empty for -1."""
    return reading.touchpoints[place][1].touchpoint_id if place >= 0 else ""


def rows_by_touchpoint(reading: Reading, rows: Ints) -> Iterator[tuple[int, Ints]]:
    """Yield the number of each touchpoint of the map that has any of these interactions, with those, in their order."""
    place = reading.place[rows]
    order = np.argsort(place, kind="stable")
    bounds = np.searchsorted(place[order], np.arange(len(reading.touchpoints) + 1))
    for number, (start, end) in enumerate(zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)):
        if end > start:
            yield number, rows[order[start:end]]


def watched(found: Finding, seen: Sequence[Seen], map_id: str, map_version: int) -> SignalRaised:
    """Return the signal of a finding, whose interactions are `seen`, oldest first."""
    last = seen[-1].event
    assert isinstance(last, InteractionRecorded)
    happened = last.interaction or Interaction()
    evidence = [each.evidence() for each in seen]
    if found.customer < 0:
        # Streams are named by customers, and this outlives them when they are erased: event and position are enough.
        evidence = [structs.replace(each, stream="", revision=0) for each in evidence]
    return SignalRaised(
        signal_id=found.signal_id,
        rule=found.rule,
        rule_version=found.version,
        customer_id=(happened.customer or Customer()).customer_id if found.customer >= 0 else "",
        touchpoint=happened.touchpoint if found.customer >= 0 or found.touchpoint_id else "",
        occurred_at=happened.occurred_at,
        reasons=found.reasons,
        evidence=tuple(evidence),
        need_path=found.need_path,
        inputs=found.inputs,
        map_id=map_id,
        map_version=map_version,
        touchpoint_id=found.touchpoint_id,
    )
