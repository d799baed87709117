"""Signals: what somebody should look at, each with the rule that found it, its reasons and its evidence.

Here are the rules that single events tell; those that watch over the whole history are in `domain.watching`.

The rule `bad_moment` follows closed-loop practice, which calls every detractor back (R. Markey, F. Reichheld and
A. Dullweber, "Closing the Customer Feedback Loop", Harvard Business Review, December 2009), and reads the other scales
alike: the answers that say "dissatisfied" (CSAT 1, 2) or "not easy" (CES 1 to 3), leaving out the middle point. Words
count when they tell of a pain and their sentiment is clearly negative, so that "pain" with a shrug opens nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from uuid import UUID

from recorrido.actions.v1.events import ActionCompleted, ActionKind, ActionOpened, ActionResult
from recorrido.inference.v1.events import Analysis, FeedbackAnalyzed, PointKind, Sentiment
from recorrido.ingest.v1.events import Customer, Interaction, InteractionRecorded, Outcome
from recorrido.journey.v1.events import Evidence, SignalRaised
from services.foundation.events import derived_id, stream_name
from services.foundation.scales import SCALES, answer

BAD_MOMENT = "bad_moment"
#: Part of every signal; raise it whenever a threshold below changes.
BAD_MOMENT_VERSION = 1

RECOVERY_FAILED = "recovery_failed"
RECOVERY_FAILED_VERSION = 1
#: What the customer said at the end of a recovery that did not make them glad again.
FAILED_RESULTS = {ActionResult.NO_CHANGE: "the customer is not glad", ActionResult.WORSE: "it is worse than before"}

#: On the scale of sentiment, -1 to 1.
HIGHEST_BAD_SENTIMENT = -0.5


@dataclass(frozen=True, slots=True)
class Seen:
    """An event that a rule saw: where it stands, and what it says."""

    event: InteractionRecorded | FeedbackAnalyzed | ActionOpened | ActionCompleted
    event_id: UUID
    stream: str
    revision: int
    position: int

    def evidence(self) -> Evidence:
        return Evidence(
            event_id=str(self.event_id),
            event_type=self.event.type_name,
            stream=self.stream,
            revision=self.revision,
            position=str(self.position),
        )


@dataclass(frozen=True, slots=True)
class RaiseSignal:
    """Raise `signal`, unless it was raised before. Its id derives from what it is about."""

    signal: SignalRaised

    @property
    def cause(self) -> str:
        return self.signal.signal_id

    @property
    def stream(self) -> str:
        return stream_name("signal", self.signal.signal_id)


@dataclass(frozen=True, slots=True)
class SignalState:
    raised: bool = False


class Signals:
    """The decider of a signal."""

    types = (SignalRaised,)

    def initial(self) -> SignalState:
        return SignalState()

    def evolve(self, state: SignalState, event: SignalRaised) -> SignalState:  # noqa: ARG002 - a decider's shape
        return replace(state, raised=True)

    def decide(self, command: RaiseSignal, state: SignalState) -> Sequence[SignalRaised]:
        return [] if state.raised else [command.signal]


def bad_moment_id(interaction_event_id: UUID) -> str:
    """Return the id of the one signal that an interaction can raise, whether its rating or its words were bad."""
    return str(derived_id(BAD_MOMENT, str(interaction_event_id)))


def hurt_in_deed(interaction: Interaction) -> tuple[str, ...]:
    """Return why the ratings and the outcome of an interaction tell of a bad moment, in words; nothing if not."""
    reasons = []
    for metric, scale in SCALES.items():
        value = answer(interaction.ratings, metric)
        if value is not None and value <= scale.highest_bad:
            reasons.append(f"{metric.name} {value} of {scale.highest}")
    if interaction.outcome is Outcome.FAILED:
        reasons.append("the interaction failed")
    return tuple(reasons)


def hurt_in_words(analysis: Analysis) -> tuple[str, ...]:
    """Return why the words of a customer tell of a bad moment; nothing if they do not."""
    hurt = (
        analysis.point is PointKind.PAIN
        and analysis.sentiment is Sentiment.NEGATIVE
        and analysis.sentiment_score <= HIGHEST_BAD_SENTIMENT
    )
    if not hurt:
        return ()
    about = f" about {analysis.need_path}" if analysis.need_path else ""
    return (f"told of a pain{about}, sentiment {analysis.sentiment_score:+.2f}",)


def bad_moment(interaction: Seen, analysis: Seen | None = None) -> SignalRaised | None:
    """Return the signal that an interaction, with the analysis of its words where there is one, gives rise to."""
    assert isinstance(interaction.event, InteractionRecorded)
    happened = interaction.event.interaction or Interaction()
    reasons = hurt_in_deed(happened)
    evidence = [interaction.evidence()]
    need_path = ""
    if analysis is not None:
        assert isinstance(analysis.event, FeedbackAnalyzed)
        words = analysis.event.analysis or Analysis()
        reasons += hurt_in_words(words)
        need_path = words.need_path
        evidence.append(analysis.evidence())
    if not reasons:
        return None
    return SignalRaised(
        signal_id=bad_moment_id(interaction.event_id),
        rule=BAD_MOMENT,
        rule_version=BAD_MOMENT_VERSION,
        customer_id=(happened.customer or Customer()).customer_id,
        touchpoint=happened.touchpoint,
        occurred_at=happened.occurred_at,
        reasons=reasons,
        evidence=tuple(evidence),
        need_path=need_path,
    )


def recovery_failed(opened: Seen, completed: Seen) -> SignalRaised | None:
    """Return the signal that a recovery's end gives rise to, where it did not make its customer glad.

    A failed recovery hurts more than the failure that it was to make good: the "double deviation" of M. J. Bitner,
    B. H. Booms and M. S. Tetreault, "The Service Encounter: Diagnosing Favorable and Unfavorable Incidents", Journal of
    Marketing 54, 1990.
    """
    assert isinstance(opened.event, ActionOpened)
    assert isinstance(completed.event, ActionCompleted)
    action, end = opened.event, completed.event
    if action.kind is not ActionKind.RECOVERY or not action.customer_id or end.result not in FAILED_RESULTS:
        return None
    return SignalRaised(
        # A recovery that was opened again can fail again: another cause.
        signal_id=str(derived_id(RECOVERY_FAILED, str(completed.event_id))),
        rule=RECOVERY_FAILED,
        rule_version=RECOVERY_FAILED_VERSION,
        customer_id=action.customer_id,
        touchpoint=action.touchpoint,
        occurred_at=end.occurred_at,
        reasons=(f"a recovery failed: {FAILED_RESULTS[end.result]}",),
        evidence=(opened.evidence(), completed.evidence()),
        need_path=action.need_path,
        inputs={"action_id": end.action_id, "result": end.result.name.lower()},
    )
