"""Whose an identity is: given what was recorded, when somebody links or unlinks, then."""

from functools import reduce
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recorrido.ingest.v1.events import Identity, IdentityKind, IdentityLinked, IdentityUnlinked
from services.foundation.errors import DiffersError, InvalidError, RecorridoError, RefusedError
from services.ingest.identity import (
    Command,
    Link,
    LinkIdentity,
    Links,
    UnlinkIdentity,
    customer_id_of,
    is_identity,
    stream_of,
)

DEVICE = Identity(kind=IdentityKind.DEVICE, value="4711")
SHA256 = "f660ab912ec121d1b1e928a0bb4bc61b15f5ad44d5efdc4e1c92a25e99b8e44a"


def link(customer: str = "ana", request: str = "r1", **fields: Any) -> LinkIdentity:
    return LinkIdentity(
        **{"identity": DEVICE, "customer_id": customer, "actor": "agent", "request_id": request, **fields}
    )


def unlink(customer: str = "ana", request: str = "r2", **fields: Any) -> UnlinkIdentity:
    return UnlinkIdentity(
        **{"identity": DEVICE, "customer_id": customer, "actor": "agent", "request_id": request, **fields}
    )


def after(*commands: Command) -> Link:
    links = Links()
    state = links.initial()
    for command in commands:
        state = reduce(links.evolve, links.decide(command, state), state)
    return state


def test_a_link_says_whose_the_identity_is_and_under_which_id_it_is_recorded() -> None:
    (event,) = Links().decide(link(), after())
    assert event == IdentityLinked(
        identity=DEVICE, customer_id="ana", actor="agent", request_id="r1", identity_customer_id="device:4711"
    )
    assert after(link()).customer_id == "ana"


def test_an_identity_of_somebody_is_refused_to_anybody_else_and_they_are_named() -> None:
    with pytest.raises(RefusedError) as caught:
        Links().decide(link("bor", "r2"), after(link("ana")))
    assert (caught.value.reason, caught.value.details) == ("IDENTITY_TAKEN", {"customer_id": "ana"})
    assert "ana" in caught.value.message


def test_what_is_so_already_is_not_said_again() -> None:
    assert Links().decide(link("ana", "another request"), after(link("ana"))) == []
    assert Links().decide(link(), after(link())) == []
    assert Links().decide(link(), after(link(), unlink())) == []  # a late repetition must not link again
    assert Links().decide(unlink(), after(link(), unlink())) == []
    assert Links().decide(unlink(), after(link(), unlink(), link("bor", "r3"))) == []


def test_after_an_unlink_it_is_free_for_the_next() -> None:
    state = after(link("ana"), unlink("ana"), link("bor", "r3"))
    assert state.customer_id == "bor"


@pytest.mark.parametrize("before", [(), (link("bor"),), (link("ana"), unlink("ana", "r9"))])
def test_only_the_link_that_is_in_force_can_be_removed(before: tuple[Command, ...]) -> None:
    with pytest.raises(RefusedError) as caught:
        Links().decide(unlink("ana"), after(*before))
    assert caught.value.reason == "IDENTITY_NOT_LINKED"


def test_the_cause_of_an_event_is_the_whole_change() -> None:
    """The store takes two events of one id for the same: what differs must not come to one."""
    changes = [link(), link("bor"), link(actor="another")]
    assert len({change.cause for change in changes}) == 3
    assert link().cause == link().cause


def test_a_request_id_stands_for_one_change() -> None:
    for other in (link("bor"), link(actor="somebody else"), unlink(request="r1")):
        with pytest.raises(DiffersError):
            Links().decide(other, after(link("ana", "r1")))


@pytest.mark.parametrize(
    ("fields", "broken"),
    [
        ({"identity": Identity(kind=IdentityKind.UNSPECIFIED, value="1")}, "identity.kind"),
        ({"identity": Identity(kind=IdentityKind.DEVICE, value=" ")}, "identity.value"),
        ({"identity": Identity(kind=IdentityKind.DEVICE, value="x" * 241)}, "identity.value"),
        ({"identity": Identity(kind=IdentityKind.DEVICE, value="a\0b")}, "identity.value"),
        ({"identity": Identity(kind=IdentityKind.EMAIL_HASH, value="ana@example.com")}, "identity.value"),
        ({"identity": Identity(kind=IdentityKind.EMAIL_HASH, value=SHA256.upper())}, "identity.value"),
        ({"customer_id": ""}, "customer_id"),
        ({"customer_id": "device:1"}, "customer_id"),
        ({"actor": ""}, "actor"),
        ({"request_id": "\n"}, "request_id"),
    ],
)
def test_a_change_that_makes_no_sense_names_the_field(fields: dict[str, Any], broken: str) -> None:
    for command in (link, unlink):
        with pytest.raises(InvalidError) as caught:
            command(**fields)
        assert {violation.field for violation in caught.value.violations} == {broken}


def test_all_that_is_wrong_is_told_at_once() -> None:
    with pytest.raises(InvalidError) as caught:
        LinkIdentity(identity=Identity(), customer_id="", actor="", request_id="")
    fields = {violation.field for violation in caught.value.violations}
    assert fields == {"identity.kind", "identity.value", "customer_id", "actor", "request_id"}


def test_every_kind_has_a_prefix_of_its_own_that_no_customer_id_may_have() -> None:
    kinds = [kind for kind in IdentityKind if kind is not IdentityKind.UNSPECIFIED]
    ids = [customer_id_of(Identity(kind=kind, value="v")) for kind in kinds]
    assert sorted(ids) == ["anonymous:v", "device:v", "email:v", "loyalty:v", "other:v"]
    assert all(map(is_identity, ids))
    assert not any(map(is_identity, ["device", "crm:1", "Device:1", ":v", ""]))
    assert len({stream_of(Identity(kind=kind, value="v")) for kind in kinds}) == len(kinds)
    link(identity=Identity(kind=IdentityKind.EMAIL_HASH, value=SHA256))


@given(st.lists(st.tuples(st.booleans(), st.sampled_from("abc"), st.integers(0, 6)), max_size=12))
def test_at_any_time_it_is_of_at_most_one_customer(steps: list[tuple[bool, str, int]]) -> None:
    """Whatever is tried, and however often: an owner changes only through nobody."""
    links = Links()
    state, owners = links.initial(), [""]
    for is_link, customer, number in steps:
        try:
            decided = links.decide((link if is_link else unlink)(customer, f"r{number}"), state)
        except RecorridoError:
            continue
        for event in decided:
            state = links.evolve(state, event)
            owners.append(state.customer_id)
            assert isinstance(event, IdentityLinked if state.customer_id else IdentityUnlinked)
    assert all(not before or not now for before, now in pairwise(owners))
