"""Flows and coverage against pm4py and against naive counting, as of any time, on a real PostgreSQL.

The histories are those of `test_journey_views`: late and out-of-order events, equal times, repetitions, identities that
are linked and unlinked. pm4py (https://github.com/process-intelligence-solutions/pm4py) is for tests only.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import groupby, pairwise
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import pandas as pd
import pm4py
import pytest
from msgspec import structs

from recorrido.ingest.v1.events import Channel, Interaction, Outcome
from recorrido.journey.v1.events import (
    EpisodeRules,
    Goal,
    JourneyMap,
    MappingRule,
    Persona,
    PersonaCondition,
    Stage,
    Touchpoint,
)
from services.foundation.errors import InvalidError
from services.foundation.events import Recorded
from services.journey.domain.history import microseconds
from services.journey.domain.placement import Placements
from services.journey.domain.reading import Reading
from services.journey.views.coverage import Hearing, coverage
from services.journey.views.flow import CaseOf, Cases, Ending, Flow, FlowFilter, Level, changes, flow
from services.journey.views.selection import Selection
from tests.service.test_journey_views import START, Known, known, postgres, project, random_history

REST = timedelta(hours=12)
MAP = JourneyMap(
    map_id="shop",
    name="Shop",
    stages=(
        Stage(
            stage_id="buy",
            name="Buy",
            touchpoints=(
                Touchpoint(touchpoint_id="placed", name="Placed"),
                Touchpoint(touchpoint_id="paid", name="Paid", moment_of_truth=True, channel=Channel.WEB),
            ),
        ),
        Stage(
            stage_id="care",
            name="Care",
            touchpoints=(
                Touchpoint(touchpoint_id="help", name="Help", moment_of_truth=True),
                Touchpoint(touchpoint_id="visit", name="Visit", moment_of_truth=True),
            ),
        ),
    ),
    mapping_rules=(
        MappingRule(touchpoint="order_placed", touchpoint_id="placed"),
        MappingRule(touchpoint="order_paid", touchpoint_id="paid"),
    ),
    personas=(
        Persona(
            persona_id="young", name="Young", conditions=(PersonaCondition(attribute="segment", values=("young",)),)
        ),
        Persona(persona_id="old", name="Old", conditions=(PersonaCondition(attribute="segment", values=("old",)),)),
    ),
    goals=(Goal(goal_id="bought", name="Bought", touchpoint_ids=("paid",), begins_at_touchpoint_ids=("placed",)),),
    episodes=EpisodeRules(goal_ids=("bought",), inactivity_hours=12),
)
STAGES = {"placed": "buy", "paid": "buy", "help": "care", "": ""}


def history_of(seed: int, events: int) -> list[Recorded]:
    """A random history whose clock goes on by a minute with each event."""
    return [
        structs.replace(recorded, recorded_at=START + timedelta(minutes=n))
        for n, recorded in enumerate(random_history(seed, events))
    ]


@dataclass
class Case:
    """Interactions with the number of each in the store's order, and whose they are."""

    customer: str
    told: list[tuple[int, Interaction]]

    def steps(self, level: Level) -> list[tuple[str, datetime, datetime]]:
        steps = [(at(i), i.occurred_at, i.occurred_at) for _, i in self.told]
        if level is Level.TOUCHPOINT:
            return steps
        runs = [list(run) for _, run in groupby(steps, key=lambda step: STAGES[step[0]])]
        return [(STAGES[run[0][0]], run[0][1], run[-1][2]) for run in runs]

    @property
    def started(self) -> datetime:
        return self.told[0][1].occurred_at

    @property
    def ended(self) -> datetime:
        return self.told[-1][1].occurred_at

    @property
    def reached(self) -> bool:
        return any(reaches(i) for _, i in self.told)

    def ending(self, moment: datetime) -> Ending:
        if self.reached:
            return Ending.GOAL
        if moment - self.ended <= REST:
            return Ending.OPEN
        return Ending.DROPPED_OFF if {"placed", "paid"} & {at(i) for _, i in self.told} else Ending.NO_GOAL


