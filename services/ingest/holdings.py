"""The read model of ingest: who is linked to whom, and which streams hold something about a customer.

The customer's own stream is known by its name; every other stream that names a customer is found here.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from recorrido.actions.v1.events import ActionOpened, SignalAnswered
from recorrido.ingest.v1.events import (
    CustomerAnonymized,
    CustomerErased,
    Identity,
    IdentityKind,
    IdentityLinked,
    IdentityUnlinked,
    InteractionRejected,
    RejectionResubmitted,
)
from recorrido.journey.v1.events import SignalRaised
from services.foundation.errors import UnavailableError
from services.foundation.events import Event, stream_name
from services.foundation.eventstore import EventStore
from services.foundation.projection import Fact, ProjectionRunner, answerable, storable

#: How long a question waits for the read model to know what the store knows.
CATCH_UP_S = 10.0

DDL = """
-- One row per time that an identity was linked; `identity_id` is the customer id of what is recorded under it. The
-- positions are those of the events in the store.
CREATE TABLE identity_link (
    position bigint PRIMARY KEY,
    kind text NOT NULL,
    value text NOT NULL,
    identity_id text NOT NULL,
    stream text NOT NULL,
    customer_id text NOT NULL,
    linked_at timestamptz NOT NULL,
    linked_by text NOT NULL,
    unlinked_position bigint,
    unlinked_at timestamptz,
    unlinked_by text NOT NULL DEFAULT ''
);
CREATE INDEX ON identity_link (customer_id);
CREATE INDEX ON identity_link (stream, position);

CREATE INDEX ON identity_link (identity_id);

-- A stream that is about one customer, by the event that says so.
CREATE TABLE holding (
    position bigint PRIMARY KEY,
    customer_id text NOT NULL,
    stream text NOT NULL
);
CREATE INDEX ON holding (customer_id);

