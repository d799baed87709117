"""Whether an improvement helped: the change of its measure, how sure that is, and what can be said of it.

Before and after are two samples. Where there is a comparison, its own change is taken off: difference in differences
(J. D. Angrist and J.-S. Pischke, "Mostly Harmless Econometrics", 2009, chapter 5), which is right as far as both would
have gone the same way without the improvement. Intervals:

- shares: R. G. Newcombe, "Interval estimation for the difference between independent proportions", Statistics in
  Medicine 17 (1998), method 10; two such differences are put together as by G. Y. Zou and A. Donner, "Construction of
  confidence limits about effect measures", Statistics in Medicine 27 (2008), which keeps them unsymmetrical;
- means: B. L. Welch, "The generalization of 'Student's' problem when several different population variances are
  involved", Biometrika 34 (1947), over two or four samples;
- volumes: the same of the logarithm of the daily mean, whose variance is s²/(n·mean²) (delta method), so that a change
  is a percentage and a small touchpoint can be compared with a large one.

Answers of one customer are alike, so customers, not answers, are taken as independent of each other. The variance of a
mean is that of a ratio of sums over customers, linearised (K.-Y. Liang and S. L. Zeger, "Longitudinal data analysis
using generalized linear models", Biometrika 73, 1986; A. C. Cameron and D. L. Miller, "A practitioner's guide to
cluster-robust inference", Journal of Human Resources 50, 2015); by how much it is larger than without that is the
design effect. The methods above then take as many observations as would be worth the same (J. N. K. Rao and A. J.
Scott, "A simple method for the analysis of clustered binary data", Biometrics 48, 1992), with the degrees of freedom of
the customers (E. L. Korn and B. I. Graubard, "Confidence intervals for proportions with small expected number of
positive counts estimated from survey data", Survey Methodology 24, 1998). Where some answer much more often than
others, they count as fewer (A. V. Carter, K. T. Schnepel and D. G. Steigerwald, "Asymptotic behavior of a t-test robust
to cluster heterogeneity", Review of Economics and Statistics 99, 2017). That the same customers may be heard before and
after is not used: it makes intervals wider than they need be.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from statistics import NormalDist

from msgspec.structs import replace

from recorrido.actions.v1.events import Impact, ImpactEffect, ImpactMethod, ImpactSample, ImpactVerdict, Target
from services.foundation.intervals import wilson

CONFIDENCE = 0.95
#: With fewer than these in any sample nothing is said: it is the usual bound for the normal approximation of means.
MIN_COUNT = 30
#: With fewer customers, as they count, their variance cannot be told.
MIN_CUSTOMERS = 8
#: Of a volume, days: a week before and a week after.
MIN_DAYS = 7
#: A verified improvement is looked at each week for so long, and shares the chance of a false alarm among the looks.
WATCHED_WEEKS = 12
FALSE_ALARM = 0.05


class Kind(Enum):
    """What a measure is made of."""

    SHARE = "percentage points"
    POINTS = "points"
    SCORE = "score"
    VOLUME = "percent"


@dataclass(frozen=True, slots=True)
class Measure:
    """A measure: its name for people, its kind, and whether more of it is better."""

    label: str
    kind: Kind
    more_is_better: bool


MEASURES = {
    "nps": Measure("NPS", Kind.POINTS, more_is_better=True),
    "csat": Measure("CSAT", Kind.SHARE, more_is_better=True),
    "ces": Measure("CES", Kind.SHARE, more_is_better=True),
    "sentiment": Measure("Sentiment", Kind.SCORE, more_is_better=True),
    "bad_moments": Measure("The share of bad moments", Kind.SHARE, more_is_better=False),
    "pain_share": Measure("The share of pain points", Kind.SHARE, more_is_better=False),
    "volume": Measure("The volume", Kind.VOLUME, more_is_better=False),
}


@dataclass(frozen=True, slots=True)
class Samples:
    """What was measured. Of a comparison there are both samples, or none."""

    before: ImpactSample
    after: ImpactSample
    comparison_before: ImpactSample | None = None
    comparison_after: ImpactSample | None = None


@dataclass(frozen=True, slots=True)
class _Estimate:
    value: float
    low: float
    high: float


def share(hits: int, count: int) -> ImpactSample:
    """Return the sample of a share, in percent."""
    if count == 0:
        return ImpactSample()
    part = min(hits / count, 1.0)
    return ImpactSample(count=count, mean=100 * part, variance=_corrected(1e4 * part * (1 - part), count))


def moments(count: int, total: float, squares: float) -> ImpactSample:
    """Return the sample of which the values' sum and the sum of their squares are known."""
    if count == 0:
        return ImpactSample()
    mean = total / count
    return ImpactSample(count=count, mean=mean, variance=_corrected(max(0.0, squares / count - mean * mean), count))


