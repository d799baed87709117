"""What a model version gets right: on held-out rows of our own, and on public sets where they are at hand.

Everything is measured on the built files, after int8 rounding, through the same code that serves.
"""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any, Protocol
from xml.etree import ElementTree as ET

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from infra.triton.train import metrics
from infra.triton.train.corpus import DATA, Verbatim
from infra.triton.train.features import served

#: Where the code of the encoder's versions lies.
SERVED = Path(__file__).parents[1] / "models" / "feedback" / "2"

#: What version 1 answers.
HEADS = ("language", "sentiment", "point", "need")
LEVELS = (1, 2, 3)

Probabilities = Mapping[str, NDArray[Any]]


class Classifier(Protocol):
    """Any model version: labels by head, and calibrated probabilities [texts, labels] by head."""

    labels: dict[str, list[str]]

    def probabilities(self, texts: list[str]) -> Probabilities: ...

    def best(self, name: str, likely: NDArray[Any], /) -> NDArray[np.intp]:
        """The label to answer for each row of a head's probabilities."""


class Ngrams:
    """Version 1, a graph over hashed n-grams, run in batches of 64."""

    def __init__(self, path: Path) -> None:
        self.session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        meta = json.loads(self.session.get_modelmeta().custom_metadata_map["recorrido"])
        self.labels: dict[str, list[str]] = meta["labels"]
        self.taxonomy_version: str = meta["taxonomy_version"]

    def probabilities(self, texts: list[str]) -> Probabilities:
        parts = []
        for start in range(0, len(texts), 64):
            ends, ids, counts = served.sparse(texts[start : start + 64])
            ids, counts = served.padded(ends, ids, counts, np.arange(len(ends) - 1))
            parts.append(self.session.run(list(HEADS), {"ids": ids, "counts": counts}))
        return {head: np.concatenate([part[index] for part in parts]) for index, head in enumerate(HEADS)}

    def best(self, _: str, likely: NDArray[Any], /) -> NDArray[np.intp]:
        result: NDArray[np.intp] = likely.argmax(axis=1)
        return result


def load(folder: Path) -> Classifier:
    """A built model version, as it is served on a CPU; both kinds there have been."""
    if not (folder / "adapter.npz").exists():
        return Ngrams(folder / "model.onnx")
    served_encoder = _module(SERVED / "analyze.py")
    model: Classifier = served_encoder.Model(folder, folder / "encoder.int8.onnx", ["CPUExecutionProvider"], 2)
    return model


def _module(path: Path) -> Any:
    spec = spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def guesses(model: Classifier, head: str, probability: NDArray[Any]) -> list[str]:
    return [model.labels[head][best] for best in model.best(head, probability)]


def best_need(model: Classifier, probability: NDArray[Any], level: int) -> list[str]:
    """The likeliest node of a level, or the empty need; no threshold."""
    columns = _columns(model, level)
    return [model.labels["need"][columns[best]] for best in probability[:, columns].argmax(axis=1)]


def _columns(model: Classifier, level: int) -> NDArray[np.intp]:
    depth = np.array([label.count("/") + 1 if label else 0 for label in model.labels["need"]])
    return np.flatnonzero((depth == level) | (depth == 0))


@dataclass(frozen=True, slots=True)
class Answered:
    """One question over some rows: what they say, what the model says, and how sure it is."""

    truth: list[str]
    guess: list[str]
    confidence: NDArray[Any]
    #: Which of the rows that were asked about these are.
    rows: NDArray[np.intp]

    @property
    def macro_f1(self) -> float:
        return metrics.macro_f1(self.truth, self.guess)

    @property
    def calibration_error(self) -> float:
        correct = np.array(self.truth) == np.array(self.guess)
        return metrics.expected_calibration_error(self.confidence.astype(np.float64), correct)


def answers(model: Classifier, rows: Sequence[Verbatim], probability: Probabilities) -> dict[str, Answered]:
    """Per question (a head, or `need_1` to `need_3`) the rows that say something about it, and the model's answers."""
    result = {}
    for head in probability:
        if head == "need":
            continue
        known = np.array([number for number, row in enumerate(rows) if getattr(row, head)], dtype=np.intp)
        if len(known):
            likely = probability[head][known]
            truth = [getattr(rows[number], head) for number in known]
            confidence = likely[np.arange(len(known)), model.best(head, likely)]
            result[head] = Answered(truth, guesses(model, head, likely), confidence, known)
    for level in LEVELS:
        deep = [number for number, row in enumerate(rows) if not row.need or row.need.count("/") + 1 >= level]
        likely = probability["need"][deep]
        truth = ["/".join(rows[number].need.split("/")[:level]) for number in deep]
        confidence = likely[:, _columns(model, level)].max(axis=1)
        result[f"need_{level}"] = Answered(truth, best_need(model, likely, level), confidence, np.array(deep))
    return result


def by_language(model: Classifier, rows: Sequence[Verbatim]) -> dict[str, dict[str, Answered]]:
    """Answers about rows, per language, and about `all`."""
    probability = model.probabilities([row.text for row in rows])
    result = {}
    for language in [*sorted({row.language for row in rows}), "all"]:
        some = [number for number, row in enumerate(rows) if language in (row.language, "all")]
        likely = {head: values[some] for head, values in probability.items()}
        result[language] = answers(model, [rows[number] for number in some], likely)
    return result


