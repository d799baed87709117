"""What people say about the models' analyses: `correct`, `analyses`, `corrections`."""

import sys
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Annotated, Any

import typer

from recorrido.inference.v1 import analysis_pb2 as meaning
from recorrido.inference.v1 import inference_service_pb2 as pb
from recorrido.journey.v1.journey_service_pb2 import GetCustomerJourneyRequest
from services.cli import clients, naming, privatefile, show
from services.cli.clients import DEADLINE_S, Addresses
from services.cli.failures import CommandError
from services.cli.options import Actor, Json, RequestId, run

WITHIN_S = 3600.0
_PAGE = 1000

Customer = Annotated[str, typer.Argument(metavar="CUSTOMER", help="The id that the interaction is recorded under.")]


def _one_of(enum: Any, told: str) -> Any:
    """Return an option for a value of an enum, which is told by its name in lower case."""
    known = show.names(enum.DESCRIPTOR)

    def read(text: str) -> int:
        if text.lower() not in known:
            raise typer.BadParameter(f"{text!r} is none of {', '.join(known)}")
        return int(known[text.lower()])

    return typer.Option(parser=read, metavar="|".join(known), help=told)


def correct(
    customer_id: Customer,
    event_id: Annotated[str, typer.Argument(metavar="EVENT", help="The interaction's event id; `analyses` tells it.")],
    *,
    language: Annotated[str | None, typer.Option(metavar="CODE", help="ISO 639-1.")] = None,
    sentiment: Annotated[int | None, _one_of(meaning.Sentiment, "How it feels.")] = None,
    point: Annotated[int | None, _one_of(meaning.PointKind, "Whether it hurts, is wished for, or delights.")] = None,
    need: Annotated[
        str | None, typer.Option(metavar="PATH", help="As `taxonomy` tells it; empty: no need is told.")
    ] = None,
    emotion: Annotated[int | None, _one_of(meaning.Emotion, "The emotion behind it.")] = None,
    intent: Annotated[int | None, _one_of(meaning.Intent, "What the customer is after.")] = None,
    effort: Annotated[int | None, _one_of(meaning.Effort, "Whether it was easy.")] = None,
    urgency: Annotated[int | None, _one_of(meaning.Urgency, "Whether it can wait.")] = None,
    comment: Annotated[str, typer.Option(help="Why.")] = "",
    actor: Actor,
    request_id: RequestId,
    as_json: Json = False,
) -> None:
    """Say what a customer's words mean. It wins over every model, and the next training learns from it."""
    values: dict[str, Any] = {"sentiment": sentiment, "point": point, "emotion": emotion}
    values |= {"intent": intent, "effort": effort, "urgency": urgency}
    told = {"language": language, "need": need, **values}
    if all(value is None for value in told.values()):
        raise typer.BadParameter(f"say what is right: {', '.join(f'--{name}' for name in told)}")
    request = pb.CorrectAnalysisRequest(
        customer_id=customer_id,
        interaction_event_id=event_id,
        correction=pb.Correction(language=language, need_path=need, **values),
        actor=actor,
        comment=comment,
        request_id=request_id,
    )
    run(_correct(request, as_json=as_json))


async def _correct(request: pb.CorrectAnalysisRequest, *, as_json: bool) -> None:
    addresses = Addresses.configured()
    request.interaction_event_id = await naming.event_id(addresses, request.customer_id, request.interaction_event_id)
    if request.correction.need_path:
        await naming.check_taxonomy(addresses, request.correction.need_path)
    async with naming.or_alike(addresses, request.customer_id), clients.inference(addresses) as inference:
        done = await inference.CorrectAnalysis(request, timeout=DEADLINE_S)
    if as_json:
        show.print_json(done)
        return
    names = ", ".join(show.name(meaning.Aspect.DESCRIPTOR, aspect) for aspect in done.analysis.corrected)
    out = show.console()
    out.print(f"Corrected {names}: event {done.event_id}.")
    if stays := _stays(request.correction, done.analysis):
        out.print(stays, soft_wrap=True)


def _stays(correction: pb.Correction, now: meaning.Analysis) -> str:
    """Return, in words, what holds still though it was not told: who is glad may still be told to be in pain."""
    found = {
        "sentiment": show.name(meaning.Sentiment.DESCRIPTOR, now.sentiment),
        "point": show.name(meaning.PointKind.DESCRIPTOR, now.point),
        "need": now.need_path or "none",
        "emotion": show.name(meaning.Emotion.DESCRIPTOR, now.emotion),
        "intent": show.name(meaning.Intent.DESCRIPTOR, now.intent),
        "effort": show.name(meaning.Effort.DESCRIPTOR, now.effort),
        "urgency": show.name(meaning.Urgency.DESCRIPTOR, now.urgency),
        "language": now.language,
    }
    given = {field.name.removesuffix("_path") for field, _ in correction.ListFields()}
    stays = {name: value for name, value in found.items() if value and name not in given}
    if not stays:
        return ""
    told = ", ".join(f"{name} {value}" for name, value in stays.items())
    return f"Unchanged: {told}. Correct these too with {', '.join(f'--{name}' for name in stays)}."


