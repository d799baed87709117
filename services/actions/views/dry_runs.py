"""Drafts of playbooks, tried on the history."""

from collections.abc import AsyncGenerator, Sequence
from datetime import datetime

import msgspec

from recorrido.actions.v1.events import Playbook
from recorrido.journey.v1.events import SignalRaised
from services.actions.domain.dry_run import DryRun, Opening, Summary
from services.actions.domain.playbooks import InForce, check
from services.foundation.errors import InvalidError
from services.foundation.events import Registry
from services.foundation.eventstore import EventStore
from services.foundation.rules import Rules

#: Signals between two reports of how far it is.
PROGRESS_EVERY = 1_000
MAX_OPENINGS = 10_000
DEFAULT_OPENINGS = 100

_REGISTRY = Registry((SignalRaised,))

#: How many signals were considered, and when the last of them was recorded.
Progress = tuple[int, datetime]


class DryRuns:
    """Reads the signals of the store and records nothing."""

    def __init__(self, store: EventStore) -> None:
        self._store = store

    async def run(
        self,
        draft: Playbook,
        others: Sequence[InForce],
        start: datetime | None,
        end: datetime | None,
        max_openings: int,
    ) -> AsyncGenerator[Opening | Progress | Summary, None]:
        """Yield what the draft would have opened, at most `max_openings`, how far it is, and at last the summary.

        `others` are the playbooks beside it, each as if it had been in force from the beginning.

        Raises:
            InvalidError: names every problem of the draft.
            UnavailableError: the store does not answer.
        """
        rules = Rules()
        check(rules, draft)
        rules.require(0 <= max_openings <= MAX_OPENINGS, "max_openings", f"between 0 and {MAX_OPENINGS:,}")
        rules.require(start is None or end is None or start <= end, "to", "not before from")
        rules.enforce()
        dry_run, shown = DryRun(InForce.of(draft, 0), others), 0
        async for recorded in self._store.read_all(None, _REGISTRY.type_names):
            at = recorded.recorded_at
            if (start is not None and at < start) or (end is not None and at > end):
                continue
            try:
                for opening in dry_run.consider(_REGISTRY.decode(recorded), at):
                    if shown < (max_openings or DEFAULT_OPENINGS):
                        shown += 1
                        yield opening
            except (InvalidError, msgspec.MsgspecError):
                # Nobody's signal, or none of ours: in earnest it becomes a dead letter.
                dry_run.summary.unmatched += 1
            if dry_run.summary.signals % PROGRESS_EVERY == 0:
                yield dry_run.summary.signals, at
        yield dry_run.summary
