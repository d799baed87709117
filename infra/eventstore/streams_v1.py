"""The v1 Streams service: Read (with subscriptions), Append, BatchAppend, Delete, Tombstone."""

import asyncio
import re
import sqlite3
import uuid
from collections.abc import AsyncIterator, Iterable
from typing import Any, Final

import grpc
from google.protobuf import any_pb2, empty_pb2
from google.protobuf.timestamp_pb2 import Timestamp
from kurrentdbclient.protos.v1 import shared_pb2, status_pb2, streams_pb2, streams_pb2_grpc

from infra.eventstore import errors
from infra.eventstore.database import CorruptedStoreError
from infra.eventstore.limits import Limits
from infra.eventstore.model import (
    ANY,
    DELETED,
    END_OF_STREAM,
    EXISTS,
    NO_STREAM,
    TOMBSTONED,
    Append,
    Committed,
    Delete,
    NewEvent,
    Part,
    RecordedEvent,
    Violation,
    Written,
)
from infra.eventstore.reader import PAGE_EVENTS, Filter
from infra.eventstore.store import Store

ReadResp = streams_pb2.ReadResp
Options = streams_pb2.ReadReq.Options
Context = grpc.aio.ServicerContext[Any, Any]

JSON: Final = "application/json"
OCTET_STREAM: Final = "application/octet-stream"


