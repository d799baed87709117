"""Times as files write them."""

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from decimal import Decimal, InvalidOperation
from zoneinfo import ZoneInfo

Reader = Callable[[str], datetime]

_OFFSET = re.compile(r"([+-])(\d{2}):?(\d{2})")
_DATE_ONLY = re.compile(r"\d{4}-?\d{2}-?\d{2}|\d{4}-?W\d{2}(-?\d)?")
_FAR = Decimal(10**18)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def offset(zone: str) -> timezone | None:
    """Return the zone that is written as an offset from UTC, such as +02:00."""
    found = _OFFSET.fullmatch(zone)
    if not found:
        return None
    distance = timedelta(hours=int(found[2]), minutes=int(found[3]))
    return timezone(-distance if found[1] == "-" else distance) if distance < timedelta(days=1) else None


def reader(pattern: str, zone: str | None) -> Reader:
    """Return a function that reads times as UTC.

    Of an hour that a clock shows twice, when summer time ends, the first is taken.

    Args:
        pattern: `iso`, `unix` and `unix_ms` (since 1970, in seconds or milliseconds), or as strptime has it.
        zone: of times that tell no offset of their own.

    The function raises:
        ValueError: the text is no such time, or tells no offset and there is no zone, or no clock there showed it.
    """
    local = (offset(zone) or ZoneInfo(zone)) if zone else None
    if pattern in {"unix", "unix_ms"}:
        unit = 1_000_000 if pattern == "unix" else 1_000
        return lambda text: _since_1970(text, unit)
    if pattern == "iso":
        return lambda text: _placed(_iso(text), local, text)
    return lambda text: _placed(_by_pattern(text, pattern), local, text)


def _since_1970(text: str, unit_us: int) -> datetime:
    unit = "seconds" if unit_us == 1_000_000 else "milliseconds"
    try:
        count = Decimal(text)
        # To make a whole number of a million digits would take its time; no time is that far away.
        return _EPOCH + timedelta(microseconds=int(min(max(count, -_FAR), _FAR) * unit_us))
    except (InvalidOperation, OverflowError, ValueError):
        raise ValueError(f"{text!r:.60} is no number of {unit} since 1970") from None


def _iso(text: str) -> datetime:
    if _DATE_ONLY.fullmatch(text):
        raise ValueError(f"{text!r} is a day, not a time; state format: '%Y-%m-%d' to take its first moment")
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{text!r:.60} is no ISO 8601 time such as 2026-09-30T12:00:00Z") from None


def _by_pattern(text: str, pattern: str) -> datetime:
    try:
        # Without %z the zone is added below, where it can be checked.
        return datetime.strptime(text, pattern)  # noqa: DTZ007
    except ValueError:
        raise ValueError(f"{text!r:.60} does not match {pattern}") from None


def _placed(found: datetime, local: tzinfo | None, text: str) -> datetime:
    try:
        if found.tzinfo is not None:
            return found.astimezone(UTC)
        if local is None:
            raise ValueError(f"{text!r:.60} tells no offset from UTC; state the file's zone")
        moment = found.replace(tzinfo=local).astimezone(UTC)
        if moment.astimezone(local).replace(tzinfo=None) != found:
            raise ValueError(f"{text!r} was shown by no clock: summer time began")
    except OverflowError:
        raise ValueError(f"{text!r:.60} lies outside of the years 1 to 9999") from None
    return moment
