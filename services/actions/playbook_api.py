"""PlaybookService: protobuf to domain and back."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import datetime
from typing import Any

from recorrido.actions.v1 import action_pb2, playbook_pb2
from recorrido.actions.v1 import playbook_service_pb2 as pb
from recorrido.actions.v1 import playbook_service_pb2_grpc as pb_grpc
from recorrido.actions.v1.events import Playbook, Priority
from services.actions.api import moment
from services.actions.domain.dry_run import Opening, Summary
from services.actions.domain.playbooks import FIRST, PublishPlaybook
from services.actions.handlers.playbooks import PlaybookBook, Published
from services.actions.views.dry_runs import DryRuns
from services.foundation import rpc
from services.foundation.flow import until_set
from services.foundation.rules import Rules


class PlaybookServicer(pb_grpc.PlaybookServiceServicer):
    """`clock` tells the present moment, UTC; `stopping` is set when the server ends."""

    def __init__(
        self, book: PlaybookBook, dry_runs: DryRuns, clock: Callable[[], datetime], stopping: asyncio.Event
    ) -> None:
        self._book = book
        self._dry_runs = dry_runs
        self._clock = clock
        self._stopping = stopping

    async def PublishPlaybook(self, request: pb.PublishPlaybookRequest, _context: Any) -> pb.PublishPlaybookResponse:  # noqa: N802
        command = PublishPlaybook(
            playbook=_playbook(request.playbook),
            actor=request.actor,
            reason=request.reason,
            request_id=request.request_id,
            occurred_at=self._clock(),
        )
        expected = request.expected_version if request.HasField("expected_version") else None
        published, notices = await self._book.publish(command, metadata=rpc.metadata(), expected_version=expected)
        return pb.PublishPlaybookResponse(published=_published(published), notices=notices)

    async def GetPlaybook(self, request: pb.GetPlaybookRequest, _context: Any) -> pb.GetPlaybookResponse:  # noqa: N802
        published = await self._book.get(request.playbook_id, request.version)
        return pb.GetPlaybookResponse(published=_published(published))

    async def ListPlaybooks(self, _request: pb.ListPlaybooksRequest, _context: Any) -> pb.ListPlaybooksResponse:  # noqa: N802
        return pb.ListPlaybooksResponse(playbooks=map(_published, await self._book.all()))

    async def DryRunPlaybook(  # noqa: N802
        self, request: pb.DryRunPlaybookRequest, _context: Any
    ) -> AsyncIterator[pb.DryRunPlaybookResponse]:
        # `from` is a word of Python.
        draft = _playbook(request.playbook)
        book = await self._book.all()
        others = [] if request.alone else [published.in_force for published in book]
        found = self._dry_runs.run(draft, others, moment(request, "from"), moment(request, "to"), request.max_openings)
        async for each in until_set(found, self._stopping):
            match each:
                case Opening():
                    yield pb.DryRunPlaybookResponse(opening=_opening(each))
                case Summary():
                    told = (FIRST,) if not book else ()
                    yield pb.DryRunPlaybookResponse(summary=_summary(each, told))
                case (signals, at):
                    yield pb.DryRunPlaybookResponse(progress=pb.DryRunProgress(signals=signals, at=rpc.timestamp(at)))


def _playbook(message: playbook_pb2.Playbook) -> Playbook:
    rules = Rules()
    for name in ("recoveries", "improvements"):
        for index, rule in enumerate(getattr(message, name)):
            rules.known(f"playbook.{name}[{index}].priority", Priority, rule.priority)
    rules.enforce()
    return Playbook.from_proto(message)


def _published(published: Published) -> pb.PublishedPlaybook:
    return pb.PublishedPlaybook(
        playbook=published.playbook.to_proto(),
        version=published.in_force.version,
        actor=published.actor,
        reason=published.reason,
        published_at=rpc.timestamp(published.published_at),
    )


def _opening(opening: Opening) -> pb.DryRunOpening:
    event = opening.event
    return pb.DryRunOpening(
        kind=action_pb2.ActionKind.ValueType(event.kind.number),
        playbook_rule=event.playbook_rule,
        signal_id=opening.signal.signal_id,
        customer_id=event.customer_id,
        title=event.title,
        reasons=event.reasons,
        priority=action_pb2.Priority.ValueType(event.priority.number),
        owner=event.owner,
        touchpoint=event.touchpoint,
        need_path=event.need_path,
        customers=opening.customers,
        opened_at=rpc.timestamp(event.occurred_at),
        accept_by=rpc.timestamp(event.accept_by),
        due_at=rpc.timestamp(event.due_at),
    )


def _summary(summary: Summary, notices: Sequence[str]) -> pb.DryRunSummary:
    hour, count = summary.busiest_hour()
    return pb.DryRunSummary(
        signals=summary.signals,
        unmatched=summary.unmatched,
        recoveries=summary.recoveries,
        improvements=summary.improvements,
        cooled_down=summary.cooled_down,
        refused_by_guard=summary.refused_by_guard,
        by_others=summary.by_others,
        taken_by_others=summary.taken_by_others,
        notices=notices,
        busiest_hour=rpc.timestamp(hour),
        busiest_count=count,
        rules=[
            pb.RuleCount(playbook_rule=rule, matched=matched, opened=summary.opened[rule])
            for rule, matched in sorted(summary.matched.items())
        ],
    )
