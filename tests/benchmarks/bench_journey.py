"""How fast journey takes history in, how fast it answers over it, and what memory that takes, at several sizes.

    python tests/benchmarks/bench_journey.py [--sizes 100000,1000000] [--queries 100] [--seed 1] [--plans]

For each size (interactions; a tenth as many customers; every fourth has words that inference has analysed, one in
thirty failed and raised a signal) in a store and a PostgreSQL of its own:

- projection: the very projection, in a process of its own, from the store into PostgreSQL, against bare COPY of the
  same rows by the same client in the same portions, one durable transaction each, into tables with the same indexes;
  and its two parts: the store read by the same client, and events that are at hand folded into PostgreSQL.
- start: the service, from its start until its first answer over everything.
- questions over gRPC, one after the other: while nothing happens, and while an interaction is recorded before each of
  them, which is the worst case, as nothing that was derived from the history before holds any more. The CPU time of the
  service tells what they cost on a machine that has other things to do.
- memory: the most that the projection had, and that the service has had (resident set).

The last table compares the sizes. `--sizes 100000,1000000,10000000` goes ten times farther (some 20 GB of disk).
"""

import argparse
import asyncio
import json
import os
import random
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import uvloop
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn
from rich.table import Table

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[2] / "proto/gen")]

from recorrido.inference.v1.events import Analysis, FeedbackAnalyzed, PointKind, Sentiment
from recorrido.ingest.v1.events import (
    Channel,
    Customer,
    CustomerKind,
    IdentityLinked,
    Interaction,
    InteractionRecorded,
    Money,
    Outcome,
    Rating,
    RatingMetric,
    Referral,
    ReferralDirection,
    Verbatim,
)
from recorrido.journey.v1 import journey_map_pb2 as maps
from recorrido.journey.v1 import journey_service_pb2 as pb
from recorrido.journey.v1.journey_service_pb2_grpc import JourneyServiceStub
from services.foundation import projection as foundation
from services.foundation import telemetry
from services.foundation.events import Pending, Registry, derived_id, stream_name
from services.foundation.eventstore import ANY, EventStore, StreamAppend
from services.foundation.sharing import SharedRunner
from services.journey.domain.signals import Seen, bad_moment
from services.journey.views.projection import BATCH, JourneyProjection
from tests.support.cluster import Cluster, running
from tests.support.wait import until

DAYS = 400
#: Events of one append, and appends in flight.
PORTION = 500
CALLERS = 3
#: Events that are folded from memory.
AT_HAND = 50_000
#: Tables that hold a row for most events: what bare COPY writes.
TABLES = ("name", "interaction", "rating", "analysis", "identity_link")

#: What is wanted: seconds at most (p99), at 1,000,000 interactions; events per second, and the ratio, at least.
WANTED_S = {
    "GetCustomerJourney": 0.050,
    "GetScores": 0.500,
    "GetScores by touchpoint, month": 0.500,
    "ListPoints": 0.500,
    "GetCoverage": 0.500,
    "GetLoyaltyLadder": 0.500,
    "GetFlow": 2.0,
    "GetFlow of stages, customers": 2.0,
}
WANTED_PER_S = 5_000
WANTED_RATIO = 0.5

STAGES = ("discover", "compare", "buy", "pay", "receive", "use", "get_help", "come_back")
TOUCHPOINTS = [f"{stage}_{n}" for stage in STAGES for n in range(5)]
NEEDS = [f"need_{n // 6}/part_{n % 6}" for n in range(42)]
WORDS = "The parcel came two days late and nobody told me why; I had to call three times to learn where it was."


# -- a history ---------------------------------------------------------------------------------------------------------


def the_map() -> maps.JourneyMap:
    """All touchpoints but the last are on it."""
    return maps.JourneyMap(
        map_id="shop",
        name="Shop",
        stages=[
            maps.Stage(
                stage_id=stage,
                name=stage,
                touchpoints=[
                    maps.Touchpoint(touchpoint_id=each, name=each, moment_of_truth=each.endswith("_0"))
                    for each in TOUCHPOINTS[:-1]
                    if each.startswith(stage)
                ],
            )
            for stage in STAGES
        ],
        personas=[
            maps.Persona(
                persona_id=age,
                name=age,
                conditions=[maps.PersonaCondition(attribute="age", values=[age])],
            )
            for age in ("young", "old")
        ],
        goals=[
            maps.Goal(
                goal_id="received",
                name="Received",
                touchpoint_ids=["receive_4"],
                begins_at_touchpoint_ids=["buy_0", "pay_0"],
            )
        ],
        episodes=maps.EpisodeRules(goal_ids=["received"]),
    )


