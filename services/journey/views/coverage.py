"""Coverage: what of a map is heard, what is silent, and what happens that is on no map."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recorrido.ingest.v1.events import Channel
from recorrido.journey.v1.events import Stage, Touchpoint
from services.journey.domain.expectations import Expected
from services.journey.domain.history import Flags, History, Ints, microseconds, moment_of
from services.journey.domain.reading import Reading
from services.journey.views.scores import distinct, tally
from services.journey.views.selection import Selection

_NEVER = np.iinfo(np.int64).min


class Hearing(Enum):
    """Customers tell something; something happens and nobody tells; nothing happens."""

    HEARD = 1
    UNHEARD = 2
    SILENT = 3


@dataclass(frozen=True, slots=True)
class Voice:
    """What is there of one touchpoint. Counts are of the time asked for, the times of all before its end."""

    interactions: int
    customers: int
    rated: int
    verbatims: int
    last_at: datetime | None
    last_heard_at: datetime | None

    @property
    def hearing(self) -> Hearing:
        if not self.interactions:
            return Hearing.SILENT
        return Hearing.HEARD if self.rated or self.verbatims else Hearing.UNHEARD


@dataclass(frozen=True, slots=True)
class TouchpointCoverage:
    stage: Stage
    touchpoint: Touchpoint
    voice: Voice
    on_other_channels: int
    expected: tuple[Expected, ...]
    heard_as: Sequence[str]


@dataclass(frozen=True, slots=True)
class OffMap:
    source: str
    touchpoint: str
    channel: Channel
    voice: Voice


@dataclass(frozen=True, slots=True)
class Coverage:
    touchpoints: Sequence[TouchpointCoverage]
    off_map: Sequence[OffMap]
    left_out: int
    interactions: int
    interactions_on_map: int


def coverage(reading: Reading, since: datetime | None, until: datetime | None, limit: int) -> Coverage:
    """Return what is heard of each touchpoint of the map, and the `limit` most frequent ones on no map."""
    history = reading.history
    table, raws = history.interactions, history.vocabulary.touchpoints
    inside = Selection(since=since, until=until).interactions(reading)
    past = np.ones(len(table), bool) if until is None else table.occurred < microseconds(until)
    voices = _voices(history, reading.place, len(reading.touchpoints), inside, past)
    # Each channel that a touchpoint is not meant for; where no channel is meant, none is another.
    meant = [touchpoint.channel for _, touchpoint in reading.touchpoints]
    other = np.array(
        [
            place >= 0 and meant[place] not in (Channel.UNSPECIFIED, raw.channel)
            for raw, place in zip(raws, reading.placements.of(raws).tolist(), strict=False)
        ],
        bool,
    )
    heard = np.flatnonzero(inside & (reading.place >= 0))
    told = tally(history, heard, reading.place[heard], len(reading.touchpoints))
    elsewhere = reading.place[inside & other[table.touchpoint]]
    others = np.bincount(elsewhere, minlength=len(voices))
    heard_as = _raw_names(reading)
    off = np.where(reading.place < 0, table.touchpoint, -1)
    silent_too = _voices(history, off, len(raws), inside, past)
    off_map = [
        OffMap(raw.source, raw.touchpoint, raw.channel, voice)
        for raw, voice in zip(raws, silent_too, strict=True)
        if voice.interactions
    ]
    off_map.sort(key=lambda o: (-o.voice.interactions, o.source, o.touchpoint, o.channel.number))
    return Coverage(
        touchpoints=[
            TouchpointCoverage(stage, touchpoint, voices[n], int(others[n]), told[n].against(touchpoint), heard_as[n])
            for n, (stage, touchpoint) in enumerate(reading.touchpoints)
        ],
        off_map=off_map[:limit],
        left_out=max(len(off_map) - limit, 0),
        interactions=int(inside.sum()),
        interactions_on_map=int((inside & (reading.place >= 0)).sum()),
    )


def _raw_names(reading: Reading) -> list[list[str]]:
    """Return what the sources call each touchpoint of the map, in alphabetical order."""
    raws = reading.history.vocabulary.touchpoints
    names: list[set[str]] = [set() for _ in reading.touchpoints]
    # The vocabulary may hold more than the history: what was heard of later.
    counts = np.bincount(reading.history.interactions.touchpoint, minlength=len(raws))
    for raw, place, count in zip(raws, reading.placements.of(raws).tolist(), counts.tolist(), strict=False):
        if place >= 0 and count:
            names[place].add(raw.touchpoint)
    return [sorted(each) for each in names]


def _voices(history: History, place: NDArray[Any], size: int, inside: Flags, past: Flags) -> list[Voice]:
    """Return the voice of each place, 0 to `size` - 1; -1 is none of them."""
    table = history.interactions
    placed = place >= 0

    def count(chosen: Flags) -> Ints:
        return np.bincount(place[chosen & placed & inside], minlength=size)

    def last(chosen: Flags) -> list[datetime | None]:
        latest = np.full(size, _NEVER)
        rows = np.flatnonzero(chosen & placed & past)
        np.maximum.at(latest, place[rows], table.occurred[rows])
        return [None if each == _NEVER else moment_of(each) for each in latest.tolist()]

    everything = np.ones(len(table), bool)
    rows = np.flatnonzero(placed & inside)
    customers = distinct(place[rows], history.customer[rows], size, len(history.owners))
    interactions, ratings, words = count(everything), count(history.rated), count(table.has_words)
    last_at, last_heard = last(everything), last(history.heard)
    return [
        Voice(int(interactions[n]), int(customers[n]), int(ratings[n]), int(words[n]), last_at[n], last_heard[n])
        for n in range(size)
    ]
