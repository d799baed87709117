"""The trained heads as one ONNX graph.

Inputs `ids` int64 [n, length] and `counts` float32 [n, length] (see `features.padded`); outputs `language`,
`sentiment`, `point` and `need`, float32 [n, labels], each calibrated probabilities. `need` holds every node of the
tree: a parent's probability is the sum of its children's. Labels, thresholds and the taxonomy's version travel in the
graph's metadata under `recorrido`.

Weights are stored as int8 with one scale per column, a quarter of the size; ONNX Runtime expands them once, at load.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

OPSET = 17


@dataclass(frozen=True, slots=True)
class HeadExport:
    """One head: `weights` [buckets, classes] and `bias` [classes] already multiplied by the temperature's factor."""

    name: str
    weights: NDArray[np.float32]
    bias: NDArray[np.float32]


def export(
    path: Path, idf: NDArray[np.float32], heads: list[HeadExport], need_tree: NDArray[np.float32], meta: dict[str, Any]
) -> None:
    """Write the graph; `need_tree` [nodes, leaves] sums the leaves of the last head up to its nodes."""
    weights = np.concatenate([head.weights for head in heads], axis=1)
    scale = np.maximum(np.abs(weights).max(axis=0), 1e-12) / 127
    rows = np.concatenate([np.rint(weights / scale), np.zeros((1, weights.shape[1]))]).astype(np.int8)
    constants = {
        "idf": np.append(idf, np.float32(0)),
        "weights_int8": rows,
        "weights_scale": scale.astype(np.float32),
        "bias": np.concatenate([head.bias for head in heads]).astype(np.float32),
        "sizes": np.array([len(head.bias) for head in heads], dtype=np.int64),
        "one": np.ones(1, np.float32),
        "tiny": np.full(1, 1e-12, np.float32),
        "axis_1": np.array([1], dtype=np.int64),
        "need_tree_t": np.ascontiguousarray(need_tree.T, dtype=np.float32),
    }
    node = helper.make_node
    last = heads[-1].name
    nodes = [
        # tf-idf: (1 + ln(count)) · idf, padding has count 0 and idf 0.
        node("Max", ["counts", "one"], ["counted"]),
        node("Log", ["counted"], ["log_count"]),
        node("Add", ["log_count", "one"], ["tf"]),
        node("Gather", ["idf", "ids"], ["idf_of"]),
        node("Mul", ["tf", "idf_of"], ["tf_idf"]),
        node("ReduceL2", ["tf_idf"], ["length"], axes=[1], keepdims=1),
        node("Max", ["length", "tiny"], ["safe_length"]),
        node("Div", ["tf_idf", "safe_length"], ["values"]),
        node("Unsqueeze", ["values", "axis_1"], ["values_row"]),
        # Only the rows of the text's own n-grams are touched.
        node("Cast", ["weights_int8"], ["weights_float"], to=TensorProto.FLOAT),
        node("Mul", ["weights_float", "weights_scale"], ["weights"]),
        node("Gather", ["weights", "ids"], ["weights_of"]),
        node("MatMul", ["values_row", "weights_of"], ["sums_row"]),
        node("Squeeze", ["sums_row", "axis_1"], ["sums"]),
        node("Add", ["sums", "bias"], ["logits"]),
        node("Split", ["logits", "sizes"], [f"{head.name}_logits" for head in heads], axis=1),
        *(
            node("Softmax", [f"{head.name}_logits"], [head.name if head.name != last else "leaves"], axis=1)
            for head in heads
        ),
        node("MatMul", ["leaves", "need_tree_t"], [last]),
    ]
    widths = [len(head.bias) for head in heads[:-1]] + [len(need_tree)]
    graph = helper.make_graph(
        nodes,
        "feedback",
        [
            helper.make_tensor_value_info("ids", TensorProto.INT64, ["texts", "ngrams"]),
            helper.make_tensor_value_info("counts", TensorProto.FLOAT, ["texts", "ngrams"]),
        ],
        [
            helper.make_tensor_value_info(head.name, TensorProto.FLOAT, ["texts", width])
            for head, width in zip(heads, widths, strict=True)
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
    helper.set_model_props(model, {"recorrido": json.dumps(meta, ensure_ascii=False)})
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())
