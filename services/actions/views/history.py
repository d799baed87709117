"""Single actions: who did what, when and why, from the action's own stream."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from recorrido.actions.v1.events import (
    ActionAccepted,
    ActionAssigned,
    ActionCommented,
    ActionCompleted,
    ActionDeclined,
    ActionDueSoon,
    ActionEscalated,
    ActionLinked,
    ActionOpened,
    ActionOverdue,
    ActionPrioritized,
    ActionReopened,
    ActionRescheduled,
    ActionStarted,
    ActionVerified,
    CustomerContacted,
    Impact,
    ImpactVerdict,
    RemedyOffered,
    SignalJoined,
)
from services.actions.domain.action import Action, ActionDecider, evolve, stream_of, unknown
from services.actions.domain.commands import TIMER, ActionEvent
from services.actions.domain.rules import MAX_ID
from services.foundation import telemetry
from services.foundation.events import Recorded, Registry
from services.foundation.eventstore import EventStore
from services.foundation.execute import Folded
from services.foundation.rules import Rules


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """One change of an action. `trace_id` is empty where it was not traced, `reason` where none was told."""

    event_type: str
    event_id: str
    recorded_at: datetime
    actor: str
    summary: str
    trace_id: str
    reason: str
    revision: int


@dataclass(frozen=True, slots=True)
class ActionHistory:
    """An action and all that ever happened to it, oldest first."""

    action: Folded[Action]
    entries: Sequence[HistoryEntry]


REGISTRY = Registry(ActionDecider.types)


class Histories:
    """Reads single actions from the store, so that it needs nothing else."""

    def __init__(self, store: EventStore) -> None:
        self._store = store

    async def get(self, action_id: str) -> ActionHistory:
        """Return the action as it stands now.

        Raises:
            InvalidError: `action_id` is empty, too long or no text.
            NotFoundError: there is no such action.
            UnavailableError: the store does not answer.
        """
        rules = Rules()
        rules.text("action_id", action_id, MAX_ID, required=True)
        rules.enforce()
        state, revision, entries = Action(), -1, []
        for recorded in await self._store.read(stream_of(action_id)):
            revision = recorded.revision
            if (event := REGISTRY.read(recorded)) is not None:
                state = evolve(state, event)
                entries.append(entry(event, recorded))
        if not entries:
            raise unknown(action_id)
        return ActionHistory(Folded(state, revision), entries)


def entry(event: ActionEvent, recorded: Recorded) -> HistoryEntry:
    return HistoryEntry(
        event_type=recorded.type_name,
        event_id=str(recorded.event_id),
        recorded_at=recorded.recorded_at,
        actor=TIMER if isinstance(event, ActionDueSoon | ActionOverdue | ActionEscalated) else event.actor,
        summary=summary(event),
        trace_id=telemetry.trace_id_of(recorded.metadata),
        reason=why(event),
        revision=recorded.revision,
    )


def why(event: ActionEvent) -> str:
    """Return the reason that the actor gave."""
    match event:
        case ActionOpened() | SignalJoined():
            return "; ".join(event.reasons)
        case CustomerContacted() | RemedyOffered() | ActionCompleted():
            return event.note
        case ActionCommented():
            return event.text
        case ActionVerified(impact=Impact(statement=statement)):
            return f"{event.reason} ({statement})"
        case ActionDueSoon() | ActionOverdue() | ActionEscalated():
            return f"{_what(event)} due {event.due_at:%Y-%m-%d %H:%M} UTC"
        case _:
            return event.reason


def summary(event: ActionEvent) -> str:  # noqa: C901, PLR0911, PLR0912 - one per type
    """Return what `event` tells, in words for people; actor and reason are told beside it."""
    match event:
        case ActionOpened():
            whose = f", for {event.owner}" if event.owner else ""
            return f"opened the {event.kind.name.lower()}: {event.title}{whose}"
        case ActionAccepted():
            return "accepted it" if event.owner == event.actor else f"accepted it for {event.owner}"
        case ActionAssigned():
            return f"gave it to {event.owner}"
        case ActionPrioritized():
            return f"made its priority {event.priority.name.lower()}"
        case ActionRescheduled():
            return f"made it due {event.due_at:%Y-%m-%d %H:%M} UTC"
        case CustomerContacted():
            how = event.channel.name.lower().replace("_", " ")
            return f"reached the customer by {how}" if event.reached else f"tried to reach the customer by {how}"
        case RemedyOffered():
            return f"offered a remedy: {event.remedy.name.lower()}"
        case ActionCompleted():
            return f"completed it: {event.result.name.lower().replace('_', ' ')}"
        case ActionVerified():
            return f"verified {_SHOWN[event.impact.verdict if event.impact else ImpactVerdict.UNSPECIFIED]}"
        case ActionLinked():
            return f"put it under {event.improvement_id}" if event.improvement_id else "took it from its improvement"
        case SignalJoined():
            return f"heard of it again: signal {event.signal_id}"
        case ActionDueSoon():
            return f"{_what(event)} is due soon"
        case ActionOverdue():
            return f"{_what(event)} is overdue"
        case ActionEscalated():
            return f"escalated to {event.escalated_to}"
        case _:
            return _SAID[event.type_name]


_SAID = {
    ActionDeclined.type_name: "declined it",
    ActionStarted.type_name: "began to work on it",
    ActionReopened.type_name: "reopened it",
    ActionCommented.type_name: "commented",
}


#: What was verified, by what the measure told then.
_SHOWN = {
    ImpactVerdict.HELPED: "that it helped, as measured",
    ImpactVerdict.NO_EVIDENCE: "it, though the measure shows no evidence that it helped",
    ImpactVerdict.GOT_WORSE: "it, though the measure got worse",
    ImpactVerdict.TOO_EARLY: "it, though it was too early to measure whether it helped",
    ImpactVerdict.UNSPECIFIED: "it, though nothing was measured",
}


def _what(event: ActionDueSoon | ActionOverdue | ActionEscalated) -> str:
    return event.obligation.name.lower()
