"""Which touchpoint of a map an interaction belongs to: an opinion of the map, never a fact of the interaction."""

from recorrido.ingest.v1.events import Channel
from recorrido.journey.v1.events import JourneyMap, MappingRule


def place(map_: JourneyMap, source: str, touchpoint: str, channel: Channel) -> str | None:
    """Return the id of the touchpoint that `map_` places an interaction at, or None: the map does not cover it.

    The first rule that matches wins. Where none does, it is the touchpoint whose id, or else one of whose aliases,
    equals the raw name.
    """
    for rule in map_.mapping_rules:
        if matches(rule, source, touchpoint, channel):
            return rule.touchpoint_id
    return named(map_, touchpoint)


def named(map_: JourneyMap, name: str) -> str | None:
    """Return the id of the touchpoint whose id, or else one of whose aliases, is this name; None if none is."""
    touchpoints = [t for stage in map_.stages for t in stage.touchpoints]
    same = (t.touchpoint_id for t in touchpoints if t.touchpoint_id == name)
    return next(same, None) or next((t.touchpoint_id for t in touchpoints if name in t.aliases), None)


def matches(rule: MappingRule, source: str, touchpoint: str, channel: Channel) -> bool:
    """Return whether every condition that the rule gives holds."""
    return (
        _text_matches(rule.source, source)
        and _text_matches(rule.touchpoint, touchpoint)
        and rule.channel in (Channel.UNSPECIFIED, channel)
    )


def _text_matches(condition: str, value: str) -> bool:
    if condition == "" or condition.endswith("*"):
        return value.startswith(condition[:-1])
    return condition == value
