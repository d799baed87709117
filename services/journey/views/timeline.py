"""One customer's journey, in the order in which it happened to them."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

import msgspec

from recorrido.inference.v1.events import Analysis
from recorrido.ingest.v1.events import CustomerKind, Interaction, InteractionRecorded
from services.foundation.errors import NotFoundError
from services.journey.views.links import whole_customer
from services.journey.views.paging import read_token, write_token
from services.journey.views.snapshot import MapInForce, Snapshot

_DECODE_INTERACTION = msgspec.json.Decoder(InteractionRecorded).decode
_DECODE_ANALYSIS = msgspec.json.Decoder(Analysis).decode

#: occurred_at and position of the last entry given, and up to which position the first page saw the history.
_TOKEN = msgspec.json.Decoder(tuple[str, tuple[datetime, int, int]])
_BEGINNING = (datetime(1, 1, 1, tzinfo=UTC), -1)


@dataclass(frozen=True, slots=True)
class Entry:
    """One interaction. `touchpoint_id` is empty where the map does not place it, `analysis` None until there is one."""

    event_id: UUID
    occurred_at: datetime
    recorded_at: datetime
    interaction: Interaction
    touchpoint_id: str
    analysis: Analysis | None
    analysis_failure: str
    signal_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CustomerJourney:
    """A page of a timeline; `total` counts all entries. `customer_id` is whose it is, also if asked by an identity."""

    customer_id: str
    kind: CustomerKind
    entries: Sequence[Entry]
    next_page_token: str
    total: int


async def customer_journey(
    snapshot: Snapshot, in_force: MapInForce, customer_id: str, *, page_size: int, page_token: str
) -> CustomerJourney:
    """Return a page of a customer's timeline, over the identities that were linked to them then.

    The pages of one walk hold the entries that were known when its first page was asked for, each once.

    Raises:
        NotFoundError: nothing was known of the customer.
        InvalidError: the token is not one of this question's.
    """
    # A map published between two pages would place the second by other rules than the first.
    map_version = f"{in_force.map_id}@{in_force.version}"
    question = ("timeline", customer_id, snapshot.as_of.isoformat(), map_version)
    occurred_at, position, upto = (*_BEGINNING, snapshot.position)
    if page_token:
        occurred_at, position, upto = read_token(page_token, question, _TOKEN)
    owner, ids = await whole_customer(snapshot, customer_id, upto)
    # The kind is the latest that was told.
    about = await snapshot.connection.fetchrow(
        """SELECT count(*) AS total,
                  (array_agg(kind ORDER BY position DESC) FILTER (WHERE kind <> 0))[1] AS kind
           FROM interaction WHERE customer_id = ANY($1::text[]) AND recorded_at <= $2 AND position <= $3""",
        ids,
        snapshot.as_of,
        upto,
    )
    if not about["total"]:
        raise NotFoundError("CUSTOMER_UNKNOWN", f"nothing is known of customer {customer_id!r}{snapshot.then}")
    rows = await snapshot.connection.fetch(
        """SELECT i.event_id, i.position, i.occurred_at, i.recorded_at, i.body,
                  p.touchpoint_id, a.body AS analysis, a.failure
           FROM interaction i
           LEFT JOIN placement p ON p.raw_id = i.raw_id AND p.map_id = $6 AND p.version = $7
           LEFT JOIN analysis a ON a.interaction_id = i.event_id AND a.recorded_at <= $2 AND $2 < a.superseded_at
           WHERE i.customer_id = ANY($1::text[]) AND i.recorded_at <= $2 AND i.position <= $3
             AND (i.occurred_at, i.position) > ($4, $5)
           ORDER BY i.occurred_at, i.position LIMIT $8""",
        ids,
        snapshot.as_of,
        upto,
        occurred_at,
        position,
        in_force.map_id,
        in_force.version,
        page_size + 1,
    )
    page = rows[:page_size]
    signals = await _signals_of(snapshot, [row["event_id"] for row in page])
    entries = [
        Entry(
            event_id=row["event_id"],
            occurred_at=row["occurred_at"],
            recorded_at=row["recorded_at"],
            interaction=_DECODE_INTERACTION(row["body"]).interaction or Interaction(),
            touchpoint_id=row["touchpoint_id"] or "",
            analysis=_DECODE_ANALYSIS(row["analysis"]) if row["analysis"] is not None else None,
            analysis_failure=row["failure"] or "",
            signal_ids=tuple(signals[row["event_id"]]),
        )
        for row in page
    ]
    more = len(rows) > page_size
    token = write_token(question, (page[-1]["occurred_at"], page[-1]["position"], upto)) if more else ""
    return CustomerJourney(owner, CustomerKind.from_number(about["kind"] or 0), entries, token, about["total"])


async def _signals_of(snapshot: Snapshot, event_ids: Sequence[UUID]) -> dict[UUID, list[str]]:
    rows = await snapshot.connection.fetch(
        """SELECT e.event_id, s.signal_id FROM signal_evidence e JOIN signal s USING (signal_id)
           WHERE e.event_id = ANY($1::uuid[]) AND s.recorded_at <= $2 ORDER BY s.position""",
        event_ids,
        snapshot.as_of,
    )
    found = defaultdict(list)
    for row in rows:
        found[row["event_id"]].append(row["signal_id"])
    return found
