"""What the exported graph gets right: on held-out rows of our own, and on public sets where they are at hand.

Everything is measured on the exported file, after int8 rounding, through the same featuriser that serves.
"""

import csv
import json
from collections import defaultdict
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from infra.triton.train import metrics
from infra.triton.train.corpus import Verbatim
from infra.triton.train.features import served

HEADS = ("language", "sentiment", "point", "need")


class Model:
    """The exported graph, run in batches of 64."""

    def __init__(self, path: Path) -> None:
        self.session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        meta = json.loads(self.session.get_modelmeta().custom_metadata_map["recorrido"])
        self.labels: dict[str, list[str]] = meta["labels"]
        self.taxonomy_version: str = meta["taxonomy_version"]

    def probabilities(self, texts: list[str]) -> dict[str, NDArray[np.float64]]:
        """Per head [texts, labels]."""
        parts = []
        for start in range(0, len(texts), 64):
            ends, ids, counts = served.sparse(texts[start : start + 64])
            ids, counts = served.padded(ends, ids, counts, np.arange(len(ends) - 1))
            parts.append(self.session.run(list(HEADS), {"ids": ids, "counts": counts}))
        return {head: np.concatenate([part[index] for part in parts]) for index, head in enumerate(HEADS)}

    def guesses(self, head: str, probability: NDArray[np.float64]) -> list[str]:
        return [self.labels[head][best] for best in probability.argmax(axis=1)]

    def best_need(self, probability: NDArray[np.float64], level: int) -> list[str]:
        """The likeliest node of a level, or the empty need; no threshold."""
        depth = np.array([label.count("/") + 1 if label else 0 for label in self.labels["need"]])
        columns = np.flatnonzero((depth == level) | (depth == 0))
        return [self.labels["need"][columns[best]] for best in probability[:, columns].argmax(axis=1)]


def held_out(model: Model, rows: list[Verbatim]) -> dict[str, Any]:
    """Per language and head: macro-F1, and for needs accuracy per level; calibration error per head over all."""
    probability = model.probabilities([row.text for row in rows])
    report: dict[str, Any] = {"rows": len(rows), "languages": {}, "calibration_error": {}}
    by_language = defaultdict(list)
    for index, row in enumerate(rows):
        by_language[row.language].append(index)
    by_language["all"] = list(range(len(rows)))
    for language, indices in by_language.items():
        some = [rows[index] for index in indices]
        scores: dict[str, float] = {"rows": len(some)}
        for head in ("language", "sentiment", "point"):
            truth, guess = [getattr(row, head) for row in some], model.guesses(head, probability[head][indices])
            scores[head] = metrics.accuracy(truth, guess) if head == "language" else metrics.macro_f1(truth, guess)
        for level in (1, 2, 3):
            deep = [i for i in indices if not rows[i].need or rows[i].need.count("/") + 1 >= level]
            truth = ["/".join(rows[i].need.split("/")[:level]) for i in deep]
            guess = model.best_need(probability["need"][deep], level)
            scores[f"need_{level}"] = metrics.macro_f1(truth, guess)
            scores[f"need_{level}_accuracy"] = metrics.accuracy(truth, guess)
        report["languages"][language] = scores
    for head in ("language", "sentiment", "point"):
        correct = np.array(model.guesses(head, probability[head])) == np.array([getattr(row, head) for row in rows])
        confidence = probability[head].max(axis=1)
        report["calibration_error"][head] = metrics.expected_calibration_error(confidence, correct)
    top = np.array([row.need.split("/")[0] for row in rows])
    guess_1 = np.array(model.best_need(probability["need"], 1))
    columns = [i for i, label in enumerate(model.labels["need"]) if "/" not in label]
    report["calibration_error"]["need_1"] = metrics.expected_calibration_error(
        probability["need"][:, columns].max(axis=1), guess_1 == top
    )
    return report


def external(model: Model, folder: Path) -> dict[str, dict[str, float]]:
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


def _polarity(model: Model, texts: list[str], positive: list[bool]) -> dict[str, float]:
    """Negative against positive by the sign of the score P(positive) - P(negative)."""
    sentiment = model.probabilities(texts)["sentiment"]
    guess = np.where(sentiment[:, 2] > sentiment[:, 0], "positive", "negative")
    truth = np.where(positive, "positive", "negative")
    return {
        "rows": len(texts),
        "macro_f1": metrics.macro_f1(list(truth), list(guess)),
        "accuracy": metrics.accuracy(list(truth), list(guess)),
    }


def _olist(model: Model, path: Path) -> dict[str, float]:
    with path.open(encoding="utf-8", newline="") as file:
        rows = [
            (f"{row['review_comment_title']} {row['review_comment_message']}".strip(), row["review_score"])
            for row in csv.DictReader(file)
        ]
    rows = [(text, score) for text, score in rows if text and score in {"1", "5"}]
    return _polarity(model, [text for text, _ in rows], [score == "5" for _, score in rows])


def _xlmt(model: Model, folder: Path) -> dict[str, float]:
    texts = (folder / "test_text.txt").read_text(encoding="utf-8").split("\n")
    labels = (folder / "test_labels.txt").read_text(encoding="utf-8").split()
    truth = [("negative", "neutral", "positive")[int(label)] for label in labels]
    guess = model.guesses("sentiment", model.probabilities(texts[: len(truth)])["sentiment"])
    return {"rows": len(truth), "macro_f1": metrics.macro_f1(truth, guess), "accuracy": metrics.accuracy(truth, guess)}


def _suggestions(model: Model, path: Path) -> dict[str, float]:
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        rows = [row for row in csv.reader(file) if len(row) == 3 and row[2] in {"0", "1"}]
    point = model.probabilities([row[1] for row in rows])["point"]
    truth = [row[2] == "1" for row in rows]
    guess = [label == "itch" for label in model.guesses("point", point)]
    return {"rows": len(rows), "itch_f1": metrics.f1(truth, guess)}


def _restaurants(model: Model, path: Path) -> dict[str, float]:
    texts, positive = [], []
    for sentence in ET.parse(path).iter("sentence"):  # noqa: S314 - a file the caller chose, not input of the service
        polarities = {opinion.get("polarity") for opinion in sentence.iter("Opinion")}
        if polarities in ({"positive"}, {"negative"}):
            texts.append(sentence.findtext("text") or "")
            positive.append(polarities == {"positive"})
    return _polarity(model, texts, positive)
