"""The life cycle of an action: given what happened, when somebody asks, then this is recorded or refused."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recorrido.actions.v1.events import (
    ActionAccepted,
    ActionCompleted,
    ActionKind,
    ActionOpened,
    ActionResult,
    ActionState,
)
from recorrido.journey.v1.events import SignalRaised
from services.actions.domain import (
    TRANSITIONS,
    AcceptAction,
    Action,
    ActionEvent,
    Command,
    CompleteAction,
    OpenAction,
    OpenRecovery,
    allowed,
    decide,
    evolve,
)
from services.foundation.errors import DiffersError, NotFoundError, RecorridoError, RefusedError

NOW = datetime(2026, 3, 1, 9, 30, tzinfo=UTC)
LATER = NOW + timedelta(hours=1)


def opening(request_id: str = "r-open", at: datetime = NOW, **changes: Any) -> OpenAction:
    fields: dict[str, Any] = {"kind": ActionKind.RECOVERY, "customer_id": "ana", "title": "Call Ana", "actor": "maja"}
    return OpenAction(**{**fields, "request_id": request_id, "occurred_at": at, **changes})


def accepting(request_id: str = "r-accept", at: datetime = NOW, **changes: Any) -> AcceptAction:
    fields: dict[str, Any] = {"action_id": ID, "actor": "luka"}
    return AcceptAction(**{**fields, "request_id": request_id, "occurred_at": at, **changes})


def completing(request_id: str = "r-complete", at: datetime = NOW, **changes: Any) -> CompleteAction:
    fields: dict[str, Any] = {"action_id": ID, "actor": "luka", "result": ActionResult.HELPED, "note": "she is glad"}
    return CompleteAction(**{**fields, "request_id": request_id, "occurred_at": at, **changes})


def recovering(signal_id: str = "s-1", at: datetime = NOW, **changes: Any) -> OpenRecovery:
    fields: dict[str, Any] = {"signal_id": signal_id, "customer_id": "ana", "rule": "bad_moment", "rule_version": 1}
    return OpenRecovery(signal=SignalRaised(**{**fields, **changes}), occurred_at=at)


ID = opening().action_id


def fold(events: Sequence[ActionEvent]) -> Action:
    state = Action()
    for event in events:
        state = evolve(state, event)
    return state


OPENED = opening().event()
ACCEPTED = accepting().event()
COMPLETED = completing().event()
HISTORY: dict[ActionState, list[ActionEvent]] = {
    ActionState.UNSPECIFIED: [],
    ActionState.OPEN: [OPENED],
    ActionState.ACCEPTED: [OPENED, ACCEPTED],
    ActionState.COMPLETED: [OPENED, ACCEPTED, COMPLETED],
}
#: A new command of each type: its request_id was never used.
NEW: dict[type[Command], Command] = {
    OpenAction: opening("r-new"),
    OpenRecovery: recovering("s-new"),
    AcceptAction: accepting("r-new"),
    CompleteAction: completing("r-new"),
}


def test_every_state_and_command_of_the_code_is_tried_here() -> None:
    assert set(HISTORY) == set(ActionState)
    assert {command for _, command in TRANSITIONS} == set(NEW)


# -- the way it goes -----------------------------------------------------------------------------------------------


def test_opening_tells_everything_given() -> None:
    command = opening(reasons=("late", "rude"), touchpoint="delivery", need_path="delivery/speed")
    assert decide(command, Action()) == [
        ActionOpened(
            action_id=command.action_id,
            kind=ActionKind.RECOVERY,
            customer_id="ana",
            title="Call Ana",
            reasons=("late", "rude"),
            touchpoint="delivery",
            need_path="delivery/speed",
            actor="maja",
            request_id="r-open",
            occurred_at=NOW,
        )
    ]


@pytest.mark.parametrize("kind", [ActionKind.RECOVERY, ActionKind.IMPROVEMENT])
def test_both_kinds_go_from_open_over_accepted_to_completed(kind: ActionKind) -> None:
    state = Action()
    seen = []
    for command in (opening(kind=kind), accepting(at=LATER, owner="tina"), completing(at=LATER)):
        for event in decide(command, state):
            state = evolve(state, event)
        seen.append(state.state)
    assert seen == [ActionState.OPEN, ActionState.ACCEPTED, ActionState.COMPLETED]
    assert (state.kind, state.owner, state.result) == (kind, "tina", ActionResult.HELPED)
    assert (state.opened_at, state.updated_at) == (NOW, LATER)


@pytest.mark.parametrize(("at", "command"), TRANSITIONS)
def test_each_transition_leads_where_the_table_says(at: ActionState, command: type[Command]) -> None:
    state = fold(HISTORY[at])
    (event,) = decide(NEW[command], state)
    assert evolve(state, event).state is TRANSITIONS[at, command]


# -- what is refused -----------------------------------------------------------------------------------------------

ILLEGAL = [
    (at, command)
    for at in ActionState
    for command in NEW
    if (at, command) not in TRANSITIONS and at is not ActionState.UNSPECIFIED and command is not OpenRecovery
]


@pytest.mark.parametrize(("at", "command"), ILLEGAL)
def test_an_illegal_move_is_refused_with_what_is_allowed(at: ActionState, command: type[Command]) -> None:
    with pytest.raises(RefusedError) as caught:
        decide(NEW[command], fold(HISTORY[at]))
    error = caught.value
    now = {ActionState.OPEN: "AcceptAction", ActionState.ACCEPTED: "CompleteAction", ActionState.COMPLETED: ""}[at]
    assert error.reason == "ILLEGAL_TRANSITION"
    assert error.details["state"] == at.name
    assert error.details["allowed"] == now
    assert f"is {at.name}" in error.message
    assert f"allowed now: {now or 'nothing'}" in error.message


def test_the_loser_of_an_acceptance_learns_who_has_it() -> None:
    with pytest.raises(RefusedError) as caught:
        decide(accepting("r-second", actor="tina"), fold(HISTORY[ActionState.ACCEPTED]))
    assert caught.value.details["owner"] == "luka"
    assert "ACCEPTED by luka" in caught.value.message


@pytest.mark.parametrize("command", [AcceptAction, CompleteAction])
def test_nothing_can_be_done_to_an_action_that_is_not_there(command: type[Command]) -> None:
    with pytest.raises(NotFoundError) as caught:
        decide(NEW[command], Action())
    assert caught.value.reason == "ACTION_NOT_FOUND"
    assert caught.value.details == {"action_id": ID}


# -- repetition ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [ActionState.OPEN, ActionState.ACCEPTED, ActionState.COMPLETED])
def test_repeating_what_was_done_decides_nothing_whatever_happened_since(at: ActionState) -> None:
    state = fold(HISTORY[at])
    done = [opening(at=LATER), accepting(at=LATER), completing(at=LATER)][: len(HISTORY[at])]
    assert [decide(command, state) for command in done] == [[]] * len(HISTORY[at])


@pytest.mark.parametrize(
    "command",
    [
        opening(title="Something else"),
        accepting("r-open"),
        accepting(owner="tina"),
        completing(result=ActionResult.WORSE),
        completing(note="another note"),
    ],
)
def test_a_request_id_used_for_something_else_is_told(command: Command) -> None:
    with pytest.raises(DiffersError) as caught:
        decide(command, fold(HISTORY[ActionState.COMPLETED]))
    assert caught.value.reason == "REQUEST_ID_REUSED"


def test_a_signal_opens_one_recovery() -> None:
    first = recovering()
    state = fold(decide(first, Action()))
    assert state.state is ActionState.OPEN
    # Again, later, and worded otherwise by a newer rule: the customer is still called once.
    assert decide(recovering(at=LATER, reasons=("another",), rule_version=2), state) == []
    worked_on = evolve(state, accepting(action_id=first.action_id).event())
    assert decide(first, worked_on) == []
    assert first.action_id != recovering("s-2").action_id


# -- whatever comes ------------------------------------------------------------------------------------------------

request_ids = st.sampled_from(["r-open", "r-1", "r-2", "r-3"])
commands = st.one_of(
    st.builds(opening, request_id=st.just("r-open"), title=st.sampled_from(["Call Ana", "Write to Ana"])),
    st.builds(accepting, request_id=request_ids, actor=st.sampled_from(["luka", "tina"])),
    st.builds(completing, request_id=request_ids, result=st.sampled_from(list(ActionResult)[1:])),
)


@settings(max_examples=300)
@given(st.lists(commands, max_size=12))
def test_any_sequence_of_commands_keeps_the_life_cycle(sequence: list[Command]) -> None:
    state, events = Action(), list[ActionEvent]()
    for command in sequence:
        before = state
        try:
            decided = decide(command, state)
        except RecorridoError:
            continue
        assert len(decided) <= 1
        for event in decided:
            state = evolve(state, event)
            events.append(event)
            assert state.state is TRANSITIONS[before.state, type(command)]
        # What was answered once is answered the same when it is asked again.
        assert decide(command, state) == []
    assert [type(event) for event in events] == [ActionOpened, ActionAccepted, ActionCompleted][: len(events)]
    assert len({event.request_id for event in events}) == len(events) == len(state.requests)
    assert state == fold(events)
    assert bool(allowed(state.state)) is (state.state is not ActionState.COMPLETED)


events = st.one_of(
    st.builds(ActionOpened, request_id=request_ids, kind=st.sampled_from(ActionKind)),
    st.builds(ActionAccepted, request_id=request_ids, owner=st.text(max_size=3)),
    st.builds(ActionCompleted, request_id=request_ids, result=st.sampled_from(ActionResult)),
    st.builds(SignalRaised),
)


@given(st.lists(events, max_size=8))
def test_folding_never_fails(history: list[ActionEvent]) -> None:
    state = fold(history)
    changes = [event for event in history if not isinstance(event, SignalRaised)]
    assert (state.state is ActionState.UNSPECIFIED) is (not changes)
