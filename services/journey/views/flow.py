"""How journeys really run: the directly-follows graph of everyone's cases, how they end, and which ways are taken.

The graph is that of process mining (W. M. P. van der Aalst, "Process Mining: Data Science in Action", 2nd ed., 2016,
chapters 2 and 6): a case is a sequence of steps, and an edge says how often one step directly followed another. Nothing
is sampled. Quantiles are those of the values themselves, between two of them in proportion (type 7 of R. J. Hyndman and
Y. Fan, "Sample Quantiles in Statistical Packages", The American Statistician 50, 1996).
"""

import heapq
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import Enum

import numpy as np

from recorrido.ingest.v1.events import Outcome
from recorrido.journey.v1.events import EpisodeRules
from services.foundation.errors import InvalidError, Violation
from services.journey.domain import intervals
from services.journey.domain.history import HOUR_US, Flags, Floats, Ints, microseconds, stable_order
from services.journey.domain.intervals import Interval
from services.journey.domain.naming import unknown
from services.journey.domain.reading import DEFAULT_INACTIVITY_HOURS, Reading
from services.journey.views.scores import UNITS, EventRange, added
from services.journey.views.selection import Selection

OFF_MAP = "not on the map"
#: Where those who came back began: the most frequent ones.
_TARGETS = 5
#: Steps of a variant that are named.
MAX_NAMED_STEPS = 100


class Level(Enum):
    """What a step is: an interaction, or those of one stage in a row."""

    TOUCHPOINT = 1
    STAGE = 2


class CaseOf(Enum):
    EPISODE = 1
    CUSTOMER = 2


class Ending(Enum):
    """A case that reached no goal is open while it may go on; afterwards it dropped off where it set out for one.

    As in a funnel, where only who took its first step can abandon it; see docs/flow.md.
    """

    GOAL = 1
    DROPPED_OFF = 2
    OPEN = 3
    NO_GOAL = 4


@dataclass(frozen=True, slots=True)
class FlowFilter:
    """Whole cases that meet every condition given: that began in the selection's time, and the rest of `FlowFilter`."""

    selection: Selection = field(default_factory=Selection)
    outcome: Outcome = Outcome.UNSPECIFIED
    goal_id: str = ""
    ending: Ending | None = None


@dataclass(frozen=True, slots=True)
class Target:
    id: str
    name: str
    cases: int


@dataclass(frozen=True, slots=True)
class DropOff:
    """Cases that set out for a goal and ended at a step without one; hours are until the customer's next case."""

    cases: int
    share: float
    interval: Interval
    after_bad_moment: int
    came_back: int
    median_hours: float
    p90_hours: float
    came_back_at: Sequence[Target]


@dataclass(frozen=True, slots=True)
class StepExperience:
    """`mean` of `count` moments, -1 to 1; cases whose peak and whose last moment was at this step."""

    mean: float
    count: int
    interval: Interval
    peaks: int
    ends: int


@dataclass(frozen=True, slots=True)
class Step:
    """`id` empty: on no map. Counts are of steps, or of cases where it says so."""

    id: str
    name: str
    count: int
    cases: int
    share: float
    starts: int
    ends: int
    repeats: int
    returning_cases: int
    drop_off: DropOff | None
    experience: StepExperience | None


@dataclass(frozen=True, slots=True)
class Edge:
    from_id: str
    to_id: str
    from_name: str
    to_name: str
    count: int
    cases: int
    share: float
    median_hours: float
    p90_hours: float


@dataclass(frozen=True, slots=True)
class Variant:
    ids: Sequence[str]
    names: Sequence[str]
    steps: int
    cases: int
    share: float
    median_hours: float


@dataclass(frozen=True, slots=True)
class Flow:
    cases: int = 0
    customers: int = 0
    interactions: int = 0
    reached_goal: int = 0
    dropped_off: int = 0
    open: int = 0
    no_goal: int = 0
    steps: Sequence[Step] = ()
    edges: Sequence[Edge] = ()
    variants: Sequence[Variant] = ()
    different_variants: int = 0
    median_hours: float = 0.0
    p90_hours: float = 0.0
    lasting_impression: float | None = None
    events: EventRange = field(default_factory=EventRange)

    @property
    def drop_off_rate(self) -> float | None:
        """Of the cases that set out for a goal and are over, the part that dropped off, 0 to 1; None: there is none."""
        over = self.reached_goal + self.dropped_off
        return self.dropped_off / over if over else None


