"""What an event can hold of an interaction that was refused, whatever it holds."""

import math
from collections.abc import Sequence
from datetime import UTC
from hashlib import sha256
from typing import Any

from msgspec import structs

from recorrido.ingest.v1 import interaction_pb2
from recorrido.ingest.v1.events import AlteredValue, Interaction, Rating
from services.foundation.errors import Violation
from services.ingest.domain import MAX_ATTRIBUTES, MAX_RATINGS, MAX_VERBATIM_BYTES
from services.ingest.masking import Masker
from services.ingest.rejection import Kept

#: How much is kept of a text, in bytes of UTF-8; of the verbatim as much as a valid one may have. Together with what
#: JSON makes of control characters (six bytes of one) an event stays below 1 MiB, which is all that a store may take.
MAX_TEXT_BYTES = 1024
MAX_KEY_BYTES = 256
MAX_ALTERED = 64


def keep(message: interaction_pb2.Interaction, masker: Masker, unreadable: Sequence[Violation] = ()) -> Kept:
    """Return what can and may be kept of an interaction that was refused; whatever it holds, this does not fail.

    `unreadable`: fields that its sender could not read. What lacks them is not the whole of what was to be recorded.
    """
    came = sha256(message.SerializeToString(deterministic=True))
    altered = [AlteredValue(field=each.field, note=f"could not be read: {each.rule}") for each in unreadable]
    for each in altered:
        came.update(f"\x1f{each.field}\x1f{each.note}".encode())
    readable = interaction_pb2.Interaction()
    readable.CopyFrom(message)
    _clear_unreadable(readable, altered)
    interaction = masker.interaction(_cut(Interaction.from_proto(readable), altered))
    return Kept(interaction, tuple(altered[:MAX_ALTERED]), came.hexdigest())


def _clear_unreadable(message: interaction_pb2.Interaction, altered: list[AlteredValue]) -> None:
    """Take out what no event can hold: times beyond the calendar, numbers that are none, values of a newer contract."""
    moment = message.occurred_at
    try:
        moment.ToDatetime(UTC)
    except (ValueError, OverflowError):
        altered.append(AlteredValue(field="occurred_at", note=f"{moment.seconds} s and {moment.nanos} ns since 1970"))
        message.ClearField("occurred_at")
    _note_unknown("channel", interaction_pb2.Channel, message.channel, altered)
    _note_unknown("outcome", interaction_pb2.Outcome, message.outcome, altered)
    _note_unknown("customer.kind", interaction_pb2.CustomerKind, message.customer.kind, altered)
    _note_unknown("referral.direction", interaction_pb2.ReferralDirection, message.referral.direction, altered)
    if len(message.ratings) > MAX_RATINGS:
        altered.append(AlteredValue(field="ratings", note=f"the first {MAX_RATINGS} of {len(message.ratings)}"))
        del message.ratings[MAX_RATINGS:]
    for index, rating in enumerate(message.ratings):
        path = f"ratings[{index}]"
        _note_unknown(f"{path}.metric", interaction_pb2.RatingMetric, rating.metric, altered)
        for name in ("value", "scale_min", "scale_max"):
            number = getattr(rating, name)
            if not math.isfinite(number):
                altered.append(AlteredValue(field=f"{path}.{name}", note=str(number)))
                rating.ClearField(name)


def _note_unknown(path: str, enum: Any, value: int, altered: list[AlteredValue]) -> None:
    if value not in enum.values():
        altered.append(AlteredValue(field=path, note=str(value)))


def _cut(interaction: Interaction, altered: list[AlteredValue]) -> Interaction:
    def text(path: str, value: str, most: int = MAX_TEXT_BYTES) -> str:
        raw = value.encode()
        if len(raw) <= most:
            return value
        note = f"cut to {most} bytes"
        altered.append(AlteredValue(field=path, note=note, size_bytes=len(raw), digest=sha256(raw).hexdigest()))
        return raw[:most].decode(errors="ignore")

    def texts(path: str, struct: Any, *names: str) -> Any:
        if struct is None:
            return None
        return structs.replace(struct, **{name: text(f"{path}{name}", getattr(struct, name)) for name in names})

    verbatim = interaction.verbatim
    if verbatim is not None:
        verbatim = structs.replace(
            verbatim,
            text=text("verbatim.text", verbatim.text, MAX_VERBATIM_BYTES),
            language=text("verbatim.language", verbatim.language),
        )
    ratings: list[Rating] = [texts(f"ratings[{i}].", rating, "name") for i, rating in enumerate(interaction.ratings)]
    attributes = dict(sorted(interaction.attributes.items())[:MAX_ATTRIBUTES])
    if len(attributes) < len(interaction.attributes):
        note = f"the first {MAX_ATTRIBUTES} of {len(interaction.attributes)}"
        altered.append(AlteredValue(field="attributes", note=note))
    named: Interaction = texts("", interaction, "source", "interaction_id", "touchpoint", "episode_id")
    return structs.replace(
        named,
        customer=texts("customer.", interaction.customer, "customer_id"),
        verbatim=verbatim,
        ratings=tuple(ratings),
        amount=texts("amount.", interaction.amount, "currency_code", "amount"),
        referral=texts("referral.", interaction.referral, "other_customer_id"),
        attributes={
            text("attributes", key, MAX_KEY_BYTES): text(f"attributes[{key[:64]!r}]", value)
            for key, value in attributes.items()
        },
    )
