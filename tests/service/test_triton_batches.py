"""What is asked of Triton at once: never more than it answers in time."""

import asyncio
import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from signal import SIGCONT, SIGKILL, SIGSTOP, Signals
from typing import Any

import pytest
from tritonclient.utils import InferenceServerException

from infra.triton.install import MODELS, build_models, find
from recorrido.inference.v1.events import Analysis
from services.foundation.errors import UnavailableError
from services.inference import triton as adapter
from services.inference.domain import MAX_TEXT_BYTES, MODEL_FAILED, Problem, Result
from services.inference.triton import Triton
from tests.support.triton import Server, model_processes, triton
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

    async def _infer(self, texts: Sequence[bytes], version: str, within_s: float | None = None) -> Any:
        self.requests.append(sum(map(len, texts)))
        return await super()._infer(texts, version, within_s)


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


def served_but(repository: Path, **changed: str) -> Path:
    """Return a model repository with version 2 as it is served, but for the files that are given."""
    (repository / "feedback" / "2").mkdir(parents=True)
    config = (MODELS / "feedback" / "config.pbtxt").read_text().replace("count: 2", "count: 1")
    (repository / "feedback" / "config.pbtxt").write_text(config)
    build_models(find())
    for file in (MODELS / "feedback" / "2").iterdir():
        if file.is_file() and file.stem not in changed:
            (repository / "feedback" / "2" / file.name).symlink_to(file)
    for name, program in changed.items():
        (repository / "feedback" / "2" / f"{name}.py").write_text(program)
    return repository


STUCK = """
import re

def spans(text, most):
    # Backtracks for ever, and holds the interpreter meanwhile.
    re.match("(a+)+$", text)
    return []
"""


async def test_a_text_that_the_model_gets_stuck_on_spoils_no_other(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with triton(log, model_repository=served_but(tmp_path / "models", sentences=STUCK), stuck_seconds=2) as server:
        client = Triton(server.address)
        stuck, good = await client.analyze(["a" * 64 + "b", "Muito bom"])
        await client.close()
    assert isinstance(good, Analysis)
    assert isinstance(stuck, Problem)
    assert stuck.reason == MODEL_FAILED
    # The log tells where it was.
    assert re.search(r'File ".*/sentences.py", line 6 in spans', log.read_text())


@pytest.mark.parametrize("signals", [(SIGSTOP, SIGCONT), (SIGKILL,)], ids=["stops for a while", "dies"])
async def test_no_answer_is_taken_for_that_to_another_question(server: Server, signals: tuple[Signals, ...]) -> None:
    """A process that shows no life for a second is given up; where it goes on, it answers what was given up."""
    assert server.process is not None
    client = Triton(server.address)
    texts = [f"Muito bom, adorei ({n})" if n % 2 else f"Terrible, it never came ({n})" for n in range(256)]
    expected = [_said(result) for result in await client.analyze(texts)]

    async def analyzed(chosen: list[int]) -> list[object]:
        async def once() -> list[Result] | None:
            try:
                return await client.analyze([texts[n] for n in chosen])
            except UnavailableError:
                return None

        results = await until(once, deadline_s=60)
        assert results is not None
        return [_said(result) for result in results]

    under_way = [asyncio.create_task(analyzed(list(range(256)))) for _ in range(3)]
    for number in signals:
        for pid in model_processes(server.process.pid, "2"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        await asyncio.sleep(2.5 if number is SIGSTOP else 0)
    more = [asyncio.create_task(analyzed([n])) for n in range(40)]
    for n, task in enumerate(more):
        assert await task == [expected[n]]
    for task in under_way:
        assert await task == expected
    await client.close()


def _said(result: Result) -> object:
    assert isinstance(result, Analysis)
    return result.language, result.sentiment, result.point


class Full(Triton):
    """Fails on one text, and its queue is full whenever it is asked whether it lives."""

    async def _infer(self, texts: Sequence[bytes], version: str, within_s: float | None = None) -> Any:
        if b"spoilt" in texts:
            raise InferenceServerException("something is wrong with a text", "StatusCode.INTERNAL")
        if texts == [b"ok"]:
            raise InferenceServerException("Exceeds maximum queue size", "StatusCode.UNAVAILABLE")
        return await super()._infer(texts, version, within_s)


async def test_a_busy_model_is_not_taken_for_a_dead_one(server: Server) -> None:
    assert server.process is not None
    before = model_processes(server.process.pid, "2")
    client = Full(server.address)
    with pytest.raises(UnavailableError, match="Exceeds maximum queue size"):
        await client.analyze(["Muito bom", "spoilt"])
    await client.close()
    assert model_processes(server.process.pid, "2") == before


async def test_a_frozen_triton_is_unavailable_and_not_asked_for_ever(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter, "TIMEOUT_S", 0.5)
    monkeypatch.setattr(adapter, "SILENT_S", 0.5)
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
