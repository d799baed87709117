"""Many who watch customers: one look tells all of them, each of their own customer only."""

import asyncio
import gc
import random
import time
import weakref
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from recorrido.actions.v1.events import ActionAccepted, ActionOpened
from recorrido.ingest.v1.events import Customer, CustomerAnonymized, IdentityLinked, Interaction, InteractionRecorded
from recorrido.journey.v1 import journey_service_pb2 as pb
from recorrido.journey.v1.events import Evidence, JourneyMapPublished, SignalRaised
from services.foundation.errors import UnavailableError
from services.journey.api.service import JourneyService
from services.journey.domain.quoting import Quoting
from services.journey.views import changes
from services.journey.views.changes import LOOK_EVERY_S, LOOKING
from services.journey.views.snapshot import ReadModel, Snapshot
from tests.service.test_journey_views import MAPS, START, History, event_id, postgres, project
from tests.support.wait import until

WATCHERS = 200
Updates = AsyncIterator[pb.WatchCustomerJourneyResponse]


class Counted(ReadModel):
    """Counts who looked."""

    def __init__(self, pool: Any, schema: str) -> None:
        super().__init__(pool, schema)
        self.looks: Counter[bool] = Counter()
        self.broken: Exception | None = None

    @asynccontextmanager
    async def snapshot(self, as_of: Any = None) -> AsyncIterator[Snapshot]:
        for_all = (task := asyncio.current_task()) is not None and task.get_name() == LOOKING
        self.looks[for_all] += 1
        if for_all and self.broken:
            raise self.broken
        async with super().snapshot(as_of) as found:
            yield found


def happened(customer_id: str) -> InteractionRecorded:
    told = Interaction(source="web", customer=Customer(customer_id=customer_id), occurred_at=START)
    return InteractionRecorded(interaction=told)


class Watched:
    """A history that goes on, and those who watch it."""

    def __init__(self, pool: Any) -> None:
        self.history = History(random.Random(0))
        self.read_model = Counted(pool, "journey")
        self.service = JourneyService(None, self.read_model, None, Quoting.UNLESS_REFUSED)
        self.pool = pool

    async def record(self, event: Any, name: str) -> None:
        self.history.add(event, name)
        # The clock goes on: what jumps back is tested elsewhere.
        at = structs.replace(self.history.recorded[-1], recorded_at=START.replace(year=2030))
        self.history.recorded[-1] = at
        await project(self.pool, [at])

    async def happens(self, customer_id: str, name: str) -> None:
        await self.record(happened(customer_id), name)

    def watch(self, customer_id: str) -> Updates:
        return self.service.WatchCustomerJourney(pb.WatchCustomerJourneyRequest(customer_id=customer_id), None)


@asynccontextmanager
async def watched(data: Path) -> AsyncIterator[Watched]:
    async with postgres(data) as pool:
        yield Watched(pool)


async def told(updates: Updates, within_s: float = 20) -> pb.WatchCustomerJourneyResponse:
    return await asyncio.wait_for(anext(updates), within_s)


async def test_who_watches_is_woken_by_their_own_customer_only(tmp_path: Path) -> None:
    async with watched(tmp_path) as w:
        for n in range(WATCHERS):
            w.history.add(happened(f"c{n}"), f"first {n}")
        await project(w.pool, w.history.recorded)
        watches = {f"c{n}": w.watch(f"c{n}") for n in range(WATCHERS)}
        first = await asyncio.gather(*(told(each) for each in watches.values()))
        assert [len(each.entries) for each in first] == [1] * WATCHERS
        waiting = {customer_id: asyncio.ensure_future(anext(each)) for customer_id, each in watches.items()}
        # All wait: from here on only who is woken looks.
        watching = w.service._changes._watches
        await until(lambda: w.read_model.looks[True] > 1 and not any(each._changed.is_set() for each in watching))
        before, begun = Counter(w.read_model.looks), time.monotonic()
        for n in (3, 70, 150):
            await w.happens(f"c{n}", f"second {n}")
            update = await asyncio.wait_for(waiting.pop(f"c{n}"), 20)
            assert [each.event_id for each in update.entries] == [str(event_id(f"second {n}"))]
        assert not any(each.done() for each in waiting.values())
        looks = w.read_model.looks - before
        assert looks[False] == 3
        assert looks[True] <= (time.monotonic() - begun) / LOOK_EVERY_S + 2
        # What may be about anybody wakes everybody.
        await w.record(JourneyMapPublished(map=MAPS[0], version=1), "map")
        await until(lambda: w.read_model.looks[False] - before[False] >= WATCHERS, deadline_s=20)
        for each in waiting.values():
            each.cancel()
        await asyncio.gather(*waiting.values(), return_exceptions=True)
        for one in watches.values():
            await one.aclose()
        assert w.service._changes._looking is None
        assert LOOKING not in {task.get_name() for task in asyncio.all_tasks() if not task.cancelling()}


