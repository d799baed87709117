"""What texts mean, without recording anything: `analyze`; and in which terms: `taxonomy`."""

import sys
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer
from rich.text import Text

from recorrido.inference.v1 import inference_service_pb2 as pb
from recorrido.inference.v1.analysis_pb2 import Analysis, Aspect, Emotion, Intent, Sentence
from services.cli import clients, show
from services.cli.clients import DEADLINE_S, Addresses
from services.cli.failures import CommandError
from services.cli.options import Json, run

if TYPE_CHECKING:
    from io import BufferedReader

#: Texts in one message of the stream.
BATCH = 250
#: A file may be long.
FILE_DEADLINE_S = 3600.0
#: A text file has at least so many lines for each that is no UTF-8.
_LINES_PER_BAD_ONE = 4

ModelVersion = Annotated[
    str, typer.Option("--model-version", metavar="VERSION", help="Without it, the one in service; see `models`.")
]


def analyze(
    texts: Annotated[list[str] | None, typer.Argument(metavar="TEXT…", help="What somebody said.")] = None,
    *,
    file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A text per line, of any number; '-' is standard input.")
    ] = None,
    sentences: Annotated[bool, typer.Option("--sentences", help="Also what each sentence means.")] = False,
    version: ModelVersion = "",
    as_json: Json = False,
) -> None:
    """Show what texts mean; nothing is recorded. With --file and --json, one result per line."""
    if bool(texts) == (file is not None):
        raise typer.BadParameter("either TEXT… or --file FILE")
    if file is not None:
        # Opened first: what goes wrong while the call asks for more would be told as the call's failure.
        with _opened(file) as source:
            run(_analyze_lines(source, version, as_json=as_json, sentences=sentences))
        return
    run(_analyze(texts or [], version, as_json=as_json, sentences=sentences))


async def _analyze(texts: list[str], version: str, *, as_json: bool, sentences: bool) -> None:
    readable = [_readable(text) for text in texts]
    request = pb.AnalyzeRequest(texts=[text or "" for text in readable], model_version=version)
    async with clients.inference(Addresses.configured()) as inference:
        found = await inference.Analyze(request, timeout=DEADLINE_S)
    for text, result in zip(readable, found.results, strict=True):
        _tell_unreadable(text, result)
    if as_json:
        show.print_json(found)
    else:
        _print(texts, found.results, sentences=sentences)
    if problems := [result.problem.message for result in found.results if result.HasField("problem")]:
        raise CommandError(f"inference: {len(problems)} of {len(texts)} not analysed: {problems[0]}")


def _opened(file: Path) -> "BufferedReader":
    """Open a file of texts, and wait for the first of it: where asyncio runs, a Ctrl-C would end no such wait.

    Raises:
        CommandError: it cannot be read, or is no text.
    """
    try:
        source = cast("BufferedReader", sys.stdin.buffer) if str(file) == "-" else file.open("rb")
        _check_text(source.peek(), str(file))
    except OSError as error:
        raise CommandError(f"cannot read {file}: {error.strerror}") from error
    return source


def _check_text(head: bytes, name: str) -> None:
    """Refuse what is no text by its first bytes: one that holds a NUL, as git tells it, or line after line no UTF-8.

    A line of a text that is no UTF-8 is a matter of that line.

    Raises:
        CommandError: it is no text.
    """
    # What is cut off is not judged.
    lines = head.split(b"\n")[:-1]
    nul = head.find(b"\0")
    if nul >= 0:
        raise CommandError(f"{name} is no text: its byte {nul + 1:,} is NUL; nothing of it was sent")
    if _LINES_PER_BAD_ONE * sum(_text(line) is None for line in lines) <= len(lines):
        return
    try:
        head.decode()
    except UnicodeDecodeError as error:
        raise CommandError(
            f"{name} is no text in UTF-8: its byte {error.start + 1:,} is none; nothing of it was sent"
        ) from error


