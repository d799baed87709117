"""RejectionService: protobuf to domain and back."""

from collections.abc import Callable
from datetime import datetime
from typing import Any

from recorrido.ingest.v1 import rejection_pb2, rejection_service_pb2_grpc
from recorrido.ingest.v1 import rejection_service_pb2 as pb
from recorrido.ingest.v1.events import RejectionState
from services.foundation.rpc import metadata, timestamp
from services.foundation.rules import Rules
from services.ingest.api import command_of, result_message
from services.ingest.handlers import RejectionHandlers
from services.ingest.masking import Masker
from services.ingest.rejection import Discard
from services.ingest.views import DEFAULT_PAGE, Listed, RejectionQueries, RejectionQuery


class RejectionServicer(rejection_service_pb2_grpc.RejectionServiceServicer):
    """What the front door refused. `clock` tells the present moment, UTC."""

    def __init__(
        self, handlers: RejectionHandlers, queries: RejectionQueries, clock: Callable[[], datetime], masker: Masker
    ) -> None:
        self._masker = masker
        self._handlers = handlers
        self._queries = queries
        self._clock = clock

    async def ListRejected(self, request: pb.ListRejectedRequest, _context: Any) -> pb.ListRejectedResponse:  # noqa: N802
        rules = Rules()
        state = rules.known("state", RejectionState, request.state)
        from_time, to_time = rules.time(request, "from_time"), rules.time(request, "to_time")
        rules.enforce()
        page = await self._queries.list(
            RejectionQuery(
                state=state if request.state else None,
                source=request.source,
                reason=request.reason,
                field=request.field,
                customer_id=request.customer_id,
                client_id=request.client_id,
                from_time=from_time,
                to_time=to_time,
                page_size=request.page_size or DEFAULT_PAGE,
                page_token=request.page_token,
            )
        )
        return pb.ListRejectedResponse(
            rejections=map(_message, page.rejections), next_page_token=page.next_page_token, total=page.total
        )

    async def GetRejected(self, request: pb.GetRejectedRequest, _context: Any) -> pb.GetRejectedResponse:  # noqa: N802
        return pb.GetRejectedResponse(rejection=_message(await self._queries.get(request.rejection_id)))

    async def ResubmitRejected(  # noqa: N802 - gRPC's name
        self, request: pb.ResubmitRejectedRequest, _context: Any
    ) -> pb.ResubmitRejectedResponse:
        now = self._clock()
        corrected = command_of(request.interaction, now, self._masker) if request.HasField("interaction") else None
        recording = await self._handlers.resubmit(
            request.rejection_id, corrected, request.actor, now=now, metadata=metadata()
        )
        listed = await self._queries.get(request.rejection_id)
        return pb.ResubmitRejectedResponse(result=result_message(recording), rejection=_message(listed))

    async def DiscardRejected(  # noqa: N802 - gRPC's name
        self, request: pb.DiscardRejectedRequest, _context: Any
    ) -> pb.DiscardRejectedResponse:
        command = Discard(rejection_id=request.rejection_id, reason=request.reason, actor=request.actor)
        await self._handlers.discard(command, metadata())
        return pb.DiscardRejectedResponse(rejection=_message(await self._queries.get(request.rejection_id)))


def _message(listed: Listed) -> pb.Rejection:
    rejection = listed.rejection
    rejected = rejection.rejected
    return pb.Rejection(
        rejection_id=rejected.rejection_id,
        state=rejection_pb2.RejectionState.ValueType(rejection.state.number),
        interaction=rejected.interaction.to_proto() if rejected.interaction else None,
        altered=[each.to_proto() for each in rejected.altered],
        reason=rejected.reason,
        message=rejected.message,
        violations=[each.to_proto() for each in rejected.violations],
        client_id=rejected.client_id,
        actor=rejection.actor,
        note=rejection.note,
        event_id=rejection.event_id,
        rejected_at=timestamp(listed.rejected_at),
        resolved_at=timestamp(listed.resolved_at),
    )
