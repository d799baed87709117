"""The bus: JetStream, where every public event is a CloudEvent and every reaction a durable pull consumer.

A message is a CloudEvent in binary content mode (https://github.com/cloudevents/spec, NATS binding 1.0): attributes in
`ce-*` headers, the event's proto JSON as its body, `traceparent` for its trace.
"""

import asyncio
import contextlib
import hashlib
import math
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Container, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any, Protocol, Self
from urllib.parse import quote, unquote
from uuid import UUID

import nats
import structlog
from msgspec import json
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.errors import NoRespondersError
from nats.js import JetStreamContext, api
from nats.js.errors import NotFoundError
from opentelemetry.context import Context
from opentelemetry.trace import Link, SpanKind, get_current_span

from services.foundation import telemetry
from services.foundation.backoff import Backoff, wait_s
from services.foundation.errors import (
    ConflictError,
    ErasedError,
    OtherHistoryError,
    RecorridoError,
    RefusedError,
    UnavailableError,
)
from services.foundation.events import CAUSATION_ID, CORRELATION_ID, Event, Place, Recorded, Registry
from services.foundation.eventstore import SameHistory

LOG = structlog.get_logger()

STREAM = "RECORRIDO"
DEAD_LETTERS = "RECORRIDO_DEAD"
#: A replay's stream is named by this and the replay's id, its subjects begin with `recorrido_replay.<id>.`.
REPLAYS = "RECORRIDO_REPLAY_"
REPLAY_SUBJECTS = "recorrido_replay."

POSITION = "recorrido-position"
REVISION = "recorrido-revision"
_METADATA_HEADERS = {CORRELATION_ID: "recorrido-correlation-id", CAUSATION_ID: "recorrido-causation-id"}

#: Failed tries of a message before it becomes a dead letter. They are counted by the process that tries: what the
#: server counts are deliveries, and those also happen while a part is down or when we are restarted.
MAX_TRIES = 5
#: Deliveries before a message is taken for one that kills its consumer.
MAX_DELIVERIES = 50
#: Replays at a time, and how long the messages of one are kept.
MAX_REPLAYS = 16
REPLAY_AGE_S = 7 * 24 * 3600.0
#: After a consumer died its messages come again this much later; while it lives it keeps telling that it works on them.
ACK_WAIT_S = 10.0
DUPLICATE_WINDOW_S = 1.0
#: How often to look whether the store is again the one that the bus was filled from.
RECHECK_EVERY_S = 2.0
#: How often to look whether a consumer is still the one that delivered what is settled: in less time no stream is
#: deleted, filled anew and delivered by its next consumer.
SAME_CONSUMER_FOR_S = 0.05
#: Stores take events of 1 MiB; what a message has besides (headers, a long stream id) is far from another one.
MIN_PAYLOAD_BYTES = 2 * 1024 * 1024
#: A batch that does not follow the stream's end is refused by its sequence, or before that by an id that was just seen.
_WRONG_LAST_SEQUENCE = 10071
_DUPLICATE_IN_BATCH = 10201
#: The names of a message's headers, and what a batch adds to them, at most.
_HEADER_NAMES_BYTES = 1024
#: JetStream takes no more of headers (error 10097); others may have written any metadata to the store.
_MAX_HEADERS_BYTES = 65_535
_MAX_METADATA = 1024
#: NATS ends the connection of whoever names a subject of more than 4 KiB.
_MAX_SUBJECT_TOKEN = 1024


#: What comes before an event's own subject.
_SUBJECTS_BEFORE = {STREAM: "", DEAD_LETTERS: "recorrido_dead.*."}


class NotTheWriterError(Exception):
    """Another writer published meanwhile: the stream's last sequence is not the expected one."""


@dataclass(frozen=True, slots=True)
class Last:
    """The stream's last message: its sequence, and the place of its event in the store (None: there is none).

    `messages` is how many the stream holds.
    """

    sequence: int
    place: Place | None
    messages: int = 0

    @property
    def position(self) -> int | None:
        return self.place.position if self.place else None


def subject(type_name: str, stream: str) -> str:
    """Return the subject of an event: its type, then its stream id with all but `A-Za-z0-9_-` percent-encoded.

    A stream id that comes to more than 1,024 characters is cut, and ends in `%` and its SHA-256 instead.
    """
    return f"{type_name}.{_token(stream)}"


def _token(stream: str) -> str:
    token = quote(stream, safe="").replace(".", "%2E").replace("~", "%7E")
    if len(token) > _MAX_SUBJECT_TOKEN:
        digest = hashlib.sha256(stream.encode()).hexdigest()
        token = f"{token[: _MAX_SUBJECT_TOKEN - len(digest) - 1]}%{digest}"
    return token


