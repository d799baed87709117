"""Whose words may be shown to others as an example of what customers say."""

from enum import StrEnum

import numpy as np

from services.journey.domain.history import Flags, History

#: What interactions tell in "customer.may_quote": whether the customer permits it. What was told last counts.
ATTRIBUTE = "may_quote"
_ANSWERS = {"yes": 1, "true": 1, "no": -1, "false": -1}


class Quoting(StrEnum):
    """What permission it takes."""

    UNLESS_REFUSED = "unless_refused"
    IF_PERMITTED = "if_permitted"
    NEVER = "never"


def quotable(history: History, quoting: Quoting) -> Flags:
    """Return, for each number of a customer id, whether what was said under it may be shown.

    An answer that is neither yes nor no permits nothing and refuses nothing.
    """
    told = [_ANSWERS.get(profile.get(ATTRIBUTE, "").strip().lower(), 0) for profile in history.vocabulary.profiles]
    answers = np.array(told, np.int8)[history.interactions.profile]
    rows = np.flatnonzero(answers)
    latest = np.zeros(len(history.owners), np.int8)
    latest[history.customer[rows]] = answers[rows]
    match quoting:
        case Quoting.UNLESS_REFUSED:
            may = latest >= 0
        case Quoting.IF_PERMITTED:
            may = latest > 0
        case Quoting.NEVER:
            may = np.zeros(len(latest), bool)
    return may[history.owners]
