"""What the fields of a request must hold, every broken rule told at once."""

import re

from services.foundation.errors import InvalidError, Violation

#: Lengths in characters.
MAX_ID = 128
MAX_CUSTOMER_ID = 256
MAX_TITLE = 200
MAX_REASON = 1_024
MAX_REASONS = 20
MAX_NOTE = 4_096

#: Unicode category Cc.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


class Rules:
    """Collects every rule that the fields of a request break."""

    def __init__(self) -> None:
        self._violations: list[Violation] = []

    def require(self, holds: bool, field: str, rule: str) -> None:  # noqa: FBT001 - the condition comes first
        if not holds:
            self._violations.append(Violation(field, rule))

    def text(self, field: str, value: str, longest: int, *, required: bool = False, lines: bool = False) -> None:
        """Ask for at most `longest` characters, none of them a control character (`lines`: but for line breaks)."""
        self.require(not required or bool(value.strip()), field, "required")
        self.require(len(value) <= longest, field, f"at most {longest:,} characters")
        checked = value.replace("\n", "").replace("\t", "") if lines else value
        self.require(not _CONTROL.search(checked), field, "no control characters")

    def who_and_request(self, actor: str, request_id: str) -> None:
        self.text("actor", actor, MAX_ID, required=True)
        self.text("request_id", request_id, MAX_ID, required=True)

    def enforce(self) -> None:
        """Raise InvalidError with everything broken so far."""
        if self._violations:
            raise InvalidError(self._violations)


def cut(text: str, longest: int) -> str:
    """Return `text` on one line and within its limit, for where nobody is there to shorten it."""
    clean = _CONTROL.sub(" ", text).strip()
    return clean if len(clean) <= longest else clean[: longest - 1] + "…"
