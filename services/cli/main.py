"""The `recorrido` command."""

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
    """Tells of a wrong value as a person would: typer puts the name of a Python error before it."""

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        with _in_words():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: Any) -> Any:
        with _in_words():
            return super().invoke(ctx)


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
app.command()(local.run)
app.add_typer(importing_commands.app, name="import")
app.add_typer(journeymap.app, name="map")
app.command()(journeys.customer)
app.command()(journeys.scores)
app.command()(journeys.points)
app.command()(journeys.ladder)
app.command()(journeys.signals)
app.command()(journeys.watch)
app.command()(journeys.rebuild)
app.command()(chart.chart)
app.command()(flow.flow)
app.command()(flow.coverage)
app.add_typer(actions.app, name="actions")
app.add_typer(webhooks.app, name="webhook")
app.command()(board.board)
app.command()(proof.explain)
app.add_typer(playbook.app, name="playbook")
app.command()(proof.impact)
app.add_typer(rejected.app, name="rejected")
app.add_typer(identity.app, name="identity")
app.command()(privacy.export)
app.command()(privacy.erase)
app.command()(privacy.scavenge)
app.command()(events.events)
app.command()(republish.republish)
app.command()(journeys.overview)
app.command()(report.report)
app.command()(analyze.analyze)
app.command()(analyze.taxonomy)
app.add_typer(models.app, name="models")
app.command()(models.reanalyze)
app.command("retry-failed")(models.retry_failed)
app.command()(correct.analyses)
app.command()(correct.correct)
app.command()(correct.corrections)


def main() -> None:
    """Run a command.

    0: done; 1: it failed, and one line on stderr tells why; 2: it was called or set up wrongly; 130: Ctrl-C;
    141: whoever read the output went away.
    """
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


if __name__ == "__main__":
    main()
