"""Whatever is appended, in whatever groups, the store holds what a naive model of the rules holds, also reopened."""

import asyncio
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.eventstore import writer
from infra.eventstore.model import (
    ANY,
    EXISTS,
    NO_STREAM,
    Append,
    Check,
    Committed,
    Delete,
    NewEvent,
    Outcome,
    Part,
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
groups = st.lists(st.lists(st.one_of(appends, appends, appends, deletes), min_size=1, max_size=5), max_size=8)


@dataclass
class ModelStream:
    """Every event ever recorded, in order; those below `first` were deleted."""

    ids: list[bytes] = field(default_factory=list)
    first: int = 0
    deleted: bool = False

    @property
    def last(self) -> int:
        return len(self.ids) - 1

    def meets(self, expected: int) -> bool:
        if expected == ANY:
            return True
        if expected == NO_STREAM:
            return self.last == -1 or self.deleted
        if expected == EXISTS:
            return self.last >= 0 and not self.deleted
        return self.last == expected

    def fresh(self, expected: int, new: list[bytes]) -> list[bytes] | None:
        known = [] if self.deleted else self.ids[self.first :]
        if self.meets(expected):
            return list(dict.fromkeys(i for i in new if i not in known)) if expected in (ANY, EXISTS) else new
        repeat = self.ids[expected + 1 : expected + 1 + len(new)]
        visible = not self.deleted and expected + 1 >= self.first
        return [] if new and NO_STREAM <= expected < self.last and repeat == new and visible else None


Model = dict[str, ModelStream]


def apply(model: Model, write: Append | Delete) -> bool:
    """Do to the model what the rules say; whether it was accepted."""
    if isinstance(write, Delete):
        stream = model[write.stream]
        if not stream.meets(write.expected) or (stream.last == -1 and not stream.deleted):
            return False
        stream.deleted = True
        return True
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


def visible(store: Store, name: str) -> list[tuple[int, bytes]]:
    stream = store.read.stream(name)
    return [] if stream is None else [(event.revision, event.id) for event in store.read.stream_forwards(stream, 0)]


def expected_of(stream: ModelStream) -> list[tuple[int, bytes]]:
    return [] if stream.deleted else list(enumerate(stream.ids))[stream.first :]


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
