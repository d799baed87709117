"""The hierarchy of customer needs, as a company's own file or the one that comes with the model: read, checked, told.

A file has a version, its languages and nodes; each node an id, names and definitions in all of the languages, and its
children. A need that is not told of any more has `retired: true` and stays, so that the history keeps its names.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from services.foundation.errors import InvalidError, NotFoundError, Violation

DEPTH = 3
_ID = re.compile(r"[a-z][a-z0-9_]*")


class _Node(msgspec.Struct, forbid_unknown_fields=True):
    id: str
    name: dict[str, str]
    definition: dict[str, str]
    retired: bool = False
    children: list["_Node"] = []


class _Document(msgspec.Struct, forbid_unknown_fields=True):
    version: int | str
    languages: list[str]
    needs: list[_Node]


@dataclass(frozen=True, slots=True)
class Need:
    """One node. `path` is the ids from the top, joined with "/"; names and definitions are by language."""

    path: str
    name: Mapping[str, str]
    definition: Mapping[str, str]
    retired: bool

    @property
    def level(self) -> int:
        return self.path.count("/") + 1


@dataclass(frozen=True, slots=True)
class Taxonomy:
    """All needs by their paths, parents before their children."""

    version: str
    languages: Sequence[str]
    needs: Mapping[str, Need]

    def language_of(self, asked: str) -> str:
        """Return the language that answers for `asked`: itself, or "pt" for "pt-BR". Raises InvalidError."""
        primary = asked.replace("_", "-").partition("-")[0].lower()
        if not primary:
            return self.languages[0]
        if primary not in self.languages:
            raise InvalidError([Violation("language", f"one of {', '.join(self.languages)}")])
        return primary

    def below(self, path: str) -> list[Need]:
        """Return the need of `path` and all below it; of an empty one, all there are. Raises NotFoundError."""
        if path and path not in self.needs:
            raise NotFoundError("NEED_UNKNOWN", f"there is no need {path!r} in version {self.version} of the taxonomy")
        return [n for n in self.needs.values() if not path or n.path == path or n.path.startswith(f"{path}/")]

    def violation(self, path: str) -> str:
        """Return why nobody may tell of this need now; empty where they may."""
        need = self.needs.get(path)
        if need is None:
            return f"a path of version {self.version} of the taxonomy, such as {next(iter(self.needs))}"
        return f"a need in use; {path} is retired" if need.retired else ""


def load(path: Path) -> Taxonomy:
    """Read and check a file.

    Raises:
        ValueError: it cannot be read, or breaks a rule; the text names the node and the rule.
    """
    try:
        document = msgspec.yaml.decode(path.read_bytes(), type=_Document, strict=False)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from error
    except msgspec.MsgspecError as error:
        raise ValueError(f"{path}: {error}") from error
    if not document.languages or not document.needs:
        raise ValueError(f"{path}: at least one language and one need")
    needs: dict[str, Need] = {}
    for need in _walk(document.needs, "", document.languages):
        if need.path in needs:
            raise ValueError(f"{path}: {need.path}: this id is used twice")
        needs[need.path] = need
    return Taxonomy(str(document.version), tuple(document.languages), needs)


def _walk(nodes: Sequence[_Node], parent: str, languages: Sequence[str]) -> Iterator[Need]:
    for node in nodes:
        path = f"{parent}{node.id}"
        if not _ID.fullmatch(node.id):
            raise ValueError(f"{path}: an id is lower-case letters, digits and underscores")
        if path.count("/") >= DEPTH:
            raise ValueError(f"{path}: at most {DEPTH} levels")
        for field, texts in (("name", node.name), ("definition", node.definition)):
            if missing := [language for language in languages if not texts.get(language)]:
                raise ValueError(f"{path}: no {field} in {', '.join(missing)}")
        yield Need(path, node.name, node.definition, node.retired)
        yield from _walk(node.children, f"{path}/", languages)
