"""What is kept of a refused interaction, and how a rejection is resolved: pure."""

from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recorrido.ingest.v1 import interaction_pb2
from recorrido.ingest.v1.events import (
    Interaction,
    InteractionRejected,
    RejectionDiscarded,
    RejectionResubmitted,
    RejectionState,
)
from services.foundation.errors import InvalidError, NotFoundError, RefusedError, Violation
from services.foundation.events import encode
from services.ingest import kept as keeping
from services.ingest.domain import RecordInteraction
from services.ingest.masking import Masker, Pii
from services.ingest.rejection import Discard, KeepRejected, Kept, Rejection, Rejections, Resubmit
from tests.support.interactions import interaction

NOW = datetime(2030, 1, 1, tzinfo=UTC)
DECIDER = Rejections()
UNMASKED = Masker(())
ERROR = InvalidError([Violation("source", "required")])


def keep(message: interaction_pb2.Interaction) -> Kept:
    return keeping.keep(message, UNMASKED)


# -- what is kept --------------------------------------------------------------------------------------------------


def test_what_can_be_kept_is_kept_as_it_came() -> None:
    message = interaction(1, text="words", csat=9)
    message.attributes["a\0"] = "b"
    message.source = ""
    kept = keep(message)
    assert (kept.interaction.to_proto(), kept.altered) == (message, ())


def test_the_same_content_is_the_same_rejection_and_other_content_another() -> None:
    def made(*names: str) -> interaction_pb2.Interaction:
        message = interaction(1)
        for name in names:
            message.attributes[name] = name
        return message

    assert keep(made("a", "b")).rejection_id == keep(made("b", "a")).rejection_id
    assert keep(made("a")).rejection_id != keep(made("b")).rejection_id


def test_a_text_too_long_is_cut_with_its_length_and_digest() -> None:
    message = interaction(1, text="€" * 10_000)
    kept = keep(message)
    (altered,) = kept.altered
    raw = ("€" * 10_000).encode()
    assert (altered.field, altered.size_bytes, altered.digest) == ("verbatim.text", 30_000, sha256(raw).hexdigest())
    assert kept.interaction.verbatim is not None
    assert kept.interaction.verbatim.text == "€" * 5461


def test_what_is_masked_at_the_door_is_masked_in_what_is_kept() -> None:
    kept = keeping.keep(interaction(1, text="write to ana@example.org"), Masker((Pii.EMAIL,)))
    assert kept.interaction.verbatim is not None
    assert "ana@example.org" not in kept.interaction.verbatim.text


def odd_time(message: Any) -> None:
    message.occurred_at.seconds = 10**15


def no_number(message: Any) -> None:
    message.ratings.add(metric=2, value=float("nan"))


def endless_scale(message: Any) -> None:
    message.ratings.add(metric=4, value=1, scale_min=float("-inf"), scale_max=3)


def tomorrows_channel(message: Any) -> None:
    message.channel = 99


def tomorrows_kind(message: Any) -> None:
    message.customer.kind = 77


def many_ratings(message: Any) -> None:
    for number in range(40):
        message.ratings.add(metric=4, name=str(number), value=1)


def many_attributes(message: Any) -> None:
    for number in range(100):
        message.attributes[str(number)] = "x"


@pytest.mark.parametrize(
    ("spoil", "field", "note"),
    [
        (odd_time, "occurred_at", "1000000000000000 s and 0 ns since 1970"),
        (no_number, "ratings[0].value", "nan"),
        (endless_scale, "ratings[0].scale_min", "-inf"),
        (tomorrows_channel, "channel", "99"),
        (tomorrows_kind, "customer.kind", "77"),
        (many_ratings, "ratings", "the first 16 of 40"),
        (many_attributes, "attributes", "the first 64 of 100"),
    ],
)
def test_what_an_event_cannot_hold_is_told(spoil: Any, field: str, note: str) -> None:
    message = interaction(1)
    spoil(message)
    assert [(each.field, each.note) for each in keep(message).altered] == [(field, note)]


def test_the_worst_there_is_fits_into_an_event() -> None:
    message = interaction(1, text="\0" * 1_000_000)
    for name in ("source", "interaction_id", "touchpoint", "episode_id"):
        setattr(message, name, "\0" * 300_000)
    message.customer.customer_id = message.amount.currency_code = message.amount.amount = "\0" * 300_000
    message.referral.other_customer_id = message.verbatim.language = "\0" * 300_000
    for number in range(100):
        message.ratings.add(metric=4, name="\0" * 100_000, value=number)
        message.attributes[f"{number}" + "\0" * 10_000] = "\0" * 10_000
    kept = keep(message)
    error = InvalidError([Violation("\N{PILE OF POO}" * 3000, "\N{PILE OF POO}" * 3000)] * 64)
    command = KeepRejected(kept, error, "\N{PILE OF POO}" * 128)
    assert command.size_bytes < 1024 * 1024


