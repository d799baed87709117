"""The impact of single improvements: when they worked, from their streams; what changed, from the measures."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from msgspec.structs import replace

from recorrido.actions.v1.events import (
    ActionAccepted,
    ActionCompleted,
    ActionKind,
    ActionOpened,
    ActionReopened,
    ActionStarted,
    ActionState,
    ActionVerified,
    Impact,
    Target,
)
from services.actions.domain.action import Action, evolve, stream_of, unknown
from services.actions.domain.impact import MEASURES, MIN_DAYS, WATCHED_WEEKS, Samples, assess, fell
from services.actions.domain.rules import MAX_ID
from services.actions.views.history import REGISTRY
from services.actions.views.measures import Measured, Measures, Windows
from services.actions.views.queries import MAX_PAGE, ActionQueries, ActionQuery
from services.foundation.errors import RefusedError
from services.foundation.eventstore import EventStore
from services.foundation.rules import MAX_CUSTOMER_ID, Rules

WINDOW_DAYS = 28
MAX_COMPARED = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class ImpactQuery:
    """What to measure; what is not given is the action's own, or as usual. Raises InvalidError."""

    action_id: str
    target: Target | None = None
    window_days: int = 0
    comparison: Sequence[str] = ()
    compare: bool = True
    map_id: str = ""

    def __post_init__(self) -> None:
        rules = Rules()
        rules.text("action_id", self.action_id, MAX_ID, required=True)
        if self.target is not None:
            rules.require(self.target.metric in MEASURES, "target.metric", f"one of {', '.join(MEASURES)}")
            rules.text("target.touchpoint", self.target.touchpoint, MAX_ID)
            rules.text("target.need_path", self.target.need_path, MAX_CUSTOMER_ID)
            rules.text("target.map_id", self.target.map_id, MAX_ID)
        rules.text("map_id", self.map_id, MAX_ID)
        in_range = self.window_days == 0 or MIN_DAYS <= self.window_days <= 366
        rules.require(in_range, "window_days", f"between {MIN_DAYS} and 366")
        rules.require(len(self.comparison) <= MAX_COMPARED, "comparison_touchpoints", f"at most {MAX_COMPARED}")
        for index, each in enumerate(self.comparison[:MAX_COMPARED]):
            rules.text(f"comparison_touchpoints[{index}]", each, MAX_ID, required=True)
        rules.enforce()


@dataclass(frozen=True, slots=True)
class _Improvement:
    """An improvement and its turning points since it was last opened: None where there was none."""

    action: Action
    revision: int
    began: datetime | None
    done: datetime | None
    verified: ActionVerified | None

    @property
    def target(self) -> Target | None:
        """Its own, else the bad moments where it is about something."""
        about = self.action.touchpoint or self.action.need_path
        implied = Target(metric="bad_moments", touchpoint=self.action.touchpoint, need_path=self.action.need_path)
        return self.action.target or (implied if about else None)


@dataclass(frozen=True, slots=True)
class Fall:
    """The measure of a verified improvement fell. `verification` is the request_id of what was verified."""

    action_id: str
    revision: int
    verification: str
    impact: Impact


