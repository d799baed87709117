"""ExplanationService: protobuf to domain and back."""

from typing import Any

from recorrido.actions.v1 import explanation_service_pb2 as pb
from recorrido.actions.v1 import explanation_service_pb2_grpc as pb_grpc
from services.actions.views.explanation import Explained, Explanations
from services.foundation.rpc import timestamp


class ExplanationServicer(pb_grpc.ExplanationServiceServicer):
    def __init__(self, explanations: Explanations) -> None:
        self._explanations = explanations

    async def ExplainAction(self, request: pb.ExplainActionRequest, _context: Any) -> pb.ExplainActionResponse:  # noqa: N802
        found = await self._explanations.get(request.action_id)
        return pb.ExplainActionResponse(events=map(_event, found.events), left_out=found.left_out)


def _event(explained: Explained) -> pb.ExplainedEvent:
    return pb.ExplainedEvent(
        event_id=explained.event_id,
        event_type=explained.event_type,
        role=pb.ExplainedRole.ValueType(explained.role.value),
        stream=explained.stream,
        revision=explained.revision,
        position=explained.position,
        trace_id=explained.trace_id,
        correlation_id=explained.correlation_id,
        summary=explained.summary,
        details=explained.details,
        because_of=explained.because_of,
        erased=explained.erased,
        recorded_at=timestamp(explained.recorded_at),
    )
