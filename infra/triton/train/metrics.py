"""Quality measures, in numpy: a definition per function, none taken on trust."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def macro_f1(truth: Sequence[str], guess: Sequence[str]) -> float:
    """Unweighted mean of the F1 of each label that occurs in the truth."""
    actual, predicted = np.asarray(truth), np.asarray(guess)
    scores = []
    for label in np.unique(actual):
        hits = np.sum((actual == label) & (predicted == label))
        scores.append(2 * hits / (np.sum(actual == label) + np.sum(predicted == label)))
    return float(np.mean(scores))


def f1(truth: Sequence[bool], guess: Sequence[bool]) -> float:
    """F1 of the true class."""
    actual, predicted = np.asarray(truth, dtype=bool), np.asarray(guess, dtype=bool)
    return float(2 * np.sum(actual & predicted) / max(actual.sum() + predicted.sum(), 1))


def accuracy(truth: Sequence[str], guess: Sequence[str]) -> float:
    """Share of equal labels."""
    return float(np.mean(np.asarray(truth) == np.asarray(guess)))


def expected_calibration_error(confidence: NDArray[np.float64], correct: NDArray[np.bool_], bins: int = 10) -> float:
    """Mean gap between confidence and accuracy over bins of equal width, weighted by size (Guo et al. 2017)."""
    which = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = [
        np.sum(which == index) * abs(confidence[which == index].mean() - correct[which == index].mean())
        for index in np.unique(which)
    ]
    return float(np.sum(gaps) / len(confidence))
