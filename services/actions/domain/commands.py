"""What people, signals and the clock ask of an action.

A command checks itself when it is made, so one that exists is well formed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, ClassVar

from msgspec.structs import replace

from recorrido.actions.v1.events import (
    ActionAccepted,
    ActionAssigned,
    ActionCommented,
    ActionCompleted,
    ActionDeclined,
    ActionDueSoon,
    ActionEscalated,
    ActionKind,
    ActionLinked,
    ActionOpened,
    ActionOverdue,
    ActionPrioritized,
    ActionReopened,
    ActionRescheduled,
    ActionResult,
    ActionStarted,
    ActionVerified,
    ContactChannel,
    CustomerContacted,
    Deadline,
    Impact,
    ImpactVerdict,
    Priority,
    RemedyKind,
    RemedyOffered,
    ServiceLevel,
    SignalJoined,
    Target,
)
from recorrido.journey.v1.events import SignalRaised
from services.actions.domain.calendars import BusinessTime
from services.actions.domain.deadlines import Schedule, by_hand, in_order, rescheduled, scheduled
from services.actions.domain.impact import MEASURES
from services.actions.domain.rules import MAX_ID, MAX_NOTE, MAX_REASON, MAX_REASONS, MAX_TITLE, cut
from services.foundation.events import cause_of, derived_id
from services.foundation.rules import MAX_CUSTOMER_ID, Rules

ActionEvent = (
    ActionOpened
    | ActionAccepted
    | ActionDeclined
    | ActionAssigned
    | ActionPrioritized
    | ActionRescheduled
    | ActionStarted
    | CustomerContacted
    | RemedyOffered
    | ActionCompleted
    | ActionVerified
    | ActionReopened
    | ActionCommented
    | ActionLinked
    | SignalJoined
    | ActionDueSoon
    | ActionOverdue
    | ActionEscalated
)

#: The measures that an improvement may be about.
METRICS = tuple(MEASURES)
#: Who acts when a deadline passes.
TIMER = "timer"
#: Of a command's fields, those that tell when it came, and what is looked up for it then.
_CIRCUMSTANCES = frozenset({"occurred_at", "impact", "level", "time"})


# -- opening -------------------------------------------------------------------------------------------------------


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
    priority: Priority = Priority.UNSPECIFIED
    owner: str = ""
    due_at: datetime | None = None
    improvement_id: str = ""
    target: Target | None = None

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
        rules.text("owner", self.owner, MAX_ID)
        rules.text("improvement_id", self.improvement_id, MAX_ID)
        recovery = self.kind is ActionKind.RECOVERY
        rules.require(recovery or not self.improvement_id, "improvement_id", "only of a recovery")
        rules.require(not recovery or self.target is None, "target", "only of an improvement")
        if self.target is not None:
            rules.require(self.target.metric in METRICS, "target.metric", f"one of {', '.join(METRICS)}")
            rules.text("target.touchpoint", self.target.touchpoint, MAX_ID)
            rules.text("target.need_path", self.target.need_path, MAX_CUSTOMER_ID)
            rules.text("target.map_id", self.target.map_id, MAX_ID)
        rules.who_and_request(self.actor, self.request_id)
        rules.enforce()

    @property
    def action_id(self) -> str:
        return str(derived_id("action", self.request_id))

    @property
    def cause(self) -> str:
        return _cause(self)

    def event(self) -> ActionOpened:
        schedule = by_hand(self.occurred_at, self.due_at)
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
            priority=self.priority,
            owner=self.owner,
            due_at=schedule.due_at,
            deadlines=tuple(schedule.deadlines),
            improvement_id=self.improvement_id,
            target=self.target,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What a playbook's rule says about the actions that it opens."""

    playbook_id: str
    version: int
    rule_id: str
    priority: Priority
    owner: str
    schedule: Schedule

    @property
    def actor(self) -> str:
        return f"playbook:{self.playbook_id}/{self.rule_id}@{self.version}"

    def fields(self) -> dict[str, Any]:
        """Return them as fields of `ActionOpened`."""
        return {
            "actor": self.actor,
            "priority": self.priority,
            "owner": self.owner,
            "accept_by": self.schedule.accept_by,
            "due_at": self.schedule.due_at,
            "deadlines": tuple(self.schedule.deadlines),
            "playbook_id": self.playbook_id,
            "playbook_version": self.version,
            "playbook_rule": self.rule_id,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenRecovery:
    """Open the one recovery that a signal asks for. `occurred_at` is when the signal was recorded.

    `terms` is None while no playbook was published. Only what the recovery cannot do without is checked; words are cut
    to their limits instead, because nobody is there to shorten them.
    """

    signal: SignalRaised
    occurred_at: datetime
    terms: Terms | None = None
    improvement_id: str = ""

    def __post_init__(self) -> None:
        check_signal(self.signal)

    @property
    def action_id(self) -> str:
        return recovery_id(self.signal.signal_id)

    @property
    def request_id(self) -> str:
        return self.signal.signal_id

    @property
    def cause(self) -> str:
        return self.signal.signal_id

    def event(self) -> ActionOpened:
        signal = self.signal
        reasons = signal_reasons(signal)
        by_rule = {"actor": cut(f"rule:{signal.rule}@{signal.rule_version}", MAX_ID)}
        return ActionOpened(
            action_id=self.action_id,
            kind=ActionKind.RECOVERY,
            signal_id=signal.signal_id,
            customer_id=signal.customer_id,
            title=signal_title(signal, reasons[:1]),
            reasons=reasons,
            touchpoint=cut(signal.touchpoint, MAX_ID),
            need_path=cut(signal.need_path, MAX_CUSTOMER_ID),
            request_id=self.request_id,
            occurred_at=self.occurred_at,
            improvement_id=self.improvement_id,
            **(self.terms.fields() if self.terms else by_rule),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenImprovement:
    """Propose the improvement that removes a cause: so many customers had it, or a signal about everyone told it."""

    action_id: str
    cause_id: str
    signal: SignalRaised
    customers: int
    within_days: int
    touchpoint: str
    need_path: str
    terms: Terms
    occurred_at: datetime

    @property
    def request_id(self) -> str:
        return self.action_id

    @property
    def cause(self) -> str:
        return self.action_id

    def event(self) -> ActionOpened:
        reasons = signal_reasons(self.signal)
        touchpoint, need_path, metric = self.touchpoint, self.need_path, "bad_moments"
        where, map_id = touchpoint, ""
        about = [cut(part, MAX_ID) for part in (touchpoint, need_path) if part]
        title = cut(f"{self.customers} customers: {' and '.join(about) or 'the same cause'}", MAX_TITLE)
        if about_everyone(self.signal):
            touchpoint, need_path = self.signal.touchpoint, self.signal.need_path
            metric = _measure(self.signal)
            # Its touchpoint is all that the map places there, not the one raw name that was heard last.
            # A point that was told off the map has none.
            where = self.signal.touchpoint_id or touchpoint
            map_id = self.signal.map_id if where else ""
            title = signal_title(self.signal, reasons[:1])
        else:
            reasons = (f"{self.customers} customers within {self.within_days} days", *reasons)[:MAX_REASONS]
        touchpoint, need_path = cut(touchpoint, MAX_ID), cut(need_path, MAX_CUSTOMER_ID)
        return ActionOpened(
            action_id=self.action_id,
            kind=ActionKind.IMPROVEMENT,
            signal_id=self.signal.signal_id,
            title=title,
            reasons=reasons,
            touchpoint=touchpoint,
            need_path=need_path,
            request_id=self.request_id,
            occurred_at=self.occurred_at,
            cause_id=self.cause_id,
            target=Target(metric=metric, touchpoint=cut(where, MAX_ID), need_path=need_path, map_id=cut(map_id, MAX_ID))
            if metric
            else None,
            **self.terms.fields(),
        )


def about_everyone(signal: SignalRaised) -> bool:
    """Return whether a signal is about a touchpoint, a score or a point of a map, and about no single customer."""
    return bool(signal.map_id) and not signal.customer_id


def check_signal(signal: SignalRaised) -> None:
    """Check what is needed to open something for a signal. Raises InvalidError with every problem."""
    rules = Rules()
    rules.text("signal_id", signal.signal_id, MAX_ID, required=True)
    rules.text("customer_id", signal.customer_id, MAX_CUSTOMER_ID, required=not about_everyone(signal))
    rules.enforce()


def _measure(signal: SignalRaised) -> str:
    """Return the measure that shows whether what a signal about everyone told of is mended; empty where none does."""
    metric = signal.inputs.get("metric", "")
    return "pain_share" if metric == "pain" else metric if metric in METRICS else ""


def recovery_id(signal_id: str) -> str:
    return str(derived_id("recovery", signal_id))


def signal_reasons(signal: SignalRaised) -> tuple[str, ...]:
    return tuple(text for reason in signal.reasons if (text := cut(reason, MAX_REASON)))[:MAX_REASONS]


def signal_title(signal: SignalRaised, why: Sequence[str]) -> str:
    what = cut(signal.rule, MAX_ID).replace("_", " ").capitalize() or "Signal"
    where = f" at {place}" if (place := cut(signal.touchpoint, MAX_ID)) else ""
    return cut(what + where + "".join(f": {reason}" for reason in why), MAX_TITLE)


def _cause(command: "OpenAction | Change") -> str:
    said = {each.name: getattr(command, each.name) for each in fields(command) if each.name not in _CIRCUMSTANCES}
    return cause_of(command.request_id, said)


# -- changes -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What somebody does to an action that is there. Its fields are those of the event that it comes to."""

    changed: ClassVar[Any]

    action_id: str
    actor: str
    request_id: str
    occurred_at: datetime

    def __post_init__(self) -> None:
        rules = Rules()
        rules.text("action_id", self.action_id, MAX_ID, required=True)
        self.check(rules)
        rules.who_and_request(self.actor, self.request_id)
        rules.enforce()

    def check(self, rules: Rules) -> None:
        """Note what is wrong with the fields of the very command."""

    @property
    def cause(self) -> str:
        return _cause(self)

    def event(self) -> Any:
        return self.changed(**{each.name: getattr(self, each.name) for each in fields(self)})


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceptAction(Change):
    """Promise to work on it. `owner` is who will; empty: the actor."""

    changed = ActionAccepted

    owner: str = ""
    reason: str = ""

    def check(self, rules: Rules) -> None:
        rules.text("owner", self.owner, MAX_ID)
        rules.text("reason", self.reason, MAX_REASON, lines=True)

    def event(self) -> ActionAccepted:
        return ActionAccepted(
            action_id=self.action_id,
            actor=self.actor,
            owner=self.owner.strip() or self.actor,
            reason=self.reason,
            request_id=self.request_id,
            occurred_at=self.occurred_at,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DeclineAction(Change):
    """It will not be done; the reason tells why not."""

    changed = ActionDeclined

    reason: str

    def check(self, rules: Rules) -> None:
        rules.text("reason", self.reason, MAX_REASON, required=True, lines=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class AssignAction(Change):
    """Give it to somebody."""

    changed = ActionAssigned

    owner: str
    reason: str = ""

    def check(self, rules: Rules) -> None:
        rules.text("owner", self.owner, MAX_ID, required=True)
        rules.text("reason", self.reason, MAX_REASON, lines=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class PrioritizeAction(Change):
    """Say how urgent it is."""

    changed = ActionPrioritized

    priority: Priority
    reason: str = ""

    def check(self, rules: Rules) -> None:
        rules.require(self.priority is not Priority.UNSPECIFIED, "priority", "a priority, such as HIGH")
        rules.text("reason", self.reason, MAX_REASON, lines=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class RescheduleAction(Change):
    """It has to be completed by another moment; escalations of its playbook's service level follow."""

    changed = ActionRescheduled

    due_at: datetime | None
    reason: str
    level: ServiceLevel | None = None
    time: BusinessTime | None = None

    def check(self, rules: Rules) -> None:
        rules.require(self.due_at is not None, "due_at", "required")
        rules.text("reason", self.reason, MAX_REASON, required=True, lines=True)

    def event(self, opening: int = 2) -> ActionRescheduled:
        """Return the event; `opening` tells these deadlines from any that it had."""
        assert self.due_at is not None
        schedule = rescheduled(self.occurred_at, self.due_at, self.level, self.time, opening=opening)
        return ActionRescheduled(
            action_id=self.action_id,
            actor=self.actor,
            due_at=schedule.due_at,
            deadlines=tuple(schedule.deadlines),
            reason=self.reason,
            request_id=self.request_id,
            occurred_at=self.occurred_at,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StartAction(Change):
    """Begin to work on it."""

    changed = ActionStarted

    reason: str = ""

    def check(self, rules: Rules) -> None:
        rules.text("reason", self.reason, MAX_REASON, lines=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordContact(Change):
    """Tell that somebody tried to speak to the customer of a recovery."""

    changed = CustomerContacted

    channel: ContactChannel
    reached: bool
    note: str = ""

    def check(self, rules: Rules) -> None:
        rules.require(self.channel is not ContactChannel.UNSPECIFIED, "channel", "a channel, such as PHONE")
        rules.text("note", self.note, MAX_NOTE, lines=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class OfferRemedy(Change):
    """Offer something to the customer of a recovery."""

    changed = RemedyOffered

    remedy: RemedyKind
    note: str = ""

    def check(self, rules: Rules) -> None:
        rules.require(self.remedy is not RemedyKind.UNSPECIFIED, "remedy", "a remedy, such as APOLOGY or REFUND")
        rules.text("note", self.note, MAX_NOTE, lines=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class CompleteAction(Change):
    """Close a recovery with what the customer said; an improvement is done, with what it seems to have come to."""

    changed = ActionCompleted

    result: ActionResult
    note: str = ""

    def check(self, rules: Rules) -> None:
        rules.require(self.result is not ActionResult.UNSPECIFIED, "result", "HELPED, NO_CHANGE, WORSE or UNREACHABLE")
        rules.text("note", self.note, MAX_NOTE, lines=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyAction(Change):
    """An improvement was seen to help; the reason tells by what, `impact` what is measured at this moment."""

    changed = ActionVerified

    reason: str
    impact: Impact | None = None
    #: Verify it though it got worse.
    despite_impact: bool = False

    def check(self, rules: Rules) -> None:
        rules.text("reason", self.reason, MAX_REASON, required=True, lines=True)

    @property
    def contradicted(self) -> str:
        """What speaks against it; empty: nothing."""
        worse = self.impact is not None and self.impact.verdict is ImpactVerdict.GOT_WORSE
        return self.impact.statement if self.impact and worse and not self.despite_impact else ""

    def event(self) -> ActionVerified:
        return ActionVerified(
            action_id=self.action_id,
            actor=self.actor,
            reason=self.reason,
            request_id=self.request_id,
            occurred_at=self.occurred_at,
            impact=self.impact,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ReopenAction(Change):
    """Take it up again.

    It has to be resolved by `due_at`; without, as long after this moment as the service level of its playbook says.
    Where it was declined, it has to be accepted again, by when that level says.
    """

    changed = ActionReopened

    reason: str
    due_at: datetime | None = None
    level: ServiceLevel | None = None
    time: BusinessTime | None = None
    #: Where the measure fell after the verification.
    impact: Impact | None = None

    def check(self, rules: Rules) -> None:
        rules.text("reason", self.reason, MAX_REASON, required=True, lines=True)

    def event(self, opening: int = 2, *, declined: bool = False) -> ActionReopened:
        """Return the event; `opening` tells these deadlines from any that it had."""
        schedule, acceptance = by_hand(self.occurred_at, self.due_at, opening=opening), Schedule()
        if self.level is not None and self.time is not None:
            if self.due_at is None:
                resolving = replace(self.level, accept_within=None)
                schedule = scheduled(self.occurred_at, resolving, self.time, opening=opening)
            if declined:
                accepting = replace(self.level, resolve_within=None)
                acceptance = scheduled(self.occurred_at, accepting, self.time, opening=opening)
        return ActionReopened(
            action_id=self.action_id,
            actor=self.actor,
            reason=self.reason,
            request_id=self.request_id,
            occurred_at=self.occurred_at,
            accept_by=acceptance.accept_by,
            due_at=schedule.due_at,
            deadlines=in_order([*acceptance.deadlines, *schedule.deadlines]),
            impact=self.impact,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class CommentAction(Change):
    changed = ActionCommented

    text: str

    def check(self, rules: Rules) -> None:
        rules.text("text", self.text, MAX_NOTE, required=True, lines=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkActions(Change):
    """Put one recovery under an improvement (empty: under none)."""

    changed = ActionLinked

    improvement_id: str
    reason: str = ""

    def check(self, rules: Rules) -> None:
        rules.text("improvement_id", self.improvement_id, MAX_ID)
        rules.text("reason", self.reason, MAX_REASON, lines=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkByCause(LinkActions):
    """Put a recovery under the improvement of its cause, unless it belongs to one already, or is gone."""


#: What people ask for, by the names of the calls.
CHANGES: Sequence[type[Change]] = (
    AcceptAction,
    DeclineAction,
    AssignAction,
    PrioritizeAction,
    RescheduleAction,
    StartAction,
    RecordContact,
    OfferRemedy,
    CompleteAction,
    VerifyAction,
    ReopenAction,
    CommentAction,
    LinkActions,
)


# -- signals and the clock -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinSignal:
    """Tell the recovery of a customer of another signal; nothing where it is closed."""

    action_id: str
    signal: SignalRaised
    actor: str
    occurred_at: datetime

    @property
    def request_id(self) -> str:
        return self.signal.signal_id

    @property
    def cause(self) -> str:
        return self.signal.signal_id

    def event(self) -> SignalJoined:
        return SignalJoined(
            action_id=self.action_id,
            signal_id=self.signal.signal_id,
            reasons=signal_reasons(self.signal),
            actor=self.actor,
            request_id=self.request_id,
            occurred_at=self.occurred_at,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PassDeadline:
    """A deadline of an action is over, as it is `now`."""

    action_id: str
    deadline_id: str
    now: datetime

    @property
    def cause(self) -> str:
        return self.deadline_id


def passing(action_id: str, deadline: Deadline) -> dict[str, Any]:
    """Return what the events of a deadline have in common."""
    return {
        "action_id": action_id,
        "deadline_id": deadline.deadline_id,
        "obligation": deadline.obligation,
        "due_at": deadline.due_at,
        "occurred_at": deadline.at,
    }


Command = OpenAction | OpenRecovery | OpenImprovement | Change | JoinSignal | PassDeadline
