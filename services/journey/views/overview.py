"""What is recorded, understood and placed so far."""

from collections.abc import Sequence
from dataclasses import dataclass

from recorrido.ingest.v1.events import Channel
from services.journey.views import links
from services.journey.views.snapshot import MapInForce, Snapshot

#: The uncovered touchpoints named, those with the most interactions.
MAX_UNCOVERED = 100


@dataclass(frozen=True, slots=True)
class Uncovered:
    """A touchpoint, as its source names it, that the map does not place."""

    source: str
    touchpoint: str
    channel: Channel
    interactions: int


@dataclass(frozen=True, slots=True)
class Overview:
    """`analyzed` and `analysis_failed` count interactions; one that failed first and was analysed later is analysed."""

    customers: int
    interactions: int
    verbatims: int
    analyzed: int
    analysis_failed: int
    signals: int
    uncovered_interactions: int
    uncovered: Sequence[Uncovered]


async def overview(snapshot: Snapshot, in_force: MapInForce) -> Overview:
    counts = await snapshot.connection.fetchrow(
        f"""SELECT count(*) AS interactions, count(DISTINCT {links.CUSTOMER}) AS customers,
                  count(*) FILTER (WHERE i.has_words) AS verbatims,
                  count(a.event_id) FILTER (WHERE a.failure IS NULL) AS analyzed,
                  count(a.failure) AS analysis_failed,
                  (SELECT count(*) FROM signal WHERE recorded_at <= $1) AS signals
           FROM interaction i
           LEFT JOIN analysis a ON a.interaction_id = i.event_id AND a.recorded_at <= $1 AND $1 < a.superseded_at
           {links.JOIN}
           WHERE i.recorded_at <= $1""",  # noqa: S608 - constants of ours
        snapshot.as_of,
    )
    rows = await snapshot.connection.fetch(
        """SELECT r.source, r.touchpoint, r.channel, count(*) AS interactions
           FROM interaction i JOIN raw_touchpoint r USING (raw_id)
           LEFT JOIN placement p ON p.raw_id = i.raw_id AND p.map_id = $2 AND p.version = $3
           WHERE i.recorded_at <= $1 AND p.raw_id IS NULL
           GROUP BY r.source, r.touchpoint, r.channel
           ORDER BY interactions DESC, r.source, r.touchpoint, r.channel""",
        snapshot.as_of,
        in_force.map_id,
        in_force.version,
    )
    uncovered = [
        Uncovered(r["source"], r["touchpoint"], Channel.from_number(r["channel"]), r["interactions"]) for r in rows
    ]
    return Overview(
        **counts, uncovered_interactions=sum(u.interactions for u in uncovered), uncovered=uncovered[:MAX_UNCOVERED]
    )
