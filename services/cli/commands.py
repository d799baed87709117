"""All commands of `recorrido`, by the question that they answer."""

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import typer
from rich.text import Text
from typer.core import TyperGroup

from services.cli import (
    actions,
    analyze,
    board,
    chart,
    correct,
    events,
    flow,
    identity,
    journeymap,
    journeys,
    local,
    models,
    pipes,
    playbook,
    privacy,
    proof,
    rejected,
    report,
    republish,
    show,
    webhooks,
)
from services.cli.failures import CommandError
from services.cli.importing import commands as importing_commands


class _Group(TyperGroup):
    """Tells of values as a person would: typer writes <bool> behind a flag, and a Python error before a wrong value."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _take_no_value(self)

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        with _in_words():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: Any) -> Any:
        with _in_words():
            return super().invoke(ctx)


def _take_no_value(command: Any) -> None:
    for each in command.params:
        if getattr(each, "is_flag", False):
            each.metavar = ""
    for below in getattr(command, "commands", {}).values():
        _take_no_value(below)


@contextlib.contextmanager
def _in_words() -> Iterator[None]:
    try:
        yield
    except typer.BadParameter as error:
        error.message = error.message.removeprefix("Value error, ")
        raise


app = typer.Typer(
    name="recorrido",
    cls=_Group,
    help="Customer experience management: what happened, what it means, where it hurts, and what is done about it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
#: What there is, as `--help` lists it: by the question that it answers. A pair is a group of commands and its name.
_COMMANDS: dict[str, tuple[Any, ...]] = {
    "Begin here": (local.run, report.report, journeys.overview),
    "What happened?": (
        ("import", importing_commands.app),
        ("rejected", rejected.app),
        ("identity", identity.app),
        privacy.export,
        privacy.erase,
    ),
    "What does it mean?": (
        analyze.analyze,
        correct.analyses,
        correct.correct,
        correct.corrections,
        analyze.taxonomy,
        ("models", models.app),
        models.reanalyze,
        models.retry_failed,
    ),
    "Where does each customer, and each touchpoint, stand?": (
        journeys.customer,
        journeys.watch,
        journeys.scores,
        journeys.points,
        journeys.ladder,
        journeys.signals,
        flow.flow,
        flow.coverage,
        chart.chart,
        ("map", journeymap.app),
    ),
    "What do we do about it, and did it help?": (
        ("actions", actions.app),
        board.board,
        proof.explain,
        proof.impact,
        ("playbook", playbook.app),
        ("webhook", webhooks.app),
    ),
    "For those who run it": (events.events, republish.republish, journeys.rebuild, privacy.scavenge),
}
for _question, _answers in _COMMANDS.items():
    for _each in _answers:
        if isinstance(_each, tuple):
            app.add_typer(_each[1], name=_each[0], rich_help_panel=_question)
        else:
            app.command(rich_help_panel=_question)(_each)


def execute() -> None:
    """Run the command that the arguments of this process tell, and end with its exit code."""
    pipes.end_with_the_reader()
    try:
        try:
            app()
        finally:
            # Here it can still end as it should where nobody reads it; later Python would complain.
            sys.stdout.flush()
    except CommandError as error:
        show.console(stderr=True).print(Text.assemble(("error:", "red"), f" {error}"), soft_wrap=True)
        sys.exit(error.exit_code)
