"""What a text means, without recording anything: `analyze`."""

from typing import Annotated

import typer

from recorrido.inference.v1 import inference_service_pb2 as pb
from services.cli import clients, show
from services.cli.clients import DEADLINE_S, Addresses
from services.cli.options import Json, run


def analyze(texts: Annotated[list[str], typer.Argument(metavar="TEXT…")], *, as_json: Json = False) -> None:
    """Show what texts mean; nothing is recorded."""
    run(_analyze(texts, as_json=as_json))


async def _analyze(texts: list[str], *, as_json: bool) -> None:
    async with clients.inference(Addresses.configured()) as inference:
        found = await inference.Analyze(pb.AnalyzeRequest(texts=texts), timeout=DEADLINE_S)
    if as_json:
        show.print_json(found)
        return
    lines = show.table("language", "sentiment", "point", "need", "model", "text~")
    for text, each in zip(texts, found.results, strict=True):
        meant = each.analysis
        lines.add_row(
            meant.language,
            show.sentiment(meant.sentiment),
            show.point(meant.point),
            meant.need_path or each.problem.reason,
            f"{meant.model} {meant.model_version}".strip(),
            show.plain(text),
        )
    show.console().print(show.filled(lines))
