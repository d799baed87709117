"""What an erasure leaves of a customer's events, and that no event escapes it."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import msgspec
import pytest

from recorrido.actions.v1.events import (
    ActionCompleted,
    ActionDeclined,
    ActionKind,
    ActionOpened,
    ActionReopened,
    ActionResult,
    ActionState,
    ActionVerified,
)
from recorrido.inference.v1.events import (
    Analysis,
    AnalysisCorrected,
    FeedbackAnalysisFailed,
    FeedbackAnalyzed,
    PointKind,
)
from recorrido.ingest.v1.events import (
    Customer,
    CustomerAnonymized,
    Interaction,
    InteractionRecorded,
    InteractionRejected,
    Money,
    Referral,
    ReferralDirection,
    RejectionResubmitted,
    Verbatim,
)
from recorrido.journey.v1.events import Evidence, SignalRaised
from services.foundation.events import Event, Recorded, encode
from services.ingest.holdings import HoldingsProjection
from services.ingest.privacy import anonymize, going, parts, receipt, receipt_id_of
from tests.support.event_types import event_types, structs_within

AT = datetime(2026, 3, 1, tzinfo=UTC)


def stream(name: str, *events: Event, first_position: int = 1) -> list[Recorded]:
    return [
        Recorded(event.type_name, encode(event), {}, uuid4(), name, n, first_position + n, AT + timedelta(minutes=n))
        for n, event in enumerate(events)
    ]


def told(*streams: list[Recorded], secret: str = "s", done: Any = ()) -> list[CustomerAnonymized]:
    return list(parts("r", anonymize(streams, secret, {"ana"}, done)))


def test_every_event_that_names_a_customer_is_found_by_an_export_and_an_erasure() -> None:
    """Whoever adds one: put it into the customer's own stream, or let HoldingsProjection know of it."""
    in_the_customers_stream = {InteractionRecorded, FeedbackAnalyzed, FeedbackAnalysisFailed, AnalysisCorrected}
    naming = {
        event
        for event in event_types()
        if any(field.name == "customer_id" for each in structs_within(event) for field in msgspec.structs.fields(each))
    }
    assert in_the_customers_stream <= naming
    assert naming - in_the_customers_stream <= set(HoldingsProjection.types)


def signal(name: str, *seen: Recorded) -> SignalRaised:
    return SignalRaised(
        signal_id=name, customer_id="ana", evidence=tuple(Evidence(event_id=str(e.event_id)) for e in seen)
    )


def test_what_is_recorded_after_an_erasure_was_asked_for_is_a_new_history() -> None:
    mine = stream("customer-ana", *[InteractionRecorded()] * 3)
    old, _, new = mine
    late = stream("signal-late", signal("late", old), first_position=50)
    both = stream("signal-both", signal("both", old, new), first_position=60)
    fresh = stream("signal-fresh", signal("fresh", new), first_position=70)
    opened = [
        stream(f"action-{name}", ActionOpened(signal_id=name), ActionCompleted(), first_position=position)
        for name, position in (("late", 80), ("fresh", 90), ("", 100))
    ]
    rejected = [
        stream("rejection-old", InteractionRejected(), RejectionResubmitted(), first_position=2),
        stream("rejection-new", InteractionRejected(), first_position=110),
    ]
    counts = going({each[0].stream: each for each in (mine, late, both, fresh, *opened, *rejected)}, asked=2)
    assert counts == {
        "customer-ana": 2,
        "signal-late": 1,
        "signal-both": 1,
        "signal-fresh": 0,
        "action-late": 2,
        "action-fresh": 0,
        "action-": 0,
        "rejection-old": 2,
        "rejection-new": 0,
    }
    # Whoever begins again finds the first part gone, and comes to the same.
    rest = {each[0].stream: each for each in (mine[2:], late, both, fresh, *opened)}
    assert [counts[name] if name != "customer-ana" else 0 for name in rest] == list(going(rest, asked=2).values())


def test_what_stands_before_a_late_opinion_of_what_goes_goes_with_it() -> None:
    """A stream can be cut at its beginning only."""
    mine = stream("customer-ana", *[InteractionRecorded()] * 3)
    opinions = [FeedbackAnalyzed(interaction_event_id=str(mine[at].event_id)) for at in (0, 2)]
    mine += stream("customer-ana", *opinions, first_position=4)
    last = stream("customer-ana", InteractionRecorded(), first_position=6)
    before, behind = (
        stream(f"signal-{n}", signal(n, e), first_position=9) for n, e in (("2", mine[2]), ("6", last[0]))
    )
    streams = {"customer-ana": mine + last, "signal-2": before, "signal-6": behind}
    # With the third interaction goes what was said of it behind the opinion, and the signal that saw it.
    assert going(streams, asked=1) == {"customer-ana": 5, "signal-2": 1, "signal-6": 0}


