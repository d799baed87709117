"""Business time: what is "two business days and four hours later" where people keep hours and holidays.

Business minutes are real minutes: they are counted on the time line, so that the hour which a change to summer time
takes away is not worked, and the one that it gives back is. A business day later is the same wall time on the next
day that is worked.
"""

import re
from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from itertools import pairwise
from zoneinfo import ZoneInfo, available_timezones

import holidays

from recorrido.actions.v1.events import Calendar, Period, Weekday
from services.actions.domain.rules import MAX_ID
from services.foundation.rules import Rules

MAX_DAYS = 366
MAX_MINUTES = 366 * 24 * 60
MAX_EXCEPTIONS = 1_000
_WALL_TIME = re.compile(r"([01]\d|2[0-3]):[0-5]\d")
#: Further than any run of closed days can reach that a valid calendar holds: who works on one weekday only may except
#: so many weeks.
_HORIZON_DAYS = 7 * MAX_EXCEPTIONS + 400
_ONE_DAY = timedelta(days=1)

#: An open stretch of the time line, UTC.
Span = tuple[datetime, datetime]


class BusinessTime:
    """Reckons with one calendar; without one, around the clock in UTC. Moments are UTC."""

    def __init__(self, calendar: Calendar | None) -> None:
        calendar = calendar or Calendar()
        self._zone = ZoneInfo(calendar.time_zone or "UTC")
        self._hours: dict[int, list[tuple[time, time | None]]] = {}
        for hours in calendar.hours:
            for day in hours.days:
                closes = None if hours.closes == "24:00" else time.fromisoformat(hours.closes)
                # Weekdays count from 1 in the contract, from 0 here.
                self._hours.setdefault(day.number - 1, []).append((time.fromisoformat(hours.opens), closes))
        self._around_the_clock = not calendar.hours
        self._closed = {date.fromisoformat(day) for day in calendar.closed_on}
        self._open = {date.fromisoformat(day) for day in calendar.open_on}
        self._holidays = (
            holidays.country_holidays(calendar.holidays_country, subdiv=calendar.holidays_subdivision or None)
            if calendar.holidays_country
            else None
        )
        self._spans_of = lru_cache(maxsize=4_096)(self._reckon_spans)

    def later(self, start: datetime, period: Period) -> datetime:
        """Return the moment `period` of business time after `start`; a moment in business time."""
        at = self._opening(start)
        for _ in range(period.days):
            at = self._same_time(at, 1)
        left = timedelta(minutes=period.minutes)
        for opens, closes in self._spans_from(at):
            begin = max(at, opens)
            if left <= closes - begin:
                return begin + left
            left -= closes - begin
        raise AssertionError("a calendar that never opens")  # validation asks for an hour a week

    def earlier(self, end: datetime, period: Period) -> datetime:
        """Return the moment from which on `period` of business time is left until `end`."""
        at = end
        for _ in range(period.days):
            at = self._same_time(at, -1)
        left = timedelta(minutes=period.minutes)
        for opens, closes in self._spans_until(at):
            finish = min(at, closes)
            if left <= finish - opens:
                return finish - left
            left -= finish - opens
        raise AssertionError("a calendar that never opens")

    def _same_time(self, at: datetime, step: int) -> datetime:
        local = at.astimezone(self._zone)
        day = local.date() + step * _ONE_DAY
        while not self._spans_of(day):
            day += step * _ONE_DAY
        moved = datetime.combine(day, local.time(), self._zone).astimezone(UTC)
        first, last = self._spans_of(day)[0][0], self._spans_of(day)[-1][1]
        return min(max(moved, first), last)

    def _opening(self, start: datetime) -> datetime:
        opens, _ = next(self._spans_from(start))
        return max(start, opens)

    def _spans_from(self, start: datetime) -> Iterator[Span]:
        """Yield what is open behind `start`; the first may have begun before."""
        day = start.astimezone(self._zone).date()
        for number in range(_HORIZON_DAYS):
            for span in self._spans_of(day + number * _ONE_DAY):
                if span[1] > start:
                    yield span

    def _spans_until(self, end: datetime) -> Iterator[Span]:
        """Yield what is open before `end`, last first; the first may end after."""
        day = end.astimezone(self._zone).date()
        for number in range(_HORIZON_DAYS):
            for span in reversed(self._spans_of(day - number * _ONE_DAY)):
                if span[0] < end:
                    yield span

    def _reckon_spans(self, day: date) -> Sequence[Span]:
        if day in self._closed or (self._holidays is not None and day in self._holidays and day not in self._open):
            return ()
        hours = [(time.min, None)] if self._around_the_clock else self._hours.get(day.weekday(), ())
        spans = ((self._moment(day, opens), self._closing(day, closes)) for opens, closes in hours)
        # Hours that begin within the hour that a change to summer time takes away may end before they begin.
        return sorted((opens, closes) for opens, closes in spans if opens < closes)

    def _closing(self, day: date, closes: time | None) -> datetime:
        return self._moment(day + _ONE_DAY, time.min) if closes is None else self._moment(day, closes)

    def _moment(self, day: date, at: time) -> datetime:
        # A wall time that a change to summer time leaves out is read with the offset before it (PEP 495, fold=0).
        return datetime.combine(day, at, self._zone).astimezone(UTC)


