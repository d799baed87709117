"""What an erasure stands on: streams that are wiped and begin anew, effects without a cause, messages overwritten."""

import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar
from uuid import uuid4

import msgspec
import pytest

from recorrido.ingest.v1.events import Interaction, InteractionRecorded
from services.foundation.bus import (
    DEAD_LETTERS,
    REPLAY_SUBJECTS,
    REPLAYS,
    STREAM,
    Bus,
    Done,
    answer_to,
    headers_of,
    subject,
)
from services.foundation.errors import ConflictError, ErasedError
from services.foundation.events import Pending, Recorded, encode
from services.foundation.eventstore import ANY, Blank, EventStore, StreamAppend
from services.foundation.execute import Executor, Intent
from tests.support.cluster import running

# -- the store -----------------------------------------------------------------------------------------------------


class Said(msgspec.Struct, frozen=True):
    type_name: ClassVar[str] = "recorrido.test.v1.Said"
    word: str


@dataclass(frozen=True)
class Say:
    word: str

    @property
    def cause(self) -> str:
        return self.word


class Once:
    """Every word is said once."""

    types = (Said,)

    def initial(self) -> tuple[str, ...]:
        return ()

    def evolve(self, state: tuple[str, ...], event: Said) -> tuple[str, ...]:
        return (*state, event.word)

    def decide(self, command: Say, state: tuple[str, ...]) -> Sequence[Said]:
        return [] if command.word in state else [Said(command.word)]


@pytest.fixture
def stream(request: pytest.FixtureRequest) -> str:
    return f"talk-{request.node.name}-{uuid4()}"


async def say(store: EventStore, stream: str, *words: str) -> list[Recorded]:
    await store.append([StreamAppend(stream, ANY, [Pending(Said(word), uuid4()) for word in words])])
    return await store.read(stream)


async def words(store: EventStore, stream: str) -> list[str]:
    return [
        msgspec.json.decode(e.data, type=Said).word for e in await store.read(stream) if e.type_name == Said.type_name
    ]


async def test_a_wiped_stream_holds_nothing_and_begins_anew_with_higher_revisions(
    store: EventStore, stream: str
) -> None:
    *_, last = await say(store, stream, "a", "b")
    await store.wipe(stream, last)
    assert await store.read(stream) == []
    (again,) = await say(store, stream, "a")
    assert again.revision > last.revision
    assert await words(store, stream) == ["a"]


async def test_a_wipe_that_was_cut_off_is_finished(store: EventStore, stream: str) -> None:
    """Killed between its two steps, it left the empty event; killed after them, nothing."""
    *_, last = await say(store, stream, "a", "b")
    await store.wipe(stream, last)
    *_, last = await say(store, stream, "c")
    await store.append([StreamAppend(stream, last.revision, [Pending(Blank(), uuid4())])])
    *_, blank = await store.read(stream)
    await store.wipe(stream, blank)
    assert await store.read(stream) == []


async def test_a_wipe_does_not_take_what_it_did_not_see(store: EventStore, stream: str) -> None:
    *_, seen = await say(store, stream, "a")
    await say(store, stream, "b")
    with pytest.raises(ConflictError):
        await store.wipe(stream, seen)
    assert await words(store, stream) == ["a", "b"]


async def test_who_still_means_to_append_to_a_wiped_stream_is_refused(store: EventStore, stream: str) -> None:
    *_, last = await say(store, stream, "a")
    await store.wipe(stream, last)
    with pytest.raises(ConflictError):
        await store.append([StreamAppend(stream, last.revision, [Pending(Said("b"), uuid4())])])


async def test_a_truncated_stream_keeps_its_end(store: EventStore, stream: str) -> None:
    events = await say(store, stream, "a", "b", "c")
    await store.truncate(stream, events[2].revision)
    assert await words(store, stream) == ["c"]


