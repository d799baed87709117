"""The form of a playbook's YAML file, which also gives its JSON Schema."""

import datetime as dt
import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, ValidationError, WithJsonSchema

from recorrido.actions.v1 import playbook_pb2 as pb
from recorrido.actions.v1.action_pb2 import Obligation, Priority
from services.cli import yamlfiles

SHIPPED = Path(__file__).parent / "playbooks"
_PERIOD = re.compile(r"(?:(\d{1,3})d)? ?(?:(\d{1,4})h)? ?(?:(\d{1,6})m)?")


def _period(text: Any) -> pb.Period:
    found = _PERIOD.fullmatch(text.strip()) if isinstance(text, str) else None
    if found is None or not any(found.groups()):
        raise ValueError("a length of business time, such as 2d, 4h, 90m or 1d 4h")
    days, hours, minutes = (int(part or 0) for part in found.groups())
    return pb.Period(days=days, minutes=60 * hours + minutes)


def _wall_time(value: Any) -> Any:
    # YAML reads an unquoted 17:00 as the number of its minutes.
    return f"{value // 60:02}:{value % 60:02}" if isinstance(value, int) and not isinstance(value, bool) else value


def _date(value: Any) -> Any:
    return value.isoformat() if type(value) is dt.date else value


Period = Annotated[
    Any,
    BeforeValidator(_period),
    PlainSerializer(str),
    WithJsonSchema({"type": "string", "pattern": f"^{_PERIOD.pattern}$", "minLength": 2, "examples": ["2d", "4h"]}),
]
_WALL_TIME, _DAY, _ID, _COUNTRY = (
    r"^([01]\d|2[0-4]):[0-5]\d$",
    r"^\d{4}-\d{2}-\d{2}$",
    "^[a-z0-9-]{1,64}$",
    "^[A-Z]{2}$",
)
_BEGINNING = r"^[^*]*\*?$"
#: What they mean, in words.
_PATTERNS = {
    _WALL_TIME: "a time of the day such as 09:00",
    _DAY: "a date such as 2026-12-24",
    _ID: "1 to 64 small letters, digits and hyphens",
    _COUNTRY: "two capital letters such as SI",
    _BEGINNING: "text with a * at its end alone",
}
WallTime = Annotated[str, Field(pattern=_WALL_TIME), BeforeValidator(_wall_time)]
Date = Annotated[str, Field(pattern=_DAY), BeforeValidator(_date)]
Id = Annotated[str, Field(pattern=_ID)]
#: A list of patterns; each may end in *, which matches any rest.
Patterns = list[Annotated[str, Field(min_length=1, max_length=256, pattern=_BEGINNING)]]


class Day(StrEnum):
    MON = "mon"
    TUE = "tue"
    WED = "wed"
    THU = "thu"
    FRI = "fri"
    SAT = "sat"
    SUN = "sun"


class PriorityName(StrEnum):
    LOW = "low"
    NORMAL = "normal"
    HIGH = "high"
    URGENT = "urgent"


class ObligationName(StrEnum):
    ACCEPTANCE = "acceptance"
    RESOLUTION = "resolution"


class Part(StrEnum):
    TOUCHPOINT = "touchpoint"
    NEED = "need"
    RULE = "rule"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class Hours(_Strict):
    days: Annotated[list[Day], Field(min_length=1)]
    opens: WallTime
    closes: WallTime
    """Later than `opens`; 24:00 is the end of the day."""

    def message(self) -> pb.OpeningHours:
        numbers = [list(Day).index(day) + 1 for day in self.days]
        return pb.OpeningHours(days=map(pb.Weekday.ValueType, numbers), opens=self.opens, closes=self.closes)


class Holidays(_Strict):
    country: Annotated[str, Field(pattern=_COUNTRY)]
    """ISO 3166-1, such as SI; its public holidays are closed."""
    subdivision: str = ""
    """ISO 3166-2 without the country, such as BY of Germany."""


class Calendar(_Strict):
    """When people work. Without hours: around the clock on every day that is no holiday."""

    time_zone: str
    """IANA name, such as Europe/Ljubljana."""
    hours: list[Hours] = []
    holidays: Holidays | None = None
    closed_on: list[Date] = []
    """Further closed days."""
    open_on: list[Date] = []
    """Days that are worked though they are holidays."""

    def message(self) -> pb.Calendar:
        return pb.Calendar(
            time_zone=self.time_zone,
            hours=[each.message() for each in self.hours],
            holidays_country=self.holidays.country if self.holidays else "",
            holidays_subdivision=self.holidays.subdivision if self.holidays else "",
            closed_on=self.closed_on,
            open_on=self.open_on,
        )


class Match(_Strict):
    """Which signals. Every list that is given must hold a match."""

    rules: Patterns = []
    touchpoints: Patterns = []
    need_paths: Patterns = []
    customer_ids: Patterns = []
    """Beginnings of ids that end in `*`; no customer is named alone, as no erasure would find it here."""

    def message(self) -> pb.SignalMatch:
        return pb.SignalMatch(**self.model_dump())