def bootstrap(
    truth: Sequence[str], old: Sequence[str], new: Sequence[str], seed: int, samples: int = 1000
) -> tuple[float, float, float]:
    """The gain in macro-F1 of `new` over `old`, and the 95 % interval of it over resampled rows.

    A paired bootstrap (Koehn 2004, "Statistical significance tests for machine translation evaluation"): both models
    are scored on the same resampled rows.
    """
    rng = np.random.default_rng(seed)
    labels, actual = np.unique(truth, return_inverse=True)
    index = {str(label): number for number, label in enumerate(labels)}
    one = np.array([index.get(label, len(labels)) for label in old])
    other = np.array([index.get(label, len(labels)) for label in new])
    gains = []
    for _ in range(samples):
        drawn = rng.integers(0, len(actual), len(actual))
        gains.append(_quick_f1(actual[drawn], other[drawn]) - _quick_f1(actual[drawn], one[drawn]))
    low, high = np.quantile(gains, [0.025, 0.975])
    return _quick_f1(actual, other) - _quick_f1(actual, one), float(low), float(high)


def _quick_f1(actual: NDArray[Any], guess: NDArray[Any]) -> float:
    """`metrics.macro_f1` of label numbers, by counting."""
    size = int(max(actual.max(), guess.max())) + 1
    hits = np.bincount(actual[actual == guess], minlength=size)
    total = np.bincount(actual, minlength=size)
    present = total > 0
    return float((2 * hits[present] / (total + np.bincount(guess, minlength=size))[present]).mean())


def unseen(model: Classifier) -> dict[str, dict[str, float]]:
    """Negative against positive on the project's own rows in languages that no training row is written in."""
    lines = [json.loads(line) for line in (DATA / "unseen.jsonl").read_bytes().splitlines()]
    found = {}
    for language in sorted({line["language"] for line in lines}):
        some = [line for line in lines if line["language"] == language]
        positive = [line["sentiment"] == "positive" for line in some]
        found[f"own short verbatims, negative against positive ({language})"] = _polarity(
            model, [line["text"] for line in some], positive
        )
    return found


def external(model: Classifier, folder: Path) -> dict[str, dict[str, float]]:
    """Measures on the public sets found in `folder`; a set that is not there is left out."""
    found: dict[str, dict[str, float]] = {}
    if (path := folder / "olist" / "order_reviews.csv").exists():
        found["olist reviews, 1 star against 5 (pt)"] = _olist(model, path)
    for name, language in (("english", "en"), ("spanish", "es"), ("portuguese", "pt")):
        if (path := folder / "text" / "xlmt" / name).exists():
            found[f"XLM-T tweets, three classes ({language})"] = _xlmt(model, path)
    if (path := folder / "text" / "suggestions" / "SubtaskA_Trial_Test_Labeled.csv").exists():
        found["SemEval-2019 forum sentences, suggestion as itch (en)"] = _suggestions(model, path)
    if (path := folder / "text" / "absa16_restaurants" / "ABSA16_Restaurants_Train_SB1_v2.xml").exists():
        found["SemEval-2016 restaurant sentences, negative against positive (en)"] = _restaurants(model, path)
    return found


def _polarity(model: Classifier, texts: list[str], positive: list[bool]) -> dict[str, float]:
    """Negative against positive by the sign of the score P(positive) - P(negative)."""
    sentiment = model.probabilities(texts)["sentiment"]
    guess = np.where(sentiment[:, 2] > sentiment[:, 0], "positive", "negative")
    truth = np.where(positive, "positive", "negative")
    return {
        "rows": len(texts),
        "macro_f1": metrics.macro_f1(list(truth), list(guess)),
        "accuracy": metrics.accuracy(list(truth), list(guess)),
    }


def _olist(model: Classifier, path: Path) -> dict[str, float]:
    with path.open(encoding="utf-8", newline="") as file:
        rows = [
            (f"{row['review_comment_title']} {row['review_comment_message']}".strip(), row["review_score"])
            for row in csv.DictReader(file)
        ]
    rows = [(text, score) for text, score in rows if text and score in {"1", "5"}]
    return _polarity(model, [text for text, _ in rows], [score == "5" for _, score in rows])


def _xlmt(model: Classifier, folder: Path) -> dict[str, float]:
    texts = (folder / "test_text.txt").read_text(encoding="utf-8").split("\n")
    labels = (folder / "test_labels.txt").read_text(encoding="utf-8").split()
    truth = [("negative", "neutral", "positive")[int(label)] for label in labels]
    guess = guesses(model, "sentiment", model.probabilities(texts[: len(truth)])["sentiment"])
    return {"rows": len(truth), "macro_f1": metrics.macro_f1(truth, guess), "accuracy": metrics.accuracy(truth, guess)}


def _suggestions(model: Classifier, path: Path) -> dict[str, float]:
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        rows = [row for row in csv.reader(file) if len(row) == 3 and row[2] in {"0", "1"}]
    point = model.probabilities([row[1] for row in rows])["point"]
    truth = [row[2] == "1" for row in rows]
    guess = [label == "itch" for label in guesses(model, "point", point)]
    return {"rows": len(rows), "itch_f1": metrics.f1(truth, guess)}


def _restaurants(model: Classifier, path: Path) -> dict[str, float]:
    texts, positive = [], []
    for sentence in ET.parse(path).iter("sentence"):  # noqa: S314 - a file the caller chose, not input of the service
        polarities = {opinion.get("polarity") for opinion in sentence.iter("Opinion")}
        if polarities in ({"positive"}, {"negative"}):
            texts.append(sentence.findtext("text") or "")
            positive.append(polarities == {"positive"})
    return _polarity(model, texts, positive)
