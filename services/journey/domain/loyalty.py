"""The loyalty ladder: at risk, satisfied, loyal, advocate.

The ladder of relationship marketing (A. Payne, M. Christopher, M. Clark and H. Peck, "Relationship Marketing for
Competitive Advantage", 1995), with the levels that a customer's own answers and deeds can prove. Which level a customer
is on is decided by the rules of the map, from what happened to them within a window before a time.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recorrido.journey.v1.events import LoyaltyLevel, LoyaltyRule, LoyaltyRules
from services.journey.domain.history import DAY_US, Flags, History, Ints, Told

DEFAULT_WINDOW_DAYS = 365

#: Where a map has none: who is hurt and was not made good is at risk, who recommends in deed is an advocate, promoters
#: and those who come again and again are loyal, passives and the content are satisfied.
DEFAULT_RULES = LoyaltyRules(
    rules=(
        LoyaltyRule(level=LoyaltyLevel.AT_RISK, open_bad_moments_at_least=1),
        LoyaltyRule(level=LoyaltyLevel.AT_RISK, nps_at_most=6),
        LoyaltyRule(level=LoyaltyLevel.ADVOCATE, referrals_at_least=1),
        LoyaltyRule(level=LoyaltyLevel.LOYAL, nps_at_least=9),
        LoyaltyRule(level=LoyaltyLevel.LOYAL, csat_at_least=4, purchases_at_least=3),
        LoyaltyRule(level=LoyaltyLevel.SATISFIED, nps_at_least=7),
        LoyaltyRule(level=LoyaltyLevel.SATISFIED, csat_at_least=4),
    )
)


@dataclass(frozen=True)
class Standing:
    """What the rules ask, for each customer by number. Answers are -1 where there is none.

    `known`: whether anything had happened to them. `nps_row`, `csat_row`, `seen_row`: which interaction told it.
    """

    known: Flags
    nps: NDArray[np.int8]
    csat: NDArray[np.int8]
    nps_row: Ints
    csat_row: Ints
    open_bad_moments: Ints
    purchases: Ints
    referrals: Ints
    inactive_days: NDArray[np.float64]
    open_bad: Ints
    purchased: Ints
    referred: Ints


def rules_of(rules: LoyaltyRules | None) -> LoyaltyRules:
    return rules if rules is not None and rules.rules else DEFAULT_RULES


def standing(history: History, rules: LoyaltyRules, moment: int) -> Standing:
    """Return how customers stood at `moment` (microseconds), by what happened up to it and within the window."""
    window = (rules.window_days or DEFAULT_WINDOW_DAYS) * DAY_US
    start, end = (int(n) for n in np.searchsorted(history.times, [moment - window, moment], side="right"))
    customers = len(history.owners)
    told = {name: each.between(start, end) for name, each in history.told.items()}

    def latest(name: str, column: NDArray[np.int8]) -> tuple[NDArray[np.int8], Ints]:
        row = np.full(customers, -1, np.int64)
        # Of several of a customer the last one assigned stays: that is the latest.
        row[told[name].customer] = told[name].row
        answer = np.full(customers, -1, np.int8)
        answer[row >= 0] = column[row[row >= 0]]
        return answer, row

    def of_each(several: Told) -> Ints:
        return np.bincount(several.customer, minlength=customers)

    last_glad = np.full(customers, -1, np.int64)
    last_glad[told["glad"].customer] = told["glad"].rank
    bad = told["bad"]
    still_open = bad.rank > last_glad[bad.customer]
    last_seen = np.full(customers, moment, np.int64)
    if any(rule.inactive_days_at_least is not None for rule in rules.rules):
        last_seen[history.customer[history.by_time[:end]]] = history.times[:end]
    nps, nps_row = latest("nps", history.interactions.nps)
    csat, csat_row = latest("csat", history.interactions.csat)
    return Standing(
        known=history.first_seen <= moment,
        nps=nps,
        csat=csat,
        nps_row=nps_row,
        csat_row=csat_row,
        open_bad_moments=np.bincount(bad.customer[still_open], minlength=customers),
        purchases=of_each(told["purchase"]),
        referrals=of_each(told["referral"]),
        inactive_days=(moment - last_seen) / DAY_US,
        open_bad=bad.row[still_open],
        purchased=told["purchase"].row,
        referred=told["referral"].row,
    )


def levels(at: Standing, rules: LoyaltyRules) -> tuple[NDArray[np.int8], NDArray[np.int16]]:
    """Return the level (number of the contract) of each customer, and the number of the rule that decided, from 1.

    0 of both where no rule holds, or nothing is known of the customer.
    """
    level = np.zeros(len(at.known), np.int8)
    decided = np.zeros(len(at.known), np.int16)
    for number, rule in enumerate(rules.rules, 1):
        here = at.known & (decided == 0)
        for holds in _conditions(at, rule):
            here &= holds
        level[here] = rule.level.number
        decided[here] = number
    return level, decided


def _conditions(at: Standing, rule: LoyaltyRule) -> list[Flags]:
    asked: list[tuple[float | None, NDArray[np.generic], int]] = [
        (rule.nps_at_least, at.nps, 1),
        (rule.nps_at_most, at.nps, -1),
        (rule.csat_at_least, at.csat, 1),
        (rule.csat_at_most, at.csat, -1),
        (rule.open_bad_moments_at_least, at.open_bad_moments, 1),
        (rule.purchases_at_least, at.purchases, 1),
        (rule.referrals_at_least, at.referrals, 1),
        (rule.inactive_days_at_least, at.inactive_days, 1),
    ]
    found = []
    for bound, column, sign in asked:
        if bound is not None:
            values = column.astype(np.float64)
            answered = values >= 0
            found.append(answered & (values >= bound if sign > 0 else values <= bound))
    return found


@dataclass(frozen=True, slots=True)
class Loyalty:
    """A customer's level, and what makes it so. `rule` is the number of the rule that decided, from 1; 0: none did."""

    level: LoyaltyLevel
    rule: int
    reasons: tuple[str, ...]
    rows: tuple[int, ...]


