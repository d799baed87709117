"""Business time: hours, holidays and changes to summer time."""

from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recorrido.actions.v1.events import (
    Calendar,
    DeadlineKind,
    EscalationStep,
    Obligation,
    OpeningHours,
    Period,
    ServiceLevel,
    Weekday,
)
from services.actions.domain.calendars import BusinessTime, check_calendar
from services.actions.domain.deadlines import by_hand, scheduled
from services.foundation.errors import InvalidError
from services.foundation.rules import Rules

LJUBLJANA = ZoneInfo("Europe/Ljubljana")
WORKDAYS = tuple(Weekday)[1:6]


def office(**fields: Any) -> Calendar:
    given: dict[str, Any] = {
        "time_zone": "Europe/Ljubljana",
        "hours": (OpeningHours(days=WORKDAYS, opens="09:00", closes="17:00"),),
        "holidays_country": "SI",
    }
    return Calendar(**{**given, **fields})


def at(text: str, zone: ZoneInfo = LJUBLJANA) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=zone).astimezone(UTC)


def later(start: str, days: int = 0, minutes: int = 0, calendar: Calendar | None = None) -> datetime:
    time = BusinessTime(office() if calendar is None else calendar)
    return time.later(at(start), Period(days=days, minutes=minutes))


@pytest.mark.parametrize(
    ("start", "days", "minutes", "expected"),
    [
        # 2026-03-02 is a Monday.
        ("2026-03-02 10:00", 0, 60, "2026-03-02 11:00"),
        ("2026-03-02 16:30", 0, 60, "2026-03-03 09:30"),
        ("2026-03-02 03:00", 0, 60, "2026-03-02 10:00"),
        ("2026-03-02 17:00", 0, 60, "2026-03-03 10:00"),
        ("2026-03-06 16:30", 0, 60, "2026-03-09 09:30"),
        ("2026-03-07 12:00", 0, 8 * 60, "2026-03-09 17:00"),
        ("2026-03-02 10:00", 0, 40 * 60, "2026-03-09 10:00"),
        ("2026-03-02 10:00", 2, 0, "2026-03-04 10:00"),
        ("2026-03-05 10:00", 2, 30, "2026-03-09 10:30"),
        ("2026-03-07 12:00", 1, 0, "2026-03-10 09:00"),
        # Christmas and Independence Day of Slovenia fall on a Friday and a Saturday.
        ("2026-12-24 16:00", 0, 120, "2026-12-28 10:00"),
        ("2026-12-24 16:00", 1, 0, "2026-12-28 16:00"),
    ],
)
def test_business_time_goes_on_where_people_work(start: str, days: int, minutes: int, expected: str) -> None:
    assert later(start, days, minutes) == at(expected)


def test_exceptions_close_and_open_days() -> None:
    calendar = office(closed_on=("2026-03-03",), open_on=("2026-12-25",))
    assert later("2026-03-02 16:30", minutes=60, calendar=calendar) == at("2026-03-04 09:30")
    assert later("2026-12-24 16:00", minutes=120, calendar=calendar) == at("2026-12-25 10:00")


def test_holidays_of_a_part_of_a_country() -> None:
    # The sixth of January is a holiday in Bavaria, and not in Berlin.
    for part, expected in (("BY", "2026-01-07 09:30"), ("BE", "2026-01-06 09:30")):
        calendar = office(time_zone="Europe/Berlin", holidays_country="DE", holidays_subdivision=part)
        assert later("2026-01-05 16:30", minutes=60, calendar=calendar) == at(expected)


def test_a_lunch_break_is_no_business_time() -> None:
    hours = (
        OpeningHours(days=WORKDAYS, opens="09:00", closes="12:00"),
        OpeningHours(days=WORKDAYS, opens="13:00", closes="17:00"),
    )
    assert later("2026-03-02 11:30", minutes=60, calendar=office(hours=hours)) == at("2026-03-02 13:30")


@pytest.mark.parametrize(
    ("start", "minutes", "expected"),
    [
        # The night to 29 March 2026 has no hour from two to three, that to 25 October has it twice.
        ("2026-03-28 23:00", 5 * 60, "2026-03-29 05:00"),
        ("2026-10-24 23:00", 5 * 60, "2026-10-25 03:00"),
        ("2026-03-28 12:00", 24 * 60, "2026-03-29 13:00"),
        ("2026-10-24 12:00", 24 * 60, "2026-10-25 11:00"),
    ],
)
def test_around_the_clock_an_hour_is_an_hour(start: str, minutes: int, expected: str) -> None:
    calendar = Calendar(time_zone="Europe/Ljubljana")
    assert later(start, minutes=minutes, calendar=calendar) == at(expected)


