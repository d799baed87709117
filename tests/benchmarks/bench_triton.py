"""Texts per second through Triton's gRPC against a bare ONNX Runtime loop: `python tests/benchmarks/bench_triton.py`.

Both do the whole work from string to probabilities (featurisation included), both with one ONNX Runtime thread, in one
run on one machine. Triton: batches of 32, four callers at a time, each a process-wide gRPC connection. Then single
texts under that load, for the latency that a person would see.
"""

import argparse
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np
import onnxruntime
import tritonclient.grpc as grpcclient

sys.path.insert(0, str(Path(__file__).parents[2]))
from infra.triton import taxonomy
from infra.triton.train import corpus, features
from tests.support.triton import infer, triton

BATCH = 32
CALLERS = 4


def bare(texts: list[str], seconds: float) -> float:
    """Texts per second of the loop that has nothing around it."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(features.VERSION_FOLDER / "model.onnx"), options)

    def once(batch: list[str]) -> None:
        ends, ids, counts = features.served.sparse(batch)
        ids, counts = features.served.padded(ends, ids, counts, np.arange(len(batch)))
        session.run(None, {"ids": ids, "counts": counts})

    return _rate(once, [texts[start : start + BATCH] for start in range(0, len(texts) - BATCH, BATCH)], seconds)


def _rate(once: Callable[[list[str]], None], batches: list[list[str]], seconds: float) -> float:
    done, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        once(batches[done % len(batches)])
        done += 1
    return done * BATCH / (time.perf_counter() - started)


def through_triton(address: str, texts: list[str], seconds: float) -> tuple[float, list[float]]:
    """Texts per second of four callers, and the latencies in seconds of single texts sent meanwhile."""
    batches = [texts[start : start + BATCH] for start in range(0, len(texts) - BATCH, BATCH)]
    loaded = threading.Event()
    loaded.set()

    def caller(_: int) -> float:
        with closing(grpcclient.InferenceServerClient(address)) as client:
            return _rate(lambda batch: infer(client, [text.encode() for text in batch]) and None, batches, seconds)

    latencies: list[float] = []

    def single() -> None:
        with closing(grpcclient.InferenceServerClient(address)) as client:
            while loaded.is_set():
                started = time.perf_counter()
                infer(client, [b"Chegou antes do prazo"])
                latencies.append(time.perf_counter() - started)

    with ThreadPoolExecutor(CALLERS) as pool:
        rate = sum(pool.map(caller, range(CALLERS)))
        watcher = threading.Thread(target=single)
        watcher.start()
        list(pool.map(caller, range(CALLERS)))
        loaded.clear()
        watcher.join()
    return rate, latencies


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5)
    seconds = parser.parse_args().seconds
    texts = [row.text for row in corpus.load(taxonomy.load())]
    np.random.default_rng(1).shuffle(texts)
    loop = bare(texts, seconds)
    with tempfile.TemporaryDirectory() as folder, triton(Path(folder) / "log") as server:
        server.analyze(texts[:BATCH])
        served, latencies = through_triton(server.address, texts, seconds)
    p50, p99 = np.percentile(latencies, [50, 99]) * 1000
    lines = (
        f"bare loop, batch {BATCH}:                 {loop:8.0f} texts/s",
        f"Triton gRPC, batch {BATCH}, {CALLERS} callers: {served:8.0f} texts/s ({served / loop:.0%})",
        f"single text under that load: p50 {p50:.1f} ms, p99 {p99:.1f} ms ({len(latencies)} requests)",
    )
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
