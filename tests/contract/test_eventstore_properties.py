"""Whatever is appended, in whatever groups, the store holds what a naive model of the rules holds, also reopened."""

import asyncio
import json
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock
from uuid import NAMESPACE_OID, uuid5

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.eventstore import writer
from infra.eventstore.model import (
    ANY,
    EXISTS,
    METADATA_EVENT,
    NO_STREAM,
    TOMBSTONED,
    Append,
    Check,
    Committed,
    Delete,
    NewEvent,
    Outcome,
    Part,
    Refused,
    metastream_of,
    original_of,
)
from infra.eventstore.store import Store

STREAMS = ("a", "b", "c")

ids = st.integers(0, 9).map(lambda n: n.to_bytes(16, "big"))
events = st.lists(ids.map(lambda i: NewEvent(i, "T", True, b"", b"x")), max_size=4)
states = st.sampled_from([ANY, ANY, NO_STREAM, EXISTS, 0, 1, 2, 3])
appends = st.builds(
    lambda parts, checks: Append(
        [Part(stream, expected, new) for stream, (expected, new) in parts.items()],
        [Check(stream, expected) for stream, expected in checks.items() if stream not in parts],
    ),
    st.dictionaries(st.sampled_from(STREAMS), st.tuples(states, events), min_size=1),
    st.dictionaries(st.sampled_from(STREAMS), states, max_size=1),
)
deletes = st.builds(Delete, st.sampled_from(STREAMS), states)
# One in so many, or soon there is nothing left to write to.
tombstones = st.builds(
    lambda stream, expected, rare: Delete(stream, expected, tombstone=rare == 0),
    st.sampled_from(STREAMS),
    states,
    st.integers(0, 3),
)
limits = st.builds(
    lambda stream, count, id_: Append(
        [
            Part(
                metastream_of(stream),
                ANY,
                [NewEvent(id_.bytes, METADATA_EVENT, True, b"", b'{"$maxCount":%d}' % count if count else b"{}")],
            )
        ]
    ),
    st.sampled_from(STREAMS),
    st.integers(0, 3),
    st.uuids(),
)
groups = st.lists(
    st.lists(st.one_of(appends, appends, appends, deletes, tombstones, limits), min_size=1, max_size=5), max_size=8
)


@dataclass
class ModelStream:
    """Every event ever recorded, in order; those below `first` were deleted, `limit` of the others are visible."""

    ids: list[bytes] = field(default_factory=list)
    first: int = 0
    deleted: bool = False
    tombstoned: bool = False
    limit: int | None = None
    metadata_ids: set[bytes] = field(default_factory=set)

    @property
    def last(self) -> int:
        return len(self.ids) - 1

    @property
    def has_metadata(self) -> bool:
        return bool(self.metadata_ids)

    def meets(self, expected: int) -> bool:
        if self.tombstoned:
            return False
        if expected == ANY:
            return True
        if expected == NO_STREAM:
            return self.last == -1 or self.deleted
        if expected == EXISTS:
            return not self.deleted and (self.last >= 0 or self.has_metadata)
        return self.last == expected

    def fresh(self, expected: int, new: list[bytes]) -> list[bytes] | None:
        known = [] if self.deleted else self.ids[self.first :]
        if self.meets(expected):
            return list(dict.fromkeys(i for i in new if i not in known)) if expected in (ANY, EXISTS) else new
        repeat = self.ids[expected + 1 : expected + 1 + len(new)]
        visible = not self.deleted and not self.tombstoned and expected + 1 >= self.first
        return [] if new and NO_STREAM <= expected < self.last and repeat == new and visible else None


Model = dict[str, ModelStream]


def apply(model: Model, write: Append | Delete) -> bool:
    """Do to the model what the rules say; whether it was accepted."""
    if isinstance(write, Delete):
        return apply_deletion(model[write.stream], write)
    if (limited := original_of(write.parts[0].stream)) is not None:
        return apply_metadata(model[limited], write.parts[0].events[0])
    fresh = {p.stream: model[p.stream].fresh(p.expected, [event.id for event in p.events]) for p in write.parts}
    if None in fresh.values() or not all(model[check.stream].meets(check.expected) for check in write.checks):
        return False
    # Only a whole append can be a repeat: beside what is new, a part that was there already is refused.
    repeated = any(p.events and not fresh[p.stream] and p.expected not in (ANY, EXISTS) for p in write.parts)
    if repeated and any(fresh.values()):
        return False
    for name, new in fresh.items():
        stream = model[name]
        if new and stream.deleted:
            stream.deleted, stream.first = False, len(stream.ids)
        stream.ids += new or []
    return True


def apply_deletion(stream: ModelStream, write: Delete) -> bool:
    if not stream.meets(write.expected):
        return False
    if write.tombstone:
        stream.tombstoned = True
        return True
    if stream.last == -1 and not stream.has_metadata:
        return False
    # It is metadata itself, and takes the place of what was there.
    stream.deleted, stream.limit = True, None
    stream.metadata_ids.add(b"deletion")
    return True


