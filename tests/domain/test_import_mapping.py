"""The form of a mapping: what it refuses, and that the published schema and the shipped examples agree with it."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from services.cli.failures import CommandError
from services.cli.importing import mapping as form

EXAMPLES = sorted((Path(__file__).parents[2] / "examples/import").glob("*.yaml"))
WHOLE = """
format: csv
interaction:
  source: {value: shop}
  interaction_id: id
  customer_id: customer
  touchpoint: event
  channel: {value: web}
  occurred_at: when
"""


def problems(tmp_path: Path, text: str) -> str:
    path = tmp_path / "mapping.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(CommandError) as raised:
        form.load(path)
    return str(raised.value)


def changed(**changes: Any) -> dict[str, Any]:
    """Return the whole mapping with other fields of an interaction, by their names."""
    content: dict[str, Any] = yaml.safe_load(WHOLE)
    content["interaction"].update(changes)
    return content


def test_the_published_schema_is_that_of_the_form() -> None:
    assert form.SCHEMA.read_text(encoding="utf-8") == form.schema()


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_examples_are_mappings_by_form_and_schema(path: Path) -> None:
    form.load(path)
    schema = json.loads(form.SCHEMA.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator(schema).validate(yaml.safe_load(path.read_text(encoding="utf-8")))


def test_the_guides_example_is_a_mapping(tmp_path: Path) -> None:
    guide = (Path(__file__).parents[2] / "docs/import.md").read_text(encoding="utf-8")
    path = tmp_path / "mapping.yaml"
    path.write_text(guide.split("```yaml\n")[1].split("```")[0], encoding="utf-8")
    assert form.load(path).format == "csv"


def test_there_is_an_example_of_each_format() -> None:
    assert {form.load(path).format for path in EXAMPLES} == {"csv", "tsv", "jsonl", "segment", "cloudevents", "xes"}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"touchpont": "x"}, "interaction.touchpont: unknown key; did you mean touchpoint?"),
        ({"channel": {"value": "shop"}}, "interaction.channel: value: 'shop' is not one of store, web, app"),
        (
            {"channel": {"from": "c", "table": {"w": "web", "s": "sore"}}},
            "interaction.channel: table.s: 'sore' is not one of store",
        ),
        ({"customer_kind": {"value": "client"}}, "interaction.customer_kind: value: 'client' is not one of buyer"),
        ({"touchpoint": {}}, "interaction.touchpoint: exactly one of 'from', 'first' and 'value'"),
        ({"touchpoint": {"from": "a", "value": "b"}}, "interaction.touchpoint: exactly one of"),
        ({"touchpoint": {"value": "a", "default": "b"}}, "interaction.touchpoint: a 'value' is the same for every row"),
        ({"touchpoint": {"from": "a", "otherwise": "b"}}, "interaction.touchpoint: 'otherwise' needs a 'table'"),
        ({"touchpoint": {"from": []}}, "interaction.touchpoint.from: "),
        ({"touchpoint": "$row"}, "interaction.touchpoint.from[0]: '$row' is nothing of a row; there are $file, $line"),
        ({"interaction_id": {"from": ["a", "b"], "join": "x"}}, "interaction.interaction_id.join: "),
        (
            {"outcome": {"from": "ok", "table": {True: "succeeded"}}},
            "interaction.outcome.table: true is a truth in YAML; put the word meant in quotes",
        ),
        ({"occurred_at": {"from": "t", "zone": "Europe/Lubljana"}}, "interaction.occurred_at: zone: 'Europe/Lubljana'"),
        ({"occurred_at": {"from": "t", "format": "%d.%m.%Y"}}, "interaction.occurred_at: zone: is missing"),
        ({"occurred_at": {"from": "t", "format": "dd.mm.yyyy"}}, "interaction.occurred_at: format: 'dd.mm.yyyy'"),
        ({"ratings": [{"metric": "ces"}]}, "interaction.ratings[0].value: is missing"),
        ({"ratings": [{"metric": "stars", "value": "s"}]}, "interaction.ratings[0].metric: "),
        ({"ratings": [{"metric": "custom", "value": "s"}]}, "interaction.ratings[0]: a custom rating needs"),
        (
            {"ratings": [{"metric": "nps", "value": "s", "from_scale": [3, 3]}]},
            "interaction.ratings[0]: from_scale: the bounds must differ",
        ),
        ({"amount": {"value": "a"}}, "interaction.amount.currency: is missing"),
        (
            {"amount": {"value": {"from": "a", "decimal": ",", "thousands": ","}, "currency": "c"}},
            "interaction.amount.value: 'decimal' and 'thousands' must differ",
        ),
        ({"verbatim": "words"}, "interaction.verbatim: expected keys and values"),
        ({"touchpoint": {"from": "a", "table": 3}}, "interaction.touchpoint.table: expected keys and values"),
    ],
)
def test_each_broken_rule_is_told_with_its_path(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    assert f"\n  {told}" in problems(tmp_path, yaml.safe_dump(changed(**changes)))


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"format": "excel"}, "format: expected 'csv', 'tsv'"),
        ({"version": 2}, "version: "),
        ({"format": "xes", "csv": {}}, "csv: is for the formats csv and tsv, not xes"),
        ({"csv": {"encoding": "utf-99"}}, "csv: encoding: 'utf-99' is not known"),
        ({"csv": {"delimiter": "||"}}, "csv.delimiter: "),
        ({"csv": {"columns": ["a", "a"]}}, "csv: columns: a name stands twice"),
        ({"skip": [{"when": {}}]}, "skip[0].when: "),
        ({"skip": [{"when": {"a": {"matches": "("}}}]}, "skip[0].when.a.matches: is no regular expression"),
        ({"skip": [{"when": {"a": {}}}]}, "skip[0].when.a: at least one of"),
        ({"rules": [{"when": {"a": 1}}]}, "rules[0].set: is missing"),
        ({"links": [{"when": {"a": 1}, "kind": "phone", "value": "p", "customer_id": "c"}]}, "links[0].kind: "),
    ],
)
def test_so_is_one_outside_of_the_fields(tmp_path: Path, more: dict[str, Any], told: str) -> None:
    assert f"\n  {told}" in problems(tmp_path, yaml.safe_dump({**changed(), **more}))


def test_all_problems_are_told_at_once_and_required_fields_are_named(tmp_path: Path) -> None:
    both = problems(tmp_path, yaml.safe_dump(changed(nothing=1, channel={"value": "w"})))
    assert "interaction.nothing" in both
    assert "interaction.channel" in both
    lacking = problems(tmp_path, "format: csv\ninteraction: {source: {value: a}, touchpoint: b}\n")
    for name in ("interaction_id", "customer_id", "channel", "occurred_at"):
        assert f"interaction.{name}: is missing" in lacking


def test_a_field_that_only_a_rule_sets_is_not_missing(tmp_path: Path) -> None:
    content = changed()
    del content["interaction"]["channel"]
    content["rules"] = [{"when": {"a": "b"}, "set": {"channel": {"value": "web"}}}]
    path = tmp_path / "mapping.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    assert form.load(path).paths() == {"id", "customer", "event", "when", "a"}


def test_what_is_no_mapping_file_is_told(tmp_path: Path) -> None:
    assert "is not YAML" in problems(tmp_path, "a: [")
    assert "expected keys and values" in problems(tmp_path, "just words")
    with pytest.raises(CommandError, match="there is no such file"):
        form.load(tmp_path / "nowhere.yaml")