-- Events of an erasure that is under way. Its rows are needed until the very end, to find again what is to be erased.
CREATE TABLE erasing (
    receipt_id text NOT NULL,
    position bigint NOT NULL,
    PRIMARY KEY (receipt_id, position)
);
"""


About = SignalRaised | ActionOpened | SignalAnswered | InteractionRejected | RejectionResubmitted


class HoldingsProjection:
    """Folds links, signals and actions into the tables above."""

    name = "ingest"
    types: Sequence[type[Event]] = (
        IdentityLinked,
        IdentityUnlinked,
        SignalRaised,
        ActionOpened,
        SignalAnswered,
        InteractionRejected,
        RejectionResubmitted,
        CustomerAnonymized,
        CustomerErased,
    )
    ddl = DDL

    async def apply(self, connection: Any, facts: Sequence[Fact]) -> None:
        await _insert_links(connection, [f for f in facts if isinstance(f.event, IdentityLinked)])
        await _end_links(connection, [f for f in facts if isinstance(f.event, IdentityUnlinked)])
        await _insert_holdings(connection, [f for f in facts if isinstance(f.event, About)])
        await _begin_erasing(connection, [f.event for f in facts if isinstance(f.event, CustomerAnonymized)])
        await _erase(connection, [f.event.receipt_id for f in facts if isinstance(f.event, CustomerErased)])


async def _insert_links(connection: Any, facts: Sequence[Fact]) -> None:
    rows = [
        (
            fact.recorded.position,
            identity.kind.value,
            storable(identity.value),
            storable(fact.event.identity_customer_id),
            fact.recorded.stream,
            storable(fact.event.customer_id),
            fact.recorded.recorded_at,
            storable(fact.event.actor),
        )
        for fact in facts
        for identity in [fact.event.identity or Identity()]
    ]
    await connection.executemany(
        """INSERT INTO identity_link (position, kind, value, identity_id, stream, customer_id, linked_at, linked_by)
           VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT DO NOTHING""",
        rows,
    )


async def _end_links(connection: Any, facts: Sequence[Fact]) -> None:
    rows = [(f.recorded.position, f.recorded.recorded_at, storable(f.event.actor), f.recorded.stream) for f in facts]
    # The link that stood before it, so that it does not matter how the history was cut into batches.
    await connection.executemany(
        """UPDATE identity_link SET unlinked_position = $1, unlinked_at = $2, unlinked_by = $3
           WHERE position = (SELECT max(position) FROM identity_link WHERE stream = $4 AND position < $1)""",
        rows,
    )


async def _insert_holdings(connection: Any, facts: Sequence[Fact]) -> None:
    rows = [(f.recorded.position, storable(_customer_of(f.event)), f.recorded.stream) for f in facts]
    await connection.executemany(
        "INSERT INTO holding VALUES ($1, $2, $3) ON CONFLICT DO NOTHING", [row for row in rows if row[1]]
    )


def _customer_of(event: About) -> str:
    if isinstance(event, InteractionRejected):
        customer = event.interaction.customer if event.interaction else None
        return customer.customer_id if customer else ""
    return event.customer_id


async def _begin_erasing(connection: Any, events: Sequence[CustomerAnonymized]) -> None:
    rows = [(event.receipt_id, int(position)) for event in events for position in event.erased_positions]
    await connection.executemany("INSERT INTO erasing VALUES ($1, $2) ON CONFLICT DO NOTHING", rows)


async def _erase(connection: Any, receipt_ids: Sequence[str]) -> None:
    if not receipt_ids:
        return
    for table in ("identity_link", "holding"):
        await connection.execute(
            f"""DELETE FROM {table} WHERE position IN
                (SELECT position FROM erasing WHERE receipt_id = ANY($1::text[]))""",  # noqa: S608 - constants of ours
            receipt_ids,
        )
    await connection.execute("DELETE FROM erasing WHERE receipt_id = ANY($1::text[])", receipt_ids)


@dataclass(frozen=True, slots=True)
class LinkRow:
    """One time that an identity was linked; `unlinked_at` None: it still is."""

    identity: Identity
    identity_id: str
    stream: str
    customer_id: str
    linked_at: datetime
    linked_by: str
    unlinked_at: datetime | None
    unlinked_by: str


@dataclass(frozen=True, slots=True)
class Held:
    """What is held about a customer: under which ids, and in which streams.

    `owner` is the customer that the id asked for is linked to, if any. `ids` are the customer's and those of the
    identities linked to them now. `shared` are the streams of identities that were theirs once, or nobody's, and are
    somebody else's now.
    """

    owner: str
    ids: Sequence[str]
    streams: Sequence[str]
    shared: Sequence[str]


class Holdings:
    """Answers from the read model, with all that the store knew when it was asked."""

    def __init__(self, store: EventStore, pool: Any, runner: ProjectionRunner) -> None:
        self._store = store
        self._pool = pool
        self._runner = runner

    async def links_of(self, customer_id: str) -> list[LinkRow]:
        """Return every link that a customer ever had, oldest first. Raises UnavailableError."""
        async with self._connection() as connection:
            rows = await connection.fetch(
                "SELECT * FROM ingest.identity_link WHERE customer_id = $1 ORDER BY position", customer_id
            )
        return [_row(row) for row in rows]

    async def held(self, customer_id: str, until: int | None = None) -> Held:
        """Return what is held about a customer; identities linked behind the position `until` are not theirs.

        Raises UnavailableError.
        """
        async with self._connection() as connection:
            owner = await connection.fetchval(
                "SELECT customer_id FROM ingest.identity_link WHERE identity_id = $1 AND unlinked_position IS NULL",
                customer_id,
            )
            linked = await connection.fetch(
                """SELECT identity_id, stream FROM ingest.identity_link
                   WHERE customer_id = $1 AND unlinked_position IS NULL AND ($2::bigint IS NULL OR position <= $2)
                   ORDER BY position""",
                customer_id,
                until,
            )
            ids = [customer_id, *(row["identity_id"] for row in linked)]
            own = await connection.fetch(
                """SELECT DISTINCT ON (stream) stream, customer_id, unlinked_position FROM ingest.identity_link
                   WHERE identity_id = ANY($1::text[]) ORDER BY stream, position DESC""",
                ids,
            )
            once = await connection.fetch(
                "SELECT DISTINCT stream FROM ingest.identity_link WHERE customer_id = ANY($1::text[])", ids
            )
            about = await connection.fetch(
                """SELECT stream FROM ingest.holding WHERE customer_id = ANY($1::text[])
                   GROUP BY stream ORDER BY min(position)""",
                ids,
            )
        # An erasure may have waited, or be half done, when an identity became somebody else's.
        mine = [row["stream"] for row in own if row["unlinked_position"] or row["customer_id"] == customer_id]
        return Held(
            owner=owner or "",
            ids=ids,
            streams=[*(stream_name("customer", each) for each in ids), *mine, *(row["stream"] for row in about)],
            shared=sorted({row["stream"] for row in (*own, *once)} - set(mine)),
        )

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Any]:
        await self._catch_up()
        with answerable():
            async with self._pool.acquire() as connection:
                yield connection

    async def _catch_up(self) -> None:
        """Wait until the read model holds what the store holds now.

        Its checkpoint may stand before a stretch without any event of its own, so that stretch is looked through.
        """
        types = [each.type_name for each in HoldingsProjection.types]
        checkpoint = self._runner.position
        last = checkpoint
        async for recorded in self._store.read_all(checkpoint if checkpoint > 0 else None, types):
            last = max(last, recorded.position)
        if not await self._runner.wait_for(last, CATCH_UP_S):
            raise UnavailableError("read model", f"is behind the event store by more than {CATCH_UP_S:g} s")


def _row(row: Any) -> LinkRow:
    return LinkRow(
        identity=Identity(kind=IdentityKind(row["kind"]), value=row["value"]),
        identity_id=row["identity_id"],
        stream=row["stream"],
        customer_id=row["customer_id"],
        linked_at=row["linked_at"],
        linked_by=row["linked_by"],
        unlinked_at=row["unlinked_at"],
        unlinked_by=row["unlinked_by"],
    )