async def test_an_event_is_held_until_it_is_wiped_or_truncated(store: EventStore, stream: str) -> None:
    first, second = await say(store, stream, "a", "b")
    assert [await store.holds(each) for each in (first, second)] == [True, True]
    await store.truncate(stream, second.revision)
    assert [await store.holds(each) for each in (first, second)] == [False, True]
    await store.wipe(stream, second)
    assert [await store.holds(each) for each in (first, second)] == [False, False]
    await say(store, stream, "c")
    assert [await store.holds(each) for each in (first, second)] == [False, False]


# -- commands ------------------------------------------------------------------------------------------------------


async def test_what_is_remembered_of_a_wiped_stream_does_not_count(store: EventStore, stream: str) -> None:
    executor, other = Executor(store, Once()), Executor(store, Once())
    for each in (executor, other):
        await each.execute(Intent(stream, Say("a")))
    *_, last = await store.read(stream)
    await store.wipe(stream, last)
    assert (await executor.load(stream)).state == ()
    # One that did not look meanwhile: neither a repetition, nor an append that goes on.
    done = await other.execute(Intent(stream, Say("a")))
    assert [event.event for event in done.events] == [Said("a")]
    await other.execute(Intent(stream, Say("b")))
    await executor.execute(Intent(stream, Say("c")))
    assert await words(store, stream) == ["a", "b", "c"]


async def test_a_stream_that_began_anew_behind_ones_back_is_read_anew(store: EventStore, stream: str) -> None:
    executor = Executor(store, Once())
    await executor.execute(Intent(stream, Say("a")))
    *_, last = await store.read(stream)
    await store.wipe(stream, last)
    await say(store, stream, "x")
    await executor.execute(Intent(stream, Say("a")))
    assert await words(store, stream) == ["x", "a"]
    assert (await executor.load(stream)).state == ("x", "a")


async def test_nothing_is_recorded_because_of_an_erased_event(store: EventStore, stream: str) -> None:
    kept, erased = f"{stream}-kept", f"{stream}-erased"
    (because,) = await say(store, kept, "cause")
    (gone,) = await say(store, erased, "cause")
    await store.wipe(erased, gone)
    executor = Executor(store, Once())
    results = await executor.execute_all(
        [
            Intent(f"{stream}-1", Say("a"), because=because),
            Intent(f"{stream}-2", Say("a"), because=gone),
            Intent(f"{stream}-3", Say("a")),
            # To the stream of the cause itself, as an analysis is.
            Intent(erased, Say("a"), because=gone, presumed_revision=gone.revision),
            Intent(kept, Say("a"), because=because, presumed_revision=because.revision),
        ]
    )
    assert [type(result.error) for result in results] == [type(None), ErasedError, type(None), ErasedError, type(None)]
    assert [len(await store.read(f"{stream}-{number}")) for number in (1, 2, 3)] == [1, 0, 1]
    assert (await store.read(erased), await words(store, kept)) == ([], ["cause", "a"])
    assert answer_to(results[1].error) == Done()  # never a dead letter, which would hold what was erased


async def test_a_customer_that_came_back_does_not_bring_back_the_effects_of_what_was_erased(
    store: EventStore, stream: str
) -> None:
    (gone,) = await say(store, stream, "cause")
    await store.wipe(stream, gone)
    await say(store, stream, "new history")
    result = await Executor(store, Once()).execute_all(
        [Intent(stream, Say("a"), because=gone, presumed_revision=gone.revision)]
    )
    assert isinstance(result[0].error, ErasedError)
    assert await words(store, stream) == ["new history"]


async def test_what_was_recorded_is_still_a_repetition_when_its_cause_is_gone(store: EventStore, stream: str) -> None:
    cause = f"{stream}-cause"
    (because,) = await say(store, cause, "cause")
    executor = Executor(store, Once())
    intent = Intent(stream, Say("a"), because=because)
    await executor.execute(intent)
    await store.wipe(cause, because)
    assert not (await executor.execute(intent)).events


