"""Triton's Python backend for `feedback`: featurise, run the ONNX graph, turn probabilities into answers.

Runs in Triton's own environment. All requests of a dynamic batch are analysed together; a text that can't be analysed
gets an ERROR of its own and neutral values, so one caller's bad text never fails another's.
"""

# ruff: noqa: INP001 - Triton loads this folder by path; it is no package

import json
import os
import zlib
from pathlib import Path

import numpy as np
import onnxruntime
import triton_python_backend_utils as triton
from features import padded, sparse

MAX_TEXT_BYTES = 16 * 1024
# Upper bound of padded n-grams per run of the graph, which keeps its largest tensor at about 15 MB.
_CHUNK = 32 * 1024


def decode(raw: bytes) -> tuple[str, bytes]:
    """The text and an empty error, or an empty text and the reason."""
    if len(raw) > MAX_TEXT_BYTES:
        return "", b"too_large"
    try:
        return raw.decode("utf-8"), b""
    except UnicodeDecodeError:
        return "", b"invalid_utf8"


class Analyzer:
    """The exported graph and its labels."""

    def __init__(self, model: Path, threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        meta = json.loads(self._session.get_modelmeta().custom_metadata_map["recorrido"])
        self._languages = np.array([label.encode() for label in meta["labels"]["language"]] + [b""], dtype=object)
        self._sentiments = np.array([label.encode() for label in meta["labels"]["sentiment"]], dtype=object)
        self._points = np.array([label.encode() for label in meta["labels"]["point"]], dtype=object)
        nodes = meta["labels"]["need"]
        self._nodes = np.array([label.encode() for label in nodes], dtype=object)
        depth = np.array([label.count("/") + 1 if label else 0 for label in nodes])
        self._levels = [np.flatnonzero(depth == level) for level in range(4)]
        self._thresholds = meta["thresholds"]

    def probabilities(self, texts: list[str]) -> tuple[list[np.ndarray], np.ndarray]:
        """Per head an array [texts, labels]; and which texts have anything to read at all."""
        ends, ids, counts = sparse(texts)
        lengths = np.diff(ends)
        order = np.argsort(lengths, kind="stable")
        heads: list[np.ndarray] = []
        start = 0
        while start < len(order):
            # Sorted by length, so the last of a chunk sets its width; grow while the padded size fits.
            sizes = lengths[order[start:]] * np.arange(1, len(order) - start + 1)
            chunk = order[start : start + max(1, int(np.searchsorted(sizes, _CHUNK, side="right")))]
            feed = dict(zip(("ids", "counts"), padded(ends, ids, counts, chunk), strict=True))
            results = self._session.run(["language", "sentiment", "point", "need"], feed)
            if not heads:
                heads = [np.zeros((len(texts), result.shape[1]), np.float32) for result in results]
            for head, result in zip(heads, results, strict=True):
                head[chunk] = result
            start += len(chunk)
        return heads, lengths > 0

    def analyze(self, texts: list[str]) -> dict[str, np.ndarray]:
        """Every output but ERROR, each [texts, …]. A text without visible characters is neutral with confidence 0."""
        (language, sentiment, point, need), readable = self.probabilities(texts)
        rows = np.arange(len(texts))
        best_language = language.argmax(1)
        language_p = language[rows, best_language]
        sure = (language_p >= self._thresholds["language"]) & [any(map(str.isalpha, text)) for text in texts]
        best_sentiment = np.where(readable, sentiment.argmax(1), 1)
        score = np.where(readable, sentiment[:, 2] - sentiment[:, 0], 0)
        best_point = np.where(readable, point.argmax(1), len(self._points) - 1)
        node, need_p = self._need(need)
        confidence = np.stack([language_p, sentiment[rows, best_sentiment], point[rows, best_point], need_p], 1)
        return {
            "LANGUAGE": self._languages[np.where(sure & readable, best_language, -1)][:, None],
            "SENTIMENT": self._sentiments[best_sentiment][:, None],
            "SENTIMENT_SCORE": score.astype(np.float32)[:, None],
            "POINT": self._points[best_point][:, None],
            "NEED": np.where(readable, self._nodes[node], b"")[:, None],
            "CONFIDENCE": np.where(readable[:, None], confidence, 0).astype(np.float32),
        }

    def _need(self, need: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The deepest node that is likely enough, and its probability; the empty need where none is.

        Where the model is unsure, the probability is that of the best level-1 node, which tells how unsure.
        """
        rows = np.arange(len(need))
        nothing = self._levels[0][0]
        top = need[:, self._levels[1]].max(1)
        node = np.full(len(need), nothing)
        probability = np.where(need[:, nothing] >= top, need[:, nothing], top)
        for level, threshold in zip(self._levels[1:], self._thresholds["need"], strict=True):
            best = level[need[:, level].argmax(1)]
            good = (need[rows, best] >= threshold) & (need[rows, best] > need[:, nothing])
            node = np.where(good, best, node)
            probability = np.where(good, need[rows, best], probability)
        return node, probability


def _unanswered(texts: int) -> dict[str, np.ndarray]:
    """What later versions answer and this one does not."""
    empty = dict.fromkeys(("EMOTION", "INTENT", "EFFORT", "URGENCY"), b"")
    fixed = empty | {"UNSURE": b"emotion,intent,effort,urgency", "SENTENCES": b"[]"}
    outputs = {name: np.full((texts, 1), value, dtype=object) for name, value in fixed.items()}
    return outputs | {"MORE_CONFIDENCE": np.zeros((texts, 4), np.float32)}


class TritonPythonModel:
    """Triton's protocol: one instance is one process of its own."""

    def initialize(self, args: dict[str, str]) -> None:
        folder = Path(args["model_repository"]) / args["model_version"]
        self._analyzer = Analyzer(folder / "model.onnx", int(os.environ.get("RECORRIDO_ORT_THREADS", "1")))

    def execute(self, requests: list) -> list:
        inputs = [triton.get_input_tensor_by_name(request, "TEXT").as_numpy().reshape(-1) for request in requests]
        texts, errors = zip(*(decode(raw) for batch in inputs for raw in batch), strict=True)
        outputs = self._analyzer.analyze(list(texts))
        outputs["ERROR"] = np.array(errors, dtype=object)[:, None]
        outputs["CHECK"] = np.array([zlib.crc32(raw) for batch in inputs for raw in batch], np.uint32)[:, None]
        outputs |= _unanswered(len(texts))
        responses, start = [], 0
        for batch in inputs:
            end = start + len(batch)
            tensors = [triton.Tensor(name, values[start:end]) for name, values in outputs.items()]
            responses.append(triton.InferenceResponse(tensors))
            start = end
        return responses
