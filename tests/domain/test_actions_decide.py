"""The life cycles of actions: given what happened, when somebody asks, then this is recorded or refused."""

from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recorrido.actions.v1.events import (
    ActionAccepted,
    ActionAssigned,
    ActionCommented,
    ActionCompleted,
    ActionDueSoon,
    ActionEscalated,
    ActionKind,
    ActionOpened,
    ActionOverdue,
    ActionResult,
    ActionState,
    ContactChannel,
    Deadline,
    DeadlineKind,
    EscalationStep,
    Obligation,
    Period,
    Priority,
    RemedyKind,
    ServiceLevel,
)
from recorrido.journey.v1.events import SignalRaised
from services.actions.domain.action import (
    CLOSED,
    LIFE_CYCLES,
    Action,
    ActionDecider,
    allowed,
    decide,
    evolve,
)
from services.actions.domain.calendars import BusinessTime
from services.actions.domain.commands import (
    CHANGES,
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
    OfferRemedy,
    OpenAction,
    OpenRecovery,
    PassDeadline,
    PrioritizeAction,
    RecordContact,
    ReopenAction,
    RescheduleAction,
    StartAction,
    Terms,
    VerifyAction,
)
from services.actions.domain.deadlines import Schedule
from services.foundation.errors import (
    DiffersError,
    InvalidError,
    NotFoundError,
    RecorridoError,
    RefusedError,
    Violation,
)
from services.journey.views import projection, timeline
from services.journey.views.projection import JourneyProjection

NOW = datetime(2026, 3, 1, 9, 30, tzinfo=UTC)
LATER = NOW + timedelta(hours=1)
RECOVERY, IMPROVEMENT = ActionKind.RECOVERY, ActionKind.IMPROVEMENT
S = ActionState


def opening(request_id: str = "r-open", at: datetime = NOW, **changes: Any) -> OpenAction:
    fields: dict[str, Any] = {"kind": RECOVERY, "customer_id": "ana", "title": "Call Ana", "actor": "maja"}
    return OpenAction(**{**fields, "request_id": request_id, "occurred_at": at, **changes})


ID = opening().action_id

#: What each command asks for, besides who, when and of what.
ASKED: dict[type[Change], dict[str, Any]] = {
    AcceptAction: {"actor": "luka"},
    DeclineAction: {"reason": "no ground"},
    AssignAction: {"owner": "tina"},
    PrioritizeAction: {"priority": Priority.URGENT},
    RescheduleAction: {"due_at": NOW + timedelta(days=30), "reason": "parts are on order"},
    StartAction: {},
    RecordContact: {"channel": ContactChannel.PHONE, "reached": True},
    OfferRemedy: {"remedy": RemedyKind.REFUND},
    CompleteAction: {"result": ActionResult.HELPED, "note": "she is glad"},
    VerifyAction: {"reason": "CSAT is up"},
    ReopenAction: {"reason": "late again"},
    CommentAction: {"text": "hm"},
    LinkActions: {"improvement_id": "i-1"},
}


def asking(command: type[Change], request_id: str = "", at: datetime = NOW, **changes: Any) -> Any:
    common = {"action_id": ID, "actor": "luka", "request_id": request_id or command.__name__, "occurred_at": at}
    return command(**{**common, **ASKED[command], **changes})


def recovering(signal_id: str = "s-1", at: datetime = NOW, **changes: Any) -> OpenRecovery:
    fields: dict[str, Any] = {"signal_id": signal_id, "customer_id": "ana", "rule": "bad_moment", "rule_version": 1}
    return OpenRecovery(signal=SignalRaised(**{**fields, **changes}), occurred_at=at)


def fold(events: Sequence[Any], state: Action | None = None) -> Action:
    state = state or Action()
    for event in events:
        state = evolve(state, event)
    return state


