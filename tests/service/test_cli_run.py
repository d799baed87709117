"""`recorrido run` as `make run` starts it: everything up, the sample in an empty store, the report, and Ctrl-C."""

import asyncio
import json
import os
import re
import sys
import time
from itertools import pairwise
from pathlib import Path
from signal import SIGINT, SIGKILL
from typing import Any

import pytest

from infra.local import directory, processes
from infra.local import ports as port_numbers
from infra.local.ports import Ports
from services.cli import sample
from services.cli.importing.recording import TOLD_EVERY_S
from tests.support.cli import ROOT, environment, start
from tests.support.wait import until

UP = "Recorrido is up; Ctrl-C stops it."
#: Rows of the example that README.md imports.
IMPORTED = 6


class Run:
    """A `recorrido run` and what it has written."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[str] = []
        self.reading = asyncio.create_task(self._read())

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    async def until_up(self, within_s: float) -> None:
        await until(lambda: UP in self.text or self.process.returncode is not None, within_s, what=UP)
        assert self.process.returncode is None, self.text

    async def stop(self) -> float:
        """Interrupt it; the seconds until it has ended."""
        began = time.monotonic()
        if self.process.returncode is None:
            self.process.send_signal(SIGINT)
        await asyncio.wait_for(self.process.wait(), 20)
        await self.reading
        return time.monotonic() - began

    async def _read(self) -> None:
        assert self.process.stdout is not None
        while line := await self.process.stdout.readline():
            self.lines.append(line.decode().rstrip())


async def run(data: Path, ports: Ports, *options: str) -> Run:
    return Run(await start(("run", *options), environment(ports, RECORRIDO_DATA=str(data))))


async def what_a_newcomer_tries(env: dict[str, str]) -> None:
    """Every question of README.md has an answer in the sample."""

    async def asked(*arguments: str) -> Any:
        process = await start((*arguments, "--json"), env)
        out, err = await process.communicate()
        assert process.returncode == 0, (arguments, err)
        return json.loads(out)

    charts = (await asked("chart"))["charts"]
    (order_status,) = [each for each in charts if each["name"] == "CSAT of Where is my order"]
    outside = [point["from"] for point in order_status["points"] if point["state"] == "CHART_STATE_OUTSIDE"]
    assert [day for day in outside if f"{sample.NO_NEWS[0]:%Y-%m-%d}" <= day < f"{sample.NO_NEWS[1]:%Y-%m-%d}"]
    assert [each for each in charts if each["needPath"] and not each["notCharted"]], "a point with limits, too"
    rules = {each["rule"] for each in (await asked("signals", "--limit", "2000"))["signals"]}
    assert {"bad_moment", "touchpoint_silent", "score_worsened"} <= rules
    for kind in ("recovery", "improvement"):
        listed = (await asked("actions", "list", "--order", "due", "--kind", kind, "--limit", "5"))["actions"]
        assert all(each["owner"] and each["acceptBy"] for each in listed), listed
        assert listed
    before = await asked("overview")
    imported = ("import", "file", "examples/import/orders.csv", "--mapping", "examples/import/orders.yaml")
    assert (await asked(*imported))["recorded"] == IMPORTED

    async def placed() -> Any:
        found = await asked("overview")
        return found if int(found["interactions"]) == int(before["interactions"]) + IMPORTED else None

    assert (await until(placed, 30))["uncoveredInteractions"] == before["uncoveredInteractions"]


@pytest.mark.timeout(300)
async def test_an_empty_store_offers_itself_with_the_sample_and_keeps_it(tmp_path: Path) -> None:
    told = [each for customer in sample.generate() for each in customer]
    ports = port_numbers.free()
    first = await run(tmp_path, ports)
    try:
        await first.until_up(200)
        assert f"recorded {len(told):,}, duplicates 0, rejected 0" in first.text
        for title in ("customers", "Scores", "Top pain points", "Open recoveries", "Where to call"):
            assert title in first.text
        assert f"{len(told):,}" in first.text
        for part in ("ingest", "inference", "journey", "actions", "nats", "eventstore"):
            assert ports.of(part) in first.text
        assert "the playbook standard is published" in first.text
        began = first.lines.index(
            f"loading {len(told):,} interactions of {sample.CUSTOMERS} customers: they are recorded, placed, understood"
        )
        told_at = [
            int(step[1])
            for line in first.lines[began:]
            if (step := re.match(r"(?:recording|placing|understanding) \d.* · (\d+) s$", line))
        ]
        assert told_at, "whoever reads a pipe sees that it goes on"
        # Each is rounded to a second.
        assert all(later - sooner >= TOLD_EVERY_S - 1 for sooner, later in pairwise(told_at))
        await what_a_newcomer_tries(environment(ports, RECORRIDO_DATA=str(tmp_path)))
        # A second run on the same data is refused, and does not disturb the first.
        other = await run(tmp_path, ports)
        assert await asyncio.wait_for(other.process.wait(), 30) == 1
        await other.reading
        assert UP not in other.text
        assert "is in use by another run" in other.text
    finally:
        took = await first.stop()
    leaving = first.lines[first.lines.index("recorrido  | stopping: Ctrl-C (SIGINT)") :]
    assert [line for line in leaving if not line.startswith("recorrido  |")] == [], "it stops quietly"
    assert "Timeout" in (tmp_path / "log/triton.log").read_text(encoding="utf-8"), "what was said is in the file"
    assert (first.process.returncode, took < 10) == (0, True)

    again = await run(tmp_path, ports, "--quiet")
    try:
        await again.until_up(60)
        assert "here is a sample company" not in again.text
        assert f"{len(told) + IMPORTED:,}" in again.text, "the report is of what was kept"
    finally:
        await again.stop()
    assert again.process.returncode == 0


@pytest.mark.timeout(120)
async def test_without_the_sample_the_store_stays_empty(tmp_path: Path) -> None:
    alone = await run(tmp_path, port_numbers.free(), "--no-sample", "--no-report", "--quiet")
    try:
        await alone.until_up(60)
        assert "recorded" not in alone.text
        assert "Scores" not in alone.text
    finally:
        await alone.stop()
    assert alone.process.returncode == 0


async def test_a_port_that_is_taken_ends_the_run_with_its_message(tmp_path: Path) -> None:
    ports = port_numbers.free()

    async def ignore(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with await asyncio.start_server(ignore, "127.0.0.1", ports.nats):
        refused = await run(tmp_path, ports)
        code = await asyncio.wait_for(refused.process.wait(), 30)
        await refused.reading
    assert code == 1
    assert f"port {ports.nats} of nats is taken" in refused.text


async def test_nothing_outlives_a_run_that_is_killed(tmp_path: Path) -> None:
    killed = await run(tmp_path, port_numbers.free(), "--no-sample", "--no-report")
    await until(lambda: "nats is ready" in killed.text, 30, what="a part")
    record = directory.read(tmp_path)
    groups = [record["pid"], *(part["pid"] for part in record["parts"] if part["pid"])]
    assert len(groups) > 2
    killed.process.send_signal(SIGKILL)
    await killed.process.wait()
    await until(lambda: not any(map(processes.members, groups)), 20, what="the end of all parts")
    await killed.reading
    assert not directory.is_held(tmp_path), "the next run can begin"


async def test_a_supervisor_that_is_killed_is_told_of(tmp_path: Path) -> None:
    left = await run(tmp_path, port_numbers.free(), "--no-sample", "--no-report")
    await until(lambda: "nats is ready" in left.text, 30, what="a part")
    os.kill(directory.read(tmp_path)["pid"], SIGKILL)
    assert await asyncio.wait_for(left.process.wait(), 20) == 128 + SIGKILL
    await left.reading
    assert "was ended by SIGKILL, and every part with it" in left.lines[-1]


async def test_it_stops_in_order_when_nobody_reads_it_any_more(tmp_path: Path) -> None:
    command = (sys.executable, "-m", "services.cli.main", "run", "--no-sample", "--no-report")
    reader, writer = os.pipe()
    env = environment(port_numbers.free(), RECORRIDO_DATA=str(tmp_path))
    process = await asyncio.create_subprocess_exec(
        *command, env=env, cwd=ROOT, stdout=writer, stderr=asyncio.subprocess.PIPE
    )
    os.close(writer)
    with os.fdopen(reader, "rb") as lines:
        assert b"ready" in await asyncio.to_thread(lines.readline), "as `run | head -1` reads it"
    _, err = await asyncio.wait_for(process.communicate(), 30)
    assert (process.returncode, err) == (141, b"")
    assert not (tmp_path / "run.json").exists(), "all of it was stopped before"
    assert not directory.is_held(tmp_path)


async def test_an_interrupt_while_it_loads_is_not_told_of(tmp_path: Path) -> None:
    def loads(run: Run) -> bool:
        return "cygrpc" in Path(f"/proc/{run.process.pid}/maps").read_text()

    def has_a_supervisor(run: Run) -> bool:
        pid = run.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return any(b"infra.local" in Path(f"/proc/{child}/cmdline").read_bytes() for child in children)

    for seen in (loads, has_a_supervisor):
        begun = await run(tmp_path, port_numbers.free(), "--no-sample", "--no-report")
        await until(lambda: seen(begun), 30, what=seen.__name__)  # noqa: B023 - waited for here
        await begun.stop()
        assert begun.process.stderr is not None
        assert b"Traceback" not in await begun.process.stderr.read()
        assert "Traceback" not in begun.text
        assert "error" not in begun.text
        assert begun.process.returncode in {0, 128 + SIGINT, -SIGINT}
        await until(lambda: not directory.is_held(tmp_path), 20, what="the end of its supervisor")


async def test_an_interrupt_while_it_starts_ends_it_too(tmp_path: Path) -> None:
    starting = await run(tmp_path, port_numbers.free())
    await until(lambda: "recorrido" in starting.text, 30, what="a first line")
    assert await starting.stop() < 10
    assert UP not in starting.text


async def test_an_interrupt_ends_what_waits_for_texts(tmp_path: Path) -> None:
    texts = tmp_path / "texts"
    os.mkfifo(texts)
    process = await start(("analyze", "--file", str(texts)), environment(port_numbers.free()))
    # There is a writer only once the command reads.
    writer = await until(lambda: os.open(texts, os.O_WRONLY | os.O_NONBLOCK), 30, ignoring=(OSError,))
    try:
        process.send_signal(SIGINT)
        out, err = await asyncio.wait_for(process.communicate(), 10)
    finally:
        os.close(writer)
        await process.wait()
    assert (process.returncode, out, b"Traceback" in err) == (128 + SIGINT, b"", False)
