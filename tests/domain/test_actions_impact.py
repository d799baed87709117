"""Impact: published figures, and simulations of coverage, false alarms and power (seeded)."""

import math
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace
from scipy import stats

from recorrido.actions.v1.events import (
    ActionAccepted,
    ActionCompleted,
    ActionKind,
    ActionOpened,
    ActionStarted,
    ActionVerified,
    Impact,
    ImpactMethod,
    ImpactSample,
    ImpactVerdict,
    Target,
)
from services.actions.domain.action import Action, decide, evolve
from services.actions.domain.commands import VerifyAction
from services.actions.domain.impact import (
    FALSE_ALARM,
    MEASURES,
    WATCHED_WEEKS,
    Clusters,
    Kind,
    Samples,
    assess,
    by_customer,
    daily,
    effect,
    fell,
    moments,
    newcombe,
    share,
    student_quantile,
)
from services.foundation.errors import RefusedError
from services.foundation.intervals import wilson

V = ImpactVerdict
NOW = datetime(2026, 3, 1, tzinfo=UTC)
Draw = Callable[[np.random.Generator, float], ImpactSample]
RUNS = 2_000


def target(metric: str) -> Target:
    return Target(metric=metric, touchpoint="delivery")


# -- against what is published -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("after", "before", "low", "high"),
    # R. G. Newcombe, Statistics in Medicine 17 (1998), table II, examples (a), (c), (e), (g), method 10.
    [
        ((56, 70), (48, 80), 0.0524, 0.3339),
        ((6, 7), (2, 7), 0.0582, 0.8062),
        ((5, 56), (0, 29), -0.0381, 0.1926),
        ((0, 10), (0, 10), -0.2775, 0.2775),
    ],
)
def test_the_interval_of_a_difference_of_shares_is_the_published_one(
    after: tuple[int, int], before: tuple[int, int], low: float, high: float
) -> None:
    _, found_low, found_high = newcombe(share(*before), share(*after), 0.95)
    assert (found_low, found_high) == pytest.approx((100 * low, 100 * high), abs=0.006)


def test_the_score_interval_is_that_of_scipy() -> None:
    found = wilson(12, 50)
    theirs = stats.binomtest(12, 50).proportion_ci(0.95, method="wilson")
    assert found == pytest.approx((theirs.low, theirs.high))


@pytest.mark.parametrize("degrees", [7, 11.5, 29, 58, 400])
@pytest.mark.parametrize("p", [0.9, 0.975, 0.995, 1 - FALSE_ALARM / WATCHED_WEEKS])
def test_quantiles_of_student(p: float, degrees: float) -> None:
    assert student_quantile(p, degrees) == pytest.approx(stats.t.ppf(p, degrees), abs=0.001)


def test_the_interval_of_a_difference_of_means_is_that_of_scipy() -> None:
    random = np.random.default_rng(1)
    before, after = random.normal(0, 1, 40), random.normal(0.4, 3, 70)
    found = effect(Kind.SCORE, Samples(sample(before), sample(after)))
    theirs = stats.ttest_ind(after, before, equal_var=False).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=1e-5)


def sample(values: np.ndarray) -> ImpactSample:
    found = moments(len(values), float(values.sum()), float((values**2).sum()))
    assert found.variance == pytest.approx(float(values.var(ddof=1)))
    return found


# -- simulations ---------------------------------------------------------------------------------------------------


def csat(random: np.random.Generator, change: float, count: int = 120) -> ImpactSample:
    return share(int(random.binomial(count, 0.7 + change / 100)), count)


def pains(random: np.random.Generator, change: float, count: int = 120) -> ImpactSample:
    return share(int(random.binomial(count, 0.08 + change / 100)), count)


def nps(random: np.random.Generator, change: float, count: int = 60) -> ImpactSample:
    more = change / 200
    answers = random.choice([-100, 0, 100], size=count, p=[0.3 - more, 0.3, 0.4 + more])
    return moments(count, int(answers.sum()), int((answers**2).sum()))


def volume(random: np.random.Generator, change: float, days: int = 28) -> ImpactSample:
    # More uneven than Poisson, as volumes are.
    rates = random.gamma(20, 40 / 20, size=days) * (1 + change / 100)
    return daily([int(each) for each in random.poisson(rates)])


