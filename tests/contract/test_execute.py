"""The command path against the real store: decided again on conflict, so many times; nothing lost, nothing doubled."""

import asyncio
import random
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import pytest
import structlog
from kurrentdbclient import StreamState

from services.foundation import eventstore as eventstore_module
from services.foundation import outlines, telemetry
from services.foundation.errors import ConflictError, RefusedError, UnavailableError
from services.foundation.events import CORRELATION_ID, Pending, Place, Recorded, derived_id
from services.foundation.eventstore import ANY, NO_STREAM, EventStore, StreamAppend
from services.foundation.execute import Executor, Intent
from services.foundation.outlines import Outlines
from tests.support import eventstore
from tests.support.wait import until


class Counted(msgspec.Struct, frozen=True, rename="camel"):
    """One more."""

    type_name: ClassVar[str] = "recorrido.test.v1.Counted"
    cause: str


class Noted(msgspec.Struct, frozen=True):
    """A type that the decider does not know."""

    type_name: ClassVar[str] = "recorrido.test.v1.Noted"


@dataclass(frozen=True)
class Count:
    """Count up, unless `limit` is reached."""

    cause: str
    limit: int = 1_000_000


class Counter:
    """A tally: every cause counts once."""

    types = (Counted,)

    def initial(self) -> frozenset[str]:
        return frozenset()

    def evolve(self, state: frozenset[str], event: Counted) -> frozenset[str]:
        return state | {event.cause}

    def keys(self, state: frozenset[str]) -> Iterable[str]:
        return state

    def key(self, command: Count) -> str:
        return command.cause

    def decide(self, command: Count, state: frozenset[str]) -> Sequence[Counted]:
        if command.cause in state:
            return []
        if len(state) >= command.limit:
            raise RefusedError("FULL", f"{len(state)} counted; allowed now: nothing")
        return [Counted(command.cause)]


@pytest.fixture
def stream(request: pytest.FixtureRequest) -> str:
    return f"tally-{request.node.name}"


def executor(store: EventStore, **options: Any) -> Executor[frozenset[str]]:
    return Executor(store, Counter(), **options)


def outlining(store: EventStore, max_bytes: int = 1_000_000) -> Executor[frozenset[str]]:
    """An executor that remembers one stream whole, and of the others their outlines."""
    return executor(store, cache_events=1, outlines=Outlines(Counter(), max_bytes))


async def causes(store: EventStore, stream: str) -> list[str]:
    return [msgspec.json.decode(e.data, type=Counted).cause for e in await store.read(stream)]


async def rival(store: EventStore, stream: str, *names: str) -> None:
    """Somebody else counts."""
    events = [Pending(Counted(name), derived_id(stream, "rival", name)) for name in names]
    await store.append([StreamAppend(stream, ANY, events)])


# -- one command ---------------------------------------------------------------------------------------------------


async def test_a_command_becomes_an_event_with_its_metadata_and_trace(store: EventStore, stream: str) -> None:
    traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    done = await executor(store).execute(
        Intent(
            stream,
            Count("a"),
            metadata={CORRELATION_ID: "order-77"},
            context=telemetry.extract({"traceparent": traceparent}),
        )
    )
    assert (done.state, done.revision, len(done.events)) == (frozenset({"a"}), 0, 1)
    (recorded,) = await store.read(stream)
    assert recorded.event_id == derived_id(stream, "a", Counted.type_name, "0") == done.events[0].event_id
    assert recorded.metadata[CORRELATION_ID] == "order-77"
    assert telemetry.trace_id_of(recorded.metadata) == "4bf92f3577b34da6a3ce929d0e0e4736"


async def test_repeating_a_command_changes_nothing(store: EventStore, stream: str) -> None:
    await executor(store).execute(Intent(stream, Count("a")))
    for other in (executor(store), executor(store)):
        again = await other.execute(Intent(stream, Count("a")))
        assert (again.state, again.revision, again.events) == (frozenset({"a"}), 0, [])
    assert await causes(store, stream) == ["a"]


async def test_a_refusal_is_raised_and_changes_nothing(store: EventStore, stream: str) -> None:
    counting = executor(store)
    await counting.execute(Intent(stream, Count("a")))
    with pytest.raises(RefusedError, match="1 counted"):
        await counting.execute(Intent(stream, Count("b", limit=1)))
    assert await causes(store, stream) == ["a"]