def at(interaction: Interaction) -> str:
    return {"order_placed": "placed", "order_paid": "paid", "help": "help"}.get(interaction.touchpoint, "")


def reaches(interaction: Interaction) -> bool:
    return at(interaction) == "paid" and interaction.outcome not in (Outcome.FAILED, Outcome.ABANDONED)


def cases_of(truth: Known, case: CaseOf) -> list[Case]:
    """Group the interactions one by one, as docs/flow.md says it."""
    customers: dict[str, list[tuple[int, Interaction]]] = defaultdict(list)
    for number, (_, interaction) in enumerate(truth.interactions):
        customers[truth.customer(interaction)].append((number, interaction))
    found = []
    for customer, told in customers.items():
        told.sort(key=lambda each: (each[1].occurred_at, each[0]))
        if case is CaseOf.CUSTOMER:
            found.append(Case(customer, told))
            continue
        named: dict[str, Case] = {}
        run: Case | None = None
        for number, interaction in told:
            if interaction.episode_id:
                named.setdefault(interaction.episode_id, Case(customer, [])).told.append((number, interaction))
                continue
            if run is None or run.reached or interaction.occurred_at - run.ended > REST:
                run = Case(customer, [])
                found.append(run)
            run.told.append((number, interaction))
        found += named.values()
    return found


def event_log(cases: Sequence[Case], level: Level) -> pd.DataFrame:
    return pm4py.format_dataframe(
        pd.DataFrame(
            [
                {"case": f"{n:05}", "step": step or "-", "time": end}
                for n, case in enumerate(cases)
                for step, _, end in case.steps(level)
            ]
        ),
        case_id="case",
        activity_key="step",
        timestamp_key="time",
    )


def compare_with_pm4py(found: Flow, cases: Sequence[Case], level: Level) -> None:
    log = event_log(cases, level)
    graph, starts, ends = pm4py.discover_dfg(log)
    assert {(e.from_id or "-", e.to_id or "-"): e.count for e in found.edges} == dict(graph)
    assert {s.id or "-": s.starts for s in found.steps if s.starts} == dict(starts)
    assert {s.id or "-": s.ends for s in found.steps if s.ends} == dict(ends)
    assert {s.id or "-": s.count for s in found.steps} == log["concept:name"].value_counts().to_dict()
    variants = {tuple(step or "-" for step in v.ids): v.cases for v in found.variants}
    assert variants == {tuple(way): count for way, count in pm4py.get_variants(log).items()}
    assert found.different_variants == len(variants)
    if level is Level.TOUCHPOINT:
        took = pm4py.discover_performance_dfg(log, perf_aggregation_key="all")[0]
        assert {(e.from_id or "-", e.to_id or "-"): e.median_hours for e in found.edges} == {
            pair: pytest.approx(seconds["median"] / 3600) for pair, seconds in took.items()
        }
        lasting = [seconds / 3600 for seconds in pm4py.get_all_case_durations(log)]
        assert found.median_hours == pytest.approx(np.median(lasting))


