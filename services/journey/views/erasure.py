"""Erased customers: their rows go, and what statistics need of them stays under a pseudonym."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from uuid import UUID

from recorrido.inference.v1.events import FeedbackAnalysisFailed, FeedbackAnalyzed
from recorrido.ingest.v1.events import (
    AnonymousInteraction,
    Customer,
    CustomerAnonymized,
    IdentityLinked,
    IdentityUnlinked,
    Interaction,
    InteractionRecorded,
)
from recorrido.journey.v1.events import SignalRaised
from services.foundation.events import Event, Recorded, derived_id, encode
from services.foundation.projection import Fact
from services.journey.views import links


async def forget(connection: Any, event: CustomerAnonymized) -> None:
    """Delete every row that came of the erased events, wherever the history still holds them."""
    positions = [int(position) for position in event.erased_positions]
    rows = await connection.fetch(
        "DELETE FROM interaction WHERE position = ANY($1::bigint[]) RETURNING event_id", positions
    )
    interaction_ids = [row["event_id"] for row in rows]
    await connection.execute(
        "DELETE FROM analysis WHERE position = ANY($1::bigint[]) OR interaction_id = ANY($2::uuid[])",
        positions,
        interaction_ids,
    )
    rows = await connection.fetch(
        "DELETE FROM signal WHERE position = ANY($1::bigint[]) RETURNING signal_id", positions
    )
    await connection.execute(
        "DELETE FROM signal_evidence WHERE event_id = ANY($1::uuid[]) OR signal_id = ANY($2::text[])",
        interaction_ids,
        [row["signal_id"] for row in rows],
    )
    await links.forget(connection, positions)


def in_their_place(fact: Fact) -> list[Fact]:
    """Return what is left as if it had been recorded so: where the erased events stood, and when."""
    event: CustomerAnonymized = fact.event
    left: list[Fact] = []
    for interaction in event.interactions:
        left += _interaction(fact, interaction)
    for signal in event.signals:
        raised = SignalRaised(
            signal_id=str(_id(event, signal.position)),
            rule=signal.rule,
            rule_version=signal.rule_version,
            customer_id=signal.pseudonym,
            touchpoint=signal.touchpoint,
            occurred_at=signal.occurred_at,
            need_path=signal.need_path,
        )
        left.append(_fact(fact, signal, raised))
    for link in event.links:
        change = IdentityLinked if link.customer_pseudonym else IdentityUnlinked
        left.append(
            _fact(
                fact,
                link,
                change(identity_customer_id=link.identity_pseudonym, customer_id=link.customer_pseudonym),
            )
        )
    return left


async def mark(connection: Any, event: CustomerAnonymized) -> None:
    """Tell that these have no words to show any more, though there were some."""
    for had_words in (True, False):
        await connection.execute(
            "UPDATE interaction SET is_anonymous = true, has_words = $1 WHERE event_id = ANY($2::uuid[])",
            had_words,
            [_id(event, each.position) for each in event.interactions if each.had_words is had_words],
        )


def _interaction(fact: Fact, left: AnonymousInteraction) -> Iterator[Fact]:
    recorded = InteractionRecorded(
        interaction=Interaction(
            source=left.source,
            customer=Customer(customer_id=left.pseudonym, kind=left.kind),
            touchpoint=left.touchpoint,
            channel=left.channel,
            occurred_at=left.occurred_at,
            ratings=left.ratings,
            outcome=left.outcome,
        )
    )
    yield _fact(fact, left, recorded)
    about = str(_id(fact.event, left.position))
    for analysis in left.analyses:
        analyzed: Event = (
            FeedbackAnalyzed(interaction_event_id=about, customer_id=left.pseudonym, analysis=analysis.analysis)
            if analysis.analysis is not None
            else FeedbackAnalysisFailed(
                interaction_event_id=about, customer_id=left.pseudonym, reason=analysis.failure_reason
            )
        )
        yield _fact(fact, analysis, analyzed)


def _fact(fact: Fact, left: Any, event: Event) -> Fact:
    recorded: Recorded = replace(
        fact.recorded,
        type_name=event.type_name,
        data=encode(event),
        event_id=_id(fact.event, left.position),
        position=int(left.position),
        recorded_at=left.recorded_at,
    )
    return Fact(event, recorded)


def _id(event: CustomerAnonymized, position: str) -> UUID:
    return derived_id("anonymous", event.receipt_id, position)
