"""What a mapping makes of one row: values, tables, scales, times, rules, and rows that cannot be an interaction."""

from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict
from hypothesis import given, settings
from hypothesis import strategies as st

from recorrido.ingest.v1 import events
from recorrido.ingest.v1.identity_pb2 import IdentityKind
from recorrido.ingest.v1.interaction_pb2 import Channel, CustomerKind, Interaction, Outcome
from services.cli.importing.records import RECORD_LIMIT, Record
from services.cli.importing.rows import Mapper, Row
from services.foundation.errors import InvalidError
from services.ingest.domain import RecordInteraction
from tests.support.importing import mapping, row_of

NOW = datetime(2026, 3, 1, tzinfo=UTC)


def good(row: Row) -> Interaction:
    assert row.problems == []
    assert row.interaction is not None
    RecordInteraction.of(events.Interaction.from_proto(row.interaction), NOW)
    return row.interaction


def problem(row: Row) -> str:
    """Return the only problem of a row that can be sent all the same."""
    assert row.interaction is not None
    (told,) = row.problems
    attributes = row.interaction.attributes
    assert (attributes["import.file"], attributes["import.line"]) == ("file.csv", "7")
    return str(told)


def test_the_least_there_can_be() -> None:
    assert MessageToDict(good(row_of(mapping()))) == {
        "source": "shop",
        "interactionId": "1",
        "customer": {"customerId": "ana", "kind": "CUSTOMER_KIND_BUYER"},
        "touchpoint": "bought",
        "channel": "CHANNEL_WEB",
        "occurredAt": "2026-02-03T12:00:00Z",
    }


def test_every_field_can_come_from_the_row() -> None:
    told = mapping(
        "jsonl",
        source="system",
        customer_kind="kind",
        channel="where",
        episode_id="order",
        verbatim={"text": "words", "language": "lang"},
        ratings=[
            {"metric": "nps", "value": "nps"},
            {"metric": "custom", "value": "speed", "name": "speed", "scale": [0, 20]},
        ],
        amount={"value": "total", "currency": "money"},
        outcome="end",
        referral={"direction": "heard", "other_customer_id": "from"},
        attributes={"city": "city"},
        attributes_from=[{"from": "rest", "prefix": "rest.", "except": ["c"]}],
    )
    content = {
        "system": "till",
        "kind": "employee",
        "where": "word_of_mouth",
        "order": 17,
        "words": " So nice! ",
        "lang": "en",
        "nps": 9,
        "speed": 7.5,
        "total": "12.30",
        "money": "EUR",
        "end": "late",
        "heard": "received",
        "from": "bo",
        "city": "Ptuj",
        "rest": {"a": {"b": True}, "c": 1, "d": None, "e": [1]},
    }
    assert MessageToDict(good(row_of(told, **content))) == {
        "source": "till",
        "interactionId": "1",
        "customer": {"customerId": "ana", "kind": "CUSTOMER_KIND_EMPLOYEE"},
        "touchpoint": "bought",
        "channel": "CHANNEL_WORD_OF_MOUTH",
        "occurredAt": "2026-02-03T12:00:00Z",
        "episodeId": "17",
        "verbatim": {"text": "So nice!", "language": "en"},
        "ratings": [
            {"metric": "RATING_METRIC_NPS", "value": 9.0},
            {"metric": "RATING_METRIC_CUSTOM", "value": 7.5, "name": "speed", "scaleMin": 0.0, "scaleMax": 20.0},
        ],
        "amount": {"currencyCode": "EUR", "amount": "12.30"},
        "outcome": "OUTCOME_LATE",
        "referral": {"direction": "REFERRAL_DIRECTION_RECEIVED", "otherCustomerId": "bo"},
        "attributes": {"city": "Ptuj", "rest.a.b": "true", "rest.e": "[1]"},
    }


def test_what_is_empty_is_left_out() -> None:
    told = mapping(
        episode_id="none",
        verbatim={"text": "none", "language": {"value": "en"}},
        ratings=[{"metric": "nps", "value": "none"}],
        amount={"value": "none", "currency": {"value": "EUR"}},
        outcome="none",
        referral={"direction": "none"},
        attributes={"a": "none"},
    )
    assert good(row_of(told, none="  ")) == good(row_of(mapping()))


