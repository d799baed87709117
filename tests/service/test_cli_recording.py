"""How an import sends its interactions, and when it is done."""

import pytest

from recorrido.ingest.v1.interaction_pb2 import Customer, Interaction
from recorrido.journey.v1.journey_service_pb2 import GetOverviewResponse
from services.cli.importing.recording import BATCH_SIZE, Settling, batches


def customer(name: str, count: int) -> list[Interaction]:
    return [Interaction(interaction_id=f"{name}{n}", customer=Customer(customer_id=name)) for n in range(count)]


@pytest.mark.parametrize(
    ("counts", "sizes"),
    [
        ([], []),
        ([1], [1]),
        ([BATCH_SIZE - 1, 1, 1], [BATCH_SIZE, 1]),
        ([BATCH_SIZE - 1, 2], [BATCH_SIZE - 1, 2]),
        ([10, 3 * BATCH_SIZE, 10], [10, 3 * BATCH_SIZE, 10]),
    ],
)
def test_a_customer_is_in_one_piece_of_work_only(counts: list[int], sizes: list[int]) -> None:
    customers = [customer(f"c{n}", count) for n, count in enumerate(counts)]
    pieces = list(batches(customers))
    assert [len(piece) for piece in pieces] == sizes
    assert [each for piece in pieces for each in piece] == [each for c in customers for each in c]
    owners = [{each.customer.customer_id for each in piece} for piece in pieces]
    assert sum(map(len, owners)) == len(set().union(*owners))


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
