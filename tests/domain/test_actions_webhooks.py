"""Webhooks as pure functions: the published signature, waiting, addresses, and what the decider says."""

import ipaddress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recorrido.actions.v1.events import (
    DeliveryAbandoned,
    WebhookDeleted,
    WebhookPaused,
    WebhookReplayed,
    WebhookResumed,
    WebhookSecretRotated,
)
from services.actions.domain.webhooks import (
    DELIVERED,
    LONGEST_WAIT_S,
    OVERLAP,
    AbandonDelivery,
    ChangeWebhook,
    RegisterWebhook,
    Webhook,
    Webhooks,
    is_allowed,
    is_public,
    matches,
    networks,
    secret_of,
    signature,
    wait_s,
)
from services.foundation.errors import DiffersError, InvalidError, NotFoundError, RefusedError

NOW = datetime(2026, 3, 1, tzinfo=UTC)


def test_the_signature_is_that_of_the_specification() -> None:
    # The example of the specification's reference libraries (github.com/standard-webhooks/standard-webhooks).
    found = signature(
        ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"],
        "msg_p5jXN8AQM9LWM0D4loKWxJek",
        1614265330,
        b'{"test": 2432232314}',
    )
    assert found == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_while_a_secret_is_rotated_both_sign() -> None:
    first, second = secret_of(b"1" * 32), secret_of(b"2" * 32)
    both = signature([second, first], "id", 1, b"x")
    assert both == f"{signature([second], 'id', 1, b'x')} {signature([first], 'id', 1, b'x')}"


@given(attempts=st.integers(1, 100), chance=st.floats(0, 1), asked=st.floats(0, 1e9))
def test_waiting_grows_to_an_hour_and_half_of_it_is_chance(attempts: int, chance: float, asked: float) -> None:
    waited = wait_s(attempts, 5, chance)
    full = min(LONGEST_WAIT_S, 5 * 2 ** (attempts - 1))
    assert full / 2 <= waited <= full
    assert waited <= wait_s(attempts, 5, chance, asked) <= LONGEST_WAIT_S


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1::1", True),
        ("127.0.0.1", False),
        ("10.0.0.1", False),
        ("172.16.3.4", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("::1", False),
        ("::", False),
        ("fe80::1", False),
        ("fd00::1", False),
        ("ff02::1", False),
        # What carries a private IPv4 address: mapped, translated (RFC 6052), 6to4.
        ("::ffff:127.0.0.1", False),
        ("64:ff9b::10.0.0.1", False),
        ("2002:7f00:1::", False),
        ("64:ff9b::93.184.216.34", True),
    ],
)
def test_what_is_public(address: str, public: bool) -> None:  # noqa: FBT001 - a parameter of the table
    assert is_public(ipaddress.ip_address(address)) is public


def test_networks_are_allowed_by_a_setting() -> None:
    allowed = networks("127.0.0.0/8, fd00::/8")
    assert is_allowed(ipaddress.ip_address("::ffff:127.0.0.1"), allowed)
    assert is_allowed(ipaddress.ip_address("fd00::7"), allowed)
    assert not is_allowed(ipaddress.ip_address("10.0.0.1"), allowed)
    with pytest.raises(ValueError, match="everywhere"):
        networks("everywhere")


def test_types_are_named_whole_or_by_their_beginning() -> None:
    opened = "recorrido.actions.v1.ActionOpened"
    assert matches((), opened)
    assert matches(("recorrido.actions.v1.Action*",), opened)
    assert not matches(("recorrido.actions.v1.ActionOpen",), opened)
    # What tells of webhooks itself is not delivered, or each failure would bring another.
    assert DeliveryAbandoned.type_name not in DELIVERED


# -- the decider ---------------------------------------------------------------------------------------------------

REGISTER: dict[str, Any] = {
    "url": "https://example.com/hook",
    "event_types": (),
    "description": "",
    "actor": "maja",
    "request_id": "1",
    "secret": secret_of(b"1" * 32),
    "occurred_at": NOW,
}


def change(event: type, request_id: str, **fields: Any) -> ChangeWebhook:
    given_: dict[str, Any] = {
        "changed": event,
        "webhook_id": "w",
        "actor": "maja",
        "reason": "",
        "request_id": request_id,
        "occurred_at": NOW,
    }
    return ChangeWebhook(**{**given_, **fields})


