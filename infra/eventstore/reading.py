"""The four kinds of v1 reads, as streams of responses: a stream or $all, once or for ever.

There is no hand-over from history to live: each page reads on where the one before stopped, and a commit only wakes the
reading. Hence no gap and no duplicate, whatever is appended meanwhile.
"""

import asyncio
from collections.abc import AsyncIterator

from kurrentdbclient.protos.v1 import streams_pb2

from infra.eventstore import errors, wire
from infra.eventstore.model import END_OF_STREAM, NO_STREAM, Stream
from infra.eventstore.store import Store

ReadResp = streams_pb2.ReadResp
Options = streams_pb2.ReadReq.Options


async def read_stream(store: Store, options: Options) -> AsyncIterator[ReadResp]:
    """Up to `count` events from a revision (inclusive) forwards or backwards."""
    stream = _stream(store, wire.stream_name(options.stream))
    if stream is None or stream.soft_deleted or stream.last_revision == NO_STREAM:
        identifier = options.stream.stream_identifier
        yield ReadResp(stream_not_found=ReadResp.StreamNotFound(stream_identifier=identifier))
        return
    forwards = options.read_direction == Options.Forwards
    revision = _revision(options.stream, at_start=0, at_end=stream.last_revision)
    structured = wire.wants_structured_uuids(options)
    left = options.count
    while left > 0 and revision >= 0:
        page = (
            store.read.stream_forwards(stream, revision, left)
            if forwards
            else store.read.stream_backwards(stream, revision, left)
        )
        for event in page:
            yield wire.read_event(event, structured=structured)
        if not page:
            return
        left -= len(page)
        revision = page[-1].revision + (1 if forwards else -1)


async def read_all(store: Store, options: Options) -> AsyncIterator[ReadResp]:
    """Up to `count` events of $all: forwards from a position (inclusive), or backwards below it."""
    forwards = options.read_direction == Options.Forwards
    filter_ = wire.event_filter(options)
    structured = wire.wants_structured_uuids(options)
    head = store.head
    position = _position(options, head, forwards=forwards)
    left = options.count
    while left > 0 and (position < head if forwards else position > 1):
        page = (
            store.read.all_forwards(position, head, filter_, left)
            if forwards
            else store.read.all_backwards(position, filter_, left)
        )
        for event in page.events:
            yield wire.read_event(event, structured=structured)
        left -= len(page.events)
        position = page.scanned_to
        if not page.events:
            await asyncio.sleep(0)  # a long stretch without a match must not hold up everyone else


async def subscribe_to_stream(store: Store, options: Options) -> AsyncIterator[ReadResp]:
    """Events after a revision, for ever. The stream need not exist yet."""
    name = wire.stream_name(options.stream)
    structured = wire.wants_structured_uuids(options)
    head = store.head
    stream = _stream(store, name)
    last = NO_STREAM if stream is None else stream.last_revision
    revision = _revision(options.stream, at_start=-1, at_end=last) + 1
    caught_up = False
    while True:
        page = [] if stream is None else store.read.stream_forwards(stream, revision)
        for event in page:
            yield wire.read_event(event, structured=structured)
        if page:
            revision = page[-1].revision + 1
        else:
            if not caught_up:
                caught_up = True
                yield wire.caught_up_with_stream(revision - 1)
            await store.beyond(head)
        head = store.head
        stream = _stream(store, name)


async def subscribe_to_all(store: Store, options: Options) -> AsyncIterator[ReadResp]:
    """Events of $all after a position, for ever.

    A filtered subscription gets checkpoints, so that its client can go on from the last position looked at.
    """
    filter_ = wire.event_filter(options)
    structured = wire.wants_structured_uuids(options)
    position = _position(options, store.head, forwards=True, inclusive=False)
    interval = max(1, options.filter.max) * max(1, options.filter.checkpointIntervalMultiplier)
    checkpoint = position
    caught_up = False
    while True:
        page = store.read.all_forwards(position, store.head, filter_)
        for event in page.events:
            yield wire.read_event(event, structured=structured)
        position = page.scanned_to
        catches_up = position >= store.head and not caught_up
        if filter_ and position > checkpoint and (catches_up or position - checkpoint >= interval):
            checkpoint = position
            yield wire.checkpoint(position)
        if catches_up:
            caught_up = True
            yield wire.caught_up_with_all(position)
        if position >= store.head:
            await store.beyond(position)
        elif not page.events:
            await asyncio.sleep(0)


def _stream(store: Store, name: str) -> Stream | None:
    stream = store.read.stream(name)
    if stream is not None and stream.tombstoned:
        raise errors.stream_deleted(name)
    return stream


def _revision(options: Options.StreamOptions, *, at_start: int, at_end: int) -> int:
    which = options.WhichOneof("revision_option")
    if which == "revision":
        return min(int(options.revision), END_OF_STREAM - 1)
    return at_end if which == "end" else at_start


def _position(options: Options, head: int, *, forwards: bool, inclusive: bool = True) -> int:
    """The position after which to read forwards, or below which to read backwards.

    As in KurrentDB a forward read includes the event at the given position; a backward read and a subscription do not.
    """
    which = options.all.WhichOneof("all_option")
    if which == "position":
        position = options.all.position.commit_position
        if not forwards and position >= END_OF_STREAM:  # how some clients say "from the end"
            return head + 1
        if position > head:
            raise errors.invalid_position("FilteredReadAllResult")
        return position - 1 if forwards and inclusive else position
    if forwards:
        return head if which == "end" else 0
    return head + 1 if which == "end" else 0