@dataclass(frozen=True, slots=True)
class Clusters:
    """What was heard by customer, each of whom said n things that come to s in the unit of the mean."""

    customers: int
    #: The sums over all customers of n², n·s and s².
    counts_squared: float
    products: float
    values_squared: float


def by_customer(sample: ImpactSample, clusters: Clusters) -> ImpactSample:
    """Return the sample with what its customers' answers being alike does to its variance."""
    count, mean, customers = sample.count, sample.mean, clusters.customers
    if count == 0 or customers == 0:
        return sample
    alone = sample.variance * count
    if customers == count:
        effect_ = 1.0
    elif customers == 1 or alone <= 0:
        # Nothing differs, so nothing tells how alike they are: as if each always said the same.
        effect_ = clusters.counts_squared / count
    else:
        squares = clusters.values_squared - 2 * mean * clusters.products + mean * mean * clusters.counts_squared
        effect_ = max(1.0, customers / (customers - 1) * squares / alone)
    effective = count * count / clusters.counts_squared
    return replace(sample, customers=customers, design_effect=effect_, effective_customers=effective)


def _worth(sample: ImpactSample, confidence: float) -> float:
    """Return as how many observations of as many customers the sample counts."""
    count = sample.count / (sample.design_effect or 1.0)
    if sample.customers in (0, sample.count):
        return count
    p = (1 + confidence) / 2
    return count * (NormalDist().inv_cdf(p) / student_quantile(p, sample.effective_customers - 1)) ** 2


def _corrected(variance: float, count: int) -> float:
    return variance * count / (count - 1) if count > 1 else 0.0


# -- intervals -----------------------------------------------------------------------------------------------------


def student_quantile(p: float, degrees: float) -> float:
    """Return the quantile of Student's t for `degrees` of freedom, 7 or more.

    The expansion of M. Abramowitz and I. A. Stegun, "Handbook of Mathematical Functions", 1964, 26.7.5; its error is
    below 0.001 there.
    """
    z = NormalDist().inv_cdf(p)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / degrees**power for power, term in enumerate(terms, 1))


def newcombe(before: ImpactSample, after: ImpactSample, confidence: float) -> tuple[float, float, float]:
    """Return the difference of two shares, after less before, and its interval, in percentage points."""
    p1, p0 = after.mean / 100, before.mean / 100
    n1, n0 = _worth(after, confidence), _worth(before, confidence)
    (l1, u1), (l0, u0) = wilson(p1 * n1, n1, confidence), wilson(p0 * n0, n0, confidence)
    difference = p1 - p0
    low = difference - math.hypot(p1 - l1, u0 - p0)
    high = difference + math.hypot(u1 - p1, p0 - l0)
    return 100 * difference, 100 * low, 100 * high


def _shares(samples: Samples, confidence: float) -> _Estimate:
    d, low, high = newcombe(samples.before, samples.after, confidence)
    if samples.comparison_before is None or samples.comparison_after is None:
        return _Estimate(d, low, high)
    c, c_low, c_high = newcombe(samples.comparison_before, samples.comparison_after, confidence)
    value = d - c
    return _Estimate(value, value - math.hypot(d - low, c_high - c), value + math.hypot(high - d, c - c_low))


