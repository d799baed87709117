"""What Olist's files become, with files that the tests write: the shape of the set and its traps."""

import csv
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

import pytest

from recorrido.ingest.v1 import events as ingest_events
from recorrido.ingest.v1.interaction_pb2 import Channel, CustomerKind, Interaction, Outcome, RatingMetric
from services.cli.failures import CommandError
from services.cli.importing import olist
from services.cli.importing.csvfiles import BadRows
from services.ingest.domain import RecordInteraction

Rows = Sequence[Mapping[str, str]]

PERSON = {"customer_id": "c1", "customer_unique_id": "ana", "customer_city": "olinda", "customer_state": "PE"}
ORDER = {
    "order_id": "o1",
    "customer_id": "c1",
    "order_status": "delivered",
    "order_purchase_timestamp": "2018-01-10 10:00:00",
    "order_approved_at": "2018-01-10 10:30:00",
    "order_delivered_carrier_date": "2018-01-11 09:00:00",
    "order_delivered_customer_date": "2018-01-20 15:00:00",
    "order_estimated_delivery_date": "2018-01-25 00:00:00",
}
UNDELIVERED = {"order_delivered_carrier_date": "", "order_delivered_customer_date": ""}
ITEM = {"order_id": "o1", "product_id": "p1", "seller_id": "s1", "price": "20.0", "freight_value": "5.55"}
PAYMENT = {"order_id": "o1", "payment_type": "boleto", "payment_installments": "1", "payment_value": "25.55"}
REVIEW = {
    "review_id": "r1",
    "order_id": "o1",
    "review_score": "4",
    "review_comment_title": "",
    "review_comment_message": "",
    "review_creation_date": "2018-01-21 00:00:00",
    "review_answer_timestamp": "2018-01-22 08:00:00",
}
PRODUCT = {"product_id": "p1", "product_category_name": "brinquedos"}
CATEGORY = {"product_category_name": "brinquedos", "product_category_name_english": "toys"}


def write(
    folder: Path,
    *,
    orders: Rows = (ORDER,),
    customers: Rows = (PERSON,),
    items: Rows = (ITEM,),
    payments: Rows = (PAYMENT,),
    reviews: Rows = (REVIEW,),
) -> Path:
    """Write the seven files; the order of columns is another than in the set, and there is one that we do not know."""
    for name, rows in {
        olist.ORDERS: orders,
        olist.CUSTOMERS: customers,
        olist.ITEMS: items,
        olist.PAYMENTS: payments,
        olist.REVIEWS: reviews,
        olist.PRODUCTS: (PRODUCT,),
        olist.CATEGORIES: (CATEGORY,),
    }.items():
        with (folder / name).open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, [*reversed(olist.COLUMNS[name]), "new_column"], restval="")
            writer.writeheader()
            writer.writerows(rows)
    return folder


def told(folder: Path) -> list[Interaction]:
    """Return all interactions of a folder without bad rows."""
    bad = BadRows()
    found = [each for orders in olist.read(folder, bad) for each in olist.interactions(orders)]
    assert bad.first == []
    return found


def by_touchpoint(folder: Path) -> dict[str, Interaction]:
    return {each.touchpoint: each for each in told(folder)}


def utc(interaction: Interaction) -> str:
    return interaction.occurred_at.ToJsonString()


def test_an_order_becomes_the_interactions_it_was(tmp_path: Path) -> None:
    found = told(write(tmp_path))
    assert [(each.touchpoint, Channel.Name(each.channel), each.outcome) for each in found] == [
        ("order_placed", "CHANNEL_WEB", Outcome.OUTCOME_SUCCEEDED),
        ("payment_approved", "CHANNEL_WEB", Outcome.OUTCOME_SUCCEEDED),
        ("handed_to_carrier", "CHANNEL_DELIVERY", Outcome.OUTCOME_SUCCEEDED),
        ("order_delivered", "CHANNEL_DELIVERY", Outcome.OUTCOME_SUCCEEDED),
        ("review", "CHANNEL_SURVEY", Outcome.OUTCOME_UNSPECIFIED),
    ]
    assert {(e.source, e.episode_id, e.customer.customer_id, e.customer.kind) for e in found} == {
        ("olist", "o1", "ana", CustomerKind.CUSTOMER_KIND_BUYER)
    }
    placed, *_, review = found
    assert (placed.amount.currency_code, placed.amount.amount) == ("BRL", "25.55")
    assert dict(placed.attributes) == {
        "payment_types": "boleto",
        "installments": "1",
        "items": "1",
        "freight": "5.55",
        "categories": "toys",
        "products": "p1",
        "sellers": "s1",
        "city": "olinda",
        "state": "PE",
        "promised_for": "2018-01-25",
    }
    assert [(rating.metric, rating.value) for rating in review.ratings] == [(RatingMetric.RATING_METRIC_CSAT, 4)]
    assert review.attributes["survey_sent_on"] == "2018-01-21"
    assert not any(each.HasField("amount") for each in found[1:]), "money counts once"


