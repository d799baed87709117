"""proto ⇄ domain of the inference service."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

import structlog

from recorrido.inference.v1 import analysis_pb2, inference_service_pb2_grpc
from recorrido.inference.v1 import inference_service_pb2 as pb
from recorrido.inference.v1.events import AnalysisCorrected, FeedbackAnalysisFailed
from services.foundation.errors import InvalidError, NotFoundError, RecorridoError, UnavailableError
from services.foundation.flow import reports, until_set
from services.foundation.intervals import wilson
from services.foundation.masking import Masker, Pii
from services.foundation.rpc import timestamp
from services.inference import reading
from services.inference.comparison import Comparisons, Differences
from services.inference.corrections import CorrectionHandlers, Lesson
from services.inference.domain import Problem, Result
from services.inference.handlers import Handlers
from services.inference.history import Work
from services.inference.opinions import Opinion
from services.inference.reanalysis import Pace, Reanalyses
from services.inference.taxonomy import Taxonomy

LOG = structlog.get_logger()

#: Batches of one stream that are under way and not yet answered.
STREAM_WINDOW = 4
PROGRESS_EVERY_S = 1.0

_STATES = {"READY": pb.MODEL_STATE_READY, "LOADING": pb.MODEL_STATE_LOADING}


@dataclass(frozen=True, slots=True)
class Parts:
    """What the servicer hands on to."""

    handlers: Handlers
    corrections: CorrectionHandlers
    reanalyses: Reanalyses
    comparisons: Comparisons
    taxonomy: Taxonomy
    #: Set when the process is to end: streams end then.
    stopping: asyncio.Event


class InferenceServicer(inference_service_pb2_grpc.InferenceServiceServicer):
    """Analyses texts on demand, and answers for what was analysed."""

    def __init__(self, parts: Parts) -> None:
        self._handlers = parts.handlers
        self._corrections = parts.corrections
        self._reanalyses = parts.reanalyses
        self._comparisons = parts.comparisons
        self._taxonomy = parts.taxonomy
        self._stopping = parts.stopping
        self._mask = Masker(tuple(Pii))

    # -- analysing -------------------------------------------------------------------------------------------------

    async def Analyze(self, request: pb.AnalyzeRequest, _context: Any) -> pb.AnalyzeResponse:  # noqa: N802 - gRPC's name
        reading.check_texts(request.texts, least=1)
        return pb.AnalyzeResponse(results=map(_result, await self._analyze(request.texts, request.model_version)))

    async def _analyze(self, texts: Sequence[str], version: str) -> list[Result]:
        if version:
            await self._handlers.require(version)
        return await self._handlers.analyze(texts, version)

    async def AnalyzeStream(  # noqa: N802
        self, requests: AsyncIterator[pb.AnalyzeStreamRequest | InvalidError], _context: Any
    ) -> AsyncIterator[pb.AnalyzeStreamResponse]:
        """Read while fewer than STREAM_WINDOW batches are unanswered; answer in order."""
        window = asyncio.Semaphore(STREAM_WINDOW)
        answers: asyncio.Queue[asyncio.Task[pb.AnalyzeStreamResponse] | None] = asyncio.Queue()
        under_way: set[asyncio.Task[Any]] = set()

        async def read() -> None:
            try:
                async for request in until_set(requests, self._stopping):
                    await window.acquire()
                    answer = asyncio.create_task(self._answer(request))
                    under_way.add(answer)
                    answer.add_done_callback(under_way.discard)
                    answers.put_nowait(answer)
            finally:
                answers.put_nowait(None)

        under_way.add(reader := asyncio.create_task(read()))
        try:
            while (answer := await answers.get()) is not None:
                yield await answer
                window.release()
            await reader
        finally:
            for task in under_way:
                task.cancel()
            await asyncio.gather(*under_way, return_exceptions=True)
        if self._stopping.is_set():
            raise UnavailableError("inference", "stopping")

    async def _answer(self, request: pb.AnalyzeStreamRequest | InvalidError) -> pb.AnalyzeStreamResponse:
        sequence = 0 if isinstance(request, InvalidError) else request.sequence
        try:
            if isinstance(request, InvalidError):
                raise request  # noqa: TRY301 - it ends like every other refused batch
            reading.check_texts(request.texts, least=0)
            results = await self._analyze(request.texts, request.model_version)
        except RecorridoError as error:
            problem = pb.AnalyzeProblem(reason=error.reason, message=error.message[:1024])
            return pb.AnalyzeStreamResponse(sequence=sequence, problem=problem)
        except Exception:
            LOG.exception("batch failed", sequence=sequence)
            problem = pb.AnalyzeProblem(reason="INTERNAL", message="internal error; the log has it by trace id")
            return pb.AnalyzeStreamResponse(sequence=sequence, problem=problem)
        return pb.AnalyzeStreamResponse(sequence=sequence, results=map(_result, results))

    # -- what there is ---------------------------------------------------------------------------------------------

    async def GetTaxonomy(self, request: pb.GetTaxonomyRequest, _context: Any) -> pb.GetTaxonomyResponse:  # noqa: N802
        language = self._taxonomy.language_of(request.language)
        needs = [
            pb.Need(
                path=need.path,
                level=need.level,
                name=need.name[language],
                definition=need.definition[language],
                retired=need.retired,
            )
            for need in self._taxonomy.below(request.need_path)
        ]
        return pb.GetTaxonomyResponse(
            version=self._taxonomy.version, language=language, languages=self._taxonomy.languages, needs=needs
        )

    async def ListModels(self, _request: pb.ListModelsRequest, _context: Any) -> pb.ListModelsResponse:  # noqa: N802
        models = [
            pb.Model(
                name=model.name,
                version=model.version,
                state=_STATES.get(model.state, pb.MODEL_STATE_UNAVAILABLE),
                reason=model.reason,
                in_service=model.in_service,
                taxonomy_version=model.taxonomy_version,
                languages=model.languages,
                aspects=[analysis_pb2.Aspect.Value(aspect.value) for aspect in model.aspects],
                sentences=model.sentences,
            )
            for model in await self._handlers.models()
        ]
        return pb.ListModelsResponse(models=models)

    # -- what people say -------------------------------------------------------------------------------------------

    async def ListAnalyses(self, request: pb.ListAnalysesRequest, _context: Any) -> pb.ListAnalysesResponse:  # noqa: N802
        reading.check_customer(request.customer_id)
        known = await self._corrections.of(request.customer_id)
        wanted = request.interaction_event_id
        if not known or (wanted and wanted not in known):
            which = f" with event id {wanted}" if wanted else ""
            raise NotFoundError(
                "INTERACTION_UNKNOWN", f"nothing is recorded of customer {request.customer_id!r}{which}"
            )
        return pb.ListAnalysesResponse(
            analyses=[
                _recorded(opinion, counts=opinion is verbatim.counting)
                for event_id, verbatim in known.items()
                if wanted in ("", event_id)
                for opinion in verbatim.opinions
            ]
        )

    async def CorrectAnalysis(  # noqa: N802
        self, request: pb.CorrectAnalysisRequest, _context: Any
    ) -> pb.CorrectAnalysisResponse:
        command, metadata = reading.correction(request, self._taxonomy)
        analysis, event_id = await self._corrections.correct(command, metadata)
        return pb.CorrectAnalysisResponse(analysis=analysis.to_proto(), event_id=event_id)

    async def ExportCorrections(  # noqa: N802
        self, request: pb.ExportCorrectionsRequest, _context: Any
    ) -> AsyncIterator[pb.ExportCorrectionsResponse]:
        async with contextlib.aclosing(self._corrections.export(request.after_position)) as lessons:
            async for lesson in lessons:
                text = lesson.verbatim.text
                yield _lesson(lesson, self._mask.text(text) if request.mask else text)

    # -- the history -----------------------------------------------------------------------------------------------

    async def Reanalyze(  # noqa: N802
        self, request: pb.ReanalyzeRequest, _context: Any
    ) -> AsyncIterator[pb.ReanalyzeResponse]:
        asked, per_second = reading.reanalysis(request)
        begun = await self._reanalyses.begin(asked)
        work = begun.work()
        async for _ in self._watch(self._reanalyses.run(begun, asked.slice, work, Pace(per_second))):
            yield pb.ReanalyzeResponse(
                model_version=begun.started.model_version,
                position=work.position,
                end_position=work.end_position,
                tally=_tally(work),
                waiting_for=work.waiting_for,
                complete=work.complete,
            )

    async def RetryFailed(  # noqa: N802
        self, request: pb.RetryFailedRequest, _context: Any
    ) -> AsyncIterator[pb.RetryFailedResponse]:
        part, per_second = reading.slice_of(request.slice), reading.pace(request.max_texts_per_second)
        version = await self._handlers.require(request.model_version)
        work = await self._reanalyses.whole()
        async for _ in self._watch(self._reanalyses.retry(part, version, work, Pace(per_second))):
            yield pb.RetryFailedResponse(
                position=work.position,
                end_position=work.end_position,
                tally=_tally(work),
                waiting_for=work.waiting_for,
                complete=work.complete,
            )

    async def CompareModels(  # noqa: N802
        self, request: pb.CompareModelsRequest, _context: Any
    ) -> AsyncIterator[pb.CompareModelsResponse]:
        part = reading.slice_of(request.slice)
        reading.check_comparison(request)
        versions = request.base_version, request.other_version
        work = await self._reanalyses.whole()
        found = Differences(request.max_examples, self._mask)
        async for _ in self._watch(self._comparisons.run(versions, part, request.max_verbatims, work, found)):
            yield pb.CompareModelsResponse(
                position=work.position,
                end_position=work.end_position,
                verbatims=work.verbatims,
                comparison=_comparison(versions, found) if work.complete else None,
            )

    def _watch(self, working: Coroutine[Any, Any, None]) -> AsyncGenerator[None, None]:
        why = UnavailableError("inference", "stopping; the same call goes on where this one ended")
        return reports(working, every_s=PROGRESS_EVERY_S, stop=self._stopping, why=why)


def _result(result: Result) -> pb.AnalyzeResult:
    if isinstance(result, Problem):
        return pb.AnalyzeResult(problem=pb.AnalyzeProblem(reason=result.reason, message=result.message))
    return pb.AnalyzeResult(analysis=result.to_proto())


def _recorded(opinion: Opinion, *, counts: bool) -> pb.RecordedAnalysis:
    event = opinion.event
    message = pb.RecordedAnalysis(
        interaction_event_id=event.interaction_event_id,
        recorded_at=timestamp(opinion.recorded.recorded_at),
        counts=counts,
    )
    if isinstance(event, FeedbackAnalysisFailed):
        message.problem.CopyFrom(pb.AnalyzeProblem(reason=event.reason, message=event.message))
        return message
    if event.analysis is not None:
        message.analysis.CopyFrom(event.analysis.to_proto())
    if isinstance(event, AnalysisCorrected):
        message.actor, message.comment = event.actor, event.comment
    else:
        message.reanalysis_id = event.reanalysis_id
    return message


def _lesson(lesson: Lesson, text: str) -> pb.ExportCorrectionsResponse:
    recorded, event = lesson.correction.recorded, lesson.event
    return pb.ExportCorrectionsResponse(
        text=text,
        analysis=event.analysis.to_proto() if event.analysis else None,
        before=lesson.before.to_proto() if lesson.before else None,
        interaction_event_id=event.interaction_event_id,
        channel=lesson.verbatim.interaction.channel.name.lower(),
        actor=event.actor,
        comment=event.comment,
        corrected_at=timestamp(recorded.recorded_at),
        position=recorded.position,
    )


def _tally(work: Work) -> pb.Tally:
    return pb.Tally(verbatims=work.verbatims, analyzed=work.analyzed, known=work.known, failed=work.failed)


def _comparison(versions: tuple[str, str], found: Differences) -> pb.Comparison:
    comparison = pb.Comparison(
        base_version=versions[0], other_version=versions[1], compared=found.compared, failed=found.failed
    )
    for aspect, each in sorted(found.aspects.items(), key=lambda item: item[0].number):
        low, high = wilson(each.changed, each.compared)
        comparison.aspects.add(
            aspect=analysis_pb2.Aspect.Value(aspect.value),
            compared=each.compared,
            changed=each.changed,
            changed_share=each.changed / each.compared,
            changed_low=low,
            changed_high=high,
            confusions=[
                pb.Confusion(base=base, other=other, verbatims=count)
                for (base, other), count in sorted(each.pairs.items(), key=lambda item: (-item[1], item[0]))
            ],
            examples=[
                pb.ComparisonExample(
                    interaction_event_id=example.interaction_event_id,
                    text=example.text,
                    base=example.base,
                    other=example.other,
                )
                for example in each.examples
            ],
            judged=each.judged,
            base_right=each.base_right,
            other_right=each.other_right,
        )
    return comparison