@dataclass(frozen=True, slots=True)
class Change:
    """How an edge, or (`to_id` and `to_name` empty) a drop-off, differs; shares are of the cases, 0 to 1."""

    from_id: str
    to_id: str
    from_name: str
    to_name: str
    drop_off: bool
    share: float
    compared_share: float
    interval: Interval
    median_hours: float
    compared_median_hours: float


class Cases:
    """The history as cases, each a run of interactions in the order in which they happened."""

    def __init__(self, reading: Reading, case: CaseOf, level: Level, moment: int) -> None:
        history = reading.history
        self.reading, self.level = reading, level
        order = history.order
        of = history.customer if case is CaseOf.CUSTOMER else reading.episode
        if case is CaseOf.EPISODE:
            order = order[stable_order(of[order])]
        self.order = order
        begins = np.ones(len(order), bool)
        begins[1:] = of[order][1:] != of[order][:-1]
        self.begins: Ints = np.flatnonzero(begins)
        self.number: Ints = np.cumsum(begins) - 1
        self.last: Ints = np.append(self.begins, len(order))[1:] - 1
        occurred = history.interactions.occurred
        self.started = occurred[order[self.begins]]
        self.ended = occurred[order[self.last]]
        self.customer = history.customer[order[self.begins]]
        self.goals, sought = (
            np.bitwise_or.reduceat(bits[order], self.begins) if len(order) else np.empty(0, np.int64)
            for bits in (reading.goals, reading.sought)
        )
        rest = ((reading.map_.episodes or EpisodeRules()).inactivity_hours or DEFAULT_INACTIVITY_HOURS) * HOUR_US
        self.open: Flags = (self.goals == 0) & (moment - self.ended <= rest)
        self.dropped: Flags = (self.goals == 0) & (sought != 0) & ~self.open
        self.aimless: Flags = (self.goals == 0) & (sought == 0) & ~self.open
        # Names of the steps; the last stands for "on no map", which is where -1 leads.
        if level is Level.STAGE:
            known = [(stage.stage_id, stage.name) for stage in reading.map_.stages]
            self.code = np.where(reading.stage < 0, len(known), reading.stage).astype(np.int64)
        else:
            known = [(touchpoint.touchpoint_id, touchpoint.name) for _, touchpoint in reading.touchpoints]
            self.code = np.where(reading.place < 0, len(known), reading.place).astype(np.int64)
        self.labels = [*known, ("", OFF_MAP)]

    def chosen(self, filter_: FlowFilter, path: str) -> Flags:
        """Return which cases meet a filter. Raises InvalidError: the map has nothing of that name."""
        reading, selection = self.reading, filter_.selection
        meant: Flags = np.ones(len(self.begins), bool)
        try:
            rows = replace(selection, since=None, until=None).interactions(reading)
        except InvalidError as error:
            raise InvalidError([Violation(f"{path}.{v.field}", v.rule) for v in error.violations]) from None
        if filter_.outcome is not Outcome.UNSPECIFIED:
            rows &= reading.history.interactions.outcome == filter_.outcome.number
        if filter_.goal_id:
            meant &= self._reached(filter_.goal_id, f"{path}.goal_id")
        if len(meant):
            meant &= np.logical_or.reduceat(rows[self.order], self.begins)
        if selection.since is not None:
            meant &= self.started >= microseconds(selection.since)
        if selection.until is not None:
            meant &= self.started < microseconds(selection.until)
        endings = {
            Ending.GOAL: self.goals != 0,
            Ending.DROPPED_OFF: self.dropped,
            Ending.OPEN: self.open,
            Ending.NO_GOAL: self.aimless,
        }
        return meant if filter_.ending is None else meant & endings[filter_.ending]

    def _reached(self, goal_id: str, place: str) -> Flags:
        map_ = self.reading.map_
        goals = {goal.goal_id: goal.name for goal in map_.goals}
        if goal_id not in goals:
            raise InvalidError([Violation(place, unknown(map_, "goal", goal_id, goals.items()))])
        reached: Flags = (self.goals >> list(goals).index(goal_id)) & 1 == 1
        return reached

    def next_of(self, cases: Ints) -> Ints:
        """Return the case that the same customer began next after the end of each of these; -1 where there is none."""
        times, rank = np.unique(np.concatenate([self.started, self.ended]), return_inverse=True)
        rank = rank.reshape(-1)
        size = len(times)
        starts = self.customer.astype(np.int64) * size + rank[: len(self.started)]
        by_start = stable_order(starts)
        ends = self.customer[cases].astype(np.int64) * size + rank[len(self.started) :][cases]
        at = np.searchsorted(starts[by_start], ends, side="right")
        after = np.append(by_start, -1)[np.minimum(at, len(by_start))]
        return np.where((after >= 0) & (self.customer[after] == self.customer[cases]), after, -1)


