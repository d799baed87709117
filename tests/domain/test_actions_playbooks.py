"""What playbooks make of signals: matching, one answer each, the guard, causes; and dry runs, which decide the same."""

import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recorrido.actions.v1.events import (
    ActionKind,
    CauseConfirmed,
    CausePart,
    GuardPassed,
    GuardTripped,
    ImprovementRule,
    Playbook,
    PlaybookPublished,
    RecoveryRule,
    SignalAnswer,
    SignalMatch,
)
from recorrido.journey.v1.events import SignalRaised
from services.actions.domain.answering import (
    Answering,
    Answers,
    AnswerSignal,
    Causes,
    CauseState,
    CountCause,
    Guard,
    GuardState,
    PassGuard,
)
from services.actions.domain.dry_run import DryRun, Opening
from services.actions.domain.playbooks import (
    FIRST,
    InForce,
    Playbooks,
    PlaybookState,
    PublishPlaybook,
    asked,
    matches,
    notices,
)
from services.foundation.errors import DiffersError, InvalidError

NOW = datetime(2026, 3, 2, 9, 15, tzinfo=UTC)
DAY = timedelta(days=1)


def signal(number: int = 1, **fields: Any) -> SignalRaised:
    given = {"rule": "bad_moment", "customer_id": "ana", "touchpoint": "delivery", "need_path": "delivery/speed"}
    return SignalRaised(signal_id=f"s-{number}", **{**given, **fields})


def playbook(playbook_id: str = "care", **fields: Any) -> InForce:
    given: dict[str, Any] = {"name": "Care", "recoveries": (RecoveryRule(rule_id="call", cool_down_days=14),)}
    return InForce.of(Playbook(playbook_id=playbook_id, **{**given, **fields}), 1)


# -- which rule ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("match", "expected"),
    [
        (None, True),
        (SignalMatch(touchpoints=("delivery",)), True),
        (SignalMatch(touchpoints=("deliver*",)), True),
        (SignalMatch(touchpoints=("*",)), True),
        (SignalMatch(touchpoints=("payment", "delivery")), True),
        (SignalMatch(touchpoints=("deliver",)), False),
        (SignalMatch(touchpoints=("delivery",), need_paths=("price*",)), False),
        (SignalMatch(rules=("bad_moment",), customer_ids=("an*",)), True),
        (SignalMatch(rules=("other",)), False),
    ],
)
def test_every_list_that_is_given_must_hold_a_match(match: SignalMatch | None, expected: bool) -> None:  # noqa: FBT001
    assert matches(match, signal()) is expected


def test_the_first_rule_that_matches_opens_and_every_one_counts() -> None:
    rules = (
        RecoveryRule(rule_id="elsewhere", match=SignalMatch(touchpoints=("payment",))),
        RecoveryRule(rule_id="first"),
        RecoveryRule(rule_id="second"),
    )
    causes = tuple(ImprovementRule(rule_id=f"cause-{n}", customers=2, within_days=7) for n in range(2))
    later, earlier = playbook("z", recoveries=rules), playbook("a", recoveries=rules[1:], improvements=causes)
    off = playbook("0", disabled=True)
    found = asked(signal(), [later, earlier, off])
    assert found.recovery is not None
    assert (found.recovery.by.playbook.playbook_id, found.recovery.rule.rule_id) == ("a", "first")
    assert [each.rule.rule_id for each in found.causes] == ["cause-0", "cause-1"]
    assert len({each.cause_id for each in found.causes}) == 2


def test_a_cause_is_what_it_is_grouped_by() -> None:
    def cause(group_by: Sequence[CausePart], **fields: Any) -> str:
        rule = ImprovementRule(rule_id="c", customers=2, within_days=7, group_by=tuple(group_by))
        return asked(signal(**fields), [playbook(improvements=(rule,))]).causes[0].cause_id

    by_need = [CausePart.NEED]
    assert cause(by_need) == cause(by_need, touchpoint="store", customer_id="ben")
    assert cause(by_need) != cause(by_need, need_path="price")
    assert cause([]) == cause([], touchpoint="store", need_path="price", rule="other")
    assert cause([CausePart.TOUCHPOINT]) != cause([CausePart.TOUCHPOINT], touchpoint="store")


