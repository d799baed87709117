"""Two model versions side by side: what they say, what people say, and the history understood anew."""

import json
import sys
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from grpc import StatusCode

from infra.local import ports as port_numbers
from infra.local.parts import catalogue
from infra.triton import taxonomy
from infra.triton.train import corrections
from recorrido.inference.v1 import analysis_pb2 as meaning
from recorrido.inference.v1 import inference_service_pb2 as pb
from recorrido.inference.v1.events import EVENTS, AnalysisCorrected, FeedbackAnalysisFailed
from recorrido.inference.v1.inference_service_pb2_grpc import InferenceServiceStub
from recorrido.ingest.v1 import ingest_service_pb2
from recorrido.ingest.v1.events import Customer, Interaction, InteractionRecorded, Verbatim
from recorrido.ingest.v1.ingest_service_pb2_grpc import IngestServiceStub
from services.foundation.events import Pending, Recorded, Registry, derived_id, stream_name
from services.foundation.eventstore import ANY, EventStore, StreamAppend
from tests.support.cli import answer as told
from tests.support.cli import recorrido
from tests.support.cluster import Cluster, running
from tests.support.interactions import interaction
from tests.support.rpc_errors import info, violations
from tests.support.wait import until

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(240)]

INFERENCE = Registry(EVENTS)

#: Both answer all that the contract knows; each reads in the text what it is to say.
CONFIG = """
name: "feedback"
backend: "python"
max_batch_size: 256
input [ { name: "TEXT" data_type: TYPE_STRING dims: [ 1 ] } ]
output [
  { name: "LANGUAGE" data_type: TYPE_STRING dims: [ 1 ] }, { name: "SENTIMENT" data_type: TYPE_STRING dims: [ 1 ] },
  { name: "SENTIMENT_SCORE" data_type: TYPE_FP32 dims: [ 1 ] }, { name: "POINT" data_type: TYPE_STRING dims: [ 1 ] },
  { name: "NEED" data_type: TYPE_STRING dims: [ 1 ] }, { name: "CONFIDENCE" data_type: TYPE_FP32 dims: [ 4 ] },
  { name: "EMOTION" data_type: TYPE_STRING dims: [ 1 ] }, { name: "INTENT" data_type: TYPE_STRING dims: [ 1 ] },
  { name: "EFFORT" data_type: TYPE_STRING dims: [ 1 ] }, { name: "URGENCY" data_type: TYPE_STRING dims: [ 1 ] },
  { name: "MORE_CONFIDENCE" data_type: TYPE_FP32 dims: [ 4 ] }, { name: "UNSURE" data_type: TYPE_STRING dims: [ 1 ] },
  { name: "SENTENCES" data_type: TYPE_STRING dims: [ 1 ] }, { name: "ERROR" data_type: TYPE_STRING dims: [ 1 ] }
]
instance_group [ { kind: KIND_CPU count: 1 } ]
version_policy { all { } }
parameters [
  { key: "taxonomy_version" value { string_value: "1" } }, { key: "languages" value { string_value: "en,es" } }
]
"""
#: Version 5 takes "but" for negative, version 6 looks at each sentence; neither copes with poison before it is removed.
MODEL = """
import json
from pathlib import Path
import numpy as np
import triton_python_backend_utils as triton

NAMES = ("language", "sentiment", "point", "need", "emotion", "intent", "effort", "urgency")

class TritonPythonModel:
    def initialize(self, args):
        self.version = args["model_version"]
        self.cured = Path(args["model_repository"]) / "cured"

    def say(self, text):
        bad = "bad" in text or (self.version == "5" and "but" in text)
        unsure = ["need"] if self.version == "6" and "hm" in text else []
        return {
            "language": "en", "sentiment": "negative" if bad else "positive", "sentiment_score": -0.75 if bad else 0.75,
            "point": "pain" if bad else "delight", "need": "delivery/speed" if bad else "staff",
            "emotion": "anger" if bad else "joy", "intent": "complain" if bad else "praise", "effort": "none",
            "urgency": "normal", "confidence": {name: 0.5 for name in NAMES}, "unsure": unsure,
        }

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        raw = triton.get_input_tensor_by_name(request, "TEXT").as_numpy().reshape(-1)
        texts = [text.decode() for text in raw]
        if any("poison" in text for text in texts) and not self.cured.exists():
            return triton.InferenceResponse([], triton.TritonError("cannot cope"))
        said = [self.say(text) for text in texts]
        column = lambda values: np.array([[value.encode()] for value in values], dtype=object)
        tensors = [triton.Tensor(name.upper(), column([each[name] for each in said])) for name in NAMES]
        n, halves = len(texts), [[0, len(t.partition(" but ")[0])] for t in texts]
        sentences = [json.dumps([{**each, "start": start, "end": end}]) for each, (start, end) in zip(said, halves)]
        return triton.InferenceResponse([
            *tensors,
            triton.Tensor("SENTIMENT_SCORE", np.array([[each["sentiment_score"]] for each in said], np.float32)),
            triton.Tensor("CONFIDENCE", np.full((n, 4), 0.5, np.float32)),
            triton.Tensor("MORE_CONFIDENCE", np.full((n, 4), 0.25, np.float32)),
            triton.Tensor("UNSURE", column([",".join(each["unsure"]) for each in said])),
            triton.Tensor("SENTENCES", column(sentences)),
            triton.Tensor("ERROR", column([""] * n)),
        ])
"""


