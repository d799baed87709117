"""Somebody sets the clock of the store's machine back, while it runs and before it starts again."""

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
from kurrentdbclient import AsyncKurrentDBClient, NewEvent, StreamState
from kurrentdbclient.exceptions import NotFoundError

from recorrido.ingest.v1 import ingest_service_pb2 as pb
from recorrido.ingest.v1.ingest_service_pb2_grpc import IngestServiceStub
from recorrido.journey.v1.journey_service_pb2 import GetOverviewRequest
from recorrido.journey.v1.journey_service_pb2_grpc import JourneyServiceStub
from tests.support.front_door import RECORDED, of
from tests.support.relays import assert_stream_equals_store, store_of
from tests.support.shim import shimmed
from tests.support.wait import until

HOUR_S = 3600


async def test_times_of_recording_follow_the_order_and_what_expired_stays_so(tmp_path: Path) -> None:
    async with (
        shimmed(["ingest", "relay", "journey"], ["eventstore"], tmp_path) as (cluster, shim),
        grpc.aio.insecure_channel(cluster.address("ingest")) as ingest,
        grpc.aio.insecure_channel(cluster.address("journey")) as journey,
    ):
        front_door: Any = IngestServiceStub(ingest)

        async def record(customer_id: str) -> None:
            items = [of(customer_id, number) for number in range(10)]
            answer = await front_door.RecordInteractions(pb.RecordInteractionsRequest(interactions=items), timeout=20)
            assert {r.status for r in answer.results} == {RECORDED}, answer.results[0]

        client = AsyncKurrentDBClient(uri=cluster.environment["RECORRIDO_EVENTSTORE_URI"])
        await client.connect()

        async def held(stream: str) -> int:
            try:
                return len(await client.get_stream(stream))
            except NotFoundError:
                return 0

        await record("before")
        # Half an hour, and it is an hour later.
        await client.set_stream_metadata("news-x", metadata={"$maxAge": HOUR_S // 2})
        news = [NewEvent(type="News", data=b"{}") for _ in range(5)]
        await client.append_to_stream("news-x", events=news, current_version=StreamState.ANY)
        assert await held("news-x") == 5
        shim.clock(HOUR_S)
        assert await held("news-x") == 0
        await record("an hour later")

        shim.clock(-HOUR_S)
        assert await held("news-x") == 0, "what has expired does not come back"
        await record("set back")
        await cluster.kill_and_restart("eventstore")
        await record("and started again")
        # Its own time counts: what is new has not expired.
        fresh = [NewEvent(type="News", data=b"{}") for _ in range(3)]
        await client.append_to_stream("news-x", events=fresh, current_version=StreamState.ANY)
        assert await held("news-x") == 3
        await client.close()
        async with store_of(cluster) as store:
            times = [event.recorded_at async for event in store.read_all(None)]
        assert len(times) == 40
        assert times == sorted(times)
        assert timedelta(minutes=59) < times[-1] - times[0] < timedelta(minutes=70)
        log = (cluster.data / "log/eventstore.log").read_text()
        assert "clock is 7200 s behind" in log or "clock is 7199 s behind" in log
        await assert_stream_equals_store(cluster, 40)

        # Whoever asks what was known then is told the history up to there, and no other.
        views: Any = JourneyServiceStub(journey)

        async def known(moment: datetime | None) -> int:
            request = GetOverviewRequest()
            if moment is not None:
                request.as_of.FromDatetime(moment)
            return int((await views.GetOverview(request, timeout=10)).interactions)

        async def all_known() -> bool:
            return await known(None) == 40

        await until(all_known, 20)
        now = datetime.now(UTC)
        assert await asyncio.gather(*map(known, (now - timedelta(minutes=10), now + timedelta(minutes=30)))) == [0, 10]
        assert await known(times[-1]) == 40