def test_nothing_but_what_statistics_need_is_left() -> None:
    said = InteractionRecorded(
        interaction=Interaction(
            source="shop",
            interaction_id="order-of-ana",
            customer=Customer(customer_id="ana"),
            touchpoint="checkout",
            occurred_at=AT,
            amount=Money(currency_code="EUR", amount="129.90"),
            referral=Referral(direction=ReferralDirection.GIVEN, other_customer_id="friend-of-ana"),
            verbatim=Verbatim(text="call me on 041 123 456"),
            attributes={"name": "Ana Novak"},
            episode_id="episode-of-ana",
        )
    )
    recorded = stream("customer-ana", said)
    recorded += stream(
        "customer-ana",
        FeedbackAnalysisFailed(interaction_event_id=str(recorded[0].event_id), customer_id="ana", reason="TOO_LONG"),
        first_position=2,
    )
    (part,) = told(recorded)
    text = encode(part).decode()
    assert [word for word in ('"ana"', "-ana", "Ana", "041", "of-ana") if word in text] == []
    (left,) = part.interactions
    assert (left.touchpoint, left.source, left.occurred_at, left.had_words) == ("checkout", "shop", AT, True)
    assert (left.amount, left.referral_direction) == (
        Money(currency_code="EUR", amount="129.90"),
        ReferralDirection.GIVEN,
    )
    assert left.analyses[0].failure_reason == "TOO_LONG"
    assert part.erased_positions == ("1", "2")
    done = receipt("r", [part])
    assert (done.interactions, done.analyses, done.events) == (1, 1, 2)
    # A pseudonym holds within an erasure, and tells nothing to who does not have its secret.
    assert left.pseudonym == told(recorded)[0].interactions[0].pseudonym
    assert left.pseudonym != told(recorded, secret="other")[0].interactions[0].pseudonym
    assert told(recorded, done={1, 2}) == []


@pytest.mark.parametrize(
    ("ends", "state", "result"),
    [
        ((), ActionState.COMPLETED, ActionResult.UNREACHABLE),
        ((ActionCompleted(result=ActionResult.HELPED),), ActionState.COMPLETED, ActionResult.HELPED),
        ((ActionDeclined(reason="no"),), ActionState.DECLINED, ActionResult.UNSPECIFIED),
        (
            (ActionCompleted(result=ActionResult.HELPED), ActionReopened(reason="Ana called")),
            ActionState.COMPLETED,
            ActionResult.UNREACHABLE,
        ),
    ],
)
def test_an_action_ends_as_it_ended_or_unreachable(
    ends: tuple[Event, ...], state: ActionState, result: ActionResult
) -> None:
    opened = ActionOpened(action_id="a", kind=ActionKind.RECOVERY, customer_id="ana", title="call Ana", occurred_at=AT)
    (part,) = told(stream("action-a", opened, *ends))
    (left,) = part.actions
    assert (left.state, left.result, left.opened_at) == (state, result, AT)
    assert len(part.erased_positions) == 1 + len(ends)
    assert "Ana" not in encode(part).decode()


@pytest.mark.parametrize(
    ("ends", "state", "result"),
    [
        ((), ActionState.DECLINED, ActionResult.UNSPECIFIED),
        ((ActionCompleted(result=ActionResult.HELPED),), ActionState.DECLINED, ActionResult.UNSPECIFIED),
        (
            (ActionCompleted(result=ActionResult.HELPED), ActionVerified(reason="it does")),
            ActionState.VERIFIED,
            ActionResult.HELPED,
        ),
    ],
)
def test_an_improvement_waits_for_nobody_when_it_is_erased(
    ends: tuple[Event, ...], state: ActionState, result: ActionResult
) -> None:
    opened = ActionOpened(action_id="a", kind=ActionKind.IMPROVEMENT, customer_id="ana", occurred_at=AT)
    ((left,),) = [part.actions for part in told(stream("action-a", opened, *ends))]
    assert (left.state, left.result) == (state, result)


def test_a_persons_correction_still_wins_and_tells_nothing_of_anybody() -> None:
    events = stream("customer-ana", InteractionRecorded(interaction=Interaction(customer=Customer(customer_id="ana"))))
    about = str(events[0].event_id)
    corrected = AnalysisCorrected(
        interaction_event_id=about,
        customer_id="ana",
        analysis=Analysis(point=PointKind.ITCH),
        actor="mia",
        comment="I know Ana",
        request_id="for-ana",
    )
    analyzed = FeedbackAnalyzed(interaction_event_id=about, customer_id="ana", analysis=Analysis(point=PointKind.PAIN))
    events += stream("customer-ana", corrected, analyzed, first_position=2)
    (part,) = told(events)
    ((judged, guessed),) = [each.analyses for each in part.interactions]
    assert (judged.corrected, judged.analysis) == (True, Analysis(point=PointKind.ITCH))
    assert (guessed.corrected, guessed.analysis) == (False, Analysis(point=PointKind.PAIN))
    left = encode(part).lower()
    assert not any(word in left for word in (b'ana"', b"mia", b"know", b"for-ana"))


def test_a_receipts_id_is_of_the_request_and_the_customer() -> None:
    assert receipt_id_of("ana", "r") == receipt_id_of("ana", "r")
    assert len({receipt_id_of(c, r) for c in ("ana", "bor") for r in ("r", "q")}) == 4
