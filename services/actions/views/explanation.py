"""Why there is an action: from interactions and analyses through signal and playbook to it and what came of it.

Everything is read from the store when it is asked for. What cannot be found there any more was erased.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import Any

from recorrido.actions.v1.events import (
    ActionKind,
    ActionOpened,
    CauseConfirmed,
    CauseCounted,
    PlaybookPublished,
    SignalJoined,
)
from recorrido.inference.v1.events import Analysis, FeedbackAnalysisFailed, FeedbackAnalyzed
from recorrido.ingest.v1.events import Interaction, InteractionRecorded
from recorrido.journey.v1.events import Evidence, SignalRaised
from services.actions.domain.action import ActionDecider, stream_of, unknown
from services.actions.domain.rules import MAX_ID
from services.actions.views.history import entry
from services.actions.views.naming import TouchpointNames
from services.actions.views.queries import ActionQueries, ActionQuery
from services.foundation import telemetry
from services.foundation.events import CAUSATION_ID, CORRELATION_ID, Recorded, Registry, stream_name
from services.foundation.eventstore import EventStore
from services.foundation.rules import Rules

#: Signals of a cause, and recoveries of an improvement, that are shown.
MAX_SHOWN = 100
ERASED = "erased with the customer"

_REGISTRY = Registry(
    (
        *ActionDecider.types,
        CauseConfirmed,
        CauseCounted,
        PlaybookPublished,
        FeedbackAnalyzed,
        FeedbackAnalysisFailed,
        InteractionRecorded,
        SignalRaised,
    )
)


#: An event and its place.
_Known = tuple[Any, Recorded]


class Role(Enum):
    """What an event is to the action."""

    INTERACTION = 1
    ANALYSIS = 2
    SIGNAL = 3
    PLAYBOOK = 4
    CAUSE = 5
    OPENING = 6
    EFFECT = 7
    RECOVERY = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Explained:
    """One event. An erased one has no place, no time and no trace. `because_of` are ids of others."""

    event_id: str
    event_type: str
    role: Role
    summary: str
    stream: str = ""
    revision: int = -1
    position: int = -1
    recorded_at: datetime | None = None
    trace_id: str = ""
    correlation_id: str = ""
    details: Mapping[str, str] = field(default_factory=dict)
    because_of: Sequence[str] = ()
    erased: bool = False


@dataclass(frozen=True, slots=True)
class Explanation:
    """The events, causes first, each once; `left_out` counts the signals and recoveries that are not shown."""

    events: Sequence[Explained]
    left_out: int


class Explanations:
    """Explains single actions."""

    def __init__(self, store: EventStore, queries: ActionQueries, names: TouchpointNames) -> None:
        self._store = store
        self._queries = queries
        self._names = names

    async def get(self, action_id: str) -> Explanation:
        """Return the events behind an action and behind it.

        Raises:
            InvalidError: `action_id` is empty, too long or no text.
            NotFoundError: there is no such action, or it was erased with its customer.
            UnavailableError: the store, or of an improvement PostgreSQL, does not answer.
        """
        rules = Rules()
        rules.text("action_id", action_id, MAX_ID, required=True)
        rules.enforce()
        history = _known(await self._store.read(stream_of(action_id)))
        if not history or not isinstance(history[0][0], ActionOpened):
            raise unknown(action_id)
        opened, first = history[0]
        causes, counted, left_out = await self._cause(opened.cause_id, action_id)
        wanted = {opened.signal_id: first.metadata.get(CAUSATION_ID, "") if not opened.cause_id else ""}
        wanted |= dict.fromkeys(counted, "")
        joined = {event.signal_id for event, _ in history if isinstance(event, SignalJoined)}
        wanted |= dict.fromkeys(joined - wanted.keys(), "")
        wanted.pop("", None)
        answers = await asyncio.gather(*(self._signal(signal_id, known) for signal_id, known in wanted.items()))
        signals = dict(zip(wanted, (found[-1].event_id for found in answers), strict=True))
        playbook = await self._playbook(opened.playbook_id, opened.playbook_version)
        confirmed = [each.event_id for each in causes if each.event_type == CauseConfirmed.type_name]
        because = [*([signals[opened.signal_id]] if opened.signal_id in signals else []), *confirmed]
        because += [each.event_id for each in playbook]
        effects = [_effect(event, recorded, str(first.event_id), signals) for event, recorded in history[1:]]
        recoveries, more = await self._recoveries(action_id) if opened.kind is ActionKind.IMPROVEMENT else ((), 0)
        events = [
            *(each for found in answers for each in found),
            *playbook,
            *(_linked(each, signals) for each in causes),
            _explained(first, Role.OPENING, entry(opened, first).summary, because, _opening(opened)),
            *effects,
            *recoveries,
        ]
        return Explanation(_known_only(list({each.event_id: each for each in events}.values())), left_out + more)

    async def _cause(self, cause_id: str, action_id: str) -> tuple[Sequence[Explained], Sequence[str], int]:
        """Return the cause's events that are shown, the signals counted in them, and how many are left out."""
        confirmed, before, after, count = await self._counted(cause_id, action_id) if cause_id else (None, (), (), 0)
        if confirmed is None:
            return (), (), 0
        shown, events = [*before, *after], []
        for counted, recorded in shown:
            details = {"signal_id": counted.signal_id, "recovery_id": counted.recovery_id}
            events.append(_explained(recorded, Role.CAUSE, "counted towards the cause", (), details))
        event, recorded = confirmed
        because = [str(each.event_id) for _, each in before]
        one = "one signal was enough for the cause"
        text = f"{event.customers} customers had the cause" if event.customers > 1 else one
        events.append(_explained(recorded, Role.CAUSE, text, because, {"cause_id": cause_id}))
        return events, [counted.signal_id for counted, _ in shown], count - len(shown)

    async def _counted(
        self, cause_id: str, action_id: str
    ) -> tuple[_Known | None, Sequence[_Known], Sequence[_Known], int]:
        """Return what proposed an improvement, some of what was counted before and after it, and how much was in all.

        A cause that came back has an improvement each time: what was counted for another one is not behind this.
        """
        confirmed: _Known | None = None
        before, after, count = deque[_Known](maxlen=MAX_SHOWN), list[_Known](), 0
        async with contextlib.aclosing(self._store.read_through(stream_name("cause", cause_id))) as stream:
            async for recorded in stream:
                match event := _REGISTRY.read(recorded):
                    case CauseConfirmed() if confirmed is not None:
                        break
                    case CauseConfirmed(improvement_id=it) if it == action_id:
                        confirmed = event, recorded
                    case CauseConfirmed():
                        before.clear()
                        count = 0
                    case CauseCounted():
                        count += 1
                        if confirmed is None:
                            before.append((event, recorded))
                        elif len(before) + len(after) < MAX_SHOWN:
                            after.append((event, recorded))
        return confirmed, before, after, count

    async def _signal(self, signal_id: str, known_id: str) -> Sequence[Explained]:
        """Return the events behind a signal, and the signal as the last one."""
        stream = stream_name("signal", signal_id)
        found = [each for each in _known(await self._store.read(stream)) if isinstance(each[0], SignalRaised)]
        if not found:
            return (_erased(known_id or stream, SignalRaised.type_name, Role.SIGNAL),)
        signal, recorded = found[0]
        evidence = await asyncio.gather(*(self._evidence(each) for each in signal.evidence))
        where = f" at {await self._name(signal.touchpoint)}" if signal.touchpoint else ""
        summary = f"{signal.rule}{where}: {'; '.join(signal.reasons)}"
        details = {"rule": signal.rule, "rule_version": str(signal.rule_version), "signal_id": signal_id}
        details |= {"touchpoint": signal.touchpoint} if signal.touchpoint else {}
        because = [each.event_id for each in signal.evidence]
        return (*evidence, _explained(recorded, Role.SIGNAL, summary, because, details))

    async def _read(self, evidence: Evidence) -> Sequence[Recorded]:
        if evidence.stream:
            return await self._store.read(evidence.stream, after=evidence.revision - 1, limit=1)
        # A signal about everyone names no stream.
        if not evidence.position.isdecimal():
            return []
        return [each async for each in self._store.read_all(int(evidence.position), _REGISTRY.type_names, limit=1)]

    async def _evidence(self, evidence: Evidence) -> Explained:
        found = await self._read(evidence)
        said = evidence.event_type == InteractionRecorded.type_name
        role = Role.INTERACTION if said else Role.ANALYSIS
        event = _REGISTRY.read(found[0]) if found and str(found[0].event_id) == evidence.event_id else None
        if event is None:
            return _erased(evidence.event_id, evidence.event_type, role)
        if isinstance(event, InteractionRecorded):
            happened = event.interaction or Interaction()
            summary = _happened(happened, await self._name(happened.touchpoint))
            return _explained(found[0], role, summary, (), {"touchpoint": happened.touchpoint})
        words = event.analysis or Analysis() if isinstance(event, FeedbackAnalyzed) else Analysis()
        details = {name: getattr(words, name) for name in ("model", "model_version", "taxonomy_version")}
        return _explained(found[0], role, _understood(words), (event.interaction_event_id,), details)

    async def _name(self, touchpoint: str) -> str:
        """Return what a map calls a touchpoint, or what its source does; `details` have that, too."""
        return (await self._names.of([touchpoint])).get(touchpoint, touchpoint)

    async def _playbook(self, playbook_id: str, version: int) -> Sequence[Explained]:
        if not playbook_id:
            return ()
        for event, recorded in _known(await self._store.read(stream_name("playbook", playbook_id))):
            if isinstance(event, PlaybookPublished) and event.version == version:
                details = {"playbook_id": playbook_id, "playbook_version": str(version)}
                text = f"playbook {playbook_id}, version {version}, by {event.actor}"
                return (_explained(recorded, Role.PLAYBOOK, text, (), details),)
        return ()

    async def _recoveries(self, action_id: str) -> tuple[Sequence[Explained], int]:
        page = await self._queries.list(ActionQuery(improvement_id=action_id, page_size=MAX_SHOWN))
        ids = [each.state.action_id for each in page.actions]
        streams = await asyncio.gather(*(self._store.read(stream_of(each), limit=1) for each in ids))
        events = []
        for key, found in zip(ids, streams, strict=True):
            opened = _REGISTRY.read(found[0]) if found else None
            if isinstance(opened, ActionOpened):
                details = {"action_id": key}
                events.append(_explained(found[0], Role.RECOVERY, entry(opened, found[0]).summary, (), details))
            else:
                events.append(_erased(stream_of(key), ActionOpened.type_name, Role.RECOVERY))
        return events, page.total - len(ids)