async def test_a_stream_that_is_not_there_is_at_no_revision(store: EventStore, stream: str) -> None:
    folded = await executor(store).load(stream)
    assert (folded.state, folded.revision) == (frozenset(), NO_STREAM)


async def test_events_of_other_types_count_as_revisions_only(store: EventStore, stream: str) -> None:
    counting = executor(store)
    await counting.execute(Intent(stream, Count("a")))
    await store.append([StreamAppend(stream, ANY, [Pending(Noted(), derived_id(stream, "note"))])])
    folded = await counting.load(stream)
    assert (folded.state, folded.revision) == (frozenset({"a"}), 1)
    assert (await counting.execute(Intent(stream, Count("b")))).revision == 2


async def test_what_others_did_meanwhile_is_seen(store: EventStore, stream: str) -> None:
    counting = executor(store)
    await counting.execute(Intent(stream, Count("a")))
    await rival(store, stream, "b", "c")
    done = await counting.execute(Intent(stream, Count("d")))
    assert (done.state, done.revision) == (frozenset("abcd"), 3)


class Watched(EventStore):
    """The real store, with the reads counted."""

    def __init__(self, store: EventStore) -> None:
        super().__init__(store._client)
        self.reads = 0

    async def read(self, stream: str, after: int = NO_STREAM, limit: int = sys.maxsize) -> list[Recorded]:
        self.reads += 1
        return await super().read(stream, after, limit)


async def test_what_the_append_proves_is_not_read(store: EventStore, stream: str) -> None:
    watched = Watched(store)
    counting = executor(watched)
    for cause in "abc":
        await counting.execute(Intent(stream, Count(cause)))
    assert watched.reads == 0
    # That nothing is to be done, or may be, no append proves.
    await counting.execute(Intent(stream, Count("a")))
    with pytest.raises(RefusedError):
        await counting.execute(Intent(stream, Count("d", limit=3)))
    assert watched.reads == 2


# -- meant for one revision ----------------------------------------------------------------------------------------


async def test_a_command_meant_for_another_revision_conflicts(store: EventStore, stream: str) -> None:
    counting = executor(store)
    await counting.execute(Intent(stream, Count("a"), expected_revision=NO_STREAM))
    await rival(store, stream, "b")
    for wrong in (NO_STREAM, 0, 2):
        with pytest.raises(ConflictError) as caught:
            await counting.execute(Intent(stream, Count("c"), expected_revision=wrong))
        assert caught.value.streams == {stream: 1}
    # Refused or not: whoever decided on what is gone should look again.
    with pytest.raises(ConflictError):
        await counting.execute(Intent(stream, Count("c", limit=1), expected_revision=0))
    with pytest.raises(RefusedError):
        await counting.execute(Intent(stream, Count("c", limit=1), expected_revision=1))
    assert (await counting.execute(Intent(stream, Count("c"), expected_revision=1))).revision == 2


async def test_a_repetition_is_answered_whatever_revision_it_was_meant_for(store: EventStore, stream: str) -> None:
    first = Intent(stream, Count("a"), expected_revision=NO_STREAM)
    await executor(store).execute(first)
    await rival(store, stream, "b")
    again = await executor(store).execute(first)
    assert (again.events, again.revision) == ([], 1)


# -- conflicts -----------------------------------------------------------------------------------------------------


class Contested(EventStore):
    """The real store, where a rival is quicker each time, for the first `rounds` appends."""

    def __init__(self, store: EventStore, rounds: int) -> None:
        super().__init__(store._client)
        self._store = store
        self._rounds = rounds
        self.appends = 0

    async def append(self, appends: Sequence[StreamAppend]) -> int:
        self.appends += 1
        if self.appends <= self._rounds:
            await rival(self._store, appends[0].stream, f"rival {self.appends}")
        return await super().append(appends)


async def test_a_conflict_is_decided_again(store: EventStore, stream: str) -> None:
    contested = Contested(store, rounds=3)
    done = await executor(contested, attempts=4).execute(Intent(stream, Count("ours")))
    assert contested.appends == 4
    assert (done.state, done.revision) == ({"rival 1", "rival 2", "rival 3", "ours"}, 3)
    assert await causes(store, stream) == ["rival 1", "rival 2", "rival 3", "ours"]


async def test_deciding_again_may_come_to_another_decision(store: EventStore, stream: str) -> None:
    contested = Contested(store, rounds=2)
    with pytest.raises(RefusedError, match="2 counted"):
        await executor(contested).execute(Intent(stream, Count("ours", limit=2)))
    assert await causes(store, stream) == ["rival 1", "rival 2"]


