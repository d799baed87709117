"""The hierarchy of needs: the shipped file keeps its rules, and a file that breaks one is refused."""

from collections import Counter
from pathlib import Path

import pytest

from infra.triton import taxonomy


def node(name: str, *children: str, more: str = "") -> str:
    """A node as YAML."""
    below = f", children: [{', '.join(children)}]" if children else ""
    return f"{{id: {name}, name: {{en: n}}, definition: {{en: d}}{more}{below}}}"


def test_the_shipped_taxonomy_has_three_levels_of_useful_size() -> None:
    levels = Counter(need.level for need in taxonomy.load().needs.values())
    assert set(levels) == {1, 2, 3}
    assert 10 <= levels[1] <= 15
    assert 35 <= levels[2] <= 50
    assert 90 <= levels[3] <= 130


def test_names_tell_siblings_apart_in_every_language() -> None:
    known = taxonomy.load()
    for language in known.languages:
        names = Counter((path.rpartition("/")[0], need.name[language]) for path, need in known.needs.items())
        assert [name for name, count in names.items() if count > 1] == []


def test_parents_come_before_children() -> None:
    seen: set[str] = set()
    for path in taxonomy.load().needs:
        parent = path.rpartition("/")[0]
        assert not parent or parent in seen
        seen.add(path)


def written(path: Path, nodes: str) -> Path:
    path.write_text(f"version: 7\nlanguages: [en]\nneeds: [{nodes}]\n")
    return path


def test_a_company_can_bring_its_own_and_retire_needs(tmp_path: Path) -> None:
    nodes = node("a", node("b", node("x"), node("y", more=", retired: true")))
    known = taxonomy.load(written(tmp_path / "own.yaml", nodes))
    assert known.version == "7"
    assert list(known.needs) == ["a", "a/b", "a/b/x", "a/b/y"]
    assert [leaf.path for leaf in known.leaves()] == ["a/b/x"]


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        (node("a"), "a: every branch must have exactly three levels"),
        (node("Big-Id"), "Big-Id: an id is lower-case"),
        ("{id: a, name: {en: n}, definition: {sl: d}}", "a: no definition in en"),
        (node("a", node("b", node("x"), node("x"))), "a/b/x: this id is used twice"),
    ],
)
def test_a_broken_file_names_the_node_and_the_rule(tmp_path: Path, nodes: str, message: str) -> None:
    with pytest.raises(taxonomy.TaxonomyError, match=message):
        taxonomy.load(written(tmp_path / "bad.yaml", nodes))
