"""What a contradiction contradicts: the fields in which an interaction differs from what was recorded under its key."""

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import msgspec

from recorrido.ingest.v1.events import Interaction, InteractionRecorded
from services.foundation.errors import DiffersError, UnavailableError
from services.foundation.events import Registry
from services.foundation.eventstore import NO_STREAM, EventStore
from services.ingest.domain import RecordInteraction, contradiction, key_of

#: Contradictions of one batch that are looked into, events that are looked through for all of them, how many of those
#: are read at once, and seconds that it may take: it is a courtesy, and who sends a thousand of them is told by the
#: first what is wrong.
EXPLAINED, LOOKED_THROUGH, READ, WITHIN_S = 16, 1_024, 256, 2.0

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
    """Return the errors, the first EXPLAINED of them with the fields that differ, where the store tells them soon."""
    errors = [error for _, error in contradictions]
    of_stream: dict[str, list[int]] = defaultdict(list)
    for index, (command, _) in enumerate(contradictions[:EXPLAINED]):
        of_stream[command.stream].append(index)
    most = LOOKED_THROUGH
    with contextlib.suppress(UnavailableError, TimeoutError):
        async with asyncio.timeout(WITHIN_S):
            for stream, indexes in of_stream.items():
                recorded, looked_through = await _recorded(
                    store, stream, {contradictions[index][0].key for index in indexes}, most
                )
                most -= looked_through
                for index in indexes:
                    command, error = contradictions[index]
                    if (before := recorded.get(command.key)) is not None:
                        errors[index] = _told(error, differing(before, command.interaction))
    return errors


def _told(error: DiffersError, fields: Sequence[str]) -> DiffersError:
    if not fields:
        return error
    return contradiction(error.details["recorded_digest"], error.details["given_digest"], fields)


async def _recorded(store: EventStore, stream: str, keys: set[str], most: int) -> tuple[Mapping[str, Interaction], int]:
    """Return what the first `most` events tell of what was recorded under `keys`, and how many were looked through."""
    found: dict[str, Interaction] = {}
    after, looked_through = NO_STREAM, 0
    while looked_through < most and len(found) < len(keys):
        page = await store.read(stream, after, min(READ, most - looked_through))
        for each in page:
            event: InteractionRecorded | None = _REGISTRY.read(each)
            if event is not None and event.interaction is not None and (key := key_of(event.interaction)) in keys:
                found[key] = event.interaction
        looked_through += len(page)
        if len(page) < READ:
            break
        after = page[-1].revision
    return found, looked_through
