"""What customers say is analysed by the real Triton, on demand and as it is recorded."""

import contextlib
import os
import re
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from signal import SIGKILL
from typing import Any
from uuid import uuid4

import grpc
import pytest
import pytest_asyncio
from grpc import StatusCode
from grpc_health.v1 import health_pb2, health_pb2_grpc
from kurrentdbclient import AsyncKurrentDBClient, NewEvent, StreamState
from opentelemetry.context import Context
from tritonclient.grpc.aio import InferenceServerClient

from recorrido.inference.v1 import inference_service_pb2 as pb
from recorrido.inference.v1.events import EVENTS, Analysis, FeedbackAnalysisFailed, FeedbackAnalyzed
from recorrido.inference.v1.inference_service_pb2_grpc import InferenceServiceStub
from recorrido.ingest.v1 import ingest_service_pb2
from recorrido.ingest.v1.events import Customer, Interaction, InteractionRecorded, Verbatim
from recorrido.ingest.v1.ingest_service_pb2_grpc import IngestServiceStub
from services.foundation.bus import MAX_TRIES, Delivery, Done, Retry
from services.foundation.errors import UnavailableError
from services.foundation.events import (
    CAUSATION_ID,
    CORRELATION_ID,
    Pending,
    Recorded,
    Registry,
    derived_id,
    stream_name,
)
from services.foundation.eventstore import ANY, EventStore, StreamAppend
from services.foundation.execute import Executor
from services.foundation.telemetry import trace_id_of
from services.inference.domain import Feedback
from services.inference.handlers import Handlers
from services.inference.triton import Triton
from tests.support import eventstore
from tests.support.cluster import Cluster, running
from tests.support.event_types import oddities
from tests.support.interactions import interaction
from tests.support.rpc_errors import info, violations
from tests.support.triton import model_processes, triton
from tests.support.wait import until

pytestmark = pytest.mark.asyncio(loop_scope="module")

INGEST = Registry([InteractionRecorded])
INFERENCE = Registry(EVENTS)


class Company:
    """Ingest, relay and inference with all they need. Every test has customers of its own."""

    def __init__(self, cluster: Cluster, store: EventStore, inference: grpc.aio.Channel, ingest: Any) -> None:
        self.cluster = cluster
        self.store = store
        self.inference: Any = InferenceServiceStub(inference)
        self.health: Any = health_pb2_grpc.HealthStub(inference)
        self.ingest = ingest

    async def analyze(self, *texts: str) -> list[pb.AnalyzeResult]:
        return list((await self.inference.Analyze(pb.AnalyzeRequest(texts=texts))).results)

    async def say(self, customer_id: str, *texts: str, **options: Any) -> None:
        """Record an interaction with each text; an empty one has no verbatim."""
        items = [interaction(number, text=text) for number, text in enumerate(texts)]
        for item in items:
            item.customer.customer_id = customer_id
        request = ingest_service_pb2.RecordInteractionsRequest(interactions=items)
        await self.ingest.RecordInteractions(request, **options)

    async def heard(self, customer_id: str, count: int, deadline_s: float = 20) -> list[Recorded]:
        """Wait until so many results stand in the customer's stream, and return them."""

        async def enough() -> list[Recorded] | None:
            events = [e for e in await self.store.read(f"customer-{customer_id}") if e.type_name in INFERENCE]
            return events if len(events) >= count else None

        found: list[Recorded] | None = await until(enough, deadline_s, what=f"{count} results for {customer_id}")
        assert found is not None
        return found

    async def serving(self) -> bool:
        status = (await self.health.Check(health_pb2.HealthCheckRequest())).status
        return bool(status == health_pb2.HealthCheckResponse.SERVING)


@contextlib.asynccontextmanager
async def company_in(data: Path) -> AsyncIterator[Company]:
    async with (
        running(["relay", "ingest", "inference"], data=data) as cluster,
        grpc.aio.insecure_channel(cluster.address("inference")) as inference,
        grpc.aio.insecure_channel(cluster.address("ingest")) as ingest,
    ):
        store = await EventStore.connect(cluster.environment["RECORRIDO_EVENTSTORE_URI"])
        try:
            yield Company(cluster, store, inference, IngestServiceStub(ingest))
        finally:
            await store.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def company(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Company]:
    async with company_in(tmp_path_factory.mktemp("inference")) as open_for_business:
        yield open_for_business


