"""RelayService: protobuf to the relay and back."""

from collections.abc import AsyncIterator
from typing import Any

from recorrido.relay.v1 import relay_service_pb2 as pb
from recorrido.relay.v1 import relay_service_pb2_grpc as pb_grpc
from services.foundation.rules import Rules
from services.relay.relay import Relay, State
from services.relay.replay import Part, Replays

_STATES: dict[State, "pb.RelayState.ValueType"] = {
    State.WAITING: pb.RELAY_STATE_WAITING,
    State.STANDING_BY: pb.RELAY_STATE_STANDING_BY,
    State.PUBLISHING: pb.RELAY_STATE_PUBLISHING,
}


class RelayServicer(pb_grpc.RelayServiceServicer):
    """Tells how the relay is doing, and starts replays."""

    def __init__(self, relay: Relay, replays: Replays) -> None:
        self._relay = relay
        self._replays = replays

    async def GetStatus(self, _request: pb.GetStatusRequest, _context: Any) -> pb.GetStatusResponse:  # noqa: N802
        status = self._relay.status
        return pb.GetStatusResponse(
            state=_STATES[status.state],
            sequence=status.last.sequence,
            position=status.last.position or 0,
            lag_events=status.lag_events,
            lag_seconds=status.lag_seconds,
            published=status.published,
            batches=status.batches,
            refused=status.refused,
            takeovers=status.takeovers,
        )

    async def Republish(self, request: pb.RepublishRequest, _context: Any) -> AsyncIterator[pb.RepublishResponse]:  # noqa: N802
        async for progress in self._replays.republish(_part(request)):
            yield pb.RepublishResponse(
                stream=progress.stream,
                subjects=progress.subjects,
                messages=progress.messages,
                position=progress.position,
                end_position=progress.end,
                complete=progress.complete,
            )


def _part(request: pb.RepublishRequest) -> Part:
    start, end = request.WhichOneof("from"), request.WhichOneof("to")
    rules = Rules()
    from_time, to_time = rules.time(request, "from_time"), rules.time(request, "to_time")
    rules.enforce()
    return Part(
        replay_id=request.replay_id,
        from_position=request.from_position if start == "from_position" else None,
        from_time=from_time,
        to_position=request.to_position if end == "to_position" else None,
        to_time=to_time,
        types=tuple(request.types),
    )
