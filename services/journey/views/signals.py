"""Signals, newest first."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache

import msgspec
import numpy as np

from recorrido.journey.v1.events import SignalRaised
from services.foundation.paging import read_token, write_token
from services.foundation.placement import named
from services.journey.domain.reading import Reading
from services.journey.views.snapshot import Snapshot

_DECODE = msgspec.json.Decoder(SignalRaised).decode

#: Position of the last signal given.
_TOKEN = msgspec.json.Decoder(tuple[str, int])


@dataclass(frozen=True, slots=True)
class Signal:
    raised: SignalRaised
    raised_at: datetime


def places(reading: Reading, found: Sequence[Signal]) -> list[str]:
    """Return what the map of a reading calls where each signal is, several names joined by "or"; empty: on no map.

    A signal of a map's touchpoint names it. Of others the interactions tell that are their evidence, and where there
    are none, all that sources call so.
    """
    names = [touchpoint.name for _, touchpoint in reading.touchpoints]
    numbers = {touchpoint.touchpoint_id: n for n, (_, touchpoint) in enumerate(reading.touchpoints)}
    history = reading.history
    table, raws = history.interactions, history.vocabulary.touchpoints
    placed = reading.placements.of(raws)

    def of(raised: SignalRaised) -> set[int]:
        if raised.touchpoint_id:
            return {numbers.get(named(reading.map_, raised.touchpoint_id) or "", -1)}
        positions = np.array([int(e.position) for e in raised.evidence if e.position.isdecimal()], np.int64)
        rows = np.searchsorted(table.position, positions)
        rows = rows[np.append(table.position, -1)[rows] == positions]
        if len(rows):
            return {*placed[table.touchpoint[rows]].tolist()}
        return called().get(raised.touchpoint, set())

    @cache
    def called() -> Mapping[str, set[int]]:
        # A source may put an id into the touchpoint's name: there may be very many.
        found = defaultdict(set)
        for n, raw in zip(placed.tolist(), raws, strict=False):
            found[raw.touchpoint].add(n)
        return found

    return [" or ".join(names[n] for n in sorted(of(each.raised)) if n >= 0) for each in found]


async def signals(
    snapshot: Snapshot, customer_id: str, *, page_size: int, page_token: str, rule: str = ""
) -> tuple[Sequence[Signal], str]:
    """Return a page of signals, and the token of the next page.

    They are those of one customer, over the identities linked to them, or (empty id) of everyone; with a rule those
    that it raised.

    Raises:
        InvalidError: the token is not one of this question's.
    """
    question = ("signals", customer_id, rule, snapshot.as_of.isoformat())
    before = min(read_token(page_token, question, _TOKEN) if page_token else snapshot.cut, snapshot.cut)
    conditions, arguments = ["position < $1"], [before, page_size + 1]
    if rule:
        arguments.append(rule)  # type: ignore[arg-type]
        conditions.append(f"rule = ${len(arguments)}")
    if customer_id:
        arguments.append(await _positions(snapshot, customer_id))  # type: ignore[arg-type]
        conditions.append(f"position = ANY(${len(arguments)}::bigint[])")
    rows = await snapshot.connection.fetch(
        f"""SELECT position, recorded_at, body FROM signal WHERE {" AND ".join(conditions)}
            ORDER BY position DESC LIMIT $2""",  # noqa: S608 - constants of ours
        *arguments,
    )
    page = rows[:page_size]
    token = write_token(question, page[-1]["position"]) if len(rows) > page_size else ""
    return [Signal(_DECODE(row["body"]), row["recorded_at"]) for row in page], token


async def _positions(snapshot: Snapshot, customer_id: str) -> list[int]:
    number = await snapshot.number_of(customer_id)
    history = snapshot.history
    if number is None or number >= len(history.owners):
        return []
    marks = history.signals
    known = np.flatnonzero(marks.customer >= 0)
    mine = known[history.owners[marks.customer[known]] == history.owners[number]]
    found: list[int] = marks.position[mine].tolist()
    return found


async def signals_at(snapshot: Snapshot, positions: Sequence[int]) -> list[Signal]:
    """Return the signals that stand at these positions of the store, newest first."""
    rows = await snapshot.connection.fetch(
        "SELECT recorded_at, body FROM signal WHERE position = ANY($1::bigint[]) ORDER BY position DESC", positions
    )
    return [Signal(_DECODE(row["body"]), row["recorded_at"]) for row in rows]


async def signals_by_rules(snapshot: Snapshot, rules: Sequence[str]) -> list[Signal]:
    """Return all signals that these rules raised, oldest first."""
    rows = await snapshot.connection.fetch(
        "SELECT recorded_at, body FROM signal WHERE rule = ANY($1::text[]) AND position < $2 ORDER BY position",
        list(rules),
        snapshot.cut,
    )
    return [Signal(_DECODE(row["body"]), row["recorded_at"]) for row in rows]