# -- on demand -----------------------------------------------------------------------------------------------------


async def test_every_result_names_the_model_that_triton_serves(company: Company) -> None:
    client = InferenceServerClient(company.cluster.address("triton_grpc"))
    try:
        metadata = await client.get_model_metadata("feedback")
        config = (await client.get_model_config("feedback")).config
    finally:
        await client.close()
    (result,) = await company.analyze("Muito bom, chegou antes do prazo!")
    assert result.analysis.model == metadata.name
    assert result.analysis.model_version in metadata.versions
    assert result.analysis.taxonomy_version == config.parameters["taxonomy_version"].string_value != ""
    assert result.analysis.sentiment != 0
    assert result.analysis.point != 0
    assert -1 <= result.analysis.sentiment_score <= 1
    assert 0 < result.analysis.confidence.sentiment <= 1


async def test_each_text_has_its_own_result_in_order(company: Company) -> None:
    good = ["Muito bom, chegou antes do prazo!", "Péssimo, nunca mais compro aqui."]
    alone = [(await company.analyze(text))[0] for text in good]
    odd = [
        "nul \0 byte",
        "😀" * 4096,
        "مرحبا بالعالم",
        "<b>great</b> &amp; cheap",
        "ok",
        "12345",
        "?!",
        "¿qué? что 什么",
    ]
    results = await company.analyze(good[0], "", *odd, " \n\t", "x" * (16 * 1024 + 1), good[1])
    assert results[0] == alone[0]
    assert results[-1] == alone[1]
    reasons = [r.problem.reason for r in results]
    assert reasons == ["", "EMPTY_TEXT", *[""] * len(odd), "EMPTY_TEXT", "TEXT_TOO_LONG", ""]
    assert results[-2].problem.message == "at most 16384 bytes of UTF-8, has 16385"
    assert all(r.analysis.model_version for r, reason in zip(results, reasons, strict=True) if not reason)


async def test_a_thousand_texts_are_more_than_one_batch(company: Company) -> None:
    texts = [f"Encomenda {number} chegou bem" if number % 2 else "" for number in range(1000)]
    results = await company.analyze(*texts)
    assert [r.WhichOneof("result") for r in results] == ["problem", "analysis"] * 500


@pytest.mark.parametrize("count", [0, 1001])
async def test_too_few_and_too_many_texts_are_refused(company: Company, count: int) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await company.analyze(*["ok"] * count)
    assert caught.value.code() is StatusCode.INVALID_ARGUMENT
    assert violations(caught.value) == [("texts", f"1 to 1000, has {count}")]


# -- as it is recorded ---------------------------------------------------------------------------------------------


async def test_each_verbatim_is_analysed_in_its_own_trace(company: Company) -> None:
    traces = ["0af7651916cd43dd8448eb211c80319c", "1af7651916cd43dd8448eb211c80319d"]
    for customer, trace in zip(("first", "second"), traces, strict=True):
        metadata = (("traceparent", f"00-{trace}-b7ad6b7169203331-01"), ("x-correlation-id", f"call of {customer}"))
        await company.say(customer, "Não recebi o produto", metadata=metadata)
    for customer, trace in zip(("first", "second"), traces, strict=True):
        (recorded,) = await company.heard(customer, 1)
        (cause, _) = await company.store.read(f"customer-{customer}")
        event = INFERENCE.decode(recorded)
        assert isinstance(event, FeedbackAnalyzed)
        assert (event.interaction_event_id, event.customer_id) == (str(cause.event_id), customer)
        assert event.analysis is not None
        (demanded,) = await company.analyze("Não recebi o produto")
        assert event.analysis == Analysis.from_proto(demanded.analysis)
        assert recorded.metadata[CAUSATION_ID] == str(cause.event_id)
        assert recorded.metadata[CORRELATION_ID] == cause.metadata[CORRELATION_ID] == f"call of {customer}"
        assert trace_id_of(recorded.metadata) == trace