#: The shortest way to each state.
WAYS: dict[ActionKind, dict[ActionState, list[type[Change]]]] = {
    RECOVERY: {
        S.OPEN: [],
        S.ACCEPTED: [AcceptAction],
        S.IN_PROGRESS: [AcceptAction, RecordContact],
        S.REMEDIED: [AcceptAction, RecordContact, OfferRemedy],
        S.COMPLETED: [AcceptAction, CompleteAction],
        S.DECLINED: [DeclineAction],
    },
    IMPROVEMENT: {
        S.OPEN: [],
        S.ACCEPTED: [AcceptAction],
        S.IN_PROGRESS: [AcceptAction, StartAction],
        S.COMPLETED: [AcceptAction, StartAction, CompleteAction],
        S.VERIFIED: [AcceptAction, StartAction, CompleteAction, VerifyAction],
        S.DECLINED: [DeclineAction],
    },
}


def at_state(kind: ActionKind, state: ActionState, **opened: Any) -> Action:
    customer = "ana" if kind is RECOVERY else ""
    found = fold([opening(kind=kind, customer_id=customer, **opened).event()])
    for command in WAYS[kind][state]:
        found = fold(decide(asking(command), found), found)
    assert found.state is state
    return found


PLACES = [(kind, state) for kind, ways in WAYS.items() for state in ways]
EVERYTHING = [(kind, state, command) for kind, state in PLACES for command in CHANGES]
LEGAL = [each for each in EVERYTHING if each[1:] in LIFE_CYCLES[each[0]]]
ILLEGAL = [each for each in EVERYTHING if each[1:] not in LIFE_CYCLES[each[0]]]


def test_every_state_and_command_of_the_tables_is_tried_here() -> None:
    assert len(LEGAL) == sum(map(len, LIFE_CYCLES.values()))
    assert set(ASKED) == set(CHANGES) == {command for ways in LIFE_CYCLES.values() for _, command in ways}


# -- the way it goes -----------------------------------------------------------------------------------------------


def test_opening_tells_everything_given() -> None:
    command = opening(
        reasons=("late", "rude"),
        touchpoint="delivery",
        need_path="delivery/speed",
        priority=Priority.HIGH,
        owner="tina",
        improvement_id="i-1",
    )
    assert decide(command, Action()) == [
        ActionOpened(
            action_id=command.action_id,
            kind=RECOVERY,
            customer_id="ana",
            title="Call Ana",
            reasons=("late", "rude"),
            touchpoint="delivery",
            need_path="delivery/speed",
            actor="maja",
            request_id="r-open",
            occurred_at=NOW,
            priority=Priority.HIGH,
            owner="tina",
            improvement_id="i-1",
        )
    ]


@pytest.mark.parametrize(("kind", "at", "command"), LEGAL)
def test_each_transition_leads_where_the_table_says(kind: ActionKind, at: ActionState, command: type[Change]) -> None:
    before = at_state(kind, at)
    (event,) = decide(asking(command, "r-new", LATER), before)
    after = evolve(before, event)
    assert after.state is LIFE_CYCLES[kind][at, command]
    assert after.updated_at == LATER
    assert (after.closed_at is not None) is after.closed is (after.state in CLOSED[kind])


def test_a_recovery_from_contact_over_remedy_to_a_glad_customer() -> None:
    state = at_state(RECOVERY, S.OPEN)
    seen = []
    for command in (AcceptAction, RecordContact, OfferRemedy, CompleteAction):
        state = fold(decide(asking(command), state), state)
        seen.append(state.state)
    assert seen == [S.ACCEPTED, S.IN_PROGRESS, S.REMEDIED, S.COMPLETED]
    assert (state.owner, state.result, state.closed) == ("luka", ActionResult.HELPED, True)


def test_an_improvement_that_is_done_is_not_closed_before_it_is_verified() -> None:
    done = at_state(IMPROVEMENT, S.COMPLETED)
    assert not done.closed
    assert fold(decide(asking(VerifyAction, at=LATER), done), done).closed_at == LATER


def test_what_is_reopened_has_an_owner_but_no_result() -> None:
    state = at_state(RECOVERY, S.COMPLETED)
    again = fold(decide(asking(ReopenAction), state), state)
    assert (again.state, again.owner, again.result, again.reopened) == (
        S.ACCEPTED,
        "luka",
        ActionResult.UNSPECIFIED,
        1,
    )


