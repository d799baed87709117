"""The encoder's files: unpacked as they were packed, and a graph that computes what a plain BERT forward computes."""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from scipy.special import erf, softmax

from infra.triton.encoder import adapter, graph, pretrained
from infra.triton.encoder.pretrained import HEADS, MATRICES, Packed, Pretrained, Vocabulary, WeightsError

HIDDEN, FORWARD, WORDS, POSITIONS, LAYERS, PAD = 96, 192, 50, 40, 2, 1
Arrays = dict[str, Any]


@pytest.fixture(scope="module")
def small() -> Pretrained:
    """An encoder of random weights."""
    rng = np.random.default_rng(5)
    sizes = {"h": HIDDEN, "f": FORWARD}
    tensors = {"emb.pos": rng.normal(size=(POSITIONS, HIDDEN)).astype(np.float32) / 4}
    for norm in ("emb.ln", *(f"l{layer}.{name}" for layer in range(LAYERS) for name in pretrained.NORMS)):
        tensors[f"{norm}.w"] = rng.uniform(0.5, 1.5, HIDDEN).astype(np.float32)
        tensors[f"{norm}.b"] = rng.normal(size=HIDDEN).astype(np.float32) / 8
    for layer in range(LAYERS):
        for name, (outputs, inputs) in MATRICES.items():
            weights = rng.normal(size=(sizes[outputs], sizes[inputs])) / sizes[inputs] ** 0.5
            tensors[f"l{layer}.{name}.w"] = weights.astype(np.float32)
            tensors[f"l{layer}.{name}.b"] = rng.normal(size=sizes[outputs]).astype(np.float32) / 8
    words = Packed(
        rng.integers(0, 16, (WORDS, HIDDEN), dtype=np.uint8),
        rng.uniform(0.02, 0.1, (WORDS, HIDDEN // 32)).astype(np.float32),
    )
    vocabulary = Vocabulary([f"w{number}" for number in range(WORDS)], [0.0] * WORDS, 0, 2, PAD, 3)
    return Pretrained(LAYERS, HIDDEN, 1e-12, vocabulary, words, tensors)


@pytest.fixture(scope="module")
def learnt() -> adapter.Adapter:
    rng = np.random.default_rng(6)
    labels = {"point": ["pain", "itch", "none"], "need": ["", "a", "a/b", "a/b/x", "a/b/y"]}
    arrays: Arrays = {"l1.q.b": rng.normal(size=HIDDEN), "l1.aln.w": rng.uniform(0.5, 1.5, HIDDEN)}
    for name, size in (("l0.q", HIDDEN), ("l1.fi", FORWARD)):
        arrays |= {f"{name}.down": rng.normal(size=(4, HIDDEN)) / 8, f"{name}.up": rng.normal(size=(size, 4)) / 8}
    for name, known in labels.items():
        arrays[f"head.{name}.query"] = rng.normal(size=HIDDEN) / 4
        arrays[f"head.{name}.w"] = rng.normal(size=(len(known), HIDDEN)) / 4
        arrays[f"head.{name}.b"] = rng.normal(size=len(known))
    meta = {"labels": labels, "classes": {"need": ["", "a/b/x", "a/b/y"]}, "temperatures": {"point": 2.0, "need": 0.5}}
    return adapter.Adapter({name: value.astype(np.float32) for name, value in arrays.items()}, meta)


def forward(source: Pretrained, learnt: adapter.Adapter, ids: list[int]) -> Arrays:
    """One text through BERT (Devlin et al. 2019) with post-norms, as plainly as can be: probabilities by head."""
    weights = dict(source.tensors)
    for name, value in learnt.arrays.items():
        if name.endswith(".up"):
            matrix = name.removesuffix(".up")
            weights[f"{matrix}.w"] = weights[f"{matrix}.w"] + value @ learnt.arrays[f"{matrix}.down"]
        elif name in weights:
            weights[name] = value

    def norm(rows: Any, name: str) -> Any:
        centred = rows - rows.mean(1, keepdims=True)
        scaled = centred / np.sqrt(centred.var(1, keepdims=True) + source.epsilon)
        return scaled * weights[f"{name}.w"] + weights[f"{name}.b"]

    def linear(rows: Any, name: str) -> Any:
        return rows @ weights[f"{name}.w"].T + weights[f"{name}.b"]

    states = norm(source.words.unpacked()[ids] + weights["emb.pos"][: len(ids)], "emb.ln")
    each = HIDDEN // HEADS
    for layer in range(LAYERS):
        context = np.zeros_like(states)
        for head in range(HEADS):
            part = slice(head * each, (head + 1) * each)
            query, key, value = (linear(states, f"l{layer}.{name}")[:, part] for name in "qkv")
            context[:, part] = softmax(query @ key.T / each**0.5, axis=1) @ value
        states = norm(linear(context, f"l{layer}.ao") + states, f"l{layer}.aln")
        inner = linear(states, f"l{layer}.fi")
        inner = inner * 0.5 * (1 + erf(inner / 2**0.5))
        states = norm(linear(inner, f"l{layer}.fo") + states, f"l{layer}.oln")
    logits = {}
    for name in learnt.meta["labels"]:
        pooled = softmax(states @ learnt.arrays[f"head.{name}.query"]) @ states
        logits[name] = learnt.arrays[f"head.{name}.w"] @ pooled + learnt.arrays[f"head.{name}.b"]
    # The classes of the tree are "", a/b/x and a/b/y: each has the coefficients of its path, and lends to its parents.
    empty, a, ab, x, y = logits["need"]
    none, first, second = softmax(np.array([empty, a + ab + x, a + ab + y]) / 0.5)
    return {
        "point": softmax(logits["point"] / 2),
        "need": np.array([none, first + second, first + second, first, second]),
    }


def run(model: onnx.ModelProto, ids: list[list[int]]) -> Arrays:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    width = max(map(len, ids))
    padded = np.array([row + [PAD] * (width - len(row)) for row in ids])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"ids": padded}), strict=True))