def test_every_interaction_keeps_the_rules_of_ingest(tmp_path: Path) -> None:
    canceled = {**ORDER, **UNDELIVERED, "order_id": "o2", "order_status": "canceled"}
    words = {**REVIEW, "review_comment_message": "Chegou.\r\nObrigado!"}
    for each in told(write(tmp_path, orders=(ORDER, canceled), reviews=(words,))):
        now = datetime.fromisoformat("2019-01-01T00:00:00Z")
        assert RecordInteraction.of(ingest_events.Interaction.from_proto(each), now).digest


def test_local_times_are_brasilia_time_with_its_summer(tmp_path: Path) -> None:
    winter = {**ORDER, "order_id": "o2", "order_purchase_timestamp": "2018-06-10 10:00:00"}
    summer, later = (e for e in told(write(tmp_path, orders=(ORDER, winter))) if e.touchpoint == "order_placed")
    assert utc(summer) == "2018-01-10T12:00:00Z"
    assert utc(later) == "2018-06-10T13:00:00Z"


@pytest.mark.parametrize(
    ("delivered_at", "outcome", "days_late"),
    [
        ("2018-01-25 23:50:00", Outcome.OUTCOME_SUCCEEDED, None),
        ("2018-01-26 00:10:00", Outcome.OUTCOME_LATE, "1"),
        ("2018-02-04 12:00:00", Outcome.OUTCOME_LATE, "10"),
    ],
)
def test_a_delivery_is_late_from_the_day_after_the_promised_one(
    tmp_path: Path, delivered_at: str, outcome: Outcome.ValueType, days_late: str | None
) -> None:
    order = {**ORDER, "order_delivered_customer_date": delivered_at}
    delivered = by_touchpoint(write(tmp_path, orders=(order,)))["order_delivered"]
    assert (delivered.outcome, dict(delivered.attributes).get("days_late")) == (outcome, days_late)
    assert "time_basis" not in delivered.attributes


@pytest.mark.parametrize("status", ["canceled", "unavailable"])
def test_an_order_that_ended_early_failed_not_before_its_last_step(tmp_path: Path, status: str) -> None:
    found = told(write(tmp_path, orders=({**ORDER, **UNDELIVERED, "order_status": status},), reviews=()))
    assert [each.touchpoint for each in found] == ["order_placed", "payment_approved", f"order_{status}"]
    ended = found[-1]
    assert (ended.outcome, utc(ended)) == (Outcome.OUTCOME_FAILED, utc(found[-2]))
    assert ended.attributes["time_basis"] == "last_known_step"


@pytest.mark.parametrize("status", ["created", "approved", "invoiced", "processing", "shipped"])
def test_an_order_that_never_came_failed_when_its_promise_ran_out(tmp_path: Path, status: str) -> None:
    missed = by_touchpoint(write(tmp_path, orders=({**ORDER, **UNDELIVERED, "order_status": status},)))[
        "delivery_missed"
    ]
    assert (missed.outcome, utc(missed)) == (Outcome.OUTCOME_FAILED, "2018-01-26T01:59:59Z")
    assert dict(missed.attributes) == {"order_status": status, "time_basis": "promised_day"}


def test_delivered_without_a_date_is_delivered_on_the_promised_day(tmp_path: Path) -> None:
    order = {**ORDER, "order_delivered_customer_date": ""}
    delivered = by_touchpoint(write(tmp_path, orders=(order,)))["order_delivered"]
    assert (delivered.outcome, utc(delivered)) == (Outcome.OUTCOME_SUCCEEDED, "2018-01-26T01:59:59Z")
    assert delivered.attributes["time_basis"] == "promised_day"


