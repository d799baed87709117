"""The projection: interactions, their analyses, maps, placements and signals, as rows that never forget when.

Each row keeps the `position` of its event in the store and its `recorded_at`, so that every query can answer with what
was known at an earlier time. Everything is a function of the history alone: rows are the same however the history was
cut into batches.
"""

from collections.abc import Iterable, Sequence
from typing import Any
from uuid import UUID

import msgspec

from recorrido.inference.v1.events import Analysis, FeedbackAnalysisFailed, FeedbackAnalyzed
from recorrido.ingest.v1.events import (
    Channel,
    Customer,
    CustomerAnonymized,
    IdentityLinked,
    IdentityUnlinked,
    Interaction,
    InteractionRecorded,
    RatingMetric,
    Verbatim,
)
from recorrido.journey.v1.events import JourneyMap, JourneyMapPublished, SignalRaised
from services.foundation.events import Event
from services.foundation.projection import Fact, in_order
from services.journey.domain.placement import place
from services.journey.domain.scores import answer
from services.journey.views import erasure, links

DDL = """
-- Touchpoints as sources name them: few, however many interactions there are. Maps place these, never interactions, so
-- a published map re-places the whole history by a handful of rows. The id is the position of the first event there.
CREATE TABLE raw_touchpoint (
    raw_id bigint PRIMARY KEY,
    source text COLLATE "C" NOT NULL,
    touchpoint text COLLATE "C" NOT NULL,
    channel smallint NOT NULL,
    UNIQUE (source, touchpoint, channel)
);

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

-- Where each version of each map places each raw touchpoint; no row: it does not.
CREATE TABLE placement (
    map_id text COLLATE "C" NOT NULL,
    version int NOT NULL,
    raw_id bigint NOT NULL,
    touchpoint_id text COLLATE "C" NOT NULL,
    PRIMARY KEY (map_id, version, raw_id)
);

-- Body is the event's proto JSON, as recorded. The answers are those on the standard scales. Of an erased customer only
-- these and the like are left; there were words then, but there are none to show.
CREATE TABLE interaction (
    event_id uuid PRIMARY KEY,
    position bigint NOT NULL,
    recorded_at timestamptz NOT NULL,
    occurred_at timestamptz NOT NULL,
    customer_id text COLLATE "C" NOT NULL,
    kind smallint NOT NULL,
    raw_id bigint NOT NULL,
    has_words boolean NOT NULL,
    nps smallint,
    csat smallint,
    ces smallint,
    body bytea NOT NULL,
    is_anonymous boolean NOT NULL DEFAULT false
);
-- A customer's timeline, page by page, in its order.
CREATE INDEX ON interaction (customer_id, occurred_at, position);

-- What was made of an interaction's words. An analysis counts while recorded_at <= as_of < superseded_at: at any time
-- at most one of an interaction does. A failure has its reason in `failure` and counts only while no analysis does.
CREATE TABLE analysis (
    event_id uuid PRIMARY KEY,
    interaction_id uuid NOT NULL,
    position bigint NOT NULL,
    recorded_at timestamptz NOT NULL,
    superseded_at timestamptz NOT NULL DEFAULT 'infinity',
    failure text,
    sentiment smallint,
    sentiment_score double precision,
    point smallint,
    need_path text COLLATE "C",
    body bytea
);
-- From an interaction to its analyses: the timeline, and superseding.
CREATE INDEX ON analysis (interaction_id);

-- Body is the event's proto JSON.
CREATE TABLE signal (
    signal_id text COLLATE "C" PRIMARY KEY,
    position bigint NOT NULL,
    recorded_at timestamptz NOT NULL,
    customer_id text COLLATE "C" NOT NULL,
    body bytea NOT NULL
);
-- Newest first: of everyone, and of one customer.
CREATE INDEX ON signal (position);
CREATE INDEX ON signal (customer_id, position);

-- From an event to the signals that it is evidence of.
CREATE TABLE signal_evidence (
    event_id uuid NOT NULL,
    signal_id text COLLATE "C" NOT NULL,
    PRIMARY KEY (event_id, signal_id)
);
"""

# An analysis is beaten by a later one; a failure by any analysis. By the position in the store, not the clock, which
# may jump: then the one recorded "earlier" is never seen without the one that beats it.
_SUPERSEDE = """
UPDATE analysis a SET superseded_at = COALESCE(
    (SELECT min(b.recorded_at) FROM analysis b
     WHERE b.interaction_id = a.interaction_id
       AND ((a.failure IS NOT NULL AND b.failure IS NULL)
            OR ((a.failure IS NULL) = (b.failure IS NULL) AND b.position > a.position))),
    'infinity')
WHERE a.interaction_id IN (
    SELECT interaction_id FROM analysis WHERE interaction_id = ANY($1::uuid[])
    GROUP BY interaction_id HAVING count(*) > 1)
"""

