"""The projection: what happened, what was made of it, and what was done, as rows that never change.

Each row stands at the `position` of its event in the store, so what was known at any earlier time is the rows before a
position. Everything is a function of the history alone: rows are the same however the history was cut into batches and
whoever wrote them. What depends on a map, on links or on a time is not written at all: it is reckoned when it is asked
for, over columns of these rows (`views.columns`).
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from itertools import chain
from typing import Any, TypeAlias

import msgspec

from recorrido.actions.v1.events import (
    ActionAccepted,
    ActionCompleted,
    ActionDeclined,
    ActionOpened,
    ActionReopened,
    ActionStarted,
    ActionState,
    ActionVerified,
    CustomerContacted,
    RemedyOffered,
)
from recorrido.inference.v1.events import Analysis, AnalysisCorrected, FeedbackAnalysisFailed, FeedbackAnalyzed
from recorrido.ingest.v1.events import (
    Channel,
    Customer,
    CustomerAnonymized,
    IdentityLinked,
    IdentityUnlinked,
    Interaction,
    InteractionRecorded,
    RatingMetric,
    Referral,
    Verbatim,
)
from recorrido.journey.v1.events import JourneyMapPublished, SignalRaised
from services.foundation.events import Event, Recorded
from services.foundation.projection import Fact, in_order, storable, uuid_of
from services.foundation.scales import SCALES, answer
from services.foundation.sharing import partition_of
from services.journey.domain.personas import customer_attributes
from services.journey.views import erasure, names
from services.journey.views.names import Kind, Name, Names

DDL = """
-- One per version; body is the map's proto JSON.
CREATE TABLE journey_map (
    map_id text COLLATE "C" NOT NULL,
    version int NOT NULL,
    position bigint NOT NULL,
    recorded_at timestamptz NOT NULL,
    actor text NOT NULL,
    body bytea NOT NULL,
    PRIMARY KEY (map_id, version)
);

-- Keys are those of `name`; 0 is none. The answers are those on the standard scales, -1 where there is none. Amounts
-- are in ten-thousandths; a currency is its three letters read as a number of base 26, plus 1. Body is the event's
-- proto JSON, as recorded.
CREATE TABLE interaction (
    position bigint PRIMARY KEY,
    recorded_at timestamptz NOT NULL,
    occurred_at timestamptz NOT NULL,
    customer bigint NOT NULL,
    touchpoint bigint NOT NULL,
    profile bigint NOT NULL,
    amount bigint NOT NULL,
    currency smallint NOT NULL,
    kind smallint NOT NULL,
    nps smallint NOT NULL,
    csat smallint NOT NULL,
    ces smallint NOT NULL,
    outcome smallint NOT NULL,
    referral smallint NOT NULL,
    has_words boolean NOT NULL,
    partition smallint NOT NULL,
    event_id uuid NOT NULL,
    episode_id text COLLATE "C" NOT NULL,
    body bytea NOT NULL
);
-- From an analysis or a repetition to the interaction, both in its stream, so in its partition. What belongs to a
-- customer is found in the columns.
CREATE UNIQUE INDEX ON interaction (event_id, partition);

-- Answers on scales of the company's own; `interaction` is its position.
CREATE TABLE rating (
    interaction bigint NOT NULL,
    scale bigint NOT NULL,
    value double precision NOT NULL,
    PRIMARY KEY (interaction, scale)
);

-- What was made of an interaction's words: an analysis counts until a later one, a failure (its reason is in `failure`)
-- while there is no analysis, and a person's correction before all that models said. Body is the analysis' proto JSON.
CREATE TABLE analysis (
    position bigint PRIMARY KEY,
    recorded_at timestamptz NOT NULL,
    interaction bigint NOT NULL,
    need bigint NOT NULL,
    sentiment_score double precision NOT NULL,
    sentiment smallint NOT NULL,
    point smallint NOT NULL,
    failed boolean NOT NULL,
    corrected boolean NOT NULL,
    failure text NOT NULL,
    body bytea NOT NULL
);