@given(st.binary(max_size=200))
def test_whatever_protobuf_can_read_can_be_kept(raw: bytes) -> None:
    message = interaction_pb2.Interaction()
    try:
        message.ParseFromString(raw)
    except Exception:  # noqa: BLE001 - no message
        return
    event = KeepRejected(keep(message), ERROR, "client").event
    assert msgspec.json.decode(encode(event), type=InteractionRejected) == event


# -- how it is resolved --------------------------------------------------------------------------------------------


def given_history(*commands: Any) -> Rejection:
    state = DECIDER.initial()
    for command in commands:
        for event in DECIDER.decide(command, state):
            state = DECIDER.evolve(state, event)
    return state


KEEP = KeepRejected(keep(interaction(1)), ERROR, "webshop")
ID = KEEP.kept.rejection_id
RESUBMIT = Resubmit(rejection_id=ID, interaction=Interaction(source="s"), event_id="e", corrected=True, actor="ana")
DISCARD = Discard(rejection_id=ID, reason="a test", actor="ben")


def test_it_is_kept_once() -> None:
    assert DECIDER.decide(KEEP, given_history(KEEP)) == []
    # And stays resolved when it comes again.
    assert DECIDER.decide(KEEP, given_history(KEEP, DISCARD)) == []


def test_it_tells_who_sent_it_and_every_rule() -> None:
    (event,) = DECIDER.decide(KEEP, DECIDER.initial())
    assert isinstance(event, InteractionRejected)
    assert (event.client_id, event.reason, event.rejection_id) == ("webshop", "INVALID", ID)
    assert [(b.field, b.rule) for b in event.violations] == [("source", "required")]


def test_it_is_resubmitted_once_and_stays_so() -> None:
    (event,) = DECIDER.decide(RESUBMIT, given_history(KEEP))
    assert isinstance(event, RejectionResubmitted)
    assert (event.event_id, event.source, event.corrected) == ("e", "s", True)
    resolved = given_history(KEEP, RESUBMIT)
    assert (resolved.state, resolved.event_id, resolved.actor) == (RejectionState.RESUBMITTED, "e", "ana")
    assert DECIDER.decide(RESUBMIT, resolved) == []
    with pytest.raises(RefusedError) as refused:
        DECIDER.decide(DISCARD, resolved)
    assert (refused.value.reason, refused.value.details) == ("REJECTION_RESUBMITTED", {"event_id": "e"})


def test_it_is_discarded_with_a_reason() -> None:
    (event,) = DECIDER.decide(DISCARD, given_history(KEEP))
    assert event == RejectionDiscarded(rejection_id=ID, reason="a test", actor="ben")
    discarded = given_history(KEEP, DISCARD)
    assert (discarded.state, discarded.note) == (RejectionState.DISCARDED, "a test")
    assert DECIDER.decide(DISCARD, discarded) == []
    with pytest.raises(RefusedError, match="discarded by ben: a test"):
        DECIDER.decide(RESUBMIT, discarded)


def test_what_was_never_rejected_cannot_be_resolved() -> None:
    for command in (RESUBMIT, DISCARD):
        with pytest.raises(NotFoundError):
            DECIDER.decide(command, DECIDER.initial())


@pytest.mark.parametrize("spoilt", [{"reason": ""}, {"reason": "x" * 1025}, {"actor": " "}, {"rejection_id": "a\0"}])
def test_a_discard_names_who_and_why(spoilt: dict[str, str]) -> None:
    with pytest.raises(InvalidError) as refused:
        Discard(**{"rejection_id": ID, "reason": "why", "actor": "ana", **spoilt})
    assert [v.field for v in refused.value.violations] == list(spoilt)


# -- the id of an event --------------------------------------------------------------------------------------------


def test_the_cause_of_an_event_is_its_key_and_its_content() -> None:
    one = RecordInteraction.of(Interaction.from_proto(interaction(1)), NOW)
    same = RecordInteraction.of(Interaction.from_proto(interaction(1)), NOW)
    other = RecordInteraction.of(Interaction.from_proto(interaction(1, text="other")), NOW)
    assert one.cause == same.cause
    assert (one.key, one.cause) != (other.key, other.cause)
    assert one.key == other.key
