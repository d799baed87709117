"""The journey over gRPC with its real event store, relay, NATS and PostgreSQL."""

import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import nats
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from msgspec import structs

from recorrido.inference.v1.analysis_pb2 import POINT_KIND_NONE, POINT_KIND_PAIN
from recorrido.inference.v1.events import Analysis, FeedbackAnalyzed, PointKind, Sentiment
from recorrido.ingest.v1.events import (
    Channel,
    Customer,
    CustomerKind,
    Interaction,
    InteractionRecorded,
    Outcome,
    Rating,
    RatingMetric,
    Verbatim,
)
from recorrido.journey.v1 import journey_map_pb2
from recorrido.journey.v1 import journey_service_pb2 as pb
from recorrido.journey.v1.events import SignalRaised
from recorrido.journey.v1.journey_service_pb2_grpc import JourneyServiceStub
from services.foundation import telemetry
from services.foundation.events import CAUSATION_ID, CORRELATION_ID, Pending, Registry, derived_id, stream_name
from services.foundation.eventstore import ANY, CaughtUp, Checkpoint, EventStore, StreamAppend
from tests.support.cluster import Cluster, running
from tests.support.rpc_errors import info, violations
from tests.support.tables import dump
from tests.support.wait import until

START = datetime(2026, 1, 1, tzinfo=UTC)
TRACE = "0af7651916cd43dd8448eb211c80319c"


@dataclass
class Company:
    """A running journey service, and the history that the other services would have written."""

    cluster: Cluster
    store: EventStore
    journey: Any

    async def append(self, *events: tuple[InteractionRecorded | FeedbackAnalyzed, Any]) -> None:
        """Append each event, with the id it has, to its customer's stream, in a trace of its own."""
        context = telemetry.extract({"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"})
        for at in range(0, len(events), 200):
            await self.store.append(
                [
                    StreamAppend(
                        stream_name("customer", customer_of(event)),
                        ANY,
                        [Pending(event, event_id, {CORRELATION_ID: f"about {event_id}"}, context)],
                    )
                    for event, event_id in events[at : at + 200]
                ]
            )

    async def overview(self) -> pb.GetOverviewResponse:
        answer: pb.GetOverviewResponse = await self.journey.GetOverview(pb.GetOverviewRequest(), wait_for_ready=True)
        return answer

    async def until_signals(self, count: int) -> pb.GetOverviewResponse:
        """Wait until that many signals are raised and the read model has the whole history."""

        async def complete() -> pb.GetOverviewResponse | None:
            now = await self.overview()
            done = now.signals == count and now.position >= await self.store.head()
            return now if done else None

        return await until(complete, deadline_s=30, ignoring=(grpc.aio.AioRpcError,))


@contextlib.asynccontextmanager
async def company(data: Path) -> AsyncIterator[Company]:
    async with running(["relay", "journey"], data=data) as cluster:
        store = await EventStore.connect(cluster.environment["RECORRIDO_EVENTSTORE_URI"])
        async with grpc.aio.insecure_channel(cluster.address("journey")) as channel:
            try:
                yield Company(cluster, store, JourneyServiceStub(channel))
            finally:
                await store.close()


def customer_of(event: InteractionRecorded | FeedbackAnalyzed) -> str:
    if isinstance(event, FeedbackAnalyzed):
        return event.customer_id
    assert event.interaction is not None
    assert event.interaction.customer is not None
    return event.interaction.customer.customer_id


def happened(number: int, *, customers: int = 10, csat: int | None = None, **fields: Any) -> tuple[Any, Any]:
    """Interaction `number`, with the id of its event."""
    interaction = Interaction(
        source="shop",
        interaction_id=str(number),
        customer=Customer(customer_id=f"c-{number % customers}", kind=CustomerKind.BUYER),
        channel=Channel.WEB,
        occurred_at=START + timedelta(minutes=number),
        ratings=() if csat is None else (Rating(metric=RatingMetric.CSAT, value=float(csat)),),
        **{"touchpoint": "order_paid", "verbatim": Verbatim(text=f"words {number}"), **fields},
    )
    return InteractionRecorded(interaction=interaction), derived_id("interaction", str(number))


