"""ActionsService: protobuf to domain and back."""

from collections.abc import Callable
from datetime import datetime
from typing import Any, Protocol, Self, TypeVar

from recorrido.actions.v1 import action_pb2
from recorrido.actions.v1 import actions_service_pb2 as pb
from recorrido.actions.v1 import actions_service_pb2_grpc as pb_grpc
from recorrido.actions.v1.events import ActionKind, ActionResult, ActionState
from services.actions.domain import AcceptAction, Action, Command, CompleteAction, OpenAction
from services.actions.handlers import ActionCommands
from services.actions.views import DEFAULT_PAGE, ActionQueries, ActionQuery, HistoryEntry
from services.foundation import rpc
from services.foundation.errors import InvalidError, Violation


class ActionsServicer(pb_grpc.ActionsServiceServicer):
    """`clock` tells the present moment, UTC."""

    def __init__(self, commands: ActionCommands, queries: ActionQueries, clock: Callable[[], datetime]) -> None:
        self._commands = commands
        self._queries = queries
        self._clock = clock

    async def OpenAction(self, request: pb.OpenActionRequest, _context: Any) -> pb.OpenActionResponse:  # noqa: N802
        command = OpenAction(
            kind=ActionKind.from_number(request.kind),
            customer_id=request.customer_id,
            title=request.title,
            reasons=tuple(request.reasons),
            touchpoint=request.touchpoint,
            need_path=request.need_path,
            actor=request.actor,
            request_id=request.request_id,
            occurred_at=self._clock(),
        )
        return pb.OpenActionResponse(action=await self._execute(command))

    async def AcceptAction(self, request: pb.AcceptActionRequest, _context: Any) -> pb.AcceptActionResponse:  # noqa: N802
        command = AcceptAction(
            action_id=request.action_id,
            actor=request.actor,
            owner=request.owner,
            request_id=request.request_id,
            occurred_at=self._clock(),
        )
        return pb.AcceptActionResponse(action=await self._execute(command, _expected(request)))

    async def CompleteAction(self, request: pb.CompleteActionRequest, _context: Any) -> pb.CompleteActionResponse:  # noqa: N802
        command = CompleteAction(
            action_id=request.action_id,
            actor=request.actor,
            result=ActionResult.from_number(request.result),
            note=request.note,
            request_id=request.request_id,
            occurred_at=self._clock(),
        )
        return pb.CompleteActionResponse(action=await self._execute(command, _expected(request)))

    async def GetAction(self, request: pb.GetActionRequest, _context: Any) -> pb.GetActionResponse:  # noqa: N802
        history = await self._queries.get(request.action_id)
        return pb.GetActionResponse(
            action=_action(history.action.state, history.action.revision),
            history=[_entry(entry) for entry in history.entries],
        )

    async def ListActions(self, request: pb.ListActionsRequest, _context: Any) -> pb.ListActionsResponse:  # noqa: N802
        query = ActionQuery(
            state=_filter(ActionState, request.state, "state"),
            kind=_filter(ActionKind, request.kind, "kind"),
            customer_id=request.customer_id,
            owner=request.owner,
            page_size=request.page_size or DEFAULT_PAGE,
            page_token=request.page_token,
        )
        page = await self._queries.list(query)
        return pb.ListActionsResponse(
            actions=[_action(folded.state, folded.revision) for folded in page.actions],
            next_page_token=page.next_page_token,
            total=page.total,
        )

    async def _execute(self, command: Command, expected_revision: int | None = None) -> pb.Action:
        done = await self._commands.execute(command, metadata=rpc.metadata(), expected_revision=expected_revision)
        return _action(done.state, done.revision)


def _expected(request: pb.AcceptActionRequest | pb.CompleteActionRequest) -> int | None:
    return request.expected_revision if request.HasField("expected_revision") else None


class _Numbered(Protocol):
    @classmethod
    def from_number(cls, number: int) -> Self: ...

    @property
    def number(self) -> int: ...


EnumT = TypeVar("EnumT", bound=_Numbered)


def _filter(enum: type[EnumT], number: int, field: str) -> EnumT | None:
    """Return what to filter by; a value of a newer contract must not silently mean everything."""
    value = enum.from_number(number)
    if value.number != number:
        raise InvalidError([Violation(field, "a value of the contract")])
    return value if number else None


def _action(action: Action, revision: int) -> pb.Action:
    message = pb.Action(
        action_id=action.action_id,
        kind=action_pb2.ActionKind.ValueType(action.kind.number),
        state=action_pb2.ActionState.ValueType(action.state.number),
        signal_id=action.signal_id,
        customer_id=action.customer_id,
        title=action.title,
        reasons=action.reasons,
        touchpoint=action.touchpoint,
        need_path=action.need_path,
        owner=action.owner,
        result=action_pb2.ActionResult.ValueType(action.result.number),
        revision=revision,
    )
    if action.opened_at is not None:
        message.opened_at.FromDatetime(action.opened_at)
    if action.updated_at is not None:
        message.updated_at.FromDatetime(action.updated_at)
    return message


def _entry(entry: HistoryEntry) -> pb.HistoryEntry:
    message = pb.HistoryEntry(
        event_type=entry.event_type,
        event_id=entry.event_id,
        actor=entry.actor,
        summary=entry.summary,
        trace_id=entry.trace_id,
    )
    message.recorded_at.FromDatetime(entry.recorded_at)
    return message
