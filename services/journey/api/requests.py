"""Reading requests: every rule broken is named."""

from datetime import datetime
from typing import Any

from recorrido.inference.v1.events import PointKind
from recorrido.ingest.v1.events import Channel, Outcome
from recorrido.journey.v1 import journey_map_pb2, journey_service_pb2
from recorrido.journey.v1.events import JourneyMap, LoyaltyLevel, Metric
from services.foundation.rules import MAX_CUSTOMER_ID, Rules
from services.journey.domain.charted import POINTS
from services.journey.views.flow import Ending, FlowFilter
from services.journey.views.scores import Grouping, Period
from services.journey.views.selection import Selection

MAX_PAGE = 1000


class Checks(Rules):
    """Reads the fields of a request."""

    def identity(self, field: str, value: str) -> str:
        return self.text(field, value, MAX_CUSTOMER_ID, required=True)

    def optional_identity(self, field: str, value: str) -> str:
        return self.text(field, value, MAX_CUSTOMER_ID)

    def size(self, field: str, value: int, *, default: int, most: int = MAX_PAGE) -> int:
        return super().size(field, value, default=default, most=most)

    def span(self, request: Any, path: str = "") -> tuple[datetime | None, datetime | None]:
        """Read `from` and `to`."""
        since, until = self.time(request, "from", path), self.time(request, "to", path)
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
        if any(span):
            since, until = span[0] or since, span[1] or until
            if not all(span) and since and until and since >= until:
                self.refuse(f"{path}.from" if span[1] else f"{path}.to", "a time span that ends after it begins")
        # Read as "none given", an unknown one would mean every channel.
        channel = self.known(f"{path}.channel", Channel, message.channel)
        for name in ("stage_id", "touchpoint_id", "persona_id", "source", "need_path"):
            self.optional_identity(f"{path}.{name}", getattr(message, name))
        return Selection(
            since=since,
            until=until,
            stage_id=message.stage_id,
            touchpoint_id=message.touchpoint_id,
            channel=channel,
            persona_id=message.persona_id,
            source=message.source,
            need_path=message.need_path,
        )

    def flow_filter(self, message: journey_service_pb2.FlowFilter, path: str) -> FlowFilter:
        return FlowFilter(
            selection=self.selection(message.selection, path=f"{path}.selection"),
            outcome=self.known(f"{path}.outcome", Outcome, message.outcome),
            goal_id=self.optional_identity(f"{path}.goal_id", message.goal_id),
            ending=self.choice(f"{path}.ending", Ending, message.ending),
        )

    def charted(self, request: journey_service_pb2.GetControlChartRequest) -> tuple[Metric, PointKind]:
        """Read what a control chart is asked of: a metric of a touchpoint, or a kind of point about a need."""
        metric, kind = self.known("metric", Metric, request.metric), self.known("kind", PointKind, request.kind)
        of_score = bool(request.touchpoint_id or request.metric)
        if of_score and (request.need_path or request.kind):
            self.refuse("need_path", "a score of a touchpoint, or a point about a need, not both")
        elif of_score:
            self.identity("touchpoint_id", request.touchpoint_id)
            self.require(metric is not Metric.UNSPECIFIED, "metric", "NPS, CSAT, CES or sentiment")
        else:
            self.identity("need_path", request.need_path)
            self.require(kind.name.lower() in POINTS, "kind", "pain, itch or delight")
        return metric, kind

    def period(self, number: int) -> Period | None:
        return self.choice("period", Period, number)

    def groupings(self, numbers: Any) -> list[Grouping]:
        found = []
        for n, number in enumerate(numbers):
            self.require(number != 0, f"group_by[{n}]", "one of the known values")
            if grouping := self.choice(f"group_by[{n}]", Grouping, number):
                found.append(grouping)
        if len(set(found)) < len(found):
            self.refuse("group_by", "each grouping once")
        return found

    def journey_map(self, message: journey_map_pb2.JourneyMap, field: str = "map") -> JourneyMap:
        """Read a map; numbers that this version does not know would otherwise read as none."""
        for n, rule in enumerate(message.mapping_rules):
            self.known(f"{field}.mapping_rules[{n}].channel", Channel, rule.channel)
        for n, stage in enumerate(message.stages):
            for m, touchpoint in enumerate(stage.touchpoints):
                path = f"{field}.stages[{n}].touchpoints[{m}]"
                self.known(f"{path}.channel", Channel, touchpoint.channel)
                for k, expected in enumerate(touchpoint.expected):
                    self.known(f"{path}.expected[{k}].metric", Metric, expected.metric)
        for n, level in enumerate(message.loyalty.rules):
            self.known(f"{field}.loyalty.rules[{n}].level", LoyaltyLevel, level.level)
        return JourneyMap.from_proto(message)
