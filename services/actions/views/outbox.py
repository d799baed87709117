"""What webhooks are still to be told: a row per event and webhook, made in the transaction that moves the position.

Unlike a read model this is no fold over history alone: what was delivered stands only here. So it is never dropped and
built anew; where it is lost, everything since each registration is delivered again, under the ids it had.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg

from recorrido.actions.v1.events import (
    WebhookDeleted,
    WebhookPaused,
    WebhookRegistered,
    WebhookReplayed,
    WebhookResumed,
)
from recorrido.ingest.v1.events import CustomerAnonymized
from services.actions.domain.webhooks import CLAIMED_S, DELIVERED, delivery_id, matches
from services.foundation.errors import UnavailableError
from services.foundation.events import Event
from services.foundation.projection import POSTGRES_DOWN, Fact, ProjectionRunner

#: How long what was delivered is kept, to be shown and to be sent again; what was given up, from its first attempt on.
KEPT = timedelta(days=30)
#: How much longer than an attempt may take it is left to who tries it.
_GRACE = timedelta(seconds=CLAIMED_S)
#: How many deliveries are sent again, or dropped, in one statement: few enough to be done in a moment.
PART = 500


@dataclass(frozen=True, slots=True)
class WebhookLine:
    """A webhook as it is listed; `pending` and `abandoned` count its deliveries."""

    webhook_id: str
    url: str
    event_types: Sequence[str]
    description: str
    paused: bool
    registered_at: datetime
    registered_by: str
    pending: int
    abandoned: int


@dataclass(frozen=True, slots=True)
class Due:
    """A delivery that is to be tried now, for the `attempts`-th time.

    `first_at` is when it was tried first, or when the webhook was resumed after that.
    """

    delivery_id: str
    webhook_id: str
    event_id: UUID
    event_type: str
    stream: str
    revision: int
    position: int
    attempts: int
    first_at: datetime


@dataclass(frozen=True, slots=True)
class DeliveryLine:
    """A delivery as it is listed. `state` is PENDING, DELIVERED or ABANDONED; `last_status` 0 without any answer."""

    delivery_id: str
    event_id: str
    event_type: str
    position: int
    state: str
    attempts: int
    next_at: datetime
    last_status: int
    last_error: str
    delivered_at: datetime | None


#: What people asked for and concerns any number of deliveries; it is worked off a part at a time. REPLAY: what was
#: abandoned (or delivered too), of events recorded since a moment and before `position`, is sent again. DROP: the
#: deliveries of a webhook that was deleted go.
_CHORES = """
        CREATE TABLE IF NOT EXISTS actions_webhooks.chore (
            position bigint PRIMARY KEY,
            webhook_id text NOT NULL,
            what text NOT NULL,
            delivered_too boolean NOT NULL,
            recorded_since timestamptz,
            asked_at timestamptz NOT NULL,
            done_to bigint NOT NULL DEFAULT -1
        );
    """
#: Since a webhook was resumed last its failures count anew: nobody tried while it was paused.
_RESUMED = "ALTER TABLE actions_webhooks.webhook ADD COLUMN IF NOT EXISTS resumed_at timestamptz"
_REPLAY = """
    WITH part AS (
        SELECT delivery_id, position FROM actions_webhooks.delivery
        WHERE webhook_id = $1 AND position > $2 AND position < $3
          AND (state = 'ABANDONED' OR ($4 AND state = 'DELIVERED'))
          AND ($5::timestamptz IS NULL OR recorded_at >= $5)
        ORDER BY position, delivery_id LIMIT $7 FOR UPDATE)
    UPDATE actions_webhooks.delivery d SET state = 'PENDING', attempts = 0, first_at = NULL, next_at = $6
    FROM part WHERE d.delivery_id = part.delivery_id RETURNING part.position"""
_DROP = """
    WITH part AS (
        SELECT delivery_id, position FROM actions_webhooks.delivery WHERE webhook_id = $1
        ORDER BY position, delivery_id LIMIT $2 FOR UPDATE)
    DELETE FROM actions_webhooks.delivery d USING part WHERE d.delivery_id = part.delivery_id RETURNING part.position"""


class OutboxProjection:
    """Tables `webhook`, `delivery` and `chore`."""

    name = "actions_webhooks"
    types: Sequence[type[Event]] = (
        *DELIVERED.values(),
        WebhookRegistered,
        WebhookPaused,
        WebhookResumed,
        WebhookDeleted,
        WebhookReplayed,
        CustomerAnonymized,
    )
    ddl = (
        """
        CREATE TABLE webhook (
            webhook_id text PRIMARY KEY,
            url text NOT NULL,
            event_types text[] NOT NULL,
            description text NOT NULL,
            paused boolean NOT NULL DEFAULT false,
            registered_at timestamptz NOT NULL,
            registered_by text NOT NULL,
            position bigint NOT NULL
        );
        CREATE TABLE delivery (
            delivery_id text PRIMARY KEY,
            webhook_id text NOT NULL,
            event_id uuid NOT NULL,
            event_type text NOT NULL,
            stream text NOT NULL,
            revision bigint NOT NULL,
            position bigint NOT NULL,
            recorded_at timestamptz NOT NULL,
            state text NOT NULL DEFAULT 'PENDING',
            attempts int NOT NULL DEFAULT 0,
            first_at timestamptz,
            next_at timestamptz NOT NULL,
            last_status int NOT NULL DEFAULT 0,
            last_error text NOT NULL DEFAULT '',
            delivered_at timestamptz
        );
        CREATE INDEX ON delivery (webhook_id, next_at) WHERE state = 'PENDING';
        CREATE INDEX ON delivery (webhook_id) WHERE state = 'ABANDONED';
        CREATE INDEX ON delivery (webhook_id, position);
        CREATE INDEX ON delivery (position);
        CREATE INDEX ON delivery (delivered_at) WHERE state = 'DELIVERED';
    """
        + _CHORES
        + _RESUMED
    )

    async def apply(self, connection: Any, facts: Sequence[Fact]) -> None:
        rows = await connection.fetch("SELECT webhook_id, event_types FROM webhook")
        webhooks = {row["webhook_id"]: tuple(row["event_types"]) for row in rows}
        waiting: list[tuple[Any, ...]] = []
        for fact in facts:
            if fact.recorded.type_name in DELIVERED:
                waiting += [
                    _delivery(key, fact) for key, types in webhooks.items() if matches(types, fact.event.type_name)
                ]
                continue
            # What changes webhooks or deliveries comes after what was to be delivered until then.
            await _insert(connection, waiting)
            waiting = []
            await _change(connection, fact, webhooks)
        await _insert(connection, waiting)


def _delivery(webhook_id: str, fact: Fact) -> tuple[Any, ...]:
    recorded = fact.recorded
    return (
        delivery_id(webhook_id, str(recorded.event_id)),
        webhook_id,
        recorded.event_id,
        recorded.type_name,
        recorded.stream,
        recorded.revision,
        recorded.position,
        recorded.recorded_at,
    )


async def _insert(connection: Any, rows: Sequence[tuple[Any, ...]]) -> None:
    await connection.executemany(
        """INSERT INTO delivery (delivery_id, webhook_id, event_id, event_type, stream, revision, position, recorded_at,
                                 next_at)
           VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $8) ON CONFLICT DO NOTHING""",
        rows,
    )


async def _change(connection: Any, fact: Fact, webhooks: dict[str, tuple[str, ...]]) -> None:
    event = fact.event
    match event:
        case WebhookRegistered():
            webhooks[event.webhook_id] = event.event_types
            await connection.execute(
                "INSERT INTO webhook VALUES ($1, $2, $3, $4, false, $5, $6, $7) ON CONFLICT DO NOTHING",
                event.webhook_id,
                event.url,
                list(event.event_types),
                event.description,
                fact.recorded.recorded_at,
                event.actor,
                fact.recorded.position,
            )
        case WebhookPaused():
            await connection.execute("UPDATE webhook SET paused = true WHERE webhook_id = $1", event.webhook_id)
        case WebhookResumed():
            await connection.execute(
                "UPDATE webhook SET paused = false, resumed_at = $2 WHERE webhook_id = $1",
                *(event.webhook_id, fact.recorded.recorded_at),
            )
        case WebhookDeleted():
            webhooks.pop(event.webhook_id, None)
            await connection.execute("DELETE FROM webhook WHERE webhook_id = $1", event.webhook_id)
            await connection.execute("DELETE FROM chore WHERE webhook_id = $1", event.webhook_id)
            # Nobody claims them any more.
            await _add_chore(connection, fact, "DROP", delivered_too=True)
        case WebhookReplayed():
            await _add_chore(connection, fact, "REPLAY", event.recorded_since, delivered_too=event.delivered_too)
        case CustomerAnonymized():
            await connection.execute(
                """DELETE FROM delivery WHERE delivery_id IN (
                       SELECT delivery_id FROM delivery WHERE position = ANY($1::bigint[])
                       ORDER BY position, delivery_id FOR UPDATE)""",
                [int(each) for each in event.erased_positions],
            )


async def _add_chore(
    connection: Any, fact: Fact, what: str, since: datetime | None = None, *, delivered_too: bool
) -> None:
    await connection.execute(
        "INSERT INTO chore VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT DO NOTHING",
        *(fact.recorded.position, fact.event.webhook_id, what, delivered_too, since, fact.recorded.recorded_at),
    )


class OutboxRunner(ProjectionRunner):
    """Keeps the outbox filled, and the tables that are there."""

    async def prepare(self) -> None:
        """Make the tables where there are none, and those that came later. Raises UnavailableError."""
        try:
            there = await self._pool.fetchval("SELECT to_regnamespace($1) IS NOT NULL", self._schema)
            if there:
                await self._pool.execute(_CHORES + _RESUMED)
        except POSTGRES_DOWN as error:
            raise UnavailableError("PostgreSQL", repr(error)) from error
        if not there:
            await super().prepare()


class Outbox:
    """Reads and settles what is in the outbox. Every call raises UnavailableError where PostgreSQL does not answer."""

    def __init__(self, pool: Any, attempt_s: float) -> None:
        """Keep what is claimed for `attempt_s`, which an attempt takes at most, and some grace."""
        self._pool = pool
        #: After so long somebody else may try what a dead process was trying.
        self._lease = timedelta(seconds=attempt_s) + _GRACE

    async def _fetch(self, sql: str, *values: Any) -> Sequence[Any]:
        try:
            rows: Sequence[Any] = await self._pool.fetch(sql, *values)
        except (*POSTGRES_DOWN, asyncpg.TransactionRollbackError) as error:
            raise UnavailableError("PostgreSQL", type(error).__name__) from error
        return rows

    async def busy(self, now: datetime) -> Sequence[str]:
        """Return the ids of the webhooks that have something due."""
        rows = await self._fetch(
            """SELECT webhook_id FROM actions_webhooks.webhook w WHERE NOT paused AND EXISTS (
                   SELECT FROM actions_webhooks.delivery d
                   WHERE d.webhook_id = w.webhook_id AND state = 'PENDING' AND next_at <= $1)""",
            now,
        )
        return [row["webhook_id"] for row in rows]

    async def claim(self, webhook_id: str, now: datetime, count: int) -> Sequence[Due]:
        """Return what is due, oldest first; nobody else gets it until the lease is over."""
        rows = await self._fetch(
            """UPDATE actions_webhooks.delivery d
               SET attempts = attempts + 1, next_at = $3,
                   first_at = GREATEST(
                       COALESCE(first_at, $2),
                       (SELECT resumed_at FROM actions_webhooks.webhook w WHERE w.webhook_id = $1))
               WHERE delivery_id IN (
                   SELECT delivery_id FROM actions_webhooks.delivery
                   WHERE webhook_id = $1 AND state = 'PENDING' AND next_at <= $2
                     AND EXISTS (SELECT FROM actions_webhooks.webhook w WHERE w.webhook_id = $1 AND NOT paused)
                   ORDER BY next_at, position LIMIT $4 FOR UPDATE SKIP LOCKED)
               RETURNING delivery_id, webhook_id, event_id, event_type, stream, revision, position, attempts,
                         first_at""",
            webhook_id,
            now,
            now + self._lease,
            count,
        )
        return sorted((Due(*row) for row in rows), key=lambda due: due.position)

    async def release(self, dues: Sequence[Due], now: datetime) -> None:
        """Give back what was claimed and not tried."""
        await self._settle("attempts = d.attempts - 1, next_at = $4", [(due, 0) for due in dues], now)

    async def delivered(self, dues: Sequence[tuple[Due, int]], now: datetime) -> None:
        """Note what was delivered, each with the status of the answer."""
        set_ = "state = 'DELIVERED', delivered_at = $4, last_status = settled.status, last_error = ''"
        await self._settle(set_, dues, now)

    async def _settle(self, set_: str, dues: Sequence[tuple[Due, int]], now: datetime) -> None:
        # Who changes several rows takes them by their position, so that nobody waits for anybody in a circle.
        await self._fetch(
            f"""WITH settled AS (
                    SELECT d.delivery_id, claimed.status FROM actions_webhooks.delivery d
                    JOIN unnest($1::text[], $2::int[], $3::int[]) AS claimed (delivery_id, attempts, status)
                      ON d.delivery_id = claimed.delivery_id AND d.attempts = claimed.attempts
                    ORDER BY d.position, d.delivery_id FOR UPDATE OF d)
                UPDATE actions_webhooks.delivery d SET {set_} FROM settled WHERE d.delivery_id = settled.delivery_id""",  # noqa: S608 - texts of ours
            [due.delivery_id for due, _ in dues],
            [due.attempts for due, _ in dues],
            [status for _, status in dues],
            now,
        )

    async def failed(self, due: Due, status: int, error: str, again_at: datetime | None) -> None:
        """Note a failure; it is tried again at a moment, None: it is abandoned."""
        await self._fetch(
            """UPDATE actions_webhooks.delivery SET state = CASE WHEN $5::timestamptz IS NULL THEN 'ABANDONED'
                      ELSE 'PENDING' END, next_at = COALESCE($5, next_at), last_status = $3, last_error = $4
               WHERE delivery_id = $1 AND attempts = $2""",
            due.delivery_id,
            due.attempts,
            status,
            error,
            again_at,
        )

    async def forget(self, due: Due) -> None:
        """Drop a delivery whose event was erased."""
        await self._fetch("DELETE FROM actions_webhooks.delivery WHERE delivery_id = $1", due.delivery_id)

    async def work_off(self, now: datetime) -> None:
        """Do a part of what people asked for that concerns many deliveries, where there is anything.

        No more is sent again than a receiver keeps up with, so that what happens meanwhile does not wait for all of it.
        """
        try:
            async with self._pool.acquire() as connection, connection.transaction():
                chore = await connection.fetchrow(
                    """SELECT * FROM actions_webhooks.chore c
                       WHERE what = 'DROP' OR (
                           SELECT count(*) FROM (
                               SELECT FROM actions_webhooks.delivery d
                               WHERE d.webhook_id = c.webhook_id AND state = 'PENDING' AND next_at <= $1 LIMIT $2
                           ) AS waiting) < $2
                       ORDER BY position LIMIT 1 FOR UPDATE OF c SKIP LOCKED""",
                    now,
                    PART,
                )
                if chore is not None:
                    await _work_off(connection, chore, now)
        except (*POSTGRES_DOWN, asyncpg.TransactionRollbackError) as error:
            raise UnavailableError("PostgreSQL", type(error).__name__) from error

    async def prune(self, now: datetime) -> bool:
        """Drop some of what was delivered or given up long ago; return whether there was any."""
        rows = await self._fetch(
            """DELETE FROM actions_webhooks.delivery WHERE delivery_id IN (
                   SELECT delivery_id FROM actions_webhooks.delivery
                   WHERE (state = 'DELIVERED' AND delivered_at < $1) OR (state = 'ABANDONED' AND first_at < $1)
                   LIMIT $2 FOR UPDATE SKIP LOCKED)
               RETURNING 1""",
            now - KEPT,
            PART,
        )
        return bool(rows)

    async def webhooks(self) -> Sequence[WebhookLine]:
        """Return all webhooks, oldest first."""
        rows = await self._fetch(
            """SELECT webhook_id, url, event_types, description, paused, registered_at, registered_by,
                      (SELECT count(*) FROM actions_webhooks.delivery d
                       WHERE d.webhook_id = w.webhook_id AND state = 'PENDING') AS pending,
                      (SELECT count(*) FROM actions_webhooks.delivery d
                       WHERE d.webhook_id = w.webhook_id AND state = 'ABANDONED') AS abandoned
               FROM actions_webhooks.webhook w ORDER BY position"""
        )
        return [WebhookLine(*row) for row in rows]

    async def deliveries(self, webhook_id: str, state: str, before: int, count: int) -> Sequence[DeliveryLine]:
        """Return deliveries of events before a position (0: all), last first; `state` empty: whatever it is."""
        rows = await self._fetch(
            """SELECT delivery_id, event_id::text, event_type, position, state, attempts, next_at, last_status,
                      last_error, delivered_at
               FROM actions_webhooks.delivery
               WHERE webhook_id = $1 AND ($2 = '' OR state = $2) AND ($3::bigint = 0 OR position < $3)
                 AND EXISTS (SELECT FROM actions_webhooks.webhook w WHERE w.webhook_id = $1)
               ORDER BY position DESC LIMIT $4""",
            webhook_id,
            state,
            before,
            count,
        )
        return [DeliveryLine(*row) for row in rows]


async def _work_off(connection: Any, chore: Any, now: datetime) -> None:
    if chore["what"] == "DROP":
        done = await connection.fetch(_DROP, chore["webhook_id"], PART)
    else:
        which = (chore["webhook_id"], chore["done_to"], chore["position"], chore["delivered_too"])
        done = await connection.fetch(_REPLAY, *which, chore["recorded_since"], now, PART)
    if len(done) < PART:
        await connection.execute("DELETE FROM actions_webhooks.chore WHERE position = $1", chore["position"])
    else:
        done_to = max(row["position"] for row in done)
        sql = "UPDATE actions_webhooks.chore SET done_to = $2 WHERE position = $1"
        await connection.execute(sql, chore["position"], done_to)
