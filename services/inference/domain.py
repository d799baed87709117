"""What a customer's words mean, recorded once per interaction and model version.

The analysis stands in the customer's stream, behind the interaction it is about.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from immutables import Map

from recorrido.inference.v1.events import Analysis, FeedbackAnalysisFailed, FeedbackAnalyzed
from services.foundation.events import Event

MAX_TEXT_BYTES = 16 * 1024

EMPTY_TEXT = "EMPTY_TEXT"
TEXT_TOO_LONG = "TEXT_TOO_LONG"
#: The model could not cope with this text, though it answered for others.
MODEL_FAILED = "MODEL_FAILED"


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a text has no analysis. `reason` is stable and upper case; the model is empty where none was asked."""

    reason: str
    message: str
    model: str = ""
    model_version: str = ""


Result = Analysis | Problem


def is_blank(text: str) -> bool:
    """Return whether there is nothing to analyse. A rating without words is a rating, not a failed analysis."""
    return not text or text.isspace()


def refusal(text: str) -> Problem | None:
    """Return why no model needs to be asked about `text`, if so."""
    if is_blank(text):
        return Problem(EMPTY_TEXT, "the text is empty or blank")
    size = len(text.encode())
    if size > MAX_TEXT_BYTES:
        return Problem(TEXT_TOO_LONG, f"at most {MAX_TEXT_BYTES} bytes of UTF-8, has {size}")
    return None


@dataclass(frozen=True, slots=True)
class RecordAnalysis:
    """The intention to record what came of analysing one interaction's verbatim."""

    interaction_event_id: str
    customer_id: str
    result: Result
    reanalysis_id: str = ""

    @property
    def cause(self) -> str:
        return _key(self.interaction_event_id, self.result)


def key_of(interaction_event_id: str, model: str, model_version: str) -> str:
    """Return what an analysis is known by: its interaction and who analysed it."""
    return f"{interaction_event_id}\x1f{model}\x1f{model_version}"


def _key(interaction_event_id: str, of: Result | FeedbackAnalysisFailed) -> str:
    return key_of(interaction_event_id, of.model, of.model_version)


#: Whether it was analysed, by interaction and model version; False where only a failure is known.
Analysed = Map[str, bool]


class Feedback:
    """Decides about the analyses in one customer's stream."""

    types: Sequence[type[Event]] = (FeedbackAnalyzed, FeedbackAnalysisFailed)

    def initial(self) -> Analysed:
        return Map()

    def evolve(self, state: Analysed, event: FeedbackAnalyzed | FeedbackAnalysisFailed) -> Analysed:
        if isinstance(event, FeedbackAnalyzed):
            return state.set(_key(event.interaction_event_id, event.analysis or Analysis()), True)
        key = _key(event.interaction_event_id, event)
        return state.set(key, state.get(key, False))

    def decide(self, command: RecordAnalysis, state: Analysed) -> Sequence[Event]:
        """Record the first result of a model version, and an analysis that follows a failure; nothing else."""
        analysed = state.get(command.cause)
        result = command.result
        if isinstance(result, Problem):
            if analysed is not None:
                return []
            return [
                FeedbackAnalysisFailed(
                    interaction_event_id=command.interaction_event_id,
                    customer_id=command.customer_id,
                    reason=result.reason,
                    message=result.message,
                    model=result.model,
                    model_version=result.model_version,
                )
            ]
        if analysed:
            return []
        return [
            FeedbackAnalyzed(
                interaction_event_id=command.interaction_event_id,
                customer_id=command.customer_id,
                analysis=result,
                reanalysis_id=command.reanalysis_id,
            )
        ]