async def test_after_so_many_rounds_the_conflict_is_told(store: EventStore, stream: str) -> None:
    contested = Contested(store, rounds=100)
    with pytest.raises(ConflictError) as caught:
        await executor(contested, attempts=3).execute(Intent(stream, Count("ours")))
    assert caught.value.streams == {stream: 2}
    assert contested.appends == 3
    assert await causes(store, stream) == ["rival 1", "rival 2", "rival 3"]


# -- batches -------------------------------------------------------------------------------------------------------


async def test_a_batch_over_many_streams_goes_in_one_append(store: EventStore, stream: str) -> None:
    streams = [f"{stream}-{number}" for number in range(200)]
    counting = executor(store)
    results = await counting.execute_all([Intent(s, Count("a")) for s in streams])
    assert [(r.revision, r.error) for r in results] == [(0, None)] * 200
    positions = [(await store.read(s))[0].position for s in streams]
    assert positions == sorted(positions)


async def test_a_refused_command_hinders_no_other(store: EventStore, stream: str) -> None:
    one, two = f"{stream}-1", f"{stream}-2"
    results = await executor(store).execute_all(
        [
            Intent(one, Count("a")),
            Intent(two, Count("a", limit=0)),
            Intent(one, Count("a")),
            Intent(one, Count("b", limit=1)),
            Intent(one, Count("c")),
            Intent(two, Count("b")),
        ]
    )
    told = [(len(r.events), r.revision, r.error.reason if r.error else None) for r in results]
    assert told == [(1, 0, None), (0, -1, "FULL"), (0, 0, None), (0, 0, "FULL"), (1, 1, None), (1, 0, None)]
    assert (await causes(store, one), await causes(store, two)) == (["a", "c"], ["b"])


@pytest.mark.parametrize("cache_events", [1, 7, 1000])
async def test_streams_guessed_to_be_new_are_proven(store: EventStore, stream: str, cache_events: int) -> None:
    old, new = [f"{stream}-old-{n}" for n in range(20)], [f"{stream}-new-{n}" for n in range(20)]
    await executor(store).execute_all([Intent(s, Count("a")) for s in old])
    await rival(store, old[3], "b")
    mixed = [s for pair in zip(old, new, strict=True) for s in pair]
    guessing = executor(store, cache_events=cache_events)
    for _ in range(2):
        await guessing.execute_all([Intent(s, Count("a")) for s in mixed])
        results = await guessing.execute_all([Intent(s, Count("c")) for s in mixed])
        assert [r.error for r in results] == [None] * 40
    assert [await causes(store, s) for s in new] == [["a", "c"]] * 20
    expected = [["a", "c"]] * 20
    expected[3] = ["a", "b", "c"]
    assert [await causes(store, s) for s in old] == expected


class Tracked(EventStore):
    """The real store; tells which streams were read from their beginning."""

    def __init__(self, store: EventStore) -> None:
        super().__init__(store._client)
        self.folded: list[str] = []

    async def read(self, stream: str, after: int = NO_STREAM, limit: int = sys.maxsize) -> list[Recorded]:
        if after == NO_STREAM:
            self.folded.append(stream)
        return await super().read(stream, after, limit)


async def test_the_cache_is_bounded_by_events_not_by_streams(store: EventStore, stream: str) -> None:
    """What a state holds grows with its history, so a bound in streams would be none."""
    watched = Tracked(store)
    one = executor(watched, cache_events=10)
    long, short, other = f"{stream}-long", f"{stream}-short", f"{stream}-other"
    for cause in "abcdefgh":
        await one.execute(Intent(long, Count(cause)))
    for cause in "ab":
        await one.execute(Intent(short, Count(cause)))
    watched.folded.clear()
    await one.load(short)
    assert watched.folded == []
    await one.load(long)
    assert watched.folded == [long], "two streams do not fit: the older one went"
    await rival(store, long, *map(str, range(20)))
    await one.load(long)
    await one.load(long)
    assert watched.folded == [long], "the last one stays, however long"
    await one.load(other)
    await one.load(long)
    assert watched.folded[1:] == [other, long]


