"""Playbooks as YAML files: the form, its JSON Schema, and what is told about a file that breaks it."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from recorrido.actions.v1.events import Playbook
from recorrido.actions.v1.playbook_pb2 import Period
from services.actions.domain.playbooks import check
from services.cli import playbookfile
from services.cli.failures import CommandError
from services.foundation.rules import Rules

SCHEMA = Path(__file__).parents[2] / "docs/playbook.schema.json"
SHIPPED = sorted(playbookfile.SHIPPED.glob("*.yaml"))

SMALL: dict[str, Any] = {"playbook_id": "p", "name": "P", "recoveries": [{"rule_id": "r"}]}


def written(folder: Path, content: Any) -> str:
    path = folder / "playbook.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content), encoding="utf-8")
    return str(path)


def test_the_schema_in_the_docs_is_that_of_the_code() -> None:
    kept = json.loads(SCHEMA.read_text(encoding="utf-8"))
    assert kept == playbookfile.schema(), "run `recorrido playbook schema > docs/playbook.schema.json`"
    jsonschema.Draft202012Validator.check_schema(kept)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_playbook_fits_the_schema_and_the_service_takes_it(path: Path) -> None:
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator(playbookfile.schema()).validate(content)
    rules = Rules()
    check(rules, Playbook.from_proto(playbookfile.load(path.stem)))
    rules.enforce()


@pytest.mark.parametrize(
    ("text", "days", "minutes"),
    [("2d", 2, 0), ("4h", 0, 240), ("90m", 0, 90), ("1d 4h 30m", 1, 270), ("1d4h", 1, 240), ("0m", 0, 0)],
)
def test_lengths_of_business_time(tmp_path: Path, text: str, days: int, minutes: int) -> None:
    content = {**SMALL, "recoveries": [{"rule_id": "r", "service_level": {"resolve_within": text}}]}
    jsonschema.Draft202012Validator(playbookfile.schema()).validate(content)
    (rule,) = playbookfile.load(written(tmp_path, content)).recoveries
    assert rule.service_level.resolve_within == Period(days=days, minutes=minutes)


def test_times_and_dates_need_no_quotes(tmp_path: Path) -> None:
    text = """
        playbook_id: p
        name: P
        calendar:
          time_zone: Europe/Ljubljana
          hours: [{days: [mon, sun], opens: 09:00, closes: 17:30}]
          closed_on: [2026-12-24]
        recoveries: [{rule_id: r}]
    """
    calendar = playbookfile.load(written(tmp_path, text)).calendar
    (hours,) = calendar.hours
    assert (hours.opens, hours.closes, list(hours.days)) == ("09:00", "17:30", [1, 7])
    assert list(calendar.closed_on) == ["2026-12-24"]


def test_everything_wrong_is_told_with_its_place(tmp_path: Path) -> None:
    content = {
        "playbook_id": "No Good",
        "calendar": {"time_zone": "Europe/Ljubljana", "hours": [{"days": ["monday"], "opens": "9", "closes": "17:00"}]},
        "recoveries": [{"rule_id": "r", "touchpoints": ["x"], "service_level": {"accept_within": "soon"}}],
        "improvements": [{"rule_id": "i", "customers": 0, "within_days": 7, "match": {"rules": ["a*b"]}}],
    }
    with pytest.raises(CommandError) as caught:
        playbookfile.load(written(tmp_path, content))
    told = str(caught.value)
    for place, rule in (
        ("playbook_id", "expected 1 to 64 small letters, digits and hyphens, not 'No Good'"),
        ("name", "is missing"),
        ("calendar.hours[0].days[0]", "expected 'mon', 'tue'"),
        ("calendar.hours[0].opens", "expected a time of the day such as 09:00, not '9'"),
        ("recoveries[0].touchpoints", "unknown key; did you mean touchpoints?"),
        ("recoveries[0].service_level.accept_within", "a length of business time, such as 2d"),
        ("improvements[0].customers", "expected at least 1, not 0"),
        ("improvements[0].match.rules[0]", "expected text with a * at its end alone, not 'a*b'"),
    ):
        assert any(line.strip().startswith(f"{place}: ") and rule in line for line in told.splitlines()), place


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("a: 1\nb: [", "line 2, column 5: is not YAML: "),
        ("just words", "is no playbook:\n  expected keys and values, not 'just words'"),
        ("", "is no playbook"),
    ],
)
def test_what_is_no_playbook_is_told(tmp_path: Path, content: str, told: str) -> None:
    with pytest.raises(CommandError, match=told):
        playbookfile.load(written(tmp_path, content))


def test_a_file_that_is_not_there_names_the_shipped_ones() -> None:
    with pytest.raises(CommandError, match="there is no such file; shipped playbooks are standard"):
        playbookfile.load("nothing.yaml")
