"""The command path: load the stream, fold it, decide, append at the expected revision, reply.

On a conflict it re-reads and decides again, a bounded number of times; then `ConflictError` (ABORTED).
"""

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar
from uuid import UUID

import msgspec
import structlog
from msgspec import Struct, field
from opentelemetry.context import Context

from services.foundation.errors import (
    ConflictError,
    ErasedError,
    OtherHistoryError,
    RecorridoError,
    RefusedError,
    UnavailableError,
)
from services.foundation.events import Event, Pending, Place, Recorded, Registry, derived_id
from services.foundation.eventstore import (
    EXISTS,
    NO_STREAM,
    PAGE,
    TOMBSTONED,
    EventStore,
    SameHistory,
    StreamAppend,
)
from services.foundation.outlines import Outlines

LOG = structlog.get_logger()
StateT = TypeVar("StateT")


class Command(Protocol):
    """An intention. `cause` names what brought it about; the ids of its events derive from it."""

    @property
    def cause(self) -> str: ...


class Decider(Protocol[StateT]):
    """The pure heart of a stream category. `evolve` returns a new state and never fails."""

    @property
    def types(self) -> Iterable[type[Event]]: ...
    def initial(self) -> StateT: ...
    def evolve(self, state: StateT, event: Any) -> StateT: ...
    def decide(self, command: Any, state: StateT) -> Sequence[Event]: ...


class Intent(Struct, frozen=True):
    """A command for a stream. `context` is the trace it belongs to (None: the current one).

    With `expected_revision` it is only meant for the stream as it was at that revision: against any other it comes to
    a ConflictError, unless it repeats what was done.

    `presumed_revision` is a revision up to which the stream holds nothing that concerns the command, as with a reaction
    to the very event of that revision: it need not be read to be decided about.

    `because` is the event that brought it about. Nothing is recorded because of an event that was erased meanwhile: it
    comes to ErasedError.
    """

    stream: str
    command: Command
    metadata: Mapping[str, str] = field(default_factory=dict)
    context: Context | None = None
    expected_revision: int | None = None
    presumed_revision: int | None = None
    because: Recorded | None = None


def event_id_of(intent: Intent, event: type[Event], index: int = 0) -> UUID:
    """Return the id of the event that a command brings about, or did: the `index`-th that it decides."""
    return derived_id(intent.stream, intent.command.cause, event.type_name, str(index))


class Executed(Struct, Generic[StateT], frozen=True):
    """What a command came to. `events` is empty when it repeated what was done; `error` when it was refused."""

    state: StateT
    revision: int
    events: Sequence[Pending] = ()
    error: RecorridoError | None = None


class Folded(Struct, Generic[StateT], frozen=True):
    """A stream's state as of `revision`; `last` is the event there, where it is known."""

    state: StateT
    revision: int
    last: UUID | None = None

    @property
    def events(self) -> int:
        """How many it was folded from, at most, and one for itself."""
        return self.revision + 2


