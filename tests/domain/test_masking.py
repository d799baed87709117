"""What is personal data in the words of customers, and what only looks like it, in four languages."""

import time
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recorrido.ingest.v1 import interaction_pb2
from recorrido.ingest.v1.events import Interaction, Verbatim
from services.foundation.errors import DiffersError
from services.ingest.domain import MAX_VERBATIM_BYTES, History, RecordInteraction
from services.ingest.kept import keep
from services.ingest.masking import Masker, Pii, kinds_of, regions_of
from tests.support.interactions import interaction

ALL = Masker(tuple(Pii))
NOW = datetime(2026, 6, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        # e-mail
        ("Write to ana.novak+shop@mail.example.co.uk, please.", "Write to [email], please."),
        ("Mi correo es MARÍA@EJEMPLO.ES.", "Mi correo es [email]."),
        ("Pišite na <janez@podjetje.si>!", "Pišite na <[email]>!"),
        ("contato:joao_silva@exemplo.com.br;obrigado", "contato:[email];obrigado"),
        ("a@example.com,b@example.com", "[email],[email]"),
        # IBAN, whatever words follow it, grouped or not
        ("Devuélvanlo a ES91 2100 0418 4502 0005 1332 gracias", "Devuélvanlo a [iban] gracias"),
        ("Nakažite na SI56 1910 0000 0123 438.", "Nakažite na [iban]."),
        ("devolvam para PT50000201231234567890154 hoje", "devolvam para [iban] hoje"),
        ("refund GB82WEST12345698765432 now", "refund [iban] now"),
        ("gb82 west 1234 5698 7654 32", "[iban]"),
        # cards: every scheme's own length and groups
        ("my card 4111 1111 1111 1111 was charged twice", "my card [card] was charged twice"),
        ("mi tarjeta 5555-5555-5555-4444 no funciona", "mi tarjeta [card] no funciona"),
        ("kartica 378282246310005", "kartica [card]"),
        ("Amex 3782 822463 10005", "Amex [card]"),
        ("cartão 6011111111111117 cvv 123", "cartão [card] cvv 123"),
        ("4111 1111 1111 1111 123", "[card] 123"),
        ("30569309025904", "[card]"),
        # telephone
        ("Call me on +44 20 7946 0958 after six", "Call me on [phone] after six"),
        ("call 020 7946 0958", "call [phone]"),
        ("my number is (212) 736-5000", "my number is [phone]"),
        ("Llámame al 612 345 678", "Llámame al [phone]"),
        ("mi móvil: 612345678", "mi móvil: [phone]"),
        ("fijo 91 123 45 67", "fijo [phone]"),
        ("Pokličite 040 123 456 ali 01 234 56 78", "Pokličite [phone] ali [phone]"),
        ("gsm +386 40 123 456", "gsm [phone]"),
        ("Ligue para 912 345 678", "Ligue para [phone]"),
        ("WhatsApp (11) 91234-5678", "WhatsApp [phone]"),
        ("+1-212-736-5000", "[phone]"),
        # several at once
        (
            "Ana (ana@example.com, +34 612 345 678) paid with 4111111111111111",
            "Ana ([email], [phone]) paid with [card]",
        ),
    ],
)
def test_personal_data_is_masked(text: str, masked: str) -> None:
    assert ALL.text(text) == masked


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Great service, 10/10!",
        "ask @recorrido on social media, or me@home",
        "2 boxes @ 5.50 each, 3@2.00",
        "I paid 1,299.90 € on 2026-03-12 at 10:30",
        "paguei 1.299,90 € em 12/03/2024 às 10:30",
        "plačal sem 1.299,90 € dne 12. 3. 2024 ob 10.30",
        "pagué 1.299,90 € el 12-03-2024 a las 10:30",
        "order 4111-1111 was late, so was 123-4567890-1234567",
        "order number 612345678",
        "mi pedido 612345678 no llegó, tampoco el pedido número 912345678",
        "naročilo št. 040123456 ni prišlo",
        "encomenda nº 912345678 atrasada",
        "#912345678",
        "tracking 1Z999AA10123456784",
        "ISBN 978-3-16-148410-0",
        "4111 1111 1111 1112 has a wrong check digit",
        "1234567890123452 passes Luhn and is no issuer's",
        "ES91 2100 0418 4502 0005 1333 has wrong check digits",
        "XX00 is not an account, nor is AB12",
        "in 2019, 2020, 2021 and 2022 it worked",
        "size 42, width 10, 100x200x300",
        "version 10.15.7.1 at 192.168.100.200",
    ],
)
def test_what_customers_write_about_is_left(text: str) -> None:
    assert ALL.text(text) == text


