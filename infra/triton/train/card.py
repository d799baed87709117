"""The model card: what the model is, what it was trained on, and what it gets right and wrong, as measured."""

from collections import Counter
from typing import Any

from infra.triton.taxonomy import Taxonomy
from infra.triton.train.corpus import Verbatim

_HEAD = """# Model card: feedback, version 1

*Written by `python -m infra.triton.train`; do not edit.*

**What it is.** Hashed n-grams (1 to 5 characters, 1 to 3 words) and four linear softmax heads: language, sentiment,
experience point, need. It is the simple, fast baseline that later models are measured against.

**What it is for.** Counting what many customers say, in English, Spanish, Slovenian and Portuguese. It reads a text as
a bag of n-grams: irony, long mixed reviews and rare wordings are beyond it. Do not act on one customer from its
answer alone; a person's correction should win.

**Trained on** verbatims written for this project (`infra/triton/data`) and the taxonomy's names and definitions,
nothing else. Held-out rows share no
group of author and theme with training rows; calibration used cross-validation on training rows only.
"""

_MEASURES = """Accuracy for language, macro-F1 for the others. Needs count every held-out row labelled that deep and the
rows without a need; no abstention. The sets are small: a difference of a few points is noise."""


def render(report: dict[str, Any], rows: list[Verbatim], taxonomy: Taxonomy) -> str:
    """Markdown; `report` is what `evaluate.held_out` returned, with its `external` part where one was measured."""
    parts = [_HEAD, _data(rows, taxonomy), _held_out(report), _external(report.get("external", {})), _LIMITS]
    return "\n".join(parts)


def _data(rows: list[Verbatim], taxonomy: Taxonomy) -> str:
    languages = sorted({row.language for row in rows})
    lines = [
        "## Data",
        "",
        "| language | rows | held out | pain | itch | delight | none | needs used |",
        "|" + " --- |" * 8,
    ]
    for language in languages:
        some = [row for row in rows if row.language == language]
        points = Counter(row.point for row in some)
        leaves = {row.need for row in some if row.need.count("/") == 2}
        lines.append(
            f"| {language} | {len(some)} | {sum(row.held_out for row in some)} | "
            + " | ".join(str(points[point]) for point in ("pain", "itch", "delight", "none"))
            + f" | {len(leaves)} of {len(taxonomy.leaves())} leaves |"
        )
    return "\n".join([*lines, "", f"Taxonomy version {taxonomy.version}.", ""])


def _held_out(report: dict[str, Any]) -> str:
    heads = ["language", "sentiment", "point", "need_1", "need_2", "need_3"]
    lines = [
        f"## Held-out quality ({report['rows']} rows)",
        "",
        _MEASURES,
        "",
        "| language | rows | " + " | ".join(heads) + " |",
        "|" + " --- |" * (len(heads) + 2),
    ]
    for language, scores in report["languages"].items():
        values = " | ".join(f"{scores[head]:.2f}" for head in heads)
        lines.append(f"| {language} | {scores['rows']} | {values} |")
    errors = ", ".join(f"{head} {value:.3f}" for head, value in report["calibration_error"].items())
    return "\n".join([*lines, "", f"Expected calibration error (10 bins): {errors}.", ""])


def _external(sets: dict[str, dict[str, float]]) -> str:
    if not sets:
        return "## Public sets\n\nNot measured in this run (`--external DIR`).\n"
    lines = ["## Public sets (evaluation only, never trained on)", "", "| set | rows | measure |", "|" + " --- |" * 3]
    for name, scores in sets.items():
        measures = ", ".join(f"{key} {value:.3f}" for key, value in scores.items() if key != "rows")
        lines.append(f"| {name} | {scores['rows']:.0f} | {measures} |")
    return "\n".join([*lines, ""])


_LIMITS = """## Limits

- The language head knows the four languages only; another language is forced into one of them unless it is unsure.
- Needs rest on a handful of examples per leaf and language; read level 3 as a hint, level 1 as a count.
- Confidence is calibrated on the project's own verbatims; on other kinds of text (tweets, forums) it is too high.
- The verbatims have few authors, who wrote in many voices; the Spanish and Slovenian ones often tell the same
  situations. A second reader has seen a sample of the English and Portuguese ones only. Real customers vary more.
- Need thresholds were chosen on the held-out rows; what they say about needs is therefore slightly optimistic.
"""
