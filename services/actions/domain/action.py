"""An action as its events tell it, and what may be done to it: the life cycles of recoveries and improvements.

`decide` holds a command against LIFE_CYCLES, which is the one place that tells what is allowed when, and nothing else.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from types import MappingProxyType
from typing import Any

from msgspec import structs

from recorrido.actions.v1.events import (
    ActionAccepted,
    ActionAssigned,
    ActionCommented,
    ActionCompleted,
    ActionDeclined,
    ActionDueSoon,
    ActionEscalated,
    ActionKind,
    ActionLinked,
    ActionOpened,
    ActionOverdue,
    ActionPrioritized,
    ActionReopened,
    ActionRescheduled,
    ActionResult,
    ActionStarted,
    ActionState,
    ActionVerified,
    CustomerContacted,
    Deadline,
    DeadlineKind,
    Obligation,
    Priority,
    RemedyOffered,
    SignalJoined,
    Target,
)
from services.actions.domain.commands import (
    TIMER,
    AcceptAction,
    ActionEvent,
    AssignAction,
    Change,
    Command,
    CommentAction,
    CompleteAction,
    DeclineAction,
    JoinSignal,
    LinkActions,
    LinkByCause,
    OfferRemedy,
    OpenAction,
    OpenImprovement,
    OpenRecovery,
    PassDeadline,
    PrioritizeAction,
    RecordContact,
    ReopenAction,
    RescheduleAction,
    StartAction,
    VerifyAction,
    passing,
)
from services.actions.domain.deadlines import in_order
from services.foundation.errors import DiffersError, NotFoundError, RefusedError
from services.foundation.events import Event, stream_name
from services.foundation.rules import Rules

S = ActionState
Transitions = Mapping[tuple[ActionState, type[Change]], ActionState]


def _staying(command: type[Change], *states: ActionState) -> Transitions:
    return {(state, command): state for state in states}


_EVERYWHERE = (S.OPEN, S.ACCEPTED, S.IN_PROGRESS, S.REMEDIED, S.COMPLETED, S.DECLINED)

#: What may be done in each state of a recovery, and where it leads.
RECOVERY: Transitions = MappingProxyType(
    {
        (S.OPEN, AcceptAction): S.ACCEPTED,
        (S.OPEN, DeclineAction): S.DECLINED,
        (S.ACCEPTED, DeclineAction): S.DECLINED,
        (S.ACCEPTED, StartAction): S.IN_PROGRESS,
        (S.ACCEPTED, RecordContact): S.IN_PROGRESS,
        **_staying(RecordContact, S.IN_PROGRESS, S.REMEDIED),
        (S.ACCEPTED, OfferRemedy): S.REMEDIED,
        (S.IN_PROGRESS, OfferRemedy): S.REMEDIED,
        (S.REMEDIED, OfferRemedy): S.REMEDIED,
        (S.ACCEPTED, CompleteAction): S.COMPLETED,
        (S.IN_PROGRESS, CompleteAction): S.COMPLETED,
        (S.REMEDIED, CompleteAction): S.COMPLETED,
        (S.COMPLETED, ReopenAction): S.ACCEPTED,
        (S.DECLINED, ReopenAction): S.OPEN,
        **_staying(AssignAction, S.OPEN, S.ACCEPTED, S.IN_PROGRESS, S.REMEDIED),
        **_staying(PrioritizeAction, S.OPEN, S.ACCEPTED, S.IN_PROGRESS, S.REMEDIED),
        **_staying(RescheduleAction, S.OPEN, S.ACCEPTED, S.IN_PROGRESS, S.REMEDIED),
        **_staying(CommentAction, *_EVERYWHERE),
        **_staying(LinkActions, *_EVERYWHERE),
    }
)

#: The same of an improvement.
IMPROVEMENT: Transitions = MappingProxyType(
    {
        (S.OPEN, AcceptAction): S.ACCEPTED,
        (S.OPEN, DeclineAction): S.DECLINED,
        (S.ACCEPTED, DeclineAction): S.DECLINED,
        (S.ACCEPTED, StartAction): S.IN_PROGRESS,
        (S.IN_PROGRESS, CompleteAction): S.COMPLETED,
        (S.COMPLETED, VerifyAction): S.VERIFIED,
        (S.COMPLETED, ReopenAction): S.ACCEPTED,
        (S.VERIFIED, ReopenAction): S.ACCEPTED,
        (S.DECLINED, ReopenAction): S.OPEN,
        **_staying(AssignAction, S.OPEN, S.ACCEPTED, S.IN_PROGRESS, S.COMPLETED),
        **_staying(PrioritizeAction, S.OPEN, S.ACCEPTED, S.IN_PROGRESS, S.COMPLETED),
        **_staying(RescheduleAction, S.OPEN, S.ACCEPTED, S.IN_PROGRESS),
        **_staying(CommentAction, S.OPEN, S.ACCEPTED, S.IN_PROGRESS, S.COMPLETED, S.VERIFIED, S.DECLINED),
    }
)

LIFE_CYCLES: Mapping[ActionKind, Transitions] = {
    ActionKind.RECOVERY: RECOVERY,
    ActionKind.IMPROVEMENT: IMPROVEMENT,
    ActionKind.UNSPECIFIED: {},
}
#: States in which nothing has to be done any more.
CLOSED: Mapping[ActionKind, Sequence[ActionState]] = {
    ActionKind.RECOVERY: (S.COMPLETED, S.DECLINED),
    ActionKind.IMPROVEMENT: (S.VERIFIED, S.DECLINED),
    ActionKind.UNSPECIFIED: (),
}


# -- state ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """An action as its events tell it; UNSPECIFIED while it does not exist. Times are UTC.

    `deadlines` are those that are still to come, `late` the obligations that were not met in time and still stand.
    `requests` maps each request_id that changed it to the event it came to, which tells a repetition from a new
    command.
    """

    action_id: str = ""
    kind: ActionKind = ActionKind.UNSPECIFIED
    state: ActionState = ActionState.UNSPECIFIED
    signal_id: str = ""
    customer_id: str = ""
    title: str = ""
    reasons: tuple[str, ...] = ()
    touchpoint: str = ""
    need_path: str = ""
    owner: str = ""
    result: ActionResult = ActionResult.UNSPECIFIED
    opened_at: datetime | None = None
    updated_at: datetime | None = None
    closed_at: datetime | None = None
    priority: Priority = Priority.NORMAL
    accept_by: datetime | None = None
    due_at: datetime | None = None
    deadlines: tuple[Deadline, ...] = ()
    late: tuple[Obligation, ...] = ()
    escalated_to: str = ""
    improvement_id: str = ""
    playbook_id: str = ""
    playbook_version: int = 0
    playbook_rule: str = ""
    cause_id: str = ""
    target: Target | None = None
    reopened: int = 0
    rescheduled: int = 0
    requests: Mapping[str, ActionEvent] = field(default_factory=dict)

    @property
    def closed(self) -> bool:
        return self.state in CLOSED[self.kind]

    @property
    def next_due(self) -> datetime | None:
        """When it has to be accepted, while nobody did, or completed; None: whenever, or it was."""
        if self.state in (S.COMPLETED, S.VERIFIED, S.DECLINED):
            return None
        moments = (self.accept_by if self.state is S.OPEN else None, self.due_at)
        return min((at for at in moments if at is not None), default=None)


def allowed(kind: ActionKind, state: ActionState) -> Sequence[str]:
    """Return the names of what people may ask for in `state`."""
    return [command.__name__ for at, command in LIFE_CYCLES[kind] if at is state]


def evolve(state: Action, event: ActionEvent) -> Action:
    """Return the state after `event`; a type it does not know changes nothing."""
    match event:
        case ActionOpened():
            return _opened(event)
        case ActionDueSoon() | ActionOverdue() | ActionEscalated():
            return replace(_passed(state, event), updated_at=event.occurred_at)
        case SignalJoined() | ActionCommented():
            after = state
        case ActionAssigned():
            after = replace(state, owner=event.owner)
        case ActionPrioritized():
            after = replace(state, priority=event.priority)
        case ActionRescheduled():
            after = _rescheduled(state, event)
        case ActionLinked():
            after = replace(state, improvement_id=event.improvement_id)
        case _:
            moved = _moved(state, event)
            if moved is None:
                return state
            after = moved
    return replace(after, updated_at=event.occurred_at, requests={**state.requests, event.request_id: event})


def _opened(event: ActionOpened) -> Action:
    return Action(
        action_id=event.action_id,
        kind=event.kind,
        state=ActionState.OPEN,
        signal_id=event.signal_id,
        customer_id=event.customer_id,
        title=event.title,
        reasons=event.reasons,
        touchpoint=event.touchpoint,
        need_path=event.need_path,
        owner=event.owner,
        opened_at=event.occurred_at,
        updated_at=event.occurred_at,
        # Those opened before there were priorities have none.
        priority=Priority.NORMAL if event.priority is Priority.UNSPECIFIED else event.priority,
        accept_by=event.accept_by,
        due_at=event.due_at,
        deadlines=event.deadlines,
        improvement_id=event.improvement_id,
        playbook_id=event.playbook_id,
        playbook_version=event.playbook_version,
        playbook_rule=event.playbook_rule,
        cause_id=event.cause_id,
        target=event.target,
        requests={event.request_id: event},
    )


def _moved(state: Action, event: ActionEvent) -> Action | None:  # noqa: PLR0911 - one per type
    """Return the state after an event of the life cycle; None for what is none.

    The event alone tells where it leads: what was allowed once stays readable under another table.
    """
    match event:
        case ActionAccepted():
            return _met(replace(state, state=S.ACCEPTED, owner=event.owner), Obligation.ACCEPTANCE)
        case ActionDeclined():
            return _closed(replace(state, state=S.DECLINED), event.occurred_at)
        case ActionStarted():
            return replace(state, state=S.IN_PROGRESS)
        case CustomerContacted():
            return replace(state, state=S.REMEDIED if state.state is S.REMEDIED else S.IN_PROGRESS)
        case RemedyOffered():
            return replace(state, state=S.REMEDIED)
        case ActionCompleted():
            after = replace(state, state=S.COMPLETED, result=event.result)
            return _closed(after, event.occurred_at if after.closed else None)
        case ActionVerified():
            return _closed(replace(state, state=S.VERIFIED), event.occurred_at)
        case ActionReopened():
            return replace(
                state,
                state=S.OPEN if state.state is S.DECLINED else S.ACCEPTED,
                result=ActionResult.UNSPECIFIED,
                closed_at=None,
                accept_by=event.accept_by,
                due_at=event.due_at,
                deadlines=event.deadlines,
                late=(),
                escalated_to="",
                reopened=state.reopened + 1,
            )
        case _:
            return None


def _met(state: Action, obligation: Obligation) -> Action:
    return replace(
        state,
        deadlines=tuple(d for d in state.deadlines if d.obligation is not obligation),
        late=tuple(each for each in state.late if each is not obligation),
    )


def _rescheduled(state: Action, event: ActionRescheduled) -> Action:
    was_late = Obligation.RESOLUTION in state.late
    met = _met(state, Obligation.RESOLUTION)
    return replace(
        met,
        due_at=event.due_at,
        deadlines=in_order([*met.deadlines, *event.deadlines]),
        escalated_to="" if was_late else state.escalated_to,
        rescheduled=state.rescheduled + 1,
    )


def _closed(state: Action, at: datetime | None) -> Action:
    return replace(state, deadlines=(), late=(), closed_at=at)


def _passed(state: Action, event: ActionDueSoon | ActionOverdue | ActionEscalated) -> Action:
    after = replace(state, deadlines=tuple(d for d in state.deadlines if d.deadline_id != event.deadline_id))
    match event:
        case ActionOverdue():
            return replace(after, late=(*after.late, event.obligation))
        case ActionEscalated():
            return replace(after, escalated_to=event.escalated_to)
        case _:
            return after


# -- decisions -----------------------------------------------------------------------------------------------------


def decide(command: Command, state: Action) -> Sequence[ActionEvent]:
    """Return what `command` changes: nothing where it repeats what was done.

    Raises:
        NotFoundError: there is no such action.
        RefusedError: ILLEGAL_TRANSITION; message and details tell the present state and what is allowed in it.
        DiffersError: REQUEST_ID_REUSED; the request_id was used for something else.
        InvalidError: it is to be done by a time that is over.
    """
    there = state.state is not ActionState.UNSPECIFIED
    match command:
        case OpenRecovery() | OpenImprovement() if there:
            # One per signal or cause, even when a later version of this code would word it otherwise.
            return []
        case PassDeadline():
            return _pass(command, state) if there else []
        case LinkByCause():
            free = there and not state.improvement_id and command.request_id not in state.requests
            return [command.event()] if free else []
        case JoinSignal():
            news = there and not state.closed and command.request_id not in state.requests
            return [command.event()] if news else []
        case _:
            return _decide_for_people(command, state)


def _decide_for_people(
    command: OpenAction | OpenRecovery | OpenImprovement | Change, state: Action
) -> Sequence[ActionEvent]:
    dated = state.reopened + state.rescheduled + 2
    event: ActionEvent
    match command:
        case ReopenAction():
            event = command.event(dated, declined=state.state is S.DECLINED)
        case RescheduleAction():
            event = command.event(dated)
        case _:
            event = command.event()
    done = state.requests.get(command.request_id)
    if done is not None:
        if _asks_for(command, event, done):
            return []
        raise DiffersError(
            "REQUEST_ID_REUSED",
            f"request_id {command.request_id} was used for another {type(done).__name__} of action {state.action_id}",
            {"action_id": state.action_id, "event": type(done).__name__},
        )
    # Only now: a repetition may come when the time that was set is over.
    if isinstance(command, OpenAction | ReopenAction | RescheduleAction) and command.due_at is not None:
        rules = Rules()
        rules.require(command.due_at > command.occurred_at, "due_at", "later than now")
        rules.enforce()
    if isinstance(command, Change):
        if (state.state, type(command)) not in LIFE_CYCLES[state.kind]:
            raise _refusal(command, state)
        if isinstance(command, VerifyAction) and command.contradicted:
            raise RefusedError("GOT_WORSE", f"{command.contradicted} Reopen it, or verify it despite that.")
    elif state.state is not ActionState.UNSPECIFIED:
        raise _refusal(command, state)
    return [event]


def _asks_for(command: Command, event: ActionEvent, done: ActionEvent) -> bool:
    """Return whether `done` is what `command` asks for, but for when it was asked, and what follows from that."""
    if type(event) is not type(done):
        return False
    same: dict[str, Any] = {"occurred_at": done.occurred_at}
    if isinstance(done, ActionVerified | ActionReopened):
        same["impact"] = done.impact
    if isinstance(event, ActionOpened | ActionReopened | ActionRescheduled):
        assert isinstance(done, ActionOpened | ActionReopened | ActionRescheduled)
        same["deadlines"] = done.deadlines
        if isinstance(command, ReopenAction) and isinstance(done, ActionReopened):
            same["accept_by"] = done.accept_by
            if command.due_at is None:
                same["due_at"] = done.due_at
    return structs.replace(event, **same) == done


def _pass(command: PassDeadline, state: Action) -> Sequence[ActionEvent]:
    deadline = next((d for d in state.deadlines if d.deadline_id == command.deadline_id), None)
    if deadline is None or deadline.at is None or deadline.at > command.now:
        return []
    common = passing(state.action_id, deadline)
    match deadline.kind:
        case DeadlineKind.DUE_SOON:
            return [ActionDueSoon(**common)]
        case DeadlineKind.OVERDUE:
            return [ActionOverdue(**common)]
        case DeadlineKind.ESCALATION:
            return list(_escalate(deadline, state))
        case _:
            return []


def _escalate(deadline: Deadline, state: Action) -> Iterator[ActionEvent]:
    yield ActionEscalated(**passing(state.action_id, deadline), escalated_to=deadline.escalate_to)
    if deadline.reassign and deadline.escalate_to != state.owner:
        yield ActionAssigned(
            action_id=state.action_id,
            actor=TIMER,
            owner=deadline.escalate_to,
            reason=f"{deadline.obligation.name.lower()} was due {deadline.due_at:%Y-%m-%d %H:%M} UTC",
            request_id=deadline.deadline_id,
            occurred_at=deadline.at,
        )


def _refusal(command: OpenAction | OpenRecovery | OpenImprovement | Change, state: Action) -> Exception:
    if state.state is ActionState.UNSPECIFIED:
        return unknown(command.action_id)
    name = state.state.name
    may = allowed(state.kind, state.state)
    owner = f", its owner is {state.owner!r}" if state.owner else ""
    return RefusedError(
        "ILLEGAL_TRANSITION",
        f"{type(command).__name__} is not allowed: {state.kind.name.lower()} {state.action_id} is {name}{owner};"
        f" allowed now: {', '.join(may)}",
        {"action_id": state.action_id, "state": name, "allowed": ",".join(may), "owner": state.owner},
    )


def unknown(action_id: str) -> NotFoundError:
    return NotFoundError("ACTION_NOT_FOUND", f"there is no action {action_id}", {"action_id": action_id})


def stream_of(action_id: str) -> str:
    return stream_name("action", action_id)


class ActionDecider:
    """The functions above, as `foundation.execute` asks for them."""

    types: Sequence[type[Event]] = (
        ActionOpened,
        ActionAccepted,
        ActionDeclined,
        ActionAssigned,
        ActionPrioritized,
        ActionRescheduled,
        ActionStarted,
        CustomerContacted,
        RemedyOffered,
        ActionCompleted,
        ActionVerified,
        ActionReopened,
        ActionCommented,
        ActionLinked,
        SignalJoined,
        ActionDueSoon,
        ActionOverdue,
        ActionEscalated,
    )

    def initial(self) -> Action:
        return Action()

    def evolve(self, state: Action, event: ActionEvent) -> Action:
        return evolve(state, event)

    def decide(self, command: Command, state: Action) -> Sequence[ActionEvent]:
        return decide(command, state)


# -- as drawings ---------------------------------------------------------------------------------------------------


def diagram(kind: ActionKind) -> str:
    """Return the life cycle as a Mermaid state diagram (https://mermaid.js.org/syntax/stateDiagram.html)."""
    ways: dict[tuple[str, str], list[str]] = {}
    for (at, command), to in LIFE_CYCLES[kind].items():
        if at is not to:
            ways.setdefault((at.name, to.name), []).append(command.__name__)
    lines = ["stateDiagram-v2", "    [*] --> OPEN: OpenAction, a signal"]
    lines += [f"    {at} --> {to}: {', '.join(commands)}" for (at, to), commands in ways.items()]
    lines += [f"    {state.name} --> [*]" for state in CLOSED[kind]]
    return "\n".join(lines)


def table(kind: ActionKind) -> str:
    """Return what may be done in each state as a Markdown table."""
    lines = ["| state | leads on | stays as it is |", "| --- | --- | --- |"]
    for state in ActionState:
        ways = {command: to for (at, command), to in LIFE_CYCLES[kind].items() if at is state}
        if ways:
            on = [f"`{command.__name__}` → `{to.name}`" for command, to in ways.items() if to is not state]
            stay = [f"`{command.__name__}`" for command, to in ways.items() if to is state]
            lines.append(f"| `{state.name}` | {', '.join(on)} | {', '.join(stay)} |")
    return "\n".join(lines)
