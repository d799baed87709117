"""Texts to answers: clean, tokenise, run the graph in batches of like length, decide what is sure enough to say.

Nothing here knows Triton, so that training and benchmarks measure what is served.
"""

# ruff: noqa: INP001 - Triton loads this folder by path; it is no package

import html
import json
import re
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

#: Tokens of a text that the model reads: the first and the last half of these (Sun et al. 2019, arXiv:1905.05583).
MAX_TOKENS = 128
#: Tokens of one run of the graph, padding included.
RUN_TOKENS = 2048
#: What ONNX Runtime runs on, by name, and the graph for it.
PROVIDERS: dict[str, tuple[list[object], str]] = {
    "cpu": (["CPUExecutionProvider"], "int8"),
    "cuda": (["CUDAExecutionProvider", "CPUExecutionProvider"], "fp16"),
    "tensorrt": (
        [
            ("TensorrtExecutionProvider", {"trt_fp16_enable": True, "trt_engine_cache_enable": True}),
            "CUDAExecutionProvider",
            "CPUExecutionProvider",
        ],
        "fp32",
    ),
}
#: Keeps the logarithm of a probability finite.
_TINY = np.float32(1e-9)
_TAG = re.compile(r"</?[a-zA-Z!][^<>]{0,300}>")
#: No character: Python refuses to read a number of more than 4,300 digits, which would fail the whole batch.
_NO_CHARACTER = re.compile(r"&#[0-9]{100,}+;?")


def clean(text: str) -> str:
    """Without markup, which says nothing about an experience."""
    if "<" in text:
        text = _TAG.sub(" ", text)
    return html.unescape(_NO_CHARACTER.sub("\ufffd", text)) if "&" in text else text


def visible(text: str) -> bool:
    """Whether there is anything to read: a character that is neither space, control nor format."""
    return any(unicodedata.category(character)[0] not in "ZC" for character in text)


def _latin(text: str) -> bool:
    """Whether most letters are of the script of the languages that the model was trained on; the first 400 tell."""
    letters = [character for character in text[:400] if character.isalpha()]
    # Latin letters, with their extensions, lie below U+0250 and in U+1E00…U+1EFF.
    return sum(ord(letter) < 0x250 or 0x1E00 <= ord(letter) < 0x1F00 for letter in letters) * 2 > len(letters)


class Model:
    """The graph, its tokenizer and its labels; one ONNX Runtime session. `each_run` is called before the graph runs."""

    def __init__(
        self,
        folder: Path,
        graph: Path,
        providers: Sequence[object],
        threads: int,
        each_run: Callable[[], object] = lambda: None,
    ) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(str(graph), options, providers=list(providers))
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.meta = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        self.labels: dict[str, list[str]] = self.meta["labels"]
        self._pad = self.meta["pad"]
        self._each_run = each_run
        self._offsets = {name: np.array(values, np.float32) for name, values in self.meta.get("offsets", {}).items()}

    def tokens(self, texts: list[str]) -> list[list[int]]:
        half = MAX_TOKENS // 2
        ids = [each.ids for each in self._tokenizer.encode_batch_fast([clean(text) for text in texts])]
        return [each if len(each) <= MAX_TOKENS else each[:half] + each[-half:] for each in ids]

    def best(self, name: str, likely: np.ndarray) -> np.ndarray:
        """Which label to answer, given the probabilities [texts, labels] of a head.

        The likeliest, but where rare labels are to be found as well as common ones, what is common must be that much
        likelier (logit adjustment; Menon et al. 2021, arXiv:2007.07314).
        """
        offsets = self._offsets.get(name)
        return (likely if offsets is None else np.log(likely + _TINY) - offsets).argmax(1)

    def probabilities(self, texts: list[str]) -> dict[str, np.ndarray]:
        """Per head calibrated probabilities, float32 [texts, labels]."""
        ids = self.tokens(texts)
        lengths = np.array([len(each) for each in ids])
        order = np.argsort(lengths, kind="stable")
        results = {name: np.zeros((len(texts), len(labels)), np.float32) for name, labels in self.labels.items()}
        start = 0
        while start < len(order):
            # Sorted by length, so the last of a run sets its width; grow while the padded size fits.
            sizes = lengths[order[start:]] * np.arange(1, len(order) - start + 1)
            chunk = order[start : start + max(1, int(np.searchsorted(sizes, RUN_TOKENS, side="right")))]
            padded = np.full((len(chunk), lengths[chunk[-1]]), self._pad, dtype=np.int64)
            for row, position in enumerate(chunk):
                padded[row, : lengths[position]] = ids[position]
            self._each_run()
            for name, values in zip(results, self._session.run(list(results), {"ids": padded}), strict=True):
                results[name][chunk] = values
            start += len(chunk)
        return results