def analyses(
    customer_id: Customer,
    event_id: Annotated[str, typer.Argument(metavar="[EVENT]", help="Only about this interaction.")] = "",
    *,
    as_json: Json = False,
) -> None:
    """Show all that models and people said about a customer's words, and what counts."""
    request = pb.ListAnalysesRequest(customer_id=customer_id, interaction_event_id=event_id)
    run(_analyses(request, as_json=as_json))


async def _analyses(request: pb.ListAnalysesRequest, *, as_json: bool) -> None:
    addresses = Addresses.configured()
    request.interaction_event_id = await naming.event_id(addresses, request.customer_id, request.interaction_event_id)
    async with naming.or_alike(addresses, request.customer_id), clients.inference(addresses) as inference:
        found = await inference.ListAnalyses(request, timeout=DEADLINE_S)
    if as_json:
        show.print_json(found)
        return
    said = await words(addresses, {request.customer_id: {each.interaction_event_id for each in found.analyses}})
    meanings = ("sentiment", "point", "need", "emotion", "intent")
    out = show.console()
    lines = show.table(
        *("interaction", "recorded (UTC)", "by", "counts", *meanings, "comment~", "words~"),
        spared=("emotion", "intent", "recorded (UTC)", "counts", "need"),
    )
    for each in found.analyses:
        meant = each.analysis
        lines.add_row(
            show.short_id(each.interaction_event_id, out.width),
            show.when(each.recorded_at),
            each.actor or f"{meant.model} {meant.model_version}".strip(),
            "yes" if each.counts else "",
            show.sentiment(meant.sentiment),
            show.point(meant.point),
            meant.need_path or each.problem.reason,
            show.name(meaning.Emotion.DESCRIPTOR, meant.emotion),
            show.name(meaning.Intent.DESCRIPTOR, meant.intent),
            show.plain(each.comment),
            # Told once, however many said what they mean.
            show.plain(said.pop(each.interaction_event_id, "")),
        )
    out.print(show.filled(lines))


async def words(addresses: Addresses, wanted: Mapping[str, AbstractSet[str]]) -> dict[str, str]:
    """Return what was said by the ids of events, which are wanted by customer, as far as journey tells.

    Without it a note says so, and all else is shown.
    """
    found: dict[str, str] = {}
    try:
        for customer_id, event_ids in wanted.items():
            request = GetCustomerJourneyRequest(customer_id=customer_id, page_size=_PAGE)
            async with clients.journey(addresses) as journey:
                while event_ids - found.keys():
                    page = await journey.GetCustomerJourney(request, timeout=DEADLINE_S)
                    found |= {e.event_id: e.interaction.verbatim.text for e in page.entries if e.event_id in event_ids}
                    request.page_token = page.next_page_token
                    if not page.next_page_token:
                        break
    except CommandError as error:
        show.console(stderr=True).print(f"note: the words are not shown: {error}", soft_wrap=True)
    return found


def corrections(
    *,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write there, readable by you alone; replaces the file.")
    ] = None,
    after: Annotated[
        int, typer.Option(min=0, metavar="POSITION", help="Only those behind the last one that was read before.")
    ] = 0,
    mask: Annotated[bool, typer.Option("--mask", help="Mask e-mail addresses, telephone and account numbers.")] = False,
) -> None:
    """Print the corrections that count with their texts, one JSON object per line, for the next training."""
    run(_corrections(pb.ExportCorrectionsRequest(after_position=after, mask=mask), out))


async def _corrections(request: pb.ExportCorrectionsRequest, out: Path | None) -> None:
    if out is None:
        await _write(request, sys.stdout)
        return
    with privatefile.written(out) as file:
        count = await _write(request, file)
    show.console(stderr=True).print(f"{show.count(count)} corrections are in {out}")


async def _write(request: pb.ExportCorrectionsRequest, file: Any) -> int:
    count = 0
    async with clients.inference(Addresses.configured()) as inference:
        async for each in inference.ExportCorrections(request, timeout=WITHIN_S):
            show.print_json_line(each, file)
            count += 1
    return count
