"""Webhooks: who is told what, signed with which secret, how often it is tried, and which addresses may be told.

Signatures follow Standard Webhooks (https://www.standardwebhooks.com, specification 1.0): HMAC-SHA256 over
`<id>.<timestamp>.<body>`, in base64, one per secret that is valid.
"""

import base64
import hashlib
import hmac
import ipaddress
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, ClassVar, Self
from urllib.parse import urlsplit

import msgspec
from immutables import Map

from recorrido.actions.v1.events import (
    DeliveryAbandoned,
    WebhookDeleted,
    WebhookPaused,
    WebhookRegistered,
    WebhookReplayed,
    WebhookResumed,
    WebhookSecretRotated,
)
from services.actions.domain.action import ActionDecider
from services.actions.domain.rules import MAX_ID, MAX_REASON
from services.foundation import backoff
from services.foundation.errors import DiffersError, NotFoundError, RefusedError
from services.foundation.events import Event, cause_of, derived_id, stream_name
from services.foundation.rules import Rules

MAX_URL = 2_048
MAX_EVENT_TYPES = 50
MAX_WEBHOOKS = 100
SECRET_PREFIX = "whsec_"  # noqa: S105 - a prefix
KEY_BYTES = 32
SALT_BYTES = 16
#: How long the secret before the present one signs, too.
OVERLAP = timedelta(days=1)
LONGEST_WAIT_S = 3600.0
#: After it was claimed, a delivery is begun within so long, or given back.
CLAIMED_S = 10.0

#: What is delivered, by full name.
DELIVERED = {each.type_name: each for each in ActionDecider.types}
_PREFIX = "recorrido.actions.v1."


