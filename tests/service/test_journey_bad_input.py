"""What histories really look like: late, doubled, merged by mistake, under clocks that jump; each right by definition.

`docs/journey.md` says what is right. The random histories of `test_journey_views` hold all of it at once.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any
from uuid import UUID, uuid5

import pytest
import pytest_asyncio
from msgspec import structs

from recorrido.inference.v1.events import Analysis, FeedbackAnalyzed, PointKind, Sentiment
from recorrido.ingest.v1.events import (
    Channel,
    Customer,
    IdentityLinked,
    IdentityUnlinked,
    Interaction,
    InteractionRecorded,
    Money,
    Rating,
    RatingMetric,
    Verbatim,
)
from recorrido.journey.v1.events import JourneyMap, JourneyMapPublished, Stage, Touchpoint
from services.foundation import projection as foundation
from services.foundation.events import Event, Recorded, encode
from services.foundation.sharing import SharedRunner
from services.journey.domain.history import microseconds
from services.journey.views.coverage import coverage
from services.journey.views.flow import CaseOf, Cases, Flow, FlowFilter, Level, flow
from services.journey.views.ladder import ladder
from services.journey.views.points import KINDS, points
from services.journey.views.projection import JourneyProjection
from services.journey.views.scores import EventRange, Grouping, Period, grouped, scores
from services.journey.views.selection import Selection
from services.journey.views.snapshot import ReadModel, Snapshot
from services.journey.views.timeline import MAX_PARTS, customer_journey
from tests.support.cluster import running

pytestmark = pytest.mark.asyncio(loop_scope="module")
START = datetime(2026, 1, 1, tzinfo=UTC)
#: When questions are asked: after everything.
MOMENT = microseconds(START + timedelta(days=200))
NAMESPACE = UUID(int=7)
_SCHEMAS = count()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pool(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Any]:
    async with running(["postgres"], data=tmp_path_factory.mktemp("input")) as cluster:
        pool = await foundation.connect(cluster.environment["RECORRIDO_POSTGRES_DSN"])
        try:
            yield pool
        finally:
            await pool.close()


@dataclass
class Story:
    """A history that grows; each event is recorded a second after the one before, unless it is said when."""

    recorded: list[Recorded] = field(default_factory=list)

    def add(self, stream: str, event: Event, name: str, at: datetime | None = None) -> None:
        self.recorded.append(
            Recorded(
                type_name=event.type_name,
                data=encode(event),
                metadata={},
                event_id=uuid5(NAMESPACE, name),
                stream=stream,
                revision=0,
                position=10 * len(self.recorded) + 1,
                recorded_at=at or START + timedelta(days=100, seconds=len(self.recorded)),
            )
        )

    def happened(self, customer: str, day: float, at: datetime | None = None, **told: Any) -> None:
        interaction = Interaction(
            **{
                "source": "shop",
                "customer": Customer(customer_id=customer),
                "touchpoint": "checkout",
                "channel": Channel.WEB,
                "occurred_at": START + timedelta(days=day),
                **told,
            }
        )
        self.add(f"customer-{customer}", InteractionRecorded(interaction=interaction), f"{customer} {day}", at)

    def publish(self, version: int, *touchpoints: Touchpoint, at: datetime | None = None) -> None:
        stage = Stage(stage_id="buy", name="Buy", touchpoints=touchpoints)
        published = JourneyMapPublished(map=JourneyMap(map_id="shop", name="Shop", stages=(stage,)), version=version)
        self.add("journeymap-shop", published, f"map {version}", at)

    def again(self, recorded: Recorded) -> None:
        """Add an event once more, as it was, at a later place."""
        self.recorded.append(
            structs.replace(
                recorded,
                position=10 * len(self.recorded) + 1,
                recorded_at=START + timedelta(days=100, seconds=len(self.recorded)),
            )
        )


CHECKOUT = Touchpoint(touchpoint_id="checkout", name="Checkout")
PARCEL = Touchpoint(touchpoint_id="parcel", name="Parcel")


async def project(pool: Any, recorded: Sequence[Recorded], *, batch: int = 100) -> ReadModel:
    view = JourneyProjection()
    view.name = f"input_{next(_SCHEMAS)}"
    runner = SharedRunner(None, pool, view)  # type: ignore[arg-type] - it is written to by hand
    await runner.prepare()
    await runner.last()
    for at in range(0, len(recorded), batch):
        await runner.write(recorded[at : at + batch])
    return ReadModel(pool, view.name)


async def answers(snapshot: Snapshot, *customers: str) -> list[Any]:
    """Return what is answered to every question, without the places in the store that it was computed from."""
    reading = snapshot.reading(snapshot.map_in_force(""))
    cases = Cases(reading, CaseOf.EPISODE, Level.TOUCHPOINT, MOMENT)
    found: list[Any] = [
        scores(reading, Selection()),
        grouped(reading, Selection(), [Grouping.TOUCHPOINT, Grouping.PERSONA], Period.WEEK, 1000),
        points(reading, Selection(), kinds=KINDS, limit=100, moment=MOMENT),
        coverage(reading, None, None, 100),
        flow(cases, cases.chosen(FlowFilter(), "filter"), 10),
        ladder(reading, moment=MOMENT, since=START, until=None, period=Period.MONTH, persona_id=""),
    ]
    for customer in customers:
        told = await customer_journey(snapshot, snapshot.map_in_force(""), customer, page_size=1000, page_token="")
        found += [told.entries, told.episodes, told.experience, told.stage_path, told.loyalty.level, told.spent]
    return [_without_places(each) for each in found]


def _without_places(value: Any) -> Any:
    if isinstance(value, EventRange):
        return value.events
    if is_dataclass(value):
        places = {"position", "recorded_at", "example_positions", "event_ids"}
        return {
            each.name: _without_places(getattr(value, each.name)) for each in fields(value) if each.name not in places
        }
    if isinstance(value, list | tuple):
        return [_without_places(each) for each in value]
    return value


def lives(customers: int) -> Iterator[list[tuple[str, Event, str]]]:
    """Yield the events of each customer in the order in which they happened, weeks apart, no two at one moment."""
    for number in range(customers):
        who, mine = f"c{number}", []
        for visit in range(6):
            event_id = uuid5(NAMESPACE, f"{who} {visit}")
            interaction = Interaction(
                source="shop",
                interaction_id=str(visit),
                customer=Customer(customer_id=who),
                touchpoint=("checkout", "parcel", "elsewhere")[(number + visit) % 3],
                channel=Channel.WEB,
                occurred_at=START + timedelta(days=10 * visit, minutes=number),
                verbatim=Verbatim(text=f"{who} {visit}"),
                ratings=(Rating(metric=RatingMetric.CSAT, value=1.0 + (number + visit) % 5),),
                amount=Money(currency_code="EUR", amount="10.00"),
            )
            mine.append((f"customer-{who}", InteractionRecorded(interaction=interaction), f"{who} {visit}"))
            pain = (number + visit) % 5 < 2
            analysis = Analysis(
                point=PointKind.PAIN if pain else PointKind.DELIGHT,
                sentiment=Sentiment.NEGATIVE if pain else Sentiment.POSITIVE,
                sentiment_score=-0.75 if pain else 0.75,
                need_path="delivery/speed",
            )
            analyzed = FeedbackAnalyzed(interaction_event_id=str(event_id), customer_id=who, analysis=analysis)
            mine.append((f"customer-{who}", analyzed, f"{who} {visit} analysis"))
        yield mine


CUSTOMERS = [f"c{n}" for n in range(8)]


def in_order() -> Story:
    story = Story()
    story.publish(1, CHECKOUT, PARCEL)
    for mine in lives(len(CUSTOMERS)):
        for event in mine:
            story.add(*event)
    return story


async def test_what_comes_weeks_late_or_in_any_order_counts_where_it_happened(pool: Any) -> None:
    async with (await project(pool, in_order().recorded)).snapshot() as snapshot:
        expected = await answers(snapshot, *CUSTOMERS)
    for seed in range(3):
        dice = random.Random(seed)
        story = Story()
        everything = [mine[n : n + 2] for mine in lives(len(CUSTOMERS)) for n in range(0, len(mine), 2)]
        # Any order, but for an analysis: it comes after what it is about, if long after.
        dice.shuffle(everything)
        late: list[tuple[str, Event, str]] = []
        for interaction, analysis in everything:
            story.add(*interaction)
            late.append(analysis)
            if dice.random() < 0.3:
                story.add(*late.pop(dice.randrange(len(late))))
        story.publish(1, CHECKOUT, PARCEL)
        for analysis in late:
            story.add(*analysis)
        async with (await project(pool, story.recorded, batch=7)).snapshot() as snapshot:
            assert await answers(snapshot, *CUSTOMERS) == expected


async def test_what_comes_again_counts_once(pool: Any) -> None:
    story = in_order()
    async with (await project(pool, story.recorded)).snapshot() as snapshot:
        expected = await answers(snapshot, *CUSTOMERS)
    dice = random.Random(0)
    once = [each for each in story.recorded if each.type_name == InteractionRecorded.type_name]
    for each in dice.choices(once, k=60):
        story.again(each)
    for batch in (1, 1000):
        async with (await project(pool, story.recorded, batch=batch)).snapshot() as snapshot:
            assert await answers(snapshot, *CUSTOMERS) == expected


async def test_two_who_were_merged_by_mistake_have_their_own_histories_again(pool: Any) -> None:
    story = in_order()
    apart = story.recorded[-1].recorded_at
    story.add("identity-1", IdentityLinked(identity_customer_id="c1", customer_id="c0"), "linked")
    merged = story.recorded[-1].recorded_at
    story.add("identity-1", IdentityUnlinked(identity_customer_id="c1", customer_id="c0"), "unlinked")
    read_model = await project(pool, story.recorded)
    async with read_model.snapshot(apart) as snapshot:
        expected = await answers(snapshot, *CUSTOMERS)
    async with read_model.snapshot() as snapshot:
        assert await answers(snapshot, *CUSTOMERS) == expected
    async with read_model.snapshot(merged) as snapshot:
        in_force = snapshot.map_in_force("")
        for name in ("c0", "c1"):
            told = await customer_journey(snapshot, in_force, name, page_size=100, page_token="")
            assert (told.customer_id, told.total, list(told.customer_ids)) == ("c0", 12, ["c0", "c1"])
        total, _ = scores(snapshot.reading(in_force), Selection())
        assert (total.interactions, total.customers) == (48, 7)


async def test_a_map_published_while_events_flow_reads_all_of_them_at_once(pool: Any) -> None:
    view = JourneyProjection()
    view.name = f"input_{next(_SCHEMAS)}"
    runner = SharedRunner(None, pool, view)  # type: ignore[arg-type]
    await runner.prepare()
    await runner.last()
    story = Story()
    for number in range(40):
        if number in (10, 25):
            touchpoints = (CHECKOUT,) if number == 10 else (CHECKOUT, PARCEL)
            story.publish(1 if number == 10 else 2, *touchpoints)
        story.happened(f"c{number}", number, touchpoint=("checkout", "parcel")[number % 2])
    read_model, seen = ReadModel(pool, view.name), set()

    async def ask() -> None:
        while story.recorded[-1].position not in seen:
            async with read_model.snapshot() as snapshot:
                known = [each for each in story.recorded if each.position <= snapshot.position]
                in_force = snapshot.map_in_force("")
                total, by_touchpoint = scores(snapshot.reading(in_force), Selection())
            maps = [each for each in known if each.type_name == JourneyMapPublished.type_name]
            assert in_force.version == len(maps)
            assert total.interactions == len(known) - len(maps)
            # Everything is somewhere, whichever map reads it.
            assert sum(each.scores.interactions for each in by_touchpoint) == total.interactions
            on_map = {each.touchpoint_id for each in by_touchpoint} - {""}
            assert on_map == [set(), {"checkout"}, {"checkout", "parcel"}][len(maps)]
            seen.add(known[-1].position if known else 0)
            await asyncio.sleep(0)

    asking = asyncio.create_task(ask())
    for each in story.recorded:
        await runner.write([each])
    await asyncio.wait_for(asking, 20)
    assert len(seen) > 5


async def test_under_a_clock_that_jumps_nothing_is_known_before_what_came_earlier(pool: Any) -> None:
    story = Story()
    jumps = [0, 10, -3600, 20, 86_400 * 365, 30, 40, -50, 86_400 * 366, 60]
    for number, seconds in enumerate(jumps):
        story.happened(f"c{number}", number, at=START + timedelta(days=100, seconds=seconds))
    read_model = await project(pool, story.recorded)
    before = 0
    for seconds in sorted({*jumps, -4000, 15, 86_400 * 400}):
        as_of = START + timedelta(days=100, seconds=seconds)
        async with read_model.snapshot(as_of) as snapshot:
            known = len(snapshot.history.interactions)
        later = [n for n, each in enumerate(jumps) if each > seconds]
        # All before the first that was recorded later, whatever the clock said of the others.
        assert known == (later[0] if later else len(jumps))
        assert known >= before
        before = known
    # Behind the year that the clock jumped ahead, and back, all comes at once.
    assert before == len(jumps)


async def test_empty_periods_are_gaps_and_nothing_is_nothing(pool: Any) -> None:
    story = Story()
    story.publish(1, CHECKOUT, PARCEL)
    for day in (1, 95):
        story.happened("ana", day, ratings=(Rating(metric=RatingMetric.CSAT, value=5.0),))
    async with (await project(pool, story.recorded)).snapshot() as snapshot:
        reading = snapshot.reading(snapshot.map_in_force(""))
        groups, _ = grouped(reading, Selection(), [], Period.MONTH, 100)
        assert [group.scores.interactions for group in groups] == [1, 0, 0, 1]
        assert [group.scores.csat is None for group in groups] == [False, True, True, False]
        empty = Selection(since=START + timedelta(days=10), until=START + timedelta(days=20))
        total, by_touchpoint = scores(reading, empty)
        assert (total.interactions, total.csat, total.nps) == (0, None, None)
        assert [each.scores.interactions for each in by_touchpoint] == [0, 0]
        assert grouped(reading, empty, [Grouping.TOUCHPOINT], Period.DAY, 100) == ([], 0)
        assert points(reading, empty, kinds=KINDS, limit=10, moment=MOMENT).points == []
        cases = Cases(reading, CaseOf.EPISODE, Level.TOUCHPOINT, MOMENT)
        assert flow(cases, cases.chosen(FlowFilter(selection=empty), "filter"), 10) == Flow()
        heard = coverage(reading, empty.since, empty.until, 10)
        assert [each.voice.interactions for each in heard.touchpoints] == [0, 0]


async def test_a_renamed_touchpoint_keeps_its_history_by_its_alias_and_loses_none_without(pool: Any) -> None:
    story = Story()
    story.publish(1, CHECKOUT)
    for day in range(5):
        story.happened("ana", day)
    old = story.recorded[-1].recorded_at
    story.publish(2, Touchpoint(touchpoint_id="till", name="Till", aliases=("checkout",)))
    for day in range(5, 8):
        story.happened("ana", day, touchpoint="till")
    aliased = story.recorded[-1].recorded_at
    story.publish(3, Touchpoint(touchpoint_id="till", name="Till"))
    read_model = await project(pool, story.recorded)

    async def told(as_of: datetime | None) -> list[tuple[str, str, int]]:
        async with read_model.snapshot(as_of) as snapshot:
            _, found = scores(snapshot.reading(snapshot.map_in_force("")), Selection())
        return [(each.touchpoint_id, each.name, each.scores.interactions) for each in found]

    assert await told(old) == [("checkout", "Checkout", 5)]
    assert await told(aliased) == [("till", "Till", 8)]
    assert await told(None) == [("till", "Till", 3), ("", "checkout", 5)]


async def test_a_customer_with_100_000_interactions_is_answered_whole(pool: Any) -> None:
    many = 100_000
    story = Story()
    story.publish(1, CHECKOUT, PARCEL)
    for number in range(many):
        # Minutes apart, with a month of silence behind each 90: more episodes than are given.
        day = number / 1440 + 31 * (number // 90)
        story.happened("ana", day, touchpoint=("checkout", "parcel")[number % 2], ratings=ANSWERS[number % 5])
    read_model = await project(pool, story.recorded, batch=10_000)
    async with read_model.snapshot() as snapshot:
        in_force = snapshot.map_in_force("")
        seen: list[UUID] = []
        token = ""
        for _ in range(3):
            page = await customer_journey(snapshot, in_force, "ana", page_size=1000, page_token=token)
            seen += [each.event_id for each in page.entries]
            token = page.next_page_token
        assert (page.total, len(set(seen))) == (many, 3000)
        assert seen == [each.event_id for each in story.recorded[1:3001]]
        assert len(page.episodes) == MAX_PARTS
        assert len(page.experience.moments) == MAX_PARTS
        assert len(page.stage_path) == 1
        assert page.stage_path[0].interactions == many
        total, _ = scores(snapshot.reading(in_force), Selection())
        assert (total.interactions, total.customers) == (many, 1)
        assert total.csat is not None
        assert total.csat.histogram == (many // 5,) * 5


ANSWERS = [(Rating(metric=RatingMetric.CSAT, value=1.0 + n),) for n in range(5)]
