"""The rate of each client, with a clock of the test's own."""

from hypothesis import given
from hypothesis import strategies as st

from services.foundation.limits import RateLimiter


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_no_rate_limits_nothing() -> None:
    limiter = RateLimiter(0)
    assert all(limiter.take("a", 1_000_000) == 0 for _ in range(100))


def test_a_burst_and_then_the_rate() -> None:
    clock = Clock()
    limiter = RateLimiter(10, 5, clock=clock)
    assert [limiter.take("a") for _ in range(5)] == [0] * 5
    assert limiter.take("a") == 0.1
    clock.now += 0.1
    assert limiter.take("a") == 0
    assert limiter.take("a") > 0


def test_who_comes_back_in_the_time_told_is_admitted() -> None:
    clock = Clock()
    limiter = RateLimiter(3, 7, clock=clock)
    limiter.take("a", 7)
    clock.now += limiter.take("a", 5)
    assert limiter.take("a", 5) == 0


def test_clients_do_not_take_from_each_other() -> None:
    clock = Clock()
    limiter = RateLimiter(10, 5, clock=clock)
    for _ in range(100):
        limiter.take("greedy", 5)
    assert limiter.take("modest") == 0


def test_what_is_larger_than_a_bucket_is_admitted_and_paid_for_after() -> None:
    clock = Clock()
    limiter = RateLimiter(10, 5, clock=clock)
    assert limiter.take("a", 25) == 0
    assert limiter.take("a", 1) == 2.1
    clock.now += 2.1
    assert limiter.take("a", 1) == 0


def test_memory_is_bounded() -> None:
    clock = Clock()
    limiter = RateLimiter(10, 5, clock=clock, max_clients=100)
    for number in range(10_000):
        limiter.take(f"client {number}")
    assert len(limiter._buckets) == 100
    # The ones seen last are still known.
    assert limiter.take("client 9999", 5) > 0


@given(st.lists(st.tuples(st.integers(1, 30), st.floats(0, 3)), max_size=60))
def test_never_more_than_the_rate_in_the_long_run(calls: list[tuple[int, float]]) -> None:
    clock = Clock()
    limiter = RateLimiter(10, 20, clock=clock)
    began, admitted = clock.now, []
    for items, pause in calls:
        clock.now += pause
        if limiter.take("a", items) == 0:
            admitted.append(items)
    # All but the last, which may be larger than what was left of the bucket, were paid for.
    assert sum(admitted[:-1]) <= 20 + 10 * (clock.now - began) + 1e-6