def after(*commands: Any) -> Webhook:
    decider, state = Webhooks(), Webhook()
    for command in commands:
        for event in decider.decide(command, state):
            state = decider.evolve(state, event)
    return state


@pytest.mark.parametrize(
    "url",
    [
        "",
        "ftp://example.com",
        "example.com",
        "https://",
        "https://u:p@example.com",
        "https://example.com/#x",
        "https://example.com:99999",
        "https://[::1",
        "https://example.com/" + "x" * 2048,
    ],
)
def test_addresses_that_make_no_sense_are_refused(url: str) -> None:
    with pytest.raises(InvalidError) as caught:
        RegisterWebhook(**{**REGISTER, "url": url})
    assert {violation.field for violation in caught.value.violations} == {"url"}


@pytest.mark.parametrize("name", ["", "x", "recorrido.ingest.v1.*", "recorrido.actions.v1.DeliveryAbandoned"])
def test_only_events_of_actions_are_told(name: str) -> None:
    with pytest.raises(InvalidError):
        RegisterWebhook(**{**REGISTER, "event_types": (name,)})


def test_a_repetition_changes_nothing_and_another_request_is_told() -> None:
    decider, state = Webhooks(), after(RegisterWebhook(**REGISTER))
    again = RegisterWebhook(**{**REGISTER, "secret": secret_of(b"2" * 32), "occurred_at": NOW + timedelta(hours=1)})
    assert decider.decide(again, state) == []
    with pytest.raises(DiffersError):
        decider.decide(RegisterWebhook(**{**REGISTER, "url": "https://example.org"}), state)
    with pytest.raises(DiffersError):
        decider.decide(change(WebhookPaused, "1"), state)


def test_the_cause_of_an_event_is_all_that_is_asked_for() -> None:
    later, another = {"occurred_at": NOW + timedelta(hours=1)}, {"secret": secret_of(b"2" * 32)}
    registered = [RegisterWebhook(**{**REGISTER, **more}) for more in ({}, {"url": "https://example.org"}, another)]
    assert len({each.cause for each in registered}) == 3
    assert RegisterWebhook(**{**REGISTER, **later}).cause == registered[0].cause
    changes = [{}, {"reason": "away"}, {"actor": "luka"}, {"more": {"delivered_too": True}}, another]
    assert len({change(WebhookReplayed, "2", **fields).cause for fields in changes}) == len(changes)
    assert change(WebhookReplayed, "2", **later).cause == change(WebhookReplayed, "2").cause


def test_pause_resume_delete() -> None:
    decider, register = Webhooks(), RegisterWebhook(**REGISTER)
    paused = after(register, change(WebhookPaused, "2"))
    assert paused.paused
    with pytest.raises(RefusedError):
        decider.decide(change(WebhookPaused, "3"), paused)
    resumed = after(register, change(WebhookPaused, "2"), change(WebhookResumed, "3"))
    assert not resumed.paused
    deleted = after(register, change(WebhookDeleted, "2"))
    for command in (change(WebhookReplayed, "3"), change(WebhookPaused, "4")):
        with pytest.raises(NotFoundError):
            decider.decide(command, deleted)
        with pytest.raises(NotFoundError):
            decider.decide(command, Webhook())


def test_the_secret_before_signs_for_a_day() -> None:
    second = secret_of(b"2" * 32)
    state = after(RegisterWebhook(**REGISTER), change(WebhookSecretRotated, "2", secret=second))
    assert state.secrets(NOW + OVERLAP - timedelta(seconds=1)) == (second, REGISTER["secret"])
    assert state.secrets(NOW + OVERLAP) == (second,)
    assert after(RegisterWebhook(**REGISTER)).secrets(NOW) == (REGISTER["secret"],)


def test_a_delivery_is_abandoned_once_for_each_time_that_it_is_given_up() -> None:
    def given_up(at: datetime) -> AbandonDelivery:
        return AbandonDelivery(abandoned=DeliveryAbandoned(webhook_id="w", delivery_id="d", occurred_at=at))

    state = after(RegisterWebhook(**REGISTER), given_up(NOW))
    assert Webhooks().decide(given_up(NOW), state) == []
    assert len(Webhooks().decide(given_up(NOW + timedelta(days=1)), state)) == 1
