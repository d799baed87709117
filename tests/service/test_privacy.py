"""Export and erasure with every real part: store, bus, read models, and their files on the disk."""

import asyncio
import hashlib
import json
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import grpc
import pytest
import pytest_asyncio
from google.protobuf.json_format import MessageToDict

from recorrido.actions.v1 import actions_service_pb2 as actions_pb
from recorrido.actions.v1.action_pb2 import ACTION_KIND_RECOVERY
from recorrido.ingest.v1 import privacy_service_pb2 as pb
from recorrido.ingest.v1 import rejection_service_pb2
from recorrido.ingest.v1.events import CustomerAnonymized
from recorrido.journey.v1 import journey_service_pb2 as journey_pb
from services.foundation.events import Pending, Registry
from services.foundation.eventstore import ANY, StreamAppend
from services.ingest.privacy import QUEUE, ErasureRequested, receipt_id_of
from tests.support.cli import answer, recorrido
from tests.support.company import Company, company
from tests.support.interactions import interaction, record
from tests.support.rpc_errors import info, refusal, violations
from tests.support.truth import published
from tests.support.wait import until

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Company]:
    """One company for all; every test takes customers of its own."""
    async with company(tmp_path_factory.mktemp("company")) as c:
        yield c


@dataclass(frozen=True)
class People:
    """Ana with two identities, one that was hers once, and others who stay; every name ends in `tag`."""

    tag: str
    rejection_id: str = ""

    @property
    def marker(self) -> str:
        """In every text of Ana's."""
        return f"MARKER-{self.tag}-of-her"

    def __getattr__(self, name: str) -> str:
        return f"{name}-{self.tag}"


async def ana_and_others(c: Company, tag: str) -> People:
    p = People(tag)
    for number, customer in enumerate((p.bor, p.eva), 1):
        event_id = await c.happened(customer, number, text=f"words of {customer}", csat=1)
        await c.understood(customer, event_id, pain=True)
    event_id = await c.happened(p.ana, 10, text=f"{p.marker} was angry", csat=1)
    await c.understood(p.ana, event_id, pain=True)
    event_id = await c.happened(f"device:{p.phone}", 11, text=f"{p.marker} was happy", csat=5)
    await c.understood(f"device:{p.phone}", event_id, pain=False)
    await c.happened(f"device:{p.tv}", 12, text="the family was here", csat=2)
    rejection_id = await c.refused(p.ana, 13, f"{p.marker} was refused")
    await c.link(p.phone, p.ana)
    await c.link(p.tv, p.ana)
    await c.link(p.tv, p.ana, unlink=True)
    await c.link(p.tv, p.bor)
    opened = await c.actions.OpenAction(
        actions_pb.OpenActionRequest(
            kind=ACTION_KIND_RECOVERY, customer_id=p.ana, title=f"call {p.marker}", actor="agent", request_id=tag
        )
    )
    await c.actions.AcceptAction(
        actions_pb.AcceptActionRequest(action_id=opened.action.action_id, actor="agent", request_id="accepted")
    )
    await c.settled(news=5)
    return People(tag, rejection_id)


def files_in(folder: Path) -> list[Path]:
    return list(folder.iterdir())


# -- export --------------------------------------------------------------------------------------------------------


async def test_an_export_holds_everything_of_a_customer_and_nothing_of_others(shared: Company) -> None:
    c = shared
    p = await ana_and_others(c, "export")
    exported = await c.export(p.ana)
    kinds = [event["type"].removeprefix("recorrido.") for event in exported]
    assert sorted(kinds) == sorted(
        ["ingest.v1.InteractionRecorded", "inference.v1.FeedbackAnalyzed"] * 2
        + ["ingest.v1.IdentityLinked"] * 2
        + ["ingest.v1.IdentityUnlinked", "ingest.v1.InteractionRejected", "journey.v1.SignalRaised"]
        + ["actions.v1.ActionOpened"] * 2
        + ["actions.v1.ActionAccepted"]
    )
    text = json.dumps(exported)
    assert text.count(p.marker) >= 4
    assert p.bor not in text
    assert "the family" not in text
    (recorded,) = [e for e in exported if e["subject"] == f"customer-{p.ana}" and "Interaction" in e["type"]]
    assert recorded["specversion"] == "1.0"
    assert recorded["data"]["interaction"]["verbatim"]["text"] == f"{p.marker} was angry"
    assert datetime.fromisoformat(recorded["time"]) <= datetime.now(UTC)