def test_what_was_allowed_once_stays_readable() -> None:
    # An improvement could be completed without being started.
    state = at_state(IMPROVEMENT, S.ACCEPTED)
    old = ActionCompleted(action_id=ID, actor="luka", result=ActionResult.HELPED, request_id="r", occurred_at=LATER)
    assert evolve(state, old).state is S.COMPLETED
    assert fold([ActionOpened(action_id=ID, kind=RECOVERY, request_id="r")]).priority is Priority.NORMAL


# -- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "at", "command"), ILLEGAL)
def test_an_illegal_move_is_refused_with_what_is_allowed(
    kind: ActionKind, at: ActionState, command: type[Change]
) -> None:
    with pytest.raises(RefusedError) as caught:
        decide(asking(command, "r-new"), at_state(kind, at))
    error = caught.value
    now = [other.__name__ for other in CHANGES if (at, other) in LIFE_CYCLES[kind]]
    assert error.reason == "ILLEGAL_TRANSITION"
    assert error.details["state"] == at.name
    assert sorted(error.details["allowed"].split(",")) == sorted(now)
    assert f"is {at.name}" in error.message
    assert error.message.startswith(command.__name__)


def test_the_loser_of_an_acceptance_learns_who_has_it() -> None:
    with pytest.raises(RefusedError) as caught:
        decide(asking(AcceptAction, "r-second", actor="tina"), at_state(RECOVERY, S.ACCEPTED))
    assert caught.value.details["owner"] == "luka"
    assert "is ACCEPTED, its owner is 'luka'" in caught.value.message


@pytest.mark.parametrize("command", CHANGES)
def test_nothing_can_be_done_to_an_action_that_is_not_there(command: type[Change]) -> None:
    with pytest.raises(NotFoundError) as caught:
        decide(asking(command), Action())
    assert caught.value.reason == "ACTION_NOT_FOUND"
    assert caught.value.details == {"action_id": ID}


# -- repetition ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "at", "command"), LEGAL)
def test_repeating_what_was_done_decides_nothing_whatever_happened_since(
    kind: ActionKind, at: ActionState, command: type[Change]
) -> None:
    before = at_state(kind, at)
    state = fold(decide(asking(command, "r-new"), before), before)
    assert decide(asking(command, "r-new", LATER), state) == []
    commented = fold(decide(asking(CommentAction, "r-comment"), state), state)
    assert decide(asking(command, "r-new", LATER), commented) == []


def test_a_due_time_is_repeated_too() -> None:
    due = NOW + timedelta(days=3)
    state = fold(decide(opening(due_at=due), Action()))
    assert decide(opening(at=LATER, due_at=due), state) == []
    with pytest.raises(DiffersError):
        decide(opening(at=LATER, due_at=due + timedelta(days=1)), state)


@pytest.mark.parametrize(
    "command",
    [
        opening(title="Something else"),
        asking(AcceptAction, "r-open"),
        asking(AcceptAction, owner="tina"),
        asking(CompleteAction, result=ActionResult.WORSE),
        asking(CompleteAction, note="another note"),
    ],
)
def test_a_request_id_used_for_something_else_is_told(command: Command) -> None:
    with pytest.raises(DiffersError) as caught:
        decide(command, at_state(RECOVERY, S.COMPLETED))
    assert caught.value.reason == "REQUEST_ID_REUSED"


# -- signals -------------------------------------------------------------------------------------------------------


def test_a_signal_opens_one_recovery() -> None:
    first = recovering()
    state = fold(decide(first, Action()))
    assert state.state is S.OPEN
    # Again, later, and worded otherwise by a newer rule: the customer is still called once.
    assert decide(recovering(at=LATER, reasons=("another",), rule_version=2), state) == []
    worked_on = evolve(state, asking(AcceptAction, action_id=first.action_id).event())
    assert decide(first, worked_on) == []
    assert first.action_id != recovering("s-2").action_id


