"""What a valid journey map is: every problem of it, each with the path of its field."""

import math
import re
from collections.abc import Iterable, Iterator, Sequence

from recorrido.ingest.v1.events import Channel
from recorrido.journey.v1.events import (
    Expectation,
    JourneyMap,
    LoyaltyLevel,
    LoyaltyRule,
    MappingRule,
    Metric,
    Persona,
    Stage,
    Touchpoint,
)
from services.foundation.errors import Violation
from services.journey.domain import personas
from services.journey.domain.personas import KIND

ID = re.compile(r"[a-z0-9_-]{1,64}", re.ASCII)
ID_RULE = "1 to 64 lower-case letters, digits, '_' and '-'"
MAX_NAME = 128
MAX_TEXT = 1024
MAX_STAGES = 100
MAX_TOUCHPOINTS = 1000
MAX_RULES = 1000
#: Goals are told as bits.
MAX_GOALS = 60
MAX_PERSONAS = 100
#: Of conditions, values, triggers and aliases.
MAX_PARTS = 100
MAX_DAYS = 3660

#: What an expectation may come to.
RANGES = {Metric.NPS: (-100, 100), Metric.CSAT: (0, 100), Metric.CES: (0, 100), Metric.SENTIMENT: (-1, 1)}

_CONDITIONS = tuple(name for name in LoyaltyRule.__struct_fields__ if name != "level")


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
        yield from _touchpoint(path, touchpoint)
    yield from _aliases(touchpoints)
    ids = {touchpoint.touchpoint_id for _, touchpoint in touchpoints}
    if len(map_.mapping_rules) > MAX_RULES:
        yield Violation("map.mapping_rules", f"at most {MAX_RULES} rules")
    else:
        yield from _rules(map_.mapping_rules, ids)
        yield from _unreachable(map_)
    yield from _goals(map_, ids)
    yield from _personas(map_)
    yield from _episodes(map_)
    yield from _loyalty(map_)


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


def _optional(path: str, text: str, most: int = MAX_NAME) -> Iterator[Violation]:
    if len(text) > most or not text.isprintable():
        yield Violation(path, f"at most {most} printable characters")


def _references(path: str, references: Sequence[str], known: set[str], what: str) -> Iterator[Violation]:
    for n, reference in enumerate(references):
        if reference not in known:
            yield Violation(f"{path}[{n}]", f"a {what} of the map; there is no {reference!r}")


# -- touchpoints -----------------------------------------------------------------------------------------------------


def _touchpoint(path: str, touchpoint: Touchpoint) -> Iterator[Violation]:
    yield from _name(f"{path}.name", touchpoint.name)
    yield from _optional(f"{path}.owner", touchpoint.owner)
    if max(len(touchpoint.emotional_triggers), len(touchpoint.aliases)) > MAX_PARTS:
        yield Violation(path, f"at most {MAX_PARTS} emotional triggers, and as many aliases")
        return
    for n, trigger in enumerate(touchpoint.emotional_triggers):
        yield from _name(f"{path}.emotional_triggers[{n}]", trigger)
    for n, alias in enumerate(touchpoint.aliases):
        yield from _name(f"{path}.aliases[{n}]", alias)
    yield from _expected(path, touchpoint.expected)


def _expected(path: str, expected: Sequence[Expectation]) -> Iterator[Violation]:
    seen = set()
    for n, each in enumerate(expected):
        here = f"{path}.expected[{n}]"
        if each.metric not in RANGES:
            yield Violation(f"{here}.metric", "one of NPS, CSAT, CES and sentiment")
            continue
        if each.metric in seen:
            yield Violation(f"{here}.metric", f"{each.metric.name} once; what is expected of it is said before")
        seen.add(each.metric)
        lowest, highest = RANGES[each.metric]
        if not (math.isfinite(each.target) and lowest <= each.target <= highest):
            yield Violation(f"{here}.target", f"between {lowest} and {highest}")


