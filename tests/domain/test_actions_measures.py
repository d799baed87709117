"""Which of what the sources call a touchpoint is meant by a name."""

import pytest

from recorrido.ingest.v1.events import Channel
from recorrido.journey.v1.events import JourneyMap, MappingRule, Stage, Touchpoint
from services.actions.views import measures
from services.foundation.placement import place


def _map(*touchpoints: Touchpoint, rules: tuple[MappingRule, ...] = ()) -> JourneyMap:
    return JourneyMap(map_id="m", stages=(Stage(stage_id="s", touchpoints=touchpoints),), mapping_rules=rules)


def test_touchpoints_are_placed_once_by_a_map_however_many_names_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sources may have very many of them, and a question may name many to compare with."""
    raws = [measures._raw("app", name, Channel.WEB) for name in ("old", "new", "pay", "pay/1", "pay/2", "shop")]
    old, new, pay, *orders, shop = raws
    rule = MappingRule(source="app", touchpoint="pay/*", touchpoint_id="pay")
    later = _map(Touchpoint(touchpoint_id="new", aliases=("old",)), Touchpoint(touchpoint_id="pay"), rules=(rule,))
    earlier = _map(Touchpoint(touchpoint_id="old"), Touchpoint(touchpoint_id="home", aliases=("shop",)))
    placed = []

    def counted(map_: JourneyMap, source: str, touchpoint: str, channel: Channel) -> str | None:
        placed.append((map_ is later, touchpoint))
        return place(map_, source, touchpoint, channel)

    monkeypatch.setattr(measures, "place", counted)
    asked = {"old", "new", "pay", "pay/1", "home", "shop", "nowhere"}
    assert measures._meant(asked, [later, earlier], raws) == {
        "old": [old, new],
        "new": [old, new],
        "pay": [pay, *orders],
        # Of no map, though one places it.
        "pay/1": orders[:1],
        "home": [shop],
        "shop": [shop],
        "nowhere": [],
    }
    assert len(placed) == len(set(placed)) == 2 * len(raws)
