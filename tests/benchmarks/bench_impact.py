"""How fast impact is answered over a large history, and how fast its read model takes the history in.

    python tests/benchmarks/bench_impact.py [--interactions 1000000] [--batch 1000] [--times 30]

Interactions of 60,000 customers in 180 days at 40 touchpoints, every fourth with words that inference has analysed, go
through the very projection into a real PostgreSQL; then an improvement at one touchpoint is measured against all the
others.
"""

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import uvloop

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[2] / "proto/gen")]

from recorrido.actions.v1.events import Target
from recorrido.inference.v1.events import Analysis, FeedbackAnalyzed, PointKind
from recorrido.ingest.v1.events import Customer, Interaction, InteractionRecorded, Rating, RatingMetric
from services.actions.views.measures import Measures, MeasuresProjection, Windows
from services.foundation.events import Recorded
from services.foundation.projection import Fact
from tests.support.cluster import running

START = datetime(2026, 1, 1, tzinfo=UTC)
DAYS = 180
CUSTOMERS = 60_000
NEEDS = ("delivery/speed", "delivery/care", "price", "support/wait", "")


def fact(event: Any, position: int) -> Fact:
    recorded = Recorded(event.type_name, b"", {}, uuid4(), "customer-x", position, position, START)
    return Fact(event, recorded)


def facts(draw: random.Random, first: int, count: int) -> list[Fact]:
    found = []
    for position in range(first, first + count):
        interaction = Interaction(
            customer=Customer(customer_id=f"customer {draw.randrange(CUSTOMERS)}"),
            touchpoint=f"touchpoint {draw.randrange(40)}",
            occurred_at=START + timedelta(days=DAYS * draw.random()),
            ratings=(Rating(metric=RatingMetric.CSAT, value=draw.randint(1, 5)),),
        )
        said = fact(InteractionRecorded(interaction=interaction), 2 * position)
        found.append(said)
        if position % 4 == 0:
            analysis = Analysis(need_path=draw.choice(NEEDS), point=PointKind.PAIN, sentiment_score=draw.uniform(-1, 1))
            event = FeedbackAnalyzed(interaction_event_id=str(said.recorded.event_id), analysis=analysis)
            found.append(fact(event, 2 * position + 1))
    return found


async def main(interactions: int, batch: int, times: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with running(["postgres"], data=Path(folder)) as cluster:
            pool = await asyncpg.create_pool(cluster.environment["RECORRIDO_POSTGRES_DSN"])
            projection, draw = MeasuresProjection(), random.Random(1)
            async with pool.acquire() as connection:
                await connection.execute("CREATE SCHEMA actions_measures")
                await connection.execute("SET search_path TO actions_measures")
                await connection.execute(projection.ddl + "CREATE TABLE checkpoint (position bigint);")
                await connection.execute("INSERT INTO checkpoint VALUES (0)")
                spent = 0.0
                for first in range(0, interactions, batch):
                    some = facts(draw, first, min(batch, interactions - first))
                    begun = time.perf_counter()
                    async with connection.transaction():
                        await projection.apply(connection, some)
                    spent += time.perf_counter() - begun
                await connection.execute("VACUUM ANALYZE")
                size = await connection.fetchval("SELECT count(*) FROM actions_measures.tally")
            measures, taken = Measures(pool), {}
            began = START + timedelta(days=90)
            windows = Windows.around(began, began + timedelta(days=7), START + timedelta(days=DAYS), 28)
            for metric in ("csat", "sentiment", "volume"):
                target = Target(metric=metric, touchpoint="touchpoint 7")
                seconds = []
                for _ in range(times):
                    begun = time.perf_counter()
                    await measures.measure(target, windows, None)
                    seconds.append(time.perf_counter() - begun)
                p99 = statistics.quantiles(seconds, n=100)[98]
                taken[metric] = {
                    "median_ms": round(1000 * statistics.median(seconds), 1),
                    "p99_ms": round(1000 * p99, 1),
                }
            await pool.close()
    print(
        json.dumps(
            {
                "interactions": interactions,
                "projected_per_s": round(interactions / spent),
                "tally_rows": size,
                "measured": taken,
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--interactions", type=int, default=1_000_000)
    parser.add_argument("--batch", type=int, default=1_000)
    parser.add_argument("--times", type=int, default=30)
    given = parser.parse_args()
    uvloop.run(main(given.interactions, given.batch, given.times))
