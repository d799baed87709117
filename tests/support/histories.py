"""Histories in memory, as the read model's columns would hold them."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TypeVar

import numpy as np

from recorrido.inference.v1.events import PointKind, Sentiment
from recorrido.ingest.v1.events import Channel, Outcome, ReferralDirection
from services.journey.domain.history import (
    Analyses,
    History,
    Interactions,
    Links,
    Marks,
    Ratings,
    RawTouchpoint,
    Scale,
    Table,
    Vocabulary,
    microseconds,
)

START = datetime(2026, 1, 1, tzinfo=UTC)
EUR = (4 * 26 + 20) * 26 + 17 + 1
_Row = tuple[object, ...]
_TableT = TypeVar("_TableT", bound=Table)


@dataclass(frozen=True)
class Happened:
    """One interaction, `day` days after START; `words` are sentiment score, point and need."""

    customer: str
    day: float
    touchpoint: str = "checkout"
    nps: int = -1
    csat: int = -1
    ces: int = -1
    outcome: Outcome = Outcome.UNSPECIFIED
    euros: int = 0
    referral: ReferralDirection = ReferralDirection.UNSPECIFIED
    words: tuple[float, PointKind, str] | None = None
    told: Mapping[str, str] = field(default_factory=dict)
    episode: int = 0
    source: str = "shop"
    channel: Channel = Channel.WEB
    mood: tuple[Scale, float] | None = None


@dataclass(frozen=True)
class Linked:
    """From here on an identity is a customer's (None: nobody's)."""

    identity: str
    customer: str | None


def at(day: float) -> int:
    return microseconds(START + timedelta(days=day))


class _Numbers(dict[object, int]):
    def of(self, value: object) -> int:
        return self.setdefault(value, len(self))


def history(*events: Happened | Linked, upto: int | None = None) -> History:
    """Return the history of these events, in the order of the store; with `upto` what was known after that many."""
    customers, raws, scales = _Numbers(), _Numbers(), _Numbers()
    needs, profiles = _Numbers({"": 0}), _Numbers({"{}": 0})
    told: list[Mapping[str, str]] = [{}]
    rows: list[_Row] = []
    analyses: list[_Row] = []
    ratings: list[_Row] = []
    links: list[_Row] = []
    for number, event in enumerate(events):
        position, recorded = 10 * (number + 1), at(1000 + number)
        if isinstance(event, Linked):
            owner = -1 if event.customer is None else customers.of(event.customer)
            links.append((position, recorded, customers.of(event.identity), owner))
            continue
        row = len(rows)
        profile = profiles.of(str(sorted(event.told.items())) if event.told else "{}")
        if profile == len(told):
            told.append(event.told)
        rows.append(
            (
                position,
                recorded,
                at(event.day),
                customers.of(event.customer),
                raws.of(RawTouchpoint(event.source, event.touchpoint, event.channel)),
                profile,
                event.euros * 10_000,
                event.episode,
                EUR if event.euros else 0,
                1,
                event.nps,
                event.csat,
                event.ces,
                event.outcome.number,
                event.referral.number,
                event.words is not None,
            )
        )
        if event.words is not None:
            score, point, need = event.words
            tone = Sentiment.NEGATIVE if score < 0 else Sentiment.POSITIVE
            meaning = needs.of(need), score, tone.number, point.number
            analyses.append((position + 1, recorded, row, *meaning, False, False))
        if event.mood is not None:
            ratings.append((position, 0, row, scales.of(event.mood[0]), event.mood[1]))
    cut = 10 * ((len(events) if upto is None else upto) + 1)
    vocabulary = Vocabulary([*range(1, len(customers) + 1)], list(raws), list(needs), told, list(scales))  # type: ignore[arg-type]
    return History(
        cut,
        vocabulary,
        _table(Interactions, rows).before(cut),
        _table(Analyses, analyses).before(cut),
        _table(Ratings, ratings).before(cut),
        _table(Links, links).before(cut),
        _table(Marks, []),
        _table(Marks, []),
        _table(Table, []),
    )


_TYPES = {
    "customer": "i4", "touchpoint": "i4", "profile": "i4", "currency": "i2", "kind": "i1", "nps": "i1", "csat": "i1",
    "ces": "i1", "outcome": "i1", "referral": "i1", "has_words": "?", "interaction": "i4", "need": "i4",
    "score": "f8", "sentiment": "i1", "point": "i1", "failed": "?", "corrected": "?", "scale": "i4", "value": "f8",
    "identity": "i4",
}  # fmt: skip


def _table(kind: type[_TableT], rows: Sequence[_Row]) -> _TableT:
    names = list(kind.__dataclass_fields__)
    columns = zip(*rows, strict=True) if rows else [()] * len(names)
    return kind(**{name: np.array(column, _TYPES.get(name, "i8")) for name, column in zip(names, columns, strict=True)})


def random_events(seed: int, count: int = 300) -> list[Happened | Linked]:
    """Return events of few customers at few touchpoints, out of order, with links that come and go."""
    dice = random.Random(seed)
    short, long = Scale("mood", 1, 5), Scale("mood", 1, 10)
    found: list[Happened | Linked] = []
    for _ in range(count):
        if dice.random() < 0.05:
            found.append(Linked(f"device {dice.randrange(3)}", dice.choice(["c0", "c1", None])))
            continue
        name = dice.choice([f"c{dice.randrange(8)}", f"device {dice.randrange(3)}"])
        words = (
            dice.choice([-0.9, -0.4, 0.3, 0.9]),
            dice.choice([PointKind.PAIN, PointKind.DELIGHT, PointKind.ITCH, PointKind.NONE]),
            dice.choice(["", "delivery/speed", "delivery/news", "price"]),
        )
        found.append(
            Happened(
                name,
                # Days and hours in any order, sometimes the same moment.
                dice.randrange(800) / 2,
                dice.choice(["checkout", "parcel", "help", "elsewhere"]),
                nps=dice.choice([-1, -1, *range(11)]),
                csat=dice.choice([-1, -1, *range(1, 6)]),
                ces=dice.choice([-1, -1, *range(1, 8)]),
                outcome=dice.choice([Outcome.UNSPECIFIED] * 5 + list(Outcome)),
                euros=dice.choice([0, 0, 10, 25, -5]),
                referral=dice.choice([ReferralDirection.UNSPECIFIED] * 4 + list(ReferralDirection)),
                words=dice.choice([None, words]),
                told=dice.choice([{}, {}, {"age": "young"}, {"age": "old"}, {"vip": "yes"}]),
                episode=dice.choice([0, 0, 0, 1, 2]),
                source=dice.choice(["shop", "app"]),
                channel=dice.choice([Channel.WEB, Channel.PHONE]),
                mood=dice.choice([None, None, (short, 4.0), (long, 4.0), (short, 1.0)]),
            )
        )
    return found
