"""What the front door refuses is kept, found, mended and recorded once."""

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from grpc import StatusCode
from kurrentdbclient import AsyncKurrentDBClient, StreamState

from recorrido.ingest.v1 import ingest_service_pb2 as ingest
from recorrido.ingest.v1 import interaction_pb2
from recorrido.ingest.v1 import rejection_service_pb2 as pb
from recorrido.ingest.v1.ingest_service_pb2 import FieldViolation, RecordInteractionsRequest, Unreadable
from recorrido.ingest.v1.rejection_pb2 import (
    REJECTION_STATE_DISCARDED,
    REJECTION_STATE_OPEN,
    REJECTION_STATE_RESUBMITTED,
)
from services.foundation.events import CAUSATION_ID
from tests.support.cli import recorrido
from tests.support.front_door import DUPLICATE, RECORDED, REJECTED, FrontDoor, front_door, of
from tests.support.rpc_errors import info, refusal, violations
from tests.support.wait import until

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def door(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[FrontDoor]:
    async with front_door(tmp_path_factory.mktemp("ingest")) as opened:
        yield opened


def bad(customer_id: str, number: int = 1) -> interaction_pb2.Interaction:
    made = of(customer_id, number)
    made.source = f"source of {customer_id}"
    made.channel = interaction_pb2.CHANNEL_UNSPECIFIED
    return made


async def rejected(door: FrontDoor, item: interaction_pb2.Interaction, **options: Any) -> str:
    """Have it refused and kept; return the id of the rejection."""
    (result,) = await door.many(item, **options)
    assert result.problem.rejection_id
    return str(result.problem.rejection_id)


async def get(door: FrontDoor, rejection_id: str) -> pb.Rejection:
    response = await door.rejections.GetRejected(pb.GetRejectedRequest(rejection_id=rejection_id))
    found: pb.Rejection = response.rejection
    return found


async def listed(door: FrontDoor, count: int, **filters: Any) -> pb.ListRejectedResponse:
    """Return the list, once it holds that many."""

    async def page() -> pb.ListRejectedResponse | None:
        response = await door.rejections.ListRejected(pb.ListRejectedRequest(**filters))
        return response if response.total >= count else None

    # Ingest is ready before the list is: its door does not wait for PostgreSQL.
    found: pb.ListRejectedResponse = await until(
        page, ignoring=(grpc.aio.AioRpcError,), what=f"{count} listed with {filters}"
    )
    assert found.total == count
    return found


async def resubmit(
    door: FrontDoor, rejection_id: str, corrected: interaction_pb2.Interaction | None = None
) -> pb.ResubmitRejectedResponse:
    request = pb.ResubmitRejectedRequest(rejection_id=rejection_id, interaction=corrected, actor="ana")
    response: pb.ResubmitRejectedResponse = await door.rejections.ResubmitRejected(request)
    return response


async def test_a_refused_item_is_kept_with_its_rules_and_sender(door: FrontDoor) -> None:
    item = bad("kept")
    rejection_id = await rejected(door, item, metadata=(("x-client-id", "webshop 7"),))
    found = await get(door, rejection_id)
    assert found.interaction == item
    assert (found.state, found.reason, found.client_id) == (REJECTION_STATE_OPEN, "INVALID", "webshop 7")
    assert [(b.field, b.rule) for b in found.violations] == [("channel", "one of the known channels")]
    assert (await listed(door, 1, customer_id="kept")).rejections[0] == found
    assert await door.history("kept") == []


async def test_alone_in_a_batch_or_in_a_stream_it_is_kept_once(door: FrontDoor) -> None:
    item = bad("everywhere")
    single = info(await door.refusal(item)).metadata["rejection_id"]
    batch = [r.problem.rejection_id for r in await door.many(item, item)]
    request = ingest.StreamInteractionsRequest(interactions=[item])
    (answer,) = [a async for a in door.stub.StreamInteractions(iter([request]))]
    assert {single, *batch, answer.results[0].problem.rejection_id} == {single}
    assert len(await door.store.read(f"rejection-{single}")) == 1


async def test_a_contradiction_is_kept_too(door: FrontDoor) -> None:
    await door.one(of("contradicting"))
    rejection_id = await rejected(door, of("contradicting", text="other words"))
    found = await get(door, rejection_id)
    assert (found.reason, found.interaction.verbatim.text) == ("CONTENT_DIFFERS", "other words")
    assert "digest" in found.message
    error = await refusal(resubmit(door, rejection_id))
    assert (error.code(), info(error).reason) == (StatusCode.ALREADY_EXISTS, "CONTENT_DIFFERS")
    assert info(error).metadata["fields"] == "verbatim"
    assert (await get(door, rejection_id)).state == REJECTION_STATE_OPEN


async def test_a_contradiction_names_the_fields_that_differ_and_nothing_that_they_hold(door: FrontDoor) -> None:
    first, other = of("differing", text="Call me at 555 0100"), of("differing", text="Call me at 555 0199")
    first.attributes["card 4711"] = "one"
    other.attributes["card 4712"] = "two"
    other.amount.currency_code, other.amount.amount = "EUR", "3"
    other.touchpoint = "elsewhere"
    await door.one(first)
    paths = "touchpoint, verbatim.text, amount, attributes"
    # Alone, in a batch, and as it is kept.
    alone = await door.refusal(other)
    assert info(alone).metadata["fields"] == paths.replace(", ", ",")
    (result,) = await door.many(other)
    kept = await get(door, result.problem.rejection_id)
    for told in (alone.details() or "", result.problem.message, kept.message):
        assert told.startswith(f"{paths} differ from what was recorded"), "a person reads these first, digests last"
        # A digest may hold such digits.
        assert not re.search(r"555|471|EUR|elsewhere", told.partition("(digest")[0])
    # Of many, the first tell what is wrong; each is refused.
    many = await door.many(*[other] * 20)
    assert [each.problem.message.startswith(paths) for each in many] == [True] * 16 + [False] * 4
    assert {each.problem.reason for each in many} == {"CONTENT_DIFFERS"}


async def test_what_is_corrected_is_recorded_once(door: FrontDoor) -> None:
    item, corrected = bad("mended"), bad("mended")
    corrected.channel = interaction_pb2.CHANNEL_STORE
    rejection_id = await rejected(door, item)
    done = await resubmit(door, rejection_id, corrected)
    assert done.result.status == RECORDED
    (recorded,) = await door.history("mended")
    assert str(recorded.event_id) == done.result.event_id == done.rejection.event_id
    # Each names the other.
    (kept, _) = await door.store.read(f"rejection-{rejection_id}")
    assert recorded.metadata[CAUSATION_ID] == str(kept.event_id)
    assert (done.rejection.state, done.rejection.actor) == (REJECTION_STATE_RESUBMITTED, "ana")
    # Again, otherwise corrected, sent by the source as corrected, and once more as it was: nothing is doubled.
    other = bad("mended", 2)
    other.channel = interaction_pb2.CHANNEL_WEB
    for again in (corrected, other):
        answer = await resubmit(door, rejection_id, again)
        assert (answer.result.status, answer.result.event_id) == (DUPLICATE, done.result.event_id)
    assert (await door.one(corrected)).event_id == done.result.event_id
    assert await rejected(door, item) == rejection_id
    assert len(await door.history("mended")) == 1
    assert (await listed(door, 1, customer_id="mended", state=REJECTION_STATE_RESUBMITTED)).rejections[0].note


async def test_as_it_came_it_is_judged_anew(door: FrontDoor) -> None:
    rejection_id = await rejected(door, bad("stubborn"))
    error = await refusal(resubmit(door, rejection_id))
    assert (error.code(), violations(error)) == (
        StatusCode.INVALID_ARGUMENT,
        [("channel", "one of the known channels")],
    )
    assert len(await door.store.read(f"rejection-{rejection_id}")) == 1


async def test_what_is_not_whole_needs_a_correction(door: FrontDoor) -> None:
    item = of("wordy", text="x" * 20_000)
    rejection_id = await rejected(door, item)
    error = await refusal(resubmit(door, rejection_id))
    assert (error.code(), info(error).reason) == (StatusCode.FAILED_PRECONDITION, "REJECTION_ALTERED")
    assert "verbatim.text" in (error.details() or "")
    assert (await resubmit(door, rejection_id, of("wordy", text="shorter"))).result.status == RECORDED


async def test_what_its_sender_could_not_read_is_kept_and_needs_a_correction(door: FrontDoor) -> None:
    unread = [FieldViolation(field="occurred_at\0", rule="'\x1bnever' is no time"), FieldViolation(field="amount")]
    whole, partly = of("half-read", 1), of("half-read", 2)
    request = RecordInteractionsRequest(interactions=[whole, partly], unreadable={1: Unreadable(violations=unread)})
    answers = [(await door.stub.RecordInteractions(request)).results for _ in range(2)]
    assert [[r.status for r in results] for results in answers] == [[RECORDED, REJECTED], [DUPLICATE, REJECTED]]
    problem = answers[0][1].problem
    # Nothing else is wrong with it, and what nobody could store is left out.
    assert [(v.field, v.rule) for v in problem.violations] == [("occurred_at", "' never' is no time"), ("amount", "")]
    assert problem.rejection_id == answers[1][1].problem.rejection_id
    error = await refusal(resubmit(door, problem.rejection_id))
    assert (error.code(), info(error).reason) == (StatusCode.FAILED_PRECONDITION, "REJECTION_ALTERED")
    assert (await resubmit(door, problem.rejection_id, partly)).result.status == RECORDED
    assert len((await listed(door, 1, source=partly.source, field="amount")).rejections) == 1


async def test_what_could_not_be_read_belongs_to_an_interaction_and_says_what(door: FrontDoor) -> None:
    told = {0: Unreadable(), 1: Unreadable(violations=[FieldViolation(field="amount", rule="no number")])}
    request = RecordInteractionsRequest(interactions=[of("unread")], unreadable=told)
    error = await refusal(door.stub.RecordInteractions(request))
    assert sorted(name for name, _ in violations(error)) == ["unreadable[0].violations", "unreadable[1]"]


async def test_who_resubmits_at_the_same_time_records_once(door: FrontDoor) -> None:
    rejection_id = await rejected(door, bad("contested"))
    corrected = bad("contested")
    corrected.channel = interaction_pb2.CHANNEL_APP
    answers = await asyncio.gather(
        *(resubmit(door, rejection_id, corrected) for _ in range(10)),
        *(door.one(of("contested", number)) for number in range(2, 40)),
    )
    assert len({a.result.event_id for a in answers[:10]}) == 1
    assert len(await door.history("contested")) == 39
    assert len(await door.store.read(f"rejection-{rejection_id}")) == 2


async def test_what_is_discarded_stays_so(door: FrontDoor) -> None:
    rejection_id = await rejected(door, bad("discarded"))
    request = pb.DiscardRejectedRequest(rejection_id=rejection_id, reason="a test", actor="ben")
    for _ in range(2):
        found = (await door.rejections.DiscardRejected(request)).rejection
        assert (found.state, found.note, found.actor) == (REJECTION_STATE_DISCARDED, "a test", "ben")
    error = await refusal(resubmit(door, rejection_id))
    assert (error.code(), info(error).reason) == (StatusCode.FAILED_PRECONDITION, "REJECTION_DISCARDED")
    assert len(await door.store.read(f"rejection-{rejection_id}")) == 2


async def test_what_does_not_exist_is_not_found(door: FrontDoor) -> None:
    for call in (
        door.rejections.GetRejected(pb.GetRejectedRequest(rejection_id="nothing")),
        resubmit(door, "nothing"),
        door.rejections.DiscardRejected(pb.DiscardRejectedRequest(rejection_id="nothing", reason="r", actor="a")),
    ):
        assert (await refusal(call)).code() is StatusCode.NOT_FOUND
    assert (await refusal(resubmit(door, ""))).code() is StatusCode.INVALID_ARGUMENT


async def test_the_list_is_filtered_and_paged(door: FrontDoor) -> None:
    items = [bad("paged", number) for number in range(25)]
    for item in items[:5]:
        item.ratings.add(metric=interaction_pb2.RATING_METRIC_NPS, value=11)
    ids = [r.problem.rejection_id for r in await door.many(*items)]
    source = "source of paged"
    everything = await listed(door, 25, source=source)
    assert [r.rejection_id for r in everything.rejections] == ids[::-1]
    assert len((await listed(door, 5, source=source, field="ratings.value")).rejections) == 5
    await listed(door, 25, source=source, reason="INVALID")
    await listed(door, 0, source=source, reason="CONTENT_DIFFERS")
    await listed(door, 0, source=source, state=REJECTION_STATE_DISCARDED)
    newest = everything.rejections[0].rejected_at
    await listed(door, 0, source=source, to_time=everything.rejections[-1].rejected_at)
    # One append, one time: all of them are at it, and none is after.
    await listed(door, 25, customer_id="paged", from_time=newest)
    newest.nanos += 1000
    await listed(door, 0, customer_id="paged", from_time=newest)
    seen: list[str] = []
    request = pb.ListRejectedRequest(source=source, page_size=10)
    while True:
        page = await door.rejections.ListRejected(request)
        assert page.total == 25
        seen += [r.rejection_id for r in page.rejections]
        request.page_token = page.next_page_token
        if not page.next_page_token:
            break
    assert seen == ids[::-1]


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"page_token": "nonsense"}, "page_token"),
        ({"page_size": 1001}, "page_size"),
        ({"source": "a\0"}, "source"),
        ({"state": 99}, "state"),
    ],
)
async def test_a_list_that_cannot_be_is_told(door: FrontDoor, asked: dict[str, Any], field: str) -> None:
    error = await refusal(door.rejections.ListRejected(pb.ListRejectedRequest(**asked)))
    assert [name for name, _ in violations(error)] == [field]