DRAWS: list[tuple[str, Draw, float]] = [
    ("csat", csat, 15.0),
    ("pain_share", pains, 12.0),
    ("nps", nps, 40.0),
    ("volume", volume, 20.0),
]


def samples_of(draw: Draw, random: np.random.Generator, change: float, *, compared: bool) -> Samples:
    # With a comparison, something moves both alike; it must not be taken for an effect.
    drift = 5.0 if compared else 0.0
    before, after = draw(random, 0), draw(random, change + drift)
    comparison = (draw(random, 0), draw(random, drift)) if compared else (None, None)
    return Samples(before, after, *comparison)


@pytest.mark.parametrize("compared", [False, True])
@pytest.mark.parametrize(("metric", "draw", "change"), DRAWS)
def test_an_interval_holds_the_truth_as_often_as_it_says(
    metric: str, draw: Draw, change: float, *, compared: bool
) -> None:
    random = np.random.default_rng(7)
    kind = MEASURES[metric].kind
    # Two volumes that drift alike differ by a product.
    true = 100 * ((1 + (change + 5) / 100) / 1.05 - 1) if metric == "volume" and compared else change
    held = 0
    for _ in range(RUNS):
        found = effect(kind, samples_of(draw, random, change, compared=compared))
        held += found.low <= true <= found.high
    # Three standard errors of the simulation are 1.5 points; Newcombe's intervals tend to hold a little more.
    assert 0.935 <= held / RUNS <= 0.975, held / RUNS


@pytest.mark.parametrize("compared", [False, True])
@pytest.mark.parametrize(("metric", "draw", "change"), DRAWS)
def test_nothing_is_seldom_taken_for_something_and_something_seldom_for_nothing(
    metric: str, draw: Draw, change: float, *, compared: bool
) -> None:
    random = np.random.default_rng(11)
    verdicts = [assess(target(metric), samples_of(draw, random, 0, compared=compared)).verdict for _ in range(RUNS)]
    wrong = sum(each is not V.NO_EVIDENCE for each in verdicts) / RUNS
    assert wrong <= 0.065, wrong
    better = change if MEASURES[metric].more_is_better else -change
    if metric == "pain_share":
        better = -7.0
    seen = [assess(target(metric), samples_of(draw, random, better, compared=compared)).verdict for _ in range(200)]
    # Taking off another change, as uncertain, costs power.
    assert seen.count(V.HELPED) > (0.2 if compared else 0.5) * len(seen)
    assert V.GOT_WORSE not in seen


def test_all_looks_together_seldom_raise_a_false_alarm() -> None:
    random = np.random.default_rng(3)
    alarms = 0
    for _ in range(400):
        verified = assess(target("csat"), Samples(csat(random, -20), csat(random, 0)))
        if verified.effect is not None:
            looks = (Samples(ImpactSample(), csat(random, 0)) for _ in range(WATCHED_WEEKS))
            alarms += any(fell(verified, look) is not None for look in looks)
    assert alarms / 400 <= FALSE_ALARM + 0.025


# -- customers who answer often ------------------------------------------------------------------------------------


def grouped(counts: np.ndarray, totals: np.ndarray, squares: float | None = None) -> ImpactSample:
    """Return the sample of customers who said so many things, which come to so much (percent, or points)."""
    count, total = int(counts.sum()), float(totals.sum())
    found = share(round(total / 100), count) if squares is None else moments(count, total, squares)
    sums = float((counts**2).sum()), float((counts * totals).sum()), float((totals**2).sum())
    return by_customer(found, Clusters(len(counts), *sums))


def sizes(random: np.random.Generator, customers: int) -> np.ndarray:
    # Most answer once or twice, a few twenty times and more.
    return np.minimum(1 + random.negative_binomial(0.5, 0.08, size=customers), 60)


def often_csat(random: np.random.Generator, change: float, customers: int) -> ImpactSample:
    counts, mean = sizes(random, customers), 0.6 + change / 100
    # Beta-binomial: the answers of one customer correlate by 1 / (2 + 1).
    own = random.beta(2 * mean, 2 * (1 - mean), size=customers)
    return grouped(counts, 100.0 * random.binomial(counts, own))