def _aliases(touchpoints: Sequence[tuple[str, Touchpoint]]) -> Iterator[Violation]:
    first = {touchpoint.touchpoint_id: f"{path}.touchpoint_id" for path, touchpoint in touchpoints}
    for path, touchpoint in touchpoints:
        for n, alias in enumerate(touchpoint.aliases):
            here = f"{path}.aliases[{n}]"
            if alias in first:
                yield Violation(here, f"a name of this touchpoint only; {first[alias]} is {alias!r} too")
            first.setdefault(alias, here)


# -- mapping rules ---------------------------------------------------------------------------------------------------


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
            both = meet(earlier, rule)
            if both is None or earlier.touchpoint_id == rule.touchpoint_id or covers(rule, earlier):
                continue
            if not any(covers(first, both) for first in rules[:m]):
                yield Violation(
                    path,
                    f"overlaps map.mapping_rules[{m}]: both match some interactions and place them differently; neither"
                    " is a special case of the other, and no rule before them says what then",
                )


def covers(general: MappingRule, special: MappingRule) -> bool:
    """Return whether `general` matches every interaction that `special` matches."""
    return (
        _text_covers(general.source, special.source)
        and _text_covers(general.touchpoint, special.touchpoint)
        and general.channel in (Channel.UNSPECIFIED, special.channel)
    )


def meet(one: MappingRule, other: MappingRule) -> MappingRule | None:
    """Return the rule that matches what both match; None where nothing does."""
    source, touchpoint = _texts_meet(one.source, other.source), _texts_meet(one.touchpoint, other.touchpoint)
    channels = {one.channel, other.channel} - {Channel.UNSPECIFIED}
    if source is None or touchpoint is None or len(channels) > 1:
        return None
    return MappingRule(source=source, touchpoint=touchpoint, channel=next(iter(channels), Channel.UNSPECIFIED))


def _text_covers(general: str, special: str) -> bool:
    # The empty condition and a lone '*' both are the prefix "".
    if general == "" or general.endswith("*"):
        return (special or "*").removesuffix("*").startswith(general[:-1])
    return general == special


def _texts_meet(one: str, other: str) -> str | None:
    if _text_covers(one, other):
        return other
    return one if _text_covers(other, one) else None


def _unreachable(map_: JourneyMap) -> Iterator[Violation]:
    """Yield the stages at whose touchpoints nothing can be placed, whatever happens.

    A touchpoint is placed at by a rule of its own, or by its own name or alias where no rule takes all of that name.
    """
    placed_at = {rule.touchpoint_id for rule in map_.mapping_rules}
    for n, stage in enumerate(map_.stages):
        names = [name for t in stage.touchpoints for name in (t.touchpoint_id, *t.aliases)]
        by_rule = any(t.touchpoint_id in placed_at for t in stage.touchpoints)
        if stage.touchpoints and not by_rule and all(_taken(map_.mapping_rules, name) for name in names):
            yield Violation(
                f"map.stages[{n}]",
                "nothing can reach it: no rule places at its touchpoints, and other rules take all of their names",
            )


def _taken(rules: Sequence[MappingRule], name: str) -> bool:
    return any(covers(rule, MappingRule(touchpoint=name)) for rule in rules)


# -- personas, goals, episodes, loyalty ------------------------------------------------------------------------------


def _goals(map_: JourneyMap, touchpoint_ids: set[str]) -> Iterator[Violation]:
    if len(map_.goals) > MAX_GOALS:
        yield Violation("map.goals", f"at most {MAX_GOALS} goals")
    yield from _ids((f"map.goals[{n}].goal_id", goal.goal_id) for n, goal in enumerate(map_.goals))
    for n, goal in enumerate(map_.goals):
        path = f"map.goals[{n}]"
        yield from _name(f"{path}.name", goal.name)
        if not goal.touchpoint_ids:
            yield Violation(f"{path}.touchpoint_ids", "at least one touchpoint, or nothing can reach the goal")
        for name in ("touchpoint_ids", "begins_at_touchpoint_ids"):
            yield from _references(f"{path}.{name}", getattr(goal, name), touchpoint_ids, "touchpoint")


