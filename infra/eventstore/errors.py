"""Refusals on the wire, as KurrentDB sends them, so that every official client raises its own typed exception.

The v1 services put a key under `exception` in the trailing metadata and facts beside it; the v2 services send a
`google.rpc.Status` with a typed detail.
"""

import functools
import sqlite3
import uuid
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, NoReturn

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status
from kurrentdbclient.protos.v2.streams import errors_pb2 as v2

from infra.eventstore.database import CorruptedStoreError
from infra.eventstore.model import ANY, DELETED, EXISTS, NO_STREAM, TOMBSTONED, NewEvent, Violation
from infra.eventstore.reader import is_corruption

Context = grpc.aio.ServicerContext[Any, Any]
Method = Callable[[Any, Any, Context], Awaitable[Any]]


class Refusal(Exception):  # noqa: N818 the store says no; nothing is broken
    """A call that is not done, and everything that the client is told about it."""

    def __init__(self, code: grpc.StatusCode, message: str, trailing: Sequence[tuple[str, str | bytes]] = ()) -> None:
        super().__init__(message)
        self.code = code
        self.trailing = tuple(trailing)


def answering(method: Method) -> Method:
    """Let a unary method raise Refusals, and tell the client when the disk fails."""

    @functools.wraps(method)
    async def answer(servicer: Any, request: Any, context: Context) -> Any:
        try:
            return await method(servicer, request, context)
        except FAILURES as error:
            await abort(context, error)

    return answer


async def abort(context: Context, error: Exception) -> NoReturn:
    refusal = error if isinstance(error, Refusal) else storage_failed(error)
    await context.abort(refusal.code, str(refusal), refusal.trailing)
    raise refusal  # for the type checker: abort never comes back


def refuse(code: grpc.StatusCode, message: str, key: str, **facts: str | int) -> Refusal:
    """A refusal in the v1 way; `facts` become trailing metadata with dashes for underscores."""
    metadata = [("exception", key), *((name.replace("_", "-"), _ascii(value)) for name, value in facts.items())]
    return Refusal(code, message, metadata)


def group_exists(stream: str, group: str) -> Refusal:
    return _group(
        grpc.StatusCode.ALREADY_EXISTS,
        "persistent-subscription-exists",
        stream,
        group,
        f"{_about(stream, group)} exists.",
    )


def group_not_found(stream: str, group: str) -> Refusal:
    message = f"{_about(stream, group)} does not exist."
    return _group(grpc.StatusCode.NOT_FOUND, "persistent-subscription-does-not-exist", stream, group, message)


def group_dropped(stream: str, group: str) -> Refusal:
    message = f"{_about(stream, group)} was dropped."
    return _group(grpc.StatusCode.CANCELLED, "persistent-subscription-dropped", stream, group, message)


def too_many_subscribers(stream: str, group: str) -> Refusal:
    message = f"Maximum subscriptions reached for subscription group {group} on stream {stream}."
    return _group(grpc.StatusCode.FAILED_PRECONDITION, "maximum-subscribers-reached", stream, group, message)


def scavenge_not_found(scavenge_id: str) -> Refusal:
    return refuse(grpc.StatusCode.NOT_FOUND, "Scavenge id was invalid.", "scavenge-not-found", scavenge_id=scavenge_id)


def stream_deleted(stream: str) -> Refusal:
    message = f"Event stream '{stream}' is deleted."
    return refuse(grpc.StatusCode.FAILED_PRECONDITION, message, "stream-deleted", stream_name=stream)


def wrong_expected_version(operation: str, violation: Violation) -> Refusal:
    stream, expected, actual = violation.stream, violation.expected, violation.last_revision
    return refuse(
        grpc.StatusCode.FAILED_PRECONDITION,
        f"{operation} failed due to WrongExpectedVersion."
        f" Stream: {stream}, Expected version: {expected}, Actual version: {actual}",
        "wrong-expected-version",
        stream_name=stream,
        expected_version=expected,
        actual_version=actual,
    )


def maximum_append_size_exceeded(limit: int) -> Refusal:
    return refuse(
        grpc.StatusCode.INVALID_ARGUMENT,
        f"Maximum Append Size of {limit} Exceeded.",
        "maximum-append-size-exceeded",
        maximum_append_size=limit,
    )


def maximum_event_size_exceeded(event: NewEvent, limit: int) -> Refusal:
    event_id = uuid.UUID(bytes=event.id)
    return refuse(
        grpc.StatusCode.INVALID_ARGUMENT,
        f"Event with Id: {event_id}, Size: {event.size}, exceeds Maximum Append Event Size of {limit}.",
        "maximum-append-event-size-exceeded",
        event_id=str(event_id),
        proposed_append_event_size=event.size,
        maximum_append_event_size=limit,
    )


def invalid_position(read: str) -> Refusal:
    return Refusal(grpc.StatusCode.UNKNOWN, f"Unexpected {read}: InvalidPosition")


def invalid_argument(message: str) -> Refusal:
    return Refusal(grpc.StatusCode.INVALID_ARGUMENT, message)


def storage_failed(error: Exception) -> Refusal:
    """The disk failed us. Not a client's fault, and for a full disk worth a retry later."""
    if is_corruption(error):
        return Refusal(grpc.StatusCode.DATA_LOSS, f"Event store is corrupted: {error}")
    full = isinstance(error, sqlite3.OperationalError) and "full" in str(error)
    code = grpc.StatusCode.RESOURCE_EXHAUSTED if full else grpc.StatusCode.INTERNAL
    return Refusal(code, f"Event store cannot read or write: {error}")


