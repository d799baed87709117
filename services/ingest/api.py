"""proto ⇄ domain of the front door."""

import asyncio
import contextlib
from collections import Counter, deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

import structlog

from recorrido.ingest.v1 import ingest_service_pb2 as pb
from recorrido.ingest.v1 import ingest_service_pb2_grpc, interaction_pb2
from recorrido.ingest.v1.events import Interaction
from services.foundation import rpc
from services.foundation.errors import ExhaustedError, InvalidError, UnavailableError, Violation
from services.foundation.flow import until_set
from services.foundation.limits import RateLimiter
from services.foundation.rules import TIME_RULE, Rules, on_one_line
from services.ingest.domain import MAX_VIOLATIONS, RecordInteraction
from services.ingest.handlers import Accepted, Batch, Recorder, Recording, Refusal, Result
from services.ingest.kept import keep
from services.ingest.masking import Masker
from services.ingest.rejection import MAX_FIELD, MAX_RULE

LOG = structlog.get_logger()

MAX_INTERACTIONS = 1000
#: Everything could be read.
NONE: Mapping[int, Sequence[Violation]] = MappingProxyType({})
_OUTCOMES = frozenset(interaction_pb2.Outcome.values())
#: Batches of one stream that are accepted and not yet answered.
STREAM_WINDOW = 8
#: Streams that are open at once.
STREAMS = 1_000
#: The same of one client, so that none can keep the others out.
STREAMS_PER_CLIENT = 100
#: Bytes of all streams together that are read and not yet answered.
STREAM_BYTES = 256 * 1024 * 1024
#: The same of one client: more than this it does not hold, but for its last batch.
STREAM_BYTES_PER_CLIENT = 64 * 1024 * 1024
#: What a stream that finds no room is told to wait, in seconds.
RETRY_AFTER_S = 1.0


class Room:
    """Bounds streams and what they hold: each may wait as long as it likes, but not beside any number of others."""

    def __init__(
        self, most_streams: int, most_streams_per_client: int, most_bytes: int, most_bytes_per_client: int
    ) -> None:
        self._most_streams = most_streams
        self._most_streams_per_client = most_streams_per_client
        self._most_bytes = most_bytes
        self._most_bytes_per_client = most_bytes_per_client
        self._streams: Counter[str] = Counter()
        self._held_bytes: Counter[str] = Counter()

    @contextlib.contextmanager
    def stream(self, client: str) -> Iterator[None]:
        """Count a stream while the block lasts. Raises ExhaustedError (TOO_MANY_STREAMS)."""
        mine, all_ = self._streams[client], self._streams.total()
        if mine >= self._most_streams_per_client:
            raise ExhaustedError("TOO_MANY_STREAMS", f"{client} has {mine:,} streams open already", RETRY_AFTER_S)
        if all_ >= self._most_streams:
            raise ExhaustedError("TOO_MANY_STREAMS", f"{all_:,} streams are open already", RETRY_AFTER_S)
        self._streams[client] += 1
        try:
            yield
        finally:
            self._streams[client] -= 1
            if not self._streams[client]:
                del self._streams[client]

    def is_full(self, client: str) -> bool:
        """Whether the client's streams hold all that they may."""
        return self._held_bytes[client] >= self._most_bytes_per_client

    def take(self, client: str, size: int) -> None:
        """Raises ExhaustedError (STREAMS_FULL). What is larger than all the room is taken while nobody holds any."""
        mine, all_ = self._held_bytes[client], self._held_bytes.total()
        if self.is_full(client):
            raise ExhaustedError("STREAMS_FULL", f"{client}'s streams hold {mine:,} bytes already", RETRY_AFTER_S)
        if all_ and all_ + size > self._most_bytes:
            raise ExhaustedError("STREAMS_FULL", f"streams hold {all_:,} bytes already", RETRY_AFTER_S)
        self._held_bytes[client] += size

    def give_back(self, client: str, size: int) -> None:
        self._held_bytes[client] -= size
        if not self._held_bytes[client]:
            del self._held_bytes[client]


