"""The verbatims that the project owns: `infra/triton/data/verbatims.<language>.jsonl`, and their split."""

import hashlib
from pathlib import Path
from typing import Annotated

import msgspec

from infra.triton.taxonomy import Taxonomy

DATA = Path(__file__).parents[1] / "data"
SENTIMENTS = ("negative", "neutral", "positive")
POINTS = ("pain", "itch", "delight", "none")
# Plutchik's eight (1980), the set that most published corpora map to, and none.
EMOTIONS = ("anger", "disgust", "fear", "sadness", "surprise", "joy", "trust", "anticipation", "none")
INTENTS = ("complain", "ask", "request", "suggest", "praise", "thank", "leave", "refer", "none")
EFFORTS = ("high", "low", "none")
URGENCIES = ("high", "normal")
#: The need of a row that says nothing about needs; an empty need says that there is none. No row of the files has it.
UNSAID = "*"
_OPTIONAL = {"emotion": EMOTIONS, "intent": INTENTS, "effort": EFFORTS, "urgency": URGENCIES}
# Shares of (author, theme) groups that are never trained on: to judge by, and to calibrate and choose thresholds with.
HELD_OUT = 0.2
CALIBRATION = 0.08


class Verbatim(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One labelled text. `need` is the deepest path that fits, empty when no need is expressed.

    `author` is the voice it was written in and `theme` the situation; texts that share both can resemble each other,
    also across languages, so they always fall on the same side of the split, in every language.
    """

    text: str
    language: str
    sentiment: str
    point: str
    need: str
    channel: str
    author: str
    theme: str
    # Newer rows carry these too; empty where nobody has said.
    emotion: str = ""
    intent: str = ""
    effort: str = ""
    urgency: str = ""
    # How much its loss counts in training.
    weight: Annotated[float, msgspec.Meta(gt=0)] = 1.0

    @property
    def group(self) -> str:
        return f"{self.author}/{self.theme}"

    @property
    def held_out(self) -> bool:
        """Decided by a hash of the group, so that adding rows never moves old ones."""
        return self._place < HELD_OUT

    @property
    def calibrates(self) -> bool:
        return HELD_OUT <= self._place < HELD_OUT + CALIBRATION

    @property
    def _place(self) -> float:
        digest = hashlib.sha256(self.group.encode()).digest()
        return int.from_bytes(digest[:4], "big") / 2**32


class CorpusError(ValueError):
    """A row breaks a rule; the message names file, line and rule."""


def load(taxonomy: Taxonomy, folder: Path = DATA) -> list[Verbatim]:
    """All rows of all languages, in file order.

    Raises:
        CorpusError: malformed JSON, an unknown label, or a text that occurs twice in a language.
    """
    rows: list[Verbatim] = []
    for path in sorted(folder.glob("verbatims.*.jsonl")):
        language = path.name.split(".")[1]
        seen: set[str] = set()
        for number, line in enumerate(path.read_bytes().splitlines(), start=1):
            try:
                row = msgspec.json.decode(line, type=Verbatim)
            except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                raise CorpusError(f"{path.name}:{number}: {error}") from error
            problem = _problem(row, language, taxonomy)
            if row.text.casefold() in seen:
                problem = "this text occurs twice"
            if problem:
                raise CorpusError(f"{path.name}:{number}: {problem}")
            seen.add(row.text.casefold())
            rows.append(row)
    return rows


def definitions(taxonomy: Taxonomy) -> list[Verbatim]:
    """Name and definition of every need in every language, as rows that teach the words of a need and nothing else.

    Sentiment and point are empty: unknown, so they neither help nor harm those heads.
    """
    return [
        Verbatim(f"{need.name[language]}. {need.definition[language]}", language, "", "", path, "", "taxonomy", path)
        for path, need in taxonomy.needs.items()
        for language in taxonomy.languages
        if not need.retired
    ]


def _problem(row: Verbatim, language: str, taxonomy: Taxonomy) -> str:
    if row.language != language:
        return f"language {row.language} in the file of {language}"
    if row.sentiment not in SENTIMENTS:
        return f"unknown sentiment {row.sentiment}"
    if row.point not in POINTS:
        return f"unknown point {row.point}"
    if row.need and row.need not in taxonomy.needs:
        return f"need {row.need} is not in the taxonomy"
    for field, known in _OPTIONAL.items():
        if getattr(row, field) not in ("", *known):
            return f"unknown {field} {getattr(row, field)}"
    return "" if row.text.strip() else "empty text"