@dataclass
class Source:
    """Draws the events of a history; the same seed draws the same."""

    customers: int
    seed: int
    dice: random.Random = field(init=False)
    number: int = 0

    def __post_init__(self) -> None:
        self.dice = random.Random(self.seed)
        self.began = datetime.now(UTC) - timedelta(days=DAYS)

    def next(self) -> StreamAppend:
        """Return an interaction, with what was made of its words."""
        dice, self.number = self.dice, self.number + 1
        customer = int(self.customers * dice.random())
        # One in fifty was first seen by a device, which is linked later on.
        under = f"device:{customer}" if customer % 50 == 0 and dice.random() < 0.3 else f"customer {customer}"
        words = self.number % 4 == 0
        event_id = derived_id("bench", str(self.number))
        interaction = Interaction(
            source="shop",
            interaction_id=str(self.number),
            customer=Customer(customer_id=under, kind=CustomerKind.BUYER),
            touchpoint=TOUCHPOINTS[int(len(TOUCHPOINTS) * dice.random() ** 2)],
            channel=dice.choice((Channel.WEB, Channel.APP, Channel.PHONE)),
            occurred_at=self.began + timedelta(seconds=int(DAYS * 86_400 * dice.random())),
            verbatim=Verbatim(text=WORDS, language="en") if words else None,
            ratings=_ratings(dice),
            amount=Money(currency_code="EUR", amount=f"{dice.randrange(500)}.90") if dice.random() < 0.1 else None,
            outcome=Outcome.FAILED if dice.random() < 0.03 else Outcome.SUCCEEDED,
            referral=Referral(direction=ReferralDirection.GIVEN) if dice.random() < 0.01 else None,
            attributes={"customer.age": ("young", "old", "neither")[customer % 3]} if dice.random() < 0.2 else {},
        )
        events = [Pending(InteractionRecorded(interaction=interaction), event_id)]
        if words:
            score = 2 * dice.random() - 1
            analysis = Analysis(
                language="en",
                sentiment=Sentiment.NEGATIVE if score < 0 else Sentiment.POSITIVE,
                sentiment_score=score,
                point=PointKind.PAIN if score < 0 else PointKind.DELIGHT,
                need_path=dice.choice(NEEDS),
                model="bench",
                model_version="1",
            )
            analyzed = FeedbackAnalyzed(interaction_event_id=str(event_id), customer_id=under, analysis=analysis)
            events.append(Pending(analyzed, derived_id("bench analysis", str(self.number))))
        return StreamAppend(stream_name("customer", under), ANY, events)

    def links(self) -> Iterator[StreamAppend]:
        for customer in range(0, self.customers, 50):
            linked = IdentityLinked(
                identity_customer_id=f"device:{customer}", customer_id=f"customer {customer}", actor="bench"
            )
            stream = stream_name("identity", f"bench-{customer}")
            yield StreamAppend(stream, ANY, [Pending(linked, derived_id("bench link", str(customer)))])


def _ratings(dice: random.Random) -> tuple[Rating, ...]:
    chance = dice.random()
    if chance < 0.15:
        return (Rating(metric=RatingMetric.CSAT, value=dice.randint(1, 5)),)
    if chance < 0.25:
        return (Rating(metric=RatingMetric.NPS, value=dice.randint(0, 10)),)
    if chance < 0.30:
        return (Rating(metric=RatingMetric.CES, value=dice.randint(1, 7)),)
    return ()


