"""The score interval of a share, which every service that counts tells in the same way."""

import math
from statistics import NormalDist


def wilson(successes: float, trials: float, confidence: float = 0.95) -> tuple[float, float]:
    """Return the bounds of a share, each 0 to 1; 0 and 1 without trials.

    E. B. Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", Journal of the American
    Statistical Association 22 (1927), 209-212; good for small counts too (L. D. Brown, T. T. Cai and A. DasGupta,
    "Interval Estimation for a Binomial Proportion", Statistical Science 16, 2001).
    """
    if not trials:
        return 0.0, 1.0
    z, share = NormalDist().inv_cdf((1 + confidence) / 2), successes / trials
    centre = share + z * z / (2 * trials)
    half = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)
