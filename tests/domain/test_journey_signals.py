"""The rule that finds bad moments, and the one signal that an interaction can raise."""

from datetime import UTC, datetime
from uuid import UUID, uuid5

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recorrido.actions.v1.events import ActionCompleted, ActionKind, ActionOpened, ActionResult
from recorrido.inference.v1.events import Analysis, FeedbackAnalyzed, PointKind, Sentiment
from recorrido.ingest.v1.events import (
    Customer,
    Interaction,
    InteractionRecorded,
    Outcome,
    Rating,
    RatingMetric,
    Verbatim,
)
from recorrido.journey.v1.events import SignalRaised
from services.journey.domain.signals import RaiseSignal, Seen, Signals, bad_moment, recovery_failed

AT = datetime(2026, 3, 1, tzinfo=UTC)
NAMESPACE = UUID(int=7)
PAIN = Analysis(point=PointKind.PAIN, sentiment=Sentiment.NEGATIVE, sentiment_score=-0.8, need_path="delivery/speed")


def interaction(*ratings: tuple[RatingMetric, float], outcome: Outcome = Outcome.UNSPECIFIED) -> Seen:
    event = InteractionRecorded(
        interaction=Interaction(
            source="shop",
            interaction_id="1",
            customer=Customer(customer_id="c1"),
            touchpoint="parcel",
            occurred_at=AT,
            verbatim=Verbatim(text="late"),
            ratings=tuple(Rating(metric=metric, value=value) for metric, value in ratings),
            outcome=outcome,
        )
    )
    return Seen(event, uuid5(NAMESPACE, "interaction"), "customer-c1", 4, 40)


def analysed(analysis: Analysis) -> Seen:
    return Seen(FeedbackAnalyzed(analysis=analysis), uuid5(NAMESPACE, "analysis"), "customer-c1", 9, 90)


@pytest.mark.parametrize(
    ("metric", "highest_bad", "top"),
    [(RatingMetric.CSAT, 2, 5), (RatingMetric.NPS, 6, 10), (RatingMetric.CES, 3, 7)],
)
def test_a_rating_is_bad_up_to_its_threshold(metric: RatingMetric, highest_bad: int, top: int) -> None:
    signal = bad_moment(interaction((metric, highest_bad)))
    assert signal is not None
    assert signal.reasons == (f"{metric.name} {highest_bad} of {top}",)
    assert bad_moment(interaction((metric, highest_bad + 1))) is None


def test_only_a_failed_outcome_is_bad_by_itself() -> None:
    raised = {outcome for outcome in Outcome if bad_moment(interaction(outcome=outcome))}
    assert raised == {Outcome.FAILED}


@pytest.mark.parametrize(
    "words",
    [
        Analysis(point=PointKind.PAIN, sentiment=Sentiment.NEGATIVE, sentiment_score=-0.29),
        Analysis(point=PointKind.PAIN, sentiment=Sentiment.NEUTRAL, sentiment_score=-0.5),
        Analysis(point=PointKind.ITCH, sentiment=Sentiment.NEGATIVE, sentiment_score=-0.9),
        Analysis(point=PointKind.DELIGHT, sentiment=Sentiment.POSITIVE, sentiment_score=0.9),
        Analysis(),
    ],
)
def test_words_are_bad_only_as_a_pain_told_with_clear_feeling(words: Analysis) -> None:
    assert bad_moment(interaction((RatingMetric.CSAT, 5)), analysed(words)) is None


def test_a_signal_says_what_the_rule_saw() -> None:
    signal = bad_moment(interaction((RatingMetric.CSAT, 1)), analysed(PAIN))
    assert signal is not None
    assert (signal.rule, signal.rule_version) == ("bad_moment", 1)
    assert (signal.customer_id, signal.touchpoint, signal.occurred_at) == ("c1", "parcel", AT)
    assert signal.reasons == ("CSAT 1 of 5", "told of a pain about delivery/speed, sentiment -0.80")
    assert signal.need_path == "delivery/speed"
    assert [(e.event_id, e.event_type, e.stream, e.revision, int(e.position)) for e in signal.evidence] == [
        (str(uuid5(NAMESPACE, "interaction")), "recorrido.ingest.v1.InteractionRecorded", "customer-c1", 4, 40),
        (str(uuid5(NAMESPACE, "analysis")), "recorrido.inference.v1.FeedbackAnalyzed", "customer-c1", 9, 90),
    ]


def test_rating_and_words_of_one_interaction_raise_one_signal() -> None:
    by_rating = bad_moment(interaction((RatingMetric.CSAT, 1)))
    by_words = bad_moment(interaction(), analysed(PAIN))
    assert by_rating is not None
    assert by_words is not None
    assert by_rating.signal_id == by_words.signal_id
    decider = Signals()
    (raised,) = decider.decide(RaiseSignal(by_rating), decider.initial())
    state = decider.evolve(decider.initial(), raised)
    assert raised is by_rating
    assert decider.decide(RaiseSignal(by_words), state) == []


_RATINGS = st.dictionaries(
    st.sampled_from([RatingMetric.NPS, RatingMetric.CSAT, RatingMetric.CES, RatingMetric.CUSTOM]),
    st.integers(0, 10).map(float),
)


@given(_RATINGS, st.sampled_from(Outcome))
def test_the_rule_against_its_definition(ratings: dict[RatingMetric, float], outcome: Outcome) -> None:
    bad = (
        ratings.get(RatingMetric.NPS, 10) <= 6
        or ratings.get(RatingMetric.CSAT, 5) in {1, 2}
        or ratings.get(RatingMetric.CES, 7) in {1, 2, 3}
        or outcome is Outcome.FAILED
    )
    assert (bad_moment(interaction(*ratings.items(), outcome=outcome)) is not None) == bad


@pytest.mark.parametrize("result", list(ActionResult))
def test_a_recovery_that_made_nobody_glad_failed(result: ActionResult) -> None:
    def ended(kind: ActionKind = ActionKind.RECOVERY, customer_id: str = "c1") -> SignalRaised | None:
        opened = ActionOpened(action_id="a", kind=kind, customer_id=customer_id, touchpoint="parcel", need_path="price")
        completed = ActionCompleted(action_id="a", result=result, occurred_at=AT)
        stream = "action-a"
        return recovery_failed(
            Seen(opened, uuid5(NAMESPACE, "opened"), stream, 0, 1),
            Seen(completed, uuid5(NAMESPACE, "completed"), stream, 3, 8),
        )

    signal = ended()
    failed = result in {ActionResult.NO_CHANGE, ActionResult.WORSE}
    assert (signal is not None) == failed
    assert ended(kind=ActionKind.IMPROVEMENT) is None
    assert ended(customer_id="") is None
    if signal is not None:
        assert (signal.rule, signal.customer_id, signal.touchpoint, signal.need_path, signal.occurred_at) == (
            "recovery_failed",
            "c1",
            "parcel",
            "price",
            AT,
        )
        assert signal.inputs == {"action_id": "a", "result": result.name.lower()}
        assert [int(e.position) for e in signal.evidence] == [1, 8]