async def test_what_an_outline_does_not_hold_needs_no_read(store: EventStore, stream: str) -> None:
    watched = Tracked(store)
    one = outlining(watched)
    streams = [f"{stream}-{number}" for number in range(5)]
    for letter in "abc":
        done = await one.execute_all(
            [Intent(s, Count(cause)) for s in streams for cause in (letter, letter * 2, letter)]
        )
        assert [len(r.events) for r in done] == [1, 1, 0] * 5
    assert watched.folded == []
    (again,) = await one.execute_all([Intent(streams[1], Count("b"))])
    assert (list(again.events), again.state) == ([], {"a", "aa", "b", "bb", "c", "cc"})
    assert watched.folded == [streams[1]], "what an outline holds is looked for in the stream"
    assert [await causes(store, s) for s in streams] == [["a", "aa", "b", "bb", "c", "cc"]] * 5


async def test_of_a_stream_that_went_on_behind_its_outline_the_rest_is_read(store: EventStore, stream: str) -> None:
    watched = Tracked(store)
    one = outlining(watched)
    first, second, third = (f"{stream}-{number}" for number in range(3))
    await one.execute_all([Intent(s, Count(cause)) for s in (first, second, third) for cause in ("a", "aa")])
    await store.append([StreamAppend(first, 1, [Pending(Noted(), derived_id(first, "noted"))])])
    await rival(store, second, "x")
    done = await one.execute_all([Intent(first, Count("b")), Intent(second, Count("b")), Intent(second, Count("x"))])
    assert [len(r.events) for r in done] == [1, 1, 0]
    done = await one.execute_all([Intent(first, Count("c")), Intent(second, Count("c"))])
    assert [r.revision for r in done] == [4, 4]
    assert watched.folded == []
    done = await one.execute_all([Intent(second, Count("x")), Intent(second, Count("b"))])
    assert [len(r.events) for r in done] == [0, 0], "what was read behind an outline is in it since"
    assert [await causes(store, s) for s in (second, third)] == [["a", "aa", "x", "b", "c"], ["a", "aa"]]


async def test_an_outline_of_a_stream_that_began_anew_is_worth_nothing(store: EventStore, stream: str) -> None:
    one = outlining(store)
    await one.execute_all([Intent(s, Count(cause)) for s in (stream, f"{stream}-other") for cause in "ab"])
    await store.wipe(stream, (await store.read(stream))[-1])
    (done,) = await one.execute_all([Intent(stream, Count("c"))])
    assert (done.state, await causes(store, stream)) == ({"c"}, ["c"])
    (done,) = await one.execute_all([Intent(stream, Count("a"))])
    assert (len(done.events), await causes(store, stream)) == (1, ["c", "a"])


async def test_keys_that_share_a_hash_are_told_apart(
    store: EventStore, stream: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outlines, "_hash", lambda _: b"the same")
    one = outlining(store)
    streams = [f"{stream}-{number}" for number in range(3)]
    for cause in "abab":
        await one.execute_all([Intent(s, Count(cause)) for s in streams])
    assert [await causes(store, s) for s in streams] == [["a", "b"]] * 3


async def test_a_repetition_guessed_to_be_new_is_told_as_one(store: EventStore, stream: str) -> None:
    streams = [f"{stream}-{number}" for number in range(3)]
    batch = [Intent(s, Count("a")) for s in streams]
    await executor(store).execute_all(batch)
    # The store knows the ids and would acknowledge them again, whatever the events say now.
    again = await executor(store).execute_all(batch)
    assert [(list(r.events), r.revision) for r in again] == [([], 0)] * 3
    mixed = [*batch, Intent(f"{stream}-new", Count("a"))]
    again = await executor(store).execute_all(mixed)
    assert [len(r.events) for r in again] == [0, 0, 0, 1]


async def test_a_stream_that_others_went_on_with_is_read_on_conflict(store: EventStore, stream: str) -> None:
    counting = executor(store)
    await counting.execute(Intent(stream, Count("a")))
    await rival(store, stream, "b")
    (done,) = await counting.execute_all([Intent(stream, Count("c"))])
    assert (done.state, done.revision) == (frozenset("abc"), 2)


async def test_a_stream_that_stays_contested_holds_up_no_other(store: EventStore, stream: str) -> None:
    contested = Contested(store, rounds=3)
    innocent = f"{stream}-innocent"
    refused, done = await executor(contested, attempts=3).execute_all(
        [Intent(stream, Count("ours")), Intent(innocent, Count("ours"))]
    )
    assert isinstance(refused.error, ConflictError)
    assert (done.error, await causes(store, innocent)) == (None, ["ours"])


