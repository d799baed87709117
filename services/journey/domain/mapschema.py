"""The JSON Schema of a journey map's YAML file, from the contract's structs and the limits of `domain.mapcheck`.

`python -m services.journey.domain.mapschema` prints it; it is published as docs/journey-map.schema.json.
"""

import json
import sys
import types
import typing
from enum import StrEnum
from typing import Any

import msgspec

from recorrido.journey.v1.events import JourneyMap
from services.journey.domain import mapcheck

_ID = {"type": "string", "pattern": f"^{mapcheck.ID.pattern}$"}
_NAME = {"type": "string", "minLength": 1, "maxLength": mapcheck.MAX_NAME}
_ALIKE = {"minItems": 1}

#: What a field must keep to, beyond its type.
_RULES: dict[str, dict[str, Any]] = {
    "JourneyMap.stages": {"minItems": 1, "maxItems": mapcheck.MAX_STAGES},
    "JourneyMap.mapping_rules": {"maxItems": mapcheck.MAX_RULES},
    "JourneyMap.personas": {"maxItems": mapcheck.MAX_PERSONAS},
    "JourneyMap.goals": {"maxItems": mapcheck.MAX_GOALS},
    "Stage.touchpoints": _ALIKE,
    "Goal.touchpoint_ids": _ALIKE,
    "PersonaCondition.values": {"minItems": 1, "maxItems": mapcheck.MAX_PARTS},
    "PersonaCondition.attribute": _NAME,
    "Touchpoint.owner": {"maxLength": mapcheck.MAX_NAME},
    "Touchpoint.aliases": {"maxItems": mapcheck.MAX_PARTS},
    "Touchpoint.emotional_triggers": {"maxItems": mapcheck.MAX_PARTS},
    "Persona.description": {"maxLength": mapcheck.MAX_TEXT},
    "MappingRule.source": {"maxLength": mapcheck.MAX_NAME, "pattern": r"^[^*]*\*?$"},
    "MappingRule.touchpoint": {"maxLength": mapcheck.MAX_NAME, "pattern": r"^[^*]*\*?$"},
    "EpisodeRules.inactivity_hours": {"minimum": 0, "maximum": mapcheck.MAX_DAYS * 24},
    "LoyaltyRules.window_days": {"minimum": 0, "maximum": mapcheck.MAX_DAYS},
}

#: What every file has to say of each.
REQUIRED = {
    "JourneyMap": ["map_id", "name", "stages"],
    "Stage": ["stage_id", "name", "touchpoints"],
    "Touchpoint": ["touchpoint_id", "name"],
    "Expectation": ["metric", "target"],
    "MappingRule": ["touchpoint_id"],
    "Persona": ["persona_id", "name"],
    "PersonaCondition": ["attribute", "values"],
    "Goal": ["goal_id", "name", "touchpoint_ids"],
    "LoyaltyRule": ["level"],
}


def schema() -> dict[str, Any]:
    """Return the schema, in JSON Schema 2020-12. What references mean is checked when a map is published."""
    definitions: dict[str, Any] = {}
    _define(JourneyMap, definitions)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Journey map",
        "$ref": "#/$defs/JourneyMap",
        "$defs": definitions,
    }


def _define(struct: type[msgspec.Struct], definitions: dict[str, Any]) -> None:
    name = struct.__name__
    # Before its parts are, so that a part may hold another of its kind.
    definitions[name] = {}
    hints = typing.get_type_hints(struct)
    definitions[name] = {
        "type": "object",
        "description": " ".join((struct.__doc__ or "").split()),
        "properties": {
            field: _kind(hints[field], definitions, f"{name}.{field}") for field in struct.__struct_fields__
        },
        "required": REQUIRED.get(name, []),
        "additionalProperties": False,
    }


def _kind(hint: Any, definitions: dict[str, Any], path: str) -> dict[str, Any]:
    rules = _RULES.get(path, {})
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in {typing.Union, types.UnionType}:
        (inner,) = (each for each in arguments if each is not type(None))
        return _kind(inner, definitions, path)
    if origin is tuple:
        return {"type": "array", "items": _kind(arguments[0], definitions, f"{path}[]"), **rules}
    if hint is str:
        field = path.removesuffix("[]").rpartition(".")[2]
        text = _ID if field.endswith(("_id", "_ids")) else _NAME if field == "name" or path.endswith("[]") else {}
        return {"type": "string", **text, **rules}
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        return {"enum": [each.name.lower() for each in hint if each.name != "UNSPECIFIED"]}
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        if hint.__name__ not in definitions:
            _define(hint, definitions)
        return {"$ref": f"#/$defs/{hint.__name__}"}
    return {"type": {bool: "boolean", int: "integer", float: "number"}[hint], **rules}


def text() -> str:
    """Return the file as it is published."""
    return json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    sys.stdout.write(text())
