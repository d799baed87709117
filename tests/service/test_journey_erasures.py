"""Erasures and the columns in memory: only what was erased is read anew, and the rest is as if all had been."""

import asyncio
import random
import threading
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
import structlog
from msgspec import structs

from recorrido.actions.v1.events import ActionOpened
from recorrido.inference.v1.events import AnalysisCorrected, FeedbackAnalysisFailed, FeedbackAnalyzed
from recorrido.ingest.v1.events import (
    AnonymousAnalysis,
    AnonymousInteraction,
    AnonymousLink,
    AnonymousSignal,
    CustomerAnonymized,
    IdentityLinked,
    IdentityUnlinked,
    Interaction,
    InteractionRecorded,
)
from recorrido.journey.v1 import journey_service_pb2 as pb
from recorrido.journey.v1.events import SignalRaised
from services.foundation import projection as foundation
from services.foundation.errors import NotErasedError, NotFoundError, UnavailableError
from services.foundation.events import Pending, Recorded
from services.foundation.eventstore import ANY, EventStore, StreamAppend
from services.foundation.sharing import SharedRunner
from services.journey.api import service
from services.journey.domain.history import History as Columns
from services.journey.domain.history import Table
from services.journey.domain.quoting import Quoting
from services.journey.views import columns
from services.journey.views.names import Kind, first_key
from services.journey.views.projection import JourneyProjection
from services.journey.views.snapshot import ReadModel
from services.journey.views.timeline import customer_journey
from tests.service.test_journey_views import REGISTRY, History, postgres, project, random_history
from tests.support.cluster import running
from tests.support.wait import until


def erasure(customer_id: str, history: Sequence[Recorded], dice: random.Random) -> CustomerAnonymized:
    """Erase what a history holds of a customer; of some of it nothing is left, not even under a pseudonym."""
    erased, interactions, signals, links = [], {}, [], []
    for at in history:
        event, position = REGISTRY.decode(at), str(at.position)
        match event:
            case InteractionRecorded(interaction=Interaction(customer=customer) as told) if (
                customer and customer.customer_id == customer_id
            ):
                erased.append(position)
                interactions.setdefault(
                    str(at.event_id),
                    AnonymousInteraction(
                        pseudonym=f"nobody {dice.randrange(2)}",
                        position=position,
                        occurred_at=told.occurred_at,
                        recorded_at=at.recorded_at,
                        source=told.source,
                        touchpoint=told.touchpoint,
                        channel=told.channel,
                        ratings=told.ratings,
                        outcome=told.outcome,
                        had_words=told.verbatim is not None,
                    ),
                )
            case FeedbackAnalyzed() | AnalysisCorrected() if event.interaction_event_id in interactions:
                erased.append(position)
                about = interactions[event.interaction_event_id]
                left = AnonymousAnalysis(position=position, recorded_at=at.recorded_at, analysis=event.analysis)
                interactions[event.interaction_event_id] = about.__class__(
                    **{each: getattr(about, each) for each in about.__struct_fields__ if each != "analyses"},
                    analyses=(*about.analyses, left),
                )
            # Of what stands in another stream nothing is told: it goes with the interaction that it is about.
            case FeedbackAnalysisFailed():
                continue
            case SignalRaised(customer_id=of) if of == customer_id:
                erased.append(position)
                signals.append(AnonymousSignal(pseudonym="nobody 0", position=position, recorded_at=at.recorded_at))
            case ActionOpened(customer_id=of) if of == customer_id:
                erased.append(position)
            case IdentityLinked() | IdentityUnlinked() if customer_id in {
                event.identity_customer_id,
                event.customer_id,
            }:
                erased.append(position)
                links.append(
                    AnonymousLink(
                        identity_pseudonym="nobody 1",
                        customer_pseudonym="nobody 0" if isinstance(event, IdentityLinked) else "",
                        position=position,
                        recorded_at=at.recorded_at,
                    )
                )
    return CustomerAnonymized(
        receipt_id=f"receipt {customer_id} {len(history)}",
        erased_positions=tuple(erased),
        interactions=tuple(each for each in interactions.values() if dice.random() < 0.7),
        signals=tuple(each for each in signals if dice.random() < 0.7),
        links=tuple(each for each in links if dice.random() < 0.7),
    )


