"""Actions under faults: killed between deciding and appending, a deadline over while it is dead, an erased customer."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import nats
import pytest
import pytest_asyncio

from recorrido.actions.v1 import action_pb2, playbook_pb2
from recorrido.actions.v1 import actions_service_pb2 as pb
from recorrido.actions.v1 import playbook_service_pb2 as playbook_pb
from recorrido.actions.v1.playbook_service_pb2_grpc import PlaybookServiceStub
from services.foundation import bus
from services.foundation.events import stream_name
from tests.support.cluster import running
from tests.support.office import Office, connected, signal, unique
from tests.support.truth import stored
from tests.support.wait import until

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def office(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Office]:
    data = tmp_path_factory.mktemp("data")
    async with running(["relay", "actions"], data=data) as cluster, connected(cluster) as it:
        yield it


async def insist(call: Any) -> Any:
    """Ask until there is an answer, with the same request, as a client would."""

    async def asked() -> Any:
        return await call()

    return await until(asked, 60, ignoring=(grpc.aio.AioRpcError,), what="an answer")


async def test_who_asks_again_after_a_kill_gets_what_was_asked_for_once(office: Office) -> None:
    people = [unique("person") for _ in range(40)]
    killed = asyncio.Event()

    async def work(person: str) -> str:
        request = pb.OpenActionRequest(
            kind=action_pb2.ACTION_KIND_RECOVERY, customer_id=person, title="x", actor=person, request_id=person
        )
        opened = await insist(lambda: office.actions.OpenAction(request))
        key: str = opened.action.action_id
        await killed.wait() if hash(person) % 2 else None
        accept = pb.AcceptActionRequest(action_id=key, actor=person, request_id="accept", expected_revision=0)
        await insist(lambda: office.actions.AcceptAction(accept))
        complete = pb.CompleteActionRequest(
            action_id=key, actor=person, result=action_pb2.ACTION_RESULT_HELPED, request_id="complete"
        )
        await insist(lambda: office.actions.CompleteAction(complete))
        return key

    working = [asyncio.create_task(work(person)) for person in people]
    for _ in range(3):
        await office.cluster.kill_and_restart("actions")
        killed.set()
    ids = await asyncio.gather(*working)
    events = await stored(office.cluster.environment["RECORRIDO_EVENTSTORE_URI"])
    streams = {stream_name("action", key) for key in ids}
    found = Counter((e.stream_name, e.type.rpartition(".")[2]) for e in events if e.stream_name in streams)
    assert set(found.values()) == {1}
    assert len(found) == 3 * len(people)


async def test_a_deadline_that_is_over_while_nobody_looks_is_told_when_somebody_does(office: Office) -> None:
    request = pb.OpenActionRequest(
        kind=action_pb2.ACTION_KIND_RECOVERY, customer_id="late", title="x", actor="maja", request_id=unique("r")
    )
    request.due_at.FromDatetime(datetime.now(UTC) + timedelta(seconds=2))
    opened = (await office.actions.OpenAction(request)).action
    await office.cluster.stop("actions")
    await until(lambda: datetime.now(UTC) > opened.due_at.ToDatetime(UTC), what="the deadline is over")
    await office.cluster.start("actions")
    (listed,) = (await office.until_listed(1, customer_id="late", overdue=True)).actions
    history = (await office.get(listed.action_id)).history
    assert [(h.actor, h.summary) for h in history[1:]] == [
        ("timer", "resolution is due soon"),
        ("timer", "resolution is overdue"),
    ]


async def test_a_signal_of_an_erased_customer_opens_nothing_and_leaves_no_dead_letter(office: Office) -> None:
    cluster, where = office.cluster, "erased-place"
    async with grpc.aio.insecure_channel(cluster.address("actions")) as channel:
        stub = PlaybookServiceStub(channel)
        rule = playbook_pb2.RecoveryRule(rule_id="call", match=playbook_pb2.SignalMatch(touchpoints=[where]))
        cause = playbook_pb2.ImprovementRule(
            rule_id="fix", match=rule.match, customers=1, within_days=1, group_by=[playbook_pb2.CAUSE_PART_TOUCHPOINT]
        )
        care = playbook_pb2.Playbook(playbook_id="care", name="Care", recoveries=[rule], improvements=[cause])
        request = playbook_pb.PublishPlaybookRequest(playbook=care, actor="maja", request_id="r")
        await insist(lambda: stub.PublishPlaybook(request))
    await cluster.stop("actions")
    erased = signal(unique("s"), customer_id="erased", touchpoint=where)
    kept = signal(unique("s"), customer_id="kept", touchpoint=where)
    await office.raise_signals(erased, kept)
    client = await nats.connect(cluster.environment["RECORRIDO_NATS_URL"])
    try:
        stream = stream_name("signal", kept.signal_id)

        async def on_the_bus() -> bool:
            subject = bus.subject(kept.type_name, stream)
            return bool(await client.jetstream().get_last_msg(bus.STREAM, subject))

        await until(on_the_bus, 20, ignoring=(nats.js.errors.NotFoundError,))
        # The customer is forgotten while the signal is under way.
        (recorded,) = await office.store.read(stream_name("signal", erased.signal_id))
        await office.store.wipe(recorded.stream, recorded)
        await cluster.start("actions")
        await office.until_listed(2, touchpoint=where)

        async def settled() -> bool:
            consumer = await client.jetstream().consumer_info(bus.STREAM, "actions-recoveries")
            return (consumer.num_pending, consumer.num_ack_pending) == (0, 0)

        await until(settled, 20)
        dead = (await client.jetstream().stream_info(bus.DEAD_LETTERS)).state.messages
    finally:
        await client.close()
    assert dead == 0
    assert not (await office.list(customer_id="erased")).total
    events = await stored(cluster.environment["RECORRIDO_EVENTSTORE_URI"])
    named = [e.type for e in events if b"erased" in e.data.replace(where.encode(), b"") and "actions" in e.type]
    assert named == []