async def test_only_words_are_analysed(company: Company) -> None:
    await company.say("quiet", "", " \n", "Gracias")
    interactions = (await company.store.read("customer-quiet"))[:3]
    await company.say("quiet marker", "later than all of the above")
    await company.heard("quiet marker", 1)
    (recorded,) = await company.heard("quiet", 1)
    assert INFERENCE.decode(recorded).interaction_event_id == str(interactions[2].event_id)


async def test_a_text_that_cannot_be_analysed_is_recorded_as_such_and_spoils_no_other(company: Company) -> None:
    # Ingest lets no such text through; an older or another writer might have.
    events = {name: recorded_words(name, text) for name, text in (("long", "x" * 20_000), ("short", "Muito bom"))}
    await company.store.append([StreamAppend(stream_name("customer", n), ANY, [e]) for n, e in events.items()])
    (failed,) = await company.heard("long", 1)
    (analyzed,) = await company.heard("short", 1)
    assert INFERENCE.decode(failed) == FeedbackAnalysisFailed(
        interaction_event_id=str(events["long"].event_id),
        customer_id="long",
        reason="TEXT_TOO_LONG",
        message="at most 16384 bytes of UTF-8, has 20000",
    )
    assert isinstance(INFERENCE.decode(analyzed), FeedbackAnalyzed)


def recorded_words(customer_id: str, text: str) -> Pending:
    event = InteractionRecorded(
        interaction=Interaction(
            source="old", interaction_id="1", customer=Customer(customer_id=customer_id), verbatim=Verbatim(text=text)
        )
    )
    return Pending(event, derived_id("old", customer_id))


async def test_events_that_make_no_sense_hinder_nobody(company: Company) -> None:
    client = AsyncKurrentDBClient(uri=company.cluster.environment["RECORRIDO_EVENTSTORE_URI"])
    await client.connect()
    events = [NewEvent(type=name, data=data, id=uuid4()) for name, data in oddities()]
    await client.append_to_stream("customer-odd", events=events, current_version=StreamState.ANY)
    await client.close()
    await company.say("after odd ones", "Terrible, the parcel came two weeks late.")
    (result,) = await company.heard("after odd ones", 1, deadline_s=60)
    assert result.type_name == FeedbackAnalyzed.type_name
    assert company.cluster.restarts("inference") == 0


async def test_while_triton_is_away_words_wait_and_health_says_so(company: Company) -> None:
    await company.cluster.stop("triton")
    await until(lambda: not_(company.serving()), what="not serving")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await company.analyze("ok")
    assert caught.value.code() is StatusCode.UNAVAILABLE
    assert info(caught.value).metadata["part"] == "triton"
    await company.say("patient", *(f"Esperando {number}" for number in range(300)))
    await company.cluster.start("triton")
    heard = await company.heard("patient", 300, deadline_s=40)
    assert len({INFERENCE.decode(e).interaction_event_id for e in heard}) == len(heard) == 300
    assert {e.type_name for e in heard} == {FeedbackAnalyzed.type_name}
    await until(company.serving, what="serving")


def kill_model_processes(triton_pid: int) -> None:
    """Triton's children run the models: one for each instance."""
    for pid in [pid for version in ("1", "2") for pid in model_processes(triton_pid, version)]:
        os.kill(pid, SIGKILL)


async def test_a_killed_model_is_loaded_anew(company: Company) -> None:
    kill_model_processes(company.cluster.pid("triton"))
    await company.say("tough", *(f"Muito bom {number}" for number in range(10)))
    heard = await company.heard("tough", 10, deadline_s=40)
    assert {e.type_name for e in heard} == {FeedbackAnalyzed.type_name}
    assert len(heard) == 10
    assert company.cluster.restarts("triton") == 0


async def not_(question: Any) -> bool:
    return not await question


