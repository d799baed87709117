"""What is asked of Triton at once: never more than it answers in time."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tritonclient.grpc.aio import InferenceServerClient

from recorrido.inference.v1.events import Analysis
from services.foundation.errors import UnavailableError
from services.inference import triton as adapter
from services.inference.domain import MAX_TEXT_BYTES, Result
from services.inference.triton import Triton
from tests.support.triton import Server, triton
from tests.support.wait import until

#: As large as texts may be, and as many as a reaction hands over: five seconds of one core.
HEAVY = [
    (f"{n} Não recebi o produto, a entrega atrasou. " * 500).encode()[:MAX_TEXT_BYTES].decode(errors="ignore")
    for n in range(256)
]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with triton(tmp_path / "log") as running:
        yield running


async def requests(server: Server) -> int:
    client = InferenceServerClient(server.address)
    try:
        statistics = await client.get_inference_statistics("feedback", as_json=True)
        return int(statistics["model_stats"][0]["inference_stats"]["success"]["count"])
    finally:
        await client.close()


async def test_long_texts_go_in_requests_of_bounded_size(server: Server) -> None:
    assert min(len(text.encode()) for text in HEAVY) >= MAX_TEXT_BYTES - 1
    client = Triton(server.address)
    before = await requests(server)
    results = await client.analyze(HEAVY)
    await client.close()
    assert all(isinstance(result, Analysis) for result in results)
    assert await requests(server) - before >= 255 * MAX_TEXT_BYTES / adapter.REQUEST_BYTES


async def test_short_texts_still_go_together(server: Server) -> None:
    client = Triton(server.address)
    before = await requests(server)
    await client.analyze([f"Muito bom {n}" for n in range(256)])
    await client.close()
    assert await requests(server) - before == 1


async def test_a_batch_that_takes_too_long_is_asked_for_in_smaller_ones(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However slow the machine: whoever tries again gets further, and in the end there is an answer to all."""
    monkeypatch.setattr(adapter, "REQUEST_BYTES", 64 * 1024 * 1024)
    monkeypatch.setattr(adapter, "TIMEOUT_S", 1.0)
    client = Triton(server.address)

    async def analyzed() -> list[Result] | None:
        try:
            return await client.analyze(HEAVY)
        except UnavailableError:
            # The abandoned batch keeps Triton busy for a while; the reaction waits and tries again, too.
            return None

    results = await until(analyzed, deadline_s=60, every_s=0.25)
    await client.close()
    assert results is not None
    assert len(results) == len(HEAVY)
    assert all(isinstance(result, Analysis) for result in results)


async def test_a_frozen_triton_is_unavailable_and_not_asked_for_ever(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter, "TIMEOUT_S", 0.5)
    client = Triton(server.address)
    await client.analyze(["ok"])
    server.freeze()
    with pytest.raises(UnavailableError, match="DEADLINE_EXCEEDED"):
        await client.analyze([f"Muito bom {n}" for n in range(256)])
    server.thaw()

    async def back() -> bool:
        try:
            return len(await client.analyze(["ok"])) == 1
        except UnavailableError:
            return False

    await until(back, deadline_s=20)
    await client.close()
