"""The hierarchy of customer needs: reads `taxonomy.yaml`, or a company's own file of that form, and checks it."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

DEFAULT_TAXONOMY = Path(__file__).with_name("taxonomy.yaml")
_ID = re.compile(r"[a-z][a-z0-9_]*")


class TaxonomyError(ValueError):
    """The file breaks a rule; the message names the node and the rule."""


@dataclass(frozen=True, slots=True)
class Need:
    """One node. `path` is the ids from the top, joined with '/'; `level` counts from 1."""

    path: str
    name: dict[str, str]
    definition: dict[str, str]
    retired: bool
    leaf: bool

    @property
    def level(self) -> int:
        return self.path.count("/") + 1


@dataclass(frozen=True, slots=True)
class Taxonomy:
    """All needs by path, parents before their children."""

    version: str
    languages: tuple[str, ...]
    needs: dict[str, Need]

    def leaves(self) -> list[Need]:
        """What a model can tell apart: nodes without children that are in use."""
        return [need for need in self.needs.values() if need.leaf and not need.retired]


def load(path: Path = DEFAULT_TAXONOMY) -> Taxonomy:
    """Read and check a taxonomy.

    Raises:
        TaxonomyError: a missing text, a malformed or repeated id, or a depth other than three levels.
    """
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    languages = tuple(document["languages"])
    needs: dict[str, Need] = {}
    for need in _walk(document["needs"], "", languages):
        if need.path in needs:
            raise TaxonomyError(f"{need.path}: this id is used twice")
        if need.level > 3 or (need.leaf and need.level != 3):
            raise TaxonomyError(f"{need.path}: every branch must have exactly three levels")
        needs[need.path] = need
    return Taxonomy(str(document["version"]), languages, needs)


def _walk(nodes: list[dict[str, Any]], parent: str, languages: tuple[str, ...]) -> Iterator[Need]:
    for node in nodes:
        if not _ID.fullmatch(str(node.get("id"))):
            raise TaxonomyError(f"{parent}{node.get('id')}: an id is lower-case letters, digits and underscores")
        path = f"{parent}{node['id']}"
        for field in ("name", "definition"):
            if missing := [language for language in languages if not node.get(field, {}).get(language)]:
                raise TaxonomyError(f"{path}: no {field} in {', '.join(missing)}")
        children = node.get("children", [])
        yield Need(path, node["name"], node["definition"], bool(node.get("retired", False)), not children)
        yield from _walk(children, f"{path}/", languages)