@pytest.mark.parametrize(
    ("value", "content", "found"),
    [
        ({"from": "a", "default": "d"}, {"a": ""}, "d"),
        ({"from": "a", "default": "d"}, {"a": "x"}, "x"),
        ({"first": ["a", "b"]}, {"b": "y"}, "y"),
        ({"from": ["a", "b"], "join": " - "}, {"a": "x", "b": "y"}, "x - y"),
        ({"from": ["a", "b"]}, {"b": "y"}, "y"),
        ({"from": "a", "table": {1: "one"}}, {"a": 1}, "one"),
        ({"from": "a", "table": {"x": "y"}, "otherwise": "z"}, {"a": "w"}, "z"),
        ({"from": "a.b.c"}, {"a": {"b": {"c": "deep"}}}, "deep"),
        ({"from": "a.b.c"}, {"a": {"b.c": "dotted"}}, "dotted"),
        ({"from": "a.b.c"}, {"a.b": {"x": 1}, "a": {"b": {"c": "behind"}}}, "behind"),
        ({"from": "a.1.b"}, {"a": [0, {"b": "listed"}]}, "listed"),
        ("$line", {}, "7"),
        ("$file", {}, "file.csv"),
        ("$position", {}, "1"),
    ],
)
def test_where_a_value_comes_from(value: Any, content: dict[str, Any], found: str) -> None:
    assert good(row_of(mapping(touchpoint=value), **content)).touchpoint == found


@settings(deadline=None)
@given(st.lists(st.tuples(st.text(), st.text()), min_size=2, max_size=2, unique=True), st.sampled_from("/-.:|"))
def test_different_parts_never_make_the_same_id(pairs: list[tuple[str, str]], separator: str) -> None:
    told = mapping(interaction_id={"from": ["a", "b"], "join": separator})
    stripped = {(a.strip(), b.strip()) for a, b in pairs}
    found = [row_of(told, a=a, b=b) for a, b in stripped]
    ids = {row.interaction.interaction_id for row in found if row.interaction and not row.problems}
    assert len(ids) == sum(not row.problems for row in found)
    assert all(bool(row.problems) is not (bool(a) and bool(b)) for row, (a, b) in zip(found, stripped, strict=True))


def test_the_digest_of_a_row_can_be_its_id() -> None:
    told = mapping(interaction_id="$digest")
    first, again, other = (good(row_of(told, x=x)).interaction_id for x in ("1", "1", "2"))
    assert first == again != other


@pytest.mark.parametrize(
    ("time", "text", "utc"),
    [
        ({}, "2026-02-03T12:00:00+01:00", "2026-02-03T11:00:00Z"),
        ({}, "2026-02-03 12:00:00.1234567Z", "2026-02-03T12:00:00.123456Z"),
        ({"zone": "Europe/Ljubljana"}, "2025-07-01 12:00", "2025-07-01T10:00:00Z"),
        ({"zone": "+02:00"}, "2025-12-01 12:00", "2025-12-01T10:00:00Z"),
        ({"zone": "-0330"}, "2025-12-01T12:00:00+00:00", "2025-12-01T12:00:00Z"),
        # The hour that there is twice: summer time's.
        ({"zone": "Europe/Ljubljana"}, "2025-10-26 02:30", "2025-10-26T00:30:00Z"),
        ({"format": "%d.%m.%y %H:%M", "zone": "Europe/Ljubljana"}, "03.02.26 12:00", "2026-02-03T11:00:00Z"),
        ({"format": "%Y-%m-%d", "zone": "UTC"}, "2026-02-03", "2026-02-03T00:00:00Z"),
        ({"format": "%d/%b/%Y:%H:%M:%S %z"}, "03/Feb/2026:12:00:00 -0500", "2026-02-03T17:00:00Z"),
        ({"format": "unix"}, "1770120000.5", "2026-02-03T12:00:00.500Z"),
        ({"format": "unix_ms"}, "1770120000500", "2026-02-03T12:00:00.500Z"),
    ],
)
def test_times(time: dict[str, str], text: str, utc: str) -> None:
    made = good(row_of(mapping(occurred_at={"from": "when", **time}), when=text))
    assert made.occurred_at.ToJsonString() == utc


@pytest.mark.parametrize(
    ("time", "text", "told"),
    [
        ({}, "", "occurred_at: nothing in when"),
        ({}, "2026-02-03T12:00:00", "occurred_at: '2026-02-03T12:00:00' tells no offset from UTC"),
        ({"zone": "UTC"}, "2026-02-03", "occurred_at: '2026-02-03' is a day, not a time"),
        ({"zone": "UTC"}, "yesterday", "occurred_at: 'yesterday' is no ISO 8601 time"),
        ({"zone": "Europe/Ljubljana"}, "2025-03-30 02:30", "was shown by no clock"),
        ({"format": "%d.%m.%Y", "zone": "UTC"}, "31.02.2026", "occurred_at: '31.02.2026' does not match %d.%m.%Y"),
        ({"format": "unix"}, "soon", "occurred_at: 'soon' is no number of seconds since 1970"),
        ({"format": "unix"}, "1e999999", "is no number of seconds since 1970"),
        ({"format": "unix_ms"}, "NaN", "is no number of milliseconds since 1970"),
        ({"zone": "+14:00"}, "0001-01-01 00:00", "lies outside of the years 1 to 9999"),
    ],
)
def test_times_that_are_none(time: dict[str, str], text: str, told: str) -> None:
    assert told in problem(row_of(mapping(occurred_at={"from": "when", **time}), when=text))