async def _analyze_lines(source: Iterable[bytes], version: str, *, as_json: bool, sentences: bool) -> None:
    batches: list[list[str | None]] = []

    async def requests() -> AsyncIterator[pb.AnalyzeStreamRequest]:
        for number, batch in enumerate(_batches(source), 1):
            batches.append(batch)
            yield pb.AnalyzeStreamRequest(sequence=number, texts=[text or "" for text in batch], model_version=version)

    failed = total = 0
    first = ""
    async with clients.inference(Addresses.configured()) as inference:
        async for answer in inference.AnalyzeStream(requests(), timeout=FILE_DEADLINE_S):
            batch = batches[answer.sequence - 1]
            if answer.HasField("problem"):
                raise CommandError(f"inference: {answer.problem.reason}: {answer.problem.message}")
            for text, result in zip(batch, answer.results, strict=True):
                _tell_unreadable(text, result)
                failed += result.HasField("problem")
                first = first or result.problem.message
            total += len(batch)
            if as_json:
                for result in answer.results:
                    show.print_json_line(result)
            else:
                _print([text or "" for text in batch], answer.results, sentences=sentences)
            batch.clear()
    told = f"{show.count(total)} texts, {show.count(failed)} of them not analysed{f': {first}' if first else ''}"
    if failed and failed == total:
        raise CommandError(told)
    show.console(stderr=True).print(told)


def _batches(lines: Iterable[bytes]) -> Iterator[list[str | None]]:
    batch: list[str | None] = []
    for line in lines:
        batch.append(_text(line.rstrip(b"\r\n")))
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _text(line: bytes) -> str | None:
    try:
        return line.decode()
    except UnicodeDecodeError:
        return None


def _readable(argument: str) -> str | None:
    # What is no UTF-8 on the command line comes as surrogates.
    return _text(argument.encode(errors="surrogateescape"))


def _tell_unreadable(text: str | None, result: pb.AnalyzeResult) -> None:
    if text is None:
        result.problem.CopyFrom(pb.AnalyzeProblem(reason="INVALID_UTF8", message="the text is no valid UTF-8"))


def _print(texts: Sequence[str], results: Sequence[pb.AnalyzeResult], *, sentences: bool) -> None:
    lines = show.table(
        *(
            "language",
            "sentiment",
            "score#",
            "point",
            "need",
            "emotion",
            "intent",
            "unsure",
            "model",
            "problem~",
            "text~",
        ),
        spared=("model", "emotion", "intent", "unsure", "score", "language"),
    )
    for text, each in zip(texts, results, strict=True):
        meant = each.analysis
        model = f"{meant.model} {meant.model_version}".strip()
        lines.add_row(*(_cells(meant) if model else [""] * 8), model, show.plain(each.problem.message), _short(text))
        for sentence in meant.sentences if sentences and len(meant.sentences) > 1 else ():
            lines.add_row(*_cells(sentence), "", "", _short(f"· {text[sentence.start : sentence.end]}"))
    # Of a few texts none of which means anything, the failure tells all.
    if any(each.HasField("analysis") for each in results) or len(results) > 1:
        show.console().print(show.filled(lines))


def _short(text: str) -> Text:
    return show.plain(text[:1000])


def _cells(meant: Analysis | Sentence) -> list[str | Text]:
    return [
        meant.language,
        show.sentiment(meant.sentiment),
        f"{meant.sentiment_score:+.2f}",
        show.point(meant.point),
        meant.need_path,
        show.name(Emotion.DESCRIPTOR, meant.emotion),
        show.name(Intent.DESCRIPTOR, meant.intent),
        ", ".join(show.name(Aspect.DESCRIPTOR, aspect) for aspect in meant.unsure),
    ]


def taxonomy(
    need: Annotated[str, typer.Argument(metavar="[NEED]", help="Only this one and those below it.")] = "",
    *,
    language: Annotated[str, typer.Option(metavar="LANGUAGE", help="Of names and definitions, such as sl.")] = "",
    as_json: Json = False,
) -> None:
    """Show the hierarchy of customer needs."""
    run(_taxonomy(pb.GetTaxonomyRequest(language=language, need_path=need), as_json=as_json))


async def _taxonomy(request: pb.GetTaxonomyRequest, *, as_json: bool) -> None:
    async with clients.inference(Addresses.configured()) as inference:
        found = await inference.GetTaxonomy(request, timeout=DEADLINE_S)
    if as_json:
        show.print_json(found)
        return
    lines = show.table("need", "name", "definition~", title=f"Version {found.version}, {found.language}")
    for each in found.needs:
        name = f"{each.name} (retired)" if each.retired else each.name
        lines.add_row(f"{'  ' * (each.level - 1)}{each.path}", name, show.plain(each.definition))
    show.console().print(lines)
