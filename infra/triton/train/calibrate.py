"""How sure the model may say it is, and below what it had better say nothing: set on rows it was not trained on."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infra.triton.taxonomy import Taxonomy
from infra.triton.train import heads, linear, metrics
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
#: Heads whose answers differ in number ten times and more; the others gain nothing by an adjustment.
IMBALANCED = ("emotion", "intent", "effort", "urgency")
_STRENGTHS = np.arange(0.0, 1.01, 0.1)


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


def best(likely: NDArray[np.float64], offset: NDArray[np.float64] | float) -> NDArray[np.intp]:
    """The answer to each row of probabilities [texts, labels], their logarithms less `offset` [labels]."""
    result: NDArray[np.intp] = (np.log(likely + np.finfo(np.float32).tiny) - offset).argmax(1)
    return result


def priors(name: str, rows: Sequence[Verbatim], taxonomy: Taxonomy) -> NDArray[np.float64]:
    """Share of each label among the rows that say, in log; as if each had been said once more."""
    counts = np.array([sum(getattr(row, name) == label for row in rows) for label in heads.labels(name, taxonomy)])
    result: NDArray[np.float64] = np.log((counts + 1) / (counts + 1).sum())
    return result


def strength(
    likely: NDArray[np.float64], prior: NDArray[np.float64], truth: Sequence[str], labels: Sequence[str]
) -> float:
    """How much of the log prior to take off before the best answer is chosen, for macro-F1.

    Logit adjustment after training (Menon et al. 2021, arXiv:2007.07314, section 4.1): with 0 the likeliest answer is
    told, which is right most often; with 1 the one that is likeliest if all labels were equally common, which finds
    rare ones. Macro-F1 weighs both errors and has its best between. A few rows decide about rare labels, so a value
    counts with its neighbours on the grid.

    Args:
        likely: calibrated probabilities of a head [texts, labels], of texts that were not trained on.
        prior: logarithm of each label's share in training [labels].
        truth: what is right for each text.
        labels: in the order of the columns.
    """
    answers = (best(likely, each * prior) for each in _STRENGTHS)
    scores = [metrics.macro_f1(truth, [labels[index] for index in answer]) for answer in answers]
    padded = np.pad(scores, 1, mode="edge")
    return round(float(_STRENGTHS[((padded[:-2] + padded[1:-1] + padded[2:]) / 3).argmax()]), 1)


def strengths(
    probability: dict[str, NDArray[np.float64]], rows: Sequence[Verbatim], seen: Sequence[Verbatim], taxonomy: Taxonomy
) -> dict[str, float]:
    """`strength` of each imbalanced head, on `rows` that were not trained on; `seen` are those that were."""
    result = {}
    for name in IMBALANCED:
        said = heads.said(name, rows)
        truth = [getattr(rows[row], name) for row in said]
        prior = priors(name, seen, taxonomy)
        result[name] = strength(probability[name][said], prior, truth, heads.labels(name, taxonomy))
    return result


def thresholds(
    probability: dict[str, NDArray[np.float64]],
    offsets: dict[str, list[float]],
    rows: Sequence[Verbatim],
    taxonomy: Taxonomy,
) -> dict[str, Any]:
    """Per head the least probability that is told; of needs, per level, below a node that was told.

    `offsets` by head are taken off the log probabilities before the best answer is chosen.
    """
    result: dict[str, Any] = {}
    for name, values in probability.items():
        if name == heads.NEED:
            continue
        said = heads.said(name, rows)
        labels = heads.labels(name, taxonomy)
        answer = best(values[said], np.array(offsets.get(name, 0.0)))
        correct = [labels[index] == getattr(rows[row], name) for row, index in zip(said, answer, strict=True)]
        threshold = lowest(values[said, answer], np.array(correct), WANTED[name])
        result[name] = max(threshold, FLOOR.get(name, 0.0))
    nodes = heads.labels(heads.NEED, taxonomy)
    depth = np.array([node.count("/") + 1 if node else 0 for node in nodes])
    levels = []
    for level, wanted in enumerate(WANTED_NEEDS, start=1):
        columns = np.flatnonzero((depth == level) | (depth == 0))
        known = np.array([row for row, each in enumerate(rows) if not each.need or each.need.count("/") + 1 >= level])
        likely = probability[heads.NEED][np.ix_(known, columns)]
        truth = ["/".join(rows[row].need.split("/")[:level]) for row in known]
        correct = np.array([nodes[columns[index]] for index in likely.argmax(1)]) == np.array(truth)
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