def understood(number: int, *, customers: int = 10, model: str = "1", pain: bool = True) -> tuple[Any, Any]:
    """The analysis of interaction `number`: a pain or a delight."""
    analysis = Analysis(
        sentiment=Sentiment.NEGATIVE if pain else Sentiment.POSITIVE,
        sentiment_score=-0.9 if pain else 0.9,
        point=PointKind.PAIN if pain else PointKind.DELIGHT,
        need_path="delivery/speed",
        model_version=model,
    )
    about = derived_id("interaction", str(number))
    event = FeedbackAnalyzed(interaction_event_id=str(about), customer_id=f"c-{number % customers}", analysis=analysis)
    return event, derived_id("analysis", str(number), model)


def a_map(touchpoint: str = "order_*", map_id: str = "shop") -> journey_map_pb2.JourneyMap:
    return journey_map_pb2.JourneyMap(
        map_id=map_id,
        name="Shop",
        stages=[
            journey_map_pb2.Stage(
                stage_id="buy",
                name="Buy",
                touchpoints=[journey_map_pb2.Touchpoint(touchpoint_id="checkout", name="Checkout")],
            ),
            journey_map_pb2.Stage(
                stage_id="receive",
                name="Receive",
                touchpoints=[journey_map_pb2.Touchpoint(touchpoint_id="parcel", name="Parcel", moment_of_truth=True)],
            ),
        ],
        mapping_rules=[journey_map_pb2.MappingRule(source="shop", touchpoint=touchpoint, touchpoint_id="checkout")],
    )


def publish(map_: journey_map_pb2.JourneyMap, request_id: str = "") -> pb.PublishJourneyMapRequest:
    return pb.PublishJourneyMapRequest(map=map_, actor="ana", request_id=request_id)


def stamp(at: datetime) -> Timestamp:
    made = Timestamp()
    made.FromDatetime(at)
    return made


async def signals_in_store(store: EventStore, numbers: Sequence[int]) -> dict[int, list[Any]]:
    """Return what the signal streams of these interactions hold."""
    return {
        n: await store.read(
            stream_name("signal", str(derived_id("bad_moment", str(derived_id("interaction", str(n))))))
        )
        for n in numbers
    }


# -- the whole path ------------------------------------------------------------------------------------------------


async def test_from_bad_moments_to_signals_on_a_placed_timeline(tmp_path: Path) -> None:
    async with company(tmp_path) as c:
        published = (await c.journey.PublishJourneyMap(publish(a_map(), "r1"))).published
        assert (published.version, published.actor, published.map) == (1, "ana", a_map())
        await c.append(
            happened(0, csat=1),
            happened(10, csat=5),
            happened(20, touchpoint="returns", outcome=Outcome.FAILED),
            happened(30, touchpoint="parcel", csat=2),
            happened(40, csat=4),
            understood(0),
            understood(10),
            understood(40, pain=False),
        )
        now = await c.until_signals(4)
        assert (now.customers, now.interactions, now.verbatims, now.analyzed) == (1, 5, 5, 3)
        assert now.uncovered_interactions == 1
        assert [(u.source, u.touchpoint, u.interactions) for u in now.uncovered] == [("shop", "returns", 1)]

        journey = await c.journey.GetCustomerJourney(pb.GetCustomerJourneyRequest(customer_id="c-0"))
        assert (journey.map_id, journey.map_version, journey.total_entries) == ("shop", 1, 5)
        assert [
            (
                e.interaction.interaction_id,
                e.stage_name,
                e.touchpoint_name,
                e.analysis.model_version,
                len(e.signal_ids),
            )
            for e in journey.entries
        ] == [
            ("0", "Buy", "Checkout", "1", 1),
            ("10", "Buy", "Checkout", "1", 1),
            ("20", "", "", "", 1),
            ("30", "Receive", "Parcel", "", 1),
            ("40", "Buy", "Checkout", "1", 0),
        ]
        listed = (await c.journey.ListSignals(pb.ListSignalsRequest(customer_id="c-0"))).signals
        assert {s.signal_id for s in listed} == {i for e in journey.entries for i in e.signal_ids}
        assert (await c.journey.ListSignals(pb.ListSignalsRequest(customer_id="nobody"))).signals == []

        # Words alone raised the one of interaction 10: what they lack comes from the interaction.
        (told,) = [s for s in listed if s.signal_id == journey.entries[1].signal_ids[0]]
        assert (told.rule, told.rule_version, told.touchpoint, told.need_path) == (
            "bad_moment",
            1,
            "order_paid",
            "delivery/speed",
        )
        assert told.occurred_at == journey.entries[1].occurred_at
        assert told.evidence_event_ids == [str(happened(10)[1]), str(understood(10)[1])]

        scores = await c.journey.GetScores(pb.GetScoresRequest())
        assert list(scores.total.csat.histogram) == [1, 1, 0, 1, 1]
        assert [(t.touchpoint_id, t.name, t.scores.interactions) for t in scores.touchpoints] == [
            ("checkout", "Checkout", 3),
            ("parcel", "Parcel", 1),
            ("", "returns", 1),
        ]
        assert not scores.total.HasField("nps")
        asked = pb.ListPointsRequest(kind=POINT_KIND_PAIN)
        (pain,) = (await c.journey.ListPoints(asked)).points
        assert (pain.need_path, pain.touchpoint_name, pain.customers, pain.mentions, pain.share) == (
            "delivery/speed",
            "Checkout",
            1,
            2,
            1.0,
        )
        # One of each customer.
        assert list(pain.examples) == ["words 10"]