class WebhookSecret(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What signs from now on. Its type is nobody's public event, so that it goes nowhere.

    The secret itself is not in it, but how to derive it (`Keyring`); only those made before there were keys have it.
    """

    type_name: ClassVar[str] = "recorrido-private.WebhookSecret"

    webhook_id: str
    occurred_at: datetime
    key_id: str = ""
    salt: str = ""
    secret: str = ""


WebhookEvent = (
    WebhookRegistered
    | WebhookPaused
    | WebhookResumed
    | WebhookDeleted
    | WebhookSecretRotated
    | WebhookReplayed
    | DeliveryAbandoned
    | WebhookSecret
)


# -- commands ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class RegisterWebhook:
    """Tell a receiver of actions. `key_id` and `salt` make a new secret; the webhook's id derives from `request_id`."""

    url: str
    event_types: Sequence[str]
    description: str
    actor: str
    request_id: str
    key_id: str
    salt: str
    occurred_at: datetime

    def __post_init__(self) -> None:
        rules = Rules()
        rules.text("url", self.url, MAX_URL, required=True)
        for rule in _broken(self.url):
            rules.require(False, "url", rule)
        rules.require(len(self.event_types) <= MAX_EVENT_TYPES, "event_types", f"at most {MAX_EVENT_TYPES}")
        for index, name in enumerate(self.event_types[:MAX_EVENT_TYPES]):
            told = any(matches((name,), known) for known in DELIVERED)
            rules.require(told, f"event_types[{index}]", f"an event of {_PREFIX}, or the beginning of some and *")
        rules.text("description", self.description, MAX_REASON)
        rules.who_and_request(self.actor, self.request_id)
        rules.enforce()

    @property
    def webhook_id(self) -> str:
        return str(derived_id("webhook", self.request_id))

    @property
    def cause(self) -> str:
        # With the salt: of two that repeat each other, the one that is not recorded must not hand out its own secret.
        return cause_of(self.request_id, self.url, self.event_types, self.description, self.actor, self.salt)

    def event(self) -> WebhookRegistered:
        return WebhookRegistered(
            webhook_id=self.webhook_id,
            url=self.url,
            event_types=tuple(self.event_types),
            description=self.description,
            actor=self.actor,
            request_id=self.request_id,
            occurred_at=self.occurred_at,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeWebhook:
    """What somebody does to a webhook that is there: `changed` is the event that it comes to, without its envelope."""

    changed: type[Any]
    webhook_id: str
    actor: str
    reason: str
    request_id: str
    occurred_at: datetime
    #: For a rotation: what makes the new secret.
    key_id: str = ""
    salt: str = ""
    #: For a replay: its own fields.
    more: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rules = Rules()
        rules.text("webhook_id", self.webhook_id, MAX_ID, required=True)
        rules.text("reason", self.reason, MAX_REASON, lines=True)
        rules.who_and_request(self.actor, self.request_id)
        rules.enforce()

    @property
    def cause(self) -> str:
        return cause_of(self.request_id, self.actor, self.reason, self.more, self.salt)

    def event(self) -> Any:
        return self.changed(
            webhook_id=self.webhook_id,
            actor=self.actor,
            reason=self.reason,
            request_id=self.request_id,
            occurred_at=self.occurred_at,
            **self.more,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class AbandonDelivery:
    """A delivery failed for too long. `occurred_at` tells when it was to be given up, and does so always alike."""

    abandoned: DeliveryAbandoned

    @property
    def cause(self) -> str:
        # A replay gives it a new chance, and so another end.
        return f"{self.abandoned.delivery_id} {self.abandoned.occurred_at}"


Command = RegisterWebhook | ChangeWebhook | AbandonDelivery


# -- state ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Webhook:
    """A webhook as its events tell it; without an id while it does not exist."""

    webhook_id: str = ""
    url: str = ""
    paused: bool = False
    deleted: bool = False
    secret: WebhookSecret | None = None
    #: Those before it that may still sign, the latest first.
    earlier: tuple[WebhookSecret, ...] = ()
    #: When each delivery was given up last: of a receiver who is away for days there are very many.
    abandoned: Map[str, datetime | None] = field(default_factory=Map)
    requests: Mapping[str, WebhookEvent] = field(default_factory=dict)

    def secrets(self, now: datetime) -> Sequence[WebhookSecret]:
        """Return what the secrets that sign at `now` are made of, the present one first."""
        return (self.secret, *_still_good(self.secret, self.earlier, now)) if self.secret else ()


def _still_good(present: WebhookSecret, earlier: Sequence[WebhookSecret], now: datetime) -> Iterator[WebhookSecret]:
    """Yield those that sign at `now`, too: each until a day after the next one was made."""
    for each in earlier:
        if now >= present.occurred_at + OVERLAP:
            return
        yield each
        present = each


class Webhooks:
    """The decider of a webhook."""

    types: Sequence[type[Event]] = (
        WebhookRegistered,
        WebhookPaused,
        WebhookResumed,
        WebhookDeleted,
        WebhookSecretRotated,
        WebhookReplayed,
        DeliveryAbandoned,
        WebhookSecret,
    )

    def initial(self) -> Webhook:
        return Webhook()

    def evolve(self, state: Webhook, event: WebhookEvent) -> Webhook:
        match event:
            case WebhookRegistered():
                after = replace(state, webhook_id=event.webhook_id, url=event.url)
            case WebhookPaused():
                after = replace(state, paused=True)
            case WebhookResumed():
                after = replace(state, paused=False)
            case WebhookDeleted():
                after = replace(state, deleted=True)
            case WebhookSecret():
                earlier = (state.secret, *state.earlier) if state.secret else ()
                return replace(state, secret=event, earlier=tuple(_still_good(event, earlier, event.occurred_at)))
            case DeliveryAbandoned():
                return replace(state, abandoned=state.abandoned.set(event.delivery_id, event.occurred_at))
            case _:
                after = state
        return replace(after, requests={**state.requests, event.request_id: event})

    def decide(self, command: Command, state: Webhook) -> Sequence[WebhookEvent]:
        """Return what `command` changes: nothing where it repeats what was done.

        Raises:
            NotFoundError: there is no such webhook, or it was deleted.
            DiffersError: REQUEST_ID_REUSED.
            RefusedError: it is paused, or not paused, already.
        """
        if isinstance(command, AbandonDelivery):
            abandoned = command.abandoned
            # A replay gives it a new chance, and so another end.
            told = state.abandoned.get(abandoned.delivery_id)
            return [] if told is not None and told == abandoned.occurred_at else [abandoned]
        event: Any = command.event()
        done = state.requests.get(command.request_id)
        if done is not None:
            if (
                not isinstance(done, type(event))
                or msgspec.structs.replace(event, occurred_at=done.occurred_at) != done
            ):
                raise DiffersError("REQUEST_ID_REUSED", f"request_id {command.request_id} was used for something else")
            if isinstance(command, RegisterWebhook) and state.deleted:
                # To answer as the first time would tell of a webhook that is not there.
                raise _not_found(command.webhook_id)
            return []
        secret = [
            WebhookSecret(
                webhook_id=command.webhook_id,
                occurred_at=command.occurred_at,
                key_id=command.key_id,
                salt=command.salt,
            )
        ]
        if isinstance(command, RegisterWebhook):
            return [event, *secret]
        if not state.webhook_id or state.deleted:
            raise _not_found(command.webhook_id)
        if isinstance(event, WebhookPaused | WebhookResumed) and state.paused is isinstance(event, WebhookPaused):
            raise RefusedError("ILLEGAL_TRANSITION", f"it is {'' if state.paused else 'not '}paused already")
        return [event, *(secret if isinstance(event, WebhookSecretRotated) else [])]


def _not_found(webhook_id: str) -> NotFoundError:
    return NotFoundError("WEBHOOK_NOT_FOUND", f"there is no webhook {webhook_id}, or not any more")


def webhook_stream(webhook_id: str) -> str:
    return stream_name("webhook", webhook_id)


# -- secrets -------------------------------------------------------------------------------------------------------


class Keyring:
    """The keys that secrets are derived from, so that who reads the event store learns none.

    A secret is HKDF-Expand (H. Krawczyk and P. Eronen, RFC 5869, 2.3) of a key, over the webhook's id and a salt of its
    own. The first key makes new secrets; those behind it are still good for what was made with them.
    """

    def __init__(self, keys: Sequence[bytes]) -> None:
        self._keys = {hashlib.sha256(b"recorrido webhook key\0" + key).hexdigest()[:8]: key for key in keys}

    @classmethod
    def read(cls, text: str) -> Self:
        """Read keys in base64, separated by commas. Raises ValueError, which tells nothing of them."""
        keys = []
        for number, each in enumerate(filter(None, (part.strip() for part in text.split(","))), 1):
            try:
                keys.append(base64.b64decode(each, validate=True))
            except ValueError:
                raise ValueError(f"key {number} is not base64") from None
            if len(keys[-1]) < KEY_BYTES:
                raise ValueError(f"key {number} has {len(keys[-1])} bytes, and it takes {KEY_BYTES}")
        return cls(keys)

    @property
    def first(self) -> str:
        """The id of the key for new secrets. Raises RefusedError (NO_WEBHOOK_KEY)."""
        for key_id in self._keys:
            return key_id
        raise RefusedError("NO_WEBHOOK_KEY", "the service was given no key to derive secrets from")

    def secret(self, made_of: WebhookSecret) -> str:
        """Return the secret. Raises RefusedError (NO_WEBHOOK_KEY) where its key is not here any more."""
        if not made_of.key_id:
            return made_of.secret
        key = self._keys.get(made_of.key_id)
        if key is None:
            raise RefusedError("NO_WEBHOOK_KEY", f"the key {made_of.key_id} of its secret is not among the service's")
        info = f"recorrido webhook secret\0{made_of.webhook_id}\0{made_of.salt}".encode()
        return secret_of(hmac.digest(key, info + b"\x01", hashlib.sha256))


# -- what is sent --------------------------------------------------------------------------------------------------


def matches(event_types: Sequence[str], type_name: str) -> bool:
    """Return whether one of the names, or beginnings that end in `*`, is that of the type; none: every one is."""
    return not event_types or any(
        type_name.startswith(each[:-1]) if each.endswith("*") else type_name == each for each in event_types
    )


def delivery_id(webhook_id: str, event_id: str) -> str:
    return str(derived_id("delivery", webhook_id, event_id))


def secret_of(key: bytes) -> str:
    return SECRET_PREFIX + base64.b64encode(key).decode()


def signature(secrets: Sequence[str], message_id: str, timestamp_s: int, body: bytes) -> str:
    """Return the header `webhook-signature`: one signature per secret, separated by spaces."""
    signed = f"{message_id}.{timestamp_s}.".encode() + body
    return " ".join(
        "v1,"
        + base64.b64encode(hmac.digest(base64.b64decode(each[len(SECRET_PREFIX) :]), signed, hashlib.sha256)).decode()
        for each in secrets
    )


def wait_s(attempts: int, first_s: float, random: float, asked_s: float = 0.0) -> float:
    """Return how long to wait after so many failed attempts; `random` is from 0 to 1.

    It doubles each time, up to an hour. A receiver may ask for more (`Retry-After`), up to an hour.
    """
    waited = backoff.wait_s(attempts, first_s=first_s, longest_s=LONGEST_WAIT_S, chance=random)
    return max(waited, min(asked_s, LONGEST_WAIT_S))


# -- whom --------------------------------------------------------------------------------------------------------

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
#: Addresses behind a translator stand for the IPv4 address in their last bits (RFC 6052).
_TRANSLATED = ipaddress.IPv6Network("64:ff9b::/96")
#: What Python does not know to be no part of the public internet: protocol assignments (RFC 6890), addresses for
#: documentation (RFC 9637), and those that were private to a site before fc00::/7 was (RFC 3879).
_NOT_PUBLIC = tuple(map(ipaddress.ip_network, ("192.0.0.0/24", "3fff::/20", "fec0::/10")))


def meant(address: Address) -> Address:
    """Return the address that is reached in the end: of one that carries an IPv4 address, that."""
    if isinstance(address, ipaddress.IPv6Address):
        if address in _TRANSLATED:
            return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        return address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else address)
    return address


def is_public(address: Address) -> bool:
    """Return whether an address is reached over the public internet, by the registries of IANA."""
    reached = meant(address)
    if _within(reached, _NOT_PUBLIC):
        return False
    return reached.is_global and not reached.is_multicast and not reached.is_reserved


def is_allowed(address: Address, allowed: Sequence[Network]) -> bool:
    """Return whether an address is in one of the networks that are allowed although they are not public."""
    return _within(meant(address), allowed)


def _within(address: Address, some: Sequence[Network]) -> bool:
    return any(address in network for network in some if network.version == address.version)


def networks(text: str) -> Sequence[Network]:
    """Return the networks that a text lists, separated by commas. Raises ValueError where one is none."""
    return tuple(ipaddress.ip_network(each.strip()) for each in text.split(",") if each.strip())


def _broken(url: str) -> list[str]:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return ["an address such as https://example.com/hook"]
    found = []
    if parts.scheme not in {"https", "http"} or not parts.hostname:
        found.append("an address such as https://example.com/hook")
    if parts.username is not None or parts.password is not None:
        found.append("no user and no password")
    if parts.fragment:
        found.append("no fragment")
    return found
