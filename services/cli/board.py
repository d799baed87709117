"""How much there is to do, how old and how late it is, in the terminal or as a page: `board [--html FILE]`."""

import html
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from recorrido.actions.v1 import actions_service_pb2 as pb
from recorrido.actions.v1.action_pb2 import ActionKind, ActionState, Priority
from services.cli import clients, show
from services.cli.actions import Kind, board_table, due_next
from services.cli.clients import DEADLINE_S, Addresses
from services.cli.failures import CommandError
from services.cli.options import Json, run

#: Of what is late, on the page.
MAX_LATE = 100


def board(
    *,
    kind: Annotated[Kind | None, typer.Option(help="Only of this kind.")] = None,
    page: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write it as a web page that needs nothing else.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show how many actions there are, how old and how late, by state, owner, touchpoint and need."""
    if page and as_json:
        raise typer.BadParameter("--html or --json, not both")
    wanted = show.names(ActionKind.DESCRIPTOR)[kind.value] if kind else ActionKind.ACTION_KIND_UNSPECIFIED

    async def work() -> None:
        late = pb.ListActionsResponse()
        async with clients.actions(Addresses.configured()) as actions:
            found = await actions.GetBoard(pb.GetBoardRequest(kind=wanted), timeout=DEADLINE_S)
            if page:
                request = pb.ListActionsRequest(
                    kind=wanted, overdue=True, order=pb.ACTION_ORDER_DUE, page_size=MAX_LATE
                )
                late = await actions.ListActions(request, timeout=DEADLINE_S)
        if as_json:
            show.print_json(found)
        elif page:
            _write(page, html_page(found, late))
            show.console().print(f"written to {page}", soft_wrap=True)
        else:
            for title, lines in _dimensions(found):
                show.console().print(board_table(title.lower(), lines))

    run(work())


def _dimensions(found: pb.GetBoardResponse) -> Sequence[tuple[str, Sequence[pb.BoardLine]]]:
    return (
        ("State", found.by_state),
        ("Owner", found.by_owner),
        ("Touchpoint", found.by_touchpoint),
        ("Need", found.by_need),
    )


def _write(page: Path, text: str) -> None:
    try:
        page.write_text(text, encoding="utf-8")
    except OSError as error:
        raise CommandError(f"{page} cannot be written: {error.strerror}") from error


# -- the page ------------------------------------------------------------------------------------------------------

# Colours have a contrast of at least 4.5 to 1 on their ground (WCAG 2.2, 1.4.3), in both schemes; nothing is told by
# colour alone.
_STYLE = """
:root { color-scheme: light dark; --ink: #1a1a1a; --ground: #ffffff; --soft: #595959; --line: #c8c8c8;
        --bar: #c9dcf2; --late: #a3121f; }
@media (prefers-color-scheme: dark) { :root { --ink: #ececec; --ground: #16181b; --soft: #b0b0b0; --line: #45494f;
        --bar: #27405f; --late: #ff8f8f; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 72rem; padding: 1.5rem; background: var(--ground); color: var(--ink);
       font: 1rem/1.45 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0; }
p.when { color: var(--soft); margin: .2rem 0 1.5rem; }
section { margin-bottom: 2rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; }
caption { text-align: left; font-weight: 600; font-size: 1.15rem; padding-bottom: .4rem; }
th, td { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid var(--line); white-space: nowrap; }
thead th { color: var(--soft); font-weight: 600; }
tbody th { font-weight: 500; min-width: 9rem; max-width: 24rem; white-space: normal; overflow-wrap: break-word; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
.late { color: var(--late); font-weight: 600; }
.share { background: linear-gradient(to left, var(--bar) var(--part), transparent var(--part)); }
/* Where columns have no room beside each other, each line is a block, and each cell has its name before it. */
@media screen and (max-width: 40rem) { body { padding: .75rem; }
       table, caption, tbody, tr, th, td { display: block; }
       thead { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
       tbody tr { padding: .4rem 0; border-bottom: 1px solid var(--line); }
       tbody th, tbody td { border: 0; padding: .1rem 0; max-width: none; white-space: normal; }
       tbody th { font-weight: 700; }
       tbody td[data-name] { display: flex; justify-content: space-between; gap: 1rem; text-align: right; }
       tbody td[data-name]::before { content: attr(data-name); color: var(--soft); font-weight: 400; } }
@media print { :root { color-scheme: light; --ink: #000; --ground: #fff; --soft: #333; --line: #999; --bar: #c9dcf2;
       --late: #000; }
       body { max-width: none; padding: 0; font-size: 10pt; } .wide { overflow: visible; }
       tr, caption { break-inside: avoid; } thead { display: table-header-group; }
       .share { print-color-adjust: exact; } }
"""


def html_page(found: pb.GetBoardResponse, late: pb.ListActionsResponse) -> str:
    """Return the board as one HTML document: nothing is loaded from anywhere, nothing runs in it."""
    when = f"{show.when(found.as_of)} UTC"
    total = sum(line.count for line in found.by_state)
    parts = [_dimension(title, lines) for title, lines in _dimensions(found)]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        f"<title>Actions, {when}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f'<header><h1>Actions</h1>\n<p class="when">{show.count(total)} in all, as of {when}</p></header>\n'
        f"<main>\n{_late(late)}{''.join(parts)}</main>\n</body>\n</html>\n"
    )


def _dimension(title: str, lines: Sequence[pb.BoardLine]) -> str:
    largest = max((line.count for line in lines), default=1)
    head = (_Column(title), _Column("Kind"), *map(_number, ("Actions", "Overdue", "Mean age", "Oldest")))
    rows = []
    for line in lines:
        number = getattr(ActionState, line.key, None) if title == "State" else None
        key = show.name(ActionState.DESCRIPTOR, number) if number else show.place(line.name, line.key)
        part = f"--part: {100 * line.count / largest:.1f}%"
        cells = [
            _Cell(_breakable(_text(key or "none"))),
            _Cell(show.name(ActionKind.DESCRIPTOR, line.kind)),
            _Cell(show.count(line.count), "share", part),
            _Cell(show.count(line.overdue), "late" if line.overdue else ""),
            _Cell(show.age(line.mean_age_s)),
            _Cell(show.age(line.oldest_age_s)),
        ]
        rows.append(_row(head, cells))
    note = "" if title == "State" else ", of what is not closed"
    return _table(f"By {title.lower()}{note}", head, rows)


def _breakable(name: str) -> str:
    """Return an escaped name that may go on in the next line after each of its parts."""
    return re.sub(r"([/_])", r"\1<wbr>", name)


def _late(late: pb.ListActionsResponse) -> str:
    head = (*map(_Column, ("Action", "Kind", "State", "Priority", "Owner")), _number("Due since (UTC)"))
    rows = [
        _row(
            head,
            [
                _Cell(_text(show.title(each).plain)),
                _Cell(show.name(ActionKind.DESCRIPTOR, each.kind)),
                _Cell(show.name(ActionState.DESCRIPTOR, each.state)),
                _Cell(show.name(Priority.DESCRIPTOR, each.priority)),
                _Cell(_text(each.owner or "nobody")),
                _Cell(due_next(each), "late"),
            ],
        )
        for each in late.actions
    ]
    more = f" (the {len(rows)} due longest ago, of {show.count(late.total)})" if late.total > len(rows) else ""
    return _table(f"Overdue{more}", head, rows)


class _Column(NamedTuple):
    name: str
    kind: str = ""


def _number(name: str) -> _Column:
    return _Column(name, "number")


class _Cell(NamedTuple):
    """What stands in a cell, escaped; of which kinds it is beside its column's; and a style of its own."""

    content: str
    kind: str = ""
    style: str = ""


# A table that is shown as blocks is none any more to those who hear it, but for the roles that are told.


def _row(head: Sequence[_Column], cells: Sequence[_Cell]) -> str:
    name, *rest = cells
    told = [f'<th scope="row" role="rowheader">{name.content}</th>']
    for column, cell in zip(head[1:], rest, strict=True):
        kinds = " ".join(filter(None, (column.kind, cell.kind)))
        more = f' class="{kinds}"' if kinds else ""
        more += f' style="{cell.style}"' if cell.style else ""
        told.append(f'<td role="cell" data-name="{column.name}"{more}>{cell.content}</td>')
    return f'<tr role="row">{"".join(told)}</tr>\n'


def _table(caption: str, head: Sequence[_Column], rows: Iterable[str]) -> str:
    body = "".join(rows) or f'<tr role="row"><td role="cell" colspan="{len(head)}">nothing</td></tr>\n'
    columns = "".join(
        f'<th scope="col" role="columnheader"{f" class={each.kind}" if each.kind else ""}>{each.name}</th>'
        for each in head
    )
    # What scrolls can be reached with the keyboard.
    return (
        f'<section><div class="wide" tabindex="0" role="region" aria-label="{caption}">'
        f'<table role="table">\n<caption>{caption}</caption>\n<thead role="rowgroup"><tr role="row">{columns}</tr>'
        f'</thead>\n<tbody role="rowgroup">\n{body}</tbody>\n</table></div></section>\n'
    )


def _text(value: str) -> str:
    return html.escape(show.plain(value).plain)
