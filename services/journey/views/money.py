"""What customers spend."""

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal

import numpy as np
from numpy.typing import NDArray

from services.journey.domain.history import DAY_US, History
from services.journey.views.projection import AMOUNT_UNITS, currency_code

YEAR_US = 365 * DAY_US


@dataclass(frozen=True, slots=True)
class Amount:
    """`amount` is decimal, such as `129.90`."""

    currency_code: str
    amount: str


@dataclass(frozen=True, slots=True)
class ShareOfWallet:
    """Part of what a customer spends in the category that they spend with us, 0 to 1."""

    share: float
    with_us: Amount
    in_category: Amount


def amount(currency: int, units: int) -> Amount:
    """Return an amount from the columns: refunds make it smaller."""
    value = Decimal(units) / AMOUNT_UNITS
    return Amount(currency_code(currency), f"{value:.2f}" if units % 100 == 0 else f"{value:.4f}")


def spent(history: History, *, since: int, until: int) -> Mapping[int, NDArray[np.int64]]:
    """Return, for each currency by its number in the rows, what each customer spent after `since` and up to `until`."""
    table = history.interactions
    paid = np.flatnonzero((table.currency > 0) & (table.occurred > since) & (table.occurred <= until))
    currency, customer, units = table.currency[paid], history.customer[paid], table.amount[paid]
    totals = {}
    for each in np.unique(currency).tolist():
        total = np.zeros(len(history.owners), np.int64)
        np.add.at(total, customer[currency == each], units[currency == each])
        totals[each] = total
    return totals


def share_of_wallet(history: History, moment: int) -> ShareOfWallet | None:
    """Return the share of wallet of a history of one customer at `moment`; None while it cannot be told.

    Share of wallet is what a customer spends with a company by what they spend in its category (T. L. Keiningham,
    L. Aksoy, A. Buoye and B. Cooil, "Customer Loyalty Isn't Enough. Grow Your Share of Wallet", Harvard Business
    Review, October 2011). Both are of 365 days; the second is what the customer, or a survey of them, told last.
    """
    told: dict[str, str] = {}
    profiles = history.interactions.profile
    for row in np.flatnonzero(profiles).tolist():
        told |= history.vocabulary.profiles[profiles[row]]
    try:
        category = int(Decimal(told["category_spend"]) * AMOUNT_UNITS)
    except (KeyError, ArithmeticError, ValueError):
        return None
    currency = told.get("category_currency", "")
    for number, total in spent(history, since=moment - YEAR_US, until=moment).items():
        if currency_code(number) == currency and 0 <= int(total[0]) <= category:
            return ShareOfWallet(
                int(total[0]) / max(category, 1), amount(number, int(total[0])), amount(number, category)
            )
    return None
