"""What training adds to the pretrained encoder, as it is committed: `adapter.npz` and `model.json` of a model version.

`adapter.npz` holds `l7.q.down` [rank, input] and `l7.q.up` [output, rank], whose product is added to the weights of
that matrix, as int8 with the float32 scale of each row beside them (`l7.q.up.scale` [output, 1]; a row's largest weight
is 127); and as float16 new biases and norms under the names of the old ones (`l7.q.b`, `l7.aln.w`) and per head
`head.point.query` [hidden], `head.point.w` [labels, hidden] and `head.point.b` [labels].
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infra.triton.encoder.pretrained import MATRICES, Array, Pretrained

ARRAYS = "adapter.npz"
META = "model.json"
_LOW_RANK = (".up", ".down")
_SCALE = ".scale"
_MOST = 127


@dataclass(frozen=True, slots=True)
class Head:
    """One linear head: `query` [hidden] pools the tokens, `weights` [classes, hidden] and `bias` [classes] give logits.

    `tree` [labels, classes] sums the classes' probabilities up to the labels; None where they are the same.
    """

    name: str
    query: Array
    weights: Array
    bias: Array
    tree: Array | None


@dataclass(frozen=True, slots=True)
class Adapter:
    """The arrays, in float32, and what they mean.

    `meta`: `labels` by head in the graph's order, `classes` of the heads whose labels form a tree, `temperatures` and
    `thresholds` by head, `taxonomy_version`, `pad`, and where it all comes from.
    """

    arrays: dict[str, Array]
    meta: dict[str, Any]


def save(folder: Path, adapter: Adapter) -> None:
    """Write both files; the same content gives the same bytes."""
    packed: dict[str, NDArray[Any]] = {}
    for name, value in sorted(adapter.arrays.items()):
        if name.endswith(_LOW_RANK):
            scale = np.abs(value).max(axis=1, keepdims=True).astype(np.float32) / np.float32(_MOST)
            packed[name] = np.rint(value / np.where(scale > 0, scale, 1)).astype(np.int8)
            packed[f"{name}{_SCALE}"] = scale
        else:
            packed[name] = value.astype(np.float16)
    np.savez_compressed(folder / ARRAYS, **packed)  # type: ignore[arg-type]
    text = json.dumps(adapter.meta, ensure_ascii=False, indent=1)
    (folder / META).write_text(f"{text}\n", encoding="utf-8")


def load(folder: Path) -> Adapter:
    """What `save` wrote, in float32."""
    values: dict[str, Array] = {}
    with np.load(folder / ARRAYS) as arrays:
        for name in arrays.files:
            if name.endswith(_SCALE):
                continue
            values[name] = arrays[name].astype(np.float32)
            if f"{name}{_SCALE}" in arrays.files:
                values[name] *= arrays[f"{name}{_SCALE}"]
    return Adapter(values, json.loads((folder / META).read_text(encoding="utf-8")))


def merged(pretrained: Pretrained, adapter: Adapter) -> dict[str, Array]:
    """The encoder's tensors with what was learnt; the scale of the deltas is already in `up`."""
    tensors = dict(pretrained.tensors)
    for name, value in adapter.arrays.items():
        if name in tensors:
            tensors[name] = value
    for layer in range(pretrained.layers):
        for matrix in MATRICES:
            name = f"l{layer}.{matrix}"
            if f"{name}.up" in adapter.arrays:
                delta = adapter.arrays[f"{name}.up"] @ adapter.arrays[f"{name}.down"]
                tensors[f"{name}.w"] = tensors[f"{name}.w"] + delta
    return tensors


def heads(adapter: Adapter) -> list[Head]:
    """The heads as the graph computes them, with their temperature in the weights."""
    results = []
    for name, labels in adapter.meta["labels"].items():
        arrays = [adapter.arrays[f"head.{name}.{part}"] for part in ("query", "w", "b")]
        query, weights, bias = arrays
        tree = None
        if classes := adapter.meta["classes"].get(name):
            tree = np.array([[on_path(node, leaf) for leaf in classes] for node in labels], dtype=np.float32)
            # A class has the coefficients of its whole path.
            weights, bias = tree.T @ weights, tree.T @ bias
        factor = np.float32(1 / adapter.meta["temperatures"][name])
        results.append(Head(name, query, weights * factor, bias * factor, tree))
    return results


def on_path(node: str, leaf: str) -> bool:
    """Whether `node` of the taxonomy is `leaf` or above it; the empty need is on no path but its own."""
    return leaf == node or (bool(node) and leaf.startswith(f"{node}/"))
