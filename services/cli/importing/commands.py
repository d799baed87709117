"""`import olist DIR`, `import sample` and `import file FILE…`."""

import time
from collections.abc import AsyncIterator, Iterable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from recorrido.ingest.v1.interaction_pb2 import Interaction
from services.cli import clients, journeymap, playbook, sample, show
from services.cli.clients import Addresses
from services.cli.importing import olist
from services.cli.importing.csvfiles import BadRows
from services.cli.importing.files import import_file
from services.cli.importing.recording import (
    ACTOR,
    FIRST_ANSWER_S,
    Pause,
    Steps,
    Summary,
    overview,
    patiently,
    record,
    settle,
)
from services.cli.options import run

app = typer.Typer(help="Bring in what happened elsewhere; twice is as good as once.", no_args_is_help=True)

app.command("file")(import_file)

#: What is to be done about bad moments, unless the company has a playbook already.
SAMPLE_PLAYBOOK = "standard"
#: The map published last is the one asked by default, and the second of these places what the first does too.
SAMPLE_MAPS = ("ecommerce", "omnichannel")


Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until all is understood and placed.")]


@app.command("olist")
def import_olist(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder with the seven CSV files.")],
    *,
    wait: Wait = True,
) -> None:
    """Import the public data set of the Brazilian marketplace Olist."""
    run(_import_olist(folder, wait=wait))


async def _import_olist(folder: Path, *, wait: bool) -> None:
    out = show.console(stderr=True)
    bad = BadRows()
    with out.status(f"reading {folder}"):
        people = olist.read(folder, bad)
    orders = sum(len(each) for each in people)
    out.print(f"{orders:,} orders of {len(people):,} customers")
    customers = [olist.interactions(each) for each in people]
    summary = await load(Addresses.configured(), customers, ["ecommerce"], out, wait=wait)
    for row in bad.first:
        out.print(show.plain(f"  {row.file}, line {row.line}: {row.problem}"), style="yellow")
    if bad.count:
        out.print(f"{bad.count:,} rows could not be used and were passed over", style="yellow")
    if bad.count or summary.rejected:
        raise typer.Exit(1)


@app.command("sample")
def import_sample(
    *,
    customers: Annotated[int, typer.Option(min=1, max=1_000_000, help="How many customers.")] = sample.CUSTOMERS,
    seed: Annotated[int, typer.Option(min=0, help="Another seed makes another company.")] = sample.SEED,
    wait: Wait = True,
) -> None:
    """Import the made-up journeys of a plausible company, in four languages and on all channels."""
    run(_import_sample(customers, seed, wait=wait))


async def _import_sample(customers: int, seed: int, *, wait: bool) -> None:
    out = show.console(stderr=True)
    if (await load_sample(Addresses.configured(), sample.generate(customers, seed), out, wait=wait)).rejected:
        raise typer.Exit(1)


async def load_sample(
    addresses: Addresses, customers: Iterable[Sequence[Interaction]], out: Console, *, wait: bool
) -> Summary:
    """As `load`, with the sample's maps and its playbook."""
    async with clients.playbooks(addresses) as playbooks:
        publish = partial(playbook.publish_if_none, playbooks, SAMPLE_PLAYBOOK, ACTOR)
        if await patiently(publish, Pause(FIRST_ANSWER_S)):
            out.print(f"the playbook {SAMPLE_PLAYBOOK} is published")
    began = datetime.now(UTC)
    summary = await load(addresses, customers, SAMPLE_MAPS, out, wait=wait)
    if summary.recorded:
        out.print(
            f"it happened until {sample.ANCHOR:%Y-%m-%d} and was recorded now: --from and --to are about when it"
            f" happened, --as-of about when it was recorded, and before {began:%Y-%m-%dT%H:%MZ} it was not",
            soft_wrap=True,
        )
    return summary


async def load(
    addresses: Addresses,
    customers: Iterable[Sequence[Interaction]],
    map_names: Sequence[str],
    out: Console,
    *,
    wait: bool,
) -> Summary:
    """Publish the shipped maps if need be, record everything, wait until it is placed and understood, and tell.

    Raises:
        CommandError: a service does not answer, or does not go on.
    """
    customers = list(customers)
    maps = [journeymap.load(journeymap.SHIPPED / f"{name}.yaml") for name in map_names]
    started = time.monotonic()
    async with clients.journey(addresses) as journey:
        for each in maps:
            publish = partial(journeymap.publish_if_new, journey, each, ACTOR)
            if await patiently(publish, Pause(FIRST_ANSWER_S)):
                out.print(f"the journey map {each.map_id} is published")
        before = await overview(journey)
    total = sum(len(each) for each in customers)
    out.print(f"loading {total:,} interactions of {len(customers):,} customers: they are recorded, placed, understood")
    with Steps(out) as bars:
        recording = bars.add_task("recording", total=total)
        async with clients.ingest(addresses) as ingest:
            summary = await record(ingest, _each(customers), lambda done: bars.update(recording, advance=len(done)))
        if wait:
            async with clients.journey(addresses) as journey:
                await settle(journey, before, summary.recorded, bars)
    _tell(summary, time.monotonic() - started, out)
    return summary


async def _each(customers: Iterable[Sequence[Interaction]]) -> AsyncIterator[tuple[Interaction, None]]:
    for interactions in customers:
        for interaction in interactions:
            yield interaction, None


def _tell(summary: Summary, seconds: float, out: Console) -> None:
    out.print(
        f"recorded {summary.recorded:,}, duplicates {summary.duplicates:,}, rejected {summary.rejected.total():,} "
        f"· recording took {summary.seconds:.1f} s, all {seconds:.1f} s"
    )
    for source, interaction_id, problem in summary.rejections:
        told = "; ".join(f"{each.field}: {each.rule}" for each in problem.violations) or problem.message
        out.print(show.plain(f"  {source} {interaction_id}: {problem.reason}: {told}"), style="yellow")
    for reason, number in summary.rejected.most_common():
        out.print(f"  {reason}: {number:,}", style="yellow")
