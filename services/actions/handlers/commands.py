"""Commands of people."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace

from opentelemetry.context import get_current

from recorrido.actions.v1.events import ActionKind
from services.actions.domain.action import Action, decide, stream_of, unknown
from services.actions.domain.commands import Change, LinkActions, OpenAction, ReopenAction, RescheduleAction
from services.actions.handlers.playbooks import PlaybookBook
from services.foundation.commit import GroupCommit
from services.foundation.errors import NotFoundError, RecorridoError, RefusedError
from services.foundation.events import encode, stream_name
from services.foundation.eventstore import EventStore
from services.foundation.execute import Executed, Executor, Intent


class ActionCommands:
    """Executes what people ask for; commands that come at the same time share one append."""

    def __init__(self, store: EventStore, executor: Executor[Action], book: PlaybookBook) -> None:
        self._store = store
        self._executor = executor
        self._book = book
        self._commit = GroupCommit(executor, "actions")

    async def execute(
        self, command: OpenAction | Change, *, metadata: Mapping[str, str], expected_revision: int | None = None
    ) -> Executed[Action]:
        """Execute `command`.

        Raises what `decide` refuses with, NotFoundError where it names what there is not, ConflictError, ExhaustedError
        and UnavailableError.
        """
        if isinstance(command, OpenAction) and command.improvement_id:
            await self._check_improvement(command.improvement_id)
        if isinstance(command, OpenAction) and command.target is not None and command.target.map_id:
            await self._check_map(command.target.map_id)
        if isinstance(command, RescheduleAction | ReopenAction):
            command = await self._with_service_level(command)
        (done,) = await self._execute([command], metadata, expected_revision)
        return done

    async def link(self, commands: Sequence[LinkActions], *, metadata: Mapping[str, str]) -> Sequence[Executed[Action]]:
        """Put recoveries under an improvement, all or none.

        Raises:
            NotFoundError: the improvement, or one of the recoveries, does not exist.
            RefusedError: NOT_AN_IMPROVEMENT, or ILLEGAL_TRANSITION: one is no recovery.
        """
        if commands[0].improvement_id:
            await self._check_improvement(commands[0].improvement_id)
        states = await asyncio.gather(*(self._executor.load(stream_of(command.action_id)) for command in commands))
        for command, folded in zip(commands, states, strict=True):
            decide(command, folded.state)
        return await self._execute(commands, metadata)

    async def _with_service_level(self, command: ReopenAction | RescheduleAction) -> ReopenAction | RescheduleAction:
        state = (await self._executor.load(stream_of(command.action_id))).state
        if not state.playbook_id:
            return command
        published = await self._book.get(state.playbook_id, state.playbook_version)
        in_force = published.in_force
        return replace(command, level=in_force.level(state.playbook_rule), time=in_force.time)

    async def _check_improvement(self, action_id: str) -> None:
        state = (await self._executor.load(stream_of(action_id))).state
        if state.kind is ActionKind.UNSPECIFIED:
            raise unknown(action_id)
        if state.kind is not ActionKind.IMPROVEMENT:
            raise RefusedError("NOT_AN_IMPROVEMENT", f"{action_id} is a recovery; only an improvement has recoveries")

    async def _check_map(self, map_id: str) -> None:
        # Of the store: a read model may not have heard of a map that was published a moment ago.
        if not await self._store.read(stream_name("journeymap", map_id), limit=1):
            raise NotFoundError("JOURNEY_MAP_UNKNOWN", f"there is no journey map {map_id!r}")

    async def _execute(
        self,
        commands: Sequence[OpenAction | Change],
        metadata: Mapping[str, str],
        expected_revision: int | None = None,
    ) -> list[Executed[Action]]:
        intents = [
            Intent(
                stream_of(command.action_id),
                command,
                metadata=metadata,
                context=get_current(),
                expected_revision=expected_revision,
            )
            for command in commands
        ]
        submission = self._commit.submit(intents, [len(encode(command.event())) for command in commands])
        outcomes = []
        for outcome in await submission.results():
            if isinstance(outcome, RecorridoError):
                raise outcome
            outcomes.append(outcome)
        return outcomes
