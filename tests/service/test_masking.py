"""The policy of masking at the front door, with the real store behind it: nothing of it is on the disk."""

from pathlib import Path
from typing import Any

import grpc

from recorrido.ingest.v1 import rejection_service_pb2
from recorrido.ingest.v1.ingest_service_pb2 import RECORD_STATUS_DUPLICATE, RECORD_STATUS_RECORDED
from recorrido.ingest.v1.rejection_service_pb2_grpc import RejectionServiceStub
from services.foundation.eventstore import EventStore
from tests.support.cluster import running
from tests.support.interactions import interaction, record

EMAIL = "ana.novak@example.com"
CARD = "4111 1111 1111 1111"


async def test_masked_at_the_door_recorded_or_refused_and_repeated_over_a_change_of_policy(tmp_path: Path) -> None:
    before = interaction(1, text=f"before the policy I was {EMAIL}")
    said = interaction(2, text=f"write to {EMAIL} about {CARD}")
    refused = interaction(3, text=f"also {EMAIL}")
    refused.touchpoint = ""
    async with (
        running(["ingest"], data=tmp_path) as cluster,
        grpc.aio.insecure_channel(cluster.address("ingest")) as channel,
    ):
        (first,) = await record(channel, [before])
    async with running(["ingest"], data=tmp_path, env={"RECORRIDO_MASK_PII": "email,card"}) as cluster:
        async with grpc.aio.insecure_channel(cluster.address("ingest")) as channel:
            again, *results = await record(channel, [before, said, refused])
            repeated, *_ = await record(channel, [said])
            stub: Any = RejectionServiceStub(channel)
            kept = await stub.GetRejected(
                rejection_service_pb2.GetRejectedRequest(rejection_id=results[1].problem.rejection_id)
            )
        store = await EventStore.connect(cluster.environment["RECORRIDO_EVENTSTORE_URI"])
        (event,) = await store.read("customer-customer 2")
        await store.close()
    assert first.status == RECORD_STATUS_RECORDED
    assert (again.status, again.event_id) == (RECORD_STATUS_DUPLICATE, first.event_id)
    assert results[0].status == RECORD_STATUS_RECORDED
    assert (repeated.status, repeated.event_id) == (RECORD_STATUS_DUPLICATE, results[0].event_id)
    assert b"write to [email] about [card]" in event.data
    assert kept.rejection.interaction.verbatim.text == "also [email]"
    files = [path.read_bytes() for path in (tmp_path / "eventstore").iterdir() if path.is_file()]
    assert not any(
        CARD.encode() in content or b"to ana.novak" in content or b"also ana" in content for content in files
    )
    assert any(b"I was ana.novak" in content for content in files)