def _means(samples: Samples, confidence: float) -> _Estimate:
    signed = [(1, samples.after), (-1, samples.before)]
    if samples.comparison_before is not None and samples.comparison_after is not None:
        signed += [(-1, samples.comparison_after), (1, samples.comparison_before)]
    value = sum(sign * sample.mean for sign, sample in signed)
    errors = [
        (sample.variance / sample.count * (sample.design_effect or 1.0), sample.effective_customers or sample.count)
        for _, sample in signed
    ]
    total = sum(error for error, _ in errors)
    if total == 0:
        return _Estimate(value, value, value)
    # Satterthwaite's degrees of freedom, for as many samples as there are.
    degrees = total**2 / sum(error**2 / (count - 1) for error, count in errors)
    half = student_quantile((1 + confidence) / 2, degrees) * math.sqrt(total)
    return _Estimate(value, value - half, value + half)


def _logarithm(sample: ImpactSample | None) -> ImpactSample | None:
    if sample is None:
        return None
    return ImpactSample(
        count=sample.count, mean=math.log(sample.mean), variance=sample.variance / (sample.mean * sample.mean)
    )


def _volumes(samples: Samples, confidence: float) -> _Estimate:
    before, after = _logarithm(samples.before), _logarithm(samples.after)
    assert before is not None
    assert after is not None
    comparison = _logarithm(samples.comparison_before), _logarithm(samples.comparison_after)
    found = _means(Samples(before, after, *comparison), confidence)
    return _Estimate(*(100 * math.expm1(each) for each in (found.value, found.low, found.high)))


def effect(kind: Kind, samples: Samples, confidence: float = CONFIDENCE) -> ImpactEffect:
    """Return the change, after less before (and less that of the comparison), with its interval.

    The samples must be as large as `enough` asks. In standard deviations it is Cohen's d with the pooled deviation of
    before and after (J. Cohen, "Statistical Power Analysis for the Behavioral Sciences", 2nd ed., 1988, chapter 2); of
    a volume, of the logarithm.
    """
    find = {Kind.SHARE: _shares, Kind.VOLUME: _volumes}.get(kind, _means)
    found = find(samples, confidence)
    before: ImpactSample | None = samples.before
    after: ImpactSample | None = samples.after
    value = found.value
    if kind is Kind.VOLUME:
        before, after, value = _logarithm(before), _logarithm(after), math.log1p(value / 100)
    assert before is not None
    assert after is not None
    deviation = math.sqrt(
        ((before.count - 1) * before.variance + (after.count - 1) * after.variance) / (before.count + after.count - 2)
    )
    standardized = value / deviation if deviation else 0.0
    return ImpactEffect(
        value=found.value, low=found.low, high=found.high, confidence=confidence, standardized=standardized
    )


def enough(kind: Kind, sample: ImpactSample | None) -> bool:
    """Return whether a sample is large enough to say something by it."""
    if sample is None:
        return False
    if kind is Kind.VOLUME:
        return sample.count >= MIN_DAYS and sample.mean > 0
    return sample.count >= MIN_COUNT and (sample.customers == 0 or sample.effective_customers >= MIN_CUSTOMERS)


# -- verdicts ------------------------------------------------------------------------------------------------------


def assess(target: Target, samples: Samples, *, too_early: str = "") -> Impact:
    """Return what can be said. `too_early` tells why nothing can yet, apart from too small samples.

    A comparison that is too small is left out, rather than to blur what is known.
    """
    measure = MEASURES[target.metric]
    kind = measure.kind
    if not (enough(kind, samples.comparison_before) and enough(kind, samples.comparison_after)):
        samples = Samples(samples.before, samples.after)
    compared = samples.comparison_before is not None
    why = too_early or _too_few(kind, samples)
    found = None if why else effect(kind, samples)
    verdict = ImpactVerdict.TOO_EARLY if found is None else _verdict(measure, found)
    return Impact(
        target=target,
        verdict=verdict,
        statement=_statement(target, samples, verdict, found, why),
        unit=kind.value,
        method=ImpactMethod.DIFFERENCE_IN_DIFFERENCES if compared else ImpactMethod.BEFORE_AFTER,
        effect=found,
        before=samples.before,
        after=samples.after,
        comparison_before=samples.comparison_before,
        comparison_after=samples.comparison_after,
    )


