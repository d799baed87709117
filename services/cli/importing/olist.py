"""Olist's orders as the interactions they were.

Reads the public data set of the Brazilian marketplace Olist (seven CSV files, times in Brasília time). What each order
becomes, all with the order's id as episode and `customer_unique_id`, the person, as customer:

| touchpoint | when | outcome |
| --- | --- | --- |
| `order_placed` | purchase | succeeded |
| `payment_approved` | approval | succeeded |
| `handed_to_carrier` | hand-over | succeeded |
| `order_delivered` | delivery, else the end of the promised day | late if after the promised day, else succeeded |
| `order_canceled` | the last step known: it was not before that | failed |
| `order_unavailable` | the last step known: it was not before that | failed |
| `delivery_missed` | the end of the promised day, for an order that never came | failed |
| `review` | answer; CSAT 1 to 5 and the words | |

A time that is not known but reasoned says so in the attribute `time_basis`. A delivery is promised for a day, so it is
late from the day after. Surveys are sent on a day, not at a time, and may reach the customer before the parcel: the
day is kept as an attribute of the review and is no interaction of its own.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time
from decimal import Decimal, InvalidOperation
from pathlib import Path
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from recorrido.ingest.v1.interaction_pb2 import (
    Channel,
    Customer,
    CustomerKind,
    Interaction,
    Money,
    Outcome,
    Rating,
    RatingMetric,
    Verbatim,
)
from services.cli.failures import CommandError
from services.cli.importing.csvfiles import BadRowError, BadRows, Row, require, rows

SOURCE = "olist"
CURRENCY = "BRL"
LANGUAGE = "pt"
TIME_ZONE = "America/Sao_Paulo"

ORDERS = "orders.csv"
CUSTOMERS = "customers.csv"
ITEMS = "order_items.csv"
PAYMENTS = "order_payments.csv"
REVIEWS = "order_reviews.csv"
PRODUCTS = "products.csv"
CATEGORIES = "category_translation.csv"

#: What the files are called as they are published.
PUBLISHED = {
    ORDERS: "olist_orders_dataset.csv",
    CUSTOMERS: "olist_customers_dataset.csv",
    ITEMS: "olist_order_items_dataset.csv",
    PAYMENTS: "olist_order_payments_dataset.csv",
    REVIEWS: "olist_order_reviews_dataset.csv",
    PRODUCTS: "olist_products_dataset.csv",
    CATEGORIES: "product_category_name_translation.csv",
}

COLUMNS: Mapping[str, Sequence[str]] = {
    ORDERS: (
        "order_id",
        "customer_id",
        "order_status",
        "order_purchase_timestamp",
        "order_approved_at",
        "order_delivered_carrier_date",
        "order_delivered_customer_date",
        "order_estimated_delivery_date",
    ),
    CUSTOMERS: ("customer_id", "customer_unique_id", "customer_city", "customer_state"),
    ITEMS: ("order_id", "product_id", "seller_id", "price", "freight_value"),
    PAYMENTS: ("order_id", "payment_type", "payment_installments", "payment_value"),
    REVIEWS: (
        "review_id",
        "order_id",
        "review_score",
        "review_comment_title",
        "review_comment_message",
        "review_creation_date",
        "review_answer_timestamp",
    ),
    PRODUCTS: ("product_id", "product_category_name"),
    CATEGORIES: ("product_category_name", "product_category_name_english"),
}

_CANCELED = "canceled"
_UNAVAILABLE = "unavailable"
_DELIVERED = "delivered"
#: Statuses of an order that is on its way, or was when the data was taken.
_UNDER_WAY = frozenset({"created", "approved", "invoiced", "processing", "shipped"})
_ATTRIBUTE_LIMIT = 1024


@dataclass(frozen=True, slots=True)
class Review:
    review_id: str
    score: int
    title: str
    message: str
    survey_sent_on: date
    answered_at: datetime


@dataclass(frozen=True, slots=True)
class Item:
    product_id: str
    seller_id: str
    price: Decimal
    freight: Decimal
    category: str


@dataclass(frozen=True, slots=True)
class Payment:
    type: str
    installments: int
    value: Decimal


@dataclass(slots=True)
class Order:
    """An order with everything that the other files tell of it; times are local, without an offset."""

    order_id: str
    person: str
    city: str
    state: str
    status: str
    purchased_at: datetime
    approved_at: datetime | None
    handed_over_at: datetime | None
    delivered_at: datetime | None
    promised_for: date
    items: list[Item] = field(default_factory=list)
    payments: list[Payment] = field(default_factory=list)
    reviews: dict[str, Review] = field(default_factory=dict)


def _file(folder: Path, name: str) -> Path:
    """Return where a file lies, under the name it was published with or the short one."""
    published = folder / PUBLISHED[name]
    return published if published.is_file() else folder / name


def read(folder: Path, bad: BadRows) -> list[list[Order]]:
    """Read the seven files: for each person their orders, oldest first.

    Rows that cannot be used are noted in `bad` and passed over.

    Raises:
        CommandError: a file or column is missing, or a file is not UTF-8 CSV.
    """
    require(folder, {_file(folder, name).name: columns for name, columns in COLUMNS.items()})
    _zone()
    orders = _orders(folder, bad)
    _add_items(folder, orders, bad)
    _add_payments(folder, orders, bad)
    _add_reviews(folder, orders, bad)
    by_person: dict[str, list[Order]] = {}
    for order in sorted(orders.values(), key=lambda each: (each.purchased_at, each.order_id)):
        by_person.setdefault(order.person, []).append(order)
    return list(by_person.values())


def _orders(folder: Path, bad: BadRows) -> dict[str, Order]:
    people = dict(rows(_file(folder, CUSTOMERS), _person, bad))
    orders: dict[str, Order] = {}

    def read_row(row: Row) -> Order:
        found = _order(row, people)
        if found.order_id in orders:
            raise BadRowError(f"order {found.order_id!r} was there before")
        return found

    for order in rows(_file(folder, ORDERS), read_row, bad):
        orders[order.order_id] = order
    return orders


def _add_items(folder: Path, orders: Mapping[str, Order], bad: BadRows) -> None:
    names = dict(rows(_file(folder, CATEGORIES), _category_name, bad))
    products = rows(_file(folder, PRODUCTS), _product, bad)
    categories = {product: names.get(category, category) for product, category in products}
    for order, item in rows(_file(folder, ITEMS), lambda row: (_owner(row, orders), _item(row, categories)), bad):
        order.items.append(item)


def _add_payments(folder: Path, orders: Mapping[str, Order], bad: BadRows) -> None:
    for order, payment in rows(_file(folder, PAYMENTS), lambda row: (_owner(row, orders), _payment(row)), bad):
        order.payments.append(payment)


def _add_reviews(folder: Path, orders: Mapping[str, Order], bad: BadRows) -> None:
    def read_row(row: Row) -> tuple[Order, Review]:
        order, found = _owner(row, orders), _review(row)
        # A survey may be about several orders, so its id alone repeats.
        if found.review_id in order.reviews:
            raise BadRowError(f"review {found.review_id!r} of order {order.order_id!r} was there before")
        return order, found

    for order, review in rows(_file(folder, REVIEWS), read_row, bad):
        order.reviews[review.review_id] = review


# -- rows ------------------------------------------------------------------------------------------------------------


def _person(row: Row) -> tuple[str, tuple[str, str, str]]:
    return _text(row, "customer_id"), (
        _text(row, "customer_unique_id"),
        row["customer_city"].strip(),
        row["customer_state"].strip(),
    )


def _order(row: Row, people: Mapping[str, tuple[str, str, str]]) -> Order:
    customer_id = _text(row, "customer_id")
    if customer_id not in people:
        raise BadRowError(f"its customer_id {customer_id!r} is not in {CUSTOMERS}")
    person, city, state = people[customer_id]
    status = _text(row, "order_status")
    if status not in {_CANCELED, _UNAVAILABLE, _DELIVERED} | _UNDER_WAY:
        raise BadRowError(f"order_status {status!r} is not known")
    return Order(
        order_id=_text(row, "order_id"),
        person=person,
        city=city,
        state=state,
        status=status,
        purchased_at=_time(row, "order_purchase_timestamp"),
        approved_at=_time_if_any(row, "order_approved_at"),
        handed_over_at=_time_if_any(row, "order_delivered_carrier_date"),
        delivered_at=_time_if_any(row, "order_delivered_customer_date"),
        promised_for=_time(row, "order_estimated_delivery_date").date(),
    )


def _owner(row: Row, orders: Mapping[str, Order]) -> Order:
    order_id = _text(row, "order_id")
    if order_id not in orders:
        raise BadRowError(f"its order {order_id!r} is not in {ORDERS}, or was passed over there")
    return orders[order_id]


def _category_name(row: Row) -> tuple[str, str]:
    return row["product_category_name"].strip(), row["product_category_name_english"].strip()


def _product(row: Row) -> tuple[str, str]:
    return _text(row, "product_id"), row["product_category_name"].strip()


def _item(row: Row, categories: Mapping[str, str]) -> Item:
    return Item(
        product_id=_text(row, "product_id"),
        seller_id=row["seller_id"].strip(),
        price=_amount(row, "price"),
        freight=_amount(row, "freight_value"),
        category=categories.get(row["product_id"].strip(), ""),
    )


def _payment(row: Row) -> Payment:
    return Payment(
        type=_text(row, "payment_type"),
        installments=_whole(row, "payment_installments"),
        value=_amount(row, "payment_value"),
    )


def _review(row: Row) -> Review:
    score = _whole(row, "review_score")
    if not 1 <= score <= 5:
        raise BadRowError(f"review_score {score} is not from 1 to 5")
    return Review(
        review_id=_text(row, "review_id"),
        score=score,
        title=_words(row["review_comment_title"]),
        message=_words(row["review_comment_message"]),
        survey_sent_on=_time(row, "review_creation_date").date(),
        answered_at=_time(row, "review_answer_timestamp"),
    )


def _text(row: Row, column: str) -> str:
    text = row[column].strip()
    if not text:
        raise BadRowError(f"{column} is empty")
    return text


def _words(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n").strip()


def _time_if_any(row: Row, column: str) -> datetime | None:
    return _time(row, column) if row[column].strip() else None


def _time(row: Row, column: str) -> datetime:
    text = _text(row, column)
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise BadRowError(f"{column} {text!r} is no time such as 2018-08-15 04:10:37") from None
    if found.tzinfo:
        raise BadRowError(f"{column} {text!r} has an offset, and local time is expected")
    return found


def _amount(row: Row, column: str) -> Decimal:
    text = _text(row, column)
    try:
        amount = Decimal(text)
    except InvalidOperation:
        amount = Decimal("NaN")
    if not amount.is_finite():
        raise BadRowError(f"{column} {text!r} is no amount such as 129.90")
    return amount


def _whole(row: Row, column: str) -> int:
    text = _text(row, column)
    # Some copies of the set were written by tools that make 5 into 5.0.
    number = _amount(row, column)
    if number != int(number):
        raise BadRowError(f"{column} {text!r} is no whole number")
    return int(number)


# -- interactions ----------------------------------------------------------------------------------------------------


def interactions(orders: Sequence[Order]) -> list[Interaction]:
    """Return what happened to one person, oldest first; the same orders give the same interactions."""
    found = [each for order in orders for each in _of_order(order)]
    return sorted(found, key=lambda each: each.occurred_at.ToNanoseconds())


def _of_order(order: Order) -> Iterator[Interaction]:
    placed = _interaction(order, "order_placed", Channel.CHANNEL_WEB, order.purchased_at, Outcome.OUTCOME_SUCCEEDED)
    paid = sum((payment.value for payment in order.payments), Decimal())
    if order.payments:
        placed.amount.CopyFrom(Money(currency_code=CURRENCY, amount=f"{paid:.2f}"))
    _attributes(
        placed,
        {
            "payment_types": _joined(payment.type for payment in order.payments),
            "installments": str(max((payment.installments for payment in order.payments), default=0) or ""),
            "items": str(len(order.items) or ""),
            "freight": f"{sum((item.freight for item in order.items), Decimal()):.2f}" if order.items else "",
            "categories": _joined(item.category for item in order.items),
            "products": _joined(item.product_id for item in order.items),
            "sellers": _joined(item.seller_id for item in order.items),
            "city": order.city,
            "state": order.state,
            "promised_for": order.promised_for.isoformat(),
        },
    )
    yield placed
    if order.approved_at:
        yield _interaction(order, "payment_approved", Channel.CHANNEL_WEB, order.approved_at, Outcome.OUTCOME_SUCCEEDED)
    if order.handed_over_at:
        yield _interaction(
            order, "handed_to_carrier", Channel.CHANNEL_DELIVERY, order.handed_over_at, Outcome.OUTCOME_SUCCEEDED
        )
    yield from _ending(order)
    for review in order.reviews.values():
        yield _reviewed(order, review)


def _ending(order: Order) -> Iterator[Interaction]:
    end_of_promise = datetime.combine(order.promised_for, time(23, 59, 59))
    if order.delivered_at:
        days_late = (order.delivered_at.date() - order.promised_for).days
        late = days_late > 0
        outcome = Outcome.OUTCOME_LATE if late else Outcome.OUTCOME_SUCCEEDED
        delivered = _interaction(order, "order_delivered", Channel.CHANNEL_DELIVERY, order.delivered_at, outcome)
        _attributes(
            delivered, {"promised_for": order.promised_for.isoformat(), "days_late": str(days_late) if late else ""}
        )
        yield delivered
    elif order.status == _DELIVERED:
        delivered = _interaction(
            order, "order_delivered", Channel.CHANNEL_DELIVERY, end_of_promise, Outcome.OUTCOME_SUCCEEDED
        )
        _attributes(delivered, {"promised_for": order.promised_for.isoformat(), "time_basis": "promised_day"})
        yield delivered
    if order.status in {_CANCELED, _UNAVAILABLE}:
        known = (order.purchased_at, order.approved_at, order.handed_over_at, order.delivered_at)
        last = max(each for each in known if each)
        ended = _interaction(order, f"order_{order.status}", Channel.CHANNEL_WEB, last, Outcome.OUTCOME_FAILED)
        _attributes(ended, {"time_basis": "last_known_step"})
        yield ended
    elif order.status in _UNDER_WAY and not order.delivered_at:
        missed = _interaction(
            order, "delivery_missed", Channel.CHANNEL_DELIVERY, end_of_promise, Outcome.OUTCOME_FAILED
        )
        _attributes(missed, {"order_status": order.status, "time_basis": "promised_day"})
        yield missed


def _reviewed(order: Order, review: Review) -> Interaction:
    # The same review may be about several orders.
    name = f"review/{review.review_id}"
    reviewed = _interaction(order, "review", Channel.CHANNEL_SURVEY, review.answered_at, name=name)
    reviewed.ratings.append(Rating(metric=RatingMetric.RATING_METRIC_CSAT, value=review.score))
    words = "\n".join(dict.fromkeys(filter(None, (review.title, review.message))))
    if words:
        reviewed.verbatim.CopyFrom(Verbatim(text=words, language=LANGUAGE))
    _attributes(reviewed, {"survey_sent_on": review.survey_sent_on.isoformat()})
    return reviewed


def _interaction(
    order: Order,
    touchpoint: str,
    channel: Channel.ValueType,
    local: datetime,
    outcome: Outcome.ValueType = Outcome.OUTCOME_UNSPECIFIED,
    *,
    name: str = "",
) -> Interaction:
    found = Interaction(
        source=SOURCE,
        interaction_id=f"{order.order_id}/{name or touchpoint}",
        customer=Customer(customer_id=order.person, kind=CustomerKind.CUSTOMER_KIND_BUYER),
        touchpoint=touchpoint,
        channel=channel,
        episode_id=order.order_id,
        outcome=outcome,
    )
    found.occurred_at.FromDatetime(local.replace(tzinfo=_zone()).astimezone(UTC))
    return found


def _attributes(interaction: Interaction, values: Mapping[str, str]) -> None:
    interaction.attributes.update({key: value for key, value in values.items() if value})


def _joined(values: Iterator[str]) -> str:
    """Return the different values, in their order, as far as they fit."""
    joined = ""
    for value in dict.fromkeys(filter(None, values)):
        longer = f"{joined},{value}" if joined else value
        if len(longer) > _ATTRIBUTE_LIMIT:
            break
        joined = longer
    return joined


def _zone() -> ZoneInfo:
    try:
        return ZoneInfo(TIME_ZONE)
    except ZoneInfoNotFoundError as error:
        raise CommandError(
            f"the time zone {TIME_ZONE} is not known on this machine: install the system package tzdata"
        ) from error
