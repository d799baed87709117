"""The v1 messages from and to the store's own words; shared by the Streams and PersistentSubscriptions services."""

import re
import uuid
from typing import Any, Final

import grpc
from google.protobuf.timestamp_pb2 import Timestamp
from kurrentdbclient.protos.v1 import shared_pb2, streams_pb2

from infra.eventstore import errors
from infra.eventstore.model import ANY, END_OF_STREAM, EXISTS, NO_STREAM, NewEvent, RecordedEvent, Written
from infra.eventstore.reader import Filter

ReadResp = streams_pb2.ReadResp

JSON: Final = "application/json"
OCTET_STREAM: Final = "application/octet-stream"


def stream_name(options: Any) -> str:
    """The stream that a request's options name.

    Raises:
        Refusal: it is not UTF-8, or empty.
    """
    try:
        name: str = options.stream_identifier.stream_name.decode()
    except UnicodeDecodeError:
        raise errors.invalid_argument("The stream name is not UTF-8") from None
    if not name:
        raise errors.invalid_argument("The stream name is empty")
    return name


def proposed(message: streams_pb2.AppendReq.ProposedMessage | streams_pb2.BatchAppendReq.ProposedMessage) -> NewEvent:
    """A proposed event.

    Raises:
        Refusal: it lacks its type or content type, or its id is not a UUID.
    """
    for required in ("type", "content-type"):
        if required not in message.metadata:
            raise errors.refuse(
                grpc.StatusCode.INVALID_ARGUMENT,
                f"Required Metadata Property '{required}' is missing",
                "missing-required-metadata-property",
                required_metadata_properties="type,content-type",
            )
    is_json = message.metadata["content-type"] == JSON
    return NewEvent(uuid_bytes(message.id), message.metadata["type"], is_json, message.custom_metadata, message.data)


def expected_state(options: Any) -> int:
    """The expected state of an Append, BatchAppend, Delete or Tombstone, whose options share these names."""
    name = "expected_stream_position" if hasattr(options, "stream_position") else "expected_stream_revision"
    which = options.WhichOneof(name)
    if which in ("revision", "stream_position"):
        # On the wire a revision is unsigned; beyond the signed range no stream ever is.
        return min(int(getattr(options, which)), END_OF_STREAM - 1)
    return {"no_stream": NO_STREAM, "stream_exists": EXISTS}.get(which, ANY)


def event_filter(options: Any) -> Filter | None:
    """The filter of a read or of a persistent subscription to $all.

    Raises:
        Refusal: its regular expression is not one.
    """
    which = options.filter.WhichOneof("filter") if options.WhichOneof("filter_option") == "filter" else None
    if which is None:
        return None
    expression = getattr(options.filter, which)
    if expression.prefix:
        prefixes = tuple(expression.prefix)
        return Filter(which == "stream_identifier", lambda text: text.startswith(prefixes))
    try:
        find = re.compile(expression.regex).search
    except re.error as error:
        raise errors.invalid_argument(f"The filter is not a regular expression: {error}") from None
    return Filter(which == "stream_identifier", lambda text: find(text) is not None)


def wants_structured_uuids(options: Any) -> bool:
    return bool(options.uuid_option.WhichOneof("content") == "structured")


def recorded(event: RecordedEvent, *, structured: bool) -> dict[str, Any]:
    """The fields of a RecordedEvent message; `structured` asks for its id as two integers instead of text."""
    return {
        "id": uuid_message(event.id, structured=structured),
        "stream_identifier": shared_pb2.StreamIdentifier(stream_name=event.stream.encode()),
        "stream_revision": event.revision,
        "prepare_position": event.position,
        "commit_position": event.position,
        "metadata": {
            "type": event.type,
            "created": str(event.created),
            "content-type": JSON if event.is_json else OCTET_STREAM,
        },
        "custom_metadata": event.metadata,
        "data": event.data,
    }


def read_event(event: RecordedEvent, *, structured: bool) -> ReadResp:
    message = ReadResp.ReadEvent.RecordedEvent(**recorded(event, structured=structured))
    return ReadResp(event=ReadResp.ReadEvent(event=message, commit_position=event.position))


def checkpoint(position: int) -> ReadResp:
    return ReadResp(
        checkpoint=ReadResp.Checkpoint(commit_position=position, prepare_position=position, timestamp=_now())
    )


def caught_up_with_all(position: int) -> ReadResp:
    at = ReadResp.Position(commit_position=position, prepare_position=position)
    return ReadResp(caught_up=ReadResp.CaughtUp(timestamp=_now(), position=at))


def caught_up_with_stream(revision: int) -> ReadResp:
    return ReadResp(caught_up=ReadResp.CaughtUp(timestamp=_now(), stream_revision=revision))


def acknowledge(success: Any, part: Written) -> None:
    """Fill the Success of an Append or a BatchAppend."""
    if part.revision >= 0:
        success.current_revision = part.revision
    else:
        success.no_stream.SetInParent()
    if part.position >= 0:
        success.position.commit_position = success.position.prepare_position = part.position
    else:
        success.no_position.SetInParent()


def uuid_message(value: bytes, *, structured: bool) -> shared_pb2.UUID:
    if not structured:
        text = value.hex()
        return shared_pb2.UUID(string=f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}")
    return shared_pb2.UUID(
        structured=shared_pb2.UUID.Structured(
            most_significant_bits=int.from_bytes(value[:8], "big", signed=True),
            least_significant_bits=int.from_bytes(value[8:], "big", signed=True),
        )
    )


def uuid_bytes(message: shared_pb2.UUID) -> bytes:
    """The 16 bytes of a UUID message.

    Raises:
        Refusal: it is not a UUID.
    """
    if message.WhichOneof("value") == "structured":
        high = message.structured.most_significant_bits.to_bytes(8, "big", signed=True)
        return high + message.structured.least_significant_bits.to_bytes(8, "big", signed=True)
    return parse_uuid(message.string)


def parse_uuid(text: str) -> bytes:
    """The 16 bytes of a UUID as text.

    Raises:
        Refusal: it is not a UUID.
    """
    try:
        return uuid.UUID(text).bytes
    except ValueError:
        raise errors.invalid_argument(f"'{text}' is not a UUID") from None


def _now() -> Timestamp:
    now = Timestamp()
    now.GetCurrentTime()
    return now
