"""Journey maps: which are valid, what publishing decides, and where interactions are placed."""

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from msgspec.structs import replace

from recorrido.ingest.v1.events import Channel
from recorrido.journey.v1.events import (
    EpisodeRules,
    Expectation,
    Goal,
    JourneyMap,
    JourneyMapPublished,
    LoyaltyLevel,
    LoyaltyRule,
    LoyaltyRules,
    MappingRule,
    Metric,
    Persona,
    PersonaCondition,
    Stage,
    Touchpoint,
)
from services.cli.journeymap import SHIPPED
from services.foundation.errors import DiffersError, InvalidError
from services.foundation.placement import matches, place
from services.journey.domain import mapschema
from services.journey.domain.mapcheck import covers, meet, violations
from services.journey.domain.mapdiff import changes
from services.journey.domain.maps import Maps, MapState, PublishJourneyMap

DECIDER = Maps()


def touchpoint(touchpoint_id: str) -> Touchpoint:
    return Touchpoint(touchpoint_id=touchpoint_id, name=touchpoint_id.title())


def a_map(*rules: MappingRule, name: str = "Shop") -> JourneyMap:
    return JourneyMap(
        map_id="shop",
        name=name,
        stages=(
            Stage(stage_id="buy", name="Buy", touchpoints=(touchpoint("checkout"), touchpoint("payment"))),
            Stage(stage_id="receive", name="Receive", touchpoints=(touchpoint("delivery"),)),
        ),
        mapping_rules=rules,
    )


def command(map_: JourneyMap, request_id: str = "r1", actor: str = "ana") -> PublishJourneyMap:
    return PublishJourneyMap(map_, actor, request_id)


def given_published(*commands: PublishJourneyMap) -> MapState:
    state = DECIDER.initial()
    for each in commands:
        for event in DECIDER.decide(each, state):
            state = DECIDER.evolve(state, event)
    return state


# -- publishing ----------------------------------------------------------------------------------------------------


def test_the_first_map_is_version_1() -> None:
    events = DECIDER.decide(command(a_map()), DECIDER.initial())
    assert events == [JourneyMapPublished(map=a_map(), version=1, actor="ana", request_id="r1")]


def test_a_changed_map_is_the_next_version() -> None:
    state = given_published(command(a_map()))
    (event,) = DECIDER.decide(command(a_map(name="Shop 2"), "r2"), state)
    assert event.version == 2


def test_the_same_content_is_no_new_version() -> None:
    state = given_published(command(a_map()))
    assert DECIDER.decide(command(a_map(), "r2", actor="bor"), state) == []
    assert state.version_for("r2") == 1


def test_going_back_to_an_earlier_map_is_a_new_version() -> None:
    state = given_published(command(a_map()), command(a_map(name="Shop 2"), "r2"), command(a_map(), "r3"))
    assert (state.version, state.map) == (3, a_map())


def test_a_repeated_request_changes_nothing_and_answers_the_version_it_published() -> None:
    state = given_published(command(a_map()), command(a_map(name="Shop 2"), "r2"))
    assert DECIDER.decide(command(a_map(), "r1"), state) == []
    assert state.version_for("r1") == 1


def test_a_request_id_used_for_another_map_is_refused() -> None:
    state = given_published(command(a_map()))
    with pytest.raises(DiffersError):
        DECIDER.decide(command(a_map(name="Other"), "r1"), state)


def test_the_cause_of_a_version_is_all_that_is_published() -> None:
    """The store takes two events of one id for the same: what differs must not come to one."""
    asked = [command(a_map()), command(a_map(name="Other")), command(a_map(), "r2"), command(a_map(), actor="bor")]
    assert len({each.cause for each in asked}) == 4
    assert command(a_map()).cause == asked[0].cause


def test_an_invalid_map_or_actor_names_every_problem() -> None:
    with pytest.raises(InvalidError) as caught:
        DECIDER.decide(PublishJourneyMap(JourneyMap(), " ", "r1"), DECIDER.initial())
    assert {v.field for v in caught.value.violations} == {"map.map_id", "map.name", "map.stages", "actor"}


# -- validation ----------------------------------------------------------------------------------------------------


def problems(map_: JourneyMap) -> dict[str, str]:
    return {violation.field: violation.rule for violation in violations(map_)}


