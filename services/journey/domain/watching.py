"""Rules that watch over everyone: what no single event tells, but the history does.

Times are those of the history: "now" is when the last thing in it happened. So a rule finds the same whoever asks
when, and an imported history raises no alarm about years that are long over.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from recorrido.ingest.v1.events import Customer, Interaction, InteractionRecorded
from recorrido.journey.v1.events import LoyaltyLevel, SignalRaised
from services.foundation.events import derived_id
from services.journey.domain.history import DAY_US, Ints
from services.journey.domain.loyalty import levels, rules_of, standing
from services.journey.domain.reading import Reading
from services.journey.domain.signals import Seen

ABOUT_TO_FALL = "about_to_fall"
ABOUT_TO_FALL_VERSION = 1
TOUCHPOINT_SILENT = "touchpoint_silent"
TOUCHPOINT_SILENT_VERSION = 1

#: What is older than this, in days, is no news.
NEWS_DAYS = 30
#: Falling answers in a row, the first of them included.
FALLING_ANSWERS = 3
#: Interactions within so many days tell how often a touchpoint is heard; fewer tell nothing.
RATE_DAYS = 90
LEAST_INTERACTIONS = 20
#: How likely a silence may be before it is one.
SILENCE_BY_CHANCE = 0.001


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

    def signal_id(self, reading: Reading) -> str:
        """Return the id of the one signal of this cause."""
        positions = [str(int(reading.history.interactions.position[row])) for row in self.rows[-1:]]
        return str(derived_id(self.rule, *self.cause, *positions))


def findings(reading: Reading) -> list[Finding]:
    """Return what the rules find in a history, read by a map."""
    table = reading.history.interactions
    if not len(table):
        return []
    now = int(table.occurred.max())
    return [*about_to_fall(reading, now), *silent_touchpoints(reading, now)]


# -- customers about to fall a step ------------------------------------------------------------------------------------


def about_to_fall(reading: Reading, now: int) -> Iterator[Finding]:
    """Find customers above "at risk" whose last answers to one question fell and fell again.

    Who is at risk already has fallen, and a last answer that is a bad moment has its own signal. That satisfaction
    which falls tells of leaving: R. N. Bolton, "A Dynamic Model of the Duration of the Customer's Relationship with a
    Continuous Service Provider: The Role of Satisfaction", Marketing Science 17, 1998.
    """
    history = reading.history
    table = history.interactions
    rules = rules_of(reading.map_.loyalty)
    level: NDArray[np.int8] | None = None
    for metric, column in (("NPS", table.nps), ("CSAT", table.csat), ("CES", table.ces)):
        order = history.order[column[history.order] >= 0]
        for rows in _falling(history.customer[order], column[order], order):
            last = rows[-1]
            if history.bad[last] or table.occurred[last] < now - NEWS_DAYS * DAY_US:
                continue
            if level is None:
                level = levels(standing(history, rules, now), rules)[0]
            customer = int(history.customer[last])
            if level[customer] < LoyaltyLevel.SATISFIED.number:
                continue
            answers = " → ".join(str(int(column[row])) for row in rows)
            yield Finding(
                ABOUT_TO_FALL,
                ABOUT_TO_FALL_VERSION,
                (metric,),
                customer,
                _touchpoint_id(reading, last),
                tuple(rows),
                (f"{metric} {answers}",),
                {"level": LoyaltyLevel.from_number(int(level[customer])).name.lower(), "metric": metric.lower()},
            )


def _falling(customer: NDArray[np.int32], value: NDArray[np.int8], order: Ints) -> Iterator[list[int]]:
    """Yield the last rows of each customer whose last answers fell each time."""
    steps = FALLING_ANSWERS - 1
    if len(order) <= steps:
        return
    falls = (customer[1:] == customer[:-1]) & (value[1:] < value[:-1])
    ends = np.append(customer[1:] != customer[:-1], True)
    run = ends[steps:].copy()
    for step in range(steps):
        run &= falls[step : len(falls) - steps + 1 + step]
    for end in (np.flatnonzero(run) + steps).tolist():
        yield order[end - steps : end + 1].tolist()


# -- touchpoints gone silent -------------------------------------------------------------------------------------------


def silent_touchpoints(reading: Reading, now: int) -> Iterator[Finding]:
    """Find touchpoints of the map that have been silent longer than chance explains.

    If interactions come independently, at the rate of the RATE_DAYS before the last one, then a silence of that length
    has the probability exp(-rate * length): that a Poisson process has no event (S. M. Ross, "Introduction to
    Probability Models", chapter 5).
    """
    history = reading.history
    order = history.by_time
    occurred = history.interactions.occurred[order]
    place = reading.place[order]
    for number, (_, touchpoint) in enumerate(reading.touchpoints):
        times = np.flatnonzero(place == number)
        if not len(times):
            continue
        last = int(occurred[times[-1]])
        recent = times[occurred[times] > last - RATE_DAYS * DAY_US]
        silence = (now - last) / DAY_US
        if len(recent) < LEAST_INTERACTIONS or silence > NEWS_DAYS:
            continue
        # A touchpoint that is new has been heard for less than RATE_DAYS.
        days = min(RATE_DAYS, max((last - int(occurred[times[0]])) / DAY_US, 1.0))
        rate = len(recent) / days
        chance = math.exp(-rate * silence)
        if chance < SILENCE_BY_CHANCE and silence >= 1:
            yield Finding(
                TOUCHPOINT_SILENT,
                TOUCHPOINT_SILENT_VERSION,
                (reading.map_.map_id, touchpoint.touchpoint_id),
                -1,
                touchpoint.touchpoint_id,
                (int(order[times[-1]]),),
                (f"{touchpoint.name}: nothing for {silence:.1f} days, after {rate:.1f} a day",),
                {"days_silent": f"{silence:.3f}", "rate_per_day": f"{rate:.3f}", "probability": f"{chance:.3g}"},
            )


def _touchpoint_id(reading: Reading, row: int) -> str:
    place = int(reading.place[row])
    return reading.touchpoints[place][1].touchpoint_id if place >= 0 else ""


def watched(found: Finding, signal_id: str, seen: Sequence[Seen], map_id: str, map_version: int) -> SignalRaised:
    """Return the signal of a finding, whose interactions are `seen`, oldest first."""
    last = seen[-1].event
    assert isinstance(last, InteractionRecorded)
    happened = last.interaction or Interaction()
    return SignalRaised(
        signal_id=signal_id,
        rule=found.rule,
        rule_version=found.version,
        customer_id=(happened.customer or Customer()).customer_id if found.customer >= 0 else "",
        touchpoint=happened.touchpoint,
        occurred_at=happened.occurred_at,
        reasons=found.reasons,
        evidence=tuple(each.evidence() for each in seen),
        inputs=found.inputs,
        map_id=map_id,
        map_version=map_version,
        touchpoint_id=found.touchpoint_id,
    )
