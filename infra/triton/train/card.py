"""The model card: what the model is, what it was trained on, and what it gets right and wrong, as measured."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from infra.triton.taxonomy import Taxonomy
from infra.triton.train.corpus import Verbatim
from infra.triton.train.evaluate import Answered

_QUESTIONS = ("language", "sentiment", "point", "need_1", "need_2", "need_3", "emotion", "intent", "effort", "urgency")
_DRAWN = ("sentiment", "point", "need_1")

_HEAD = """# Model card: feedback, version 2

*Written by `python -m infra.triton.train`; do not edit.*

**What it is.** multilingual-e5-small (Wang et al. 2024, MIT), 12 layers, with low-rank deltas (LoRA) and eight heads
trained here: language, sentiment, experience point, need (three levels), emotion, intent, effort, urgency. Served as an
int8 graph. Version 1, linear heads over hashed n-grams, stays beside it.

**What it is for.** Counting what many customers say, and finding what to read first. Do not act on one customer from
its answer alone; a person's correction should win. Below its thresholds it says that it is unsure.

**Trained on** verbatims written for this project (`infra/triton/data`), the taxonomy's names and definitions, and
{corrections} texts that people corrected; nothing else. Held-out rows share no group of author and theme with training
rows; temperatures and thresholds were set on a third group of rows, neither trained on nor judged by.
"""

_LIMITS = """## Limits

- The language head knows its languages only. Texts in another script are told as unsure; another language in Latin
  script may be taken for a known one, most often for a relative of it.
- Needs rest on some dozen examples per leaf; read level 3 as a hint, level 1 as a count.
- Of emotion, intent, effort and urgency, rare answers (disgust, fear, anticipation, refer, leave, high urgency) have
  few rows to learn from and to be judged by. Readers agree least on emotion (docs/model.md).
