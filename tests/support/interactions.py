"""Interactions for tests, and a caller that does not give up while parts come and go."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import grpc

from recorrido.ingest.v1 import ingest_service_pb2, ingest_service_pb2_grpc, interaction_pb2

START = datetime(2026, 1, 1, tzinfo=UTC)

#: What a caller may safely repeat: nothing is recorded twice.
RETRIABLE = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.ABORTED, grpc.StatusCode.DEADLINE_EXCEEDED}


def interaction(
    number: int, *, customers: int = 100, text: str = "", csat: int | None = None
) -> interaction_pb2.Interaction:
    """Return interaction `number`, one minute after the one before, of customer `number % customers`."""
    made = interaction_pb2.Interaction(
        source="test",
        interaction_id=str(number),
        customer=interaction_pb2.Customer(
            customer_id=f"customer {number % customers}", kind=interaction_pb2.CUSTOMER_KIND_BUYER
        ),
        touchpoint="checkout",
        channel=interaction_pb2.CHANNEL_WEB,
    )
    made.occurred_at.FromDatetime(START + timedelta(minutes=number))
    if text:
        made.verbatim.text = text
    if csat is not None:
        made.ratings.add(metric=interaction_pb2.RATING_METRIC_CSAT, value=csat)
    return made


async def record(
    channel: grpc.aio.Channel, interactions: Sequence[interaction_pb2.Interaction]
) -> list[ingest_service_pb2.RecordResult]:
    """Record a batch, repeating it (or the items that found a part missing) until every item has its answer."""
    stub = ingest_service_pb2_grpc.IngestServiceStub(channel)
    results: dict[int, ingest_service_pb2.RecordResult] = {}
    while len(results) < len(interactions):
        open_items = [i for i in range(len(interactions)) if i not in results]
        try:
            response = await stub.RecordInteractions(
                ingest_service_pb2.RecordInteractionsRequest(interactions=[interactions[i] for i in open_items]),
                timeout=10,
                wait_for_ready=True,
            )
        except grpc.aio.AioRpcError as error:
            if error.code() not in RETRIABLE:
                raise
            continue
        results |= {
            index: result
            for index, result in zip(open_items, response.results, strict=True)
            if result.problem.reason not in {"UNAVAILABLE", "CONFLICT"}
        }
    return [results[i] for i in range(len(interactions))]
