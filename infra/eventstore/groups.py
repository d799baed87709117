"""Persistent subscriptions: a group of consumers that share the events of a stream or of $all.

The group reads the store like any other reader and hands each event to one consumer, with acknowledgements, timeouts,
retries and parking. What must survive a restart is its settings and its checkpoint; an event in flight at the time of a
crash is simply delivered again.
"""

import asyncio
import itertools
import json
import logging
import sqlite3
import time
import uuid
import zlib
from collections import deque
from dataclasses import dataclass, field
from typing import Final

from infra.eventstore import retention
from infra.eventstore.group_settings import ALL, GroupSettings
from infra.eventstore.model import ANY, METADATA_EVENT, Append, NewEvent, Part, RecordedEvent, metastream_of
from infra.eventstore.store import Store

log = logging.getLogger(__name__)

LINK_EVENT: Final = "$>"


@dataclass(slots=True, eq=False)
class Message:
    """An event on its way to a consumer. `place` is its position or revision in the source; None: it was parked."""

    event: RecordedEvent
    place: int | None
    retries: int = 0
    deadline: float = 0.0


@dataclass(slots=True, eq=False)
class Consumer:
    """A connected client: what it is to be sent, and what it has not answered yet, by event id."""

    slots: int
    name: str
    outbox: "asyncio.Queue[Message | None]" = field(default_factory=asyncio.Queue)
    in_flight: dict[bytes, deque[Message]] = field(default_factory=dict)
    busy: int = 0
    total: int = 0


