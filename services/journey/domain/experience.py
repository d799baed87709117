"""How a journey felt: its moments, and the impression that lasts."""

from dataclasses import dataclass

import numpy as np

from services.journey.domain.history import Floats, Ints


@dataclass(frozen=True, slots=True)
class Experience:
    """Rows of the interactions that tell, in the order in which they happened; values are -1 to 1.

    `lasting_impression` is the mean of peak and end, `mean` that of all moments; None where nothing tells.
    """

    rows: tuple[int, ...]
    peak: int | None
    end: int | None
    lasting_impression: float | None
    mean: float | None


def experience(felt: Floats, rows: Ints) -> Experience:
    """Return the experience of interactions `rows`, in the order in which they happened; `felt` NaN tells nothing.

    People remember an experience by its most intense moment and its end, not by its length or its mean: D. Kahneman,
    B. L. Fredrickson, C. A. Schreiber and D. A. Redelmeier, "When More Pain Is Preferred to Less: Adding a Better End",
    Psychological Science 4, 1993. The peak is the moment farthest from neutral; of two alike the later one.
    """
    telling = rows[~np.isnan(felt[rows])]
    if not len(telling):
        return Experience((), None, None, None, None)
    values = felt[telling]
    peak = len(values) - 1 - int(np.argmax(np.abs(values[::-1])))
    lasting = float(values[peak] + values[-1]) / 2
    return Experience(tuple(telling.tolist()), int(telling[peak]), int(telling[-1]), lasting, float(values.mean()))
