"""Recoveries and improvements over gRPC, from the first contact to the proof; links, watching and the board."""

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio

from recorrido.actions.v1 import action_pb2
from recorrido.actions.v1 import actions_service_pb2 as pb
from tests.support.cli import answer, recorrido
from tests.support.cluster import running
from tests.support.office import ACCEPTED, COMPLETED, IMPROVEMENT, OPEN, RECOVERY, Office, connected, unique
from tests.support.rpc_errors import info, refusal, violations
from tests.support.wait import until

CODE = grpc.StatusCode
IN_PROGRESS, REMEDIED, VERIFIED, DECLINED = (
    action_pb2.ACTION_STATE_IN_PROGRESS,
    action_pb2.ACTION_STATE_REMEDIED,
    action_pb2.ACTION_STATE_VERIFIED,
    action_pb2.ACTION_STATE_DECLINED,
)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def office(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Office]:
    async with running(["actions"], data=tmp_path_factory.mktemp("data")) as cluster, connected(cluster) as it:
        yield it


pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_a_recovery_from_contact_to_a_glad_customer_and_again(office: Office) -> None:
    opened = await office.open(priority=action_pb2.PRIORITY_URGENT, owner="desk")
    assert (opened.priority, opened.owner, opened.state) == (action_pb2.PRIORITY_URGENT, "desk", OPEN)
    key = opened.action_id
    await office.accept(key, reason="I know her")
    phone = action_pb2.CONTACT_CHANNEL_PHONE
    assert (await office.ask("RecordContact", key, channel=phone, note="no answer")).state == IN_PROGRESS
    assert (await office.ask("RecordContact", key, channel=phone, reached=True)).state == IN_PROGRESS
    remedy = action_pb2.REMEDY_KIND_REFUND
    assert (await office.ask("OfferRemedy", key, remedy=remedy, note="12 EUR")).state == REMEDIED
    closed = await office.complete(key, note="she is glad")
    assert (closed.state, closed.closed_at) == (COMPLETED, closed.updated_at)
    again = await office.ask("ReopenAction", key, reason="it broke again")
    assert (again.state, again.reopened, again.HasField("closed_at")) == (ACCEPTED, 1, False)
    given = await office.ask("AssignAction", key, owner="tina", reason="on leave")
    assert given.owner == "tina"
    await office.ask("CommentAction", key, text="tina knows the shop")

    history = (await office.get(key)).history
    assert [(h.actor, h.summary, h.reason) for h in history] == [
        ("maja", "opened the recovery: Call Ana, for desk", ""),
        ("luka", "accepted it", "I know her"),
        ("luka", "tried to reach the customer by phone", "no answer"),
        ("luka", "reached the customer by phone", ""),
        ("luka", "offered a remedy: refund", "12 EUR"),
        ("luka", "completed it: helped", "she is glad"),
        ("luka", "reopened it", "it broke again"),
        ("luka", "gave it to tina", "on leave"),
        ("luka", "commented", "tina knows the shop"),
    ]
    assert [h.revision for h in history] == list(range(9))


async def test_an_improvement_from_a_proposal_to_the_proof_and_back(office: Office) -> None:
    target = action_pb2.Target(metric="csat", touchpoint="delivery")
    opened = await office.open(kind=IMPROVEMENT, customer_id="", target=target)
    assert opened.target == target
    key = opened.action_id
    declined = await office.ask("DeclineAction", key, reason="too dear")
    assert declined.state == DECLINED
    assert (await office.ask("ReopenAction", key, reason="there is money now")).state == OPEN
    await office.accept(key)
    assert (await office.ask("StartAction", key)).state == IN_PROGRESS
    done = await office.complete(key)
    assert not done.HasField("closed_at")
    verified = await office.ask("VerifyAction", key, reason="CSAT 3.1 to 4.2")
    assert (verified.state, verified.closed_at) == (VERIFIED, verified.updated_at)
    assert (await office.ask("ReopenAction", key, reason="it fell again")).state == ACCEPTED


@pytest.mark.parametrize(
    "call", ["DeclineAction", "ReopenAction", "VerifyAction", "AssignAction", "CommentAction", "PrioritizeAction"]
)
async def test_what_has_to_be_told_is_asked_for(office: Office, call: str) -> None:
    error = await refusal(office.ask(call, "some"))
    field = {"AssignAction": "owner", "CommentAction": "text", "PrioritizeAction": "priority"}.get(call, "reason")
    said = "a priority" if field == "priority" else "required"
    assert [(name, rule.partition(",")[0]) for name, rule in violations(error)] == [(field, said)]


