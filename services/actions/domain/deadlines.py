"""When an action has to be accepted and resolved, and what is recorded on the way there.

The moments are reckoned once, when the action is opened or reopened, and stand in that event. So a deadline cannot
move when a calendar does, and what a timer has to do is to compare two moments.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from recorrido.actions.v1.events import Deadline, DeadlineKind, EscalationStep, Obligation, Period, ServiceLevel
from services.actions.domain.calendars import BusinessTime

#: Of a due time that a person sets: it is told when a fifth of the time is left, but no sooner than a day before.
REMIND_AT = 0.8
REMIND_NO_SOONER_THAN = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Schedule:
    """The due times of an action (None: whenever) and its deadlines, UTC, in the order in which they come."""

    accept_by: datetime | None = None
    due_at: datetime | None = None
    deadlines: Sequence[Deadline] = ()


def scheduled(start: datetime, level: ServiceLevel | None, time: BusinessTime, *, opening: int = 1) -> Schedule:
    """Return what a service level comes to for an action opened at `start`, for the `opening`-th time."""
    if level is None:
        return Schedule()
    within = {Obligation.ACCEPTANCE: level.accept_within, Obligation.RESOLUTION: level.resolve_within}
    due = {obligation: time.later(start, period) for obligation, period in within.items() if period is not None}
    deadlines: list[Deadline] = []
    for obligation, due_at in due.items():
        if level.remind_before is not None:
            remind_at = time.earlier(due_at, level.remind_before)
            # Who was just given something need not be reminded of it.
            if remind_at > start:
                deadlines.append(_deadline(DeadlineKind.DUE_SOON, obligation, remind_at, due_at, opening=opening))
        deadlines.append(_deadline(DeadlineKind.OVERDUE, obligation, due_at, due_at, opening=opening))
        steps = (step for step in level.escalations if step.obligation is obligation)
        deadlines.extend(_escalation(number, step, due_at, time, opening) for number, step in enumerate(steps, 1))
    return Schedule(due.get(Obligation.ACCEPTANCE), due.get(Obligation.RESOLUTION), in_order(deadlines))


def by_hand(start: datetime, due_at: datetime | None, *, opening: int = 1) -> Schedule:
    """Return what a due time that a person sets comes to."""
    if due_at is None:
        return Schedule()
    remind_at = max(start + (due_at - start) * REMIND_AT, due_at - REMIND_NO_SOONER_THAN)
    obligation = Obligation.RESOLUTION
    reminder = _deadline(DeadlineKind.DUE_SOON, obligation, remind_at, due_at, opening=opening)
    overdue = _deadline(DeadlineKind.OVERDUE, obligation, due_at, due_at, opening=opening)
    return Schedule(None, due_at, (reminder, overdue))


def rescheduled(
    start: datetime, due_at: datetime, level: ServiceLevel | None, time: BusinessTime | None, *, opening: int
) -> Schedule:
    """Return the same with the escalations of a service level behind it."""
    plain = by_hand(start, due_at, opening=opening)
    if level is None or time is None:
        return plain
    steps = (step for step in level.escalations if step.obligation is Obligation.RESOLUTION)
    escalations = [_escalation(number, step, due_at, time, opening) for number, step in enumerate(steps, 1)]
    return Schedule(None, due_at, in_order([*plain.deadlines, *escalations]))


def in_order(deadlines: Iterable[Deadline]) -> tuple[Deadline, ...]:
    """Return deadlines in the order in which they come."""

    def at(deadline: Deadline) -> datetime:
        assert deadline.at is not None
        return deadline.at

    return tuple(sorted(deadlines, key=at))


def _id(opening: int, obligation: Obligation, kind: DeadlineKind, number: int = 1) -> str:
    return f"{opening}:{obligation.name.lower()}:{kind.name.lower()}:{number}"


def _deadline(kind: DeadlineKind, obligation: Obligation, at: datetime, due_at: datetime, *, opening: int) -> Deadline:
    return Deadline(deadline_id=_id(opening, obligation, kind), kind=kind, obligation=obligation, at=at, due_at=due_at)


def _escalation(number: int, step: EscalationStep, due_at: datetime, time: BusinessTime, opening: int) -> Deadline:
    kind, after = DeadlineKind.ESCALATION, step.after or Period()
    # Without any delay it is told with the very moment, also where that is when people go home.
    at = time.later(due_at, after) if after.days or after.minutes else due_at
    return Deadline(
        deadline_id=_id(opening, step.obligation, kind, number),
        kind=kind,
        obligation=step.obligation,
        at=at,
        due_at=due_at,
        escalate_to=step.to,
        reassign=step.reassign,
    )
