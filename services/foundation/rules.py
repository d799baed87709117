"""What the fields of a request must hold; one that breaks rules is refused with all of them."""

import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from enum import Enum
from typing import Any, Protocol, Self, TypeVar

from services.foundation.errors import InvalidError, Violation

#: Lengths in characters: of a customer's id, and of what names somebody or something else.
MAX_CUSTOMER_ID = 256
MAX_NAME = 128

TIME_RULE = "a valid timestamp, of the years 1 to 9999"

# C0 (which has NUL), DEL and C1; texts of several lines may hold tab, line feed and carriage return.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_CONTROL_IN_TEXT = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_SLUG = re.compile(r"[A-Za-z0-9_-]{1,64}")


class Numbered(Protocol):
    """An enumeration of the contracts, as `proto/generate.py` writes it."""

    @classmethod
    def from_number(cls, number: int) -> Self: ...

    @property
    def number(self) -> int: ...


EnumT = TypeVar("EnumT", bound=Numbered)
ChoiceT = TypeVar("ChoiceT", bound=Enum)


def text(field: str, value: str, most: int, *, required: bool = False, lines: bool = False) -> Sequence[Violation]:
    """Return what is wrong with a text of at most `most` characters; `lines`: of several lines."""
    if required and (not value or value.isspace()):
        return (Violation(field, f"required, 1 to {most:,} characters, not blank"),)
    if len(value) > most:
        too_long = Violation(field, f"at most {most:,} characters, has {len(value):,}")
        return (too_long, *control_characters(field, value, lines=lines))
    return control_characters(field, value, lines=lines)


def control_characters(field: str, value: str, *, lines: bool = False) -> Sequence[Violation]:
    """Return the first control character, if any; with `lines`, tab, line feed and carriage return are none."""
    # What can be printed holds no control character; asking that of a text is many times faster than the pattern.
    if value.isprintable():
        return ()
    if found := (_CONTROL_IN_TEXT if lines else _CONTROL).search(value):
        rule = "no control characters but tab, line feed and carriage return" if lines else "no control characters"
        return (Violation(field, f"{rule}, has U+{ord(found[0]):04X} at character {found.start()}"),)
    return ()


def on_one_line(value: str) -> str:
    """Return a text without control characters, for where nobody is there to mend it."""
    return _CONTROL.sub(" ", value).strip()


class Rules:
    """Collects every rule that a request breaks; `enforce` refuses it."""

    def __init__(self) -> None:
        self._broken: list[Violation] = []

    def refuse(self, field: str, rule: str) -> None:
        self._broken.append(Violation(field, rule))

    def require(self, holds: bool, field: str, rule: str) -> None:  # noqa: FBT001 - the condition comes first
        if not holds:
            self.refuse(field, rule)

    def add(self, broken: Iterable[Violation]) -> None:
        self._broken.extend(broken)

    def enforce(self) -> None:
        """Raise InvalidError with everything broken so far."""
        if self._broken:
            raise InvalidError(self._broken)

    def text(self, field: str, value: str, most: int, *, required: bool = False, lines: bool = False) -> str:
        """Ask for at most `most` characters, none of them a control character (`lines`: but for line breaks)."""
        self.add(text(field, value, most, required=required, lines=lines))
        return value

    def slug(self, field: str, value: str) -> str:
        """Ask for an id that can be a part of names."""
        self.require(bool(_SLUG.fullmatch(value)), field, "1 to 64 letters, digits, - and _")
        return value

    def who_and_request(self, actor: str, request_id: str) -> None:
        self.text("actor", actor, MAX_NAME, required=True)
        self.text("request_id", request_id, MAX_NAME, required=True)

    def time(self, message: Any, field: str, at: str = "") -> datetime | None:
        """Read a moment of a message, whose path is `at`, UTC; None where none is given."""
        if not message.HasField(field):
            return None
        try:
            found: datetime = getattr(message, field).ToDatetime(UTC)
        except (ValueError, OverflowError):
            self.refuse(f"{at}{field}", TIME_RULE)
            return None
        return found

    def known(self, field: str, kind: type[EnumT], number: int) -> EnumT:
        """Read a value of the contract; one of a newer contract must not silently mean none, or any."""
        value = kind.from_number(number)
        self.require(value.number == number, field, "one of the known values")
        return value

    def choice(self, field: str, kind: type[ChoiceT], number: int) -> ChoiceT | None:
        """Read a value of an enumeration of our own, whose numbers are those of the contract; 0: None."""
        try:
            return kind(number) if number else None
        except ValueError:
            self.refuse(field, "one of the known values")
            return None

    def size(self, field: str, value: int, *, default: int, most: int) -> int:
        """Read how many are wanted; 0: the default."""
        self.require(0 <= value <= most, field, f"between 0 and {most:,}")
        return value or default
