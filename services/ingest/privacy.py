"""What an erasure takes away, and what it leaves: facts that statistics need and that are nobody's. Pure.

What is left has no words, no ids and no attributes; its customer is a pseudonym made for this erasure, with
a secret that is erased with the rest.
"""

from collections import defaultdict
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar
from uuid import UUID

import msgspec

from recorrido.actions.v1 import events as actions_events
from recorrido.actions.v1.events import (
    ActionCompleted,
    ActionDeclined,
    ActionKind,
    ActionOpened,
    ActionReopened,
    ActionResult,
    ActionState,
    ActionVerified,
    SignalAnswered,
    SignalJoined,
)
from recorrido.inference.v1.events import AnalysisCorrected, FeedbackAnalysisFailed, FeedbackAnalyzed
from recorrido.ingest.v1.events import (
    AnonymousAction,
    AnonymousAnalysis,
    AnonymousInteraction,
    AnonymousLink,
    AnonymousSignal,
    Customer,
    CustomerAnonymized,
    CustomerErased,
    IdentityLinked,
    IdentityUnlinked,
    Interaction,
    InteractionRecorded,
    InteractionRejected,
    Referral,
    Verbatim,
)
from recorrido.journey.v1.events import SignalRaised
from services.foundation.errors import InvalidError, NotFoundError, Violation
from services.foundation.events import Event, Recorded, Registry, derived_id, stream_name
from services.foundation.eventstore import Blank
from services.foundation.rules import Rules

#: Facts and positions in one event, so that it stays well below what a store takes.
PART_FACTS = 100
PART_POSITIONS = 5_000

#: Erasures that were asked for and are not finished. What is finished is cut off its beginning.
QUEUE = stream_name("erasures", "pending")

_REGISTRY = Registry(
    (
        *actions_events.EVENTS,
        AnalysisCorrected,
        FeedbackAnalysisFailed,
        FeedbackAnalyzed,
        IdentityLinked,
        IdentityUnlinked,
        InteractionRecorded,
        InteractionRejected,
        SignalRaised,
    )
)


