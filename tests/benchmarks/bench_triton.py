"""Texts per second through Triton's gRPC against a bare ONNX Runtime loop: `python tests/benchmarks/bench_triton.py`.

Both do the whole work from string to probabilities (tokenisation included) with the same session options: one thread a
process, as many processes as Triton has instances, one run on one machine. Triton: batches of 32, four callers at a
time. Then single texts under that load, for the latency that a person would see; version 1 beside version 2; all
sentences too. `--table`: what each version gives through Triton by batch, with the latency of single texts alone and
under load; and how the bare loop grows with processes, batch and length.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np
import tritonclient.grpc as grpcclient

sys.path.insert(0, str(Path(__file__).parents[2]))
from infra.triton import taxonomy
from infra.triton.install import MODELS, build_models, install
from infra.triton.train import corpus
from tests.support.triton import OUTPUTS, Server, infer, triton

BATCH = 32
CALLERS = 4
INSTANCES = 2
VERSION_FOLDER = MODELS / "feedback" / "2"
LENGTHS = (8, 16, 32, 64, 128)
BATCHES = (1, 8, 32, 128)
VERSIONS = ("1", "2")
WHOLE_TEXT = [name for name in OUTPUTS if name != "SENTENCES"]


def bare(
    texts: Path, seconds: float, *, processes: int, batch: int = BATCH, tokens: int | None = None
) -> tuple[float, float]:
    """Texts per second of loops that have nothing around them, together; and per second of CPU time."""
    program = [str(install().venv / "bin" / "python"), str(Path(__file__).parents[1] / "support" / "bare_encoder.py")]
    arguments = [str(VERSION_FOLDER), str(texts), "1", str(seconds), str(batch), *([str(tokens)] if tokens else [])]
    running = [
        subprocess.Popen([*program, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(processes)
    ]
    with ThreadPoolExecutor(processes) as pool:
        printed = [out.split() for out, _ in pool.map(lambda each: each.communicate("go\n"), running)]
    return sum(float(wall) for wall, _ in printed), float(np.mean([float(cpu) for _, cpu in printed]))


def rate(once: Callable[[list[bytes]], object], batches: list[list[bytes]], seconds: float) -> float:
    done, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        once(batches[done % len(batches)])
        done += 1
    return done * len(batches[0]) / (time.perf_counter() - started)


def callers(
    address: str,
    texts: list[str],
    seconds: float,
    outputs: Sequence[str] = WHOLE_TEXT,
    *,
    version: str = "2",
    batch: int = BATCH,
) -> float:
    """Texts per second of four callers together."""
    batches = [texts[start : start + batch] for start in range(0, len(texts) - batch, batch)]

    def one(_: int) -> float:
        with closing(grpcclient.InferenceServerClient(address)) as client:
            raw = [[text.encode() for text in some] for some in batches]
            return rate(lambda some: infer(client, some, outputs=outputs, version=version), raw, seconds)

    with ThreadPoolExecutor(CALLERS) as pool:
        return sum(pool.map(one, range(CALLERS)))


def singles(address: str, going: Callable[[], bool], version: str = "2") -> list[float]:
    """Latencies in milliseconds of single texts, one after the other, while it is `going`."""
    latencies: list[float] = []
    with closing(grpcclient.InferenceServerClient(address)) as client:
        while going():
            started = time.perf_counter()
            infer(client, [b"Chegou antes do prazo"], outputs=WHOLE_TEXT, version=version)
            latencies.append(1000 * (time.perf_counter() - started))
    return latencies


def single_alone(address: str, seconds: float, version: str) -> list[float]:
    started = time.perf_counter()
    return singles(address, lambda: time.perf_counter() - started < seconds, version)


def single_under_load(address: str, texts: list[str], seconds: float, version: str = "2") -> list[float]:
    """Latencies in milliseconds of single texts beside the four callers, all of one version."""
    loaded = threading.Event()
    loaded.set()
    with ThreadPoolExecutor(1) as pool:
        latencies = pool.submit(singles, address, loaded.is_set, version)
        callers(address, texts, seconds, version=version)
        loaded.clear()
        return latencies.result()


def pids(server: Server) -> list[str]:
    """The server and its models' processes."""
    assert server.process is not None
    found = [str(server.process.pid)]
    for children in Path(f"/proc/{server.process.pid}/task").glob("*/children"):
        found += children.read_text().split()
    return found


