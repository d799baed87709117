"""What changed from one version of a journey map to another."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import msgspec

from recorrido.ingest.v1.events import Channel
from recorrido.journey.v1.events import JourneyMap, MappingRule, Metric


class ChangeKind(Enum):
    ADDED = 1
    REMOVED = 2
    CHANGED = 3
    RENAMED = 4
    MOVED = 5


@dataclass(frozen=True, slots=True)
class Change:
    """`before` and `after` are in words for people; empty where there was, or is, nothing."""

    kind: ChangeKind
    path: str
    before: str = ""
    after: str = ""


def changes(old: JourneyMap, new: JourneyMap) -> list[Change]:
    """Return the changes in the order of the newer map, then what it took away.

    A touchpoint with another id that has the old one as its alias is renamed, and compared as the same.
    """
    return [
        *_fields("", _plain(old, "name"), _plain(new, "name")),
        *_entries("stages", *(_by_id(m.stages, "stage_id", "touchpoints") for m in (old, new))),
        *_touchpoints(old, new),
        *_rules("mapping_rules", old.mapping_rules, new.mapping_rules),
        *_entries("personas", *(_by_id(m.personas, "persona_id") for m in (old, new))),
        *_entries("goals", *(_by_id(m.goals, "goal_id") for m in (old, new))),
        *_fields("episodes.", _fields_of(old.episodes), _fields_of(new.episodes)),
        *_fields(
            "loyalty.",
            _fields_of(old.loyalty, "rules"),
            _fields_of(new.loyalty, "rules"),
        ),
        *_rules("loyalty.rules", old.loyalty.rules if old.loyalty else (), new.loyalty.rules if new.loyalty else ()),
    ]


_Entry = Mapping[str, Any]


def _plain(struct: Any, *names: str) -> _Entry:
    return {name: getattr(struct, name) for name in names}


def _fields_of(struct: Any, *without: str) -> _Entry:
    if struct is None:
        return {}
    names = [name for name in struct.__struct_fields__ if name not in without]
    return {name: value for name, value in _plain(struct, *names).items() if value not in (None, "", (), 0, False)}


def _by_id(structs: Sequence[Any], key: str, *without: str) -> Mapping[str, _Entry]:
    return {getattr(each, key): _fields_of(each, key, *without) for each in structs}


def _entries(name: str, old: Mapping[str, _Entry], new: Mapping[str, _Entry]) -> Iterator[Change]:
    for key, entry in new.items():
        if key not in old:
            yield Change(ChangeKind.ADDED, f"{name}[{key}]", after=_words(entry.get("name", "")))
        else:
            yield from _fields(f"{name}[{key}].", old[key], entry)
    common = [key for key in old if key in new]
    if common != [key for key in new if key in old]:
        yield Change(ChangeKind.MOVED, name, ", ".join(common), ", ".join(key for key in new if key in old))
    for key, entry in old.items():
        if key not in new:
            yield Change(ChangeKind.REMOVED, f"{name}[{key}]", before=_words(entry.get("name", "")))


def _touchpoints(old: JourneyMap, new: JourneyMap) -> Iterator[Change]:
    before = {t.touchpoint_id: (stage.stage_id, t) for stage in old.stages for t in stage.touchpoints}
    after = {t.touchpoint_id: (stage.stage_id, t) for stage in new.stages for t in stage.touchpoints}
    gone = dict.fromkeys(key for key in before if key not in after)
    for key, (stage_id, touchpoint) in after.items():
        path = f"touchpoints[{key}]"
        was = key if key in before else next((alias for alias in touchpoint.aliases if alias in gone), None)
        if was is None:
            yield Change(ChangeKind.ADDED, path, after=touchpoint.name)
            continue
        if was != key:
            del gone[was]
            yield Change(ChangeKind.RENAMED, path, was, key)
        earlier_stage, earlier = before[was]
        if earlier_stage != stage_id:
            yield Change(ChangeKind.MOVED, path, earlier_stage, stage_id)
        yield from _fields(f"{path}.", _fields_of(earlier, "touchpoint_id"), _fields_of(touchpoint, "touchpoint_id"))
    for key in gone:
        yield Change(ChangeKind.REMOVED, f"touchpoints[{key}]", before=before[key][1].name)


def _rules(name: str, old: Sequence[Any], new: Sequence[Any]) -> Iterator[Change]:
    kept = [rule for rule in new if rule in old]
    for n, rule in enumerate(new):
        if rule not in old:
            yield Change(ChangeKind.ADDED, f"{name}[{n}]", after=_words(rule))
    if kept != [rule for rule in old if rule in new]:
        yield Change(
            ChangeKind.MOVED,
            name,
            "; ".join(_words(rule) for rule in old if rule in new),
            "; ".join(_words(rule) for rule in kept),
        )
    for n, rule in enumerate(old):
        if rule not in new:
            yield Change(ChangeKind.REMOVED, f"{name}[{n}]", before=_words(rule))


def _fields(prefix: str, old: _Entry, new: _Entry) -> Iterator[Change]:
    for name in dict.fromkeys([*new, *old]):
        if old.get(name) != new.get(name):
            yield Change(ChangeKind.CHANGED, f"{prefix}{name}", _words(old.get(name)), _words(new.get(name)))


def _words(value: Any) -> str:
    match value:
        case None:
            return ""
        case MappingRule():
            channel = "" if value.channel is Channel.UNSPECIFIED else f" on {_words(value.channel)}"
            return f"{value.source or 'any'} / {value.touchpoint or 'any'}{channel} → {value.touchpoint_id}"
        case Channel() | Metric():
            return "" if value.name == "UNSPECIFIED" else value.name.lower().replace("_", " ")
        case tuple():
            return ", ".join(_words(each) for each in value)
        case msgspec.Struct():
            return " ".join(f"{name}={_words(part)}" for name, part in _fields_of(value).items())
        case _:
            return getattr(value, "name", None) or str(value)