def compare_with_counting(found: Flow, cases: Sequence[Case], every: Sequence[Case], level: Level, moment: Any) -> None:
    """What pm4py does not tell: cases per edge, times between steps, endings, and what happened afterwards."""
    walks = [case.steps(level) for case in cases]
    assert (found.cases, found.interactions) == (len(cases), sum(len(case.told) for case in cases))
    assert found.customers == len({case.customer for case in cases})
    endings = Counter(case.ending(moment) for case in cases)
    assert (found.reached_goal, found.dropped_off, found.open, found.no_goal) == tuple(endings[each] for each in Ending)
    sought = endings[Ending.GOAL] + endings[Ending.DROPPED_OFF]
    assert found.drop_off_rate == (endings[Ending.DROPPED_OFF] / sought if sought else None)
    hours: dict[Any, list[float]] = defaultdict(list)
    by: dict[Any, set[int]] = defaultdict(set)
    for n, walk in enumerate(walks):
        for one, other in pairwise(walk):
            hours[one[0], other[0]].append((other[1] - one[2]) / timedelta(hours=1))
            by[one[0], other[0]].add(n)
    for edge in found.edges:
        pair = (edge.from_id, edge.to_id)
        assert (edge.cases, edge.share) == (len(by[pair]), pytest.approx(len(by[pair]) / len(cases)))
        expected = np.quantile(hours[pair], [0.5, 0.9])
        assert (edge.median_hours, edge.p90_hours) == pytest.approx(tuple(expected))
    for step in found.steps:
        names = [[s for s, _, _ in walk] for walk in walks]
        assert step.cases == sum(step.id in walk for walk in names)
        assert step.repeats == sum(a == b == step.id for walk in names for a, b in pairwise(walk))
        entries = [sum(name == step.id for name, _ in groupby(walk)) for walk in names]
        assert step.returning_cases == sum(times > 1 for times in entries)
        lost = [c for c in cases if c.ending(moment) is Ending.DROPPED_OFF and c.steps(level)[-1][0] == step.id]
        assert (step.drop_off.cases if step.drop_off else 0) == len(lost)
        if step.drop_off:
            later = [[o for o in every if o.customer == c.customer and o.started > c.ended] for c in lost]
            waited = [
                (min(o.started for o in each) - c.ended) / timedelta(hours=1)
                for c, each in zip(lost, later, strict=True)
                if each
            ]
            assert step.drop_off.came_back == len(waited)
            if waited:
                assert step.drop_off.median_hours == pytest.approx(np.median(waited))
                assert sum(t.cases for t in step.drop_off.came_back_at) == len(waited)


@pytest.mark.parametrize("seed", [1, 2])
async def test_flows_are_those_of_pm4py_as_of_any_time(tmp_path: Path, seed: int) -> None:
    history = history_of(seed, 300)
    async with postgres(tmp_path) as pool:
        read_model = await project(pool, history)
        for as_of in (history[150].recorded_at, None):
            truth = known(history, as_of, "")
            async with read_model.snapshot(as_of) as snapshot:
                reading = Reading(snapshot.history, MAP, Placements(MAP))
            # In the midst of it: some cases may still go on.
            moment = START - timedelta(days=2)
            for case in CaseOf:
                every = cases_of(truth, case)
                for level in Level:
                    looked_at = Cases(reading, case, level, microseconds(moment))
                    found = flow(looked_at, looked_at.chosen(FlowFilter(), "filter"), 10_000)
                    compare_with_pm4py(found, every, level)
                    compare_with_counting(found, every, every, level, moment)