def test_a_good_map_has_no_problems() -> None:
    rules = (
        MappingRule(source="olist", touchpoint="order_*", touchpoint_id="checkout"),
        MappingRule(source="olist", touchpoint="orders", touchpoint_id="payment"),
        MappingRule(source="crm", touchpoint="order_*", channel=Channel.DELIVERY, touchpoint_id="delivery"),
        MappingRule(touchpoint_id="payment"),
    )
    assert problems(a_map(*rules)) == {}


@pytest.mark.parametrize("bad", ["", "Shop", "a b", "č", "a" * 65, "a\n"])
def test_ids_are_well_formed(bad: str) -> None:
    map_ = JourneyMap(
        map_id=bad,
        name="x",
        stages=(Stage(stage_id=bad, name="x", touchpoints=(Touchpoint(touchpoint_id=bad, name="x"),)),),
    )
    assert set(problems(map_)) == {
        "map.map_id",
        "map.stages[0].stage_id",
        "map.stages[0].touchpoints[0].touchpoint_id",
    }


def test_ids_are_unique_in_the_whole_map() -> None:
    map_ = JourneyMap(
        map_id="m",
        name="x",
        stages=(
            Stage(stage_id="a", name="x", touchpoints=(touchpoint("t"),)),
            Stage(stage_id="a", name="x", touchpoints=(touchpoint("t"),)),
        ),
    )
    found = problems(map_)
    assert set(found) == {"map.stages[1].stage_id", "map.stages[1].touchpoints[0].touchpoint_id"}
    assert "map.stages[0].touchpoints[0].touchpoint_id" in found["map.stages[1].touchpoints[0].touchpoint_id"]


def test_a_stage_that_nothing_can_reach_is_refused() -> None:
    map_ = JourneyMap(map_id="m", name="x", stages=(Stage(stage_id="a", name="x"),))
    assert set(problems(map_)) == {"map.stages[0].touchpoints"}


@pytest.mark.parametrize("bad", ["", "  ", "x" * 129, "a\0b", "a\nb"])
def test_names_are_printable(bad: str) -> None:
    map_ = JourneyMap(
        map_id="m",
        name=bad,
        stages=(Stage(stage_id="a", name=bad, touchpoints=(Touchpoint(touchpoint_id="t", name=bad),)),),
    )
    assert set(problems(map_)) == {"map.name", "map.stages[0].name", "map.stages[0].touchpoints[0].name"}


def test_rules_point_to_touchpoints_of_the_map_and_are_well_formed() -> None:
    found = problems(
        a_map(
            MappingRule(source="a", touchpoint_id="nowhere"),
            MappingRule(source="b*c", touchpoint_id="checkout"),
            MappingRule(source="z", touchpoint="x\0", touchpoint_id="checkout"),
        )
    )
    assert set(found) == {
        "map.mapping_rules[0].touchpoint_id",
        "map.mapping_rules[1].source",
        "map.mapping_rules[2].touchpoint",
    }


@pytest.mark.parametrize(
    ("earlier", "later"),
    [
        (MappingRule(), MappingRule()),
        (MappingRule(), MappingRule(source="a")),
        (MappingRule(source="*"), MappingRule()),
        (MappingRule(touchpoint="ord*"), MappingRule(touchpoint="order_*")),
        (MappingRule(touchpoint="ord*"), MappingRule(touchpoint="ord")),
        (MappingRule(source="a"), MappingRule(source="a", channel=Channel.WEB)),
    ],
)
def test_a_rule_that_can_never_win_is_named_with_the_one_that_hides_it(
    earlier: MappingRule, later: MappingRule
) -> None:
    rules = [
        MappingRule(source=rule.source, touchpoint=rule.touchpoint, channel=rule.channel, touchpoint_id="checkout")
        for rule in (earlier, later)
    ]
    found = problems(a_map(*rules))
    # What takes everything leaves the other stage without a way to it.
    assert set(found) - {"map.stages[1]"} == {"map.mapping_rules[1]"}
    assert "map.mapping_rules[0]" in found["map.mapping_rules[1]"]