def test_opening_hours_and_days_keep_the_wall_time_over_a_change_to_summer_time() -> None:
    # Friday to Monday: a business day later it is the same wall time, an hour less on the time line.
    assert later("2026-03-27 10:00", days=1) == at("2026-03-30 10:00")
    assert later("2026-03-27 10:00", days=1) - at("2026-03-27 10:00") == timedelta(hours=71)
    assert later("2026-10-23 10:00", days=1) - at("2026-10-23 10:00") == timedelta(hours=73)
    assert later("2026-03-27 16:30", minutes=60) == at("2026-03-30 09:30")


def test_hours_in_the_night_of_the_change_are_counted_as_they_pass() -> None:
    nights = (OpeningHours(days=tuple(Weekday)[1:], opens="01:00", closes="04:00"),)
    calendar = office(hours=nights, holidays_country="")
    # Two hours are worked in the night that has one less, four in the one that has one more.
    assert later("2026-03-29 01:00", minutes=120, calendar=calendar) == at("2026-03-29 04:00")
    assert later("2026-10-25 01:00", minutes=240, calendar=calendar) == at("2026-10-25 04:00")


def test_hours_within_the_hour_that_is_taken_away_are_none() -> None:
    """In the night to 2026-03-29 the clock goes from 02:00 to 03:00."""
    hours = (
        OpeningHours(days=(Weekday.SUNDAY,), opens="02:30", closes="03:00"),
        OpeningHours(days=(Weekday.SUNDAY,), opens="09:00", closes="10:00"),
    )
    night = office(hours=hours, holidays_country="")
    assert later("2026-03-29 00:00", minutes=20, calendar=night) == at("2026-03-29 09:20")
    assert BusinessTime(night).earlier(at("2026-03-29 09:10"), Period(minutes=20)) == at("2026-03-22 09:50")


def test_who_works_on_one_weekday_may_except_it_for_years() -> None:
    sundays = [datetime(2026, 3, 1, tzinfo=UTC) + timedelta(weeks=week) for week in range(1_000)]
    hours = (OpeningHours(days=(Weekday.SUNDAY,), opens="09:00", closes="17:00"),)
    closed = tuple(f"{day:%Y-%m-%d}" for day in sundays)
    seldom = office(hours=hours, closed_on=closed, holidays_country="")
    assert later("2026-03-01 12:00", minutes=60, calendar=seldom) == at("2045-04-30 10:00")


def test_without_a_calendar_it_is_around_the_clock() -> None:
    start = datetime(2026, 3, 28, 23, tzinfo=UTC)
    assert BusinessTime(None).later(start, Period(days=2, minutes=90)) == start + timedelta(days=2, minutes=90)