def loyalty(history: History, rules: LoyaltyRules, moment: int) -> Loyalty:
    """Return where the one customer stands whose history this is."""
    customer = 0
    at = standing(history, rules, moment)
    level, decided = levels(at, rules)
    number = int(decided[customer])
    if number == 0:
        return Loyalty(LoyaltyLevel.UNSPECIFIED, 0, (), ())
    rule = rules.rules[number - 1]
    reasons: list[str] = []
    evidence: list[int] = []

    def because(asked: Sequence[float | None], reason: str, found: Sequence[int]) -> None:
        if any(bound is not None for bound in asked):
            reasons.append(reason)
            evidence.extend(int(row) for row in found)

    because([rule.nps_at_least, rule.nps_at_most], f"NPS {at.nps[customer]} of 10", [at.nps_row[customer]])
    because([rule.csat_at_least, rule.csat_at_most], f"CSAT {at.csat[customer]} of 5", [at.csat_row[customer]])
    because(
        [rule.open_bad_moments_at_least],
        f"{_times(int(at.open_bad_moments[customer]), 'bad moment')} since the last glad one",
        at.open_bad.tolist(),
    )
    because([rule.purchases_at_least], _times(int(at.purchases[customer]), "purchase"), at.purchased.tolist())
    because([rule.referrals_at_least], _times(int(at.referrals[customer]), "recommendation"), at.referred.tolist())
    because(
        [rule.inactive_days_at_least],
        f"not seen for {at.inactive_days[customer]:.0f} days",
        history.by_time[-1:].tolist(),
    )
    return Loyalty(LoyaltyLevel.from_number(int(level[customer])), number, tuple(reasons), tuple(evidence))


def _times(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
