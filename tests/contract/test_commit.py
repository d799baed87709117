"""Group commit against the real store: who shares an append, in which order, and who is harmed by whom."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import msgspec
import pytest

from services.foundation.commit import GroupCommit
from services.foundation.errors import ExhaustedError, RecorridoError, UnavailableError
from services.foundation.eventstore import EventStore, StreamAppend
from services.foundation.execute import Executed, Executor, Intent
from tests.support import eventstore
from tests.support.wait import until


class Noted(msgspec.Struct, frozen=True, rename="camel"):
    """A word, noted."""

    type_name: ClassVar[str] = "recorrido.test.v1.Noted"
    word: str


@dataclass(frozen=True)
class Note:
    """Note a word, unless it is the one that breaks the decider."""

    word: str

    @property
    def cause(self) -> str:
        return self.word


class Notes:
    """Every word once."""

    types = (Noted,)

    def initial(self) -> tuple[str, ...]:
        return ()

    def evolve(self, state: tuple[str, ...], event: Noted) -> tuple[str, ...]:
        return (*state, event.word)

    def decide(self, command: Note, state: tuple[str, ...]) -> Sequence[Noted]:
        if command.word == "bug":
            raise ValueError("a bug of ours")
        return [] if command.word in state else [Noted(command.word)]


class Gated(EventStore):
    """The real store behind a gate; appends are counted."""

    def __init__(self, store: EventStore) -> None:
        super().__init__(store._client)
        self.appends: list[int] = []
        self.open = asyncio.Event()
        self.open.set()

    async def append(self, appends: Sequence[StreamAppend]) -> int:
        self.appends.append(sum(len(a.events) for a in appends))
        await self.open.wait()
        return await super().append(appends)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Gated]:
    with eventstore.connection_string(tmp_path) as uri:
        connected = await EventStore.connect(uri)
        yield Gated(connected)
        await connected.close()


def group(store: EventStore, **limits: int) -> GroupCommit[tuple[str, ...]]:
    return GroupCommit(Executor(store, Notes()), "test", **limits)


def note(stream: str, *words: str) -> tuple[list[Intent], list[int]]:
    return [Intent(stream, Note(word)) for word in words], [100] * len(words)


async def words(store: EventStore, stream: str) -> list[str]:
    return [msgspec.json.decode(e.data, type=Noted).word for e in await store.read(stream)]


async def test_callers_at_the_same_time_share_appends(store: Gated) -> None:
    commit = group(store)
    submissions = [commit.submit(*note(f"notes-{n}", "a")) for n in range(200)]
    results = [(await submission.results())[0] for submission in submissions]
    assert all(isinstance(r, Executed) and len(r.events) == 1 for r in results)
    assert sum(store.appends) == 200
    assert len(store.appends) <= 2


async def test_what_comes_while_an_append_is_under_way_goes_with_the_next(store: Gated) -> None:
    store.open.clear()
    commit = group(store)
    first = commit.submit(*note("notes-1", "a"))
    await until(lambda: store.appends)
    others = [commit.submit(*note("notes-1", word)) for word in "bcd"]
    store.open.set()
    for submission in (first, *others):
        await submission.results()
    assert store.appends == [1, 3]
    assert await words(store, "notes-1") == list("abcd")


async def test_a_full_group_does_not_wait_for_the_append_before_it(store: Gated) -> None:
    store.open.clear()
    commit = group(store, group_items=4)
    first = commit.submit(*note("notes-1", "a"))
    await until(lambda: store.appends)
    same = commit.submit(*note("notes-1", "b", "c"))
    others = [commit.submit(*note(f"notes-{n}", "a")) for n in (2, 3)]
    await until(lambda: len(store.appends) == 2)
    # What is for the stream in flight stays behind, so that it comes in order and never conflicts.
    assert store.appends == [1, 2]
    store.open.set()
    for submission in (first, same, *others):
        await submission.results()
    assert store.appends == [1, 2, 2]
    assert await words(store, "notes-1") == list("abc")


async def test_no_more_than_two_appends_are_in_flight(store: Gated) -> None:
    store.open.clear()
    commit = group(store, group_items=1)
    submissions = []
    for n in range(2):
        submissions.append(commit.submit(*note(f"notes-{n}", "a")))

        def appended(count: int = n + 1) -> bool:
            return len(store.appends) == count

        await until(appended)
    submissions += [commit.submit(*note(f"notes-{n}", "a")) for n in range(2, 6)]
    await until(lambda: not commit._starting)
    assert store.appends == [1, 1]
    store.open.set()
    for submission in submissions:
        await submission.results()
    assert sum(store.appends) == 6
    assert len(store.appends) <= 4


async def test_what_cannot_go_makes_no_full_group(store: Gated) -> None:
    """However much waits for one stream: a few for others do not go alone, and are not looked for at every call."""
    store.open.clear()
    commit = group(store, group_items=4)
    submissions = [commit.submit(*note("notes-1", "a"))]
    await until(lambda: store.appends)
    submissions.append(commit.submit(*note("notes-1", *"bcdefgh")))
    await until(lambda: not commit._starting)
    for n in (2, 3, 4):
        submissions.append(commit.submit(*note(f"notes-{n}", "a")))
        await until(lambda: not commit._starting)
    assert store.appends == [1]
    submissions.append(commit.submit(*note("notes-5", "a")))
    await until(lambda: len(store.appends) == 2)
    assert store.appends == [1, 4]
    store.open.set()
    for submission in submissions:
        await submission.results()
    assert await words(store, "notes-1") == list("abcdefgh")


async def test_a_large_submission_goes_in_portions_in_order(store: Gated) -> None:
    commit = group(store, append_bytes=10 * 700)
    many = [str(n) for n in range(100)]
    results = await commit.submit(*note("notes-1", *many)).results()
    assert len(results) == 100
    assert max(store.appends) <= 11
    assert await words(store, "notes-1") == many


async def test_a_full_queue_refuses_or_lets_wait(store: Gated) -> None:
    store.open.clear()
    commit = group(store, max_items=3)
    first = commit.submit(*note("notes-1", "a"))
    await until(lambda: store.appends)
    second = commit.submit(*note("notes-1", "b", "c", "d"))
    with pytest.raises(ExhaustedError) as refused:
        commit.submit(*note("notes-2", "e"))
    assert (refused.value.reason, refused.value.retry_after_s > 0) == ("QUEUE_FULL", True)
    waiting = asyncio.create_task(commit.submit_when_room(*note("notes-1", "f")))
    assert not (await asyncio.wait({waiting}, timeout=0.05))[0]
    store.open.set()
    for submission in (first, second, await waiting):
        await submission.results()
    assert await words(store, "notes-1") == list("abcdf")
    assert await words(store, "notes-2") == []


async def test_the_queue_is_bounded_in_bytes_and_takes_one_that_is_larger(store: Gated) -> None:
    store.open.clear()
    commit = group(store, max_bytes=1_000)
    commit.submit(*note("notes-1", "a"))
    await until(lambda: store.appends)
    larger = commit.submit([Intent("notes-2", Note("b"))], [5_000])
    with pytest.raises(ExhaustedError):
        commit.submit(*note("notes-3", "c"))
    store.open.set()
    (result,) = await larger.results()
    assert isinstance(result, Executed)


async def test_a_caller_who_leaves_harms_nobody(store: Gated) -> None:
    store.open.clear()
    commit = group(store)
    sent = asyncio.create_task(commit.submit(*note("notes-1", "sent")).results())
    await until(lambda: store.appends)
    waiting = asyncio.create_task(commit.submit(*note("notes-1", "waiting")).results())
    staying = asyncio.create_task(commit.submit(*note("notes-1", "staying")).results())
    await asyncio.sleep(0)
    sent.cancel()
    waiting.cancel()
    store.open.set()
    (result,) = await staying
    assert isinstance(result, Executed)
    # What was sent could not be called back; what only waited was not sent.
    assert await words(store, "notes-1") == ["sent", "staying"]


async def test_a_bug_is_raised_to_the_caller_it_belongs_to(store: Gated) -> None:
    commit = group(store)
    submissions = [commit.submit(*note(f"notes-{word}", word)) for word in ("a", "b", "bug", "c", "d")]
    results = await asyncio.gather(*(s.results() for s in submissions), return_exceptions=True)
    assert [isinstance(r, ValueError) for r in results] == [False, False, True, False, False]
    for word in "abcd":
        assert await words(store, f"notes-{word}") == [word]


async def test_a_store_that_is_gone_is_told_once_per_submission(tmp_path: Path) -> None:
    if eventstore.is_real_server():
        pytest.skip("the server under test is not ours to kill")
    node = eventstore.start(tmp_path)
    connected = await EventStore.connect(node.uri)
    store = Gated(connected)
    commit = group(store, append_bytes=700)
    node.kill()
    results = await commit.submit(*note("notes-1", "a", "b", "c")).results()
    assert all(isinstance(r, RecorridoError) for r in results)
    assert [type(r) for r in results] == [UnavailableError] * 3
    # Asked for once: the head of the store, or the append, fails; the others were not tried.
    assert len(store.appends) <= 1
    node = eventstore.start(tmp_path, node.address)

    async def back() -> bool:
        (result,) = await commit.submit(*note("notes-1", "a")).results()
        return isinstance(result, Executed)

    await until(back, 20)
    assert await words(store, "notes-1") == ["a"]
    await connected.close()
    node.kill()
