"""What the services write: no customer's words in a traceback, and no line repeated for ever."""

import subprocess
import sys

from infra.local.parts import ROOT

SCRIPT = """
import logging, structlog
from services.foundation import telemetry
telemetry.set_up("test", log_format={format!r})
def handle(verbatim):
    raise ValueError("broken")
try:
    handle("my card is 4111 1111 1111 1111")
except ValueError:
    structlog.get_logger().exception("reaction failed")
try:
    raise ConnectionRefusedError(111, "nobody there")
except OSError:
    logging.getLogger("asyncpg.pool").warning("Failed to restore the pool", exc_info=True)
for _ in range(50):
    logging.getLogger("opentelemetry.exporter").error("Failed to export %s", "traces")
    for state in ("is starting", "does not listen"):
        structlog.get_logger().warning("projection waits", projection="journey", error=f"PostgreSQL: {{state}}")
    structlog.get_logger().warning("projection waits", projection="holdings", error="PostgreSQL: is starting")
    structlog.get_logger().warning("projection waits", projection="journey", error="the event store is away")
    for durable in ("inference-analyze", "journey-signals"):
        structlog.get_logger().warning("waiting", durable=durable, error=f"triton: {{_}} s away")
        structlog.get_logger().warning("waiting for JetStream", durable=durable, error="TimeoutError()")
for number in range(2):
    # The library goes on, whatever its words.
    logging.getLogger(f"library {{number}}").warning("a task waits")
"""


def written(log_format: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(format=log_format)],
        cwd=ROOT,
        env={"PYTHONPATH": f"{ROOT}:{ROOT / 'proto/gen'}", "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stderr


def test_a_traceback_shows_no_values() -> None:
    for log_format in ("console", "json"):
        lines = written(log_format)
        assert "ValueError: broken" in lines
        assert "4111" not in lines


def test_a_database_that_is_away_is_told_in_a_line() -> None:
    (line,) = [each for each in written("console").splitlines() if "Failed to restore the pool" in each]
    assert "ConnectionRefusedError(111, 'nobody there')" in line
    assert written("console").count("Traceback") == 1  # of our own failure


def test_what_waits_for_a_part_says_so_once() -> None:
    waiting = [each for each in written("console").splitlines() if "projection waits" in each]
    told = [(name, why) for each in waiting for name in ("journey", "holdings") if name in each
            for why in ("is starting", "does not listen", "is away") if why in each]  # fmt: skip
    assert told == [("journey", "is starting"), ("holdings", "is starting"), ("journey", "is away")]


def test_a_reaction_that_waits_says_so_once_for_each_part() -> None:
    lines = written("console").splitlines()
    for durable in ("inference-analyze", "journey-signals"):
        told = [each for each in lines if durable in each]
        assert [part for each in told for part in ("triton", "JetStream") if part in each] == ["triton", "JetStream"]


def test_a_library_that_waits_is_not_disturbed() -> None:
    assert written("console").count("a task waits") == 2


def test_a_library_that_keeps_failing_says_so_once() -> None:
    assert written("console").count("Failed to export") == 1
