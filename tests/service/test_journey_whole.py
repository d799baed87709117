"""The journey over gRPC, on one history: as of then, watched, rebuilt, previewed; and through the command."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import grpc
import pytest
import pytest_asyncio
from google.protobuf.timestamp_pb2 import Timestamp
from playwright.async_api import async_playwright

from recorrido.actions.v1.action_pb2 import ACTION_RESULT_WORSE, ACTION_STATE_COMPLETED
from recorrido.actions.v1.events import ActionCompleted, ActionKind, ActionOpened, ActionResult
from recorrido.inference.v1.events import Analysis, FeedbackAnalyzed, PointKind, Sentiment
from recorrido.ingest.v1.events import (
    Channel,
    Customer,
    CustomerKind,
    Identity,
    IdentityKind,
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
from services.foundation.events import Event, Pending, derived_id, stream_name
from services.foundation.eventstore import ANY, EventStore, StreamAppend
from tests.support.cli import answer, environment, recorrido, start
from tests.support.cluster import Cluster, running
from tests.support.rpc_errors import violations
from tests.support.tables import dump
from tests.support.wait import until

pytestmark = pytest.mark.asyncio(loop_scope="module")
START = datetime(2026, 1, 1, tzinfo=UTC)
CHROMIUM = Path("/usr/bin/chromium")


@dataclass
class Company:
    """A running journey, and the history that the other services would have written."""

    cluster: Cluster
    store: EventStore
    journey: Any

    async def append(self, stream: str, event: Event, event_id: Any = None) -> None:
        await self.store.append([StreamAppend(stream, ANY, [Pending(event, event_id or uuid4())])])

    async def happened(self, customer: str, day: float, *, csat: int = 0, nps: int = -1, **fields: Any) -> str:
        event_id = derived_id(customer, str(day))
        ratings = [Rating(metric=RatingMetric.CSAT, value=csat)] if csat else []
        ratings += [Rating(metric=RatingMetric.NPS, value=nps)] if nps >= 0 else []
        interaction = Interaction(
            source="shop",
            interaction_id=str(event_id),
            customer=Customer(customer_id=customer, kind=CustomerKind.BUYER),
            occurred_at=START + timedelta(days=day),
            ratings=tuple(ratings),
            **{"touchpoint": "checkout", "channel": Channel.WEB, **fields},
        )
        await self.append(stream_name("customer", customer), InteractionRecorded(interaction=interaction), event_id)
        return str(event_id)

    async def said(self, customer: str, about: str, score: float, need: str) -> None:
        pain = score < 0
        analysis = Analysis(
            point=PointKind.PAIN if pain else PointKind.DELIGHT,
            sentiment=Sentiment.NEGATIVE if pain else Sentiment.POSITIVE,
            sentiment_score=score,
            need_path=need,
        )
        event = FeedbackAnalyzed(interaction_event_id=about, customer_id=customer, analysis=analysis)
        await self.append(stream_name("customer", customer), event)

    async def settled(self) -> pb.GetOverviewResponse:
        """Wait until the read model has the whole history, and nothing comes any more."""
        heads: list[int] = []

        async def still() -> pb.GetOverviewResponse | None:
            heads.append(await self.store.head())
            now: pb.GetOverviewResponse = await self.journey.GetOverview(pb.GetOverviewRequest(), wait_for_ready=True)
            # For a second: signals are raised a moment after what they are about.
            quiet = len(heads) > 10 and len(set(heads[-10:])) == 1
            return now if quiet and now.position >= heads[-1] else None

        return await until(still, deadline_s=60, every_s=0.1, ignoring=(grpc.aio.AioRpcError,))


@contextlib.asynccontextmanager
async def company(data: Path) -> AsyncIterator[Company]:
    async with running(["relay", "journey"], data=data) as cluster:
        store = await EventStore.connect(cluster.environment["RECORRIDO_EVENTSTORE_URI"])
        async with grpc.aio.insecure_channel(cluster.address("journey")) as channel:
            try:
                yield Company(cluster, store, JourneyServiceStub(channel))
            finally:
                await store.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Company]:
    """One company for all; every test takes customers of its own."""
    async with company(tmp_path_factory.mktemp("company")) as c:
        await publish(c, a_map())
        yield c


def a_map(**changes: Any) -> maps.JourneyMap:
    fields = {
        "map_id": "shop",
        "name": "Shop",
        "stages": [
            maps.Stage(
                stage_id="buy",
                name="Buy",
                touchpoints=[
                    maps.Touchpoint(
                        touchpoint_id="checkout",
                        name="Checkout",
                        moment_of_truth=True,
                        owner="Web",
                        expected=[maps.Expectation(metric=maps.METRIC_CSAT, target=90)],
                    )
                ],
            ),
            maps.Stage(
                stage_id="receive",
                name="Receive",
                touchpoints=[maps.Touchpoint(touchpoint_id="parcel", name="Parcel", aliases=["package"])],
            ),
        ],
        "personas": [
            maps.Persona(
                persona_id="young",
                name="Young",
                conditions=[maps.PersonaCondition(attribute="age", values=["young"])],
            )
        ],
        "goals": [maps.Goal(goal_id="received", name="Received", touchpoint_ids=["parcel"])],
        "episodes": maps.EpisodeRules(goal_ids=["received"]),
    }
    return maps.JourneyMap(**{**fields, **changes})


async def publish(c: Company, map_: maps.JourneyMap) -> int:
    answered = await c.journey.PublishJourneyMap(
        pb.PublishJourneyMapRequest(map=map_, actor="ana"), wait_for_ready=True
    )
    return int(answered.published.version)


def stamp(at: datetime) -> Timestamp:
    made = Timestamp()
    made.FromDatetime(at)
    return made


async def whole_life(c: Company, name: str) -> None:
    """A customer who buys, is hurt, is made glad, and recommends; partly seen by their device only."""
    young = {"customer.age": "young", "customer.category_spend": "200", "customer.category_currency": "EUR"}
    await c.happened(name, 1, csat=5, amount=Money(currency_code="EUR", amount="40.00"), attributes=young)
    hurt = await c.happened(
        f"device:{name}", 3, csat=1, touchpoint="package", verbatim=Verbatim(text=f"late, {name} waited")
    )
    await c.said(f"device:{name}", hurt, -0.9, "delivery/speed")
    await c.happened(name, 4, touchpoint="checkout", outcome=Outcome.SUCCEEDED)
    await c.happened(name, 6, nps=9, touchpoint="unheard-of", referral=Referral(direction=ReferralDirection.GIVEN))
    linked = IdentityLinked(
        identity=Identity(kind=IdentityKind.DEVICE, value=name),
        customer_id=name,
        actor="ana",
        request_id=name,
        identity_customer_id=f"device:{name}",
    )
    await c.append(stream_name("identity", name), linked)
    opened = ActionOpened(
        action_id=f"a-{name}", kind=ActionKind.RECOVERY, customer_id=name, title="Call back", occurred_at=START
    )
    await c.append(stream_name("action", f"a-{name}"), opened)


# -- a customer's journey ----------------------------------------------------------------------------------------------


async def test_a_customers_journey_tells_everything(shared: Company) -> None:
    c = shared
    await whole_life(c, "ana")
    completed = ActionCompleted(action_id="a-ana", result=ActionResult.WORSE, occurred_at=START)
    await c.append(stream_name("action", "a-ana"), completed)
    await c.settled()
    found = await c.journey.GetCustomerJourney(pb.GetCustomerJourneyRequest(customer_id="device:ana"))
    assert (found.customer_id, list(found.customer_ids), found.total_entries) == ("ana", ["ana", "device:ana"], 4)
    assert [e.recorded_under for e in found.entries] == ["", "device:ana", "", ""]
    assert [(v.stage_id, v.interactions, v.re_entry) for v in found.stage_path] == [
        ("buy", 1, 0),
        ("receive", 1, 0),
        ("buy", 1, 1),
    ]
    assert found.persona.persona_id == "young"
    assert [(list(e.goal_ids), e.interactions) for e in found.episodes] == [(["received"], 2), ([], 2)]
    # CSAT 5, then CSAT 1 with words of -0.9, then NPS 9; the second is the peak, the third the end.
    assert [round(m.value, 2) for m in found.experience.moments] == [1.0, -0.95, 0.8]
    assert (found.experience.peak.value, found.experience.end.value) == (1.0, 0.8)
    assert found.experience.lasting_impression == pytest.approx(0.9)
    assert found.loyalty.level == maps.LOYALTY_LEVEL_ADVOCATE
    assert list(found.loyalty.reasons) == ["1 recommendation"]
    assert list(found.loyalty.evidence_event_ids) == [found.entries[3].event_id]
    ((kind, need, where),) = [(p.kind, p.need_path, p.touchpoint_id) for p in found.points]
    assert (kind, need, where) == (1, "delivery/speed", "parcel")
    assert sorted(s.rule for s in found.signals) == ["bad_moment", "recovery_failed"]
    assert all(list(s.evidence_positions) == sorted(s.evidence_positions) for s in found.signals)
    where = {("bad_moment", "package", "Parcel"), ("recovery_failed", "", "")}
    listed = (await c.journey.ListSignals(pb.ListSignalsRequest(customer_id="ana"))).signals
    for signals in (found.signals, listed):
        assert {(s.rule, s.touchpoint, s.touchpoint_name) for s in signals} == where
    (action,) = found.actions
    assert (action.title, action.state, action.result) == ("Call back", ACTION_STATE_COMPLETED, ACTION_RESULT_WORSE)
    assert [(a.currency_code, a.amount) for a in found.spent] == [("EUR", "40.00")]
    assert found.share_of_wallet.share == pytest.approx(0.2)
    failed = await c.journey.ListSignals(pb.ListSignalsRequest(customer_id="ana", rule="recovery_failed"))
    (signal,) = failed.signals
    assert dict(signal.inputs) == {"action_id": "a-ana", "result": "worse"}
    assert len(signal.evidence_positions) == 2


async def test_a_watch_tells_what_comes_and_what_changes(shared: Company) -> None:
    c = shared
    call = c.journey.WatchCustomerJourney(pb.WatchCustomerJourneyRequest(customer_id="bor"))
    updates = aiter(call)
    first = asyncio.ensure_future(anext(updates))
    about = await c.happened("bor", 1, csat=5, verbatim=Verbatim(text="fine"))
    update = await asyncio.wait_for(first, 30)
    assert [e.event_id for e in update.entries] == [about]
    await c.said("bor", about, 0.9, "price")
    update = await asyncio.wait_for(anext(updates), 30)
    # The same entry again, now with what was understood.
    assert [(e.event_id, e.analysis.need_path) for e in update.entries] == [(about, "price")]
    await c.happened("cid", 1)
    later = await c.happened("bor", 2, csat=1)
    told: list[str] = []
    rules: list[str] = []
    while "bad_moment" not in rules:
        update = await asyncio.wait_for(anext(updates), 30)
        told += [e.event_id for e in update.entries]
        rules = [s.rule for s in update.signals]
    assert set(told) == {later}
    assert update.loyalty.level == maps.LOYALTY_LEVEL_AT_RISK
    call.cancel()


async def test_answers_that_fall_raise_one_signal_and_it_names_all_it_saw(shared: Company) -> None:
    c = shared
    events = [await c.happened("dora", day, nps=nps) for day, nps in ((50, 10), (51, 9), (52, 8))]

    async def raised() -> Any:
        found = await c.journey.ListSignals(pb.ListSignalsRequest(customer_id="dora"))
        return found.signals

    (signal,) = await until(raised, deadline_s=60)
    assert (signal.rule, list(signal.reasons), signal.map_id) == ("about_to_fall", ["NPS 10 → 9 → 8"], "shop")
    assert list(signal.evidence_event_ids) == events
    assert dict(signal.inputs) == {"level": "satisfied", "metric": "nps"}
    await c.cluster.kill_and_restart("journey")
    await c.happened("dora", 53)
    await c.settled()
    assert len(await raised()) == 1


# -- as of, rebuild, preview -------------------------------------------------------------------------------------------

QUESTIONS: list[tuple[str, Any]] = [
    ("GetScores", pb.GetScoresRequest(group_by=[pb.GROUPING_PERSONA, pb.GROUPING_NEED], period=pb.PERIOD_MONTH)),
    ("ListPoints", pb.ListPointsRequest()),
    ("GetLoyaltyLadder", pb.GetLoyaltyLadderRequest()),
    ("GetOverview", pb.GetOverviewRequest()),
    ("ListSignals", pb.ListSignalsRequest()),
    ("PreviewJourneyMap", pb.PreviewJourneyMapRequest(draft=a_map(name="Draft", personas=[]))),
    *(("GetCustomerJourney", pb.GetCustomerJourneyRequest(customer_id=name)) for name in ("ana", "eva", "device:eva")),
]


async def ask_all(c: Company, as_of: datetime | None = None) -> list[Any]:
    answers: list[Any] = []
    for method, question in QUESTIONS:
        request = type(question)()
        request.CopyFrom(question)
        if as_of is not None:
            request.as_of.CopyFrom(stamp(as_of))
        try:
            answered = await getattr(c.journey, method)(request)
        except grpc.aio.AioRpcError as error:
            answers.append(error.code())
            continue
        if hasattr(answered, "position"):
            answered.position = 0
        answers.append(answered)
    return answers


async def test_as_of_a_time_everything_is_as_it_was_answered_then_also_after_a_rebuild(shared: Company) -> None:
    c = shared
    then: dict[datetime, list[Any]] = {}

    async def remember() -> None:
        await c.settled()
        last = [e.recorded_at async for e in c.store.read_all(None)][-1]
        # Ladder and trend look back from `as_of`: asked so already now.
        then[last] = await ask_all(c, last)

    await remember()
    await whole_life(c, "eva")
    await remember()
    await publish(c, a_map(name="Shop 2", personas=[]))
    await c.happened("eva", -20, csat=2, touchpoint="parcel")
    await remember()
    await publish(c, a_map())
    await remember()
    assert len({str(answers) for answers in then.values()}) == len(then)
    pool = await asyncpg.create_pool(c.cluster.environment["RECORRIDO_POSTGRES_DSN"], min_size=1, max_size=1)
    try:
        before = await dump(pool, "journey")
        for _ in range(2):
            for as_of, answers in then.items():
                assert await ask_all(c, as_of) == answers
            progress = [each async for each in c.journey.RebuildReadModel(pb.RebuildReadModelRequest())]
            assert progress[-1].done
            assert [each.done for each in progress[:-1]] == [False] * (len(progress) - 1)
            assert progress[-1].events > 20
        after = await dump(pool, "journey")
    finally:
        await pool.close()
    # How far the checkpoint reads beyond the last event of interest is the store's affair.
    assert before.pop("checkpoint")
    assert after.pop("checkpoint")
    assert after == before
    # What is new goes into the rows that were built.
    await c.happened("eva", 30, csat=5)
    await c.settled()
    assert (await c.journey.GetCustomerJourney(pb.GetCustomerJourneyRequest(customer_id="eva"))).total_entries == 6


async def test_two_rebuilds_at_once_are_one(shared: Company) -> None:
    async def rebuild() -> list[bool]:
        return [each.done async for each in shared.journey.RebuildReadModel(pb.RebuildReadModelRequest())]

    results = await asyncio.gather(*(rebuild() for _ in range(3)), return_exceptions=True)
    done = [each for each in results if not isinstance(each, BaseException)]
    refused = [each for each in results if isinstance(each, grpc.aio.AioRpcError)]
    assert len(done) >= 1
    assert all(each[-1] for each in done)
    assert len(done) + len(refused) == 3
    assert {each.code() for each in refused} <= {grpc.StatusCode.ABORTED}


async def test_drafts_and_versions_are_compared(shared: Company) -> None:
    c = shared
    latest = (await c.journey.GetJourneyMap(pb.GetJourneyMapRequest(map_id="shop"))).published.version
    found = await c.journey.DiffJourneyMaps(pb.DiffJourneyMapsRequest(draft=a_map(name="Draft")))
    assert (found.from_version, found.to_version) == (latest, 0)
    assert [(each.path, each.before, each.after) for each in found.changes] == [("name", "Shop", "Draft")]
    version = await publish(c, a_map(name="Next"))
    found = await c.journey.DiffJourneyMaps(pb.DiffJourneyMapsRequest(map_id="shop"))
    assert (found.from_version, found.to_version) == (version - 1, version)
    assert [each.after for each in found.changes] == ["Next"]
    await publish(c, a_map())
    bad = a_map(goals=[maps.Goal(goal_id="g", name="G", touchpoint_ids=["nowhere"])])
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await c.journey.PreviewJourneyMap(pb.PreviewJourneyMapRequest(draft=bad))
    assert [field for field, _ in violations(caught.value)] == [
        "map.goals[0].touchpoint_ids[0]",
        "map.episodes.goal_ids[0]",
    ]
    early, late = stamp(datetime(2020, 1, 1, tzinfo=UTC)), stamp(datetime(2100, 1, 1, tzinfo=UTC))
    for method, request, field in (
        ("GetScores", pb.GetScoresRequest(selection=pb.Selection(stage_id="x")), "selection.stage_id"),
        ("GetScores", pb.GetScoresRequest(group_by=[99]), "group_by[0]"),
        ("GetScores", pb.GetScoresRequest(period=99), "period"),
        ("GetScores", pb.GetScoresRequest(limit=10_001), "limit"),
        ("GetLoyaltyLadder", pb.GetLoyaltyLadderRequest(persona_id="x"), "persona_id"),
        ("GetLoyaltyLadder", pb.GetLoyaltyLadderRequest(**{"from": late}), "from"),
        ("GetScores", pb.GetScoresRequest(**{"from": late}, selection=pb.Selection(to=early)), "selection.to"),
        ("ListPoints", pb.ListPointsRequest(trend_days=-1), "trend_days"),
        ("WatchCustomerJourney", pb.WatchCustomerJourneyRequest(), "customer_id"),
    ):
        call = getattr(c.journey, method)(request)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await (anext(aiter(call)) if method == "WatchCustomerJourney" else call)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert [name for name, _ in violations(caught.value)] == [field]


# -- through the command -----------------------------------------------------------------------------------------------


async def test_the_command_shows_it(shared: Company, tmp_path: Path) -> None:
    c = shared
    await whole_life(c, "flo")
    await c.settled()
    text = (await recorrido(c.cluster, "customer", "flo")).out
    for part in ("Young", "advocate: 1 recommendation", "Buy → Receive → Buy again", "device:flo", "20 %", "40.00 EUR"):
        assert part in text
    assert "lasting impression" in text
    text = (await recorrido(c.cluster, "scores", "--by", "stage", "--per", "month")).out
    assert "2026-01-01" in text
    found = await answer(c.cluster, "scores", "--by", "persona", "--stage", "receive")
    assert {tuple(each["keys"]) for each in found["groups"]} >= {("young",)}
    text = (await recorrido(c.cluster, "points")).out
    assert "delivery/speed" in text
    text = (await recorrido(c.cluster, "ladder", "--from", "2026-01-01", "--to", "2026-03-01")).out
    assert "advocate" in text
    assert "service recovery:" in text
    text = (await recorrido(c.cluster, "watch", "flo", "--count", "1")).out
    assert "Checkout" in text
    # One who is still to come can be watched; but silence would hide that an id is misspelt.
    waiting = await start(("watch", "fol", "--count", "1"), environment(c.cluster.ports))
    try:
        assert waiting.stderr is not None
        assert b"nothing is known of 'fol' yet" in await asyncio.wait_for(waiting.stderr.readline(), 60)
    finally:
        waiting.terminate()
        await waiting.communicate()
    text = (await recorrido(c.cluster, "rebuild", "journey")).out
    assert text.startswith("rebuilt from ")
    draft = tmp_path / "draft.yaml"
    draft.write_text(
        json.dumps(
            {
                "map_id": "shop",
                "name": "Draft",
                "stages": [
                    {
                        "stage_id": "all",
                        "name": "All",
                        "touchpoints": [
                            {"touchpoint_id": "any", "name": "Anything", "channel": "web", "aliases": ["unheard-of"]}
                        ],
                    }
                ],
                "loyalty": {"rules": [{"level": "loyal", "purchases_at_least": 1}]},
            }
        )
    )
    text = (await recorrido(c.cluster, "map", "preview", str(draft))).out
    for part in ("would be placed elsewhere", "stages[all]", "Anything", "loyal"):
        assert part in text
    draft.write_text("map_id: shop\nname: x\nloyalty: {rules: [{level: happy, nps_at_least: nine}]}\n")
    refused = await recorrido(c.cluster, "map", "preview", str(draft))
    assert refused.code == 1
    assert "loyalty.rules[0].level: 'happy' is no level; there are at_risk, satisfied, loyal, advocate" in refused.err
    assert "loyalty.rules[0].nps_at_least: expected a number, not 'nine'" in refused.err
    assert "name" in (await recorrido(c.cluster, "map", "diff", "shop")).out


# -- signals about everyone: they move the present of the shared history, so they come last ----------------------------


async def test_a_score_out_of_its_limits_is_one_signal_whatever_is_killed_rebuilt_or_late(
    shared: Company, tmp_path: Path
) -> None:
    c = shared

    def answered(day: int, n: int, csat: int) -> StreamAppend:
        customer = f"charted {day} {n}"
        interaction = Interaction(
            source="shop",
            interaction_id=f"{day} {n}",
            customer=Customer(customer_id=customer),
            touchpoint="parcel",
            occurred_at=START + timedelta(days=day, minutes=n),
            ratings=(Rating(metric=RatingMetric.CSAT, value=csat),),
        )
        return StreamAppend(
            stream_name("customer", customer), ANY, [Pending(InteractionRecorded(interaction=interaction), uuid4())]
        )

    def days(first: int, last: int, bad: int) -> list[StreamAppend]:
        """Return 24 answers a day, of which `bad` or one more or less are bad."""
        return [answered(day, n, 1 if n < bad + day % 3 - 1 else 5) for day in range(first, last) for n in range(24)]

    async def raised(rule: str = "score_worsened") -> Any:
        return (await c.journey.ListSignals(pb.ListSignalsRequest(rule=rule))).signals

    await c.store.append([*days(100, 150, 6), *days(150, 156, 16)])
    (signal,) = await until(raised, deadline_s=60)
    assert (signal.customer_id, signal.touchpoint_id, signal.map_id) == ("", "parcel", "shop")
    assert "CSAT of Parcel fell from 75" in signal.reasons[0]
    assert signal.inputs["metric"] == "csat"
    assert len(signal.evidence_positions) == len(signal.evidence_event_ids) == 10
    (recorded,) = await c.store.read(stream_name("signal", signal.signal_id))
    # Nothing in it names a customer: it stays when one is erased.
    assert b"charted" not in recorded.data
    assert any(each.event_id == signal.evidence_event_ids[0] for each in await _entries(c, recorded))
    await charted(c, signal, tmp_path)
    await c.cluster.kill_and_restart("journey")
    # It goes on, some of it came late, and the read model is made anew.
    await c.store.append([*days(156, 160, 16), *(answered(151, 100 + n, 1) for n in range(30))])
    assert [each.done async for each in c.journey.RebuildReadModel(pb.RebuildReadModelRequest(), wait_for_ready=True)]
    await c.settled()
    assert [each.signal_id for each in await raised()] == [signal.signal_id]
    listed = (await recorrido(c.cluster, "signals", "--rule", "score_worsened")).out
    assert "CSAT" in listed


async def charted(c: Company, signal: pb.Signal, tmp_path: Path) -> None:
    """The chart shows what the signal tells, and as of before it only what was known then."""

    async def asked(**fields: Any) -> pb.ControlChart:
        request = pb.GetControlChartRequest(touchpoint_id="parcel", metric=maps.METRIC_CSAT, **fields)
        return (await c.journey.GetControlChart(request)).chart

    chart = await asked()
    (point,) = [each for each in chart.points if each.state == pb.CHART_STATE_OUTSIDE]
    assert (point.signal_id, point.to.ToDatetime().date().isoformat()) == (signal.signal_id, signal.inputs["run_until"])
    assert (f"{point.average:.4f}", f"{point.limit:.4f}") == (signal.inputs["average"], signal.inputs["limit"])
    # Its signal was raised later than what it is about was recorded.
    before = await asked(as_of=stamp(signal.raised_at.ToDatetime(UTC) - timedelta(microseconds=1)))
    assert [each.signal_id for each in before.points if each.state == pb.CHART_STATE_OUTSIDE] == [""]
    listed = await c.journey.ListControlCharts(pb.ListControlChartsRequest(points=7))
    (same,) = [each for each in listed.charts if (each.touchpoint_id, each.metric) == ("parcel", maps.METRIC_CSAT)]
    assert list(same.points) == list(chart.points[-7:])
    assert (listed.method.false_alarm_points, len(listed.method.sources)) == (4_106, 6)
    for request, field in (
        (pb.GetControlChartRequest(), "need_path"),
        (pb.GetControlChartRequest(touchpoint_id="parcel"), "metric"),
        (pb.GetControlChartRequest(touchpoint_id="none", metric=maps.METRIC_NPS), "touchpoint_id"),
        (pb.GetControlChartRequest(metric=maps.METRIC_NPS), "touchpoint_id"),
        (pb.GetControlChartRequest(need_path="price", metric=maps.METRIC_NPS), "need_path"),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await c.journey.GetControlChart(request)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert field in [name for name, _ in violations(caught.value)]
    told = (await recorrido(c.cluster, "chart", "csat", "--touchpoint", "parcel")).out
    for part in ("CSAT of Parcel", "Out of its limits 1 time", signal.signal_id, "one false alarm in 4,106 points"):
        assert part in told
    assert "worse: out of the limits" in (await recorrido(c.cluster, "chart")).out
    found = await answer(c.cluster, "chart", "csat", "--touchpoint", "parcel", "--from", "2026-05-01")
    assert found["chart"]["points"][0]["from"] == "2026-05-01T00:00:00Z"
    for wrong in (("chart", "csat"), ("chart", "pain", "--touchpoint", "parcel"), ("chart", "--svg", "x.svg")):
        assert (await recorrido(c.cluster, *wrong)).code == 2
    unknown = await recorrido(c.cluster, "chart", "pain", "--need", "nobody/cares")
    assert (unknown.code, "NEED_UNKNOWN" in unknown.err) == (1, True)
    drawing = tmp_path / "chart.svg"
    assert (
        "CSAT of Parcel"
        in (await recorrido(c.cluster, "chart", "csat", "--touchpoint", "parcel", "--svg", str(drawing))).out
    )
    titles, texts = await looked_at(drawing)
    assert len([each for each in titles if signal.signal_id in each and "out of the limits" in each]) == 1
    # What other tests told of before belongs to the chart too.
    assert len([each for each in titles if " of 24" in each]) == sum(each.answers == 24 for each in chart.points) > 50
    assert any("Moving average and its limits" in each for each in texts)


async def looked_at(drawing: Path) -> tuple[list[str], list[str]]:
    """Return the titles and the texts of a picture, as a real browser has it: no text outside of it."""
    if not CHROMIUM.exists():  # noqa: ASYNC240 - once, before anything waits
        pytest.skip(f"no browser: {CHROMIUM} is missing (Debian's package chromium)")
    async with async_playwright() as play:
        browser = await play.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox", "--disable-gpu"])
        tab = await browser.new_page(viewport={"width": 1200, "height": 800})
        await tab.goto(drawing.as_uri())
        outside = await tab.evaluate("""() => {
            const frame = document.documentElement.getBoundingClientRect();
            return [...document.querySelectorAll('text')].filter((each) => {
                const box = each.getBoundingClientRect();
                return box.left < frame.left || box.right > frame.right || box.bottom > frame.bottom;
            }).map((each) => each.textContent);
        }""")
        titles, texts = [
            await tab.evaluate(f"[...document.querySelectorAll('{each}')].map((one) => one.textContent)")
            for each in ("title", "text")
        ]
        await tab.screenshot(path=str(drawing.with_suffix(".png")))
        await browser.close()
    assert outside == []
    return titles, texts


async def _entries(c: Company, recorded: Any) -> Any:
    """Return the timeline of the customer of the first event that a signal about everyone names."""
    evidence = json.loads(recorded.data)["evidence"][0]
    assert "stream" not in evidence
    async for at in c.store.read_all(int(evidence["position"]), [InteractionRecorded.type_name], limit=1):
        customer_id = at.stream.removeprefix("customer-")
    found = await c.journey.GetCustomerJourney(
        pb.GetCustomerJourneyRequest(customer_id=customer_id), wait_for_ready=True
    )
    return found.entries


async def test_a_map_that_drops_what_is_heard_raises_a_signal(shared: Company) -> None:
    c = shared
    without = a_map(goals=[], episodes=maps.EpisodeRules())
    without.stages.pop()
    version = await publish(c, without)

    async def raised() -> Any:
        return (await c.journey.ListSignals(pb.ListSignalsRequest(rule="coverage_lost"))).signals

    (signal,) = await until(raised, deadline_s=60)
    assert (signal.touchpoint_id, signal.inputs["lost"], signal.inputs["dropped_in_version"]) == (
        "parcel",
        "dropped",
        str(version),
    )
    assert "Parcel: told of " in signal.reasons[0]