class Executor(Generic[StateT]):
    """Executes commands of one decider.

    A command is first decided on what is known of its stream: the latest fold, kept while the folds in the cache hold
    no more than `cache_events` events in all, or that there is none. What comes to events the append proves, at the
    expected revision; what comes to nothing, or is refused, is decided again on the stream as it is read.

    Of streams whose fold had to go, `outlines` may tell that what they hold does not concern a command.
    """

    def __init__(
        self,
        store: EventStore,
        decider: Decider[StateT],
        *,
        attempts: int = 8,
        cache_events: int = 400_000,
        outlines: Outlines[StateT] | None = None,
    ) -> None:
        self._store = store
        self._decider = decider
        self._registry = Registry(decider.types)
        self._attempts = attempts
        self._cache_events = cache_events
        self._cached_events = 0
        self._cache: OrderedDict[str, Folded[StateT]] = OrderedDict()
        self._outlines = outlines
        #: The last event that the store is known to hold.
        self._last: Place | None = None
        self._same = SameHistory(store.check)

    async def execute(self, intent: Intent) -> Executed[StateT]:
        """Execute one command; raise the error it was refused with."""
        (result,) = await self.execute_all([intent])
        if result.error is not None:
            raise result.error
        return result

    async def load(self, stream: str) -> Folded[StateT]:
        """Return the stream's present state and revision (NO_STREAM where there is none). Raises UnavailableError."""
        await self._make_sure()
        known = self._known(stream)
        while True:
            # With the last event that is known, to see that it is still there: a stream may be deleted and begin anew,
            # and a store may be restored from a backup, and have another event there since.
            overlap = known.revision != NO_STREAM
            news = await self._store.read(stream, after=known.revision - overlap, limit=PAGE)
            if overlap and (not news or (news[0].revision, news[0].event_id) != (known.revision, known.last)):
                self.forget(stream)
                known = Folded(self._decider.initial(), NO_STREAM)
                continue
            # Kept page by page: however long the stream, a call that fails half way has not read for nothing.
            known = self._keep(stream, self._fold(known, news[overlap:]))
            if len(news) < PAGE:
                return known

    async def execute_all(self, intents: Sequence[Intent]) -> list[Executed[StateT]]:
        """Execute many commands, over many streams, in one atomic append.

        A refused command has its error in its result and hinders no other: RefusedError (STREAM_CLOSED) where the
        stream was closed for good, ConflictError where others kept changing it for `attempts` rounds.

        Raises:
            UnavailableError: the store does not answer.
        """
        # Events of customers who asked to be forgotten may still be under way when their streams are gone.
        erased: set[str] = set()
        #: Streams that hold causes and went on behind them, and whose causes were looked for.
        moved: set[str] = set()
        presumed = self._presumed(intents)
        await self._make_sure()
        # What this call knows is its own: the cache may forget any of it before the append.
        known = {i.stream: presumed.get(i.stream) or self._known(i.stream) for i in intents}
        outlined, read = self._outlined(intents, presumed)
        known.update(outlined)
        known.update(zip(read, await asyncio.gather(*map(self.load, read)), strict=True))
        #: Where what is known of a stream begins, for those of which only what is behind an outline is known.
        since = {stream: folded.revision for stream, folded in outlined.items()}
        refused: dict[str, RecorridoError] = {}
        rounds, bound = 0, -1
        while True:
            results, appends = self._decide(intents, known, refused, erased)
            proven = {append.stream for append in appends}
            stale = known.keys() - proven - read - refused.keys()
            if not stale and not appends:
                return results
            causes = _causes(intents, results, proven)
            if several := {stream for stream, found in causes.items() if len(found) > 1} - moved:
                erased |= await self._erased(i for i in intents if i.because and i.because.stream in several)
                moved |= several
                continue
            if not stale:
                # A store acknowledges what it was given before, as a whole and with its old position. Of a stream
                # that was not read, that would tell a caller that something was recorded now which was there before.
                if bound < 0 and not proven <= read:
                    bound = await self._store.head()
                try:
                    position = await self._store.append([*appends, *_conditions(causes, moved)])
                except ConflictError as conflict:
                    rounds += 1
                    erased |= await self._erased(i for i in intents if _concerned(i, conflict))
                    moved |= conflict.streams.keys() & causes.keys()
                    refused |= _refusals(conflict.streams, give_up=rounds % self._attempts == 0)
                    stale = (conflict.streams.keys() & known.keys()) - refused.keys()
                else:
                    if position > bound:
                        self._seen(_place_of(appends[-1], position))
                        self._remember(results, intents, presumed.keys() - read, since)
                        return results
                    stale = proven
            states = await asyncio.gather(*(self._read_on(stream, known[stream], since) for stream in stale))
            known.update(zip(stale, states, strict=True))
            read |= stale

    def _decide(
        self,
        intents: Sequence[Intent],
        known: Mapping[str, Folded[StateT]],
        refused: Mapping[str, RecorridoError],
        erased: Container[str],
    ) -> tuple[list[Executed[StateT]], list[StreamAppend]]:
        folded = dict(known)
        pending: dict[str, list[Pending]] = {}
        results = []
        for intent in intents:
            at = folded[intent.stream]
            if intent.because is not None and str(intent.because.event_id) in erased:
                results.append(Executed(at.state, at.revision, error=ErasedError(str(intent.because.event_id))))
                continue
            if intent.stream in refused:
                results.append(Executed(at.state, at.revision, error=refused[intent.stream]))
                continue
            try:
                decided = self._decide_one(intent, at)
            except RecorridoError as error:
                results.append(Executed(at.state, at.revision, error=error))
                continue
            news = [
                Pending(event, event_id_of(intent, type(event), index), intent.metadata, intent.context)
                for index, event in enumerate(decided)
            ]
            state = at.state
            for event in decided:
                state = self._decider.evolve(state, event)
            folded[intent.stream] = Folded(state, at.revision + len(news))
            if news:
                pending.setdefault(intent.stream, []).extend(news)
            results.append(Executed(state, at.revision + len(news), news))
        appends = [
            StreamAppend(stream, folded[stream].revision - len(events), events) for stream, events in pending.items()
        ]
        return results, appends

    def _decide_one(self, intent: Intent, at: Folded[StateT]) -> Sequence[Event]:
        meant = intent.expected_revision in (None, at.revision)
        try:
            decided = self._decider.decide(intent.command, at.state)
        except RefusedError as error:
            if meant:
                raise
            raise ConflictError({intent.stream: at.revision}) from error
        if decided and not meant:
            raise ConflictError({intent.stream: at.revision})
        return decided

    async def _erased(self, intents: Iterable[Intent]) -> set[str]:
        """Return the ids of the events behind `intents` that are not there any more. Raises UnavailableError."""
        causes = {i.because.event_id: i.because for i in intents if i.because is not None}
        try:
            held = await asyncio.gather(*map(self._store.holds, causes.values()))
        except OtherHistoryError as error:
            # They are not erased: the store was replaced since they were heard of, and has to be put right.
            raise UnavailableError("event store", error.message) from error
        return {str(event_id) for event_id, is_held in zip(causes, held, strict=True) if not is_held}

    def _known(self, stream: str) -> Folded[StateT]:
        return self._cache.get(stream) or Folded(self._decider.initial(), NO_STREAM)

    def _outlined(
        self, intents: Sequence[Intent], presumed: Container[str]
    ) -> tuple[dict[str, Folded[StateT]], set[str]]:
        """Return where the streams of outlines that do not concern `intents` end, and the streams of those that may."""
        ends: dict[str, Folded[StateT]] = {}
        concerned: set[str] = set()
        if self._outlines is None:
            return ends, concerned
        for intent in intents:
            stream = intent.stream
            if stream in presumed or stream in self._cache or (end := self._outlines.end(stream)) is None:
                continue
            if self._outlines.concern(stream, intent.command):
                concerned.add(stream)
            ends[stream] = Folded(self._decider.initial(), *end)
        return {stream: end for stream, end in ends.items() if stream not in concerned}, concerned

    async def _read_on(self, stream: str, known: Folded[StateT], since: dict[str, int]) -> Folded[StateT]:
        """Return the stream's present state; of one in `since` what is behind that, while its outline holds true."""
        if stream in since:
            news = await self._store.read(stream, after=known.revision - 1, limit=PAGE)
            if news and (news[0].revision, news[0].event_id) == (known.revision, known.last) and len(news) < PAGE:
                return self._fold(known, news[1:])
            self.forget(stream)
            del since[stream]
        return await self.load(stream)

    def _fold(self, known: Folded[StateT], news: Sequence[Recorded]) -> Folded[StateT]:
        state = known.state
        for recorded in news:
            if recorded.type_name in self._registry:
                try:
                    event = self._registry.decode(recorded)
                except msgspec.MsgspecError as error:
                    # Somebody wrote what is no event of ours under its name. It stays in the history, and means
                    # nothing.
                    event_id = str(recorded.event_id)
                    LOG.error("poison event passed over", event_id=event_id, error=str(error))  # noqa: TRY400 - the text says it all
                else:
                    state = self._decider.evolve(state, event)
        if not news:
            return known
        self._seen(news[-1].place)
        return Folded(state, news[-1].revision, news[-1].event_id)

    def _seen(self, place: Place) -> None:
        if self._last is None or self._last.position < place.position:
            self._last = place

    def _presumed(self, intents: Sequence[Intent]) -> dict[str, Folded[StateT]]:
        # Two commands for one stream were presumed at different revisions; only the stream itself can reconcile them.
        count = Counter(intent.stream for intent in intents)
        return {
            intent.stream: Folded(self._decider.initial(), intent.presumed_revision)
            for intent in intents
            if intent.presumed_revision is not None and count[intent.stream] == 1
        }

    def _remember(
        self,
        results: Sequence[Executed[StateT]],
        intents: Sequence[Intent],
        presumed: Container[str],
        since: Mapping[str, int],
    ) -> None:
        # Of each stream the last result, which has all before it.
        done = {i.stream: result for i, result in zip(intents, results, strict=True) if result.events}
        for stream, result in done.items():
            last = result.events[-1].event_id
            if stream in since and self._outlines is not None:
                self._outlines.extend(stream, since[stream], result.state, result.revision, last)
            # A presumed state knows only what concerns its own command.
            elif stream not in presumed:
                self._keep(stream, Folded(result.state, result.revision, last))

    def _keep(self, stream: str, folded: Folded[StateT]) -> Folded[StateT]:
        """Return the newer of what is given and what is cached: a slow read must not undo a quicker one."""
        cached = self._cache.get(stream)
        newest = cached if cached is not None and cached.revision > folded.revision else folded
        self.forget(stream)
        self._cache[stream] = newest
        self._cached_events += newest.events
        # A state may be as large as its history. The last one stays, however large: it is likely to be asked for again.
        while self._cached_events > self._cache_events and len(self._cache) > 1:
            oldest, went = next(iter(self._cache.items()))
            self.forget(oldest)
            if self._outlines is not None and went.last is not None:
                self._outlines.keep(oldest, went.state, went.revision, went.last)
        return newest

    async def _make_sure(self) -> None:
        """Forget everything where the store was replaced, as by an older backup: it has a history of its own.

        Its streams may come to the revisions that they had before, by other events: no append at them would notice. So
        this comes before whatever could tell something newer of the other store, and hide that it is another one.

        Raises:
            UnavailableError: the store does not answer.
        """
        try:
            await self._same.check(self._last)
        except OtherHistoryError:
            # Of all who hear it at once the first forgets, and leaves nothing to forget.
            if self._last is not None:
                self._forget_all()

    def _forget_all(self) -> None:
        LOG.warning("the event store was replaced: what is remembered of its streams is forgotten", last=self._last)
        for stream in list(self._cache):
            self.forget(stream)
        if self._outlines is not None:
            self._outlines.clear()
        self._last = None

    def forget(self, stream: str) -> None:
        """Forget what is known of a stream, as when some of it was taken out: it is read when it is next asked for."""
        if (forgotten := self._cache.pop(stream, None)) is not None:
            self._cached_events -= forgotten.events
        if self._outlines is not None:
            self._outlines.forget(stream)


