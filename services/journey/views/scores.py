"""NPS, CSAT, CES, sentiment and scales of the company's own: in total, per touchpoint, by any grouping and period."""

import heapq
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from recorrido.inference.v1.events import Sentiment
from recorrido.ingest.v1.events import Channel, RatingMetric
from recorrido.journey.v1.events import Metric, Touchpoint
from services.foundation.errors import InvalidError, Violation
from services.foundation.scales import SCALES
from services.journey.domain.expectations import Expected, held_against
from services.journey.domain.history import DAY_US, Flags, History, Ints, Scale, moment_of
from services.journey.domain.reading import Reading
from services.journey.domain.scores import (
    MeanScore,
    NetPromoterScore,
    RatingScore,
    effort_score,
    mean_score,
    mean_sentiment,
    net_promoter_score,
    satisfaction_score,
)
from services.journey.views.selection import Selection

#: Some rows, or all.
Rows: TypeAlias = Ints | slice
#: Sums of values are kept in parts of this size, each a whole number: a sentiment has four decimals, its square eight.
UNITS = 1e8
#: As many parts, for each group.
Units: TypeAlias = NDArray[Any]
#: Touchpoints on no map that one answer names.
MAX_UNCOVERED = 100
#: Where there may be more combinations than this, those that occur are found by sorting.
_MOST_CELLS = 1 << 22
#: As many numbers fit 32 bits.
_MOST_SHORT = 1 << 32
#: Periods of one time series.
MAX_PERIODS = 10_000


@dataclass(frozen=True, slots=True)
class EventRange:
    """Positions in the store of the first and last of the events that an answer was computed from."""

    first: int = 0
    last: int = 0
    events: int = 0


@dataclass(frozen=True, slots=True)
class Scores:
    """A score is None where nobody was asked; `sentiment` counts negative, neutral, positive."""

    interactions: int = 0
    customers: int = 0
    nps: NetPromoterScore | None = None
    csat: RatingScore | None = None
    ces: RatingScore | None = None
    sentiment: tuple[int, int, int] = (0, 0, 0)
    mean_sentiment: MeanScore | None = None
    custom: tuple[tuple[Scale, MeanScore], ...] = ()
    events: EventRange = field(default_factory=EventRange)

    def against(self, touchpoint: Touchpoint) -> tuple[Expected, ...]:
        """Hold these scores against what a map expects of a touchpoint."""
        of = {Metric.NPS: self.nps, Metric.CSAT: self.csat, Metric.CES: self.ces, Metric.SENTIMENT: self.mean_sentiment}
        return held_against(touchpoint.expected, of)


NOTHING = Scores()


@dataclass(frozen=True, slots=True)
class TouchpointScores:
    """On no map: `stage_id` and `touchpoint_id` are empty and `name` is what the sources call it."""

    stage_id: str
    touchpoint_id: str
    name: str
    scores: Scores
    expected: tuple[Expected, ...] = ()


class Grouping(Enum):
    TOUCHPOINT = 1
    STAGE = 2
    CHANNEL = 3
    PERSONA = 4
    NEED = 5
    SOURCE = 6


class Period(Enum):
    DAY = 1
    WEEK = 2
    MONTH = 3
    QUARTER = 4
    YEAR = 5


@dataclass(frozen=True, slots=True)
class Group:
    """Scores of one combination of keys and, where asked for, one period. `names` is what people call the keys.

    `expected` is given where one of the keys is a touchpoint of the map.
    """

    keys: tuple[str, ...]
    names: tuple[str, ...]
    period_start: datetime | None
    scores: Scores
    expected: tuple[Expected, ...] = ()


