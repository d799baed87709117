"""Pieces of SVG, escaped; colours that are told apart, and read, by everybody."""

import textwrap
from html import escape
from pathlib import Path

from services.cli.failures import CommandError

#: Text on white and on the greys below has a contrast of at least 4.5 to 1 (WCAG 2.2, 1.4.3 AA).
INK, QUIET, LINE, PAPER = "#1b1f24", "#59636e", "#c4cad1", "#ffffff"
#: Blue and orange, which people of every colour vision tell apart (M. Okabe and K. Ito, "Color Universal Design", 2008,
#: darkened until text in them can be read on white).
GOOD, BAD, PLAIN, SILENT = "#0b5fa5", "#a84300", "#3d4752", "#eceef1"
FONT = "system-ui, 'Segoe UI', Roboto, 'Liberation Sans', Arial, sans-serif"

#: How wide letters are, of their size: of the widest of the fonts above, on average.
_LETTER, _BOLD_LETTER = 0.58, 0.68


def text(
    x: float, y: float, content: str, *, size: float = 12, fill: str = INK, anchor: str = "start", more: str = ""
) -> str:
    """Return a line of text; `anchor`: start, middle or end."""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size:g}" fill="{fill}" text-anchor="{anchor}"{_attributes(more)}>'
        f"{escape(content)}</text>"
    )


def tag(name: str, content: str = "", /, **attributes: object) -> str:
    """Return an element; '_' in the name of an attribute stands for '-'."""
    told = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_value(value))}"' for key, value in attributes.items()
    )
    return f"<{name}{told}>{content}</{name}>" if content else f"<{name}{told}/>"


def title(content: str) -> str:
    return f"<title>{escape(content)}</title>"


def picture(width: float, height: float, body: str, *, name: str, description: str, key: str = "") -> str:
    """Return a whole SVG that says, to those who do not see it, what is in it; `key` tells those of a page apart."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}"'
        f' height="{height:.0f}" role="img" aria-labelledby="name{key} description{key}" font-family="{FONT}">'
        f'<title id="name{key}">{escape(name)}</title><desc id="description{key}">{escape(description)}</desc>'
        f'<rect width="100%" height="100%" fill="{PAPER}"/>{body}</svg>\n'
    )


def shortened(content: str, width: float, size: float, *, bold: bool = False) -> str:
    """Return what fits into `width` pixels at a size of letters, with an ellipsis where something is left out."""
    room = _room(width, size, bold=bold)
    return content if len(content) <= room else content[: room - 1].rstrip() + "…"


def in_two_lines(content: str, width: float, size: float, *, bold: bool = False) -> list[str]:
    """Return one line, or two where that is too long; the second with an ellipsis where something is left out."""
    room = _room(width, size, bold=bold)
    first, *rest = textwrap.wrap(content, room, break_long_words=True) or [""]
    return [first, shortened(" ".join(rest), width, size, bold=bold)] if rest else [first]


def shortened_path(content: str, width: float, size: float) -> str:
    """Return what fits of a path such as `delivery/speed`, in whole steps where one does: its end tells the most."""
    room = _room(width, size, bold=False)
    if len(content) <= room:
        return content
    end = content[len(content) - room + 1 :]
    return "…" + end[max(end.find("/"), 0) :]


def _room(width: float, size: float, *, bold: bool) -> int:
    return max(int(width / (size * (_BOLD_LETTER if bold else _LETTER))), 2)


def save(path: Path, content: str) -> None:
    """Write a file. Raises CommandError: it cannot be written."""
    try:
        path.write_text(content, encoding="utf-8")
    except OSError as error:
        raise CommandError(f"{path}: cannot be written: {error.strerror}") from error


def _value(value: object) -> str:
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def _attributes(more: str) -> str:
    return f" {more}" if more else ""
