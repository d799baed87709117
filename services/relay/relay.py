"""Publishes every public event of the store to JetStream, in the order of the store.

It keeps no checkpoint: the stream's last message tells where to go on. Each batch is atomic and names the sequence
that it must follow, so of several relays only one can publish, and none can publish an event twice or leave a gap.

That is all that exactness rests on. Who publishes answers a question on the bus as long as it does, and a relay that
hears an answer stands by: this only saves the work of batches that the stream would refuse.
"""

import asyncio
import contextlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum

import structlog
from opentelemetry.trace import SpanKind

from services.foundation import telemetry
from services.foundation.bus import Bus, Last, NotTheWriterError, headers_of, subject
from services.foundation.errors import OtherHistoryError, RefusedError, UnavailableError
from services.foundation.events import Recorded
from services.foundation.eventstore import CaughtUp, EventStore, size_bytes
from services.foundation.flow import batches
from services.relay.erased import ErasedEvents

LOG = structlog.get_logger()

BATCH_SIZE = 250
#: JetStream keeps an atomic batch in memory until it is committed.
BATCH_BYTES = 4 * 1024 * 1024

#: The question that the publishing relay answers, and how often one that stands by asks it.
PUBLISHING = "recorrido_relay.publishing"
ASK_EVERY_S = 0.25
#: A process this long without an answer is frozen, or far beyond use.
ANSWER_WITHIN_S = 1.0
#: How often the stream's end is compared with the store's.
WATCH_EVERY_S = 1.0
#: A stream that does not move for so long, though the store is ahead of it, is taken over whatever its publisher says.
STALLED_S = 10.0
#: How often to look whether what kept it from publishing was put right.
RECHECK_EVERY_S = 2.0
#: A lag of up to so many events is counted; a larger one is estimated.
LAG_SAMPLE = 200


class State(Enum):
    """What a relay is about."""

    WAITING = "waiting"
    STANDING_BY = "standing by"
    PUBLISHING = "publishing"


@dataclass(slots=True)
class Status:
    """What a relay has done since it started, and where the stream stood when last looked at (`last`).

    `lag_events` of the store are not in the stream, the oldest of them for `lag_seconds`.
    """

    state: State = State.WAITING
    last: Last = field(default_factory=lambda: Last(0, None))
    lag_events: int = 0
    lag_seconds: float = 0.0
    published: int = 0
    batches: int = 0
    refused: int = 0
    takeovers: int = 0


@dataclass(frozen=True, slots=True)
class _Instruments:
    published = telemetry.METER.create_counter("recorrido.relay.published", description="events in the stream")
    batches = telemetry.METER.create_counter("recorrido.relay.batches")
    refused = telemetry.METER.create_counter(
        "recorrido.relay.refused", description="batches that did not follow the stream's end"
    )
    takeovers = telemetry.METER.create_counter("recorrido.relay.takeovers", description="by reason")
    publishing = telemetry.METER.create_gauge("recorrido.relay.publishing", description="1: it publishes, else 0")
    lag_events = telemetry.METER.create_gauge("recorrido.relay.lag.events", description="in the store, not the stream")
    lag_seconds = telemetry.METER.create_gauge("recorrido.relay.lag.seconds", unit="s", description="of the oldest")


