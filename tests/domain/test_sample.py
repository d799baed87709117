"""The made-up company: the same every time, valid by the rules of ingest, and of everything a little."""

from collections import Counter
from datetime import timedelta

import pytest

from recorrido.ingest.v1 import events as ingest_events
from recorrido.ingest.v1.interaction_pb2 import (
    Channel,
    CustomerKind,
    Interaction,
    Outcome,
    RatingMetric,
    ReferralDirection,
)
from recorrido.journey.v1 import events as journey_events
from services.cli import journeymap, sample
from services.cli.importing.olist import SOURCE
from services.foundation.placement import place
from services.ingest.domain import RecordInteraction
from services.journey.domain.charted import LEAST_ANSWERS
from services.journey.domain.charts import LEAST_BASELINE
from services.journey.domain.maps import violations

#: Sources of the example files, which the map places too.
EXAMPLES = ("shop", "survey", "helpdesk")
NEW_TOUCHPOINTS = {"kiosk_beta", "voice_assistant", "gift_finder_beta"}


@pytest.fixture(scope="module")
def company() -> list[list[Interaction]]:
    return list(sample.generate())


@pytest.fixture(scope="module")
def told(company: list[list[Interaction]]) -> list[Interaction]:
    return [each for customer in company for each in customer]


def test_the_same_seed_tells_the_same(told: list[Interaction]) -> None:
    assert [each for customer in sample.generate() for each in customer] == told


def test_a_customer_is_the_same_whatever_the_number_of_others(company: list[list[Interaction]]) -> None:
    assert list(sample.generate(customers=7)) == company[:7]


def test_another_seed_tells_of_others(told: list[Interaction]) -> None:
    others = [each for customer in sample.generate(seed=sample.SEED + 1) for each in customer]
    assert not {each.interaction_id for each in others} & {each.interaction_id for each in told}
    assert not {each.customer.customer_id for each in others} & {each.customer.customer_id for each in told}


def test_it_is_about_800_customers_and_10000_interactions(
    company: list[list[Interaction]], told: list[Interaction]
) -> None:
    assert len(company) == 800
    assert all(company)
    assert 9_000 < len(told) < 11_000
    assert len({each.interaction_id for each in told}) == len(told)


def test_it_keeps_every_rule_of_ingest(told: list[Interaction]) -> None:
    for each in told:
        assert RecordInteraction.of(ingest_events.Interaction.from_proto(each), sample.ANCHOR).digest


def test_every_customer_lives_within_the_90_days_one_step_after_the_other(company: list[list[Interaction]]) -> None:
    start = sample.ANCHOR - timedelta(days=sample.DAYS)
    for customer in company:
        times = [each.occurred_at.ToNanoseconds() for each in customer]
        assert times == sorted(set(times))
        assert start.timestamp() * 1e9 <= times[0] <= times[-1] <= sample.ANCHOR.timestamp() * 1e9


def test_every_channel_kind_outcome_and_metric_is_there(told: list[Interaction]) -> None:
    assert {each.channel for each in told} == {value for _, value in Channel.items() if value}
    assert {each.customer.kind for each in told} == {value for _, value in CustomerKind.items() if value}
    assert {each.outcome for each in told} == {value for _, value in Outcome.items()}
    assert {r.metric for each in told for r in each.ratings} == {v for _, v in RatingMetric.items() if v}
    assert any(each.amount.amount.startswith("-") for each in told), "refunds"


def test_all_languages_speak_about_as_much(told: list[Interaction]) -> None:
    spoken = Counter(each.verbatim.language for each in told if each.HasField("verbatim"))
    assert set(spoken) == set(sample.LANGUAGES)
    assert min(spoken.values()) > 150


def test_a_recommendation_is_told_from_both_ends(company: list[list[Interaction]]) -> None:
    given, received = set(), set()
    for customer in company:
        for each in customer:
            me, other = each.customer.customer_id, each.referral.other_customer_id
            if each.referral.direction == ReferralDirection.REFERRAL_DIRECTION_GIVEN:
                given.add((me, other))
            elif each.referral.direction == ReferralDirection.REFERRAL_DIRECTION_RECEIVED:
                received.add((other, me))
    assert len(given & received) > 20


