"""Rules that watch over everyone: what no single event tells, but the history does.

Times are those of the history: "now" is when the last thing in it happened. So a rule finds the same whoever asks
when, and an imported history raises no alarm about years that are long over.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from recorrido.journey.v1.events import LoyaltyLevel, SignalRaised
from services.journey.domain.finding import NEWS_DAYS, Finding, position_of, rows_by_touchpoint, touchpoint_id_of
from services.journey.domain.history import DAY_US, History, Ints
from services.journey.domain.loyalty import levels, rules_of, standing
from services.journey.domain.maps import PublishedMap
from services.journey.domain.placement import Placements
from services.journey.domain.reading import Reading
from services.journey.domain.shifts import shifts

ABOUT_TO_FALL = "about_to_fall"
ABOUT_TO_FALL_VERSION = 1
TOUCHPOINT_SILENT = "touchpoint_silent"
TOUCHPOINT_SILENT_VERSION = 1
COVERAGE_LOST = "coverage_lost"
COVERAGE_LOST_VERSION = 1

#: Falling answers in a row, the first of them included.
FALLING_ANSWERS = 3
#: Interactions within so many days tell how often a touchpoint is heard; fewer tell nothing.
RATE_DAYS = 90
LEAST_INTERACTIONS = 20
#: What is older than this, in days, when it is recorded, is imported history, if most of what comes is.
IMPORT_AGE_DAYS = 2
#: How likely a silence may be before it is one.
SILENCE_BY_CHANCE = 0.001
#: Interactions that a signal about a touchpoint names.
EVIDENCE = 10


def is_import(history: History, since: int) -> bool:
    """Return whether what was recorded from the position `since` on is history rather than what happens now."""
    table = history.interactions
    new = slice(int(np.searchsorted(table.position, since)), None)
    age = table.recorded[new] - table.occurred[new]
    return bool(len(age)) and float(np.median(age)) > IMPORT_AGE_DAYS * DAY_US


def findings(
    reading: Reading, versions: Sequence[PublishedMap] = (), raised: Sequence[SignalRaised] = ()
) -> list[Finding]:
    """Return what the rules find in a history, read by a map.

    `versions` are those of the map so far, `raised` the signals of `SHIFT_RULES`; both in the order of the store.
    """
    table = reading.history.interactions
    if not len(table):
        return []
    now = int(table.occurred.max())
    return [
        *about_to_fall(reading, now),
        *silent_touchpoints(reading, now),
        *unheard_touchpoints(reading, now),
        *dropped_touchpoints(reading, versions, now),
        *(shifts(reading, now, raised) if reading.map_.map_id else ()),
    ]


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
                (ABOUT_TO_FALL, metric, position_of(reading, last)),
                customer,
                touchpoint_id_of(reading, int(reading.place[last])),
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
    occurred = reading.history.interactions.occurred
    for number, rows in rows_by_touchpoint(reading, reading.history.by_time):
        touchpoint = reading.touchpoints[number][1]
        times, last = occurred[rows], int(rows[-1])
        silence = (now - int(times[-1])) / DAY_US
        recent = int((times > times[-1] - RATE_DAYS * DAY_US).sum())
        if recent < LEAST_INTERACTIONS or silence > NEWS_DAYS:
            continue
        # A touchpoint that is new has been heard for less than RATE_DAYS.
        days = min(RATE_DAYS, max(int(times[-1] - times[0]) / DAY_US, 1.0))
        rate = recent / days
        chance = math.exp(-rate * silence)
        if chance < SILENCE_BY_CHANCE and silence >= 1:
            yield Finding(
                TOUCHPOINT_SILENT,
                TOUCHPOINT_SILENT_VERSION,
                (TOUCHPOINT_SILENT, reading.map_.map_id, touchpoint.touchpoint_id, position_of(reading, last)),
                -1,
                touchpoint.touchpoint_id,
                (last,),
                (f"{touchpoint.name}: nothing for {silence:.1f} days, after {rate:.1f} a day",),
                {"days_silent": f"{silence:.3f}", "rate_per_day": f"{rate:.3f}", "probability": f"{chance:.3g}"},
            )


# -- coverage lost -----------------------------------------------------------------------------------------------------


def unheard_touchpoints(reading: Reading, now: int) -> Iterator[Finding]:
    """Find touchpoints where things go on happening, but nobody rates or says anything any more.

    Of a touchpoint that was heard h times in n interactions, the next m are all unheard with the probability
    B(h + 1, n - h + 1 + m) / B(h + 1, n - h + 1), by Laplace's rule of succession (A. Gelman et al., "Bayesian Data
    Analysis", 3rd ed., 2013, section 2.4): for the share that is heard is only known from those n.
    """
    history = reading.history
    occurred = history.interactions.occurred
    for number, rows in rows_by_touchpoint(reading, history.by_time):
        touchpoint = reading.touchpoints[number][1]
        times, told = occurred[rows], np.flatnonzero(history.heard[rows])
        if not len(told):
            continue
        last = int(told[-1])
        silence = (now - int(times[last])) / DAY_US
        begin = int(np.searchsorted(times, times[last] - RATE_DAYS * DAY_US, side="right"))
        before, heard, since = last + 1 - begin, int((told >= begin).sum()), len(rows) - last - 1
        if heard < LEAST_INTERACTIONS or not 1 <= silence <= NEWS_DAYS:
            continue
        chance = math.exp(_log_beta(heard + 1, before - heard + 1 + since) - _log_beta(heard + 1, before - heard + 1))
        if chance < SILENCE_BY_CHANCE:
            yield Finding(
                COVERAGE_LOST,
                COVERAGE_LOST_VERSION,
                (COVERAGE_LOST, reading.map_.map_id, touchpoint.touchpoint_id, position_of(reading, int(rows[last]))),
                -1,
                touchpoint.touchpoint_id,
                (int(rows[last]), *rows[last + 1 :][-EVIDENCE + 1 :].tolist()),
                (f"{touchpoint.name}: nobody told in the last {since:,} interactions, after {heard:,} of {before:,}",),
                {
                    "lost": "unheard",
                    "moment_of_truth": str(touchpoint.moment_of_truth).lower(),
                    "days_unheard": f"{silence:.3f}",
                    "interactions_since": str(since),
                    "interactions_before": str(before),
                    "heard_before": str(heard),
                    "probability": f"{chance:.3g}",
                },
            )


def _log_beta(a: int, b: int) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def dropped_touchpoints(reading: Reading, versions: Sequence[PublishedMap], now: int) -> Iterator[Finding]:
    """Find touchpoints that customers still tell of, and that a version of the map no longer has, by any name."""
    history = reading.history
    occurred, raws = history.interactions.occurred, history.vocabulary.touchpoints
    known = {name for _, t in reading.touchpoints for name in (t.touchpoint_id, *t.aliases)}
    # What an earlier version placed and the present one does not, among what was heard lately.
    lost = history.by_time[(history.heard & (reading.place < 0))[history.by_time]]
    lost = lost[occurred[lost] > now - RATE_DAYS * DAY_US]
    found: set[str] = set()
    for before, after in reversed(list(pairwise(versions))):
        earlier = Reading(history, before.map, Placements(before.map))
        kept = {t.touchpoint_id for stage in after.map.stages for t in stage.touchpoints}
        for number, (_, touchpoint) in enumerate(earlier.touchpoints):
            name = touchpoint.touchpoint_id
            # Of a touchpoint that was dropped more than once the last time counts.
            if name in kept or name in known or name in found:
                continue
            found.add(name)
            rows = lost[earlier.placements.of(raws)[history.interactions.touchpoint[lost]] == number]
            if len(rows) < LEAST_INTERACTIONS or occurred[rows[-1]] < now - NEWS_DAYS * DAY_US:
                continue
            yield Finding(
                COVERAGE_LOST,
                COVERAGE_LOST_VERSION,
                (COVERAGE_LOST, reading.map_.map_id, name, "version", str(after.version)),
                -1,
                name,
                tuple(rows[-EVIDENCE:].tolist()),
                (f"{touchpoint.name}: told of {len(rows):,} times, and not in the map since version {after.version}",),
                {
                    "lost": "dropped",
                    "moment_of_truth": str(touchpoint.moment_of_truth).lower(),
                    "heard": str(len(rows)),
                    "dropped_in_version": str(after.version),
                },
            )