# -- the bus -------------------------------------------------------------------------------------------------------

OTHERS = ("customer-b", "customer-a2", "customer-a.b", "customer-")


def about(stream: str, position: int, text: str) -> tuple[Recorded, tuple[str, bytes, dict[str, str]]]:
    event = InteractionRecorded(interaction=Interaction(source="test", interaction_id=text))
    recorded = Recorded(event.type_name, encode(event), {}, uuid4(), stream, 0, position, datetime.now(UTC))
    return recorded, (subject(recorded.type_name, stream), recorded.data, headers_of(recorded, {}))


@contextlib.asynccontextmanager
async def bus_in(data: Path) -> AsyncIterator[Bus]:
    async with running(["nats"], data=data) as cluster:
        bus = await Bus.connect(cluster.environment["RECORRIDO_NATS_URL"], name="test")
        try:
            yield bus
        finally:
            await bus.close()


async def remaining(bus: Bus, name: str) -> int:
    return int((await bus._js.stream_info(name)).state.messages)


def on_disk(data: Path, needle: bytes) -> list[str]:
    files = [path for path in data.rglob("*") if path.is_file()]
    return [str(path.relative_to(data)) for path in files if needle in path.read_bytes()]


@pytest.mark.parametrize("customer", ["a", "Ana Nováková/7.*>", "x" * 2000])
async def test_every_message_about_a_stream_is_overwritten_and_no_other(tmp_path: Path, customer: str) -> None:
    mine = f"customer-{customer}"
    async with bus_in(tmp_path) as bus:
        batch = [
            about(stream, n, "MARKER" if stream == mine else "stays")
            for n, stream in enumerate((mine, *OTHERS, mine), 1)
        ]
        messages = [message for _, message in batch]
        await bus.publish(messages, expected_last=0)
        await bus.ensure_replay("r1", {})
        replayed = [(f"{REPLAY_SUBJECTS}r1.{to}", body, headers) for to, body, headers in messages]
        await bus.publish(replayed, expected_last=0)
        for to, body, headers in messages:
            kept = {k: v for k, v in headers.items() if not k.startswith("Nats-")}
            await bus._js.publish(f"recorrido_dead.inference-analyze.{to}", body, stream=DEAD_LETTERS, headers=kept)
        later = about(mine, 100, "came again")[1]
        await bus.publish([later], expected_last=len(messages))
        assert on_disk(tmp_path, b"MARKER")

        assert await bus.erase([mine], range(100)) == 6

        for name, extra in ((STREAM, 1), (DEAD_LETTERS, 0), (f"{REPLAYS}r1", 0)):
            assert await remaining(bus, name) == len(OTHERS) + extra
        assert on_disk(tmp_path, b"MARKER") == []
        assert await bus.erase([mine], range(100)) == 0
        assert await bus.erase([mine], {100}) == 1
    assert on_disk(tmp_path, b"came again") == []
    if len(customer) > 1:
        # The server has written its index of subjects anew, at the latest when it stopped.
        assert on_disk(tmp_path, subject("", mine)[1:].encode()) == []


async def test_the_end_of_the_stream_is_found_where_the_last_message_was_erased(tmp_path: Path) -> None:
    async with bus_in(tmp_path) as bus:
        assert (await bus.last()).position is None
        batch: list[Any] = [about(stream, n, "text")[1] for n, stream in enumerate(("customer-a", "customer-b"), 1)]
        await bus.publish(batch, expected_last=0)
        await bus.erase(["customer-b"], {2})
        last = await bus.last()
        assert (last.sequence, last.position, last.messages) == (2, 1, 1)
        await bus.publish([about("customer-c", 3, "text")[1]], expected_last=last.sequence)
        assert (await bus.last()).position == 3
        await bus.erase(["customer-a", "customer-c"], {1, 3})
        last = await bus.last()
        assert (last.sequence, last.position, last.messages) == (3, None, 0)