@pytest.mark.parametrize(
    ("first", "second", "overlaps"),
    [
        (MappingRule(source="a"), MappingRule(touchpoint="x"), True),
        (MappingRule(touchpoint="or*"), MappingRule(source="a*", channel=Channel.WEB), True),
        # A special case before the general one says what happens.
        (MappingRule(source="a", touchpoint="x"), MappingRule(source="a"), False),
        (MappingRule(source="a", channel=Channel.WEB), MappingRule(touchpoint="x", channel=Channel.APP), False),
        (MappingRule(source="a*"), MappingRule(source="b*"), False),
    ],
)
def test_two_rules_that_place_the_same_differently_are_refused(
    first: MappingRule,
    second: MappingRule,
    overlaps: bool,  # noqa: FBT001
) -> None:
    rules = (replace(first, touchpoint_id="checkout"), replace(second, touchpoint_id="delivery"))
    found = problems(a_map(*rules))
    assert ("overlaps map.mapping_rules[0]" in found.get("map.mapping_rules[1]", "")) is overlaps
    assert problems(a_map(rules[0], replace(rules[1], touchpoint_id="checkout"))) == {}
    # A rule before them that says what then makes it clear.
    both = meet(first, second)
    if both is not None:
        assert "map.mapping_rules[2]" not in problems(a_map(replace(both, touchpoint_id="payment"), *rules))


def test_a_stage_all_of_whose_names_others_take_is_refused() -> None:
    everything = MappingRule(touchpoint_id="checkout")
    assert set(problems(a_map(everything))) == {"map.stages[1]"}
    assert problems(a_map(MappingRule(touchpoint="deliver*", touchpoint_id="delivery"), everything)) == {}


def whole(**changes: object) -> JourneyMap:
    """A map that says everything there is to say."""
    delivery = Touchpoint(
        touchpoint_id="delivery",
        name="Delivery",
        channel=Channel.DELIVERY,
        owner="Logistics",
        expected=(Expectation(metric=Metric.CSAT, target=90), Expectation(metric=Metric.NPS, target=40)),
        emotional_triggers=("waiting without news",),
        aliases=("parcel",),
    )
    fields: dict[str, object] = {
        "map_id": "shop",
        "name": "Shop",
        "stages": (
            Stage(stage_id="buy", name="Buy", touchpoints=(touchpoint("checkout"),)),
            Stage(stage_id="receive", name="Receive", touchpoints=(delivery,)),
        ),
        "goals": (Goal(goal_id="have-it", name="Have it", touchpoint_ids=("delivery",)),),
        "personas": (
            Persona(
                persona_id="young",
                name="Young",
                conditions=(PersonaCondition(attribute="age", values=("1*", "2*")),),
                goal_ids=("have-it",),
            ),
            Persona(persona_id="other", name="Everybody else"),
        ),
        "episodes": EpisodeRules(goal_ids=("have-it",), inactivity_hours=48),
        "loyalty": LoyaltyRules(window_days=90, rules=(LoyaltyRule(level=LoyaltyLevel.LOYAL, nps_at_least=9),)),
    }
    return JourneyMap(**{**fields, **changes})  # type: ignore[arg-type]


def persona(persona_id: str, *conditions: PersonaCondition, goal_ids: tuple[str, ...] = ()) -> Persona:
    return Persona(persona_id=persona_id, name="x", conditions=conditions, goal_ids=goal_ids)


AGE = PersonaCondition(attribute="age", values=("2*",))


@pytest.mark.parametrize(
    ("change", "fields"),
    [
        ({}, set()),
        ({"goals": (Goal(goal_id="have-it", name="x", touchpoint_ids=("none",)),)}, {"goals[0].touchpoint_ids[0]"}),
        ({"goals": (Goal(goal_id="have-it", name="x"),)}, {"goals[0].touchpoint_ids"}),
        (
            {
                "goals": (
                    Goal(
                        goal_id="have-it",
                        name="x",
                        touchpoint_ids=("delivery",),
                        begins_at_touchpoint_ids=("delivery", "none"),
                    ),
                )
            },
            {"goals[0].begins_at_touchpoint_ids[1]"},
        ),
        ({"goals": ()}, {"personas[0].goal_ids[0]", "episodes.goal_ids[0]"}),
        ({"personas": (persona("a"), persona("b", AGE))}, {"personas[1]"}),
        ({"personas": (persona("a", AGE), persona("a", PersonaCondition(attribute="age", values=("25",))))},
         {"personas[1].persona_id", "personas[1]"}),
        ({"personas": (persona("a", PersonaCondition(attribute="kind", values=("buyr",))),)},
         {"personas[0].conditions[0].values[0]"}),
        ({"personas": (persona("a", PersonaCondition(attribute=" ")),)},
         {"personas[0].conditions[0].attribute", "personas[0].conditions[0].values"}),
        ({"episodes": EpisodeRules(inactivity_hours=-1)}, {"episodes.inactivity_hours"}),
        ({"loyalty": LoyaltyRules(window_days=99_999, rules=(LoyaltyRule(), LoyaltyRule(nps_at_most=11)))},
         {"loyalty.window_days", "loyalty.rules[0].level", "loyalty.rules[0]", "loyalty.rules[1].level",
          "loyalty.rules[1].nps_at_most", "loyalty.rules[1]"}),
        ({"loyalty": LoyaltyRules(rules=(
            LoyaltyRule(level=LoyaltyLevel.LOYAL, nps_at_least=7),
            LoyaltyRule(level=LoyaltyLevel.ADVOCATE, nps_at_least=9, referrals_at_least=1)))},
         {"loyalty.rules[1]"}),
    ],
)  # fmt: skip
def test_every_other_part_is_checked(change: dict[str, object], fields: set[str]) -> None:
    assert set(problems(whole(**change))) == {f"map.{field}" for field in fields}


