"""Train, calibrate, evaluate and promote the feedback model: `python -m infra.triton.train` (see `make train`).

Reads `infra/triton/data/verbatims.*.jsonl`, `taxonomy.yaml` and the pinned pretrained weights. Writes a candidate to
`build/train`: `adapter.npz`, `model.json`, the int8 graph, `report.json`, the card and its pictures. Where the
candidate is no worse than the model in service, beyond noise, on the held-out rows, it takes its place. The same seed,
data, device and number of threads give the same weights.
"""

import argparse
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from infra.triton import taxonomy as needs
from infra.triton.encoder import adapter, build, pretrained, tokenizer
from infra.triton.train import baseline, calibrate, card, corpus, corrections, evaluate, fit, heads, soup
from infra.triton.train.network import RANK, Head, Network

ROOT = Path(__file__).resolve().parents[3]
MODELS = Path(__file__).parents[1] / "models" / "feedback"
#: What an hour on two cores has time for, and what is best; a GPU has it in minutes.
RECIPES: dict[str, dict[str, float]] = {
    "cpu": {"runs": 1, "epochs": 5, "consistency": 0.0},
    "cuda": {"runs": 3, "epochs": 10, "consistency": 1.0},
}
#: How far the encoder goes from the pretrained one to what was learnt: needs lose nothing that can be measured, and
#: texts of other kinds (reviews, forums, tweets) are understood better. Looked at were 0.7, 0.75, 0.85, 0.9 and 1.
KEPT = 0.85
#: What the promotion looks at: the answers that people act on.
JUDGED = ("sentiment", "point", "need_1")


def say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def train(arguments: argparse.Namespace, rows: list[corpus.Verbatim], taxonomy: needs.Taxonomy) -> list[dict[str, Any]]:
    """Fit, set temperatures, and write the candidate's files; returns the learning curve."""
    source = pretrained.read(pretrained.find())
    words = fit.Words(tokenizer.build(source.vocabulary), source.vocabulary.pad)
    questions = [Head(name, heads.labels(name, taxonomy), heads.tree(name, taxonomy)) for name in heads.NAMES]
    lessons = corrections.taught(rows, arguments.corrections, taxonomy)
    seen, watched = lessons.rows, [row for row in rows if row.calibrates]
    say(f"{len(seen)} verbatims to train on, {len(watched)} to calibrate with")
    if arguments.corrections:
        say(
            f"{lessons.used} texts carry a person's correction; left out: {lessons.judging} corrections of texts that "
            f"judge or calibrate, {lessons.unknown} that say nothing known"
        )
    curve: list[dict[str, Any]] = []
    members: list[soup.Arrays] = [adapter.load(folder).arrays for folder in arguments.average]
    for run in range(arguments.runs):
        # All begin at one point, so that the low-rank deltas have much of their rank in common and the mean keeps it.
        network = Network(source, questions, arguments.seed, arguments.device)
        if arguments.start:
            network.continue_from(adapter.load(arguments.start).arrays)
        settings = fit.Settings(
            arguments.seed + run, arguments.epochs, arguments.threads, arguments.rate, arguments.consistency
        )
        say(f"run {run + 1} of {arguments.runs}")
        checkpoint = arguments.output / f"checkpoint-{run + 1}.npz"
        followed = fit.fit(network, words, taxonomy, (seen, watched), settings, say=say, keep=checkpoint)
        curve += [{**each, "epoch": run * arguments.epochs + each["epoch"]} for each in followed]
        members.append(soup.between(network.deltas(), source.tensors, arguments.kept))
    mean = members[0] if len(members) == 1 else soup.mean(members, RANK)
    network = Network(source, questions, arguments.seed, arguments.device)
    network.continue_from(mean if arguments.runs else soup.between(mean, source.tensors, arguments.kept))
    logits = fit.predict(network, words.encode([row.text for row in watched]), words.pad)
    temperatures = calibrate.temperatures(logits, watched, taxonomy)
    training = {
        "seed": arguments.seed,
        "epochs": arguments.epochs,
        "rate": arguments.rate,
        "consistency": arguments.consistency,
        "device": arguments.device,
        "rows": len(seen),
        "corrections": lessons.used,
    }
    if not arguments.runs:
        training = adapter.load(arguments.average[0]).meta["training"]
    learnt = adapter.Adapter(
        network.deltas(),
        {
            "labels": {name: heads.labels(name, taxonomy) for name in heads.NAMES},
            "classes": {heads.NEED: ["", *(need.path for need in taxonomy.leaves())]},
            "temperatures": temperatures,
            "thresholds": {},
            "taxonomy_version": taxonomy.version,
            "pad": words.pad,
            "pretrained": {"wheel": pretrained.WHEEL, "file": pretrained.FILE, "sha256": pretrained.SHA256},
            "training": training | {"averaged": len(members)},
        },
    )
    folder = arguments.output
    adapter.save(folder, learnt)
    build.build(folder, "int8", source)
    return curve


