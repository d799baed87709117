"""Write what the pages tell of the code, or check that it is fresh (`--check`).

A page holds `<!-- generated: NAME -->` … `<!-- end -->`; what stands between is written here.
"""

import argparse
import importlib
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import Any, get_args

import typer

from recorrido.actions.v1.events import ActionKind
from services.actions.domain.action import diagram, table
from services.cli.commands import app
from services.foundation.config import ServiceSettings

DOCS = Path(__file__).resolve().parent
SERVICES = ("ingest", "inference", "journey", "actions", "relay")
_KINDS = {int: "NUMBER", float: "NUMBER", Path: "FILE"}
_SECTION = re.compile(r"(?<=<!-- generated: )([a-z ]+)( -->\n).*?(?=<!-- end -->)", re.DOTALL)


# -- settings ----------------------------------------------------------------------------------------------------------


def settings_of(service: str) -> type[ServiceSettings]:
    """Return the settings class of a service."""
    found = vars(importlib.import_module(f"services.{service}.main")).values()
    return next(c for c in found if isinstance(c, type) and issubclass(c, ServiceSettings) and c is not ServiceSettings)


def settings(service: str) -> str:
    shared = ServiceSettings.model_fields if service else {}
    fields = (settings_of(service) if service else ServiceSettings).model_fields
    lines = ["| variable | default | meaning |", "| --- | --- | --- |"]
    for name, field in fields.items():
        if name in shared:
            continue
        default = "required" if field.is_required() else _default(field.default)
        lines.append(f"| `RECORRIDO_{name.upper()}` | {default} | {_cell(field.description or '')} |")
    return "\n".join(lines) if len(lines) > 2 else "None of its own."


def _default(value: object) -> str:
    if value is None or value == "":
        return "none"
    if isinstance(value, Path):
        value = value.relative_to(DOCS.parent)
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


# -- commands ----------------------------------------------------------------------------------------------------------


def commands() -> Iterator[tuple[str, Any]]:
    """Yield each command with its whole name."""
    yield from _below("recorrido", typer.main.get_command(app))


def _below(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    inner = getattr(command, "commands", {})
    if not inner or command.invoke_without_command:
        yield name, command
    for word, each in inner.items():
        yield from _below(f"{name} {word}", each)


def reference() -> str:
    return "\n\n".join(_command(name, command) for name, command in commands())


def _command(name: str, command: Any) -> str:
    told = [each for each in command.params if each.name not in {"help", "install_completion", "show_completion"}]
    arguments = [_argument(each) for each in told if each.param_type_name == "argument"]
    lines = [f"## `{' '.join([name, *arguments])}`", _paragraphs(command.help or "")]
    rows = [_row(each) for each in told if each.help or each.param_type_name == "option"]
    if rows:
        lines.append("\n".join(["| option | default | |", "| --- | --- | --- |", *rows]))
    return "\n\n".join(lines)


def _argument(argument: Any) -> str:
    name = (argument.metavar or (argument.name or "").upper()).strip("[]")
    name = name if argument.nargs == 1 or name.endswith("…") else f"{name}…"
    return name if argument.required else f"[{name}]"


def _row(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        names = _argument(parameter)
    else:
        names = ", ".join((*parameter.opts, *parameter.secondary_opts))
        if not parameter.is_flag:
            names += f" {_value(parameter)}"
    default = "required" if parameter.required else _option_default(parameter)
    return f"| `{_cell(names)}` | {default} | {_cell(parameter.help or '')} |"


def _value(option: Any) -> str:
    kind = option.type_descriptor.annotation
    kind = next(iter(get_args(kind)), kind)
    if option.metavar:
        return str(option.metavar)
    return "|".join(each.value for each in kind) if issubclass(kind, Enum) else _KINDS.get(kind, "TEXT")


def _option_default(option: Any) -> str:
    value = option.default
    if callable(value) or value in (None, "", (), []) or isinstance(value, bool | Path):
        return ""
    return f"`{value.value if isinstance(value, Enum) else value}`"


def _paragraphs(text: str) -> str:
    return "\n\n".join(" ".join(each.split()) for each in text.split("\n\n"))


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


# -- pages -------------------------------------------------------------------------------------------------------------


def _life_cycle(kind: ActionKind) -> str:
    return f"```mermaid\n{diagram(kind)}\n```\n\n{table(kind)}"


SECTIONS: Mapping[str, Callable[[], str]] = {
    "commands": reference,
    "settings": lambda: settings(""),
    **{f"settings of {service}": lambda service=service: settings(service) for service in SERVICES},
    **{
        kind.name.lower(): lambda kind=kind: _life_cycle(kind) for kind in (ActionKind.RECOVERY, ActionKind.IMPROVEMENT)
    },
}


def fresh(page: str) -> str:
    """Return the page with its generated sections made anew."""
    return _SECTION.sub(lambda found: f"{found[1]}{found[2]}{SECTIONS[found[1]]()}\n", page)


def main() -> int:
    """Write the pages; 1 where `--check` finds one that is not fresh."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only tell whether they are fresh")
    check = parser.parse_args().check
    stale = 0
    for path in sorted(DOCS.glob("*.md")):
        page = path.read_text(encoding="utf-8")
        written = fresh(page)
        if page == written:
            continue
        stale += 1
        if check:
            print(f"docs/{path.name} is not fresh: run python docs/generate.py", file=sys.stderr)
        else:
            path.write_text(written, encoding="utf-8")
    return int(check and stale > 0)


if __name__ == "__main__":
    raise SystemExit(main())
