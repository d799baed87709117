"""Identities and the customers they are linked to: a query sees the links in force at the time that it asks about."""

from collections.abc import Sequence
from typing import Any

from services.foundation.projection import Fact
from services.journey.views.snapshot import Snapshot

DDL = """
-- Whose an identity is: a row per change, `customer_id` is NULL where it is nobody's from then on. It is in force while
-- since <= as_of < until. The ids are customer ids, that of an identity being `<prefix>:<value>`.
CREATE TABLE identity_link (
    position bigint PRIMARY KEY,
    recorded_at timestamptz NOT NULL,
    identity_id text COLLATE "C" NOT NULL,
    customer_id text COLLATE "C",
    since timestamptz NOT NULL,
    until timestamptz NOT NULL DEFAULT 'infinity',
    next_position bigint
);
CREATE INDEX ON identity_link (identity_id, position);
CREATE INDEX ON identity_link (customer_id);
"""

# `since` never goes back, though clocks may jump: so at any time at most one row of an identity is in force.
_IN_FORCE = """
UPDATE identity_link l SET since = c.since, until = c.until, next_position = c.next_position
FROM (SELECT position, since,
             COALESCE(lead(since) OVER changes, 'infinity') AS until, lead(position) OVER changes AS next_position
      FROM (SELECT position, identity_id, max(recorded_at) OVER (PARTITION BY identity_id ORDER BY position) AS since
            FROM identity_link WHERE identity_id = ANY($1::text[])) monotonic
      WINDOW changes AS (PARTITION BY identity_id ORDER BY position)) c
WHERE l.position = c.position
  AND (l.since, l.until, l.next_position) IS DISTINCT FROM (c.since, c.until, c.next_position)
"""

#: Joins `interaction i` with the link in force, and names the customer that it counts for; $1 is as_of.
JOIN = "LEFT JOIN identity_link l ON l.identity_id = i.customer_id AND l.since <= $1 AND $1 < l.until"
CUSTOMER = "COALESCE(l.customer_id, i.customer_id)"


async def insert_links(connection: Any, facts: Sequence[Fact], customer_ids: Sequence[str | None]) -> None:
    """Insert the changes of a batch: whose each identity is from then on."""
    if not facts:
        return
    # PostgreSQL's text holds no NUL. Ingest lets none in, but a history may have had other writers.
    identity_ids = [fact.event.identity_customer_id.replace("\0", "\N{REPLACEMENT CHARACTER}") for fact in facts]
    await connection.execute(
        """INSERT INTO identity_link (position, recorded_at, identity_id, customer_id, since)
           SELECT position, recorded_at, identity_id, customer_id, recorded_at
           FROM unnest($1::bigint[], $2::timestamptz[], $3::text[], $4::text[])
                AS change (position, recorded_at, identity_id, customer_id)
           ON CONFLICT DO NOTHING""",
        [fact.recorded.position for fact in facts],
        [fact.recorded.recorded_at for fact in facts],
        identity_ids,
        customer_ids,
    )
    await connection.execute(_IN_FORCE, identity_ids)


async def forget(connection: Any, positions: Sequence[int]) -> None:
    """Delete the changes that stand at these positions of the store."""
    rows = await connection.fetch(
        "DELETE FROM identity_link WHERE position = ANY($1::bigint[]) RETURNING identity_id", positions
    )
    await connection.execute(_IN_FORCE, [row["identity_id"] for row in rows])


async def whole_customer(snapshot: Snapshot, customer_id: str, upto: int) -> tuple[str, list[str]]:
    """Return whose `customer_id` is, and all ids that this customer's history is recorded under, that one first.

    Links are followed as of the snapshot's time, as known at the store position `upto`.
    """
    in_force = """since <= $2 AND $2 < CASE WHEN next_position <= $3 THEN until ELSE 'infinity' END
                  AND position <= $3 AND customer_id IS NOT NULL"""
    owner = await snapshot.connection.fetchval(
        f"SELECT customer_id FROM identity_link WHERE identity_id = $1 AND {in_force}",  # noqa: S608 - constants of ours
        customer_id,
        snapshot.as_of,
        upto,
    )
    rows = await snapshot.connection.fetch(
        f"SELECT identity_id FROM identity_link WHERE customer_id = $1 AND {in_force} ORDER BY position",  # noqa: S608
        owner or customer_id,
        snapshot.as_of,
        upto,
    )
    return owner or customer_id, [owner or customer_id, *(row["identity_id"] for row in rows)]