TEXTS = [[0, 7, 8, 2], [0, 9, 2], [0, *range(5, 35), 2]]


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("fp16", 0.02), ("int8", 0.1)])
def test_the_graph_computes_a_plain_forward(
    small: Pretrained, learnt: adapter.Adapter, precision: graph.Precision, tolerance: float
) -> None:
    model = graph.write(small, adapter.merged(small, learnt), adapter.heads(learnt), precision)
    measured = run(model, TEXTS)
    for row, ids in enumerate(TEXTS):
        for name, expected in forward(small, learnt, ids).items():
            np.testing.assert_allclose(measured[name][row], expected, atol=tolerance)


def test_a_text_does_not_depend_on_its_batch(small: Pretrained, learnt: adapter.Adapter) -> None:
    model = graph.write(small, adapter.merged(small, learnt), adapter.heads(learnt), "int8")
    together = run(model, TEXTS)
    for row, ids in enumerate(TEXTS):
        for name, alone in run(model, [ids]).items():
            np.testing.assert_allclose(together[name][row], alone[0], atol=2e-3)


def test_the_same_input_gives_the_same_bytes(small: Pretrained, learnt: adapter.Adapter) -> None:
    made = [graph.write(small, adapter.merged(small, learnt), adapter.heads(learnt), "int8") for _ in range(2)]
    assert made[0].SerializeToString(deterministic=True) == made[1].SerializeToString(deterministic=True)


