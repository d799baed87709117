"""Signals: what the playbooks in force make of them.

Each step decides against a stream and derives what it opens from the signal, so a batch that is cut off anywhere is
simply handled again: what was decided stays, what is missing is added.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, TypeVar

from recorrido.actions.v1.events import SignalAnswer, SignalAnswered
from recorrido.journey.v1.events import SignalRaised
from services.actions.domain.action import Action, stream_of
from services.actions.domain.answering import (
    Answering,
    Answers,
    AnswerSignal,
    Causes,
    CauseState,
    CountCause,
    Guard,
    GuardState,
    PassGuard,
    hour_of,
    would_confirm,
)
from services.actions.domain.commands import (
    JoinSignal,
    LinkByCause,
    OpenImprovement,
    OpenRecovery,
    about_everyone,
    check_signal,
)
from services.actions.domain.playbooks import Asked, Causing, InForce, asked
from services.actions.handlers.playbooks import PlaybookBook
from services.foundation.bus import Answer, Delivery, Done, Reaction, Skip, answer_to
from services.foundation.errors import InvalidError, RecorridoError
from services.foundation.events import CAUSATION_ID, CORRELATION_ID
from services.foundation.eventstore import EventStore
from services.foundation.execute import Executed, Executor, Intent

StateT = TypeVar("StateT")

#: Signals handled together, and commands in one append: the links of a large cause are more than a store takes at once.
AT_ONCE = 256


@dataclass(slots=True)
class _Case:
    """A signal on its way through the steps. `error` ends it."""

    delivery: Delivery
    asked: Asked
    answered: SignalAnswered | None = None
    error: RecorridoError | None = None
    causes: list[CauseState | None] = field(default_factory=list)

    @property
    def signal(self) -> SignalRaised:
        signal: SignalRaised = self.delivery.event
        return signal

    @property
    def at(self) -> datetime:
        return self.delivery.recorded.recorded_at

    def intent(self, stream: str, command: Any) -> Intent:
        return Intent(
            stream,
            command,
            metadata=_caused_by(self.delivery),
            context=self.delivery.context,
            because=self.delivery.recorded,
        )


#: A case and what is to be done for it.
_Work = tuple[_Case, str, Any]


class SignalHandlers:
    """Opens recoveries and improvements for signals, as the playbooks say; without any, a recovery for each."""

    def __init__(self, store: EventStore, executor: Executor[Action], book: PlaybookBook) -> None:
        self._executor = executor
        self._book = book
        self._answers: Executor[Answers] = Executor(store, Answering())
        self._guard: Executor[GuardState] = Executor(store, Guard())
        self._causes: Executor[CauseState] = Executor(store, Causes())

    @property
    def reaction(self) -> Reaction:
        return Reaction(
            durable="actions-recoveries",
            types=(SignalRaised,),
            handle=self.handle,
            batch_size=AT_ONCE,
            description="opens what the playbooks say for each signal",
        )

    async def handle(self, deliveries: Sequence[Delivery]) -> Sequence[Answer]:
        """Answer each delivery; every step is one append for the whole batch."""
        answers: list[Answer] = [Done()] * len(deliveries)
        await self._book.read_to(max(delivery.recorded.position for delivery in deliveries))
        cases: dict[int, _Case] = {}
        plain: dict[int, _Case] = {}
        for index, delivery in enumerate(deliveries):
            try:
                # Whatever is opened for it needs these; the rest is cut to its limits.
                check_signal(delivery.event)
            except InvalidError as error:
                answers[index] = Skip(error.message)
                continue
            in_force = self._book.in_force(delivery.recorded.position)
            if in_force or not about_everyone(delivery.event):
                to = cases if in_force else plain
                to[index] = _Case(delivery, asked(delivery.event, in_force))
        await self._open_for_each(list(plain.values()))
        await self._answer([case for case in cases.values() if case.asked.recovery or case.asked.causes])
        for index, case in (plain | cases).items():
            answers[index] = answer_to(case.error)
        return answers

    async def _open_for_each(self, cases: Sequence[_Case]) -> None:
        """Open a recovery for each signal that was recorded before there was any playbook."""
        await self._do(
            self._executor,
            [
                (case, stream_of(command.action_id), command)
                for case in cases
                for command in [OpenRecovery(signal=case.signal, occurred_at=case.at)]
            ],
        )

    async def _answer(self, cases: Sequence[_Case]) -> None:
        granted = await self._granted_recoveries(cases)
        commands = [
            AnswerSignal(
                signal=case.signal,
                recorded_at=case.at,
                recovery=case.asked.recovery,
                granted=case.signal.signal_id in granted,
            )
            for case in cases
        ]
        done = await self._do(self._answers, [(c, x.stream, x) for c, x in zip(cases, commands, strict=True)])
        for case, outcome in zip(cases, done, strict=True):
            if outcome.error is None:
                case.answered = outcome.state.given[case.signal.signal_id]
        await self._open_recoveries(_standing(cases))
        await self._count(_standing(cases))

    async def _granted_recoveries(self, cases: Sequence[_Case]) -> set[str]:
        """Ask the guards for the signals that would open a recovery; return those that may."""
        commands = [
            AnswerSignal(signal=case.signal, recorded_at=case.at, recovery=case.asked.recovery) for case in cases
        ]
        states = await _loaded(self._answers, {command.stream for command in commands})
        decider = Answering()
        wanted: dict[tuple[str, datetime], tuple[InForce, list[str]]] = {}
        for command in commands:
            known = states[command.stream].given.get(command.signal.signal_id)
            for event in decider.decide(command, states[command.stream]):
                states[command.stream] = decider.evolve(states[command.stream], event)
                known = event
            if known is not None and known.answer is SignalAnswer.OPENED and command.recovery is not None:
                _ask(wanted, command.recovery.by, command.recorded_at, command.signal.signal_id)
        return await self._pass(wanted)

    async def _pass(self, wanted: Mapping[tuple[str, datetime], tuple[InForce, list[str]]]) -> set[str]:
        commands = [
            PassGuard(playbook_id=playbook_id, max_per_hour=by.max_per_hour, hour=hour, ids=tuple(ids))
            for (playbook_id, hour), (by, ids) in wanted.items()
        ]
        passed: set[str] = set()
        for outcome in await self._guard.execute_all([Intent(command.stream, command) for command in commands]):
            if outcome.error is not None:
                raise outcome.error
            passed |= outcome.state.passed
        return passed

    async def _open_recoveries(self, cases: Sequence[_Case]) -> None:
        work: list[_Work] = []
        for case in cases:
            assert case.answered is not None
            by = self._book.version(case.answered.playbook_id, case.answered.playbook_version)
            rules = by.playbook.recoveries if by else ()
            rule = next((each for each in rules if each.rule_id == case.answered.playbook_rule), None)
            # As it was answered: what was decided under one version is not opened under another.
            if by is None or rule is None:
                continue
            terms = by.terms(rule, case.at)
            if case.answered.answer is SignalAnswer.OPENED:
                opening = OpenRecovery(signal=case.signal, occurred_at=case.at, terms=terms)
                work.append((case, stream_of(opening.action_id), opening))
            elif case.answered.answer is SignalAnswer.COOLING_DOWN:
                joining = JoinSignal(
                    action_id=case.answered.action_id, signal=case.signal, actor=terms.actor, occurred_at=case.at
                )
                work.append((case, stream_of(joining.action_id), joining))
        await self._do(self._executor, work)

    # -- causes ----------------------------------------------------------------------------------------------------

    async def _count(self, cases: Sequence[_Case]) -> None:
        counting = [(case, self._counting(case, causing)) for case in cases for causing in case.asked.causes]
        states = await _loaded(self._causes, {command.stream for _, command in counting})
        proposed = {stream: state.improvement_id for stream, state in states.items() if state.improvement_id}
        improvements = await _loaded(self._executor, {stream_of(each) for each in proposed.values()})
        closed_at = {
            stream: improvement.closed_at
            for stream, improvement_id in proposed.items()
            for improvement in [improvements[stream_of(improvement_id)]]
        }
        counting = [(case, replace(command, closed_at=closed_at.get(command.stream))) for case, command in counting]
        granted = await self._granted_improvements([command for _, command in counting], states)
        commands = [(case, replace(c, granted=self._improvement_of(c, granted))) for case, c in counting]
        done = await self._do(self._causes, [(case, command.stream, command) for case, command in commands])
        await self._improve(
            [
                (case, command, outcome.state)
                for (case, command), outcome in zip(commands, done, strict=True)
                if outcome.error is None
            ]
        )

    def _counting(self, case: _Case, causing: Causing) -> CountCause:
        assert case.answered is not None
        return CountCause(
            signal_id=case.signal.signal_id,
            recorded_at=case.at,
            customer_key=case.answered.customer_key,
            # A recovery that the customer has for something else does not belong to this cause.
            recovery_id=case.answered.action_id if case.answered.answer is SignalAnswer.OPENED else "",
            causing=causing,
        )

    def _improvement_of(self, command: CountCause, granted: set[str]) -> bool:
        return f"{command.causing.cause_id} {command.signal_id}" in granted

    async def _granted_improvements(self, commands: Sequence[CountCause], states: Mapping[str, CauseState]) -> set[str]:
        """Ask the guards for the signals that would make a cause; return those that may, with their causes."""
        decider, known = Causes(), dict(states)
        wanted: dict[tuple[str, datetime], tuple[InForce, list[str]]] = {}
        for command in commands:
            state = known[command.stream]
            if would_confirm(command, state):
                key = f"{command.causing.cause_id} {command.signal_id}"
                _ask(wanted, command.causing.by, command.recorded_at, key)
            for event in decider.decide(command, state):
                state = decider.evolve(state, event)
            known[command.stream] = state
        return await self._pass(wanted)

    async def _improve(self, counted: Sequence[tuple[_Case, CountCause, CauseState]]) -> None:
        """Open the improvements that were confirmed, and put the recoveries under them."""
        opening: list[_Work] = []
        for case, command, state in counted:
            if state.confirmed_by == command.signal_id:
                causing = command.causing
                improvement = OpenImprovement(
                    action_id=state.improvement_id,
                    cause_id=causing.cause_id,
                    signal=case.signal,
                    customers=state.customers,
                    within_days=causing.rule.within_days,
                    touchpoint=causing.touchpoint,
                    need_path=causing.need_path,
                    terms=causing.by.terms(causing.rule, case.at),
                    occurred_at=case.at,
                )
                opening.append((case, stream_of(improvement.action_id), improvement))
        await self._do(self._executor, opening)
        await self._do(self._executor, [work for each in counted for work in _links(*each)])

    # -- steps -----------------------------------------------------------------------------------------------------

    async def _do(self, executor: Executor[StateT], work: Sequence[_Work]) -> Sequence[Executed[StateT]]:
        """Execute what is to be done; a refusal ends its case."""
        done: list[Executed[StateT]] = []
        for at in range(0, len(work), AT_ONCE):
            some = work[at : at + AT_ONCE]
            done += await executor.execute_all([case.intent(stream, command) for case, stream, command in some])
        for (case, _, _), outcome in zip(work, done, strict=True):
            case.error = case.error or outcome.error
        return done


def _standing(cases: Sequence[_Case]) -> Sequence[_Case]:
    return [case for case in cases if case.error is None]


async def _loaded(executor: Executor[StateT], streams: set[str]) -> dict[str, StateT]:
    ordered = sorted(streams)
    folded = await asyncio.gather(*map(executor.load, ordered))
    return {stream: each.state for stream, each in zip(ordered, folded, strict=True)}


def _ask(
    wanted: dict[tuple[str, datetime], tuple[InForce, list[str]]], by: InForce, at: datetime, asked_for: str
) -> None:
    wanted.setdefault((by.playbook.playbook_id, hour_of(at)), (by, []))[1].append(asked_for)


def _links(case: _Case, command: CountCause, state: CauseState) -> Sequence[_Work]:
    """Return what puts recoveries under the cause's improvement, while that is not closed."""
    if not state.improvement_id:
        return []
    made_it = state.confirmed_by == command.signal_id
    if command.closed_at is not None and not made_it:
        return []
    recoveries = state.recoveries if made_it else [command.recovery_id]
    by, rule = command.causing.by, command.causing.rule
    return [
        (
            case,
            stream_of(recovery_id),
            LinkByCause(
                action_id=recovery_id,
                improvement_id=state.improvement_id,
                actor=f"playbook:{by.playbook.playbook_id}/{rule.rule_id}@{by.version}",
                reason="the same cause",
                request_id=state.improvement_id,
                occurred_at=case.at,
            ),
        )
        for recovery_id in recoveries
        if recovery_id
    ]


def _caused_by(delivery: Delivery) -> dict[str, str]:
    cause = str(delivery.recorded.event_id)
    return {CAUSATION_ID: cause, CORRELATION_ID: delivery.recorded.metadata.get(CORRELATION_ID, cause)}