def test_a_policy_masks_what_it_names_and_no_more() -> None:
    text = "ana@example.com, +34 612 345 678, 4111111111111111, GB82WEST12345698765432"
    expected = {
        Pii.EMAIL: "[email], +34 612 345 678, 4111111111111111, GB82WEST12345698765432",
        Pii.PHONE: "ana@example.com, [phone], 4111111111111111, GB82WEST12345698765432",
        Pii.CARD: "ana@example.com, +34 612 345 678, [card], GB82WEST12345698765432",
        Pii.IBAN: "ana@example.com, +34 612 345 678, 4111111111111111, [iban]",
    }
    assert {kind: Masker((kind,)).text(text) for kind in Pii} == expected
    assert Masker(()).text(text) == text
    assert Masker(kinds_of("phone, email")).text(text) == "[email], [phone], 4111111111111111, GB82WEST12345698765432"


def test_national_numbers_are_those_of_the_regions_told() -> None:
    text = "040 123 456 or +386 40 123 456"
    assert Masker((Pii.PHONE,), ("SI",)).text(text) == "[phone] or [phone]"
    assert Masker((Pii.PHONE,), ()).text(text) == "040 123 456 or [phone]"


def test_a_policy_that_cannot_be_read_is_told() -> None:
    assert kinds_of("") == ()
    with pytest.raises(ValueError, match="not ssn"):
        kinds_of("email,ssn")
    with pytest.raises(ValueError, match="not Spain"):
        regions_of("ES,Spain")


@given(st.text(alphabet="a@.+ 0123456789-()ESč", max_size=80))
def test_masking_again_changes_nothing(text: str) -> None:
    once = ALL.text(text)
    assert ALL.text(once) == once


@pytest.mark.parametrize(
    "piece", ["123 456 789 ", "9", "ES91 ", "a.b", "4111 1111 1111 ", "a@", "+34 ", "(040) 1-2/3.4 ", "a@b.", "@"]
)
def test_no_text_takes_long(piece: str) -> None:
    text = (piece * MAX_VERBATIM_BYTES)[:MAX_VERBATIM_BYTES]
    started = time.process_time()
    ALL.text(text)
    assert time.process_time() - started < 2.0


# -- what is recorded ----------------------------------------------------------------------------------------------


def given_words(text: str) -> Interaction:
    return Interaction.from_proto(interaction(1, text=text))


def command(text: str, masker: Masker) -> RecordInteraction:
    return RecordInteraction.of(given_words(text), NOW, mask=masker.interaction)


def test_what_is_recorded_is_masked_and_so_is_its_digest() -> None:
    masked = command("I am ana@example.com", ALL)
    assert masked.interaction.verbatim == Verbatim(text="I am [email]")
    assert masked.digest == command("I am [email]", ALL).digest
    assert masked.digest == command("I am bor@example.com", ALL).digest


def test_a_repetition_is_one_whether_or_not_it_was_masked_the_first_time() -> None:
    history = History()
    for before, again in ((ALL, ALL), (Masker(()), ALL), (Masker((Pii.PHONE,)), Masker((Pii.PHONE,)))):
        first = command("I am ana@example.com", before)
        (event,) = history.decide(first, history.initial())
        state = history.evolve(history.initial(), event)
        repeated = command("I am ana@example.com", again)
        assert history.decide(repeated, state) == []
        assert repeated.as_recorded(state).cause == first.cause
    with pytest.raises(DiffersError):
        history.decide(command("I am somebody else", ALL), state)


def test_what_is_refused_is_kept_masked_too() -> None:
    message = interaction_pb2.Interaction(verbatim=interaction_pb2.Verbatim(text="I am ana@example.com"))
    assert keep(message, ALL).interaction.verbatim == Verbatim(text="I am [email]")
    too_long = interaction_pb2.Interaction(verbatim=interaction_pb2.Verbatim(text="ana@example.com " * 2000))
    kept = keep(too_long, ALL).interaction.verbatim
    assert kept is not None
    assert kept.text.startswith("[email] [email]")
    assert "ana@example.com" not in kept.text
