"""Output that goes nowhere: it was closed from the start, or the disk is full."""

import subprocess
import sys

import pytest

from services.cli.machine import ROOT, environment

FULL = "error: what there is to tell cannot be written: No space left on device\n"


@pytest.mark.parametrize(
    ("arguments", "to", "code", "err"),
    [
        (("playbook", "schema"), ">&-", 0, ""),
        (("--help",), ">&-", 0, ""),
        (("scores", "--per", "nonsense"), "2>&-", 2, ""),
        (("playbook", "schema"), ">/dev/full", 1, FULL),
        (("--help",), ">/dev/full", 1, FULL),
    ],
)
def test_a_command_ends_as_it_should_where_its_output_goes_nowhere(
    arguments: tuple[str, ...], to: str, code: int, err: str
) -> None:
    command = ("sh", "-c", f'exec "$@" {to}', "sh", sys.executable, "-m", "services.cli.main", *arguments)
    ended = subprocess.run(
        command, env={**environment(), "COLUMNS": "200"}, cwd=ROOT, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (ended.returncode, ended.stderr) == (code, err)
