"""Publishes every public event of the store to JetStream, in the order of the store.

It keeps no checkpoint: the stream's last message tells where to go on. Each batch is atomic and names the sequence
that it must follow, so of several relays only one can publish, and none can publish an event twice or leave a gap.
"""

import asyncio
import contextlib
from collections.abc import Sequence

import structlog
from opentelemetry.trace import SpanKind

from services.foundation import telemetry
from services.foundation.bus import Bus, Last, NotTheWriterError, headers_of, subject
from services.foundation.errors import UnavailableError
from services.foundation.events import Recorded
from services.foundation.eventstore import CaughtUp, Checkpoint, EventStore
from services.foundation.flow import batches

LOG = structlog.get_logger()

BATCH_SIZE = 250
#: JetStream keeps an atomic batch in memory until it is committed.
BATCH_BYTES = 4 * 1024 * 1024


class Relay:
    """Run `run` as a background task of the relay process."""

    def __init__(self, store: EventStore, bus: Bus) -> None:
        self._store = store
        self._bus = bus
        self._published = telemetry.METER.create_counter("recorrido.relay.published")

    async def run(self) -> None:
        """Publish for ever; where the bus or the store is down, wait and go on from the stream's last message."""
        while True:
            try:
                last = await self._bus.last()
                LOG.info("publishing", sequence=last.sequence, position=last.position)
                await self._publish_from(last)
            except UnavailableError as error:
                LOG.warning("waiting for the bus", error=error.message)
            except NotTheWriterError as error:
                LOG.info("another relay publishes, standing by", reason=str(error))
            await asyncio.sleep(0.5)

    async def _publish_from(self, last: Last) -> None:
        sequence = last.sequence
        events = batches(self._store.follow(last.position), size=BATCH_SIZE, weight=_size_bytes, max_weight=BATCH_BYTES)
        async with contextlib.aclosing(events):
            async for batch in events:
                recorded = [item for item in batch if isinstance(item, Recorded)]
                if recorded:
                    sequence = await self._publish(recorded, sequence)

    async def _publish(self, batch: Sequence[Recorded], sequence: int) -> int:
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
                subject(recorded.type_name, recorded.stream),
                recorded.data,
                headers_of(recorded, telemetry.inject(telemetry.context_of(span))),
            )
            for recorded, span in zip(batch, spans, strict=True)
        ]
        try:
            sequence = await self._bus.publish(messages, expected_last=sequence)
        finally:
            for span in spans:
                span.end()
        self._published.add(len(batch))
        return sequence


def _size_bytes(item: Recorded | CaughtUp | Checkpoint) -> int:
    return len(item.data) if isinstance(item, Recorded) else 0
