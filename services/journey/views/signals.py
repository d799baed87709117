"""Signals, newest first."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import msgspec

from recorrido.journey.v1.events import SignalRaised
from services.journey.views.links import whole_customer
from services.journey.views.paging import read_token, write_token
from services.journey.views.snapshot import Snapshot

_DECODE = msgspec.json.Decoder(SignalRaised).decode

#: Position of the last signal given.
_TOKEN = msgspec.json.Decoder(tuple[str, int])


@dataclass(frozen=True, slots=True)
class Signal:
    raised: SignalRaised
    raised_at: datetime


async def signals(
    snapshot: Snapshot, customer_id: str, *, page_size: int, page_token: str
) -> tuple[Sequence[Signal], str]:
    """Return a page of signals, and the token of the next page.

    They are those of one customer, over the identities linked to them, or (empty id) of everyone.

    Raises:
        InvalidError: the token is not one of this question's.
    """
    question = ("signals", customer_id, snapshot.as_of.isoformat())
    before = read_token(page_token, question, _TOKEN) if page_token else snapshot.position + 1
    ids = (await whole_customer(snapshot, customer_id, snapshot.position))[1] if customer_id else []
    rows = await snapshot.connection.fetch(
        f"""SELECT position, recorded_at, body FROM signal
            WHERE position < $1 AND recorded_at <= $2 {"AND customer_id = ANY($4::text[])" if customer_id else ""}
            ORDER BY position DESC LIMIT $3""",  # noqa: S608 - constants of ours
        before,
        snapshot.as_of,
        page_size + 1,
        *([ids] if customer_id else []),
    )
    page = rows[:page_size]
    token = write_token(question, page[-1]["position"]) if len(rows) > page_size else ""
    return [Signal(_DECODE(row["body"]), row["recorded_at"]) for row in page], token
