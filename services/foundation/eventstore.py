"""The event store, through the official client: atomic appends, stream reads, and following `$all`.

The same adapter serves KurrentDB and the embedded node. Appends carry the trace they belong to in their metadata
(`traceparent`), which the relay, the projections and the reactions continue.
"""

import asyncio
import contextlib
import math
import sys
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import grpc
import msgspec
import structlog
from kurrentdbclient import (
    AsyncKurrentDBClient,
    NewRecord,
    StreamState,
    StreamStateCheck,
)
from kurrentdbclient import exceptions as kurrent
from kurrentdbclient.events import RecordedEvent
from msgspec import Struct
from opentelemetry.trace import Span, SpanKind, Status, StatusCode

from services.foundation import telemetry
from services.foundation.backoff import Backoff
from services.foundation.errors import ConflictError, OtherHistoryError, RefusedError, UnavailableError
from services.foundation.events import Pending, Place, Recorded, encode
from services.foundation.flow import batches

LOG = structlog.get_logger()

NO_STREAM = -1
ANY = -2
EXISTS = -4
#: Told in a conflict: the stream was closed for good.
TOMBSTONED = -6

#: Events read at once; every page has the deadline for itself.
PAGE = 4_096

#: How long one call may take, with the client's own second try; a node that does not answer in that time is down for
#: our purposes.
TIMEOUT_S = 10.0
#: How long a connection may be silent before it is asked for a sign of life, and how long that may take.
SILENCE_MS = 4_000

#: About how many bytes of data come as one batch to who follows.
BATCH_BYTES = 16 * 1024 * 1024

#: A store tells a checkpoint after so many events, in windows of 30, of no interest: each is a write of its follower.
CHECKPOINT_WINDOWS = 100
#: Who follows, and hears nothing for so long, looks whether the store went on with events of no interest.
IDLE_S = 1.0

#: How often who goes by what it was told looks whether the store is still the one that told it: in less time no store
#: is stopped, replaced, started and filled beyond where it was.
SAME_FOR_S = 0.1

#: A refused append names every stream that stood in its way, in the call's trailing metadata; gRPC's own limit of
#: 8 KiB is met at some fifty streams, and what does not fit arrives as no error that anybody could read.
MAX_ERROR_BYTES = 4 * 1024 * 1024

_UNAVAILABLE = (
    kurrent.ServiceUnavailableError,
    kurrent.DeadlineExceededError,
    kurrent.DiscoveryFailedError,
    kurrent.AbortedByServerError,
    kurrent.CancelledError,
    kurrent.NodeIsNotLeaderError,
    # Whatever else gRPC answers, a full disk among it: the same call may succeed later.
    kurrent.GrpcError,
    kurrent.UnknownError,
)
#: The same append can never succeed. TransactionMaxSizeExceededError is also an AbortedByServerError: look here first.
_TOO_LARGE = (
    kurrent.MaximumAppendSizeExceededError,
    kurrent.RecordMaxSizeExceededError,
    kurrent.TransactionMaxSizeExceededError,
)

_ITS_OWN_WORDS = (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.INTERNAL, grpc.StatusCode.DATA_LOSS)

_STATES = {NO_STREAM: StreamState.NO_STREAM, EXISTS: StreamState.EXISTS}


class StreamAppend(Struct, frozen=True):
    """Events for one stream. `expected` is the revision of its last event, NO_STREAM, ANY or EXISTS.

    Without events it is a condition only, for the appends beside it.
    """

    stream: str
    expected: int
    events: Sequence[Pending]


class Blank(Struct, frozen=True):
    """The last event of a stream that is about to be deleted. Its type is nobody's public event."""

    type_name: ClassVar[str] = "recorrido-private.Blank"


