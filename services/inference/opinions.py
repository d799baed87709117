"""All that was said about a customer's verbatims, by models and by people: what counts, and how it is corrected. Pure.

A person's correction wins over every model's analysis, whichever came first; an analysis over a failure; of each, the
last.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from immutables import Map
from msgspec import structs

from recorrido.inference.v1.events import (
    Analysis,
    AnalysisCorrected,
    Aspect,
    Confidence,
    FeedbackAnalysisFailed,
    FeedbackAnalyzed,
    Sentiment,
)
from recorrido.ingest.v1.events import Interaction, InteractionRecorded
from services.foundation.errors import DiffersError
from services.foundation.events import Event, Recorded, Registry, cause_of

REGISTRY = Registry((InteractionRecorded, FeedbackAnalyzed, FeedbackAnalysisFailed, AnalysisCorrected))

#: The field of an Analysis, or a Sentence, that answers for each aspect.
FIELDS = {
    Aspect.LANGUAGE: "language",
    Aspect.SENTIMENT: "sentiment",
    Aspect.POINT: "point",
    Aspect.NEED: "need_path",
    Aspect.EMOTION: "emotion",
    Aspect.INTENT: "intent",
    Aspect.EFFORT: "effort",
    Aspect.URGENCY: "urgency",
}
#: The score is the probability of positive less that of negative, and a person is certain.
_SCORES = {Sentiment.NEGATIVE: -1.0, Sentiment.NEUTRAL: 0.0, Sentiment.POSITIVE: 1.0}

Spoken = FeedbackAnalyzed | FeedbackAnalysisFailed | AnalysisCorrected


@dataclass(frozen=True, slots=True)
class Opinion:
    """What somebody said, and where that is recorded."""

    event: Spoken
    recorded: Recorded

    @property
    def weight(self) -> tuple[int, int]:
        """Of two opinions, the heavier counts."""
        rank = (FeedbackAnalysisFailed, FeedbackAnalyzed, AnalysisCorrected).index(type(self.event))
        return rank, self.recorded.revision


@dataclass(slots=True)
class Verbatim:
    """An interaction that is recorded, and the opinions about its words, oldest first."""

    recorded: Recorded
    interaction: Interaction
    opinions: list[Opinion] = field(default_factory=list)

    @property
    def text(self) -> str:
        return self.interaction.verbatim.text if self.interaction.verbatim else ""

    @property
    def counting(self) -> Opinion | None:
        return max(self.opinions, key=lambda opinion: opinion.weight, default=None)

    @property
    def analyses(self) -> list[Analysis]:
        """What models said, oldest first."""
        return [o.event.analysis or Analysis() for o in self.opinions if isinstance(o.event, FeedbackAnalyzed)]

    @property
    def correction(self) -> Opinion | None:
        """The correction that counts."""
        found = self.counting
        return found if found and isinstance(found.event, AnalysisCorrected) else None


def verbatims(stream: Iterable[Recorded]) -> dict[str, Verbatim]:
    """Return the interactions of a customer's stream, by their event ids; an opinion about no other goes with it."""
    found: dict[str, Verbatim] = {}
    for recorded in stream:
        event = REGISTRY.read(recorded)
        if event is None:
            continue
        if isinstance(event, InteractionRecorded):
            found[str(recorded.event_id)] = Verbatim(recorded, event.interaction or Interaction())
        elif event.interaction_event_id in found:
            found[event.interaction_event_id].opinions.append(Opinion(event, recorded))
    return found


# -- correcting ----------------------------------------------------------------------------------------------------

Changes = Mapping[Aspect, Any]


@dataclass(frozen=True, slots=True)
class CorrectAnalysis:
    """A person says how it is, in the terms of a taxonomy."""

    interaction_event_id: str
    customer_id: str
    changes: Changes
    taxonomy_version: str
    actor: str
    comment: str
    request_id: str

    @property
    def cause(self) -> str:
        changes = {aspect.name: value for aspect, value in self.changes.items()}
        about = self.interaction_event_id, self.taxonomy_version
        return cause_of(self.request_id, "correct", *about, changes, self.actor, self.comment)


@dataclass(frozen=True, slots=True)
class Judged:
    """What the last model said of each interaction, what people did, and what came of each request."""

    analyses: Map[str, Analysis] = field(default_factory=Map)
    corrections: Map[str, Analysis] = field(default_factory=Map)
    requests: Map[str, AnalysisCorrected] = field(default_factory=Map)


class Corrections:
    """Decides about people's corrections in one customer's stream."""

    types: Sequence[type[Event]] = (FeedbackAnalyzed, AnalysisCorrected)

    def initial(self) -> Judged:
        return Judged()

    def evolve(self, state: Judged, event: FeedbackAnalyzed | AnalysisCorrected) -> Judged:
        about, analysis = event.interaction_event_id, event.analysis or Analysis()
        if isinstance(event, FeedbackAnalyzed):
            return Judged(state.analyses.set(about, analysis), state.corrections, state.requests)
        return Judged(
            state.analyses, state.corrections.set(about, analysis), state.requests.set(event.request_id, event)
        )

    def decide(self, command: CorrectAnalysis, state: Judged) -> Sequence[Event]:
        """Correct what the last model said, and leave what people decided before and nobody says otherwise."""
        if (done := state.requests.get(command.request_id)) is not None:
            if not _repeats(command, done):
                raise DiffersError("REQUEST_DIFFERS", f"request_id {command.request_id!r} corrected something else")
            return []
        before = state.corrections.get(command.interaction_event_id, Analysis())
        decided = {aspect: getattr(before, FIELDS[aspect]) for aspect in before.corrected if aspect in FIELDS}
        analysis = corrected(
            state.analyses.get(command.interaction_event_id, Analysis()), {**decided, **command.changes}
        )
        if Aspect.NEED in command.changes or not analysis.taxonomy_version:
            analysis = structs.replace(analysis, taxonomy_version=command.taxonomy_version)
        return [
            AnalysisCorrected(
                interaction_event_id=command.interaction_event_id,
                customer_id=command.customer_id,
                analysis=analysis,
                actor=command.actor,
                comment=command.comment,
                request_id=command.request_id,
            )
        ]


def corrected(analysis: Analysis, changes: Changes) -> Analysis:
    """Return the analysis with what a person decided in it."""
    values = {FIELDS[aspect]: value for aspect, value in changes.items()}
    if Aspect.SENTIMENT in changes:
        values["sentiment_score"] = _SCORES[changes[Aspect.SENTIMENT]]
    certain = {aspect.name.lower(): 1.0 for aspect in changes}
    return structs.replace(
        analysis,
        **values,
        confidence=structs.replace(analysis.confidence or Confidence(), **certain),
        unsure=tuple(aspect for aspect in analysis.unsure if aspect not in changes),
        corrected=tuple(aspect for aspect in FIELDS if aspect in changes),
    )


def _repeats(command: CorrectAnalysis, done: AnalysisCorrected) -> bool:
    analysis = done.analysis or Analysis()
    return (command.interaction_event_id, command.actor, command.comment) == (
        done.interaction_event_id,
        done.actor,
        done.comment,
    ) and all(
        aspect in analysis.corrected and getattr(analysis, FIELDS[aspect]) == value
        for aspect, value in command.changes.items()
    )