async def test_a_due_time_in_the_past_is_refused(office: Office) -> None:
    request = pb.OpenActionRequest(kind=RECOVERY, customer_id="ana", title="x", actor="maja", request_id=unique("r"))
    request.due_at.FromDatetime(datetime.now(UTC) - timedelta(minutes=1))
    assert violations(await refusal(office.actions.OpenAction(request))) == [("due_at", "later than now")]
    request.due_at.seconds = 10**15
    error = await refusal(office.actions.OpenAction(request))
    assert violations(error) == [("due_at", "a valid timestamp, of the years 1 to 9999")]


@pytest.mark.parametrize("call", ["AcceptAction", "DeclineAction", "AssignAction", "StartAction", "CommentAction"])
async def test_against_another_revision_nothing_is_done(office: Office, call: str) -> None:
    opened = await office.open()
    await office.accept(opened.action_id)
    asked = {"DeclineAction": {"reason": "no"}, "AssignAction": {"owner": "x"}, "CommentAction": {"text": "x"}}
    error = await refusal(office.ask(call, opened.action_id, expected_revision=0, **asked.get(call, {})))
    assert error.code() is CODE.ABORTED
    assert (await office.get(opened.action_id)).action.revision == 1


# -- links ---------------------------------------------------------------------------------------------------------


async def link(office: Office, improvement_id: str, ids: list[str], **fields: Any) -> list[pb.Action]:
    given = {"improvement_id": improvement_id, "action_ids": ids, "actor": "maja", "request_id": unique("r")}
    answer = await office.actions.LinkActions(pb.LinkActionsRequest(**{**given, **fields}))
    return list(answer.actions)


async def test_recoveries_are_put_under_their_improvement(office: Office) -> None:
    improvement = await office.open(kind=IMPROVEMENT, customer_id="")
    ids = [(await office.open()).action_id for _ in range(3)]
    linked = await link(office, improvement.action_id, ids, request_id="link once " + ids[0])
    assert [(each.action_id, each.improvement_id) for each in linked] == [(key, improvement.action_id) for key in ids]
    assert await link(office, improvement.action_id, ids, request_id="link once " + ids[0]) == linked
    found = await office.until_listed(3, improvement_id=improvement.action_id)
    assert {each.action_id for each in found.actions} == set(ids)
    await link(office, "", ids[:1], reason="another cause")
    await office.until_listed(2, improvement_id=improvement.action_id)
    born = await office.open(improvement_id=improvement.action_id)
    assert born.improvement_id == improvement.action_id


async def test_links_that_make_no_sense_are_refused_as_a_whole(office: Office) -> None:
    improvement = await office.open(kind=IMPROVEMENT, customer_id="")
    recovery = await office.open()
    error = await refusal(link(office, recovery.action_id, [recovery.action_id]))
    assert (error.code(), info(error).reason) == (CODE.FAILED_PRECONDITION, "NOT_AN_IMPROVEMENT")
    error = await refusal(office.open(improvement_id=recovery.action_id))
    assert info(error).reason == "NOT_AN_IMPROVEMENT"
    error = await refusal(link(office, improvement.action_id, [recovery.action_id, improvement.action_id]))
    assert info(error).reason == "ILLEGAL_TRANSITION"
    error = await refusal(link(office, improvement.action_id, [recovery.action_id, "nothing"]))
    assert error.code() is CODE.NOT_FOUND
    assert (await office.get(recovery.action_id)).action.improvement_id == ""
    assert violations(await refusal(link(office, improvement.action_id, []))) == [("action_ids", "between 1 and 500")]


# -- watching ------------------------------------------------------------------------------------------------------


async def test_every_change_is_seen_once_and_a_watch_goes_on_where_it_ended(office: Office) -> None:
    customer = unique("customer")
    watch = office.actions.WatchActions(pb.WatchActionsRequest(customer_id=customer))
    begun = await watch.read()
    assert not begun.changes
    opened = await office.open(customer_id=customer)
    await office.open(customer_id=unique("somebody else"))
    seen = list((await watch.read()).changes)
    assert [(c.action, c.change.summary) for c in seen] == [(opened, "opened the recovery: Call Ana")]
    watch.cancel()

    accepted = await office.accept(opened.action_id)
    done = await office.complete(opened.action_id)
    again = office.actions.WatchActions(pb.WatchActionsRequest(customer_id=customer, after_position=seen[-1].position))
    assert not (await again.read()).changes
    missed: list[pb.ActionChange] = []
    while len(missed) < 2:
        missed.extend((await again.read()).changes)
    # Each tells the action as it was after the change, not as it is now.
    assert [c.action for c in missed] == [accepted, done]
    commented = await office.ask("CommentAction", opened.action_id, text="fine")
    assert [c.action for c in (await again.read()).changes] == [commented]
    again.cancel()


