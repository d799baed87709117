"""Reading ahead: what a source yields one by one, in the batches that its consumer can take."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def batches(
    source: AsyncIterator[T],
    *,
    size: int,
    weight: Callable[[T], int] = lambda _: 1,
    max_weight: int | None = None,
    idle_s: float | None = None,
) -> AsyncGenerator[list[T], None]:
    """Yield what is there, at most `size` items and about `max_weight` by `weight`, as soon as there is anything.

    With `idle_s` an empty batch tells that nothing came for so long. Reads at most two batches ahead, by `size` and by
    `max_weight`. Raises what `source` raises, after the items before it.
    """
    queue: asyncio.Queue[T] = asyncio.Queue(maxsize=size * 2)
    ahead, taken = 0, asyncio.Event()

    async def fill() -> None:
        nonlocal ahead
        async for item in source:
            await queue.put(item)
            ahead += weight(item)
            while max_weight is not None and ahead >= max_weight * 2:
                taken.clear()
                await taken.wait()

    filling = asyncio.create_task(fill())
    getting: asyncio.Task[T] | None = None
    try:
        while True:
            if getting is None:
                getting = asyncio.create_task(queue.get())
            done, _ = await asyncio.wait({getting, filling}, timeout=idle_s, return_when=asyncio.FIRST_COMPLETED)
            if not done:
                yield []
                continue
            if not getting.done():
                await filling
                return
            batch = [getting.result()]
            getting = None
            total = weight(batch[0])
            while len(batch) < size and (max_weight is None or total < max_weight) and not queue.empty():
                batch.append(queue.get_nowait())
                total += weight(batch[-1])
            ahead -= total
            taken.set()
            yield batch
    finally:
        filling.cancel()
        if getting is not None:
            getting.cancel()
        await asyncio.gather(filling, return_exceptions=True)


async def until_set(source: AsyncIterator[T], stop: asyncio.Event) -> AsyncGenerator[T, None]:
    """Yield what `source` yields, until it ends or `stop` is set."""
    stopping = asyncio.ensure_future(stop.wait())
    getting: asyncio.Future[T] | None = None
    try:
        while not stop.is_set():
            getting = asyncio.ensure_future(anext(source))
            await asyncio.wait({getting, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not getting.done():
                return
            try:
                item = getting.result()
            except StopAsyncIteration:
                return
            yield item
    finally:
        stopping.cancel()
        if getting is not None:
            getting.cancel()


async def reports(
    working: Coroutine[Any, Any, None], *, every_s: float, stop: asyncio.Event, why: Exception
) -> AsyncGenerator[None, None]:
    """Do the work, and yield about every `every_s` seconds and once after it is done.

    Raises what the work raises, and `why` when `stop` is set before it is done; the work is cancelled then, and when
    nobody wants the reports any more.
    """
    task = asyncio.create_task(working)
    stopping = asyncio.create_task(stop.wait())
    done = False
    try:
        while not done:
            await asyncio.wait({task, stopping}, timeout=every_s, return_when=asyncio.FIRST_COMPLETED)
            # Asked once a round: work that ends while somebody is busy with a report owes them the last one still.
            done = task.done()
            if done:
                task.result()
            elif stopping.done():
                raise why
            yield
    finally:
        task.cancel()
        stopping.cancel()
        await asyncio.gather(task, stopping, return_exceptions=True)
