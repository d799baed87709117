"""ActionsService: protobuf to domain and back."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from datetime import datetime
from types import MappingProxyType
from typing import Any

from recorrido.actions.v1 import action_pb2
from recorrido.actions.v1 import actions_service_pb2 as pb
from recorrido.actions.v1 import actions_service_pb2_grpc as pb_grpc
from recorrido.actions.v1.events import (
    ActionKind,
    ActionResult,
    ActionState,
    ContactChannel,
    Impact,
    Priority,
    RemedyKind,
    Target,
)
from services.actions.domain.action import Action, allowed
from services.actions.domain.commands import (
    AcceptAction,
    AssignAction,
    Change,
    CommentAction,
    CompleteAction,
    DeclineAction,
    LinkActions,
    OfferRemedy,
    OpenAction,
    PrioritizeAction,
    RecordContact,
    ReopenAction,
    RescheduleAction,
    StartAction,
    VerifyAction,
)
from services.actions.handlers.commands import ActionCommands
from services.actions.views.history import Histories, HistoryEntry
from services.actions.views.impact import ImpactQuery, Impacts
from services.actions.views.naming import TouchpointNames
from services.actions.views.queries import DEFAULT_PAGE, ActionQueries, ActionQuery, BoardLine, Order
from services.actions.views.watching import ActionChange, Watch, Watchers
from services.foundation import rpc
from services.foundation.errors import InvalidError, RecorridoError, Violation
from services.foundation.flow import until_set
from services.foundation.rules import EnumT, Rules

MAX_LINKS = 500


class ActionsServicer(pb_grpc.ActionsServiceServicer):
    """`clock` tells the present moment, UTC; `stopping` is set when the server ends."""

    def __init__(
        self,
        *,
        commands: ActionCommands,
        queries: ActionQueries,
        histories: Histories,
        watchers: Watchers,
        impacts: Impacts,
        names: TouchpointNames,
        clock: Callable[[], datetime],
        stopping: asyncio.Event,
    ) -> None:
        self._commands = commands
        self._queries = queries
        self._histories = histories
        self._watchers = watchers
        self._impacts = impacts
        self._names = names
        self._clock = clock
        self._stopping = stopping

    # -- commands --------------------------------------------------------------------------------------------------

    async def OpenAction(self, request: pb.OpenActionRequest, _context: Any) -> pb.OpenActionResponse:  # noqa: N802
        command = OpenAction(
            kind=ActionKind.from_number(request.kind),
            customer_id=request.customer_id,
            title=request.title,
            reasons=tuple(request.reasons),
            touchpoint=request.touchpoint,
            need_path=request.need_path,
            priority=_given(Priority, request.priority, "priority") or Priority.UNSPECIFIED,
            owner=request.owner,
            due_at=moment(request, "due_at"),
            improvement_id=request.improvement_id,
            target=Target.from_proto(request.target) if request.HasField("target") else None,
            actor=request.actor,
            request_id=request.request_id,
            occurred_at=self._clock(),
        )
        done = await self._commands.execute(command, metadata=rpc.metadata())
        return pb.OpenActionResponse(action=_action(done.state, done.revision))

    async def AcceptAction(self, request: pb.AcceptActionRequest, _context: Any) -> pb.AcceptActionResponse:  # noqa: N802
        done = await self._change(AcceptAction, request, owner=request.owner, reason=request.reason)
        return pb.AcceptActionResponse(action=done)

    async def DeclineAction(self, request: pb.DeclineActionRequest, _context: Any) -> pb.DeclineActionResponse:  # noqa: N802
        return pb.DeclineActionResponse(action=await self._change(DeclineAction, request, reason=request.reason))

    async def AssignAction(self, request: pb.AssignActionRequest, _context: Any) -> pb.AssignActionResponse:  # noqa: N802
        done = await self._change(AssignAction, request, owner=request.owner, reason=request.reason)
        return pb.AssignActionResponse(action=done)

    async def PrioritizeAction(  # noqa: N802
        self, request: pb.PrioritizeActionRequest, _context: Any
    ) -> pb.PrioritizeActionResponse:
        priority = Priority.from_number(request.priority)
        done = await self._change(PrioritizeAction, request, priority=priority, reason=request.reason)
        return pb.PrioritizeActionResponse(action=done)

    async def RescheduleAction(  # noqa: N802
        self, request: pb.RescheduleActionRequest, _context: Any
    ) -> pb.RescheduleActionResponse:
        due_at = moment(request, "due_at")
        done = await self._change(RescheduleAction, request, reason=request.reason, due_at=due_at)
        return pb.RescheduleActionResponse(action=done)

    async def StartAction(self, request: pb.StartActionRequest, _context: Any) -> pb.StartActionResponse:  # noqa: N802
        return pb.StartActionResponse(action=await self._change(StartAction, request, reason=request.reason))

    async def RecordContact(self, request: pb.RecordContactRequest, _context: Any) -> pb.RecordContactResponse:  # noqa: N802
        channel = ContactChannel.from_number(request.channel)
        done = await self._change(RecordContact, request, channel=channel, reached=request.reached, note=request.note)
        return pb.RecordContactResponse(action=done)

    async def OfferRemedy(self, request: pb.OfferRemedyRequest, _context: Any) -> pb.OfferRemedyResponse:  # noqa: N802
        remedy = RemedyKind.from_number(request.remedy)
        return pb.OfferRemedyResponse(action=await self._change(OfferRemedy, request, remedy=remedy, note=request.note))

    async def CompleteAction(self, request: pb.CompleteActionRequest, _context: Any) -> pb.CompleteActionResponse:  # noqa: N802
        result = ActionResult.from_number(request.result)
        done = await self._change(CompleteAction, request, result=result, note=request.note)
        return pb.CompleteActionResponse(action=done)

    async def VerifyAction(self, request: pb.VerifyActionRequest, _context: Any) -> pb.VerifyActionResponse:  # noqa: N802
        despite = request.despite_impact
        impact = await self._impact(request.action_id, despite=despite)
        done = await self._change(VerifyAction, request, reason=request.reason, impact=impact, despite_impact=despite)
        return pb.VerifyActionResponse(action=done)

    async def ReopenAction(self, request: pb.ReopenActionRequest, _context: Any) -> pb.ReopenActionResponse:  # noqa: N802
        due_at = moment(request, "due_at")
        done = await self._change(ReopenAction, request, reason=request.reason, due_at=due_at)
        return pb.ReopenActionResponse(action=done)

    async def CommentAction(self, request: pb.CommentActionRequest, _context: Any) -> pb.CommentActionResponse:  # noqa: N802
        return pb.CommentActionResponse(action=await self._change(CommentAction, request, text=request.text))

    async def LinkActions(self, request: pb.LinkActionsRequest, _context: Any) -> pb.LinkActionsResponse:  # noqa: N802
        ids = list(dict.fromkeys(request.action_ids))
        if not 1 <= len(ids) <= MAX_LINKS:
            raise InvalidError([Violation("action_ids", f"between 1 and {MAX_LINKS}")])
        now = self._clock()
        commands = [
            LinkActions(
                action_id=action_id,
                improvement_id=request.improvement_id,
                actor=request.actor,
                reason=request.reason,
                request_id=request.request_id,
                occurred_at=now,
            )
            for action_id in ids
        ]
        done = await self._commands.link(commands, metadata=rpc.metadata())
        return pb.LinkActionsResponse(actions=[_action(each.state, each.revision) for each in done])

    async def _impact(self, action_id: str, *, despite: bool) -> Impact | None:
        """Return what is measured now; None where there is nothing to measure, or nobody to ask.

        Raises:
            NotFoundError: there is no such map as its target names: not `despite` that.
        """
        try:
            return await self._impacts.get(ImpactQuery(action_id=action_id), self._clock())
        except RecorridoError as error:
            if error.reason == "JOURNEY_MAP_UNKNOWN" and not despite:
                raise
            # The command itself tells what is wrong with it.
            return None

    async def _change(self, command: type[Change], request: Any, **fields: Any) -> pb.Action:
        done = await self._commands.execute(
            command(
                action_id=request.action_id,
                actor=request.actor,
                request_id=request.request_id,
                occurred_at=self._clock(),
                **fields,
            ),
            metadata=rpc.metadata(),
            expected_revision=request.expected_revision if request.HasField("expected_revision") else None,
        )
        return _action(done.state, done.revision)

    # -- questions -------------------------------------------------------------------------------------------------

    async def GetAction(self, request: pb.GetActionRequest, _context: Any) -> pb.GetActionResponse:  # noqa: N802
        history = await self._histories.get(request.action_id)
        names = await self._names.of([history.action.state.touchpoint])
        return pb.GetActionResponse(
            action=_action(history.action.state, history.action.revision, names),
            history=[_entry(entry) for entry in history.entries],
        )

    async def ListActions(self, request: pb.ListActionsRequest, _context: Any) -> pb.ListActionsResponse:  # noqa: N802
        query = ActionQuery(
            state=_given(ActionState, request.state, "state"),
            kind=_given(ActionKind, request.kind, "kind"),
            customer_id=request.customer_id,
            owner=request.owner,
            touchpoint=request.touchpoint,
            need_path=request.need_path,
            priority=_given(Priority, request.priority, "priority"),
            improvement_id=request.improvement_id,
            playbook_id=request.playbook_id,
            overdue=request.overdue if request.HasField("overdue") else None,
            order=_order(request.order),
            page_size=request.page_size or DEFAULT_PAGE,
            page_token=request.page_token,
        )
        page = await self._queries.list(query)
        names = await self._names.of(each.state.touchpoint for each in page.actions)
        return pb.ListActionsResponse(
            actions=[_action(folded.state, folded.revision, names) for folded in page.actions],
            next_page_token=page.next_page_token,
            total=page.total,
            more_than_total=page.more,
        )

    async def GetBoard(self, request: pb.GetBoardRequest, _context: Any) -> pb.GetBoardResponse:  # noqa: N802
        board = await self._queries.board(_given(ActionKind, request.kind, "kind"), self._clock())
        names = {"touchpoint": await self._names.of(line.key for line in board.lines["touchpoint"])}
        lines = {
            f"by_{dimension}": [_line(line, names.get(dimension, {})) for line in found]
            for dimension, found in board.lines.items()
        }
        return pb.GetBoardResponse(**lines, as_of=rpc.timestamp(board.as_of))

    async def WatchActions(  # noqa: N802
        self, request: pb.WatchActionsRequest, _context: Any
    ) -> AsyncIterator[pb.WatchActionsResponse]:
        watch = Watch(
            action_id=request.action_id,
            kind=_given(ActionKind, request.kind, "kind"),
            customer_id=request.customer_id,
            owner=request.owner,
            touchpoint=request.touchpoint,
            improvement_id=request.improvement_id,
            after_position=request.after_position,
        )
        async for seen in until_set(self._watchers.watch(watch), self._stopping):
            yield pb.WatchActionsResponse(
                changes=[_change(each) for each in seen.changes], position=seen.position, store_away=seen.store_away
            )


def _given(enum: type[EnumT], number: int, field: str) -> EnumT | None:
    """Return a value, None where none is given; one of a newer contract must not silently mean none."""
    rules = Rules()
    value = rules.known(field, enum, number)
    rules.enforce()
    return value if number else None


def _order(number: int) -> Order:
    rules = Rules()
    order = rules.choice("order", Order, number)
    rules.enforce()
    return order or Order.NEWEST


def moment(request: Any, field: str) -> datetime | None:
    """Return a moment that may be given, UTC."""
    rules = Rules()
    found = rules.time(request, field)
    rules.enforce()
    return found


def _action(action: Action, revision: int, names: Mapping[str, str] = MappingProxyType({})) -> pb.Action:
    return pb.Action(
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
        priority=action_pb2.Priority.ValueType(action.priority.number),
        overdue=bool(action.late),
        escalated_to=action.escalated_to,
        improvement_id=action.improvement_id,
        playbook_id=action.playbook_id,
        playbook_version=action.playbook_version,
        playbook_rule=action.playbook_rule,
        cause_id=action.cause_id,
        target=action.target.to_proto() if action.target else None,
        reopened=action.reopened,
        allowed=allowed(action.kind, action.state),
        opened_at=rpc.timestamp(action.opened_at),
        updated_at=rpc.timestamp(action.updated_at),
        closed_at=rpc.timestamp(action.closed_at),
        accept_by=rpc.timestamp(action.accept_by),
        due_at=rpc.timestamp(action.due_at),
        touchpoint_name=names.get(action.touchpoint, ""),
    )


def _entry(entry: HistoryEntry) -> pb.HistoryEntry:
    return pb.HistoryEntry(
        event_type=entry.event_type,
        event_id=entry.event_id,
        actor=entry.actor,
        summary=entry.summary,
        trace_id=entry.trace_id,
        reason=entry.reason,
        revision=entry.revision,
        recorded_at=rpc.timestamp(entry.recorded_at),
    )


def _change(change: ActionChange) -> pb.ActionChange:
    if change.message is None:
        change.message = pb.ActionChange(
            action=_action(change.action, change.entry.revision),
            change=_entry(change.entry),
            position=change.position,
        )
    message: pb.ActionChange = change.message
    return message


def _line(line: BoardLine, names: Mapping[str, str]) -> pb.BoardLine:
    return pb.BoardLine(
        key=line.key,
        kind=action_pb2.ActionKind.ValueType(line.kind.number),
        count=line.count,
        overdue=line.overdue,
        mean_age_s=line.mean_age_s,
        oldest_age_s=line.oldest_age_s,
        name=names.get(line.key, ""),
    )