def headers_of(recorded: Recorded, trace: Mapping[str, str]) -> dict[str, str]:
    """Return the CloudEvent headers of an event; `trace` holds its `traceparent`."""
    service = recorded.type_name.split(".")[1]
    return {
        "Nats-Msg-Id": str(recorded.event_id),
        "ce-specversion": "1.0",
        "ce-id": str(recorded.event_id),
        "ce-source": f"/recorrido/{service}",
        "ce-type": recorded.type_name,
        "ce-subject": _header(recorded.stream),
        "ce-time": recorded.recorded_at.isoformat(),
        "content-type": "application/json",
        POSITION: str(recorded.position),
        REVISION: str(recorded.revision),
        **{
            header: _header(recorded.metadata[key][:_MAX_METADATA])
            for key, header in _METADATA_HEADERS.items()
            if key in recorded.metadata
        },
        **trace,
    }


def _header(value: str) -> str:
    # Header values are one line of ASCII; the CloudEvents bindings percent-encode everything else.
    return quote(value, safe=" !#$&'()*+,/:;=?@[]-._~")


def recorded_of(message: Msg) -> Recorded:
    """Return the event that a message of the stream carries."""
    headers = message.headers or {}
    return Recorded(
        type_name=headers["ce-type"],
        data=message.data,
        metadata={
            **{key: unquote(headers[name]) for key, name in _METADATA_HEADERS.items() if name in headers},
            **{name: headers[name] for name in ("traceparent", "tracestate") if name in headers},
        },
        event_id=UUID(headers["ce-id"]),
        stream=unquote(headers["ce-subject"]),
        revision=int(headers[REVISION]),
        position=int(headers[POSITION]),
        recorded_at=datetime.fromisoformat(headers["ce-time"]).astimezone(UTC),
    )


# -- what a reaction answers ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Done:
    """The effect is recorded, or was before."""


@dataclass(frozen=True, slots=True)
class Retry:
    """Try again after `delay_s`; after MAX_TRIES it becomes a dead letter."""

    reason: str
    delay_s: float = 1.0


@dataclass(frozen=True, slots=True)
class Skip:
    """It can never succeed: to the dead-letter subject with its reason."""

    reason: str


@dataclass(frozen=True, slots=True)
class Stop:
    """Going on would do harm: the consumer stops and the process ends with the reason."""

    reason: str


Answer = Done | Retry | Skip | Stop


def answer_to(error: RecorridoError | None) -> Answer:
    """Return what a command's outcome means for the event that caused it: None is done, a conflict is tried again.

    Nothing is to be done because of an erased event, and it must not come to rest among the dead letters.
    """
    if error is None or isinstance(error, ErasedError):
        return Done()
    if isinstance(error, ConflictError | UnavailableError):
        return Retry(error.message)
    return Skip(error.message)


class _OtherConsumerError(Exception):
    """The consumer that delivered is gone, and with it what it would have been told of its messages."""


