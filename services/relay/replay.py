"""Publishes a part of the history again, to a stream that one subscriber asked for.

The replay's stream is fenced and resumed as the main one is: by its own end. Its terms are kept with it, so that the
same request goes on where it stopped and another one cannot mix into it.
"""

import contextlib
import re
import time
from asyncio import sleep
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Self

from services.foundation.bus import REPLAY_SUBJECTS, REPLAYS, Bus, NotTheWriterError
from services.foundation.errors import ConflictError, DiffersError
from services.foundation.events import Recorded
from services.foundation.eventstore import EventStore
from services.foundation.rules import Rules
from services.relay.erased import ErasedEvents
from services.relay.relay import BATCH_BYTES, BATCH_SIZE, publish

PROGRESS_EVERY_S = 1.0
_TYPE = re.compile(r"recorrido([.][A-Za-z0-9_]+)+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A part of the history: positions and times of recording, all of them included; None and () do not limit."""

    replay_id: str
    from_position: int | None = None
    from_time: datetime | None = None
    to_position: int | None = None
    to_time: datetime | None = None
    types: Sequence[str] = ()

    def check(self) -> None:
        """Raise InvalidError where it can be no part."""
        rules = Rules()
        rules.slug("replay_id", self.replay_id)
        for i, name in enumerate(self.types):
            full = bool(_TYPE.fullmatch(name))
            rules.require(full, f"types[{i}]", "a full name such as recorrido.ingest.v1.InteractionRecorded")
        if self.from_position is not None and self.to_position is not None:
            rules.require(self.from_position <= self.to_position, "to_position", "at or after from_position")
        if self.from_time and self.to_time:
            rules.require(self.from_time <= self.to_time, "to_time", "at or after from_time")
        rules.enforce()

    @property
    def terms(self) -> dict[str, str]:
        """The request in words, which are kept with the replay."""
        given = {
            "from-position": self.from_position,
            "from-time": self.from_time and self.from_time.isoformat(),
            "to-position": self.to_position,
            "to-time": self.to_time and self.to_time.isoformat(),
            "types": " ".join(sorted(self.types)) or None,
        }
        return {f"recorrido-{name}": str(value) for name, value in given.items() if value is not None}

    def holds(self, event: Recorded) -> bool:
        """Whether an event was recorded within the times."""
        return (self.from_time is None or event.recorded_at >= self.from_time) and (
            self.to_time is None or event.recorded_at <= self.to_time
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a replay is: `position` of `end`, both in the store, and `messages` in its stream."""

    stream: str
    subjects: str
    messages: int
    position: int
    end: int
    complete: bool = False


#: Where a replay ends is found out when it is first asked for, and kept with its terms.
_END = "recorrido-end-position"


@dataclass(slots=True)
class _Batch:
    """Events to be published together, and how far the history was read for them."""

    events: list[Recorded]
    size_bytes: int
    position: int

    @classmethod
    def empty(cls, position: int) -> Self:
        return cls([], 0, position)


class Replays:
    """Publishes parts of the history again."""

    def __init__(self, store: EventStore, bus: Bus) -> None:
        self._store = store
        self._bus = bus

    async def republish(self, part: Part) -> AsyncGenerator[Progress, None]:
        """Publish a part; yield about once a second how far it is, and at last that it is complete.

        Takes at most half of the process's time, the other half is the main stream's.

        Raises:
            InvalidError: it is no part.
            DiffersError: the replay_id was used for another part.
            RefusedError: there are too many replays; OtherHistoryError: this one is of a store that was replaced.
            ConflictError: somebody else publishes the same replay now.
            UnavailableError: the store or the bus does not answer; the same call goes on where this one ended.
        """
        part.check()
        end = await self._end(part)
        prefix = f"{REPLAY_SUBJECTS}{part.replay_id}."
        stream = REPLAYS + part.replay_id
        last = await self._bus.last(stream)
        sequence, messages = last.sequence, last.messages
        await self._store.check(last.place)
        start = part.from_position if last.position is None else last.position
        erased = ErasedEvents(self._store, start)
        told_at = started = time.monotonic()

        def progress(position: int, *, complete: bool = False) -> Progress:
            return Progress(
                stream=stream, subjects=f"{prefix}>", messages=messages, position=position, end=end, complete=complete
            )

        yield progress(start or 0)
        async with contextlib.aclosing(self._batches(part, start, done=last.position, end=end)) as batches:
            async for batch in batches:
                await erased.refresh()
                if events := [event for event in batch.events if event not in erased]:
                    try:
                        sequence = await publish(self._bus, events, sequence, prefix=prefix)
                    except NotTheWriterError as error:
                        raise ConflictError({stream: sequence}) from error
                    messages += len(events)
                    # Who erased meanwhile may have looked through this stream before these were in it.
                    await erased.refresh()
                    if late := [event for event in events if event in erased]:
                        await self._bus.erase({e.stream for e in late}, {e.position for e in late}, within=stream)
                        messages -= len(late)
                if time.monotonic() - told_at >= PROGRESS_EVERY_S:
                    told_at = time.monotonic()
                    yield progress(batch.position)
                await sleep(time.monotonic() - started)
                started = time.monotonic()
        yield progress(end, complete=True)

    async def _end(self, part: Part) -> int:
        """Make the replay's stream unless it is there; return the position at which it ends."""
        published = (await self._bus.last()).position or 0
        end = published if part.to_position is None else min(part.to_position, published)
        kept: Mapping[str, str] = await self._bus.ensure_replay(part.replay_id, {**part.terms, _END: str(end)})
        if {k: v for k, v in kept.items() if k != _END} != part.terms:
            raise DiffersError(
                "REPLAY_DIFFERS",
                f"replay {part.replay_id} was asked for with other terms; name it differently",
                dict(kept),
            )
        return int(kept[_END])

    async def _batches(
        self, part: Part, start: int | None, *, done: int | None, end: int
    ) -> AsyncGenerator[_Batch, None]:
        batch = _Batch.empty(start or 0)
        read = 0
        if (start or 0) > end:
            return
        events = self._store.read_all(start, part.types)
        async with contextlib.aclosing(events):
            async for event in events:
                if event.position > end:
                    break
                if event.position == done:
                    continue
                batch.position = event.position
                read += 1
                if part.holds(event):
                    batch.events.append(event)
                    batch.size_bytes += len(event.data)
                # By what was read, too, so that a long stretch without any event of the part is not silent.
                if len(batch.events) >= BATCH_SIZE or batch.size_bytes >= BATCH_BYTES or read % (4 * BATCH_SIZE) == 0:
                    yield batch
                    batch = _Batch.empty(batch.position)
        if batch.events:
            yield batch
