"""What was rejected: a list in PostgreSQL, and single rejections from their own streams."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec

from recorrido.ingest.v1.events import (
    CustomerAnonymized,
    Interaction,
    InteractionRejected,
    RejectionDiscarded,
    RejectionResubmitted,
    RejectionState,
)
from services.foundation.events import Event, Registry, encode
from services.foundation.eventstore import EventStore
from services.foundation.paging import POSITION, read_token, write_token
from services.foundation.projection import Fact, answerable, in_order, positions_of, storable
from services.foundation.rules import Rules
from services.ingest.rejection import Rejection, Rejections, check_id, evolve, stream_of, unknown

MAX_PAGE = 1_000
DEFAULT_PAGE = 100
#: Longer values are found by their beginning: a B-tree holds no entry beyond 2,704 bytes.
_MAX_INDEXED = 256
#: Places in lists and maps, which a filter by field leaves out.
_PLACES = re.compile(r"\[.*?\]")


@dataclass(frozen=True, slots=True)
class Listed:
    """A rejection with its times, UTC. `resolved_at` None: it is open."""

    rejection: Rejection
    rejected_at: datetime
    resolved_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RejectionQuery:
    """Which rejections to list; None or empty: whatever it is. Raises InvalidError."""

    state: RejectionState | None = None
    source: str = ""
    reason: str = ""
    field: str = ""
    customer_id: str = ""
    client_id: str = ""
    from_time: datetime | None = None
    to_time: datetime | None = None
    page_size: int = DEFAULT_PAGE
    page_token: str = ""

    def __post_init__(self) -> None:
        rules = Rules()
        for name in ("source", "reason", "field", "customer_id", "client_id"):
            # What was wrong with it may be just that it holds other control characters.
            rules.require("\0" not in getattr(self, name), name, "no NUL")
        rules.require(1 <= self.page_size <= MAX_PAGE, "page_size", f"between 1 and {MAX_PAGE:,}")
        rules.enforce()

    @property
    def conditions(self) -> list[tuple[str, Any]]:
        """SQL conditions with the value of each."""
        given = [
            ("state = $", self.state.value if self.state else None),
            ("source = $", self.source[:_MAX_INDEXED]),
            ("reason = $", self.reason),
            ("fields @> ARRAY[$]::text[]", self.field),
            ("customer_id = $", self.customer_id[:_MAX_INDEXED]),
            ("client_id = $", self.client_id),
            ("rejected_at >= $", self.from_time),
            ("rejected_at < $", self.to_time),
        ]
        return [(condition, value) for condition, value in given if value]


@dataclass(frozen=True, slots=True)
class RejectionPage:
    """One page, newest first. `total` counts all that match; `next_page_token` is empty on the last page."""

    rejections: Sequence[Listed]
    next_page_token: str
    total: int


class RejectionsProjection:
    """Table `rejection`: one row each. `position` is that of its event in the store, and orders them."""

    name = "rejections"
    types: Sequence[type[Event]] = (*Rejections.types, CustomerAnonymized)
    ddl = """
        CREATE TABLE rejection (
            rejection_id text PRIMARY KEY,
            position bigint NOT NULL UNIQUE,
            rejected_at timestamptz NOT NULL,
            state text NOT NULL,
            source text NOT NULL,
            customer_id text NOT NULL,
            client_id text NOT NULL,
            reason text NOT NULL,
            -- Paths of the broken fields, without places in lists and maps.
            fields text[] NOT NULL,
            -- The event, as JSON. PostgreSQL's own JSON holds no NUL, which may be what was wrong.
            rejected bytea NOT NULL,
            resolved_at timestamptz,
            actor text NOT NULL DEFAULT '',
            note text NOT NULL DEFAULT '',
            event_id text NOT NULL DEFAULT ''
        );
        CREATE INDEX ON rejection (state, position);
        CREATE INDEX ON rejection (source, position);
        CREATE INDEX ON rejection (customer_id, position);
        CREATE INDEX ON rejection (rejected_at);
        CREATE INDEX ON rejection USING gin (fields);
    """

    async def apply(self, connection: Any, facts: Sequence[Fact]) -> None:
        await in_order(connection, facts, CustomerAnonymized, self._add, forget=self._forget)

    async def _forget(self, connection: Any, fact: Fact) -> None:
        positions = positions_of(fact.event.erased_positions)
        await connection.execute("DELETE FROM rejection WHERE position = ANY($1::bigint[])", positions)

    async def _add(self, connection: Any, facts: Sequence[Fact]) -> None:
        await connection.executemany(_INSERT, [_row(f) for f in facts if isinstance(f.event, InteractionRejected)])
        # After all of them: what resolves a rejection comes behind it.
        resolved = [f for f in facts if isinstance(f.event, RejectionResubmitted | RejectionDiscarded)]
        await connection.executemany(_RESOLVE, [_resolution(f) for f in resolved])


_INSERT = """
    INSERT INTO rejection (rejection_id, position, rejected_at, state, source, customer_id, client_id, reason, fields,
                           rejected)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) ON CONFLICT DO NOTHING
