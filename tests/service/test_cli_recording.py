"""How an import sends its interactions, and when it is done."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from recorrido.ingest.v1.ingest_service_pb2 import RecordResult
from recorrido.ingest.v1.interaction_pb2 import Interaction, Verbatim
from recorrido.ingest.v1.rejection_service_pb2 import ListRejectedRequest, ListRejectedResponse
from recorrido.journey.v1.journey_service_pb2 import GetOverviewResponse
from services.cli.failures import CommandError
from services.cli.importing.recording import BATCH_BYTES, BATCH_SIZE, Lane, Settling, record
from tests.support.front_door import RECORDED, front_door, of
from tests.support.wait import until


async def batches(count: int, text: str = "") -> list[list[int]]:
    """Return the batches that `count` interactions of one customer are sent in."""
    lane = Lane[int]()
    found: list[list[int]] = []

    async def take() -> None:
        while batch := await lane.batches.get():
            found.append([tag for _, tag in batch])

    async with asyncio.TaskGroup() as group:
        group.create_task(take())
        for n in range(count):
            await lane.put(Interaction(interaction_id=str(n), verbatim=Verbatim(text=text)), n)
        await lane.end()
    return found


@pytest.mark.parametrize(
    ("count", "sizes"),
    [
        (0, []),
        (1, [1]),
        (BATCH_SIZE, [BATCH_SIZE]),
        (2 * BATCH_SIZE + 1, [BATCH_SIZE, BATCH_SIZE, 1]),
    ],
)
async def test_batches_are_as_large_as_they_may_be_and_in_order(count: int, sizes: list[int]) -> None:
    found = await batches(count)
    assert [len(batch) for batch in found] == sizes
    assert [n for batch in found for n in batch] == list(range(count))


async def test_a_batch_fits_into_a_request() -> None:
    assert [len(batch) for batch in await batches(7, "x" * (BATCH_BYTES // 4))] == [3, 3, 1]
    assert [len(batch) for batch in await batches(2, "x" * (2 * BATCH_BYTES))] == [1, 1]


def overview(
    interactions: int, verbatims: int, analyzed: int, failed: int = 0, signals: int = 0
) -> GetOverviewResponse:
    return GetOverviewResponse(
        interactions=interactions, verbatims=verbatims, analyzed=analyzed, analysis_failed=failed, signals=signals
    )


def test_it_is_done_when_all_is_placed_and_understood_and_nothing_moves() -> None:
    settling = Settling(before=overview(5, 2, 2), recorded=10)
    steps = [
        (overview(5, 2, 2), False),
        (overview(14, 6, 2), False),
        (overview(15, 7, 2), False),
        (overview(15, 7, 6), False),
        (overview(15, 7, 6), False),
        (overview(15, 7, 6), False),
        (overview(15, 7, 6, failed=1), False),
        (overview(15, 7, 6, failed=1, signals=1), False),
        (overview(15, 7, 6, failed=1, signals=1), False),
        (overview(15, 7, 6, failed=1, signals=1), True),
    ]
    assert [settling.done(now) for now, _ in steps] == [done for _, done in steps]


def test_progress_is_of_what_was_recorded_now() -> None:
    settling = Settling(before=overview(5, 2, 1), recorded=10)
    now = overview(12, 6, 3, failed=1)
    assert settling.placed(now) == (7, 10)
    assert settling.understood(now) == (3, 5)


def test_what_others_record_meanwhile_is_not_waited_for() -> None:
    settling = Settling(before=overview(0, 0, 0), recorded=10)
    assert settling.placed(overview(12, 5, 0)) == (10, 10)
    assert not settling.done(overview(12, 5, 0))
    # Others have added words that are not understood yet; ours are.
    assert [settling.done(overview(20, 9, 5)) for _ in range(3)] == [False, False, True]


def test_nothing_new_is_done_at_once() -> None:
    settling = Settling(before=overview(10, 4, 4), recorded=0)
    assert [settling.done(overview(10, 4, 4)) for _ in range(3)] == [False, False, True]


async def test_what_found_no_store_for_too_long_is_not_settled(tmp_path: Path) -> None:
    """Or it would be passed over when the import is resumed, and be nowhere."""
    settled: list[tuple[str, int]] = []

    async def items() -> AsyncIterator[tuple[Interaction, str]]:
        for name in ("ana", "bor"):
            yield of(name), name

    def note(done: list[tuple[str, RecordResult]]) -> None:
        settled.extend((name, result.status) for name, result in done)

    async with front_door(tmp_path) as door:
        await door.cluster.stop("eventstore")
        with pytest.raises(CommandError, match="UNAVAILABLE: event store"):
            await record(door.stub, items(), note, patience_s=0.5)
        assert settled == []
        await door.cluster.start("eventstore")
        summary = await record(door.stub, items(), note)
    assert (summary.recorded, sorted(settled)) == (2, [("ana", RECORDED), ("bor", RECORDED)])


async def test_what_is_refused_and_could_not_be_kept_is_sent_again(tmp_path: Path) -> None:
    """Or it would be passed over when the import is resumed, and nobody could ever mend it."""
    settled: list[RecordResult] = []

    async def items() -> AsyncIterator[tuple[Interaction, str]]:
        for number in range(600):
            bad = of(f"customer {number}", number, text="x" * 15_000)
            bad.touchpoint = ""
            yield bad, ""

    def note(done: list[tuple[str, RecordResult]]) -> None:
        settled.extend(result for _, result in done)

    # Batches that come at the same time find no room for what is wrong with them.
    async with front_door(tmp_path, {"RECORRIDO_QUEUE_ITEMS": "1"}) as door:
        summary = await record(door.stub, items(), note)

        async def listed() -> bool:
            answer: ListRejectedResponse = await door.rejections.ListRejected(ListRejectedRequest())
            return answer.total == 600

        await until(listed, 30, ignoring=(grpc.aio.AioRpcError,))
    assert (summary.rejected, len(settled)) == ({"INVALID": 600}, 600)
    assert all(result.problem.rejection_id for result in settled)