@dataclass(frozen=True, slots=True)
class CaughtUp:
    """Everything recorded so far was delivered; what follows is live."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """No event of interest up to this position."""

    position: int


def size_bytes(item: Recorded | CaughtUp | Checkpoint) -> int:
    """Return how many bytes of data an item holds."""
    return len(item.data) if isinstance(item, Recorded) else 0


class EventStore:
    """Appends and reads; every failure is a typed error of `foundation.errors`."""

    def __init__(self, client: AsyncKurrentDBClient) -> None:
        self._client = client

    @classmethod
    async def connect(cls, uri: str) -> Self:
        """Connect, waiting until the store answers; only being cancelled ends the wait.

        Raises:
            RefusedError: STORE_TOO_OLD, it has no atomic append to many streams.
        """
        backoff = Backoff()
        while True:
            client = AsyncKurrentDBClient(uri=uri)
            client.grpc_options += (
                ("grpc.max_metadata_size", MAX_ERROR_BYTES),
                ("grpc.absolute_max_metadata_size", MAX_ERROR_BYTES),
                # A node that was away is found again in a second, not after gRPC's two minutes.
                ("grpc.initial_reconnect_backoff_ms", 100),
                ("grpc.min_reconnect_backoff_ms", 100),
                ("grpc.max_reconnect_backoff_ms", 1000),
                # One that is frozen, or behind a network that is cut, is given up though nothing says so: who only
                # listens would do so for ever.
                ("grpc.keepalive_time_ms", SILENCE_MS),
                ("grpc.keepalive_timeout_ms", SILENCE_MS),
                ("grpc.http2.ping_timeout_ms", SILENCE_MS),
                ("grpc.http2.max_pings_without_data", 0),
            )
            try:
                await client.connect()
                # Connecting is lazy where no node has to be discovered; only an answer proves that one is there.
                await client.get_commit_position(timeout=TIMEOUT_S)
                await _require_append_records(client)
            except (*_UNAVAILABLE, kurrent.KurrentDBClientError) as error:
                LOG.warning("waiting for the event store", error=type(error).__name__)
                await client.close()
                await backoff.wait()
            else:
                return cls(client)

    async def close(self) -> None:
        await self._client.close()

    async def append(self, appends: Sequence[StreamAppend]) -> int:
        """Append to all streams or to none; return the commit position.

        Raises:
            ConflictError: one or more streams are not at their expected revision; names all of them.
            RefusedError: TOO_LARGE, more than the store takes in one append.
            UnavailableError: no answer. The append may or may not have happened: re-read, then decide again.
        """
        spans = _AppendSpans(appends)
        records = [
            NewRecord(
                stream_name=append.stream,
                type=pending.event.type_name,
                data=encode(pending.event),
                metadata=spans.metadata(append, pending),
                id=pending.event_id,
            )
            for append in appends
            for pending in append.events
        ]
        checks = [StreamStateCheck(a.stream, _STATES.get(a.expected, a.expected)) for a in appends if a.expected != ANY]
        with spans:
            try:
                async with _in_time():
                    result = await self._client.append_records(records, checks, timeout=TIMEOUT_S)
            except kurrent.ConsistencyChecksFailedError as error:
                failed = [f.stream_state_failure for f in error.failures if f.stream_state_failure]
                raise ConflictError({f.stream_name: _actual_revision(f.actual_state) for f in failed}) from error
        return result.commit_position

    async def read(self, stream: str, after: int = NO_STREAM, limit: int = sys.maxsize) -> list[Recorded]:
        """Return at most `limit` events of `stream` behind revision `after`, oldest first; none without a stream."""
        try:
            async with _in_time():
                response = await self._client.read_stream(
                    stream, stream_position=after + 1, limit=limit, timeout=TIMEOUT_S
                )
                return [_recorded(event) async for event in response]
        except (kurrent.NotFoundError, kurrent.StreamIsDeletedError):
            return []

    async def holds(self, recorded: Recorded) -> bool:
        """Return whether an event can still be read: not where it was wiped or truncated.

        Raises:
            OtherHistoryError: it never was in this history, so that tells nothing about it.
            UnavailableError: the store does not answer.
        """
        if await self._reads(recorded):
            return True
        await self.check(recorded.place)
        # Again: it may have been another store that did not have it.
        return await self._reads(recorded)

    async def _reads(self, recorded: Recorded) -> bool:
        found = await self.read(recorded.stream, after=max(recorded.revision, 0) - 1, limit=1)
        return any(event.event_id == recorded.event_id for event in found)

    async def read_through(self, stream: str) -> AsyncGenerator[Recorded, None]:
        """Yield the events of a stream of any length, oldest first. Raises UnavailableError."""
        after = NO_STREAM
        while page := await self.read(stream, after, PAGE):
            for recorded in page:
                yield recorded
            after = page[-1].revision
            if len(page) < PAGE:
                return

    async def wipe(self, stream: str, last: Recorded) -> None:
        """Delete a stream whose last event is `last`: nothing can be read of it, and a scavenge takes it off the disk.

        It is a soft delete: the stream may begin anew, empty, and its revisions go on. A tombstone would forbid that
        for ever. An empty event goes before it, for two reasons: KurrentDB keeps the last event of a deleted stream,
        and who still means to append behind `last` is refused instead of taking up the stream again.

        Raises:
            ConflictError: `last` is not its last event any more.
            UnavailableError: no answer.
        """
        revision = last.revision
        if last.type_name != Blank.type_name:
            await self.append([StreamAppend(stream, revision, [Pending(Blank(), uuid.uuid4())])])
            revision += 1
        try:
            async with _in_time():
                await self._client.delete_stream(stream, current_version=revision, timeout=TIMEOUT_S)
        except kurrent.WrongCurrentVersionError as error:
            raise ConflictError({stream: revision}) from error

    async def truncate(self, stream: str, before: int) -> None:
        """Take the events below revision `before` out of a stream, as `wipe` does with all. Raises UnavailableError."""
        async with _in_time():
            await self._client.set_stream_metadata(stream, metadata={"$tb": before}, timeout=TIMEOUT_S)

    async def ping(self) -> bool:
        """Return whether the store answers within two seconds."""
        try:
            async with asyncio.timeout(2):
                await self._client.get_commit_position(timeout=2)
        except (TimeoutError, *_UNAVAILABLE):
            return False
        return True

    async def head(self) -> int:
        """Return the commit position of the last event of the store; 0 in an empty one."""
        async with _in_time():
            return await self._client.get_commit_position(timeout=TIMEOUT_S)

    async def read_all(
        self, start: int | None, type_names: Iterable[str] = (), limit: int = sys.maxsize
    ) -> AsyncGenerator[Recorded, None]:
        """Yield the events from position `start` on, its own included (None: all), at most `limit`, and end.

        Only `type_names` are delivered (none named: every type of Recorrido).

        Raises:
            OtherHistoryError: the history does not reach to `start`.
            UnavailableError: the store does not answer.
        """
        try:
            response = await self._client.read_all(
                commit_position=start, filter_include=_patterns(type_names), limit=limit
            )
            async with response:
                async for event in response:
                    yield _recorded(event)
        except kurrent.InvalidCommitPositionError as error:
            raise OtherHistoryError(f"position {start}") from error
        except _UNAVAILABLE as error:
            raise UnavailableError("event store", type(error).__name__) from error

    async def check(self, place: Place | None) -> None:
        """Make sure that the event of `place` is part of this store's history (None: nothing to check).

        Where it is gone, its stream tells whether it was deleted or truncated with the stream, which changes no
        history.

        Raises:
            OtherHistoryError: it never was in this history.
            UnavailableError: the store does not answer.
        """
        if place is None:
            return
        try:
            async with _in_time():
                try:
                    found = await self._from(place.position)
                except kurrent.ServiceUnavailableError:
                    # The client makes a connection that broke, as by a restart of the store, anew for calls that answer
                    # as a whole, and not for a read, whose failure comes with its first event.
                    await self._client.get_commit_position(timeout=TIMEOUT_S)
                    found = await self._from(place.position)
                if found is not None and found.commit_position == place.position:
                    same = found.id == place.event_id
                else:
                    # A deletion is itself an event: the history goes on behind what was deleted.
                    same = found is not None and await self._was_deleted(place)
        except kurrent.InvalidCommitPositionError:
            same = False
        if not same:
            raise OtherHistoryError(f"event {place.event_id} at position {place.position}")

    async def _from(self, position: int) -> RecordedEvent | None:
        """Return the first event at or behind a position."""
        # With a filter, though it lets all through: only then has a position beyond the end an error class.
        response = await self._client.read_all(
            commit_position=position, filter_include=[".*"], limit=1, timeout=TIMEOUT_S
        )
        return next(iter([event async for event in response]), None)

    async def _was_deleted(self, place: Place) -> bool:
        try:
            metadata, _ = await self._client.get_stream_metadata(place.stream, timeout=TIMEOUT_S)
        except kurrent.StreamIsDeletedError:
            return True
        return metadata.get("$tb", 0) > place.revision or "$maxAge" in metadata or "$maxCount" in metadata

    async def follow(
        self, after: Place | None, type_names: Iterable[str] = (), *, lost: Callable[[], None] = lambda: None
    ) -> AsyncGenerator[Recorded | CaughtUp | Checkpoint, None]:
        """Yield every event behind `after` (None: from the beginning), then live ones, for ever.

        Only `type_names` are delivered (none named: every type of Recorrido). A lost store is waited for: the
        caller sees a pause, never a gap or a repetition. `lost` is called when it begins to wait; CaughtUp comes again
        when it is back.

        Raises:
            OtherHistoryError: the store does not hold the event that was delivered last, or `after`.
        """
        last, backoff, told = after, Backoff(), False
        include = _patterns(type_names)
        while True:
            try:
                # On from the last event, not from a checkpoint behind it, which would fit into any history.
                await self.check(last)
                subscription = await self._client.subscribe_to_all(
                    commit_position=last.position if last else None,
                    filter_include=include,
                    include_checkpoints=True,
                    checkpoint_interval_multiplier=CHECKPOINT_WINDOWS,
                    include_caught_up=True,
                )
                async with subscription:
                    async for event in subscription:
                        backoff.reset()
                        told = False
                        if event.is_caught_up:
                            yield CaughtUp()
                        elif event.is_checkpoint:
                            yield Checkpoint(event.commit_position)
                        elif last is None or event.commit_position > last.position:
                            recorded = _recorded(event)
                            last = recorded.place
                            yield recorded
            except (UnavailableError, kurrent.KurrentDBClientError) as error:
                # Once for each time that it is away, however often it is asked again meanwhile.
                if not told:
                    position = last.position if last else None
                    LOG.warning("event store subscription lost, resuming", after=position, error=type(error).__name__)
                told = True
            lost()
            await backoff.wait()

    async def follow_in_batches(
        self,
        after: Place | None,
        type_names: Sequence[str] = (),
        *,
        size: int,
        lost: Callable[[], None] = lambda: None,
        idle_s: float = IDLE_S,
    ) -> AsyncGenerator[Sequence[Recorded | CaughtUp | Checkpoint], None]:
        """Yield what `follow` does in batches, and when it is idle a Checkpoint at the store's head.

        A batch has at most `size` items and about BATCH_BYTES of data.

        A store tells its checkpoints every so many events: after the last of them its live followers would not learn
        that all behind is of no interest to them (https://github.com/Eventuous/eventuous/issues/559).

        Raises:
            OtherHistoryError: as `follow`.
        """
        position, live = after.position if after else 0, False

        def gone() -> None:
            # The store that comes back may hold another history, of which `follow` finds out.
            nonlocal live
            live = False
            lost()

        following = batches(
            self.follow(after, type_names, lost=gone),
            size=size,
            weight=size_bytes,
            max_weight=BATCH_BYTES,
            idle_s=idle_s,
        )
        async with contextlib.aclosing(following):
            async for came in following:
                batch = came or (await self._passed(position, type_names) if live else ())
                for item in batch:
                    if isinstance(item, CaughtUp):
                        live = True
                    else:
                        position = max(position, item.position)
                if batch:
                    yield batch

    async def _passed(self, position: int, type_names: Sequence[str]) -> Sequence[Checkpoint]:
        """Return the checkpoint at the store's head, where no event of interest is between it and `position`.

        What is recorded while this looks stands behind that head. An event of interest is on its way to the follower.
        """
        with contextlib.suppress(OtherHistoryError, UnavailableError):
            head = await self.head()
            if head > position:
                async with _in_time(), contextlib.aclosing(self.read_all(position or None, type_names, 2)) as behind:
                    if not [event async for event in behind if event.position > position]:
                        return (Checkpoint(head),)
        return ()


class SameHistory:
    """Tells whether the store is still the one that something was learnt from; it is asked every SAME_FOR_S at most.

    Who wants to know while it is being asked waits for that answer: a thousand streams that are read are one question.
    """

    def __init__(self, check: Callable[[Place], Awaitable[None]]) -> None:
        """`check` is that of the store."""
        self._check = check
        self._asked_at = -math.inf
        self._asking: asyncio.Task[None] | None = None

    async def check(self, place: Place | None) -> None:
        """Raises OtherHistoryError and UnavailableError, as `EventStore.check` of an event that was seen there."""
        if place is None or time.monotonic() - self._asked_at < SAME_FOR_S:
            return
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask(place))
        # Who gives up does not take the answer from the others.
        await asyncio.shield(self._asking)

    async def _ask(self, place: Place) -> None:
        now = time.monotonic()
        await self._check(place)
        self._asked_at = now


@contextlib.asynccontextmanager
async def _in_time() -> AsyncIterator[None]:
    """Let the block have TIMEOUT_S; what the client raises of a store that cannot answer comes out as ours.

    Raises:
        RefusedError: TOO_LARGE.
        UnavailableError: no answer, or not in time.
    """
    try:
        async with asyncio.timeout(TIMEOUT_S):
            yield
    except _TOO_LARGE as error:
        raise RefusedError("TOO_LARGE", "more than the event store takes in one append") from error
    except (TimeoutError, *_UNAVAILABLE) as error:
        raise UnavailableError("event store", _reason(error)) from error


def _reason(error: Exception) -> str:
    """Return why the store cannot answer; where it answered that itself, as with a full disk, in its words."""
    answer = error.__cause__
    if isinstance(answer, grpc.aio.AioRpcError) and answer.code() in _ITS_OWN_WORDS:
        return f"{answer.details()}"[:200]
    return type(error).__name__


class _AppendSpans:
    """One span per trace that an append belongs to: a batch holds events of many customers' traces."""

    def __init__(self, appends: Sequence[StreamAppend]) -> None:
        self._spans: dict[int, tuple[Span, dict[str, str]]] = {}
        #: By id(), which is unique as long as the appends are there: events of one call share theirs.
        self._metadata: dict[tuple[int, int], bytes] = {}
        self._count = sum(len(a.events) for a in appends)

    def metadata(self, append: StreamAppend, pending: Pending) -> bytes:
        """Return the metadata of an event as the store keeps it: its own, and the trace that it belongs to."""
        key = id(pending.metadata), id(pending.context)
        encoded = self._metadata.get(key)
        if encoded is None:
            encoded = msgspec.json.encode({**pending.metadata, **self._headers(append, pending)})
            self._metadata[key] = encoded
        return encoded

    def _headers(self, append: StreamAppend, pending: Pending) -> dict[str, str]:
        key = id(pending.context)
        if key not in self._spans:
            category = append.stream.partition("-")[0]
            span = telemetry.start_span(
                f"append {category}", SpanKind.PRODUCER, parent=pending.context, attributes={"events": self._count}
            )
            self._spans[key] = (span, telemetry.inject(telemetry.context_of(span)))
        return self._spans[key][1]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _type: object, error: BaseException | None, _trace: object) -> None:
        for span, _ in self._spans.values():
            if error is not None:
                span.set_status(Status(StatusCode.ERROR, type(error).__name__))
            span.end()


