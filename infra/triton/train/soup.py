"""One model from several: the mean of what they learnt, or what lies between the pretrained encoder and a trained one.

Runs that begin with the same pretrained weights end in one valley of the loss, and their mean lies deeper in it than
each of them (model soups; Wortsman et al. 2022, arXiv:2203.05482). Unlike an ensemble it costs nothing to serve.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from infra.triton.encoder.pretrained import Array

Arrays = Mapping[str, Array]


def mean(members: Sequence[Arrays], rank: int) -> dict[str, Array]:
    """The mean of adapters (see `infra.triton.encoder.adapter`), their deltas with at most `rank`.

    The mean is taken of the products of each pair of low-rank matrices, for only those mean the same in every run. It
    has the ranks of all together, and the nearest matrix of lower rank takes its place (Eckart and Young 1936).

    Raises:
        KeyError: the members are not of the same encoder and heads.
    """
    result: dict[str, Array] = {}
    for name in members[0]:
        if name.endswith(".up"):
            down = f"{name.removesuffix('.up')}.down"
            ups: Array = np.concatenate([each[name] / np.float32(len(members)) for each in members], axis=1)
            downs: Array = np.concatenate([each[down] for each in members], axis=0)
            result[name], result[down] = _lower(ups, downs, rank)
        elif not name.endswith(".down"):
            result[name] = np.mean([each[name] for each in members], axis=0, dtype=np.float32)
    return result


def between(learnt: Arrays, pretrained: Arrays, share: float) -> dict[str, Array]:
    """The encoder `share` of the way from the pretrained one to what was learnt; heads stay as they are.

    Training makes an encoder better on texts like those it saw and worse on others; a point on the straight line
    between both keeps most of the first and gives back much of the second (WiSE-FT; Wortsman et al. 2022,
    arXiv:2109.01903).
    """
    result: dict[str, Array] = {}
    for name, value in learnt.items():
        if name.endswith(".up"):
            result[name] = np.float32(share) * value
        else:
            result[name] = (
                pretrained[name] + np.float32(share) * (value - pretrained[name]) if name in pretrained else value
            )
    return result


def _lower(up: Array, down: Array, rank: int) -> tuple[Array, Array]:
    """`up` [outputs, any] and `down` [any, inputs] whose product is the nearest of at most `rank` to theirs."""
    left, one = np.linalg.qr(up)
    right, other = np.linalg.qr(down.T)
    rows, sizes, columns = np.linalg.svd(one @ other.T)
    roots = np.sqrt(sizes[:rank])
    return left @ (rows[:, :rank] * roots), (roots[:, None] * columns[:rank]) @ right.T