class Answers:
    """What the model says about texts: arrays with a row per text, each label as bytes."""

    def __init__(self, model: Model, texts: list[str]) -> None:
        self._model = model
        likely = model.probabilities(texts)
        self.readable = np.array([visible(text) for text in texts], dtype=bool)
        self._latin = np.array([_latin(text) for text in texts], dtype=bool)
        rows = np.arange(len(texts))
        thresholds = model.meta["thresholds"]
        self.label: dict[str, np.ndarray] = {}
        self.confidence: dict[str, np.ndarray] = {}
        self.sure: dict[str, np.ndarray] = {}
        for name, labels in model.labels.items():
            if name == "need":
                label, confidence, sure = self._needs(likely[name], labels, thresholds[name])
            else:
                best = model.best(name, likely[name])
                confidence = likely[name][rows, best]
                sure = confidence >= thresholds[name]
                label = np.array([each.encode() for each in labels], dtype=object)[best]
            if name == "language":
                sure &= self._latin
                label = np.where(sure, label, b"")
            nothing = {"sentiment": b"neutral", "point": b"none"}.get(name, b"")
            self.label[name] = np.where(self.readable, label, nothing)
            self.confidence[name] = np.where(self.readable, confidence, 0).astype(np.float32)
            self.sure[name] = sure & self.readable
        sentiments = model.labels["sentiment"]
        score = (
            likely["sentiment"][:, sentiments.index("positive")] - likely["sentiment"][:, sentiments.index("negative")]
        )
        self.score = np.where(self.readable, score, 0).astype(np.float32)

    @staticmethod
    def _needs(
        likely: np.ndarray, nodes: list[str], thresholds: list[float]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The deepest node that is likely enough below the one above it, its probability, and whether there is any.

        The empty need can be sure too. Where nothing is, the probability of the likeliest area tells how unsure.
        """
        rows = np.arange(len(likely))
        depth = np.array([node.count("/") + 1 if node else 0 for node in nodes])
        none = nodes.index("")
        areas = np.flatnonzero(depth == 1)
        best = areas[likely[:, areas].argmax(1)]
        nothing = likely[:, none] > likely[rows, best]
        sure = np.where(nothing, likely[:, none], likely[rows, best]) >= thresholds[0]
        node, going = best, sure & ~nothing
        for level, threshold in ((2, thresholds[1]), (3, thresholds[2])):
            for row in np.flatnonzero(going):
                below = [
                    index for index in np.flatnonzero(depth == level) if nodes[index].startswith(f"{nodes[node[row]]}/")
                ]
                deeper = max(below, key=lambda index: likely[row, index], default=None)
                going[row] = deeper is not None and likely[row, deeper] >= threshold
                if going[row]:
                    node[row] = deeper
        said = sure & ~nothing
        label = np.array([each.encode() for each in nodes], dtype=object)[np.where(said, node, none)]
        confidence = np.where(nothing, likely[:, none], likely[rows, node])
        return label, confidence, sure

    def unsure(self, row: int) -> list[str]:
        """The heads whose answer about this text should not be counted."""
        return [name for name in self._model.labels if not self.sure[name][row]]

    def as_json(self, row: int) -> dict[str, object]:
        """One row for people and programs to read."""
        return {
            **{name: self.label[name][row].decode() for name in self._model.labels},
            "sentiment_score": round(float(self.score[row]), 4),
            "confidence": {name: round(float(self.confidence[name][row]), 4) for name in self._model.labels},
            "unsure": self.unsure(row),
        }
