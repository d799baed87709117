"""What people corrected, as rows to train on: the lines that `recorrido corrections --out FILE` writes.

Each line is an `ExportCorrectionsResponse` in proto JSON. Only what a person decided (`analysis.corrected`) is a label;
the rest is an earlier model's opinion, and a model that learns its own opinions learns nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from infra.triton.taxonomy import Taxonomy
from infra.triton.train import corpus
from infra.triton.train.corpus import CorpusError, Verbatim

#: How much one counts against a verbatim written for training: it is a real customer's, and a model was wrong about it.
WEIGHT = 3.0


class _Analysis(msgspec.Struct, rename="camel"):
    language: str = ""
    sentiment: str = ""
    point: str = ""
    need_path: str = ""
    emotion: str = ""
    intent: str = ""
    effort: str = ""
    urgency: str = ""
    corrected: list[str] = []


class _Line(msgspec.Struct, rename="camel"):
    text: str
    analysis: _Analysis
    interaction_event_id: str
    channel: str = ""


@dataclass(frozen=True, slots=True)
class Lessons:
    """`rows` to train on, and what became of the corrections.

    `used` are texts that are learnt from; `judging` lines about a text that judges or calibrates, which must stay
    unseen; `unknown` lines that say nothing which the taxonomy and the questions know.
    """

    rows: list[Verbatim]
    used: int
    judging: int
    unknown: int


def taught(rows: Sequence[Verbatim], files: Sequence[Path], taxonomy: Taxonomy) -> Lessons:
    """Those of `rows` that are trained on, with what the corrections in `files` say.

    Of corrections about the same words the last one counts. Where a row has these words, its labels give way.

    Raises:
        CorpusError: a line that is not an exported correction; the message names file and line.
    """
    judged = {_words(row.text) for row in rows if row.held_out or row.calibrates}
    given: dict[str, tuple[_Line, dict[str, str]]] = {}
    judging = unknown = 0
    for path in files:
        for number, content in enumerate(path.read_bytes().splitlines(), start=1):
            try:
                line = msgspec.json.decode(content, type=_Line)
            except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                raise CorpusError(f"{path.name}:{number}: {error}") from error
            words, labels = _words(line.text), _labels(line.analysis, taxonomy)
            if not words or not labels:
                unknown += 1
            elif words in judged:
                judging += 1
            else:
                given[words] = line, labels
    used = len(given)
    seen = [row for row in rows if not row.held_out and not row.calibrates]
    for number, row in enumerate(seen):
        if (correction := given.pop(_words(row.text), None)) is not None:
            seen[number] = msgspec.structs.replace(row, **correction[1], weight=WEIGHT)
    return Lessons([*seen, *(_row(line, labels) for line, labels in given.values())], used, judging, unknown)


def _labels(found: _Analysis, taxonomy: Taxonomy) -> dict[str, str]:
    """What a person decided and the questions know, by the fields of a row."""
    known = {
        "language": {language: language for language in taxonomy.languages},
        "sentiment": {f"SENTIMENT_{label.upper()}": label for label in corpus.SENTIMENTS},
        "point": {f"POINT_KIND_{label.upper()}": label for label in corpus.POINTS},
        "need": {"": ""} | {path: path for path, need in taxonomy.needs.items() if not need.retired},
        "emotion": {f"EMOTION_{label.upper()}": label for label in corpus.EMOTIONS},
        "intent": {f"INTENT_{label.upper()}": label for label in corpus.INTENTS},
        "effort": {f"EFFORT_{label.upper()}": label for label in corpus.EFFORTS},
        "urgency": {f"URGENCY_{label.upper()}": label for label in corpus.URGENCIES},
    }
    said = {name: found.need_path if name == "need" else getattr(found, name) for name in known}
    return {
        name: known[name][value]
        for name, value in said.items()
        if f"ASPECT_{name.upper()}" in found.corrected and value in known[name]
    }


def _row(line: _Line, labels: dict[str, str]) -> Verbatim:
    """A row that says nothing of what nobody decided."""
    nothing = {"language": "", "sentiment": "", "point": "", "need": corpus.UNSAID}
    origin = {"channel": line.channel, "author": "correction", "theme": line.interaction_event_id}
    return Verbatim(text=line.text, weight=WEIGHT, **origin, **(nothing | labels))


def _words(text: str) -> str:
    """The same for texts that differ in case and white space alone."""
    return " ".join(text.casefold().split())