def flow(cases: Cases, meant: Flags, variants: int) -> Flow:
    """Return the flow of the cases that are meant, with as many variants."""
    total = int(meant.sum())
    if not total:
        return Flow()
    history = cases.reading.history
    kept = meant[cases.number]
    rows, mine = cases.order[kept], np.flatnonzero(meant)
    case = (np.cumsum(meant) - 1)[cases.number[kept]]
    steps = _Steps(cases, rows, case)
    hours = (cases.ended[mine] - cases.started[mine]) / HOUR_US
    median, p90 = _quantiles(hours)
    ways, different = _variants(cases, steps, hours, variants)
    felt = _Felt(history.felt[rows], case, cases.code[rows], len(cases.labels), total)
    positions = history.interactions.position[rows]
    return Flow(
        cases=total,
        customers=len(np.unique(cases.customer[mine])),
        interactions=len(rows),
        reached_goal=int((cases.goals[mine] != 0).sum()),
        dropped_off=int(cases.dropped[mine].sum()),
        open=int(cases.open[mine].sum()),
        no_goal=int(cases.aimless[mine].sum()),
        steps=_steps(cases, steps, mine, felt),
        edges=_edges(cases, steps, total),
        variants=ways,
        different_variants=different,
        median_hours=median,
        p90_hours=p90,
        lasting_impression=felt.lasting,
        events=EventRange(int(positions.min()), int(positions.max()), len(rows)),
    )


def changes(flow_: Flow, compared: Flow) -> list[Change]:
    """Return how the edges and drop-offs of two groups of cases differ, the greatest difference first.

    Empty where one of the two has no case: there is nothing to compare with.
    """
    if not flow_.cases or not compared.cases:
        return []

    def parts(of: Flow) -> dict[tuple[str, str, str, str, bool], tuple[int, float]]:
        edges = {(e.from_id, e.to_id, e.from_name, e.to_name, False): (e.cases, e.median_hours) for e in of.edges}
        ends = {(s.id, "", s.name, "", True): (s.drop_off.cases, 0.0) for s in of.steps if s.drop_off}
        return {**edges, **ends}

    here, there = parts(flow_), parts(compared)
    found = []
    for key in dict.fromkeys([*here, *there]):
        one, hours = here.get(key, (0, 0.0))
        other, other_hours = there.get(key, (0, 0.0))
        interval = intervals.difference(one, flow_.cases, other, compared.cases)
        found.append(Change(*key, one / flow_.cases, other / compared.cases, interval, hours, other_hours))
    return sorted(found, key=lambda each: -abs(each.share - each.compared_share))