moments = st.datetimes(datetime(2025, 1, 1), datetime(2028, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001 - Hypothesis adds it
CALENDARS = [office(), Calendar(time_zone="Europe/Ljubljana"), Calendar(time_zone="America/Sao_Paulo")]


@settings(max_examples=200, deadline=None)
@given(moments, st.integers(0, 5_000), st.integers(1, 5_000), st.sampled_from(CALENDARS))
def test_business_minutes_add_up_and_can_be_taken_back(
    start: datetime, first: int, second: int, calendar: Calendar
) -> None:
    time = BusinessTime(calendar)
    middle = time.later(start, Period(minutes=first))
    end = time.later(start, Period(minutes=first + second))
    assert start <= middle < end
    assert time.later(middle, Period(minutes=second)) == end
    back = time.earlier(end, Period(minutes=second))
    # The same up to hours in which nobody works: both are followed by the same business time.
    assert time.later(back, Period(minutes=second)) == end


# -- what is no calendar -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "field", "rule"),
    [
        ({"time_zone": "Ljubljana"}, "calendar.time_zone", "an IANA time zone, such as Europe/Ljubljana"),
        ({"holidays_country": "XX"}, "calendar.holidays_country", "a country code of ISO 3166-1, such as SI"),
        ({"holidays_subdivision": "BY"}, "calendar.holidays_subdivision", "one of none"),
        ({"closed_on": ("24.12.2026",)}, "calendar.closed_on[0]", "a date, such as 2026-12-24"),
        ({"hours": (OpeningHours(opens="09:00", closes="17:00"),)}, "calendar.hours[0].days", "required"),
        (
            {"hours": (OpeningHours(days=WORKDAYS, opens="17:00", closes="09:00"),)},
            "calendar.hours[0].closes",
            "later than opens",
        ),
        (
            {"hours": (OpeningHours(days=WORKDAYS, opens="9", closes="17:00"),)},
            "calendar.hours[0].opens",
            "a wall time, such as 09:00",
        ),
        (
            {
                "hours": (
                    OpeningHours(days=WORKDAYS, opens="09:00", closes="13:00"),
                    OpeningHours(days=WORKDAYS[:1], opens="12:00", closes="17:00"),
                )
            },
            "calendar.hours",
            "hours of MONDAY that do not overlap",
        ),
    ],
)
def test_what_is_wrong_with_a_calendar_is_told(fields: dict[str, Any], field: str, rule: str) -> None:
    rules = Rules()
    check_calendar(rules, office(**fields), "calendar")
    with pytest.raises(InvalidError) as caught:
        rules.enforce()
    assert (field, rule) in {(v.field, v.rule) for v in caught.value.violations}


def test_a_good_calendar_is_none_of_that() -> None:
    rules = Rules()
    check_calendar(rules, office(closed_on=("2026-12-24",), open_on=("2026-12-25",)), "calendar")
    rules.enforce()


# -- deadlines -----------------------------------------------------------------------------------------------------


def test_a_service_level_comes_to_moments_in_business_time() -> None:
    level = ServiceLevel(
        accept_within=Period(minutes=120),
        resolve_within=Period(days=2),
        remind_before=Period(minutes=60),
        escalations=(
            EscalationStep(obligation=Obligation.ACCEPTANCE, after=Period(), to="lead"),
            EscalationStep(obligation=Obligation.RESOLUTION, after=Period(minutes=240), to="head", reassign=True),
        ),
    )
    found = scheduled(at("2026-03-05 16:00"), level, BusinessTime(office()))
    assert (found.accept_by, found.due_at) == (at("2026-03-06 10:00"), at("2026-03-09 16:00"))
    told = [(d.obligation.name[:3], d.kind, d.at, d.escalate_to) for d in found.deadlines]
    assert told == [
        ("ACC", DeadlineKind.DUE_SOON, at("2026-03-06 09:00"), ""),
        ("ACC", DeadlineKind.OVERDUE, at("2026-03-06 10:00"), ""),
        ("ACC", DeadlineKind.ESCALATION, at("2026-03-06 10:00"), "lead"),
        ("RES", DeadlineKind.DUE_SOON, at("2026-03-09 15:00"), ""),
        ("RES", DeadlineKind.OVERDUE, at("2026-03-09 16:00"), ""),
        ("RES", DeadlineKind.ESCALATION, at("2026-03-10 12:00"), "head"),
    ]
    assert len({d.deadline_id for d in found.deadlines}) == 6


def test_an_escalation_without_delay_does_not_wait_for_the_next_morning() -> None:
    step = EscalationStep(obligation=Obligation.ACCEPTANCE, after=Period(), to="lead")
    level = ServiceLevel(accept_within=Period(minutes=8 * 60), escalations=(step,))
    found = scheduled(at("2026-03-05 09:00"), level, BusinessTime(office()))
    assert [each.at for each in found.deadlines] == [at("2026-03-05 17:00")] * 2


def test_who_was_just_given_something_is_not_reminded_of_it() -> None:
    level = ServiceLevel(resolve_within=Period(minutes=30), remind_before=Period(minutes=60))
    (only,) = scheduled(at("2026-03-05 10:00"), level, BusinessTime(office())).deadlines
    assert only.kind is DeadlineKind.OVERDUE


def test_a_due_time_by_hand_is_told_when_a_fifth_is_left_or_a_day() -> None:
    start = at("2026-03-02 10:00")
    soon, _ = by_hand(start, start + timedelta(hours=10)).deadlines
    assert soon.at == start + timedelta(hours=8)
    soon, over = by_hand(start, start + timedelta(days=30)).deadlines
    assert (soon.at, over.at) == (start + timedelta(days=29), start + timedelta(days=30))
    assert by_hand(start, None).deadlines == ()
