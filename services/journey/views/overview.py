"""What is recorded, understood and placed so far."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from recorrido.ingest.v1.events import Channel
from services.journey.domain.reading import Reading

#: The uncovered touchpoints named, those with the most interactions.
MAX_UNCOVERED = 100


@dataclass(frozen=True, slots=True)
class Uncovered:
    """A touchpoint, as its source names it, that the map does not place."""

    source: str
    touchpoint: str
    channel: Channel
    interactions: int


@dataclass(frozen=True, slots=True)
class Overview:
    """`analyzed` and `analysis_failed` count interactions; one that failed first and was analysed later is analysed."""

    customers: int
    interactions: int
    verbatims: int
    analyzed: int
    analysis_failed: int
    signals: int
    uncovered_interactions: int
    uncovered: Sequence[Uncovered]


def overview(reading: Reading) -> Overview:
    history = reading.history
    table, raws = history.interactions, history.vocabulary.touchpoints
    counts = np.bincount(table.touchpoint, minlength=len(raws))
    places = reading.placements.of(raws)
    uncovered = [
        Uncovered(raw.source, raw.touchpoint, raw.channel, int(count))
        for raw, place, count in zip(raws, places, counts, strict=False)
        if place < 0 and count
    ]
    uncovered.sort(key=lambda each: (-each.interactions, each.source, each.touchpoint, each.channel.number))
    return Overview(
        customers=len(history.customers_of(np.arange(len(table)))),
        interactions=len(table),
        verbatims=int(table.has_words.sum()),
        analyzed=int((history.analysis >= 0).sum()),
        analysis_failed=int((history.failure >= 0).sum()),
        signals=len(history.signals),
        uncovered_interactions=sum(each.interactions for each in uncovered),
        uncovered=uncovered[:MAX_UNCOVERED],
    )