class StoppedError(RuntimeError):
    """A reaction answered Stop."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """One event, decoded, with the context of the span it is handled in; `tries` counts this one too."""

    event: Any
    recorded: Recorded
    context: Context
    tries: int = 1


@dataclass(frozen=True, slots=True)
class Reaction:
    """A durable consumer. `durable` is named once and never renamed; `handle` answers each delivery, in order."""

    durable: str
    types: Sequence[type[Event]]
    handle: Callable[[Sequence[Delivery]], Awaitable[Sequence[Answer]]]
    batch_size: int = 64
    description: str = ""


class Truth(Protocol):
    """The store, as far as reactions ask it what became of an event."""

    async def holds(self, recorded: Recorded) -> bool:
        """Return whether it still holds an event: not where it was erased. Raises as `check`, UnavailableError."""

    async def check(self, place: Place | None) -> None:
        """Raise OtherHistoryError where the event of `place` never was in its history, UnavailableError."""


@dataclass(frozen=True, slots=True)
class StreamLimits:
    """How much of the history the bus keeps, and how often. None: as it is; what is made has no limit and one copy."""

    max_bytes: int | None = None
    replicas: int | None = None


class Bus:
    """A connection to NATS with the stream that holds every public event."""

    def __init__(self, client: Client, limits: StreamLimits) -> None:
        self._client = client
        self._limits = limits
        self._js: JetStreamContext = client.jetstream(timeout=10.0)
        self._failures: Counter[tuple[str, int]] = Counter()
        self._handled = telemetry.METER.create_counter("recorrido.reaction.messages", description="by durable, answer")

    @classmethod
    async def connect(cls, url: str, *, name: str, limits: StreamLimits | None = None) -> Self:
        """Connect, waiting until the server answers, and make sure that both streams exist, within `limits`.

        Raises:
            RefusedError: PAYLOAD_TOO_SMALL, the server takes no messages as large as events may be.
        """
        client = await nats.connect(
            url,
            name=name,
            max_reconnect_attempts=-1,
            reconnect_time_wait=0.25,
            allow_reconnect=True,
            error_cb=_error_logger(),
            disconnected_cb=_log_disconnected,
            reconnected_cb=_log_reconnected,
        )
        if client.max_payload < MIN_PAYLOAD_BYTES:
            await client.close()
            raise RefusedError(
                "PAYLOAD_TOO_SMALL",
                f"NATS takes messages of at most {client.max_payload} bytes, and events can be larger:"
                f" set its max_payload to 8MB, at least to {MIN_PAYLOAD_BYTES}",
            )
        bus = cls(client, limits or StreamLimits())
        backoff = Backoff()
        while True:
            try:
                await bus.ensure_streams()
            except UnavailableError as error:
                LOG.warning("waiting for JetStream", error=error.message[:200])
                await backoff.wait()
            else:
                return bus

    async def ping(self) -> bool:
        """Return whether the server answers."""
        if not self._client.is_connected:
            return False
        try:
            # Not the protocol's ping: nats-py's reader stumbles over a pong that comes after it was given up.
            await self._client.request("$JS.API.INFO", timeout=2)
        except (NatsError, TimeoutError, OSError):
            return False
        return True

    async def close(self) -> None:
        # Where the server is away, closing stumbles over its own closed connection (RuntimeError).
        with contextlib.suppress(NatsError, TimeoutError, RuntimeError):
            await asyncio.wait_for(self._client.close(), 2.0)

    async def ensure_streams(self) -> None:
        """Make both streams, unless they are there, and keep them to the limits. Raises UnavailableError."""
        events = api.StreamConfig(
            name=STREAM,
            subjects=["recorrido.>"],
            storage=api.StorageType.FILE,
            retention=api.RetentionPolicy.LIMITS,
            discard=api.DiscardPolicy.OLD,
            # The relay fences itself by the stream's sequence, which is exact. Remembering ids for longer would only
            # take memory, and keep an emptied stream from being filled again.
            duplicate_window=DUPLICATE_WINDOW_S,
            allow_atomic=True,
        )
        dead = api.StreamConfig(name=DEAD_LETTERS, subjects=["recorrido_dead.>"], storage=api.StorageType.FILE)
        try:
            # Dead letters wait for somebody to look at them: nothing pushes them out.
            await self._ensure(events, {"max_bytes": self._limits.max_bytes, "num_replicas": self._limits.replicas})
            await self._ensure(dead, {"num_replicas": self._limits.replicas})
        except (NatsError, TimeoutError, OSError) as error:
            raise UnavailableError("NATS", repr(error)) from error

    async def _ensure(self, config: api.StreamConfig, limits: Mapping[str, int | None]) -> None:
        wanted = {name: limit for name, limit in limits.items() if limit is not None}
        try:
            present = (await self._js.stream_info(config.name or "")).config
        except NotFoundError:
            await self._js.add_stream(config.evolve(**wanted))
        else:
            if any(getattr(present, name) != limit for name, limit in wanted.items()):
                await self._js.update_stream(present.evolve(**wanted))

    # -- publishing: the relay's side ------------------------------------------------------------------------------

    async def last(self, stream: str = STREAM) -> Last:
        """Return where the stream ends. Raises UnavailableError."""
        if not self._client.is_connected:
            raise UnavailableError("NATS", "not connected")
        try:
            info = await self._js.stream_info(stream)
            state = info.state
            place = await self._last_place(stream, info) if state.messages else None
        except (NatsError, TimeoutError, OSError) as error:
            raise UnavailableError("NATS", repr(error)) from error
        return Last(state.last_seq, place, state.messages)

    async def _last_place(self, stream: str, info: api.StreamInfo) -> Place | None:
        try:
            message = await self._js.get_msg(stream, seq=info.state.last_seq)
        except NotFoundError:
            # It was removed, so the one before it tells. Finding it takes the server a look at every subject.
            message = await self._js.get_last_msg(stream, (info.config.subjects or [""])[0])
        place = _place(message.headers or {})
        sequence = message.seq or 0
        # What others published on our subjects, past the store, tells nothing.
        while place is None and sequence > info.state.first_seq:
            sequence -= 1
            with contextlib.suppress(NotFoundError):
                place = _place((await self._js.get_msg(stream, seq=sequence)).headers or {})
        return place

    @contextlib.asynccontextmanager
    async def answering(self, question: str) -> AsyncIterator[None]:
        """Answer whoever asks `question`, for the block: who dies falls silent with the connection."""

        async def answer(message: Msg) -> None:
            await message.respond(b"")

        subscription = await self._client.subscribe(question, cb=answer)
        try:
            yield
        finally:
            with contextlib.suppress(NatsError):
                await subscription.unsubscribe()

    async def answered(self, question: str, *, within_s: float) -> bool:
        """Return whether anybody answers `question`. Raises UnavailableError while NATS is away."""
        if not self._client.is_connected:
            raise UnavailableError("NATS", "not connected")
        try:
            await self._client.request(question, timeout=within_s)
        except (NoRespondersError, TimeoutError):
            return False
        except (NatsError, OSError) as error:
            raise UnavailableError("NATS", repr(error)) from error
        return True

    async def ensure_replay(self, replay_id: str, terms: Mapping[str, str]) -> Mapping[str, str]:
        """Make the stream of a replay, unless it is there; return the terms that it was made with.

        Raises:
            RefusedError: there are as many replays as there may be.
            UnavailableError: NATS does not answer.
        """
        name = REPLAYS + replay_id
        try:
            with contextlib.suppress(NotFoundError):
                return _terms((await self._js.stream_info(name)).config)
            others = [s.config.name for s in await self._js.streams_info() if (s.config.name or "").startswith(REPLAYS)]
            if len(others) >= MAX_REPLAYS:
                raise RefusedError(
                    "TOO_MANY_REPLAYS",
                    f"there are {len(others)} replays already: delete a stream {REPLAYS}* that is not needed",
                )
            made = await self._js.add_stream(
                api.StreamConfig(
                    name=name,
                    description="Events published again for one subscriber",
                    subjects=[f"{REPLAY_SUBJECTS}{replay_id}.>"],
                    storage=api.StorageType.FILE,
                    max_age=REPLAY_AGE_S,
                    duplicate_window=DUPLICATE_WINDOW_S,
                    allow_atomic=True,
                    metadata=dict(terms),
                )
            )
            return _terms(made.config)
        except (NatsError, TimeoutError, OSError) as error:
            raise UnavailableError("NATS", repr(error)) from error

    async def publish(self, batch: Sequence[tuple[str, bytes, Mapping[str, str]]], *, expected_last: int) -> int:
        """Publish subject, body and headers of each message as one atomic batch, on disk before it returns.

        Returns the sequence of the last one. All are in the stream, or none.

        Raises:
            NotTheWriterError: the stream does not end at sequence `expected_last`.
            RefusedError: MESSAGE_TOO_LARGE, HEADERS_TOO_LARGE, the server takes no message as large as one of them.
            UnavailableError: no answer; whether they were published is for `last` to tell.
        """
        self._check_sizes(batch)
        batch_id = uuid.uuid4().hex
        try:
            for number, (to, body, headers) in enumerate(batch, 1):
                control = {"Nats-Batch-Id": batch_id, "Nats-Batch-Sequence": str(number)}
                if number == 1:
                    control["Nats-Expected-Last-Sequence"] = str(expected_last)
                if number < len(batch):
                    await self._client.publish(to, body, headers={**headers, **control})
                    continue
                control["Nats-Batch-Commit"] = "1"
                reply = await self._client.request(to, body, timeout=10.0, headers={**headers, **control})
        except (NatsError, TimeoutError, OSError) as error:
            raise UnavailableError("NATS", repr(error)) from error
        ack = json.decode(reply.data)
        if "error" in ack:
            if ack["error"].get("err_code") in (_WRONG_LAST_SEQUENCE, _DUPLICATE_IN_BATCH):
                raise NotTheWriterError(ack["error"]["description"])
            raise UnavailableError("NATS", str(ack["error"]))
        return int(ack["seq"])

    # -- erasing ---------------------------------------------------------------------------------------------------

    async def erase(self, streams: Iterable[str], positions: Container[int], *, within: str | None = None) -> int:
        """Overwrite and remove the messages about these streams whose event stands at one of `positions` in the store.

        Dead letters and replays, too; or only those of the bus's stream `within`. Returns how many there were.
        Repeating it finds what is left. It must not take the main stream's last message, for the relay goes on from
        there: so something has to be published behind.

        Raises:
            UnavailableError: NATS does not answer.
        """
        count = 0
        try:
            infos = await self._js.streams_info()
            for name in (info.config.name or "" for info in infos):
                before = _SUBJECTS_BEFORE.get(name, "recorrido_replay.*." if name.startswith(REPLAYS) else None)
                if before is not None and within in (None, name):
                    for stream in streams:
                        count += await self._erase(name, f"{before}recorrido.*.*.*.{_token(stream)}", positions)
        except (NatsError, TimeoutError, OSError) as error:
            raise UnavailableError("NATS", repr(error)) from error
        return count

    async def _erase(self, name: str, filter_subject: str, positions: Container[int]) -> int:
        sequence = count = 0
        while True:
            try:
                message = await self._js.get_msg(name, sequence + 1, filter_subject, next=True)
            except NotFoundError:
                return count
            assert message.seq is not None
            sequence = message.seq
            if int((message.headers or {}).get(POSITION, 0)) in positions:
                # Unlike a purge this overwrites the message on the disk.
                with contextlib.suppress(NotFoundError):
                    await self._js.delete_msg(name, sequence)
                count += 1

    def _check_sizes(self, batch: Sequence[tuple[str, bytes, Mapping[str, str]]]) -> None:
        # The server would end the connection, again and again.
        for to, body, headers in batch:
            headers_size = len("".join(headers.values())) + _HEADER_NAMES_BYTES
            if headers_size > _MAX_HEADERS_BYTES:
                raise RefusedError(
                    "HEADERS_TOO_LARGE",
                    f"event {headers.get('ce-id')} comes to {headers_size} bytes of headers, and NATS takes at most"
                    f" {_MAX_HEADERS_BYTES}: its stream's name is too long, so tombstone that stream and scavenge",
                )
            size = len(body) + headers_size
            if size > self._client.max_payload:
                raise RefusedError(
                    "MESSAGE_TOO_LARGE",
                    f"event {headers.get('ce-id')} comes to a message of {size} bytes on {to[:200]}, and NATS takes at"
                    f" most {self._client.max_payload}: raise its max_payload",
                )

    # -- reacting --------------------------------------------------------------------------------------------------

    async def react(
        self, reaction: Reaction, store: Truth, *, available: Callable[[bool], None] = lambda _: None
    ) -> None:
        """Deliver events of `store` to a reaction for ever.

        While a part that it needs is down (UnavailableError) the batch is held, not counted as tried, and
        `available(False)` is called: nothing is lost and the bus keeps the rest. So it is while the store is another
        one than the bus was filled from. An unknown exception means retry, then dead letter, unless the event was
        erased meanwhile.

        Raises:
            StoppedError: the reaction answered Stop.
        """
        registry = Registry(reaction.types)
        same = SameHistory(store.check)
        subscription, consumer = await self._subscribe(reaction, registry)

        async def resume(error: Exception) -> None:
            nonlocal subscription, consumer
            LOG.warning("consumer lost, resuming", durable=reaction.durable, error=repr(error)[:200])
            await asyncio.sleep(0.25)
            with contextlib.suppress(NatsError, OSError):
                await subscription.unsubscribe()
            before = consumer
            subscription, consumer = await self._subscribe(reaction, registry)
            if consumer.created != before.created:
                self._forget_tries(reaction.durable)

        while True:
            try:
                messages = await subscription.fetch(reaction.batch_size, timeout=5.0)
            except TimeoutError:
                continue
            except (NatsError, OSError) as error:
                await resume(error)
                continue
            if not messages:
                # A server without JetStream answers at once; do not spin.
                await asyncio.sleep(0.05)
                continue
            try:
                make_sure = partial(_make_sure, same, messages, available)
                settling = _Settling(reaction, store, consumer)
                await self._handle_batch(settling, registry, messages, available=available, make_sure=make_sure)
                available(True)
            except _OtherConsumerError as error:
                # What it delivered is delivered by the next one.
                await resume(error)
            except OtherHistoryError:
                await self._hold(reaction, store, messages, available)
            except (NatsError, TimeoutError, OSError, UnavailableError) as error:
                # Unacknowledged messages come again, and their effects are idempotent.
                LOG.warning("could not settle, will be redelivered", durable=reaction.durable, error=repr(error)[:200])

    def _forget_tries(self, durable: str) -> None:
        """Forget how often messages were tried: the next consumer delivers others under the same sequences."""
        for key in [key for key in self._failures if key[0] == durable]:
            del self._failures[key]

    async def _hold(
        self, reaction: Reaction, store: Truth, messages: Sequence[Msg], available: Callable[[bool], None]
    ) -> None:
        """Keep messages that are not of the store's history, until the stream's last one is; then let them come again.

        Either the right store was brought back, or the stream was deleted and filled anew from this one. What even then
        is of no event of the store's was published past it: it is passed over.
        """
        told = ""
        async with _in_progress(messages):
            while True:
                try:
                    await store.check((await self.last()).place)
                    break
                except OtherHistoryError as error:
                    available(False)
                    if error.message != told:
                        LOG.error("nothing is done", durable=reaction.durable, reason=error.message)  # noqa: TRY400 - the text says it all
                    told = error.message
                except UnavailableError as error:
                    LOG.warning("waiting", durable=reaction.durable, error=error.message[:200])
                await asyncio.sleep(RECHECK_EVERY_S)
            available(True)
            for message in messages:
                settle: Callable[[], Awaitable[None]] = message.nak
                try:
                    await store.check(_place(message.headers or {}))
                except OtherHistoryError:
                    if not await self._is_there(message):
                        continue
                    settle = message.ack
                    LOG.error("message of no event passed over", durable=reaction.durable, subject=message.subject)  # noqa: TRY400 - as above
                except UnavailableError:
                    pass
                # Those that were settled before it was noticed refuse; without a word the others come again later.
                with contextlib.suppress(NatsError, OSError):
                    await settle()

    async def _is_there(self, message: Msg) -> bool:
        """Return whether the stream holds a message still.

        Where it was made anew another one may have its sequence: to acknowledge this one would be to acknowledge that.
        """
        try:
            found = await self._js.get_msg(STREAM, seq=message.metadata.sequence.stream)
        except (NatsError, TimeoutError, OSError):
            return False
        return (found.headers or {}).get("ce-id") == (message.headers or {}).get("ce-id")

    async def _subscribe(
        self, reaction: Reaction, registry: Registry
    ) -> tuple[JetStreamContext.PullSubscription, "_Consumer"]:
        config = api.ConsumerConfig(
            durable_name=reaction.durable,
            description=reaction.description or None,
            filter_subjects=[f"{name}.>" for name in registry.type_names],
            ack_policy=api.AckPolicy.EXPLICIT,
            ack_wait=ACK_WAIT_S,
            # Tries are bounded by us, who can write the dead letter; the server would only fall silent.
            max_deliver=-1,
            max_ack_pending=max(1024, reaction.batch_size * 4),
            deliver_policy=api.DeliverPolicy.ALL,
        )
        backoff = Backoff()
        while True:
            try:
                await self._js.add_consumer(STREAM, config)
                ask = partial(self._js.consumer_info, STREAM, reaction.durable)
                # Once after a restart the server answers whoever makes a consumer that is there with another time.
                created = (await ask()).created
                subscription = await self._js.pull_subscribe_bind(durable=reaction.durable, stream=STREAM)
                return subscription, _Consumer(ask, created)
            except (NatsError, TimeoutError, OSError) as error:
                LOG.warning("waiting for JetStream", durable=reaction.durable, error=repr(error)[:200])
                await backoff.wait()

    async def _handle_batch(
        self,
        settling: "_Settling",
        registry: Registry,
        messages: Sequence[Msg],
        *,
        available: Callable[[bool], None],
        make_sure: Callable[[], Awaitable[None]],
    ) -> None:
        reaction = settling.reaction
        accepted: list[tuple[Msg, Delivery]] = []
        spans = []
        await make_sure()
        for message in messages:
            if message.metadata.num_delivered > MAX_DELIVERIES:
                await self._bury(settling, message, "delivered too often: whoever handles it dies of it")
                continue
            try:
                recorded = recorded_of(message)
                event = registry.decode(recorded)
            except Exception as error:  # noqa: BLE001 - whatever is wrong with it, it will stay wrong
                await self._bury(settling, message, f"undecodable: {error!r}")
                continue
            span = telemetry.start_span(
                f"react {reaction.durable}",
                SpanKind.CONSUMER,
                parent=telemetry.extract(recorded.metadata),
                attributes={
                    "messaging.destination.name": message.subject,
                    "recorrido.event_id": str(recorded.event_id),
                },
            )
            spans.append(span)
            tries = self._failures[reaction.durable, message.metadata.sequence.stream] + 1
            accepted.append((message, Delivery(event, recorded, telemetry.context_of(span), tries)))
        if not accepted:
            return
        try:
            async with _in_progress([message for message, _ in accepted]):
                answers = await self._answers(reaction, accepted, available, make_sure)
                # What was decided about another store tells nothing about these events.
                await make_sure()
                for (message, delivery), answer in zip(accepted, answers, strict=True):
                    await self._settle(settling, message, answer, tries=delivery.tries)
        finally:
            for span in spans:
                span.end()

    async def _answers(
        self,
        reaction: Reaction,
        accepted: Sequence[tuple[Msg, Delivery]],
        available: Callable[[bool], None],
        make_sure: Callable[[], Awaitable[None]],
    ) -> Sequence[Answer]:
        deliveries = [delivery for _, delivery in accepted]
        # The batch's own work is a child of its first event's trace and linked to the others.
        links = tuple(Link(get_current_span(d.context).get_span_context()) for d in deliveries[1:])
        backoff = Backoff(0.25, 5.0)
        while True:
            try:
                with telemetry.span(f"handle {reaction.durable}", parent=deliveries[0].context, links=links):
                    answers = await reaction.handle(deliveries)
            except (UnavailableError, ConflictError) as error:
                if isinstance(error.__cause__, OtherHistoryError):
                    # Where it is of one message only, waiting would not help: that is passed over.
                    raise error.__cause__ from None
                # Nothing is wrong with the messages: wait for the part, or for the others who change these streams.
                LOG.warning("waiting", durable=reaction.durable, messages=len(deliveries), error=error.message[:200])
                available(not isinstance(error, UnavailableError))
                await backoff.wait()
                # The store that was away may be another one now.
                await make_sure()
            except Exception as error:
                LOG.exception("reaction failed", durable=reaction.durable, messages=len(deliveries))
                if len(deliveries) > 1:
                    # One poison message must not take its neighbours along: each gets its own try.
                    return [(await self._answers(reaction, [one], available, make_sure))[0] for one in accepted]
                return [Retry(repr(error), delay_s=wait_s(deliveries[0].tries, first_s=2.0, longest_s=60.0))]
            else:
                return answers

    async def _settle(self, settling: "_Settling", message: Msg, answer: Answer, *, tries: int) -> None:
        durable = settling.reaction.durable
        key = durable, message.metadata.sequence.stream
        self._handled.add(1, {"durable": durable, "answer": type(answer).__name__})
        match answer:
            case Done():
                await settling.acknowledge(message)
                self._failures.pop(key, None)
            case Retry(reason, delay_s):
                if tries >= MAX_TRIES:
                    await self._bury(settling, message, reason)
                    self._failures.pop(key, None)
                else:
                    self._failures[key] = tries
                    LOG.warning("retry", durable=durable, reason=reason, delay_s=delay_s)
                    await message.nak(delay=delay_s)
            case Skip(reason):
                await self._bury(settling, message, reason)
                self._failures.pop(key, None)
            case Stop(reason):
                raise StoppedError(f"{durable}: {reason}")

    async def _bury(self, settling: "_Settling", message: Msg, reason: str) -> None:
        durable = settling.reaction.durable
        if await _erased(message, settling.store):
            await self._forget(settling, message)
            return
        # The relay's publishing orders stay behind: its batch and sequence are not those of this stream.
        headers = {k: v for k, v in (message.headers or {}).items() if not k.startswith("Nats-")}
        # The id is per durable: two consumers may bury the same event, each once. What others published past the store
        # may say that it is any event.
        sequence = message.metadata.sequence.stream
        headers["Nats-Msg-Id"] = f"{durable}:{sequence}:{headers.get('ce-id', '')}"
        headers["recorrido-dead-reason"] = _header(reason[:512])
        headers["recorrido-dead-subject"] = message.subject
        headers["recorrido-dead-durable"] = durable
        to = f"recorrido_dead.{durable}.{message.subject}"
        # What the next stream brings again may have another sequence there, and so another letter.
        await settling.consumer.check()
        await self._js.publish(to, message.data, stream=DEAD_LETTERS, headers=headers)
        # An erasure wipes the store and then looks through the dead letters: one that it cannot have seen there is of
        # an event that the store does not hold now.
        if await _erased(message, settling.store):
            await self._forget(settling, message)
            return
        await settling.acknowledge(message)
        LOG.error("dead letter", durable=durable, subject=message.subject, reason=reason)

    async def _forget(self, settling: "_Settling", message: Msg) -> None:
        """Leave nothing of an erased event, also where it was buried before and not acknowledged then."""
        recorded = recorded_of(message)
        await self.erase([recorded.stream], [recorded.position], within=DEAD_LETTERS)
        await settling.acknowledge(message)


class _Consumer:
    """The consumer that delivers to a reaction.

    With its stream it is deleted and may be made anew, by another instance of the service too. The next one numbers its
    messages from the beginning again, and would take what it is told of an earlier one's for its own.
    """

    def __init__(self, ask: Callable[[], Coroutine[Any, Any, api.ConsumerInfo]], created: datetime) -> None:
        self._ask = ask
        self.created = created
        self._asked_at = -math.inf

    async def check(self) -> None:
        """Make sure that it is still there. Raises _OtherConsumerError and what NATS raises."""
        now = time.monotonic()
        if now - self._asked_at < SAME_CONSUMER_FOR_S:
            return
        # As a task: nats-py asks within asyncio.wait_for, which before Python 3.12 may lose a cancellation that comes
        # together with the answer (https://github.com/python/cpython/issues/86296).
        asking = asyncio.create_task(self._ask())
        try:
            await asyncio.wait({asking})
        finally:
            asking.cancel()
        try:
            found = asking.result()
        except NotFoundError as error:
            raise _OtherConsumerError("it is gone") from error
        if found.created != self.created:
            raise _OtherConsumerError(f"it was made anew at {found.created}")
        self._asked_at = now


@dataclass(frozen=True, slots=True)
class _Settling:
    """What messages of a reaction are settled with."""

    reaction: Reaction
    store: Truth
    consumer: _Consumer

    async def acknowledge(self, message: Msg) -> None:
        """Raises _OtherConsumerError: who would hear it is not the one that delivered the message."""
        await self.consumer.check()
        await message.ack()


async def _erased(message: Msg, store: Truth) -> bool:
    """Return whether the store holds the event of a message no more; wait while nobody can tell.

    Raises:
        OtherHistoryError: the event never was in its history.
    """
    try:
        recorded = recorded_of(message)
    except (KeyError, ValueError):
        return False  # none of the store's
    backoff = Backoff(0.25, 5.0)
    while True:
        try:
            return not await store.holds(recorded)
        except UnavailableError as error:
            LOG.warning("waiting, to bury", error=error.message[:200])
        await backoff.wait()


async def _make_sure(same: SameHistory, messages: Sequence[Msg], available: Callable[[bool], None]) -> None:
    """Make sure that the newest event that messages carry is of the store's history; wait while nobody can tell.

    Raises:
        OtherHistoryError: it is not.
    """
    places = [place for message in messages if (place := _place(message.headers or {})) is not None]
    newest = max(places, key=lambda place: place.position, default=None)
    backoff = Backoff(0.25, 5.0)
    async with _in_progress(messages):
        while True:
            try:
                await same.check(newest)
            except UnavailableError as error:
                LOG.warning("waiting, to compare histories", error=error.message[:200])
                available(False)
            else:
                return
            await backoff.wait()


def _place(headers: Mapping[str, str]) -> Place | None:
    """Return the place of the event that a message carries; None where it is none of the store's."""
    try:
        stream, revision = unquote(headers["ce-subject"]), int(headers[REVISION])
        return Place(int(headers[POSITION]), UUID(headers["ce-id"]), stream, revision)
    except (KeyError, ValueError):
        return None