class IngestServicer(ingest_service_pb2_grpc.IngestServiceServicer):
    """The front door. `stopping` is set when the process is to end: streams end then."""

    def __init__(
        self, recorder: Recorder, limiter: RateLimiter, stopping: asyncio.Event, masker: Masker, room: Room
    ) -> None:
        self._recorder = recorder
        self._masker = masker
        self._limiter = limiter
        self._stopping = stopping
        self._room = room

    async def RecordInteraction(  # noqa: N802 - gRPC's name
        self, request: pb.RecordInteractionRequest, _context: Any
    ) -> pb.RecordInteractionResponse:
        if not request.HasField("interaction"):
            raise InvalidError([Violation("interaction", "required")])
        (result,) = await self._record([request.interaction])
        if isinstance(result, Refusal):
            if result.rejection_id:
                result.error.details["rejection_id"] = result.rejection_id
            raise result.error
        return pb.RecordInteractionResponse(result=result_message(result))

    async def RecordInteractions(  # noqa: N802 - gRPC's name
        self, request: pb.RecordInteractionsRequest, _context: Any
    ) -> pb.RecordInteractionsResponse:
        """An empty request is answered with no results: an importer's last page may be empty."""
        _check_size(request.interactions)
        results = await self._record(request.interactions, _unreadable(request))
        return pb.RecordInteractionsResponse(results=map(result_message, results))

    async def _record(
        self,
        interactions: Sequence[interaction_pb2.Interaction],
        unreadable: Mapping[int, Sequence[Violation]] = NONE,
    ) -> list[Result]:
        client = rpc.client()
        wait_s = self._limiter.take(client, len(interactions))
        if wait_s:
            raise ExhaustedError("RATE_LIMITED", f"{client} sends more than its share", wait_s)
        return await self._recorder.accept(self._batch(interactions, client, rpc.metadata(), unreadable)).results()

    async def StreamInteractions(  # noqa: N802 - gRPC's name
        self, requests: AsyncIterator[pb.StreamInteractionsRequest | InvalidError], _context: Any
    ) -> AsyncIterator[pb.StreamInteractionsResponse]:
        """Read while fewer than STREAM_WINDOW batches are unanswered and the client has room; answer in order."""
        client = rpc.client()
        with self._room.stream(client):
            async with contextlib.aclosing(self._stream(requests, client)) as answers:
                async for answer in answers:
                    yield answer

    async def _stream(
        self, requests: AsyncIterator[pb.StreamInteractionsRequest | InvalidError], client: str
    ) -> AsyncGenerator[pb.StreamInteractionsResponse, None]:
        metadata = rpc.metadata()
        window = asyncio.Semaphore(STREAM_WINDOW)
        accepted: asyncio.Queue[tuple[int, Accepted | InvalidError] | None] = asyncio.Queue()
        sizes: deque[int] = deque()
        answered = asyncio.Event()

        async def read() -> None:
            try:
                async with contextlib.aclosing(until_set(requests, self._stopping)) as incoming:
                    await take_in(incoming)
            finally:
                accepted.put_nowait(None)

        async def take_in(incoming: AsyncIterator[pb.StreamInteractionsRequest | InvalidError]) -> None:
            while True:
                # What is read is held: so this comes first.
                await window.acquire()
                while sizes and self._room.is_full(client):
                    answered.clear()
                    await answered.wait()
                request = await anext(incoming, None)
                if request is None:
                    return
                sequence = 0 if isinstance(request, InvalidError) else request.sequence
                size = 0 if isinstance(request, InvalidError) else request.ByteSize()
                self._room.take(client, size)
                sizes.append(size)
                taken = await self._accept(request, client, metadata)
                if taken is None:
                    return
                accepted.put_nowait((sequence, taken))

        reading = asyncio.create_task(read())
        try:
            while (batch := await accepted.get()) is not None:
                sequence, taken = batch
                yield await _answer(sequence, taken)
                self._room.give_back(client, sizes.popleft())
                window.release()
                answered.set()
            await reading
        finally:
            reading.cancel()
            with contextlib.suppress(asyncio.CancelledError, ExhaustedError):
                await reading
            self._room.give_back(client, sum(sizes))
        if self._stopping.is_set():
            raise UnavailableError("ingest", "stopping; what is not answered is not accepted")

    async def _accept(
        self, request: pb.StreamInteractionsRequest | InvalidError, client: str, metadata: Mapping[str, str]
    ) -> Accepted | InvalidError | None:
        """Return the batch, accepted as soon as there is room and the client's rate allows; None: we are stopping."""
        if isinstance(request, InvalidError):
            return request
        try:
            _check_size(request.interactions)
        except InvalidError as error:
            return error
        while wait_s := self._limiter.take(client, len(request.interactions)):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), wait_s)
                return None
        return await self._recorder.accept_when_room(self._batch(request.interactions, client, metadata))

    def _batch(
        self,
        interactions: Sequence[interaction_pb2.Interaction],
        client_id: str,
        metadata: Mapping[str, str],
        unreadable: Mapping[int, Sequence[Violation]] = NONE,
    ) -> Batch:
        now = datetime.now(UTC)
        return Batch(
            commands=[
                _attempt(interaction, now, self._masker, unreadable.get(index, ()))
                for index, interaction in enumerate(interactions)
            ],
            keep=lambda index: keep(interactions[index], self._masker, unreadable.get(index, ())),
            client_id=client_id,
            metadata=metadata,
        )


