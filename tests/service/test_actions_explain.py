"""The chain from an interaction to what came of it, against what the store holds; erased customers; the tree."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import grpc
import pytest
import pytest_asyncio

from recorrido.actions.v1 import explanation_service_pb2 as pb
from recorrido.actions.v1.events import (
    ActionKind,
    ActionOpened,
    CauseConfirmed,
    CauseCounted,
    Playbook,
    PlaybookPublished,
)
from recorrido.actions.v1.explanation_service_pb2_grpc import ExplanationServiceStub
from recorrido.inference.v1.events import Analysis, FeedbackAnalyzed, PointKind
from recorrido.ingest.v1.events import Customer, Interaction, InteractionRecorded, Rating, RatingMetric
from recorrido.journey.v1.events import Evidence, SignalRaised
from services.foundation.events import Event, Pending, Recorded
from services.foundation.eventstore import ANY, StreamAppend
from services.foundation.telemetry import trace_id_of
from tests.support.cli import answer, recorrido
from tests.support.cluster import running
from tests.support.office import IMPROVEMENT, TRACE, Office, connected, signal
from tests.support.rpc_errors import refusal

NOW = datetime(2026, 3, 1, tzinfo=UTC)
R = pb.ExplainedRole


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def office(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Office]:
    parts = ["actions", "relay"]
    async with running(parts, data=tmp_path_factory.mktemp("data")) as cluster, connected(cluster) as it:
        yield it


pytestmark = pytest.mark.asyncio(loop_scope="module")


async def explain(office: Office, action_id: str) -> pb.ExplainActionResponse:
    async with grpc.aio.insecure_channel(office.cluster.address("actions")) as channel:
        stub: Any = ExplanationServiceStub(channel)
        return await stub.ExplainAction(pb.ExplainActionRequest(action_id=action_id))  # type: ignore[no-any-return]


async def append(office: Office, stream: str, event: Event) -> Recorded:
    await office.store.append([StreamAppend(stream, ANY, [Pending(event, uuid4())])])
    return (await office.store.read(stream))[-1]


async def raised(office: Office, customer: str) -> tuple[Recorded, Recorded, SignalRaised]:
    """Record what a customer said, how it was understood, and raise the signal about it."""
    said = await append(
        office,
        f"customer-{customer}",
        InteractionRecorded(
            interaction=Interaction(
                touchpoint="delivery",
                customer=Customer(customer_id=customer),
                ratings=(Rating(metric=RatingMetric.CSAT, value=1),),
            )
        ),
    )
    analysis = Analysis(point=PointKind.PAIN, need_path="delivery/speed", model="feedback", model_version="7")
    understood = await append(
        office,
        f"customer-{customer}",
        FeedbackAnalyzed(interaction_event_id=str(said.event_id), customer_id=customer, analysis=analysis),
    )
    evidence = tuple(
        Evidence(event_id=str(each.event_id), event_type=each.type_name, stream=each.stream, revision=each.revision)
        for each in (said, understood)
    )
    found = signal(str(uuid4()), customer_id=customer, evidence=evidence, rule_version=3)
    await office.raise_signals(found)
    return said, understood, found


async def opened_by(office: Office, found: SignalRaised) -> str:
    listed = await office.until_listed(1, customer_id=found.customer_id)
    return str(listed.actions[0].action_id)


async def test_the_chain_is_what_the_store_holds(office: Office) -> None:
    customer = str(uuid4())
    said, understood, found = await raised(office, customer)
    key = await opened_by(office, found)
    await office.accept(key, reason="mine")
    chain = list((await explain(office, key)).events)
    assert [each.role for each in chain] == [
        R.EXPLAINED_ROLE_INTERACTION,
        R.EXPLAINED_ROLE_ANALYSIS,
        R.EXPLAINED_ROLE_SIGNAL,
        R.EXPLAINED_ROLE_OPENING,
        R.EXPLAINED_ROLE_EFFECT,
    ]
    (raise_,) = await office.store.read(f"signal-{found.signal_id}")
    opened, accepted = await office.store.read(f"action-{key}")
    for shown, stored in zip(chain, (said, understood, raise_, opened, accepted), strict=True):
        assert (shown.event_id, shown.event_type) == (str(stored.event_id), stored.type_name)
        assert (shown.stream, shown.revision, shown.position) == (stored.stream, stored.revision, stored.position)
        assert shown.trace_id == trace_id_of(stored.metadata)
        assert shown.recorded_at.ToDatetime(UTC) == stored.recorded_at
        assert not shown.erased
    ids = [each.event_id for each in chain]
    assert [list(each.because_of) for each in chain] == [[], ids[:1], ids[:2], ids[2:3], ids[3:4]]
    assert chain[2].trace_id == chain[3].trace_id == TRACE
    assert dict(chain[1].details) == {"model": "feedback", "model_version": "7"}
    assert (chain[2].details["rule"], chain[2].details["rule_version"]) == ("bad_moment", "3")

    tree = await recorrido(office.cluster, "explain", key)
    assert tree.code == 0
    for each in chain:
        assert f"{each.event_id} {each.stream}@{each.revision} position {each.position}" in tree.out
    assert TRACE in tree.out
    assert "model_version 7" in tree.out
    shown = await answer(office.cluster, "explain", key)
    assert [each["eventId"] for each in shown["events"]] == ids


async def test_the_erased_are_shown_as_erased(office: Office) -> None:
    customer = str(uuid4())
    said, understood, found = await raised(office, customer)
    key = await opened_by(office, found)
    await office.store.wipe(f"customer-{customer}", understood)
    first, second, *rest = (await explain(office, key)).events
    assert [each.event_id for each in (first, second)] == [str(said.event_id), str(understood.event_id)]
    assert all(each.erased and each.summary == "erased with the customer" for each in (first, second))
    # Nothing tells any more whose it was.
    assert customer not in str((first, second))
    assert not any(each.erased for each in rest)
    (raise_,) = await office.store.read(f"signal-{found.signal_id}")
    await office.store.wipe(f"signal-{found.signal_id}", raise_)
    gone, *_ = (await explain(office, key)).events
    assert (gone.event_id, gone.erased, gone.role) == (str(raise_.event_id), True, R.EXPLAINED_ROLE_SIGNAL)
    tree = await recorrido(office.cluster, "explain", key)
    assert "signal: erased with the customer" in tree.out


async def test_what_was_opened_by_hand_has_no_causes(office: Office) -> None:
    opened = await office.open(kind=IMPROVEMENT, customer_id="", reasons=["three calls about it"])
    (event,) = (await explain(office, opened.action_id)).events
    assert (event.role, list(event.because_of)) == (R.EXPLAINED_ROLE_OPENING, [])
    when = f"{event.recorded_at.ToDatetime():%Y-%m-%d %H:%M}"
    told = f"a person's decision, not a signal's: maja opened it by hand on {when} UTC"
    tree = (await recorrido(office.cluster, "explain", opened.action_id)).out
    assert f"{told}, because: three calls about it" in tree
    silent = await office.open(kind=IMPROVEMENT, customer_id="")
    await office.accept(silent.action_id, reason="it is mine")
    tree = (await recorrido(office.cluster, "explain", silent.action_id)).out
    assert "UTC, and told no reason" in tree
    assert "luka accepted it, because: it is mine" in tree
    assert (await refusal(explain(office, "nothing"))).code() is grpc.StatusCode.NOT_FOUND
    assert (await refusal(explain(office, ""))).code() is grpc.StatusCode.INVALID_ARGUMENT


# The last one: where there is a playbook, signals open by themselves nothing any more.
async def test_what_a_playbook_found_out_of_many(office: Office) -> None:
    one, two = [(await raised(office, str(uuid4())))[2] for _ in range(2)]
    recoveries = [await opened_by(office, each) for each in (one, two)]
    key, cause = str(uuid4()), str(uuid4())
    for version in (1, 2):
        book = PlaybookPublished(playbook=Playbook(playbook_id=cause), version=version, actor="maja")
        published = await append(office, f"playbook-{cause}", book)

    async def counted(signal_id: str, recovery: str = "") -> Recorded:
        event = CauseCounted(cause_id=cause, signal_id=signal_id, recovery_id=recovery)
        return await append(office, f"cause-{cause}", event)

    async def proposed(improvement_id: str) -> Recorded:
        event = CauseConfirmed(cause_id=cause, customers=2, improvement_id=improvement_id)
        return await append(office, f"cause-{cause}", event)

    # What was counted for the improvement before is not behind this one, nor is what came for the next.
    others = [await counted(str(uuid4())), await proposed(str(uuid4()))]
    counts = [await counted(found.signal_id, recovery) for found, recovery in zip((one, two), recoveries, strict=True)]
    confirmed = await proposed(key)
    late = await counted(str(uuid4()))
    others += [await proposed(str(uuid4())), await counted(str(uuid4()))]
    opened = ActionOpened(
        action_id=key,
        kind=ActionKind.IMPROVEMENT,
        signal_id=two.signal_id,
        cause_id=cause,
        playbook_id=cause,
        playbook_version=2,
        title="2 customers",
        request_id="1",
        occurred_at=NOW,
    )
    opening = await append(office, f"action-{key}", opened)
    # A recovery under it, opened by hand.
    under = await office.open(improvement_id=key)
    await office.until_listed(1, improvement_id=key)
    explained = await explain(office, key)
    chain = {each.event_id: each for each in explained.events}
    assert not {str(each.event_id) for each in others} & chain.keys()
    assert (explained.left_out, str(late.event_id) in chain) == (0, True)
    assert set(chain[str(opening.event_id)].because_of) >= {str(confirmed.event_id), str(published.event_id)}
    assert chain[str(published.event_id)].details["playbook_version"] == "2"
    assert list(chain[str(confirmed.event_id)].because_of) == [str(each.event_id) for each in counts]
    assert [chain[key].role for key in chain].count(R.EXPLAINED_ROLE_INTERACTION) == 2
    for count, found in zip(counts, (one, two), strict=True):
        (raise_,) = await office.store.read(f"signal-{found.signal_id}")
        assert list(chain[str(count.event_id)].because_of) == [str(raise_.event_id)]
    (recovery,) = [each for each in chain.values() if each.role == R.EXPLAINED_ROLE_RECOVERY]
    assert recovery.details["action_id"] == under.action_id
    tree = await recorrido(office.cluster, "explain", key)
    assert "2 customers had the cause" in tree.out
    assert "recoveries under it" in tree.out