def test_another_signal_joins_a_recovery_that_is_not_closed() -> None:
    joining = JoinSignal(
        action_id=ID, signal=SignalRaised(signal_id="s-2", reasons=("late",)), actor="p", occurred_at=LATER
    )
    state = at_state(RECOVERY, S.ACCEPTED)
    (event,) = decide(joining, state)
    assert event.signal_id == "s-2"
    assert decide(joining, evolve(state, event)) == []
    assert decide(joining, at_state(RECOVERY, S.COMPLETED)) == []
    assert decide(joining, Action()) == []


# -- deadlines -----------------------------------------------------------------------------------------------------


def deadline(kind: DeadlineKind, obligation: Obligation, hours: int, **fields: Any) -> Deadline:
    return Deadline(
        deadline_id=f"{obligation.name} {kind.name}",
        kind=kind,
        obligation=obligation,
        at=NOW + timedelta(hours=hours),
        due_at=NOW + timedelta(hours=4),
        **fields,
    )


SCHEDULE = Schedule(
    NOW + timedelta(hours=2),
    NOW + timedelta(hours=4),
    (
        deadline(DeadlineKind.OVERDUE, Obligation.ACCEPTANCE, 2),
        deadline(DeadlineKind.DUE_SOON, Obligation.RESOLUTION, 3),
        deadline(DeadlineKind.OVERDUE, Obligation.RESOLUTION, 4),
        deadline(DeadlineKind.ESCALATION, Obligation.RESOLUTION, 5, escalate_to="boss", reassign=True),
    ),
)


def timed() -> Action:
    terms = Terms(playbook_id="p", version=1, rule_id="r", priority=Priority.HIGH, owner="desk", schedule=SCHEDULE)
    signal = SignalRaised(signal_id="s", customer_id="ana", rule="bad_moment")
    return fold(decide(OpenRecovery(signal=signal, occurred_at=NOW, terms=terms), Action()))


def passing(number: int, hours: float, state: Action) -> Sequence[ActionEvent]:
    now = NOW + timedelta(hours=hours)
    return decide(PassDeadline(action_id=ID, deadline_id=SCHEDULE.deadlines[number].deadline_id, now=now), state)


def test_a_deadline_is_told_once_and_not_before_it_is_over() -> None:
    state = timed()
    assert passing(0, 1.99, state) == []
    (event,) = passing(0, 2, state)
    assert isinstance(event, ActionOverdue)
    # It became overdue when it did, whenever that was noticed.
    assert event.occurred_at == NOW + timedelta(hours=2)
    after = evolve(state, event)
    assert after.late == (Obligation.ACCEPTANCE,)
    assert passing(0, 99, after) == []
    assert isinstance(passing(1, 3, after)[0], ActionDueSoon)


def test_what_was_met_does_not_fall_due() -> None:
    state = timed()
    late = fold(passing(0, 2, state), state)
    accepted = fold(decide(asking(AcceptAction), late), late)
    assert accepted.late == ()
    assert passing(0, 9, accepted) == []
    assert len(passing(2, 9, accepted)) == 1
    closed = fold(decide(asking(CompleteAction), accepted), accepted)
    assert (closed.deadlines, closed.late) == ((), ())
    assert all(passing(number, 9, closed) == [] for number in range(4))


def test_an_escalation_tells_somebody_and_gives_it_to_them() -> None:
    state = timed()
    told, given_to = passing(3, 5, state)
    assert isinstance(told, ActionEscalated)
    assert isinstance(given_to, ActionAssigned)
    assert (told.escalated_to, given_to.owner, given_to.actor) == ("boss", "boss", "timer")
    after = fold([told, given_to], state)
    assert (after.owner, after.escalated_to) == ("boss", "boss")
    # Who has it already is told only.
    assert [type(event) for event in passing(3, 5, fold([given_to], state))] == [ActionEscalated]


