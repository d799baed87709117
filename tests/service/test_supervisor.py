"""The local supervisor with programs made for the purpose: order, restarts, limits, ends, logs."""

import asyncio
import io
import sys
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from signal import SIGCONT, SIGKILL, SIGSTOP, SIGTERM

import pytest

from infra.local import ports as port_numbers
from infra.local import processes, supervisor
from infra.local.cluster import started
from infra.local.logs import Console, PartLog
from infra.local.parts import Part, UnknownPartError, catalogue, with_needs
from infra.local.ports import BadPortError, PortError, Ports
from infra.local.probes import NotReadyError
from infra.local.supervisor import PartFailedError, Restarts, State
from infra.triton.launch import TritonSettings
from tests.support.cluster import running
from tests.support.wait import until

# Tells when it is up and when it is asked to end, and takes `stubborn` as a wish to ignore that.
PROGRAM = """
import os, signal, subprocess, sys
from pathlib import Path
diary, name, *wishes = sys.argv[1:]
def note(what):
    with open(diary, "a") as file:
        file.write(f"{what} {name}\\n")
def end(*_):
    note("asked")
    if "stubborn" not in wishes:
        sys.exit(0)
signal.signal(signal.SIGTERM, end)
if "parent" in wishes:
    child = subprocess.Popen(["sleep", "1000"])
    Path(diary + ".child").write_text(str(child.pid))
note("up")
while True:
    signal.pause()
"""


def diary_of(tmp_path: Path) -> Path:
    return tmp_path / "diary"


def noted(tmp_path: Path) -> list[str]:
    diary = diary_of(tmp_path)
    return diary.read_text().splitlines() if diary.exists() else []


def ready_when(holds: Callable[[], bool]) -> Callable[[], Awaitable[None]]:
    async def probe() -> None:
        if not holds():
            raise NotReadyError("not yet")

    return probe


def part(tmp_path: Path, name: str, *wishes: str, needs: tuple[str, ...] = (), stop_within_s: float = 2.5) -> Part:
    return Part(
        name=name,
        argv=(sys.executable, "-S", "-c", PROGRAM, str(diary_of(tmp_path)), name, *wishes),
        ready=ready_when(lambda: f"up {name}" in noted(tmp_path)),
        needs=needs,
        stop_within_s=stop_within_s,
    )


def failing(name: str, script: str, *, start_within_s: float = 10.0) -> Part:
    return Part(
        name=name,
        argv=("sh", "-c", script),
        ready=ready_when(lambda: False),
        start_within_s=start_within_s,
    )


def known(*parts: Part) -> dict[str, Part]:
    return {each.name: each for each in parts}


async def test_parts_start_after_their_needs_and_stop_before_them(tmp_path: Path) -> None:
    parts = known(
        part(tmp_path, "service", needs=("broker", "store")),
        part(tmp_path, "broker", needs=("store",)),
        part(tmp_path, "store"),
    )
    async with running(data=tmp_path / "var", known=parts) as cluster:
        assert cluster.parts == ["store", "broker", "service"]
    assert noted(tmp_path) == [
        *("up store", "up broker", "up service"),
        *("asked service", "asked broker", "asked store"),
    ]


async def test_a_part_brings_what_it_needs_and_nothing_else(tmp_path: Path) -> None:
    parts = known(part(tmp_path, "store"), part(tmp_path, "other"), part(tmp_path, "service", needs=("store",)))
    async with running(["service"], data=tmp_path / "var", known=parts) as cluster:
        assert cluster.parts == ["store", "service"]
    with pytest.raises(UnknownPartError, match="no part 'srevice'; there are store, other, service"):
        with_needs(parts, ["srevice"])


async def test_a_killed_part_is_started_again(tmp_path: Path) -> None:
    async with running(data=tmp_path / "var", known=known(part(tmp_path, "store"))) as cluster:
        before = cluster.pid("store")
        await cluster.kill_and_restart("store")
        assert cluster.pid("store") != before
        assert cluster.restarts("store") == 1
        assert processes.stat(before) is None


