"""Token buckets: how much of something each client may do, without a thread, a timer or a list that grows."""

import time
from collections import OrderedDict
from collections.abc import Callable

#: Clients that are remembered; the ones not seen for longest are forgotten first, and begin anew with a full bucket.
MAX_CLIENTS = 10_000


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