async def test_whole_cases_are_filtered_and_compared(tmp_path: Path) -> None:
    history = history_of(3, 400)
    truth = known(history, None, "")
    async with postgres(tmp_path) as pool:
        read_model = await project(pool, history)
        async with read_model.snapshot() as snapshot:
            reading = Reading(snapshot.history, MAP, Placements(MAP))
    every, moment = cases_of(truth, CaseOf.EPISODE), START - timedelta(days=2)
    segments: dict[str, str] = {}
    for _, interaction in truth.interactions:
        told = interaction.attributes.get("customer.segment")
        segments[truth.customer(interaction)] = told or segments.get(truth.customer(interaction), "")
    middle = START - timedelta(days=20)
    looked_at = Cases(reading, CaseOf.EPISODE, Level.TOUCHPOINT, microseconds(moment))

    def ask(filter_: FlowFilter) -> Flow:
        return flow(looked_at, looked_at.chosen(filter_, "filter"), 10_000)

    def of(case: Case) -> list[Interaction]:
        return [i for _, i in case.told]

    expected = {
        FlowFilter(Selection(since=middle)): [c for c in every if c.started >= middle],
        FlowFilter(Selection(until=middle)): [c for c in every if c.started < middle],
        FlowFilter(Selection(persona_id="young")): [c for c in every if segments[c.customer] == "young"],
        FlowFilter(Selection(persona_id="old")): [c for c in every if segments[c.customer] == "old"],
        FlowFilter(Selection(stage_id="care")): [c for c in every if any(at(i) == "help" for i in of(c))],
        # Of one and the same interaction both must hold.
        FlowFilter(Selection(touchpoint_id="paid", channel=Channel.PHONE), Outcome.FAILED): [
            c
            for c in every
            if any(at(i) == "paid" and i.channel is Channel.PHONE and i.outcome is Outcome.FAILED for i in of(c))
        ],
        FlowFilter(goal_id="bought"): [c for c in every if c.reached],
        FlowFilter(ending=Ending.DROPPED_OFF): [c for c in every if c.ending(moment) is Ending.DROPPED_OFF],
        FlowFilter(ending=Ending.NO_GOAL): [c for c in every if c.ending(moment) is Ending.NO_GOAL],
        FlowFilter(ending=Ending.OPEN): [c for c in every if c.ending(moment) is Ending.OPEN],
    }
    # Most of them tell some cases from others, whatever the dice said.
    assert sum(0 < len(cases) < len(every) for cases in expected.values()) >= 6
    for filter_, cases in expected.items():
        found = ask(filter_)
        if not cases:
            assert found == Flow(), filter_
            continue
        compare_with_pm4py(found, cases, Level.TOUCHPOINT)
        compare_with_counting(found, cases, every, Level.TOUCHPOINT, moment)

    late, early = ask(FlowFilter(Selection(since=middle))), ask(FlowFilter(Selection(until=middle)))
    found = changes(late, early)
    assert [abs(c.share - c.compared_share) for c in found] == sorted(
        [abs(c.share - c.compared_share) for c in found], reverse=True
    )
    for one in found:
        if not one.drop_off:
            (edge,) = [e for e in late.edges if (e.from_id, e.to_id) == (one.from_id, one.to_id)] or [None]
            assert one.share == (edge.share if edge else 0)
        assert one.interval.low <= one.share - one.compared_share <= one.interval.high
    assert sum(c.share for c in found if c.drop_off) == pytest.approx(late.dropped_off / late.cases)
    nobody = ask(FlowFilter(Selection(since=START + timedelta(days=999))))
    assert (nobody, changes(late, nobody)) == (Flow(), [])


async def test_how_it_felt_at_each_step(tmp_path: Path) -> None:
    history = history_of(5, 200)
    truth = known(history, None, "")
    async with postgres(tmp_path) as pool:
        read_model = await project(pool, history)
        async with read_model.snapshot() as snapshot:
            reading = Reading(snapshot.history, MAP, Placements(MAP))
    looked_at = Cases(reading, CaseOf.EPISODE, Level.TOUCHPOINT, microseconds(START))
    found = flow(looked_at, looked_at.chosen(FlowFilter(), "filter"), 1)
    felt = reading.history.felt
    peaks: Counter[str] = Counter()
    ends: Counter[str] = Counter()
    moments: dict[str, list[float]] = defaultdict(list)
    lasting = []
    for case in cases_of(truth, CaseOf.EPISODE):
        telling = [(felt[n], at(i)) for n, i in case.told if not np.isnan(felt[n])]
        for value, step in telling:
            moments[step].append(value)
        if telling:
            peak = max(reversed(telling), key=lambda each: abs(each[0]))
            peaks[peak[1]] += 1
            ends[telling[-1][1]] += 1
            lasting.append((peak[0] + telling[-1][0]) / 2)
    assert found.lasting_impression == pytest.approx(mean(lasting))
    for step in found.steps:
        assert step.experience is not None
        assert step.experience.mean == pytest.approx(mean(moments[step.id]))
        assert step.experience.count == len(moments[step.id])
        assert (step.experience.peaks, step.experience.ends) == (peaks[step.id], ends[step.id])


