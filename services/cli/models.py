"""Model versions: `models`, `models compare`; and the history under them: `reanalyze`, `retry-failed`."""

import uuid
from collections.abc import AsyncIterable, Callable
from typing import Annotated, Any

import typer
from google.protobuf.timestamp_pb2 import Timestamp

from recorrido.inference.v1 import inference_service_pb2 as pb
from recorrido.inference.v1.analysis_pb2 import Aspect
from services.cli import clients, show
from services.cli.clients import DEADLINE_S, Addresses
from services.cli.failures import CommandError
from services.cli.options import Actor, From, Json, To, run

#: A history may be long; a call that was cut off is made again.
WITHIN_S = 3600.0

app = typer.Typer(help="The model versions that Triton serves, and how they differ.", invoke_without_command=True)

Customers = Annotated[
    list[str] | None,
    typer.Option("--customer", metavar="ID", help="Only what is recorded under this id; may be given several times."),
]
Sources = Annotated[
    list[str] | None, typer.Option("--source", metavar="NAME", help="Only of this source; may be given several times.")
]
Rate = Annotated[
    float, typer.Option(min=0, help="Texts a second at most; 0: as many as go, one batch after the other.")
]


def part(
    from_: Timestamp | None, to: Timestamp | None, customers: list[str] | None, sources: list[str] | None
) -> pb.Slice:
    """Return what part of the history is meant."""
    return pb.Slice(**{"from": from_}, to=to, customer_ids=customers or (), sources=sources or ())


@app.callback()
def models(context: typer.Context, *, as_json: Json = False) -> None:
    """Show the versions that Triton knows, and which of them is in service."""
    if context.invoked_subcommand is None:
        run(_models(as_json=as_json))


async def _models(*, as_json: bool) -> None:
    async with clients.inference(Addresses.configured()) as inference:
        found = await inference.ListModels(pb.ListModelsRequest(), timeout=DEADLINE_S)
    if as_json:
        show.print_json(found)
        return
    lines = show.table(
        "model", "version", "state", "in service", "taxonomy", "languages~", "answers~", "reason~", spared=("taxonomy",)
    )
    for each in found.models:
        answers = [show.name(Aspect.DESCRIPTOR, aspect) for aspect in each.aspects]
        lines.add_row(
            each.name,
            each.version,
            show.name(pb.ModelState.DESCRIPTOR, each.state),
            "yes" if each.in_service else "",
            each.taxonomy_version,
            ", ".join(each.languages),
            ", ".join([*answers, *(["sentences"] if each.sentences else [])]),
            show.plain(each.reason),
        )
    show.console().print(show.filled(lines))


@app.command()
def compare(
    base: Annotated[str, typer.Argument(metavar="BASE", help="A model version; `models` tells it.")],
    other: Annotated[str, typer.Argument(metavar="OTHER", help="Another.")],
    *,
    from_: From = None,
    to: To = None,
    customers: Customers = None,
    sources: Sources = None,
    limit: Annotated[int, typer.Option(min=0, help="Verbatims at most; 0: all.")] = 0,
    examples: Annotated[int, typer.Option(min=0, max=20, help="Of each question; their texts are masked.")] = 3,
    as_json: Json = False,
) -> None:
    """Show how two versions differ over the history: what changed, from what to what. Records nothing."""
    request = pb.CompareModelsRequest(
        base_version=base,
        other_version=other,
        slice=part(from_, to, customers, sources),
        max_verbatims=limit,
        max_examples=examples,
    )
    run(_compare(request, as_json=as_json))


