"""Version 1 of `feedback`, the fast baseline of hashed n-grams: `python -m infra.triton.train.ngrams`.

Reads `infra/triton/data/verbatims.*.jsonl` and `taxonomy.yaml`, writes `models/feedback/1/model.onnx`. The same input
gives the same file.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infra.triton import taxonomy as needs
from infra.triton.encoder.adapter import on_path
from infra.triton.train import corpus, export, features, linear

MODEL = features.VERSION_FOLDER / "model.onnx"
# Sentiment and point, and the weight of characters: by cross-validation on training rows. Language and need: by hand.
PENALTY = {"language": 3e-5, "sentiment": 3e-5, "point": 3e-5, "need": 1e-5}
CHAR_WEIGHT = 1.0
THRESHOLDS = {"language": 0.6, "need": [0.25, 0.25, 0.3]}
FOLDS = 3


def targets(
    rows: list[corpus.Verbatim], taxonomy: needs.Taxonomy
) -> dict[str, tuple[list[str], NDArray[np.bool_], NDArray[np.float64]]]:
    """Per head: the labels of its outputs, the classes each row allows [rows, classes], and the tree [nodes, classes].

    The first class and node of `need` is the empty need. An empty sentiment or point is unknown and allows every class.
    """
    leaves = ["", *(need.path for need in taxonomy.leaves())]
    nodes = ["", *(path for path, need in taxonomy.needs.items() if not need.retired)]
    flat = {
        "language": (list(taxonomy.languages), [row.language for row in rows]),
        "sentiment": (list(corpus.SENTIMENTS), [row.sentiment for row in rows]),
        "point": (list(corpus.POINTS), [row.point for row in rows]),
    }
    heads = {
        name: (labels, np.array([[value in (label, "") for label in labels] for value in values]), np.eye(len(labels)))
        for name, (labels, values) in flat.items()
    }
    below = np.array([[on_path(node, leaf) for leaf in leaves] for node in nodes])
    index = {node: number for number, node in enumerate(nodes)}
    heads["need"] = (nodes, below[[index[row.need] for row in rows]], below.astype(np.float64))
    return heads


def fold_of(row: corpus.Verbatim) -> int:
    """Groups stay together in cross-validation, as they do in the split; -1 for what is always trained on."""
    return sum(row.group.encode()) % FOLDS if row.channel else -1


def cross_validated(
    span: linear.Span, allowed: NDArray[np.bool_], tree: NDArray[np.float64], folds: NDArray[np.int64], penalty: float
) -> NDArray[np.float64]:
    """Logits of every training row from a model that did not see its fold [rows, classes]; 0 for fold -1."""
    logits = np.zeros(allowed.shape)
    for fold in range(FOLDS):
        seen = folds != fold
        head = linear.fit(span.rows[seen], allowed[seen], tree, np.ones(int(seen.sum())), penalty)
        logits[~seen] = head.logits(span.rows[~seen])
    return logits


def train(rows: list[corpus.Verbatim], taxonomy: needs.Taxonomy, path: Path) -> None:
    """Fit all heads on the rows that are not held out, calibrate them by cross-validation, and write the graph."""
    seen = [row for row in rows if not row.held_out] + corpus.definitions(taxonomy)
    raw = features.counts([row.text for row in seen])
    idf = features.inverse_document_frequency(raw, CHAR_WEIGHT)
    matrix = features.weighted(raw, idf)
    span = linear.Span.of(matrix)
    folds = np.array([fold_of(row) for row in seen])
    heads, labels = [], {}
    heads_in = targets(seen, taxonomy)
    for name, (names, allowed, tree) in heads_in.items():
        started = time.monotonic()
        head = linear.fit(span.rows, allowed, tree, np.ones(len(seen)), PENALTY[name])
        unseen = cross_validated(span, allowed, tree, folds, PENALTY[name])[folds >= 0]
        factor = linear.temperature(unseen, allowed[folds >= 0])
        weights = head.weights(matrix, span) * np.float32(factor)
        heads.append(export.HeadExport(name, weights, (head.bias * factor).astype(np.float32)))
        labels[name] = names
        print(f"{name:10} {len(names):4} labels, factor {factor:.2f}, {time.monotonic() - started:.1f} s")  # noqa: T201
    meta: dict[str, Any] = {"taxonomy_version": taxonomy.version, "labels": labels, "thresholds": THRESHOLDS}
    export.export(path, idf, heads, heads_in["need"][2].astype(np.float32), meta)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=MODEL)
    taxonomy = needs.load()
    train(corpus.load(taxonomy), taxonomy, parser.parse_args().output)


if __name__ == "__main__":
    main()