LinkChange = IdentityLinked | IdentityUnlinked
RawTouchpoint = tuple[str, str, int]

_ENCODE = msgspec.json.Encoder().encode
_DECODE_MAP = msgspec.json.Decoder(JourneyMap).decode


class JourneyProjection:
    """Folds the history into the tables above."""

    name = "journey"
    types: Sequence[type[Event]] = (
        InteractionRecorded,
        FeedbackAnalyzed,
        FeedbackAnalysisFailed,
        JourneyMapPublished,
        SignalRaised,
        IdentityLinked,
        IdentityUnlinked,
        CustomerAnonymized,
    )
    ddl = DDL + links.DDL

    async def apply(self, connection: Any, facts: Sequence[Fact]) -> None:
        """Insert a batch; what was inserted before stays as it is, but for what was erased."""
        await in_order(connection, facts, CustomerAnonymized, self._add, self._replace)

    async def _replace(self, connection: Any, fact: Fact) -> None:
        await erasure.forget(connection, fact.event)
        await self._add(connection, erasure.in_their_place(fact))
        await erasure.mark(connection, fact.event)

    async def _add(self, connection: Any, facts: Sequence[Fact]) -> None:
        interactions = [f for f in facts if isinstance(f.event, InteractionRecorded)]
        analyses = [f for f in facts if isinstance(f.event, FeedbackAnalyzed | FeedbackAnalysisFailed)]
        maps = [f for f in facts if isinstance(f.event, JourneyMapPublished) and f.event.map is not None]
        signals = [f for f in facts if isinstance(f.event, SignalRaised)]
        changes = [
            f for f in facts if isinstance(f.event, IdentityLinked | IdentityUnlinked) and f.event.identity_customer_id
        ]
        raw_ids, new_raw_ids = await _raw_touchpoints(connection, interactions)
        await _insert_maps(connection, maps)
        await _place(connection, new_raw_ids, {(f.event.map.map_id, f.event.version) for f in maps})
        await _insert_interactions(connection, interactions, raw_ids)
        await _insert_analyses(connection, analyses)
        await _insert_signals(connection, signals)
        await links.insert_links(connection, changes, [_owner(f.event) for f in changes])


async def _insert(connection: Any, table: str, types: str, rows: Iterable[Sequence[Any]], columns: str = "") -> None:
    """Insert `rows`, whose column types are `types`, with one statement; rows that are there already stay."""
    values = list(zip(*rows, strict=True))
    if values:
        arrays = ", ".join(f"${n}::{type_}[]" for n, type_ in enumerate(types.split(), 1))
        await connection.execute(
            f"INSERT INTO {table} {columns} SELECT * FROM unnest({arrays}) ON CONFLICT DO NOTHING",  # noqa: S608 - constants of ours
            *values,
        )


def _owner(change: LinkChange) -> str | None:
    return (_text(change.customer_id) or None) if isinstance(change, IdentityLinked) else None


def _text(value: str) -> str:
    # PostgreSQL's text holds no NUL. Ingest lets none in, but a history may have had other writers.
    return value.replace("\0", "\N{REPLACEMENT CHARACTER}")


def _uuid(value: str) -> UUID | None:
    try:
        return UUID(value)
    except ValueError:
        return None


# -- touchpoints and maps -------------------------------------------------------------------------------------------


async def _raw_touchpoints(connection: Any, facts: Sequence[Fact]) -> tuple[dict[RawTouchpoint, int], set[int]]:
    """Return the ids of the batch's raw touchpoints, and which of them are new; new ones are inserted."""
    first: dict[RawTouchpoint, int] = {}
    for fact in facts:
        first.setdefault(_raw_touchpoint(_interaction(fact)), fact.recorded.position)
    if not first:
        return {}, set()
    known = await connection.fetch(
        """SELECT raw_id, source, touchpoint, channel FROM raw_touchpoint
           JOIN unnest($1::text[], $2::text[], $3::smallint[]) AS wanted (source, touchpoint, channel)
           USING (source, touchpoint, channel)""",
        *zip(*first, strict=True),
    )
    ids = {(row["source"], row["touchpoint"], row["channel"]): row["raw_id"] for row in known}
    new = {raw: position for raw, position in first.items() if raw not in ids}
    await _insert(
        connection, "raw_touchpoint", "bigint text text smallint", [(raw_id, *raw) for raw, raw_id in new.items()]
    )
    return {**ids, **new}, set(new.values())


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
                _text(f.event.actor),
                _ENCODE(f.event.map),
            )
            for f in facts
        ],
    )


