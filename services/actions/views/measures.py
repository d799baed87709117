"""The read model of impact: what was heard at each touchpoint, about each need, in each hour.

Sums of whole numbers, so that they are exact, whatever comes late, is analysed again or is erased. How much the answers
of one customer are alike is read from the interactions of the windows themselves.
"""

import asyncio
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from typing import Any
from uuid import UUID

import msgspec

from recorrido.actions.v1.events import ImpactSample, Target
from recorrido.inference.v1.events import Analysis, FeedbackAnalyzed, PointKind
from recorrido.ingest.v1.events import (
    AnonymousInteraction,
    Channel,
    CustomerAnonymized,
    Interaction,
    InteractionRecorded,
    Rating,
    RatingMetric,
)
from recorrido.journey.v1.events import JourneyMap, JourneyMapPublished, SignalRaised
from services.actions.domain.impact import Clusters, Samples, by_customer, daily, moments, share
from services.foundation.errors import NotFoundError
from services.foundation.events import Event
from services.foundation.placement import named, place
from services.foundation.projection import Fact, answerable, in_order, position_of, positions_of, storable, uuid_of
from services.foundation.scales import SCALES, answer

HOUR = timedelta(hours=1)
#: The rule of journey whose signals are the bad moments: one at most of each interaction.
BAD_MOMENT = "bad_moment"
#: Sentiment is kept in millionths.
_MICRO = 1_000_000
_NPS, _CSAT, _CES = (SCALES[metric] for metric in (RatingMetric.NPS, RatingMetric.CSAT, RatingMetric.CES))

_SUMS = (
    "interactions",
    "nps",
    "promoters",
    "detractors",
    "csat",
    "satisfied",
    "ces",
    "easy",
    "words",
    "score",
    "score_squares",
    "pains",
    "bad_moments",
)
_HEARD = ("position", "event_id", "customer", "hour", "touchpoint", "need_path", "nps", "csat", "ces", "score", "pain")
_TYPES = ("bigint", "uuid", "bigint", "timestamptz", "text", "text", *3 * ("smallint",), "int", "boolean")
_ANALYSED = ("need_path", "score", "pain")


@dataclass(frozen=True, slots=True)
class _Heard:
    """One interaction. `score` is None without words; an erased customer's has no `event_id`.

    `touchpoint` is what its source says, as `_raw` writes it, so that any map can place it. `customer` tells one from
    another, and not who it is.
    """

    position: int
    event_id: UUID | None
    customer: int
    hour: datetime
    touchpoint: str
    need_path: str = ""
    nps: int | None = None
    csat: int | None = None
    ces: int | None = None
    score: int | None = None
    pain: bool = False

    @property
    def key(self) -> tuple[datetime, str, str]:
        return self.hour, self.touchpoint, self.need_path

    @property
    def sums(self) -> Sequence[int]:
        score = self.score or 0
        return (
            1,
            self.nps is not None,
            self.nps is not None and self.nps >= _NPS.lowest_good,
            self.nps is not None and self.nps <= _NPS.highest_bad,
            self.csat is not None,
            self.csat is not None and self.csat >= _CSAT.lowest_good,
            self.ces is not None,
            self.ces is not None and self.ces >= _CES.lowest_good,
            self.score is not None,
            score,
            score * score,
            self.pain,
            0,
        )


@dataclass(slots=True)
class _Changes:
    """What a batch adds to the sums."""

    sums: dict[tuple[datetime, str, str], list[int]] = field(
        default_factory=lambda: defaultdict(lambda: [0] * len(_SUMS))
    )

    def count(self, key: tuple[datetime, str, str], sums: Iterable[int], sign: int = 1) -> None:
        line = self.sums[key]
        for index, value in enumerate(sums):
            line[index] += sign * value

    def bad(self, key: tuple[datetime, str, str], sign: int = 1) -> None:
        self.sums[key][-1] += sign