async def test_a_signal_stands_in_the_trace_of_its_cause_and_names_it(tmp_path: Path) -> None:
    async with company(tmp_path) as c:
        await c.append(happened(1, csat=1), happened(2), understood(2))
        await c.until_signals(2)
        found = await signals_in_store(c.store, [1, 2])
        for number, cause in ((1, happened(1)[1]), (2, understood(2)[1])):
            (recorded,) = found[number]
            assert telemetry.trace_id_of(recorded.metadata) == TRACE
            assert recorded.metadata[CAUSATION_ID] == str(cause)
            assert recorded.metadata[CORRELATION_ID] == f"about {cause}"
            signal = Registry((SignalRaised,)).decode(recorded)
            assert [e.revision for e in signal.evidence] == list(range(len(signal.evidence)))


async def test_signals_are_raised_once_whatever_is_delivered_again_or_killed(tmp_path: Path) -> None:
    async with company(tmp_path) as c:
        bad = range(0, 600, 3)
        await c.append(*(happened(n, csat=1 if n in bad else 5) for n in range(600)))
        await until(lambda: _some_signals(c), deadline_s=30)
        await c.cluster.kill_and_restart("journey")
        await c.append(*(understood(n, pain=n in bad) for n in range(600)))
        await c.until_signals(len(bad))

        # Deliver the whole history once more: the consumer forgets what it has seen.
        await c.cluster.stop("journey")
        bus = await nats.connect(c.cluster.environment["RECORRIDO_NATS_URL"])
        await bus.jetstream().delete_consumer("RECORRIDO", "journey-signals")
        await c.cluster.start("journey")

        async def all_delivered() -> bool:
            consumer = await bus.jetstream().consumer_info("RECORRIDO", "journey-signals")
            return consumer.num_pending == 0 and consumer.num_ack_pending == 0

        await until(all_delivered, deadline_s=30, ignoring=(nats.js.errors.NotFoundError,))
        await bus.close()
        await c.until_signals(len(bad))
        assert {n: len(events) for n, events in (await signals_in_store(c.store, range(600))).items()} == {
            n: int(n in bad) for n in range(600)
        }


async def _some_signals(c: Company) -> bool:
    return (await c.overview()).signals > 0


async def test_an_analysis_of_no_interaction_becomes_a_dead_letter_and_hinders_nothing(tmp_path: Path) -> None:
    async with company(tmp_path) as c:
        # A history longer than the first look back.
        await c.append(*(happened(n, customers=1) for n in range(150)))
        # What is said when the history is analysed again is no news, and raises nothing.
        again, event_id = understood(7, customers=1, model="2")
        again = structs.replace(again, reanalysis_id="again")
        await c.append(understood(999, customers=1), (again, event_id), understood(0, customers=1))
        await c.until_signals(1)
        bus = await nats.connect(c.cluster.environment["RECORRIDO_NATS_URL"])

        async def dead() -> int:
            return int((await bus.jetstream().stream_info("RECORRIDO_DEAD")).state.messages)

        assert await until(dead) == 1
        message = await bus.jetstream().get_msg("RECORRIDO_DEAD", seq=1)
        await bus.close()
        assert (message.headers or {})["ce-id"] == str(understood(999)[1])
        assert "holds no interaction" in (message.headers or {})["recorrido-dead-reason"]


