"""What an append may do to a stream: pure rules, the same as KurrentDB's."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from infra.eventstore.model import ANY, DELETED, EXISTS, NO_STREAM, TOMBSTONED, NewEvent, Stream

# Where an event id already is in its stream: every (revision, position), the first one first.
Places = Sequence[tuple[int, int]]


class Plan(NamedTuple):
    """Which events are new, and where the last of the repeated ones was first recorded (None: none repeated)."""

    fresh: Sequence[NewEvent]
    repeated: tuple[int, int] | None


def meets(stream: Stream, expected: int, *, has_metadata: bool = False) -> bool:
    """Whether the stream is as expected.

    A soft-deleted stream counts as absent for NO_STREAM, yet keeps its revision: an append continues the numbering.
    A stream that has only metadata exists.
    """
    state = stream.state
    if state == TOMBSTONED:
        return expected == TOMBSTONED
    if expected == ANY:
        return True
    if expected == NO_STREAM:
        return state in (NO_STREAM, DELETED)
    if expected == EXISTS:
        return state >= 0 or (state == NO_STREAM and has_metadata)
    if expected >= 0:
        return stream.last_revision == expected
    return state == expected


def plan(
    stream: Stream,
    expected: int,
    events: Sequence[NewEvent],
    places: Mapping[bytes, Places],
    *,
    meets: bool,
) -> Plan | None:
    """What to write of `events`, or None when the append is refused. `meets`: whether the stream is as expected.

    With ANY or EXISTS each event id that the stream already has is acknowledged, not written again. With a stated
    revision a repeat is recognised only when the very same ids follow that revision; otherwise the append is refused.
    """
    if meets:
        if expected not in (ANY, EXISTS):
            return Plan(events, None)
        return _without_repeats(events, places)
    if events and not stream.tombstoned and NO_STREAM <= expected < stream.last_revision:
        return _repeat_of(expected, events, places)
    return None


def _without_repeats(events: Sequence[NewEvent], places: Mapping[bytes, Places]) -> Plan:
    if not places and len({event.id for event in events}) == len(events):
        return Plan(events, None)
    fresh: dict[bytes, NewEvent] = {}
    for event in events:
        if event.id not in places:
            fresh.setdefault(event.id, event)
    known = [places[event.id][0] for event in events if event.id in places]
    return Plan(list(fresh.values()), known[-1] if known else None)


def _repeat_of(expected: int, events: Sequence[NewEvent], places: Mapping[bytes, Places]) -> Plan | None:
    last: tuple[int, int] | None = None
    for revision, event in enumerate(events, start=expected + 1):
        last = next((place for place in places.get(event.id, ()) if place[0] == revision), None)
        if last is None:
            return None
    return Plan((), last)