def often_nps(random: np.random.Generator, change: float, customers: int) -> ImpactSample:
    counts, more = sizes(random, customers), change / 200
    own = random.dirichlet([2 * (0.3 - more), 2 * 0.3, 2 * (0.4 + more)], size=customers)
    answers = random.multinomial(counts, own)
    return grouped(counts, 100.0 * (answers[:, 2] - answers[:, 0]), 1e4 * float((answers[:, 2] + answers[:, 0]).sum()))


@pytest.mark.parametrize("customers", [40, 150])
@pytest.mark.parametrize("compared", [False, True])
@pytest.mark.parametrize(("metric", "draw", "change"), [("csat", often_csat, 15.0), ("nps", often_nps, 20.0)])
def test_customers_who_answer_often_do_not_make_it_surer_than_it_is(
    metric: str,
    draw: Callable[[np.random.Generator, float, int], ImpactSample],
    change: float,
    customers: int,
    *,
    compared: bool,
) -> None:
    random = np.random.default_rng(19)
    kind = MEASURES[metric].kind
    held = naively = 0
    for _ in range(RUNS // 2):
        samples = samples_of(lambda r, c: draw(r, c, customers), random, change, compared=compared)
        found = effect(kind, samples)
        held += found.low <= change <= found.high
        found = effect(kind, Samples(*(replace(each, design_effect=0.0, customers=0) for each in _present(samples))))
        naively += found.low <= change <= found.high
    assert 0.925 <= held / (RUNS // 2) <= 0.975, held / (RUNS // 2)
    # As if every answer were another customer's.
    assert naively / (RUNS // 2) < 0.8


def _present(samples: Samples) -> list[ImpactSample]:
    all_of = (samples.before, samples.after, samples.comparison_before, samples.comparison_after)
    return [each for each in all_of if each is not None]


def test_who_answers_once_each_changes_nothing() -> None:
    plain, ones = share(60, 100), np.ones(100, dtype=int)
    told = grouped(ones, 100.0 * (np.arange(100) < 60))
    assert (told.customers, told.design_effect) == (100, 1.0)
    assert newcombe(plain, plain, 0.95) == newcombe(told, told, 0.95)


def test_customers_who_always_say_the_same_count_once() -> None:
    # 40 customers of whom each says one thing five times: as much as 40 answers are worth.
    told = grouped(np.full(40, 5), 500.0 * (np.arange(40) < 24))
    assert told.design_effect == pytest.approx(5 * 40 / 39, rel=0.03)
    assert grouped(np.full(40, 5), np.full(40, 500.0)).design_effect == 5.0


def test_few_customers_are_too_few_however_much_they_say() -> None:
    few = grouped(np.array([200, *[1] * 30]), np.array([10_000.0, *[0.0] * 30]))
    found = assess(target("csat"), Samples(few, few))
    assert found.statement == (
        "Too early to say: heard before from 31 customers, who count as 1.3 alike often, and it takes 8."
    )
    enough = grouped(np.full(10, 50), np.full(10, 2_500.0))
    assert "(n 500 of 10 customers)" in assess(target("csat"), Samples(enough, enough)).statement


# -- verdicts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metric", "before", "after", "verdict"),
    [
        ("csat", share(50, 100), share(80, 100), V.HELPED),
        ("csat", share(80, 100), share(50, 100), V.GOT_WORSE),
        ("csat", share(50, 100), share(52, 100), V.NO_EVIDENCE),
        ("csat", share(50, 100), share(29, 29), V.TOO_EARLY),
        ("csat", ImpactSample(), ImpactSample(), V.TOO_EARLY),
        ("bad_moments", share(50, 100), share(10, 100), V.HELPED),
        ("pain_share", share(10, 100), share(50, 100), V.GOT_WORSE),
        ("volume", daily([10, 12, 9, 11, 10, 8, 12]), daily([5, 6, 4, 5, 5, 6, 4]), V.HELPED),
        ("volume", daily([10] * 7), daily([0] * 7), V.TOO_EARLY),
        ("sentiment", moments(100, 0.0, 100.0), moments(100, 100.0, 100.0), V.HELPED),
    ],
)
def test_verdicts(metric: str, before: ImpactSample, after: ImpactSample, verdict: V) -> None:
    assert assess(target(metric), Samples(before, after)).verdict is verdict


def test_what_moves_everywhere_is_no_effect() -> None:
    alone = Samples(share(500, 1000), share(600, 1000))
    with_rest = Samples(alone.before, alone.after, share(500, 1000), share(600, 1000))
    assert assess(target("csat"), alone).verdict is V.HELPED
    found = assess(target("csat"), with_rest)
    assert (found.verdict, found.method) == (V.NO_EVIDENCE, ImpactMethod.DIFFERENCE_IN_DIFFERENCES)


def test_a_comparison_of_too_few_is_left_out() -> None:
    found = assess(target("csat"), Samples(share(50, 100), share(80, 100), share(2, 10), share(8, 10)))
    assert (found.verdict, found.method, found.comparison_before) == (V.HELPED, ImpactMethod.BEFORE_AFTER, None)


def test_the_statement_is_plain() -> None:
    found = assess(target("csat"), Samples(share(50, 100), share(80, 100)))
    assert found.statement == (
        "CSAT at delivery went from 50.00 (n 100) to 80.00 (n 100), +30.00 percentage points"
        " (95% interval +16.91 to +41.70): it helped."
    )
    early = assess(target("csat"), Samples(share(5, 10), share(80, 100)))
    assert early.statement == "Too early to say: 10 heard before, and it takes 30."
    assert early.effect is None
    told = assess(target("csat"), Samples(share(50, 100), share(80, 100)), too_early="it is not done yet")
    assert told.statement == "Too early to say: it is not done yet."


def test_a_fall_is_told_against_what_was_verified() -> None:
    verified = assess(target("csat"), Samples(share(50, 100), share(80, 100)))
    assert fell(verified, Samples(ImpactSample(), share(78, 100))) is None
    assert fell(verified, Samples(ImpactSample(), share(9, 20))) is None
    found = fell(verified, Samples(ImpactSample(), share(50, 100)))
    assert found is not None
    assert found.verdict is V.GOT_WORSE
    assert found.before == verified.after
    assert fell(Impact(), Samples(ImpactSample(), share(50, 100))) is None
    # Everything fell: that is not because of what was verified.
    compared = assess(target("csat"), Samples(share(50, 100), share(80, 100), share(50, 100), share(52, 100)))
    assert fell(compared, Samples(ImpactSample(), share(50, 100), ImpactSample(), share(20, 100))) is None


def test_the_effect_is_also_told_in_deviations() -> None:
    found = effect(Kind.SCORE, Samples(moments(50, 0.0, 49.0), moments(50, 50.0, 99.0)))
    assert found.standardized == pytest.approx(1.0)
    assert math.isfinite(effect(Kind.SCORE, Samples(moments(50, 0, 0), moments(50, 0, 0))).standardized)


def test_what_got_worse_is_verified_only_on_purpose_and_a_repetition_stays_one() -> None:
    opened = ActionOpened(action_id="i", kind=ActionKind.IMPROVEMENT, request_id="1", occurred_at=NOW)
    state = evolve(Action(), opened)
    for event in (
        ActionAccepted(action_id="i", owner="maja", request_id="2", occurred_at=NOW),
        ActionStarted(action_id="i", request_id="3", occurred_at=NOW),
        ActionCompleted(action_id="i", request_id="4", occurred_at=NOW),
    ):
        state = evolve(state, event)
    worse = assess(target("csat"), Samples(share(80, 100), share(50, 100)))
    asked: dict[str, Any] = {"action_id": "i", "actor": "maja", "reason": "seen", "request_id": "5", "occurred_at": NOW}
    with pytest.raises(RefusedError) as caught:
        decide(VerifyAction(**asked, impact=worse), state)
    assert caught.value.reason == "GOT_WORSE"
    assert "despite" in caught.value.message
    (done,) = decide(VerifyAction(**asked, impact=worse, despite_impact=True), state)
    assert isinstance(done, ActionVerified)
    assert done.impact == worse
    # Whatever is measured when it is asked for again.
    assert decide(VerifyAction(**asked, impact=worse), evolve(state, done)) == []
    assert decide(VerifyAction(**asked), evolve(state, done)) == []
