"""How far two readers agree on the same held-out rows: no model can be judged beyond that.

`data/second_reader.jsonl` holds, for some held-out rows, the labels of a reader who saw text and channel alone.
"""

import math
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from infra.triton import taxonomy
from infra.triton.train import corpus, metrics

QUESTIONS = ("sentiment", "point", "need_1", "need_2", "need_3", "emotion", "intent", "effort", "urgency")


class Reading(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The second reader's labels of the held-out row with this language and text; the names of `corpus.Verbatim`."""

    language: str
    text: str
    sentiment: str
    point: str
    need: str
    emotion: str
    intent: str
    effort: str
    urgency: str


class Agreement(msgspec.Struct, frozen=True):
    """Of one question: rows that both readers answered, share of equal labels, kappa, macro-F1 against the first.

    Not a number where no row was answered by both.
    """

    rows: int
    agreement: float
    kappa: float
    macro_f1: float


def load(rows: Sequence[corpus.Verbatim], path: Path = corpus.DATA / "second_reader.jsonl") -> list[Reading]:
    """The second reader's labels, in file order.

    Raises:
        corpus.CorpusError: a malformed line, or one that is not about a held-out row.
    """
    held_out = {(row.language, row.text) for row in rows if row.held_out}
    readings = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            reading = msgspec.json.decode(line, type=Reading)
        except msgspec.MsgspecError as error:
            raise corpus.CorpusError(f"{path.name}:{number}: {error}") from error
        if (reading.language, reading.text) not in held_out:
            raise corpus.CorpusError(f"{path.name}:{number}: no held-out row has this text")
        readings.append(reading)
    return readings


def measure(rows: Sequence[corpus.Verbatim], readings: Sequence[Reading]) -> dict[str, dict[str, Agreement]]:
    """By language (and `all`), by question. A level of needs counts the rows that both readers labelled that deep."""
    first = {(row.language, row.text): row for row in rows}
    pairs = [(first[reading.language, reading.text], reading) for reading in readings]
    languages = sorted({reading.language for reading in readings})
    return {
        language: {
            question: _agreement([(_answer(a, question), _answer(b, question)) for a, b in some])
            for question in QUESTIONS
        }
        for language in (*languages, "all")
        if (some := [pair for pair in pairs if language in (pair[1].language, "all")])
    }


def table(measured: dict[str, dict[str, Agreement]]) -> str:
    """Markdown: per language and question, kappa and macro-F1."""
    lines = [
        f"| language | rows | {' | '.join(QUESTIONS)} |",
        f"|{' --- |' * (len(QUESTIONS) + 2)}",
    ]
    for language, questions in measured.items():
        cells = [f"{questions[each].kappa:.2f} / {questions[each].macro_f1:.2f}" for each in QUESTIONS]
        lines.append(f"| {language} | {questions['sentiment'].rows} | {' | '.join(cells)} |")
    return "\n".join(lines)


def kappa(first: Sequence[str], second: Sequence[str]) -> float:
    """Cohen's kappa (1960): the share of agreement beyond what the readers' habits alone would give; 1 when equal."""
    one, other = np.asarray(first), np.asarray(second)
    expected = sum(np.mean(one == label) * np.mean(other == label) for label in np.union1d(one, other))
    return 1.0 if expected == 1 else float((np.mean(one == other) - expected) / (1 - expected))


def _answer(labelled: corpus.Verbatim | Reading, question: str) -> str:
    head, _, level = question.partition("_")
    label: str = getattr(labelled, head)
    if not level:
        return label
    parts = label.split("/")
    return "/".join(parts[: int(level)]) if len(parts) >= int(level) else ""


def _agreement(pairs: Sequence[tuple[str, str]]) -> Agreement:
    said = [(a, b) for a, b in pairs if a and b]
    if not said:
        return Agreement(0, math.nan, math.nan, math.nan)
    first, second = [a for a, _ in said], [b for _, b in said]
    return Agreement(len(said), metrics.accuracy(first, second), kappa(first, second), metrics.macro_f1(first, second))


if __name__ == "__main__":
    known = corpus.load(taxonomy.load())
    sys.stdout.write(table(measure(known, load(known))) + "\n")