class StreamsV1(streams_pb2_grpc.StreamsServicer):
    def __init__(self, store: Store, limits: Limits) -> None:
        self._store = store
        self._limits = limits

    async def Read(self, request: streams_pb2.ReadReq, context: Context) -> AsyncIterator[ReadResp]:  # noqa: N802
        """Stream a bounded read, or a subscription that goes on until the client leaves."""
        options = request.options
        subscribe = options.WhichOneof("count_option") == "subscription"
        if subscribe:
            yield ReadResp(confirmation=ReadResp.SubscriptionConfirmation(subscription_id=str(uuid.uuid4())))
        try:
            if options.WhichOneof("stream_option") == "stream":
                read = self._subscribe_to_stream if subscribe else self._read_stream
            else:
                read = self._subscribe_to_all if subscribe else self._read_all
            async for response in read(options, context):
                yield response
        except (sqlite3.DatabaseError, CorruptedStoreError) as error:
            await errors.storage_failed(context, error)

    async def _read_stream(self, options: Options, context: Context) -> AsyncIterator[ReadResp]:
        name = options.stream.stream_identifier.stream_name.decode()
        stream = self._store.read.stream(name)
        if stream is not None and stream.tombstoned:
            await errors.stream_deleted(context, name)
        if stream is None or stream.soft_deleted or stream.last_revision == NO_STREAM:
            identifier = options.stream.stream_identifier
            yield ReadResp(stream_not_found=ReadResp.StreamNotFound(stream_identifier=identifier))
            return
        forwards = options.read_direction == Options.Forwards
        revision = _start_revision(options.stream, at_start=0, at_end=stream.last_revision)
        structured = _structured(options)
        left = options.count
        while left > 0 and revision >= 0:
            page = (
                self._store.read.stream_forwards(stream, revision, left)
                if forwards
                else self._store.read.stream_backwards(stream, revision, left)
            )
            for event in page:
                yield event_response(event, structured=structured)
            if not page:
                return
            left -= len(page)
            revision = page[-1].revision + (1 if forwards else -1)

    async def _read_all(self, options: Options, context: Context) -> AsyncIterator[ReadResp]:
        forwards = options.read_direction == Options.Forwards
        filter_ = await _filter(options, context)
        structured = _structured(options)
        head = self._store.head
        position = await self._start_position(options, context, forwards=forwards)
        left = options.count
        while left > 0 and (position < head if forwards else position > 1):
            page = (
                self._store.read.all_forwards(position, head, filter_, left)
                if forwards
                else self._store.read.all_backwards(position, filter_, left)
            )
            for event in page.events:
                yield event_response(event, structured=structured)
            left -= len(page.events)
            position = page.scanned_to
            if not page.events:
                await asyncio.sleep(0)  # a long stretch without a match must not hold up everyone else

    async def _start_position(self, options: Options, context: Context, *, forwards: bool) -> int:
        """The position after which to read forwards, or below which to read backwards.

        As in KurrentDB a forward read includes the event at the given position, a backward read does not.
        """
        which = options.all.WhichOneof("all_option")
        if which == "position":
            position = options.all.position.commit_position
            if position > self._store.head and not (position >= END_OF_STREAM and not forwards):
                await errors.invalid_position(context, "FilteredReadAllResult")
            return position - 1 if forwards else min(position, self._store.head + 1)
        at_end = which == "end"
        if forwards:
            return self._store.head if at_end else 0
        return self._store.head + 1 if at_end else 0

    async def _subscribe_to_stream(self, options: Options, context: Context) -> AsyncIterator[ReadResp]:
        """Events after the given revision, for ever. The stream need not exist yet."""
        name = options.stream.stream_identifier.stream_name.decode()
        structured = _structured(options)
        head = self._store.head
        stream = self._store.read.stream(name)
        last = NO_STREAM if stream is None else stream.last_revision
        revision = _start_revision(options.stream, at_start=-1, at_end=last) + 1
        caught_up = False
        while True:
            if stream is not None and stream.tombstoned:
                await errors.stream_deleted(context, name)
            page = [] if stream is None else self._store.read.stream_forwards(stream, revision)
            for event in page:
                yield event_response(event, structured=structured)
            if page:
                revision = page[-1].revision + 1
            if len(page) < PAGE_EVENTS:
                if not caught_up:
                    caught_up = True
                    yield ReadResp(caught_up=ReadResp.CaughtUp(timestamp=_now(), stream_revision=revision - 1))
                await self._store.beyond(head)
            head = self._store.head
            stream = self._store.read.stream(name)

    async def _subscribe_to_all(self, options: Options, context: Context) -> AsyncIterator[ReadResp]:
        """Events after the given position, for ever: each page reads on where the one before stopped.

        There is no hand-over from history to live, hence no gap and no duplicate: a commit only wakes the reading.
        A filtered subscription gets checkpoints, so that the client can go on from the last position looked at.
        """
        filter_ = await _filter(options, context)
        structured = _structured(options)
        position = 0
        if options.all.WhichOneof("all_option") == "position":
            position = options.all.position.commit_position
            if position > self._store.head:
                await errors.invalid_position(context, "FilteredReadAllResult")
        elif options.all.WhichOneof("all_option") == "end":
            position = self._store.head
        interval = max(1, options.filter.max) * max(1, options.filter.checkpointIntervalMultiplier)
        checkpoint = position
        caught_up = False
        while True:
            page = self._store.read.all_forwards(position, self._store.head, filter_)
            for event in page.events:
                yield event_response(event, structured=structured)
            position = page.scanned_to
            at_head = position >= self._store.head
            if filter_ and (position - checkpoint >= interval or (at_head and not caught_up and position > checkpoint)):
                checkpoint = position
                yield _checkpoint(position)
            if at_head:
                if not caught_up:
                    caught_up = True
                    yield _caught_up(position)
                await self._store.beyond(position)
            elif not page.events:
                await asyncio.sleep(0)

    async def Append(  # noqa: N802
        self, requests: AsyncIterator[streams_pb2.AppendReq], context: Context
    ) -> streams_pb2.AppendResp:
        """Append one transaction to one stream: first its options, then its events."""
        options: streams_pb2.AppendReq.Options | None = None
        events: list[NewEvent] = []
        size = 0
        async for request in requests:
            if request.WhichOneof("content") == "options":
                options = request.options
                continue
            event = await _proposed(request.proposed_message, context)
            size += event.size
            if event.size > self._limits.max_event_bytes:
                await errors.maximum_event_size_exceeded(context, event, self._limits.max_event_bytes)
            if size > self._limits.max_append_bytes:
                await errors.maximum_append_size_exceeded(context, self._limits.max_append_bytes)
            events.append(event)
        if options is None:
            await errors.invalid_argument(context, "The append has no options")
        stream = options.stream_identifier.stream_name.decode()
        expected = _expected(options)
        try:
            outcome = await self._store.write(Append([Part(stream, expected, events)]))
        except sqlite3.Error as error:
            await errors.storage_failed(context, error)
        if isinstance(outcome, Committed):
            return streams_pb2.AppendResp(success=_append_success(outcome.parts[0]))
        violation = outcome.violations[0]
        if _is_deleted(violation):
            await errors.stream_deleted(context, stream)
        return streams_pb2.AppendResp(wrong_expected_version=_wrong_version(violation))

    async def BatchAppend(  # noqa: N802
        self, requests: AsyncIterator[streams_pb2.BatchAppendReq], context: Context
    ) -> AsyncIterator[streams_pb2.BatchAppendResp]:
        """Append many transactions over one call. Events gather under their correlation id until `is_final`.

        The transactions of one call are written in the order of their final requests and answered in that order.
        """
        pending: dict[str, tuple[streams_pb2.BatchAppendReq.Options, list[NewEvent]]] = {}
        async for request in requests:
            correlation = _uuid_text(request.correlation_id)
            options, events = pending.setdefault(correlation, (request.options, []))
            for message in request.proposed_messages:
                events.append(await _proposed(message, context))
            if request.is_final:
                del pending[correlation]
                yield await self._batch(request.correlation_id, options, events)

    async def _batch(
        self,
        correlation: shared_pb2.UUID,
        options: streams_pb2.BatchAppendReq.Options,
        events: list[NewEvent],
    ) -> streams_pb2.BatchAppendResp:
        response = streams_pb2.BatchAppendResp(correlation_id=correlation, stream_identifier=options.stream_identifier)
        _echo_expected(options, response)
        limits = self._limits
        if sum(event.size for event in events) > limits.max_append_bytes or any(
            event.size > limits.max_event_bytes for event in events
        ):
            too_big = shared_pb2.MaximumAppendSizeExceeded(maxAppendSize=limits.max_append_bytes)
            response.error.CopyFrom(_error(3, "Maximum Append Size Exceeded", errors.packed(too_big)))
            return response
        stream = options.stream_identifier.stream_name.decode()
        try:
            outcome = await self._store.write(Append([Part(stream, _expected(options), events)]))
        except sqlite3.Error as error:
            unknown = errors.packed(shared_pb2.Unknown())
            response.error.CopyFrom(_error(2, f"Event store cannot write: {error}", unknown))
            return response
        if isinstance(outcome, Committed):
            response.success.CopyFrom(_batch_success(outcome.parts[0]))
        else:
            response.error.CopyFrom(_batch_refusal(outcome.violations[0]))
        return response

    async def Delete(  # noqa: N802
        self, request: streams_pb2.DeleteReq, context: Context
    ) -> streams_pb2.DeleteResp:
        """Make the stream's events invisible; a later append continues its numbering."""
        position = await self._delete(request.options, context, tombstone=False)
        at = streams_pb2.DeleteResp.Position(commit_position=position, prepare_position=position)
        return streams_pb2.DeleteResp(position=at)

    async def Tombstone(  # noqa: N802
        self, request: streams_pb2.TombstoneReq, context: Context
    ) -> streams_pb2.TombstoneResp:
        """Delete the stream for good: its name can never be written again."""
        position = await self._delete(request.options, context, tombstone=True)
        at = streams_pb2.TombstoneResp.Position(commit_position=position, prepare_position=position)
        return streams_pb2.TombstoneResp(position=at)

    async def _delete(
        self,
        options: streams_pb2.DeleteReq.Options | streams_pb2.TombstoneReq.Options,
        context: Context,
        *,
        tombstone: bool,
    ) -> int:
        stream = options.stream_identifier.stream_name.decode()
        try:
            outcome = await self._store.write(Delete(stream, _expected(options), tombstone=tombstone))
        except sqlite3.Error as error:
            await errors.storage_failed(context, error)
        if not isinstance(outcome, Committed):
            violation = outcome.violations[0]
            if _is_deleted(violation):
                await errors.stream_deleted(context, stream)
            await errors.wrong_expected_version(context, "Delete", violation)
        return outcome.position


