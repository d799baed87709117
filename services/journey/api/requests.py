"""Reading requests: every rule broken is named."""

from datetime import UTC, datetime
from enum import Enum
from typing import Any, TypeVar

from recorrido.ingest.v1.events import Channel, Outcome
from recorrido.journey.v1 import journey_map_pb2, journey_service_pb2
from recorrido.journey.v1.events import JourneyMap, LoyaltyLevel, Metric
from services.foundation.errors import InvalidError, Violation
from services.journey.views.flow import Ending, FlowFilter
from services.journey.views.scores import Grouping, Period
from services.journey.views.selection import Selection

EnumT = TypeVar("EnumT", bound=Enum)

MAX_PAGE = 1000
MAX_ID = 256


class Checks:
    """Reads the fields of a request; `done` raises with every rule broken."""

    def __init__(self) -> None:
        self._violations: list[Violation] = []

    def refuse(self, field: str, rule: str) -> None:
        self._violations.append(Violation(field, rule))

    def identity(self, field: str, value: str) -> str:
        if not value:
            self.refuse(field, f"1 to {MAX_ID} characters")
        return self.optional_identity(field, value)

    def optional_identity(self, field: str, value: str) -> str:
        if len(value) > MAX_ID or "\0" in value:
            self.refuse(field, f"at most {MAX_ID} characters, none of them NUL")
        return value

    def size(self, field: str, value: int, *, default: int, most: int = MAX_PAGE) -> int:
        if not 0 <= value <= most:
            self.refuse(field, f"between 0 and {most:,}")
        return value or default

    def time(self, request: Any, field: str) -> datetime | None:
        if not request.HasField(field):
            return None
        try:
            at: datetime = getattr(request, field).ToDatetime(UTC)
        except (ValueError, OverflowError):
            self.refuse(field, "a time between the years 1 and 9999")
            return None
        return at

    def span(self, request: Any, path: str = "") -> tuple[datetime | None, datetime | None]:
        """Read `from` and `to`."""
        since, until = self.time(request, "from"), self.time(request, "to")
        if since and until and since >= until:
            self.refuse(f"{path}to", "after from")
        return since, until

    def selection(
        self,
        message: journey_service_pb2.Selection,
        span: tuple[datetime | None, datetime | None] = (None, None),
        path: str = "selection",
    ) -> Selection:
        """Read a selection. `span` is said by the request itself, and goes before what the selection says."""
        since, until = self.span(message, f"{path}.")
        channel = self.channel(f"{path}.channel", message.channel)
        for name in ("stage_id", "touchpoint_id", "persona_id", "source", "need_path"):
            self.optional_identity(f"{path}.{name}", getattr(message, name))
        return Selection(
            since=span[0] or since,
            until=span[1] or until,
            stage_id=message.stage_id,
            touchpoint_id=message.touchpoint_id,
            channel=channel,
            persona_id=message.persona_id,
            source=message.source,
            need_path=message.need_path,
        )

    def flow_filter(self, message: journey_service_pb2.FlowFilter, path: str) -> FlowFilter:
        outcome = Outcome.from_number(message.outcome)
        if outcome.number != message.outcome:
            self.refuse(f"{path}.outcome", "one of the known outcomes")
        return FlowFilter(
            selection=self.selection(message.selection, path=f"{path}.selection"),
            outcome=outcome,
            goal_id=self.optional_identity(f"{path}.goal_id", message.goal_id),
            ending=self.choice(f"{path}.ending", message.ending, Ending, "endings"),
        )

    def choice(self, field: str, number: int, kind: type[EnumT], plural: str) -> EnumT | None:
        """Read one of a kind; None where none is given."""
        try:
            return kind(number) if number else None
        except ValueError:
            self.refuse(field, f"one of the known {plural}")
            return None

    def channel(self, field: str, number: int) -> Channel:
        channel = Channel.from_number(number)
        # Read as "none given", it would mean every channel.
        if channel.number != number:
            self.refuse(field, "one of the known channels")
        return channel

    def period(self, number: int) -> Period | None:
        return self.choice("period", number, Period, "periods")

    def groupings(self, numbers: Any) -> list[Grouping]:
        found = []
        for n, number in enumerate(numbers):
            try:
                found.append(Grouping(number))
            except ValueError:
                self.refuse(f"group_by[{n}]", "one of the known groupings")
        if len(set(found)) < len(found):
            self.refuse("group_by", "each grouping once")
        return found

    def journey_map(self, message: journey_map_pb2.JourneyMap, field: str = "map") -> JourneyMap:
        """Read a map; numbers that this version does not know would otherwise read as none."""
        for n, rule in enumerate(message.mapping_rules):
            self.channel(f"{field}.mapping_rules[{n}].channel", rule.channel)
        for n, stage in enumerate(message.stages):
            for m, touchpoint in enumerate(stage.touchpoints):
                path = f"{field}.stages[{n}].touchpoints[{m}]"
                self.channel(f"{path}.channel", touchpoint.channel)
                for k, expected in enumerate(touchpoint.expected):
                    if Metric.from_number(expected.metric).number != expected.metric:
                        self.refuse(f"{path}.expected[{k}].metric", "one of the known metrics")
        for n, level in enumerate(message.loyalty.rules):
            if LoyaltyLevel.from_number(level.level).number != level.level:
                self.refuse(f"{field}.loyalty.rules[{n}].level", "one of the known levels")
        return JourneyMap.from_proto(message)

    def done(self) -> None:
        if self._violations:
            raise InvalidError(self._violations)
