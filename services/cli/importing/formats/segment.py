"""Segment calls (track, identify, page, screen, group, alias) as JSON Lines, an array, or batches of the HTTP API.

https://segment.com/docs/connections/spec/common/

Each call gets a `customerId`, its `userId` or else `anonymous:<anonymousId>`, and a `timestamp` where it had to be
worked out.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

import msgspec

from services.cli.importing.formats import jsonfiles
from services.cli.importing.records import Opened, Record, unreadable

#: Calls that tell who somebody is, not that something happened.
ABOUT_PEOPLE = frozenset({"identify", "group", "alias"})
TYPES = ABOUT_PEOPLE | {"track", "page", "screen"}


def records(source: Opened) -> Iterator[Record]:
    """Yield the calls, those of a batch one by one; what is no call has no content."""
    position = 0
    for record in jsonfiles.records(source):
        for call in _calls(record):
            position += 1
            yield dataclasses.replace(call, position=position)


def _calls(record: Record) -> Iterator[Record]:
    content = record.content
    if content is None:
        yield record
    elif isinstance(content.get("batch"), list) and "type" not in content:
        # What a batch says of itself holds for each call that says nothing else.
        shared = {key: content[key] for key in ("context", "integrations", "sentAt", "receivedAt") if key in content}
        for call in content["batch"]:
            yield _call(record, {**shared, **call} if isinstance(call, dict) else call)
    else:
        yield _call(record, content)


def _call(record: Record, call: Any) -> Record:
    if not isinstance(call, dict) or call.get("type") not in TYPES:
        problem = f"is no Segment call: type: one of {', '.join(sorted(TYPES))}"
        return unreadable(record.file, record.line, 0, problem, msgspec.json.encode(call).decode())
    user, anonymous = call.get("userId"), call.get("anonymousId")
    completed = {**call, "timestamp": call.get("timestamp") or _when(call)}
    # Until a link says who it is, an anonymous visitor is a customer by the name that links know.
    completed["customerId"] = user or (f"anonymous:{anonymous}" if anonymous else None)
    return dataclasses.replace(record, content=completed)


def _when(call: Mapping[str, Any]) -> Any:
    """Return when it happened, for a call whose `timestamp` was not kept.

    By the server's clock: timestamp = receivedAt - (sentAt - originalTimestamp), as Segment itself corrects a device's
    clock; by the device's where that is all there is.
    """
    try:
        received, sent, original = (
            datetime.fromisoformat(call[name]) for name in ("receivedAt", "sentAt", "originalTimestamp")
        )
        return (received - (sent - original)).isoformat()
    except (KeyError, TypeError, ValueError, OverflowError):
        return call.get("originalTimestamp")