class _Steps:
    """The steps of cases, one after the other: what each is, whose, and its first and last time."""

    def __init__(self, cases: Cases, rows: Ints, case: Ints) -> None:
        occurred, code = cases.reading.history.interactions.occurred[rows], cases.code[rows]
        begins = np.ones(len(rows), bool)
        if cases.level is Level.STAGE:
            begins[1:] = (case[1:] != case[:-1]) | (code[1:] != code[:-1])
        first = np.flatnonzero(begins)
        self.code, self.case = code[first], case[first]
        self.starts_at, self.ends_at = occurred[first], occurred[np.append(first[1:], len(rows)) - 1]
        #: Where each case begins among the steps, and its last step.
        self.begins: Ints = np.flatnonzero(np.diff(self.case, prepend=-1))
        self.last: Ints = np.append(self.begins[1:], len(self.case)) - 1

    @property
    def follows(self) -> Ints:
        """Return the steps that another one of the same case follows."""
        return np.flatnonzero(self.case[1:] == self.case[:-1])


def _quantiles(values: Floats) -> tuple[float, float]:
    """Return median and 90th percentile; 0 where there is nothing."""
    if not len(values):
        return 0.0, 0.0
    median, p90 = np.quantile(values, [0.5, 0.9])
    return float(median), float(p90)


def _members(code: Ints, size: int) -> list[Ints]:
    """Return which have each code, 0 to `size` - 1, in their order."""
    order = np.argsort(code.astype(np.min_scalar_type(size)), kind="stable")
    return np.split(order, np.cumsum(np.bincount(code, minlength=size))[:-1])


def _grouped(code: Ints, case: Ints, size: int) -> tuple[Ints, Ints]:
    """Return in which order members stand by code, and in how many different cases each code occurs."""
    # Members come case by case, and a stable sort leaves it so within each code.
    order = np.argsort(code.astype(np.min_scalar_type(size)), kind="stable")
    fresh = np.ones(len(order), bool)
    fresh[1:] = (code[order][1:] != code[order][:-1]) | (case[order][1:] != case[order][:-1])
    return order, np.bincount(code[order][fresh], minlength=size)