async def test_a_killed_service_analyses_the_rest_and_nothing_twice(tmp_path: Path) -> None:
    async with company_in(tmp_path) as company:
        words = [f"Muito bom, número {number}" for number in range(500)]
        for customer in range(8):
            await company.say(f"c{customer}", *words)
            if customer in (2, 5):
                await company.heard("c0", 1)
                await company.cluster.kill_and_restart("inference")
        for customer in range(8):
            heard = await company.heard(f"c{customer}", 500, deadline_s=60)
            per_interaction = Counter(INFERENCE.decode(e).interaction_event_id for e in heard)
            assert len(per_interaction) == 500
            assert set(per_interaction.values()) == {1}


# -- the reaction itself -------------------------------------------------------------------------------------------

#: A model that cannot cope with one word, the way real ones fail: for the whole batch.
STUBBORN_MODEL = """
import os
import zlib

import numpy as np
import triton_python_backend_utils as triton

def refusal(text):
    return b"invalid_utf8" if b"garbled" in text else b""

class TritonPythonModel:
    def execute(self, requests):
        responses = []
        for request in requests:
            texts = triton.get_input_tensor_by_name(request, "TEXT").as_numpy().reshape(-1)
            if any(b"killer" in text for text in texts):
                os.kill(os.getpid(), 9)
            if any(b"poison" in text for text in texts):
                responses.append(triton.InferenceResponse([], triton.TritonError("cannot cope")))
                continue
            n = len(texts)
            words = lambda word: np.array([[word]] * n, dtype=object)
            responses.append(triton.InferenceResponse([
                triton.Tensor("LANGUAGE", words(b"en")),
                triton.Tensor("SENTIMENT", words(b"positive")),
                triton.Tensor("SENTIMENT_SCORE", np.full((n, 1), 0.5, np.float32)),
                triton.Tensor("POINT", words(b"a kind of tomorrow")),
                triton.Tensor("NEED", words(b"")),
                triton.Tensor("CONFIDENCE", np.full((n, 4), 0.25, np.float32)),
                triton.Tensor("ERROR", np.array([[refusal(text)] for text in texts], dtype=object)),
                triton.Tensor("CHECK", np.array([[zlib.crc32(text)] for text in texts], np.uint32)),
            ]))
        return responses
"""


