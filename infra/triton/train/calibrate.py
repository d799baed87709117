"""How sure the model may say it is, and below what it had better say nothing: set on rows it was not trained on."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infra.triton.taxonomy import Taxonomy
from infra.triton.train import heads, linear
from infra.triton.train.corpus import Verbatim

#: Share of right answers wanted among those that are told, by head; of needs by level.
WANTED = {
    "language": 0.98,
    "sentiment": 0.9,
    "point": 0.9,
    "emotion": 0.75,
    "intent": 0.85,
    "effort": 0.9,
    "urgency": 0.95,
}
#: No language is told that is not likelier than all others together: there are many more than the model knows.
FLOOR = {"language": 0.5}
WANTED_NEEDS = (0.85, 0.8, 0.75)
#: A threshold leaves at least this share of the answers told: few calibration rows must not silence a head.
TOLD = 0.4
_GRID = np.arange(0.0, 0.96, 0.02)


def temperatures(
    logits: dict[str, NDArray[np.float64]], rows: Sequence[Verbatim], taxonomy: Taxonomy
) -> dict[str, float]:
    """What to divide each head's logits by so that probabilities are honest (Guo et al. 2017, arXiv:1706.04599)."""
    result = {}
    for name, values in logits.items():
        said = heads.said(name, rows)
        allowed = heads.allowed(name, rows, taxonomy)
        result[name] = 1 / linear.temperature(values[said], allowed[said])
    return result


def thresholds(
    probability: dict[str, NDArray[np.float64]], rows: Sequence[Verbatim], taxonomy: Taxonomy
) -> dict[str, Any]:
    """Per head the least probability that is told; of needs, per level, below a node that was told."""
    result: dict[str, Any] = {}
    for name, values in probability.items():
        if name == heads.NEED:
            continue
        said = heads.said(name, rows)
        labels = heads.labels(name, taxonomy)
        correct = [labels[values[row].argmax()] == getattr(rows[row], name) for row in said]
        threshold = lowest(values[said].max(1), np.array(correct), WANTED[name])
        result[name] = max(threshold, FLOOR.get(name, 0.0))
    nodes = heads.labels(heads.NEED, taxonomy)
    depth = np.array([node.count("/") + 1 if node else 0 for node in nodes])
    levels = []
    for level, wanted in enumerate(WANTED_NEEDS, start=1):
        columns = np.flatnonzero((depth == level) | (depth == 0))
        known = np.array([row for row, each in enumerate(rows) if not each.need or each.need.count("/") + 1 >= level])
        likely = probability[heads.NEED][np.ix_(known, columns)]
        truth = ["/".join(rows[row].need.split("/")[:level]) for row in known]
        correct = np.array([nodes[columns[best]] for best in likely.argmax(1)]) == np.array(truth)
        levels.append(lowest(likely.max(1), correct, wanted))
    result[heads.NEED] = levels
    return result


def lowest(confidence: NDArray[np.float64], correct: NDArray[np.bool_], wanted: float) -> float:
    """The lowest threshold at which the share of right answers is `wanted`; else the best that still tells enough."""
    best, best_share = 0.0, 0.0
    for threshold in _GRID:
        told = confidence >= threshold
        if told.mean() < TOLD:
            break
        share = float(correct[told].mean())
        if share >= wanted:
            return round(float(threshold), 2)
        if share > best_share:
            best, best_share = float(threshold), share
    return round(best, 2)
