"""Outlines tell for sure what is not in a stream, and take no more than they may."""

from uuid import uuid4

from hypothesis import given
from hypothesis import strategies as st

from services.foundation.outlines import Outlines


class Sets:
    """A state is the set of its keys, a command its key."""

    def keys(self, state: set[str]) -> set[str]:
        return state

    def key(self, command: str) -> str:
        return command


@given(held=st.lists(st.sets(st.text(max_size=3), max_size=20), min_size=1), asked=st.text(max_size=3))
def test_what_is_held_always_concerns(held: list[set[str]], asked: str) -> None:
    outlines = Outlines(Sets(), 10_000)
    first = uuid4()
    outlines.keep("s", held[0], len(held[0]), first)
    assert outlines.end("s") == (len(held[0]), first)
    revision = len(held[0])
    for state in held[1:]:
        last = uuid4()
        outlines.extend("s", revision, state, revision + 1, last)
        revision += 1
        assert outlines.end("s") == (revision, last)
    assert all(outlines.concern("s", key) for state in held for key in state)
    # Among so few keys none shares the hash of another.
    assert outlines.concern("s", asked) == any(asked in state for state in held)


def test_what_does_not_follow_an_outline_leaves_it_as_it_is() -> None:
    outlines = Outlines(Sets(), 10_000)
    last = uuid4()
    outlines.keep("s", {"a"}, 4, last)
    outlines.extend("s", 3, {"b"}, 9, uuid4())
    outlines.extend("other", 4, {"b"}, 9, uuid4())
    assert (outlines.end("s"), outlines.end("other")) == ((4, last), None)
    assert not outlines.concern("s", "b")


def test_those_used_last_stay() -> None:
    outlines = Outlines(Sets(), 1_000)
    for name in "abc":
        outlines.keep(name, {"key"}, 0, uuid4())
    outlines.concern("a", "key")
    outlines.keep("d", {"key"}, 0, uuid4())
    assert [name for name in "abcd" if outlines.end(name)] == ["a", "c", "d"]
    outlines.forget("c")
    outlines.keep("e", {"key"}, 0, uuid4())
    assert [name for name in "abcde" if outlines.end(name)] == ["a", "d", "e"]
    outlines.keep("f", {str(number) for number in range(200)}, 0, uuid4())
    assert not any(map(outlines.end, "abcdef")), "one that is larger than all the room finds none"