class Company:
    """Ingest, relay and inference, with version 5 in service and 6 beside it. Every test has customers of its own."""

    def __init__(self, cluster: Cluster, models: Path, store: EventStore, stub: Any, ingest: Any) -> None:
        self.cluster = cluster
        self.models = models
        self.store = store
        self.stub = stub
        self.ingest = ingest

    async def say(self, customer_id: str, *texts: str) -> list[str]:
        """Record an interaction with each text, wait until each is analysed; return their event ids."""
        items = [interaction(number, text=text) for number, text in enumerate(texts)]
        for item in items:
            item.customer.customer_id = customer_id
        answer = await self.ingest.RecordInteractions(ingest_service_pb2.RecordInteractionsRequest(interactions=items))

        async def enough() -> bool:
            return len(await self.said(customer_id)) >= sum(map(bool, texts))

        await until(enough, 40, what=f"{customer_id} is understood")
        return [result.event_id for result in answer.results]

    async def recorded(self, customer_id: str) -> list[Recorded]:
        return [e for e in await self.store.read(f"customer-{customer_id}") if e.type_name in INFERENCE]

    async def said(self, customer_id: str) -> list[Any]:
        return [INFERENCE.decode(each) for each in await self.recorded(customer_id)]

    async def analyses(self, customer_id: str) -> list[pb.RecordedAnalysis]:
        return list((await self.stub.ListAnalyses(pb.ListAnalysesRequest(customer_id=customer_id))).analyses)

    async def correct(self, customer_id: str, event_id: str, request_id: str = "", **correction: Any) -> Any:
        return await self.stub.CorrectAnalysis(
            pb.CorrectAnalysisRequest(
                customer_id=customer_id,
                interaction_event_id=event_id,
                correction=pb.Correction(**correction),
                actor="mia",
                comment="I know her",
                request_id=request_id or str(uuid.uuid4()),
            )
        )

    async def reanalyze(self, *customer_ids: str, name: str = "", **more: Any) -> list[pb.ReanalyzeResponse]:
        request = pb.ReanalyzeRequest(
            reanalysis_id=name or str(uuid.uuid4()),
            model_version="6",
            slice=pb.Slice(customer_ids=customer_ids),
            actor="mia",
            **more,
        )
        return [progress async for progress in self.stub.Reanalyze(request)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def company(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Company]:
    folder = tmp_path_factory.mktemp("history")
    models = folder / "models"
    for version in ("5", "6"):
        (models / "feedback" / version).mkdir(parents=True)
        (models / "feedback" / version / "model.py").write_text(MODEL)
    (models / "feedback" / "config.pbtxt").write_text(CONFIG)
    ports = port_numbers.free()
    known = catalogue(folder / "data", ports)
    argv = known["triton"].argv
    repository = argv.index("--model-repository") + 1
    known["triton"] = replace(known["triton"], argv=(*argv[:repository], str(models), *argv[repository + 1 :]))
    known["inference"] = replace(known["inference"], env={**known["inference"].env, "RECORRIDO_MODEL_VERSION": "5"})
    async with (
        running(["relay", "ingest", "inference"], data=folder / "data", ports=ports, known=known) as cluster,
        grpc.aio.insecure_channel(cluster.address("inference")) as inference,
        grpc.aio.insecure_channel(cluster.address("ingest")) as ingest,
    ):
        store = await EventStore.connect(cluster.environment["RECORRIDO_EVENTSTORE_URI"])
        try:
            yield Company(
                cluster, models / "feedback", store, InferenceServiceStub(inference), IngestServiceStub(ingest)
            )
        finally:
            await store.close()


def texts_of(count: int, word: str) -> list[str]:
    return [f"{word} parcel {number}" if number % 3 else f"good but late {number}" for number in range(count)]


# -- what there is -------------------------------------------------------------------------------------------------


async def test_models_are_listed_with_the_one_in_service(company: Company) -> None:
    models = (await company.stub.ListModels(pb.ListModelsRequest())).models
    assert [(m.version, m.state, m.in_service) for m in models] == [
        ("6", pb.MODEL_STATE_READY, False),
        ("5", pb.MODEL_STATE_READY, True),
    ]
    for model in models:
        assert (model.name, model.taxonomy_version, list(model.languages)) == ("feedback", "1", ["en", "es"])
        assert list(model.aspects) == [number for number in meaning.Aspect.values() if number]
        assert model.sentences


async def test_the_taxonomy_is_told_in_each_language(company: Company) -> None:
    whole = await company.stub.GetTaxonomy(pb.GetTaxonomyRequest())
    assert whole.language == whole.languages[0]
    paths = [need.path for need in whole.needs]
    assert len(set(paths)) == len(paths) > 100
    for need in whole.needs:
        assert need.level == need.path.count("/") + 1 <= 3
        assert need.level == 1 or need.path.rpartition("/")[0] in paths[: paths.index(need.path)]
    slovenian = await company.stub.GetTaxonomy(pb.GetTaxonomyRequest(language="sl-SI", need_path="delivery"))
    assert {need.path.partition("/")[0] for need in slovenian.needs} == {"delivery"}
    assert slovenian.needs[0].name == "Dostava"
    for request, code in (
        (pb.GetTaxonomyRequest(language="tlh"), StatusCode.INVALID_ARGUMENT),
        (pb.GetTaxonomyRequest(need_path="luck"), StatusCode.NOT_FOUND),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await company.stub.GetTaxonomy(request)
        assert caught.value.code() is code


async def test_the_whole_analysis_is_told(company: Company) -> None:
    request = pb.AnalyzeRequest(texts=["good but hm"], model_version="6")
    found = (await company.stub.Analyze(request)).results[0].analysis
    assert (found.sentiment, found.point) == (meaning.SENTIMENT_POSITIVE, meaning.POINT_KIND_DELIGHT)
    assert (found.emotion, found.intent) == (meaning.EMOTION_JOY, meaning.INTENT_PRAISE)
    assert (found.effort, found.urgency) == (meaning.EFFORT_NONE, meaning.URGENCY_NORMAL)
    assert (found.confidence.need, found.confidence.urgency) == (0.5, 0.25)
    assert (found.need_path, list(found.unsure)) == ("", [meaning.ASPECT_NEED])
    (sentence,) = found.sentences
    assert (sentence.start, sentence.end, sentence.emotion) == (0, 4, meaning.EMOTION_JOY)
    assert (sentence.need_path, list(sentence.unsure)) == ("", [meaning.ASPECT_NEED])
    assert (found.model_version, found.taxonomy_version) == ("6", "1")
    (default,) = (await company.stub.Analyze(pb.AnalyzeRequest(texts=["good"]))).results
    assert default.analysis.model_version == "5"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await company.stub.Analyze(pb.AnalyzeRequest(texts=["good"], model_version="99"))
    assert (caught.value.code(), info(caught.value).reason) == (StatusCode.NOT_FOUND, "MODEL_VERSION_UNKNOWN")


async def test_a_stream_of_batches_is_answered_in_order(company: Company) -> None:
    # What a batch may hold, and none of these spoils it; 8 more batches than are read ahead.
    odd = ["good", "", " \t", "x" * 1024 * 1024, "nul \0", "😀" * 10_000, "<b>good</b>", "مرحبا", "12", "?!"]
    reasons = ["", "EMPTY_TEXT", "EMPTY_TEXT", "TEXT_TOO_LONG", "", "TEXT_TOO_LONG", "", "", "", ""]

    async def requests() -> AsyncIterator[pb.AnalyzeStreamRequest]:
        for number in range(1, 13):
            yield pb.AnalyzeStreamRequest(sequence=number, texts=odd)
        yield pb.AnalyzeStreamRequest(sequence=13)
        yield pb.AnalyzeStreamRequest(sequence=14, texts=["good"] * 1001)
        yield pb.AnalyzeStreamRequest(sequence=15, texts=["good"] * 1000)
        yield pb.AnalyzeStreamRequest(sequence=16, texts=["good"], model_version="99")

    answers = [answer async for answer in company.stub.AnalyzeStream(requests())]
    assert [answer.sequence for answer in answers] == list(range(1, 17))
    for answer in answers[:12]:
        assert [result.problem.reason for result in answer.results] == reasons
    assert [answer.problem.reason for answer in answers[12:]] == ["", "INVALID", "", "MODEL_VERSION_UNKNOWN"]
    assert [len(answer.results) for answer in answers[12:]] == [0, 0, 1000, 0]


# -- what people say -----------------------------------------------------------------------------------------------


async def test_a_person_wins_over_every_model(company: Company) -> None:
    event_id, other = await company.say("ana", "good but late", "bad")
    answer = await company.correct("ana", event_id, "r1", sentiment=meaning.SENTIMENT_POSITIVE, need_path="delivery")
    found = answer.analysis
    assert (found.sentiment, found.sentiment_score, found.need_path) == (meaning.SENTIMENT_POSITIVE, 1.0, "delivery")
    assert (found.point, found.confidence.sentiment, found.confidence.point) == (meaning.POINT_KIND_PAIN, 1.0, 0.5)
    assert list(found.corrected) == [meaning.ASPECT_SENTIMENT, meaning.ASPECT_NEED]
    again = await company.correct("ana", event_id, "r1", sentiment=meaning.SENTIMENT_POSITIVE, need_path="delivery")
    assert again == answer
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await company.correct("ana", event_id, "r1", sentiment=meaning.SENTIMENT_NEUTRAL)
    assert (caught.value.code(), info(caught.value).reason) == (StatusCode.ALREADY_EXISTS, "REQUEST_DIFFERS")

    await company.reanalyze("ana")
    said = [each for each in await company.analyses("ana") if each.interaction_event_id == event_id]
    assert [(each.analysis.model_version, each.actor, each.counts) for each in said] == [
        ("5", "", False),
        ("5", "mia", True),
        ("6", "", False),
    ]
    # What nobody decided is the newest model's from the next correction on; what somebody did stays.
    latest = (await company.correct("ana", event_id, emotion=meaning.EMOTION_TRUST)).analysis
    assert (latest.model_version, latest.point, latest.need_path) == ("6", meaning.POINT_KIND_DELIGHT, "delivery")
    assert len(latest.corrected) == 3
    corrections = [e for e in await company.said("ana") if isinstance(e, AnalysisCorrected)]
    assert [e.interaction_event_id for e in corrections] == [event_id, event_id]
    counting = {each.interaction_event_id: each for each in await company.analyses("ana") if each.counts}
    assert (counting[event_id].actor, counting[other].analysis.model_version) == ("mia", "6")


async def test_a_bad_correction_is_refused_with_every_reason(company: Company) -> None:
    (event_id,) = await company.say("bo", "good")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await company.stub.CorrectAnalysis(
            pb.CorrectAnalysisRequest(
                customer_id=" ",
                interaction_event_id="7",
                correction=pb.Correction(need_path="luck", language="english", sentiment=77),  # type: ignore[arg-type]
                comment="x" * 1025,
            )
        )
    assert caught.value.code() is StatusCode.INVALID_ARGUMENT
    assert [field for field, _ in violations(caught.value)] == [
        *("customer_id", "actor", "request_id", "interaction_event_id", "comment"),
        *("correction.sentiment", "correction.language", "correction.need_path"),
    ]
    for customer_id, about, correction, reason in (
        ("nobody", event_id, {"language": "en"}, "INTERACTION_UNKNOWN"),
        ("bo", str(uuid.uuid4()), {"language": "en"}, "INTERACTION_UNKNOWN"),
        ("bo", event_id, {}, "INVALID"),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await company.correct(customer_id, about, **correction)
        assert info(caught.value).reason == reason


async def test_corrections_are_handed_to_the_next_training(company: Company) -> None:
    first, second = await company.say("cleo", "bad, write to cleo@example.com", "good")
    await company.correct("cleo", first, point=meaning.POINT_KIND_ITCH)
    await company.correct("cleo", first, point=meaning.POINT_KIND_NONE)
    await company.correct("cleo", second, intent=meaning.INTENT_THANK)

    async def export(**more: Any) -> list[pb.ExportCorrectionsResponse]:
        found = [each async for each in company.stub.ExportCorrections(pb.ExportCorrectionsRequest(**more))]
        return [each for each in found if each.interaction_event_id in (first, second)]

    one, two = await export()
    assert (one.text, one.analysis.point) == ("bad, write to cleo@example.com", meaning.POINT_KIND_NONE)
    assert (one.before.point, one.channel, one.actor, one.comment) == (
        *(meaning.POINT_KIND_PAIN, "web"),
        *("mia", "I know her"),
    )
    assert two.analysis.intent == meaning.INTENT_THANK
    assert (await export(mask=True))[0].text == "bad, write to [email]"
    assert [each.interaction_event_id for each in await export(after_position=one.position)] == [second]


# -- the history ---------------------------------------------------------------------------------------------------


async def test_the_history_is_analysed_again_once_and_both_can_be_read(company: Company) -> None:
    ids = await company.say("dan", *texts_of(150, "bad"), "")
    first = await company.reanalyze("dan", name="dan-6")
    assert (first[-1].complete, first[-1].model_version) == (True, "6")
    assert (first[-1].tally.verbatims, first[-1].tally.analyzed, first[-1].tally.known) == (150, 150, 0)
    again = await company.reanalyze("dan", name="dan-6")
    assert (len(again), again[0].tally, again[0].complete) == (1, first[-1].tally, True)
    other = await company.reanalyze("dan", name="dan-6b")
    assert (other[-1].tally.analyzed, other[-1].tally.known) == (0, 150)
    events = await company.said("dan")
    assert len(events) == 300
    versions = [(e.interaction_event_id, e.analysis.model_version) for e in events]
    assert sorted(versions) == sorted((event_id, version) for event_id in ids[:150] for version in "56")
    assert {e.reanalysis_id for e in events} == {"", "dan-6"}
    counting = [each for each in await company.analyses("dan") if each.counts]
    assert {each.analysis.model_version for each in counting} == {"6"}
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await company.reanalyze("dan", "somebody else", name="dan-6")
    assert info(caught.value).reason == "REANALYSIS_DIFFERS"


async def test_a_killed_reanalysis_goes_on_and_repeats_nothing(company: Company) -> None:
    await company.say("eve", *texts_of(300, "bad"))
    request = pb.ReanalyzeRequest(
        reanalysis_id="eve-6",
        model_version="6",
        slice=pb.Slice(customer_ids=["eve"]),
        actor="mia",
        max_texts_per_second=40,
    )

    async def cut_off() -> None:
        async for progress in company.stub.Reanalyze(request):
            assert not progress.complete
            if progress.tally.analyzed >= 40:
                company.cluster.kill("inference")

    with pytest.raises(grpc.aio.AioRpcError):
        await cut_off()
    await company.cluster.until_ready("inference")

    async def go_on() -> list[pb.ReanalyzeResponse]:
        return await company.reanalyze("eve", name="eve-6")

    done: list[pb.ReanalyzeResponse] | None = await until(
        go_on, 30, ignoring=(grpc.aio.AioRpcError,), what="it goes on"
    )
    assert done
    assert done[-1].complete
    tally = done[-1].tally
    assert (tally.verbatims, tally.analyzed + tally.known, tally.failed) == (300, 300, 0)
    versions = [(e.interaction_event_id, e.analysis.model_version) for e in await company.said("eve")]
    assert len(versions) == len(set(versions)) == 600


async def test_while_triton_is_away_a_reanalysis_waits(company: Company) -> None:
    await company.say("fay", *texts_of(130, "bad"))
    call = company.stub.Reanalyze(
        pb.ReanalyzeRequest(
            reanalysis_id="fay-6",
            model_version="6",
            slice=pb.Slice(customer_ids=["fay"]),
            actor="mia",
            max_texts_per_second=60,
        )
    )
    waited = restarted = False
    async for progress in call:
        if not waited and not restarted:
            await company.cluster.stop("triton")
            restarted = True
        if progress.waiting_for == "triton" and not waited:
            waited = True
            await company.cluster.start("triton")
    assert waited
    assert progress.complete
    assert progress.tally.analyzed == 130


async def test_versions_are_compared_over_the_history(company: Company) -> None:
    ids = await company.say("gus", "good but late, gus@example.com", "good", "bad", "good hm", "good but fine")
    await company.correct("gus", ids[0], sentiment=meaning.SENTIMENT_POSITIVE)
    request = pb.CompareModelsRequest(
        base_version="5", other_version="6", slice=pb.Slice(customer_ids=["gus"]), max_examples=1
    )
    before = len(await company.said("gus"))
    told = [each async for each in company.stub.CompareModels(request)]
    found = told[-1].comparison
    assert not any(each.HasField("comparison") for each in told[:-1])
    assert (found.compared, found.failed) == (5, 0)
    by_aspect = {each.aspect: each for each in found.aspects}
    sentiment = by_aspect[meaning.ASPECT_SENTIMENT]
    assert [(c.base, c.other, c.verbatims) for c in sentiment.confusions] == [
        ("negative", "positive", 2),
        ("positive", "positive", 2),
        ("negative", "negative", 1),
    ]
    assert (sentiment.compared, sentiment.changed, sentiment.changed_share) == (5, 2, 0.4)
    assert sentiment.changed_low == pytest.approx(0.1176, abs=1e-4)
    assert sentiment.changed_high == pytest.approx(0.7693, abs=1e-4)
    assert [example.text for example in sentiment.examples] == ["good but late, [email]"]
    assert (sentiment.judged, sentiment.base_right, sentiment.other_right) == (1, 0, 1)
    need = by_aspect[meaning.ASPECT_NEED]
    assert ("staff", "unsure", 1) in [(c.base, c.other, c.verbatims) for c in need.confusions]
    assert len(await company.said("gus")) == before


async def test_what_failed_is_tried_again(company: Company) -> None:
    text = "good poison"
    event = InteractionRecorded(
        interaction=Interaction(customer=Customer(customer_id="hal"), verbatim=Verbatim(text=text))
    )
    pending = Pending(event, derived_id("hal"))
    failure = Pending(
        FeedbackAnalysisFailed(
            interaction_event_id=str(pending.event_id), customer_id="hal", reason="MODEL_FAILED", model="feedback"
        ),
        derived_id("hal failed"),
    )
    await company.store.append([StreamAppend(stream_name("customer", "hal"), ANY, [pending, failure])])
    request = pb.RetryFailedRequest(slice=pb.Slice(customer_ids=["hal"]))
    told = [each async for each in company.stub.RetryFailed(request)]
    assert (told[-1].complete, told[-1].tally.failed, told[-1].tally.analyzed) == (True, 1, 0)
    for version in ("5", "6"):
        assert (company.models / version).is_dir()
    (company.models / "cured").touch()
    told = [each async for each in company.stub.RetryFailed(request)]
    assert (told[-1].tally.verbatims, told[-1].tally.analyzed) == (1, 1)
    told = [each async for each in company.stub.RetryFailed(request)]
    assert (told[-1].tally.known, told[-1].tally.analyzed) == (1, 0)
    (counting,) = [each for each in await company.analyses("hal") if each.counts]
    assert counting.analysis.model_version == "5"


# -- on the command line -------------------------------------------------------------------------------------------


async def test_texts_of_a_file_are_analysed_line_by_line(company: Company, tmp_path: Path) -> None:
    file = tmp_path / "texts"
    file.write_bytes(b"good\n\nbad \xff\n" + b"bad\n" * 600)
    done = await recorrido(company.cluster, "analyze", "--file", str(file), "--json")
    assert done.code == 0, done
    results = [json.loads(line) for line in done.out.splitlines()]
    assert [each.get("problem", {}).get("reason") for each in results[:4]] == [None, "EMPTY_TEXT", "INVALID_UTF8", None]
    assert len(results) == 603
    assert "603 texts, 2 of them not analysed" in done.err
    table = (await recorrido(company.cluster, "analyze", "good but bad", "--sentences")).out
    assert "anger" in table
    assert (await recorrido(company.cluster, "analyze")).code == 2
    missing = await recorrido(company.cluster, "analyze", "--file", "/nowhere")
    assert (missing.code, "No such file" in missing.err) == (1, True)
    file.write_bytes(b"\n\n")
    nothing = await recorrido(company.cluster, "analyze", "--file", str(file))
    assert (nothing.code, nothing.err) == (1, "error: 2 texts, 2 of them not analysed: the text is empty or blank\n")
    no_text = await recorrido(company.cluster, "analyze", "--file", sys.executable)
    told = f"error: {sys.executable} is no text: its byte 8 is NUL; nothing of it was sent\n"
    assert (no_text.code, no_text.out, no_text.err) == (1, "", told)
    file.write_text("good\nschön\nmüde\n", encoding="latin-1")
    latin = await recorrido(company.cluster, "analyze", "--file", str(file))
    told = f"error: {file} is no text in UTF-8: its byte 9 is none; nothing of it was sent\n"
    assert (latin.code, latin.out, latin.err) == (1, "", told)


async def test_people_correct_compare_and_reanalyse(company: Company, tmp_path: Path) -> None:
    (event_id,) = await company.say("ivy", "good but late")
    done = await recorrido(
        company.cluster,
        "correct",
        "ivy",
        event_id,
        "--sentiment",
        "positive",
        "--need",
        "delivery",
        "--comment",
        "sure",
    )
    assert done.code == 0, done
    assert "sentiment, need" in done.out
    unchanged = next(line for line in done.out.splitlines() if line.startswith("Unchanged: "))
    assert unchanged.startswith("Unchanged: point "), "who is told to be glad may still be told to be in pain"
    assert "--point, " in unchanged
    assert "--sentiment" not in unchanged
    assert "--need" not in unchanged
    listed = (await recorrido(company.cluster, "analyses", "ivy")).out
    assert "tester" in listed
    nothing = await recorrido(company.cluster, "models", "compare", "5", "no such", "--customer", "ivy")
    assert (nothing.code, "nothing could be compared" in nothing.err) == (1, True)
    assert "feedback 5" in listed
    models = await told(company.cluster, "models")
    assert [each["inService"] for each in models["models"]] == [False, True]
    assert "sentences" in (await recorrido(company.cluster, "models")).out
    compared = (await recorrido(company.cluster, "models", "compare", "5", "6", "--customer", "ivy")).out
    assert "0 → 1 of 1" in compared
    again = await told(company.cluster, "reanalyze", "--model-version", "6", "--customer", "ivy", "--as", "ivy-6")
    assert (again["complete"], again["tally"]["analyzed"]) == (True, "1")
    assert (await recorrido(company.cluster, "retry-failed", "--customer", "ivy")).out.startswith("0 verbatims")
    file = tmp_path / "corrections"
    assert (await recorrido(company.cluster, "corrections", "--out", str(file))).code == 0
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    (mine,) = [each for each in lines if each["interactionEventId"] == event_id]
    assert (mine["text"], mine["analysis"]["needPath"], mine["actor"]) == ("good but late", "delivery", "tester")
    # The next training takes this file as it is, and of it only what the person decided.
    learnt = corrections.taught([], [file], taxonomy.load())
    assert (learnt.used, learnt.judging, learnt.unknown) == (len({each["text"] for each in lines}), 0, 0)
    (row,) = [each for each in learnt.rows if each.text == "good but late"]
    assert (row.sentiment, row.need, row.channel) == ("positive", "delivery", "web")
    assert (row.point, row.emotion, row.intent, row.language) == ("", "", "", "")
    assert "Dostava" in (await recorrido(company.cluster, "taxonomy", "delivery", "--language", "sl")).out