# -- erasure -------------------------------------------------------------------------------------------------------


async def test_an_erased_customer_is_gone_everywhere_and_statistics_stay(shared: Company) -> None:
    c = shared
    p = await ana_and_others(c, "erase")
    first = (await c.store.read(f"customer-{p.bor}"))[0].recorded_at
    moments = [first, (await c.store.read(f"customer-device:{p.phone}"))[-1].recorded_at, datetime.now(UTC), None]
    expected = await c.answers(as_of=moments)
    others = [(await c.store.read(f"customer-{each}")) for each in (p.bor, p.eva, f"device:{p.tv}")]
    secrets = [p.ana, p.phone, p.marker, p.rejection_id]
    held = await c.rows()
    assert all(secret in held for secret in secrets)
    request_id = str(uuid4())

    receipt = await c.erase(p.ana, request_id)

    counts = MessageToDict(receipt)
    assert counts.pop("receiptId") not in (request_id, "")
    assert counts == {
        "interactions": 2,
        "analyses": 2,
        "signals": 1,
        "actions": 2,
        "identities": 1,
        "rejections": 1,
        # Two interactions with an analysis each, a rejection, a signal, three of actions, a link; of the other identity
        # a link and its end.
        "events": 12,
    }
    # In the store.
    for stream in (f"customer-{p.ana}", f"customer-device:{p.phone}"):
        assert await c.store.read(stream) == []
    assert [await c.store.read(f"customer-{each}") for each in (p.bor, p.eva, f"device:{p.tv}")] == others
    assert info(await refusal(c.export(p.ana))).reason == "CUSTOMER_UNKNOWN"
    # What is recorded of the erasure names nobody.
    receipts = await c.store.read(f"erasure-{receipt.receipt_id}")
    told = b"".join(event.data for event in receipts).decode()
    assert [secret for secret in (*secrets, p.bor, request_id) if secret in told] == []
    # On the bus.
    await c.settled()
    anonymized = [Registry([CustomerAnonymized]).decode(each) for each in receipts[:-1]]
    erased = {int(position) for each in anonymized for position in each.erased_positions}
    on_bus = {message.position for message in await published(c.cluster.environment["RECORRIDO_NATS_URL"])}
    assert len(erased) == 12
    assert not erased & on_bus
    assert {event.position for stream in others for event in stream} <= on_bus
    assert receipts[-1].position in on_bus
    # In the read models: nothing of Ana, all of the others, and every number as it was, as of any time.
    live = await c.rows()
    assert [secret for secret in secrets if secret in live] == []
    assert f"words of {p.bor}" in live
    assert await c.answers(as_of=moments) == expected
    for call in (
        c.journey.GetCustomerJourney(journey_pb.GetCustomerJourneyRequest(customer_id=p.ana)),
        c.journey.GetCustomerJourney(journey_pb.GetCustomerJourneyRequest(customer_id=f"device:{p.phone}")),
        c.rejections.GetRejected(rejection_service_pb2.GetRejectedRequest(rejection_id=p.rejection_id)),
    ):
        assert (await refusal(call)).code() is grpc.StatusCode.NOT_FOUND
    bor = await c.journey.GetCustomerJourney(journey_pb.GetCustomerJourneyRequest(customer_id=p.bor))
    assert [entry.interaction.interaction_id for entry in bor.entries] == ["1", "12"]

    # The read models made anew of the history are the same: while it still holds the erased events, and after.
    for scavenge in (False, True):
        if scavenge:
            await c.scavenge()
        await c.rebuild()
        await c.settled()
        assert await c.answers(as_of=moments) == expected
        assert p.marker not in await c.rows()


