"""Journey maps: what a valid one is, and how a new version is published.

Stream `journeymap-<map id>`; the version of a map is its event's revision + 1.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from recorrido.ingest.v1.events import Channel
from recorrido.journey.v1.events import JourneyMap, JourneyMapPublished, MappingRule, Stage, Touchpoint
from services.foundation.errors import DiffersError, InvalidError, Violation

ID = re.compile(r"[a-z0-9_-]{1,64}", re.ASCII)
ID_RULE = "1 to 64 lower-case letters, digits, '_' and '-'"
MAX_NAME = 128
MAX_STAGES = 100
MAX_TOUCHPOINTS = 1000
MAX_RULES = 1000


@dataclass(frozen=True, slots=True)
class PublishJourneyMap:
    """Make `map` the next version of its map id. `request_id` is never empty."""

    map: JourneyMap
    actor: str
    request_id: str

    @property
    def cause(self) -> str:
        return self.request_id


@dataclass(frozen=True, slots=True)
class PublishedMap:
    """One version of a map, as it was published."""

    map: JourneyMap
    version: int
    published_at: datetime
    actor: str


@dataclass(frozen=True, slots=True)
class MapState:
    """The latest map (None: none yet), its version, and which version each request published."""

    map: JourneyMap | None = None
    version: int = 0
    requests: Mapping[str, tuple[int, JourneyMap]] = field(default_factory=dict)

    def version_for(self, request_id: str) -> int:
        """Return the version that a request came to; the latest where it found its map published already."""
        return self.requests[request_id][0] if request_id in self.requests else self.version


class Maps:
    """The decider of a journey map."""

    types = (JourneyMapPublished,)

    def initial(self) -> MapState:
        return MapState()

    def evolve(self, state: MapState, event: JourneyMapPublished) -> MapState:
        published = event.map or JourneyMap()
        version = state.version + 1
        return replace(
            state,
            map=published,
            version=version,
            requests={**state.requests, event.request_id: (version, published)},
        )

    def decide(self, command: PublishJourneyMap, state: MapState) -> Sequence[JourneyMapPublished]:
        """Publish, unless this request did it before or the map is as it was.

        Raises:
            InvalidError: names every problem of the map.
            DiffersError: the same request_id published another map.
        """
        problems = [*violations(command.map)]
        if not command.actor.strip() or len(command.actor) > MAX_NAME:
            problems.append(Violation("actor", f"1 to {MAX_NAME} characters"))
        if len(command.request_id) > MAX_NAME:
            problems.append(Violation("request_id", f"at most {MAX_NAME} characters"))
        if problems:
            raise InvalidError(problems)
        if command.request_id in state.requests:
            version, published = state.requests[command.request_id]
            if published != command.map:
                raise DiffersError(
                    "REQUEST_DIFFERS", f"request {command.request_id} published another map, as version {version}"
                )
            return []
        if command.map == state.map:
            return []
        return [
            JourneyMapPublished(
                map=command.map, version=state.version + 1, actor=command.actor, request_id=command.request_id
            )
        ]


def violations(map_: JourneyMap) -> Iterator[Violation]:
    """Yield every problem of a map, each with the path of its field."""
    if not ID.fullmatch(map_.map_id):
        yield Violation("map.map_id", ID_RULE)
    yield from _name("map.name", map_.name)
    if not 1 <= len(map_.stages) <= MAX_STAGES:
        yield Violation("map.stages", f"1 to {MAX_STAGES} stages")
    yield from _ids((f"map.stages[{n}].stage_id", stage.stage_id) for n, stage in enumerate(map_.stages))
    touchpoints = list(_touchpoints(map_.stages))
    if len(touchpoints) > MAX_TOUCHPOINTS:
        yield Violation("map.stages", f"at most {MAX_TOUCHPOINTS} touchpoints in all")
    yield from _ids((f"{path}.touchpoint_id", touchpoint.touchpoint_id) for path, touchpoint in touchpoints)
    for n, stage in enumerate(map_.stages):
        yield from _name(f"map.stages[{n}].name", stage.name)
        if not stage.touchpoints:
            yield Violation(f"map.stages[{n}].touchpoints", "at least one touchpoint, or nothing can reach the stage")
    for path, touchpoint in touchpoints:
        yield from _name(f"{path}.name", touchpoint.name)
    if len(map_.mapping_rules) > MAX_RULES:
        yield Violation("map.mapping_rules", f"at most {MAX_RULES} rules")
    else:
        yield from _rules(map_.mapping_rules, {touchpoint.touchpoint_id for _, touchpoint in touchpoints})


def _touchpoints(stages: Sequence[Stage]) -> Iterator[tuple[str, Touchpoint]]:
    for n, stage in enumerate(stages):
        for m, touchpoint in enumerate(stage.touchpoints):
            yield f"map.stages[{n}].touchpoints[{m}]", touchpoint


def _ids(ids: Iterable[tuple[str, str]]) -> Iterator[Violation]:
    first: dict[str, str] = {}
    for path, value in ids:
        if not ID.fullmatch(value):
            yield Violation(path, ID_RULE)
        elif value in first:
            yield Violation(path, f"unique in the map; {first[value]} has {value!r} too")
        else:
            first[value] = path


def _name(path: str, name: str) -> Iterator[Violation]:
    if not name.strip() or len(name) > MAX_NAME or not name.isprintable():
        yield Violation(path, f"1 to {MAX_NAME} printable characters")


def _rules(rules: Sequence[MappingRule], touchpoint_ids: set[str]) -> Iterator[Violation]:
    for n, rule in enumerate(rules):
        path = f"map.mapping_rules[{n}]"
        if rule.touchpoint_id not in touchpoint_ids:
            yield Violation(f"{path}.touchpoint_id", f"a touchpoint of the map; there is no {rule.touchpoint_id!r}")
        for condition, value in (("source", rule.source), ("touchpoint", rule.touchpoint)):
            if len(value) > MAX_NAME or not value.isprintable():
                yield Violation(f"{path}.{condition}", f"at most {MAX_NAME} printable characters")
            if "*" in value[:-1]:
                yield Violation(f"{path}.{condition}", "'*' only at the end, where it matches any rest")
        for m, earlier in enumerate(rules[:n]):
            if covers(earlier, rule):
                yield Violation(path, f"can never win: map.mapping_rules[{m}] matches all that it matches")
                break


def covers(general: MappingRule, special: MappingRule) -> bool:
    """Return whether `general` matches every interaction that `special` matches."""
    return (
        _text_covers(general.source, special.source)
        and _text_covers(general.touchpoint, special.touchpoint)
        and general.channel in (Channel.UNSPECIFIED, special.channel)
    )


def _text_covers(general: str, special: str) -> bool:
    # The empty condition and a lone '*' both are the prefix "".
    if general == "" or general.endswith("*"):
        return (special or "*").removesuffix("*").startswith(general[:-1])
    return general == special