def _known(stream: Sequence[Recorded]) -> list[tuple[Any, Recorded]]:
    return [(event, recorded) for recorded in stream if (event := _REGISTRY.read(recorded)) is not None]


def _explained(
    recorded: Recorded,
    role: Role,
    summary: str,
    because_of: Sequence[str] = (),
    details: Mapping[str, str] | None = None,
) -> Explained:
    return Explained(
        event_id=str(recorded.event_id),
        event_type=recorded.type_name,
        role=role,
        summary=summary,
        stream=recorded.stream,
        revision=recorded.revision,
        position=recorded.position,
        recorded_at=recorded.recorded_at,
        trace_id=telemetry.trace_id_of(recorded.metadata),
        correlation_id=recorded.metadata.get(CORRELATION_ID, ""),
        details={name: value for name, value in (details or {}).items() if value},
        because_of=tuple(because_of),
    )


def _erased(event_id: str, event_type: str, role: Role) -> Explained:
    return Explained(event_id=event_id, event_type=event_type, role=role, summary=ERASED, erased=True)


def _effect(event: Any, recorded: Recorded, opening: str, signals: Mapping[str, str]) -> Explained:
    told = entry(event, recorded)
    because = signals.get(event.signal_id, opening) if isinstance(event, SignalJoined) else opening
    return _explained(
        recorded, Role.EFFECT, f"{told.actor} {told.summary}", (because,), {"actor": told.actor, "reason": told.reason}
    )