def decoded(known: Columns) -> dict[str, dict[str, list[Any]]]:
    """Return all columns with what their numbers mean."""
    words = known.vocabulary
    meaning = {
        "customer": lambda n: words.customers[n] if n >= 0 else None,
        "identity": lambda n: words.customers[n],
        "touchpoint": lambda n: words.touchpoints[n],
        "profile": lambda n: words.profiles[n],
        "need": lambda n: words.needs[n],
        "scale": lambda n: words.scales[n],
        "interaction": lambda n: int(known.interactions.position[n]),
    }

    def table(of: Table) -> dict[str, list[Any]]:
        found = {each.name: getattr(of, each.name).tolist() for each in fields(of)}
        return {name: [meaning.get(name, lambda n: n)(each) for each in column] for name, column in found.items()}

    return {
        each.name: table(getattr(known, each.name)) for each in fields(known) if each.name not in {"cut", "vocabulary"}
    }


async def see(read_model: ReadModel, as_of: Any = None) -> dict[str, dict[str, list[Any]]]:
    async with read_model.snapshot(as_of) as snapshot:
        return decoded(snapshot.history)


@pytest.mark.parametrize("seed", [1, 2])
async def test_after_erasures_the_columns_are_those_that_would_be_read_anew(tmp_path: Path, seed: int) -> None:
    dice = random.Random(seed)
    coming = list(random_history(seed, 500))
    history = History(dice)

    def go_on(events: int) -> list[Recorded]:
        """Return what comes next; who was erased may come again."""
        for _ in range(events):
            if coming:
                one = coming.pop(0)
                history.add(REGISTRY.decode(one), "")
                history.recorded[-1] = structs.replace(history.recorded[-1], event_id=one.event_id)
        return history.recorded[-events:]

    async with postgres(tmp_path) as pool:
        read_model = await project(pool, go_on(200))
        times = [each.recorded_at for each in history.recorded]
        for customer_id in ("c0", "c3", "c0", "c1"):
            await see(read_model)
            history.add(erasure(customer_id, history.recorded, dice), f"erased {len(history.recorded)}")
            # Sometimes two at once, sometimes with more behind it.
            if customer_id == "c3":
                await project(pool, history.recorded[-1:])
                history.add(erasure("c2", history.recorded[:-1], dice), "erased with c3")
            await project(pool, history.recorded[-1:])
            if customer_id != "c1":
                await project(pool, go_on(60))
            for as_of in (None, *dice.sample(times, 4)):
                found, anew = await see(read_model, as_of), await see(ReadModel(pool, "journey"), as_of)
                for name, table in anew.items():
                    assert found[name] == table, name


async def test_only_what_was_erased_is_read_anew_and_nothing_of_it_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []
    copy = columns._copy

    async def counted(connection: Any, query: str, wanted: Any) -> Any:
        found = await copy(connection, query, wanted)
        rows.append(len(found["position"]))
        return found

    dice = random.Random(3)
    history = History(dice)
    history.recorded = [each for each in random_history(3, 400) if b"customer.segment" not in each.data]
    # One customer alone told this of themselves.
    happened = REGISTRY.decode(next(r for r in history.recorded if r.type_name == InteractionRecorded.type_name))
    told = happened.interaction.to_proto()
    told.customer.customer_id, told.attributes["customer.street"] = "c9", "Main Street 1"
    history.add(InteractionRecorded(interaction=Interaction.from_proto(told)), "theirs")
    async with postgres(tmp_path) as pool:
        read_model = await project(pool, history.recorded)
        async with read_model.snapshot() as before:
            assert {"street": "Main Street 1"} in before.history.vocabulary.profiles
            assert first_key(Kind.CUSTOMER, "c9") in before.history.vocabulary.customers
            kept = [each.recorded_at for each in history.recorded]
            history.add(erasure("c9", history.recorded, dice), "erased")
            await project(pool, history.recorded[-1:])
            monkeypatch.setattr(columns, "_copy", counted)

            async def asked(as_of: Any) -> None:
                async with read_model.snapshot(as_of) as snapshot:
                    known = snapshot.history.vocabulary
                    assert "street" not in {name for profile in known.profiles for name in profile}
                    assert first_key(Kind.CUSTOMER, "c9") not in known.customers
                    with pytest.raises(NotFoundError):
                        await customer_journey(snapshot, snapshot.map_in_force(""), "c9", page_size=9, page_token="")

            # Many ask at once: it is read once, and nobody sees more.
            await asyncio.gather(*(asked(as_of) for as_of in (None, *dice.sample(kept, 6))))
            # The one interaction's place, and the erasure itself.
            assert sum(rows) <= 2
            # Who began before ends with what there was.
            found = await customer_journey(before, before.map_in_force(""), "c9", page_size=9, page_token="")
            assert found.total == 1
        # Who comes again is another one.
        history.add(InteractionRecorded(interaction=Interaction.from_proto(told)), "theirs again")
        await project(pool, history.recorded[-1:])
        async with read_model.snapshot() as now:
            found = await customer_journey(now, now.map_in_force(""), "c9", page_size=9, page_token="")
            assert found.total == 1
            assert np.count_nonzero(now.history.interactions.customer == await now.number_of("c9")) == 1