@dataclass
class Bench:
    """The reaction's handler between a real store and a real Triton that serves the stubborn model."""

    store: EventStore
    handlers: Handlers
    triton_address: str

    async def deliver(self, *texts: str, customers: int = 1000, tries: int = 1) -> list[Delivery]:
        """Record an interaction with each text, and return what the bus would deliver of them."""
        streams = []
        for number, text in enumerate(texts):
            customer = f"{text[:10]} {number % customers}"
            pending = recorded_words(customer, text)
            pending = Pending(pending.event, derived_id(str(number), text))
            streams.append(stream_name("customer", customer))
            await self.store.append([StreamAppend(streams[-1], ANY, [pending])])
        ids = [derived_id(str(number), text) for number, text in enumerate(texts)]
        recorded = {e.event_id: e for stream in set(streams) for e in await self.store.read(stream)}
        return [Delivery(INGEST.decode(recorded[i]), recorded[i], Context(), tries) for i in ids]

    async def results(self, delivery: Delivery) -> list[Any]:
        events = [
            INFERENCE.decode(e) for e in await self.store.read(delivery.recorded.stream) if e.type_name in INFERENCE
        ]
        return [e for e in events if e.interaction_event_id == str(delivery.recorded.event_id)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bench(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bench]:
    folder = tmp_path_factory.mktemp("bench")
    model = folder / "models" / "feedback"
    (model / "7").mkdir(parents=True)
    (model / "7" / "model.py").write_text(STUBBORN_MODEL)
    config = (Path(__file__).parents[2] / "infra/triton/models/feedback/config.pbtxt").read_text()
    # With two instances, of which one may be dead while the other answers.
    config, changes = re.subn(r"\bcount: \d+", "count: 2", config)
    assert changes == 1
    (model / "config.pbtxt").write_text(config)
    with (
        triton(folder / "triton.log", model_repository=folder / "models") as server,
        eventstore.running(folder / "store") as node,
    ):
        store = await EventStore.connect(node.uri)
        client = Triton(server.address)
        try:
            yield Bench(store, Handlers(client, Executor(store, Feedback())), server.address)
        finally:
            await client.close()
            await store.close()


async def test_one_text_that_the_model_fails_on_spoils_no_other(bench: Bench) -> None:
    deliveries = await bench.deliver(*["fine"] * 100, "poison", *["fine"] * 99, "poison too")
    answers = await bench.handlers.react(deliveries)
    poisoned = (100, 200)
    assert [i for i, answer in enumerate(answers) if isinstance(answer, Retry)] == list(poisoned)
    assert {type(a) for i, a in enumerate(answers) if i not in poisoned} == {Done}
    for index, delivery in enumerate(deliveries):
        results = await bench.results(delivery)
        assert [type(r) for r in results] == ([] if index in poisoned else [FeedbackAnalyzed])
    (first,) = await bench.results(deliveries[0])
    assert (first.analysis.model, first.analysis.model_version) == ("feedback", "7")
    assert first.analysis.point == "POINT_KIND_UNSPECIFIED"


async def test_a_text_that_kills_the_model_spoils_no_other(bench: Bench) -> None:
    deliveries = await bench.deliver("alive 1", "alive 2", "killer", "alive 3")
    answers = await bench.handlers.react(deliveries)
    assert [type(answer) for answer in answers] == [Done, Done, Retry, Done]
    results = [await bench.results(delivery) for delivery in deliveries]
    assert [[type(r) for r in each] for each in results] == [
        [FeedbackAnalyzed],
        [FeedbackAnalyzed],
        [],
        [FeedbackAnalyzed],
    ]


async def test_a_model_that_is_not_loaded_is_waited_for_and_loaded(bench: Bench) -> None:
    deliveries = await bench.deliver("unloaded")
    client = InferenceServerClient(bench.triton_address)
    await client.unload_model("feedback")
    await client.close()
    with pytest.raises(UnavailableError, match="NOT_FOUND"):
        await bench.handlers.react(deliveries)
    assert await bench.results(deliveries[0]) == []
    assert await bench.handlers.react(deliveries) == [Done()]


async def test_the_last_failure_of_a_text_is_recorded(bench: Bench) -> None:
    (delivery,) = await bench.deliver("poison at last", tries=MAX_TRIES)
    assert await bench.handlers.react([delivery]) == [Done()]
    (failed,) = await bench.results(delivery)
    assert isinstance(failed, FeedbackAnalysisFailed)
    assert (failed.reason, failed.model) == ("MODEL_FAILED", "feedback")
    assert "cannot cope" in failed.message


async def test_what_the_model_refuses_is_recorded_at_once(bench: Bench) -> None:
    fine, garbled = await bench.deliver("fine here", "garbled here")
    assert await bench.handlers.react([fine, garbled]) == [Done(), Done()]
    (failed,) = await bench.results(garbled)
    assert isinstance(failed, FeedbackAnalysisFailed)
    assert (failed.reason, failed.model, failed.model_version) == ("INVALID_UTF8", "feedback", "7")


@pytest.mark.parametrize("customers", [1, 3, 1000])
async def test_delivering_again_in_any_portion_and_order_changes_nothing(bench: Bench, customers: int) -> None:
    deliveries = await bench.deliver(*[f"again {customers} {number}" for number in range(30)], customers=customers)
    portions: Sequence[Sequence[Delivery]] = [
        deliveries[10:20],
        deliveries[:12],
        deliveries,
        deliveries[::-1],
        *[[d] for d in deliveries],
    ]
    for portion in portions:
        assert set(await bench.handlers.react(portion)) == {Done()}
    for delivery in deliveries:
        assert [type(r) for r in await bench.results(delivery)] == [FeedbackAnalyzed]


async def test_a_customer_who_goes_on_meanwhile_is_no_hindrance(bench: Bench) -> None:
    (delivery,) = await bench.deliver("busy here")
    await bench.store.append([StreamAppend(delivery.recorded.stream, ANY, [recorded_words("busy", "more")])])
    assert delivery.recorded.recorded_at <= datetime.now(UTC)
    assert await bench.handlers.react([delivery]) == [Done()]
    assert [type(r) for r in await bench.results(delivery)] == [FeedbackAnalyzed]
