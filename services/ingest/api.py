"""proto ⇄ domain of the ingest service."""

from datetime import UTC, datetime
from typing import Any

from recorrido.ingest.v1 import ingest_service_pb2 as pb
from recorrido.ingest.v1 import ingest_service_pb2_grpc, interaction_pb2
from recorrido.ingest.v1.events import Interaction
from services.foundation.errors import InvalidError, RecorridoError, Violation
from services.foundation.rpc import metadata
from services.ingest.domain import RecordInteraction
from services.ingest.handlers import Handlers, Recording, Result

MAX_INTERACTIONS = 1000


class IngestServicer(ingest_service_pb2_grpc.IngestServiceServicer):
    """The front door."""

    def __init__(self, handlers: Handlers) -> None:
        self._handlers = handlers

    async def RecordInteraction(  # noqa: N802 - gRPC's name
        self, request: pb.RecordInteractionRequest, _context: Any
    ) -> pb.RecordInteractionResponse:
        if not request.HasField("interaction"):
            raise InvalidError([Violation("interaction", "required")])
        command = _command(request.interaction, datetime.now(UTC))
        (result,) = await self._handlers.record([command], metadata())
        if isinstance(result, RecorridoError):
            raise result
        return pb.RecordInteractionResponse(result=_result(result))

    async def RecordInteractions(  # noqa: N802 - gRPC's name
        self, request: pb.RecordInteractionsRequest, _context: Any
    ) -> pb.RecordInteractionsResponse:
        """An empty request is answered with no results: an importer's last page may be empty."""
        count = len(request.interactions)
        if count > MAX_INTERACTIONS:
            raise InvalidError([Violation("interactions", f"at most {MAX_INTERACTIONS}, has {count}")])
        now = datetime.now(UTC)
        commands = [_command(interaction, now) for interaction in request.interactions]
        results = await self._handlers.record(commands, metadata())
        return pb.RecordInteractionsResponse(results=map(_result, results))


def _command(message: interaction_pb2.Interaction, now: datetime) -> RecordInteraction | InvalidError:
    unreadable = []
    if message.outcome not in interaction_pb2.Outcome.values():
        unreadable.append(Violation("outcome", "one of the known outcomes, or none"))
    try:
        interaction = Interaction.from_proto(message)
    except (ValueError, OverflowError):
        # The only field with values that have no counterpart: seconds may lie outside the years 1 to 9999.
        unreadable.append(Violation("occurred_at", "a valid timestamp, of the years 1 to 9999"))
        readable = interaction_pb2.Interaction()
        readable.CopyFrom(message)
        readable.ClearField("occurred_at")
        interaction = Interaction.from_proto(readable)
    try:
        return RecordInteraction.of(interaction, now, unreadable)
    except InvalidError as error:
        return error


def _result(result: Result) -> pb.RecordResult:
    if isinstance(result, Recording):
        status = pb.RECORD_STATUS_DUPLICATE if result.duplicate else pb.RECORD_STATUS_RECORDED
        return pb.RecordResult(status=status, event_id=result.event_id)
    violations = result.violations if isinstance(result, InvalidError) else ()
    return pb.RecordResult(
        status=pb.RECORD_STATUS_REJECTED,
        problem=pb.Problem(
            reason=result.reason,
            message=result.message[:1024],
            violations=[pb.FieldViolation(field=v.field, rule=v.rule) for v in violations],
        ),
    )