async def test_who_looks_from_before_an_erasure_looks_again(tmp_path: Path) -> None:
    """A look that began before the erasure was seen must not mix its rows with columns of after it."""
    history = History(random.Random(5))
    history.recorded = list(random_history(5, 200))
    async with postgres(tmp_path) as pool:
        read_model = await project(pool, history.recorded)
        await see(read_model)
        history.add(erasure("c0", history.recorded, random.Random(1)), "erased")
        known = read_model._known()
        async with pool.acquire() as connection, connection.transaction(isolation="repeatable_read", readonly=True):
            # This transaction sees what was before, from its first question on.
            assert await connection.fetchval("SELECT count(*) FROM journey.erasure") == 0
            await project(pool, history.recorded[-1:])
            await see(read_model)
            assert await read_model._look(connection, None, known) is None


async def test_what_breaks_while_an_erasure_waits_is_not_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Columns to which half of something was added, and then nothing more, are no beginning for others."""
    history = History(random.Random(7))
    coming = list(random_history(7, 300))
    half, end = asyncio.Event(), asyncio.Event()

    async def fail(*_: Any) -> None:
        half.set()
        await end.wait()
        raise OSError("gone")

    async with postgres(tmp_path) as pool:
        read_model = await project(pool, coming[:200])
        await see(read_model)
        history.recorded = coming
        await project(pool, coming[200:])
        with monkeypatch.context() as patch:
            patch.setattr(columns.Columns, "_read_maps", fail)
            breaking = asyncio.ensure_future(see(read_model))
            await half.wait()
        history.add(erasure("c0", coming, random.Random(1)), "erased")
        await project(pool, history.recorded[-1:])
        lock = read_model._generation.columns._lock
        waiting = asyncio.ensure_future(see(read_model))
        await until(lambda: bool(lock._waiters))
        end.set()
        with pytest.raises(UnavailableError):
            await breaking
        assert await waiting == await see(ReadModel(pool, "journey"))


async def test_an_erasure_is_not_passed_over_by_a_fault_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    history = History(random.Random(6))
    history.recorded = list(random_history(6, 100))
    async with postgres(tmp_path) as pool:
        read_model = await project(pool, history.recorded)
        before = await see(read_model)
        history.add(erasure("c0", history.recorded, random.Random(1)), "erased")
        with monkeypatch.context() as faulty:
            faulty.setattr(JourneyProjection, "_forget", lambda self, *_: self.no_such_thing)
            with pytest.raises(NotErasedError, match="AttributeError"):
                await project(pool, history.recorded[-1:])
            assert await see(read_model) == before
        await project(pool, history.recorded[-1:])
        assert await see(read_model) == await see(ReadModel(pool, "journey")) != before
        # What somebody else wrote under its name, and holds what nobody can take, stops nothing.
        after = await see(read_model)
        for number, odd in enumerate(
            (
                CustomerAnonymized(erased_positions=("nowhere",)),
                CustomerAnonymized(erased_positions=("9" * 19,)),
                CustomerAnonymized(interactions=(AnonymousInteraction(position="-1"),)),
                CustomerAnonymized(interactions=(AnonymousInteraction(position="7"),)),
            )
        ):
            history.add(odd, f"odd {number}")
            await project(pool, history.recorded[-1:])
        assert await see(read_model) | {"erasures": after["erasures"]} == after


#: What PostgreSQL refuses as wrong in itself, and what it quotes then.
_REFUSING = """CREATE FUNCTION journey.refuse() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN RAISE 'Main Street 1' USING ERRCODE = '{state}'; END $$;
    CREATE TRIGGER refuse BEFORE {what} ON journey.interaction FOR EACH ROW EXECUTE FUNCTION journey.refuse()"""


@pytest.mark.parametrize("state", ["22023", "23514"])
async def test_what_postgresql_refuses_keeps_nothing_of_the_erased(tmp_path: Path, state: str) -> None:
    """Not to delete stops; what is to stand in its place and is refused does not keep what it was to replace."""
    history = History(random.Random(6))
    history.recorded = list(random_history(6, 100))
    async with postgres(tmp_path) as pool:
        read_model = await project(pool, history.recorded)
        before = await see(read_model)
        history.add(erasure("c0", history.recorded, random.Random(1)), "erased")
        theirs = REGISTRY.decode(history.recorded[-1])
        assert theirs.interactions
        places = [int(each) for each in theirs.erased_positions]

        async def rows() -> int:
            found = await pool.fetchval(
                "SELECT count(*) FROM journey.interaction WHERE position = ANY($1::bigint[])", places
            )
            return int(found)

        async with pool.acquire() as connection, connection.transaction():
            await connection.execute(_REFUSING.format(state=state, what="DELETE"))
        with pytest.raises(NotErasedError, match=f"SQLSTATE {state}") as refused:
            await project(pool, history.recorded[-1:])
        assert "Main Street" not in refused.value.message + refused.value.where
        assert await rows()
        assert await see(read_model) == before
        await pool.execute("DROP FUNCTION journey.refuse CASCADE")

        await pool.execute(_REFUSING.format(state=state, what="INSERT"))
        with structlog.testing.capture_logs() as logs:
            await project(pool, history.recorded[-1:])
        (told,) = [each for each in logs if each["log_level"] == "error"]
        assert told["event"] == "what an erasure leaves is passed over"
        assert f"SQLSTATE {state}" in told["error"]
        assert "Main Street" not in str(logs)
        assert not await rows()
        now = await see(read_model)
        assert now == await see(ReadModel(pool, "journey"))
        assert len(now["interactions"]["position"]) == len(set(before["interactions"]["position"]) - set(places))


async def test_who_cannot_erase_stands_still_and_says_so_until_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[bool] = []
    async with running(["eventstore", "postgres"], data=tmp_path) as cluster:
        store = await EventStore.connect(cluster.environment["RECORRIDO_EVENTSTORE_URI"])
        pool = await foundation.connect(cluster.environment["RECORRIDO_POSTGRES_DSN"])
        await store.append([StreamAppend("erasure-r", ANY, [Pending(CustomerAnonymized(receipt_id="r"), uuid4())])])
        with monkeypatch.context() as faulty, structlog.testing.capture_logs() as logs:
            faulty.setattr(JourneyProjection, "_forget", lambda self, *_: self.no_such_thing)
            runner = SharedRunner(store, pool, JourneyProjection())
            following = asyncio.create_task(runner.run(available=told.append))
            await until(lambda: told[-2:] == [True, False], deadline_s=30)
            (stopped,) = [each for each in logs if each["event"] == "projection stopped"]
            assert stopped["log_level"] == "error"
            assert "AttributeError" in stopped["error"]
            assert "no_such_thing" in stopped["where"]
        await asyncio.wait_for(runner.caught_up.wait(), 30)
        assert told[-1]
        assert await pool.fetchval("SELECT count(*) FROM journey.erasure") == 1
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        await pool.close()
        await store.close()


async def test_who_reckons_holds_no_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of eight connections none is taken while many look at the whole history: a customer is shown meanwhile."""
    history = random_history(7, 100)
    go_on, reckoning = threading.Event(), []

    def slow(work: Any) -> Any:
        def slowly(*arguments: Any, **named: Any) -> Any:
            reckoning.append(work)
            assert go_on.wait(60)
            return work(*arguments, **named)

        return slowly

    async with postgres(tmp_path) as pool:
        read_model = await project(pool, history)
        journey = service.JourneyService(None, read_model, None, Quoting.UNLESS_REFUSED)
        for name in ("points", "overview"):
            monkeypatch.setattr(service, name, slow(getattr(service, name)))
        many = [asyncio.ensure_future(journey.ListPoints(pb.ListPointsRequest(), None)) for _ in range(10)]
        many += [asyncio.ensure_future(journey.GetOverview(pb.GetOverviewRequest(), None)) for _ in range(10)]
        try:
            await until(lambda: len(reckoning) >= 3 and pool.get_idle_size() == pool.get_size())
            shown = journey.GetCustomerJourney(pb.GetCustomerJourneyRequest(customer_id="c0"), None)
            assert (await asyncio.wait_for(shown, 10)).entries
        finally:
            go_on.set()
        *points, overview = [(await asyncio.wait_for(each, 60)).position for each in many][9:]
        assert overview == points[0] == history[-1].position