def check_calendar(rules: Rules, calendar: Calendar, at: str) -> None:
    """Note everything that is wrong with a calendar; `at` is its place."""
    rules.require(
        calendar.time_zone in available_timezones(),
        f"{at}.time_zone",
        "an IANA time zone, such as Europe/Ljubljana",
    )
    for index, hours in enumerate(calendar.hours):
        place = f"{at}.hours[{index}]"
        rules.require(bool(hours.days), f"{place}.days", "required")
        rules.require(Weekday.UNSPECIFIED not in hours.days, f"{place}.days", "days of the week")
        opens, closes = _WALL_TIME.fullmatch(hours.opens), _WALL_TIME.fullmatch(hours.closes)
        rules.require(bool(opens), f"{place}.opens", "a wall time, such as 09:00")
        rules.require(bool(closes) or hours.closes == "24:00", f"{place}.closes", "a wall time, such as 17:00")
        rules.require(hours.opens < hours.closes, f"{place}.closes", "later than opens")
    _check_overlaps(rules, calendar, at)
    _check_holidays(rules, calendar, at)
    for name, days in (("closed_on", calendar.closed_on), ("open_on", calendar.open_on)):
        rules.require(len(days) <= MAX_EXCEPTIONS, f"{at}.{name}", f"at most {MAX_EXCEPTIONS:,}")
        for index, day in enumerate(days[:MAX_EXCEPTIONS]):
            rules.require(_is_date(day), f"{at}.{name}[{index}]", "a date, such as 2026-12-24")


def check_period(rules: Rules, period: Period | None, at: str, *, positive: bool = True) -> None:
    if period is None:
        return
    rules.require(0 <= period.days <= MAX_DAYS, f"{at}.days", f"between 0 and {MAX_DAYS}")
    rules.require(0 <= period.minutes <= MAX_MINUTES, f"{at}.minutes", f"between 0 and {MAX_MINUTES:,}")
    rules.require(not positive or period.days > 0 or period.minutes > 0, at, "longer than nothing")


def _check_overlaps(rules: Rules, calendar: Calendar, at: str) -> None:
    by_day: dict[Weekday, list[tuple[str, str]]] = {}
    for hours in calendar.hours:
        for day in hours.days:
            by_day.setdefault(day, []).append((hours.opens, hours.closes))
    for day, spans in by_day.items():
        ordered = sorted(spans)
        apart = all(before[1] <= after[0] for before, after in pairwise(ordered))
        rules.require(apart, f"{at}.hours", f"hours of {day.name} that do not overlap")


def _check_holidays(rules: Rules, calendar: Calendar, at: str) -> None:
    rules.text(f"{at}.holidays_subdivision", calendar.holidays_subdivision, MAX_ID)
    supported = holidays.list_supported_countries()
    if calendar.holidays_country:
        known = calendar.holidays_country in supported
        rules.require(known, f"{at}.holidays_country", "a country code of ISO 3166-1, such as SI")
        if known and calendar.holidays_subdivision:
            parts = supported[calendar.holidays_country]
            told = ", ".join(parts) or "none"
            rules.require(calendar.holidays_subdivision in parts, f"{at}.holidays_subdivision", f"one of {told}")
    else:
        rules.require(not calendar.holidays_subdivision, f"{at}.holidays_country", "required with a subdivision")


def _is_date(text: str) -> bool:
    try:
        date.fromisoformat(text)
    except ValueError:
        return False
    return len(text) == len("2026-12-24")