async def test_a_part_that_a_test_kills_often_does_not_count_as_dying(tmp_path: Path) -> None:
    limits = Restarts(limit=2, first_pause_s=0.01)
    async with running(data=tmp_path / "var", known=known(part(tmp_path, "store")), restarts=limits) as cluster:
        for _ in range(4):
            await cluster.kill_and_restart("store")
        assert cluster.restarts("store") == 4


async def test_children_of_a_killed_part_go_before_it_is_started_again(tmp_path: Path) -> None:
    async with running(data=tmp_path / "var", known=known(part(tmp_path, "store", "parent"))) as cluster:
        pid_file = tmp_path / "diary.child"
        child = int(pid_file.read_text())
        assert processes.stat(child)
        await cluster.kill_and_restart("store")
        assert processes.stat(child) is None
        last = int(pid_file.read_text())
    assert processes.stat(last) is None


async def test_a_part_that_keeps_dying_ends_the_run_with_its_last_words(tmp_path: Path) -> None:
    kettle = replace(failing("kettle", "echo out of beans >&2; exit 7"), needs=("store",))
    parts = known(part(tmp_path, "store"), kettle)
    with pytest.raises(PartFailedError) as failure:
        async with running(data=tmp_path / "var", known=parts, restarts=Restarts(limit=3, first_pause_s=0.01)):
            pytest.fail("it is never ready")
    assert str(failure.value) == (
        "kettle exited with code 7, and has now died 3 times within 60 s; giving up. It wrote last:\n"
        "    out of beans\n    out of beans\n    out of beans"
    )
    assert noted(tmp_path)[-1] == "asked store"


async def test_a_part_that_never_becomes_ready_ends_the_run(tmp_path: Path) -> None:
    parts = known(failing("kettle", "echo heating; exec sleep 1000", start_within_s=0.3))
    with pytest.raises(PartFailedError, match=r"kettle was not ready within 0.3 s .*not yet(.|\n)*heating"):
        async with running(data=tmp_path / "var", known=parts):
            pytest.fail("it is never ready")


async def test_a_program_that_is_not_there_is_told_so(tmp_path: Path) -> None:
    parts = known(failing("ghost", "exec /no/such/program"))
    with pytest.raises(PartFailedError, match=r"ghost exited with code 127(.|\n)*/no/such/program"):
        async with running(data=tmp_path / "var", known=parts, restarts=Restarts(limit=1)):
            pytest.fail("it is never ready")


@pytest.mark.parametrize("frozen", [False, True])
async def test_a_part_that_does_not_stop_is_killed(tmp_path: Path, *, frozen: bool) -> None:
    stubborn = part(tmp_path, "mule", "stubborn", stop_within_s=0.2)
    async with running(data=tmp_path / "var", known=known(stubborn)) as cluster:
        pid = cluster.pid("mule")
        if frozen:
            cluster.kill("mule", SIGSTOP)
    assert processes.stat(pid) is None


async def test_one_part_can_be_stopped_and_started_frozen_and_thawed(tmp_path: Path) -> None:
    async with running(data=tmp_path / "var", known=known(part(tmp_path, "store"))) as cluster:
        await cluster.stop("store")
        assert cluster.state("store") is State.STOPPED
        assert noted(tmp_path)[-1] == "asked store"
        await cluster.start("store")
        assert cluster.state("store") is State.READY
        cluster.kill("store", SIGSTOP)
        cluster.kill("store", SIGTERM)
        cluster.kill("store", SIGCONT)
        await until(lambda: cluster.restarts("store") == 1)
        await cluster.until_ready()


@pytest.mark.parametrize("how", ["hangs", "fails", "answers"])
async def test_a_part_that_answers_nobody_is_killed_and_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(supervisor, "LOOK_EVERY_S", 0.01)
    asked = 0

    async def answers() -> None:
        nonlocal asked
        asked += 1
        if how == "hangs":
            await asyncio.Event().wait()
        if how == "fails":
            raise NotReadyError("not now")

    store = replace(part(tmp_path, "store"), answers=answers, silent_s=0.2)
    async with running(data=tmp_path / "var", known=known(store)) as cluster:
        if how == "answers":
            await until(lambda: asked > 50)
            assert cluster.restarts("store") == 0
        else:
            await until(lambda: cluster.restarts("store") > 0)
            await cluster.until_ready()


