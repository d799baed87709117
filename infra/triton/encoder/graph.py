"""The encoder and its heads as one ONNX graph, written node by node.

Input `ids` int64 [texts, length], padded with the vocabulary's pad. Outputs: per head calibrated probabilities, float32
[texts, labels]; of a tree, for every node, a parent's being the sum of its children's.

Precision `int8` is for CPUs: weights are int8 with a scale per output, activations uint8 with a scale per token, so
that a text's answer does not depend on what shares its batch; word vectors stay in the 4 bits that they came in. `fp32`
and `fp16` use standard operators alone and are for ONNX Runtime's CUDA and TensorRT providers.
"""

from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from infra.triton.encoder.adapter import Head
from infra.triton.encoder.pretrained import BLOCK, HEADS, Array, Packed, Pretrained

OPSET = 21
Precision = Literal["int8", "fp32", "fp16"]
#: What is added to the scores of padding before a softmax; within fp16.
_NEVER = -1e4


class _Graph:
    """Nodes and constants in the making; each method adds some and returns the name of what they compute."""

    def __init__(self, precision: Precision) -> None:
        self.precision = precision
        self.kind = np.dtype(np.float16 if precision == "fp16" else np.float32)
        self.type = TensorProto.FLOAT16 if precision == "fp16" else TensorProto.FLOAT
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}

    def constant(self, name: str, value: NDArray[np.generic]) -> str:
        if name not in self.constants:
            self.constants[name] = numpy_helper.from_array(np.ascontiguousarray(value), name)
        return name

    def real(self, name: str, value: Array | float) -> str:
        return self.constant(name, np.asarray(value, dtype=self.kind))

    def whole(self, *values: int) -> str:
        return self.constant(f"whole_{'_'.join(map(str, values))}", np.array(values, dtype=np.int64))

    def add(self, operator: str, *inputs: str, outputs: int = 1, domain: str = "", **attributes: Any) -> list[str]:
        names = [f"{operator}_{len(self.nodes)}_{number}" for number in range(outputs)]
        self.nodes.append(helper.make_node(operator, list(inputs), names, domain=domain, **attributes))
        return names

    def one(self, operator: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        return self.add(operator, *inputs, domain=domain, **attributes)[0]

    def cast(self, value: str, kind: int) -> str:
        return self.one("Cast", value, to=kind)

    def rows(self, value: str) -> tuple[str, str]:
        """`value` [..., inputs] as uint8 around 128, with one scale per row: quantised once for all that reads it."""
        largest = self.one("ReduceMax", self.one("Abs", value), self.whole(-1), keepdims=1)
        scale = self.one("Div", self.one("Max", largest, self.real("tiny", 1e-8)), self.real("127", 127))
        steps = self.one("Round", self.one("Div", value, scale))
        return self.cast(self.one("Add", steps, self.real("128", 128)), TensorProto.UINT8), scale

    def linear(self, value: str, name: str, weights: Array, bias: Array) -> str:
        """`value` [..., inputs] times `weights` [outputs, inputs] transposed, plus `bias`."""
        if self.precision != "int8":
            product = self.one("MatMul", value, self.real(f"{name}.w", weights.T))
            return self.one("Add", product, self.real(f"{name}.b", bias))
        steps, scale = self.rows(value)
        of_output = np.maximum(np.abs(weights).max(axis=1), 1e-12) / 127
        whole = np.rint(weights / of_output[:, None]).astype(np.int8)
        zero = self.constant("zero_point", np.array(128, np.uint8))
        product = self.one("MatMulInteger", steps, self.constant(f"{name}.w", whole.T), zero)
        real = self.one("Mul", self.cast(product, TensorProto.FLOAT), self.real(f"{name}.s", of_output))
        return self.one("Add", self.one("Mul", real, scale), self.real(f"{name}.b", bias))

    def norm(self, value: str, name: str, tensors: dict[str, Array], epsilon: float) -> str:
        weight, bias = (self.real(f"{name}.{part}", tensors[f"{name}.{part}"]) for part in "wb")
        return self.one("LayerNormalization", value, weight, bias, axis=-1, epsilon=epsilon)

    def words(self, packed: Packed, ids: str) -> str:
        """Word vectors of `ids`, [texts, length, hidden]."""
        if self.precision != "int8":
            return self.one("Gather", self.real("emb.word", packed.unpacked()), ids)
        pairs = packed.codes[:, 0::2] | packed.codes[:, 1::2] << 4
        table = helper.make_tensor("emb.word", TensorProto.UINT4, packed.codes.shape, pairs.tobytes(), raw=True)
        self.constants["emb.word"] = table
        attributes: dict[str, Any] = {"block_size": BLOCK, "gather_axis": 0, "quantize_axis": 1}
        zeros = np.full((packed.scales.size + 1) // 2, 0x88, np.uint8)
        zero = helper.make_tensor("emb.zero", TensorProto.UINT4, packed.scales.shape, zeros.tobytes(), raw=True)
        self.constants["emb.zero"] = zero
        scales = self.real("emb.scale", packed.scales)
        inputs = ("emb.word", ids, scales, "emb.zero")
        return self.one("GatherBlockQuantized", *inputs, domain="com.microsoft", **attributes)


def write(
    pretrained: Pretrained, tensors: dict[str, Array], heads: list[Head], precision: Precision
) -> onnx.ModelProto:
    """The graph of `tensors` (see `adapter.merged`) and `heads`."""
    graph = _Graph(precision)
    hidden, epsilon = pretrained.hidden, pretrained.epsilon
    pad = graph.constant("pad", np.array(pretrained.vocabulary.pad, np.int64))
    padding = graph.cast(graph.one("Equal", "ids", pad), graph.type)
    bias = graph.one("Mul", padding, graph.real("never", _NEVER))
    over_tokens = graph.one("Unsqueeze", bias, graph.whole(1, 2))
    length = graph.one("Shape", "ids", start=1, end=2)
    places = graph.one("Slice", graph.real("emb.pos", tensors["emb.pos"]), graph.whole(0), length, graph.whole(0))
    states = graph.one("Add", graph.words(pretrained.words, "ids"), places)
    states = graph.norm(states, "emb.ln", tensors, epsilon)
    for number in range(pretrained.layers):
        states = _layer(graph, states, over_tokens, f"l{number}", tensors=tensors, hidden=hidden, epsilon=epsilon)
    outputs = _heads(graph, states, bias, heads)
    sizes = [len(head.bias) if head.tree is None else len(head.tree) for head in heads]
    made = helper.make_graph(
        graph.nodes,
        "feedback",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["texts", "length"])],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["texts", size])
            for name, size in zip(outputs, sizes, strict=True)
        ],
        list(graph.constants.values()),
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(made, opset_imports=opsets, ir_version=10)


