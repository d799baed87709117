"""Ids that a question gives and nobody has: the one that was meant is among those that one slip makes of it."""

from hypothesis import given
from hypothesis import strategies as st

from services.journey.domain.naming import slips

IDS = st.text("ab01-_", min_size=2, max_size=12)


@given(IDS, st.integers(0, 11), st.sampled_from("ab01-_"))
def test_what_was_meant_is_one_slip_away(meant: str, at: int, letter: str) -> None:
    at %= len(meant) - 1
    slipped = {
        meant[:at] + meant[at + 1 :],
        meant[:at] + letter + meant[at + 1 :],
        meant[:at] + letter + meant[at:],
        meant[:at] + meant[at + 1] + meant[at] + meant[at + 2 :],
        meant.upper(),
    }
    assert all(meant in slips(each) for each in slipped - {meant})


def test_two_slips_are_another_id_and_long_texts_are_left_alone() -> None:
    assert "sample" not in slips("smapel")
    assert slips("x" * 65) == set()