def test_expectations_and_aliases_are_checked() -> None:
    odd = Touchpoint(
        touchpoint_id="odd",
        name="Odd",
        expected=(
            Expectation(metric=Metric.NPS, target=101),
            Expectation(metric=Metric.NPS, target=float("nan")),
            Expectation(target=1),
        ),
        aliases=("checkout", "same", "same"),
    )
    stages = (Stage(stage_id="s", name="S", touchpoints=(touchpoint("checkout"), odd)),)
    path = "map.stages[0].touchpoints[1]"
    assert set(problems(JourneyMap(map_id="m", name="M", stages=stages))) == {
        f"{path}.expected[0].target",
        f"{path}.expected[1].target",
        f"{path}.expected[1].metric",
        f"{path}.expected[2].metric",
        f"{path}.aliases[0]",
        f"{path}.aliases[2]",
    }


def test_a_renamed_touchpoint_keeps_what_was_placed_at_its_old_name() -> None:
    assert place(whole(), "shop", "parcel", Channel.WEB) == "delivery"


# -- differences -----------------------------------------------------------------------------------------------------


def told(old: JourneyMap, new: JourneyMap) -> set[tuple[str, str, str, str]]:
    return {(c.kind.name, c.path, c.before, c.after) for c in changes(old, new)}


def test_a_map_does_not_differ_from_itself() -> None:
    assert told(whole(), whole()) == set()


def test_every_kind_of_change_is_told() -> None:
    old = whole()
    delivery = old.stages[1].touchpoints[0]
    renamed = replace(delivery, touchpoint_id="doorstep", aliases=("delivery",), owner="Doorstep team")
    new = whole(
        name="Shop 2",
        stages=(
            Stage(stage_id="buy", name="Buy", touchpoints=(renamed,)),
            Stage(stage_id="use", name="Use", touchpoints=(touchpoint("setup"),)),
        ),
        goals=(),
        mapping_rules=(MappingRule(source="a", channel=Channel.WEB, touchpoint_id="setup"),),
    )
    assert told(old, new) == {
        ("CHANGED", "name", "Shop", "Shop 2"),
        ("ADDED", "stages[use]", "", "Use"),
        ("REMOVED", "stages[receive]", "Receive", ""),
        ("RENAMED", "touchpoints[doorstep]", "delivery", "doorstep"),
        ("MOVED", "touchpoints[doorstep]", "receive", "buy"),
        ("CHANGED", "touchpoints[doorstep].owner", "Logistics", "Doorstep team"),
        ("CHANGED", "touchpoints[doorstep].aliases", "parcel", "delivery"),
        ("ADDED", "touchpoints[setup]", "", "Setup"),
        ("REMOVED", "touchpoints[checkout]", "Checkout", ""),
        ("ADDED", "mapping_rules[0]", "", "a / any on web → setup"),
        ("REMOVED", "goals[have-it]", "Have it", ""),
    }


# -- the published schema --------------------------------------------------------------------------------------------

SCHEMA = Path(__file__).parents[2] / "docs/journey-map.schema.json"