class Relay:
    """Run `run` and `watch` as background tasks of the relay process."""

    def __init__(self, store: EventStore, bus: Bus) -> None:
        self._store = store
        self._bus = bus
        self._count = _Instruments()
        self._stalled = asyncio.Event()
        #: The stream's end behind which the bus could not take what comes next: whoever publishes goes no further.
        self._stuck_at = -1
        self.status = Status()

    async def run(self, *, able: Callable[[bool], None] = lambda _: None) -> None:
        """Publish for ever, unless another relay does; where the bus or the store is down, wait and go on.

        Where going on would leave events out, nothing is published and `able(False)` is called, until somebody put
        it right: the store is not the one that the stream was filled from, or the bus cannot take an event. Who stands
        by calls it as well, while it could not take over for such a reason.
        """
        told = ""
        while True:
            try:
                reason = await self._stand_by(able)
                await self._publish_until_stalled(reason, able)
            except UnavailableError as error:
                # Once for each time that a part is away, however often it is asked again meanwhile.
                if error.message != told or self.status.state is not State.WAITING:
                    LOG.warning("publishing waits", error=error.message)
                told = error.message
            except RefusedError as error:
                able(False)
                if error.message != told:
                    LOG.error("cannot publish", reason=error.message)  # noqa: TRY400 - the text says it all
                told = error.message
                self.status.state = State.WAITING
                await asyncio.sleep(RECHECK_EVERY_S)
            except NotTheWriterError as error:
                self.status.refused += 1
                self._count.refused.add(1)
                LOG.info("another relay publishes", reason=str(error))
            self.status.state = State.WAITING
            await asyncio.sleep(ASK_EVERY_S)

    async def _stand_by(self, able: Callable[[bool], None]) -> str:
        """Return, with the reason, when this relay has to publish.

        Raises what publishing would raise first: RefusedError and UnavailableError.
        """
        looked_at = -math.inf
        while True:
            if self._stalled.is_set():
                return "the stream does not move"
            if not await self._bus.answered(PUBLISHING, within_s=ANSWER_WITHIN_S):
                return "no relay publishes"
            if time.monotonic() - looked_at >= WATCH_EVERY_S:
                last = await self._bus.last()
                await self._store.check(last.place)
                if last.sequence == self._stuck_at:
                    # What the bus could not take may have been taken out of the store.
                    await self._measure(last)
                looked_at = time.monotonic()
                if last.sequence != self._stuck_at or not self.status.lag_events:
                    able(True)
            if self.status.state is not State.STANDING_BY:
                LOG.info("another relay publishes, standing by")
                self.status.state = State.STANDING_BY
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stalled.wait(), ASK_EVERY_S)

    async def _publish_until_stalled(self, reason: str, able: Callable[[bool], None]) -> None:
        self._stalled.clear()
        await self._bus.ensure_streams()
        await self._store.check((await self._bus.last()).place)
        async with self._bus.answering(PUBLISHING):
            last = await self._bus.last()
            LOG.info("publishing", reason=reason, sequence=last.sequence, position=last.position)
            self.status.state = State.PUBLISHING
            self.status.takeovers += 1
            self._count.takeovers.add(1, {"reason": reason})
            publishing = asyncio.create_task(self._publish_from(last, able))
            stalled = asyncio.create_task(self._stalled.wait())
            try:
                await asyncio.wait({publishing, stalled}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                stalled.cancel()
                publishing.cancel()
                await asyncio.wait({publishing})
            if not publishing.cancelled():
                await publishing

    async def _publish_from(self, last: Last, able: Callable[[bool], None]) -> None:
        sequence = last.sequence
        erased = ErasedEvents(self._store, last.position)
        # What is erased from now on is on the bus before it is erased there.
        await erased.refresh()
        events = batches(self._store.follow(last.place), size=BATCH_SIZE, weight=size_bytes, max_weight=BATCH_BYTES)
        async with contextlib.aclosing(events):
            async for batch in events:
                recorded = [item for item in batch if isinstance(item, Recorded) and item not in erased]
                if recorded:
                    sequence = await self._publish(recorded, sequence)
                if recorded or any(isinstance(item, CaughtUp) for item in batch):
                    able(True)

    async def _publish(self, batch: Sequence[Recorded], sequence: int) -> int:
        try:
            sequence = await publish(self._bus, batch, sequence)
        except RefusedError:
            self._stuck_at = sequence
            raise
        self.status.published += len(batch)
        self.status.batches += 1
        self._count.published.add(len(batch))
        self._count.batches.add(1)
        return sequence

    # -- watching --------------------------------------------------------------------------------------------------

    async def watch(self, *, bus: Callable[[bool], None], store: Callable[[bool], None]) -> None:
        """For ever: measure how far the stream is behind the store, and tell `bus` and `store` whether they answer."""
        moved_at = time.monotonic()
        while True:
            self._count.publishing.set(int(self.status.state is State.PUBLISHING))
            try:
                last = await self._bus.last()
                bus(True)
            except UnavailableError:
                bus(False)
                # It cannot move, and nobody is to blame.
                moved_at = time.monotonic()
                await asyncio.sleep(ASK_EVERY_S)
                continue
            try:
                await self._measure(last)
                store(True)
            except OtherHistoryError:
                # It answers; who publishes, or would, finds out and says so.
                store(True)
                moved_at = time.monotonic()
            except UnavailableError:
                store(False)
                moved_at = time.monotonic()
                await asyncio.sleep(ASK_EVERY_S)
                continue
            if last != self.status.last or not self.status.lag_events:
                self.status.last = last
                moved_at = time.monotonic()
            elif time.monotonic() - moved_at > STALLED_S:
                LOG.warning("the stream does not move", behind_events=self.status.lag_events)
                self._stalled.set()
                moved_at = time.monotonic()
            await asyncio.sleep(WATCH_EVERY_S)

    async def _measure(self, last: Last) -> None:
        """Measure the lag. Raises UnavailableError."""
        held = self._store.read_all(last.position, limit=LAG_SAMPLE + 1)
        behind = [event async for event in held if last.position is None or event.position > last.position]
        events, seconds = len(behind), 0.0
        if behind:
            seconds = max((datetime.now(UTC) - behind[0].recorded_at).total_seconds(), 0.0)
        if len(behind) >= LAG_SAMPLE:
            # As if the rest of the way to the store's head were as dense as what we saw of it.
            seen = behind[-1].position - (last.position or 0)
            events = round(events * max((await self._store.head() - (last.position or 0)) / seen, 1.0))
        self.status.lag_events, self.status.lag_seconds = events, seconds
        self._count.lag_events.set(events)
        self._count.lag_seconds.set(seconds)


async def publish(bus: Bus, batch: Sequence[Recorded], sequence: int, *, prefix: str = "") -> int:
    """Publish events behind `sequence` as one atomic batch; return the sequence of the last one.

    Their subjects begin with `prefix`. Raises what `Bus.publish` raises.
    """
    spans = [
        telemetry.start_span(
            f"publish {recorded.type_name}",
            SpanKind.PRODUCER,
            parent=telemetry.extract(recorded.metadata),
            attributes={"recorrido.event_id": str(recorded.event_id), "messaging.system": "nats"},
        )
        for recorded in batch
    ]
    messages = [
        (
            prefix + subject(recorded.type_name, recorded.stream),
            recorded.data,
            headers_of(recorded, telemetry.inject(telemetry.context_of(span))),
        )
        for recorded, span in zip(batch, spans, strict=True)
    ]
    try:
        return await bus.publish(messages, expected_last=sequence)
    finally:
        for span in spans:
            span.end()