class MeasuresProjection:
    """Table `tally` has the sums; `heard` and `bad_moment` what has to be taken off them again one day."""

    name = "actions_measures"
    types: Sequence[type[Event]] = (
        InteractionRecorded,
        FeedbackAnalyzed,
        SignalRaised,
        CustomerAnonymized,
        JourneyMapPublished,
    )
    ddl = f"""
        -- Of each map the version that was published last, as proto JSON; position is that of its event.
        CREATE TABLE journey_map (map_id text COLLATE "C" PRIMARY KEY, position bigint NOT NULL, body bytea NOT NULL);
        -- Every touchpoint below: source, name and channel, as a JSON list; and the name alone.
        CREATE TABLE raw_touchpoint (touchpoint text COLLATE "C" PRIMARY KEY, name text COLLATE "C" NOT NULL);
        CREATE INDEX ON raw_touchpoint (name);
        CREATE TABLE heard (
            position bigint PRIMARY KEY,
            event_id uuid UNIQUE,
            customer bigint NOT NULL,
            hour timestamptz NOT NULL,
            touchpoint text COLLATE "C" NOT NULL,
            need_path text COLLATE "C" NOT NULL,
            nps smallint,
            csat smallint,
            ces smallint,
            score int,
            pain boolean NOT NULL
        );
        CREATE TABLE bad_moment (
            position bigint PRIMARY KEY,
            customer bigint NOT NULL,
            hour timestamptz NOT NULL,
            touchpoint text COLLATE "C" NOT NULL,
            need_path text COLLATE "C" NOT NULL
        );
        CREATE INDEX ON heard (touchpoint, hour);
        CREATE INDEX ON bad_moment (touchpoint, hour);
        -- Hours come about in their order, so that this one, which costs next to nothing, leads to a window.
        CREATE INDEX ON heard USING brin (hour) WITH (pages_per_range = 16);
        CREATE TABLE tally (
            hour timestamptz,
            touchpoint text COLLATE "C",
            need_path text COLLATE "C",
            {", ".join(f"{column} bigint NOT NULL" for column in _SUMS)},
            PRIMARY KEY (touchpoint, hour, need_path)
        );
        CREATE INDEX ON tally (hour);
    """

    async def apply(self, connection: Any, facts: Sequence[Fact]) -> None:
        await in_order(connection, facts, CustomerAnonymized, self._add, forget=self._forget, leave=self._leave)

    async def _add(self, connection: Any, facts: Sequence[Fact]) -> None:
        changes = _Changes()
        new = {
            f.recorded.event_id: _heard(f.event.interaction or Interaction(), f)
            for f in facts
            if isinstance(f.event, InteractionRecorded)
        }
        analyses = [f for f in facts if isinstance(f.event, FeedbackAnalyzed)]
        about = [uuid_of(f.event.interaction_event_id) for f in analyses]
        known = await _known(connection, {each for each in about if each is not None} - new.keys())
        after = {**known, **new}
        for key, fact in zip(about, analyses, strict=True):
            if key is not None and key in after:
                after[key] = _analysed(after[key], fact.event.analysis or Analysis())
        for heard in known.values():
            changes.count(heard.key, heard.sums, -1)
        for heard in after.values():
            changes.count(heard.key, heard.sums)
        await _insert_heard(connection, [after[key] for key in new])
        await connection.execute(
            """UPDATE heard SET need_path = n.need_path, score = n.score, pain = n.pain
               FROM unnest($1::bigint[], $2::text[], $3::int[], $4::boolean[]) AS n (position, need_path, score, pain)
               WHERE heard.position = n.position""",
            *_columns([after[key] for key in known], ("position", *_ANALYSED)),
        )
        signals = [f for f in facts if isinstance(f.event, SignalRaised) and f.event.rule == BAD_MOMENT]
        proof = [uuid_of(f.event.evidence[0].event_id) if f.event.evidence else None for f in signals]
        after |= await _known(connection, {each for each in proof if each is not None} - after.keys())
        await _insert_bad_moments(
            connection,
            changes,
            [
                (
                    f.recorded.position,
                    _customer(f.event.customer_id),
                    _hour(f.event.occurred_at or f.recorded.recorded_at),
                    # The signal tells the name only.
                    after[key].touchpoint if key is not None and key in after else _raw("", f.event.touchpoint),
                    storable(f.event.need_path),
                )
                for key, f in zip(proof, signals, strict=True)
            ],
        )
        await _write(connection, changes)
        for fact in facts:
            if isinstance(fact.event, JourneyMapPublished) and fact.event.map is not None:
                await connection.execute(
                    """INSERT INTO journey_map VALUES ($1, $2, $3) ON CONFLICT (map_id)
                       DO UPDATE SET position = excluded.position, body = excluded.body""",
                    storable(fact.event.map.map_id),
                    fact.recorded.position,
                    msgspec.json.encode(fact.event.map),
                )

    async def _forget(self, connection: Any, fact: Fact) -> None:
        positions = positions_of(fact.event.erased_positions)
        changes = _Changes()
        gone = await connection.fetch("DELETE FROM heard WHERE position = ANY($1::bigint[]) RETURNING *", positions)
        for row in gone:
            heard = _heard_of(row)
            changes.count(heard.key, heard.sums, -1)
        bad = await connection.fetch("DELETE FROM bad_moment WHERE position = ANY($1::bigint[]) RETURNING *", positions)
        for row in bad:
            changes.bad((row["hour"], row["touchpoint"], row["need_path"]), -1)
        await _write(connection, changes)

    async def _leave(self, connection: Any, fact: Fact) -> None:
        """Keep the sums: the anonymous facts tell the same."""
        event: CustomerAnonymized = fact.event
        changes = _Changes()
        left = [_anonymous(each, fact) for each in event.interactions]
        for heard in left:
            changes.count(heard.key, heard.sums)
        await _insert_heard(connection, left)
        # Of the interaction there is nothing left in a signal but whose, where and when. It may have been told of in an
        # earlier part of the erasure.
        raws = {(each.pseudonym, each.touchpoint, each.occurred_at): _raw_of(each) for each in event.interactions}
        bad = [each for each in event.signals if each.rule == BAD_MOMENT]
        hours = [_hour(each.occurred_at or each.recorded_at or fact.recorded.recorded_at) for each in bad]
        rows = await connection.fetch(
            """SELECT DISTINCT customer, hour, touchpoint FROM heard
               WHERE event_id IS NULL AND customer = ANY($1::bigint[]) AND hour = ANY($2::timestamptz[])""",
            [_customer(each.pseudonym) for each in bad],
            hours,
        )
        elsewhere = {
            (row["customer"], row["hour"], json.loads(row["touchpoint"])[1]): row["touchpoint"] for row in rows
        }
        signals = [
            (
                position_of(each.position),
                _customer(each.pseudonym),
                hour,
                raws.get((each.pseudonym, each.touchpoint, each.occurred_at))
                or elsewhere.get((_customer(each.pseudonym), hour, storable(each.touchpoint)))
                or _raw("", each.touchpoint),
                storable(each.need_path),
            )
            for each, hour in zip(bad, hours, strict=True)
        ]
        await _insert_bad_moments(connection, changes, signals)
        await _write(connection, changes)


