"""Experience points: what hurts, what customers wish for, what delights, and where."""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

import msgspec

from recorrido.inference.v1.events import PointKind
from recorrido.ingest.v1.events import Interaction, InteractionRecorded, Verbatim
from services.journey.views import links
from services.journey.views.snapshot import MapInForce, Snapshot

KINDS = (PointKind.PAIN, PointKind.ITCH, PointKind.DELIGHT)

_DECODE = msgspec.json.Decoder(InteractionRecorded).decode


@dataclass(frozen=True, slots=True)
class Point:
    """`share` is the part of all customers who said anything in words, 0 to 1; `mean_sentiment` is -1 to 1.

    `touchpoint_id` is empty, and the name the raw one, where the map does not place it.
    """

    kind: PointKind
    need_path: str
    touchpoint_id: str
    touchpoint_name: str
    customers: int
    mentions: int
    share: float
    mean_sentiment: float
    examples: tuple[str, ...]


_POINTS = f"""
WITH mention AS (
    SELECT a.point, a.need_path, p.touchpoint_id,
           CASE WHEN p.touchpoint_id IS NULL THEN r.touchpoint END AS raw_name,
           a.sentiment_score, {links.CUSTOMER} AS customer_id, i.event_id, i.occurred_at, i.position, i.is_anonymous
    FROM analysis a
    JOIN interaction i ON i.event_id = a.interaction_id
    JOIN raw_touchpoint r USING (raw_id)
    LEFT JOIN placement p ON p.raw_id = i.raw_id AND p.map_id = $2 AND p.version = $3
    {links.JOIN}
    WHERE a.recorded_at <= $1 AND $1 < a.superseded_at AND i.recorded_at <= $1 AND a.point = ANY($4::smallint[])
)
SELECT point, need_path, touchpoint_id, raw_name,
       count(DISTINCT customer_id) AS customers, count(*) AS mentions, avg(sentiment_score) AS mean_sentiment,
       COALESCE((array_agg(event_id ORDER BY occurred_at DESC, position DESC)
                 FILTER (WHERE NOT is_anonymous))[1:3], '{{}}') AS examples
FROM mention
GROUP BY point, need_path, touchpoint_id, raw_name
ORDER BY customers DESC, mentions DESC, point, need_path, touchpoint_id, raw_name
LIMIT $5
"""  # noqa: S608 - constants of ours


async def points(
    snapshot: Snapshot, in_force: MapInForce, *, kinds: Sequence[PointKind], limit: int
) -> Sequence[Point]:
    """Return the points of `kinds` by need and touchpoint, those of the most customers first."""
    heard = await snapshot.connection.fetchval(
        f"""SELECT count(DISTINCT {links.CUSTOMER}) FROM interaction i {links.JOIN}
            WHERE i.has_words AND i.recorded_at <= $1""",  # noqa: S608 - constants of ours
        snapshot.as_of,
    )
    rows = await snapshot.connection.fetch(
        _POINTS, snapshot.as_of, in_force.map_id, in_force.version, [kind.number for kind in kinds], limit
    )
    words = await _words(snapshot, [event_id for row in rows for event_id in row["examples"]])
    return [
        Point(
            kind=PointKind.from_number(row["point"]),
            need_path=row["need_path"],
            touchpoint_id=row["touchpoint_id"] or "",
            touchpoint_name=_name(in_force, row["touchpoint_id"], row["raw_name"]),
            customers=row["customers"],
            mentions=row["mentions"],
            share=row["customers"] / max(heard, 1),
            mean_sentiment=row["mean_sentiment"],
            examples=tuple(words[event_id] for event_id in row["examples"]),
        )
        for row in rows
    ]


def _name(in_force: MapInForce, touchpoint_id: str | None, raw_name: str) -> str:
    return raw_name if touchpoint_id is None else in_force.touchpoints[touchpoint_id][1].name


async def _words(snapshot: Snapshot, event_ids: Sequence[UUID]) -> dict[UUID, str]:
    rows = await snapshot.connection.fetch(
        "SELECT event_id, body FROM interaction WHERE event_id = ANY($1::uuid[])", event_ids
    )
    return {row["event_id"]: _text(row["body"]) for row in rows}


def _text(body: bytes) -> str:
    interaction = _DECODE(body).interaction or Interaction()
    return (interaction.verbatim or Verbatim()).text
