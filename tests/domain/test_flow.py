"""Reports of work under way: none is lost, the last one least of all."""

import asyncio
from contextlib import aclosing

import pytest

from services.foundation.flow import reports

pytestmark = pytest.mark.asyncio

WHY = RuntimeError("stopping")


async def test_work_that_ends_while_somebody_is_busy_with_a_report_owes_them_the_last_one() -> None:
    reported, done = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        await reported.wait()
        done.set()

    seen = []
    async for _ in reports(work(), every_s=0.001, stop=asyncio.Event(), why=WHY):
        seen.append(done.is_set())
        reported.set()
        # Who takes a report takes their time; the work ends meanwhile.
        await done.wait()
    assert seen == [False, True]


async def test_what_the_work_raises_is_raised() -> None:
    async def work() -> None:
        raise ValueError("of the work")

    with pytest.raises(ValueError, match="of the work"):
        _ = [each async for each in reports(work(), every_s=60, stop=asyncio.Event(), why=WHY)]


async def test_when_it_is_to_stop_the_work_is_cancelled_and_it_says_why() -> None:
    stop, cancelled = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        stop.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    with pytest.raises(RuntimeError, match="stopping"):
        _ = [each async for each in reports(work(), every_s=60, stop=stop, why=WHY)]
    assert cancelled.is_set()


async def test_when_nobody_wants_the_reports_any_more_the_work_is_cancelled() -> None:
    cancelled = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async with aclosing(reports(work(), every_s=0.001, stop=asyncio.Event(), why=WHY)) as reading:
        await anext(reading)
    assert cancelled.is_set()