async def test_a_stream_closed_for_good_refuses_itself_alone(store: EventStore, stream: str) -> None:
    innocent = f"{stream}-innocent"
    await executor(store).execute(Intent(stream, Count("a")))
    await store._client.tombstone_stream(stream, current_version=StreamState.ANY)
    refused, done = await executor(store).execute_all([Intent(stream, Count("b")), Intent(innocent, Count("b"))])
    assert isinstance(refused.error, RefusedError)
    assert refused.error.reason == "STREAM_CLOSED"
    assert (done.error, await causes(store, innocent)) == (None, ["b"])


async def test_a_long_stream_is_read_in_pages(store: EventStore, stream: str, monkeypatch: pytest.MonkeyPatch) -> None:
    await executor(store).execute_all([Intent(stream, Count(str(n))) for n in range(25)])
    monkeypatch.setattr("services.foundation.execute.PAGE", 10)
    watched = Watched(store)
    folded = await executor(watched).load(stream)
    assert (len(folded.state), folded.revision, watched.reads) == (25, 24, 3)


# -- many writers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("executors", "cache_events"), [(1, 1000), (4, 1000), (3, 1), (3, 0)])
async def test_of_many_writers_nobody_loses_and_nothing_doubles(
    store: EventStore, stream: str, executors: int, cache_events: int
) -> None:
    """Writers of several processes, who repeat what was aborted, each command also sent twice."""
    streams = [f"{stream}-{number}" for number in range(3)]
    # 0: one stream whole, and outlines of the others.
    processes = [
        executor(store, cache_events=cache_events) if cache_events else outlining(store) for _ in range(executors)
    ]
    chance = random.Random(7)
    wanted = [(chance.choice(streams), f"cause {number}") for number in range(60)]

    async def write(target: str, cause: str, process: Executor[frozenset[str]]) -> None:
        while True:
            (done,) = await process.execute_all([Intent(target, Count(cause))])
            if done.error is None:
                assert cause in done.state
                return
            assert isinstance(done.error, ConflictError)

    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        for target, cause in wanted * 2:
            group.create_task(write(target, cause, chance.choice(processes)))
    for target in streams:
        recorded = await causes(store, target)
        assert sorted(recorded) == sorted(cause for at, cause in wanted if at == target)
        for process in processes:
            folded = await process.load(target)
            assert (folded.state, folded.revision) == (frozenset(recorded), len(recorded) - 1)


async def test_of_those_who_expect_the_same_revision_one_wins(store: EventStore, stream: str) -> None:
    processes = [executor(store) for _ in range(3)]
    won: dict[str, int] = {}

    async def climb(name: str, process: Executor[frozenset[str]]) -> None:
        while True:
            at = (await process.load(stream)).revision
            try:
                done = await process.execute(Intent(stream, Count(name), expected_revision=at))
            except ConflictError:
                continue
            assert done.revision == at + 1
            won[name] = done.revision
            return

    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        for number in range(24):
            group.create_task(climb(f"climber {number}", processes[number % 3]))
    assert sorted(won.values()) == list(range(24))
    assert await causes(store, stream) == sorted(won, key=lambda name: won[name])


# -- a store that is away ------------------------------------------------------------------------------------------


async def test_a_store_that_is_away_is_told_and_nothing_doubles_after(tmp_path: Path) -> None:
    if eventstore.is_real_server():
        pytest.skip("the server under test is not ours to kill")
    node = eventstore.start(tmp_path)
    store = await EventStore.connect(node.uri)
    try:
        counting = executor(store)
        await counting.execute(Intent("tally-1", Count("a")))
        node.kill()
        with pytest.raises(UnavailableError):
            await counting.execute(Intent("tally-1", Count("b")))
        node = eventstore.start(tmp_path, node.address)

        async def repeat() -> bool:
            for cause in ("a", "b"):
                await counting.execute(Intent("tally-1", Count(cause)))
            return True

        await until(repeat, 20, ignoring=(UnavailableError,))
        assert await causes(store, "tally-1") == ["a", "b"]
    finally:
        await store.close()
        node.kill()


