"""Waiting for what has to come true, in place of sleeping for as long as it might take."""

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, overload

T = TypeVar("T")


@overload
async def until(
    condition: Callable[[], Awaitable[T | None]],
    deadline_s: float = ...,
    *,
    what: str = ...,
    ignoring: tuple[type[Exception], ...] = ...,
    every_s: float = ...,
) -> T: ...
@overload
async def until(
    condition: Callable[[], T | None],
    deadline_s: float = ...,
    *,
    what: str = ...,
    ignoring: tuple[type[Exception], ...] = ...,
    every_s: float = ...,
) -> T: ...
async def until(
    condition: Callable[[], Any],
    deadline_s: float = 10.0,
    *,
    what: str = "",
    ignoring: tuple[type[Exception], ...] = (),
    every_s: float = 0.02,
) -> Any:
    """Wait until `condition` gives something true, and return that.

    Args:
        condition: a function, or an async function, without arguments.
        deadline_s: seconds after which to give up.
        what: what is waited for, told on failure.
        ignoring: errors that mean "not yet".
        every_s: seconds between two looks.

    Raises:
        AssertionError: it did not come true in time; the text shows its last value or error.
    """
    deadline = time.monotonic() + deadline_s
    while True:
        last: object
        try:
            found = condition()
            value = await found if inspect.isawaitable(found) else found
            if value:
                return value
            last = value
        except ignoring as error:
            last = error
        if time.monotonic() > deadline:
            name = what or getattr(condition, "__name__", "the condition")
            raise AssertionError(f"not within {deadline_s:g} s: {name}; last: {last!r}")
        await asyncio.sleep(every_s)
