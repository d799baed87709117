"""kill -9 of parts at random while clients record, and proof afterwards that nothing is lost, doubled or out of order.

    make chaos ARGS="--interactions 100000 --seed 42"

The seed decides who dies, when (after how many acknowledged interactions) and what each client sends and how; how the
processes' steps interleave is the machine's. So the same seed repeats the same faults, and mostly what they find.
"""

import argparse
import asyncio
import random
import shutil
import sys
import tempfile
from pathlib import Path

from tests.faults.chaos.plan import VICTIMS, Plan
from tests.faults.chaos.run import chaos


def main() -> int:
    """0: every invariant holds; 1: one does not, and the data stays for a look at it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6), help="default: a new one")
    parser.add_argument("--interactions", type=int, default=100_000)
    parser.add_argument("--kills", type=int, help="default: one for every 1,000 interactions")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--data", type=Path, help="default: a temporary directory, removed when all is well")
    options = parser.parse_args()
    kills = options.kills or max(options.interactions // 1000, len(VICTIMS))
    plan = Plan.of(options.seed, options.interactions, kills=kills, clients=options.clients)

    def tell(text: str) -> None:
        print(text, flush=True)  # noqa: T201 - it talks to a person

    again = f"--seed {plan.seed} --interactions {plan.interactions} --kills {kills} --clients {plan.clients}"
    tell(f'seed {plan.seed}: repeat with make chaos ARGS="{again}"')
    data = options.data or Path(tempfile.mkdtemp(prefix="recorrido-chaos-"))
    report = asyncio.run(chaos(plan, data.absolute(), tell))
    tell(f"\n{report.text}")
    if not report.broken and not options.data:
        shutil.rmtree(data)
    return 1 if report.broken else 0


if __name__ == "__main__":
    sys.exit(main())
