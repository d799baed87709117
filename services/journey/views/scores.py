"""NPS, CSAT, CES and sentiment, in total and per touchpoint, each with its counts."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from services.journey.domain.scores import (
    NetPromoterScore,
    RatingScore,
    effort_score,
    net_promoter_score,
    satisfaction_score,
)
from services.journey.views import links
from services.journey.views.snapshot import NOW, MapInForce, Snapshot

_ALWAYS = datetime(1, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Scores:
    """A score is None where nobody was asked; `sentiment` counts negative, neutral, positive."""

    interactions: int
    customers: int
    nps: NetPromoterScore | None
    csat: RatingScore | None
    ces: RatingScore | None
    sentiment: tuple[int, int, int]


NOTHING = Scores(0, 0, None, None, None, (0, 0, 0))


@dataclass(frozen=True, slots=True)
class TouchpointScores:
    """On no map: `stage_id` and `touchpoint_id` are empty and `name` is what the sources call it."""

    stage_id: str
    touchpoint_id: str
    name: str
    scores: Scores


_COUNTS = f"""
count(*) AS interactions,
count(DISTINCT {links.CUSTOMER}) AS customers,
ARRAY[count(*) FILTER (WHERE nps >= 9),
      count(*) FILTER (WHERE nps BETWEEN 7 AND 8),
      count(*) FILTER (WHERE nps <= 6)] AS nps,
ARRAY[count(*) FILTER (WHERE csat = 1), count(*) FILTER (WHERE csat = 2), count(*) FILTER (WHERE csat = 3),
      count(*) FILTER (WHERE csat = 4), count(*) FILTER (WHERE csat = 5)] AS csat,
ARRAY[count(*) FILTER (WHERE ces = 1), count(*) FILTER (WHERE ces = 2), count(*) FILTER (WHERE ces = 3),
      count(*) FILTER (WHERE ces = 4), count(*) FILTER (WHERE ces = 5), count(*) FILTER (WHERE ces = 6),
      count(*) FILTER (WHERE ces = 7)] AS ces,
ARRAY[count(*) FILTER (WHERE a.sentiment = 1), count(*) FILTER (WHERE a.sentiment = 2),
      count(*) FILTER (WHERE a.sentiment = 3)] AS sentiment
"""

#: Touchpoints on no map that one answer names.
MAX_UNCOVERED = 100

_SCORES = f"""
SELECT grouping(p.touchpoint_id) = 1 AS is_total, p.touchpoint_id,
       CASE WHEN p.touchpoint_id IS NULL THEN r.touchpoint END AS raw_name, {_COUNTS}
FROM interaction i
JOIN raw_touchpoint r USING (raw_id)
LEFT JOIN placement p ON p.raw_id = i.raw_id AND p.map_id = $2 AND p.version = $3
LEFT JOIN analysis a ON a.interaction_id = i.event_id AND a.recorded_at <= $1 AND $1 < a.superseded_at
{links.JOIN}
WHERE i.recorded_at <= $1 AND i.occurred_at >= $4 AND i.occurred_at < $5
GROUP BY GROUPING SETS ((), (p.touchpoint_id, CASE WHEN p.touchpoint_id IS NULL THEN r.touchpoint END))
"""  # noqa: S608 - constants of ours


async def scores(
    snapshot: Snapshot, in_force: MapInForce, *, since: datetime | None = None, until: datetime | None = None
) -> tuple[Scores, Sequence[TouchpointScores]]:
    """Return the scores of what happened from `since` on and before `until` (None: no bound).

    In total, then per touchpoint: all of the map in its order, silent ones too, then those on no map by raw name, the
    MAX_UNCOVERED with most interactions.
    """
    rows = await snapshot.connection.fetch(
        _SCORES, snapshot.as_of, in_force.map_id, in_force.version, since or _ALWAYS, until or NOW
    )
    total = NOTHING
    placed: dict[str, Scores] = {}
    uncovered: dict[str, Scores] = {}
    for row in rows:
        if row["is_total"]:
            total = _scores(row)
        elif row["touchpoint_id"] is None:
            uncovered[row["raw_name"]] = _scores(row)
        else:
            placed[row["touchpoint_id"]] = _scores(row)
    on_map = [
        TouchpointScores(stage.stage_id, touchpoint_id, touchpoint.name, placed.get(touchpoint_id, NOTHING))
        for touchpoint_id, (stage, touchpoint) in in_force.touchpoints.items()
    ]
    # A source that puts an id into the touchpoint's name would otherwise fill the answer with it.
    most = heapq.nlargest(MAX_UNCOVERED, uncovered, key=lambda name: uncovered[name].interactions)
    return total, [*on_map, *(TouchpointScores("", "", name, uncovered[name]) for name in sorted(most))]


def _scores(row: Any) -> Scores:
    negative, neutral, positive = row["sentiment"]
    return Scores(
        interactions=row["interactions"],
        customers=row["customers"],
        nps=net_promoter_score(*row["nps"]),
        csat=satisfaction_score(row["csat"]),
        ces=effort_score(row["ces"]),
        sentiment=(negative, neutral, positive),
    )
