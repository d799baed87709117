"""What the served model gives on each thing that ONNX Runtime runs on: `python tests/benchmarks/bench_provider.py`.

The code that Triton's Python backend runs, from string to answers, without Triton around it: texts per second by batch,
the latency of one text, the share of answers that are those of the int8 graph on the CPU, and, on a GPU, the memory the
process takes there. Measures every provider of `models/feedback/2/analyze.py` that the installed ONNX Runtime offers:
`cpu` alone with the package `onnxruntime`, `cuda` and `tensorrt` with `onnxruntime-gpu` on an NVIDIA GPU. It needs one
of the two, and the packages of infra/triton/requirements.in.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from shutil import copyfile
from typing import Any

import numpy as np
import onnxruntime

sys.path.insert(0, str(Path(__file__).parents[2]))
from infra.triton import taxonomy
from infra.triton.encoder import adapter, build, pretrained
from infra.triton.train import corpus

FOLDER = Path(__file__).parents[2] / "infra/triton/models/feedback/2"
sys.path.insert(0, str(FOLDER))
from analyze import PROVIDERS, Answers, Model

BATCHES = (1, 8, 32, 128, 256)


def rate(model: Any, texts: Sequence[str], batch: int, seconds: float) -> float:
    """Texts per second of one caller, each batch as long as it comes."""
    parts = [list(texts[start : start + batch]) for start in range(0, len(texts) - batch + 1, batch)]
    for part in parts[: max(1, 512 // batch)]:
        Answers(model, part)
    done, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        Answers(model, parts[done % len(parts)])
        done += 1
    return done * batch / (time.perf_counter() - started)


def latencies(model: Any, texts: Sequence[str], seconds: float) -> list[float]:
    """Milliseconds of single texts, one after the other."""
    found, started = [], time.perf_counter()
    while time.perf_counter() - started < seconds:
        begun = time.perf_counter()
        Answers(model, [texts[len(found) % len(texts)]])
        found.append(1000 * (time.perf_counter() - begun))
    return found


def gpu_mib() -> int:
    """Memory of the GPU in use, by all processes, in MiB."""
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of ONNX Runtime, on the CPU")
    told = parser.parse_args()
    texts = [row.text for row in corpus.load(taxonomy.load()) if row.held_out]
    np.random.default_rng(1).shuffle(texts)
    source = pretrained.read(pretrained.find())
    offered = set(onnxruntime.get_available_providers())
    print(f"texts/s of one caller by batch {' '.join(f'{batch:>8}' for batch in BATCHES)}   one text p50 / p99 ms")
    expected: Answers | None = None
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for name in (adapter.ARRAYS, adapter.META):
            copyfile(FOLDER / name, folder / name)
        for name, (providers, precision) in PROVIDERS.items():
            wanted = providers[0][0] if isinstance(providers[0], tuple) else providers[0]
            if wanted not in offered:
                print(f"{name}: this ONNX Runtime does not offer it")
                continue
            build.build(folder, precision, source)
            before = gpu_mib() if name != "cpu" else 0
            model = Model(folder, folder / build.file_of(precision), providers, told.threads)
            used = model._session.get_providers()[0]
            if used != wanted:
                print(f"{name}: offered, but it could not start; {used} took its place")
                continue
            rates = [rate(model, texts, batch, told.seconds) for batch in BATCHES]
            p50, p99 = np.percentile(latencies(model, texts, told.seconds), [50, 99])
            print(f"{name + ', ' + precision:30} {' '.join(f'{each:8.0f}' for each in rates)}   {p50:.1f} / {p99:.1f}")
            answers = Answers(model, texts[:1000])
            expected = expected or answers
            same = {head: float(np.mean(answers.label[head] == expected.label[head])) for head in answers.label}
            memory = f", {gpu_mib() - before} MiB of the GPU" if name != "cpu" else ""
            print(f"  answers as on the CPU: {', '.join(f'{head} {each:.3f}' for head, each in same.items())}{memory}")


if __name__ == "__main__":
    main()
