"""The v2 Streams service: atomic appends to many streams, as one message or as a session."""

import json
import uuid
from collections.abc import AsyncIterator, Iterable
from typing import Any

import grpc
from google.protobuf import struct_pb2
from google.protobuf.json_format import MessageToDict
from kurrentdbclient.protos.v2.streams import streams_pb2, streams_pb2_grpc

from infra.eventstore import errors, wire
from infra.eventstore.limits import Limits
from infra.eventstore.model import ANY, Append, Check, Committed, NewEvent, Part, Violation
from infra.eventstore.store import Store

Context = grpc.aio.ServicerContext[Any, Any]


class StreamsV2(streams_pb2_grpc.StreamsServiceServicer):
    def __init__(self, store: Store, limits: Limits) -> None:
        self._store = store
        self._limits = limits

    @errors.answering
    async def AppendRecords(  # noqa: N802
        self, request: streams_pb2.AppendRecordsRequest, context: Context
    ) -> streams_pb2.AppendRecordsResponse:
        """Append records to the streams they name, if every check holds: all of them or none.

        A violated check is answered with every stream that stood in the way and its actual state.
        """
        del context
        by_stream: dict[str, list[NewEvent]] = {}
        order: list[str] = []
        for record in request.records:
            stream = record.stream
            if not stream:
                raise errors.bad_request("records.stream", "every record must name its stream")
            by_stream.setdefault(stream, []).append(self._event(record, stream))
            order.append(stream)
        if not by_stream:
            raise errors.bad_request("records", "there must be at least one record")
        self._limit(sum(event.size for events in by_stream.values() for event in events))
        checks = [Check(check.stream_state.stream, check.stream_state.expected_state) for check in request.checks]
        expected = dict(checks)
        outcome = await self._store.write(
            Append(
                [Part(stream, expected.get(stream, ANY), events) for stream, events in by_stream.items()],
                [check for check in checks if check.stream not in by_stream],
                order if len(by_stream) > 1 else (),
            )
        )
        if not isinstance(outcome, Committed):
            raise errors.consistency_violation(_by_check(outcome.violations, checks))
        return streams_pb2.AppendRecordsResponse(
            position=outcome.position,
            revisions=[
                streams_pb2.StreamRevision(stream=part.stream, revision=part.revision) for part in outcome.parts
            ],
        )

    @errors.answering
    async def AppendSession(  # noqa: N802
        self, requests: AsyncIterator[streams_pb2.AppendRequest], context: Context
    ) -> streams_pb2.AppendSessionResponse:
        """Append what a session sends, one request per stream, when the client closes it: all of it or nothing."""
        del context
        parts: dict[str, Part] = {}
        size = 0
        async for request in requests:
            stream = request.stream
            if not stream:
                raise errors.bad_request("stream", "every request must name its stream")
            if stream in parts:
                raise errors.stream_already_in_session(stream)
            events = [self._event(record, stream) for record in request.records]
            size += sum(event.size for event in events)
            self._limit(size)
            expected = request.expected_revision if request.HasField("expected_revision") else ANY
            parts[stream] = Part(stream, expected, events)
        if not parts:
            raise errors.session_without_requests()
        outcome = await self._store.write(Append(list(parts.values())))
        if not isinstance(outcome, Committed):
            raise errors.session_conflict(outcome.violations[0])
        return streams_pb2.AppendSessionResponse(
            position=outcome.position,
            output=[
                streams_pb2.AppendResponse(stream=part.stream, stream_revision=part.revision, position=part.position)
                for part in outcome.parts
            ],
        )

    def _event(self, record: streams_pb2.AppendRecord, stream: str) -> NewEvent:
        record_id, schema = record.record_id, record.schema
        if not schema.name:
            raise errors.bad_request("records.schema.name", "every record must have a schema name")
        event = NewEvent(
            wire.parse_uuid(record_id) if record_id else uuid.uuid4().bytes,
            schema.name,
            schema.format == streams_pb2.SCHEMA_FORMAT_JSON,
            _metadata(record),
            record.data,
        )
        limit = self._limits.max_event_bytes
        if event.size > limit:
            raise errors.record_size_exceeded(stream, str(uuid.UUID(bytes=event.id)), event.size, limit)
        return event

    def _limit(self, size: int) -> None:
        if size > self._limits.max_append_bytes:
            raise errors.transaction_size_exceeded(size, self._limits.max_append_bytes)


def _metadata(record: streams_pb2.AppendRecord) -> bytes:
    """The record's properties as a JSON object, which is what a v1 read gives back as metadata."""
    if not record.properties:
        return b""
    properties = {key: _plain(value) for key, value in record.properties.items()}
    return json.dumps(properties, separators=(",", ":"), ensure_ascii=False).encode()


def _plain(value: struct_pb2.Value) -> object:
    return value.string_value if value.HasField("string_value") else MessageToDict(value)


def _by_check(violations: Iterable[Violation], checks: Iterable[Check]) -> list[tuple[int, Violation]]:
    """Violations in the order of the request's checks; a stream without a check (a tombstone) comes last."""
    indexes = {check.stream: index for index, check in enumerate(checks)}
    numbered = ((indexes.get(violation.stream, len(indexes)), violation) for violation in violations)
    return sorted(numbered, key=lambda pair: pair[0])