def typed(code: grpc.StatusCode, message: str, reason: str, *details: Message) -> Refusal:
    """A refusal in the v2 way, with an ErrorInfo and, as a rule, one typed detail."""
    info = error_details_pb2.ErrorInfo(reason=reason, domain="streams")
    status = status_pb2.Status(code=code.value[0], message=message, details=[packed(info), *map(packed, details)])
    rich = rpc_status.to_status(status)
    return Refusal(rich.code, rich.details, rich.trailing_metadata)


def consistency_violation(violations: Sequence[tuple[int, Violation]]) -> Refusal:
    """Name every stream that stood in the way, with its actual state; the first of each pair is the check's index."""
    detail = v2.AppendConsistencyViolationErrorDetails(
        violations=[
            v2.ConsistencyViolation(
                check_index=index,
                stream_state=v2.ConsistencyViolation.StreamStateViolation(
                    stream=violation.stream, expected_state=violation.expected, actual_state=violation.actual
                ),
            )
            for index, violation in violations
        ]
    )
    lines = "".join(f"\n - {_sentence(violation)}" for _, violation in violations)
    message = f"Append failed due to consistency violations.\n{lines}"
    return typed(grpc.StatusCode.FAILED_PRECONDITION, message, "APPEND_CONSISTENCY_VIOLATION", detail)


def session_conflict(violation: Violation) -> Refusal:
    stream = violation.stream
    if violation.actual == TOMBSTONED:
        return typed(
            grpc.StatusCode.FAILED_PRECONDITION,
            f"Stream '{stream}' has been tombstoned."
            " It has been permanently removed from the system and cannot be restored.",
            "STREAM_TOMBSTONED",
            v2.StreamTombstonedErrorDetails(stream=stream),
        )
    return typed(
        grpc.StatusCode.FAILED_PRECONDITION,
        f"Append failed due to a revision conflict on stream '{stream}'."
        f" Expected revision: {violation.expected}. Actual revision: {violation.last_revision}.",
        "STREAM_REVISION_CONFLICT",
        v2.StreamRevisionConflictErrorDetails(
            stream=stream, expected_revision=violation.expected, actual_revision=violation.last_revision
        ),
    )


def session_without_requests() -> Refusal:
    message = "Append session started, but no append requests were sent before ending the session."
    return typed(grpc.StatusCode.FAILED_PRECONDITION, message, "APPEND_SESSION_NO_REQUESTS")


def bad_request(field: str, description: str) -> Refusal:
    violation = error_details_pb2.BadRequest.FieldViolation(field=field, description=description)
    detail = error_details_pb2.BadRequest(field_violations=[violation])
    return typed(grpc.StatusCode.INVALID_ARGUMENT, f"{field}: {description}", "BAD_REQUEST", detail)


def stream_already_in_session(stream: str) -> Refusal:
    return typed(
        grpc.StatusCode.ABORTED,
        f"Stream '{stream}' is already part of this append session."
        " Appending to the same stream multiple times is currently not supported.",
        "STREAM_ALREADY_IN_APPEND_SESSION",
        v2.StreamAlreadyInAppendSessionErrorDetails(stream=stream),
    )


def record_size_exceeded(stream: str, record_id: str, size: int, limit: int) -> Refusal:
    return typed(
        grpc.StatusCode.INVALID_ARGUMENT,
        f"The size of record {record_id} ({size} B) exceeds the maximum allowed size of {limit} B by {size - limit} B",
        "APPEND_RECORD_SIZE_EXCEEDED",
        v2.AppendRecordSizeExceededErrorDetails(stream=stream, record_id=record_id, size=size, max_size=limit),
    )


def transaction_size_exceeded(size: int, limit: int) -> Refusal:
    return typed(
        grpc.StatusCode.ABORTED,
        f"Transaction size ({size} B) exceeded the maximum allowed size of {limit} B by {size - limit} B.",
        "APPEND_TRANSACTION_SIZE_EXCEEDED",
        v2.AppendTransactionSizeExceededErrorDetails(size=size, max_size=limit),
    )


def packed(message: Message) -> any_pb2.Any:
    wrapped = any_pb2.Any()
    wrapped.Pack(message)
    return wrapped


# What a method may raise and `abort` can answer.
FAILURES: Final = (Refusal, sqlite3.Error, CorruptedStoreError)

_STATES: Final = {
    NO_STREAM: "absent",
    ANY: "in any state",
    EXISTS: "existing",
    DELETED: "deleted",
    TOMBSTONED: "tombstoned",
}


def _sentence(violation: Violation) -> str:
    actual = f"at revision {violation.actual}" if violation.actual >= 0 else _STATES[violation.actual]
    expected = f"revision {violation.expected}" if violation.expected >= 0 else _STATES.get(violation.expected, "?")
    return f"Stream '{violation.stream}' is {actual}, expected {expected}."


def _about(stream: str, group: str) -> str:
    return f"Subscription group {group} on stream {stream}"


def _group(code: grpc.StatusCode, key: str, stream: str, group: str, message: str) -> Refusal:
    return refuse(code, message, key, stream_name=stream, group_name=group)


def _ascii(value: str | int) -> str:
    """Trailing metadata is ASCII; a stream name may be anything."""
    return str(value).encode("ascii", "backslashreplace").decode()