@pytest.mark.parametrize(
    ("number", "text", "found"),
    [
        ({}, "12.5", "12.5"),
        ({}, "-12", "-12"),
        ({}, ".5", "0.5"),
        ({"decimal": ",", "thousands": "."}, "1.234.567,89", "1234567.89"),
        ({"decimal": ",", "thousands": "."}, "1234,5", "1234.5"),
        ({"thousands": "'"}, "1'000", "1000"),
        ({"decimal": ",", "thousands": " "}, "1\u00a0000,5", "1000.5"),
    ],
)
def test_numbers(number: dict[str, str], text: str, found: str) -> None:
    told = mapping(amount={"value": {"from": "total", **number}, "currency": {"value": "EUR"}})
    assert good(row_of(told, total=text)).amount.amount == found


@pytest.mark.parametrize(
    ("number", "text"),
    [({}, "1,5"), ({}, "12 EUR"), ({}, "NaN"), ({}, "."), ({}, "1_0"), ({"decimal": ",", "thousands": "."}, "1.5")],
)
def test_numbers_that_are_none(number: dict[str, str], text: str) -> None:
    told = mapping(amount={"value": {"from": "total", **number}, "currency": {"value": "EUR"}})
    assert f"amount: {text!r} is no number" in problem(row_of(told, total=text))


@pytest.mark.parametrize(
    ("metric", "scale", "given", "value"),
    [
        ("csat", None, "4", 4),
        ("csat", [0, 100], "0", 1),
        ("csat", [0, 100], "62.5", 4),
        ("csat", [0, 100], "62.4", 3),
        ("csat", [5, 1], "5", 1),
        ("csat", [5, 1], "1", 5),
        ("nps", [1, 5], "4", 8),
        ("ces", [0, 100], "40", 3),
    ],
)
def test_a_scale_is_converted_only_when_stated(metric: str, scale: Any, given: str, value: float) -> None:
    told = mapping(ratings=[{"metric": metric, "value": "answer", "from_scale": scale}])
    (rating,) = good(row_of(told, answer=given)).ratings
    assert rating.value == value


def test_a_rating_outside_of_its_scale_is_bad() -> None:
    converted = mapping(ratings=[{"metric": "csat", "value": "answer", "from_scale": [0, 10]}])
    assert problem(row_of(converted, answer="11")) == "ratings (csat): 11 is not between 0 and 10"
    # Without a conversion it is the metric's own scale, which ingest knows.
    row = row_of(mapping(ratings=[{"metric": "csat", "value": "answer"}]), answer="10")
    assert row.interaction is not None
    with pytest.raises(InvalidError, match=r"ratings\[0\]"):
        RecordInteraction.of(events.Interaction.from_proto(row.interaction), NOW)


@pytest.mark.parametrize(
    ("fields", "content", "told"),
    [
        ({}, {"id": ""}, "interaction_id: nothing in id"),
        ({}, {"customer": None}, "customer_id: nothing in customer"),
        ({}, {"event": " "}, "touchpoint: nothing in event"),
        ({"interaction_id": ["id", "x"]}, {}, "interaction_id: nothing in x"),
        ({"channel": "c"}, {}, "channel: nothing in c"),
        ({"channel": "c"}, {"c": "Web"}, "channel: 'Web' is not one of store, web"),
        ({"channel": {"from": "c", "table": {"w": "web"}}}, {"c": "x"}, "channel: the table does not have 'x'"),
        ({"outcome": "o"}, {"o": "fine"}, "outcome: 'fine' is not one of succeeded"),
        ({"episode_id": {"from": "e", "table": {"a": "b"}}}, {"e": "c"}, "episode_id: the table does not have 'c'"),
        ({"verbatim": {"text": {"from": "e", "table": {"a": "b"}}}}, {"e": "c"}, "verbatim: the table does not have"),
        ({"attributes": {"a": {"from": "e", "table": {"a": "b"}}}}, {"e": "c"}, "attributes.a: the table does not"),
        ({"ratings": [{"metric": "nps", "value": "n"}]}, {"n": "ten"}, "ratings (nps): 'ten' is no number"),
        ({"referral": {"direction": "r"}}, {"r": "sideways"}, "referral: 'sideways' is not one of given"),
    ],
)
def test_whatever_is_wrong_with_a_row_it_is_refused_and_kept(
    fields: dict[str, Any], content: dict[str, Any], told: str
) -> None:
    row = row_of(mapping(**fields), **content)
    assert told in problem(row)
    # The rest is as it would be.
    assert row.interaction is not None
    assert row.interaction.source == "shop"
    assert row.interaction.occurred_at.seconds


