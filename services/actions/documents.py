"""Writes what docs/actions.md tells of the code: the life cycles. `--check` fails when it is not fresh.

`python -m services.actions.documents [--check]`
"""

import argparse
import re
import sys
from pathlib import Path

from recorrido.actions.v1.events import ActionKind
from services.actions.domain.action import diagram, table

PAGE = Path(__file__).parents[2] / "docs/actions.md"
_SECTION = re.compile(r"(?<=<!-- generated: )(\w+)( -->\n).*?(?=<!-- end -->)", re.DOTALL)


def fresh(page: str) -> str:
    """Return the page with its generated sections made anew."""

    def section(found: re.Match[str]) -> str:
        kind = ActionKind[found[1].upper()]
        return f"{found[1]}{found[2]}```mermaid\n{diagram(kind)}\n```\n\n{table(kind)}\n"

    return _SECTION.sub(section, page)


def main() -> int:
    """Write the page; 1 where `--check` finds that it is not fresh."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only tell whether it is fresh")
    check = parser.parse_args().check
    page = PAGE.read_text(encoding="utf-8")
    written = fresh(page)
    if check and page != written:
        print("docs/actions.md is not fresh: run python -m services.actions.documents", file=sys.stderr)  # noqa: T201 - it talks to a person
        return 1
    PAGE.write_text(written, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
