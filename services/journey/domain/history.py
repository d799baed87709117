"""The history as columns: one array per thing that is known of every interaction, in the order of the store.

A `History` is what was known up to a position of the store, so every answer is a function of a prefix of each column
and exact as of any time. Nothing here depends on a journey map; `domain.reading` reads a history by one.

Times are microseconds since 1970 (UTC), -1 or 0 stand for "none" where it says so. Arrays are never written to.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from recorrido.inference.v1.events import PointKind, Sentiment
from recorrido.ingest.v1.events import Channel, Outcome, RatingMetric, ReferralDirection
from services.foundation.scales import SCALES
from services.journey.domain.signals import HIGHEST_BAD_SENTIMENT

Ints = NDArray[np.int64]
Index = NDArray[np.int32]
Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

DAY_US = 86_400_000_000
HOUR_US = 3_600_000_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

#: What a moment is worth that nothing but its outcome tells of, on the scale from -1 to 1.
BAD_OUTCOMES = {Outcome.FAILED: -1.0, Outcome.ABANDONED: -0.5, Outcome.LATE: -0.5}


def microseconds(moment: datetime) -> int:
    """Return a time as the columns hold it."""
    return (moment - _EPOCH) // timedelta(microseconds=1)


def moment_of(value: int) -> datetime:
    """Return a time that the columns hold."""
    return _EPOCH + timedelta(microseconds=int(value))


def stable_order(keys: NDArray[np.integer[Any]]) -> Ints:
    """Return in which order whole numbers ascend, equal ones in the order in which they stand.

    Digit by digit, from the lowest: numpy sorts numbers of 16 bits by counting, and larger ones by comparing, which
    takes two to six times as long (D. E. Knuth, "The Art of Computer Programming" 3, 5.2.5, algorithm R).
    """
    order: Ints = np.arange(len(keys))
    if not len(keys):
        return order
    rest = (keys.astype(np.int64) - int(keys.min())).astype(np.uint64)
    while True:
        digit = rest.astype(np.uint16)
        order = order[np.argsort(digit[order], kind="stable")]
        rest >>= np.uint64(16)
        if not rest.any():
            return order


@dataclass(frozen=True)
class Table:
    """Columns of equal length, in the order of `position`. `recorded` is microseconds."""

    position: Ints
    recorded: Ints

    def __len__(self) -> int:
        return len(self.position)

    def before(self, cut: int) -> Self:
        """Return the rows whose events stand before `cut` in the store."""
        end = int(np.searchsorted(self.position, cut))
        return type(self)(**{each.name: getattr(self, each.name)[:end] for each in fields(self)})

    def take(self, rows: Ints) -> Self:
        """Return these rows only."""
        return type(self)(**{each.name: getattr(self, each.name)[rows] for each in fields(self)})


@dataclass(frozen=True)
class Interactions(Table):
    """One row per interaction. Numbers of customers, touchpoints and so on lead into the lists of `Vocabulary`.

    `nps`, `csat`, `ces`: -1 where there is none. `amount` is in ten-thousandths of `currency`. `episode`: a hash of the
    explicit id, 0 where there is none. `kind`, `outcome`, `referral`: numbers of the contract.
    """

    occurred: Ints
    customer: Index
    touchpoint: Index
    profile: Index
    amount: Ints
    episode: Ints
    currency: NDArray[np.int16]
    kind: NDArray[np.int8]
    nps: NDArray[np.int8]
    csat: NDArray[np.int8]
    ces: NDArray[np.int8]
    outcome: NDArray[np.int8]
    referral: NDArray[np.int8]
    has_words: Flags


@dataclass(frozen=True)
class Analyses(Table):
    """One row per analysis. `interaction` is a row of `Interactions`."""

    interaction: Index
    need: Index
    score: Floats
    sentiment: NDArray[np.int8]
    point: NDArray[np.int8]
    failed: Flags
    corrected: Flags


@dataclass(frozen=True)
class Ratings(Table):
    """One row per answer on a scale of the company's own."""

    interaction: Index
    scale: Index
    value: Floats


@dataclass(frozen=True)
class Links(Table):
    """One row per change of whose an identity is; `customer` -1: nobody's."""

    identity: Index
    customer: Index


@dataclass(frozen=True)
class Marks(Table):
    """One row per signal, or per change of an action. `customer` -1: of no single one."""

    customer: Index


@dataclass(frozen=True, slots=True)
class RawTouchpoint:
    """A touchpoint as its source names it."""

    source: str
    touchpoint: str
    channel: Channel


@dataclass(frozen=True, slots=True)
class Scale:
    """A scale of the company's own, bounds inclusive."""

    name: str
    lowest: float
    highest: float


