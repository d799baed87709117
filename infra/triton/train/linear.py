"""Softmax regression for few texts and many features, with labels on a tree.

There are far fewer texts than buckets, and with an L2 penalty the best weights lie in the span of the texts. So the
texts are first rotated into that span (at most as many dimensions as texts), where L-BFGS finds the optimum in
seconds; `weights` rotates the solution back. Deterministic: no sampling, no initial noise.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import logsumexp

Matrix = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Span:
    """Training texts in the space that they span: `rows` [texts, rank], and `back` [rank, texts] to weights."""

    rows: Matrix
    back: Matrix

    @staticmethod
    def of(matrix: Any) -> "Span":
        gram = np.asarray((matrix @ matrix.T).todense(), dtype=np.float64)
        values, vectors = np.linalg.eigh(gram)
        keep = values > 1e-9 * values[-1]
        roots = np.sqrt(values[keep])
        return Span(vectors[:, keep] * roots, (vectors[:, keep] / roots).T)


@dataclass(frozen=True, slots=True)
class Head:
    """A fitted head in the span: logits are `rows @ coefficients + bias`, [texts, classes]."""

    coefficients: Matrix
    bias: Matrix

    def logits(self, rows: Matrix) -> Matrix:
        result: Matrix = rows @ self.coefficients + self.bias
        return result

    def weights(self, matrix: Any, span: Span) -> NDArray[np.float32]:
        """Weights on the buckets, float32 [buckets, classes]; `matrix` is what the span was made of."""
        result: NDArray[np.float32] = np.asarray(matrix.T @ (span.back.T @ self.coefficients), dtype=np.float32)
        return result


def fit(rows: Matrix, allowed: NDArray[np.bool_], tree: Matrix, weight: Matrix, penalty: float) -> Head:
    """Minimise the weighted mean of -log P(allowed classes), plus penalty/2 times the squared coefficients.

    Args:
        rows: texts in their span [texts, rank].
        allowed: [texts, classes]; a text labelled with an inner node allows each class below it.
        tree: [nodes, classes], 1 where a node lies on the path of a class. Each node has coefficients of its own and a
            class adds up those of its path, so that siblings learn from each other. The identity for a flat head.
        weight: importance of each text [texts].
        penalty: strength of the L2 term.
    """
    rank = rows.shape[1]
    nodes = len(tree)
    share = (weight / weight.sum())[:, None]

    def loss(flat: Matrix) -> tuple[float, Matrix]:
        coefficients = flat[: rank * nodes].reshape(rank, nodes)
        logits = (rows @ coefficients + flat[rank * nodes :]) @ tree
        log_total = logsumexp(logits, axis=1, keepdims=True)
        log_allowed = logsumexp(np.where(allowed, logits, -np.inf), axis=1, keepdims=True)
        probability = np.exp(logits - log_total)
        posterior = np.where(allowed, np.exp(logits - log_allowed), 0)
        gradient = (share * (probability - posterior)) @ tree.T
        value = float((share * (log_total - log_allowed)).sum() + penalty / 2 * (coefficients**2).sum())
        slope = np.concatenate([(rows.T @ gradient + penalty * coefficients).ravel(), gradient.sum(0)])
        return value, slope

    found = minimize(loss, np.zeros((rank + 1) * nodes), jac=True, method="L-BFGS-B", options={"maxiter": 100})
    coefficients = found.x[: rank * nodes].reshape(rank, nodes)
    return Head(coefficients @ tree, found.x[rank * nodes :] @ tree)


def temperature(logits: Matrix, allowed: NDArray[np.bool_]) -> float:
    """The factor on the logits, fitted on texts the head did not see, that makes probabilities honest."""

    def loss(log_factor: Matrix) -> float:
        scaled = logits * np.exp(log_factor[0])
        inside = logsumexp(np.where(allowed, scaled, -np.inf), axis=1)
        return float((logsumexp(scaled, axis=1) - inside).mean())

    return float(np.exp(minimize(loss, np.zeros(1), method="Nelder-Mead").x[0]))