def set_decisions(folder: Path, rows: list[corpus.Verbatim], taxonomy: needs.Taxonomy) -> None:
    """Which answers are chosen, and from where they are told; set on what the built graph, after its rounding, says."""
    watched = [row for row in rows if row.calibrates]
    seen = [row for row in rows if not row.held_out and not row.calibrates]
    likely = dict(evaluate.load(folder).probabilities([row.text for row in watched]))
    learnt = adapter.load(folder)
    strengths = calibrate.strengths(likely, watched, seen, taxonomy)
    learnt.meta["adjusted"] = strengths
    learnt.meta["offsets"] = {
        name: [round(each * float(prior), 4) for prior in calibrate.priors(name, seen, taxonomy)]
        for name, each in strengths.items()
    }
    learnt.meta["thresholds"] = calibrate.thresholds(likely, learnt.meta["offsets"], watched, taxonomy)
    adapter.save(folder, learnt)


def report_on(arguments: argparse.Namespace, rows: list[corpus.Verbatim], service: Path | None) -> dict[str, Any]:
    """Figures of the candidate, the model in service and the baseline on the same rows."""
    held_out = [row for row in rows if row.held_out]
    models: dict[str, evaluate.Classifier] = {"candidate": evaluate.load(arguments.output)}
    if service is not None:
        models["in service"] = evaluate.load(service)
    models["version 1"] = evaluate.load(MODELS / "1")
    say("training the baseline")
    models["baseline"] = baseline.train([row for row in rows if not row.held_out])
    answered = {name: evaluate.by_language(model, held_out) for name, model in models.items()}
    report: dict[str, Any] = {"rows": len(held_out), "held_out": {}, "external": {}}
    for name, languages in answered.items():
        report["held_out"][name] = {
            language: {question: _figures(each) for question, each in questions.items()}
            for language, questions in languages.items()
        }
        report["external"][name] = evaluate.unseen(models[name])
        if arguments.external:
            say(f"evaluating on the public sets: {name}")
            report["external"][name] |= evaluate.external(models[name], arguments.external)
    if service is not None:
        new, old = answered["candidate"]["all"], answered["in service"]["all"]
        report["gain"] = {
            question: evaluate.bootstrap(new[question].truth, old[question].guess, new[question].guess, arguments.seed)
            for question in JUDGED
        }
    thresholds = adapter.load(arguments.output).meta["thresholds"]
    report["told"] = {
        question: _told(each, thresholds, question) for question, each in answered["candidate"]["all"].items()
    }
    card.pictures(arguments.output / "card", answered["candidate"]["all"], report)
    return report


def _figures(answered: evaluate.Answered) -> dict[str, float]:
    return {
        "rows": len(answered.truth),
        "macro_f1": round(answered.macro_f1, 4),
        "accuracy": round(float(np.mean(np.array(answered.truth) == np.array(answered.guess))), 4),
        "calibration_error": round(answered.calibration_error, 4),
    }


def _told(answered: evaluate.Answered, thresholds: dict[str, Any], question: str) -> dict[str, float]:
    """From where an answer is told, the share of answers that are, and the share of those that is right."""
    head, _, level = question.partition("_")
    threshold = thresholds[head][int(level) - 1] if level else thresholds[head]
    sure = answered.confidence >= threshold
    correct = np.array(answered.truth) == np.array(answered.guess)
    right = float(correct[sure].mean()) if sure.any() else 0.0
    return {"from": threshold, "share": round(float(sure.mean()), 4), "right": round(right, 4)}


def refusal(report: dict[str, Any]) -> str:
    """Why the candidate may not take over: a question on which all of the interval of its gain is below zero."""
    worse = [question for question, (_, _, high) in report.get("gain", {}).items() if high < 0]
    return f"worse than the model in service on {', '.join(worse)}" if worse else ""