async def _compare(request: pb.CompareModelsRequest, *, as_json: bool) -> None:
    async with clients.inference(Addresses.configured()) as inference:
        last = await _follow(
            inference.CompareModels(request, timeout=WITHIN_S),
            "Comparing",
            lambda told: f"{told.verbatims:,} verbatims",
            quiet=as_json,
        )
    found = last.comparison
    if as_json:
        show.print_json(found)
        return
    if found.failed and not found.compared:
        raise CommandError(
            f"nothing could be compared: of {found.failed:,} verbatims none is understood by both {found.base_version}"
            f" and {found.other_version}; 'recorrido models' tells the versions that there are"
        )
    out = show.console()
    out.print(f"{found.compared:,} verbatims compared, {found.failed:,} not understood by both.")
    lines = show.table(
        "question", "compared#", "changed#", "share#", "95 %", "right, of those judged", spared=("changed",)
    )
    for each in found.aspects:
        lines.add_row(
            show.name(Aspect.DESCRIPTOR, each.aspect),
            show.count(each.compared),
            show.count(each.changed),
            f"{100 * each.changed_share:.1f} %",
            f"{100 * each.changed_low:.1f} to {100 * each.changed_high:.1f} %",
            f"{each.base_right} → {each.other_right} of {each.judged}" if each.judged else "",
        )
    out.print(show.filled(lines))
    changes = show.table("question", found.base_version, found.other_version, "verbatims#", "such as~")
    for each in found.aspects:
        for pair in [pair for pair in each.confusions if pair.base != pair.other][:10]:
            example = next((e.text for e in each.examples if (e.base, e.other) == (pair.base, pair.other)), "")
            name = show.name(Aspect.DESCRIPTOR, each.aspect)
            changes.add_row(name, pair.base, pair.other, show.count(pair.verbatims), show.plain(example))
    out.print(changes)


def reanalyze(
    version: Annotated[str, typer.Option("--model-version", metavar="VERSION", help="See `models`.")],
    *,
    from_: From = None,
    to: To = None,
    customers: Customers = None,
    sources: Sources = None,
    rate: Rate = 0.0,
    name: Annotated[
        str | None, typer.Option("--as", metavar="NAME", help="Name of the reanalysis. The same again goes on.")
    ] = None,
    actor: Actor,
    as_json: Json = False,
) -> None:
    """Analyse the history, or a slice of it, under a model version; what older versions said stays."""
    request = pb.ReanalyzeRequest(
        reanalysis_id=name or str(uuid.uuid4()),
        model_version=version,
        slice=part(from_, to, customers, sources),
        max_texts_per_second=rate,
        actor=actor,
    )
    run(_reanalyze(request, as_json=as_json))


async def _reanalyze(request: pb.ReanalyzeRequest, *, as_json: bool) -> None:
    if not as_json:
        show.console(stderr=True).print(
            f"Reanalysis {request.reanalysis_id}: should it be cut off, the same with --as goes on."
        )
    async with clients.inference(Addresses.configured()) as inference:
        last = await _follow(inference.Reanalyze(request, timeout=WITHIN_S), "Analysing", _tally, quiet=as_json)
    _finish(last, as_json=as_json)


def retry_failed(
    *,
    from_: From = None,
    to: To = None,
    customers: Customers = None,
    sources: Sources = None,
    rate: Rate = 0.0,
    as_json: Json = False,
) -> None:
    """Try again the verbatims whose analysis failed."""
    request = pb.RetryFailedRequest(slice=part(from_, to, customers, sources), max_texts_per_second=rate)
    run(_retry_failed(request, as_json=as_json))


async def _retry_failed(request: pb.RetryFailedRequest, *, as_json: bool) -> None:
    async with clients.inference(Addresses.configured()) as inference:
        last = await _follow(inference.RetryFailed(request, timeout=WITHIN_S), "Trying again", _tally, quiet=as_json)
    _finish(last, as_json=as_json)


def _tally(told: Any) -> str:
    if told.waiting_for:
        return f"waiting for {told.waiting_for}"
    return f"{told.tally.analyzed:,} analysed, {told.tally.known:,} known, {told.tally.failed:,} failed"


def _finish(last: Any, *, as_json: bool) -> None:
    if as_json:
        show.print_json(last)
    else:
        show.console().print(f"{last.tally.verbatims:,} verbatims: {_tally(last)}.")
    if last.tally.failed:
        raise CommandError(f"{last.tally.failed} verbatims could not be analysed; `retry-failed` tries them again")


async def _follow(call: AsyncIterable[Any], name: str, told: Callable[[Any], str], *, quiet: bool) -> Any:
    """Show how far a call is while it lasts; return its last message."""
    last = None
    with show.progress(quiet=quiet) as bar:
        task = bar.add_task(name, total=None, told="")
        async for last in call:
            bar.update(task, total=max(last.end_position, 1), completed=last.position, told=told(last))
    return last