async def test_a_watch_tells_when_something_becomes_yours(office: Office) -> None:
    owner = unique("owner")
    watch = office.actions.WatchActions(pb.WatchActionsRequest(owner=owner, kind=RECOVERY))
    await watch.read()
    opened = await office.open()
    given = await office.ask("AssignAction", opened.action_id, owner=owner)
    assert [c.action for c in (await watch.read()).changes] == [given]
    watch.cancel()
    error = await refusal(office.actions.WatchActions(pb.WatchActionsRequest(after_position=-1)).read())
    assert violations(error) == [("after_position", "not negative")]


async def test_a_watch_does_not_wait_for_a_history_that_is_not_there(office: Office) -> None:
    """It would keep everything back until the new history is as long as the one it comes from."""
    await office.open()
    async with asyncio.timeout(10):
        error = await refusal(office.actions.WatchActions(pb.WatchActionsRequest(after_position=10**12)).read())
    assert (error.code(), info(error).reason) == (grpc.StatusCode.FAILED_PRECONDITION, "OTHER_HISTORY")


async def test_a_watch_tells_that_the_store_is_away_and_goes_on_when_it_is_back(tmp_path: Path) -> None:
    async with running(["actions"], data=tmp_path) as cluster, connected(cluster) as office:
        watch = office.actions.WatchActions(pb.WatchActionsRequest())
        begun = await watch.read()
        assert not begun.store_away
        opened = await office.open()
        (seen,) = (await watch.read()).changes
        await cluster.stop("eventstore")
        async with asyncio.timeout(30):
            told = await watch.read()
        assert (told.store_away, list(told.changes), told.position) == (True, [], seen.position)
        # Who comes now is told at once.
        other = office.actions.WatchActions(pb.WatchActionsRequest())
        assert (await other.read()).store_away
        await cluster.start("eventstore")
        async with asyncio.timeout(60):
            assert not (await watch.read()).store_away
            assert not (await other.read()).store_away
            key = unique("r")
            accepted = await until(
                lambda: office.accept(opened.action_id, request_id=key), 30, ignoring=(grpc.aio.AioRpcError,)
            )
            for each in (watch, other):
                assert [c.action for c in (await each.read()).changes] == [accepted]
                each.cancel()


async def test_a_thousand_watch_at_once(office: Office) -> None:
    customer = unique("customer")
    channels = [grpc.aio.insecure_channel(office.cluster.address("actions"), options=[("id", n)]) for n in range(10)]
    try:
        stubs = [type(office.actions)(channel) for channel in channels]
        request = pb.WatchActionsRequest(customer_id=customer)
        watches = [stubs[number % 10].WatchActions(request) for number in range(1_000)]
        await asyncio.gather(*(watch.read() for watch in watches))
        opened = await office.open(customer_id=customer)
        async with asyncio.timeout(30):
            answers = await asyncio.gather(*(watch.read() for watch in watches))
        assert {tuple(c.action.action_id for c in answer.changes) for answer in answers} == {(opened.action_id,)}
    finally:
        await asyncio.gather(*(channel.close() for channel in channels))


# -- the board -----------------------------------------------------------------------------------------------------


