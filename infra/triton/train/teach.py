"""What a text says beyond its label, told by models that were not trained on it.

A label names one need; a model that has read much knows that "the box was crushed" is nearly about packaging too. Each
of FOLDS teachers is trained without a fifth of the rows and says what it thinks of those, so that none repeats what it
has learnt by heart (cross-fitting); the student learns from the labels and from them (knowledge distillation, Hinton et
al. 2015, arXiv:1503.02531; from models no larger than itself, Furlanello et al. 2018, arXiv:1805.04770). Teachers also
label what nobody has: the single sentences of longer rows.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from infra.triton.train import corpus
from infra.triton.train.corpus import Verbatim

FOLDS = 5
#: Shorter pieces of a text say too little.
SHORTEST = 8
#: A text's sentences after these are not looked at.
MOST = 32

#: What is said of some texts: per head the probabilities of its classes [texts, classes].
Answers = Mapping[str, NDArray[np.float32]]
Spans = Callable[[str, int], list[tuple[int, int]]]


def fold(row: Verbatim) -> int:
    """0 to FOLDS - 1, the same for all rows of a group, by a hash of it."""
    digest = hashlib.sha256(f"fold/{row.group}".encode()).digest()
    return int.from_bytes(digest[:4], "big") % FOLDS


def sentences(rows: Sequence[Verbatim], spans: Spans) -> list[Verbatim]:
    """The sentences of each row that has several, once each; they say their language and nothing else.

    `spans` gives where the sentences of a text begin and end, as the served model cuts them.
    """
    seen = {row.text.casefold() for row in rows}
    found = []
    for row in rows:
        places = spans(row.text, MOST)
        for start, end in places if len(places) > 1 else []:
            text = row.text[start:end]
            if len(text) < SHORTEST or text.casefold() in seen:
                continue
            seen.add(text.casefold())
            unsaid = {"sentiment": "", "point": "", "emotion": "", "intent": "", "effort": "", "urgency": ""}
            found.append(msgspec.structs.replace(row, text=text, need=corpus.UNSAID, weight=1.0, **unsaid))
    return found


def ask(
    teacher: Callable[[int, Sequence[Verbatim]], Callable[[Sequence[Verbatim]], Answers]],
    rows: Sequence[Verbatim],
    rounds: int,
) -> Answers:
    """What FOLDS teachers say of `rows`, each of those it was not trained on: the mean of `rounds` such sets.

    `teacher` is trained, by its number, on some rows, and then answers. It sees no row that says nothing about needs.
    """
    folds = np.array([fold(row) for row in rows])
    taught: dict[str, NDArray[np.float32]] = {}
    for number in range(rounds * FOLDS):
        mine = number % FOLDS
        answer = teacher(
            number, [row for row, of in zip(rows, folds, strict=True) if of != mine and row.need != corpus.UNSAID]
        )
        asked = np.flatnonzero(folds == mine)
        for head, likely in answer([rows[int(each)] for each in asked]).items():
            taught.setdefault(head, np.zeros((len(rows), likely.shape[1]), np.float32))[asked] += likely / rounds
    return taught