async def test_one_question_that_is_lost_is_no_hanging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "LOOK_EVERY_S", 0.01)
    monkeypatch.setattr(supervisor, "ASK_AGAIN_S", 0.05)
    asked = 0

    async def answers() -> None:
        nonlocal asked
        asked += 1
        if asked == 1:
            await asyncio.Event().wait()

    store = replace(part(tmp_path, "store"), answers=answers, silent_s=2.0)
    async with running(data=tmp_path / "var", known=known(store)) as cluster:
        await until(lambda: asked > 10)
        assert cluster.restarts("store") == 0


async def test_a_signal_to_one_that_has_just_died_does_not_hide_its_death(tmp_path: Path) -> None:
    async with running(data=tmp_path / "var", known=known(part(tmp_path, "store"))) as cluster:
        pid = cluster.pid("store")
        cluster.kill("store")
        # Nobody but the kernel knows of it as long as we do not give way.
        while processes.stat(pid) is not None:
            pass
        cluster.kill("store")
        await until(lambda: cluster.restarts("store") == 1)
        await cluster.until_ready()
        assert cluster.pid("store") != pid


@pytest.mark.parametrize("value", ["nats", "0", "65536", "-1", "\u0664\u0662"])
def test_a_port_that_is_none_names_its_variable(value: str) -> None:
    with pytest.raises(BadPortError, match="RECORRIDO_PORT_NATS_MONITOR must be a port from 1 to 65535"):
        port_numbers.from_environment({"RECORRIDO_PORT_NATS_MONITOR": value})


def test_each_port_has_its_variable_and_default() -> None:
    assert port_numbers.from_environment({}) == Ports()
    moved = port_numbers.from_environment({"RECORRIDO_PORT_TRITON_GRPC": "9001", "RECORRIDO_PORT_JOURNEY": ""})
    assert moved == Ports(triton_grpc=9001)


def test_a_port_given_twice_names_both_variables() -> None:
    with pytest.raises(PortError, match="RECORRIDO_PORT_INGEST or RECORRIDO_PORT_JOURNEY"):
        port_numbers.check(Ports(ingest=23990, journey=23990), ["ingest", "journey"])
    port_numbers.check(Ports(ingest=23990, journey=23990), ["journey"])


def test_lines_carry_their_part_and_colour_only_where_it_is_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def written(**environment: str) -> str:
        for name in ("NO_COLOR", "FORCE_COLOR"):
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        stream = io.StringIO()
        log = PartLog("nats", tmp_path, Console(stream))
        log.feed(b"one\ntw")
        log.feed(b"o\nno end")
        log.close()
        return stream.getvalue()

    assert written() == "nats       | one\nnats       | two\nnats       | no end\n"
    assert written(FORCE_COLOR="1").startswith("\x1b[36mnats       |\x1b[0m one\n")
    assert "\x1b" not in written(FORCE_COLOR="1", NO_COLOR="1")


def test_what_a_part_repeats_is_shown_once_and_counted(tmp_path: Path) -> None:
    out = io.StringIO()
    console = Console(out, width=5)
    log = PartLog("store", tmp_path, console)
    log.feed(b"lost\n" * 3)
    console.part("other", "still here")
    log.feed(b"lost\nback\nback again\nback again\n")
    log.end()
    log.feed(b"back again\n" * 3)
    log.close()
    assert out.getvalue().splitlines() == [
        "store | lost",
        "other | still here",
        "store | … and 3 times more: lost",
        "store | back",
        "store | back again",
        "store | … and once more: back again",
        "store | back again",
        "store | … and 2 times more: back again",
    ]
    assert (tmp_path / "store.log").read_bytes().count(b"lost") == 4, "the file has everything"