async def test_what_is_remembered_does_not_count_where_a_backup_has_another_event_in_its_place(tmp_path: Path) -> None:
    """The store is restored from before the stream began, which then began differently."""
    with eventstore.running(tmp_path / "later") as node:
        store = await EventStore.connect(node.uri)
        executor = Executor(store, Counter())
        await executor.execute(Intent("tally-restored", Count("a")))
        node.stop()
    with eventstore.running(tmp_path / "backup", node.address) as node:
        other = await EventStore.connect(node.uri)
        await Executor(other, Counter()).execute(Intent("tally-restored", Count("b")))
        result = await executor.execute(Intent("tally-restored", Count("a")))
        assert (result.revision, result.state) == (1, {"a", "b"})
        assert len(await other.read("tally-restored")) == 2
        for each in (store, other):
            await each.close()


async def test_what_was_read_does_not_count_where_a_backup_holds_less(tmp_path: Path) -> None:
    """The stream came to the revision that is remembered by other events, and nothing of it was ever appended by us."""
    with eventstore.running(tmp_path / "later") as node:
        store = await EventStore.connect(node.uri)
        for number in range(5):
            await rival(store, f"tally-{number}", "x")
        await rival(store, "tally-restored", "a")
        one = executor(store)
        assert (await one.load("tally-restored")).revision == 0
        node.stop()
    with eventstore.running(tmp_path / "backup", node.address) as node:
        other = await EventStore.connect(node.uri)
        await rival(other, "tally-restored", "b")
        (done,) = await one.execute_all([Intent("tally-restored", Count("b"))])
        assert (list(done.events), done.state, await causes(other, "tally-restored")) == ([], {"b"}, ["b"])
        for each in (store, other):
            await each.close()


@pytest.mark.parametrize("known", ["read", "appended", "an outline"])
async def test_what_is_remembered_does_not_count_where_others_filled_a_backup_beyond_it(
    tmp_path: Path, known: str
) -> None:
    """The store is replaced by an older one, which is filled beyond the last event that was known of the other."""
    with eventstore.running(tmp_path / "later") as node:
        store = await EventStore.connect(node.uri)
        one = outlining(store) if known == "an outline" else executor(store)
        for cause in ("a", "c"):
            if known == "read":
                await rival(store, "tally-restored", cause)
            else:
                await one.execute(Intent("tally-restored", Count(cause)))
        assert (await one.load("tally-restored")).revision == 1
        node.stop()
    with eventstore.running(tmp_path / "backup", node.address) as node:
        other = await EventStore.connect(node.uri)
        await rival(other, "tally-restored", "a", "b")
        for number in range(5):
            await rival(other, f"tally-{number}", "x")
        # Something newer is read of the other store meanwhile, and takes the place of what is remembered whole.
        assert (await one.load("tally-4")).revision == 0
        (repeated,) = await one.execute_all([Intent("tally-restored", Count("b"))])
        assert (list(repeated.events), repeated.state, repeated.revision) == ([], {"a", "b"}, 1)
        done = await one.execute(Intent("tally-restored", Count("c")))
        assert (len(done.events), done.revision) == (1, 2)
        assert await causes(other, "tally-restored") == ["a", "b", "c"]
        for each in (store, other):
            await each.close()


async def test_of_many_who_look_at_once_whether_the_store_is_the_same_one_asks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where one of them gives up; and a store that was replaced is told of once."""
    asked: list[Place | None] = []
    check = EventStore.check

    async def counted(self: EventStore, place: Place | None) -> None:
        asked.append(place)
        await check(self, place)

    monkeypatch.setattr(EventStore, "check", counted)
    monkeypatch.setattr(eventstore_module, "SAME_FOR_S", 0.0)
    with eventstore.running(tmp_path / "one") as node:
        store = await EventStore.connect(node.uri)
        one = executor(store)
        done = await one.execute(Intent("tally-a", Count("a")))
        assert asked == [], "nothing is remembered yet"
        loads = [asyncio.create_task(one.load(f"tally-{n}")) for n in range(20)]
        await until(lambda: asked)
        loads.pop(0).cancel()
        await asyncio.gather(*loads)
        assert [place and place.event_id for place in asked] == [done.events[0].event_id]
        node.stop()
    with eventstore.running(tmp_path / "two", node.address) as node, structlog.testing.capture_logs() as logs:
        other = await EventStore.connect(node.uri)
        found = await asyncio.gather(*(one.load(f"tally-{n}") for n in "abc"))
        assert [folded.revision for folded in found] == [NO_STREAM] * 3
        assert len([log for log in logs if "the event store was replaced" in log["event"]]) == 1
        for each in (store, other):
            await each.close()
