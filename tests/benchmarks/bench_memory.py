"""Whether the memory of every process stays flat while the history grows, over the whole path.

    python tests/benchmarks/bench_memory.py [--events 1000000] [--customers 100000] [--samples 20] [--every 50]

Interactions go in through RecordInteractions, and all parts run; one in `--every` is bad and has words, which inference
has analysed, journey raises a signal for and actions opens something for. After each sample the figures are taken when
relay and read models have caught up with the store: proportional set size (PSS) of each part's process group, in MiB.
`slope` is that of the least-squares line through a part's samples of the second half, when its caches are full (that of
ingest holds 400,000 events), in bytes per event that the store holds, with its 95 % confidence interval; a part is flat
when the interval reaches below FLAT_BYTES, or BY_DESIGN. The store's own page cache and PostgreSQL's shared buffers are
part of it.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import numpy as np
import uvloop
from scipy.stats import linregress, t

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[2] / "proto/gen")]

from infra.local.cluster import Cluster
from recorrido.ingest.v1.interaction_pb2 import Interaction
from services.foundation.eventstore import EventStore
from tests.support.cluster import running
from tests.support.interactions import START, interaction, record
from tests.support.wait import until

BATCH = 500
CALLERS = 4
#: Customers come and go: a tenth of them is active in a tenth of the run. Were all active all the time, ingest would
#: read a stream for every interaction once its cache is full (docs/performance.md).
GENERATIONS = 10
#: So much more per event is 16 MiB more after a million: what allocators and histograms of times come to.
FLAT_BYTES = 16
#: Journey answers from columns in memory, which grow with the history (ADR 9).
BY_DESIGN = {"journey": 100}
WORDS = "The parcel came two days late and nobody told me why; I had to call three times to learn where it was."


def pss_mib(pid: int) -> float:
    """Proportional set size of a process and all that descend from it: memory that is shared is counted once."""
    children: dict[int, list[int]] = {}
    for place in Path("/proc").glob("[0-9]*"):
        try:
            fields = (place / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        children.setdefault(int(fields[1]), []).append(int(place.name))
    total, open_pids = 0, [pid]
    while open_pids:
        each_pid = open_pids.pop()
        open_pids += children.get(each_pid, [])
        try:
            rollup = Path(f"/proc/{each_pid}/smaps_rollup").read_text()
        except OSError:
            continue
        total += next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
    return round(total / 1024, 1)


def made(number: int, customers: int, per_generation: int, every: int) -> Interaction:
    bad = number % every == 0
    each = interaction(number, csat=1 if bad else 3 + number % 3, text=WORDS if bad else "")
    active = customers // GENERATIONS
    each.customer.customer_id = f"customer {number // per_generation * active + number % active}"
    # A million of them in the past: what has not happened yet is refused.
    each.occurred_at.FromDatetime(START + timedelta(seconds=20 * number))
    return each


async def feed(channel: grpc.aio.Channel, numbers: range, customers: int, per_generation: int, every: int) -> float:
    """Record the interactions of these numbers; return how many a second."""
    starts = iter(range(numbers.start, numbers.stop, BATCH))

    async def caller() -> None:
        for start in starts:
            items = [made(n, customers, per_generation, every) for n in range(start, min(start + BATCH, numbers.stop))]
            refused = [result.problem for result in await record(channel, items) if result.HasField("problem")]
            if refused:
                raise RuntimeError(f"{len(refused)} interactions were refused, the first: {refused[0]}")

    begun = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(CALLERS)))
    return len(numbers) / (time.perf_counter() - begun)


async def caught_up(cluster: Cluster, store: EventStore) -> float:
    """Wait until every read model is where the store ends now; return how long that took, in seconds."""
    head, begun = await store.head(), time.perf_counter()
    database = await asyncpg.connect(cluster.environment["RECORRIDO_POSTGRES_DSN"])
    schemas = await database.fetch("SELECT table_schema FROM information_schema.tables WHERE table_name = 'checkpoint'")
    lowest = " UNION ALL ".join(f'SELECT min(position) AS at FROM "{row[0]}".checkpoint' for row in schemas)

    async def there() -> bool:
        return bool(await database.fetchval(f"SELECT min(at) FROM ({lowest}) AS each") >= head)

    await until(there, 1_200)
    await database.close()
    return time.perf_counter() - begun


async def measure(events: int, customers: int, samples: int, every: int, directory: Path) -> dict[str, Any]:
    figures: dict[str, Any] = {"events": [], "fed per second": [], "caught up after s": []}
    memory: dict[str, list[float]] = {}
    async with (
        running([], data=directory) as cluster,
        grpc.aio.insecure_channel(cluster.address("ingest")) as channel,
    ):
        store = await EventStore.connect(cluster.environment["RECORRIDO_EVENTSTORE_URI"])
        for sample in range(samples):
            numbers = range(events * sample // samples, events * (sample + 1) // samples)
            rate = await feed(channel, numbers, customers, -(-events // GENERATIONS), every)
            took = await caught_up(cluster, store)
            figures["events"].append(await store.head())
            figures["fed per second"].append(round(rate))
            figures["caught up after s"].append(round(took, 1))
            for part in cluster.parts:
                memory.setdefault(part, []).append(pss_mib(cluster.pid(part)))
            print(
                numbers.stop,
                figures["events"][-1],
                round(rate),
                round(took, 1),
                {p: m[-1] for p, m in memory.items()},
                flush=True,
            )
        await store.close()
    figures["PSS in MiB"] = memory
    figures["slope, bytes per event"] = {
        part: slope(figures["events"], each, BY_DESIGN.get(part, 0)) for part, each in memory.items()
    }
    return figures


def slope(events: Sequence[int], mib: Sequence[float], by_design: int) -> dict[str, Any]:
    """Fit a line through what is behind the warm-up."""
    warm = len(mib) // 2
    fit = linregress(events[warm:], [each * 1024 * 1024 for each in mib[warm:]])
    # Of a part that did not move at all no error is defined.
    margin = float(np.nan_to_num(t.ppf(0.975, max(len(mib) - warm - 2, 1)) * fit.stderr))
    low, high = fit.slope - margin, fit.slope + margin
    grows = f"grows by {fit.slope:.0f} bytes an event"
    designed = f"{grows}, as designed" if by_design else "flat"
    verdict = designed if low < FLAT_BYTES + by_design else grows
    return {"fitted": round(fit.slope, 1), "from": round(low, 1), "to": round(high, 1), "verdict": verdict}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--customers", type=int, default=100_000)
    parser.add_argument("--samples", type=int, default=20)
    parser.add_argument("--every", type=int, default=50, help="one interaction in so many is bad and has words")
    told = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=".", prefix="bench-") as directory:
        place = Path(directory).resolve()
        figures = uvloop.run(measure(told.events, told.customers, told.samples, told.every, place))
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