- Confidence is calibrated on the project's own verbatims; on other kinds of text (tweets, forums) it is too high.
- The verbatims are written for training, in many voices but by few hands. Real customers vary more.
- Of a text of more than 128 tokens the model reads the beginning and the end.
"""


def render(report: Mapping[str, Any], rows: Sequence[Verbatim], taxonomy: Taxonomy, meta: Mapping[str, Any]) -> str:
    """Markdown of what `__main__.report_on` measured."""
    parts = [
        _HEAD.format(corrections=meta["training"]["corrections"] or "no"),
        _data(rows, taxonomy),
        _held_out(report),
        _against(report),
        _external(report["external"]),
        _calibration(report, meta),
        _curve(report["curve"], meta["training"]),
        _LIMITS,
    ]
    return "\n".join(parts)


def _table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, ["---"] * len(header), *lines))


def _data(rows: Sequence[Verbatim], taxonomy: Taxonomy) -> str:
    lines = []
    for language in sorted({row.language for row in rows}):
        some = [row for row in rows if row.language == language]
        points = Counter(row.point for row in some)
        leaves = {row.need for row in some if row.need.count("/") == 2}
        lines.append(
            [
                language,
                str(len(some)),
                str(sum(row.held_out for row in some)),
                *(str(points[point]) for point in ("pain", "itch", "delight", "none")),
                str(len({row.author for row in some})),
                f"{len(leaves)} of {len(taxonomy.leaves())}",
                str(sum(bool(row.emotion) for row in some)),
            ]
        )
    header = ["language", "rows", "held out", "pain", "itch", "delight", "none", "voices", "needs used", "with emotion"]
    return f"## Data\n\n{_table(header, lines)}\n\nTaxonomy version {taxonomy.version}.\n"


def _held_out(report: Mapping[str, Any]) -> str:
    parts = [
        f"## Held-out quality ({report['rows']} rows)",
        "",
        "Macro-F1: the mean over the labels that occur, so that a rare one counts as much as a common one. Needs count",
        "every held-out row labelled that deep and the rows without a need. No abstention. The baseline is tf-idf of",
        "character n-grams (2 to 5) with a linear SVM per question, trained on the same rows.",
    ]
    for name, languages in report["held_out"].items():
        lines = []
        for language, questions in languages.items():
            cells = [f"{questions[q]['macro_f1']:.2f}" if q in questions else "" for q in _QUESTIONS]
            lines.append([language, str(questions["sentiment"]["rows"]), *cells])
        parts += ["", f"### {name.capitalize()}", "", _table(["language", "rows", *_QUESTIONS], lines)]
    parts += ["", *(f"![Confusion, {name}](card/confusion_{name}.png)" for name in _DRAWN), ""]
    return "\n".join(parts)


def _against(report: Mapping[str, Any]) -> str:
    if "gain" not in report:
        return ""
    lines = [
        [question, f"{gain:+.3f}", f"{low:+.3f} to {high:+.3f}"]
        for question, (gain, low, high) in report["gain"].items()
    ]
    table = _table(["question", "gain in macro-F1", "95 % interval"], lines)
    return f"## Against the model in service\n\nPaired bootstrap over the held-out rows, 1,000 samples.\n\n{table}\n"


def _external(sets: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    names = list(sets)
    lines = []
    for found, scores in sets[names[0]].items():
        for measure in scores:
            if measure != "rows":
                cells = [f"{sets[name][found][measure]:.3f}" if found in sets[name] else "" for name in names]
                lines.append([found, f"{scores['rows']:.0f}", measure, *cells])
    table = _table(["set", "rows", "measure", *names], lines)
    return f"## Other texts and languages (evaluation only, never trained on)\n\n{table}\n"


def _calibration(report: Mapping[str, Any], meta: Mapping[str, Any]) -> str:
    figures = report["held_out"]["candidate"]["all"]
    lines = []
    for question in _QUESTIONS:
        head = question.partition("_")[0]
        error = f"{figures[question]['calibration_error']:.3f}"
        adjusted = f"{meta['adjusted'][head]:.1f}" if head in meta["adjusted"] else ""
        told = report["told"][question]
        shares = f"{told['share']:.0%}", f"{told['right']:.0%}"
        lines.append([question, error, f"{meta['temperatures'][head]:.2f}", adjusted, f"{told['from']:.2f}", *shares])
    header = [
        "question",
        "expected calibration error",
        "temperature",
        "adjusted by",
        "told from",
        "told",
        "of it right",
    ]
    table = _table(header, lines)
    text = (
        "Ten bins, on the held-out rows; all else in the table was set on other rows. Adjusted by: how much of a\n"
        "label's log frequency is taken off before the answer is chosen (Menon et al. 2021), to find rare ones too."
    )
    return f"## Calibration\n\n{text}\n\n{table}\n\n![Reliability](card/reliability.png)\n"


def _curve(curve: Sequence[Mapping[str, float]], training: Mapping[str, Any]) -> str:
    facts = ", ".join(f"{name} {value}" for name, value in training.items())
    last = curve[-1]
    return (
        f"## Training\n\n{facts}; the last epoch's loss {last['loss']:.2f}, on calibration rows "
        f"{last['watched_loss']:.2f}.\n\n![Learning curve](card/curve.png)\n"
    )


def _plots() -> Any:
    import matplotlib as mpl  # noqa: PLC0415 - drawing is for training alone

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    return plt


def pictures(folder: Path, answered: Mapping[str, Answered], report: Mapping[str, Any]) -> None:
    """Confusion of the questions that people act on, as shares of what is true, and how honest confidence is."""
    pyplot = _plots()
    folder.mkdir(parents=True, exist_ok=True)
    for name in _DRAWN:
        each = answered[name]
        labels = sorted({*each.truth, *each.guess})
        counts = np.zeros((len(labels), len(labels)))
        for truth, guess in zip(each.truth, each.guess, strict=True):
            counts[labels.index(truth), labels.index(guess)] += 1
        shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
        size = 2.4 + 0.42 * len(labels)
        figure, axes = pyplot.subplots(figsize=(size, size), layout="constrained")
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        shown = [label or "(none)" for label in labels]
        axes.set(
            title=f"{name}, % of each row",
            xlabel="answered",
            ylabel="true",
            xticks=range(len(labels)),
            yticks=range(len(labels)),
        )
        axes.set_xticklabels(shown, rotation=90)
        axes.set_yticklabels(shown)
        for row, column in np.argwhere(shares >= 0.02):
            colour = "white" if shares[row, column] > 0.5 else "black"
            percent = f"{100 * shares[row, column]:.0f}"
            axes.text(column, row, percent, ha="center", va="center", color=colour, fontsize=7)
        figure.savefig(folder / f"confusion_{name}.png", dpi=80)
        pyplot.close(figure)
    figure, axes = pyplot.subplots(figsize=(4.5, 4.5), layout="constrained")
    axes.plot([0, 1], [0, 1], color="grey", linewidth=0.8)
    for name in _DRAWN:
        each = answered[name]
        correct = np.array(each.truth) == np.array(each.guess)
        bins = np.minimum((each.confidence * 10).astype(int), 9)
        some = [number for number in range(10) if (bins == number).sum() >= 10]
        error = report["held_out"]["candidate"]["all"][name]["calibration_error"]
        points = [(each.confidence[bins == number].mean(), correct[bins == number].mean()) for number in some]
        axes.plot(*zip(*points, strict=True), marker="o", label=f"{name} (error {error:.3f})")
    axes.set(xlabel="confidence", ylabel="share of right answers", xlim=(0, 1), ylim=(0, 1))
    axes.legend()
    figure.savefig(folder / "reliability.png", dpi=80)
    pyplot.close(figure)


def curve_picture(folder: Path, curve: Sequence[Mapping[str, float]]) -> None:
    """Loss and macro-F1 per epoch."""
    pyplot = _plots()
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
    epochs = [each["epoch"] for each in curve]
    for name, label in (("loss", "training"), ("watched_loss", "calibration rows")):
        left.plot(epochs, [each[name] for each in curve], marker="o", label=label)
    for name in ("sentiment", "point", "need"):
        right.plot(epochs, [each[name] for each in curve], marker="o", label=name)
    left.set(xlabel="epoch", ylabel="loss")
    right.set(xlabel="epoch", ylabel="macro-F1, calibration rows", ylim=(0, 1))
    left.legend()
    right.legend()
    figure.savefig(folder / "curve.png", dpi=80)
    pyplot.close(figure)
