"""What a playbook would have opened: the same decisions as in earnest, against streams that are only thought of.

Beside it are the playbooks that are published: who is called by one of them is left alone by the draft, too.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from recorrido.actions.v1.events import ActionOpened, CauseConfirmed, SignalAnswer
from recorrido.journey.v1.events import SignalRaised
from services.actions.domain.answering import (
    Answering,
    AnswerSignal,
    Causes,
    CountCause,
    Guard,
    PassGuard,
    hour_of,
    would_confirm,
)
from services.actions.domain.commands import OpenImprovement, OpenRecovery, check_signal
from services.actions.domain.playbooks import Causing, InForce, Recovering, asked


@dataclass(frozen=True, slots=True)
class Opening:
    """An action that would have been opened, and why. `customers` made it a cause."""

    event: ActionOpened
    signal: SignalRaised
    customers: int = 0


@dataclass(slots=True)
class Summary:
    """How many signals came to what: all but `signals`, `unmatched` and `by_others` is of the draft alone.

    `unmatched` are those that no rule of any playbook matches. `by_others` counts the recoveries that other playbooks
    would have opened, `taken_by_others` the signals among all that a rule of theirs took from one of the draft.
    `busiest_hour` is the one in which most would have been opened, UTC.
    """

    signals: int = 0
    unmatched: int = 0
    by_others: int = 0
    taken_by_others: int = 0
    recoveries: int = 0
    improvements: int = 0
    cooled_down: int = 0
    refused_by_guard: int = 0
    matched: Counter[str] = field(default_factory=Counter)
    opened: Counter[str] = field(default_factory=Counter)
    hours: Counter[datetime] = field(default_factory=Counter)

    def busiest_hour(self) -> tuple[datetime | None, int]:
        return max(self.hours.items(), key=lambda each: each[1], default=(None, 0))


class DryRun:
    """Considers signals in the order in which they were recorded; improvements stay open to the end."""

    def __init__(self, draft: InForce, others: Sequence[InForce] = ()) -> None:
        """Try `draft` beside other playbooks; one of its own id is its earlier version, and left out."""
        self._draft = draft
        own = draft.playbook.playbook_id
        self._in_force = [draft, *(each for each in others if each.playbook.playbook_id != own)]
        self._states: dict[str, Any] = {}
        self.summary = Summary()

    def consider(self, signal: SignalRaised, recorded_at: datetime) -> Iterator[Opening]:
        """Yield what a signal would have opened. Raises InvalidError where it is nobody's."""
        self.summary.signals += 1
        check_signal(signal)
        wanted = asked(signal, self._in_force)
        if wanted.recovery is None and not wanted.causes:
            self.summary.unmatched += 1
            return
        answer = self._answer(signal, recorded_at, wanted.recovery)
        opened = answer.answer is SignalAnswer.OPENED
        if opened and wanted.recovery is not None and self._is_own(wanted.recovery):
            terms = self._draft.terms(wanted.recovery.rule, recorded_at)
            event = OpenRecovery(signal=signal, occurred_at=recorded_at, terms=terms).event()
            self.summary.recoveries += 1
            yield self._opened(Opening(event, signal), recorded_at)
        elif wanted.recovery is not None and not self._is_own(wanted.recovery):
            self.summary.by_others += opened
            self.summary.taken_by_others += asked(signal, [self._draft]).recovery is not None
        for causing in wanted.causes:
            recovery_id = answer.action_id if opened else ""
            yield from self._count(signal, recorded_at, causing, answer.customer_key, recovery_id)

    def _is_own(self, of: Recovering | Causing) -> bool:
        return of.by is self._draft

    def _answer(self, signal: SignalRaised, recorded_at: datetime, recovery: Recovering | None) -> Any:
        own = recovery is not None and self._is_own(recovery)
        if recovery is not None and own:
            self.summary.matched[recovery.rule.rule_id] += 1
        command = AnswerSignal(signal=signal, recorded_at=recorded_at, recovery=recovery)
        (answer,) = Answering().decide(command, self._states.get(command.stream, Answering().initial()))
        opens = answer.answer is SignalAnswer.OPENED
        if opens and recovery is not None and not self._passes(recovery.by, signal.signal_id, recorded_at):
            command = AnswerSignal(signal=signal, recorded_at=recorded_at, recovery=recovery, granted=False)
            self.summary.refused_by_guard += own
        self.summary.cooled_down += own and answer.answer is SignalAnswer.COOLING_DOWN
        return self._decide(Answering(), command)[0]

    def _count(
        self, signal: SignalRaised, recorded_at: datetime, causing: Causing, customer_key: str, recovery_id: str
    ) -> Iterator[Opening]:
        own = self._is_own(causing)
        if own:
            self.summary.matched[causing.rule.rule_id] += 1

        def command(*, granted: bool) -> CountCause:
            return CountCause(
                signal_id=signal.signal_id,
                recorded_at=recorded_at,
                customer_key=customer_key,
                recovery_id=recovery_id,
                causing=causing,
                granted=granted,
            )

        counting = command(granted=True)
        if would_confirm(counting, self._states.get(counting.stream, Causes().initial())):
            granted = self._passes(causing.by, f"{causing.cause_id} {signal.signal_id}", recorded_at)
            self.summary.refused_by_guard += own and not granted
            counting = command(granted=granted)
        for event in self._decide(Causes(), counting):
            if own and isinstance(event, CauseConfirmed):
                improvement = OpenImprovement(
                    action_id=event.improvement_id,
                    cause_id=causing.cause_id,
                    signal=signal,
                    customers=event.customers,
                    within_days=causing.rule.within_days,
                    touchpoint=causing.touchpoint,
                    need_path=causing.need_path,
                    terms=self._draft.terms(causing.rule, recorded_at),
                    occurred_at=recorded_at,
                )
                self.summary.improvements += 1
                yield self._opened(Opening(improvement.event(), signal, event.customers), recorded_at)

    def _opened(self, opening: Opening, at: datetime) -> Opening:
        self.summary.opened[opening.event.playbook_rule] += 1
        self.summary.hours[hour_of(at)] += 1
        return opening

    def _passes(self, by: InForce, asked_for: str, at: datetime) -> bool:
        command = PassGuard(
            playbook_id=by.playbook.playbook_id,
            max_per_hour=by.max_per_hour,
            hour=hour_of(at),
            ids=(asked_for,),
        )
        self._decide(Guard(), command)
        return asked_for in self._states[command.stream].passed

    def _decide(self, decider: Any, command: Any) -> Any:
        state = self._states.get(command.stream, decider.initial())
        events = decider.decide(command, state)
        for event in events:
            state = decider.evolve(state, event)
        self._states[command.stream] = state
        return events