async def test_what_no_database_text_can_hold_is_listed_all_the_same(door: FrontDoor) -> None:
    item = bad("nul")
    item.source = "a\0" * 5000
    item.customer.customer_id = "nul\0"
    item.occurred_at.seconds = 10**15
    rejection_id = await rejected(door, item)

    async def found() -> bool:
        page = await door.rejections.ListRejected(pb.ListRejectedRequest(field="occurred_at"))
        return rejection_id in [r.rejection_id for r in page.rejections]

    await until(found)
    kept = await get(door, rejection_id)
    assert kept.interaction.customer.customer_id == "nul\0"
    assert {each.field for each in kept.altered} == {"source", "occurred_at"}


async def test_without_a_store_nobody_is_told_that_it_was_kept(tmp_path: Path) -> None:
    async with front_door(tmp_path) as door:
        await door.one(of("early"))
        await door.cluster.stop("eventstore")
        (result,) = await door.many(bad("lost"))
        assert (result.problem.reason, result.problem.rejection_id) == ("INVALID", "")
        error = await door.refusal(bad("lost"))
        assert (error.code(), "rejection_id" in info(error).metadata) == (StatusCode.INVALID_ARGUMENT, False)
        await door.cluster.start("eventstore")

        async def kept() -> bool:
            (again,) = await door.many(bad("lost"))
            return bool(again.problem.rejection_id)

        await until(kept, 20)
        await listed(door, 1, customer_id="lost")


