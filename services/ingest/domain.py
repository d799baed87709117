"""Recording what happened to a customer, once: the rules of an interaction, and telling repetition from contradiction.

A customer's stream holds their interactions. Within it `source` and `interaction_id` together name an interaction:
the same content again is a repetition and changes nothing, other content is refused.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from itertools import islice
from typing import Self

import msgspec
from immutables import Map
from msgspec import Struct

from recorrido.ingest.v1.events import (
    Channel,
    CustomerKind,
    Interaction,
    InteractionRecorded,
    Money,
    Rating,
    RatingMetric,
    Referral,
    ReferralDirection,
    Verbatim,
)
from services.foundation.errors import DiffersError, InvalidError, Violation
from services.foundation.events import Event, stream_name
from services.foundation.rules import MAX_CUSTOMER_ID, MAX_NAME, control_characters, text
from services.foundation.scales import SCALES
from services.ingest.currencies import CURRENCIES

#: Clocks of the systems that report to us may run ahead by this much.
CLOCK_SKEW = timedelta(minutes=5)
EARLIEST = datetime(1900, 1, 1, tzinfo=UTC)

MAX_VERBATIM_BYTES = 16 * 1024
MAX_RATINGS = 16
MAX_ATTRIBUTES = 64
#: More of them help nobody, and an answer has to fit into a message.
MAX_VIOLATIONS = 64

_LANGUAGE = re.compile(r"[a-z]{2}")
_AMOUNT = re.compile(r"-?[0-9]+(\.[0-9]{1,4})?")
_MAX_AMOUNT_DIGITS = 18

_CANONICAL = msgspec.json.Encoder(order="deterministic")


class RecordInteraction(Struct, frozen=True, gc=False):
    """The intention to record a valid interaction; `of` is the way to one."""

    interaction: Interaction
    #: SHA-256, hexadecimal, of the canonical form.
    digest: str
    #: Size of the canonical form, which is about what the event takes in the store.
    size_bytes: int
    #: Digest of what came, where that is not what is recorded; empty: it is.
    digest_unmasked: str = ""

    @classmethod
    def of(
        cls,
        interaction: Interaction,
        now: datetime,
        unreadable: Sequence[Violation] = (),
        *,
        mask: Callable[[Interaction], Interaction] = lambda interaction: interaction,
    ) -> Self:
        """Check the interaction at the time `now`.

        Args:
            interaction: as it was given.
            now: when we learn of it.
            unreadable: fields whose value the interaction cannot even hold, or its sender could not read, and why.
            mask: takes personal data out of it; what it gives is checked and recorded.

        Raises:
            InvalidError: names every rule that it breaks (the first MAX_VIOLATIONS).
        """
        masked = mask(interaction)
        lost = {violation.field for violation in unreadable}
        broken = [*unreadable, *(v for v in violations(masked, now) if v.field not in lost)]
        if broken:
            raise InvalidError(broken[:MAX_VIOLATIONS])
        form = canonical(masked)
        unmasked = "" if masked is interaction else sha256(canonical(interaction)).hexdigest()
        return cls(masked, sha256(form).hexdigest(), len(form), unmasked)

    @property
    def key(self) -> str:
        """The idempotency key. Neither part can hold the separator, a control character."""
        return key_of(self.interaction)

    @property
    def cause(self) -> str:
        """The key and the content: a store that finds two events under one id takes them for the same."""
        return f"{self.key}\x1f{self.digest}"

    def as_recorded(self, known: "Known") -> Self:
        """Return the command that recorded what this one repeats: the policy of masking may have been another then."""
        return msgspec.structs.replace(self, digest=known.get(self.key, self.digest))

    @property
    def stream(self) -> str:
        assert self.interaction.customer is not None
        return stream_name("customer", self.interaction.customer.customer_id)


def key_of(interaction: Interaction) -> str:
    return f"{interaction.source}\x1f{interaction.interaction_id}"


def canonical(interaction: Interaction) -> bytes:
    """Return the form that a digest is taken of: JSON with sorted attributes and UTC times, ratings as they came."""
    moment = interaction.occurred_at
    if moment is not None and moment.tzinfo is not UTC:
        interaction = msgspec.structs.replace(interaction, occurred_at=moment.astimezone(UTC))
    return _CANONICAL.encode(interaction)


# -- the rules -----------------------------------------------------------------------------------------------------


def violations(interaction: Interaction, now: datetime) -> Iterator[Violation]:
    """Yield every rule that an interaction breaks. An unknown touchpoint breaks none: the journey map places it."""
    yield from text("source", interaction.source, MAX_NAME, required=True)
    yield from text("interaction_id", interaction.interaction_id, 256, required=True)
    customer = interaction.customer
    yield from text("customer.customer_id", customer.customer_id if customer else "", MAX_CUSTOMER_ID, required=True)
    if customer is None or customer.kind is CustomerKind.UNSPECIFIED:
        yield Violation("customer.kind", "one of the known kinds")
    yield from text("touchpoint", interaction.touchpoint, MAX_NAME, required=True)
    if interaction.channel is Channel.UNSPECIFIED:
        yield Violation("channel", "one of the known channels")
    yield from _moment(interaction.occurred_at, now)
    yield from text("episode_id", interaction.episode_id, 256)
    if interaction.verbatim is not None:
        yield from _verbatim(interaction.verbatim)
    yield from _ratings(interaction.ratings)
    if interaction.amount is not None:
        yield from _money(interaction.amount)
    if interaction.referral is not None:
        yield from _referral(interaction.referral)
    yield from _attributes(interaction)


def _moment(occurred_at: datetime | None, now: datetime) -> Iterator[Violation]:
    if occurred_at is None:
        yield Violation("occurred_at", "required")
    elif occurred_at > now + CLOCK_SKEW:
        yield Violation("occurred_at", f"not in the future, now is {now:%Y-%m-%dT%H:%M:%SZ}")
    elif occurred_at < EARLIEST:
        yield Violation("occurred_at", "not before the year 1900")


def _verbatim(verbatim: Verbatim) -> Iterator[Violation]:
    size = len(verbatim.text.encode())
    if size > MAX_VERBATIM_BYTES:
        yield Violation("verbatim.text", f"at most {MAX_VERBATIM_BYTES} bytes of UTF-8, has {size}")
    yield from control_characters("verbatim.text", verbatim.text, lines=True)
    if verbatim.language and not _LANGUAGE.fullmatch(verbatim.language):
        yield Violation("verbatim.language", "ISO 639-1, two lower-case letters, or empty")


def _ratings(ratings: Sequence[Rating]) -> Iterator[Violation]:
    if len(ratings) > MAX_RATINGS:
        yield Violation("ratings", f"at most {MAX_RATINGS}, has {len(ratings)}")
    seen = set()
    for index, rating in enumerate(ratings[:MAX_RATINGS]):
        path = f"ratings[{index}]"
        if rating.metric is RatingMetric.UNSPECIFIED:
            yield Violation(f"{path}.metric", "one of the known metrics")
        elif rating.metric is RatingMetric.CUSTOM:
            yield from _custom_rating(path, rating)
        else:
            yield from _standard_rating(path, rating)
        if (rating.metric, rating.name) in seen:
            yield Violation(path, "one rating per metric and name")
        seen.add((rating.metric, rating.name))


def _standard_rating(path: str, rating: Rating) -> Iterator[Violation]:
    low, high = SCALES[rating.metric].lowest, SCALES[rating.metric].highest
    if not (rating.value.is_integer() and low <= rating.value <= high):
        yield Violation(f"{path}.value", f"a whole number between {low} and {high} for {rating.metric.name}")
    for field in ("name", "scale_min", "scale_max"):
        if getattr(rating, field) not in ("", None):
            yield Violation(f"{path}.{field}", "only for a custom scale")


def _custom_rating(path: str, rating: Rating) -> Iterator[Violation]:
    yield from text(f"{path}.name", rating.name, MAX_NAME, required=True)
    bounds = (("scale_min", rating.scale_min), ("scale_max", rating.scale_max))
    for field, bound in bounds:
        if bound is None or not math.isfinite(bound):
            yield Violation(f"{path}.{field}", "required for a custom scale, a finite number")
    low, high = rating.scale_min, rating.scale_max
    if not math.isfinite(rating.value):
        yield Violation(f"{path}.value", "a finite number")
    elif low is not None and high is not None and math.isfinite(low) and math.isfinite(high):
        if low >= high:
            yield Violation(f"{path}.scale_max", "greater than scale_min")
        elif not low <= rating.value <= high:
            yield Violation(f"{path}.value", f"between {low:g} and {high:g}")


def _money(money: Money) -> Iterator[Violation]:
    if money.currency_code not in CURRENCIES:
        yield Violation("amount.currency_code", "an ISO 4217 code, such as EUR")
    digits = sum(map(str.isdigit, money.amount))
    if not _AMOUNT.fullmatch(money.amount) or digits > _MAX_AMOUNT_DIGITS:
        rule = f"a decimal number such as 129.90, at most {_MAX_AMOUNT_DIGITS} digits, 4 of them decimals"
        yield Violation("amount.amount", rule)


def _referral(referral: Referral) -> Iterator[Violation]:
    if referral.direction is ReferralDirection.UNSPECIFIED:
        yield Violation("referral.direction", "given or received")
    yield from text("referral.other_customer_id", referral.other_customer_id, MAX_CUSTOMER_ID)


def _attributes(interaction: Interaction) -> Iterator[Violation]:
    attributes = interaction.attributes
    if len(attributes) > MAX_ATTRIBUTES:
        yield Violation("attributes", f"at most {MAX_ATTRIBUTES}, has {len(attributes)}")
    for key, value in islice(attributes.items(), MAX_ATTRIBUTES):
        path = f"attributes[{key[:64]!r}]"
        yield from text(path, key, 64, required=True)
        if len(value) > 1024:
            yield Violation(path, f"a value of at most 1024 characters, has {len(value)}")
        yield from control_characters(path, value, lines=True)


# -- the customer's history ----------------------------------------------------------------------------------------

#: Digest by idempotency key of what a customer's stream holds.
Known = Map[str, str]


def contradiction(recorded: str, given: str, fields: Sequence[str] = ()) -> DiffersError:
    """Return what to raise where content of digest `given` came under a key that `recorded` stands under.

    The text begins with the fields that differ, where they are known: a person reads these, a program the digests.
    """
    what = f"{', '.join(fields)} {'differs' if len(fields) == 1 else 'differ'}" if fields else "the content differs"
    details = {"recorded_digest": recorded, "given_digest": given, **({"fields": ",".join(fields)} if fields else {})}
    told = "from what was recorded under this source and interaction_id"
    return DiffersError("CONTENT_DIFFERS", f"{what} {told} (digest {recorded}, now {given})", details)


class History:
    """Decides about one customer's stream."""

    types: Sequence[type[Event]] = (InteractionRecorded,)

    def initial(self) -> Known:
        return Map()

    def evolve(self, state: Known, event: InteractionRecorded) -> Known:
        return state.set(key_of(event.interaction or Interaction()), event.digest)

    def keys(self, state: Known) -> Iterable[str]:
        return state.keys()

    def key(self, command: RecordInteraction) -> str:
        return command.key

    def decide(self, command: RecordInteraction, state: Known) -> Sequence[Event]:
        """Record what is new; nothing for a repetition.

        Raises:
            DiffersError: the key was used for other content; its details hold both digests.
        """
        recorded = state.get(command.key)
        if recorded is None:
            return [InteractionRecorded(interaction=command.interaction, digest=command.digest)]
        if recorded in (command.digest, command.digest_unmasked):
            return []
        raise contradiction(recorded, command.digest)
