"""Where version 2 of the model sees sentences begin and end."""

import time
from importlib.util import module_from_spec, spec_from_file_location
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.triton.install import MODELS


def _served() -> Any:
    spec = spec_from_file_location("sentences", MODELS / "feedback" / "2" / "sentences.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


spans = _served().spans


def split(text: str, most: int = 64) -> list[str]:
    return [text[start:end] for start, end in spans(text, most)]


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One only", ["One only"]),
        ("Great shop! But slow. Never again?", ["Great shop!", "But slow.", "Never again?"]),
        ("lovely staff. shame about the queue", ["lovely staff.", "shame about the queue"]),
        ("It cost 3.50 at Dr. Novak's, i.e. too much.", ["It cost 3.50 at Dr. Novak's, i.e. too much."]),
        ("Die Lieferung kam am 3. mai an. Danke!", ["Die Lieferung kam am 3. mai an.", "Danke!"]),
        ("Sem v 2. nadstropju. Dvigala ni.", ["Sem v 2. nadstropju.", "Dvigala ni."]),
        ("O Sr. Silva ajudou. Nota 10. Volto!", ["O Sr. Silva ajudou.", "Nota 10.", "Volto!"]),
        ("¡Genial! 😍 ¿Cuándo llega?", ["¡Genial!", "😍 ¿Cuándo llega?"]),
        ("Wait... what?! No way", ["Wait...", "what?!", "No way"]),
        ('She said "no." Then left.', ['She said "no."', "Then left."]),
        ("first line\nsecond line\r\n\r\nthird", ["first line", "second line", "third"]),
        ("配送が遅い。もう買わない。", ["配送が遅い。", "もう買わない。"]),
        ("see www.example.com for more. thanks", ["see www.example.com for more.", "thanks"]),
        ("...", []),
        (" \n ", []),
        ("", []),
        ("ok . . .", ["ok . . ."]),
    ],
)
def test_sentences(text: str, sentences: list[str]) -> None:
    assert split(text) == sentences


@pytest.mark.parametrize(
    "text",
    [" " * 16384, "a" + "\t" * 16382 + "a", "." * 16384, "?" * 16383 + "a", "…" * 5461, "." * 8192 + ")" * 8191 + "a"],
    ids=["spaces", "tabs", "stops", "marks", "ellipses", "brackets"],
)
def test_any_text_takes_time_by_its_length_alone(text: str) -> None:
    """A backtracking search takes seconds for each of these, during which the process does nothing else."""
    began = time.process_time()
    spans(text, 64)
    assert time.process_time() - began < 0.2


def test_no_more_than_asked_for() -> None:
    assert split("One. Two. Three.", most=2) == ["One.", "Two."]


@given(st.text(st.sampled_from("aB1 .!?\n\r…。😡\"'"), max_size=60))
def test_sentences_are_in_order_apart_and_hold_every_letter(text: str) -> None:
    found = spans(text, 1000)
    edges = [edge for span in found for edge in span]
    assert edges == sorted(edges)
    inside = "".join(text[start:end] for start, end in found)
    assert [each for each in inside if each.isalnum()] == [each for each in text if each.isalnum()]
