"""Imports into the whole cluster: answered by every service, twice as good as once, and not stopped by a dying part."""

import asyncio
import csv
import json
import random
from collections import Counter
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from services.cli import sample
from services.cli.importing import olist
from services.cli.importing.csvfiles import BadRows
from tests.support.cli import answer, environment, recorrido, start
from tests.support.cluster import Cluster, running
from tests.support.truth import count_by_type, stored
from tests.support.wait import until

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]

ORDERS = 300
RECORDED = "recorrido.ingest.v1.InteractionRecorded"
WORDS = (
    (1, "Não recebi", "O produto não chegou e\nninguém responde. Péssimo!"),
    (2, "", "Atrasou dez dias e a caixa veio amassada"),
    (3, "", "Poderia ter uma embalagem melhor"),
    (5, "Recomendo", "Chegou antes do prazo, adorei!"),
    (5, "", ""),
)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    async with running(data=tmp_path_factory.mktemp("data")) as started:
        yield started


def write_orders(folder: Path, count: int) -> Path:
    """Write seven files in the shape of Olist's, made up by a seeded generator."""
    dice = random.Random(7)
    files: dict[str, list[dict[str, Any]]] = {name: [] for name in olist.COLUMNS}
    files[olist.PRODUCTS].append({"product_id": "p", "product_category_name": "brinquedos"})
    files[olist.CATEGORIES].append({"product_category_name": "brinquedos", "product_category_name_english": "toys"})
    for n in range(count):
        order, status = f"order{n:04d}", dice.choice(("delivered", "delivered", "delivered", "shipped", "canceled"))
        bought = datetime(2018, 1, 1) + timedelta(hours=dice.uniform(0, 4000))  # noqa: DTZ001 - local, as in the set
        came = bought + timedelta(days=dice.uniform(3, 20)) if status == "delivered" else None
        score, title, message = dice.choice(WORDS)
        files[olist.CUSTOMERS].append(
            {"customer_id": f"c{n}", "customer_unique_id": f"person{n % (count * 9 // 10):04d}"}
        )
        files[olist.ORDERS].append(
            {
                "order_id": order,
                "customer_id": f"c{n}",
                "order_status": status,
                "order_purchase_timestamp": f"{bought:%Y-%m-%d %H:%M:%S}",
                "order_approved_at": f"{bought + timedelta(hours=1):%Y-%m-%d %H:%M:%S}",
                "order_delivered_customer_date": f"{came:%Y-%m-%d %H:%M:%S}" if came else "",
                "order_estimated_delivery_date": f"{bought + timedelta(days=12):%Y-%m-%d} 00:00:00",
            }
        )
        files[olist.ITEMS].append({"order_id": order, "product_id": "p", "price": "10.5", "freight_value": "2"})
        files[olist.PAYMENTS].append(
            {"order_id": order, "payment_type": "boleto", "payment_installments": "1", "payment_value": "12.5"}
        )
        files[olist.REVIEWS].append(
            {
                "review_id": f"review{n // 2}",
                "order_id": order,
                "review_score": score,
                "review_comment_title": title,
                "review_comment_message": message,
                "review_creation_date": f"{bought + timedelta(days=13):%Y-%m-%d} 00:00:00",
                "review_answer_timestamp": f"{bought + timedelta(days=14):%Y-%m-%d %H:%M:%S}",
            }
        )
    for name, rows in files.items():
        with (folder / name).open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, olist.COLUMNS[name], restval="")
            writer.writeheader()
            writer.writerows(rows)
    return folder


async def facts(cluster: Cluster) -> Counter[str]:
    return Counter(count_by_type(await stored(cluster.environment["RECORRIDO_EVENTSTORE_URI"])))