def test_an_adapter_is_saved_and_loaded(tmp_path: Path, learnt: adapter.Adapter) -> None:
    adapter.save(tmp_path, learnt)
    first = (tmp_path / adapter.ARRAYS).read_bytes()
    loaded = adapter.load(tmp_path)
    assert loaded.meta == learnt.meta
    assert loaded.arrays.keys() == learnt.arrays.keys()
    for name, value in learnt.arrays.items():
        # A row of the low-rank matrices is told in 127 steps of its largest weight.
        step = np.abs(value).max(axis=1, keepdims=True) / 127 if name.endswith((".up", ".down")) else 0
        assert (np.abs(loaded.arrays[name] - value) <= 0.51 * step + 1e-3 * np.abs(value)).all()
    adapter.save(tmp_path, loaded)
    assert (tmp_path / adapter.ARRAYS).read_bytes() == first


def packed_file(path: Path) -> tuple[Arrays, Any]:
    """A file as the wheel packs it, of one layer and few words; returns its plain tensors and its word codes."""
    rng = np.random.default_rng(8)
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "\u2581ž"]
    hidden, forward_size, positions = 32, 64, 3
    plain = {"emb.pos": (positions, hidden), "emb.type": (1, hidden), "emb.ln.w": (hidden,), "emb.ln.b": (hidden,)}
    packed = {"emb.word": (len(pieces), hidden)}
    sizes = {"h": hidden, "f": forward_size}
    for name, (outputs, inputs) in MATRICES.items():
        packed[f"l0.{name}.w"] = (sizes[outputs], sizes[inputs])
        plain[f"l0.{name}.b"] = (sizes[outputs],)
    plain |= {f"l0.{norm}.{part}": (hidden,) for norm in pretrained.NORMS for part in "wb"}
    values: Arrays = {name: rng.normal(size=shape).astype("<f4") for name, shape in plain.items()}
    codes = {name: rng.integers(0, 16, shape, dtype=np.uint8) for name, shape in packed.items()}
    blobs = {name: value.tobytes() for name, value in values.items()}
    for name, value in codes.items():
        blocks = value.reshape(-1, 32)
        scale = np.full((len(blocks), 1), 0.5, "<f2").view(np.uint8)
        blobs[name] = np.concatenate([scale, blocks[:, :16] | blocks[:, 16:] << 4], axis=1).tobytes()
    text = "".join(pieces).encode()
    ends = np.cumsum([0, *(len(piece.encode()) for piece in pieces)])
    head = b"E5S1" + struct.pack("<i7i", 1, hidden, 1, 12, forward_size, len(pieces), positions, 1)
    head += struct.pack("<fi5iQ", 1e-12, 0, len(pieces), 0, 2, 1, 3, len(text))
    head += ends.astype("<u4").tobytes() + np.arange(len(pieces), dtype="<f4").tobytes() + text
    head += struct.pack("<iI", 0, 0) + struct.pack("<i", len(blobs))
    start = len(head) + sum(2 + len(name) + 1 + 4 + 16 for name in blobs)
    for name, blob in blobs.items():
        head += struct.pack("<H", len(name)) + name.encode() + struct.pack("<BIQQ", 0, 0, start, len(blob))
        start += len(blob)
    path.write_bytes(head + b"".join(blobs.values()))
    return values, codes


def test_the_wheels_file_is_read_as_it_was_packed(tmp_path: Path) -> None:
    values, codes = packed_file(tmp_path / "file")
    source = pretrained.read(tmp_path / "file")
    assert (source.layers, source.hidden, source.vocabulary.pad) == (1, 32, 1)
    assert source.vocabulary.pieces[4] == "\u2581ž"
    np.testing.assert_array_equal(source.words.codes, codes["emb.word"])
    np.testing.assert_array_equal(source.tensors["l0.fi.w"], (codes["l0.fi.w"].astype(np.float32) - 8) * 0.5)
    np.testing.assert_array_equal(source.tensors["l0.oln.b"], values["l0.oln.b"])
    np.testing.assert_allclose(source.tensors["emb.pos"], values["emb.pos"] + values["emb.type"])


def test_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"GGUF" + bytes(64))
    with pytest.raises(WeightsError, match="no packed E5 model"):
        pretrained.read(tmp_path / "file")
