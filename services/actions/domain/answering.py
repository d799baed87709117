"""What is made of a signal: for its customer, under the guard of its playbook, and towards its causes.

Three small streams decide it, so that any number of instances, deaths and repetitions come to the same: the answers to
a customer's signals (one recovery per signal, cool-down), a playbook's guard (how many in an hour) and a cause (how
many customers, which improvement).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from immutables import Map

from recorrido.actions.v1.events import (
    CauseConfirmed,
    CauseCounted,
    GuardPassed,
    GuardTripped,
    SignalAnswer,
    SignalAnswered,
)
from recorrido.journey.v1.events import SignalRaised
from services.actions.domain.commands import recovery_id
from services.actions.domain.playbooks import Causing, Recovering
from services.foundation.events import Event, derived_id, stream_name

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

# -- the customer --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerSignal:
    """Decide whether a signal opens a recovery. `recorded_at` is when it was recorded; `granted`: by the guard."""

    signal: SignalRaised
    recorded_at: datetime
    recovery: Recovering | None
    granted: bool = True

    @property
    def cause(self) -> str:
        return self.signal.signal_id

    @property
    def stream(self) -> str:
        # Not named by the customer, so that no list of streams tells who had one. A signal about everyone is answered
        # by itself, and counts as one towards a cause.
        whose = (self.signal.customer_id,) if self.signal.customer_id else ("", self.signal.signal_id)
        return stream_name("answers", str(derived_id("answers", *whose)))


@dataclass(frozen=True, slots=True)
class Answers:
    """The answers to a customer's signals. `opened_at` is the customer's last recovery's."""

    key: str = ""
    given: Map[str, SignalAnswered] = field(default_factory=Map)
    opened_at: datetime | None = None
    action_id: str = ""


class Answering:
    """The decider of a customer's answers."""

    types: Sequence[type[Event]] = (SignalAnswered,)

    def initial(self) -> Answers:
        return Answers()

    def evolve(self, state: Answers, event: SignalAnswered) -> Answers:
        after = replace(state, key=state.key or event.customer_key, given=state.given.set(event.signal_id, event))
        if event.answer is SignalAnswer.OPENED:
            return replace(after, opened_at=event.occurred_at, action_id=event.action_id)
        return after

    def decide(self, command: AnswerSignal, state: Answers) -> Sequence[SignalAnswered]:
        """Return the answer; nothing where it was given before."""
        signal = command.signal
        if signal.signal_id in state.given:
            return []
        answer, action_id, reason = _answer(command, state)
        by = command.recovery
        return [
            SignalAnswered(
                signal_id=signal.signal_id,
                customer_id=signal.customer_id,
                answer=answer,
                action_id=action_id,
                playbook_id=by.by.playbook.playbook_id if by else "",
                playbook_version=by.by.version if by else 0,
                playbook_rule=by.rule.rule_id if by else "",
                reason=reason,
                occurred_at=command.recorded_at,
                # Made of the first signal: who it stands for cannot be told once the answers are erased.
                customer_key=state.key or str(derived_id("customer key", signal.signal_id)),
            )
        ]


def _answer(command: AnswerSignal, state: Answers) -> tuple[SignalAnswer, str, str]:
    if command.recovery is None:
        return SignalAnswer.COUNTED, "", "no rule opens a recovery for it"
    days = command.recovery.rule.cool_down_days
    if state.opened_at is not None and command.recorded_at < state.opened_at + timedelta(days=days):
        reason = f"within {days} days of the recovery of {state.opened_at:%Y-%m-%d}"
        return SignalAnswer.COOLING_DOWN, state.action_id, reason
    if not command.granted:
        reason = f"more than {command.recovery.by.max_per_hour:,} actions in an hour"
        return SignalAnswer.REFUSED_BY_GUARD, "", reason
    return SignalAnswer.OPENED, recovery_id(command.signal.signal_id), f"rule {command.recovery.rule.rule_id}"


# -- the guard -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class PassGuard:
    """Ask to open an action for each of `ids` (of signals, or improvements) in the hour that begins at `hour`."""

    playbook_id: str
    max_per_hour: int
    hour: datetime
    ids: tuple[str, ...]

    @property
    def cause(self) -> str:
        return str(derived_id(*self.ids))

    @property
    def stream(self) -> str:
        return stream_name("guard", str(derived_id("guard", self.playbook_id, self.hour.isoformat())))


@dataclass(frozen=True, slots=True)
class GuardState:
    passed: frozenset[str] = frozenset()
    tripped: bool = False