@dataclass
class Vocabulary:
    """What the numbers in the columns mean. It only grows, so every history may share it.

    `customers` are keys of the read model's names. Number 0 of `needs` is the unknown one, of `profiles` the empty one.
    """

    customers: list[int] = field(default_factory=list)
    touchpoints: list[RawTouchpoint] = field(default_factory=list)
    needs: list[str] = field(default_factory=lambda: [""])
    profiles: list[Mapping[str, str]] = field(default_factory=lambda: [{}])
    scales: list[Scale] = field(default_factory=list)


@dataclass(frozen=True)
class Told:
    """Interactions that tell of one thing, in the order in which they happened.

    `rank` is the place of each among all interactions in that order, `row` its row, `customer` whose it is.
    """

    rank: Ints
    row: Ints
    customer: Index

    def between(self, start: int, end: int) -> "Told":
        """Return those of rank `start` to `end` - 1."""
        first, last = (int(n) for n in np.searchsorted(self.rank, [start, end]))
        return Told(self.rank[first:last], self.row[first:last], self.customer[first:last])


@dataclass(frozen=True)
class History:
    """What was known before the store position `cut`."""

    cut: int
    vocabulary: Vocabulary
    interactions: Interactions
    analyses: Analyses
    ratings: Ratings
    links: Links
    signals: Marks
    actions: Marks
    erasures: Table

    @property
    def last_recorded(self) -> int:
        """Return when the last of it was recorded, in microseconds; 0 where there is nothing.

        An erasure was recorded after all that it took away, so this does not go back when the last event is erased.
        """
        tables = (self.interactions, self.analyses, self.links, self.signals, self.actions, self.erasures)
        return max((int(table.recorded.max()) for table in tables if len(table)), default=0)

    @cached_property
    def owners(self) -> Index:
        """Return, for each number of a customer id, the number of whose it is: its own, unless it is linked."""
        owners = np.arange(len(self.vocabulary.customers), dtype=np.int32)
        # Of several changes of an identity the last one counts: numpy assigns in order.
        nobody = self.links.customer < 0
        owners[self.links.identity] = np.where(nobody, self.links.identity, self.links.customer)
        return owners

    @cached_property
    def customer(self) -> Index:
        """Return whose each interaction is, links followed."""
        return self.owners[self.interactions.customer]

    def customers_of(self, rows: Ints | Flags) -> Index:
        """Return the numbers of the customers of these interactions, each once, in order."""
        there = np.zeros(len(self.owners), bool)
        there[self.customer[rows]] = True
        return np.flatnonzero(there).astype(np.int32)

    @cached_property
    def first_seen(self) -> Ints:
        """Return when the first interaction of each customer happened; the largest number where there is none."""
        first = np.full(len(self.owners), np.iinfo(np.int64).max)
        backwards = self.by_time[::-1]
        first[self.customer[backwards]] = self.times[::-1]
        return first

    @cached_property
    def analysis(self) -> Index:
        """Return, for each interaction, the row of the analysis that counts, -1 where there is none.

        It is the last that a person made, else the last that a model made.
        """
        made = self._last(~self.analyses.failed & ~self.analyses.corrected)
        if not self.analyses.corrected.any():
            return made
        judged = self._last(self.analyses.corrected)
        return np.where(judged >= 0, judged, made)

    @cached_property
    def failure(self) -> Index:
        """Return, for each interaction, the row of the failure that counts, -1 where none does."""
        return np.where(self.analysis < 0, self._last(self.analyses.failed), np.int32(-1))

    def _last(self, chosen: Flags) -> Index:
        rows = np.flatnonzero(chosen)
        last = np.full(len(self.interactions), -1, np.int32)
        last[self.analyses.interaction[rows]] = rows
        return last

    def of_analysis(self, column: NDArray[Any], default: Any) -> NDArray[Any]:
        """Return a column of the analyses, for each interaction; `default` where it has none."""
        known = self.analysis >= 0
        spread = np.full(len(self.interactions), default, column.dtype)
        spread[known] = column[self.analysis[known]]
        return spread

    @cached_property
    def need(self) -> Index:
        """Return the need that each interaction's words told of, 0 where they told of none."""
        return self.of_analysis(self.analyses.need, 0)

    @cached_property
    def point(self) -> NDArray[np.int8]:
        return self.of_analysis(self.analyses.point, 0)

    @cached_property
    def sentiment(self) -> NDArray[np.int8]:
        return self.of_analysis(self.analyses.sentiment, 0)

    @cached_property
    def score(self) -> Floats:
        """Return the sentiment of each interaction's words, NaN where there is none."""
        return self.of_analysis(self.analyses.score, np.nan)

    @cached_property
    def heard(self) -> Flags:
        """Return in which interactions customers told something: a rating, on whatever scale, or words."""
        return self.rated | self.interactions.has_words

    @cached_property
    def rated(self) -> Flags:
        """Return which interactions hold a rating, on whatever scale."""
        rows = self.interactions
        rated: Flags = (rows.nps >= 0) | (rows.csat >= 0) | (rows.ces >= 0)
        rated[self.ratings.interaction] = True
        return rated

    @property
    def answers(self) -> Mapping[RatingMetric, NDArray[np.int8]]:
        """Return the answers on each standard scale, -1 where there is none."""
        rows = self.interactions
        return {RatingMetric.NPS: rows.nps, RatingMetric.CSAT: rows.csat, RatingMetric.CES: rows.ces}

    @cached_property
    def bad(self) -> Flags:
        """Return which interactions were bad moments, by the rule `bad_moment` (`domain.signals`)."""
        bad: Flags = self.interactions.outcome == Outcome.FAILED.number
        for metric, column in self.answers.items():
            bad |= (column >= 0) & (column <= SCALES[metric].highest_bad)
        hurt = (self.point == PointKind.PAIN.number) & (self.sentiment == Sentiment.NEGATIVE.number)
        bad |= hurt & (self.score <= HIGHEST_BAD_SENTIMENT)
        return bad

    @cached_property
    def glad(self) -> Flags:
        """Return which interactions were glad moments: a promoter, a top box, or words of delight; and nothing bad."""
        glad = np.zeros(len(self.interactions), bool)
        for metric, column in self.answers.items():
            glad |= column >= SCALES[metric].lowest_good
        delight = (self.point == PointKind.DELIGHT.number) & (self.sentiment == Sentiment.POSITIVE.number)
        glad |= delight & (self.score >= -HIGHEST_BAD_SENTIMENT)
        return glad & ~self.bad

    @cached_property
    def felt(self) -> Floats:
        """Return how each interaction felt, from -1 to 1; NaN where nothing tells.

        Answers are put on that range by their scale's bounds, words by their sentiment; of several the mean. Where
        there is neither, an outcome that is bad tells.
        """
        rows = self.interactions
        told = [self.score]
        for metric, column in self.answers.items():
            lowest, highest = SCALES[metric].lowest, SCALES[metric].highest
            told.append(np.where(column < 0, np.nan, (2.0 * column - highest - lowest) / (highest - lowest)))
        count = sum((~np.isnan(column)).astype(np.int64) for column in told)
        total = sum(np.nan_to_num(column) for column in told)
        felt = np.full(len(rows), np.nan)
        np.divide(total, count, out=felt, where=np.asarray(count) > 0)
        for outcome, value in BAD_OUTCOMES.items():
            felt[np.isnan(felt) & (rows.outcome == outcome.number)] = value
        return felt

    @cached_property
    def by_time(self) -> Ints:
        """Return the rows of interactions in the order in which they happened."""
        return stable_order(self.interactions.occurred)

    @cached_property
    def times(self) -> Ints:
        """Return when interactions happened, in that order."""
        return self.interactions.occurred[self.by_time]

    @cached_property
    def told(self) -> Mapping[str, Told]:
        """Return which interactions answered NPS and CSAT, were bad and glad moments, purchases, recommendations.

        Few of all do, so who looks at many times passes over these.
        """
        table = self.interactions
        telling = {
            "nps": table.nps >= 0,
            "csat": table.csat >= 0,
            "bad": self.bad,
            "glad": self.glad,
            "purchase": table.amount > 0,
            "referral": table.referral == ReferralDirection.GIVEN.number,
        }
        found = {}
        for name, flags in telling.items():
            rank = np.flatnonzero(flags[self.by_time])
            row = self.by_time[rank]
            found[name] = Told(rank, row, self.customer[row])
        return found

    @cached_property
    def order(self) -> Ints:
        """Return the rows of interactions by customer, and of each in the order in which it happened."""
        return self.by_time[stable_order(self.customer[self.by_time])]

    def of_customer(self, customer: int) -> "History":
        """Return the history of one customer, whose number in it is 0, under all their identities.

        It knows nothing of links, signals, actions and erasures.
        """
        theirs = np.zeros(len(self.owners), bool)
        theirs[self.owners == customer] = True
        mine = theirs[self.interactions.customer]
        rows = np.flatnonzero(mine)
        number = np.full(len(self.interactions), -1, np.int32)
        number[rows] = np.arange(len(rows), dtype=np.int32)
        interactions = self.interactions.take(rows)
        analyses = self.analyses.take(np.flatnonzero(mine[self.analyses.interaction]))
        ratings = self.ratings.take(np.flatnonzero(mine[self.ratings.interaction]))
        known = self.vocabulary
        return History(
            self.cut,
            Vocabulary([known.customers[customer]], known.touchpoints, known.needs, known.profiles, known.scales),
            replace(interactions, customer=np.zeros(len(rows), np.int32)),
            replace(analyses, interaction=number[analyses.interaction]),
            replace(ratings, interaction=number[ratings.interaction]),
            self.links.take(np.empty(0, np.int64)),
            self.signals.take(np.empty(0, np.int64)),
            self.actions.take(np.empty(0, np.int64)),
            self.erasures.take(np.empty(0, np.int64)),
        )