class Group:
    """One persistent subscription. All of it happens on the event loop.

    `checkpoint` is the place up to which (inclusive) everything was answered.
    """

    def __init__(self, store: Store, settings: GroupSettings, checkpoint: int) -> None:
        self.settings = settings
        self.checkpoint = checkpoint
        self.read_to = checkpoint
        self.total = 0
        self.consumers: list[Consumer] = []
        self._store = store
        self._buffer: deque[Message] = deque()
        self._retries: deque[Message] = deque()
        # Everything read and not yet answered, in the order of the source: the first one holds the checkpoint back.
        self._unanswered: dict[int, Message] = {}
        self._seen_head = 0
        self._work = asyncio.Event()
        self._turn = itertools.count()
        self._saved = checkpoint
        self._saved_at = time.monotonic()
        self._task = asyncio.create_task(self._run())

    @property
    def parked_stream(self) -> str:
        return f"$persistentsubscription-{self.settings.stream}::{self.settings.name}-parked"

    @property
    def waiting(self) -> int:
        return len(self._buffer)

    @property
    def retrying(self) -> int:
        return len(self._retries)

    @property
    def parked(self) -> int:
        """How many parked events wait for a replay."""
        stream = self._store.read.stream(self.parked_stream)
        if stream is None or stream.soft_deleted:
            return 0
        return stream.last_revision + 1 - retention.first_visible(stream)

    def join(self, slots: int, name: str) -> Consumer:
        """Take in a consumer that can hold up to `slots` unanswered events.

        Raises:
            OverflowError: the group has as many as its settings allow.
        """
        limit = self.settings.max_subscriber_count
        if limit and len(self.consumers) >= limit:
            raise OverflowError
        consumer = Consumer(max(1, slots), name)
        self.consumers.append(consumer)
        self._work.set()
        return consumer

    def leave(self, consumer: Consumer) -> None:
        """Let a consumer go; what it did not answer goes to the others, in order and without counting as a retry."""
        if consumer not in self.consumers:
            return
        self.consumers.remove(consumer)
        unanswered = [message for messages in consumer.in_flight.values() for message in messages]
        self._retries.extendleft(sorted(unanswered, key=lambda message: message.event.position, reverse=True))
        self._work.set()

    def ack(self, consumer: Consumer, event_id: bytes) -> None:
        message = self._answered(consumer, event_id)
        if message is not None:
            self._finish(message)

    async def nack(self, consumer: Consumer, event_id: bytes, action: str, reason: str) -> None:
        """`action` is Park, Retry, Skip, Stop or Unknown (which means retry)."""
        message = self._answered(consumer, event_id)
        if message is None:
            return
        if action == "Park":
            await self._park(message, reason or "parked by the consumer")
        elif action in ("Skip", "Stop"):
            self._finish(message)
            if action == "Stop":
                consumer.outbox.put_nowait(None)
        else:
            await self._retry(message, reason or "the consumer asked for a retry too often")

    async def replay(self, stop_at: int | None) -> None:
        """Deliver the parked events again, before all others; `stop_at` limits how many."""
        stream = self._store.read.stream(self.parked_stream)
        if stream is None or stream.soft_deleted:
            return
        revision, left = 0, stream.last_revision + 1 if stop_at is None else stop_at
        while left > 0 and (page := self._store.read.stream_forwards(stream, revision, left)):
            left -= len(page)
            revision = page[-1].revision + 1
            for link in page:
                event = self._store.read.event(link.data.decode())
                if event is not None:  # truncated or scavenged meanwhile
                    self._retries.append(Message(event, None))
        document = json.dumps({"$tb": revision}).encode()
        replayed = _event(METADATA_EVENT, document)
        await self._store.write(Append([Part(metastream_of(self.parked_stream), ANY, [replayed])]))
        self._work.set()

    async def close(self) -> None:
        """Stop handing out, and keep the checkpoint; consumers hear the end."""
        self._task.cancel()
        await asyncio.wait([self._task])
        for consumer in self.consumers:
            consumer.outbox.put_nowait(None)
        await self._save()

    async def _run(self) -> None:
        try:
            while True:
                self._work.clear()
                await self._hand_out()
                await self._save_when_due()
                await self._wait()
        except Exception:
            # Consumers that are let go connect again, to a group that cannot work: they and the log say so.
            log.exception("persistent subscription %s on %s stopped", self.settings.name, self.settings.stream)
            for consumer in self.consumers:
                consumer.outbox.put_nowait(None)

    async def _hand_out(self) -> None:
        """Give events to consumers for as long as both are there."""
        for overdue in self._overdue():
            await self._retry(overdue, "the consumer did not answer in time")
        while (message := self._next()) is not None:
            consumer = self._choose(message)
            if consumer is None:
                self._put_back(message)
                return
            self._send(consumer, message)

    async def _wait(self) -> None:
        """Until there is something to do: a commit, an answer, a consumer, a timeout, a checkpoint to keep."""
        waits: list[asyncio.Future[object]] = [asyncio.ensure_future(self._work.wait())]
        if (
            not self._buffer
            and not self._retries
            and any(consumer.busy < consumer.slots for consumer in self.consumers)
        ):
            waits.append(asyncio.ensure_future(self._store.beyond(self._seen_head)))
        try:
            await asyncio.wait(waits, timeout=self._patience(), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    def _patience(self) -> float | None:
        """Seconds until the first timeout or the next checkpoint, whichever comes first; None: neither is due."""
        now = time.monotonic()
        times = [
            message.deadline
            for consumer in self.consumers
            for messages in consumer.in_flight.values()
            for message in messages
            if message.deadline
        ]
        if self.checkpoint > self._saved:
            times.append(self._saved_at + self.settings.checkpoint_after_s)
        return max(0.0, min(times) - now) if times else None

    def _overdue(self) -> list[Message]:
        now = time.monotonic()
        overdue = []
        for consumer in self.consumers:
            for event_id, messages in list(consumer.in_flight.items()):
                if messages[0].deadline and messages[0].deadline <= now:
                    message = self._answered(consumer, event_id)
                    assert message is not None
                    overdue.append(message)
        return overdue

    def _next(self) -> Message | None:
        if not any(consumer.busy < consumer.slots for consumer in self.consumers):
            return None
        if self._retries:
            return self._retries.popleft()
        if not self._buffer:
            self._fill()
        return self._buffer.popleft() if self._buffer else None

    def _put_back(self, message: Message) -> None:
        (self._retries if message.retries or message.place is None else self._buffer).appendleft(message)

    def _fill(self) -> None:
        """Read the next page. With a filter, pages without a match move the checkpoint on too."""
        self._seen_head = self._store.head
        if self.settings.stream != ALL:
            stream = self._store.read.stream(self.settings.stream)
            page = [] if stream is None else self._store.read.stream_forwards(stream, self.read_to + 1)
            places = [(event, event.revision) for event in page]
            self.read_to = places[-1][1] if places else self.read_to
        else:
            events, self.read_to = self._store.read.all_forwards(self.read_to, self._seen_head, self.settings.filter)
            places = [(event, event.position) for event in events]
        for event, place in places:
            message = Message(event, place)
            self._buffer.append(message)
            self._unanswered[place] = message
        if not places and self.settings.stream == ALL and self.read_to < self._store.head:
            self._work.set()  # more to look at, after the others had their turn
        self._advance()

    def _choose(self, message: Message) -> Consumer | None:
        """The consumer for `message`, or None when it has to wait for one."""
        free = [consumer for consumer in self.consumers if consumer.busy < consumer.slots]
        if not free:
            return None
        strategy = self.settings.strategy
        if strategy == "DispatchToSingle":
            return free[0]
        if strategy == "RoundRobin":
            return free[next(self._turn) % len(free)]
        key = _correlation(message.event) if strategy == "PinnedByCorrelation" else message.event.stream
        pinned = self.consumers[zlib.crc32(key.encode()) % len(self.consumers)]
        return pinned if pinned in free else None

    def _send(self, consumer: Consumer, message: Message) -> None:
        timeout_s = self.settings.message_timeout_s
        message.deadline = time.monotonic() + timeout_s if timeout_s else 0.0
        consumer.in_flight.setdefault(message.event.id, deque()).append(message)
        consumer.busy += 1
        consumer.total += 1
        self.total += 1
        consumer.outbox.put_nowait(message)

    def _answered(self, consumer: Consumer, event_id: bytes) -> Message | None:
        messages = consumer.in_flight.get(event_id)
        if not messages:
            return None  # answered before, or timed out meanwhile
        message = messages.popleft()
        if not messages:
            del consumer.in_flight[event_id]
        consumer.busy -= 1
        self._work.set()
        return message

    async def _retry(self, message: Message, reason: str) -> None:
        message.retries += 1
        if message.retries > self.settings.max_retry_count:
            await self._park(message, reason)
        else:
            self._retries.append(message)
            self._work.set()

    async def _park(self, message: Message, reason: str) -> None:
        """Keep a link to the event in the group's own parked stream, then go on without it.

        Where that cannot be written (a full disk) the event comes again.
        """
        event = message.event
        facts = json.dumps({"reason": reason, "added": time.time()}).encode()
        link = _event(LINK_EVENT, f"{event.revision}@{event.stream}".encode(), facts)
        try:
            await self._store.write(Append([Part(self.parked_stream, ANY, [link])]))
        except sqlite3.Error as error:
            log.warning("%s: an event could not be parked and comes again: %s", self.parked_stream, error)
            self._retries.append(message)
            self._work.set()
        else:
            self._finish(message)

    def _finish(self, message: Message) -> None:
        if message.place is not None:
            self._unanswered.pop(message.place, None)
        self._advance()

    def _advance(self) -> None:
        first = next(iter(self._unanswered), None)
        self.checkpoint = max(self.checkpoint, self.read_to if first is None else first - 1)

    async def _save_when_due(self) -> None:
        fresh = self.checkpoint - self._saved
        late = time.monotonic() - self._saved_at >= self.settings.checkpoint_after_s
        if fresh >= self.settings.max_checkpoint_count or (fresh > 0 and late):
            await self._save()

    async def _save(self) -> None:
        checkpoint, self._saved_at = self.checkpoint, time.monotonic()
        if checkpoint == self._saved:
            return
        key = (checkpoint, self.settings.stream, self.settings.name)
        query = "UPDATE subscriptions SET checkpoint = ? WHERE stream = ? AND group_name = ?"
        try:
            await self._store.maintain(lambda db: db.execute(query, key).rowcount)
        except sqlite3.Error as error:
            # An older one costs no more than events that come again after a restart.
            log.warning("%s on %s: checkpoint not kept: %s", self.settings.name, self.settings.stream, error)
        else:
            self._saved = checkpoint


def _event(event_type: str, data: bytes, metadata: bytes = b"") -> NewEvent:
    return NewEvent(uuid.uuid4().bytes, event_type, event_type != LINK_EVENT, metadata, data)


def _correlation(event: RecordedEvent) -> str:
    return str(retention.parse(event.metadata).get("$correlationId", event.stream))