def _too_few(kind: Kind, samples: Samples) -> str:
    for when, sample in (("before", samples.before), ("after", samples.after)):
        if not enough(kind, sample):
            if kind is not Kind.VOLUME and sample.count >= MIN_COUNT:
                worth = f"{sample.customers} customers, who count as {sample.effective_customers:.1f} alike often"
                return f"heard {when} from {worth}, and it takes {MIN_CUSTOMERS}"
            least = f"{MIN_DAYS} days with any" if kind is Kind.VOLUME else f"{MIN_COUNT}"
            return f"{sample.count:,} heard {when}, and it takes {least}"
    return ""


def _verdict(measure: Measure, found: ImpactEffect) -> ImpactVerdict:
    if found.low <= 0 <= found.high:
        return ImpactVerdict.NO_EVIDENCE
    return ImpactVerdict.HELPED if (found.low > 0) is measure.more_is_better else ImpactVerdict.GOT_WORSE


def _statement(target: Target, samples: Samples, verdict: ImpactVerdict, found: ImpactEffect | None, why: str) -> str:
    measure = MEASURES[target.metric]
    where = f" at {target.touchpoint}" if target.touchpoint else ""
    about = f" about {target.need_path}" if target.need_path else ""
    told = [f"{sample.mean:.2f} ({_size(measure, sample)})" for sample in (samples.before, samples.after)]
    text = f"{measure.label}{where}{about} went from {told[0]} to {told[1]}"
    if found is None:
        return f"Too early to say: {why}."
    unit = {Kind.SHARE: " percentage points", Kind.VOLUME: " %"}.get(measure.kind, "")
    against = " against the change elsewhere" if samples.comparison_before is not None else ""
    interval = f"{found.confidence:.0%} interval {found.low:+.2f} to {found.high:+.2f}"
    said = {
        ImpactVerdict.HELPED: "it helped",
        ImpactVerdict.GOT_WORSE: "it got worse",
    }.get(verdict, "no evidence that anything changed")
    return f"{text}, {found.value:+.2f}{unit}{against} ({interval}): {said}."


def _size(measure: Measure, sample: ImpactSample) -> str:
    if measure.kind is Kind.VOLUME:
        return f"{sample.count:,} days"
    return f"n {sample.count:,}" + (f" of {sample.customers:,} customers" if sample.customers else "")


# -- falls after the verification ----------------------------------------------------------------------------------


def fell(verified: Impact, now: Samples) -> Impact | None:
    """Return the change since the verification where it is a fall, beyond chance; None where it is none.

    `now` has what is measured now as `after`. There are WATCHED_WEEKS looks, each at the FALSE_ALARM's part of it, one
    side only, so that all of them together raise a false alarm as seldom (O. J. Dunn, "Multiple comparisons among
    means", J. Am. Stat. Assoc. 56, 1961). The change elsewhere is taken off where it was known then and is now.
    """
    target = verified.target
    if target is None or verified.after is None or verified.effect is None:
        return None
    measure = MEASURES[target.metric]
    samples = Samples(verified.after, now.after, verified.comparison_after, now.comparison_after)
    if not (enough(measure.kind, samples.comparison_before) and enough(measure.kind, samples.comparison_after)):
        samples = Samples(verified.after, now.after)
    if _too_few(measure.kind, samples):
        return None
    found = effect(measure.kind, samples, 1 - 2 * FALSE_ALARM / WATCHED_WEEKS)
    if _verdict(measure, found) is not ImpactVerdict.GOT_WORSE:
        return None
    return Impact(
        target=target,
        verdict=ImpactVerdict.GOT_WORSE,
        statement=_statement(target, samples, ImpactVerdict.GOT_WORSE, found, ""),
        unit=measure.kind.value,
        method=verified.method if samples.comparison_before else ImpactMethod.BEFORE_AFTER,
        effect=found,
        before=samples.before,
        after=samples.after,
        comparison_before=samples.comparison_before,
        comparison_after=samples.comparison_after,
        comparison_touchpoints=verified.comparison_touchpoints,
    )


def daily(counts: Sequence[int]) -> ImpactSample:
    """Return the sample of a volume: how many there were on each day."""
    return moments(len(counts), sum(counts), sum(each * each for each in counts))