def test_canceled_after_the_delivery_is_both(tmp_path: Path) -> None:
    found = by_touchpoint(write(tmp_path, orders=({**ORDER, "order_status": "canceled"},)))
    assert found["order_delivered"].outcome == Outcome.OUTCOME_SUCCEEDED
    assert utc(found["order_canceled"]) == utc(found["order_delivered"])


def test_the_person_is_the_customer_not_the_order(tmp_path: Path) -> None:
    again = {**PERSON, "customer_id": "c2"}
    other = {**PERSON, "customer_id": "c3", "customer_unique_id": "rui"}
    orders = [{**ORDER, "order_id": f"o{n}", "customer_id": f"c{n}"} for n in (1, 2, 3)]
    write(tmp_path, customers=(PERSON, again, other), orders=orders)
    people = {orders[0].person: len(orders) for orders in olist.read(tmp_path, BadRows())}
    assert people == {"ana": 2, "rui": 1}


def test_one_review_of_two_orders_is_two_interactions(tmp_path: Path) -> None:
    orders = (ORDER, {**ORDER, "order_id": "o2"})
    reviews = (REVIEW, {**REVIEW, "order_id": "o2"}, {**REVIEW, "review_id": "r2"})
    found = [each for each in told(write(tmp_path, orders=orders, reviews=reviews)) if each.touchpoint == "review"]
    assert sorted(each.interaction_id for each in found) == ["o1/review/r1", "o1/review/r2", "o2/review/r1"]


@pytest.mark.parametrize(
    ("title", "message", "text"),
    [
        ("Não CHEGOU ", "péssimo,\r\n\r\nnunca MAIS ", "Não CHEGOU\npéssimo,\n\nnunca MAIS"),
        ("só o título", "", "só o título"),
        ("", 'a "melhor" loja; de todas', 'a "melhor" loja; de todas'),
        ("Bom", "Bom", "Bom"),
        ("", "   ", ""),
    ],
)
def test_title_and_message_are_the_words(tmp_path: Path, title: str, message: str, text: str) -> None:
    words = {**REVIEW, "review_comment_title": title, "review_comment_message": message}
    review = by_touchpoint(write(tmp_path, reviews=(words,)))["review"]
    assert review.verbatim.text == text
    assert review.verbatim.language == ("pt" if text else "")
    assert review.HasField("verbatim") == bool(text)


def test_several_payments_and_items_are_one_amount_and_lists_that_fit(tmp_path: Path) -> None:
    payments = (PAYMENT, {**PAYMENT, "payment_type": "voucher", "payment_value": "0.1", "payment_installments": "3"})
    items = [{**ITEM, "product_id": f"{n:032d}"} for n in range(60)]
    placed = by_touchpoint(write(tmp_path, payments=payments, items=items))["order_placed"]
    assert placed.amount.amount == "25.65"
    assert (placed.attributes["payment_types"], placed.attributes["installments"]) == ("boleto,voucher", "3")
    assert placed.attributes["items"] == "60"
    assert len(placed.attributes["products"]) <= 1024
    assert placed.attributes["products"].split(",")[30] == f"{30:032d}", "what is there is whole"


def test_an_order_without_items_or_payments_is_an_order(tmp_path: Path) -> None:
    placed = by_touchpoint(write(tmp_path, items=(), payments=()))["order_placed"]
    assert not placed.HasField("amount")
    assert not {"items", "categories", "payment_types", "freight"} & set(placed.attributes)


def test_the_same_files_give_the_same_interactions_each_with_its_own_id(tmp_path: Path) -> None:
    folder = write(tmp_path, orders=(ORDER, {**ORDER, "order_id": "o2"}))
    first, second = told(folder), told(folder)
    assert first == second
    assert len({each.interaction_id for each in first}) == len(first)


def test_a_byte_order_mark_is_no_part_of_a_column(tmp_path: Path) -> None:
    write(tmp_path)
    orders = tmp_path / olist.ORDERS
    orders.write_bytes(b"\xef\xbb\xbf" + orders.read_bytes())
    assert len(told(tmp_path)) == 5


