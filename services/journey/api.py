"""The gRPC face of the journey: proto ⇄ domain."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TypeVar
from uuid import uuid4

from google.protobuf.timestamp_pb2 import Timestamp

from recorrido.inference.v1 import analysis_pb2
from recorrido.inference.v1.events import PointKind
from recorrido.ingest.v1 import interaction_pb2
from recorrido.ingest.v1.events import Channel
from recorrido.journey.v1 import journey_service_pb2 as pb
from recorrido.journey.v1 import journey_service_pb2_grpc as pb_grpc
from recorrido.journey.v1.events import JourneyMap
from services.foundation.errors import InvalidError, Violation
from services.journey.domain.maps import PublishedMap, PublishJourneyMap
from services.journey.domain.scores import NetPromoterScore, RatingScore
from services.journey.handlers import MapHandlers
from services.journey.views.overview import overview
from services.journey.views.points import KINDS, Point, points
from services.journey.views.scores import Scores, scores
from services.journey.views.signals import Signal, signals
from services.journey.views.snapshot import MapInForce, ReadModel
from services.journey.views.timeline import Entry, customer_journey

MAX_PAGE = 1000
MAX_ID = 256

ValueT = TypeVar("ValueT")


class JourneyService(pb_grpc.JourneyServiceServicer):
    """Each method: check the request, ask, answer."""

    def __init__(self, maps: MapHandlers, read_model: ReadModel) -> None:
        self._maps = maps
        self._read_model = read_model

    async def PublishJourneyMap(  # noqa: N802 - the name in the contract
        self, request: pb.PublishJourneyMapRequest, _context: Any
    ) -> pb.PublishJourneyMapResponse:
        check = _Checks()
        for n, rule in enumerate(request.map.mapping_rules):
            # Read as "no channel given", it would match every channel.
            if Channel.from_number(rule.channel).number != rule.channel:
                check.refuse(f"map.mapping_rules[{n}].channel", "one of the known channels")
        check.done()
        command = PublishJourneyMap(
            map=JourneyMap.from_proto(request.map),
            actor=request.actor,
            request_id=request.request_id or str(uuid4()),
        )
        return pb.PublishJourneyMapResponse(published=_published(await self._maps.publish(command)))

    async def GetJourneyMap(  # noqa: N802
        self, request: pb.GetJourneyMapRequest, _context: Any
    ) -> pb.GetJourneyMapResponse:
        return pb.GetJourneyMapResponse(published=_published(await self._maps.get(request.map_id, request.version)))

    async def ListJourneyMaps(  # noqa: N802
        self, _request: pb.ListJourneyMapsRequest, _context: Any
    ) -> pb.ListJourneyMapsResponse:
        async with self._read_model.snapshot() as snapshot:
            return pb.ListJourneyMapsResponse(maps=[_published(m) for m in await snapshot.latest_maps()])

    async def GetCustomerJourney(  # noqa: N802
        self, request: pb.GetCustomerJourneyRequest, _context: Any
    ) -> pb.GetCustomerJourneyResponse:
        check = _Checks()
        customer_id = check.identity("customer_id", request.customer_id)
        as_of, page_size = check.time(request, "as_of"), check.size("page_size", request.page_size, default=100)
        map_id = check.optional_identity("map_id", request.map_id)
        check.done()
        async with self._read_model.snapshot(as_of) as snapshot:
            in_force = await snapshot.map_in_force(map_id)
            journey = await customer_journey(
                snapshot, in_force, customer_id, page_size=page_size, page_token=request.page_token
            )
        return pb.GetCustomerJourneyResponse(
            customer_id=journey.customer_id,
            kind=interaction_pb2.CustomerKind.ValueType(journey.kind.number),
            entries=[_entry(entry, in_force) for entry in journey.entries],
            next_page_token=journey.next_page_token,
            total_entries=journey.total,
            map_id=in_force.map_id,
            map_version=in_force.version,
        )

    async def GetScores(self, request: pb.GetScoresRequest, _context: Any) -> pb.GetScoresResponse:  # noqa: N802
        check = _Checks()
        as_of, since, until = (check.time(request, name) for name in ("as_of", "from", "to"))
        map_id = check.optional_identity("map_id", request.map_id)
        if since and until and since >= until:
            check.refuse("to", "after from")
        check.done()
        async with self._read_model.snapshot(as_of) as snapshot:
            in_force = await snapshot.map_in_force(map_id)
            total, touchpoints = await scores(snapshot, in_force, since=since, until=until)
        return pb.GetScoresResponse(
            total=_scores(total),
            touchpoints=[
                pb.TouchpointScores(
                    stage_id=t.stage_id, touchpoint_id=t.touchpoint_id, name=t.name, scores=_scores(t.scores)
                )
                for t in touchpoints
            ],
            map_id=in_force.map_id,
            map_version=in_force.version,
        )

    async def ListPoints(self, request: pb.ListPointsRequest, _context: Any) -> pb.ListPointsResponse:  # noqa: N802
        check = _Checks()
        as_of, limit = check.time(request, "as_of"), check.size("limit", request.limit, default=20)
        map_id = check.optional_identity("map_id", request.map_id)
        kind = PointKind.from_number(request.kind)
        if request.kind and kind not in KINDS:
            check.refuse("kind", "pain, itch or delight")
        check.done()
        async with self._read_model.snapshot(as_of) as snapshot:
            in_force = await snapshot.map_in_force(map_id)
            found = await points(snapshot, in_force, kinds=(kind,) if request.kind else KINDS, limit=limit)
        return pb.ListPointsResponse(points=[_point(p) for p in found])

    async def ListSignals(self, request: pb.ListSignalsRequest, _context: Any) -> pb.ListSignalsResponse:  # noqa: N802
        check = _Checks()
        as_of, page_size = check.time(request, "as_of"), check.size("page_size", request.page_size, default=100)
        customer_id = check.optional_identity("customer_id", request.customer_id)
        check.done()
        async with self._read_model.snapshot(as_of) as snapshot:
            found, token = await signals(snapshot, customer_id, page_size=page_size, page_token=request.page_token)
        return pb.ListSignalsResponse(signals=[_signal(s) for s in found], next_page_token=token)

    async def GetOverview(self, request: pb.GetOverviewRequest, _context: Any) -> pb.GetOverviewResponse:  # noqa: N802
        check = _Checks()
        as_of = check.time(request, "as_of")
        check.done()
        async with self._read_model.snapshot(as_of) as snapshot:
            now = await overview(snapshot, await snapshot.map_in_force(""))
        return pb.GetOverviewResponse(
            customers=now.customers,
            interactions=now.interactions,
            verbatims=now.verbatims,
            analyzed=now.analyzed,
            analysis_failed=now.analysis_failed,
            signals=now.signals,
            uncovered_interactions=now.uncovered_interactions,
            uncovered=[
                pb.UncoveredTouchpoint(
                    source=u.source,
                    touchpoint=u.touchpoint,
                    channel=interaction_pb2.Channel.ValueType(u.channel.number),
                    interactions=u.interactions,
                )
                for u in now.uncovered
            ],
            position=snapshot.position,
        )


class _Checks:
    """Reads the fields of a request; `done` raises with every rule broken."""

    def __init__(self) -> None:
        self._violations: list[Violation] = []

    def refuse(self, field: str, rule: str) -> None:
        self._violations.append(Violation(field, rule))

    def identity(self, field: str, value: str) -> str:
        if not value:
            self.refuse(field, f"1 to {MAX_ID} characters")
        return self.optional_identity(field, value)

    def optional_identity(self, field: str, value: str) -> str:
        if len(value) > MAX_ID or "\0" in value:
            self.refuse(field, f"at most {MAX_ID} characters, none of them NUL")
        return value

    def size(self, field: str, value: int, *, default: int) -> int:
        if not 0 <= value <= MAX_PAGE:
            self.refuse(field, f"between 0 and {MAX_PAGE}")
        return value or default

    def time(self, request: Any, field: str) -> datetime | None:
        if not request.HasField(field):
            return None
        try:
            at: datetime = getattr(request, field).ToDatetime(UTC)
        except (ValueError, OverflowError):
            self.refuse(field, "a time between the years 1 and 9999")
            return None
        return at

    def done(self) -> None:
        if self._violations:
            raise InvalidError(self._violations)


def _timestamp(at: datetime) -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(at)
    return stamp


def _if_any(make: Callable[[ValueT], Any], value: ValueT | None) -> Any:
    return None if value is None else make(value)


def _published(published: PublishedMap) -> pb.PublishedMap:
    return pb.PublishedMap(
        map=published.map.to_proto(),
        version=published.version,
        published_at=_timestamp(published.published_at),
        actor=published.actor,
    )


def _entry(entry: Entry, in_force: MapInForce) -> pb.TimelineEntry:
    message = pb.TimelineEntry(
        event_id=str(entry.event_id),
        occurred_at=_timestamp(entry.occurred_at),
        recorded_at=_timestamp(entry.recorded_at),
        interaction=entry.interaction.to_proto(),
        analysis=entry.analysis.to_proto() if entry.analysis else None,
        analysis_failure=entry.analysis_failure,
        signal_ids=entry.signal_ids,
    )
    if entry.touchpoint_id:
        stage, touchpoint = in_force.touchpoints[entry.touchpoint_id]
        message.stage_id, message.stage_name = stage.stage_id, stage.name
        message.touchpoint_id, message.touchpoint_name = touchpoint.touchpoint_id, touchpoint.name
    return message


def _scores(found: Scores) -> pb.Scores:
    negative, neutral, positive = found.sentiment
    return pb.Scores(
        interactions=found.interactions,
        customers=found.customers,
        nps=_if_any(_nps, found.nps),
        csat=_if_any(_rating, found.csat),
        ces=_if_any(_rating, found.ces),
        sentiment=pb.SentimentCounts(negative=negative, neutral=neutral, positive=positive),
    )


def _nps(score: NetPromoterScore) -> pb.NetPromoterScore:
    return pb.NetPromoterScore(
        value=score.value,
        promoters=score.promoters,
        passives=score.passives,
        detractors=score.detractors,
        count=score.count,
    )


def _rating(score: RatingScore) -> pb.RatingScore:
    return pb.RatingScore(value=score.value, mean=score.mean, count=score.count, histogram=score.histogram)


def _point(point: Point) -> pb.Point:
    return pb.Point(
        kind=analysis_pb2.PointKind.ValueType(point.kind.number),
        need_path=point.need_path,
        touchpoint_id=point.touchpoint_id,
        touchpoint_name=point.touchpoint_name,
        customers=point.customers,
        mentions=point.mentions,
        share=point.share,
        mean_sentiment=point.mean_sentiment,
        examples=point.examples,
    )


def _signal(signal: Signal) -> pb.Signal:
    raised = signal.raised
    return pb.Signal(
        signal_id=raised.signal_id,
        rule=raised.rule,
        rule_version=raised.rule_version,
        customer_id=raised.customer_id,
        touchpoint=raised.touchpoint,
        occurred_at=_if_any(_timestamp, raised.occurred_at),
        raised_at=_timestamp(signal.raised_at),
        reasons=raised.reasons,
        evidence_event_ids=[evidence.event_id for evidence in raised.evidence],
        need_path=raised.need_path,
    )
