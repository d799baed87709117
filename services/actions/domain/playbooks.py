"""Playbooks: which signals open what. A playbook is checked as a whole before it is published; each version stays."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from recorrido.actions.v1.events import (
    CausePart,
    ImprovementRule,
    Obligation,
    Playbook,
    PlaybookPublished,
    RecoveryRule,
    ServiceLevel,
    SignalMatch,
)
from recorrido.journey.v1.events import SignalRaised
from services.actions.domain.calendars import BusinessTime, check_calendar, check_period
from services.actions.domain.commands import Terms, about_everyone
from services.actions.domain.deadlines import scheduled
from services.actions.domain.rules import MAX_ID, MAX_REASON, MAX_TITLE
from services.foundation.errors import DiffersError
from services.foundation.events import Event, cause_of, derived_id, stream_name
from services.foundation.rules import MAX_CUSTOMER_ID, Rules

ID = re.compile(r"[a-z0-9-]{1,64}")
ID_RULE = "1 to 64 of a-z, 0-9 and -"
MAX_RULES = 100
MAX_PATTERNS = 1_000
MAX_STEPS = 10
MAX_COOL_DOWN_DAYS = 3_660
MAX_CUSTOMERS = 10_000
MAX_WITHIN_DAYS = 366
#: Of the first playbook.
FIRST = (
    "this is the first playbook: until now every signal about a customer opened a recovery; from now on one that no"
    " rule matches opens nothing"
)
#: What the guard lets a playbook open in an hour.
DEFAULT_PER_HOUR = 500
MAX_PER_HOUR = 100_000


# -- publishing ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishPlaybook:
    """Publish a playbook, or a new version of it. Raises InvalidError with every problem."""

    playbook: Playbook
    actor: str
    request_id: str
    occurred_at: datetime
    reason: str = ""

    def __post_init__(self) -> None:
        rules = Rules()
        check(rules, self.playbook)
        rules.text("reason", self.reason, MAX_REASON, lines=True)
        rules.who_and_request(self.actor, self.request_id)
        rules.enforce()

    @property
    def cause(self) -> str:
        return cause_of(self.request_id, self.playbook, self.actor, self.reason)


@dataclass(frozen=True, slots=True)
class PlaybookState:
    """The versions of a playbook, oldest first, and what was asked for by which request."""

    latest: Playbook | None = None
    version: int = 0
    requests: dict[str, tuple[Playbook, int]] = field(default_factory=dict)


class Playbooks:
    """The decider of a playbook. Its version is the number of its publications."""

    types: Sequence[type[Event]] = (PlaybookPublished,)

    def initial(self) -> PlaybookState:
        return PlaybookState()

    def evolve(self, state: PlaybookState, event: PlaybookPublished) -> PlaybookState:
        published = event.playbook or Playbook()
        return replace(
            state,
            latest=published,
            version=event.version,
            requests={**state.requests, event.request_id: (published, event.version)},
        )

    def decide(self, command: PublishPlaybook, state: PlaybookState) -> Sequence[PlaybookPublished]:
        """Return the new version; nothing where it is the present one. Raises DiffersError (REQUEST_ID_REUSED)."""
        done = state.requests.get(command.request_id)
        if done is not None and done[0] != command.playbook:
            raise DiffersError("REQUEST_ID_REUSED", f"request_id {command.request_id} published another playbook")
        if done is not None or command.playbook == state.latest:
            return []
        return [
            PlaybookPublished(
                playbook=command.playbook,
                version=state.version + 1,
                actor=command.actor,
                reason=command.reason,
                request_id=command.request_id,
                occurred_at=command.occurred_at,
            )
        ]


def playbook_stream(playbook_id: str) -> str:
    return stream_name("playbook", playbook_id)


# -- what is wrong with one ----------------------------------------------------------------------------------------


def check(rules: Rules, playbook: Playbook) -> None:
    """Note everything that is wrong with a playbook."""
    rules.require(bool(ID.fullmatch(playbook.playbook_id)), "playbook.playbook_id", ID_RULE)
    rules.text("playbook.name", playbook.name, MAX_TITLE, required=True)
    if playbook.calendar is not None:
        check_calendar(rules, playbook.calendar, "playbook.calendar")
    within = 0 <= playbook.max_per_hour <= MAX_PER_HOUR
    rules.require(within, "playbook.max_per_hour", f"between 0 and {MAX_PER_HOUR:,}")
    some = bool(playbook.recoveries or playbook.improvements)
    rules.require(some, "playbook", "at least one rule in recoveries or improvements")
    for name, all_of in (("recoveries", playbook.recoveries), ("improvements", playbook.improvements)):
        rules.require(len(all_of) <= MAX_RULES, f"playbook.{name}", f"at most {MAX_RULES}")
    seen: set[str] = set()
    for place, rule in _places(playbook):
        rules.require(bool(ID.fullmatch(rule.rule_id)), f"{place}.rule_id", ID_RULE)
        rules.require(rule.rule_id not in seen, f"{place}.rule_id", "unique in the playbook")
        seen.add(rule.rule_id)
        _check_match(rules, rule.match or SignalMatch(), f"{place}.match")
        rules.text(f"{place}.owner", rule.owner, MAX_ID)
        _check_level(rules, rule.service_level, f"{place}.service_level")
        if isinstance(rule, RecoveryRule):
            cool = 0 <= rule.cool_down_days <= MAX_COOL_DOWN_DAYS
            rules.require(cool, f"{place}.cool_down_days", f"between 0 and {MAX_COOL_DOWN_DAYS:,}")
        else:
            _check_cause(rules, rule, place)


def _places(playbook: Playbook) -> Iterator[tuple[str, RecoveryRule | ImprovementRule]]:
    for index, recovery in enumerate(playbook.recoveries[:MAX_RULES]):
        yield f"playbook.recoveries[{index}]", recovery
    for index, improvement in enumerate(playbook.improvements[:MAX_RULES]):
        yield f"playbook.improvements[{index}]", improvement


def _check_match(rules: Rules, match: SignalMatch, at: str) -> None:
    for name in ("rules", "touchpoints", "need_paths", "customer_ids"):
        patterns = getattr(match, name)
        rules.require(len(patterns) <= MAX_PATTERNS, f"{at}.{name}", f"at most {MAX_PATTERNS:,}")
        for index, pattern in enumerate(patterns[:MAX_PATTERNS]):
            place = f"{at}.{name}[{index}]"
            rules.text(place, pattern, MAX_CUSTOMER_ID, required=True)
            rules.require("*" not in pattern[:-1], place, "'*' only at the end, where it matches any rest")
            # Versions of playbooks are kept for ever.
            group = name != "customer_ids" or pattern.endswith("*")
            rules.require(group, place, "the beginning of many ids and '*': no erasure finds a customer in a playbook")


def _check_level(rules: Rules, level: ServiceLevel | None, at: str) -> None:
    if level is None:
        return
    check_period(rules, level.accept_within, f"{at}.accept_within")
    check_period(rules, level.resolve_within, f"{at}.resolve_within")
    check_period(rules, level.remind_before, f"{at}.remind_before")
    rules.require(len(level.escalations) <= MAX_STEPS, f"{at}.escalations", f"at most {MAX_STEPS}")
    promised = {Obligation.ACCEPTANCE: level.accept_within, Obligation.RESOLUTION: level.resolve_within}
    for index, step in enumerate(level.escalations[:MAX_STEPS]):
        place = f"{at}.escalations[{index}]"
        known = promised.get(step.obligation) is not None
        rules.require(known, f"{place}.obligation", "ACCEPTANCE or RESOLUTION, with a time within which it is due")
        check_period(rules, step.after, f"{place}.after", positive=False)
        rules.text(f"{place}.to", step.to, MAX_ID, required=True)


def _check_cause(rules: Rules, rule: ImprovementRule, at: str) -> None:
    rules.require(1 <= rule.customers <= MAX_CUSTOMERS, f"{at}.customers", f"between 1 and {MAX_CUSTOMERS:,}")
    rules.require(1 <= rule.within_days <= MAX_WITHIN_DAYS, f"{at}.within_days", f"between 1 and {MAX_WITHIN_DAYS}")
    unique = len(set(rule.group_by)) == len(rule.group_by) and CausePart.UNSPECIFIED not in rule.group_by
    rules.require(unique, f"{at}.group_by", "each of TOUCHPOINT, NEED and RULE at most once")


# -- what a signal asks for ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class InForce:
    """A version of a playbook, with its calendar made ready."""

    playbook: Playbook
    version: int
    time: BusinessTime

    @classmethod
    def of(cls, playbook: Playbook, version: int) -> "InForce":
        return cls(playbook, version, BusinessTime(playbook.calendar))

    @property
    def max_per_hour(self) -> int:
        return self.playbook.max_per_hour or DEFAULT_PER_HOUR

    def terms(self, rule: RecoveryRule | ImprovementRule, opened_at: datetime) -> Terms:
        """Return what `rule` says about an action that it opens at `opened_at`."""
        return Terms(
            playbook_id=self.playbook.playbook_id,
            version=self.version,
            rule_id=rule.rule_id,
            priority=rule.priority,
            owner=rule.owner,
            schedule=scheduled(opened_at, rule.service_level, self.time),
        )

    def level(self, rule_id: str) -> ServiceLevel | None:
        """Return the service level of a rule; None where there is no such rule, or it has none."""
        rules: list[RecoveryRule | ImprovementRule] = [*self.playbook.recoveries, *self.playbook.improvements]
        return next((rule.service_level for rule in rules if rule.rule_id == rule_id), None)


def notices(before: Sequence[InForce], published: InForce) -> Sequence[str]:
    """Return what whoever publishes should know: that signals will open less than until now."""
    own = published.playbook.playbook_id
    others = [each for each in before if each.playbook.playbook_id != own]
    if published.playbook.disabled and all(each.playbook.disabled for each in others):
        return ("no playbook is switched on: no signal opens anything",)
    return () if before else (FIRST,)


@dataclass(frozen=True, slots=True)
class Recovering:
    """The rule that opens a recovery for a signal."""

    by: InForce
    rule: RecoveryRule


@dataclass(frozen=True, slots=True)
class Causing:
    """A rule that counts a signal towards a cause; the cause by its touchpoint and need, where these are part of it."""

    by: InForce
    rule: ImprovementRule
    cause_id: str
    touchpoint: str
    need_path: str


@dataclass(frozen=True, slots=True)
class Asked:
    """What a signal asks for: at most one recovery, any number of causes."""

    recovery: Recovering | None
    causes: Sequence[Causing]


def asked(signal: SignalRaised, in_force: Sequence[InForce]) -> Asked:
    """Return what the playbooks, in the order of their ids, make of a signal.

    One about everyone opens no recovery, as there is nobody to make glad again, and is counted by rules only that name
    its rule.
    """
    switched_on = sorted((p for p in in_force if not p.playbook.disabled), key=lambda p: p.playbook.playbook_id)
    recovery = next(
        (
            Recovering(by, rule)
            for by in switched_on
            for rule in by.playbook.recoveries
            if not about_everyone(signal) and matches(rule.match, signal)
        ),
        None,
    )
    causes = [
        _causing(by, rule, signal)
        for by in switched_on
        for rule in by.playbook.improvements
        if matches(rule.match, signal) and (not about_everyone(signal) or (rule.match is not None and rule.match.rules))
    ]
    return Asked(recovery, causes)


def matches(match: SignalMatch | None, signal: SignalRaised) -> bool:
    match = match or SignalMatch()
    return (
        _any(match.rules, signal.rule)
        and (_any(match.touchpoints, signal.touchpoint) or _any(match.touchpoints, signal.touchpoint_id))
        and _any(match.need_paths, signal.need_path)
        and _any(match.customer_ids, signal.customer_id)
    )


def _any(patterns: Sequence[str], text: str) -> bool:
    return not patterns or any(text.startswith(p[:-1]) if p.endswith("*") else text == p for p in patterns)


def _causing(by: InForce, rule: ImprovementRule, signal: SignalRaised) -> Causing:
    # What is found by the map is the same touchpoint by whatever name the last interaction had.
    place = signal.touchpoint_id if about_everyone(signal) else signal.touchpoint
    told = {CausePart.TOUCHPOINT: place, CausePart.NEED: signal.need_path, CausePart.RULE: signal.rule}
    parts = [told[part] if part in rule.group_by else "" for part in told]
    # The same cause for every version of the playbook: counting goes on.
    cause_id = str(derived_id("cause", by.playbook.playbook_id, rule.rule_id, *parts))
    return Causing(by, rule, cause_id, parts[0], parts[1])