def test_a_signal_about_everyone_opens_no_recovery_and_is_counted_where_its_rule_is_named() -> None:
    rules = (
        ImprovementRule(rule_id="any", customers=1, within_days=7),
        ImprovementRule(
            rule_id="scores",
            match=SignalMatch(rules=("score_*",), touchpoints=("parcel",)),
            customers=1,
            within_days=7,
            group_by=(CausePart.TOUCHPOINT,),
        ),
    )
    everyone = {"rule": "score_worsened", "customer_id": "", "map_id": "shop", "touchpoint_id": "parcel"}
    book = playbook(improvements=rules)
    found = asked(signal(touchpoint="raw one", **everyone), [book])
    assert found.recovery is None
    assert [each.rule.rule_id for each in found.causes] == ["scores"]
    # The same touchpoint of the map is the same cause, by whatever name its sources call it.
    other = asked(signal(touchpoint="raw two", **everyone), [book])
    assert other.causes[0].cause_id == found.causes[0].cause_id
    run = DryRun(book)
    (opening,) = run.consider(signal(1, **everyone), NOW)
    assert opening.event.kind is ActionKind.IMPROVEMENT
    assert (opening.event.title, opening.event.target) == ("Score worsened at delivery", None)
    assert list(run.consider(signal(2, **everyone), NOW)) == []
    (opening,) = run.consider(signal(3, **{**everyone, "touchpoint_id": "till"}, touchpoint="parcel"), NOW)
    assert opening.event.touchpoint == "parcel"
    assert (run.summary.recoveries, run.summary.improvements) == (0, 2)


# -- publishing ----------------------------------------------------------------------------------------------------


def publishing(request_id: str = "r-1", **fields: Any) -> PublishPlaybook:
    given: dict[str, Any] = {"playbook_id": "care", "name": "Care", "recoveries": (RecoveryRule(rule_id="call"),)}
    draft = Playbook(**{**given, **fields})
    return PublishPlaybook(playbook=draft, actor="maja", request_id=request_id, occurred_at=NOW)


def test_a_version_is_published_where_it_differs() -> None:
    decider, state = Playbooks(), PlaybookState()
    versions: list[PlaybookPublished] = []
    for command in (publishing(), publishing("r-2"), publishing("r-3", name="Better"), publishing()):
        for event in decider.decide(command, state):
            versions.append(event)
            state = decider.evolve(state, event)
    assert [(each.version, each.playbook.name) for each in versions if each.playbook] == [(1, "Care"), (2, "Better")]
    with pytest.raises(DiffersError):
        decider.decide(publishing("r-1", name="Another"), state)


def test_the_cause_of_a_version_is_all_that_is_published() -> None:
    assert publishing().cause == publishing().cause
    assert len({publishing().cause, publishing("r-2").cause, publishing(name="Better").cause}) == 3


def test_who_publishes_is_told_that_less_is_opened_from_now_on() -> None:
    on, off = playbook("a"), playbook("b", disabled=True)
    assert notices([], on) == (FIRST,)
    assert notices([off], on) == notices([on], off) == notices([on, off], playbook("a")) == ()
    assert notices([off], playbook("a", disabled=True)) == ("no playbook is switched on: no signal opens anything",)


def test_no_playbook_names_a_customer_whom_an_erasure_would_not_find() -> None:
    with pytest.raises(InvalidError) as caught:
        publishing(recoveries=(RecoveryRule(rule_id="call", match=SignalMatch(customer_ids=("b2b-*", "ana"))),))
    assert [v.field for v in caught.value.violations] == ["playbook.recoveries[0].match.customer_ids[1]"]


def test_a_playbook_without_rules_is_none() -> None:
    with pytest.raises(InvalidError) as caught:
        publishing(recoveries=())
    assert [(v.field, v.rule) for v in caught.value.violations] == [
        ("playbook", "at least one rule in recoveries or improvements")
    ]


# -- the customer --------------------------------------------------------------------------------------------------


def answer(state: Answers, number: int, at: datetime = NOW, **changes: Any) -> tuple[Answers, Any]:
    raised = signal(number)
    command = AnswerSignal(signal=raised, recorded_at=at, recovery=asked(raised, [playbook()]).recovery, **changes)
    decided = Answering().decide(command, state)
    for event in decided:
        state = Answering().evolve(state, event)
    return state, (decided[0] if decided else None)


def test_a_customer_is_left_alone_for_a_while() -> None:
    state, first = answer(Answers(), 1)
    state, soon = answer(state, 2, NOW + 13 * DAY)
    state, later = answer(state, 3, NOW + 14 * DAY)
    assert [each.answer for each in (first, soon, later)] == [
        SignalAnswer.OPENED,
        SignalAnswer.COOLING_DOWN,
        SignalAnswer.OPENED,
    ]
    assert soon.action_id == first.action_id != later.action_id
    assert "14 days" in soon.reason
    assert first.customer_key == soon.customer_key == later.customer_key