async def test_the_board_counts_what_the_list_lists(office: Office) -> None:
    owner, place, need = unique("owner"), unique("place"), unique("need")
    opened = [
        await office.open(owner=owner, touchpoint=place, need_path=need, kind=kind, customer_id=customer)
        for kind, customer in ((RECOVERY, "ana"), (RECOVERY, "ben"), (IMPROVEMENT, ""))
    ]
    await office.accept(opened[0].action_id, owner=owner)
    await office.complete(opened[0].action_id)

    async def board(**fields: Any) -> pb.GetBoardResponse:
        answer: pb.GetBoardResponse = await office.actions.GetBoard(pb.GetBoardRequest(**fields))
        return answer

    def of(lines: Any, key: str) -> list[tuple[int, int]]:
        return sorted((line.kind, line.count) for line in lines if line.key == key)

    async def settled() -> bool:
        return of((await board()).by_owner, owner) == [(RECOVERY, 1), (IMPROVEMENT, 1)]

    await until(settled, 20)
    found = await board()
    # What is closed is no longer anybody's work.
    assert of(found.by_touchpoint, place) == of(found.by_need, need) == [(RECOVERY, 1), (IMPROVEMENT, 1)]
    assert of((await board(kind=IMPROVEMENT)).by_owner, owner) == [(IMPROVEMENT, 1)]
    for line in found.by_state:
        listed = await office.list(state=action_pb2.ActionState.Value(line.key), kind=line.kind, page_size=1)
        assert listed.total == line.count
    for filters in (
        {"priority": action_pb2.PRIORITY_NORMAL},
        {"owner": owner, "state": OPEN},
        {"touchpoint": place, "overdue": False},
        {"owner": owner, "overdue": True},
        {"need_path": need, "kind": RECOVERY},
    ):
        listed = await office.list(**filters, page_size=1_000)
        assert listed.total == len(listed.actions)
    (line,) = [line for line in found.by_owner if line.key == owner and line.kind == RECOVERY]
    age = found.as_of.ToDatetime() - opened[1].opened_at.ToDatetime()
    assert line.oldest_age_s == pytest.approx(age.total_seconds(), abs=0.01)
    # The sum is of whole seconds.
    assert line.mean_age_s == pytest.approx(age.total_seconds(), abs=1.01)


# -- on the command line -------------------------------------------------------------------------------------------


async def test_every_change_can_be_asked_for_on_the_command_line(office: Office) -> None:
    cluster = office.cluster
    first, second = await asyncio.gather(office.open(), office.open())
    improvement = await office.open(kind=IMPROVEMENT, customer_id="")
    await office.accept(first.action_id)
    due = "2099-01-01T00:00"
    done = [
        await answer(cluster, "actions", *arguments)
        for arguments in (
            ("contact", first.action_id, "--channel", "phone", "--reached", "--note", "she was kind"),
            ("remedy", first.action_id, "--kind", "refund", "--note", "12 EUR"),
            ("assign", first.action_id, "--owner", "tina"),
            ("prioritize", first.action_id, "--priority", "urgent"),
            ("reschedule", first.action_id, "--due", "2098-01-01", "--reason", "parts are on order"),
            ("complete", first.action_id, "--result", "helped"),
            ("reopen", first.action_id, "--reason", "again", "--due", due),
            ("decline", second.action_id, "--reason", "twice the same"),
            ("comment", second.action_id, "--text", "see the other"),
        )
    ]
    assert [each["state"].removeprefix("ACTION_STATE_") for each in done] == [
        "IN_PROGRESS",
        *4 * ("REMEDIED",),
        "COMPLETED",
        "ACCEPTED",
        "DECLINED",
        "DECLINED",
    ]
    assert (done[4]["priority"], done[4]["dueAt"]) == ("PRIORITY_URGENT", "2098-01-01T00:00:00Z")
    assert done[6]["dueAt"] == "2099-01-01T00:00:00Z"
    linked = await recorrido(cluster, "actions", "link", first.action_id, "--to", improvement.action_id)
    assert "1 recovery is under" in linked.out
    shown, missing = await asyncio.gather(
        recorrido(cluster, "actions", "show", first.action_id),
        recorrido(cluster, "actions", "decline", second.action_id),
    )
    assert "offered a remedy: refund" in shown.out
    assert "she was kind" in shown.out
    assert "made it due 2098-01-01 00:00 UTC" in shown.out
    assert missing.code == 2


async def test_changes_are_watched_on_the_command_line(office: Office) -> None:
    opened = await office.open()
    (change,) = await _first_changes(office, opened.action_id)
    await office.accept(opened.action_id, reason="now")
    arguments = ("actions", "watch", "--action", opened.action_id, "--after", str(change.position), "--limit", "1")
    told = await recorrido(office.cluster, *arguments, "--json")
    assert json.loads(told.out)["change"]["reason"] == "now"


async def _first_changes(office: Office, action_id: str) -> list[pb.ActionChange]:
    watch = office.actions.WatchActions(pb.WatchActionsRequest(action_id=action_id, after_position=1))
    await watch.read()
    changes = list((await watch.read()).changes)
    watch.cancel()
    return changes
