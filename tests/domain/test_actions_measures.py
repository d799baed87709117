"""Which of what the sources call a touchpoint is meant by a name."""

from collections.abc import Sequence
from types import SimpleNamespace

import asyncpg
import pytest
from msgspec import structs

from recorrido.actions.v1.events import Target
from recorrido.ingest.v1.events import Channel
from recorrido.journey.v1.events import JourneyMap, MappingRule, Stage, Touchpoint
from services.actions.views import measures
from services.actions.views.naming import TouchpointNames
from services.foundation.errors import NotFoundError
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


def test_a_target_is_a_touchpoint_of_its_map_or_of_the_one_published_last() -> None:
    raws = [measures._raw("shop", name) for name in ("pay", "till", "desk")]
    pay, till, desk = raws

    def shop(map_id: str, *rules: MappingRule) -> JourneyMap:
        touchpoints = Touchpoint(touchpoint_id="pay"), Touchpoint(touchpoint_id="desk")
        return structs.replace(_map(*touchpoints, rules=rules), map_id=map_id)

    last = shop("last", MappingRule(source="shop", touchpoint="till", touchpoint_id="pay"))
    first, same = shop("first", MappingRule(touchpoint="till", touchpoint_id="desk")), shop("same")

    def meant(target: Target, *maps: JourneyMap) -> tuple[Sequence[str] | None, Sequence[str], str, Sequence[str]]:
        found = measures._aimed_at(target, ["desk"], maps, raws)
        return found.target, found.others["desk"], found.map_id, list(found.other_map_ids)

    target = Target(metric="csat", touchpoint="pay")
    assert meant(target, last, first, same) == ([pay, till], [desk], "last", ["first", "same"])
    assert meant(target, same, first) == ([pay], [desk], "same", [])
    assert meant(structs.replace(target, map_id="first"), last, first) == ([pay], [till, desk], "first", ["last"])
    # What the map does not have is what the sources call so.
    assert meant(Target(metric="csat", touchpoint="till", map_id="first"), last, first)[0::2] == ([till], "")
    assert meant(Target(metric="csat"), last) == (None, [desk], "", [])
    with pytest.raises(NotFoundError, match="there are: first, last"):
        meant(structs.replace(target, map_id="lost"), last, first)


@pytest.mark.parametrize("error", [asyncpg.UndefinedTableError(""), asyncpg.UndefinedColumnError(""), OSError()])
async def test_no_answer_fails_for_want_of_a_name(error: Exception) -> None:
    def acquire() -> None:
        raise error

    assert await TouchpointNames(SimpleNamespace(acquire=acquire)).of(["till"]) == {}