def test_a_signal_that_comes_twice_or_late_has_one_answer() -> None:
    state, _ = answer(Answers(), 1)
    assert answer(state, 1, NOW + 99 * DAY)[1] is None
    # One that was recorded before the customer's last recovery is no reason for another.
    assert answer(state, 2, NOW - DAY)[1].answer is SignalAnswer.COOLING_DOWN


def test_what_the_guard_refuses_opens_no_cool_down() -> None:
    state, refused = answer(Answers(), 1, granted=False)
    assert refused.answer is SignalAnswer.REFUSED_BY_GUARD
    assert answer(state, 2)[1].answer is SignalAnswer.OPENED


# -- the guard -----------------------------------------------------------------------------------------------------


@given(st.lists(st.lists(st.integers(0, 30), min_size=1, max_size=12), max_size=12), st.integers(1, 15))
def test_the_guard_never_lets_more_pass_and_says_so_once(batches: list[list[int]], most: int) -> None:
    decider, state = Guard(), GuardState()
    events: list[GuardPassed | GuardTripped] = []
    for batch in batches:
        ids = tuple(map(str, batch))
        command = PassGuard(playbook_id="care", max_per_hour=most, hour=NOW, ids=ids)
        for _ in range(2):  # it comes twice
            before = state
            decided = decider.decide(command, state)
            for event in decided:
                state = decider.evolve(state, event)
            events += decided
        assert state == before
    assert len(state.passed) <= most
    asked_for = {str(each) for batch in batches for each in batch}
    assert state.tripped is (len(asked_for) > most)
    assert sum(isinstance(event, GuardTripped) for event in events) <= 1


def test_of_a_million_in_an_hour_as_many_pass_as_may_and_it_is_said_once() -> None:
    decider, state, said = Guard(), GuardState(), 0
    for batch in range(100):
        ids = tuple(f"s-{number}" for number in range(10_000 * batch, 10_000 * (batch + 1)))
        for event in decider.decide(PassGuard(playbook_id="care", max_per_hour=500, hour=NOW, ids=ids), state):
            said += isinstance(event, GuardTripped)
            state = decider.evolve(state, event)
    assert (len(state.passed), said) == (500, 1)


# -- causes --------------------------------------------------------------------------------------------------------

CAUSE = ImprovementRule(rule_id="fix", customers=3, within_days=7)


def count(state: CauseState, number: int, customer: str, at: datetime = NOW, **changes: Any) -> tuple[CauseState, Any]:
    causing = asked(signal(number), [playbook(improvements=(CAUSE,))]).causes[0]
    command = CountCause(
        signal_id=f"s-{number}",
        recorded_at=at,
        customer_key=customer,
        recovery_id=f"recovery of {customer}",
        causing=causing,
        **changes,
    )
    decided = Causes().decide(command, state)
    for event in decided:
        state = Causes().evolve(state, event)
    return state, next((event for event in decided if isinstance(event, CauseConfirmed)), None)


def counted(*customers: tuple[str, timedelta]) -> tuple[CauseState, list[Any]]:
    state, confirmed = CauseState(), []
    for number, (customer, after) in enumerate(customers):
        state, found = count(state, number, customer, NOW + after)
        confirmed.append(found)
    return state, confirmed


def test_so_many_customers_make_a_cause() -> None:
    state, confirmed = counted(("ana", 0 * DAY), ("ana", DAY), ("ben", DAY), ("eva", 2 * DAY), ("ivo", 3 * DAY))
    assert [bool(each) for each in confirmed] == [False, False, False, True, False]
    assert confirmed[3].customers == 3
    assert confirmed[3].recovery_ids == ("recovery of ana", "recovery of ben", "recovery of eva")
    assert (state.confirmed_by, state.improvement_id) == ("s-3", confirmed[3].improvement_id)
    assert count(state, 3, "eva")[1] is None


def test_what_is_longer_ago_does_not_count() -> None:
    _, confirmed = counted(("ana", 0 * DAY), ("ben", DAY), ("eva", 7 * DAY), ("ivo", 7 * DAY))
    assert [bool(each) for each in confirmed] == [False, False, False, True]
    assert confirmed[3].recovery_ids == ("recovery of ben", "recovery of eva", "recovery of ivo")


def test_a_cause_that_comes_back_is_counted_anew() -> None:
    state, confirmed = counted(("ana", 0 * DAY), ("ben", 0 * DAY), ("eva", 0 * DAY), ("ivo", DAY))
    closed = NOW + 2 * DAY
    again = None
    for number, customer in enumerate(("ana", "ben", "eva"), 10):
        assert again is None
        state, again = count(state, number, customer, NOW + 3 * DAY, closed_at=closed)
    assert again is not None
    assert again.improvement_id != confirmed[2].improvement_id