-- Whose an identity is from then on; `customer` 0: nobody's.
CREATE TABLE identity_link (
    position bigint PRIMARY KEY,
    recorded_at timestamptz NOT NULL,
    identity bigint NOT NULL,
    customer bigint NOT NULL
);

-- Body is the event's proto JSON.
CREATE TABLE signal (
    position bigint PRIMARY KEY,
    recorded_at timestamptz NOT NULL,
    customer bigint NOT NULL,
    rule text COLLATE "C" NOT NULL,
    signal_id text COLLATE "C" NOT NULL UNIQUE,
    body bytea NOT NULL
);
-- Newest first, of one rule.
CREATE INDEX ON signal (rule, position);

-- From an event to the signals that it is evidence of.
CREATE TABLE signal_evidence (
    event_id uuid NOT NULL,
    signal_id text COLLATE "C" NOT NULL,
    PRIMARY KEY (event_id, signal_id)
);

-- What became of an action: a row per change. `customer` 0: of no single one; what a change does not tell is empty.
-- `state` 0: it was opened again.
CREATE TABLE action_change (
    position bigint PRIMARY KEY,
    recorded_at timestamptz NOT NULL,
    customer bigint NOT NULL,
    action_id text COLLATE "C" NOT NULL,
    kind smallint NOT NULL,
    state smallint NOT NULL,
    result smallint NOT NULL,
    title text NOT NULL,
    signal_id text COLLATE "C" NOT NULL
);
-- From an action to what became of it.
CREATE INDEX ON action_change (action_id);
"""

#: Events of one transaction, where so many are there: with a quarter of them the waiting in between is felt.
BATCH = 4_000

AMOUNT_UNITS = 10_000

#: Where an action stands after each change of it; UNSPECIFIED: what it was before tells.
ACTION_STATES: dict[type[Event], ActionState] = {
    ActionAccepted: ActionState.ACCEPTED,
    ActionDeclined: ActionState.DECLINED,
    ActionStarted: ActionState.IN_PROGRESS,
    CustomerContacted: ActionState.IN_PROGRESS,
    RemedyOffered: ActionState.REMEDIED,
    ActionCompleted: ActionState.COMPLETED,
    ActionVerified: ActionState.VERIFIED,
    ActionReopened: ActionState.UNSPECIFIED,
}

_ENCODE = msgspec.json.Encoder().encode


class JourneyProjection:
    """Folds the history into the tables above."""

    name = "journey"
    types: Sequence[type[Event]] = (
        InteractionRecorded,
        FeedbackAnalyzed,
        FeedbackAnalysisFailed,
        AnalysisCorrected,
        JourneyMapPublished,
        SignalRaised,
        IdentityLinked,
        IdentityUnlinked,
        ActionOpened,
        *ACTION_STATES,
        CustomerAnonymized,
    )
    ddl = names.DDL + DDL + erasure.DDL

    together = CustomerAnonymized

    def __init__(self) -> None:
        self._names = Names()

    def forget(self) -> None:
        """Drop the names that are remembered: they may have been erased, or what wrote them was rolled back."""
        self._names.forget()

    async def apply(self, connection: Any, facts: Sequence[Fact]) -> None:
        """Insert a batch; what was inserted before stays as it is, but for what was erased."""
        try:
            await in_order(connection, facts, CustomerAnonymized, self._add, forget=self._forget, leave=self._leave)
        except BaseException:
            self.forget()
            raise

    async def _forget(self, connection: Any, fact: Fact) -> None:
        self.forget()
        await erasure.forget(connection, fact)

    async def _leave(self, connection: Any, fact: Fact) -> None:
        left = erasure.in_their_place(fact)
        try:
            await self._add(connection, left)
            await erasure.mark(connection, fact, left)
        except BaseException:
            # What was named meanwhile is rolled back.
            self.forget()
            raise

    async def _add(self, connection: Any, facts: Sequence[Fact]) -> None:
        by_type: dict[type[Event], list[Fact]] = {}
        for fact in facts:
            by_type.setdefault(type(fact.event), []).append(fact)

        def of(*types: type[Event]) -> list[Fact]:
            return [fact for each in types for fact in by_type.get(each, ())]

        about = of(FeedbackAnalyzed, FeedbackAnalysisFailed, AnalysisCorrected)
        told, analyses = await _placed(connection, of(InteractionRecorded), about)
        maps = [fact for fact in of(JourneyMapPublished) if fact.event.map is not None]
        links = [fact for fact in of(IdentityLinked, IdentityUnlinked) if fact.event.identity_customer_id]
        signals = of(SignalRaised)
        actions = of(ActionOpened, *ACTION_STATES)
        # All names at once, before anything else: two writers never wait for each other in a circle.
        keys = await self._names.keys(
            connection,
            chain(
                chain.from_iterable(map(_interaction_names, told)),
                chain.from_iterable(map(_analysis_names, analyses)),
                chain.from_iterable(_link_names(fact.event) for fact in links),
                (_customer(fact.event.customer_id) for fact in signals if fact.event.customer_id),
                (_customer(fact.event.customer_id) for fact in of(ActionOpened) if fact.event.customer_id),
            ),
        )
        await _insert_interactions(connection, told, keys)
        await _insert_analyses(connection, analyses, keys)
        await _insert_maps(connection, maps)
        await _insert_links(connection, links, keys)
        await _insert_signals(connection, signals, keys)
        await _insert_actions(connection, actions, keys)


Keys: TypeAlias = Mapping[Name, int]


@dataclass(frozen=True, slots=True)
class _Told:
    """An interaction that is not in the rows yet."""

    recorded: Recorded
    partition: int
    interaction: Interaction
    touchpoint: str
    profile: str


@dataclass(frozen=True, slots=True)
class _Analysed:
    """What was made of the interaction at a position."""

    fact: Fact
    interaction: int
    analysis: Analysis


async def _placed(
    connection: Any, interactions: Sequence[Fact], about: Sequence[Fact]
) -> tuple[list[_Told], list[_Analysed]]:
    """Return the interactions that are not in the rows, each once, and the analyses of any that are or will be.

    A history may hold an event twice. An analysis stands in its interaction's stream, behind it; one that does not can
    be no interaction's.
    """
    asked = {fact.recorded.position: uuid_of(fact.event.interaction_event_id) for fact in about}
    event_ids = {fact.recorded.event_id for fact in interactions}
    rows = await connection.fetch(
        "SELECT event_id, partition, position FROM interaction WHERE event_id = ANY($1::uuid[])",
        [*event_ids, *({each for each in asked.values() if each is not None} - event_ids)],
    )
    positions = {(row["event_id"], row["partition"]): row["position"] for row in rows}
    told = []
    for fact in interactions:
        partition = partition_of(fact.recorded.stream)
        if (fact.recorded.event_id, partition) not in positions:
            positions[fact.recorded.event_id, partition] = fact.recorded.position
            interaction = fact.event.interaction or Interaction()
            told.append(_Told(fact.recorded, partition, interaction, _touchpoint(interaction), _profile(interaction)))
    analyses = []
    for fact in about:
        key = asked[fact.recorded.position], partition_of(fact.recorded.stream)
        position = positions.get(key)
        if position is not None and position < fact.recorded.position:
            analyses.append(_Analysed(fact, position, _analysis(fact)))
    analyses.sort(key=lambda each: each.fact.recorded.position)
    return told, analyses


def _interaction_names(told: _Told) -> Iterator[Name]:
    yield _customer(_customer_id(told.interaction))
    yield Kind.TOUCHPOINT, told.touchpoint
    if told.profile:
        yield Kind.PROFILE, told.profile
    for rating in told.interaction.ratings:
        if rating.metric is RatingMetric.CUSTOM:
            yield Kind.SCALE, _scale(rating)


def _analysis_names(analysed: _Analysed) -> Iterator[Name]:
    if analysed.analysis.need_path:
        yield Kind.NEED, storable(analysed.analysis.need_path)


def _link_names(change: IdentityLinked | IdentityUnlinked) -> Iterator[Name]:
    yield _customer(change.identity_customer_id)
    if owner := _owner(change):
        yield _customer(owner)


async def _insert_interactions(connection: Any, several: Sequence[_Told], keys: Keys) -> None:
    if several:
        await connection.copy_records_to_table(
            "interaction", records=[_interaction_row(each, keys) for each in several]
        )
    own = {
        (told.recorded.position, keys[Kind.SCALE, _scale(rating)]): rating.value
        for told in several
        for rating in told.interaction.ratings
        if rating.metric is RatingMetric.CUSTOM
    }
    if own:
        await connection.copy_records_to_table(
            "rating", records=[(position, scale, value) for (position, scale), value in own.items()]
        )


def _interaction_row(told: _Told, keys: Keys) -> tuple[Any, ...]:
    recorded, interaction = told.recorded, told.interaction
    return (
        recorded.position,
        recorded.recorded_at,
        interaction.occurred_at or recorded.recorded_at,
        keys[_customer(_customer_id(interaction))],
        keys[Kind.TOUCHPOINT, told.touchpoint],
        keys[Kind.PROFILE, told.profile] if told.profile else 0,
        *_money(interaction),
        (interaction.customer or Customer()).kind.number,
        *(_answer(interaction, metric) for metric in SCALES),
        interaction.outcome.number,
        (interaction.referral or Referral()).direction.number,
        bool((interaction.verbatim or Verbatim()).text),
        told.partition,
        recorded.event_id,
        storable(interaction.episode_id),
        recorded.data,
    )


async def _insert_analyses(connection: Any, several: Sequence[_Analysed], keys: Keys) -> None:
    if several:
        await connection.copy_records_to_table(
            "analysis",
            records=[
                (
                    each.fact.recorded.position,
                    each.fact.recorded.recorded_at,
                    each.interaction,
                    keys[Kind.NEED, storable(each.analysis.need_path)] if each.analysis.need_path else 0,
                    each.analysis.sentiment_score,
                    each.analysis.sentiment.number,
                    each.analysis.point.number,
                    isinstance(each.fact.event, FeedbackAnalysisFailed),
                    isinstance(each.fact.event, AnalysisCorrected),
                    _failure(each.fact),
                    _ENCODE(each.analysis),
                )
                for each in several
            ],
        )


async def _insert_links(connection: Any, facts: Sequence[Fact], keys: Keys) -> None:
    await _insert(
        connection,
        "identity_link",
        "bigint timestamptz bigint bigint",
        [
            (
                fact.recorded.position,
                fact.recorded.recorded_at,
                keys[_customer(fact.event.identity_customer_id)],
                keys[_customer(owner)] if (owner := _owner(fact.event)) else 0,
            )
            for fact in facts
        ],
    )


async def _insert_signals(connection: Any, facts: Sequence[Fact], keys: Keys) -> None:
    await _insert(
        connection,
        "signal",
        "bigint timestamptz bigint text text bytea",
        [
            (
                f.recorded.position,
                f.recorded.recorded_at,
                keys[_customer(f.event.customer_id)] if f.event.customer_id else 0,
                storable(f.event.rule),
                storable(f.event.signal_id),
                f.recorded.data,
            )
            for f in facts
        ],
    )
    await _insert(
        connection,
        "signal_evidence",
        "uuid text",
        [
            (event_id, storable(f.event.signal_id))
            for f in facts
            for evidence in f.event.evidence
            if (event_id := uuid_of(evidence.event_id)) is not None
        ],
    )


async def _insert_actions(connection: Any, facts: Sequence[Fact], keys: Keys) -> None:
    await _insert(
        connection,
        "action_change",
        "bigint timestamptz bigint text smallint smallint smallint text text",
        [(f.recorded.position, f.recorded.recorded_at, *_action_row(f.event, keys)) for f in facts],
    )


async def _insert_maps(connection: Any, facts: Sequence[Fact]) -> None:
    await _insert(
        connection,
        "journey_map",
        "text int bigint timestamptz text bytea",
        [
            (
                f.event.map.map_id,
                f.event.version,
                f.recorded.position,
                f.recorded.recorded_at,
                storable(f.event.actor),
                _ENCODE(f.event.map),
            )
            for f in facts
        ],
    )


async def _insert(connection: Any, table: str, types: str, rows: Iterable[Sequence[Any]]) -> None:
    """Insert `rows`, whose column types are `types`, with one statement; rows that are there already stay."""
    values = list(zip(*rows, strict=True))
    if values:
        arrays = ", ".join(f"${n}::{type_}[]" for n, type_ in enumerate(types.split(), 1))
        await connection.execute(
            f"INSERT INTO {table} SELECT * FROM unnest({arrays}) ON CONFLICT DO NOTHING",  # noqa: S608 - constants of ours
            *values,
        )


# -- what the events say, as columns ---------------------------------------------------------------------------------


def _customer(customer_id: str) -> Name:
    return Kind.CUSTOMER, storable(customer_id)


def _customer_id(interaction: Interaction) -> str:
    return (interaction.customer or Customer()).customer_id


def _touchpoint(interaction: Interaction) -> str:
    return _named(interaction.source, interaction.touchpoint, interaction.channel)


@lru_cache(maxsize=4096)
def _named(source: str, touchpoint: str, channel: Channel) -> str:
    return json.dumps([storable(source), storable(touchpoint), channel.number])


def _profile(interaction: Interaction) -> str:
    told = customer_attributes(interaction.attributes)
    return storable(json.dumps(told, sort_keys=True, ensure_ascii=False)) if told else ""


def _scale(rating: Any) -> str:
    return json.dumps([storable(rating.name), rating.scale_min, rating.scale_max])


def _answer(interaction: Interaction, metric: RatingMetric) -> int:
    value = answer(interaction.ratings, metric)
    return -1 if value is None else value


def _money(interaction: Interaction) -> tuple[int, int]:
    money = interaction.amount
    if money is None:
        return 0, 0
    letters = [ord(letter) - ord("A") for letter in money.currency_code]
    try:
        units = int(Decimal(money.amount) * AMOUNT_UNITS)
    except (InvalidOperation, ValueError, OverflowError):
        return 0, 0
    if len(letters) != 3 or not all(0 <= letter < 26 for letter in letters) or abs(units) >= 2**62:
        return 0, 0
    first, second, third = letters
    return units, (first * 26 + second) * 26 + third + 1


def currency_code(number: int) -> str:
    """Return the three letters of a currency, given its number in the rows."""
    rest, third = divmod(number - 1, 26)
    return "".join(chr(ord("A") + letter) for letter in (*divmod(rest, 26), third))


def _analysis(fact: Fact) -> Analysis:
    return Analysis() if isinstance(fact.event, FeedbackAnalysisFailed) else fact.event.analysis or Analysis()


def _failure(fact: Fact) -> str:
    event = fact.event
    return storable(f"{event.reason}: {event.message}") if isinstance(event, FeedbackAnalysisFailed) else ""


def _owner(change: IdentityLinked | IdentityUnlinked) -> str | None:
    return (change.customer_id or None) if isinstance(change, IdentityLinked) else None


def _action_row(event: Any, keys: Keys) -> Sequence[Any]:
    action_id = storable(event.action_id)
    if isinstance(event, ActionOpened):
        customer = keys[_customer(event.customer_id)] if event.customer_id else 0
        kind, state = event.kind.number, ActionState.OPEN.number
        return customer, action_id, kind, state, 0, storable(event.title), storable(event.signal_id)
    result = event.result.number if isinstance(event, ActionCompleted) else 0
    return 0, action_id, 0, ACTION_STATES[type(event)].number, result, "", ""