def test_ratings_follow_the_words_most_of_the_time(told: list[Interaction]) -> None:
    kind_of = {
        text: kind
        for language in sample.LANGUAGES
        for kinds in sample.phrases(language).values()
        for kind, texts in kinds.items()
        for text in texts
    }
    for metric, difference in ((RatingMetric.RATING_METRIC_NPS, 3), (RatingMetric.RATING_METRIC_CSAT, 1)):
        values: dict[str, list[float]] = {kind: [] for kind in sample.KINDS}
        for each in told:
            if each.HasField("verbatim"):
                values[kind_of[each.verbatim.text]] += [r.value for r in each.ratings if r.metric == metric]
        delight, pain = (sum(values[kind]) / len(values[kind]) for kind in ("delight", "pain"))
        assert delight > pain + difference


def test_one_score_is_asked_often_enough_for_a_chart_and_falls_once(told: list[Interaction]) -> None:
    taps = [each for each in told if each.touchpoint == "order_status" and each.ratings]
    days = Counter(each.occurred_at.ToDatetime().date() for each in taps)
    assert sum(count >= LEAST_ANSWERS for count in days.values()) > max(len(days) / 2, LEAST_BASELINE + 10)
    begin, end = (moment.timestamp() for moment in sample.NO_NEWS)
    good: dict[bool, list[bool]] = {True: [], False: []}
    for each in taps:
        good[begin <= each.occurred_at.seconds < end].append(each.ratings[0].value >= 4)
    dark, else_ = (sum(good[when]) / len(good[when]) for when in (True, False))
    assert (dark < 0.5, else_ > 0.8) == (True, True)


@pytest.mark.parametrize("language", sample.LANGUAGES)
def test_each_language_has_its_own_words_for_everything(language: str) -> None:
    phrases = sample.phrases(language)
    texts = [text for kinds in phrases.values() for texts in kinds.values() for text in texts]
    assert len(set(texts)) == len(texts) >= 120
    english = sample.phrases("en")
    assert {topic: set(kinds) for topic, kinds in phrases.items()} == {t: set(kinds) for t, kinds in english.items()}
    assert all(set(kinds) <= set(sample.KINDS) for kinds in phrases.values())
    if language != "en":
        assert not set(texts) & {text for kinds in english.values() for words in kinds.values() for text in words}


# -- the shipped maps ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ecommerce", "omnichannel"])
def test_a_shipped_map_is_one_that_can_be_published(name: str) -> None:
    journey_map = _map(name)
    assert list(violations(journey_map)) == []
    assert any(touchpoint.moment_of_truth for stage in journey_map.stages for touchpoint in stage.touchpoints)


def test_the_omnichannel_map_places_all_but_what_is_new(told: list[Interaction]) -> None:
    journey_map = _map("omnichannel")
    unplaced = {each.touchpoint for each in told if _placed(journey_map, each) is None}
    assert unplaced == NEW_TOUCHPOINTS
    placed = {_placed(journey_map, each) for each in told}
    ours = {rule.touchpoint_id for rule in journey_map.mapping_rules if rule.source not in {SOURCE, *EXAMPLES}}
    assert ours <= placed, "every rule has its use"


@pytest.mark.parametrize("name", ["ecommerce", "omnichannel"])
@pytest.mark.parametrize(
    "touchpoint",
    [
        "order_placed",
        "payment_approved",
        "handed_to_carrier",
        "order_delivered",
        "order_canceled",
        "order_unavailable",
        "delivery_missed",
        "review",
    ],
)
def test_both_maps_place_all_of_olist(name: str, touchpoint: str) -> None:
    assert _placed(_map(name), Interaction(source=SOURCE, touchpoint=touchpoint)) is not None


def _map(name: str) -> journey_events.JourneyMap:
    return journey_events.JourneyMap.from_proto(journeymap.load(journeymap.SHIPPED / f"{name}.yaml"))


def _placed(journey_map: journey_events.JourneyMap, interaction: Interaction) -> str | None:
    found = ingest_events.Interaction.from_proto(interaction)
    return place(journey_map, found.source, found.touchpoint, found.channel)
