"""The questions that the model answers about a text, and what a labelled row says about each."""

from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from infra.triton.encoder.adapter import on_path
from infra.triton.taxonomy import Taxonomy
from infra.triton.train import corpus
from infra.triton.train.corpus import Verbatim

#: In the order of the endpoint's CONFIDENCE.
FLAT = {
    "sentiment": corpus.SENTIMENTS,
    "point": corpus.POINTS,
    "emotion": corpus.EMOTIONS,
    "intent": corpus.INTENTS,
    "effort": corpus.EFFORTS,
    "urgency": corpus.URGENCIES,
}
NEED = "need"
NAMES = ("language", "sentiment", "point", NEED, "emotion", "intent", "effort", "urgency")


def labels(name: str, taxonomy: Taxonomy) -> list[str]:
    """The answers of a head; for needs every node in use, the empty need first."""
    if name == NEED:
        return ["", *(path for path, need in taxonomy.needs.items() if not need.retired)]
    return list(taxonomy.languages) if name == "language" else list(FLAT[name])


def tree(name: str, taxonomy: Taxonomy) -> NDArray[np.float32]:
    """[labels, classes], 1 where a label is on the path of a class. The classes of needs: the empty one and leaves."""
    nodes = labels(name, taxonomy)
    if name != NEED:
        return np.eye(len(nodes), dtype=np.float32)
    leaves = ["", *(need.path for need in taxonomy.leaves())]
    return np.array([[on_path(node, leaf) for leaf in leaves] for node in nodes], dtype=np.float32)


def allowed(name: str, rows: Sequence[Verbatim], taxonomy: Taxonomy) -> NDArray[np.bool_]:
    """[rows, classes]: the classes that a row's label admits.

    A label on an inner node admits each class below it; a row that says nothing about a question admits every class.
    """
    nodes = labels(name, taxonomy)
    below = tree(name, taxonomy) > 0
    index = {label: number for number, label in enumerate(nodes)}
    unsaid = corpus.UNSAID if name == NEED else ""
    known = [getattr(row, name) for row in rows]
    result = below[[index.get(value, 0) for value in known]]
    result[[value == unsaid for value in known]] = True
    return result


def above(rows: Sequence[Verbatim], taxonomy: Taxonomy, level: int) -> NDArray[np.bool_]:
    """[rows, classes]: the needs below the node of `level` on the path of a row's need, or below its own if higher."""
    known = [msgspec.structs.replace(row, need="/".join(row.need.split("/")[:level])) for row in rows]
    return allowed(NEED, known, taxonomy)


def said(name: str, rows: Sequence[Verbatim]) -> NDArray[np.intp]:
    """Which rows say anything about a question; an empty need is an answer too."""
    unsaid = corpus.UNSAID if name == NEED else ""
    return np.array([number for number, row in enumerate(rows) if getattr(row, name) != unsaid], dtype=np.intp)
