"""How much of something each client may do, without a thread, a timer or a list that grows."""

import time
from collections import OrderedDict
from collections.abc import Callable

from services.foundation.errors import ExhaustedError

#: Clients that are remembered; the ones not seen for longest are forgotten first, and begin anew with a full bucket.
MAX_CLIENTS = 10_000
#: Calls of one client that are in progress at once, but for those that answer with a stream.
CALLS_PER_CLIENT = 256
#: What a client that has as many calls in progress as it may is told to wait, in seconds.
RETRY_AFTER_S = 1.0


class CallLimit:
    """How many calls each client may have in progress; who has none is not remembered."""

    def __init__(self, most_per_client: int) -> None:
        self._most = most_per_client
        self._calls: dict[str, int] = {}

    def enter(self, client: str) -> None:
        """Count a call that begins. Raises ExhaustedError (TOO_MANY_CALLS): it is one too many, and not counted."""
        mine = self._calls.get(client, 0)
        if mine >= self._most:
            raise ExhaustedError("TOO_MANY_CALLS", f"{client} has {mine:,} calls in progress already", RETRY_AFTER_S)
        self._calls[client] = mine + 1

    def leave(self, client: str) -> None:
        """Forget a call that was counted."""
        left = self._calls[client] - 1
        if left:
            self._calls[client] = left
        else:
            del self._calls[client]


class RateLimiter:
    """One bucket per client (https://en.wikipedia.org/wiki/Token_bucket): `rate` items a second, `burst` at once.

    Each client has a bucket of its own, so one that asks for too much takes nothing from another. What is larger than
    a whole bucket is admitted when the bucket is full, and the bucket owes the rest: such a client waits longer
    after it, and keeps to its rate.
    """

    def __init__(
        self,
        rate: float,
        burst: float = 0.0,
        *,
        clock: Callable[[], float] = time.monotonic,
        max_clients: int = MAX_CLIENTS,
    ) -> None:
        """Limit to `rate` items a second (0: no limit) and `burst` items at once (0: those of one second)."""
        self._rate = rate
        self._burst = max(burst or rate, 1.0)
        self._clock = clock
        self._max_clients = max_clients
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, client: str, items: int = 1) -> float:
        """Take `items` of the client's bucket and return 0, or take none and return the seconds until it has them."""
        if self._rate <= 0 or items <= 0:
            return 0.0
        now = self._clock()
        tokens, at = self._buckets.get(client, (self._burst, now))
        tokens = min(self._burst, tokens + (now - at) * self._rate)
        missing = min(items, self._burst) - tokens
        # What rounding loses would make a client wait for nothing.
        admitted = missing <= 1e-9
        self._buckets[client] = (tokens - items if admitted else tokens, now)
        self._buckets.move_to_end(client)
        while len(self._buckets) > self._max_clients:
            self._buckets.popitem(last=False)
        return 0.0 if admitted else missing / self._rate
