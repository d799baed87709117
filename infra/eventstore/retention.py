"""Stream metadata: which events of a stream are still visible."""

import json
from typing import Any

from infra.eventstore.clock import TICKS_PER_SECOND
from infra.eventstore.model import END_OF_STREAM, Stream


def apply_metadata(stream: Stream, document: bytes) -> None:
    """Take $tb, $maxCount and $maxAge from a $metadata event; what is absent or senseless no longer limits."""
    metadata = parse(document)
    stream.truncate_before = _whole(metadata.get("$tb")) or 0
    stream.max_count = _whole(metadata.get("$maxCount"))
    stream.max_age_s = _whole(metadata.get("$maxAge"))


def deletion() -> bytes:
    """The metadata of a soft-deleted stream."""
    return json.dumps({"$tb": END_OF_STREAM}).encode()


def revival(document: bytes, first_revision: int) -> bytes:
    """The metadata of a soft-deleted stream that is written again: its old events stay invisible."""
    return json.dumps({**parse(document), "$tb": first_revision}).encode()


def first_visible(stream: Stream) -> int:
    """The lowest revision that $tb and $maxCount leave visible."""
    if stream.max_count is None:
        return stream.truncate_before
    return max(stream.truncate_before, stream.last_revision - stream.max_count + 1)


def oldest_visible(stream: Stream, now: int) -> int:
    """The lowest `created` that $maxAge leaves visible, in ticks; `now` likewise."""
    return 0 if stream.max_age_s is None else max(0, now - stream.max_age_s * TICKS_PER_SECOND)


def parse(document: bytes) -> dict[str, Any]:
    try:
        metadata = json.loads(document)
    except ValueError:
        return {}
    return metadata if isinstance(metadata, dict) else {}


def _whole(value: object) -> int | None:
    """A number that the protocol and SQLite can hold; anything else counts as absent."""
    if not isinstance(value, int) or isinstance(value, bool):
        return None
    return value if 0 <= value <= END_OF_STREAM else None
