"""Waits between tries: twice as long each time, and half of it left to chance.

So what failed together does not come again together: M. Brooker, "Exponential Backoff And Jitter", AWS Architecture
Blog, 2015, "equal jitter".
"""

import asyncio
import random


def wait_s(failures: int, *, first_s: float, longest_s: float, chance: float | None = None) -> float:
    """Return how long to wait after so many failures, 1 or more; `chance` is from 0 to 1, drawn where none is given."""
    chance = random.random() if chance is None else chance  # noqa: S311 - no secret
    full = min(longest_s, first_s * 2.0 ** min(failures - 1, 30))
    return full / 2 + chance * full / 2


class Backoff:
    """Waits after each failure, about `first_s` at first."""

    def __init__(self, first_s: float = 0.1, longest_s: float = 2.0) -> None:
        self._first_s = first_s
        self._longest_s = longest_s
        self._failures = 0

    def reset(self) -> None:
        """Begin anew, after a success."""
        self._failures = 0

    async def wait(self) -> None:
        self._failures += 1
        await asyncio.sleep(wait_s(self._failures, first_s=self._first_s, longest_s=self._longest_s))