def event_response(event: RecordedEvent, *, structured: bool) -> ReadResp:
    """An event as a read answers it; `structured` asks for its id as two integers instead of text."""
    position = event.position
    return ReadResp(
        event=ReadResp.ReadEvent(
            event=ReadResp.ReadEvent.RecordedEvent(
                id=uuid_message(event.id, structured=structured),
                stream_identifier=shared_pb2.StreamIdentifier(stream_name=event.stream.encode()),
                stream_revision=event.revision,
                prepare_position=position,
                commit_position=position,
                metadata={
                    "type": event.type,
                    "created": str(event.created),
                    "content-type": JSON if event.is_json else OCTET_STREAM,
                },
                custom_metadata=event.metadata,
                data=event.data,
            ),
            commit_position=position,
        )
    )


def uuid_message(value: bytes, *, structured: bool) -> shared_pb2.UUID:
    if not structured:
        return shared_pb2.UUID(string=str(uuid.UUID(bytes=value)))
    return shared_pb2.UUID(
        structured=shared_pb2.UUID.Structured(
            most_significant_bits=int.from_bytes(value[:8], "big", signed=True),
            least_significant_bits=int.from_bytes(value[8:], "big", signed=True),
        )
    )


def uuid_bytes(message: shared_pb2.UUID) -> bytes:
    """The 16 bytes of a UUID message.

    Raises:
        ValueError: it is not a UUID.
    """
    if message.WhichOneof("value") == "structured":
        high = message.structured.most_significant_bits.to_bytes(8, "big", signed=True)
        return high + message.structured.least_significant_bits.to_bytes(8, "big", signed=True)
    return uuid.UUID(message.string).bytes