def test_what_is_reopened_falls_due_anew() -> None:
    state = timed()
    for command in (AcceptAction, CompleteAction):
        state = fold(decide(asking(command), state), state)
    due = NOW + timedelta(days=2)
    again = fold(decide(asking(ReopenAction, due_at=due), state), state)
    assert again.due_at == due
    assert [each.kind for each in again.deadlines] == [DeadlineKind.DUE_SOON, DeadlineKind.OVERDUE]
    assert not {each.deadline_id for each in again.deadlines} & {each.deadline_id for each in SCHEDULE.deadlines}


def test_what_is_taken_up_again_is_not_late_for_an_acceptance_of_long_ago() -> None:
    state = timed()
    assert state.accept_by is not None
    state = fold(decide(asking(DeclineAction), state), state)
    due = NOW + timedelta(days=2)
    again = fold(decide(asking(ReopenAction, due_at=due), state), state)
    assert again.state is ActionState.OPEN
    assert (again.accept_by, again.next_due) == (None, due)


@pytest.mark.parametrize("due", [None, NOW + timedelta(days=2)])
def test_what_was_declined_has_to_be_accepted_again_in_time(due: datetime | None) -> None:
    level = ServiceLevel(
        accept_within=Period(minutes=30),
        resolve_within=Period(minutes=90),
        escalations=(EscalationStep(obligation=Obligation.ACCEPTANCE, to="lead"),),
    )
    terms: dict[str, Any] = {"due_at": due, "level": level, "time": BusinessTime(None)}
    state = fold(decide(asking(DeclineAction), timed()), timed())
    again = fold(decide(asking(ReopenAction, at=LATER, **terms), state), state)
    accept_by = LATER + timedelta(minutes=30)
    assert (again.accept_by, again.due_at) == (accept_by, due or LATER + timedelta(minutes=90))
    assert again.next_due == accept_by
    acceptance = [each for each in again.deadlines if each.obligation is Obligation.ACCEPTANCE]
    assert [each.kind for each in acceptance] == [DeadlineKind.OVERDUE, DeadlineKind.ESCALATION]
    assert list(again.deadlines) == sorted(again.deadlines, key=lambda each: each.at or NOW)
    # It is kept when it is asked for again, also when it was accepted meanwhile.
    accepted = fold(decide(asking(AcceptAction, "again", LATER), again), again)
    assert {each.obligation for each in accepted.deadlines} == {Obligation.RESOLUTION}
    for now in (again, accepted):
        assert decide(asking(ReopenAction, at=LATER + timedelta(days=9), **terms), now) == []
    # What was not declined was accepted once.
    done = fold(decide(asking(AcceptAction), timed()), timed())
    done = fold(decide(asking(CompleteAction), done), done)
    assert fold(decide(asking(ReopenAction, at=LATER, **terms), done), done).accept_by is None


def test_a_repetition_is_answered_also_when_the_time_it_set_is_over() -> None:
    due, after = NOW + timedelta(days=2), NOW + timedelta(days=3)
    state = fold(decide(opening(due_at=due), Action()))
    assert decide(opening(due_at=due, at=after), state) == []
    moved = fold(decide(asking(RescheduleAction, due_at=due), state), state)
    assert decide(asking(RescheduleAction, due_at=due, at=after), moved) == []
    closed = fold(decide(asking(DeclineAction), moved), moved)
    again = fold(decide(asking(ReopenAction, due_at=due), closed), closed)
    assert decide(asking(ReopenAction, due_at=due, at=after), again) == []
    # Asked for the first time, or by another name, it is too late.
    for command, now in (
        (opening(due_at=due, at=due), Action()),
        (asking(RescheduleAction, "new", due_at=due, at=after), again),
        (asking(ReopenAction, "new", due_at=due, at=after), closed),
    ):
        with pytest.raises(InvalidError) as refused:
            decide(command, now)
        assert refused.value.violations == (Violation("due_at", "later than now"),)
    # The same name for another time stays another request.
    with pytest.raises(DiffersError):
        decide(opening(due_at=after + timedelta(days=1), at=after), state)


