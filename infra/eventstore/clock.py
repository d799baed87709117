"""The node's time, which never goes back."""

import logging
import threading
import time
from typing import Final

log = logging.getLogger(__name__)

TICKS_PER_SECOND: Final = 10_000_000
# Less than this is what a time server takes back in the ordinary course of things.
TOLD_FROM: Final = 1 * TICKS_PER_SECOND


class Clock:
    """The machine's time in ticks of 100 ns since the Unix epoch; while that is behind, the latest time so far.

    So times of recording follow the order of recording, and what has expired stays so, though somebody sets the
    machine's clock back. For all threads.
    """

    def __init__(self, latest: int) -> None:
        """`latest` is the time of the event that was recorded last."""
        self._latest = latest
        self._told = False
        self._lock = threading.Lock()

    def now(self) -> int:
        with self._lock:
            behind = self._latest - time.time_ns() // 100
            if behind > TOLD_FROM and not self._told:
                seconds = behind / TICKS_PER_SECOND
                log.warning("the machine's clock is %.0f s behind: events get the time of the last one", seconds)
            self._told = behind > TOLD_FROM
            self._latest -= min(behind, 0)
            return self._latest