# -- as of, rebuild, parts that are down ---------------------------------------------------------------------------


async def test_as_of_answers_what_was_answered_then_and_a_rebuild_gives_the_same_rows(tmp_path: Path) -> None:
    async with company(tmp_path) as c:
        questions: list[tuple[str, Any]] = [
            ("GetScores", pb.GetScoresRequest()),
            ("ListPoints", pb.ListPointsRequest()),
            ("GetOverview", pb.GetOverviewRequest()),
            ("ListSignals", pb.ListSignalsRequest(page_size=1000)),
            *(
                ("GetCustomerJourney", pb.GetCustomerJourneyRequest(customer_id=f"c-{n}", page_size=1000))
                for n in range(10)
            ),
        ]

        async def ask(as_of: datetime | None = None) -> list[Any]:
            answers = []
            for method, question in questions:
                request = type(question)()
                request.CopyFrom(question)
                if as_of is not None:
                    request.as_of.CopyFrom(stamp(as_of))
                answer = await getattr(c.journey, method)(request)
                if method == "GetOverview":
                    # How far the projection is today, whatever is asked.
                    answer.position = 0
                answers.append(answer)
            return answers

        async def last_recorded() -> datetime:
            return max([e.recorded_at async for e in _everything(c)])

        then: dict[datetime, list[Any]] = {}
        bad = 0
        for step in range(4):
            if step in {1, 2}:
                await c.journey.PublishJourneyMap(publish(a_map("order_*" if step == 1 else "nothing")))
            numbers = range(step * 40, step * 40 + 40)
            bad += sum(n % 8 == 0 for n in numbers)
            await c.append(*(happened(n, csat=1 if n % 8 == 0 else 5) for n in numbers))
            # The words of earlier steps are understood later, and once more by a newer model.
            await c.append(*(understood(n, model=str(step), pain=n % 8 == 0) for n in range(0, step * 40, 2)))
            await c.until_signals(bad)
            then[await last_recorded()] = await ask()
        assert len({str(answers) for answers in then.values()}) == len(then)
        for as_of, answers in then.items():
            assert await ask(as_of) == answers

        pool = await asyncpg.create_pool(c.cluster.environment["RECORRIDO_POSTGRES_DSN"], min_size=1, max_size=1)
        before = await dump(pool, "journey")
        await c.cluster.stop("journey")
        await pool.execute("DROP SCHEMA journey CASCADE")
        await c.cluster.start("journey")
        await c.until_signals(bad)
        after = await dump(pool, "journey")
        await pool.close()
        # How far the checkpoint reads beyond the last event of interest is the store's affair.
        before.pop("checkpoint")
        after.pop("checkpoint")
        assert after == before


async def _everything(c: Company) -> AsyncIterator[Any]:
    async with contextlib.aclosing(c.store.follow(None)) as items:
        async for item in items:
            if isinstance(item, CaughtUp):
                return
            if not isinstance(item, Checkpoint):
                yield item


async def test_without_postgres_questions_are_unavailable_and_nothing_is_lost(tmp_path: Path) -> None:
    async with company(tmp_path) as c:
        await c.append(happened(1, csat=1))
        await c.until_signals(1)
        await c.cluster.stop("postgres")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await c.overview()
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert info(caught.value).metadata["part"] == "PostgreSQL"
        # Maps live in the store, and signals need no read model.
        assert (await c.journey.PublishJourneyMap(publish(a_map()))).published.version == 1
        assert (await c.journey.GetJourneyMap(pb.GetJourneyMapRequest(map_id="shop"))).published.version == 1
        await c.append(happened(2, csat=1))

        async def raised() -> bool:
            return len((await signals_in_store(c.store, [2]))[2]) == 1

        await until(raised)
        await c.cluster.start("postgres")
        await c.until_signals(2)


# -- the contract of each call -------------------------------------------------------------------------------------


