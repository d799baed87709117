"""Every rule of an interaction: what breaks it is named by field and rule, what keeps it is recorded."""

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recorrido.ingest.v1.events import (
    Channel,
    Customer,
    CustomerKind,
    Interaction,
    Money,
    Outcome,
    Rating,
    RatingMetric,
    Referral,
    ReferralDirection,
    Verbatim,
)
from services.foundation.errors import InvalidError, Violation
from services.ingest.domain import MAX_VIOLATIONS, RecordInteraction

NOW = datetime(2026, 3, 1, 9, 30, tzinfo=UTC)
INF, NAN = float("inf"), float("nan")


def interaction(**changes: Any) -> Interaction:
    fields: dict[str, Any] = {
        "source": "webshop",
        "interaction_id": "order-1",
        "customer": Customer(customer_id="ana", kind=CustomerKind.BUYER),
        "touchpoint": "checkout",
        "channel": Channel.WEB,
        "occurred_at": NOW - timedelta(hours=1),
    }
    return Interaction(**{**fields, **changes})


def rules_broken_by(anything: Interaction) -> list[tuple[str, str]]:
    try:
        RecordInteraction.of(anything, NOW)
    except InvalidError as error:
        return [(v.field, v.rule) for v in error.violations] or pytest.fail("refused without a reason")
    return []


def broken(**changes: Any) -> list[tuple[str, str]]:
    return rules_broken_by(interaction(**changes))


def rating(**fields: Any) -> dict[str, Any]:
    return {"ratings": (Rating(**fields),)}


def custom(**fields: Any) -> dict[str, Any]:
    return rating(
        **{
            "metric": RatingMetric.CUSTOM,
            "name": "taste",
            "scale_min": 1.0,
            "scale_max": 5.0,
            "value": 3.0,
            **fields,
        }
    )


def money(currency_code: str, amount: str) -> dict[str, Any]:
    return {"amount": Money(currency_code=currency_code, amount=amount)}


def scales(count: int) -> tuple[Rating, ...]:
    return tuple(Rating(metric=RatingMetric.CUSTOM, name=str(i), scale_min=0, scale_max=1) for i in range(count))


NPS, CSAT, CES = RatingMetric.NPS, RatingMetric.CSAT, RatingMetric.CES
LANGUAGE_RULE = "ISO 639-1, two lower-case letters, or empty"
AMOUNT_RULE = "a decimal number such as 129.90, at most 18 digits, 4 of them decimals"
TEXT_RULE = "no control characters but tab, line feed and carriage return, has "