def _personas(map_: JourneyMap) -> Iterator[Violation]:
    if len(map_.personas) > MAX_PERSONAS:
        yield Violation("map.personas", f"at most {MAX_PERSONAS} personas")
        return
    yield from _ids((f"map.personas[{n}].persona_id", persona.persona_id) for n, persona in enumerate(map_.personas))
    goal_ids = {goal.goal_id for goal in map_.goals}
    for n, persona in enumerate(map_.personas):
        path = f"map.personas[{n}]"
        yield from _name(f"{path}.name", persona.name)
        yield from _optional(f"{path}.description", persona.description, MAX_TEXT)
        yield from _references(f"{path}.goal_ids", persona.goal_ids, goal_ids, "goal")
        yield from _conditions(path, persona)
        for m, earlier in enumerate(map_.personas[:n]):
            if personas.covers(earlier.conditions, persona.conditions):
                yield Violation(path, f"nobody can be it: map.personas[{m}] takes all whom it would take")
                break


def _conditions(path: str, persona: Persona) -> Iterator[Violation]:
    if len(persona.conditions) > MAX_PARTS:
        yield Violation(f"{path}.conditions", f"at most {MAX_PARTS} conditions")
        return
    for n, condition in enumerate(persona.conditions):
        here = f"{path}.conditions[{n}]"
        yield from _name(f"{here}.attribute", condition.attribute)
        if not 1 <= len(condition.values) <= MAX_PARTS:
            yield Violation(f"{here}.values", f"1 to {MAX_PARTS} values")
        for m, value in enumerate(condition.values):
            yield from _name(f"{here}.values[{m}]", value)
            if "*" in value[:-1]:
                yield Violation(f"{here}.values[{m}]", "'*' only at the end, where it matches any rest")
            if condition.attribute == KIND and value not in _KINDS:
                yield Violation(f"{here}.values[{m}]", f"one of {', '.join(_KINDS)}")


_KINDS = ("buyer", "employee", "supplier", "other")


def _episodes(map_: JourneyMap) -> Iterator[Violation]:
    if map_.episodes is None:
        return
    yield from _references(
        "map.episodes.goal_ids", map_.episodes.goal_ids, {goal.goal_id for goal in map_.goals}, "goal"
    )
    if not 0 <= map_.episodes.inactivity_hours <= MAX_DAYS * 24:
        yield Violation("map.episodes.inactivity_hours", f"between 0 and {MAX_DAYS * 24}")


def _loyalty(map_: JourneyMap) -> Iterator[Violation]:
    if map_.loyalty is None:
        return
    if not 0 <= map_.loyalty.window_days <= MAX_DAYS:
        yield Violation("map.loyalty.window_days", f"between 0 and {MAX_DAYS}")
    if len(map_.loyalty.rules) > MAX_PARTS:
        yield Violation("map.loyalty.rules", f"at most {MAX_PARTS} rules")
        return
    for n, rule in enumerate(map_.loyalty.rules):
        path = f"map.loyalty.rules[{n}]"
        if rule.level is LoyaltyLevel.UNSPECIFIED:
            yield Violation(f"{path}.level", "at risk, satisfied, loyal or advocate")
        yield from _bounds(path, rule)
        covering = next((m for m, earlier in enumerate(map_.loyalty.rules[:n]) if loyalty_covers(earlier, rule)), None)
        if covering is not None:
            yield Violation(path, f"can never decide: map.loyalty.rules[{covering}] holds wherever it holds")


def _bounds(path: str, rule: LoyaltyRule) -> Iterator[Violation]:
    given = {name: getattr(rule, name) for name in _CONDITIONS if getattr(rule, name) is not None}
    if not given:
        yield Violation(path, "at least one condition")
    for name, bound in given.items():
        highest = 10 if name.startswith("nps") else 5 if name.startswith("csat") else MAX_DAYS
        if not (math.isfinite(bound) and 0 <= bound <= highest):
            yield Violation(f"{path}.{name}", f"between 0 and {highest}")


def loyalty_covers(general: LoyaltyRule, special: LoyaltyRule) -> bool:
    """Return whether `general` holds wherever `special` holds."""
    for name in _CONDITIONS:
        broad, narrow = getattr(general, name), getattr(special, name)
        if broad is not None and (narrow is None or (narrow > broad if name.endswith("most") else narrow < broad)):
            return False
    return True