async def test_what_the_map_does_not_have_is_refused_with_its_place(tmp_path: Path) -> None:
    async with postgres(tmp_path) as pool:
        read_model = await project(pool, [])
        async with read_model.snapshot() as snapshot:
            reading = Reading(snapshot.history, MAP, Placements(MAP))
    looked_at = Cases(reading, CaseOf.EPISODE, Level.STAGE, 0)
    assert flow(looked_at, looked_at.chosen(FlowFilter(), "filter"), 10) == Flow()
    for filter_, place in (
        (FlowFilter(Selection(persona_id="none")), "compare_with.selection.persona_id"),
        (FlowFilter(goal_id="fun"), "compare_with.goal_id"),
    ):
        with pytest.raises(InvalidError) as refused:
            looked_at.chosen(filter_, "compare_with")
        assert [v.field for v in refused.value.violations] == [place]


async def test_coverage_is_that_of_counting_as_of_any_time(tmp_path: Path) -> None:
    history = history_of(7, 300)
    since, until = START - timedelta(days=30), START - timedelta(days=7)
    async with postgres(tmp_path) as pool:
        read_model = await project(pool, history)
        for as_of in (history[0].recorded_at, history[150].recorded_at, None):
            truth = known(history, as_of, "")
            async with read_model.snapshot(as_of) as snapshot:
                reading = Reading(snapshot.history, MAP, Placements(MAP))
            found = coverage(reading, since, until, 2)
            past = [i for _, i in truth.interactions if i.occurred_at < until]
            inside = [i for i in past if i.occurred_at >= since]
            assert (found.interactions, found.interactions_on_map) == (len(inside), sum(at(i) != "" for i in inside))
            assert [t.touchpoint.touchpoint_id for t in found.touchpoints] == ["placed", "paid", "help", "visit"]
            for each in found.touchpoints:
                here = [i for i in inside if at(i) == each.touchpoint.touchpoint_id]
                ever = [i for i in past if at(i) == each.touchpoint.touchpoint_id]
                compare_voice(each.voice, truth, here, ever)
                away = [i for i in here if each.touchpoint.channel not in (Channel.UNSPECIFIED, i.channel)]
                assert each.on_other_channels == len(away)
            assert found.touchpoints[-1].voice.hearing is Hearing.SILENT
            off = Counter((i.source, i.touchpoint, i.channel) for i in inside if not at(i))
            assert len(found.off_map) + found.left_out == len(off)
            for each in found.off_map:
                raw = (each.source, each.touchpoint, each.channel)
                here = [i for i in inside if (i.source, i.touchpoint, i.channel) == raw]
                ever = [i for i in past if (i.source, i.touchpoint, i.channel) == raw]
                compare_voice(each.voice, truth, here, ever)
            assert [o.voice.interactions for o in found.off_map] == sorted(off.values(), reverse=True)[:2]


def compare_voice(voice: Any, truth: Known, here: Sequence[Interaction], ever: Sequence[Interaction]) -> None:
    assert voice.interactions == len(here)
    assert voice.customers == len({truth.customer(i) for i in here})
    assert voice.rated == sum(bool(i.ratings) for i in here)
    assert voice.verbatims == sum(i.verbatim is not None for i in here)
    assert voice.last_at == max((i.occurred_at for i in ever), default=None)
    assert voice.last_heard_at == max((i.occurred_at for i in ever if i.ratings or i.verbatim), default=None)
    heard = Hearing.HEARD if voice.rated or voice.verbatims else Hearing.UNHEARD
    assert voice.hearing is (heard if here else Hearing.SILENT)