BAD: list[tuple[dict[str, Any], str, str]] = [
    ({"source": ""}, "source", "required, 1 to 128 characters, not blank"),
    ({"source": " \u00a0\t"}, "source", "required, 1 to 128 characters, not blank"),
    ({"source": "s" * 129}, "source", "at most 128 characters, has 129"),
    ({"source": "a\nb"}, "source", "no control characters, has U+000A at character 1"),
    ({"interaction_id": ""}, "interaction_id", "required, 1 to 256 characters, not blank"),
    ({"interaction_id": "i" * 257}, "interaction_id", "at most 256 characters, has 257"),
    ({"interaction_id": "a\x1fb"}, "interaction_id", "no control characters, has U+001F at character 1"),
    (
        {"customer": Customer(kind=CustomerKind.BUYER)},
        "customer.customer_id",
        "required, 1 to 256 characters, not blank",
    ),
    (
        {"customer": Customer(customer_id="é" * 257, kind=CustomerKind.BUYER)},
        "customer.customer_id",
        "at most 256 characters, has 257",
    ),
    (
        {"customer": Customer(customer_id="ana\0", kind=CustomerKind.BUYER)},
        "customer.customer_id",
        "no control characters, has U+0000 at character 3",
    ),
    ({"customer": Customer(customer_id="ana")}, "customer.kind", "one of the known kinds"),
    ({"touchpoint": ""}, "touchpoint", "required, 1 to 128 characters, not blank"),
    ({"touchpoint": "t" * 129}, "touchpoint", "at most 128 characters, has 129"),
    ({"touchpoint": "\x85"}, "touchpoint", "required, 1 to 128 characters, not blank"),
    ({"touchpoint": "a\x9f"}, "touchpoint", "no control characters, has U+009F at character 1"),
    ({"channel": Channel.UNSPECIFIED}, "channel", "one of the known channels"),
    ({"occurred_at": None}, "occurred_at", "required"),
    (
        {"occurred_at": NOW + timedelta(minutes=5, microseconds=1)},
        "occurred_at",
        "not in the future, now is 2026-03-01T09:30:00Z",
    ),
    ({"occurred_at": datetime(1899, 12, 31, 23, 59, 59, tzinfo=UTC)}, "occurred_at", "not before the year 1900"),
    ({"episode_id": "e" * 257}, "episode_id", "at most 256 characters, has 257"),
    ({"episode_id": "\x7f"}, "episode_id", "no control characters, has U+007F at character 0"),
    (
        {"verbatim": Verbatim(text="x" * 1_048_576)},
        "verbatim.text",
        "at most 16384 bytes of UTF-8, has 1048576",
    ),
    ({"verbatim": Verbatim(text="é" * 8193)}, "verbatim.text", "at most 16384 bytes of UTF-8, has 16386"),
    ({"verbatim": Verbatim(text="nice\0")}, "verbatim.text", TEXT_RULE + "U+0000 at character 4"),
    ({"verbatim": Verbatim(text="\x0b")}, "verbatim.text", TEXT_RULE + "U+000B at character 0"),
    *(
        (
            {"verbatim": Verbatim(text="ok", language=code)},
            "verbatim.language",
            "ISO 639-1, two lower-case letters, or empty",
        )
        for code in ("EN", "eng", "e", "e1", "en-GB", "pt\n", "ñe")
    ),
    *(
        (rating(metric=metric, value=value), "ratings[0].value", f"a whole number between {scale} for {metric.name}")
        for metric, scale, values in (
            (NPS, "0 and 10", (-1.0, 11.0, 7.5, NAN, INF, -INF)),
            (CSAT, "1 and 5", (0.0, 6.0, 4.5, NAN, INF)),
            (CES, "1 and 7", (0.0, 8.0, 1.0001, NAN, -INF)),
        )
        for value in values
    ),
    (rating(value=3.0), "ratings[0].metric", "one of the known metrics"),
    (rating(metric=NPS, value=3.0, name="x"), "ratings[0].name", "only for a custom scale"),
    (rating(metric=NPS, value=3.0, scale_min=0.0), "ratings[0].scale_min", "only for a custom scale"),
    (rating(metric=NPS, value=3.0, scale_max=0.0), "ratings[0].scale_max", "only for a custom scale"),
    (custom(name=""), "ratings[0].name", "required, 1 to 128 characters, not blank"),
    (custom(name="\0"), "ratings[0].name", "no control characters, has U+0000 at character 0"),
    (custom(scale_min=None), "ratings[0].scale_min", "required for a custom scale, a finite number"),
    (custom(scale_max=INF), "ratings[0].scale_max", "required for a custom scale, a finite number"),
    (custom(scale_max=NAN), "ratings[0].scale_max", "required for a custom scale, a finite number"),
    (custom(scale_max=1.0, value=1.0), "ratings[0].scale_max", "greater than scale_min"),
    (custom(value=5.01), "ratings[0].value", "between 1 and 5"),
    (custom(value=0.99), "ratings[0].value", "between 1 and 5"),
    (custom(value=NAN), "ratings[0].value", "a finite number"),
    (
        {"ratings": (Rating(metric=NPS, value=1.0), Rating(metric=NPS, value=2.0))},
        "ratings[1]",
        "one rating per metric and name",
    ),
    (
        {
            "ratings": tuple(
                Rating(metric=RatingMetric.CUSTOM, name=str(i), scale_min=0, scale_max=1) for i in range(17)
            )
        },
        "ratings",
        "at most 16, has 17",
    ),
    *(
        (money(code, "1"), "amount.currency_code", "an ISO 4217 code, such as EUR")
        for code in ("", "eur", "EURO", "XXX", "XTS", "ABC", "€")
    ),
    *(
        (
            money("EUR", amount),
            "amount.amount",
            "a decimal number such as 129.90, at most 18 digits, 4 of them decimals",
        )
        for amount in (
            "",
            "1,5",
            "1.",
            ".5",
            "1e3",
            "+1",
            "--1",
            "NaN",
            "Infinity",
            "1.00001",
            " 1",
            "1\n",
            "٣",
            "1" * 19,
        )
    ),
    (money("EUR", "1" * 19), "amount.amount", AMOUNT_RULE),
    ({"referral": Referral(other_customer_id="bo")}, "referral.direction", "given or received"),
    (
        {"referral": Referral(direction=ReferralDirection.GIVEN, other_customer_id="b" * 257)},
        "referral.other_customer_id",
        "at most 256 characters, has 257",
    ),
    ({"attributes": {str(i): "" for i in range(65)}}, "attributes", "at most 64, has 65"),
    ({"attributes": {"": "x"}}, "attributes['']", "required, 1 to 64 characters, not blank"),
    ({"attributes": {"k" * 65: "x"}}, f"attributes['{'k' * 64}']", "at most 64 characters, has 65"),
    ({"attributes": {"a\nb": "x"}}, "attributes['a\\nb']", "no control characters, has U+000A at character 1"),
    ({"attributes": {"k": "v" * 1025}}, "attributes['k']", "a value of at most 1024 characters, has 1025"),
    ({"attributes": {"k": "\0"}}, "attributes['k']", TEXT_RULE + "U+0000 at character 0"),
]