def _check_size(interactions: Sequence[interaction_pb2.Interaction]) -> None:
    if len(interactions) > MAX_INTERACTIONS:
        raise InvalidError([Violation("interactions", f"at most {MAX_INTERACTIONS}, has {len(interactions)}")])


def _unreadable(request: pb.RecordInteractionsRequest) -> Mapping[int, Sequence[Violation]]:
    """Return what the sender could not read, by place, as an event can hold it. Raises InvalidError."""
    rules = Rules()
    for index, told in request.unreadable.items():
        rules.require(index < len(request.interactions), f"unreadable[{index}]", "the place of an interaction")
        few = 1 <= len(told.violations) <= MAX_VIOLATIONS
        rules.require(few, f"unreadable[{index}].violations", f"1 to {MAX_VIOLATIONS}")
    rules.enforce()
    return {
        index: [Violation(on_one_line(v.field[:MAX_FIELD]), on_one_line(v.rule[:MAX_RULE])) for v in told.violations]
        for index, told in request.unreadable.items()
    }


def _attempt(
    message: interaction_pb2.Interaction, now: datetime, masker: Masker, unreadable: Sequence[Violation]
) -> RecordInteraction | InvalidError:
    try:
        return command_of(message, now, masker, unreadable)
    except InvalidError as error:
        return error


def command_of(
    message: interaction_pb2.Interaction, now: datetime, masker: Masker, unread: Sequence[Violation] = ()
) -> RecordInteraction:
    """Return the command to record what `message` tells; `unread`: what its sender could not read.

    Raises:
        InvalidError: names every rule that it breaks, and everything unread.
    """
    unreadable = list(unread)
    if message.outcome not in _OUTCOMES:
        unreadable.append(Violation("outcome", "one of the known outcomes, or none"))
    try:
        interaction = Interaction.from_proto(message)
    except (ValueError, OverflowError):
        # The only field with values that have no counterpart: seconds may lie outside the years 1 to 9999.
        unreadable.append(Violation("occurred_at", TIME_RULE))
        readable = interaction_pb2.Interaction()
        readable.CopyFrom(message)
        readable.ClearField("occurred_at")
        interaction = Interaction.from_proto(readable)
    return RecordInteraction.of(interaction, now, unreadable, mask=masker.interaction)


async def _answer(sequence: int, taken: Accepted | InvalidError) -> pb.StreamInteractionsResponse:
    if isinstance(taken, InvalidError):
        return pb.StreamInteractionsResponse(sequence=sequence, problem=_problem(Refusal(taken)))
    try:
        return pb.StreamInteractionsResponse(sequence=sequence, results=map(result_message, await taken.results()))
    except Exception:
        LOG.exception("batch failed", sequence=sequence)
        problem = pb.Problem(reason="INTERNAL", message="internal error; the log has it by trace id")
        return pb.StreamInteractionsResponse(sequence=sequence, problem=problem)


def result_message(result: Result) -> pb.RecordResult:
    if isinstance(result, Recording):
        status = pb.RECORD_STATUS_DUPLICATE if result.duplicate else pb.RECORD_STATUS_RECORDED
        return pb.RecordResult(status=status, event_id=result.event_id)
    return pb.RecordResult(status=pb.RECORD_STATUS_REJECTED, problem=_problem(result))


def _problem(refusal: Refusal) -> pb.Problem:
    error = refusal.error
    violations = error.violations if isinstance(error, InvalidError) else ()
    return pb.Problem(
        reason=error.reason,
        message=error.message[:1024],
        violations=[pb.FieldViolation(field=v.field, rule=v.rule) for v in violations],
        rejection_id=refusal.rejection_id,
    )
