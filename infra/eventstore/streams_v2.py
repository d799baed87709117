"""The v2 Streams service: atomic appends to many streams, as one message or as a session."""

import json
import sqlite3
import uuid
from collections.abc import AsyncIterator, Iterable
from typing import Any, NoReturn

import grpc
from google.protobuf import struct_pb2
from google.protobuf.json_format import MessageToDict
from google.rpc import error_details_pb2
from kurrentdbclient.protos.v2.streams import streams_pb2, streams_pb2_grpc

from infra.eventstore import errors
from infra.eventstore.limits import Limits
from infra.eventstore.model import ANY, Append, Check, Committed, NewEvent, Outcome, Part, Violation
from infra.eventstore.store import Store

Context = grpc.aio.ServicerContext[Any, Any]


class StreamsV2(streams_pb2_grpc.StreamsServiceServicer):
    def __init__(self, store: Store, limits: Limits) -> None:
        self._store = store
        self._limits = limits

    async def AppendRecords(  # noqa: N802
        self, request: streams_pb2.AppendRecordsRequest, context: Context
    ) -> streams_pb2.AppendRecordsResponse:
        """Append records to the streams they name, if every check holds: all of them or none.

        A violated check is answered with every stream that stood in the way and its actual state.
        """
        by_stream: dict[str, list[NewEvent]] = {}
        size = 0
        for record in request.records:
            if not record.stream:
                await _bad_request(context, "records.stream", "every record must name its stream")
            event = await self._event(record, record.stream, context)
            size += event.size
            by_stream.setdefault(record.stream, []).append(event)
        if not by_stream:
            await _bad_request(context, "records", "there must be at least one record")
        await self._limit(size, context)
        checks = [(check.stream_state.stream, check.stream_state.expected_state) for check in request.checks]
        expected = dict(checks)
        outcome = await self._write(
            Append(
                [Part(stream, expected.get(stream, ANY), events) for stream, events in by_stream.items()],
                [Check(stream, state) for stream, state in checks if stream not in by_stream],
                [record.stream for record in request.records],
            ),
            context,
        )
        if not isinstance(outcome, Committed):
            indexes = {stream: index for index, (stream, _) in enumerate(checks)}
            await errors.consistency_violation(context, _by_check(outcome.violations, indexes))
        return streams_pb2.AppendRecordsResponse(
            position=outcome.position,
            revisions=[
                streams_pb2.StreamRevision(stream=part.stream, revision=part.revision) for part in outcome.parts
            ],
        )

    async def AppendSession(  # noqa: N802
        self, requests: AsyncIterator[streams_pb2.AppendRequest], context: Context
    ) -> streams_pb2.AppendSessionResponse:
        """Append what a session sends, one request per stream, when the client closes it: all of it or nothing."""
        parts: dict[str, Part] = {}
        size = 0
        async for request in requests:
            if request.stream in parts:
                await errors.stream_already_in_session(context, request.stream)
            events = [await self._event(record, request.stream, context) for record in request.records]
            size += sum(event.size for event in events)
            await self._limit(size, context)
            expected = request.expected_revision if request.HasField("expected_revision") else ANY
            parts[request.stream] = Part(request.stream, expected, events)
        if not parts:
            await context.abort(
                grpc.StatusCode.FAILED_PRECONDITION,
                "Append session started, but no append requests were sent before ending the session.",
            )
        outcome = await self._write(Append(list(parts.values())), context)
        if not isinstance(outcome, Committed):
            await errors.session_conflict(context, outcome.violations[0])
        return streams_pb2.AppendSessionResponse(
            position=outcome.position,
            output=[
                streams_pb2.AppendResponse(stream=part.stream, stream_revision=part.revision, position=part.position)
                for part in outcome.parts
            ],
        )

    async def _write(self, append: Append, context: Context) -> Outcome:
        try:
            return await self._store.write(append)
        except sqlite3.Error as error:
            await errors.storage_failed(context, error)

    async def _event(self, record: streams_pb2.AppendRecord, stream: str, context: Context) -> NewEvent:
        try:
            event_id = uuid.UUID(record.record_id).bytes if record.record_id else uuid.uuid4().bytes
        except ValueError:
            await _bad_request(context, "records.record_id", f"'{record.record_id}' is not a UUID")
        if not record.schema.name:
            await _bad_request(context, "records.schema.name", "every record must have a schema name")
        is_json = record.schema.format == streams_pb2.SCHEMA_FORMAT_JSON
        event = NewEvent(event_id, record.schema.name, is_json, _metadata(record), record.data)
        limit = self._limits.max_event_bytes
        if event.size > limit:
            await errors.record_size_exceeded(context, stream, str(uuid.UUID(bytes=event_id)), event.size, limit)
        return event

    async def _limit(self, size: int, context: Context) -> None:
        if size > self._limits.max_append_bytes:
            await errors.transaction_size_exceeded(context, size, self._limits.max_append_bytes)


def _metadata(record: streams_pb2.AppendRecord) -> bytes:
    """The record's properties as a JSON object, which is what a v1 read gives back as metadata."""
    if not record.properties:
        return b""
    properties = {key: _plain(value) for key, value in record.properties.items()}
    return json.dumps(properties, separators=(",", ":"), ensure_ascii=False).encode()


def _plain(value: struct_pb2.Value) -> object:
    return value.string_value if value.HasField("string_value") else MessageToDict(value)


def _by_check(violations: Iterable[Violation], indexes: dict[str, int]) -> list[tuple[int, Violation]]:
    """Violations in the order of the request's checks; a stream without a check (a tombstone) comes last."""
    end = len(indexes)
    return sorted(((indexes.get(violation.stream, end), violation) for violation in violations), key=lambda v: v[0])


async def _bad_request(context: Context, field: str, description: str) -> NoReturn:
    violation = error_details_pb2.BadRequest.FieldViolation(field=field, description=description)
    detail = error_details_pb2.BadRequest(field_violations=[violation])
    await errors.abort_with(context, grpc.StatusCode.INVALID_ARGUMENT, f"{field}: {description}", "BAD_REQUEST", detail)