def test_what_is_rescheduled_falls_due_at_the_new_moment_and_keeps_who_is_told() -> None:
    state = timed()
    due = NOW + timedelta(days=3)
    level = ServiceLevel(
        escalations=(
            EscalationStep(obligation=Obligation.RESOLUTION, after=Period(minutes=30), to="lead"),
            EscalationStep(obligation=Obligation.ACCEPTANCE, after=Period(minutes=5), to="nobody"),
        )
    )
    late = fold(passing(2, 4, state), state)
    assert late.late
    moved = fold(decide(asking(RescheduleAction, due_at=due, level=level, time=BusinessTime(None)), late), late)
    assert (moved.due_at, Obligation.RESOLUTION in moved.late, moved.state) == (due, False, late.state)
    told = [(each.kind, each.at) for each in moved.deadlines if each.obligation is Obligation.RESOLUTION]
    assert told == [
        (DeadlineKind.DUE_SOON, due - timedelta(days=3) / 5),
        (DeadlineKind.OVERDUE, due),
        (DeadlineKind.ESCALATION, due + timedelta(minutes=30)),
    ]
    # Again, and reopened: no deadline has the name of another.
    again = fold(decide(asking(RescheduleAction, "r-again", due_at=due), moved), moved)
    every = (*SCHEDULE.deadlines, *moved.deadlines, *again.deadlines)
    names = [each.deadline_id for each in every if each.obligation is Obligation.RESOLUTION]
    assert len(set(names)) == len(names)


# -- whatever comes ------------------------------------------------------------------------------------------------

request_ids = st.sampled_from(["r-1", "r-2", "r-3", "r-4", "r-5", "r-6"])
changes = st.builds(asking, st.sampled_from(CHANGES), request_ids)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([RECOVERY, IMPROVEMENT]), st.lists(changes, max_size=25))
def test_any_sequence_of_commands_keeps_the_life_cycle(kind: ActionKind, sequence: list[Change]) -> None:
    state, events = at_state(kind, S.OPEN), list[ActionEvent]()
    first = state
    for command in sequence:
        before = state
        try:
            decided = decide(command, state)
        except RecorridoError:
            assert (state.state, type(command)) not in LIFE_CYCLES[kind] or command.request_id in before.requests
            continue
        assert len(decided) <= 1
        for event in decided:
            state = evolve(state, event)
            events.append(event)
            assert state.state is LIFE_CYCLES[kind][before.state, type(command)]
        # What was answered once is answered the same when it is asked again.
        assert decide(command, state) == []
    assert len({event.request_id for event in events}) == len(events) == len(state.requests) - 1
    assert state == fold(events, first)
    assert allowed(kind, state.state)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from([RECOVERY, IMPROVEMENT]), st.lists(changes, max_size=25))
def test_a_journey_shows_an_action_in_the_state_that_it_is_in(kind: ActionKind, sequence: list[Change]) -> None:
    events: list[Any] = [opening(kind=kind, customer_id="ana" if kind is RECOVERY else "").event()]
    state = fold(events)
    for command in sequence:
        try:
            decided = decide(command, state)
        except RecorridoError:
            continue
        events += decided
        state = fold(decided, state)
    shown = timeline._action(
        [
            dict(zip(("action_id", "kind", "state", "result", "title", "signal_id"), row[1:], strict=True))
            | {"recorded_at": NOW}
            for event in events
            if type(event) in JourneyProjection.types
            for row in [projection._action_row(event, defaultdict(int))]
        ]
    )
    assert (shown.kind, shown.state, shown.result) == (kind, state.state, state.result)


anything = st.one_of(
    *(
        st.builds(event, **({"request_id": request_ids} if hasattr(event(), "request_id") else {}))
        for event in ActionDecider.types
    ),
    st.builds(ActionOpened, request_id=request_ids, kind=st.sampled_from(ActionKind)),
    st.builds(ActionAccepted, request_id=request_ids, owner=st.text(max_size=3)),
    st.builds(ActionCommented, request_id=request_ids, text=st.text(max_size=3)),
    st.builds(SignalRaised),
)


@given(st.lists(anything, max_size=12))
def test_folding_never_fails(history: list[Any]) -> None:
    fold(history)