def in_service() -> Path | None:
    """The newest version that is served."""
    versions = sorted((int(folder.name), folder) for folder in MODELS.iterdir() if folder.name.isdigit())
    ready = [folder for _, folder in versions if (folder / "model.onnx").exists() or (folder / "adapter.npz").exists()]
    return ready[-1] if ready else None


def promote(folder: Path) -> None:
    """Put the candidate's files where it is served from; `infra.triton.install` builds the rest."""
    for name in (adapter.ARRAYS, adapter.META):
        shutil.copyfile(folder / name, evaluate.SERVED / name)
    shutil.copyfile(folder / "MODEL_CARD.md", MODELS / "MODEL_CARD.md")
    shutil.copytree(folder / "card", MODELS / "card", dirs_exist_ok=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--device",
        choices=sorted(RECIPES),
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="where to train: an NVIDIA GPU if PyTorch finds one",
    )
    recipes = ", ".join(f"{device}: %s" for device in sorted(RECIPES))
    told = {option: recipes % tuple(RECIPES[device][option] for device in sorted(RECIPES)) for option in RECIPES["cpu"]}
    parser.add_argument(
        "--runs",
        type=int,
        help=f"trainings, each from the next seed; their mean is taken; 0: of --average alone ({told['runs']})",
    )
    parser.add_argument("--epochs", type=int, help=f"how often each row is learnt from ({told['epochs']})")
    parser.add_argument(
        "--consistency",
        type=float,
        help=f"weight of the distance between two readings of a text; 0: one reading ({told['consistency']})",
    )
    parser.add_argument("--rate", type=float, default=1.5e-3, help="highest learning rate; less to continue with")
    parser.add_argument("--start", type=Path, help="continue from the adapter in this folder, as with new rows")
    parser.add_argument(
        "--average",
        type=Path,
        action="append",
        default=[],
        metavar="FOLDER",
        help="an earlier adapter that goes into the mean too; may be repeated",
    )
    parser.add_argument(
        "--kept",
        type=float,
        help="how far the encoder goes from the pretrained one to what was learnt, or with --runs 0 to the mean "
        f"({KEPT}; where --start or --runs 0 begins with what was drawn back already: 1)",
    )
    parser.add_argument(
        "--corrections",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="train on what people corrected too, as `recorrido corrections --out FILE` wrote it; may be repeated",
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "train")
    parser.add_argument("--external", type=Path, help="folder of public sets to evaluate on; never trained on")
    parser.add_argument("--evaluate-only", action="store_true", help="judge and promote the candidate that is there")
    arguments = parser.parse_args()
    for option, value in RECIPES[arguments.device].items():
        if getattr(arguments, option) is None:
            setattr(arguments, option, value)
    if not arguments.runs and not arguments.average:
        parser.error("--runs 0 needs an adapter to --average")
    if arguments.kept is None:
        arguments.kept = 1.0 if arguments.start or not arguments.runs else KEPT
    # What cuBLAS asks for before it gives the same sums each time (PyTorch's notes on reproducibility).
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    started = time.monotonic()
    arguments.output.mkdir(parents=True, exist_ok=True)
    taxonomy = needs.load()
    rows = corpus.load(taxonomy)
    curve_file = arguments.output / "curve.json"
    if not arguments.evaluate_only:
        try:
            curve = train(arguments, rows, taxonomy)
        except (corpus.CorpusError, OSError) as error:
            sys.exit(f"error: {error}")
        if curve:
            curve_file.write_text(json.dumps(curve, indent=1))
    set_decisions(arguments.output, rows, taxonomy)
    report = report_on(arguments, rows, in_service())
    report["curve"] = json.loads(curve_file.read_text())
    report["minutes"] = round((time.monotonic() - started) / 60, 1)
    (arguments.output / "report.json").write_text(json.dumps(report, indent=1))
    card.curve_picture(arguments.output / "card", report["curve"])
    learnt = adapter.load(arguments.output)
    (arguments.output / "MODEL_CARD.md").write_text(card.render(report, rows, taxonomy, learnt.meta), encoding="utf-8")
    if reason := refusal(report):
        sys.exit(f"not promoted: {reason}; see {arguments.output / 'report.json'}")
    promote(arguments.output)
    say(f"promoted; figures are in {MODELS / 'MODEL_CARD.md'}")


if __name__ == "__main__":
    main()