def prefix_or_regex(prefixes: Iterable[str], regex: str) -> re.Pattern[str]:
    """One pattern for a filter expression.

    Raises:
        re.error: the regular expression is not one.
    """
    prefixes = tuple(prefixes)
    return re.compile("|".join(map(re.escape, prefixes)) if prefixes else regex)


async def _filter(options: Options, context: Context) -> Filter | None:
    which = options.filter.WhichOneof("filter") if options.WhichOneof("filter_option") == "filter" else None
    if which is None:
        return None
    expression = getattr(options.filter, which)
    try:
        pattern = prefix_or_regex(expression.prefix, expression.regex)
    except re.error as error:
        await errors.invalid_argument(context, f"The filter is not a regular expression: {error}")
    find = pattern.match if expression.prefix else pattern.search
    return Filter(which == "stream_identifier", lambda text: find(text) is not None)


async def _proposed(
    message: streams_pb2.AppendReq.ProposedMessage | streams_pb2.BatchAppendReq.ProposedMessage, context: Context
) -> NewEvent:
    for required in ("type", "content-type"):
        if required not in message.metadata:
            await errors.refuse(
                context,
                grpc.StatusCode.INVALID_ARGUMENT,
                f"Required Metadata Property '{required}' is missing",
                "missing-required-metadata-property",
                required_metadata_properties="type,content-type",
            )
    try:
        event_id = uuid_bytes(message.id)
    except ValueError:
        await errors.invalid_argument(context, f"'{message.id.string}' is not a UUID")
    is_json = message.metadata["content-type"] == JSON
    return NewEvent(event_id, message.metadata["type"], is_json, message.custom_metadata, message.data)


def _expected(options: Any) -> int:
    """The expected state of an Append, BatchAppend, Delete or Tombstone, whose options share these names."""
    name = "expected_stream_position" if hasattr(options, "stream_position") else "expected_stream_revision"
    which = options.WhichOneof(name)
    if which in ("revision", "stream_position"):
        # On the wire a revision is unsigned; beyond the signed range no stream ever is.
        return min(int(getattr(options, which)), END_OF_STREAM - 1)
    return {"no_stream": NO_STREAM, "stream_exists": EXISTS}.get(which, ANY)


def _start_revision(options: Options.StreamOptions, *, at_start: int, at_end: int) -> int:
    which = options.WhichOneof("revision_option")
    if which == "revision":
        return min(int(options.revision), END_OF_STREAM - 1)
    return at_end if which == "end" else at_start


def _structured(options: Options) -> bool:
    return options.uuid_option.WhichOneof("content") == "structured"


def _uuid_text(message: shared_pb2.UUID) -> str:
    return message.string or str(message.structured)