def _terms(config: api.StreamConfig) -> dict[str, str]:
    # The server adds keys of its own.
    return {k: v for k, v in (config.metadata or {}).items() if not k.startswith("_nats.")}


@contextlib.asynccontextmanager
async def _in_progress(messages: Sequence[Msg]) -> AsyncIterator[None]:
    """Keep the messages ours while the block runs, however long that is."""

    async def tell() -> None:
        while True:
            await asyncio.sleep(ACK_WAIT_S / 3)
            for message in messages:
                # Those that were settled meanwhile refuse; they are no longer ours to keep.
                with contextlib.suppress(NatsError):
                    await message.in_progress()

    task = asyncio.create_task(tell())
    try:
        yield
    finally:
        task.cancel()
        # Awaiting it would take a cancellation that is meant for us for its own.
        await asyncio.wait({task})


def _error_logger() -> Callable[[Exception], Awaitable[None]]:
    """Return a callback that logs an error once, not at every attempt to reconnect."""
    last = ""

    async def log(error: Exception) -> None:
        nonlocal last
        if repr(error) != last:
            LOG.warning("NATS", error=repr(error)[:200])
        last = repr(error)

    return log


async def _log_disconnected() -> None:
    LOG.warning("NATS disconnected")


async def _log_reconnected() -> None:
    LOG.info("NATS reconnected")
