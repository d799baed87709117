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


def test_help_is_by_the_question_that_a_command_answers_and_flags_take_no_value() -> None:
    def told(*arguments: str) -> str:
        command = (sys.executable, "-m", "services.cli.main", *arguments, "--help")
        env = {**environment(), "COLUMNS": "120"}
        return subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True).stdout

    all_of_it = told()
    questions = ["What happened?", "What does it mean?", "stand? ─", "did it help?", "For those who run it"]
    places = [all_of_it.index(each) for each in questions]
    assert places == sorted(places)
    assert places[0] < all_of_it.index(" import ") < places[1] < all_of_it.index(" analyze ") < places[2]
    assert "─ Commands ─" not in all_of_it, "each is under a question"
    verify = told("actions", "verify")
    assert [line for line in verify.splitlines() if "<bool>" in line and "--help" not in line] == []
    assert "(dynamic)" not in verify