def _linked(cause: Explained, signals: Mapping[str, str]) -> Explained:
    """Return an event of a cause with the event of its signal as what brought it about."""
    signal = signals.get(cause.details.get("signal_id", ""))
    if signal is None:
        return cause
    fields = {name: getattr(cause, name) for name in Explained.__slots__}
    return Explained(**{**fields, "because_of": (signal,)})


def _known_only(events: Sequence[Explained]) -> Sequence[Explained]:
    """Return the events without references to what is not among them."""
    ids = {each.event_id for each in events}
    kept = []
    for each in events:
        fields = {name: getattr(each, name) for name in Explained.__slots__}
        kept.append(Explained(**{**fields, "because_of": tuple(i for i in each.because_of if i in ids)}))
    return kept


def _opening(opened: ActionOpened) -> dict[str, str]:
    return {
        "action_id": opened.action_id,
        "actor": opened.actor,
        "customer_id": opened.customer_id,
        "playbook_rule": opened.playbook_rule,
        "reason": "; ".join(opened.reasons),
    }


def _happened(interaction: Interaction, place: str) -> str:
    said = [f"{rating.metric.name} {rating.value:g}" for rating in interaction.ratings]
    words = ["words"] if interaction.verbatim and interaction.verbatim.text else []
    what = ", ".join([*said, *words, *([] if said or words else ["a visit"])])
    who = interaction.customer.customer_id if interaction.customer else ""
    return f"{what} at {place} by {who}"


def _understood(words: Analysis) -> str:
    about = f" about {words.need_path}" if words.need_path else ""
    return f"{words.point.name.lower()}{about}, sentiment {words.sentiment_score:+.2f}"