"""
_RESOLVE = """
    UPDATE rejection SET state = $2, resolved_at = $3, actor = $4, note = $5, event_id = $6 WHERE rejection_id = $1
"""


def _row(fact: Fact) -> tuple[Any, ...]:
    event: InteractionRejected = fact.event
    interaction = event.interaction or Interaction()
    return (
        event.rejection_id,
        fact.recorded.position,
        fact.recorded.recorded_at,
        RejectionState.OPEN.value,
        _indexed(interaction.source),
        _indexed(interaction.customer.customer_id if interaction.customer else ""),
        _indexed(event.client_id),
        event.reason,
        sorted({_indexed(_PLACES.sub("", broken.field)) for broken in event.violations}),
        encode(event),
    )


def _resolution(fact: Fact) -> tuple[Any, ...]:
    event: RejectionResubmitted | RejectionDiscarded = fact.event
    resolved = evolve(Rejection(), event)
    return (
        event.rejection_id,
        resolved.state.value,
        fact.recorded.recorded_at,
        resolved.actor,
        resolved.note,
        resolved.event_id,
    )


def _indexed(value: str) -> str:
    return storable(value[:_MAX_INDEXED])


class RejectionQueries:
    """Answers questions about what was rejected."""

    def __init__(self, store: EventStore, pool: Any) -> None:
        self._store = store
        self._pool = pool
        self._registry = Registry(Rejections.types)

    async def get(self, rejection_id: str) -> Listed:
        """Return a rejection as it stands now.

        Raises:
            InvalidError: this is the id of none.
            NotFoundError: there is none of that id.
            UnavailableError: the store does not answer.
        """
        check_id(rejection_id)
        listed: Listed | None = None
        for recorded in await self._store.read(stream_of(rejection_id)):
            event = self._registry.read(recorded)
            if event is None:
                continue
            if listed is None:
                listed = Listed(evolve(Rejection(), event), recorded.recorded_at)
            else:
                listed = Listed(evolve(listed.rejection, event), listed.rejected_at, recorded.recorded_at)
        if listed is None:
            raise unknown(rejection_id)
        return listed

    async def list(self, query: RejectionQuery) -> RejectionPage:
        """Return one page. What is rejected while somebody pages comes before the first page, never in between.

        Raises:
            InvalidError: the page token is not ours, or for other filters.
            UnavailableError: PostgreSQL does not answer, or has no list yet.
        """
        values = [value for _, value in query.conditions]
        texts = [condition.replace("$", f"${number}") for number, (condition, _) in enumerate(query.conditions, 1)]
        matching = f"FROM rejections.rejection WHERE {' AND '.join(texts) or 'true'}"
        behind = ""
        page_values = [*values, query.page_size + 1]
        if query.page_token:
            page_values.append(read_token(query.page_token, _question(query), POSITION))
            behind = f" AND position < ${len(page_values)}"
        page = f"SELECT * {matching}{behind} ORDER BY position DESC LIMIT ${len(values) + 1}"
        with answerable():
            # One snapshot, so that the total fits the page.
            async with (
                self._pool.acquire() as connection,
                connection.transaction(isolation="repeatable_read", readonly=True),
            ):
                total = await connection.fetchval(f"SELECT count(*) {matching}", *values)
                rows = await connection.fetch(page, *page_values)
        shown = rows[: query.page_size]
        token = write_token(_question(query), shown[-1]["position"]) if len(rows) > len(shown) else ""
        return RejectionPage([_listed(row) for row in shown], token, total)


_DECODER = msgspec.json.Decoder(InteractionRejected)


def _listed(row: Any) -> Listed:
    rejection = Rejection(
        state=RejectionState(row["state"]),
        rejected=_DECODER.decode(row["rejected"]),
        actor=row["actor"],
        note=row["note"],
        event_id=row["event_id"],
    )
    return Listed(rejection, row["rejected_at"], row["resolved_at"])


def _question(query: RejectionQuery) -> list[str]:
    return [repr(each) for each in query.conditions]
