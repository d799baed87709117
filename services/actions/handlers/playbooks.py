"""Publishing playbooks, and knowing which were in force when."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import msgspec
import structlog

from recorrido.actions.v1.events import Playbook, PlaybookPublished
from services.actions.domain.playbooks import ID, InForce, Playbooks, PublishPlaybook, notices, playbook_stream
from services.foundation.errors import ConflictError, NotFoundError
from services.foundation.events import Recorded, Registry
from services.foundation.eventstore import EventStore
from services.foundation.execute import Executor, Intent

LOG = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Published:
    """A version of a playbook, and its place in the history."""

    in_force: InForce
    actor: str
    reason: str
    published_at: datetime
    position: int

    @property
    def playbook(self) -> Playbook:
        return self.in_force.playbook


class PlaybookBook:
    """Every version of every playbook, read from the store as far as somebody needs to know them."""

    def __init__(self, store: EventStore) -> None:
        self._store = store
        self._executor = Executor(store, Playbooks())
        self._registry = Registry(Playbooks.types)
        self._versions: dict[str, list[Published]] = {}
        #: How far the history was read.
        self._position = -1
        self._reading = asyncio.Lock()

    async def publish(
        self, command: PublishPlaybook, *, metadata: Mapping[str, str], expected_version: int | None = None
    ) -> tuple[Published, Sequence[str]]:
        """Publish a new version, where it differs.

        Returns:
            The version that the command came to, and what whoever publishes it should know.

        Raises:
            DiffersError: the same request_id published another playbook.
            ConflictError: `expected_version` is not the present one.
        """
        stream = playbook_stream(command.playbook.playbook_id)
        state = (await self._executor.load(stream)).state
        done = state.requests.get(command.request_id)
        if done is None and expected_version is not None and expected_version != state.version:
            raise ConflictError({stream: state.version - 1})
        before = [published.in_force for published in await self.all()]
        # Versions are the events of their stream, so the one that was expected tells the revision.
        revision = None if expected_version is None else expected_version - 1
        executed = await self._executor.execute(Intent(stream, command, metadata, expected_revision=revision))
        version = executed.state.requests.get(command.request_id, (None, executed.state.version))[1]
        published = await self.get(command.playbook.playbook_id, version)
        return published, notices(before, published.in_force) if executed.events else ()

    async def get(self, playbook_id: str, version: int = 0) -> Published:
        """Return a version of a playbook (0: the present one). Raises NotFoundError, UnavailableError."""
        await self.read_to(await self._store.head())
        versions = self._versions.get(playbook_id) if ID.fullmatch(playbook_id) else None
        if not versions:
            raise NotFoundError("PLAYBOOK_UNKNOWN", f"there is no playbook {playbook_id!r}")
        found = next((each for each in versions if each.in_force.version == version), None) if version else versions[-1]
        if found is None:
            latest = versions[-1].in_force.version
            raise NotFoundError("PLAYBOOK_VERSION_UNKNOWN", f"{playbook_id!r} has versions 1 to {latest}")
        return found

    async def all(self) -> Sequence[Published]:
        """Return every playbook in its present version, by id. Raises UnavailableError."""
        await self.read_to(await self._store.head())
        return [versions[-1] for _, versions in sorted(self._versions.items())]

    async def read_to(self, position: int) -> None:
        """Know every version up to a position of the history. Raises UnavailableError."""
        async with self._reading:
            if position <= self._position:
                return
            start = self._position if self._position >= 0 else None
            async for recorded in self._store.read_all(start, self._registry.type_names):
                if recorded.position <= self._position:
                    continue
                try:
                    self._add(recorded)
                except (msgspec.MsgspecError, LookupError, ValueError, NotImplementedError, OSError) as error:
                    # Somebody wrote what is no playbook under its name, or its calendar is not to be had any more (a
                    # time zone's name becomes that of a file). The others go on.
                    LOG.error("playbook passed over", event_id=str(recorded.event_id), error=repr(error))  # noqa: TRY400
                self._position = recorded.position
            self._position = max(self._position, position)

    def _add(self, recorded: Recorded) -> None:
        event: PlaybookPublished = self._registry.decode(recorded)
        if event.playbook is None or not event.playbook.playbook_id:
            raise ValueError("a playbook without an id")
        in_force = InForce.of(event.playbook, event.version)
        published = Published(in_force, event.actor, event.reason, recorded.recorded_at, recorded.position)
        self._versions.setdefault(published.playbook.playbook_id, []).append(published)

    def in_force(self, position: int) -> Sequence[InForce]:
        """Return the playbooks in force for what was recorded at `position`, switched off or not.

        Only after `read_to`.
        """
        found = []
        for versions in self._versions.values():
            before = [published for published in versions if published.position < position]
            if before:
                found.append(before[-1].in_force)
        return found

    def version(self, playbook_id: str, version: int) -> InForce | None:
        """Return a version that somebody names; None where it is not known. Only after `read_to`."""
        versions = (published.in_force for published in self._versions.get(playbook_id, []))
        return next((each for each in versions if each.version == version), None)
