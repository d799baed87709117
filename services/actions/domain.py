"""Actions: the recoveries and improvements of a company, each a stream of its own. Pure.

A command checks itself when it is made, so one that exists is well formed. `decide` then holds it against the life
cycle, which is TRANSITIONS and nothing else.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from msgspec import structs

from recorrido.actions.v1.events import (
    ActionAccepted,
    ActionCompleted,
    ActionKind,
    ActionOpened,
    ActionResult,
    ActionState,
)
from recorrido.journey.v1.events import SignalRaised
from services.foundation.errors import DiffersError, InvalidError, NotFoundError, RefusedError, Violation
from services.foundation.events import Event, derived_id, stream_name

#: Lengths in characters.
MAX_ID = 128
MAX_CUSTOMER_ID = 256
MAX_TITLE = 200
MAX_REASON = 1_024
MAX_REASONS = 20
MAX_NOTE = 4_096

#: Unicode category Cc.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")

ActionEvent = ActionOpened | ActionAccepted | ActionCompleted


class Rules:
    """Collects every rule that the fields of a request break."""

    def __init__(self) -> None:
        self._violations: list[Violation] = []

    def require(self, holds: bool, field: str, rule: str) -> None:  # noqa: FBT001 - the condition comes first
        if not holds:
            self._violations.append(Violation(field, rule))

    def text(self, field: str, value: str, longest: int, *, required: bool = False, lines: bool = False) -> None:
        """Ask for at most `longest` characters, none of them a control character (`lines`: but for line breaks)."""
        self.require(not required or bool(value.strip()), field, "required")
        self.require(len(value) <= longest, field, f"at most {longest:,} characters")
        checked = value.replace("\n", "").replace("\t", "") if lines else value
        self.require(not _CONTROL.search(checked), field, "no control characters")

    def enforce(self) -> None:
        """Raise InvalidError with everything broken so far."""
        if self._violations:
            raise InvalidError(self._violations)


# -- commands ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenAction:
    """Open a recovery or an improvement by hand. The action's id derives from `request_id`."""

    kind: ActionKind
    title: str
    actor: str
    request_id: str
    occurred_at: datetime
    customer_id: str = ""
    reasons: Sequence[str] = ()
    touchpoint: str = ""
    need_path: str = ""

    def __post_init__(self) -> None:
        rules = Rules()
        rules.require(self.kind is not ActionKind.UNSPECIFIED, "kind", "RECOVERY or IMPROVEMENT")
        rules.text("customer_id", self.customer_id, MAX_CUSTOMER_ID, required=self.kind is ActionKind.RECOVERY)
        rules.text("title", self.title, MAX_TITLE, required=True)
        rules.require(len(self.reasons) <= MAX_REASONS, "reasons", f"at most {MAX_REASONS}")
        for index, reason in enumerate(self.reasons[:MAX_REASONS]):
            rules.text(f"reasons[{index}]", reason, MAX_REASON, required=True, lines=True)
        rules.text("touchpoint", self.touchpoint, MAX_ID)
        rules.text("need_path", self.need_path, MAX_CUSTOMER_ID)
        _require_who_and_request(rules, self.actor, self.request_id)
        rules.enforce()

    @property
    def action_id(self) -> str:
        return str(derived_id("action", self.request_id))

    @property
    def cause(self) -> str:
        return self.request_id

    def event(self) -> ActionOpened:
        return ActionOpened(
            action_id=self.action_id,
            kind=self.kind,
            customer_id=self.customer_id,
            title=self.title,
            reasons=tuple(self.reasons),
            touchpoint=self.touchpoint,
            need_path=self.need_path,
            actor=self.actor,
            request_id=self.request_id,
            occurred_at=self.occurred_at,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenRecovery:
    """Open the one recovery that a signal asks for. `occurred_at` is when the signal was recorded.

    Only what the recovery cannot do without is checked; words are cut to their limits instead, because nobody is
    there to shorten them.
    """

    signal: SignalRaised
    occurred_at: datetime

    def __post_init__(self) -> None:
        rules = Rules()
        rules.text("signal_id", self.signal.signal_id, MAX_ID, required=True)
        rules.text("customer_id", self.signal.customer_id, MAX_CUSTOMER_ID, required=True)
        rules.enforce()

    @property
    def action_id(self) -> str:
        return str(derived_id("recovery", self.signal.signal_id))

    @property
    def request_id(self) -> str:
        return self.signal.signal_id

    @property
    def cause(self) -> str:
        return self.signal.signal_id

    def event(self) -> ActionOpened:
        signal = self.signal
        reasons = [cut for reason in signal.reasons if (cut := _cut(reason, MAX_REASON))]
        touchpoint = _cut(signal.touchpoint, MAX_ID)
        what = _cut(signal.rule, MAX_ID).replace("_", " ").capitalize() or "Signal"
        where = f" at {touchpoint}" if touchpoint else ""
        why = f": {reasons[0]}" if reasons else ""
        return ActionOpened(
            action_id=self.action_id,
            kind=ActionKind.RECOVERY,
            signal_id=signal.signal_id,
            customer_id=signal.customer_id,
            title=_cut(what + where + why, MAX_TITLE),
            reasons=tuple(reasons[:MAX_REASONS]),
            touchpoint=touchpoint,
            need_path=_cut(signal.need_path, MAX_CUSTOMER_ID),
            actor=_cut(f"rule:{signal.rule}@{signal.rule_version}", MAX_ID),
            request_id=self.request_id,
            occurred_at=self.occurred_at,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceptAction:
    """Promise to work on it. `owner` is who will; empty: the actor."""

    action_id: str
    actor: str
    request_id: str
    occurred_at: datetime
    owner: str = ""

    def __post_init__(self) -> None:
        rules = Rules()
        rules.text("action_id", self.action_id, MAX_ID, required=True)
        rules.text("owner", self.owner, MAX_ID)
        _require_who_and_request(rules, self.actor, self.request_id)
        rules.enforce()

    @property
    def cause(self) -> str:
        return self.request_id

    def event(self) -> ActionAccepted:
        return ActionAccepted(
            action_id=self.action_id,
            actor=self.actor,
            owner=self.owner.strip() or self.actor,
            request_id=self.request_id,
            occurred_at=self.occurred_at,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class CompleteAction:
    """Close it with what the customer, or the measure, said."""

    action_id: str
    actor: str
    result: ActionResult
    request_id: str
    occurred_at: datetime
    note: str = ""

    def __post_init__(self) -> None:
        rules = Rules()
        rules.text("action_id", self.action_id, MAX_ID, required=True)
        rules.require(self.result is not ActionResult.UNSPECIFIED, "result", "HELPED, NO_CHANGE, WORSE or UNREACHABLE")
        rules.text("note", self.note, MAX_NOTE, lines=True)
        _require_who_and_request(rules, self.actor, self.request_id)
        rules.enforce()

    @property
    def cause(self) -> str:
        return self.request_id

    def event(self) -> ActionCompleted:
        return ActionCompleted(
            action_id=self.action_id,
            actor=self.actor,
            result=self.result,
            note=self.note,
            request_id=self.request_id,
            occurred_at=self.occurred_at,
        )


Command = OpenAction | OpenRecovery | AcceptAction | CompleteAction


def _require_who_and_request(rules: Rules, actor: str, request_id: str) -> None:
    rules.text("actor", actor, MAX_ID, required=True)
    rules.text("request_id", request_id, MAX_ID, required=True)


def _cut(text: str, longest: int) -> str:
    clean = _CONTROL.sub(" ", text).strip()
    return clean if len(clean) <= longest else clean[: longest - 1] + "…"


def stream_of(action_id: str) -> str:
    return stream_name("action", action_id)


# -- state ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """An action as its events tell it; UNSPECIFIED while it does not exist. Times are UTC.

    `requests` maps each request_id that changed it to the event it came to, which tells a repetition from a new
    command.
    """

    action_id: str = ""
    kind: ActionKind = ActionKind.UNSPECIFIED
    state: ActionState = ActionState.UNSPECIFIED
    signal_id: str = ""
    customer_id: str = ""
    title: str = ""
    reasons: tuple[str, ...] = ()
    touchpoint: str = ""
    need_path: str = ""
    owner: str = ""
    result: ActionResult = ActionResult.UNSPECIFIED
    opened_at: datetime | None = None
    updated_at: datetime | None = None
    requests: Mapping[str, ActionEvent] = field(default_factory=dict)


#: The life cycle of both kinds: what may be done in each state, and where it leads.
TRANSITIONS: Mapping[tuple[ActionState, type[Command]], ActionState] = {
    (ActionState.UNSPECIFIED, OpenAction): ActionState.OPEN,
    (ActionState.UNSPECIFIED, OpenRecovery): ActionState.OPEN,
    (ActionState.OPEN, AcceptAction): ActionState.ACCEPTED,
    (ActionState.ACCEPTED, CompleteAction): ActionState.COMPLETED,
}


def allowed(state: ActionState) -> Sequence[str]:
    """Return the names of the commands that may be done in `state`."""
    return [command.__name__ for at, command in TRANSITIONS if at is state]


def evolve(state: Action, event: ActionEvent) -> Action:
    """Return the state after `event`; a type it does not know changes nothing."""
    match event:
        case ActionOpened():
            return Action(
                action_id=event.action_id,
                kind=event.kind,
                state=ActionState.OPEN,
                signal_id=event.signal_id,
                customer_id=event.customer_id,
                title=event.title,
                reasons=event.reasons,
                touchpoint=event.touchpoint,
                need_path=event.need_path,
                opened_at=event.occurred_at,
                updated_at=event.occurred_at,
                requests={event.request_id: event},
            )
        case ActionAccepted():
            after = replace(state, state=ActionState.ACCEPTED, owner=event.owner)
        case ActionCompleted():
            after = replace(state, state=ActionState.COMPLETED, result=event.result)
        case _:
            return state
    return replace(after, updated_at=event.occurred_at, requests={**state.requests, event.request_id: event})


def decide(command: Command, state: Action) -> Sequence[ActionEvent]:
    """Return what `command` changes: nothing where it repeats what was done.

    Raises:
        NotFoundError: there is no such action.
        RefusedError: ILLEGAL_TRANSITION; message and details tell the present state and what is allowed in it.
        DiffersError: REQUEST_ID_REUSED; the request_id was used for something else.
    """
    if isinstance(command, OpenRecovery) and state.state is not ActionState.UNSPECIFIED:
        # One recovery per signal, even when a later version of this code would word it otherwise.
        return []
    event = command.event()
    done = state.requests.get(command.request_id)
    if done is not None:
        if structs.replace(event, occurred_at=done.occurred_at) == done:
            return []
        raise DiffersError(
            "REQUEST_ID_REUSED",
            f"request_id {command.request_id} was used for another {type(done).__name__} of action {state.action_id}",
            {"action_id": state.action_id, "event": type(done).__name__},
        )
    if (state.state, type(command)) not in TRANSITIONS:
        raise _refusal(command, state)
    return [event]


def _refusal(command: Command, state: Action) -> NotFoundError | RefusedError:
    if state.state is ActionState.UNSPECIFIED:
        return unknown(command.action_id)
    name = state.state.name
    now = ", ".join(allowed(state.state)) or "nothing"
    owner = f" by {state.owner}" if state.owner else ""
    return RefusedError(
        "ILLEGAL_TRANSITION",
        f"{type(command).__name__} is not allowed: action {state.action_id} is {name}{owner}; allowed now: {now}",
        {
            "action_id": state.action_id,
            "state": name,
            "allowed": ",".join(allowed(state.state)),
            "owner": state.owner,
        },
    )


def unknown(action_id: str) -> NotFoundError:
    return NotFoundError("ACTION_NOT_FOUND", f"there is no action {action_id}", {"action_id": action_id})


class ActionDecider:
    """The functions above, as `foundation.execute` asks for them."""

    types: Sequence[type[Event]] = (ActionOpened, ActionAccepted, ActionCompleted)

    def initial(self) -> Action:
        return Action()

    def evolve(self, state: Action, event: ActionEvent) -> Action:
        return evolve(state, event)

    def decide(self, command: Command, state: Action) -> Sequence[ActionEvent]:
        return decide(command, state)
