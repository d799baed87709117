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
    Money,
    Referral,
    ReferralDirection,
    Verbatim,
)
from services.foundation.events import Event, Recorded, encode
from services.ingest.holdings import HoldingsProjection
from services.ingest.privacy import anonymize, parts, receipt, receipt_id_of
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
