"""Triton's Python backend for version 2 of `feedback`: an encoder with eight heads, string in, all answers out.

Runs in Triton's own environment. All requests of a dynamic batch are analysed together; a text that can't be analysed
gets an ERROR of its own and neutral values, so one caller's bad text never fails another's. Sentences are analysed only
for requests that ask for the output SENTENCES.
"""

# ruff: noqa: INP001 - Triton loads this folder by path; it is no package

import json
import os
import zlib
from pathlib import Path

import numpy as np
import triton_python_backend_utils as triton
from analyze import PROVIDERS, Answers, Model
from pulse import Pulse
from sentences import spans

MAX_TEXT_BYTES = 16 * 1024
#: Sentences of a text that are analysed; what follows is part of the whole text's answer only.
MAX_SENTENCES = 64


def decode(raw: bytes) -> tuple[str, bytes]:
    """The text and an empty error, or an empty text and the reason."""
    if len(raw) > MAX_TEXT_BYTES:
        return "", b"too_large"
    try:
        return raw.decode("utf-8"), b""
    except UnicodeDecodeError:
        return "", b"invalid_utf8"


def _column(values: list[bytes]) -> np.ndarray:
    return np.array(values, dtype=object)[:, None]


def outputs_of(answers: Answers, texts: int) -> dict[str, np.ndarray]:
    """Every output about the whole text, a row per text."""
    labels = {name: answers.label[name][:, None] for name in answers.label}
    more = ("emotion", "intent", "effort", "urgency")
    return {
        **{name.upper(): label for name, label in labels.items()},
        "SENTIMENT_SCORE": answers.score[:, None],
        "CONFIDENCE": np.stack([answers.confidence[name] for name in ("language", "sentiment", "point", "need")], 1),
        "MORE_CONFIDENCE": np.stack([answers.confidence[name] for name in more], 1),
        "UNSURE": _column([",".join(answers.unsure(row)).encode() for row in range(texts)]),
    }


class TritonPythonModel:
    """Triton's protocol: one instance is one process of its own."""

    def initialize(self, args: dict[str, str]) -> None:
        folder = Path(args["model_repository"]) / args["model_version"]
        provider = os.environ.get("RECORRIDO_MODEL_PROVIDER", "cpu")
        if provider not in PROVIDERS:
            raise triton.TritonModelException(
                f"RECORRIDO_MODEL_PROVIDER is {provider}, not one of {', '.join(PROVIDERS)}"
            )
        providers, precision = PROVIDERS[provider]
        graph = folder / f"encoder.{precision}.onnx"
        if not graph.exists():
            raise triton.TritonModelException(
                f"{graph} is missing; build it: python -m infra.triton.install --precision {precision}"
            )
        # TensorRT compiles the graph for each new shape, which takes minutes.
        self._pulse = Pulse(float(os.environ.get("RECORRIDO_MODEL_STUCK_S") or (30 if provider == "cpu" else 900)))
        threads = int(os.environ.get("RECORRIDO_ORT_THREADS", "1"))
        self._model = Model(folder, graph, providers, threads, each_run=self._pulse.step)

    def execute(self, requests: list) -> list:
        with self._pulse:
            return self._answer(requests)

    def _answer(self, requests: list) -> list:
        inputs = [triton.get_input_tensor_by_name(request, "TEXT").as_numpy().reshape(-1) for request in requests]
        decoded, errors = zip(*(decode(raw) for batch in inputs for raw in batch), strict=True)
        texts = list(decoded)
        asked = [
            "SENTENCES" in request.requested_output_names()
            for request, batch in zip(requests, inputs, strict=True)
            for _ in batch
        ]
        found = [spans(text, MAX_SENTENCES) if wanted else [] for text, wanted in zip(texts, asked, strict=True)]
        # A text of one sentence is that sentence. The others' sentences are analysed behind all texts.
        parts = [
            text[start:end] for text, some in zip(texts, found, strict=True) if len(some) > 1 for start, end in some
        ]
        answers = Answers(self._model, texts + parts)
        outputs = outputs_of(answers, len(texts + parts))
        outputs["SENTENCES"] = _column(_sentences(answers, found, len(texts)))
        outputs["ERROR"] = _column(list(errors))
        outputs["CHECK"] = np.array([zlib.crc32(raw) for batch in inputs for raw in batch], np.uint32)[:, None]
        responses, start = [], 0
        for batch in inputs:
            end = start + len(batch)
            tensors = [triton.Tensor(name, values[start:end]) for name, values in outputs.items()]
            responses.append(triton.InferenceResponse(tensors))
            start = end
        return responses


def _sentences(answers: Answers, found: list[list[tuple[int, int]]], part: int) -> list[bytes]:
    """Per text a JSON list of its sentences: place in the text and answers. `part` is the row of the first."""
    results = []
    for row, some in enumerate(found):
        described = []
        for start, end in some:
            of = part if len(some) > 1 else row
            part += len(some) > 1
            described.append({"start": start, "end": end, **answers.as_json(of)})
        results.append(json.dumps(described, ensure_ascii=False).encode())
    return results