def _edges(cases: Cases, steps: _Steps, total: int) -> list[Edge]:
    size = len(cases.labels)
    at = steps.follows
    code = steps.code[at] * size + steps.code[at + 1]
    hours = (steps.starts_at[at + 1] - steps.ends_at[at]) / HOUR_US
    order, in_cases = _grouped(code, steps.case[at], size * size)
    counts = np.bincount(code, minlength=size * size)
    present = np.flatnonzero(counts)
    found = []
    for number, group in zip(present.tolist(), np.split(hours[order], np.cumsum(counts[present])[:-1]), strict=False):
        source, target = cases.labels[number // size], cases.labels[number % size]
        count, distinct = int(counts[number]), int(in_cases[number])
        found.append(
            Edge(source[0], target[0], source[1], target[1], count, distinct, distinct / total, *_quantiles(group))
        )
    return sorted(found, key=lambda each: -each.count)


def _steps(cases: Cases, steps: _Steps, mine: Ints, felt: "_Felt") -> list[Step]:
    size, total = len(cases.labels), len(mine)
    counts = np.bincount(steps.code, minlength=size)
    _, in_cases = _grouped(steps.code, steps.case, size)
    starts = np.bincount(steps.code[steps.begins], minlength=size)
    ends = np.bincount(steps.code[steps.last], minlength=size)
    at = steps.follows
    alike = at[steps.code[at] == steps.code[at + 1]]
    repeats = np.bincount(steps.code[alike], minlength=size)
    entered = np.ones(len(steps.code), bool)
    entered[alike + 1] = False
    returning = _twice(steps.code[entered], steps.case[entered], size)
    drop_offs = _drop_offs(cases, steps, mine, in_cases)
    return [
        Step(
            *cases.labels[n],
            count=int(counts[n]),
            cases=int(in_cases[n]),
            share=int(in_cases[n]) / total,
            starts=int(starts[n]),
            ends=int(ends[n]),
            repeats=int(repeats[n]),
            returning_cases=int(returning[n]),
            drop_off=drop_offs.get(n),
            experience=felt.at(n),
        )
        for n in np.flatnonzero(counts).tolist()
    ]


def _twice(code: Ints, case: Ints, size: int) -> Ints:
    """Return in how many cases each code occurs more than once."""
    order, _ = _grouped(code, case, size)
    again = (code[order][1:] == code[order][:-1]) & (case[order][1:] == case[order][:-1])
    # The first repetition of a case counts, the further ones do not.
    first = again & ~np.append(False, again[:-1])
    return np.bincount(code[order][1:][first], minlength=size)


def _drop_offs(cases: Cases, steps: _Steps, mine: Ints, in_cases: Ints) -> dict[int, DropOff]:
    dropped = np.flatnonzero(cases.dropped[mine])
    lost, where = mine[dropped], steps.code[steps.last[dropped]]
    bad = cases.reading.history.bad[cases.order[cases.last[lost]]]
    after = cases.next_of(lost)
    found = {}
    for n, there in enumerate(_members(where, len(cases.labels))):
        if not len(there):
            continue
        count, by = len(there), int(in_cases[n])
        returned = there[after[there] >= 0]
        back, later = lost[returned], after[returned]
        places = np.bincount(cases.code[cases.order[cases.begins[later]]], minlength=len(cases.labels))
        most = heapq.nlargest(_TARGETS, np.flatnonzero(places).tolist(), key=lambda place: places[place])
        found[n] = DropOff(
            count,
            count / by,
            intervals.proportion(count, by),
            int(bad[there].sum()),
            len(back),
            *_quantiles((cases.started[later] - cases.ended[back]) / HOUR_US),
            [Target(*cases.labels[place], int(places[place])) for place in most],
        )
    return found


class _Felt:
    """How it felt at each step, and which moments stay in mind (see `domain.experience`)."""

    def __init__(self, felt: Floats, case: Ints, code: Ints, size: int, total: int) -> None:
        telling = ~np.isnan(felt)
        value, case, code = felt[telling], case[telling], code[telling]
        self._counts = np.bincount(code, minlength=size)
        self._totals, self._squares = added(code, value, size)
        # Of several moments of a case the last one assigned stays: that is the later one.
        last = np.full(total, -1, np.int64)
        last[case] = np.arange(len(value))
        heard = np.flatnonzero(last >= 0)
        strongest = np.zeros(total)
        np.maximum.at(strongest, case, np.abs(value))
        at_peak = np.flatnonzero(np.abs(value) == strongest[case])
        peak = np.full(total, -1, np.int64)
        peak[case[at_peak]] = at_peak
        self._peaks = np.bincount(code[peak[heard]], minlength=size)
        self._ends = np.bincount(code[last[heard]], minlength=size)
        self.lasting = float((value[peak[heard]] + value[last[heard]]).mean() / 2) if len(heard) else None

    def at(self, n: int) -> StepExperience | None:
        count, total, squares = int(self._counts[n]), float(self._totals[n] / UNITS), float(self._squares[n] / UNITS)
        if not count:
            return None
        interval = intervals.mean(count, total, squares, lowest=-1.0, highest=1.0)
        return StepExperience(total / count, count, interval, int(self._peaks[n]), int(self._ends[n]))


def _variants(cases: Cases, steps: _Steps, hours: Floats, limit: int) -> tuple[list[Variant], int]:
    """Return the most frequent ways, and how many different ones there are."""
    # A way as bytes, two for each step: compared and counted exactly, and ordered as its steps are.
    told = steps.code.astype(">u2").tobytes()
    bounds = zip((2 * steps.begins).tolist(), (2 * steps.last + 2).tolist(), strict=True)
    ways = [told[begin:end] for begin, end in bounds]
    counts = Counter(ways)
    most = heapq.nsmallest(limit, counts.items(), key=lambda item: (-item[1], len(item[0]), item[0]))
    numbers = {way: n for n, (way, _) in enumerate(most)}
    of = np.array([numbers.get(way, -1) for way in ways], np.int64)
    found = []
    for n, (way, count) in enumerate(most):
        labels = [cases.labels[step] for step in np.frombuffer(way, ">u2", MAX_NAMED_STEPS if len(way) > 200 else -1)]
        median, _ = _quantiles(hours[of == n])
        ids, names = [key for key, _ in labels], [name for _, name in labels]
        found.append(Variant(ids, names, len(way) // 2, count, count / len(hours), median))
    return found, len(counts)