async def test_erased_is_physically_gone(tmp_path: Path) -> None:
    async with company(tmp_path) as c:
        p = await ana_and_others(c, "gone")
        await c.erase(p.ana)
        await c.settled()
        await c.scavenge()
    scrub = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "infra.postgres", "--data", str(tmp_path / "postgres"), "--scrub"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await asyncio.wait_for(scrub.communicate(), 60)
    assert scrub.returncode == 0, output.decode()
    for part in ("eventstore", "nats", "postgres"):
        files = [path for path in (tmp_path / part).rglob("*") if path.is_file()]
        assert any(f"words of {p.bor}".encode() in path.read_bytes() for path in files), part
        found = [str(path.relative_to(tmp_path)) for path in files if p.marker.encode() in path.read_bytes()]
        assert found == [], part


async def test_an_erased_customer_who_comes_again_begins_anew(shared: Company) -> None:
    c = shared
    before = await c.journey.GetOverview(journey_pb.GetOverviewRequest())
    await c.happened("vid", 10, text="the same words", csat=1)
    await c.settled(news=1)
    request_id = str(uuid4())
    first = await c.erase("vid", request_id)
    again = await c.happened("vid", 10, text="the same words", csat=1)
    later = await c.happened("vid", 11, text="new words")
    await c.settled(news=1)
    mine = await c.journey.GetCustomerJourney(journey_pb.GetCustomerJourneyRequest(customer_id="vid"))
    assert [entry.event_id for entry in mine.entries] == [again, later]
    # The same request again erases nothing that came after its receipt; another one does.
    assert await c.erase("vid", request_id) == first
    assert len(await c.store.read("customer-vid")) == 2
    # A request id that was used for one customer says nothing about another.
    assert (await c.erase("nobody", request_id)).receipt_id != first.receipt_id
    assert (await c.erase("vid")).interactions == 2
    await c.settled()
    for rebuild in (False, True):
        if rebuild:
            await c.rebuild()
            await c.settled()
        now = await c.journey.GetOverview(journey_pb.GetOverviewRequest())
        # Who came again cannot be told to be the one who was erased.
        assert (now.customers, now.interactions, now.signals) == (
            before.customers + 2,
            before.interactions + 3,
            before.signals + 2,
        )


async def test_what_is_asked_wrongly_is_refused(shared: Company) -> None:
    c = shared
    for request, field in (
        (pb.EraseCustomerRequest(customer_id="", request_id=str(uuid4())), "customer_id"),
        (pb.EraseCustomerRequest(customer_id="ana", request_id="for Ana"), "request_id"),
    ):
        error = await refusal(c.privacy.EraseCustomer(request))
        assert [name for name, _ in violations(error)] == [field]
    error = await refusal(c.export("nobody at all"))
    assert (error.code(), info(error).reason) == (grpc.StatusCode.NOT_FOUND, "CUSTOMER_UNKNOWN")
    assert [name for name, _ in violations(await refusal(c.export(" ")))] == ["customer_id"]
    assert info(await refusal(c.receipt(str(uuid4())))).reason == "RECEIPT_UNKNOWN"
    await c.link("watch", "ivo")
    error = await refusal(c.erase("device:watch"))
    assert (info(error).reason, info(error).metadata["customer_id"]) == ("IDENTITY_LINKED", "ivo")
    empty = await c.erase("nobody at all")
    assert MessageToDict(empty) == {"receiptId": empty.receipt_id}
    assert await c.receipt(empty.receipt_id) == empty


async def test_an_erasure_that_nobody_could_wait_for_is_finished_when_the_relay_is_back(shared: Company) -> None:
    c = shared
    await c.happened("uma", 1, text="hello")
    await c.settled()
    await c.cluster.stop("relay")
    request = pb.EraseCustomerRequest(customer_id="uma", request_id=str(uuid4()))
    error = await refusal(c.privacy.EraseCustomer(request, timeout=1))
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert info(await refusal(c.receipt(receipt_id_of("uma", request.request_id)))).reason == "RECEIPT_UNKNOWN"
    log = c.cluster.data / "log/ingest.log"
    await until(lambda: "erasure waits for the relay" in log.read_text(), 20)
    await c.cluster.start("relay")
    assert (await c.erase("uma", request.request_id)).interactions == 1
    assert await c.pending() == []


