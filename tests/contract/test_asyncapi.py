"""docs/asyncapi.yaml tells the truth: it is fresh, whole, and what really is on the bus conforms to it."""

import json
import re
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from services.foundation.bus import headers_of
from services.foundation.events import CAUSATION_ID, CORRELATION_ID, Recorded, encode
from tests.support.event_types import event_types, filled, golden_files, structs

ROOT = Path(__file__).parents[2]
DOCUMENT: dict[str, Any] = yaml.safe_load((ROOT / "docs/asyncapi.yaml").read_text())

TYPES: dict[str, Any] = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "integer": int,
    "number": (int, float),
}
#: What the checker below understands; a keyword that it does not would go unchecked.
KEYWORDS = {
    *("$ref", "allOf", "type", "description", "properties", "required", "additionalProperties", "items"),
    *("enum", "const", "format", "pattern", "minimum", "maximum"),
}


def resolve(reference: str) -> Any:
    assert reference.startswith("#/")
    found: Any = DOCUMENT
    for key in reference[2:].split("/"):
        found = found[key]
    return found


def problems(value: Any, schema: dict[str, Any], at: str = "$", *, closed: bool = True) -> Iterator[str]:
    """Yield where a value breaks a schema (the JSON Schema keywords that the document uses).

    Where it is `closed`, a property that the schema does not name is a problem too: the document would lack it.
    """
    assert schema.keys() <= KEYWORDS, schema.keys() - KEYWORDS
    if "$ref" in schema:
        yield from problems(value, resolve(schema["$ref"]), at, closed=closed)
    for part in schema.get("allOf", ()):
        yield from problems(value, part, at, closed=closed and len(schema["allOf"]) == 1)
    if "type" in schema:
        right = isinstance(value, TYPES[schema["type"]]) and (schema["type"] == "boolean") >= isinstance(value, bool)
        if not right:
            yield f"{at}: {value!r} is no {schema['type']}"
            return
    yield from (f"{at}: {value!r} {wrong}" for wrong in wrongs(value, schema))
    for index, item in enumerate(value if "items" in schema else ()):
        yield from problems(item, schema["items"], f"{at}[{index}]")
    if schema.get("type") == "object":
        yield from members(value, schema, at, closed=closed)


def wrongs(value: Any, schema: dict[str, Any]) -> Iterator[str]:
    """Yield what is wrong with a single value."""
    if value not in schema.get("enum", [value]) or value != schema.get("const", value):
        yield "is none of them"
    if "pattern" in schema and not re.search(schema["pattern"], value):
        yield "does not match"
    if schema.get("format") == "date-time" and datetime.fromisoformat(value).tzinfo is None:
        yield "has no offset"
    if schema.get("format") == "uuid" and str(uuid.UUID(value)) != value:
        yield "is no UUID"
    if "minimum" in schema and not schema["minimum"] <= value <= schema["maximum"]:
        yield "is out of range"


def members(value: dict[str, Any], schema: dict[str, Any], at: str, *, closed: bool) -> Iterator[str]:
    """Yield the problems of an object's properties."""
    yield from (f"{at}: lacks {name}" for name in schema.get("required", ()) if name not in value)
    for name, item in value.items():
        known = schema.get("properties", {}).get(name) or schema.get("additionalProperties")
        if known:
            yield from problems(item, known, f"{at}.{name}")
        elif closed:
            yield f"{at}: {name} is not described"


def payload(event: type[msgspec.Struct]) -> dict[str, Any]:
    found: dict[str, Any] = DOCUMENT["components"]["messages"][event.type_name]["payload"]  # type: ignore[attr-defined]
    return found


def check(*arguments: str, root: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(root / "proto/asyncapi.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_it_is_fresh() -> None:
    done = check("--check")
    assert done.returncode == 0, done.stderr


def test_a_stale_document_would_be_noticed(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "proto", tmp_path / "proto", ignore=shutil.ignore_patterns("gen", "__pycache__"))
    (tmp_path / "docs").mkdir()
    shutil.copy(ROOT / "docs/asyncapi.yaml", tmp_path / "docs")
    assert check("--check", root=tmp_path).returncode == 0
    contract = tmp_path / "proto/recorrido/actions/v1/events.proto"
    text = contract.read_text()
    contract.write_text(text.replace("message ActionOpened {", "message ActionOpened {\n  string brand_new = 900;", 1))
    done = check("--check", root=tmp_path)
    assert done.returncode == 1
    assert "docs/asyncapi.yaml" in done.stderr


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for value in node.values():
            yield from references(value)
    elif isinstance(node, list):
        for value in node:
            yield from references(value)


def test_every_reference_leads_somewhere() -> None:
    found = set(references(DOCUMENT))
    assert len(found) > 30
    for reference in found:
        assert isinstance(resolve(reference), dict)


def test_every_event_has_a_channel_that_is_sent_to_and_a_line_for_people() -> None:
    prose = (ROOT / "docs/events.md").read_text()
    names = {event.type_name for event in event_types()}
    assert names == {name for name in DOCUMENT["channels"] if name.startswith("recorrido.")}
    for name in names:
        channel = DOCUMENT["channels"][name]
        assert channel["address"] == f"{name}.{{streamId}}"
        operation = DOCUMENT["operations"][f"send.{name}"]
        assert (operation["action"], operation["channel"]) == ("send", {"$ref": f"#/channels/{name}"})
        assert [resolve(m["$ref"]) for m in operation["messages"]] == list(channel["messages"].values())
        assert f"| `{name}` |" in prose


def test_every_placeholder_of_an_address_is_described() -> None:
    for channel in DOCUMENT["channels"].values():
        assert set(re.findall(r"{(\w+)}", channel["address"])) == channel["parameters"].keys()


@pytest.mark.parametrize("event", event_types(), ids=lambda event: event.type_name)
def test_events_conform(event: Any) -> None:
    for body in [encode(filled(event)), encode(event()), *(file.read_bytes() for file in golden_files(event))]:
        assert list(problems(json.loads(body), payload(event))) == []


@given(st.sampled_from(event_types()).flatmap(structs))
def test_any_event_conforms(event: Any) -> None:
    assert list(problems(json.loads(encode(event)), payload(type(event)))) == []


@pytest.mark.parametrize("event", event_types(), ids=lambda event: event.type_name)
def test_what_is_no_such_event_does_not_conform(event: Any) -> None:
    """The checker checks: each field of each event, with a value of the wrong kind, is a problem."""
    whole = json.loads(encode(filled(event)))
    for name, value in whole.items():
        wrong: Any = 7 if isinstance(value, str) else "seven"
        assert list(problems({**whole, name: wrong}, payload(event))), name
    assert list(problems({**whole, "other": 1}, payload(event)))


def test_headers_conform() -> None:
    recorded = Recorded(
        type_name="recorrido.ingest.v1.InteractionRecorded",
        data=b"{}",
        metadata={CORRELATION_ID: "a b/č", CAUSATION_ID: str(uuid.uuid4())},
        event_id=uuid.uuid4(),
        stream="customer-č",
        revision=3,
        position=77,
        recorded_at=datetime.now(UTC),
    )
    headers = headers_of(recorded, {"traceparent": "00-1-2-03", "tracestate": "x=y"})
    described = DOCUMENT["components"]["schemas"]["EventHeaders"]
    assert list(problems(headers, described)) == []
    assert headers.keys() == described["properties"].keys(), "all of them are described, and no others"
    message = DOCUMENT["components"]["messages"][recorded.type_name]["headers"]
    assert list(problems(headers, message)) == []
    assert list(problems({**headers, "ce-type": "recorrido.ingest.v1.Other"}, message)) != []
