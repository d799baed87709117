"""When `recorrido run` loads the sample: into an empty store, and where its own loading was cut off."""

from collections.abc import Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from recorrido.ingest.v1.interaction_pb2 import Interaction
from recorrido.journey.v1 import journey_service_pb2 as pb
from services.cli import bus, clients, local, sample
from services.cli.clients import Addresses

FIRST = next(iter(sample.generate(1)))
#: A customer of an earlier version, of whom the same id told something else.
EARLIER = Interaction()
EARLIER.CopyFrom(FIRST[0])
EARLIER.occurred_at.FromDatetime(FIRST[0].occurred_at.ToDatetime() - timedelta(days=3))


@pytest.mark.parametrize(
    ("first", "last", "why"),
    [
        ([], [], "The store is empty: here is a sample company."),
        (FIRST, [], "The sample company is here in part, as its loading was cut off: here is the rest."),
        (FIRST, FIRST, ""),
        ([EARLIER], [], ""),
    ],
    ids=["empty", "cut off", "whole", "of another version"],
)
async def test_it_is_loaded_once_and_no_version_is_mixed_with_another(
    monkeypatch: pytest.MonkeyPatch, first: Sequence[Interaction], last: Sequence[Interaction], why: str
) -> None:
    recorded = {
        sample.customer_id(sample.SEED, number): [
            pb.TimelineEntry(interaction=each, occurred_at=each.occurred_at) for each in told
        ]
        for number, told in ((0, first), (sample.CUSTOMERS - 1, last))
    }

    async def customer(request: pb.GetCustomerJourneyRequest, **_: Any) -> pb.GetCustomerJourneyResponse:
        if entries := recorded[request.customer_id]:
            return pb.GetCustomerJourneyResponse(entries=entries)
        empty = grpc.aio.Metadata()
        raise grpc.aio.AioRpcError(grpc.StatusCode.NOT_FOUND, empty, empty)

    async def overview(*_: Any, **__: Any) -> pb.GetOverviewResponse:
        return pb.GetOverviewResponse()

    @asynccontextmanager
    async def journey(_: Any) -> Any:
        yield SimpleNamespace(GetCustomerJourney=customer, GetOverview=overview)

    async def connect(_: str) -> Any:
        return SimpleNamespace(close=messages_held)

    async def messages_held(*_: Any) -> int:
        return len(first) + len(last)

    monkeypatch.setattr(clients, "journey", journey)
    monkeypatch.setattr(bus, "connect", connect)
    monkeypatch.setattr(bus, "messages_held", messages_held)
    assert await local._why_sample(Addresses.local({})) == why
