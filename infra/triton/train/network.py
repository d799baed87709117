"""The encoder and its heads in PyTorch, for training alone; `infra.triton.encoder.graph` is its twin that serves.

What is learnt is small: low-rank deltas on the matrices of all layers (LoRA, Hu et al. 2021, arXiv:2106.09685),
their biases and norms, and the heads. Each head pools the tokens with attention of its own (a learned query; at zero,
where it starts, that is the mean) and is one linear layer on top. The head of needs adds up coefficients along the path
of a need, so that siblings share what they have in common.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from infra.triton.encoder.pretrained import HEADS, MATRICES, NORMS, Pretrained

#: Rank of the deltas, and what multiplies them.
RANK = 64
SCALE = 2.0
DROPOUT = 0.15


@dataclass(frozen=True, slots=True)
class Head:
    """One question: its labels (for a tree, of its nodes) and `tree` [nodes, classes], 1 where a node is on the path.

    The identity for a flat head, whose classes are its labels.
    """

    name: str
    labels: list[str]
    tree: NDArray[np.float32]


class Network:
    """`base` is never changed; `learnt` is what the optimiser moves and what is committed. All lie on `device`."""

    def __init__(self, pretrained: Pretrained, heads: list[Head], seed: int, device: str = "cpu") -> None:
        self.heads = heads
        self.device = device
        self.layers = pretrained.layers
        self.hidden = pretrained.hidden
        self.epsilon = pretrained.epsilon
        self.words = torch.from_numpy(pretrained.words.unpacked()).bfloat16().to(device)
        self.base = {name: torch.from_numpy(value.copy()).to(device) for name, value in pretrained.tensors.items()}
        self.low = {name: value.bfloat16() for name, value in self.base.items() if value.dim() == 2}
        self.trees = {head.name: torch.from_numpy(head.tree).to(device) for head in heads}
        generator = torch.Generator().manual_seed(seed)
        self.learnt: dict[str, Tensor] = {}
        for layer in range(self.layers):
            for matrix in MATRICES:
                name = f"l{layer}.{matrix}"
                outputs, inputs = self.base[f"{name}.w"].shape
                down = torch.randn(RANK, inputs, generator=generator) / inputs**0.5
                self.learnt[f"{name}.down"] = down
                self.learnt[f"{name}.up"] = torch.zeros(outputs, RANK)
                self.learnt[f"{name}.b"] = self.base[f"{name}.b"].clone()
            for norm in NORMS:
                for part in "wb":
                    self.learnt[f"l{layer}.{norm}.{part}"] = self.base[f"l{layer}.{norm}.{part}"].clone()
        for head in heads:
            self.learnt[f"head.{head.name}.query"] = torch.zeros(self.hidden)
            self.learnt[f"head.{head.name}.w"] = torch.zeros(len(head.labels), self.hidden)
            self.learnt[f"head.{head.name}.b"] = torch.zeros(len(head.labels))
        # Drawn on the CPU wherever they go, so that a seed begins alike on every device.
        self.learnt = {name: value.to(device).requires_grad_() for name, value in self.learnt.items()}
        #: Whether it begins where an earlier training ended.
        self.continues = False

    def continue_from(self, deltas: Mapping[str, NDArray[np.float32]]) -> None:
        """Begin with what `deltas` gave, of this rank or a lower one; a head whose labels have changed begins anew."""
        for name, value in self.learnt.items():
            if name not in deltas:
                continue
            start = torch.from_numpy(deltas[name] / (SCALE if name.endswith(".up") else 1))
            if start.shape == value.shape or not name.startswith("head."):
                # A lower rank is a part of this one: the rest of `up` is 0, so that the product is the same.
                value.data[tuple(map(slice, start.shape))].copy_(start)
        self.continues = True

    def _linear(self, values: Tensor, name: str, *, train: bool) -> Tensor:
        low = values.bfloat16()
        result = functional.linear(low, self.low[f"{name}.w"])
        if f"{name}.down" in self.learnt:
            delta = functional.dropout(functional.linear(low, self.learnt[f"{name}.down"].bfloat16()), DROPOUT, train)
            result = result + SCALE * functional.linear(delta, self.learnt[f"{name}.up"].bfloat16())
        return result.float() + self._value(f"{name}.b")

    def _value(self, name: str) -> Tensor:
        return self.learnt[name] if name in self.learnt else self.base[name]

    def _norm(self, values: Tensor, name: str) -> Tensor:
        weight, bias = self._value(f"{name}.w"), self._value(f"{name}.b")
        return functional.layer_norm(values, (self.hidden,), weight, bias, self.epsilon)

    def _layer(self, states: Tensor, bias: Tensor, layer: int, *, train: bool) -> Tensor:
        texts, length, hidden = states.shape
        name = f"l{layer}"
        query, key, value = (
            self._linear(states, f"{name}.{matrix}", train=train)
            .view(texts, length, HEADS, hidden // HEADS)
            .transpose(1, 2)
            for matrix in "qkv"
        )
        # Written out: texts are short, and PyTorch's fused attention takes thrice as long backwards on a CPU.
        share = torch.softmax(query @ key.transpose(2, 3) * (HEADS / hidden) ** 0.5 + bias, dim=-1)
        context = (share @ value).transpose(1, 2).reshape(texts, length, hidden)
        states = self._norm(self._linear(context, f"{name}.ao", train=train) + states, f"{name}.aln")
        inner = functional.gelu(self._linear(states, f"{name}.fi", train=train))
        return self._norm(self._linear(inner, f"{name}.fo", train=train) + states, f"{name}.oln")

    def encode(self, ids: Tensor, mask: Tensor, *, train: bool) -> Tensor:
        """Token states [texts, length, hidden] of `ids` int64 [texts, length]; `mask` is true at tokens."""
        bias = torch.where(mask, 0.0, -1e4)[:, None, None, :]
        states = self.words[ids].float() + self.base["emb.pos"][: ids.shape[1]]
        states = self._norm(states, "emb.ln")
        for layer in range(self.layers):
            states = self._layer(states, bias, layer, train=train)
        return states

    def logits(self, ids: Tensor, mask: Tensor, *, train: bool = False) -> dict[str, Tensor]:
        """Per head the logits of its classes [texts, classes]."""
        states = self.encode(ids, mask, train=train)
        queries = torch.stack([self.learnt[f"head.{head.name}.query"] for head in self.heads])
        scores = (states @ queries.T).masked_fill(~mask[:, :, None], -1e4)
        pooled = torch.softmax(scores, dim=1).transpose(1, 2) @ states
        pooled = functional.dropout(pooled, DROPOUT, train)
        results = {}
        for number, head in enumerate(self.heads):
            nodes = functional.linear(
                pooled[:, number], self.learnt[f"head.{head.name}.w"], self.learnt[f"head.{head.name}.b"]
            )
            results[head.name] = nodes @ self.trees[head.name]
        return results

    def deltas(self) -> dict[str, NDArray[np.float32]]:
        """What was learnt, float32, by the names that `infra.triton.encoder.adapter` reads."""
        values = {name: value.detach().cpu().numpy().copy() for name, value in self.learnt.items()}
        return {name: value * SCALE if name.endswith(".up") else value for name, value in values.items()}
