"""The front door over gRPC, with the real event store behind it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from grpc import StatusCode

from recorrido.ingest.v1 import ingest_service_pb2 as pb
from recorrido.ingest.v1 import interaction_pb2
from recorrido.ingest.v1.events import Interaction, InteractionRecorded
from services.foundation.events import CORRELATION_ID, Registry
from services.foundation.telemetry import trace_id_of
from tests.support.front_door import DUPLICATE, RECORDED, REJECTED, FrontDoor, front_door, of
from tests.support.rpc_errors import info, violations
from tests.support.wait import until

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def door(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[FrontDoor]:
    async with front_door(tmp_path_factory.mktemp("ingest")) as opened:
        yield opened


async def test_keeps_what_it_was_given_in_the_customers_stream(door: FrontDoor) -> None:
    given = of("ana ☕/é.*>", text="Llegó tarde\nمتأخر", csat=2)
    given.episode_id = "order 7"
    given.amount.currency_code, given.amount.amount = "EUR", "-129.90"
    given.outcome = interaction_pb2.OUTCOME_LATE
    given.referral.direction = interaction_pb2.REFERRAL_DIRECTION_GIVEN
    given.attributes["carrier"] = "pošta"
    given.ratings.add(metric=interaction_pb2.RATING_METRIC_CUSTOM, name="taste", value=0, scale_min=0, scale_max=1)
    trace = "0af7651916cd43dd8448eb211c80319c"
    metadata = (("x-correlation-id", "call 7"), ("traceparent", f"00-{trace}-b7ad6b7169203331-01"))
    result = await door.one(given, metadata=metadata)
    assert result.status == RECORDED
    (recorded,) = await door.history("ana ☕/é.*>")
    assert str(recorded.event_id) == result.event_id
    assert recorded.metadata[CORRELATION_ID] == "call 7"
    assert trace_id_of(recorded.metadata) == trace
    event = Registry([InteractionRecorded]).decode(recorded)
    assert event.interaction == Interaction.from_proto(given)
    assert event.interaction.to_proto() == given


async def test_a_repetition_answers_the_same_event_and_adds_none(door: FrontDoor) -> None:
    first = await door.one(of("repeating"))
    assert await door.one(of("repeating")) == pb.RecordResult(status=DUPLICATE, event_id=first.event_id)
    assert len(await door.history("repeating")) == 1


async def test_a_contradiction_is_refused_with_both_digests(door: FrontDoor) -> None:
    await door.one(of("contradicting"))
    other = of("contradicting", text="now with words")
    error = await door.refusal(other)
    assert error.code() is StatusCode.ALREADY_EXISTS
    assert info(error).reason == "CONTENT_DIFFERS"
    digests = dict(info(error).metadata)
    kept = digests.pop("rejection_id")
    assert digests.pop("fields") == "verbatim"
    (recorded,) = await door.history("contradicting")
    assert digests["recorded_digest"] == Registry([InteractionRecorded]).decode(recorded).digest
    assert digests["given_digest"] not in ("", digests["recorded_digest"])
    (result,) = await door.many(other)
    assert (result.status, result.problem.reason) == (REJECTED, "CONTENT_DIFFERS")
    assert len(digests) == 2
    assert all(digest in result.problem.message for digest in digests.values())
    assert result.problem.rejection_id == kept


async def test_customers_beyond_the_cache_are_known_all_the_same(tmp_path: Path) -> None:
    async with front_door(tmp_path, {"RECORRIDO_CACHE_EVENTS": "1"}) as door:
        customers = ["ana", "béla", "čeněk", "ana"]
        first = await door.many(*(of(customer, number) for number, customer in enumerate(customers)))
        assert [result.status for result in first] == [RECORDED] * 4
        later = [of(customer, 10 + number) for number, customer in enumerate(customers)]
        assert [result.status for result in await door.many(*later)] == [RECORDED] * 4
        again = await door.many(of("ana", 0), of("béla", 1), of("čeněk", 12))
        assert [result.status for result in again] == [DUPLICATE] * 3
        assert [result.event_id for result in again[:2]] == [result.event_id for result in first[:2]]
        error = await door.refusal(of("béla", 11, text="other words"))
        assert (info(error).reason, info(error).metadata["fields"]) == ("CONTENT_DIFFERS", "verbatim")
        assert [len(await door.history(customer)) for customer in ("ana", "béla", "čeněk")] == [4, 2, 2]


def empty_customer(item: interaction_pb2.Interaction) -> None:
    item.customer.customer_id = ""


def no_customer(item: interaction_pb2.Interaction) -> None:
    item.ClearField("customer")


def rating_out_of_scale(item: interaction_pb2.Interaction) -> None:
    item.ratings.add(metric=interaction_pb2.RATING_METRIC_NPS, value=11)


def rating_that_is_no_number(item: interaction_pb2.Interaction) -> None:
    item.ratings.add(metric=interaction_pb2.RATING_METRIC_CSAT, value=float("nan"))


def future_time(item: interaction_pb2.Interaction) -> None:
    item.occurred_at.FromJsonString("2999-01-01T00:00:00Z")


def time_beyond_the_calendar(item: interaction_pb2.Interaction) -> None:
    item.occurred_at.seconds = 10**15


def time_with_negative_nanoseconds(item: interaction_pb2.Interaction) -> None:
    item.occurred_at.nanos = -1


def a_mebibyte_of_text(item: interaction_pb2.Interaction) -> None:
    item.verbatim.text = "x" * 1024 * 1024


def wrong_currency(item: interaction_pb2.Interaction) -> None:
    item.amount.currency_code, item.amount.amount = "EURO", "1"


def nul_in_a_text(item: interaction_pb2.Interaction) -> None:
    item.verbatim.text = "good\0bad"


def nul_in_an_id(item: interaction_pb2.Interaction) -> None:
    item.interaction_id = "a\0"


def a_channel_of_tomorrow(item: interaction_pb2.Interaction) -> None:
    item.channel = 99  # type: ignore[assignment]


def an_outcome_of_tomorrow(item: interaction_pb2.Interaction) -> None:
    item.outcome = 99  # type: ignore[assignment]


BAD: list[tuple[Callable[[interaction_pb2.Interaction], None], list[str], str]] = [
    (empty_customer, ["customer.customer_id"], "required, 1 to 256 characters, not blank"),
    (no_customer, ["customer.customer_id", "customer.kind"], "one of the known kinds"),
    (rating_out_of_scale, ["ratings[0].value"], "a whole number between 0 and 10 for NPS"),
    (rating_that_is_no_number, ["ratings[0].value"], "a whole number between 1 and 5 for CSAT"),
    (future_time, ["occurred_at"], "not in the future, now is "),
    (time_beyond_the_calendar, ["occurred_at"], "a valid timestamp, of the years 1 to 9999"),
    (time_with_negative_nanoseconds, ["occurred_at"], "a valid timestamp, of the years 1 to 9999"),
    (a_mebibyte_of_text, ["verbatim.text"], "at most 16384 bytes of UTF-8, has 1048576"),
    (wrong_currency, ["amount.currency_code"], "an ISO 4217 code, such as EUR"),
    (nul_in_a_text, ["verbatim.text"], "has U+0000 at character 4"),
    (nul_in_an_id, ["interaction_id"], "no control characters, has U+0000 at character 1"),
    (a_channel_of_tomorrow, ["channel"], "one of the known channels"),
    (an_outcome_of_tomorrow, ["outcome"], "one of the known outcomes"),
]


@pytest.mark.parametrize(("spoil", "fields", "rule"), BAD, ids=lambda value: getattr(value, "__name__", None))
async def test_bad_input_names_its_field_and_rule(
    door: FrontDoor, spoil: Callable[[interaction_pb2.Interaction], None], fields: list[str], rule: str
) -> None:
    bad = of("spoilt")
    spoil(bad)
    error = await door.refusal(bad)
    assert error.code() is StatusCode.INVALID_ARGUMENT
    assert info(error).reason == "INVALID"
    assert [field for field, _ in violations(error)] == fields
    assert rule in violations(error)[-1][1]
    (result,) = await door.many(bad)
    assert (result.status, result.event_id, result.problem.reason) == (REJECTED, "", "INVALID")
    assert [(v.field, v.rule) for v in result.problem.violations][:-1] == violations(error)[:-1]
    assert result.problem.violations[-1].field == fields[-1]
    assert await door.history("spoilt") == []


async def test_an_unknown_touchpoint_is_kept(door: FrontDoor) -> None:
    item = of("somewhere else")
    item.touchpoint = "a place no journey map knows"
    assert (await door.one(item)).status == RECORDED


async def test_no_interaction_is_invalid(door: FrontDoor) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await door.stub.RecordInteraction(pb.RecordInteractionRequest())
    assert violations(caught.value) == [("interaction", "required")]


async def test_a_flood_of_violations_still_arrives(door: FrontDoor) -> None:
    item = of("flood")
    for number in range(64):
        item.attributes[f"č{number}\0" * 10] = "\0" * 2000
    error = await door.refusal(item)
    assert error.code() is StatusCode.INVALID_ARGUMENT
    told = violations(error)
    assert told[0][0].startswith("attributes['č")
    assert told[-1] == ("", f"and {64 - len(told) + 1} more")


async def test_invalid_utf8_is_the_callers_error(door: FrontDoor) -> None:
    call: Any = door.channel.unary_unary("/recorrido.ingest.v1.IngestService/RecordInteraction")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(b"\x0a\x04\x0a\x02\xff\xfe")
    assert caught.value.code() is StatusCode.INVALID_ARGUMENT
    assert "UTF-8" in (caught.value.details() or "")


async def test_too_many_interactions_are_refused_as_a_whole(door: FrontDoor) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await door.many(*(of("crowd", number) for number in range(1001)))
    assert caught.value.code() is StatusCode.INVALID_ARGUMENT
    assert violations(caught.value) == [("interactions", "at most 1000, has 1001")]
    assert await door.history("crowd") == []


async def test_no_interactions_have_no_results(door: FrontDoor) -> None:
    assert await door.many() == []


async def test_each_item_of_a_batch_has_its_own_result_in_order(door: FrontDoor) -> None:
    await door.one(of("mixed", 1))
    results = await door.many(
        of("mixed", 2),
        of("mixed", 1),
        of("", 3),
        of("mixed", 2),
        of("mixed", 2, text="different"),
        of("mixed", 3),
    )
    assert [r.status for r in results] == [RECORDED, DUPLICATE, REJECTED, DUPLICATE, REJECTED, RECORDED]
    assert [r.problem.reason for r in results] == ["", "", "INVALID", "", "CONTENT_DIFFERS", ""]
    assert results[3].event_id == results[0].event_id
    recorded = await door.history("mixed")
    assert [str(r.event_id) for r in recorded] == [r.event_id for r in (results[1], results[0], results[5])]


async def test_a_thousand_of_the_largest_are_recorded_in_portions(door: FrontDoor) -> None:
    items = [of(f"wordy {number % 10}", number, text="€" * 5461) for number in range(1000)]
    results = await door.many(*items)
    assert {r.status for r in results} == {RECORDED}
    assert len({r.event_id for r in results}) == 1000
    histories = [await door.history(f"wordy {number}") for number in range(10)]
    assert {str(r.event_id) for history in histories for r in history} == {r.event_id for r in results}


async def test_callers_at_the_same_time_record_everything_once(door: FrontDoor) -> None:
    items = [of(f"busy {number % 3}", number) for number in range(60)]
    calls = [door.one(item) for item in items for _ in range(2)]
    # They share appends, so that nobody is in another's way.
    *single, batch = await asyncio.gather(*calls, door.many(*items))
    statuses = [r.status for r in (*single, *batch)]
    assert (statuses.count(RECORDED), statuses.count(DUPLICATE)) == (60, 120)
    again = await door.many(*items)
    assert {r.status for r in again} <= {RECORDED, DUPLICATE}
    histories = [await door.history(f"busy {number}") for number in range(3)]
    ids = [str(r.event_id) for history in histories for r in history]
    assert sorted(ids) == sorted(r.event_id for r in again)


async def test_what_was_recorded_is_known_after_a_kill(tmp_path: Path) -> None:
    async with front_door(tmp_path) as door:
        items = [of(f"customer {number % 20}", number) for number in range(100)]
        before = await door.many(*items)
        await door.cluster.kill_and_restart("ingest")
        after = await door.many(*items, wait_for_ready=True)
        assert {r.status for r in after} == {DUPLICATE}
        assert [r.event_id for r in after] == [r.event_id for r in before]
        await door.cluster.kill_and_restart("eventstore")

        async def known() -> bool:
            again = await door.many(*items)
            assert RECORDED not in {r.status for r in again}
            return [r.event_id for r in again] == [r.event_id for r in before]

        await until(known, what="recorded before, with the same ids")
        assert len(await door.history("customer 7")) == 5


async def test_a_store_that_is_gone_is_told_and_nothing_is_lost_or_doubled(tmp_path: Path) -> None:
    async with front_door(tmp_path) as door:
        await door.one(of("early"))
        await door.cluster.stop("eventstore")
        error = await door.refusal(of("late"))
        assert error.code() is StatusCode.UNAVAILABLE
        assert info(error).metadata["part"] == "event store"
        results = await door.many(of("late"), of(""), of("early"))
        assert [(r.status, r.problem.reason) for r in results] == [
            (REJECTED, "UNAVAILABLE"),
            (REJECTED, "INVALID"),
            (REJECTED, "UNAVAILABLE"),
        ]
        await door.cluster.start("eventstore")

        async def back() -> bool:
            return [r.status for r in await door.many(of("late"), of("early"))] == [DUPLICATE, DUPLICATE]

        await until(back, what="late recorded, early known")
        assert [len(await door.history(customer)) for customer in ("early", "late")] == [1, 1]
