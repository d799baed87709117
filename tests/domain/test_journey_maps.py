"""Journey maps: which are valid, what publishing decides, and where interactions are placed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recorrido.ingest.v1.events import Channel
from recorrido.journey.v1.events import JourneyMap, JourneyMapPublished, MappingRule, Stage, Touchpoint
from services.foundation.errors import DiffersError, InvalidError
from services.journey.domain.maps import Maps, MapState, PublishJourneyMap, covers, violations
from services.journey.domain.placement import matches, place

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
        MappingRule(touchpoint="order_*", channel=Channel.DELIVERY, touchpoint_id="delivery"),
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
            MappingRule(touchpoint="x\0", touchpoint_id="checkout"),
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
    assert set(found) == {"map.mapping_rules[1]"}
    assert "map.mapping_rules[0]" in found["map.mapping_rules[1]"]


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
