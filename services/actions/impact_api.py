"""ImpactService: protobuf to domain and back."""

from collections.abc import Callable
from datetime import datetime
from typing import Any

from recorrido.actions.v1 import impact_service_pb2 as pb
from recorrido.actions.v1 import impact_service_pb2_grpc as pb_grpc
from recorrido.actions.v1.events import Target
from services.actions.views.impact import ImpactQuery, Impacts


class ImpactServicer(pb_grpc.ImpactServiceServicer):
    """`clock` tells the present moment, UTC."""

    def __init__(self, impacts: Impacts, clock: Callable[[], datetime]) -> None:
        self._impacts = impacts
        self._clock = clock

    async def GetImpact(self, request: pb.GetImpactRequest, _context: Any) -> pb.GetImpactResponse:  # noqa: N802
        query = ImpactQuery(
            action_id=request.action_id,
            target=Target.from_proto(request.target) if request.HasField("target") else None,
            window_days=request.window_days,
            comparison=tuple(request.comparison_touchpoints),
            compare=not request.without_comparison,
            map_id=request.map_id,
        )
        impact = await self._impacts.get(query, self._clock())
        return pb.GetImpactResponse(impact=impact.to_proto())