async def test_maps_are_versioned_listed_and_refused_with_every_problem(tmp_path: Path) -> None:
    async with company(tmp_path) as c:

        async def refused(method: str, request: Any) -> grpc.aio.AioRpcError:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await getattr(c.journey, method)(request)
            return caught.value

        async def version_of(map_: journey_map_pb2.JourneyMap, request_id: str = "") -> int:
            return int((await c.journey.PublishJourneyMap(publish(map_, request_id))).published.version)

        assert await version_of(a_map(), "r1") == 1
        assert await version_of(a_map()) == 1
        assert await version_of(a_map("x"), "r2") == 2
        assert await version_of(a_map(), "r1") == 1
        assert await version_of(a_map()) == 3
        assert await version_of(a_map(map_id="care")) == 1
        error = await refused("PublishJourneyMap", publish(a_map("y"), "r1"))
        assert error.code() is grpc.StatusCode.ALREADY_EXISTS
        got = await c.journey.GetJourneyMap(pb.GetJourneyMapRequest(map_id="shop", version=2))
        assert got.published.map == a_map("x")
        latest = await c.journey.GetJourneyMap(pb.GetJourneyMapRequest(map_id="shop"))
        assert latest.published.version == 3

        async def listed() -> bool:
            maps = (await c.journey.ListJourneyMaps(pb.ListJourneyMapsRequest())).maps
            return [(m.map.map_id, m.version) for m in maps] == [("care", 1), ("shop", 3)]

        # Until the read model is built, a list is refused as UNAVAILABLE.
        await until(listed, ignoring=(grpc.aio.AioRpcError,))
        for request in (
            pb.GetJourneyMapRequest(map_id="none"),
            pb.GetJourneyMapRequest(map_id="shop", version=4),
            pb.GetJourneyMapRequest(map_id="shop", version=-1),
            pb.GetJourneyMapRequest(map_id="a\0-b"),
        ):
            assert (await refused("GetJourneyMap", request)).code() is grpc.StatusCode.NOT_FOUND

        bad = a_map()
        bad.mapping_rules[0].channel = 99
        error = await refused("PublishJourneyMap", publish(bad))
        assert violations(error) == [("map.mapping_rules[0].channel", "one of the known values")]
        bad = a_map()
        bad.stages[1].stage_id = "buy"
        bad.mapping_rules[0].touchpoint_id = "nowhere"
        error = await refused("PublishJourneyMap", publish(bad))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert [field for field, _ in violations(error)] == [
            "map.stages[1].stage_id",
            "map.mapping_rules[0].touchpoint_id",
        ]


async def test_bad_questions_name_the_field(tmp_path: Path) -> None:
    async with company(tmp_path) as c:
        await until(c.overview, ignoring=(grpc.aio.AioRpcError,))
        early, late = stamp(START), stamp(START + timedelta(days=1))
        beyond = Timestamp(seconds=10**12)
        scores_backwards = pb.GetScoresRequest(to=early)
        getattr(scores_backwards, "from").CopyFrom(late)
        for method, request, field in (
            ("GetCustomerJourney", pb.GetCustomerJourneyRequest(), "customer_id"),
            ("GetCustomerJourney", pb.GetCustomerJourneyRequest(customer_id="a\0"), "customer_id"),
            ("GetCustomerJourney", pb.GetCustomerJourneyRequest(customer_id="a", page_size=1001), "page_size"),
            ("ListSignals", pb.ListSignalsRequest(page_size=-1), "page_size"),
            ("ListSignals", pb.ListSignalsRequest(page_token="nonsense"), "page_token"),
            ("ListPoints", pb.ListPointsRequest(limit=1001), "limit"),
            ("ListPoints", pb.ListPointsRequest(kind=POINT_KIND_NONE), "kind"),
            ("ListPoints", pb.ListPointsRequest(kind=77), "kind"),
            ("GetScores", scores_backwards, "to"),
            ("GetOverview", pb.GetOverviewRequest(as_of=beyond), "as_of"),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await getattr(c.journey, method)(request)
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT, method
            assert [name for name, _ in violations(caught.value)] == [field]
        for method, request in (
            ("GetCustomerJourney", pb.GetCustomerJourneyRequest(customer_id="nobody")),
            ("GetScores", pb.GetScoresRequest(map_id="none")),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await getattr(c.journey, method)(request)
            assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        empty = await c.journey.GetScores(pb.GetScoresRequest())
        assert (empty.total.interactions, list(empty.touchpoints), empty.map_version) == (0, [], 0)