async def _known(connection: Any, ids: set[UUID]) -> dict[UUID, _Heard]:
    rows = await connection.fetch("SELECT * FROM heard WHERE event_id = ANY($1::uuid[])", list(ids)) if ids else []
    return {row["event_id"]: _heard_of(row) for row in rows}


async def _insert_heard(connection: Any, heard: Sequence[_Heard]) -> None:
    arrays = ", ".join(f"${number}::{type_}[]" for number, type_ in enumerate(_TYPES, 1))
    await connection.execute(
        f"INSERT INTO heard ({', '.join(_HEARD)}) SELECT * FROM unnest({arrays})",  # noqa: S608 - constants of ours
        *_columns(heard, _HEARD),
    )


async def _insert_bad_moments(
    connection: Any, changes: _Changes, rows: Sequence[tuple[int, int, datetime, str, str]]
) -> None:
    for _, _, hour, touchpoint, need_path in rows:
        changes.bad((hour, touchpoint, need_path))
    await connection.executemany("INSERT INTO bad_moment VALUES ($1, $2, $3, $4, $5)", rows)


async def _write(connection: Any, changes: _Changes) -> None:
    # In one order, so that nobody waits for anybody in a circle.
    lines = sorted((key, sums) for key, sums in changes.sums.items() if any(sums))
    raws = sorted({touchpoint for _, touchpoint, _ in changes.sums})
    await connection.execute(
        "INSERT INTO raw_touchpoint SELECT * FROM unnest($1::text[], $2::text[]) ON CONFLICT DO NOTHING",
        raws,
        [json.loads(each)[1] for each in raws],
    )
    arrays = ", ".join(f"${number}::bigint[]" for number in range(4, 4 + len(_SUMS)))
    added = ", ".join(f"{column} = tally.{column} + excluded.{column}" for column in _SUMS)
    await connection.execute(
        f"""INSERT INTO tally SELECT * FROM unnest($1::timestamptz[], $2::text[], $3::text[], {arrays})
            ON CONFLICT (touchpoint, hour, need_path) DO UPDATE SET {added}""",  # noqa: S608 - constants of ours
        *(list(column) for column in zip(*(key for key, _ in lines), strict=True) or ()),
        *(list(column) for column in zip(*(sums for _, sums in lines), strict=True) or ()),
    ) if lines else None