def test_a_cause_that_is_counted_for_months_costs_no_more_than_its_window() -> None:
    """While its improvement is worked on, it is counted on, and nothing of that is looked at again afterwards."""
    state, _ = counted(("ana", 0 * DAY), ("ben", 0 * DAY), ("eva", 0 * DAY))
    started = time.process_time()
    for number in range(10, 30_010):
        state, again = count(state, number, "ivo", NOW + number * timedelta(minutes=1))
        assert again is None
    closed = NOW + 30 * DAY
    for number in range(40_000, 40_200):
        state, again = count(state, number, "ivo", closed + number * timedelta(seconds=1), closed_at=closed)
        assert again is None
    assert time.process_time() - started < 8.0
    assert state.last == "s-40199"


def test_a_cause_that_the_guard_refuses_is_proposed_by_the_next_signal() -> None:
    state, _ = counted(("ana", 0 * DAY), ("ben", 0 * DAY))
    state, refused = count(state, 5, "eva", granted=False)
    assert refused is None
    assert count(state, 6, "ana")[1] is not None


# -- dry runs ------------------------------------------------------------------------------------------------------


def test_a_dry_run_opens_what_would_be_opened() -> None:
    improving = ImprovementRule(rule_id="fix", customers=3, within_days=7, group_by=(CausePart.TOUCHPOINT,))
    draft = playbook(improvements=(improving,), max_per_hour=5)
    run = DryRun(draft)
    openings: list[Opening] = []
    for number in range(8):
        openings += run.consider(signal(number, customer_id=f"customer {number}"), NOW + timedelta(minutes=number))
    openings += run.consider(signal(9, customer_id="customer 0"), NOW + DAY)
    assert [each.event.kind for each in openings].count(ActionKind.IMPROVEMENT) == 1
    summary = run.summary
    assert (summary.signals, summary.recoveries, summary.improvements) == (9, 4, 1)
    assert (summary.refused_by_guard, summary.cooled_down) == (4, 1)
    assert summary.busiest_hour() == (NOW.replace(minute=0), 5)
    assert summary.opened == {"call": 4, "fix": 1}
    with pytest.raises(InvalidError):
        list(run.consider(signal(10, customer_id=""), NOW))


def test_a_dry_run_leaves_alone_whom_another_playbook_calls() -> None:
    on_stores = (RecoveryRule(rule_id="store", match=SignalMatch(touchpoints=("store",)), cool_down_days=14),)
    beside, later = playbook("b", recoveries=on_stores), playbook("z")
    run = DryRun(playbook("care"), [beside, later, playbook("care", max_per_hour=1)])
    happened = [("ana", "store"), ("ana", "delivery"), ("ben", "delivery"), ("ben", "store"), ("eva", "store")]
    openings: list[Opening] = []
    for number, (customer, place) in enumerate(happened):
        openings += run.consider(
            signal(number, customer_id=customer, touchpoint=place), NOW + timedelta(minutes=number)
        )
    # Ana was called for the store; Ben is, and is then left alone by the other playbook.
    assert [(each.signal.customer_id, each.event.playbook_id) for each in openings] == [("ben", "care")]
    summary = run.summary
    assert (summary.recoveries, summary.cooled_down, summary.by_others, summary.taken_by_others) == (1, 1, 2, 3)
    assert summary.matched == {"call": 2}
    alone = DryRun(playbook("care"))
    for number, (customer, place) in enumerate(happened):
        list(alone.consider(signal(number, customer_id=customer, touchpoint=place), NOW))
    assert (alone.summary.recoveries, alone.summary.cooled_down, alone.summary.by_others) == (3, 2, 0)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 40)), max_size=40))
def test_a_dry_run_never_opens_two_for_a_signal_and_adds_up(happened: list[tuple[int, int]]) -> None:
    run, opened = DryRun(playbook(max_per_hour=3)), []
    at = NOW
    for number, (customer, minutes) in enumerate(happened):
        at += timedelta(minutes=minutes)
        opened += run.consider(signal(number, customer_id=f"customer {customer}"), at)
    signals = [each.signal.signal_id for each in opened]
    assert len(signals) == len(set(signals)) == run.summary.recoveries
    summary = run.summary
    assert summary.recoveries + summary.cooled_down + summary.refused_by_guard == len(happened)
    assert all(hour <= 3 for hour in summary.hours.values())
