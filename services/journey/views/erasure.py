"""Erased customers: their rows go, and what statistics need of them stays under a pseudonym."""

from collections.abc import Iterator, Sequence
from typing import Any
from uuid import UUID

from msgspec.structs import replace

from recorrido.inference.v1.events import AnalysisCorrected, FeedbackAnalysisFailed, FeedbackAnalyzed
from recorrido.ingest.v1.events import (
    AnonymousInteraction,
    Customer,
    CustomerAnonymized,
    IdentityLinked,
    IdentityUnlinked,
    Interaction,
    InteractionRecorded,
    Referral,
)
from recorrido.journey.v1.events import SignalRaised
from services.foundation.events import Event, Recorded, derived_id, encode
from services.foundation.projection import Fact, position_of, positions_of
from services.journey.views.names import Kind

DDL = """
-- Where an erasure stands in the store, and where the rows stand that it took away or replaced: who keeps any of them
-- at hand reads those anew.
CREATE TABLE erasure (position bigint PRIMARY KEY, recorded_at timestamptz NOT NULL, positions bigint[] NOT NULL);
"""

#: Tables whose rows speak of names, with the column and the kind of each.
_SPEAK = (
    ("interaction", "customer", Kind.CUSTOMER),
    ("interaction", "profile", Kind.PROFILE),
    ("signal", "customer", Kind.CUSTOMER),
    ("identity_link", "identity", Kind.CUSTOMER),
    ("identity_link", "customer", Kind.CUSTOMER),
    ("action_change", "customer", Kind.CUSTOMER),
)


async def forget(connection: Any, fact: Fact) -> None:
    """Delete every row that came of the erased events, wherever the history still holds them, and names of nobody."""
    positions = positions_of(fact.event.erased_positions)
    await connection.execute(
        "INSERT INTO erasure VALUES ($1, $2, $3) ON CONFLICT DO NOTHING",
        fact.recorded.position,
        fact.recorded.recorded_at,
        sorted(set(positions)),
    )
    spoken: dict[Kind, set[int]] = {Kind.CUSTOMER: set(), Kind.PROFILE: set()}
    for table, column, kind in _SPEAK:
        rows = await connection.fetch(
            f"SELECT DISTINCT {column} AS key FROM {table} WHERE position = ANY($1::bigint[])",  # noqa: S608 - constants of ours
            positions,
        )
        spoken[kind] |= {row["key"] for row in rows}
    rows = await connection.fetch(
        "DELETE FROM interaction WHERE position = ANY($1::bigint[]) RETURNING event_id", positions
    )
    interaction_ids = [row["event_id"] for row in rows]
    await connection.execute("DELETE FROM rating WHERE interaction = ANY($1::bigint[])", positions)
    await connection.execute(
        "DELETE FROM analysis WHERE position = ANY($1::bigint[]) OR interaction = ANY($1::bigint[])", positions
    )
    rows = await connection.fetch(
        "DELETE FROM signal WHERE position = ANY($1::bigint[]) RETURNING signal_id", positions
    )
    await connection.execute(
        "DELETE FROM signal_evidence WHERE event_id = ANY($1::uuid[]) OR signal_id = ANY($2::text[])",
        interaction_ids,
        [row["signal_id"] for row in rows],
    )
    await connection.execute("DELETE FROM identity_link WHERE position = ANY($1::bigint[])", positions)
    await connection.execute("DELETE FROM action_change WHERE position = ANY($1::bigint[])", positions)
    for kind, keys in spoken.items():
        still = set()
        for table, column, of in _SPEAK:
            if of is kind:
                rows = await connection.fetch(
                    f"SELECT DISTINCT {column} AS key FROM {table} WHERE {column} = ANY($1::bigint[])",  # noqa: S608
                    list(keys),
                )
                still |= {row["key"] for row in rows}
        await connection.execute(
            "DELETE FROM name WHERE kind = $1 AND key = ANY($2::bigint[])", int(kind), list(keys - still)
        )


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


async def mark(connection: Any, fact: Fact, left: Sequence[Fact]) -> None:
    """Tell where `left` stands now, and which of it had words, though there are none to show any more."""
    event: CustomerAnonymized = fact.event
    await connection.execute(
        """UPDATE erasure SET positions = ARRAY(SELECT unnest(positions) UNION SELECT unnest($2::bigint[]) ORDER BY 1)
           WHERE position = $1""",
        fact.recorded.position,
        [each.recorded.position for each in left],
    )
    await connection.execute(
        "UPDATE interaction SET has_words = true WHERE position = ANY($1::bigint[])",
        [position_of(each.position) for each in event.interactions if each.had_words],
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
            amount=left.amount,
            referral=Referral(direction=left.referral_direction),
            episode_id=left.episode_pseudonym,
        )
    )
    yield _fact(fact, left, recorded)
    about = str(_id(fact.event, left.position))
    for analysis in left.analyses:
        told = AnalysisCorrected if analysis.corrected else FeedbackAnalyzed
        analyzed: Event = (
            told(interaction_event_id=about, customer_id=left.pseudonym, analysis=analysis.analysis)
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
        position=position_of(left.position),
        recorded_at=left.recorded_at,
    )
    return Fact(event, recorded)


def _id(event: CustomerAnonymized, position: str) -> UUID:
    return derived_id("anonymous", event.receipt_id, position)