def _columns(heard: Sequence[_Heard], names: Sequence[str]) -> list[list[Any]]:
    return [[getattr(each, name) for each in heard] for name in names]


def _heard_of(row: Any) -> _Heard:
    return _Heard(**{name: row[name] for name in _HEARD})


def _heard(interaction: Interaction, fact: Fact) -> _Heard:
    return _Heard(
        position=fact.recorded.position,
        event_id=fact.recorded.event_id,
        customer=_customer(interaction.customer.customer_id if interaction.customer else ""),
        hour=_hour(interaction.occurred_at or fact.recorded.recorded_at),
        touchpoint=_raw_of(interaction),
        **_answers(interaction.ratings),
    )


def _anonymous(left: AnonymousInteraction, fact: Fact) -> _Heard:
    heard = _Heard(
        position=position_of(left.position),
        event_id=None,
        customer=_customer(left.pseudonym),
        hour=_hour(left.occurred_at or left.recorded_at or fact.recorded.recorded_at),
        touchpoint=_raw_of(left),
        **_answers(left.ratings),
    )
    for each in sorted(left.analyses, key=lambda analysis: position_of(analysis.position)):
        if each.analysis is not None:
            heard = _analysed(heard, each.analysis)
    return heard


def _analysed(heard: _Heard, analysis: Analysis) -> _Heard:
    return replace(
        heard,
        need_path=storable(analysis.need_path),
        score=round(max(-1.0, min(1.0, analysis.sentiment_score)) * _MICRO),
        pain=analysis.point is PointKind.PAIN,
    )


def _answers(ratings: Sequence[Rating]) -> dict[str, Any]:
    return {metric.name.lower(): answer(ratings, metric) for metric in SCALES}


def _raw_of(said: Interaction | AnonymousInteraction) -> str:
    return _raw(said.source, said.touchpoint, said.channel)


def _raw(source: str, touchpoint: str, channel: Channel = Channel.UNSPECIFIED) -> str:
    return json.dumps([storable(source), storable(touchpoint), channel.number], ensure_ascii=False)


def _hour(at: datetime) -> datetime:
    return at.astimezone(UTC).replace(minute=0, second=0, microsecond=0)


def _customer(customer_id: str) -> int:
    return int.from_bytes(blake2b(customer_id.encode(), digest_size=8).digest(), signed=True)