async def test_orders_imported_twice_are_there_once_and_every_service_answers(cluster: Cluster, tmp_path: Path) -> None:
    folder = write_orders(tmp_path, ORDERS)
    told = [each for orders in olist.read(folder, BadRows()) for each in olist.interactions(orders)]
    words = sum(each.HasField("verbatim") for each in told)
    first = await recorrido(cluster, "import", "olist", str(folder), within_s=200)
    assert first.code == 0, first
    assert "the journey map ecommerce is published" in first.err
    assert f"recorded {len(told):,}, duplicates 0, rejected 0" in first.err
    # It waited: what was recorded is placed and understood when it ends.
    overview = await answer(cluster, "overview")
    assert (int(overview["interactions"]), int(overview["verbatims"])) == (len(told), words)
    assert int(overview["analyzed"]) + int(overview["analysisFailed"]) == words
    assert overview["uncoveredInteractions"] == "0"
    assert (await facts(cluster))[RECORDED] == len(told)

    second = await recorrido(cluster, "import", "olist", str(folder), within_s=200)
    assert second.code == 0, second
    assert f"recorded 0, duplicates {len(told):,}, rejected 0" in second.err
    again = await answer(cluster, "overview")
    # Signals are raised after what they are about is placed, so there may be more of them than when the first import
    # ended.
    settled = {"position": "", "signals": ""}
    assert {**again, **settled} == {**overview, **settled}
    assert (await facts(cluster))[RECORDED] == len(told)

    scores = await answer(cluster, "scores")
    review = next(each for each in scores["touchpoints"] if each["touchpointId"] == "review")
    stars = Counter(int(rating.value) for each in told for rating in each.ratings)
    assert [int(n) for n in review["scores"]["csat"]["histogram"]] == [stars[n] for n in range(1, 6)]
    assert (await answer(cluster, "points"))["points"]
    person = told[0].customer.customer_id
    entries = (await answer(cluster, "customer", person))["entries"]
    assert [each["interaction"]["interactionId"] for each in entries] == [
        each.interaction_id for each in told if each.customer.customer_id == person
    ]

    async def every_customers_signal_has_its_recovery() -> bool:
        recoveries = await answer(cluster, "actions", "list", "--kind", "recovery", "--state", "open", "--limit", "1")
        signals = (await answer(cluster, "signals", "--limit", "1000"))["signals"]
        # A touchpoint gone silent is about nobody: there is nobody to make glad again.
        return int(recoveries["total"]) == sum(bool(signal["customerId"]) for signal in signals) > 0

    await until(every_customers_signal_has_its_recovery, 60)


async def test_bad_rows_and_changed_content_are_told_and_the_rest_goes_on(cluster: Cluster, tmp_path: Path) -> None:
    folder = write_orders(tmp_path, ORDERS)
    orders = folder / olist.ORDERS
    text = orders.read_text(encoding="utf-8").replace("order0007,c7,", "order0007,c7x,")
    orders.write_text(text, encoding="utf-8")
    payments = folder / olist.PAYMENTS
    payments.write_text(
        payments.read_text(encoding="utf-8").replace("order0009,boleto", "order0009,voucher"), encoding="utf-8"
    )
    result = await recorrido(cluster, "import", "olist", str(folder), within_s=200)
    assert result.code == 1
    assert "orders.csv, line 9: its customer_id 'c7x' is not in customers.csv" in result.err
    assert "4 rows could not be used and were passed over" in result.err, "its item, payment and review go with it"
    assert "recorded 0, " in result.err
    assert "rejected 1" in result.err
    assert "olist order0009/order_placed: CONTENT_DIFFERS" in result.err


async def test_nothing_is_sent_when_a_file_is_not_as_it_should_be(cluster: Cluster, tmp_path: Path) -> None:
    before = (await answer(cluster, "overview"))["interactions"]
    folder = write_orders(tmp_path, 3)
    (folder / olist.REVIEWS).rename(folder / "reviews.csv")
    result = await recorrido(cluster, "import", "olist", str(folder))
    assert result.code == 1
    assert f"{folder / olist.REVIEWS}: is missing" in result.err
    assert (await answer(cluster, "overview"))["interactions"] == before


@pytest.mark.parametrize("name", ["ingest", "eventstore", "journey"])
async def test_an_import_goes_on_when_a_part_is_killed(cluster: Cluster, name: str) -> None:
    seed = 100 + len(name)
    told = [each for customer in sample.generate(300, seed) for each in customer]
    before = await facts(cluster)
    process = await start(("import", "sample", "--customers", "300", "--seed", str(seed)), environment(cluster.ports))
    ending = asyncio.create_task(process.communicate())

    async def begun() -> bool:
        return ending.done() or (await facts(cluster))[RECORDED] > before[RECORDED]

    await until(begun, 30, ignoring=(Exception,))
    await cluster.kill_and_restart(name)
    _, err = await asyncio.wait_for(ending, 150)
    assert process.returncode == 0, err.decode()
    assert "rejected 0" in err.decode()
    assert (await facts(cluster))[RECORDED] - before[RECORDED] == len(told)
    again = await recorrido(cluster, "import", "sample", "--customers", "300", "--seed", str(seed), within_s=120)
    assert f"recorded 0, duplicates {len(told):,}, rejected 0" in again.err
    overview = await answer(cluster, "overview")
    assert int(overview["interactions"]) == (await facts(cluster))[RECORDED]
    assert int(overview["analyzed"]) + int(overview["analysisFailed"]) == int(overview["verbatims"])


async def test_events_of_an_import_are_followed_in_order(cluster: Cluster) -> None:
    held = (await facts(cluster))["recorrido.journey.v1.JourneyMapPublished"]
    result = await recorrido(
        cluster, "events", "--from-start", "--type", "JourneyMapPublished", "--limit", str(held), "--json"
    )
    published = [json.loads(line)["data"]["map"]["mapId"] for line in result.out.splitlines()]
    assert published == ["ecommerce", "omnichannel"]
