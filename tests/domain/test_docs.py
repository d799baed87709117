"""The pages tell what the code does."""

import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from recorrido.actions.v1 import events as actions
from recorrido.inference.v1 import events as inference
from recorrido.ingest.v1 import events as ingest
from recorrido.journey.v1 import events as journey

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_SPEC = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs/generate.py")
assert _SPEC
assert _SPEC.loader
generate = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(generate)
COMMANDS = dict(generate.commands())
GROUPS = {name.rpartition(" ")[0] for name in COMMANDS}


def commands_in(page: Path) -> Iterator[str]:
    """Yield what somebody could type after reading the page."""
    text = page.read_text(encoding="utf-8")
    for block in re.findall(r"^```(?:sh|bash|console|text)?\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if found := re.match(r"(?:\$ )?(?:\.venv/bin/)?(recorrido .*)", line):
                yield found[1]
    yield from re.findall(r"(?<!`)`(recorrido [^`]*)`(?!`)", text)


def wrong_with(line: str) -> str:
    words = [word for word in shlex.split(line.replace("…", ""), comments=True) if word not in {"[", "]"}]
    name = words[0]
    while words[1:] and (f"{name} {words[1]}" in COMMANDS or f"{name} {words[1]}" in GROUPS):
        name = f"{name} {words.pop(1)}"
    if name not in COMMANDS:
        # The name of a group, or of several of its commands at once, such as `rejected list|show`.
        several = words[1].split("|") if words[1:] else []
        fine = name in GROUPS and all(word == "--help" or f"{name} {word}" in COMMANDS for word in several)
        return "" if fine else "no such command"
    known = {"--help", *(option for each in COMMANDS[name].params for option in (*each.opts, *each.secondary_opts))}
    return ", ".join(word for word in words if word.startswith("--") and word.partition("=")[0] not in known)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_generated_parts_are_fresh(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert text.count("<!-- generated: ") == text.count("<!-- end -->")
    assert generate.fresh(text) == text


def test_a_stale_part_is_found() -> None:
    page = (ROOT / "docs/actions.md").read_text(encoding="utf-8")
    assert generate.fresh(page.replace("OPEN --> ACCEPTED", "OPEN --> VERIFIED")) == page


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_commands_of_the_page_exist_with_their_options(page: Path) -> None:
    assert {line: told for line in commands_in(page) if (told := wrong_with(line))} == {}


def test_a_command_that_does_not_exist_is_found() -> None:
    assert wrong_with("recorrido nonsense") == "no such command"
    assert wrong_with("recorrido rejected list|nonsense") == "no such command"
    assert wrong_with("recorrido scores --by stage --nonsense 1") == "--nonsense"


def test_the_page_of_the_command_line_names_every_command() -> None:
    table = (ROOT / "docs/cli.md").read_text(encoding="utf-8").partition("\n| --- | --- |\n")[2].partition("\n\n")[0]
    named = set(re.findall(r"`([a-z-]+)", table))
    assert {name.split()[1] for name in COMMANDS} - named == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_links_of_the_page_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)\s]+)?\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def test_every_command_option_and_setting_says_what_it_is() -> None:
    options = [f"{name} {each.name}" for name, command in COMMANDS.items() for each in command.params if not each.help]
    settings = {name: generate.settings_of(name).model_fields for name in generate.SERVICES}
    assert [name for name, command in COMMANDS.items() if not command.help] == []
    assert [each for each in options if not each.endswith(" help")] == []
    assert [name for fields in settings.values() for name, field in fields.items() if not field.description] == []


def test_the_page_of_events_names_every_event() -> None:
    page = (ROOT / "docs/events.md").read_text(encoding="utf-8")
    names = [event.type_name for package in (actions, inference, ingest, journey) for event in package.EVENTS]
    assert [name for name in names if f"`{name}`" not in page] == []


def test_every_setting_that_a_page_names_exists() -> None:
    known = set(re.findall(r"RECORRIDO_[A-Z_]+[A-Z]", (ROOT / "docs/settings.md").read_text(encoding="utf-8")))
    known |= {"RECORRIDO_ACTOR", "RECORRIDO_DEAD", "RECORRIDO_REPLAY", "RECORRIDO_PORT"}
    named = {
        f"{page.name}: {name}"
        for page in PAGES
        for name in re.findall(r"RECORRIDO_[A-Z_]+[A-Z]", page.read_text(encoding="utf-8"))
        if name not in known and not name.endswith("_ADDRESS")
    }
    assert named == set()
