"""The v1 Streams service: Read (with subscriptions), Append, BatchAppend, Delete, Tombstone."""

import sqlite3
import uuid
from collections.abc import AsyncIterator
from typing import Any

import grpc
from google.protobuf import any_pb2, empty_pb2
from kurrentdbclient.protos.v1 import shared_pb2, status_pb2, streams_pb2, streams_pb2_grpc

from infra.eventstore import errors, reading, wire
from infra.eventstore.limits import Limits
from infra.eventstore.model import (
    DELETED,
    EXISTS,
    NO_STREAM,
    TOMBSTONED,
    Append,
    Committed,
    Delete,
    NewEvent,
    Part,
    Violation,
)
from infra.eventstore.store import Store

Context = grpc.aio.ServicerContext[Any, Any]
ReadResp = streams_pb2.ReadResp


class StreamsV1(streams_pb2_grpc.StreamsServicer):
    def __init__(self, store: Store, limits: Limits) -> None:
        self._store = store
        self._limits = limits

    async def Read(self, request: streams_pb2.ReadReq, context: Context) -> AsyncIterator[ReadResp]:  # noqa: N802
        """Stream a bounded read, or a subscription that goes on until the client leaves."""
        options = request.options
        one_stream = options.WhichOneof("stream_option") == "stream"
        if options.WhichOneof("count_option") == "subscription":
            read = reading.subscribe_to_stream if one_stream else reading.subscribe_to_all
            yield ReadResp(confirmation=ReadResp.SubscriptionConfirmation(subscription_id=str(uuid.uuid4())))
        else:
            read = reading.read_stream if one_stream else reading.read_all
        try:
            async for response in read(self._store, options):
                yield response
        except errors.FAILURES as error:
            await errors.abort(context, error)

    @errors.answering
    async def Append(  # noqa: N802
        self, requests: AsyncIterator[streams_pb2.AppendReq], context: Context
    ) -> streams_pb2.AppendResp:
        """Append one transaction to one stream: first its options, then its events."""
        del context
        options: streams_pb2.AppendReq.Options | None = None
        events: list[NewEvent] = []
        size = 0
        async for request in requests:
            if request.WhichOneof("content") == "options":
                options = request.options
                continue
            event = wire.proposed(request.proposed_message)
            if event.size > self._limits.max_event_bytes:
                raise errors.maximum_event_size_exceeded(event, self._limits.max_event_bytes)
            size += event.size
            if size > self._limits.max_append_bytes:
                raise errors.maximum_append_size_exceeded(self._limits.max_append_bytes)
            events.append(event)
        if options is None:
            raise errors.invalid_argument("The append has no options")
        stream = wire.stream_name(options)
        outcome = await self._store.write(Append([Part(stream, wire.expected_state(options), events)]))
        response = streams_pb2.AppendResp()
        if isinstance(outcome, Committed):
            wire.acknowledge(response.success, outcome.parts[0])
            return response
        violation = outcome.violations[0]
        if _is_deleted(violation):
            raise errors.stream_deleted(stream)
        response.wrong_expected_version.CopyFrom(_wrong_version(violation))
        return response

    async def BatchAppend(  # noqa: N802
        self, requests: AsyncIterator[streams_pb2.BatchAppendReq], context: Context
    ) -> AsyncIterator[streams_pb2.BatchAppendResp]:
        """Append many transactions over one call. Events gather under their correlation id until `is_final`.

        The transactions of one call are written, and answered, in the order of their final requests.
        """
        pending: dict[bytes, tuple[streams_pb2.BatchAppendReq.Options, list[NewEvent]]] = {}
        try:
            async for request in requests:
                correlation = wire.uuid_bytes(request.correlation_id)
                options, events = pending.setdefault(correlation, (request.options, []))
                events.extend(wire.proposed(message) for message in request.proposed_messages)
                if request.is_final:
                    del pending[correlation]
                    response = await self._batch(options, events)
                    response.correlation_id.CopyFrom(request.correlation_id)
                    yield response
        except errors.FAILURES as error:
            await errors.abort(context, error)

    async def _batch(
        self, options: streams_pb2.BatchAppendReq.Options, events: list[NewEvent]
    ) -> streams_pb2.BatchAppendResp:
        """A refusal is an answer here, not the end of the call: other transactions follow."""
        expected = wire.expected_state(options)
        response = streams_pb2.BatchAppendResp(stream_identifier=options.stream_identifier)
        _echo_expected(expected, response)
        limits = self._limits
        if sum(event.size for event in events) > limits.max_append_bytes or any(
            event.size > limits.max_event_bytes for event in events
        ):
            too_big = shared_pb2.MaximumAppendSizeExceeded(maxAppendSize=limits.max_append_bytes)
            response.error.CopyFrom(_error(3, "Maximum Append Size Exceeded", errors.packed(too_big)))
            return response
        try:
            outcome = await self._store.write(Append([Part(wire.stream_name(options), expected, events)]))
        except sqlite3.Error as error:
            unknown = errors.packed(shared_pb2.Unknown())
            response.error.CopyFrom(_error(2, str(errors.storage_failed(error)), unknown))
            return response
        if isinstance(outcome, Committed):
            wire.acknowledge(response.success, outcome.parts[0])
        else:
            response.error.CopyFrom(_batch_refusal(outcome.violations[0]))
        return response

    @errors.answering
    async def Delete(  # noqa: N802
        self, request: streams_pb2.DeleteReq, context: Context
    ) -> streams_pb2.DeleteResp:
        """Make the stream's events invisible; a later append continues its numbering."""
        del context
        position = await self._delete(request.options, tombstone=False)
        at = streams_pb2.DeleteResp.Position(commit_position=position, prepare_position=position)
        return streams_pb2.DeleteResp(position=at)

    @errors.answering
    async def Tombstone(  # noqa: N802
        self, request: streams_pb2.TombstoneReq, context: Context
    ) -> streams_pb2.TombstoneResp:
        """Delete the stream for good: its name can never be written again."""
        del context
        position = await self._delete(request.options, tombstone=True)
        at = streams_pb2.TombstoneResp.Position(commit_position=position, prepare_position=position)
        return streams_pb2.TombstoneResp(position=at)

    async def _delete(
        self, options: streams_pb2.DeleteReq.Options | streams_pb2.TombstoneReq.Options, *, tombstone: bool
    ) -> int:
        stream = wire.stream_name(options)
        outcome = await self._store.write(Delete(stream, wire.expected_state(options), tombstone=tombstone))
        if isinstance(outcome, Committed):
            return outcome.position
        violation = outcome.violations[0]
        if _is_deleted(violation):
            raise errors.stream_deleted(stream)
        raise errors.wrong_expected_version("Delete", violation)


def _is_deleted(violation: Violation) -> bool:
    return violation.actual == TOMBSTONED or (violation.actual == DELETED and violation.expected == EXISTS)


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
        return _error(9, str(errors.stream_deleted(violation.stream)), detail)
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
    """The package's own Status message: unlike google.rpc.Status it has exactly one detail."""
    return status_pb2.Status(code=code, message=message, details=detail)  # type: ignore[arg-type]


def _echo_expected(expected: int, response: streams_pb2.BatchAppendResp) -> None:
    """Say in the response which state was expected, as the real server does."""
    if expected >= 0:
        response.stream_position = expected
    elif expected == NO_STREAM:
        response.no_stream.CopyFrom(empty_pb2.Empty())
    elif expected == EXISTS:
        response.stream_exists.CopyFrom(empty_pb2.Empty())
    else:
        response.any.CopyFrom(empty_pb2.Empty())