class Escalation(_Strict):
    obligation: ObligationName
    after: Period
    """Counted from the moment the obligation falls due; 0m is at once."""
    to: Annotated[str, Field(min_length=1, max_length=128)]
    reassign: bool = False
    """Whether the action becomes theirs."""

    def message(self) -> pb.EscalationStep:
        obligation = Obligation.Value(f"OBLIGATION_{self.obligation.name}")
        return pb.EscalationStep(obligation=obligation, after=self.after, to=self.to, reassign=self.reassign)


class ServiceLevel(_Strict):
    """Lengths of business time: whole business days (d), then hours (h) and minutes (m)."""

    accept_within: Period | None = None
    resolve_within: Period | None = None
    remind_before: Period | None = None
    escalations: list[Escalation] = []

    def message(self) -> pb.ServiceLevel:
        return pb.ServiceLevel(
            accept_within=self.accept_within,
            resolve_within=self.resolve_within,
            remind_before=self.remind_before,
            escalations=[each.message() for each in self.escalations],
        )


class _Rule(_Strict):
    rule_id: Id
    match: Match = Match()
    priority: PriorityName = PriorityName.NORMAL
    owner: Annotated[str, Field(max_length=128)] = ""
    """Whose it is; nobody's until somebody accepts it, where it is empty."""
    service_level: ServiceLevel | None = None

    def common(self) -> dict[str, Any]:
        return {
            "rule_id": self.rule_id,
            "match": self.match.message(),
            "priority": Priority.Value(f"PRIORITY_{self.priority.name}"),
            "owner": self.owner,
            "service_level": self.service_level.message() if self.service_level else None,
        }


class Recovery(_Rule):
    """Opens a recovery for each signal that matches. The first rule that matches does."""

    cool_down_days: Annotated[int, Field(ge=0, le=3660)] = 0
    """Days after a recovery of the customer in which no further one is opened."""

    def message(self) -> pb.RecoveryRule:
        return pb.RecoveryRule(**self.common(), cool_down_days=self.cool_down_days)


class Improvement(_Rule):
    """Opens an improvement when enough customers had the same cause. Every rule that matches counts.

    A signal about everyone counts as one customer, if match.rules names its rule.
    """

    group_by: list[Part] = [Part.TOUCHPOINT, Part.NEED]
    """What makes signals the same cause."""
    customers: Annotated[int, Field(ge=1, le=10_000)]
    within_days: Annotated[int, Field(ge=1, le=366)]

    def message(self) -> pb.ImprovementRule:
        return pb.ImprovementRule(
            **self.common(),
            group_by=[pb.CausePart.Value(f"CAUSE_PART_{part.name}") for part in self.group_by],
            customers=self.customers,
            within_days=self.within_days,
        )


class Playbook(_Strict):
    """Which signals open what, for whom, how urgent, whose, due when, and what happens when it is late."""

    playbook_id: Id
    name: Annotated[str, Field(min_length=1, max_length=200)]
    disabled: bool = False
    """A playbook that is switched off opens nothing."""
    calendar: Calendar | None = None
    """Around the clock, UTC, where there is none."""
    max_per_hour: Annotated[int, Field(ge=1, le=100_000)] = 500
    """The guard: actions that the playbook opens in an hour at most."""
    recoveries: list[Recovery] = []
    improvements: list[Improvement] = []

    def message(self) -> pb.Playbook:
        return pb.Playbook(
            playbook_id=self.playbook_id,
            name=self.name,
            disabled=self.disabled,
            calendar=self.calendar.message() if self.calendar else None,
            max_per_hour=self.max_per_hour,
            recoveries=[each.message() for each in self.recoveries],
            improvements=[each.message() for each in self.improvements],
        )


def schema() -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of the file."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Playbook.model_json_schema()}


def load(file: str) -> pb.Playbook:
    """Read a playbook from a YAML file, or a shipped one by its name.

    Raises:
        CommandError: the file cannot be read, is not YAML or breaks the form; every problem is told with its place.
    """
    path = Path(file)
    shipped = SHIPPED / f"{file}.yaml"
    if not path.exists() and shipped.exists():
        path = shipped
    names = ", ".join(sorted(each.stem for each in SHIPPED.glob("*.yaml")))
    content = yamlfiles.read(path, others=f"shipped playbooks are {names}")
    try:
        return Playbook.model_validate(content).message()
    except ValidationError as error:
        problems = [yamlfiles.problem(each, _KEYS, _PATTERNS) for each in error.errors(include_url=False)]
    raise yamlfiles.refusal(path, "playbook", problems)


_FORMS = (Playbook, Recovery, Improvement, ServiceLevel, Escalation, Match, Calendar, Holidays, Hours)
_KEYS = {name for form in _FORMS for name in form.model_fields}