async def fill(store: EventStore, source: Source, interactions: int, console: Console) -> float:
    """Append the history; return how many events a second that was."""
    count, events = interactions, 0
    begun = time.perf_counter()
    with Progress(*Progress.get_default_columns(), MofNCompleteColumn(), TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task("recording interactions", total=interactions)

        async def caller() -> None:
            nonlocal count, events
            while count:
                size = min(PORTION, count)
                count -= size
                together: dict[str, list[Pending]] = {}
                for _ in range(size):
                    each = source.next()
                    together.setdefault(each.stream, []).extend(each.events)
                await store.append([StreamAppend(stream, ANY, some) for stream, some in together.items()])
                events += sum(map(len, together.values()))
                bar.update(task, advance=size)

        await asyncio.gather(*(caller() for _ in range(CALLERS)))
    links = list(source.links())
    for at in range(0, len(links), PORTION):
        await store.append(links[at : at + PORTION])
    return events / (time.perf_counter() - begun)


async def raised(store: EventStore) -> None:
    """Append the signals of the interactions that failed, as journey would raise them."""
    registry, some = Registry((InteractionRecorded,)), list[StreamAppend]()
    async for recorded in store.read_all(None, registry.type_names):
        event: InteractionRecorded = registry.decode(recorded)
        if event.interaction is None or event.interaction.outcome is not Outcome.FAILED:
            continue
        seen = Seen(event, recorded.event_id, recorded.stream, recorded.revision, recorded.position)
        signal = bad_moment(seen)
        assert signal is not None
        pending = Pending(signal, derived_id("bench signal", signal.signal_id))
        some.append(StreamAppend(stream_name("signal", signal.signal_id), ANY, [pending]))
    for at in range(0, len(some), PORTION):
        await store.append(some[at : at + PORTION])


# -- projection --------------------------------------------------------------------------------------------------------


async def project(store_uri: str, dsn: str) -> None:
    """Bring the read model to where the store ends now; tell events per second and memory. A process of its own."""
    telemetry.set_up("bench", log_level="WARNING")
    store = await EventStore.connect(store_uri)
    pool = await foundation.connect(dsn)
    head = await store.head()
    runner = SharedRunner(store, pool, JourneyProjection(), batch_size=BATCH)
    begun = time.perf_counter()
    running_ = asyncio.create_task(runner.run())
    assert await runner.wait_for(head, 36_000)
    took = time.perf_counter() - begun
    running_.cancel()
    await asyncio.gather(running_, return_exceptions=True)
    await store.close()
    await pool.close()
    usage = resource.getrusage(resource.RUSAGE_SELF)
    print(json.dumps({"seconds": took, "cpu_s": usage.ru_utime + usage.ru_stime, "peak_mib": usage.ru_maxrss / 1024}))


async def projected(cluster: Cluster) -> dict[str, float]:
    where = [cluster.environment[f"RECORRIDO_{name}"] for name in ("EVENTSTORE_URI", "POSTGRES_DSN")]
    process = await asyncio.create_subprocess_exec(
        sys.executable, __file__, "--project", *where, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    assert process.returncode == 0
    told: dict[str, float] = json.loads(output)
    return told


async def read_alone(store: EventStore) -> tuple[int, float]:
    """Return how many events of the projection's types the store holds, and how many a second it is read with."""
    begun, count = time.perf_counter(), 0
    async for _ in store.read_all(None, Registry(JourneyProjection.types).type_names):
        count += 1
    return count, count / (time.perf_counter() - begun)


async def folded(store: EventStore, pool: Any) -> float:
    """Return how many events a second are projected that are at hand: the first ones of the history."""
    view = JourneyProjection()
    view.name = "journey_bench"
    runner = SharedRunner(store, pool, view)
    await runner.prepare()
    await runner.last()
    types = Registry(view.types).type_names
    events = [each async for each in store.read_all(None, types, limit=AT_HAND)]
    begun = time.perf_counter()
    for at in range(0, len(events), BATCH):
        await runner.write(events[at : at + BATCH])
    took = time.perf_counter() - begun
    await pool.execute("DROP SCHEMA journey_bench CASCADE")
    return len(events) / took


async def copied(pool: Any) -> float:
    """Return how long COPY takes for the rows that the projection wrote, in the same portions."""
    spent = 0.0
    async with pool.acquire() as reading, pool.acquire() as writing, reading.transaction():
        await writing.execute("DROP SCHEMA IF EXISTS bare CASCADE; CREATE SCHEMA bare; SET search_path TO bare")
        for table in TABLES:
            await writing.execute(f"CREATE TABLE bare.{table} (LIKE journey.{table} INCLUDING ALL)")
        # An event's rows go in together, as the projection writes them: so each table in as many portions.
        portions = -(-await reading.fetchval("SELECT count(*) FROM journey.interaction") * 5 // 4 // BATCH)
        cursors = {}
        for table in TABLES:
            # As they came: names were met in no order of their keys.
            order = "ctid" if table == "name" else "1"
            rows = await reading.fetchval(f"SELECT count(*) FROM journey.{table}")
            cursor = await reading.cursor(f"SELECT * FROM journey.{table} ORDER BY {order}")
            cursors[table] = (cursor, -(-rows // portions))
        for _ in range(portions):
            some = {
                table: [tuple(row) for row in await cursor.fetch(size)] if size else []
                for table, (cursor, size) in cursors.items()
            }
            begun = time.perf_counter()
            async with writing.transaction():
                for table, rows in some.items():
                    if rows:
                        await writing.copy_records_to_table(table, schema_name="bare", records=rows)
            spent += time.perf_counter() - begun
        await writing.execute("DROP SCHEMA bare CASCADE; RESET search_path")
    return spent


# -- questions ---------------------------------------------------------------------------------------------------------


@dataclass
class Asked:
    """How long a question took, each time, in seconds: while nothing happened, and after something had.

    `cpu`: what the service spent on the latter.
    """

    still: list[float] = field(default_factory=list)
    moving: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)


def percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def questions(stub: Any, source: Source, since: datetime) -> dict[str, Callable[[], Awaitable[Any]]]:
    dice = random.Random(source.seed + 1)
    until_ = datetime.now(UTC)

    def customer() -> pb.GetCustomerJourneyRequest:
        return pb.GetCustomerJourneyRequest(customer_id=f"customer {dice.randrange(source.customers)}")

    def then() -> Timestamp:
        moment = Timestamp()
        moment.FromDatetime(since + (until_ - since) * dice.random())
        return moment

    by_touchpoint = {"group_by": [pb.GROUPING_TOUCHPOINT], "period": pb.PERIOD_MONTH}
    of_customers = {"level": pb.FLOW_LEVEL_STAGE, "case": pb.FLOW_CASE_CUSTOMER}
    return {
        "GetCustomerJourney": lambda: stub.GetCustomerJourney(customer()),
        "GetScores": lambda: stub.GetScores(pb.GetScoresRequest()),
        "GetScores by touchpoint, month": lambda: stub.GetScores(pb.GetScoresRequest(**by_touchpoint)),
        "ListPoints": lambda: stub.ListPoints(pb.ListPointsRequest()),
        "GetCoverage": lambda: stub.GetCoverage(pb.GetCoverageRequest()),
        "GetLoyaltyLadder": lambda: stub.GetLoyaltyLadder(pb.GetLoyaltyLadderRequest()),
        "GetFlow": lambda: stub.GetFlow(pb.GetFlowRequest()),
        "GetFlow of stages, customers": lambda: stub.GetFlow(pb.GetFlowRequest(**of_customers)),
        "GetScores as of any time": lambda: stub.GetScores(pb.GetScoresRequest(as_of=then())),
        "GetOverview": lambda: stub.GetOverview(pb.GetOverviewRequest()),
        "ListSignals": lambda: stub.ListSignals(pb.ListSignalsRequest()),
    }


async def asked(
    asking: Mapping[str, Callable[[], Awaitable[Any]]],
    record: Callable[[], Awaitable[None]],
    times: int,
    *,
    pid: int,
    console: Console,
) -> dict[str, Asked]:
    taken: dict[str, Asked] = {}
    with Progress(*Progress.get_default_columns(), MofNCompleteColumn(), console=console) as bar:
        task = bar.add_task("asking", total=2 * times * len(asking))
        for name, ask in asking.items():
            taken[name] = Asked()
            await ask()
            for _ in range(times):
                taken[name].still.append(await timed(ask))
                bar.update(task, advance=1)
            for _ in range(times):
                await record()
                before = cpu_s(pid)
                taken[name].moving.append(await timed(ask))
                taken[name].cpu.append(cpu_s(pid) - before)
                bar.update(task, advance=1)
    return taken


async def recorded(store: EventStore, pool: Any, source: Source) -> None:
    """Record one more interaction, and wait until the read model has it; nothing is asked of the service."""
    position = await store.append([source.next()])

    async def there() -> bool:
        return bool(await pool.fetchval("SELECT min(position) FROM journey.checkpoint") >= position)

    await until(there, 60, every_s=0.005)


async def timed(ask: Callable[[], Awaitable[Any]]) -> float:
    begun = time.perf_counter()
    await ask()
    return time.perf_counter() - begun


# -- memory, plans -----------------------------------------------------------------------------------------------------


def peak_mib(pid: int) -> float:
    """Return the largest resident set that a process has had."""
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")) / 1024


def cpu_s(pid: int) -> float:
    """Return the CPU time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def quiet(pid: int) -> None:
    """Wait until a process does next to nothing: after its start it looks over the whole history for signals."""
    seen = [cpu_s(pid)]

    async def so() -> bool:
        seen.append(cpu_s(pid))
        return seen[-1] - seen[-2] < 0.05

    await until(so, 120, every_s=1.0)


#: What PostgreSQL is asked while questions are answered: by whose event, whose position, whose name.
PLANS = (
    "SELECT position, event_id, recorded_at, body FROM interaction WHERE position = ANY(ARRAY[{positions}]::bigint[])",
    "SELECT event_id, position FROM interaction WHERE event_id = ANY(ARRAY[{ids}]::uuid[])",
    "SELECT * FROM analysis WHERE position = ANY(ARRAY[{positions}]::bigint[])",
    "SELECT key, text FROM name WHERE kind = 1 AND key = ANY(ARRAY[{keys}]::bigint[])",
    "SELECT * FROM interaction WHERE position > {last} ORDER BY position",
)


async def show_plans(pool: Any, console: Console) -> None:
    async with pool.acquire() as connection:
        await connection.execute("SET search_path TO journey")
        rows = await connection.fetch(
            "SELECT position, event_id, customer FROM interaction ORDER BY random() LIMIT 100"
        )
        last = await connection.fetchval("SELECT max(position) FROM interaction")
        values = {
            "positions": ", ".join(str(row["position"]) for row in rows),
            "ids": ", ".join(f"'{row['event_id']}'" for row in rows),
            "keys": ", ".join(str(row["customer"]) for row in rows),
            "last": last - 1_000,
        }
        for plan in PLANS:
            console.print(f"\n-- {plan}", highlight=False)
            explained = await connection.fetch(f"EXPLAIN (ANALYZE, BUFFERS OFF, COSTS OFF) {plan.format(**values)}")
            for (line,) in explained:
                console.print(f"   {line[:140]}", highlight=False, markup=False)
        await connection.execute("RESET search_path")


# -- all of it ---------------------------------------------------------------------------------------------------------


@dataclass
class Figures:
    """What was measured at one size. Rates are events per second."""

    interactions: int
    events: int = 0
    filled: float = 0.0
    read: float = 0.0
    projected: float = 0.0
    folded: float = 0.0
    bare: float = 0.0
    projection_cpu_us: float = 0.0
    projection_mib: float = 0.0
    start_s: float = 0.0
    service_mib: float = 0.0
    questions: dict[str, Asked] = field(default_factory=dict)

    @property
    def ratio(self) -> float:
        return self.projected / self.bare


async def measure(interactions: int, given: argparse.Namespace, console: Console) -> Figures:
    figures, source = Figures(interactions), Source(max(interactions // 10, 1), given.seed)
    with tempfile.TemporaryDirectory(prefix="bench-journey-", dir=given.directory) as folder:
        async with running(["journey"], data=Path(folder).resolve()) as cluster:
            async with grpc.aio.insecure_channel(cluster.address("journey")) as channel:
                await JourneyServiceStub(channel).PublishJourneyMap(
                    pb.PublishJourneyMapRequest(map=the_map(), actor="bench")
                )
            await cluster.stop("journey")
            store = await EventStore.connect(cluster.environment["RECORRIDO_EVENTSTORE_URI"])
            pool = await foundation.connect(cluster.environment["RECORRIDO_POSTGRES_DSN"])
            since = datetime.now(UTC)
            console.rule(f"{interactions:,} interactions")
            figures.filled = await fill(store, source, interactions, console)
            await raised(store)
            console.print(f"recorded {figures.filled:,.0f} events/s")
            figures.events, figures.read = await read_alone(store)
            console.print(f"store read alone {figures.read:,.0f} events/s")
            done = await projected(cluster)
            figures.projected = figures.events / done["seconds"]
            figures.projection_cpu_us, figures.projection_mib = 1e6 * done["cpu_s"] / figures.events, done["peak_mib"]
            console.print(f"projected {figures.projected:,.0f} events/s, at most {figures.projection_mib:,.0f} MiB")
            figures.folded = await folded(store, pool)
            console.print(f"folded from memory {figures.folded:,.0f} events/s")
            figures.bare = figures.events / await copied(pool)
            console.print(f"bare COPY {figures.bare:,.0f} events/s: ratio {figures.ratio:.2f}")
            begun = time.perf_counter()
            cluster.supervisor.start_part("journey")
            async with grpc.aio.insecure_channel(cluster.address("journey")) as channel:
                stub = JourneyServiceStub(channel)
                await stub.GetOverview(pb.GetOverviewRequest(), wait_for_ready=True)
                figures.start_s = time.perf_counter() - begun
                await cluster.until_ready("journey")
                if given.plans:
                    await show_plans(pool, console)
                await quiet(cluster.pid("journey"))
                figures.questions = await asked(
                    questions(stub, source, since),
                    lambda: recorded(store, pool, source),
                    given.queries,
                    pid=cluster.pid("journey"),
                    console=console,
                )
            figures.service_mib = peak_mib(cluster.pid("journey"))
            await pool.close()
            await store.close()
    console.print(_questions_table(figures))
    return figures


def _questions_table(figures: Figures) -> Table:
    table = Table("question, in ms", title=f"{figures.interactions:,} interactions")
    for name in ("p50", "p99", "p50 after a change", "p99 after a change", "CPU p50 after a change", "wanted p99"):
        table.add_column(name, justify="right")
    for name, taken in figures.questions.items():
        table.add_row(
            name,
            *(f"{1000 * percentile(each, share):.1f}" for each in (taken.still, taken.moving) for share in (0.5, 0.99)),
            f"{1000 * statistics.median(taken.cpu):.0f}",
            f"{1000 * WANTED_S[name]:.0f}" if name in WANTED_S else "",
        )
    return table


def _sizes_table(several: Sequence[Figures]) -> Table:
    table = Table("", title="sizes")
    for each in several:
        table.add_column(f"{each.interactions:,}", justify="right")
    table.add_column("ratio, last to first", justify="right")
    lines: dict[str, Callable[[Figures], float]] = {
        "events": lambda f: f.events,
        "projected, events/s": lambda f: f.projected,
        "bare COPY of the rows, events/s": lambda f: f.bare,
        "projected to bare COPY": lambda f: f.ratio,
        "store read alone, events/s": lambda f: f.read,
        "folded from memory, events/s": lambda f: f.folded,
        "folded from memory to bare COPY": lambda f: f.folded / f.bare,
        "projection, CPU µs an event": lambda f: f.projection_cpu_us,
        "projection, peak MiB": lambda f: f.projection_mib,
        "service, start to first answer, s": lambda f: f.start_s,
        "service, peak MiB": lambda f: f.service_mib,
    }
    for name in several[0].questions:
        lines[f"{name}, median ms"] = lambda f, name=name: 1000 * statistics.median(f.questions[name].still)
    for name, value in lines.items():
        values = [value(each) for each in several]
        table.add_row(name, *(f"{v:,.2f}" if v < 100 else f"{v:,.0f}" for v in values), f"{values[-1] / values[0]:.2f}")
    return table


def _misses(figures: Figures) -> Iterator[str]:
    if figures.projected < WANTED_PER_S:
        yield f"projection: {figures.projected:,.0f} events/s, wanted {WANTED_PER_S:,}"
    if figures.ratio < WANTED_RATIO:
        yield f"projection to bare COPY: {figures.ratio:.2f}, wanted {WANTED_RATIO}"
    for name, wanted in WANTED_S.items():
        slowest = max(
            percentile(each, 0.99) for each in (figures.questions[name].still, figures.questions[name].moving)
        )
        if slowest > wanted:
            yield f"{name}: p99 {1000 * slowest:.0f} ms, wanted {1000 * wanted:.0f}"


async def main(given: argparse.Namespace) -> int:
    telemetry.set_up("bench", log_level="ERROR")
    console = Console(width=120)
    several = [await measure(int(size), given, console) for size in given.sizes.split(",")]
    console.print(_sizes_table(several))
    misses = list(_misses(several[-1]))
    for miss in misses:
        console.print(f"missed: {miss}")
    return 1 if misses else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="100000,1000000", help="interactions, ascending")
    parser.add_argument("--queries", type=int, default=100, help="of each kind, and as many after a change each")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--plans", action="store_true", help="show what PostgreSQL does")
    parser.add_argument(
        "--directory", help="where the data lies meanwhile; the system's temporary directory by default"
    )
    parser.add_argument("--project", nargs=2, metavar=("STORE", "DSN"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.project:
        uvloop.run(project(*arguments.project))
    else:
        raise SystemExit(uvloop.run(main(arguments)))
