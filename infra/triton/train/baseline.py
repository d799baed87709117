"""What can be had without an encoder: tf-idf of character n-grams and a linear model per question (scikit-learn)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.pipeline import make_pipeline
from sklearn.svm import LinearSVC

from infra.triton.train.corpus import Verbatim
from infra.triton.train.evaluate import Classifier, Probabilities

_HEADS = ("language", "sentiment", "point", "emotion", "intent", "effort", "urgency")


class Baseline:
    """One pipeline per head. Its margins stand in for probabilities: their order is right, their size means nothing."""

    def __init__(self, pipelines: dict[str, Any]) -> None:
        self._pipelines = pipelines
        self.labels = {name: [str(label) for label in pipeline.classes_] for name, pipeline in pipelines.items()}
        classes = self.labels["need"]
        nodes = sorted({"/".join(path.split("/")[:level]) for path in classes for level in (1, 2, 3)})
        self.labels["need"] = nodes
        self._tree = np.array([[_under(node, leaf) for node in nodes] for leaf in classes], dtype=np.float64)

    def probabilities(self, texts: list[str]) -> Probabilities:
        result = {name: _margins(pipeline, texts) for name, pipeline in self._pipelines.items()}
        return result | {"need": result["need"] @ self._tree}

    def best(self, _: str, likely: NDArray[Any], /) -> NDArray[np.intp]:
        result: NDArray[np.intp] = likely.argmax(axis=1)
        return result


def _under(node: str, path: str) -> bool:
    return path == node or (bool(node) and path.startswith(f"{node}/"))


def _margins(pipeline: Any, texts: list[str]) -> NDArray[Any]:
    values = pipeline.decision_function(texts)
    both = np.stack([-values, values], axis=1) if values.ndim == 1 else values
    result: NDArray[Any] = softmax(4 * both, axis=1)
    return result


def train(rows: Sequence[Verbatim]) -> Classifier:
    """Fit on `rows`; seconds per head. The classes of needs are the paths that rows carry, of any depth."""
    pipelines = {}
    for name in (*_HEADS, "need"):
        known = [row for row in rows if name == "need" or getattr(row, name)]
        features = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True, min_df=2)
        pipeline = make_pipeline(features, LinearSVC(C=0.5, random_state=1))
        pipelines[name] = pipeline.fit([row.text for row in known], [getattr(row, name) for row in known])
    return Baseline(pipelines)
