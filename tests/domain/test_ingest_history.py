"""A customer's history: given what was recorded, when an interaction comes (again), then it is told apart."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recorrido.ingest.v1.events import (
    Channel,
    Customer,
    CustomerKind,
    Interaction,
    InteractionRecorded,
    Rating,
    RatingMetric,
    Verbatim,
)
from services.foundation.errors import DiffersError
from services.ingest.domain import History, Known, RecordInteraction, canonical

NOW = datetime(2026, 3, 1, 9, 30, tzinfo=UTC)


def record(**changes: Any) -> RecordInteraction:
    fields: dict[str, Any] = {
        "source": "webshop",
        "interaction_id": "order-1",
        "customer": Customer(customer_id="ana", kind=CustomerKind.BUYER),
        "touchpoint": "checkout",
        "channel": Channel.WEB,
        "occurred_at": NOW,
    }
    return RecordInteraction.of(Interaction(**{**fields, **changes}), NOW)


def given_(*commands: RecordInteraction) -> Known:
    history = History()
    state = history.initial()
    for command in commands:
        for event in history.decide(command, state):
            assert isinstance(event, InteractionRecorded)
            state = history.evolve(state, event)
    return state


def test_what_is_new_is_recorded_as_it_was_given() -> None:
    command = record(verbatim=Verbatim(text="Muy bien", language="es"))
    assert History().decide(command, given_()) == [
        InteractionRecorded(interaction=command.interaction, digest=command.digest)
    ]
    assert command.stream == "customer-ana"


def test_a_repetition_changes_nothing() -> None:
    assert History().decide(record(), given_(record())) == []


def test_a_contradiction_is_refused_with_both_digests() -> None:
    first, second = record(), record(touchpoint="basket")
    with pytest.raises(DiffersError) as caught:
        History().decide(second, given_(first))
    assert caught.value.reason == "CONTENT_DIFFERS"
    assert caught.value.details == {"recorded_digest": first.digest, "given_digest": second.digest}
    assert caught.value.message.startswith("the content differs from what was recorded"), "a person reads words first"
    assert first.digest in caught.value.message
    assert second.digest in caught.value.message


@pytest.mark.parametrize("changes", [{"source": "app"}, {"interaction_id": "order-2"}])
def test_another_key_is_another_interaction(changes: Mapping[str, str]) -> None:
    assert len(History().decide(record(**changes), given_(record()))) == 1


def test_source_and_id_do_not_run_into_each_other() -> None:
    state = given_(record(source="a", interaction_id="bc"))
    assert len(History().decide(record(source="ab", interaction_id="c"), state)) == 1


def test_the_history_is_not_changed_by_what_follows() -> None:
    history = History()
    before = given_(record())
    (event,) = history.decide(record(interaction_id="2"), before)
    assert isinstance(event, InteractionRecorded)
    after = history.evolve(before, event)
    assert (len(before), len(after)) == (1, 2)


KEYS = st.integers(0, 5).map(str)
TOUCHPOINTS = st.sampled_from(["basket", "checkout"])


@given(st.lists(st.tuples(KEYS, TOUCHPOINTS), max_size=30))
def test_however_often_and_in_whatever_order_the_first_content_of_a_key_stands(given: list[tuple[str, str]]) -> None:
    history = History()
    state = history.initial()
    first: dict[str, str] = {}
    for key, touchpoint in given:
        command = record(interaction_id=key, touchpoint=touchpoint)
        if first.setdefault(key, touchpoint) != touchpoint:
            with pytest.raises(DiffersError):
                history.decide(command, state)
            continue
        for event in history.decide(command, state):
            assert isinstance(event, InteractionRecorded)
            state = history.evolve(state, event)
    assert dict(state) == {
        f"webshop\x1f{key}": record(interaction_id=key, touchpoint=touchpoint).digest
        for key, touchpoint in first.items()
    }


def test_the_digest_is_known_and_stays() -> None:
    """Changing the canonical form would turn every repetition of older content into a contradiction."""
    command = record(
        verbatim=Verbatim(text="Čakal sem 3 dni", language="sl"),
        ratings=(Rating(metric=RatingMetric.NPS, value=3.0),),
        attributes={"b": "2", "a": "1"},
    )
    assert canonical(command.interaction).decode() == (
        '{"source":"webshop","interactionId":"order-1","customer":{"customerId":"ana","kind":"CUSTOMER_KIND_BUYER"},'
        '"touchpoint":"checkout","channel":"CHANNEL_WEB","occurredAt":"2026-03-01T09:30:00Z",'
        '"verbatim":{"text":"Čakal sem 3 dni","language":"sl"},'
        '"ratings":[{"metric":"RATING_METRIC_NPS","value":3.0}],"attributes":{"a":"1","b":"2"}}'
    )
    assert command.digest == "da6a0dacdaf2628f59d903e1587c4af0719b14170cf6367c5c8db22120b6bb25"


@given(st.dictionaries(st.text("abc", min_size=1, max_size=3), st.text("xyz", max_size=3)), st.randoms())
def test_the_digest_does_not_depend_on_the_order_of_attributes(attributes: dict[str, str], random: Any) -> None:
    shuffled = list(attributes.items())
    random.shuffle(shuffled)
    assert record(attributes=attributes).digest == record(attributes=dict(shuffled)).digest


@given(st.integers(-14 * 60, 14 * 60))
def test_the_digest_does_not_depend_on_the_time_zone(minutes: int) -> None:
    moved = NOW.astimezone(timezone(timedelta(minutes=minutes)))
    assert record(occurred_at=moved).digest == record().digest


def test_the_digest_tells_the_order_of_ratings_and_the_smallest_time_apart() -> None:
    nps, csat = Rating(metric=RatingMetric.NPS, value=1.0), Rating(metric=RatingMetric.CSAT, value=1.0)
    digests = {
        record().digest,
        record(ratings=(nps, csat)).digest,
        record(ratings=(csat, nps)).digest,
        record(occurred_at=NOW - timedelta(microseconds=1)).digest,
    }
    assert len(digests) == 4
