"""What ingest counts, as a collector sees it."""

from pathlib import Path

from tests.support.front_door import RECORDED, REJECTED, front_door, of
from tests.support.otlp import receiver
from tests.support.wait import until


async def test_what_comes_again_with_other_content_is_counted(tmp_path: Path) -> None:
    async with receiver() as otlp:
        telemetry = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": otlp.endpoint,
            "OTEL_EXPORTER_OTLP_INSECURE": "true",
            "OTEL_METRIC_EXPORT_INTERVAL": "200",
        }
        async with front_door(tmp_path, telemetry) as door:
            first = await door.many(*(of("ana", n) for n in range(5)))
            assert {r.status for r in first} == {RECORDED}
            again = await door.many(*(of("ana", n) for n in range(2)), *(of("ana", n, text="other") for n in (2, 3)))
            assert [r.status for r in again[2:]] == [REJECTED, REJECTED]
            assert (await door.refusal(of("ana", 4, text="other"))).code().name == "ALREADY_EXISTS"
            await until(lambda: otlp.sums.get(("ingest", "recorrido.ingest.content_differs")) == 3, deadline_s=15)
            # Five recorded, two repeated, three refused.
            await until(lambda: otlp.sums.get(("ingest", "recorrido.ingest.interactions")) == 10, deadline_s=15)