def memory_mb(server: Server) -> float:
    """Resident memory, shared pages counted once for each process."""
    lines = [line for pid in pids(server) for line in Path(f"/proc/{pid}/status").read_text().splitlines()]
    return sum(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def cpu_seconds(server: Server) -> float:
    stats = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids(server)]
    return sum(int(each[11]) + int(each[12]) for each in stats) / os.sysconf("SC_CLK_TCK")


def served_table(address: str, texts: list[str], seconds: float) -> None:
    """By version: what four callers get by the size of their batches, and what one text waits."""
    sizes = " ".join(f"{size:>7}" for size in BATCHES)
    print(f"Triton gRPC, {CALLERS} callers, texts/s:  batch {sizes}   one text, p50 / p99 ms: alone, under load")
    for version in VERSIONS:
        rates = [callers(address, texts, seconds, version=version, batch=size) for size in BATCHES]
        waits = (single_alone(address, seconds, version), single_under_load(address, texts, seconds, version))
        alone, loaded = ("{:.1f} / {:.1f}".format(*np.percentile(each, [50, 99])) for each in waits)
        print(f"  version {version} {' ' * 22} {' '.join(f'{value:7.0f}' for value in rates)}   {alone}, {loaded}")


def table(path: Path, seconds: float) -> None:
    print(f"bare loop, texts/s:  tokens {' '.join(f'{length:>7}' for length in LENGTHS)}")
    for processes in (1, INSTANCES):
        for batch in BATCHES:
            rates = [bare(path, seconds, processes=processes, batch=batch, tokens=length)[0] for length in LENGTHS]
            print(f"  {processes} process(es), batch {batch:>3}    {' '.join(f'{value:7.0f}' for value in rates)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--table", action="store_true", help="by version, batch and length; takes some minutes")
    arguments = parser.parse_args()
    seconds = arguments.seconds
    build_models(install())
    texts = [row.text for row in corpus.load(taxonomy.load())]
    np.random.default_rng(1).shuffle(texts)
    with tempfile.TemporaryDirectory() as folder, triton(Path(folder) / "log") as server:
        path = Path(folder) / "texts.json"
        path.write_text(json.dumps(texts[:2048]), encoding="utf-8")
        server.analyze(texts[:BATCH])
        started, used = time.perf_counter(), cpu_seconds(server)
        served = callers(server.address, texts, seconds)
        per_cpu = served * (time.perf_counter() - started) / (cpu_seconds(server) - used)
        latencies = single_under_load(server.address, texts, seconds)
        old = callers(server.address, texts, seconds, version="1")
        sentences = callers(server.address, texts, seconds, OUTPUTS)
        memory = memory_mb(server)
        if arguments.table:
            served_table(server.address, texts, seconds)
        server.stop()
        loop, loop_per_cpu = bare(path, seconds, processes=INSTANCES)
        p50, p99 = np.percentile(latencies, [50, 99])
        lines = (
            f"bare loop, {INSTANCES} processes, batch {BATCH}:  {loop:7.0f} texts/s",
            f"Triton gRPC, batch {BATCH}, {CALLERS} callers: {served:7.0f} texts/s ({served / loop:.0%})",
            f"per CPU second: bare loop {loop_per_cpu:.0f}, Triton {per_cpu:.0f} ({per_cpu / loop_per_cpu:.0%})",
            f"  with sentences:                {sentences:7.0f} texts/s",
            f"  version 1, n-grams:            {old:7.0f} texts/s",
            f"single text under that load: p50 {p50:.1f} ms, p99 {p99:.1f} ms ({len(latencies)} requests)",
            f"memory of Triton, both versions: {memory:.0f} MB",
        )
        print("\n".join(lines))
        if arguments.table:
            table(path, seconds)


if __name__ == "__main__":
    main()
