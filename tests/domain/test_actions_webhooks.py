"""Webhooks as pure functions: the published signature, waiting, addresses, and what the decider says."""

import base64
import hmac
import ipaddress
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
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
    Keyring,
    RegisterWebhook,
    Webhook,
    Webhooks,
    WebhookSecret,
    is_allowed,
    is_public,
    matches,
    networks,
    secret_of,
    signature,
    wait_s,
)
from services.foundation.errors import DiffersError, InvalidError, NotFoundError, RefusedError
from services.foundation.events import encode

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
        # Private to a site before fd00::/8 was; for protocols; for documentation.
        ("fec0::1", False),
        ("192.0.0.8", False),
        ("3fff::1", False),
        ("::ffff:192.0.0.8", False),
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
    "key_id": "k",
    "salt": "1",
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
    again = RegisterWebhook(**{**REGISTER, "salt": "2", "occurred_at": NOW + timedelta(hours=1)})
    assert decider.decide(again, state) == []
    with pytest.raises(DiffersError):
        decider.decide(RegisterWebhook(**{**REGISTER, "url": "https://example.org"}), state)
    with pytest.raises(DiffersError):
        decider.decide(change(WebhookPaused, "1"), state)


def test_the_cause_of_an_event_is_all_that_is_asked_for() -> None:
    later, another = {"occurred_at": NOW + timedelta(hours=1)}, {"salt": "2"}
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
    assert decider.decide(change(WebhookDeleted, "2"), deleted) == []
    with pytest.raises(NotFoundError):
        decider.decide(register, deleted)


def test_the_secret_before_signs_for_a_day() -> None:
    def salts(state: Webhook, at: datetime) -> list[str]:
        return [each.salt for each in state.secrets(at)]

    state = after(RegisterWebhook(**REGISTER), change(WebhookSecretRotated, "2", key_id="k", salt="2"))
    assert salts(state, NOW + OVERLAP - timedelta(seconds=1)) == ["2", "1"]
    assert salts(state, NOW + OVERLAP) == ["2"]
    assert salts(after(RegisterWebhook(**REGISTER)), NOW) == ["1"]


def test_whoever_loses_a_new_secret_and_rotates_again_is_still_understood() -> None:
    """The receiver has the one before the one that was lost."""
    hour = timedelta(hours=1)
    lost = change(WebhookSecretRotated, "2", key_id="k", salt="2")
    again = change(WebhookSecretRotated, "3", key_id="k", salt="3", occurred_at=NOW + hour)
    state = after(RegisterWebhook(**REGISTER), lost, again)

    def salts(at: datetime) -> list[str]:
        return [each.salt for each in state.secrets(at)]

    assert salts(NOW + hour) == ["3", "2", "1"]
    assert salts(NOW + OVERLAP) == ["3", "2"]
    assert salts(NOW + OVERLAP + hour) == ["3"]
    state = after(
        RegisterWebhook(**REGISTER), lost, change(WebhookSecretRotated, "4", salt="4", occurred_at=NOW + OVERLAP)
    )
    assert len(state.earlier) == 1


# -- secrets -------------------------------------------------------------------------------------------------------

OLD, NEW = (base64.b64encode(letter * 32).decode() for letter in (b"o", b"n"))


def made_of(key_id: str, webhook_id: str = "w", salt: str = "s") -> WebhookSecret:
    return WebhookSecret(webhook_id=webhook_id, occurred_at=NOW, key_id=key_id, salt=salt)


def test_a_secret_is_derived_from_a_key_that_is_not_stored() -> None:
    keyring = Keyring.read(OLD)
    one = made_of(keyring.first)
    secret = keyring.secret(one)
    # RFC 5869, 2.3, by hand: one block of HKDF-Expand.
    expected = hmac.new(b"o" * 32, b"recorrido webhook secret\0w\0s\x01", "sha256").digest()
    assert secret == "whsec_" + base64.b64encode(expected).decode()
    others = (made_of(keyring.first, "v"), made_of(keyring.first, salt="t"))
    assert len({secret, *map(keyring.secret, others)}) == 3
    stored = encode(one).decode()
    assert "whsec" not in stored
    assert secret.removeprefix("whsec_") not in stored
    assert OLD not in repr(keyring) + stored


def test_a_new_key_comes_first_and_the_old_one_is_still_good() -> None:
    before, both, later = Keyring.read(OLD), Keyring.read(f"{NEW}, {OLD}"), Keyring.read(NEW)
    old, new = made_of(before.first), made_of(later.first)
    assert both.first == later.first != before.first
    assert (both.secret(old), both.secret(new)) == (before.secret(old), later.secret(new))
    with pytest.raises(RefusedError, match=before.first) as caught:
        later.secret(old)
    assert caught.value.reason == "NO_WEBHOOK_KEY"
    with pytest.raises(RefusedError):
        _ = Keyring.read("").first


def test_a_secret_that_is_older_than_the_keys_is_still_good() -> None:
    stored = b'{"webhook_id":"w","secret":"whsec_MQ==","occurred_at":"2026-01-01T00:00:00Z"}'
    assert Keyring(()).secret(msgspec.json.decode(stored, type=WebhookSecret)) == "whsec_MQ=="


@pytest.mark.parametrize("text", ["x", "c2hvcnQ=", f"{OLD},c2hvcnQ="])
def test_keys_that_are_none_are_refused_without_showing_them(text: str) -> None:
    with pytest.raises(ValueError, match=r"^key [12] ") as caught:
        Keyring.read(text)
    assert text not in str(caught.value)
    assert OLD not in str(caught.value)


def test_a_delivery_is_abandoned_once_for_each_time_that_it_is_given_up() -> None:
    def given_up(at: datetime) -> AbandonDelivery:
        return AbandonDelivery(abandoned=DeliveryAbandoned(webhook_id="w", delivery_id="d", occurred_at=at))

    state = after(RegisterWebhook(**REGISTER), given_up(NOW))
    assert Webhooks().decide(given_up(NOW), state) == []
    assert len(Webhooks().decide(given_up(NOW + timedelta(days=1)), state)) == 1


def test_very_many_deliveries_that_were_given_up_are_folded_quickly() -> None:
    """A receiver that is away for a day leaves one for every change of that day."""
    decider, state = Webhooks(), Webhook()
    many = [DeliveryAbandoned(webhook_id="w", delivery_id=f"d-{n}", occurred_at=NOW) for n in range(30_000)]
    started = time.process_time()
    for event in many:
        state = decider.evolve(state, event)
    assert time.process_time() - started < 5.0
    assert len(state.abandoned) == len(many)