async def test_what_comes_in_after_an_erasure_was_asked_for_stays_though_it_is_begun_again(shared: Company) -> None:
    c = shared
    await c.happened("eva", 1, text="MARKER-old", csat=1)
    await c.settled(news=1)
    # It erased what was there and waits for the bus when it is killed; she goes on meanwhile.
    await c.cluster.stop("relay")
    request = pb.EraseCustomerRequest(customer_id="eva", request_id=str(uuid4()))
    receipt_id = receipt_id_of("eva", request.request_id)
    assert (await refusal(c.privacy.EraseCustomer(request, timeout=2))).code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await until(lambda: c.got_to(2, "eva", request.request_id), 20)
    again = await c.happened("eva", 2, text="a new history", csat=1)
    await c.cluster.kill_and_restart("ingest")
    await c.cluster.start("relay")
    receipt = await until(lambda: c.receipt(receipt_id), 30, ignoring=(grpc.aio.AioRpcError,))
    assert (receipt.interactions, receipt.signals, receipt.actions) == (1, 1, 1)
    await c.settled(news=1)
    exported = await c.export("eva")
    assert {event["id"] for event in exported} >= {again}
    assert {event["type"].rpartition(".")[2] for event in exported} == {
        "InteractionRecorded",
        "SignalRaised",
        "ActionOpened",
    }
    mine = await c.journey.GetCustomerJourney(journey_pb.GetCustomerJourneyRequest(customer_id="eva"))
    assert [entry.event_id for entry in mine.entries] == [again]
    assert "MARKER-old" not in await c.rows()


async def test_a_stream_is_cut_where_the_erasure_was_asked_for(shared: Company) -> None:
    """It could not begin at once, so old and new stand in one stream."""
    c = shared
    old = await c.happened("fay", 1, text="MARKER-old", csat=1)
    await c.settled(news=1)
    request_id = str(uuid4())
    receipt_id = receipt_id_of("fay", request_id)
    await c.cluster.stop("postgres")
    asked = ErasureRequested(customer_id="fay", receipt_id=receipt_id, secret=str(uuid4()))
    await c.store.append([StreamAppend(QUEUE, ANY, [Pending(asked, uuid4())])])
    new = await c.happened("fay", 2, text="a new history")
    await c.cluster.start("postgres")
    receipt = await until(lambda: c.receipt(receipt_id), 60, ignoring=(grpc.aio.AioRpcError,))
    assert receipt.interactions == 1
    assert [str(each.event_id) for each in await c.store.read("customer-fay")] == [new]
    # What was erased can be told again, and counts as new.
    assert await c.happened("fay", 1, text="MARKER-old", csat=1) == old
    assert [str(each.event_id) for each in await c.store.read("customer-fay")] == [new, old]

    async def made_good() -> bool:
        return bool((await c.actions.ListActions(actions_pb.ListActionsRequest(customer_id="fay"))).actions)

    await until(made_good, 60, every_s=0.2)
    await c.settled(news=None)


async def test_an_identity_that_became_somebodys_while_its_erasure_waited_stays_theirs(shared: Company) -> None:
    c = shared
    await c.happened("device:kiosk", 1, text="before")
    await c.happened("lia", 2, text="hello")
    await c.link("kiosk", "jan")
    await c.link("kiosk", "jan", unlink=True)
    await c.settled()
    await c.cluster.stop("relay")
    requests = [
        pb.EraseCustomerRequest(customer_id=customer_id, request_id=str(uuid4()))
        for customer_id in ("lia", "device:kiosk")
    ]
    for request in requests:
        # The first waits for the bus, the second for the first.
        error = await refusal(c.privacy.EraseCustomer(request, timeout=2))
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert len(await c.pending()) == 2
    await c.link("kiosk", "noa")
    await c.cluster.start("relay")
    # What was asked for is repeated, though it could not be asked for now.
    receipts = [await c.erase(request.customer_id, request.request_id) for request in requests]
    assert [(receipt.interactions, receipt.events) for receipt in receipts] == [(1, 1), (1, 3)]
    assert await c.store.read("customer-device:kiosk") == []
    exported = await c.export("noa")
    assert [event["type"] for event in exported] == ["recorrido.ingest.v1.IdentityLinked"]
    await c.link("kiosk", "noa", unlink=True)


