"""Who dies when, and what is recorded: all of it decided by a seed."""

import random
from dataclasses import dataclass

from recorrido.ingest.v1 import interaction_pb2
from tests.support.interactions import interaction

#: Whom the random choice falls on, and how often in comparison. `relay` is the relay that publishes at the time.
VICTIMS = {"eventstore": 4, "relay": 4, "ingest": 4, "nats": 4} | dict.fromkeys(
    ("postgres", "triton", "inference", "journey", "actions"), 1
)
TEXTS = ("It broke after two days and nobody answers the phone.", "Great service, thank you!", "The parcel came late.")


@dataclass(frozen=True, slots=True)
class Kill:
    """Parts that die together, as soon as `after` interactions are acknowledged; `twice`: again while they start."""

    after: int
    parts: tuple[str, ...]
    twice: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is recorded and who dies when: a function of the seed and the sizes alone."""

    seed: int
    interactions: int
    clients: int
    kills: tuple[Kill, ...]

    @classmethod
    def of(cls, seed: int, interactions: int, *, kills: int, clients: int = 8) -> "Plan":
        dice = random.Random(f"{seed} kills")
        # Everybody once, the rest by weight.
        first = list(VICTIMS)
        dice.shuffle(first)
        chosen = [*first, *dice.choices(list(VICTIMS), list(VICTIMS.values()), k=max(kills - len(first), 0))][:kills]
        times = sorted(dice.sample(range(interactions // 50, interactions * 9 // 10), kills))
        planned = []
        for after, part in zip(times, chosen, strict=True):
            beside = {part: None}
            if dice.random() < 0.2:
                beside |= dict.fromkeys(dice.choices(list(VICTIMS), list(VICTIMS.values())))
            planned.append(Kill(after, tuple(beside), twice=dice.random() < 0.1))
        return cls(seed=seed, interactions=interactions, clients=clients, kills=tuple(planned))

    def interaction(self, number: int) -> interaction_pb2.Interaction:
        dice = random.Random(f"{self.seed} {number}")
        return interaction(
            number,
            customers=max(self.interactions // 20, 1),
            text=dice.choice(TEXTS) if dice.random() < 0.1 else "",
            csat=dice.choice((1, 3, 5)) if dice.random() < 0.1 else None,
        )