async def test_without_postgresql_the_door_is_open_and_the_list_closed(tmp_path: Path) -> None:
    async with front_door(tmp_path) as door:
        await listed(door, 0)
        await door.cluster.stop("postgres")
        rejection_id = await rejected(door, bad("unlisted"))
        assert (await door.one(of("unlisted"))).status == RECORDED
        assert (await get(door, rejection_id)).state == REJECTION_STATE_OPEN
        error = await refusal(door.rejections.ListRejected(pb.ListRejectedRequest()))
        assert (error.code(), info(error).metadata["part"]) == (StatusCode.UNAVAILABLE, "PostgreSQL")
        await door.cluster.start("postgres")

        async def back() -> bool:
            page = await door.rejections.ListRejected(pb.ListRejectedRequest(customer_id="unlisted"))
            return bool(page.total == 1)

        await until(back, 20, ignoring=(grpc.aio.AioRpcError,))


async def test_a_person_lists_mends_and_discards(door: FrontDoor, tmp_path: Path) -> None:
    one, two = [r.problem.rejection_id for r in await door.many(bad("by hand", 1), bad("by hand", 2))]
    await listed(door, 2, customer_id="by hand")
    shown = await recorrido(door.cluster, "rejected", "list", "--customer", "by hand")
    assert (await recorrido(door.cluster, "rejected", "list", "--reason", "invalid", "--customer", "by hand")) == shown
    # An import calls it so.
    unreadable = await recorrido(door.cluster, "rejected", "list", "--reason", "UNREADABLE", COLUMNS="200")
    assert (unreadable.code, "what an import could not read is kept as INVALID" in unreadable.err) == (2, True)
    assert (shown.code, shown.err) == (0, "")
    assert one in shown.out
    assert "channel: one of the known channels" in shown.out
    assert (await recorrido(door.cluster, "rejected", "list", "--customer", "by hand", "--json")).json["total"] == 2
    assert "one of the known channels" in (await recorrido(door.cluster, "rejected", "show", one)).out
    body = await recorrido(door.cluster, "rejected", "show", one, "--interaction")
    file = tmp_path / "corrected.json"
    file.write_text(body.out.replace('"source":', '"channel": "CHANNEL_WEB", "source":'))
    again = await recorrido(door.cluster, "rejected", "resubmit", one)
    assert (again.code, "channel: one of the known channels" in again.err) == (1, True)
    mended = await recorrido(door.cluster, "rejected", "resubmit", one, "--corrected", str(file))
    (event,) = await door.history("by hand")
    assert mended.out.strip() == f"recorded: {event.event_id}"
    assert "was recorded before" in (await recorrido(door.cluster, "rejected", "resubmit", one)).out
    gone = await recorrido(door.cluster, "rejected", "discard", two, "--reason", "not ours")
    assert gone.out.strip() == "discarded: not ours"
    nonsense = tmp_path / "nonsense.json"
    for content, told in (
        ("{", "nonsense.json, line 1, column 2: is no JSON: Expecting property name"),
        (
            '{"customer": {"name": "Ana"}}',
            "nonsense.json: is no interaction: Interaction.customer: unknown key 'name';",
        ),
        ('{"channel": "MOON"}', "nonsense.json: is no interaction: "),
        ("[]", "nonsense.json: is no interaction: "),
    ):
        nonsense.write_text(content)
        failed = await recorrido(door.cluster, "rejected", "resubmit", two, "--corrected", str(nonsense))
        assert (failed.code, len(failed.err.splitlines()), told in failed.err) == (1, 1, True), failed


async def test_whose_stream_was_closed_for_good_is_refused_and_the_rejection_stays_open(door: FrontDoor) -> None:
    rejection_id = await rejected(door, bad("closed"))
    await door.one(of("closed", 2))
    client = AsyncKurrentDBClient(uri=door.cluster.environment["RECORRIDO_EVENTSTORE_URI"])
    (recorded,) = await door.history("closed")
    await client.tombstone_stream(recorded.stream, current_version=StreamState.ANY)
    await client.close()
    error = await refusal(resubmit(door, rejection_id, of("closed", 1)))
    assert (error.code(), info(error).reason) == (StatusCode.FAILED_PRECONDITION, "STREAM_CLOSED")
    assert (await get(door, rejection_id)).state == REJECTION_STATE_OPEN