async def test_a_person_links_exports_and_erases(shared: Company, tmp_path: Path) -> None:
    c = shared
    email = hashlib.sha256(b"mia@example.com").hexdigest()
    await c.happened(f"email:{email}", 1, text="hello there")
    await c.happened("mia", 2, text="hello again")
    linked = await recorrido(c.cluster, "identity", "link", "email", " Mia@Example.com", "mia")
    assert (linked.code, linked.out) == (0, f"email:{email} is mia's\n")
    shown = await answer(c.cluster, "identity", "show", "mia")
    assert [each["linkedBy"] for each in shown["identities"]] == ["tester"]
    assert f"email:{email}" in (await recorrido(c.cluster, "identity", "show", "mia")).out
    taken = await recorrido(c.cluster, "identity", "link", "email", email, "zoe")
    assert (taken.code, "IDENTITY_TAKEN" in taken.err) == (1, True)

    file = tmp_path / "mia.jsonl"
    written = await recorrido(c.cluster, "export", "mia", "--out", str(file))
    assert (written.code, written.out) == (0, "")
    assert file.stat().st_mode & 0o777 == 0o600
    printed = await recorrido(c.cluster, "export", "mia")
    assert printed.out == file.read_text()
    assert sorted(json.loads(line)["type"] for line in printed.out.splitlines()) == [
        "recorrido.ingest.v1.IdentityLinked",
        *["recorrido.ingest.v1.InteractionRecorded"] * 2,
    ]
    nobody = await recorrido(c.cluster, "export", "who", "--out", str(tmp_path / "who.jsonl"))
    assert (nobody.code, "CUSTOMER_UNKNOWN" in nobody.err) == (1, True)
    assert files_in(tmp_path) == [file]

    # Nobody answers the question, so nothing is erased.
    unasked = await recorrido(c.cluster, "erase", "mia")
    assert unasked.code == 1
    assert len(await c.store.read("customer-mia")) == 1
    request_id = str(uuid4())
    receipt = (await answer(c.cluster, "erase", "mia", "--yes", "--request-id", request_id))["receipt"]
    assert (receipt["interactions"], receipt["identities"], receipt["events"]) == (2, 1, 3)
    again = await recorrido(c.cluster, "erase", "mia", "--yes", "--request-id", request_id)
    assert receipt["receiptId"] in again.out
    assert (await recorrido(c.cluster, "export", "mia")).code == 1
    # A name that nobody has, or has any more, is told as one; that it was asked for is proven all the same.
    nothing = await recorrido(c.cluster, "erase", "mia", "--yes")
    assert (nothing.code, nothing.out.startswith("Nothing was held of 'mia', so nothing was erased")) == (0, True)
    assert "Receipt " in nothing.out
    scavenged = await answer(c.cluster, "scavenge")
    assert scavenged["eventsRemoved"] >= 3

    await c.link("card", "ida")
    unlinked = await recorrido(c.cluster, "identity", "unlink", "device", "card", "ida")
    assert (unlinked.code, unlinked.out) == (0, "device:card is not ida's any more\n")
    assert (await answer(c.cluster, "identity", "show", "ida"))["identities"][0]["unlinkedBy"] == "tester"


async def test_a_busy_customer_of_many_interactions_is_erased_while_they_go_on(shared: Company) -> None:
    """In many parts, with interactions, signals and recoveries that come in between."""
    c = shared
    before = await c.journey.GetOverview(journey_pb.GetOverviewRequest())
    made = [interaction(n, text=f"MARKER-busy {n}", csat=1 + n % 5) for n in range(240)]
    for each in made:
        each.customer.customer_id = "busy"
    await record(c.ingest, made[:180])

    async def go_on() -> None:
        for each in made[180:]:
            await record(c.ingest, [each])

    going = asyncio.create_task(go_on())
    await c.erase("busy")
    await going
    await c.erase("busy")
    assert await c.store.read("customer-busy") == []
    # How many signals were raised before their cause was erased is a matter of chance.
    await c.settled(news=None)
    now = await c.journey.GetOverview(journey_pb.GetOverviewRequest())
    assert now.interactions - before.interactions == now.verbatims - before.verbatims == 240
    rows = await c.rows()
    assert "MARKER-busy" not in rows
    assert "| busy" not in rows