def apply_metadata(stream: ModelStream, event: NewEvent) -> bool:
    if stream.tombstoned:
        return False
    if event.id not in stream.metadata_ids:
        stream.metadata_ids.add(event.id)
        stream.limit = json.loads(event.data).get("$maxCount")
        # Without a word of what was truncated before; what was deleted with the stream stays so.
        stream.first = len(stream.ids) if stream.deleted else 0
        stream.deleted = False
    return True


def visible(store: Store, name: str) -> list[tuple[int, bytes]] | None:
    """Return revisions and ids of what can be read of a stream; None where it is closed for good."""
    stream = store.read.stream(name)
    if stream is not None and stream.tombstoned:
        return None
    return [] if stream is None else [(event.revision, event.id) for event in store.read.stream_forwards(stream, 0)]


def expected_of(stream: ModelStream) -> list[tuple[int, bytes]] | None:
    if stream.tombstoned:
        return None
    first = stream.first if stream.limit is None else max(stream.first, len(stream.ids) - stream.limit)
    return [] if stream.deleted else list(enumerate(stream.ids))[first:]


@pytest.mark.parametrize("cached", [0, 1, writer.MAX_CACHED_STREAMS])
@settings(max_examples=100, deadline=None)
@given(groups=groups)
def test_the_store_holds_what_the_model_holds(cached: int, groups: list[list[Append | Delete]]) -> None:
    """Also when the writer forgets what it knows of a stream after each transaction."""

    async def check() -> None:
        model: Model = {name: ModelStream() for name in STREAMS}
        store = Store.open(directory)
        for group in groups:
            # Written at once, so that they share a transaction.
            outcomes: list[Outcome] = await asyncio.gather(*(store.write(write) for write in group))
            accepted = [apply(model, write) for write in group]
            assert [isinstance(outcome, Committed) for outcome in outcomes] == accepted
            assert {name: visible(store, name) for name in STREAMS} == {n: expected_of(s) for n, s in model.items()}
        await store.close()

        store = Store.open(directory)
        assert {name: visible(store, name) for name in STREAMS} == {n: expected_of(s) for n, s in model.items()}
        page = store.read.all_forwards(0, store.head, None, 10_000)
        assert [event.position for event in page.events] == list(range(1, len(page.events) + 1))
        assert store.head == page.scanned_to
        await store.close()

    with tempfile.TemporaryDirectory() as folder, mock.patch.object(writer, "MAX_CACHED_STREAMS", cached):
        directory = Path(folder)
        asyncio.run(check())


def event(number: int, type_: str = "T", data: bytes = b"x") -> NewEvent:
    return NewEvent(uuid5(NAMESPACE_OID, f"{type_} {number}").bytes, type_, True, b"", data)


@pytest.mark.parametrize("cached", [0, 1])
async def test_what_the_writer_forgets_of_a_stream_it_finds_again(
    cached: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it is closed for good, how much of it is kept, that it was deleted, and where it stands."""
    monkeypatch.setattr(writer, "MAX_CACHED_STREAMS", cached)
    store = Store.open(tmp_path)

    async def append(stream: str, expected: int, *events: NewEvent) -> Outcome:
        outcome = await store.write(Append([Part(stream, expected, events)]))
        # Whatever is remembered is of another stream now.
        assert isinstance(await store.write(Append([Part("another", ANY, [event(store.head)])])), Committed)
        return outcome

    def revisions(stream: str) -> list[int]:
        return [revision for revision, _ in visible(store, stream) or []]

    await append("closed", NO_STREAM, event(1))
    await store.write(Delete("closed", 0, tombstone=True))
    for stream in ("closed", "$$closed"):
        for expected in (ANY, NO_STREAM, EXISTS, 0):
            refused = await append(stream, expected, event(1))
            assert isinstance(refused, Refused)
            assert [violation.actual for violation in refused.violations] == [TOMBSTONED]

    await append("short", NO_STREAM, *map(event, range(3)))
    await append("$$short", ANY, event(0, METADATA_EVENT, b'{"$maxCount":2}'))
    assert revisions("short") == [1, 2]
    await append("short", 2, event(3))
    assert revisions("short") == [2, 3]

    await append("deleted", NO_STREAM, *map(event, range(3)))
    await store.write(Delete("deleted", 2))
    await append("another", ANY, event(-1))
    assert isinstance(await append("deleted", EXISTS, event(3)), Refused)
    assert isinstance(await append("deleted", NO_STREAM, event(3)), Committed)
    assert revisions("deleted") == [3]

    await append("plain", NO_STREAM, *map(event, range(3)))
    for expected in (NO_STREAM, 1, 3):
        assert isinstance(await append("plain", expected, event(7)), Refused)
    repeated = await append("plain", 0, event(1), event(2))
    assert isinstance(repeated, Committed)
    assert repeated.parts[0].revision == 2
    assert isinstance(await append("plain", 2, event(3)), Committed)
    assert revisions("plain") == [0, 1, 2, 3]
    await store.close()