# -- questions -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Windows:
    """What is before and what is after, UTC, in whole hours; the ends are not part of it."""

    before_from: datetime
    before_to: datetime
    after_from: datetime
    after_to: datetime

    @classmethod
    def around(cls, began: datetime, done: datetime, now: datetime, days: int) -> "Windows":
        """Return `days` before the work began, and at most as many after it was done; between the two is neither."""
        before_to, after_from = _hour(began), _hour(done + HOUR - timedelta(microseconds=1))
        window = timedelta(days=days)
        after_to = max(after_from, min(after_from + window, _hour(now)))
        return cls(before_to - window, before_to, after_from, after_to)

    @property
    def days_after(self) -> float:
        return (self.after_to - self.after_from) / timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Measured:
    """The samples, exactly as the history told them up to `position`.

    `map_id` is the map that the target's touchpoint was found in, empty where no map has it; `other_map_ids` are those
    that have one of that name, too, and place other interactions at it. `strangers` are the touchpoints to compare with
    that nothing was ever heard of and only other maps have, with the ids of these.
    """

    samples: Samples
    position: int
    map_id: str = ""
    other_map_ids: Sequence[str] = ()
    strangers: Mapping[str, Sequence[str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Meant:
    """The raw touchpoints that are meant by a target's touchpoint (None: it has none) and by others, by name."""

    target: Sequence[str] | None
    others: Mapping[str, Sequence[str]]
    map_id: str = ""
    other_map_ids: Sequence[str] = ()
    strangers: Mapping[str, Sequence[str]] = field(default_factory=dict)


# $1: touchpoints of the target, NULL for all; $2 its need, '' for all; $3 what it is compared with, NULL: all others,
# empty: nothing; $4 to $7 the windows; $8 whether days are told apart. The day is counted within each window.
_HEARD_IN = f"""
    SELECT hour >= $6 AS after, ($1::text[] IS NULL OR touchpoint = ANY($1)) AS treated,
           ($2 = '' OR need_path = $2 OR starts_with(need_path, $2 || '/')) AS about,
           CASE WHEN $8 THEN floor(extract(epoch FROM hour - CASE WHEN hour >= $6 THEN $6 ELSE $4 END) / 86400)::int
                ELSE 0 END AS day,
           {", ".join(f"sum({column}) AS {column}" for column in _SUMS)}
    FROM actions_measures.tally
    WHERE ((hour >= $4 AND hour < $5) OR (hour >= $6 AND hour < $7))
      AND ($1 IS NULL OR touchpoint = ANY($1) OR ($3::text[] IS NULL OR touchpoint = ANY($3)))
    GROUP BY 1, 2, 3, 4"""  # noqa: S608 - constants of ours


#: Of each measure that is heard from customers: what has to be told, what is summed of it, and the sum's unit.
_SAID = {
    "nps": ("nps IS NOT NULL", f"(nps >= {_NPS.lowest_good})::int - (nps <= {_NPS.highest_bad})::int", 100.0),
    "csat": ("csat IS NOT NULL", f"(csat >= {_CSAT.lowest_good})::int", 100.0),
    "ces": ("ces IS NOT NULL", f"(ces >= {_CES.lowest_good})::int", 100.0),
    "sentiment": ("score IS NOT NULL", "score", 1 / _MICRO),
    "pain_share": ("score IS NOT NULL", "pain::int", 100.0),
    "bad_moments": ("true", "0", 100.0),
}
#: Where only what is summed is about the need: it is a part of everything that was heard.
_PARTS = ("pain_share", "bad_moments")


def _clusters_sql(metric: str) -> str:
    """Return the statement that sums by customer, $1 to $7 as in _HEARD_IN."""
    told, value, _ = _SAID[metric]
    treated = "($1::text[] IS NULL OR touchpoint = ANY($1))"
    about = f"($2 = '' OR NOT {treated} OR need_path = $2 OR starts_with(need_path, $2 || '/'))"
    within = f"""((hour >= $4 AND hour < $5) OR (hour >= $6 AND hour < $7))
                 AND ({treated} OR $3::text[] IS NULL OR touchpoint = ANY($3))"""
    summed, counted = (
        (f"CASE WHEN {about} THEN {value} ELSE 0 END", "") if metric in _PARTS else (value, f"AND {about}")
    )
    each = f"""SELECT hour >= $6 AS after, {treated} AS treated, customer, 1 AS n, {summed} AS s
               FROM actions_measures.heard WHERE {told} AND {within} {counted}"""  # noqa: S608 - constants of ours
    if metric == "bad_moments":
        each += f""" UNION ALL SELECT hour >= $6, {treated}, customer, 0, 1
                     FROM actions_measures.bad_moment WHERE {within} AND {about}"""  # noqa: S608 - constants of ours
    return f"""
        SELECT after, treated, count(*) AS customers, sum(n * n)::float8 AS nn, sum(n * s)::float8 AS ns,
               sum(s * s)::float8 AS ss
        FROM (SELECT after, treated, sum(n)::float8 AS n, sum(s)::float8 AS s FROM ({each}) AS said
              GROUP BY after, treated, customer) AS of_customer
        WHERE n > 0 GROUP BY after, treated"""  # noqa: S608 - constants of ours


class Measures:
    """Answers what was measured."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool

    async def measure(self, target: Target, windows: Windows, comparison: Sequence[str] | None) -> Measured:
        """Return the samples of a target's measure.

        A touchpoint is what a map places at the one of this id or alias (the target's map; where it names none, of
        several maps the one published last); where none has one, what the sources call so. `comparison` are the
        touchpoints of the same map to compare with, None for all others; an empty one, or a target without a
        touchpoint, for no comparison.

        Raises:
            NotFoundError: there is no such map as the target names.
            UnavailableError: PostgreSQL does not answer.
        """
        by_day = target.metric == "volume"
        compared = bool(target.touchpoint) and (comparison is None or bool(comparison))
        others = None if compared and comparison is None else list(comparison or ()) if compared else []
        with answerable():
            # One snapshot, so that the position fits the sums.
            async with (
                self._pool.acquire() as connection,
                connection.transaction(isolation="repeatable_read", readonly=True),
            ):
                position = await connection.fetchval("SELECT position FROM actions_measures.checkpoint")
                meant = await _raws(connection, target, others or ())
                elsewhere = None if others is None else [raw for each in others for raw in meant.others[each]]
                asked = (
                    *(meant.target, target.need_path, elsewhere),
                    *(windows.before_from, windows.before_to, windows.after_from, windows.after_to),
                )
                rows = await connection.fetch(_HEARD_IN, *asked, by_day)
                grouped = [] if by_day else await connection.fetch(_clusters_sql(target.metric), *asked)
        whole_days = {False: (windows.before_to - windows.before_from).days, True: int(windows.days_after)}

        def sample(*, after: bool, treated: bool) -> ImpactSample:
            some = [row for row in rows if row["after"] is after and row["treated"] is treated]
            found = _sample(target.metric, some, whole_days[after], all_needs=not treated)
            of_customers = (row for row in grouped if row["after"] is after and row["treated"] is treated)
            return next((by_customer(found, _clusters(target.metric, row)) for row in of_customers), found)

        return Measured(
            Samples(
                sample(after=False, treated=True),
                sample(after=True, treated=True),
                sample(after=False, treated=False) if compared else None,
                sample(after=True, treated=False) if compared else None,
            ),
            position,
            meant.map_id,
            meant.other_map_ids,
            meant.strangers,
        )


async def _raws(connection: Any, target: Target, others: Sequence[str]) -> _Meant:
    """Return which raw touchpoints are meant by a target and by other names of touchpoints. Raises NotFoundError."""
    if not (target.touchpoint or others or target.map_id):
        return _Meant(None, {})
    bodies = await connection.fetch("SELECT body FROM actions_measures.journey_map ORDER BY position DESC")
    rows = await connection.fetch("SELECT touchpoint FROM actions_measures.raw_touchpoint")
    maps = [msgspec.json.decode(row["body"], type=JourneyMap) for row in bodies]
    # A source may put an id into the touchpoint's name: there may be very many.
    return await asyncio.to_thread(_aimed_at, target, others, maps, [row[0] for row in rows])


def _aimed_at(target: Target, others: Sequence[str], maps: Sequence[JourneyMap], raws: Sequence[str]) -> _Meant:
    """Return what is meant, by the map of the target or else by `maps`, the one published last first.

    Raises:
        NotFoundError: there is no such map as the target names.
    """
    if target.map_id and target.map_id not in {each.map_id for each in maps}:
        known = ", ".join(sorted(each.map_id for each in maps)) or "none"
        raise NotFoundError("JOURNEY_MAP_UNKNOWN", f"there is no journey map {target.map_id!r}; there are: {known}")
    tried = [each for each in maps if target.map_id in ("", each.map_id)]
    if not target.touchpoint:
        return _Meant(None, _meant(set(others), tried, raws))
    name = target.touchpoint
    by_map = {each.map_id: _meant({name}, [each], raws)[name] for each in maps if named(each, name) is not None}
    map_id = next((each.map_id for each in tried if each.map_id in by_map), "")
    there = by_map[map_id] if map_id else _meant({name}, (), raws)[name]
    # What it is compared with is told in the words of the same map.
    own = [each for each in tried if map_id in ("", each.map_id)]
    compared = _meant(set(others), own, raws)
    unheard = (each for each in others if not compared[each] and not _having(own, each))
    return _Meant(
        there,
        compared,
        map_id,
        [key for key, found in by_map.items() if map_id and found != there],
        {each: having for each in unheard if (having := _having(maps, each))},
    )


def _having(maps: Iterable[JourneyMap], name: str) -> Sequence[str]:
    """Return the ids of the maps that have a touchpoint of this name."""
    return [each.map_id for each in maps if named(each, name) is not None]


def _meant(names: set[str], maps: Sequence[JourneyMap], raws: Sequence[str]) -> Mapping[str, Sequence[str]]:
    """Return the raw touchpoints that each name means by the first of the maps that has it, else as raw name."""
    said = [(raw, *json.loads(raw)) for raw in raws]
    found: dict[str, list[str]] = {name: [] for name in names}
    left = set(names)
    for map_ in maps:
        ids = {name: touchpoint_id for name in left if (touchpoint_id := named(map_, name)) is not None}
        if ids:
            placed = defaultdict(list)
            for raw, source, name, channel in said:
                placed[place(map_, source, name, Channel.from_number(channel))].append(raw)
            found.update({name: placed[touchpoint_id] for name, touchpoint_id in ids.items()})
            left -= ids.keys()
    for raw, _, name, _ in said:
        if name in left:
            found[name].append(raw)
    return found


def _clusters(metric: str, row: Mapping[str, Any]) -> Clusters:
    unit = _SAID[metric][2]
    return Clusters(row["customers"], row["nn"], unit * row["ns"], unit * unit * row["ss"])


def _sample(metric: str, rows: Sequence[Mapping[str, Any]], days: int, *, all_needs: bool) -> ImpactSample:  # noqa: PLR0911 - one per measure
    def total(column: str, some: Iterable[Mapping[str, Any]]) -> int:
        return sum(int(row[column]) for row in some)

    about = [row for row in rows if row["about"] or all_needs]
    match metric:
        case "nps":
            promoters, detractors = total("promoters", about), total("detractors", about)
            return moments(total("nps", about), 100 * (promoters - detractors), 1e4 * (promoters + detractors))
        case "csat":
            return share(total("satisfied", about), total("csat", about))
        case "ces":
            return share(total("easy", about), total("ces", about))
        case "sentiment":
            score, squares = total("score", about) / _MICRO, total("score_squares", about) / _MICRO**2
            return moments(total("words", about), score, squares)
        # Of all that was heard there, how much was bad in this.
        case "pain_share":
            return share(total("pains", about), total("words", rows))
        case "bad_moments":
            return share(total("bad_moments", about), total("interactions", rows))
        case _:
            by_day: dict[int, int] = defaultdict(int)
            for row in about:
                by_day[row["day"]] += int(row["interactions"])
            return daily([by_day[day] for day in range(days)])