def _place_of(append: StreamAppend, position: int) -> Place:
    """Return the place of the last event of an append, which the store acknowledged with `position`."""
    return Place(position, append.events[-1].event_id, append.stream, append.expected + len(append.events))


def _causes(intents: Sequence[Intent], results: Sequence[Executed[Any]], proven: Container[str]) -> dict[str, set[int]]:
    """Return the streams that hold what brings the appends about, and the revisions where it stands."""
    causes: dict[str, set[int]] = {}
    for intent, result in zip(intents, results, strict=True):
        if intent.because is not None and result.events and intent.because.stream not in proven:
            causes.setdefault(intent.because.stream, set()).add(intent.because.revision)
    return causes


def _conditions(causes: Mapping[str, set[int]], moved: Container[str]) -> list[StreamAppend]:
    """Return what must be so for the causes to be there: each is its stream's last event, or was just seen (`moved`).

    That its stream exists would not tell: a customer may be erased and come again.
    """
    return [
        StreamAppend(stream, EXISTS if stream in moved else max(revisions), [])
        for stream, revisions in sorted(causes.items())
    ]


def _concerned(intent: Intent, conflict: ConflictError) -> bool:
    return intent.because is not None and intent.because.stream in conflict.streams


def _refusals(streams: Mapping[str, int], *, give_up: bool) -> dict[str, RecorridoError]:
    """Return the streams that stay out of the append from now on, so that they hold up no other."""
    return {
        stream: RefusedError("STREAM_CLOSED", f"{stream} was closed for good")
        if revision == TOMBSTONED
        else ConflictError({stream: revision})
        for stream, revision in streams.items()
        if give_up or revision == TOMBSTONED
    }