async def test_whatever_is_about_a_customer_wakes(tmp_path: Path) -> None:
    async with watched(tmp_path) as w:
        await w.happens("bor", "bor's")
        # Of whom nothing is known yet, one waits.
        updates = w.watch("ana")
        coming = asyncio.ensure_future(told(updates))
        await w.happens("ana", "ana's")
        assert len((await coming).entries) == 1

        async def then(event: Any, name: str) -> pb.WatchCustomerJourneyResponse:
            await w.record(event, name)
            return await told(updates)

        opened = ActionOpened(action_id="a", customer_id="ana", title="Make good")
        assert [each.title for each in (await then(opened, "opened")).actions] == ["Make good"]
        # Nothing but what opened it says whose it is.
        before = (await then(ActionAccepted(action_id="a"), "accepted")).actions
        assert [each.state for each in before] == [2]
        signal = SignalRaised(signal_id="s", customer_id="ana")
        assert [each.signal_id for each in (await then(signal, "signal")).signals] == ["s"]
        about_all = SignalRaised(signal_id="all", evidence=(Evidence(event_id=str(event_id("ana's"))),))
        assert [list(each.signal_ids) for each in (await then(about_all, "for all")).entries] == [["all"]]
        linked = await then(IdentityLinked(identity_customer_id="bor", customer_id="ana"), "linked")
        assert [each.recorded_under for each in linked.entries] == ["bor"]
        await w.happens("bor", "bor's next")
        assert [each.event_id for each in (await told(updates)).entries] == [str(event_id("bor's next"))]
        gone = CustomerAnonymized(receipt_id="r", erased_positions=(str(w.history.recorded[-1].position),))
        assert (await then(gone, "erased")).total_entries == 2
        await updates.aclose()


async def test_who_watches_is_told_of_an_erasure_and_keeps_nothing_of_before(tmp_path: Path) -> None:
    async with watched(tmp_path) as w:
        await w.happens("ana", "ana's")
        # Who does not read what they are told, and so stands still.
        slow = w.watch("ana")
        await told(slow)
        updates = w.watch("ana")
        await told(updates)
        before = weakref.ref(w.read_model._generation)
        await w.record(
            CustomerAnonymized(receipt_id="r", erased_positions=(str(w.history.recorded[-1].position),)), "r"
        )
        gone = await told(updates)
        assert (gone.total_entries, list(gone.entries), gone.HasField("loyalty"), gone.position > 0) == (
            0,
            [],
            False,
            1,
        )
        await until(lambda: gc.collect() >= 0 and before() is None)
        await w.happens("ana", "another ana's")
        assert [each.event_id for each in (await told(updates)).entries] == [str(event_id("another ana's"))]
        await updates.aclose()
        await slow.aclose()


async def test_who_watches_hears_of_what_keeps_from_looking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with watched(tmp_path) as w:
        await w.happens("ana", "first")
        updates = w.watch("ana")
        await told(updates)
        # While PostgreSQL is gone for a moment nobody is forgotten.
        w.read_model.broken = UnavailableError("PostgreSQL", "gone")
        coming = asyncio.ensure_future(told(updates))
        looks = w.read_model.looks[True] + 2
        await until(lambda: w.read_model.looks[True] >= looks)
        await w.happens("ana", "second")
        w.read_model.broken = None
        assert len((await coming).entries) == 1
        # An error of ours is not waited out in silence.
        w.read_model.broken = RuntimeError("a fault")
        with pytest.raises(RuntimeError, match="a fault"):
            await told(updates)
        w.read_model.broken = None
        # What time alone changes is looked for without any event.
        monkeypatch.setattr(changes, "ANEW_AFTER_S", 0.01)
        again = w.watch("ana")
        await told(again)
        looks, coming = w.read_model.looks[False], asyncio.ensure_future(anext(again))
        await until(lambda: w.read_model.looks[False] >= looks + 3)
        coming.cancel()
        await asyncio.gather(coming, return_exceptions=True)
        await again.aclose()
