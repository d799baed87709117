"""The loyalty ladder of everyone: who stands where, who rose and fell, who was won back, who recommends."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np
from numpy.typing import NDArray

from recorrido.ingest.v1.events import ReferralDirection
from recorrido.journey.v1.events import LoyaltyLevel
from services.foundation.errors import InvalidError, Violation
from services.journey.domain import intervals
from services.journey.domain.history import HOUR_US, Flags, History, Ints, Told, microseconds, moment_of
from services.journey.domain.intervals import Interval
from services.journey.domain.loyalty import levels, rules_of, standing
from services.journey.domain.naming import unknown
from services.journey.domain.reading import Reading
from services.journey.views.money import YEAR_US
from services.journey.views.scores import Period, period_number, period_start

#: Periods of one answer.
MAX_PERIODS = 120
#: Touchpoints named where customers rose or fell.
_PLACES = 10

ALL_LEVELS = tuple(LoyaltyLevel.from_number(number) for number in range(5))


@dataclass(frozen=True, slots=True)
class LevelCount:
    """`share` is of those on any level, 0 to 1."""

    level: LoyaltyLevel
    customers: int
    share: float


@dataclass(frozen=True, slots=True)
class Transition:
    source: LoyaltyLevel
    target: LoyaltyLevel
    customers: int


@dataclass(frozen=True, slots=True)
class TouchpointCount:
    """On no map: `touchpoint_id` is empty, and the name the raw one."""

    touchpoint_id: str
    name: str
    customers: int


@dataclass(frozen=True, slots=True)
class LadderPeriod:
    """What changed between two times; `levels` are those at the end."""

    since: datetime
    until: datetime
    levels: Sequence[LevelCount]
    transitions: Sequence[Transition]
    rose: int
    fell: int
    rose_at: Sequence[TouchpointCount]
    fell_at: Sequence[TouchpointCount]


@dataclass(frozen=True, slots=True)
class ServiceRecovery:
    """Of the customers who had a bad moment, those who ended glad; hours are from the last bad moment to gladness."""

    had_bad_moment: int
    recovered: int
    interval: Interval
    median_hours: float
    p90_hours: float


@dataclass(frozen=True, slots=True)
class WordOfMouth:
    given: int
    received: int
    recommending_customers: int
    recommended_customers: int


@dataclass(frozen=True, slots=True)
class Ladder:
    levels: Sequence[LevelCount]
    periods: Sequence[LadderPeriod]
    recovery: ServiceRecovery | None
    word_of_mouth: WordOfMouth


def ladder(
    reading: Reading,
    *,
    moment: int,
    since: datetime | None,
    until: datetime | None,
    period: Period,
    persona_id: str,
) -> Ladder:
    """Return the ladder at `until`, and what changed since `since`; without them at `moment`, and over the year before.

    Raises:
        InvalidError: it would begin after it ends, more than MAX_PERIODS periods, or the map has no such persona.
    """
    end = moment if until is None else microseconds(until)
    start = end - YEAR_US if since is None else microseconds(since)
    if start >= end:
        raise InvalidError([Violation("from", f"before what is known ends: {moment_of(end).isoformat()}")])
    history = reading.history
    meant = _customers(reading, persona_id)
    rules = rules_of(reading.map_.loyalty)
    times = _boundaries(start, end, period)
    found: list[NDArray[np.int8]] = []
    for time in times:
        at = standing(history, rules, time)
        # Nobody of whom nothing had happened is on the ladder: -1.
        found.append(np.where(at.known & meant, levels(at, rules)[0], np.int8(-1)))
    periods = [_period(reading, times[n], times[n + 1], found[n], found[n + 1]) for n in range(len(times) - 1)]
    inside = (history.interactions.occurred > start) & (history.interactions.occurred <= end)
    inside &= meant[history.customer]
    return Ladder(counts(found[-1]), periods, _recovery(history, inside, end), _word_of_mouth(history, inside))


def _customers(reading: Reading, persona_id: str) -> Flags:
    personas = {persona.persona_id: persona.name for persona in reading.map_.personas}
    if not persona_id:
        return np.ones(len(reading.history.owners), bool)
    if persona_id not in personas:
        raise InvalidError([Violation("persona_id", unknown(reading.map_, "persona", persona_id, personas.items()))])
    meant: Flags = reading.personas == list(personas).index(persona_id)
    return meant


def _boundaries(start: int, end: int, period: Period) -> list[int]:
    first, last = (int(n) for n in period_number(np.array([start, end], np.int64), period))
    if last - first >= MAX_PERIODS:
        raise InvalidError([Violation("period", f"at most {MAX_PERIODS} of them; these are {last - first + 1:,}")])
    between = [microseconds(period_start(n, period)) for n in range(first + 1, last + 1)]
    return [start, *(time for time in between if start < time < end), end]


def counts(level: NDArray[np.int8]) -> list[LevelCount]:
    """Return how many stand on each level, 0 (nothing tells) to 4; -1 is not on the ladder."""
    numbers = np.bincount(level[level >= 0], minlength=5)
    on_any = max(int(numbers[1:].sum()), 1)
    return [
        LevelCount(each, int(numbers[each.number]), int(numbers[each.number]) / on_any if each.number else 0.0)
        for each in ALL_LEVELS
    ]


def _period(reading: Reading, start: int, end: int, before: NDArray[np.int8], after: NDArray[np.int8]) -> LadderPeriod:
    there = (before >= 0) & (after >= 0) & (before != after)
    pairs = np.bincount(before[there].astype(np.int64) * 5 + after[there], minlength=25)
    # From or to "nothing tells" is neither up nor down.
    told = (before > 0) & (after > 0)
    rose, fell = told & (after > before), told & (after < before)
    history = reading.history
    return LadderPeriod(
        since=moment_of(start),
        until=moment_of(end),
        levels=counts(after),
        transitions=[
            Transition(ALL_LEVELS[n // 5], ALL_LEVELS[n % 5], int(count)) for n, count in enumerate(pairs) if count
        ],
        rose=int(rose.sum()),
        fell=int(fell.sum()),
        rose_at=_last_at(reading, history.told["glad"], rose, start, end),
        fell_at=_last_at(reading, history.told["bad"], fell, start, end),
    )


def _last_at(reading: Reading, telling: Told, meant: Flags, start: int, end: int) -> list[TouchpointCount]:
    """Return at which touchpoints the last telling interaction of each of these customers was, within a period."""
    history = reading.history
    first, last = (int(n) for n in np.searchsorted(history.times, [start, end], side="right"))
    inside = telling.between(first, last)
    theirs = meant[inside.customer]
    row_of = np.full(len(history.owners), -1, np.int64)
    row_of[inside.customer[theirs]] = inside.row[theirs]
    last_rows = row_of[row_of >= 0]
    raws = history.vocabulary.touchpoints
    # Those on no map stand behind those of the map, by raw touchpoint.
    place, on_map = reading.place[last_rows], len(reading.touchpoints)
    where = np.where(place >= 0, place, on_map + history.interactions.touchpoint[last_rows])
    counted = np.bincount(where, minlength=on_map + len(raws))
    found: dict[tuple[str, str], int] = {}
    for n in np.flatnonzero(counted).tolist():
        touchpoint = reading.touchpoints[n][1] if n < on_map else None
        key = (touchpoint.touchpoint_id, touchpoint.name) if touchpoint else ("", raws[n - on_map].touchpoint)
        found[key] = found.get(key, 0) + int(counted[n])
    ranked = sorted(found.items(), key=lambda item: (-item[1], item[0]))
    return [TouchpointCount(*key, count) for key, count in ranked[:_PLACES]]


def _recovery(history: History, inside: Flags, end: int) -> ServiceRecovery | None:
    """Return who was won back; None where nobody had a bad moment.

    What counts is the customer's gladness afterwards, not that somebody answered (C. W. L. Hart, J. L. Heskett and
    W. E. Sasser, "The Profitable Art of Service Recovery", Harvard Business Review, July 1990).
    """
    upto = int(np.searchsorted(history.times, end, side="right"))
    bad, glad = (history.told[name].between(0, upto) for name in ("bad", "glad"))
    meant = inside[bad.row]
    if not meant.any():
        return None
    occurred = history.interactions.occurred
    customers = len(history.owners)
    last_bad, rank = (np.full(customers, -1, np.int64) for _ in range(2))
    last_bad[bad.customer[meant]], rank[bad.customer[meant]] = bad.row[meant], bad.rank[meant]
    after = (last_bad[glad.customer] >= 0) & (glad.rank > rank[glad.customer])
    first_glad = np.full(customers, -1, np.int64)
    first_glad[glad.customer[after][::-1]] = glad.row[after][::-1]
    recovered = np.flatnonzero(first_glad >= 0)
    hours = (occurred[first_glad[recovered]] - occurred[last_bad[recovered]]) / HOUR_US
    had = int((last_bad >= 0).sum())
    median, p90 = np.percentile(hours, [50, 90]) if len(hours) else (0.0, 0.0)
    return ServiceRecovery(had, len(recovered), intervals.proportion(len(recovered), had), float(median), float(p90))


def _word_of_mouth(history: History, inside: Flags) -> WordOfMouth:
    def of(direction: ReferralDirection) -> Ints:
        return np.flatnonzero(inside & (history.interactions.referral == direction.number))

    given, received = of(ReferralDirection.GIVEN), of(ReferralDirection.RECEIVED)
    return WordOfMouth(
        len(given),
        len(received),
        len(history.customers_of(given)),
        len(history.customers_of(received)),
    )