class Guard:
    """The decider of an hour of a playbook."""

    types: Sequence[type[Event]] = (GuardPassed, GuardTripped)

    def initial(self) -> GuardState:
        return GuardState()

    def evolve(self, state: GuardState, event: GuardPassed | GuardTripped) -> GuardState:
        if isinstance(event, GuardPassed):
            return replace(state, passed=state.passed | {*event.signal_ids})
        return replace(state, tripped=True)

    def decide(self, command: PassGuard, state: GuardState) -> Sequence[GuardPassed | GuardTripped]:
        """Let pass as many as there is room for; say once that there is none."""
        news = tuple(each for each in dict.fromkeys(command.ids) if each not in state.passed)
        room = max(0, command.max_per_hour - len(state.passed))
        events: list[GuardPassed | GuardTripped] = []
        if news[:room]:
            events.append(GuardPassed(playbook_id=command.playbook_id, signal_ids=news[:room], hour=command.hour))
        if news[room:] and not state.tripped:
            events.append(
                GuardTripped(
                    playbook_id=command.playbook_id,
                    max_per_hour=command.max_per_hour,
                    hour=command.hour,
                    signal_id=news[room],
                )
            )
        return events


def hour_of(moment: datetime) -> datetime:
    return moment.replace(minute=0, second=0, microsecond=0)


# -- the cause -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class CountCause:
    """Count a signal towards a cause, and confirm the cause when enough customers had it.

    `closed_at` is when the cause's improvement was closed, None while it is not: a cause that comes back after that is
    counted anew.
    """

    signal_id: str
    recorded_at: datetime
    customer_key: str
    recovery_id: str
    causing: Causing
    closed_at: datetime | None = None
    granted: bool = True

    @property
    def cause(self) -> str:
        return self.signal_id

    @property
    def stream(self) -> str:
        return stream_name("cause", self.causing.cause_id)


@dataclass(frozen=True, slots=True)
class CauseState:
    """The signals counted, those since the last improvement was proposed, by hour, and that improvement."""

    counted: Map[str, CauseCounted] = field(default_factory=Map)
    recent: Map[datetime, tuple[CauseCounted, ...]] = field(default_factory=Map)
    #: The signal that was counted last.
    last: str = ""
    improvement_id: str = ""
    #: The signal that made it a cause, and the recoveries of its customers then.
    confirmed_by: str = ""
    recoveries: Sequence[str] = ()
    customers: int = 0
    rounds: int = 0

    def members(self, within: timedelta, until: datetime, since: datetime | None) -> dict[str, str]:
        """Return the customers (by key, with a recovery each) of the last `within`, not before `since`."""
        after = until - within if since is None else max(since, until - within)
        found: dict[str, str] = {}
        for hour in sorted(hour for hour in self.recent if hour_of(after) <= hour <= until):
            for each in self.recent[hour]:
                if after < _at(each) <= until:
                    found[each.customer_key] = found.get(each.customer_key) or each.recovery_id
        return found


class Causes:
    """The decider of a cause."""

    types: Sequence[type[Event]] = (CauseCounted, CauseConfirmed)

    def initial(self) -> CauseState:
        return CauseState()

    def evolve(self, state: CauseState, event: CauseCounted | CauseConfirmed) -> CauseState:
        if isinstance(event, CauseCounted):
            hour = hour_of(_at(event))
            return replace(
                state,
                counted=state.counted.set(event.signal_id, event),
                # However many are counted while nothing is proposed, one more costs little.
                recent=state.recent.set(hour, (*state.recent.get(hour, ()), event)),
                last=event.signal_id,
            )
        return replace(
            state,
            recent=Map(),
            improvement_id=event.improvement_id,
            # The one that was counted last made it a cause.
            confirmed_by=state.last,
            recoveries=event.recovery_ids,
            customers=event.customers,
            rounds=state.rounds + 1,
        )

    def decide(self, command: CountCause, state: CauseState) -> Sequence[CauseCounted | CauseConfirmed]:
        """Count, and confirm; nothing where it was counted before."""
        if command.signal_id in state.counted:
            return []
        counted = CauseCounted(
            cause_id=command.causing.cause_id,
            signal_id=command.signal_id,
            customer_key=command.customer_key,
            recovery_id=command.recovery_id,
            occurred_at=command.recorded_at,
        )
        improvement_id = would_confirm(command, state)
        if not improvement_id or not command.granted:
            return [counted]
        rule, by = command.causing.rule, command.causing.by
        customers = members_of(command, self.evolve(state, counted))
        confirmed = CauseConfirmed(
            cause_id=command.causing.cause_id,
            improvement_id=improvement_id,
            playbook_id=by.playbook.playbook_id,
            playbook_version=by.version,
            playbook_rule=rule.rule_id,
            customers=len(customers),
            recovery_ids=tuple(each for each in customers.values() if each),
            occurred_at=command.recorded_at,
        )
        return [counted, confirmed]


def _at(counted: CauseCounted) -> datetime:
    return counted.occurred_at or _EPOCH


def members_of(command: CountCause, state: CauseState) -> dict[str, str]:
    within = timedelta(days=command.causing.rule.within_days)
    return state.members(within, command.recorded_at, command.closed_at)


def would_confirm(command: CountCause, state: CauseState) -> str:
    """Return the id of the improvement that `command` proposes, were it granted; empty where it proposes none."""
    if command.signal_id in state.counted or (state.improvement_id and command.closed_at is None):
        return ""
    customers = {*members_of(command, state), command.customer_key}
    if len(customers) < command.causing.rule.customers:
        return ""
    return str(derived_id("improvement", command.causing.cause_id, str(state.rounds + 1)))