def test_a_held_part_shows_warnings_only_and_its_file_has_all(tmp_path: Path) -> None:
    stream = io.StringIO()
    log = PartLog("nats", tmp_path, Console(stream))
    log.held = True
    alarms = [
        "W1129 10:00:00.0 1 server.cc:1] no GPU",
        "[7] 2026/11/29 10:00:00 [WRN] slow disk",
        "ERROR:  no space",
        "Traceback (most recent call last):",
    ]
    banner = ["I1129 10:00:00.0 1 server.cc:1] errors: 0", "FATAL:  the database system is starting up"]
    banner.append("FATAL:  the database system is not yet accepting connections")
    log.feed("\n".join([*banner, *alarms, ""]).encode())
    log.held = False
    log.feed(b"[INF] after\n")
    log.close()
    assert stream.getvalue().splitlines() == [f"nats       | {line}" for line in [*alarms, "[INF] after"]]
    assert len((tmp_path / "nats.log").read_text().splitlines()) == 8


def test_what_is_known_to_be_harmless_is_in_the_file_alone(tmp_path: Path) -> None:
    stream = io.StringIO()
    log = PartLog("triton", tmp_path, Console(stream), harmless="no GPU")
    log.held = True
    log.feed(b"E1129 10:00:00.0 1 server.cc:1] no GPU\nE1129 10:00:00.0 1 server.cc:1] no model\n")
    log.held = False
    log.feed(b"E1129 10:00:00.0 1 server.cc:1] lost the GPU: no GPU\n")
    log.close()
    assert ["no model" in line or "lost" in line for line in stream.getvalue().splitlines()] == [True, True]
    assert len((tmp_path / "triton.log").read_text().splitlines()) == 3


def test_a_log_file_keeps_to_its_cap(tmp_path: Path) -> None:
    log = PartLog("nats", tmp_path, Console(io.StringIO()), cap_bytes=1000)
    for number in range(300):
        log.feed(f"line {number}\n".encode())
    log.close()
    sizes = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert set(sizes) == {"nats.log", "nats.log.1"}
    assert all(size <= 1000 for size in sizes.values())
    assert (tmp_path / "nats.log").read_text().endswith("line 299\n")
    assert log.last[-1] == "line 299"


async def test_what_a_killed_run_left_is_ended_by_the_next(tmp_path: Path) -> None:
    """A part's child survives here: the kernel ends only the part itself with its supervisor."""
    driver = tmp_path / "driver.py"
    driver.write_text(
        f"""
import asyncio, os, sys
from pathlib import Path
sys.path[:0] = {[str(Path(__file__).parents[2]), str(Path(__file__).parent)]!r}
from test_supervisor import known, part, running
async def main():
    here = Path({str(tmp_path)!r})
    async with running(data=here / "var", known=known(part(here, "store", "parent"))):
        os.kill(os.getpid(), 9)
asyncio.run(main())
"""
    )
    driven = await asyncio.create_subprocess_exec(sys.executable, str(driver))
    assert await driven.wait() == -SIGKILL
    child = int((tmp_path / "diary.child").read_text())
    assert processes.stat(child)
    async with running(data=tmp_path / "var", known=known(part(tmp_path, "store"))):
        assert processes.stat(child) is None


async def test_what_takes_its_time_to_end_is_waited_for_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "TELL_AFTER_S", 0.05)
    out = io.StringIO()
    parts = known(part(tmp_path, "store"), part(tmp_path, "mule", "stubborn", needs=("store",), stop_within_s=0.6))
    async with started(
        [], data=tmp_path / "var", ports=port_numbers.free(), known=parts, console=Console(out)
    ) as cluster:
        await cluster.until_ready()
    assert "waiting for mule (at most 0.6 s) to end; Ctrl-C again kills what is left\n" in out.getvalue()
    assert "mule did not stop within 0.6 s and was killed" in out.getvalue()
    assert noted(tmp_path)[-1] == "asked store", "what others need ends after them, in order"


def test_triton_has_longer_to_end_than_it_takes_for_itself() -> None:
    triton = catalogue(Path("/data"), port_numbers.free())["triton"]
    assert triton.stop_within_s > TritonSettings().exit_timeout_seconds >= 20