GOOD: list[dict[str, Any]] = [
    {},
    {"touchpoint": "a place no journey map knows"},
    {"source": "s" * 128, "interaction_id": "🧾" * 256, "episode_id": "e" * 256, "touchpoint": "t" * 128},
    {"customer": Customer(customer_id="ana-ж/*.> 'x'", kind=CustomerKind.SUPPLIER)},
    {"occurred_at": NOW + timedelta(minutes=5)},
    {"occurred_at": datetime(1900, 1, 1, tzinfo=UTC)},
    {"verbatim": Verbatim(text="x" * 16384, language="sl")},
    {"verbatim": Verbatim(text="é" * 8192)},
    {"verbatim": Verbatim(text="first\r\n\tsecond 👨‍👩‍👧 مرحبا")},
    {"verbatim": Verbatim()},
    rating(metric=NPS, value=0.0),
    rating(metric=NPS, value=10.0),
    rating(metric=CSAT, value=1.0),
    rating(metric=CSAT, value=5.0),
    rating(metric=CES, value=1.0),
    rating(metric=CES, value=7.0),
    custom(value=1.0),
    custom(value=5.0),
    custom(value=-0.25, scale_min=-0.5, scale_max=0.0),
    {"ratings": (Rating(metric=NPS, value=1.0), Rating(metric=CSAT, value=1.0))},
    {"ratings": scales(16)},
    money("EUR", "129.90"),
    money("JPY", "-1500"),
    money("BRL", "0.1234"),
    money("HRK", "1" * 18),
    money("EUR", "12345678901234.5678"),
    {"referral": Referral(direction=ReferralDirection.RECEIVED)},
    {"outcome": Outcome.LATE},
    {"attributes": {"k" * 64: "v" * 1024}},
    {"attributes": {f"key {i}": "a\nb" for i in range(64)}},
]