@dataclass(frozen=True, slots=True)
class _Sums:
    """What scores are computed from, of each group: all of it adds up, but `first` and `last`, which are positions.

    `answers` counts by point of each scale, `tones` by number of the sentiment; `custom` counts the answers on each of
    the company's own scales, and adds them and their squares.
    """

    counts: Ints
    answers: Mapping[RatingMetric, Ints]
    heard: Ints
    felt: Units
    squares: Units
    tones: Ints
    first: Ints
    last: Ints
    custom: tuple[Ints, Units, Units]

    def together(self) -> "_Sums":
        """Return those of all groups as one."""

        def total(of: NDArray[Any]) -> NDArray[Any]:
            found: NDArray[Any] = np.sum(of, axis=0, keepdims=True)
            return found

        there = self.counts > 0
        return _Sums(
            total(self.counts),
            {metric: total(each) for metric, each in self.answers.items()},
            total(self.heard),
            total(self.felt),
            total(self.squares),
            total(self.tones),
            np.array([self.first[there].min(initial=np.iinfo(np.int64).max)]),
            np.array([self.last.max(initial=0)]),
            (total(self.custom[0]), total(self.custom[1]), total(self.custom[2])),
        )

    def scores(self, customers: Ints, scales: Sequence[Scale]) -> list[Scores]:
        """Return the scores of each group, given how many customers it has."""
        first_passive, first_promoter = SCALES[RatingMetric.NPS].highest_bad + 1, SCALES[RatingMetric.NPS].lowest_good
        nps = self.answers[RatingMetric.NPS].tolist()
        csat, ces = (self.answers[metric].tolist() for metric in (RatingMetric.CSAT, RatingMetric.CES))
        tones = self.tones[:, [Sentiment.NEGATIVE.number, Sentiment.NEUTRAL.number, Sentiment.POSITIVE.number]].tolist()
        heard = self.heard.tolist()
        felt, squares = (self.felt / UNITS).tolist(), (self.squares / UNITS).tolist()
        first, last, several = self.first.tolist(), self.last.tolist(), customers.tolist()
        custom = self._custom(scales)
        return [
            Scores(
                interactions=count,
                customers=several[n],
                nps=net_promoter_score(
                    sum(nps[n][first_promoter:]), sum(nps[n][first_passive:first_promoter]), sum(nps[n][:first_passive])
                ),
                csat=satisfaction_score(csat[n]),
                ces=effort_score(ces[n]),
                sentiment=tuple(tones[n]),
                mean_sentiment=mean_sentiment(heard[n], felt[n], squares[n]),
                custom=tuple(custom.get(n, ())),
                events=EventRange(first[n], last[n], count + heard[n]),
            )
            if count
            else NOTHING
            for n, count in enumerate(self.counts.tolist())
        ]

    def _custom(self, scales: Sequence[Scale]) -> dict[int, list[tuple[Scale, MeanScore]]]:
        counts, totals, squares = self.custom
        found: dict[int, list[tuple[Scale, MeanScore]]] = {}
        for n, at in zip(*(each.tolist() for each in np.nonzero(counts)), strict=True):
            scale = scales[at]
            mean = mean_score(
                int(counts[n, at]),
                float(totals[n, at] / UNITS),
                float(squares[n, at] / UNITS),
                lowest=scale.lowest,
                highest=scale.highest,
            )
            assert mean is not None
            found.setdefault(n, []).append((scale, mean))
        for each in found.values():
            each.sort(key=lambda pair: (pair[0].name, pair[0].lowest, pair[0].highest))
        return found


def tally(history: History, rows: Rows, code: NDArray[Any], groups: int) -> list[Scores]:
    """Return the scores of each group: those of interactions `rows`, whose groups are `code`, 0 to `groups` - 1."""
    customers = distinct(code, history.customer[rows], groups, len(history.owners))
    return _sums(history, rows, code, groups).scores(customers, history.vocabulary.scales)


def _sums(history: History, rows: Rows, code: NDArray[Any], groups: int) -> _Sums:
    def histogram(column: NDArray[np.int8], points: int, lowest: int) -> Ints:
        answers = column[rows]
        told = np.flatnonzero(answers >= lowest)
        counts = np.bincount(code[told] * points + (answers[told] - lowest), minlength=groups * points)
        return counts.reshape(groups, points)

    analysis = history.analysis[rows]
    analysed = np.flatnonzero(analysis >= 0)
    of, group = analysis[analysed], code[analysed]
    felt = history.analyses.score[of]
    tones = max(tone.number for tone in Sentiment) + 1
    return _Sums(
        np.bincount(code, minlength=groups),
        {
            metric: histogram(column, SCALES[metric].points, SCALES[metric].lowest)
            for metric, column in history.answers.items()
        },
        np.bincount(group, minlength=groups),
        *added(group, felt, groups),
        np.bincount(group * tones + history.analyses.sentiment[of], minlength=groups * tones).reshape(groups, tones),
        *_ranges(history.interactions.position[rows], code, history.analyses.position[of], group, groups),
        _custom(history, rows, code, groups),
    )


