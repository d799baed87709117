"""One interaction is one trace, from the caller's request to the recovery, across all processes."""

import secrets
from datetime import UTC, datetime
from pathlib import Path

import grpc
import pytest

from infra.local.cluster import running
from recorrido.ingest.v1 import ingest_service_pb2, ingest_service_pb2_grpc, interaction_pb2
from tests.support.otlp import receiver
from tests.support.wait import until

#: Who causes what. The projection hangs on the append, the reactions on the relay's publication of it.
EDGES = {
    (("ingest", "recorrido.ingest.v1.IngestService/RecordInteraction"), ("ingest", "append customer")),
    (("ingest", "append customer"), ("relay", "publish recorrido.ingest.v1.InteractionRecorded")),
    (("ingest", "append customer"), ("journey", "project journey")),
    (("relay", "publish recorrido.ingest.v1.InteractionRecorded"), ("inference", "react inference-analyze")),
    (("inference", "handle inference-analyze"), ("inference", "triton infer feedback")),
    (("inference", "react inference-analyze"), ("inference", "handle inference-analyze")),
    (("inference", "react inference-analyze"), ("inference", "append customer")),
    (("inference", "append customer"), ("relay", "publish recorrido.inference.v1.FeedbackAnalyzed")),
    (("inference", "append customer"), ("journey", "project journey")),
    (("relay", "publish recorrido.inference.v1.FeedbackAnalyzed"), ("journey", "react journey-signals")),
    (("journey", "react journey-signals"), ("journey", "append signal")),
    (("journey", "append signal"), ("relay", "publish recorrido.journey.v1.SignalRaised")),
    (("journey", "append signal"), ("journey", "project journey")),
    (("relay", "publish recorrido.journey.v1.SignalRaised"), ("actions", "react actions-recoveries")),
    (("actions", "react actions-recoveries"), ("actions", "append action")),
    (("actions", "append action"), ("relay", "publish recorrido.actions.v1.ActionOpened")),
    (("actions", "append action"), ("actions", "project actions")),
}


@pytest.mark.timeout(180)
async def test_one_interaction_is_one_trace(tmp_path: Path) -> None:
    async with receiver() as otlp:
        telemetry = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": otlp.endpoint,
            "OTEL_EXPORTER_OTLP_INSECURE": "true",
            "OTEL_BSP_SCHEDULE_DELAY": "100",
            "OTEL_METRIC_EXPORT_INTERVAL": "500",
        }
        async with running(data=tmp_path, env=telemetry) as cluster:
            trace_id, span_id = secrets.token_hex(16), secrets.token_hex(8)
            interaction = interaction_pb2.Interaction(
                source="test",
                interaction_id="1",
                customer=interaction_pb2.Customer(customer_id="ana", kind=interaction_pb2.CUSTOMER_KIND_BUYER),
                touchpoint="delivery",
                channel=interaction_pb2.CHANNEL_DELIVERY,
                verbatim=interaction_pb2.Verbatim(
                    text="Terrible! The parcel arrived two weeks late and broken. I am very angry."
                ),
            )
            interaction.occurred_at.FromDatetime(datetime.now(UTC))
            async with grpc.aio.insecure_channel(cluster.address("ingest")) as channel:
                await ingest_service_pb2_grpc.IngestServiceStub(channel).RecordInteraction(
                    ingest_service_pb2.RecordInteractionRequest(interaction=interaction),
                    metadata=(("traceparent", f"00-{trace_id}-{span_id}-01"),),
                )
            try:
                await until(lambda: set(otlp.edges(trace_id)) >= EDGES, deadline_s=60)
            except AssertionError:
                missing = "\n".join(map(str, sorted(EDGES - set(otlp.edges(trace_id)))))
                seen = "\n".join(map(str, sorted(set(otlp.edges(trace_id)))))
                pytest.fail(f"edges missing:\n{missing}\nseen:\n{seen}")
            roots = [s for s in otlp.trace(trace_id).values() if s.parent_id == span_id]
            assert [s.name for s in roots] == ["recorrido.ingest.v1.IngestService/RecordInteraction"]
            # Every service tells how it is doing.
            wanted = {
                ("relay", "recorrido.relay.published"),
                ("inference", "recorrido.reaction.messages"),
                ("journey", "recorrido.reaction.messages"),
                ("actions", "recorrido.reaction.messages"),
                ("journey", "recorrido.projection.events"),
                ("actions", "recorrido.projection.events"),
            }
            await until(lambda: wanted <= otlp.metrics, deadline_s=20)
