"""Impact: published figures, and simulations of coverage, false alarms and power (seeded)."""

import math
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
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
    Kind,
    Samples,
    assess,
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


@pytest.mark.parametrize("degrees", [10, 11.5, 29, 58, 400])
@pytest.mark.parametrize("p", [0.9, 0.975, 0.995, 1 - FALSE_ALARM / WATCHED_WEEKS])
def test_quantiles_of_student(p: float, degrees: float) -> None:
    assert student_quantile(p, degrees) == pytest.approx(stats.t.ppf(p, degrees), abs=0.0005)


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
