"""Batches of a source: all of it, in order, without waiting for a full batch; errors are not swallowed."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.foundation.flow import batches


async def numbers(count: int, error: Exception | None = None) -> AsyncIterator[int]:
    for number in range(count):
        yield number
        if number % 3 == 0:
            await asyncio.sleep(0)
    if error is not None:
        raise error


@given(count=st.integers(0, 60), size=st.integers(1, 10))
def test_keeps_all_and_the_order(count: int, size: int) -> None:
    async def collect() -> list[list[int]]:
        return [batch async for batch in batches(numbers(count), size=size)]

    got = asyncio.run(collect())
    assert [n for batch in got for n in batch] == list(range(count))
    assert all(1 <= len(batch) <= size for batch in got)


async def test_raises_what_the_source_raises_after_what_came_before() -> None:
    seen: list[int] = []

    async def consume() -> None:
        async for batch in batches(numbers(5, RuntimeError("broken")), size=2):
            seen.extend(batch)

    with pytest.raises(RuntimeError, match="broken"):
        await consume()
    assert seen == list(range(5))


async def test_does_not_wait_for_a_full_batch() -> None:
    async def one_then_silence() -> AsyncIterator[int]:
        yield 1
        await asyncio.Event().wait()

    async with asyncio.timeout(5), contextlib.aclosing(batches(one_then_silence(), size=100)) as source:
        assert await anext(source) == [1]


async def test_bounds_a_batch_by_weight() -> None:
    got = [batch async for batch in batches(numbers(6), size=100, weight=lambda _: 10, max_weight=20)]
    assert all(len(batch) <= 2 for batch in got)


async def test_reads_ahead_by_weight_too() -> None:
    """So that a thousand large events do not all come to lie in memory while one batch is worked on."""
    made: list[int] = []

    async def heavy() -> AsyncIterator[int]:
        for number in range(100):
            made.append(number)
            yield number

    got: list[int] = []
    async with contextlib.aclosing(batches(heavy(), size=50, weight=lambda _: 10, max_weight=30)) as source:
        async for batch in source:
            got += batch
            # It may go on reading for as long as it likes.
            for _ in range(200):
                await asyncio.sleep(0)
            assert len(made) <= len(got) + 6
    assert got == list(range(100))
