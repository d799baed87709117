"""What a contradiction contradicts: the fields in which an interaction differs from what was recorded under its key."""

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from recorrido.ingest.v1.events import Interaction, InteractionRecorded
from services.foundation.errors import DiffersError, UnavailableError
from services.foundation.events import Registry
from services.foundation.eventstore import EventStore
from services.ingest.domain import RecordInteraction, key_of

#: Contradictions of one batch that are looked into, and events of a customer that are looked through for each: it is a
#: courtesy, and who sends a thousand of them is told by the first what is wrong.
EXPLAINED, LOOKED_THROUGH = 16, 4_096

_REGISTRY = Registry((InteractionRecorded,))


def differing(recorded: Interaction, given: Interaction) -> Sequence[str]:
    """Return the paths of the fields that differ, as the contract names them; not what they hold, nor keys of maps."""
    return list(_paths("", recorded, given))


def _paths(place: str, one: msgspec.Struct, other: msgspec.Struct) -> Iterator[str]:
    for field in msgspec.structs.fields(one):
        mine, theirs = getattr(one, field.name), getattr(other, field.name)
        path = f"{place}{field.name}"
        if isinstance(mine, msgspec.Struct) and isinstance(theirs, msgspec.Struct):
            yield from _paths(f"{path}.", mine, theirs)
        elif mine != theirs:
            yield path


async def explained(
    store: EventStore, contradictions: Sequence[tuple[RecordInteraction, DiffersError]]
) -> list[DiffersError]:
    """Return the errors, the first EXPLAINED of them with the fields that differ, where the store tells them."""
    first = [_explained(store, *each) for each in contradictions[:EXPLAINED]]
    return [*await asyncio.gather(*first), *(error for _, error in contradictions[EXPLAINED:])]


async def _explained(store: EventStore, command: RecordInteraction, error: DiffersError) -> DiffersError:
    try:
        recorded = await _recorded(store, command)
    except UnavailableError:
        return error
    fields = differing(recorded, command.interaction) if recorded else ()
    if not fields:
        return error
    details: dict[str, Any] = {**error.details, "fields": ",".join(fields)}
    return DiffersError(error.reason, f"{error.message}; they differ in {', '.join(fields)}", details)


async def _recorded(store: EventStore, command: RecordInteraction) -> Interaction | None:
    for each in await store.read(command.stream, limit=LOOKED_THROUGH):
        event: InteractionRecorded | None = _REGISTRY.read(each)
        if event is not None and event.interaction is not None and key_of(event.interaction) == command.key:
            return event.interaction
    return None
