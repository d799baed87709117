"""Refusals on the wire, as KurrentDB sends them, so that every official client raises its own typed exception.

The v1 services put a key under `exception` in the trailing metadata and facts beside it; the v2 services send a
`google.rpc.Status` with a typed detail.
"""

import sqlite3
import uuid
from collections.abc import Sequence
from typing import Any, Final, NoReturn

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status
from kurrentdbclient.protos.v2.streams import errors_pb2 as v2

from infra.eventstore.model import ANY, DELETED, EXISTS, NO_STREAM, TOMBSTONED, NewEvent, Violation
from infra.eventstore.reader import is_corruption

Context = grpc.aio.ServicerContext[Any, Any]


async def refuse(context: Context, code: grpc.StatusCode, message: str, key: str, **facts: str | int) -> NoReturn:
    """End the call in the v1 way; `facts` become trailing metadata with dashes for underscores."""
    metadata = [("exception", key), *((name.replace("_", "-"), _ascii(value)) for name, value in facts.items())]
    await context.abort(code, message, tuple(metadata))
    raise AssertionError(message)  # abort always raises


async def stream_deleted(context: Context, stream: str) -> NoReturn:
    message = f"Event stream '{stream}' is deleted."
    await refuse(context, grpc.StatusCode.FAILED_PRECONDITION, message, "stream-deleted", stream_name=stream)


async def wrong_expected_version(context: Context, operation: str, violation: Violation) -> NoReturn:
    stream, expected, actual = violation.stream, violation.expected, violation.last_revision
    await refuse(
        context,
        grpc.StatusCode.FAILED_PRECONDITION,
        f"{operation} failed due to WrongExpectedVersion."
        f" Stream: {stream}, Expected version: {expected}, Actual version: {actual}",
        "wrong-expected-version",
        stream_name=stream,
        expected_version=expected,
        actual_version=actual,
    )


async def maximum_append_size_exceeded(context: Context, limit: int) -> NoReturn:
    await refuse(
        context,
        grpc.StatusCode.INVALID_ARGUMENT,
        f"Maximum Append Size of {limit} Exceeded.",
        "maximum-append-size-exceeded",
        maximum_append_size=limit,
    )


async def maximum_event_size_exceeded(context: Context, event: NewEvent, limit: int) -> NoReturn:
    event_id = uuid.UUID(bytes=event.id)
    await refuse(
        context,
        grpc.StatusCode.INVALID_ARGUMENT,
        f"Event with Id: {event_id}, Size: {event.size}, exceeds Maximum Append Event Size of {limit}.",
        "maximum-append-event-size-exceeded",
        event_id=str(event_id),
        proposed_append_event_size=event.size,
        maximum_append_event_size=limit,
    )


async def invalid_position(context: Context, read: str) -> NoReturn:
    await context.abort(grpc.StatusCode.UNKNOWN, f"Unexpected {read}: InvalidPosition")
    raise AssertionError


async def invalid_argument(context: Context, message: str) -> NoReturn:
    await context.abort(grpc.StatusCode.INVALID_ARGUMENT, message)
    raise AssertionError(message)


async def storage_failed(context: Context, error: Exception) -> NoReturn:
    """The disk failed us. Not a client's fault, and for a full disk worth a retry later."""
    if is_corruption(error):
        await context.abort(grpc.StatusCode.DATA_LOSS, f"Event store is corrupted: {error}")
    full = isinstance(error, sqlite3.OperationalError) and "full" in str(error)
    code = grpc.StatusCode.RESOURCE_EXHAUSTED if full else grpc.StatusCode.INTERNAL
    await context.abort(code, f"Event store cannot write: {error}")
    raise AssertionError


async def abort_with(context: Context, code: grpc.StatusCode, message: str, reason: str, detail: Message) -> NoReturn:
    """End the call in the v2 way, with an ErrorInfo and one typed detail."""
    info = error_details_pb2.ErrorInfo(reason=reason, domain="streams")
    status = status_pb2.Status(code=code.value[0], message=message, details=[packed(info), packed(detail)])
    await context.abort_with_status(rpc_status.to_status(status))
    raise AssertionError(message)


async def consistency_violation(context: Context, violations: Sequence[tuple[int, Violation]]) -> NoReturn:
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
    await abort_with(context, grpc.StatusCode.FAILED_PRECONDITION, message, "APPEND_CONSISTENCY_VIOLATION", detail)


async def session_conflict(context: Context, violation: Violation) -> NoReturn:
    stream = violation.stream
    if violation.actual == TOMBSTONED:
        await abort_with(
            context,
            grpc.StatusCode.FAILED_PRECONDITION,
            f"Stream '{stream}' has been tombstoned."
            " It has been permanently removed from the system and cannot be restored.",
            "STREAM_TOMBSTONED",
            v2.StreamTombstonedErrorDetails(stream=stream),
        )
    await abort_with(
        context,
        grpc.StatusCode.FAILED_PRECONDITION,
        f"Append failed due to a revision conflict on stream '{stream}'."
        f" Expected revision: {violation.expected}. Actual revision: {violation.last_revision}.",
        "STREAM_REVISION_CONFLICT",
        v2.StreamRevisionConflictErrorDetails(
            stream=stream, expected_revision=violation.expected, actual_revision=violation.last_revision
        ),
    )


async def stream_already_in_session(context: Context, stream: str) -> NoReturn:
    await abort_with(
        context,
        grpc.StatusCode.ABORTED,
        f"Stream '{stream}' is already part of this append session."
        " Appending to the same stream multiple times is currently not supported.",
        "STREAM_ALREADY_IN_APPEND_SESSION",
        v2.StreamAlreadyInAppendSessionErrorDetails(stream=stream),
    )


async def record_size_exceeded(context: Context, stream: str, record_id: str, size: int, limit: int) -> NoReturn:
    await abort_with(
        context,
        grpc.StatusCode.INVALID_ARGUMENT,
        f"The size of record {record_id} ({size} B) exceeds the maximum allowed size of {limit} B by {size - limit} B",
        "APPEND_RECORD_SIZE_EXCEEDED",
        v2.AppendRecordSizeExceededErrorDetails(stream=stream, record_id=record_id, size=size, max_size=limit),
    )


async def transaction_size_exceeded(context: Context, size: int, limit: int) -> NoReturn:
    await abort_with(
        context,
        grpc.StatusCode.ABORTED,
        f"Transaction size ({size} B) exceeded the maximum allowed size of {limit} B by {size - limit} B.",
        "APPEND_TRANSACTION_SIZE_EXCEEDED",
        v2.AppendTransactionSizeExceededErrorDetails(size=size, max_size=limit),
    )


def packed(message: Message) -> any_pb2.Any:
    wrapped = any_pb2.Any()
    wrapped.Pack(message)
    return wrapped


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


def _ascii(value: str | int) -> str:
    """Trailing metadata is ASCII; a stream name may be anything."""
    return str(value).encode("ascii", "backslashreplace").decode()