def _is_deleted(violation: Violation) -> bool:
    return violation.actual == TOMBSTONED or (violation.actual == DELETED and violation.expected == EXISTS)


def _append_success(part: Written) -> streams_pb2.AppendResp.Success:
    success = streams_pb2.AppendResp.Success()
    if part.revision >= 0:
        success.current_revision = part.revision
    else:
        success.no_stream.SetInParent()
    if part.position >= 0:
        success.position.commit_position = success.position.prepare_position = part.position
    else:
        success.no_position.SetInParent()
    return success


def _batch_success(part: Written) -> streams_pb2.BatchAppendResp.Success:
    success = streams_pb2.BatchAppendResp.Success()
    if part.revision >= 0:
        success.current_revision = part.revision
    else:
        success.no_stream.SetInParent()
    if part.position >= 0:
        success.position.commit_position = success.position.prepare_position = part.position
    else:
        success.no_position.SetInParent()
    return success


def _wrong_version(violation: Violation) -> streams_pb2.AppendResp.WrongExpectedVersion:
    """Both the current fields and those of 20.6, which some clients still read."""
    wrong = streams_pb2.AppendResp.WrongExpectedVersion()
    if violation.last_revision >= 0:
        wrong.current_revision = wrong.current_revision_20_6_0 = violation.last_revision
    else:
        wrong.current_no_stream.SetInParent()
        wrong.no_stream_20_6_0.SetInParent()
    if violation.expected >= 0:
        wrong.expected_revision = wrong.expected_revision_20_6_0 = violation.expected
    elif violation.expected == EXISTS:
        wrong.expected_stream_exists.SetInParent()
        wrong.stream_exists_20_6_0.SetInParent()
    elif violation.expected == NO_STREAM:
        wrong.expected_no_stream.SetInParent()
    else:
        wrong.expected_any.SetInParent()
        wrong.any_20_6_0.SetInParent()
    return wrong


def _batch_refusal(violation: Violation) -> status_pb2.Status:
    if _is_deleted(violation):
        identifier = shared_pb2.StreamIdentifier(stream_name=violation.stream.encode())
        detail = errors.packed(shared_pb2.StreamDeleted(stream_identifier=identifier))
        return _error(9, f"Event stream '{violation.stream}' is deleted.", detail)
    wrong = shared_pb2.WrongExpectedVersion()
    if violation.last_revision >= 0:
        wrong.current_stream_revision = violation.last_revision
    else:
        wrong.current_no_stream.CopyFrom(empty_pb2.Empty())
    if violation.expected >= 0:
        wrong.expected_stream_position = violation.expected
    elif violation.expected == EXISTS:
        wrong.expected_stream_exists.CopyFrom(empty_pb2.Empty())
    elif violation.expected == NO_STREAM:
        wrong.expected_no_stream.CopyFrom(empty_pb2.Empty())
    else:
        wrong.expected_any.CopyFrom(empty_pb2.Empty())
    return _error(9, "Wrong Expected Version", errors.packed(wrong))


def _error(code: int, message: str, detail: any_pb2.Any) -> status_pb2.Status:
    return status_pb2.Status(code=code, message=message, details=detail)  # type: ignore[arg-type]


def _echo_expected(options: streams_pb2.BatchAppendReq.Options, response: streams_pb2.BatchAppendResp) -> None:
    """Say in the response which state was expected, as the real server does."""
    expected = _expected(options)
    if expected >= 0:
        response.stream_position = expected
    elif expected == NO_STREAM:
        response.no_stream.CopyFrom(empty_pb2.Empty())
    elif expected == EXISTS:
        response.stream_exists.CopyFrom(empty_pb2.Empty())
    else:
        response.any.CopyFrom(empty_pb2.Empty())


def _checkpoint(position: int) -> ReadResp:
    return ReadResp(
        checkpoint=ReadResp.Checkpoint(commit_position=position, prepare_position=position, timestamp=_now())
    )


def _caught_up(position: int) -> ReadResp:
    at = ReadResp.Position(commit_position=position, prepare_position=position)
    return ReadResp(caught_up=ReadResp.CaughtUp(timestamp=_now(), position=at))


def _now() -> Timestamp:
    now = Timestamp()
    now.GetCurrentTime()
    return now