def _layer(
    graph: _Graph, states: str, bias: str, name: str, *, tensors: dict[str, Array], hidden: int, epsilon: float
) -> str:
    """One transformer layer with norms after attention and after the feed-forward part (BERT)."""
    each = hidden // HEADS
    root = np.float32(each**-0.25)
    # One multiplication for queries, keys and values; half of the scores' scale goes to each side.
    factors = {"q": root, "k": root, "v": np.float32(1)}
    weights = np.concatenate([tensors[f"{name}.{part}.w"] * factor for part, factor in factors.items()])
    biases = np.concatenate([tensors[f"{name}.{part}.b"] * factor for part, factor in factors.items()])
    all_three = graph.linear(states, f"{name}.qkv", weights, biases)
    apart = graph.one("Reshape", all_three, graph.whole(0, 0, 3, HEADS, each))
    # What it is for comes first, then texts, heads, tokens.
    turned = graph.one("Transpose", apart, perm=[2, 0, 3, 1, 4])
    thirds = graph.add("Split", turned, outputs=3, axis=0, num_outputs=3)
    query, key, value = (graph.one("Squeeze", third, graph.whole(0)) for third in thirds)
    scores = graph.one("MatMul", query, graph.one("Transpose", key, perm=[0, 1, 3, 2]))
    share = graph.one("Softmax", graph.one("Add", scores, bias), axis=-1)
    context = graph.one("Transpose", graph.one("MatMul", share, value), perm=[0, 2, 1, 3])
    context = graph.one("Reshape", context, graph.whole(0, 0, hidden))

    def of(part: str, values: str) -> str:
        return graph.linear(values, f"{name}.{part}", tensors[f"{name}.{part}.w"], tensors[f"{name}.{part}.b"])

    states = graph.norm(graph.one("Add", of("ao", context), states), f"{name}.aln", tensors, epsilon)
    inner = graph.one("Gelu", of("fi", states))
    return graph.norm(graph.one("Add", of("fo", inner), states), f"{name}.oln", tensors, epsilon)


def _heads(graph: _Graph, states: str, bias: str, heads: list[Head]) -> list[str]:
    """Each head pools the tokens by its own query, then one linear layer, softmax, and the sums up its tree."""
    queries = graph.real("heads.query", np.stack([head.query for head in heads], axis=1))
    scores = graph.one("Add", graph.one("MatMul", states, queries), graph.one("Unsqueeze", bias, graph.whole(2)))
    share = graph.one("Transpose", graph.one("Softmax", scores, axis=1), perm=[0, 2, 1])
    pooled = graph.add("Split", graph.one("MatMul", share, states), outputs=len(heads), axis=1, num_outputs=len(heads))
    for head, of_head in zip(heads, pooled, strict=True):
        row = graph.one("Squeeze", of_head, graph.whole(1))
        # Calibrated probabilities deserve all the digits there are.
        row = graph.cast(row, TensorProto.FLOAT)
        weights = graph.constant(f"{head.name}.w", head.weights.T.astype(np.float32))
        logits = graph.one("Add", graph.one("MatMul", row, weights), graph.constant(f"{head.name}.b", head.bias))
        if head.tree is None:
            graph.nodes.append(helper.make_node("Softmax", [logits], [head.name], axis=-1))
        else:
            classes = graph.one("Softmax", logits, axis=-1)
            tree = graph.constant(f"{head.name}.tree", head.tree.T.astype(np.float32))
            graph.nodes.append(helper.make_node("MatMul", [classes, tree], [head.name]))
    return [head.name for head in heads]
