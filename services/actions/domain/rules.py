"""Limits of what is said of an action."""

from services.foundation.rules import MAX_NAME, on_one_line

#: Lengths in characters.
MAX_ID = MAX_NAME
MAX_TITLE = 200
MAX_REASON = 1_024
MAX_REASONS = 20
MAX_NOTE = 4_096


def cut(text: str, longest: int) -> str:
    """Return `text` on one line and within its limit, for where nobody is there to shorten it."""
    clean = on_one_line(text)
    return clean if len(clean) <= longest else clean[: longest - 1] + "…"
