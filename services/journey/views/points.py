"""Experience points: what hurts, what customers wish for, what delights, where, and what it costs."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from recorrido.inference.v1.events import PointKind
from recorrido.ingest.v1.events import Interaction, InteractionRecorded, RatingMetric, Verbatim
from services.foundation.masking import Masker, Pii
from services.journey.domain import intervals
from services.journey.domain.history import DAY_US, Flags, Index, Ints, microseconds
from services.journey.domain.intervals import Interval, Sample
from services.journey.domain.reading import Reading
from services.journey.views.money import YEAR_US, Amount, amount, spent
from services.journey.views.scores import EventRange
from services.journey.views.selection import Selection

KINDS = (PointKind.PAIN, PointKind.ITCH, PointKind.DELIGHT)
DEFAULT_TREND_DAYS = 30
#: Examples shown of each point, and how many are looked through for them: of those erased no words are left.
EXAMPLES = 3
_LOOKED_THROUGH = 5
#: Drivers given of each metric.
_DRIVERS = 10

_MASK = Masker(tuple(Pii))
_DECODE = msgspec.json.Decoder(InteractionRecorded).decode


@dataclass(frozen=True, slots=True)
class Trend:
    """Parts of the customers heard, 0 to 1, in the days before and in those since; `interval` is of the difference."""

    before: float
    since: float
    interval: Interval
    heard_before: int
    heard_since: int


@dataclass(frozen=True, slots=True)
class Point:
    """`share` is the part of all customers who said anything in words, 0 to 1; `mean_sentiment` is -1 to 1.

    `touchpoint_id` is empty, and the name the raw one, where the map does not place it. `example_positions`
    are of interactions, newest first, each of another customer, whose words may be shown.
    """

    kind: PointKind
    need_path: str
    touchpoint_id: str
    touchpoint_name: str
    customers: int
    mentions: int
    share: float
    interval: Interval
    mean_sentiment: float
    severity: float
    money_at_stake: tuple[Amount, ...]
    trend: Trend | None
    events: EventRange
    example_positions: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Driver:
    """How answers differ between interactions whose words tell of a need and those whose words do not.

    `difference` is in points of the metric's scale, `effect` is Hedges' g, `share` the part of the rated words.
    """

    need_path: str
    metric: RatingMetric
    difference: float
    effect: float
    interval: Interval
    with_need: int
    without_need: int
    share: float


@dataclass(frozen=True, slots=True)
class UnknownNeed:
    """What was told of needs that are not known, at all touchpoints together; `share` is as in Point."""

    kind: PointKind
    customers: int
    mentions: int
    share: float


@dataclass(frozen=True, slots=True)
class Points:
    """Points about a known need, those of the most customers first, then those about none that is known.

    `heard` counts customers who said anything in words.
    """

    points: Sequence[Point]
    drivers: Sequence[Driver]
    heard: int
    unknown: Sequence[UnknownNeed]


def points(
    reading: Reading,
    selection: Selection,
    *,
    kinds: Sequence[PointKind],
    limit: int,
    moment: int,
    trend_days: int = DEFAULT_TREND_DAYS,
    quotable: Flags | None = None,
) -> Points:
    """Return the points of `kinds` by need and touchpoint, as they stand at `moment` (microseconds).

    `quotable` tells of each number of a customer id whether its words may be examples; None: they may.
    """
    history = reading.history
    table = history.interactions
    chosen = selection.interactions(reading)
    heard = history.customers_of(chosen & table.has_words)
    rows = np.flatnonzero(chosen & np.isin(history.point, [kind.number for kind in kinds]))
    groups = _groups(reading, rows)
    until = moment if selection.until is None else min(moment, microseconds(selection.until))
    trends = _Trends(reading, chosen & table.has_words, until, trend_days)
    money = spent(history, since=moment - YEAR_US, until=moment)
    ranked = []
    for key, members in groups:
        customers = np.unique(history.customer[members])
        # What nobody can act on stays behind what somebody can, however many told of it.
        ranked.append(((not key[1], -len(customers), -len(members), key), members, customers))
    ranked.sort(key=lambda each: each[0])
    found = [
        _point(
            reading,
            key,
            members,
            customers,
            heard=len(heard),
            trends=trends,
            money=money,
            shown=members if quotable is None else members[quotable[table.customer[members]]],
        )
        for (*_, key), members, customers in ranked[:limit]
    ]
    return Points(found, drivers(reading, chosen), len(heard), _unknown(reading, rows, kinds, len(heard)))


def _unknown(reading: Reading, rows: Ints, kinds: Sequence[PointKind], heard: int) -> list[UnknownNeed]:
    history = reading.history
    # The first need is the unknown one.
    rows = rows[history.need[rows] == 0]
    found = []
    for kind in kinds:
        members = rows[history.point[rows] == kind.number]
        customers = len(np.unique(history.customer[members]))
        if customers:
            found.append(UnknownNeed(kind, customers, len(members), customers / max(heard, customers)))
    return found


_Key = tuple[int, str, str, str]


def _groups(reading: Reading, rows: Ints) -> list[tuple[_Key, Ints]]:
    """Return rows by kind, need, touchpoint id and, where the map does not place it, raw name."""
    if not len(rows):
        return []
    history = reading.history
    raws = history.vocabulary.touchpoints
    names = sorted({raw.touchpoint for raw in raws})
    numbers = {name: n for n, name in enumerate(names)}
    by_raw = np.array([numbers[raw.touchpoint] for raw in raws], np.int64)
    on_map = len(reading.touchpoints)
    place = reading.place[rows].astype(np.int64)
    where = np.where(place >= 0, place, on_map + by_raw[history.interactions.touchpoint[rows]])
    size = on_map + len(names)
    needs = history.vocabulary.needs
    code = (history.point[rows].astype(np.int64) * len(needs) + history.need[rows]) * size + where
    order = np.argsort(code, kind="stable")
    unique, starts = np.unique(code[order], return_index=True)
    found = []
    for number, members in zip(unique.tolist(), np.split(rows[order], starts[1:]), strict=True):
        rest, at = divmod(number, size)
        kind, need = divmod(rest, len(needs))
        placed = at < on_map
        touchpoint_id = reading.touchpoints[at][1].touchpoint_id if placed else ""
        found.append(((kind, needs[need], touchpoint_id, "" if placed else names[at - on_map]), members))
    return found


def _point(
    reading: Reading,
    key: _Key,
    members: Ints,
    customers: Index,
    *,
    heard: int,
    trends: "_Trends",
    money: Any,
    shown: Ints,
) -> Point:
    history = reading.history
    number, need_path, touchpoint_id, raw_name = key
    kind = PointKind.from_number(number)
    score = history.score[members]
    strength = np.clip(score if kind is PointKind.DELIGHT else -score, 0, 1)
    newest = shown[np.argsort(history.interactions.occurred[shown], kind="stable")][::-1]
    # What each customer said last.
    newest = newest[np.sort(np.unique(history.customer[newest], return_index=True)[1])[:_LOOKED_THROUGH]]
    at_stake = {currency: int(total[customers].sum()) for currency, total in money.items()}
    positions = history.interactions.position[members]
    analysed = history.analyses.position[history.analysis[members]]
    names = {t.touchpoint_id: t.name for _, t in reading.touchpoints}
    everyone = max(heard, len(customers))
    return Point(
        kind=kind,
        need_path=need_path,
        touchpoint_id=touchpoint_id,
        touchpoint_name=names[touchpoint_id] if touchpoint_id else raw_name,
        customers=len(customers),
        mentions=len(members),
        share=len(customers) / everyone,
        interval=intervals.proportion(len(customers), everyone),
        mean_sentiment=float(score.mean()),
        severity=float(strength.mean()),
        money_at_stake=tuple(amount(currency, units) for currency, units in sorted(at_stake.items()) if units),
        trend=trends.of(members),
        events=EventRange(int(positions.min()), int(max(positions.max(), analysed.max())), 2 * len(members)),
        example_positions=tuple(history.interactions.position[newest].tolist()),
    )


class _Trends:
    """Shares of the customers heard in the last days, and in as many days before them."""

    def __init__(self, reading: Reading, heard: Flags, until: int, days: int) -> None:
        self._history = reading.history
        occurred = self._history.interactions.occurred
        span = (days or DEFAULT_TREND_DAYS) * DAY_US
        self._since = (occurred > until - span) & (occurred <= until)
        self._before = (occurred > until - 2 * span) & (occurred <= until - span)
        self._heard_since = len(self._history.customers_of(heard & self._since))
        self._heard_before = len(self._history.customers_of(heard & self._before))

    def of(self, members: Ints) -> Trend | None:
        now = len(np.unique(self._history.customer[members[self._since[members]]]))
        then = len(np.unique(self._history.customer[members[self._before[members]]]))
        heard, heard_before = max(self._heard_since, now), max(self._heard_before, then)
        if not heard or not heard_before:
            return None
        interval = intervals.difference(now, heard, then, heard_before)
        return Trend(then / heard_before, now / heard, interval, heard_before, heard)


def drivers(reading: Reading, chosen: Flags) -> list[Driver]:
    """Return which needs go with other answers, for each metric those of the strongest effect."""
    history = reading.history
    needs = history.vocabulary.needs
    found: list[Driver] = []
    for metric, column in history.answers.items():
        rows = np.flatnonzero(chosen & (column >= 0) & (history.analysis >= 0))
        value, need = column[rows].astype(np.float64), history.need[rows]
        counts = np.bincount(need, minlength=len(needs))
        totals = np.bincount(need, value, minlength=len(needs))
        squares = np.bincount(need, value * value, minlength=len(needs))
        all_of_them = Sample(len(rows), float(totals.sum()), float(squares.sum()))
        mine: list[Driver] = []
        for n, path in enumerate(needs):
            one = Sample(int(counts[n]), float(totals[n]), float(squares[n]))
            other = Sample(
                all_of_them.count - one.count, all_of_them.total - one.total, all_of_them.squares - one.squares
            )
            # The first need is the unknown one.
            if n == 0 or one.count < 2 or other.count < 2:
                continue
            effect = intervals.hedges_g(one, other)
            if effect is not None:
                difference, share = one.mean - other.mean, one.count / all_of_them.count
                mine.append(Driver(path, metric, difference, *effect, one.count, other.count, share))
        mine.sort(key=lambda each: (-abs(each.effect), each.need_path))
        found += mine[:_DRIVERS]
    return found


async def words(connection: Any, wanted: Sequence[Point]) -> list[tuple[str, ...]]:
    """Return the examples of each point, newest first, EXAMPLES at most; of an erased customer nothing is left.

    More people read them than the customer wrote to, so personal data is masked, also where the front door keeps it.
    """
    rows = await connection.fetch(
        "SELECT position, body FROM interaction WHERE position = ANY($1::bigint[]) AND has_words",
        [position for point in wanted for position in point.example_positions],
    )
    texts = await asyncio.to_thread(lambda: {row["position"]: _MASK.text(_text(row["body"])) for row in rows})
    return [
        tuple([text for position in point.example_positions if (text := texts.get(position))][:EXAMPLES])
        for point in wanted
    ]


def _text(body: bytes) -> str:
    interaction = _DECODE(body).interaction or Interaction()
    return (interaction.verbatim or Verbatim()).text
