"""What webhooks are still to be told: a row per event and webhook, made in the transaction that moves the position.

Unlike a read model this is no fold over history alone: what was delivered stands only here. So it is never dropped and
built anew; where it is lost, everything since each registration is delivered again, under the ids it had.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from recorrido.actions.v1.events import (
    WebhookDeleted,
    WebhookPaused,
    WebhookRegistered,
    WebhookReplayed,
    WebhookResumed,
)
from recorrido.ingest.v1.events import CustomerAnonymized
from services.actions.domain.webhooks import DELIVERED, delivery_id, matches
from services.foundation.errors import UnavailableError
from services.foundation.events import Event
from services.foundation.projection import POSTGRES_DOWN, Fact, ProjectionRunner

#: How long what was delivered is kept, to be shown and to be sent again.
KEPT = timedelta(days=30)
#: How much longer than an attempt may take it is left to who tries it.
_GRACE = timedelta(seconds=10)


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
    """A delivery that is to be tried now, for the `attempts`-th time since `first_at`."""

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


class OutboxProjection:
    """Tables `webhook` and `delivery`."""

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
    ddl = """
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
        case WebhookPaused() | WebhookResumed():
            await connection.execute(
                "UPDATE webhook SET paused = $2 WHERE webhook_id = $1",
                event.webhook_id,
                isinstance(event, WebhookPaused),
            )
        case WebhookDeleted():
            webhooks.pop(event.webhook_id, None)
            await connection.execute("DELETE FROM webhook WHERE webhook_id = $1", event.webhook_id)
            await connection.execute("DELETE FROM delivery WHERE webhook_id = $1", event.webhook_id)
        case WebhookReplayed():
            await connection.execute(
                """UPDATE delivery SET state = 'PENDING', attempts = 0, first_at = NULL, next_at = $2
                   WHERE webhook_id = $1 AND (state = 'ABANDONED' OR ($3 AND state = 'DELIVERED'))
                     AND ($4::timestamptz IS NULL OR recorded_at >= $4) AND position < $5""",
                event.webhook_id,
                fact.recorded.recorded_at,
                event.delivered_too,
                event.recorded_since,
                fact.recorded.position,
            )
        case CustomerAnonymized():
            await connection.execute(
                "DELETE FROM delivery WHERE position = ANY($1::bigint[])",
                [int(each) for each in event.erased_positions],
            )


class OutboxRunner(ProjectionRunner):
    """Keeps the outbox filled, and the tables that are there."""

    async def prepare(self) -> None:
        """Make the tables where there are none. Raises UnavailableError."""
        try:
            there = await self._pool.fetchval("SELECT to_regnamespace($1) IS NOT NULL", self._schema)
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
        except POSTGRES_DOWN as error:
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
               SET attempts = attempts + 1, first_at = COALESCE(first_at, $2), next_at = $3
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

    async def delivered(self, due: Due, status: int, now: datetime) -> None:
        await self._fetch(
            """UPDATE actions_webhooks.delivery SET state = 'DELIVERED', delivered_at = $3, last_status = $4,
                      last_error = '' WHERE delivery_id = $1 AND attempts = $2""",
            due.delivery_id,
            due.attempts,
            now,
            status,
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

    async def prune(self, now: datetime) -> None:
        """Drop what was delivered long ago."""
        await self._fetch(
            "DELETE FROM actions_webhooks.delivery WHERE state = 'DELIVERED' AND delivered_at < $1", now - KEPT
        )

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
               ORDER BY position DESC LIMIT $4""",
            webhook_id,
            state,
            before,
            count,
        )
        return [DeliveryLine(*row) for row in rows]
