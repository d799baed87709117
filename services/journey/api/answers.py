"""Writing answers: what was found, as the contract says it."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from recorrido.actions.v1 import action_pb2
from recorrido.inference.v1 import analysis_pb2
from recorrido.inference.v1.events import PointKind
from recorrido.ingest.v1 import interaction_pb2
from recorrido.ingest.v1.events import RatingMetric
from recorrido.journey.v1 import journey_map_pb2
from recorrido.journey.v1 import journey_service_pb2 as pb
from recorrido.journey.v1.events import LoyaltyLevel, Metric
from services.foundation.rpc import timestamp
from services.journey.domain import intervals
from services.journey.domain.charted import LEAST_ANSWERS, POINTS
from services.journey.domain.charts import FALSE_ALARM_POINTS, LEAST_BASELINE, SOURCES, WEIGHT, WIDTH
from services.journey.domain.expectations import Expected, Met
from services.journey.domain.intervals import Interval
from services.journey.domain.loyalty import Loyalty
from services.journey.domain.mapdiff import Change
from services.journey.domain.maps import PublishedMap
from services.journey.domain.scores import MeanScore, NetPromoterScore, RatingScore
from services.journey.views.controlchart import METHOD, ChartPoint, ControlChart
from services.journey.views.coverage import Coverage, Hearing, OffMap, TouchpointCoverage
from services.journey.views.flow import Change as FlowChange
from services.journey.views.flow import DropOff, Edge, Flow, Step, StepExperience, Target, Variant
from services.journey.views.ladder import Ladder, LadderPeriod, LevelCount, ServiceRecovery, TouchpointCount
from services.journey.views.money import Amount, ShareOfWallet
from services.journey.views.overview import Overview
from services.journey.views.points import Driver, Point, Trend, UnknownNeed
from services.journey.views.preview import Preview
from services.journey.views.scores import EventRange, Group, Scores, TouchpointScores
from services.journey.views.signals import Signal
from services.journey.views.snapshot import MapInForce
from services.journey.views.timeline import (
    Curve,
    CustomerAction,
    CustomerJourney,
    CustomerPoint,
    Entry,
    Episode,
    Moment,
    StageVisit,
)

ValueT = TypeVar("ValueT")

_METRICS = {
    RatingMetric.NPS: journey_map_pb2.METRIC_NPS,
    RatingMetric.CSAT: journey_map_pb2.METRIC_CSAT,
    RatingMetric.CES: journey_map_pb2.METRIC_CES,
}


def _if_any(make: Callable[[ValueT], Any], value: ValueT | None) -> Any:
    return None if value is None else make(value)


def _level(level: LoyaltyLevel) -> journey_map_pb2.LoyaltyLevel.ValueType:
    return journey_map_pb2.LoyaltyLevel.ValueType(level.number)


def _interval(interval: Interval) -> pb.Interval:
    return pb.Interval(low=interval.low, high=interval.high, confidence=intervals.CONFIDENCE, method=interval.method)


def _events(found: EventRange) -> pb.EventRange:
    return pb.EventRange(first_position=found.first, last_position=found.last, events=found.events)


# -- maps --------------------------------------------------------------------------------------------------------------


def published(found: PublishedMap) -> pb.PublishedMap:
    return pb.PublishedMap(
        map=found.map.to_proto(),
        version=found.version,
        published_at=timestamp(found.published_at),
        actor=found.actor,
    )


def change(found: Change) -> pb.MapChange:
    return pb.MapChange(
        kind=pb.MapChangeKind.ValueType(found.kind.value), path=found.path, before=found.before, after=found.after
    )


def preview(found: Preview) -> pb.PreviewJourneyMapResponse:
    return pb.PreviewJourneyMapResponse(
        against_version=found.against_version,
        changes=[change(each) for each in found.changes],
        touchpoints=[
            pb.TouchpointPreview(
                touchpoint_id=each.touchpoint_id,
                name=each.name,
                before=_if_any(scores, each.before),
                after=_if_any(scores, each.after),
            )
            for each in found.touchpoints
        ],
        uncovered_before=found.uncovered[0],
        uncovered_after=found.uncovered[1],
        moved=found.moved,
        personas=[
            pb.PersonaPreview(persona_id=persona_id, customers_before=before, customers_after=after)
            for persona_id, before, after in found.personas
        ],
        levels=[
            pb.LevelPreview(level=_level(level), customers_before=before, customers_after=after)
            for level, before, after in found.levels
        ],
        episodes_before=found.episodes[0],
        episodes_after=found.episodes[1],
    )


# -- scores ------------------------------------------------------------------------------------------------------------


def scores(found: Scores) -> pb.Scores:
    negative, neutral, positive = found.sentiment
    return pb.Scores(
        interactions=found.interactions,
        customers=found.customers,
        nps=_if_any(_nps, found.nps),
        csat=_if_any(_rating, found.csat),
        ces=_if_any(_rating, found.ces),
        sentiment=pb.SentimentCounts(negative=negative, neutral=neutral, positive=positive),
        mean_sentiment=_if_any(_mean_sentiment, found.mean_sentiment),
        custom=[
            pb.CustomScore(
                name=scale.name,
                scale_min=scale.lowest,
                scale_max=scale.highest,
                mean=score.value,
                count=score.count,
                interval=_interval(score.interval),
                method=score.method,
            )
            for scale, score in found.custom
        ],
        events=_events(found.events),
    )


def _nps(score: NetPromoterScore) -> pb.NetPromoterScore:
    return pb.NetPromoterScore(
        value=score.value,
        promoters=score.promoters,
        passives=score.passives,
        detractors=score.detractors,
        count=score.count,
        interval=_interval(score.interval),
        method=score.method,
    )


def _rating(score: RatingScore) -> pb.RatingScore:
    return pb.RatingScore(
        value=score.value,
        mean=score.mean,
        count=score.count,
        histogram=score.histogram,
        interval=_interval(score.interval),
        method=score.method,
    )


def _mean_sentiment(score: MeanScore) -> pb.MeanSentiment:
    return pb.MeanSentiment(
        value=score.value, count=score.count, interval=_interval(score.interval), method=score.method
    )


def touchpoint_scores(found: TouchpointScores) -> pb.TouchpointScores:
    return pb.TouchpointScores(
        stage_id=found.stage_id,
        touchpoint_id=found.touchpoint_id,
        name=found.name,
        scores=scores(found.scores),
        expected=[_expected(each) for each in found.expected],
    )


def _expected(found: Expected) -> pb.ExpectationResult:
    return pb.ExpectationResult(
        metric=journey_map_pb2.Metric.ValueType(found.metric.number),
        target=found.target,
        state=pb.ExpectationState.ValueType(found.met.value),
        value=found.value,
        count=found.count,
        gap=found.gap,
        interval=_if_any(_interval, found.interval),
        method=found.method,
    )


def group(found: Group) -> pb.ScoreGroup:
    return pb.ScoreGroup(
        keys=found.keys,
        names=found.names,
        period_start=timestamp(found.period_start),
        scores=scores(found.scores),
        expected=[_expected(each) for each in found.expected],
    )


# -- points ------------------------------------------------------------------------------------------------------------


def point(found: Point, examples: Sequence[str]) -> pb.Point:
    return pb.Point(
        kind=analysis_pb2.PointKind.ValueType(found.kind.number),
        need_path=found.need_path,
        touchpoint_id=found.touchpoint_id,
        touchpoint_name=found.touchpoint_name,
        customers=found.customers,
        mentions=found.mentions,
        share=found.share,
        mean_sentiment=found.mean_sentiment,
        examples=examples,
        interval=_interval(found.interval),
        severity=found.severity,
        money_at_stake=[_amount(each) for each in found.money_at_stake],
        trend=_if_any(_trend, found.trend),
        events=_events(found.events),
    )


def _trend(trend: Trend) -> pb.Trend:
    return pb.Trend(
        before=trend.before,
        since=trend.since,
        interval=_interval(trend.interval),
        heard_before=trend.heard_before,
        heard_since=trend.heard_since,
    )


def unknown_need(found: UnknownNeed) -> pb.UnknownNeed:
    return pb.UnknownNeed(
        kind=analysis_pb2.PointKind.ValueType(found.kind.number),
        customers=found.customers,
        mentions=found.mentions,
        share=found.share,
    )


def driver(found: Driver) -> pb.Driver:
    return pb.Driver(
        need_path=found.need_path,
        metric=_METRICS[found.metric],
        difference=found.difference,
        effect=found.effect,
        interval=_interval(found.interval),
        with_need=found.with_need,
        without_need=found.without_need,
        share=found.share,
    )


def _amount(amount: Amount) -> pb.Amount:
    return pb.Amount(currency_code=amount.currency_code, amount=amount.amount)


# -- the customer's journey --------------------------------------------------------------------------------------------


def journey(found: CustomerJourney, in_force: MapInForce, position: int) -> pb.GetCustomerJourneyResponse:
    return pb.GetCustomerJourneyResponse(
        customer_id=found.customer_id,
        kind=interaction_pb2.CustomerKind.ValueType(found.kind.number),
        entries=[entry(each, in_force) for each in found.entries],
        next_page_token=found.next_page_token,
        total_entries=found.total,
        map_id=in_force.map_id,
        map_version=in_force.version,
        persona=found.persona.to_proto() if found.persona else None,
        episodes=[_episode(each) for each in found.episodes],
        stage_path=[_stage_visit(each) for each in found.stage_path],
        experience=_curve(found.experience),
        loyalty=loyalty(found.loyalty, found.loyalty_event_ids),
        points=[_customer_point(each) for each in found.points],
        signals=[signal(*each) for each in zip(found.signals, found.signal_places, strict=True)],
        actions=[action(each) for each in found.actions],
        share_of_wallet=_if_any(_share_of_wallet, found.share_of_wallet),
        spent=[_amount(each) for each in found.spent],
        customer_ids=found.customer_ids,
        position=position,
    )


def entry(found: Entry, in_force: MapInForce) -> pb.TimelineEntry:
    message = pb.TimelineEntry(
        event_id=str(found.event_id),
        occurred_at=timestamp(found.occurred_at),
        recorded_at=timestamp(found.recorded_at),
        interaction=found.interaction.to_proto(),
        analysis=found.analysis.to_proto() if found.analysis else None,
        analysis_failure=found.analysis_failure,
        signal_ids=found.signal_ids,
        recorded_under=found.recorded_under,
    )
    if found.touchpoint_id:
        stage, touchpoint = in_force.touchpoints[found.touchpoint_id]
        message.stage_id, message.stage_name = stage.stage_id, stage.name
        message.touchpoint_id, message.touchpoint_name = touchpoint.touchpoint_id, touchpoint.name
    return message


def _episode(episode: Episode) -> pb.Episode:
    return pb.Episode(
        episode_id=episode.episode_id,
        started_at=timestamp(episode.started_at),
        ended_at=timestamp(episode.ended_at),
        interactions=episode.interactions,
        goal_ids=episode.goal_ids,
        experience=_curve(episode.experience),
    )


def _stage_visit(visit: StageVisit) -> pb.StageVisit:
    return pb.StageVisit(
        stage_id=visit.stage_id,
        stage_name=visit.stage_name,
        entered_at=timestamp(visit.entered_at),
        left_at=timestamp(visit.left_at),
        interactions=visit.interactions,
        re_entry=visit.re_entry,
    )


def _curve(curve: Curve) -> pb.Experience:
    return pb.Experience(
        moments=[_moment(each) for each in curve.moments],
        peak=_if_any(_moment, curve.peak),
        end=_if_any(_moment, curve.end),
        lasting_impression=curve.lasting_impression,
        mean=curve.mean,
    )


def _moment(moment: Moment) -> pb.ExperienceMoment:
    return pb.ExperienceMoment(
        event_id=str(moment.event_id),
        occurred_at=timestamp(moment.occurred_at),
        value=moment.value,
        touchpoint_id=moment.touchpoint_id,
        touchpoint_name=moment.touchpoint_name,
    )


def loyalty(found: Loyalty, event_ids: Sequence[Any]) -> pb.Loyalty:
    return pb.Loyalty(
        level=_level(found.level),
        reasons=found.reasons,
        evidence_event_ids=[str(event_id) for event_id in event_ids],
        rule=found.rule,
    )


def _customer_point(found: CustomerPoint) -> pb.CustomerPoint:
    return pb.CustomerPoint(
        kind=analysis_pb2.PointKind.ValueType(found.kind.number),
        need_path=found.need_path,
        touchpoint_id=found.touchpoint_id,
        touchpoint_name=found.touchpoint_name,
        mentions=found.mentions,
        mean_sentiment=found.mean_sentiment,
        last_at=timestamp(found.last_at),
    )


def action(found: CustomerAction) -> pb.CustomerAction:
    return pb.CustomerAction(
        action_id=found.action_id,
        kind=action_pb2.ActionKind.ValueType(found.kind.number),
        state=action_pb2.ActionState.ValueType(found.state.number),
        result=action_pb2.ActionResult.ValueType(found.result.number),
        title=found.title,
        signal_id=found.signal_id,
        opened_at=timestamp(found.opened_at),
        updated_at=timestamp(found.updated_at),
    )


def _share_of_wallet(found: ShareOfWallet) -> pb.ShareOfWallet:
    return pb.ShareOfWallet(share=found.share, with_us=_amount(found.with_us), in_category=_amount(found.in_category))


# -- the ladder --------------------------------------------------------------------------------------------------------


def ladder(found: Ladder, in_force: MapInForce, position: int) -> pb.GetLoyaltyLadderResponse:
    words = found.word_of_mouth
    return pb.GetLoyaltyLadderResponse(
        levels=[_level_count(each) for each in found.levels],
        periods=[_ladder_period(each) for each in found.periods],
        recovery=_if_any(_recovery, found.recovery),
        word_of_mouth=pb.WordOfMouth(
            given=words.given,
            received=words.received,
            recommending_customers=words.recommending_customers,
            recommended_customers=words.recommended_customers,
        ),
        map_id=in_force.map_id,
        map_version=in_force.version,
        position=position,
    )


def _level_count(found: LevelCount) -> pb.LevelCount:
    return pb.LevelCount(level=_level(found.level), customers=found.customers, share=found.share)


def _ladder_period(found: LadderPeriod) -> pb.LadderPeriod:
    transitions = []
    for each in found.transitions:
        transition = pb.Transition(to=_level(each.target), customers=each.customers)
        # A name of Python's own.
        setattr(transition, "from", _level(each.source))
        transitions.append(transition)
    period = pb.LadderPeriod(
        to=timestamp(found.until),
        levels=[_level_count(each) for each in found.levels],
        transitions=transitions,
        rose=found.rose,
        fell=found.fell,
        rose_at=[_touchpoint_count(each) for each in found.rose_at],
        fell_at=[_touchpoint_count(each) for each in found.fell_at],
    )
    getattr(period, "from").CopyFrom(timestamp(found.since))
    return period


def _touchpoint_count(found: TouchpointCount) -> pb.TouchpointCount:
    return pb.TouchpointCount(touchpoint_id=found.touchpoint_id, name=found.name, customers=found.customers)


def _recovery(found: ServiceRecovery) -> pb.ServiceRecovery:
    return pb.ServiceRecovery(
        had_bad_moment=found.had_bad_moment,
        recovered=found.recovered,
        rate=found.recovered / found.had_bad_moment,
        interval=_interval(found.interval),
        median_hours=found.median_hours,
        p90_hours=found.p90_hours,
    )


# -- flow and coverage -------------------------------------------------------------------------------------------------


def flow(found: Flow) -> pb.Flow:
    return pb.Flow(
        cases=found.cases,
        customers=found.customers,
        interactions=found.interactions,
        reached_goal=found.reached_goal,
        dropped_off=found.dropped_off,
        open=found.open,
        steps=[_step(each) for each in found.steps],
        edges=[_edge(each) for each in found.edges],
        variants=[_variant(each) for each in found.variants],
        different_variants=found.different_variants,
        median_hours=found.median_hours,
        p90_hours=found.p90_hours,
        lasting_impression=found.lasting_impression,
        events=_events(found.events),
        no_goal=found.no_goal,
        drop_off_rate=found.drop_off_rate,
    )


def _step(found: Step) -> pb.FlowStep:
    return pb.FlowStep(
        id=found.id,
        name=found.name,
        count=found.count,
        cases=found.cases,
        share=found.share,
        starts=found.starts,
        ends=found.ends,
        repeats=found.repeats,
        returning_cases=found.returning_cases,
        drop_off=_if_any(_drop_off, found.drop_off),
        experience=_if_any(_step_experience, found.experience),
    )


def _drop_off(found: DropOff) -> pb.DropOff:
    return pb.DropOff(
        cases=found.cases,
        share=found.share,
        interval=_interval(found.interval),
        after_bad_moment=found.after_bad_moment,
        came_back=found.came_back,
        median_hours=found.median_hours,
        p90_hours=found.p90_hours,
        came_back_at=[_target(each) for each in found.came_back_at],
    )


def _target(found: Target) -> pb.FlowTarget:
    return pb.FlowTarget(id=found.id, name=found.name, cases=found.cases)


def _step_experience(found: StepExperience) -> pb.StepExperience:
    return pb.StepExperience(
        mean=found.mean,
        count=found.count,
        interval=_interval(found.interval),
        peaks=found.peaks,
        ends=found.ends,
    )


def _edge(found: Edge) -> pb.FlowEdge:
    return pb.FlowEdge(
        from_id=found.from_id,
        to_id=found.to_id,
        from_name=found.from_name,
        to_name=found.to_name,
        count=found.count,
        cases=found.cases,
        share=found.share,
        median_hours=found.median_hours,
        p90_hours=found.p90_hours,
    )


def _variant(found: Variant) -> pb.FlowVariant:
    return pb.FlowVariant(
        ids=found.ids,
        names=found.names,
        steps=found.steps,
        cases=found.cases,
        share=found.share,
        median_hours=found.median_hours,
    )


def flow_change(found: FlowChange) -> pb.FlowChange:
    return pb.FlowChange(
        from_id=found.from_id,
        to_id=found.to_id,
        from_name=found.from_name,
        to_name=found.to_name,
        drop_off=found.drop_off,
        share=found.share,
        compared_share=found.compared_share,
        interval=_interval(found.interval),
        significant=not found.interval.low <= 0 <= found.interval.high,
        median_hours=found.median_hours,
        compared_median_hours=found.compared_median_hours,
    )


def coverage(found: Coverage, in_force: MapInForce, position: int) -> pb.GetCoverageResponse:
    return pb.GetCoverageResponse(
        touchpoints=[_touchpoint_coverage(each) for each in found.touchpoints],
        off_map=[_off_map(each) for each in found.off_map],
        left_out=found.left_out,
        all=_coverage_counts(found.touchpoints),
        moments_of_truth=_coverage_counts([each for each in found.touchpoints if each.touchpoint.moment_of_truth]),
        interactions=found.interactions,
        interactions_on_map=found.interactions_on_map,
        map_id=in_force.map_id,
        map_version=in_force.version,
        position=position,
    )


def _coverage_counts(found: Sequence[TouchpointCoverage]) -> pb.CoverageCounts:
    states = [each.voice.hearing for each in found]
    met = [expected.met for each in found for expected in each.expected]
    return pb.CoverageCounts(
        touchpoints=len(states),
        heard=states.count(Hearing.HEARD),
        unheard=states.count(Hearing.UNHEARD),
        silent=states.count(Hearing.SILENT),
        met=met.count(Met.MET),
        missed=met.count(Met.MISSED),
        not_known=met.count(Met.NOT_KNOWN),
    )


def _touchpoint_coverage(found: TouchpointCoverage) -> pb.TouchpointCoverage:
    stage, touchpoint, voice = found.stage, found.touchpoint, found.voice
    return pb.TouchpointCoverage(
        stage_id=stage.stage_id,
        stage_name=stage.name,
        touchpoint_id=touchpoint.touchpoint_id,
        name=touchpoint.name,
        moment_of_truth=touchpoint.moment_of_truth,
        owner=touchpoint.owner,
        hearing=pb.Hearing.ValueType(voice.hearing.value),
        interactions=voice.interactions,
        customers=voice.customers,
        rated=voice.rated,
        verbatims=voice.verbatims,
        last_at=timestamp(voice.last_at),
        last_heard_at=timestamp(voice.last_heard_at),
        on_other_channels=found.on_other_channels,
        expected=[_expected(each) for each in found.expected],
        heard_as=found.heard_as,
    )


def _off_map(found: OffMap) -> pb.OffMapTouchpoint:
    voice = found.voice
    return pb.OffMapTouchpoint(
        source=found.source,
        touchpoint=found.touchpoint,
        channel=interaction_pb2.Channel.ValueType(found.channel.number),
        interactions=voice.interactions,
        customers=voice.customers,
        rated=voice.rated,
        verbatims=voice.verbatims,
        last_at=timestamp(voice.last_at),
    )


# -- control charts ----------------------------------------------------------------------------------------------------


def control_chart(found: ControlChart) -> pb.ControlChart:
    kind, is_point = POINTS.get(found.metric, PointKind.UNSPECIFIED), found.metric in POINTS
    metric = Metric.UNSPECIFIED if is_point else Metric[found.metric.upper()]
    return pb.ControlChart(
        touchpoint_id=found.touchpoint_id,
        metric=journey_map_pb2.Metric.ValueType(metric.number),
        kind=analysis_pb2.PointKind.ValueType(kind.number),
        need_path=found.need_path,
        name=found.name,
        subgroup=pb.PERIOD_DAY if found.length == 1 else pb.PERIOD_WEEK,
        points=[_chart_point(each) for each in found.points],
        not_charted=found.not_charted,
    )


def _chart_point(found: ChartPoint) -> pb.ChartPoint:
    point = pb.ChartPoint(
        to=timestamp(found.until),
        state=pb.ChartState.ValueType(found.state.value),
        answers=found.answers,
        value=found.value,
        centre=found.centre,
        average=found.average,
        limit=found.limit,
        in_run=found.in_run,
        signal_id=found.signal_id,
    )
    getattr(point, "from").CopyFrom(timestamp(found.since))
    return point


def control_chart_method() -> pb.ControlChartMethod:
    return pb.ControlChartMethod(
        method=METHOD,
        weight=WEIGHT,
        width=WIDTH,
        least_answers=LEAST_ANSWERS,
        least_baseline=LEAST_BASELINE,
        false_alarm_points=FALSE_ALARM_POINTS,
        sources=SOURCES,
    )


# -- signals, overview -------------------------------------------------------------------------------------------------


def signal(found: Signal, place: str) -> pb.Signal:
    raised = found.raised
    return pb.Signal(
        signal_id=raised.signal_id,
        rule=raised.rule,
        rule_version=raised.rule_version,
        customer_id=raised.customer_id,
        touchpoint=raised.touchpoint,
        occurred_at=timestamp(raised.occurred_at),
        raised_at=timestamp(found.raised_at),
        reasons=raised.reasons,
        evidence_event_ids=[evidence.event_id for evidence in raised.evidence],
        need_path=raised.need_path,
        inputs=raised.inputs,
        map_id=raised.map_id,
        map_version=raised.map_version,
        touchpoint_id=raised.touchpoint_id,
        touchpoint_name=place,
        evidence_positions=[int(each.position) for each in raised.evidence if each.position.isdecimal()],
    )


def overview(found: Overview, position: int) -> pb.GetOverviewResponse:
    return pb.GetOverviewResponse(
        customers=found.customers,
        interactions=found.interactions,
        verbatims=found.verbatims,
        analyzed=found.analyzed,
        analysis_failed=found.analysis_failed,
        signals=found.signals,
        uncovered_interactions=found.uncovered_interactions,
        uncovered=[
            pb.UncoveredTouchpoint(
                source=each.source,
                touchpoint=each.touchpoint,
                channel=interaction_pb2.Channel.ValueType(each.channel.number),
                interactions=each.interactions,
            )
            for each in found.uncovered
        ],
        position=position,
    )