def test_the_published_schema_is_fresh_and_valid() -> None:
    assert SCHEMA.read_text() == mapschema.text(), "run python -m services.journey.domain.mapschema"
    Draft202012Validator.check_schema(json.loads(SCHEMA.read_text()))


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_maps_keep_to_the_schema(path: Path) -> None:
    Draft202012Validator(json.loads(SCHEMA.read_text())).validate(yaml.safe_load(path.read_text()))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["map_id"], "A B"),
        (["stages"], []),
        (["stages", 0, "touchpoints"], []),
        (["stages", 0, "touchpoints", 0, "momentoftruth"], True),
        (["stages", 0, "touchpoints", 0, "channel"], "pigeon"),
        (["loyalty"], {"rules": [{"nps_at_least": 9}]}),
        (["loyalty"], {"rules": [{"level": "loyal", "nps_at_least": "nine"}]}),
    ],
)
def test_the_schema_refuses_what_is_no_map(path: list[str | int], value: object) -> None:
    content = yaml.safe_load((SHIPPED / "ecommerce.yaml").read_text())
    at = content
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] = value
    assert not Draft202012Validator(json.loads(SCHEMA.read_text())).is_valid(content)


def test_too_much_is_refused() -> None:
    stages = tuple(
        Stage(stage_id=f"s{n}", name="x", touchpoints=tuple(touchpoint(f"t{n}-{m}") for m in range(11)))
        for n in range(101)
    )
    rules = tuple(MappingRule(touchpoint=str(n), touchpoint_id="t0-0") for n in range(1001))
    found = list(violations(JourneyMap(map_id="m", name="x", stages=stages, mapping_rules=rules)))
    assert [v.field for v in found] == ["map.stages", "map.stages", "map.mapping_rules"]


# -- placement -----------------------------------------------------------------------------------------------------


def test_the_first_rule_that_matches_wins() -> None:
    map_ = a_map(
        MappingRule(touchpoint="order_*", channel=Channel.DELIVERY, touchpoint_id="delivery"),
        MappingRule(source="shop", touchpoint="order_*", touchpoint_id="payment"),
        MappingRule(touchpoint="order_*", touchpoint_id="checkout"),
    )
    assert place(map_, "shop", "order_sent", Channel.DELIVERY) == "delivery"
    assert place(map_, "shop", "order_sent", Channel.WEB) == "payment"
    assert place(map_, "app", "order_sent", Channel.WEB) == "checkout"


def test_without_a_rule_the_raw_name_is_the_touchpoint_id_or_nothing() -> None:
    map_ = a_map(MappingRule(source="app", touchpoint_id="payment"))
    assert place(map_, "shop", "delivery", Channel.WEB) == "delivery"
    assert place(map_, "shop", "returns", Channel.WEB) is None
    assert place(map_, "app", "delivery", Channel.WEB) == "payment"


_TEXTS = st.text(alphabet="ab", max_size=3)
_CONDITIONS = st.builds(lambda text, star: text + star, _TEXTS, st.sampled_from(["", "*"]))
_CHANNELS = st.sampled_from([Channel.UNSPECIFIED, Channel.WEB, Channel.STORE])
_RULES = st.builds(MappingRule, source=_CONDITIONS, touchpoint=_CONDITIONS, channel=_CHANNELS)
#: Every raw touchpoint that conditions over "ab" of up to three letters can tell apart.
_RAW = [
    (source, name, channel)
    for source in ("", "a", "b", "aa", "ab", "ba", "aaa", "aba", "bab", "abab")
    for name in ("", "a", "b", "aa", "bb", "aab", "bba", "aabb")
    for channel in (Channel.UNSPECIFIED, Channel.WEB, Channel.STORE)
]


@given(_RULES, _RULES)
def test_a_rule_covers_another_only_if_it_matches_all_that_the_other_matches(
    general: MappingRule, special: MappingRule
) -> None:
    if covers(general, special):
        assert all(matches(general, *raw) for raw in _RAW if matches(special, *raw))


def _reference_match(condition: str, value: str) -> bool:
    if not condition:
        return True
    return value[: len(condition) - 1] == condition[:-1] if condition[-1] == "*" else value == condition


@given(st.lists(_RULES, max_size=5), _TEXTS, _TEXTS, _CHANNELS)
def test_placement_is_the_first_match(rules: list[MappingRule], source: str, name: str, channel: Channel) -> None:
    numbered = [
        MappingRule(source=r.source, touchpoint=r.touchpoint, channel=r.channel, touchpoint_id=f"t{n}")
        for n, r in enumerate(rules)
    ]
    hits = [
        r.touchpoint_id
        for r in numbered
        if _reference_match(r.source, source)
        and _reference_match(r.touchpoint, name)
        and (r.channel is Channel.UNSPECIFIED or r.channel is channel)
    ]
    assert place(JourneyMap(mapping_rules=tuple(numbered)), source, name, channel) == next(iter(hits), None)
