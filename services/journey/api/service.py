"""Each method: check the request, ask, answer."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any
from uuid import uuid4

from recorrido.inference.v1.events import PointKind
from recorrido.journey.v1 import journey_service_pb2 as pb
from recorrido.journey.v1 import journey_service_pb2_grpc as pb_grpc
from recorrido.journey.v1.events import JourneyMap
from services.foundation.errors import InvalidError, NotFoundError
from services.foundation.rebuild import Progress
from services.journey.api import answers
from services.journey.api.requests import Checks
from services.journey.domain.mapcheck import violations
from services.journey.domain.mapdiff import changes
from services.journey.domain.maps import PublishJourneyMap
from services.journey.domain.quoting import Quoting, quotable
from services.journey.domain.shifts import SHIFT_RULES
from services.journey.handlers import MapHandlers
from services.journey.views.changes import Changes
from services.journey.views.controlchart import control_charts, point_chart, score_chart
from services.journey.views.coverage import coverage
from services.journey.views.flow import CaseOf, Cases, Flow, FlowFilter, Level, flow
from services.journey.views.flow import changes as flow_changes
from services.journey.views.ladder import ladder
from services.journey.views.overview import overview
from services.journey.views.points import KINDS, points, words
from services.journey.views.preview import preview
from services.journey.views.scores import Group, Period, grouped, scores
from services.journey.views.signals import places, signals, signals_by_rules
from services.journey.views.snapshot import MapInForce, ReadModel, Snapshot
from services.journey.views.timeline import customer_journey, newest_entries, snapshot_moment

#: Groups of one answer, by default and at most.
DEFAULT_GROUPS = 1_000
MAX_GROUPS = 10_000
DEFAULT_VARIANTS = 10
DEFAULT_OFF_MAP = 100
DEFAULT_CHARTED = 30
MAX_TREND_DAYS = 3_660
#: Entries that a watch begins with.
WATCHED = 100


class JourneyService(pb_grpc.JourneyServiceServicer):
    """Passes over the whole history run in a thread, and hold no connection: others are answered meanwhile."""

    def __init__(
        self,
        maps: MapHandlers,
        read_model: ReadModel,
        rebuild: Callable[[], AsyncIterator[Progress]],
        quoting: Quoting,
    ) -> None:
        self._maps = maps
        self._read_model = read_model
        self._changes = Changes(read_model)
        self._rebuild = rebuild
        self._quoting = quoting

    # -- maps ----------------------------------------------------------------------------------------------------------

    async def PublishJourneyMap(  # noqa: N802 - the name in the contract
        self, request: pb.PublishJourneyMapRequest, _context: Any
    ) -> pb.PublishJourneyMapResponse:
        check = Checks()
        map_ = check.journey_map(request.map)
        check.enforce()
        command = PublishJourneyMap(map=map_, actor=request.actor, request_id=request.request_id or str(uuid4()))
        return pb.PublishJourneyMapResponse(published=answers.published(await self._maps.publish(command)))

    async def GetJourneyMap(  # noqa: N802
        self, request: pb.GetJourneyMapRequest, _context: Any
    ) -> pb.GetJourneyMapResponse:
        found = await self._maps.get(request.map_id, request.version)
        return pb.GetJourneyMapResponse(published=answers.published(found))

    async def ListJourneyMaps(  # noqa: N802
        self, _request: pb.ListJourneyMapsRequest, _context: Any
    ) -> pb.ListJourneyMapsResponse:
        async with self._read_model.snapshot() as snapshot:
            return pb.ListJourneyMapsResponse(maps=[answers.published(m) for m in snapshot.latest_maps()])

    async def DiffJourneyMaps(  # noqa: N802
        self, request: pb.DiffJourneyMapsRequest, _context: Any
    ) -> pb.DiffJourneyMapsResponse:
        check = Checks()
        map_id = check.identity("map_id", request.map_id or request.draft.map_id)
        draft = check.journey_map(request.draft, "draft") if request.HasField("draft") else None
        check.enforce()
        to_version = 0
        if draft is None:
            newer = await self._maps.get(map_id, request.to_version)
            draft, to_version = newer.map, newer.version
        if request.from_version or not to_version:
            older = await self._maps.get(map_id, request.from_version)
            old, from_version = older.map, older.version
        elif to_version > 1:
            old, from_version = (await self._maps.get(map_id, to_version - 1)).map, to_version - 1
        else:
            old, from_version = JourneyMap(), 0
        return pb.DiffJourneyMapsResponse(
            from_version=from_version,
            to_version=to_version,
            changes=[answers.change(each) for each in changes(old, draft)],
        )

    async def PreviewJourneyMap(  # noqa: N802
        self, request: pb.PreviewJourneyMapRequest, _context: Any
    ) -> pb.PreviewJourneyMapResponse:
        check = Checks()
        draft, as_of = check.journey_map(request.draft, "draft"), check.time(request, "as_of")
        check.enforce()
        if problems := list(violations(draft)):
            raise InvalidError(problems)
        async with self._read_model.snapshot(as_of) as snapshot:
            try:
                in_force = snapshot.map_in_force(draft.map_id)
            except NotFoundError:
                in_force = MapInForce(None)
            reading, moment = snapshot.reading(in_force), snapshot_moment(snapshot, snapshot.history)
        return answers.preview(await asyncio.to_thread(preview, reading, in_force, draft, moment=moment))

    # -- a customer ----------------------------------------------------------------------------------------------------

    async def GetCustomerJourney(  # noqa: N802
        self, request: pb.GetCustomerJourneyRequest, _context: Any
    ) -> pb.GetCustomerJourneyResponse:
        check = Checks()
        customer_id = check.identity("customer_id", request.customer_id)
        as_of, page_size = check.time(request, "as_of"), check.size("page_size", request.page_size, default=100)
        map_id = check.optional_identity("map_id", request.map_id)
        check.enforce()
        async with self._read_model.snapshot(as_of) as snapshot:
            in_force = snapshot.map_in_force(map_id)
            journey = await customer_journey(
                snapshot, in_force, customer_id, page_size=page_size, page_token=request.page_token
            )
        return answers.journey(journey, in_force, _known_to(snapshot))

    async def WatchCustomerJourney(  # noqa: N802
        self, request: pb.WatchCustomerJourneyRequest, _context: Any
    ) -> AsyncIterator[pb.WatchCustomerJourneyResponse]:
        check = Checks()
        customer_id = check.identity("customer_id", request.customer_id)
        map_id = check.optional_identity("map_id", request.map_id)
        check.enforce()
        known: dict[str, bytes] = {}
        last = pb.WatchCustomerJourneyResponse()
        async with self._changes.watch(customer_id) as watch:
            while True:
                now = await self._newest(customer_id, map_id)
                told = {each.event_id: each.SerializeToString(deterministic=True) for each in now.entries}
                fresh = [each for each in now.entries if known.get(each.event_id) != told[each.event_id]]
                known = told
                update = pb.WatchCustomerJourneyResponse(
                    total_entries=now.total_entries,
                    loyalty=now.loyalty if now.HasField("loyalty") else None,
                    signals=now.signals,
                    actions=now.actions,
                )
                if fresh or update != last:
                    last = pb.WatchCustomerJourneyResponse()
                    last.CopyFrom(update)
                    update.entries.extend(fresh)
                    update.position = now.position
                    yield update
                await watch.changed()

    async def _newest(self, customer_id: str, map_id: str) -> pb.GetCustomerJourneyResponse:
        """Return the newest of a customer, of whom nothing may be known. Who waits with it holds no columns."""
        async with self._read_model.snapshot() as snapshot:
            in_force = snapshot.map_in_force(map_id)
            try:
                journey = await newest_entries(snapshot, in_force, customer_id, WATCHED)
            except NotFoundError:
                return pb.GetCustomerJourneyResponse(position=_known_to(snapshot))
        return answers.journey(journey, in_force, _known_to(snapshot))

    # -- everyone ------------------------------------------------------------------------------------------------------

    async def GetScores(self, request: pb.GetScoresRequest, _context: Any) -> pb.GetScoresResponse:  # noqa: N802
        check = Checks()
        as_of, span = check.time(request, "as_of"), check.span(request)
        map_id = check.optional_identity("map_id", request.map_id)
        selection = check.selection(request.selection, span)
        groupings, period = check.groupings(request.group_by), check.period(request.period)
        limit = check.size("limit", request.limit, default=DEFAULT_GROUPS, most=MAX_GROUPS)
        check.enforce()
        async with self._read_model.snapshot(as_of) as snapshot:
            in_force = snapshot.map_in_force(map_id)
            reading = snapshot.reading(in_force)
        total, touchpoints = await asyncio.to_thread(scores, reading, selection)
        groups: Sequence[Group] = ()
        left_out = 0
        if groupings or period:
            groups, left_out = await asyncio.to_thread(grouped, reading, selection, groupings, period, limit)
        return pb.GetScoresResponse(
            total=answers.scores(total),
            touchpoints=[answers.touchpoint_scores(each) for each in touchpoints],
            map_id=in_force.map_id,
            map_version=in_force.version,
            groups=[answers.group(each) for each in groups],
            left_out=left_out,
            position=_known_to(snapshot),
        )

    async def ListPoints(self, request: pb.ListPointsRequest, _context: Any) -> pb.ListPointsResponse:  # noqa: N802
        check = Checks()
        as_of, limit = check.time(request, "as_of"), check.size("limit", request.limit, default=20)
        map_id = check.optional_identity("map_id", request.map_id)
        selection = check.selection(request.selection)
        trend_days = check.size("trend_days", request.trend_days, default=0, most=MAX_TREND_DAYS)
        kind = PointKind.from_number(request.kind)
        if request.kind and kind not in KINDS:
            check.refuse("kind", "pain, itch or delight")
        check.enforce()
        async with self._read_model.snapshot(as_of) as snapshot:
            in_force = snapshot.map_in_force(map_id)
            reading, present = snapshot.reading(in_force), snapshot.present
            moment = snapshot_moment(snapshot, snapshot.history)
        found = await asyncio.to_thread(
            lambda: points(
                reading,
                selection,
                kinds=(kind,) if request.kind else KINDS,
                limit=limit,
                moment=moment,
                trend_days=trend_days,
                # Who refuses now is not quoted as of any time.
                quotable=quotable(present, self._quoting),
            )
        )
        # Of who was erased meanwhile there are no words.
        async with self._read_model.snapshot() as later:
            examples = await words(later.connection, found.points)
        return pb.ListPointsResponse(
            points=[answers.point(each, said) for each, said in zip(found.points, examples, strict=True)],
            map_id=in_force.map_id,
            map_version=in_force.version,
            customers_heard=found.heard,
            drivers=[answers.driver(each) for each in found.drivers],
            unknown=[answers.unknown_need(each) for each in found.unknown],
            position=_known_to(snapshot),
        )

    async def GetLoyaltyLadder(  # noqa: N802
        self, request: pb.GetLoyaltyLadderRequest, _context: Any
    ) -> pb.GetLoyaltyLadderResponse:
        check = Checks()
        as_of, (since, until) = check.time(request, "as_of"), check.span(request)
        map_id = check.optional_identity("map_id", request.map_id)
        persona_id = check.optional_identity("persona_id", request.persona_id)
        period = check.period(request.period) or Period.MONTH
        check.enforce()
        async with self._read_model.snapshot(as_of) as snapshot:
            in_force = snapshot.map_in_force(map_id)
            reading, moment = snapshot.reading(in_force), snapshot_moment(snapshot, snapshot.history)
        found = await asyncio.to_thread(
            ladder, reading, moment=moment, since=since, until=until, period=period, persona_id=persona_id
        )
        return answers.ladder(found, in_force, _known_to(snapshot))

    async def GetFlow(self, request: pb.GetFlowRequest, _context: Any) -> pb.GetFlowResponse:  # noqa: N802
        check = Checks()
        as_of, map_id = check.time(request, "as_of"), check.optional_identity("map_id", request.map_id)
        level = check.choice("level", Level, request.level) or Level.TOUCHPOINT
        case = check.choice("case", CaseOf, request.case) or CaseOf.EPISODE
        asked = {"filter": check.flow_filter(request.filter, "filter")}
        if request.HasField("compare_with"):
            asked["compare_with"] = check.flow_filter(request.compare_with, "compare_with")
        variants = check.size("variants", request.variants, default=DEFAULT_VARIANTS)
        check.enforce()
        async with self._read_model.snapshot(as_of) as snapshot:
            in_force = snapshot.map_in_force(map_id)
            reading, moment = snapshot.reading(in_force), snapshot_moment(snapshot, snapshot.history)

        def work(filters: Mapping[str, FlowFilter]) -> list[Flow]:
            cases = Cases(reading, case, level, moment)
            # Both are looked at before either is reckoned.
            meant = [cases.chosen(filter_, path) for path, filter_ in filters.items()]
            return [flow(cases, each, variants) for each in meant]

        found, *compared = await asyncio.to_thread(work, asked)
        return pb.GetFlowResponse(
            flow=answers.flow(found),
            compared=answers.flow(compared[0]) if compared else None,
            changes=[answers.flow_change(each) for each in flow_changes(found, compared[0])] if compared else [],
            map_id=in_force.map_id,
            map_version=in_force.version,
            position=_known_to(snapshot),
        )

    async def GetCoverage(  # noqa: N802
        self, request: pb.GetCoverageRequest, _context: Any
    ) -> pb.GetCoverageResponse:
        check = Checks()
        as_of, (since, until) = check.time(request, "as_of"), check.span(request)
        map_id = check.optional_identity("map_id", request.map_id)
        limit = check.size("limit", request.limit, default=DEFAULT_OFF_MAP)
        check.enforce()
        async with self._read_model.snapshot(as_of) as snapshot:
            in_force = snapshot.map_in_force(map_id)
            reading = snapshot.reading(in_force)
        found = await asyncio.to_thread(coverage, reading, since, until, limit)
        return answers.coverage(found, in_force, _known_to(snapshot))

    async def GetControlChart(  # noqa: N802
        self, request: pb.GetControlChartRequest, _context: Any
    ) -> pb.GetControlChartResponse:
        check = Checks()
        as_of, (since, until) = check.time(request, "as_of"), check.span(request)
        map_id = check.optional_identity("map_id", request.map_id)
        metric, kind = check.charted(request)
        check.enforce()
        async with self._read_model.snapshot(as_of) as snapshot:
            in_force = snapshot.map_in_force(map_id)
            reading = snapshot.reading(in_force)
            raised = [each.raised for each in await signals_by_rules(snapshot, SHIFT_RULES)]
        found = await (
            asyncio.to_thread(point_chart, reading, kind, request.need_path, raised)
            if request.need_path
            else asyncio.to_thread(score_chart, reading, request.touchpoint_id, metric.name.lower(), raised)
        )
        return pb.GetControlChartResponse(
            chart=answers.control_chart(found.between(since, until)),
            method=answers.control_chart_method(),
            map_id=in_force.map_id,
            map_version=in_force.version,
            position=_known_to(snapshot),
        )

    async def ListControlCharts(  # noqa: N802
        self, request: pb.ListControlChartsRequest, _context: Any
    ) -> pb.ListControlChartsResponse:
        check = Checks()
        as_of, newest = check.time(request, "as_of"), check.size("points", request.points, default=DEFAULT_CHARTED)
        map_id = check.optional_identity("map_id", request.map_id)
        check.enforce()
        async with self._read_model.snapshot(as_of) as snapshot:
            in_force = snapshot.map_in_force(map_id)
            reading = snapshot.reading(in_force)
            raised = [each.raised for each in await signals_by_rules(snapshot, SHIFT_RULES)]
        found = await asyncio.to_thread(control_charts, reading, raised, newest)
        return pb.ListControlChartsResponse(
            charts=[answers.control_chart(each) for each in found],
            method=answers.control_chart_method(),
            map_id=in_force.map_id,
            map_version=in_force.version,
            position=_known_to(snapshot),
        )

    async def ListSignals(self, request: pb.ListSignalsRequest, _context: Any) -> pb.ListSignalsResponse:  # noqa: N802
        check = Checks()
        as_of, page_size = check.time(request, "as_of"), check.size("page_size", request.page_size, default=100)
        customer_id = check.optional_identity("customer_id", request.customer_id)
        rule = check.optional_identity("rule", request.rule)
        check.enforce()
        async with self._read_model.snapshot(as_of) as snapshot:
            found, token = await signals(
                snapshot, customer_id, page_size=page_size, page_token=request.page_token, rule=rule
            )
            reading = snapshot.reading(snapshot.map_in_force(""))
        where = await asyncio.to_thread(places, reading, found)
        told = [answers.signal(*each) for each in zip(found, where, strict=True)]
        return pb.ListSignalsResponse(signals=told, next_page_token=token)

    async def GetOverview(self, request: pb.GetOverviewRequest, _context: Any) -> pb.GetOverviewResponse:  # noqa: N802
        check = Checks()
        as_of = check.time(request, "as_of")
        check.enforce()
        async with self._read_model.snapshot(as_of) as snapshot:
            reading = snapshot.reading(snapshot.map_in_force(""))
        return answers.overview(await asyncio.to_thread(overview, reading), snapshot.position)

    async def RebuildReadModel(  # noqa: N802
        self, _request: pb.RebuildReadModelRequest, _context: Any
    ) -> AsyncIterator[pb.RebuildReadModelResponse]:
        async for each in self._rebuild():
            yield pb.RebuildReadModelResponse(
                position=each.position, head=each.head, events=each.events, done=each.done
            )


def _known_to(snapshot: Snapshot) -> int:
    """Return the position in the store up to which an answer is known."""
    return max(snapshot.cut - 1, 0)