class ErasureRequested(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody is to be forgotten. Its type is nobody's public event, so that it goes nowhere; it is erased, too."""

    type_name: ClassVar[str] = "recorrido-private.ErasureRequested"

    customer_id: str
    receipt_id: str
    #: Random; the pseudonyms are made with it.
    secret: str


def receipt_stream(receipt_id: str) -> str:
    return stream_name("erasure", receipt_id)


def check_customer(customer_id: str) -> None:
    """Raise InvalidError where nobody can have this id; an identity's is fine, and so is one that was refused."""
    rules = Rules()
    rules.require(bool(customer_id.strip()) and "\0" not in customer_id, "customer_id", "required, not blank, no NUL")
    rules.enforce()


def canonical(field_name: str, text: str) -> str:
    """Return the id in its canonical form. Raises InvalidError."""
    try:
        return str(UUID(text))
    except ValueError:
        # An id that anybody could guess or read would tell of whom the receipt is.
        raise InvalidError([Violation(field_name, "a random UUID")]) from None


def receipt_id_of(customer_id: str, request_id: str) -> str:
    """Return the id of the receipt for a request about a customer.

    It tells nobody whose it is: the request id is random, and kept nowhere.
    """
    return str(derived_id("erasure", request_id, customer_id))


def no_receipt(receipt_id: str) -> NotFoundError:
    return NotFoundError("RECEIPT_UNKNOWN", f"there is no receipt {receipt_id}, or not yet")


# -- what goes ------------------------------------------------------------------------------------------------------

#: Streams about one thing, which goes as a whole or not at all.
_WHOLE = ("signal-", "action-", "rejection-")


def going(streams: Mapping[str, Sequence[Recorded]], asked: int) -> dict[str, int]:
    """Return how many events of each stream, from its beginning, go with an erasure asked for at the position `asked`.

    What was recorded later is a new history and stays, but for what came of the old one: an analysis of an interaction
    that goes, a signal that saw one, what was opened for such a signal. A stream can be cut at its beginning only, so
    what stands before such a latecomer goes with it.
    """
    read = {stream: [(r, _REGISTRY.read(r)) for r in events] for stream, events in streams.items()}
    counts = dict.fromkeys(read, 0)
    while True:
        staying = {
            name for stream, events in read.items() for r, e in events[counts[stream] :] for name in _names(r, e)
        }
        found = {}
        for stream, events in read.items():
            goes = [at for at, (r, event) in enumerate(events, 1) if not _stays(r, event, asked, staying)]
            last = len(events) if goes and stream.startswith(_WHOLE) else max(goes, default=0)
            found[stream] = max(last, counts[stream])
        if found == counts:
            return counts
        counts = found


def _names(recorded: Recorded, event: Any) -> Iterator[str]:
    """Yield what others name an event by."""
    yield str(recorded.event_id)
    if isinstance(event, SignalRaised):
        yield event.signal_id


def _stays(recorded: Recorded, event: Any, asked: int, staying: Container[str]) -> bool:
    if recorded.position <= asked or recorded.type_name == Blank.type_name:
        return False
    match event:
        case FeedbackAnalyzed() | FeedbackAnalysisFailed() | AnalysisCorrected():
            return event.interaction_event_id in staying
        case SignalRaised():
            return all(each.event_id in staying for each in event.evidence)
        case ActionOpened() | SignalJoined() | SignalAnswered():
            return not event.signal_id or event.signal_id in staying
    return True


# -- what is left --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Erased:
    """Events that go together, by their positions in the store, and what is left of them: a fact of `kind`, or none."""

    positions: Sequence[int]
    kind: str = ""
    fact: Any = None
    is_rejection: bool = False


def anonymize(
    streams: Iterable[Sequence[Recorded]], secret: str, erased_ids: Iterable[str], done: Container[int] = ()
) -> list[Erased]:
    """Return what is left of the events of these streams.

    Args:
        streams: all that is erased of each stream.
        secret: makes the pseudonyms; whoever does not have it cannot tell whose they are.
        erased_ids: the customer ids that are erased: the customer's own, and those of their identities.
        done: positions of events that were seen to before.
    """
    pseudonyms = _Pseudonyms(secret, set(erased_ids))
    erased: list[Erased] = []
    for events in streams:
        known = [(r, _REGISTRY.read(r)) for r in events if r.type_name != Blank.type_name and r.position not in done]
        interactions = {str(r.event_id) for r, event in known if isinstance(event, InteractionRecorded)}
        analyses: dict[str, list[AnonymousAnalysis]] = defaultdict(list)
        for recorded, event in known:
            if isinstance(event, FeedbackAnalyzed | FeedbackAnalysisFailed | AnalysisCorrected):
                analyses[event.interaction_event_id].append(_analysis(recorded, event))
        for recorded, event in known:
            match event:
                case InteractionRecorded():
                    of_it = analyses[str(recorded.event_id)]
                    at = [recorded.position, *(int(analysis.position) for analysis in of_it)]
                    erased.append(Erased(at, "interactions", _interaction(recorded, event, pseudonyms, of_it)))
                case FeedbackAnalyzed() | FeedbackAnalysisFailed() | AnalysisCorrected() if (
                    event.interaction_event_id in interactions
                ):
                    pass  # it goes with its interaction
                case ActionOpened():
                    action = _action(recorded, event, [e for _, e in known if e is not None], pseudonyms)
                    erased.append(Erased([recorded.position], "actions", action))
                case _:
                    erased.append(_erased(recorded, event, pseudonyms))
    return erased


def parts(receipt_id: str, erased: Iterable[Erased]) -> Iterator[CustomerAnonymized]:
    """Yield the events that tell it. Each tells together what goes and what comes in its place."""
    batch: list[Erased] = []
    for each in erased:
        if len(batch) == PART_FACTS or sum(len(e.positions) for e in batch) + len(each.positions) > PART_POSITIONS:
            yield _part(receipt_id, batch)
            batch = []
        batch.append(each)
    if batch:
        yield _part(receipt_id, batch)


def _part(receipt_id: str, batch: Sequence[Erased]) -> CustomerAnonymized:
    facts: dict[str, list[Any]] = defaultdict(list)
    for each in batch:
        if each.fact is not None:
            facts[each.kind].append(each.fact)
    return CustomerAnonymized(
        receipt_id=receipt_id,
        erased_positions=tuple(str(position) for each in batch for position in each.positions),
        rejections=sum(each.is_rejection for each in batch),
        **{kind: tuple(some) for kind, some in facts.items()},
    )


@dataclass(frozen=True, slots=True)
class _Pseudonyms:
    secret: str
    erased: set[str]

    def of(self, customer_id: str) -> str:
        return str(derived_id(self.secret, customer_id))

    def of_episode(self, episode_id: str) -> str:
        return str(derived_id(self.secret, "episode", episode_id)) if episode_id else ""

    def of_erased(self, customer_id: str) -> str:
        """Return nobody's for who is not erased: what is left must not name them either."""
        return self.of(customer_id) if customer_id in self.erased else ""


def _erased(recorded: Recorded, event: Any, pseudonyms: _Pseudonyms) -> Erased:
    at = [recorded.position]
    match event:
        case SignalRaised():
            return Erased(at, "signals", _signal(recorded, event, pseudonyms))
        case IdentityLinked() | IdentityUnlinked() if event.identity_customer_id in pseudonyms.erased:
            return Erased(at, "links", _link(recorded, event, pseudonyms))
    return Erased(at, is_rejection=isinstance(event, InteractionRejected))


def _interaction(
    recorded: Recorded, event: InteractionRecorded, pseudonyms: _Pseudonyms, analyses: Sequence[AnonymousAnalysis]
) -> AnonymousInteraction:
    interaction = event.interaction or Interaction()
    customer = interaction.customer or Customer()
    return AnonymousInteraction(
        pseudonym=pseudonyms.of(customer.customer_id),
        position=str(recorded.position),
        occurred_at=interaction.occurred_at,
        recorded_at=recorded.recorded_at,
        kind=customer.kind,
        source=interaction.source,
        touchpoint=interaction.touchpoint,
        channel=interaction.channel,
        ratings=interaction.ratings,
        outcome=interaction.outcome,
        had_words=bool((interaction.verbatim or Verbatim()).text),
        analyses=tuple(analyses),
        amount=interaction.amount,
        referral_direction=(interaction.referral or Referral()).direction,
        episode_pseudonym=pseudonyms.of_episode(interaction.episode_id),
    )


def _analysis(
    recorded: Recorded, event: FeedbackAnalyzed | FeedbackAnalysisFailed | AnalysisCorrected
) -> AnonymousAnalysis:
    return AnonymousAnalysis(
        position=str(recorded.position),
        recorded_at=recorded.recorded_at,
        analysis=None if isinstance(event, FeedbackAnalysisFailed) else event.analysis,
        failure_reason=event.reason if isinstance(event, FeedbackAnalysisFailed) else "",
        corrected=isinstance(event, AnalysisCorrected),
    )


def _signal(recorded: Recorded, event: SignalRaised, pseudonyms: _Pseudonyms) -> AnonymousSignal:
    return AnonymousSignal(
        pseudonym=pseudonyms.of(event.customer_id),
        position=str(recorded.position),
        occurred_at=event.occurred_at,
        recorded_at=recorded.recorded_at,
        rule=event.rule,
        rule_version=event.rule_version,
        touchpoint=event.touchpoint,
        need_path=event.need_path,
    )


def _link(recorded: Recorded, event: IdentityLinked | IdentityUnlinked, pseudonyms: _Pseudonyms) -> AnonymousLink:
    linked = isinstance(event, IdentityLinked)
    return AnonymousLink(
        identity_pseudonym=pseudonyms.of(event.identity_customer_id),
        customer_pseudonym=pseudonyms.of_erased(event.customer_id) if linked else "",
        position=str(recorded.position),
        recorded_at=recorded.recorded_at,
    )


def _action(
    recorded: Recorded, event: ActionOpened, events: Sequence[Event], pseudonyms: _Pseudonyms
) -> AnonymousAction:
    state, result = _end(event.kind, events)
    times: list[datetime | None] = [getattr(e, "occurred_at", None) for e in events]
    return AnonymousAction(
        pseudonym=pseudonyms.of(event.customer_id),
        position=str(recorded.position),
        kind=event.kind,
        state=state,
        result=result,
        touchpoint=event.touchpoint,
        need_path=event.need_path,
        opened_at=event.occurred_at,
        updated_at=next((at for at in reversed(times) if at is not None), None),
    )


def _end(kind: ActionKind, events: Sequence[Event]) -> tuple[ActionState, ActionResult]:
    """Return how an action ended. What is under way ends here: nobody can be reached, or go on with it, any more."""
    ends = [e for e in events if isinstance(e, ActionCompleted | ActionDeclined | ActionVerified | ActionReopened)]
    result = next((e.result for e in reversed(ends) if isinstance(e, ActionCompleted)), ActionResult.UNSPECIFIED)
    match ends[-1] if ends else None:
        case ActionVerified():
            return ActionState.VERIFIED, result
        case ActionCompleted() if kind is not ActionKind.IMPROVEMENT:
            return ActionState.COMPLETED, result
        case ActionDeclined():
            return ActionState.DECLINED, ActionResult.UNSPECIFIED
        case _ if kind is ActionKind.IMPROVEMENT:
            # One that is only completed waits to be verified, which nobody could do.
            return ActionState.DECLINED, ActionResult.UNSPECIFIED
        case _:
            return ActionState.COMPLETED, ActionResult.UNREACHABLE


def receipt(receipt_id: str, parts: Sequence[CustomerAnonymized]) -> CustomerErased:
    """Return the receipt for what `parts` took away."""
    interactions = [each for part in parts for each in part.interactions]
    return CustomerErased(
        receipt_id=receipt_id,
        interactions=len(interactions),
        analyses=sum(len(each.analyses) for each in interactions),
        signals=sum(len(part.signals) for part in parts),
        actions=sum(len(part.actions) for part in parts),
        identities=len({link.identity_pseudonym for part in parts for link in part.links}),
        rejections=sum(part.rejections for part in parts),
        events=sum(len(part.erased_positions) for part in parts),
    )


# -- what is handed out --------------------------------------------------------------------------------------------


def is_theirs(recorded: Recorded, ids: Container[str]) -> bool:
    """Return whether an event of a customer's streams is about them: an identity may have been another's, too."""
    event = _REGISTRY.read(recorded)
    return not isinstance(event, IdentityLinked | IdentityUnlinked) or event.customer_id in ids


def cloud_event(recorded: Recorded) -> str:
    """Return an event as a CloudEvent in its JSON format, one line."""
    extensions: Mapping[str, str] = {
        name: value
        for name, value in (
            ("correlationid", recorded.metadata.get("$correlationId")),
            ("causationid", recorded.metadata.get("$causationId")),
            ("traceparent", recorded.metadata.get("traceparent")),
        )
        if value
    }
    return msgspec.json.encode(
        {
            "specversion": "1.0",
            "id": str(recorded.event_id),
            "source": f"/recorrido/{recorded.type_name.split('.')[1]}",
            "type": recorded.type_name,
            "subject": recorded.stream,
            "time": recorded.recorded_at.isoformat(),
            "datacontenttype": "application/json",
            **extensions,
            "data": msgspec.Raw(recorded.data),
        }
    ).decode()