@pytest.mark.parametrize(("changes", "field", "rule"), BAD, ids=lambda value: str(value)[:50])
def test_a_broken_rule_is_named_and_nothing_else(changes: dict[str, Any], field: str, rule: str) -> None:
    assert broken(**changes) == [(field, rule)]


@pytest.mark.parametrize("changes", GOOD, ids=lambda value: str(value)[:50])
def test_what_keeps_the_rules_is_taken(changes: dict[str, Any]) -> None:
    assert broken(**changes) == []


def test_no_customer_at_all_misses_both_its_fields() -> None:
    assert [field for field, _ in broken(customer=None)] == ["customer.customer_id", "customer.kind"]


def test_an_empty_interaction_names_all_it_lacks() -> None:
    with pytest.raises(InvalidError) as caught:
        RecordInteraction.of(Interaction(), NOW)
    assert [v.field for v in caught.value.violations] == [
        "source",
        "interaction_id",
        "customer.customer_id",
        "customer.kind",
        "touchpoint",
        "channel",
        "occurred_at",
    ]


def test_a_field_that_could_not_be_read_is_named_once() -> None:
    unreadable = Violation("occurred_at", "a valid timestamp")
    with pytest.raises(InvalidError) as caught:
        RecordInteraction.of(interaction(occurred_at=None, source=""), NOW, [unreadable])
    assert [v.field for v in caught.value.violations] == ["occurred_at", "source"]
    assert caught.value.violations[0] is unreadable


def test_the_moment_counts_in_any_time_zone() -> None:
    east = timezone(timedelta(hours=9))
    assert broken(occurred_at=NOW.astimezone(east)) == []
    assert broken(occurred_at=(NOW + timedelta(minutes=6)).astimezone(east)) != []


PAIRS = [case for case in BAD if "ratings[1]" not in case[1]]


@given(st.lists(st.sampled_from(PAIRS), min_size=2, max_size=8, unique_by=lambda case: next(iter(case[0]))))
def test_all_broken_rules_are_named_together(cases: list[tuple[dict[str, Any], str, str]]) -> None:
    changes = {name: value for change, _, _ in cases for name, value in change.items()}
    assert sorted(broken(**changes)) == sorted((field, rule) for _, field, rule in cases)


def test_a_flood_of_broken_rules_is_bounded() -> None:
    assert len(broken(attributes={f"{'k' * 70}\0{i}": "\0" * 2000 for i in range(1000)})) == MAX_VIOLATIONS


TEXTS = st.text(max_size=300)


@given(
    st.builds(
        Interaction,
        source=TEXTS,
        interaction_id=TEXTS,
        customer=st.none() | st.builds(Customer, customer_id=TEXTS, kind=st.sampled_from(CustomerKind)),
        touchpoint=TEXTS,
        channel=st.sampled_from(Channel),
        occurred_at=st.none() | st.datetimes(timezones=st.just(UTC)),
        verbatim=st.none() | st.builds(Verbatim, text=TEXTS, language=TEXTS),
        ratings=st.lists(
            st.builds(
                Rating,
                metric=st.sampled_from(RatingMetric),
                value=st.floats(),
                name=TEXTS,
                scale_min=st.none() | st.floats(),
                scale_max=st.none() | st.floats(),
            ),
            max_size=18,
        ).map(tuple),
        amount=st.none() | st.builds(Money, currency_code=TEXTS, amount=TEXTS),
        referral=st.none() | st.builds(Referral, direction=st.sampled_from(ReferralDirection)),
        attributes=st.dictionaries(TEXTS, TEXTS, max_size=66),
    )
)
def test_anything_is_either_taken_or_refused_with_its_reasons(anything: Interaction) -> None:
    problems = rules_broken_by(anything)
    assert all(field and rule for field, rule in problems)
    if not problems:
        # What is taken survives the store as it is.
        assert msgspec.json.decode(msgspec.json.encode(anything), type=Interaction) == anything
