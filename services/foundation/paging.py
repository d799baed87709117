"""Opaque page tokens: where the next page begins, and which question it belongs to."""

import base64
from collections.abc import Sequence
from hashlib import blake2b
from typing import Annotated, TypeVar

import msgspec

from services.foundation.errors import InvalidError, Violation

PlaceT = TypeVar("PlaceT")

#: Decodes tokens whose place is a position in the store.
POSITION = msgspec.json.Decoder(tuple[str, Annotated[int, msgspec.Meta(ge=-1, le=2**63 - 1)]])


def write_token(question: Sequence[str], place: object) -> str:
    """Return a token that leads back to `place`, for the same `question` only."""
    return base64.urlsafe_b64encode(msgspec.json.encode((_digest(question), place))).decode()


def read_token(token: str, question: Sequence[str], decoder: msgspec.json.Decoder[tuple[str, PlaceT]]) -> PlaceT:
    """Return the place that a token leads to.

    Raises:
        InvalidError: it is no token of ours, or belongs to another question.
    """
    try:
        digest, place = decoder.decode(base64.b64decode(token, altchars=b"-_", validate=True))
    except (ValueError, msgspec.MsgspecError):
        raise InvalidError([Violation("page_token", "a next_page_token, as it was given")]) from None
    if digest != _digest(question):
        raise InvalidError([Violation("page_token", "used with the filters it was given for")])
    return place


def _digest(question: Sequence[str]) -> str:
    return blake2b("\x1f".join(question).encode(), digest_size=8).hexdigest()
