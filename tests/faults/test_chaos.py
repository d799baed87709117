"""The short form of `make chaos`: kill -9 of every part, more than once of those on the way of an interaction."""

import os
from pathlib import Path

import pytest

from tests.faults.chaos.folds import projections
from tests.faults.chaos.plan import VICTIMS, Plan
from tests.faults.chaos.run import chaos


@pytest.mark.timeout(400)
async def test_nothing_is_lost_or_doubled_whoever_dies(tmp_path: Path) -> None:
    plan = Plan.of(int(os.environ.get("RECORRIDO_CHAOS_SEED", "1")), 3_000, kills=14)
    report = await chaos(plan, tmp_path)
    assert not report.broken, report.text
    assert len(report.tally.acknowledged) + len(report.tally.unknown) == plan.interactions
    # The relay that publishes dies, and it may be either.
    assert {"relay" if name == "standby" else name for name in report.deaths.killed} == set(VICTIMS), report.text


def test_the_seed_decides_who_dies_when_and_what_is_sent() -> None:
    one, same, other = (Plan.of(seed, 10_000, kills=30) for seed in (7, 7, 8))
    assert one == same
    assert one.kills != other.kills
    assert [one.interaction(n) for n in range(100)] == [same.interaction(n) for n in range(100)]
    assert {part for kill in one.kills for part in kill.parts} == set(VICTIMS)


def test_every_read_model_is_compared() -> None:
    assert {"ingest", "rejections", "journey", "actions"} <= set(projections())
