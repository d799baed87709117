"""A loop with nothing around it: texts of a file to probabilities, in Triton's own environment.

`bench_triton.py` runs it there: `bare_encoder.py VERSION_FOLDER TEXTS.json THREADS SECONDS BATCH [TOKENS]`. It prints
texts per second, and texts per second of CPU time, which other programs on the machine hardly change. With TOKENS every
text is cut or repeated to that many tokens.
"""

import json
import sys
import time
from pathlib import Path

folder = Path(sys.argv[1])
sys.path.insert(0, str(folder))
from analyze import Model  # type: ignore[import-not-found] # noqa: E402 - its folder had to be put on the path

texts = json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
threads, seconds, batch = int(sys.argv[3]), float(sys.argv[4]), int(sys.argv[5])
model = Model(folder, folder / "encoder.int8.onnx", ["CPUExecutionProvider"], threads)
if len(sys.argv) > 6:
    length = int(sys.argv[6])
    model.tokens = lambda some: [(ids * length)[:length] for ids in Model.tokens(model, some)]
batches = [texts[start : start + batch] for start in range(0, len(texts) - batch + 1, batch)]
model.probabilities(batches[0])
# All processes of a run start together.
sys.stdin.readline()
done, started, used = 0, time.perf_counter(), time.process_time()
while time.perf_counter() - started < seconds:
    model.probabilities(batches[done % len(batches)])
    done += 1
texts_done = done * batch
sys.stdout.write(f"{texts_done / (time.perf_counter() - started)} {texts_done / (time.process_time() - used)}\n")