class Impacts:
    """Measures single improvements."""

    def __init__(self, store: EventStore, measures: Measures, queries: ActionQueries) -> None:
        self._store = store
        self._measures = measures
        self._queries = queries

    async def get(self, query: ImpactQuery, now: datetime) -> Impact:
        """Return what changed.

        Raises:
            NotFoundError: there is no such action, or no such journey map.
            InvalidError: a touchpoint to compare with is one of other maps than the target's.
            RefusedError: NOT_AN_IMPROVEMENT, or NO_TARGET: neither the action nor the query tells of a measure.
            UnavailableError: the store or PostgreSQL does not answer.
        """
        found = await self._load(query.action_id)
        if found.action.kind is not ActionKind.IMPROVEMENT:
            raise RefusedError("NOT_AN_IMPROVEMENT", "of a recovery the customer's answer tells whether it helped")
        target = query.target or found.target
        if target is None or target.metric not in MEASURES:
            raise RefusedError("NO_TARGET", "the improvement tells of no measure, touchpoint or need; ask for one")
        target = replace(target, map_id=query.map_id or target.map_id)
        done = found.done or now
        days = query.window_days or WINDOW_DAYS
        windows = Windows.around(min(found.began or done, done), done, now, days)
        comparison = (query.comparison or None) if query.compare else ()
        measured = await self._measures.measure(target, windows, comparison)
        _check_compared(query.comparison, measured, measured.map_id or target.map_id)
        # What is recorded of it stays what it was, whatever map is published later.
        target = replace(target, map_id=measured.map_id)
        impact = assess(target, measured.samples, too_early=_too_early(found, windows))
        return replace(
            impact,
            other_map_ids=tuple(measured.other_map_ids),
            comparison_touchpoints=tuple(query.comparison) if impact.comparison_after else (),
            before_from=windows.before_from,
            before_to=windows.before_to,
            after_from=windows.after_from,
            after_to=windows.after_to,
            position=str(measured.position),
        )

    async def verified(self) -> Sequence[str]:
        """Return the ids of the improvements that are verified. Raises UnavailableError."""
        query = ActionQuery(state=ActionState.VERIFIED, kind=ActionKind.IMPROVEMENT, page_size=MAX_PAGE)
        ids: list[str] = []
        while True:
            page = await self._queries.list(query)
            ids += [each.state.action_id for each in page.actions]
            if not page.next_page_token:
                return ids
            query = dataclasses.replace(query, page_token=page.next_page_token)

    async def fall(self, action_id: str, now: datetime) -> Fall | None:
        """Return the fall of a verified improvement as of its last whole week, for so long as it is watched.

        Raises:
            NotFoundError: there is no such action.
            UnavailableError: the store or PostgreSQL does not answer.
        """
        found = await self._load(action_id)
        verified = found.verified
        if found.action.state is not ActionState.VERIFIED or verified is None or verified.occurred_at is None:
            return None
        weeks = int((now - verified.occurred_at) / timedelta(weeks=1))
        impact = verified.impact
        if not 1 <= weeks <= WATCHED_WEEKS or impact is None or impact.target is None:
            return None
        # The latest whole weeks, four at most, all of them after the verification.
        until = verified.occurred_at + timedelta(weeks=weeks)
        since = max(verified.occurred_at, until - timedelta(weeks=4))
        windows = Windows.around(since, since, until, 28)
        if impact.after_from is not None and impact.after_to is not None:
            windows = dataclasses.replace(windows, before_from=impact.after_from, before_to=impact.after_to)
        comparison = impact.comparison_touchpoints or None
        measured = await self._measures.measure(impact.target, windows, comparison)
        fallen = fell(_as_heard_now(impact, measured.samples), measured.samples)
        if fallen is None:
            return None
        fallen = replace(
            fallen,
            before_from=impact.after_from,
            before_to=impact.after_to,
            after_from=windows.after_from,
            after_to=windows.after_to,
            position=str(measured.position),
        )
        return Fall(action_id, found.revision, verified.request_id, fallen)

    async def _load(self, action_id: str) -> _Improvement:
        state, revision = Action(), -1
        began = done = verified = None
        for recorded in await self._store.read(stream_of(action_id)):
            revision = recorded.revision
            event = REGISTRY.read(recorded)
            if event is None:
                continue
            state = evolve(state, event)
            match event:
                case ActionOpened() | ActionReopened():
                    began = done = verified = None
                case ActionAccepted() | ActionStarted():
                    began = event.occurred_at
                case ActionCompleted():
                    done = event.occurred_at
                case ActionVerified():
                    verified = event
                case _:
                    pass
        if state.kind is ActionKind.UNSPECIFIED:
            raise unknown(action_id)
        return _Improvement(state, revision, began, done, verified)


def _as_heard_now(verified: Impact, measured: Samples) -> Impact:
    """Return what was verified, as it is understood now, so that another analysis of the same words is no fall."""
    if verified.after_from is None or verified.after_to is None:
        return verified
    elsewhere = measured.comparison_before if verified.comparison_after is not None else None
    return replace(verified, after=measured.before, comparison_after=elsewhere)


def _check_compared(comparison: Sequence[str], measured: Measured, map_id: str) -> None:
    rules = Rules()
    for index, each in enumerate(comparison):
        if having := measured.strangers.get(each):
            place, others = f"comparison_touchpoints[{index}]", ", ".join(having)
            rules.require(
                False, place, f"of the target's map, {map_id}: {each} is a touchpoint of {others} only (map_id)"
            )
    rules.enforce()


def _too_early(found: _Improvement, windows: Windows) -> str:
    if found.done is None:
        return "it is not done yet"
    if windows.days_after < MIN_DAYS:
        return f"it was done {windows.days_after:.1f} days ago, and it takes {MIN_DAYS}"
    return ""