async def _place(connection: Any, new_raw_ids: set[int], new_maps: set[tuple[str, int]]) -> None:
    """Place every raw touchpoint on the new maps, and the new raw touchpoints on every map."""
    if not new_raw_ids and not new_maps:
        return
    maps = await connection.fetch("SELECT map_id, version, body FROM journey_map")
    raws = await connection.fetch(
        "SELECT raw_id, source, touchpoint, channel FROM raw_touchpoint WHERE $1 OR raw_id = ANY($2::bigint[])",
        bool(new_maps),
        list(new_raw_ids),
    )
    placements = []
    for map_id, version, body in maps:
        map_ = _DECODE_MAP(body)
        for raw_id, source, touchpoint, channel in raws:
            if raw_id in new_raw_ids or (map_id, version) in new_maps:
                touchpoint_id = place(map_, source, touchpoint, Channel.from_number(channel))
                if touchpoint_id is not None:
                    placements.append((map_id, version, raw_id, touchpoint_id))
    await _insert(connection, "placement", "text int bigint text", placements)


# -- interactions, analyses, signals --------------------------------------------------------------------------------


async def _insert_interactions(connection: Any, facts: Sequence[Fact], raw_ids: dict[RawTouchpoint, int]) -> None:
    await _insert(
        connection,
        "interaction",
        "uuid bigint timestamptz timestamptz text smallint bigint boolean smallint smallint smallint bytea",
        [_interaction_row(fact, raw_ids) for fact in facts],
    )


def _interaction_row(fact: Fact, raw_ids: dict[RawTouchpoint, int]) -> Sequence[Any]:
    interaction, recorded = _interaction(fact), fact.recorded
    customer = interaction.customer or Customer()
    return (
        recorded.event_id,
        recorded.position,
        recorded.recorded_at,
        interaction.occurred_at or recorded.recorded_at,
        _text(customer.customer_id),
        customer.kind.number,
        raw_ids[_raw_touchpoint(interaction)],
        bool((interaction.verbatim or Verbatim()).text),
        answer(interaction.ratings, RatingMetric.NPS),
        answer(interaction.ratings, RatingMetric.CSAT),
        answer(interaction.ratings, RatingMetric.CES),
        recorded.data,
    )


def _interaction(fact: Fact) -> Interaction:
    interaction: Interaction | None = fact.event.interaction
    return interaction or Interaction()


def _raw_touchpoint(interaction: Interaction) -> RawTouchpoint:
    return _text(interaction.source), _text(interaction.touchpoint), interaction.channel.number


async def _insert_analyses(connection: Any, facts: Sequence[Fact]) -> None:
    # One that names no interaction can be no interaction's.
    rows = [(interaction_id, fact) for fact in facts if (interaction_id := _uuid(fact.event.interaction_event_id))]
    await _insert(
        connection,
        "analysis",
        "uuid uuid bigint timestamptz text smallint float8 smallint text bytea",
        [_analysis_row(interaction_id, fact) for interaction_id, fact in rows],
        "(event_id, interaction_id, position, recorded_at, failure,"
        " sentiment, sentiment_score, point, need_path, body)",
    )
    if rows:
        await connection.execute(_SUPERSEDE, [interaction_id for interaction_id, _ in rows])


def _analysis_row(interaction_id: UUID, fact: Fact) -> Sequence[Any]:
    event, recorded = fact.event, fact.recorded
    envelope = (recorded.event_id, interaction_id, recorded.position, recorded.recorded_at)
    if isinstance(event, FeedbackAnalysisFailed):
        return (*envelope, _text(f"{event.reason}: {event.message}"), None, None, None, None, None)
    analysis = event.analysis or Analysis()
    return (
        *envelope,
        None,
        analysis.sentiment.number,
        analysis.sentiment_score,
        analysis.point.number,
        _text(analysis.need_path),
        _ENCODE(analysis),
    )


async def _insert_signals(connection: Any, facts: Sequence[Fact]) -> None:
    await _insert(
        connection,
        "signal",
        "text bigint timestamptz text bytea",
        [
            (
                _text(f.event.signal_id),
                f.recorded.position,
                f.recorded.recorded_at,
                _text(f.event.customer_id),
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
            (event_id, _text(f.event.signal_id))
            for f in facts
            for evidence in f.event.evidence
            if (event_id := _uuid(evidence.event_id)) is not None
        ],
    )