def test_all_problems_of_a_row_are_told_at_once() -> None:
    row = row_of(mapping(), customer="", when="never")
    assert [each.field for each in row.problems] == ["customer_id", "occurred_at"]


def test_a_row_that_no_message_could_hold_is_sent_without_its_content() -> None:
    row = row_of(mapping(verbatim={"text": "words"}), words="x" * (RECORD_LIMIT + 1))
    assert "is larger than" in problem(row)
    assert row.interaction is not None
    assert row.interaction.ByteSize() < 10_000


def test_rules_set_fields_of_the_rows_they_are_for() -> None:
    told = mapping(
        outcome={"value": "succeeded"},
        attributes={"a": {"value": "all"}, "b": {"value": "all"}},
        more={
            "rules": [
                {"when": {"event": ["returned", "sent back"]}, "set": {"channel": {"value": "returns"}}},
                {
                    "when": {"event": "returned", "why": {"empty": False}},
                    "set": {"outcome": {"value": "failed"}, "attributes": {"b": {"value": "rule"}, "why": "why"}},
                },
                {"when": {"id": {"matches": "^x", "not": "x9"}}, "set": {"customer_kind": {"value": "other"}}},
            ]
        },
    )
    plain = good(row_of(told))
    assert (plain.channel, plain.outcome) == (Channel.CHANNEL_WEB, Outcome.OUTCOME_SUCCEEDED)
    first = good(row_of(told, event="sent back", why="broken"))
    assert (first.channel, first.outcome) == (Channel.CHANNEL_RETURNS, Outcome.OUTCOME_SUCCEEDED)
    both = good(row_of(told, event="returned", why="broken"))
    assert (both.channel, both.outcome) == (Channel.CHANNEL_RETURNS, Outcome.OUTCOME_FAILED)
    assert dict(both.attributes) == {"a": "all", "b": "rule", "why": "broken"}
    kinds = [good(row_of(told, id=each)).customer.kind for each in ("x1", "x9", "1")]
    other, buyer = CustomerKind.CUSTOMER_KIND_OTHER, CustomerKind.CUSTOMER_KIND_BUYER
    assert kinds == [other, buyer, buyer]


def test_a_row_that_no_rule_gives_a_required_field_is_bad() -> None:
    told = mapping(drop=["channel"], more={"rules": [{"when": {"event": "x"}, "set": {"channel": {"value": "web"}}}]})
    assert good(row_of(told, event="x")).channel == Channel.CHANNEL_WEB
    assert problem(row_of(told)) == "channel: no rule sets it for this row"


@pytest.mark.parametrize(("test", "skipped"), [(True, True), ("true", True), (False, False), (None, False)])
def test_skipped_rows_tell_why(test: Any, skipped: bool) -> None:  # noqa: FBT001
    told = mapping("jsonl", more={"skip": [{"when": {"test": True}, "reason": "tests"}]})
    row = row_of(told, test=test)
    assert (row.skipped, row.interaction is None) == ("tests" if skipped else "", skipped)


def test_links_are_made_of_rows_that_tell_who_somebody_is() -> None:
    links = [
        {"when": {"card": {"empty": False}}, "kind": "loyalty_card", "value": "card", "customer_id": "customer"},
        {"when": {"mail": {"empty": False}}, "kind": "email_hash", "value": "mail", "customer_id": "customer"},
    ]
    told = mapping(more={"links": links})
    row = row_of(told, card="4711", mail=" Ana@Example.org ")
    assert good(row) == good(row_of(mapping()))
    hashed = sha256(b"ana@example.org").hexdigest()
    assert [(link.kind, link.value, link.customer_id) for link in row.links] == [
        (IdentityKind.IDENTITY_KIND_LOYALTY_CARD, "4711", "ana"),
        (IdentityKind.IDENTITY_KIND_EMAIL_HASH, hashed, "ana"),
    ]
    assert row_of(told, mail=hashed).links[0].value == hashed
    assert row_of(told, card="1", customer="").told == "link: nothing in customer; customer_id: nothing in customer"
    only = mapping(more={"links": links, "skip": [{"when": {"event": "signed up"}}]})
    row = row_of(only, card="4711", event="signed up")
    assert (row.interaction, [link.value for link in row.links], row.skipped) == (None, ["4711"], "skip[0]")
    assert good(row_of(told)).interaction_id == "1"


def test_what_could_not_be_read_is_sent_with_its_source_and_text() -> None:
    row = Mapper(mapping()).row(Record("file.csv", 7, None, 1, "has 2 fields, not 5", "a,b\n"))
    assert problem(row) == "has 2 fields, not 5"
    assert row.interaction is not None
    assert (row.interaction.source, row.interaction.attributes["import.row"]) == ("shop", "a,b ")
