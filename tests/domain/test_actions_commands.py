"""Commands check themselves when they are made: every broken rule, with its field."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recorrido.actions.v1.events import ActionKind, ActionResult, ContactChannel, Priority, RemedyKind, Target
from recorrido.journey.v1.events import SignalRaised
from services.actions.domain.commands import (
    CHANGES,
    AcceptAction,
    AssignAction,
    CommentAction,
    CompleteAction,
    DeclineAction,
    LinkActions,
    OfferRemedy,
    OpenAction,
    OpenImprovement,
    OpenRecovery,
    PrioritizeAction,
    RecordContact,
    ReopenAction,
    RescheduleAction,
    StartAction,
    Terms,
    VerifyAction,
)
from services.actions.domain.deadlines import Schedule
from services.actions.domain.rules import MAX_ID, MAX_NOTE, MAX_REASON, MAX_REASONS, MAX_TITLE
from services.foundation.errors import InvalidError
from services.foundation.rules import MAX_CUSTOMER_ID

NOW = datetime(2026, 3, 1, 9, 30, tzinfo=UTC)

CHANGE = {"action_id": "a", "actor": "maja", "request_id": "r-9", "occurred_at": NOW}
VALID: dict[type, dict[str, Any]] = {
    OpenAction: {
        "kind": ActionKind.RECOVERY,
        "customer_id": "ana",
        "title": "Call Ana back",
        "reasons": ("CSAT 1 of 5",),
        "touchpoint": "delivery",
        "need_path": "delivery/speed",
        "actor": "maja",
        "request_id": "r-1",
        "occurred_at": NOW,
    },
    AcceptAction: {"action_id": "a", "actor": "maja", "owner": "luka", "request_id": "r-2", "occurred_at": NOW},
    DeclineAction: {**CHANGE, "reason": "no ground:\nshe had not paid"},
    AssignAction: {**CHANGE, "owner": "luka", "reason": "knows her"},
    PrioritizeAction: {**CHANGE, "priority": Priority.HIGH, "reason": "she is a regular"},
    RescheduleAction: {**CHANGE, "due_at": NOW + timedelta(days=1), "reason": "parts are on order"},
    StartAction: {**CHANGE, "reason": ""},
    RecordContact: {**CHANGE, "channel": ContactChannel.PHONE, "reached": False, "note": "nobody home"},
    OfferRemedy: {**CHANGE, "remedy": RemedyKind.REFUND, "note": "all of it"},
    VerifyAction: {**CHANGE, "reason": "CSAT is up"},
    ReopenAction: {**CHANGE, "reason": "it is late again", "due_at": NOW + timedelta(days=1)},
    CommentAction: {**CHANGE, "text": "a colleague knows more"},
    LinkActions: {**CHANGE, "improvement_id": "i", "reason": ""},
    CompleteAction: {
        "action_id": "a",
        "actor": "maja",
        "result": ActionResult.HELPED,
        "note": "sent flowers,\nshe was glad",
        "request_id": "r-3",
        "occurred_at": NOW,
    },
}


def test_every_command_of_people_is_tried_here() -> None:
    assert set(VALID) == {OpenAction, *CHANGES}


@pytest.mark.parametrize("command", CHANGES)
def test_an_event_tells_all_that_was_asked_for(command: type) -> None:
    event = command(**VALID[command]).event()
    for name, value in VALID[command].items():
        assert getattr(event, name) == value


@pytest.mark.parametrize("command", VALID)
def test_what_is_well_formed_is_made(command: type) -> None:
    command(**VALID[command])


BROKEN = [
    (OpenAction, "kind", ActionKind.UNSPECIFIED, "RECOVERY or IMPROVEMENT"),
    (OpenAction, "customer_id", "", "required"),
    (OpenAction, "customer_id", "x" * (MAX_CUSTOMER_ID + 1), "at most 256 characters"),
    (OpenAction, "customer_id", "an\0a", "no control characters"),
    (OpenAction, "title", "", "required"),
    (OpenAction, "title", "   ", "required"),
    (OpenAction, "title", "x" * (MAX_TITLE + 1), "at most 200 characters"),
    (OpenAction, "title", "two\nlines", "no control characters"),
    (OpenAction, "reasons", ("why",) * (MAX_REASONS + 1), "at most 20"),
    (OpenAction, "touchpoint", "x" * (MAX_ID + 1), "at most 128 characters"),
    (OpenAction, "need_path", "\x7f", "no control characters"),
    (OpenAction, "actor", "", "required"),
    (OpenAction, "request_id", "", "required"),
    (AcceptAction, "action_id", "", "required"),
    (AcceptAction, "action_id", "x" * 1_000_000, "at most 128 characters"),
    (AcceptAction, "owner", "x" * (MAX_ID + 1), "at most 128 characters"),
    (AcceptAction, "actor", "\x1b[31mroot", "no control characters"),
    (AcceptAction, "request_id", "x" * (MAX_ID + 1), "at most 128 characters"),
    (CompleteAction, "action_id", "\n", "required"),
    (CompleteAction, "result", ActionResult.UNSPECIFIED, "HELPED, NO_CHANGE, WORSE or UNREACHABLE"),
    (CompleteAction, "note", "x" * (MAX_NOTE + 1), "at most 4,096 characters"),
    (CompleteAction, "note", "bell \a", "no control characters"),
    (CompleteAction, "actor", "", "required"),
    (CompleteAction, "request_id", "", "required"),
    (OpenAction, "owner", "x" * (MAX_ID + 1), "at most 128 characters"),
    (OpenAction, "target", Target(metric="csat"), "only of an improvement"),
    (DeclineAction, "reason", " ", "required"),
    (DeclineAction, "reason", "x" * (MAX_REASON + 1), "at most 1,024 characters"),
    (AssignAction, "owner", "", "required"),
    (StartAction, "reason", "\0", "no control characters"),
    (PrioritizeAction, "priority", Priority.UNSPECIFIED, "a priority, such as HIGH"),
    (RescheduleAction, "due_at", None, "required"),
    (RescheduleAction, "reason", "", "required"),
    (RecordContact, "channel", ContactChannel.UNSPECIFIED, "a channel, such as PHONE"),
    (RecordContact, "note", "x" * (MAX_NOTE + 1), "at most 4,096 characters"),
    (OfferRemedy, "remedy", RemedyKind.UNSPECIFIED, "a remedy, such as APOLOGY or REFUND"),
    (VerifyAction, "reason", "", "required"),
    (ReopenAction, "reason", "", "required"),
    (CommentAction, "text", "\n", "required"),
    (LinkActions, "improvement_id", "x" * (MAX_ID + 1), "at most 128 characters"),
]


@pytest.mark.parametrize(("command", "field", "value", "rule"), BROKEN)
def test_a_broken_rule_names_its_field(command: type, field: str, value: object, rule: str) -> None:
    with pytest.raises(InvalidError) as caught:
        command(**{**VALID[command], field: value})
    assert any(v.rule.startswith(rule) for v in caught.value.violations)
    assert {v.field for v in caught.value.violations} == {field}


def test_each_reason_is_checked_by_its_place() -> None:
    with pytest.raises(InvalidError) as caught:
        OpenAction(**{**VALID[OpenAction], "reasons": ("fine", "", "x" * (MAX_REASON + 1))})
    assert [(v.field, v.rule) for v in caught.value.violations] == [
        ("reasons[1]", "required, 1 to 1,024 characters, not blank"),
        ("reasons[2]", "at most 1,024 characters, has 1,025"),
    ]


def test_everything_broken_is_told_at_once() -> None:
    with pytest.raises(InvalidError) as caught:
        OpenAction(kind=ActionKind.UNSPECIFIED, title="", actor="", request_id="", occurred_at=NOW)
    assert {v.field for v in caught.value.violations} == {"kind", "title", "actor", "request_id"}


def test_an_improvement_has_a_target_and_no_improvement_of_its_own() -> None:
    improvement = {**VALID[OpenAction], "kind": ActionKind.IMPROVEMENT, "customer_id": ""}
    assert OpenAction(**improvement, target=Target(metric="csat", touchpoint="delivery")).event().target is not None
    with pytest.raises(InvalidError) as caught:
        OpenAction(**improvement, target=Target(metric="joy"), improvement_id="i")
    assert [(v.field, v.rule) for v in caught.value.violations] == [
        ("improvement_id", "only of a recovery"),
        ("target.metric", "one of nps, csat, ces, sentiment, bad_moments, pain_share, volume"),
    ]


def test_an_improvement_needs_no_customer() -> None:
    made = OpenAction(**{**VALID[OpenAction], "kind": ActionKind.IMPROVEMENT, "customer_id": ""})
    assert made.event().customer_id == ""


def test_an_action_opened_by_hand_is_known_by_its_request() -> None:
    first = OpenAction(**VALID[OpenAction])
    again = OpenAction(**VALID[OpenAction])
    other = OpenAction(**{**VALID[OpenAction], "request_id": "r-9"})
    assert first.action_id == again.action_id != other.action_id


@pytest.mark.parametrize("command", VALID)
def test_the_cause_of_an_event_is_all_that_is_asked_for(command: type) -> None:
    """The store takes two events of one id for the same: what differs must not come to one."""
    asked = command(**VALID[command])
    assert command(**{**VALID[command], "occurred_at": NOW + timedelta(minutes=1)}).cause == asked.cause
    others = {
        "kind": ActionKind.IMPROVEMENT,
        "channel": ContactChannel.EMAIL,
        "reached": True,
        "remedy": RemedyKind.APOLOGY,
        "result": ActionResult.WORSE,
        "due_at": NOW + timedelta(days=2),
        "reasons": ("another",),
    }
    names = VALID[command].keys() - {"occurred_at"}
    causes = {command(**{**VALID[command], name: others.get(name, "another")}).cause for name in names}
    assert len({asked.cause, *causes}) == 1 + len(names)


def test_without_an_owner_the_actor_takes_it() -> None:
    assert AcceptAction(**{**VALID[AcceptAction], "owner": ""}).event().owner == "maja"
    assert AcceptAction(**VALID[AcceptAction]).event().owner == "luka"


# -- signals -------------------------------------------------------------------------------------------------------

SIGNAL = SignalRaised(
    signal_id="s-1",
    rule="bad_moment",
    rule_version=1,
    customer_id="ana",
    touchpoint="delivery",
    reasons=("CSAT 1 of 5", "5 days late"),
    need_path="delivery/speed",
)


def test_a_recovery_tells_what_its_signal_told() -> None:
    event = OpenRecovery(signal=SIGNAL, occurred_at=NOW).event()
    assert event.kind is ActionKind.RECOVERY
    assert event.title == "Bad moment at delivery: CSAT 1 of 5"
    assert event.reasons == SIGNAL.reasons
    assert (event.signal_id, event.customer_id, event.touchpoint) == ("s-1", "ana", "delivery")
    assert event.need_path == "delivery/speed"
    assert event.actor == "rule:bad_moment@1"
    assert event.occurred_at == NOW


@pytest.mark.parametrize("missing", ["signal_id", "customer_id"])
def test_a_signal_of_nobody_opens_nothing(missing: str) -> None:
    fields: dict[str, Any] = {"signal_id": "s-1", "customer_id": "ana", missing: ""}
    with pytest.raises(InvalidError) as caught:
        OpenRecovery(signal=SignalRaised(**fields), occurred_at=NOW)
    assert {v.field for v in caught.value.violations} == {missing}


@given(
    st.builds(
        SignalRaised,
        signal_id=st.just("s-1"),
        customer_id=st.just("ana"),
        rule=st.text(max_size=300),
        rule_version=st.integers(-(2**31), 2**31 - 1),
        touchpoint=st.text(max_size=400),
        need_path=st.text(max_size=400),
        reasons=st.lists(st.text(max_size=2_000), max_size=25).map(tuple),
    )
)
def test_whatever_a_signal_says_its_recovery_keeps_the_limits(signal: SignalRaised) -> None:
    opened = OpenRecovery(signal=signal, occurred_at=NOW).event()
    # What a person may open and what a rule opens keep the same limits.
    OpenAction(
        kind=opened.kind,
        title=opened.title,
        actor=opened.actor,
        request_id=opened.request_id,
        occurred_at=NOW,
        customer_id=opened.customer_id,
        reasons=opened.reasons,
        touchpoint=opened.touchpoint,
        need_path=opened.need_path,
    )


def test_an_improvement_is_to_move_the_score_of_the_whole_touchpoint_of_the_map() -> None:
    told = {"touchpoint": "product_page", "touchpoint_id": "website", "map_id": "shop", "inputs": {"metric": "csat"}}
    terms = Terms(playbook_id="p", version=1, rule_id="r", priority=Priority.HIGH, owner="desk", schedule=Schedule())
    common = {"action_id": "a", "cause_id": "c", "customers": 1, "within_days": 1, "terms": terms, "occurred_at": NOW}
    signal = SignalRaised(signal_id="s", rule="score_worsened", **told)
    event = OpenImprovement(signal=signal, touchpoint="", need_path="", **common).event()
    assert event.touchpoint == "product_page"
    assert event.target == Target(metric="csat", touchpoint="website", map_id="shop")
    # A point that was told off the map is at no touchpoint of it.
    point = SignalRaised(
        signal_id="s", rule="point_worsened", map_id="shop", need_path="price", inputs={"metric": "pain"}
    )
    event = OpenImprovement(signal=point, touchpoint="", need_path="", **common).event()
    assert event.target == Target(metric="pain_share", need_path="price")
    # Of many bad moments it is what the sources say.
    bad = SignalRaised(signal_id="s", rule="bad_moment", customer_id="ana", touchpoint="search")
    event = OpenImprovement(signal=bad, touchpoint="search", need_path="", **common).event()
    assert event.target == Target(metric="bad_moments", touchpoint="search")
