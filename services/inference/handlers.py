"""Event → reaction: verbatims go to the model in batches, their analyses to the customers' streams."""

from collections.abc import Sequence

from recorrido.ingest.v1.events import InteractionRecorded
from services.foundation.bus import MAX_TRIES, Answer, Delivery, Done, Reaction, Retry, answer_to
from services.foundation.events import CAUSATION_ID, CORRELATION_ID
from services.foundation.execute import Executor, Intent
from services.inference.domain import MODEL_FAILED, Analysed, Problem, RecordAnalysis, Result, is_blank, refusal
from services.inference.triton import ServedModel, Triton

BATCH_SIZE = 256


class Handlers:
    """Analyses texts, and records what came of it for those of interactions."""

    def __init__(self, triton: Triton, executor: Executor[Analysed]) -> None:
        self._triton = triton
        self._executor = executor

    @property
    def reaction(self) -> Reaction:
        return Reaction(
            durable="inference-analyze",
            types=(InteractionRecorded,),
            handle=self.react,
            batch_size=BATCH_SIZE,
            description="analyses what customers say",
        )

    async def analyze(self, texts: Sequence[str], version: str = "") -> list[Result]:
        """Return one result per text, in order, by a version that is served, or the one in service.

        Raises UnavailableError.
        """
        results: list[Result | None] = [refusal(text) for text in texts]
        asked = [index for index, result in enumerate(results) if result is None]
        answers = await self._triton.analyze([texts[index] for index in asked], version) if asked else []
        by_index = dict(zip(asked, answers, strict=True))
        return [result or by_index[index] for index, result in enumerate(results)]

    async def models(self) -> list[ServedModel]:
        """Return the versions that Triton knows, newest first. Raises UnavailableError."""
        return await self._triton.models()

    async def require(self, version: str) -> str:
        """Return the version, or the one in service, if Triton serves it. Raises NotFoundError or UnavailableError."""
        return await self._triton.require(version)

    async def react(self, deliveries: Sequence[Delivery]) -> list[Answer]:
        """Analyse the verbatims among `deliveries` and record each result in its own interaction's trace.

        A text that the model fails on is tried again, as models restart and change; its last failure is recorded.

        Raises:
            UnavailableError: Triton or the event store does not answer; nothing is lost by waiting.
        """
        texts = {index: text for index, d in enumerate(deliveries) if not is_blank(text := _words(d.event))}
        results = dict(zip(texts, await self.analyze(list(texts.values())), strict=True))
        answers: list[Answer] = [Done()] * len(deliveries)
        intents = {}
        for index, result in results.items():
            delivery = deliveries[index]
            if isinstance(result, Problem) and result.reason == MODEL_FAILED and delivery.tries < MAX_TRIES:
                answers[index] = Retry(result.message, delay_s=2.0**delivery.tries)
            else:
                intents[index] = _intent(delivery, result)
        executed = await self._executor.execute_all(list(intents.values()))
        for index, outcome in zip(intents, executed, strict=True):
            answers[index] = answer_to(outcome.error)
        return answers


def _words(event: InteractionRecorded) -> str:
    verbatim = event.interaction.verbatim if event.interaction else None
    return verbatim.text if verbatim else ""


def _intent(delivery: Delivery, result: Result) -> Intent:
    recorded = delivery.recorded
    event_id = str(recorded.event_id)
    customer = delivery.event.interaction.customer
    command = RecordAnalysis(event_id, customer.customer_id if customer else "", result)
    metadata = {CAUSATION_ID: event_id, CORRELATION_ID: recorded.metadata.get(CORRELATION_ID, event_id)}
    # An analysis comes behind its interaction: where the interaction is still the stream's last event, there is none.
    return Intent(
        recorded.stream, command, metadata, delivery.context, presumed_revision=recorded.revision, because=recorded
    )