def test_every_missing_file_and_column_is_named(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / olist.PAYMENTS).unlink()
    orders = tmp_path / olist.ORDERS
    orders.write_text(orders.read_text(encoding="utf-8").replace("order_approved_at", "approved"), encoding="utf-8")
    (tmp_path / olist.PRODUCTS).write_text("", encoding="utf-8")
    with pytest.raises(CommandError) as refused:
        olist.read(tmp_path, BadRows())
    assert [line.strip() for line in str(refused.value).splitlines()[1:]] == [
        f"{orders}: has no column 'order_approved_at'",
        f"{tmp_path / olist.PAYMENTS}: is missing",
        f"{tmp_path / olist.PRODUCTS}: has no column 'product_id'",
        f"{tmp_path / olist.PRODUCTS}: has no column 'product_category_name'",
    ]


def test_a_folder_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="nowhere: there is no such folder"):
        olist.read(tmp_path / "nowhere", BadRows())


def test_a_file_in_another_encoding_is_named(tmp_path: Path) -> None:
    write(tmp_path)
    reviews = tmp_path / olist.REVIEWS
    reviews.write_bytes(reviews.read_bytes() + "r9,não\n".encode("latin-1"))
    with pytest.raises(CommandError, match=r"order_reviews\.csv, line 3: cannot be read as UTF-8 CSV"):
        olist.read(tmp_path, BadRows())


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"order_purchase_timestamp": "10/01/2018"}, "order_purchase_timestamp '10/01/2018' is no time"),
        ({"order_purchase_timestamp": ""}, "order_purchase_timestamp is empty"),
        ({"order_approved_at": "2018-01-10T10:00:00+00:00"}, "has an offset"),
        ({"order_status": "eaten"}, "order_status 'eaten' is not known"),
        ({"customer_id": "c9"}, "its customer_id 'c9' is not in customers.csv"),
        ({"order_id": "o1"}, "order 'o1' was there before"),
    ],
)
def test_a_bad_order_is_told_and_passed_over(tmp_path: Path, change: Mapping[str, str], problem: str) -> None:
    bad = BadRows()
    read = olist.read(write(tmp_path, orders=(ORDER, {**ORDER, "order_id": "o2", **change})), bad)
    assert [order.order_id for orders in read for order in orders] == ["o1"]
    assert [(row.file, row.line) for row in bad.first] == [(olist.ORDERS, 3)]
    assert problem in bad.first[0].problem


def test_bad_rows_of_every_file_are_told_with_the_line_they_begin_on(tmp_path: Path) -> None:
    folder = write(
        tmp_path,
        items=(ITEM, {**ITEM, "price": "cheap"}),
        payments=({**PAYMENT, "payment_installments": "1.5"}, PAYMENT),
        reviews=(
            {**REVIEW, "review_comment_message": "two\nlines"},
            {**REVIEW, "review_id": "r2", "review_score": "6"},
            {**REVIEW, "review_id": "r3", "order_id": "o9"},
            REVIEW,
        ),
    )
    with (folder / olist.REVIEWS).open("a", encoding="utf-8") as file:
        file.write('too,few\nr4,"never closed')
    bad = BadRows()
    (orders,) = olist.read(folder, bad)
    assert bad.count == 7
    assert [(row.file, row.line) for row in bad.first] == [
        (olist.ITEMS, 3),
        (olist.PAYMENTS, 2),
        (olist.REVIEWS, 4),
        (olist.REVIEWS, 5),
        (olist.REVIEWS, 6),
    ], "only the first few are kept"
    assert [row.problem for row in bad.first] == [
        "price 'cheap' is no amount such as 129.90",
        "payment_installments '1.5' is no whole number",
        "review_score 6 is not from 1 to 5",
        "its order 'o9' is not in orders.csv, or was passed over there",
        "review 'r1' of order 'o1' was there before",
    ]
    order = orders[0]
    assert (len(order.items), len(order.payments), list(order.reviews)) == (1, 1, ["r1"])


def test_files_may_have_the_names_they_are_published_with(tmp_path: Path) -> None:
    write(tmp_path)
    expected = told(tmp_path)
    for name, published in olist.PUBLISHED.items():
        (tmp_path / name).rename(tmp_path / published)
    assert told(tmp_path) == expected
    (tmp_path / olist.PUBLISHED[olist.ITEMS]).unlink()
    with pytest.raises(CommandError, match=r"order_items\.csv: is missing"):
        told(tmp_path)