def added(code: NDArray[Any], value: NDArray[Any], groups: int) -> tuple[Units, Units]:
    """Return the sum of each group's values, and that of their squares, both in parts of `UNITS`.

    Whole numbers add up to the same in any order and any partition, where fractions differ in the last digit: the same
    question about the same facts has one answer, whichever map groups them. Exact up to 9e7 in sum.
    """
    totals: Units = np.bincount(code, np.rint(value * UNITS), minlength=groups)
    squares: Units = np.bincount(code, np.rint(value * value * UNITS), minlength=groups)
    return totals, squares


def distinct(code: NDArray[Any], customer: NDArray[np.int32], groups: int, customers: int) -> Ints:
    """Return the number of different customers of each group."""
    # By sorting: flags of all pairs would not fit the caches. Numbers half as long are sorted twice as fast.
    fits = groups * customers <= _MOST_SHORT
    pairs = np.sort((code.astype(np.int64) * customers + customer).astype(np.uint32 if fits else np.int64))
    new = np.ones(len(pairs), bool)
    np.not_equal(pairs[1:], pairs[:-1], out=new[1:])
    counts: Ints = np.bincount(pairs[new] // max(customers, 1), minlength=groups)
    return counts


def _ranges(
    positions: Ints, code: NDArray[Any], analyses: Ints, analysed: NDArray[Any], groups: int
) -> tuple[Ints, Ints]:
    # Rows are in the order of the store, and numpy assigns in order: what is assigned last stays.
    first, last = np.zeros(groups, np.int64), np.zeros(groups, np.int64)
    first[code[::-1]] = positions[::-1]
    last[code] = positions
    np.maximum.at(last, analysed, analyses)
    return first, last


def _custom(
    history: History, rows: Rows, code: NDArray[Any], groups: int
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    ratings, scales = history.ratings, len(history.vocabulary.scales)
    shape = (groups, scales)
    if not len(ratings):
        return np.zeros(shape, np.int64), np.zeros(shape), np.zeros(shape)
    group = np.full(len(history.interactions), -1, np.int64)
    group[rows] = code
    groups_of = group[ratings.interaction]
    chosen = groups_of >= 0
    cell = groups_of[chosen] * scales + ratings.scale[chosen]
    value = ratings.value[chosen]
    counts = np.bincount(cell, minlength=groups * scales)
    totals, squares = added(cell, value, groups * scales)
    return counts.reshape(shape), totals.reshape(shape), squares.reshape(shape)


def scores(reading: Reading, selection: Selection) -> tuple[Scores, Sequence[TouchpointScores]]:
    """Return the scores in total, then per touchpoint.

    All of the map in its order, silent ones too, then those on no map by raw name, the MAX_UNCOVERED with most
    interactions.
    """
    history = reading.history
    rows = _rows(selection.interactions(reading))
    raws = history.vocabulary.touchpoints
    uncovered = sorted({raw.touchpoint for raw in raws})
    numbers = {name: len(reading.touchpoints) + n for n, name in enumerate(uncovered)}
    by_raw = np.array([numbers[raw.touchpoint] for raw in raws], np.int64)
    place = reading.place[rows].astype(np.int64)
    code = np.where(place >= 0, place, by_raw[history.interactions.touchpoint[rows]])
    code, groups = _present(code, len(reading.touchpoints) + len(uncovered), keep=len(reading.touchpoints))
    customer, customers, scales = history.customer[rows], len(history.owners), history.vocabulary.scales
    sums = _sums(history, rows, code, len(groups))
    found = sums.scores(distinct(code, customer, len(groups), customers), scales)
    everybody = np.array([np.count_nonzero(np.bincount(customer, minlength=1))])
    (total,) = sums.together().scores(everybody, scales)
    on_map = [
        TouchpointScores(
            stage.stage_id, touchpoint.touchpoint_id, touchpoint.name, found[n], found[n].against(touchpoint)
        )
        for n, (stage, touchpoint) in enumerate(reading.touchpoints)
    ]
    others = [
        TouchpointScores("", "", uncovered[group - len(on_map)], found[n])
        for n, group in enumerate(groups)
        if group >= len(on_map)
    ]
    # A source that puts an id into the touchpoint's name would otherwise fill the answer with it.
    most = heapq.nlargest(MAX_UNCOVERED, others, key=lambda each: each.scores.interactions)
    return total, [*on_map, *sorted(most, key=lambda each: each.name)]


def _present(code: Ints, size: int, keep: int = 0) -> tuple[Ints, list[int]]:
    """Return codes without gaps, and what each stood for; the first `keep` stay, also where nothing has them."""
    counts = np.bincount(code, minlength=size)
    counts[:keep] = 1
    groups = np.flatnonzero(counts)
    short = np.zeros(size, np.int64)
    short[groups] = np.arange(len(groups))
    return short[code], groups.tolist()


def _rows(chosen: Flags) -> Rows:
    """Return the rows that are chosen; all of them need no copy of any column."""
    return slice(None) if chosen.all() else np.flatnonzero(chosen)


# -- by any grouping ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Axis:
    """A number per interaction, and key and name of each number."""

    code: NDArray[Any]
    labels: Sequence[tuple[str, str]]


def grouped(
    reading: Reading, selection: Selection, groupings: Sequence[Grouping], period: Period | None, limit: int
) -> tuple[list[Group], int]:
    """Return the scores of each combination that occurs, and how many the limit left out.

    Those of most interactions stay, and are given in the order of their keys. With a period, each has one entry for
    each period from the first to the last that anything of the selection happened in, also those of nothing.

    Raises:
        InvalidError: those are more than MAX_PERIODS.
    """
    rows = _rows(selection.interactions(reading))
    occurred = reading.history.interactions.occurred[rows]
    if not len(occurred):
        return [], 0
    axes = [_AXES[grouping](reading, rows) for grouping in groupings]
    code = np.zeros(len(occurred), np.int64)
    for axis in axes:
        code = code * len(axis.labels) + axis.code
    code, unique, counts = _occurring(code, math.prod(len(axis.labels) for axis in axes))
    starts, when = _periods(occurred, period)
    room = max(1, limit // len(starts))
    order = np.argsort(-counts, kind="stable")
    kept = np.sort(order[:room])
    place = np.full(len(unique), -1, np.int64)
    place[kept] = np.arange(len(kept))
    code = place[code]
    if len(kept) < len(unique):
        chosen = code >= 0
        rows, code, when = np.arange(len(reading.history.interactions))[rows][chosen], code[chosen], when[chosen]
    found = tally(reading.history, rows, code * len(starts) + when, len(kept) * len(starts))
    groups = []
    touchpoints = {t.touchpoint_id: t for _, t in reading.touchpoints}
    at_touchpoint = groupings.index(Grouping.TOUCHPOINT) if Grouping.TOUCHPOINT in groupings else None
    for n, number in enumerate(unique[kept].tolist()):
        labels: list[tuple[str, str]] = []
        for axis in reversed(axes):
            number, at = divmod(number, len(axis.labels))  # noqa: PLW2901 - what is left of it
            labels.insert(0, axis.labels[at])
        keys, names = tuple(key for key, _ in labels), tuple(name for _, name in labels)
        touchpoint = touchpoints.get(keys[at_touchpoint]) if at_touchpoint is not None else None
        for m, start in enumerate(starts):
            one = found[n * len(starts) + m]
            groups.append(Group(keys, names, start, one, one.against(touchpoint) if touchpoint else ()))
    return groups, len(unique) - len(kept)


def _occurring(code: Ints, size: int) -> tuple[Ints, Ints, Ints]:
    """Return codes without gaps, which stood for each of them, and how many there are; all are below `size`."""
    if size <= _MOST_CELLS:
        counts = np.bincount(code, minlength=size)
        unique = np.flatnonzero(counts)
        short = np.zeros(size, np.int64)
        short[unique] = np.arange(len(unique))
        return short[code], unique, counts[unique]
    # By sorting; numpy's unique hashes, which takes ten times as long where nearly all are alike.
    ordered = np.sort(code)
    edges = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))
    unique = ordered[edges]
    return np.searchsorted(unique, code), unique, np.diff(np.append(edges, len(ordered)))


def _touchpoints(reading: Reading, rows: Rows) -> _Axis:
    # The last stands for "on no map", which is where -1 leads; so with the others.
    labels = [(t.touchpoint_id, t.name) for _, t in reading.touchpoints]
    return _ending(reading.place[rows], labels)


def _stages(reading: Reading, rows: Rows) -> _Axis:
    return _ending(reading.stage[rows], [(s.stage_id, s.name) for s in reading.map_.stages])


def _personas(reading: Reading, rows: Rows) -> _Axis:
    code = reading.personas[reading.history.customer[rows]]
    return _ending(code, [(p.persona_id, p.name) for p in reading.map_.personas])


def _needs(reading: Reading, rows: Rows) -> _Axis:
    return _Axis(reading.history.need[rows], [(need, need) for need in reading.history.vocabulary.needs])


def _channels(reading: Reading, rows: Rows) -> _Axis:
    return _of_raws(reading, rows, [raw.channel.value for raw in reading.history.vocabulary.touchpoints], _channel_name)


def _sources(reading: Reading, rows: Rows) -> _Axis:
    return _of_raws(reading, rows, [raw.source for raw in reading.history.vocabulary.touchpoints], str)


def _channel_name(value: str) -> str:
    return Channel(value).name.lower().replace("_", " ")


def _ending(code: NDArray[np.int32], labels: list[tuple[str, str]]) -> _Axis:
    return _Axis(np.where(code < 0, len(labels), code), [*labels, ("", "")])


def _of_raws(reading: Reading, rows: Rows, values: Sequence[str], name: Callable[[str], str]) -> _Axis:
    known = sorted(set(values))
    numbers = {value: n for n, value in enumerate(known)}
    code = np.array([numbers[value] for value in values], np.int64)
    return _Axis(code[reading.history.interactions.touchpoint[rows]], [(value, name(value)) for value in known])


_AXES: dict[Grouping, Callable[[Reading, Rows], _Axis]] = {
    Grouping.TOUCHPOINT: _touchpoints,
    Grouping.STAGE: _stages,
    Grouping.CHANNEL: _channels,
    Grouping.PERSONA: _personas,
    Grouping.NEED: _needs,
    Grouping.SOURCE: _sources,
}


def _periods(occurred: Ints, period: Period | None) -> tuple[Sequence[datetime | None], Ints]:
    """Return when each period began, without gaps, and the number of the period of each time."""
    if period is None:
        return [None], np.zeros(len(occurred), np.int64)
    number = period_number(occurred, period)
    first, last = int(number.min()), int(number.max())
    if last - first >= MAX_PERIODS:
        raise InvalidError([Violation("period", f"a longer one, or a shorter time: there are {last - first + 1:,}")])
    return [period_start(n, period) for n in range(first, last + 1)], number - first


def period_number(moments: Ints, period: Period) -> Ints:
    """Return the number of the period that each time (microseconds, UTC) is in, counted from 1970."""
    day: Ints = moments // DAY_US
    first = int(day.min())
    # Days are few, and which period each is in takes numpy far longer to tell than where it stands among them.
    days = np.arange(first, int(day.max()) + 1)
    return _period_of_day(days, period)[day - first]


def _period_of_day(day: Ints, period: Period) -> Ints:
    times = day.view("datetime64[D]")
    match period:
        case Period.DAY:
            return day
        case Period.WEEK:
            # 1970 began on a Thursday.
            return (day + 3) // 7
        case Period.MONTH:
            return times.astype("datetime64[M]").astype(np.int64)
        case Period.QUARTER:
            return times.astype("datetime64[M]").astype(np.int64) // 3
        case Period.YEAR:
            return times.astype("datetime64[Y]").astype(np.int64)


def period_start(number: int, period: Period) -> datetime:
    """Return when a period began, UTC."""
    match period:
        case Period.DAY:
            start = np.datetime64(number, "D")
        case Period.WEEK:
            start = np.datetime64(number * 7 - 3, "D")
        case Period.MONTH:
            start = np.datetime64(number, "M")
        case Period.QUARTER:
            start = np.datetime64(number * 3, "M")
        case Period.YEAR:
            start = np.datetime64(number, "Y")
    return moment_of(int(start.astype("datetime64[us]").astype(np.int64)))
