"""What is asked of Triton at once: never more than it answers in time."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from recorrido.inference.v1.events import Analysis
from services.foundation.errors import UnavailableError
from services.inference import triton as adapter
from services.inference.domain import MAX_TEXT_BYTES, Result
from services.inference.triton import Triton
from tests.support.triton import Server, triton
from tests.support.wait import until

#: As large as texts may be, each of more sentences than are told apart: some seconds of one core.
HEAVY = [
    (f"{n} Não recebi o produto, a entrega atrasou. " * 500).encode()[:MAX_TEXT_BYTES].decode(errors="ignore")
    for n in range(12)
]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with triton(tmp_path / "log") as running:
        yield running


class Counting(Triton):
    """Keeps how many bytes of text each request had."""

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self.requests: list[int] = []

    async def _infer(self, texts: Sequence[bytes], version: str) -> Any:
        self.requests.append(sum(map(len, texts)))
        return await super()._infer(texts, version)


async def test_long_texts_go_in_requests_of_bounded_size(server: Server) -> None:
    client = Counting(server.address)
    results = await client.analyze(HEAVY)
    await client.close()
    assert all(isinstance(result, Analysis) for result in results)
    assert sum(client.requests) == sum(len(text.encode()) for text in HEAVY)
    assert max(client.requests) <= adapter.REQUEST_BYTES


async def test_short_texts_still_go_together(server: Server) -> None:
    client = Counting(server.address)
    await client.analyze([f"Muito bom {n}" for n in range(256)])
    await client.close()
    assert len(client.requests) == 1


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
