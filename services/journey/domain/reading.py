"""A history read by a journey map: places and stages, personas, goals and episodes."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from recorrido.ingest.v1.events import CustomerKind, Outcome
from recorrido.journey.v1.events import EpisodeRules, JourneyMap, Persona, Stage, Touchpoint
from services.journey.domain.history import HOUR_US, Flags, History, Index, Ints
from services.journey.domain.personas import KIND, attributes_used, persona_of
from services.journey.domain.placement import Placements

DEFAULT_INACTIVITY_HOURS = 720


@dataclass(frozen=True)
class Reading:
    """`history` read by `map_`; an empty map places nothing."""

    history: History
    map_: JourneyMap
    placements: Placements

    @cached_property
    def touchpoints(self) -> Sequence[tuple[Stage, Touchpoint]]:
        """Return stage and touchpoint of each, in the map's order: what the numbers of `place` lead to."""
        return [(stage, touchpoint) for stage in self.map_.stages for touchpoint in stage.touchpoints]

    @cached_property
    def stage_of(self) -> Index:
        """Return the number of the stage of each touchpoint."""
        return np.array([n for n, stage in enumerate(self.map_.stages) for _ in stage.touchpoints], np.int32)

    @cached_property
    def place(self) -> Index:
        """Return the number of the touchpoint of each interaction, -1 where the map does not place it."""
        return self.placements.of(self.history.vocabulary.touchpoints)[self.history.interactions.touchpoint]

    @cached_property
    def stage(self) -> Index:
        """Return the number of the stage of each interaction, -1 where the map does not place it."""
        # The last one stands for "no touchpoint", which is where -1 leads.
        return np.append(self.stage_of, np.int32(-1))[self.place]

    @cached_property
    def personas(self) -> Index:
        """Return the number of the persona of each customer, by their number; -1: of none.

        What was told last of an attribute counts, under whichever identity it was told.
        """
        history = self.history
        customers = len(history.owners)
        used = attributes_used(self.map_)
        columns, values = [], []
        for attribute in used:
            if attribute == KIND:
                known = ["", *(kind.name.lower() for kind in CustomerKind if kind.number)]
                codes = history.interactions.kind.astype(np.int32)
            else:
                told = [profile.get(attribute, "") for profile in history.vocabulary.profiles]
                known = sorted({"", *told})
                numbers = {value: number for number, value in enumerate(known)}
                codes = np.array([numbers[value] for value in told], np.int32)[history.interactions.profile]
            rows = np.flatnonzero(codes)
            latest = np.zeros(customers, np.int32)
            latest[history.customer[rows]] = codes[rows]
            columns.append(latest)
            values.append(known)
        if not columns:
            return np.full(customers, persona_of(self.map_, {}), np.int32)
        kinds, inverse = np.unique(np.stack(columns, axis=1), axis=0, return_inverse=True)
        found = [
            persona_of(
                self.map_, {a: values[n][code] for n, (a, code) in enumerate(zip(used, row, strict=True)) if code}
            )
            for row in kinds
        ]
        return np.array(found, np.int32)[inverse.reshape(-1)]

    def persona(self, customer: int) -> Persona | None:
        number = int(self.personas[customer])
        return self.map_.personas[number] if number >= 0 else None

    @cached_property
    def goals(self) -> Ints:
        """Return which goals each interaction reached, as bits in the order of the map."""
        outcome = self.history.interactions.outcome
        missed = (outcome == Outcome.FAILED.number) | (outcome == Outcome.ABANDONED.number)
        return np.where(missed, 0, self._at([goal.touchpoint_ids for goal in self.map_.goals]))

    @cached_property
    def sought(self) -> Ints:
        """Return which goals each interaction set out for, or tried to reach, as bits in the order of the map."""
        return self._at([(*goal.begins_at_touchpoint_ids, *goal.touchpoint_ids) for goal in self.map_.goals])

    def _at(self, several: Sequence[Sequence[str]]) -> Ints:
        """Return at which of several lists of touchpoint ids each interaction was, as bits in their order."""
        # The last one stands for "no touchpoint", which is where -1 leads.
        bits = np.zeros(len(self.touchpoints) + 1, np.int64)
        for number, touchpoint_ids in enumerate(several):
            for n, (_, touchpoint) in enumerate(self.touchpoints):
                if touchpoint.touchpoint_id in touchpoint_ids:
                    bits[n] |= 1 << number
        return bits[self.place]

    @cached_property
    def episode(self) -> Ints:
        """Return the number of each interaction's episode, from 0; numbers follow customers, then no order."""
        rules = self.map_.episodes or EpisodeRules()
        rows = self.history.interactions
        numbers = np.empty(len(rows), np.int64)
        explicit: Flags = np.zeros(len(rows), bool) if rules.ignore_ids else rows.episode != 0
        named = np.flatnonzero(explicit)
        # Customer and id as one number: whole numbers are sorted much faster than pairs.
        ids, number_of_id = np.unique(rows.episode[named], return_inverse=True)
        pairs = self.history.customer[named].astype(np.int64) * max(len(ids), 1) + number_of_id
        _, label = np.unique(pairs, return_inverse=True)
        numbers[named] = label
        order = self.history.order
        others = order[~explicit[order]]
        if len(others):
            ends = sum(1 << n for n, goal in enumerate(self.map_.goals) if goal.goal_id in rules.goal_ids)
            hours = rules.inactivity_hours or DEFAULT_INACTIVITY_HOURS
            customer, occurred = self.history.customer[others], rows.occurred[others]
            begins = np.ones(len(others), bool)
            begins[1:] = (
                (customer[1:] != customer[:-1])
                | (np.diff(occurred) > hours * HOUR_US)
                | ((self.goals[others][:-1] & ends) != 0)
            )
            numbers[others] = np.cumsum(begins) - 1 + (int(label.max()) + 1 if len(named) else 0)
        return numbers

    @property
    def episodes(self) -> int:
        return int(self.episode.max()) + 1 if len(self.episode) else 0