async def _require_append_records(client: AsyncKurrentDBClient) -> None:
    # Asked for itself, with nothing to append: ServerFeatures list the calls of the first protocol version only.
    try:
        await client.append_records([], [], timeout=TIMEOUT_S)
    except kurrent.KurrentDBClientError as error:
        cause = error.__cause__
        if isinstance(cause, grpc.RpcError) and cause.code() is grpc.StatusCode.UNIMPLEMENTED:
            await client.close()
            raise RefusedError(
                "STORE_TOO_OLD", "the event store has no AppendRecords: KurrentDB 26.1 or later is needed"
            ) from None


def _patterns(type_names: Iterable[str]) -> list[str]:
    # As regular expressions, because the store's prefix filter would let InteractionRecordedV2 through. What has no
    # name of that form is nobody's public event.
    return [f"^{name.replace('.', '[.]')}$" for name in type_names] or [r"^recorrido([.][A-Za-z0-9_]+)+$"]


def _actual_revision(state: int) -> int:
    return state if state == TOMBSTONED else max(state, NO_STREAM)


def _recorded(event: RecordedEvent) -> Recorded:
    assert event.recorded_at is not None
    return Recorded(
        type_name=event.type,
        data=event.data,
        metadata=_metadata(event.metadata),
        event_id=event.id,
        stream=event.stream_name,
        revision=event.stream_position,
        position=event.commit_position,
        recorded_at=event.recorded_at,
    )


def _metadata(raw: bytes) -> dict[str, str]:
    # Events of other writers may carry metadata of any shape; what is not ours is passed over.
    with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError):
        parsed: Any = msgspec.json.decode(raw) if raw else {}
        if isinstance(parsed, dict):
            return {k: v for k, v in parsed.items() if isinstance(v, str)}
    return {}
