"""Days that depend on the month: against a walk over all days, against cronsim, and against croniter."""

import calendar
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta

import pytest
from croniter import croniter
from cronsim import CronSim
from hypothesis import given, settings
from hypothesis import strategies as st

from conch.cron.features import derived_needs
from conch.cron.schedule import parse_schedule
from conch.cron.special_days import stand_in

START = datetime(2023, 12, 30, tzinfo=UTC)
NAMES = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")


def days_of(expression: str, count: int, start: datetime = START) -> list[date]:
    schedule, found, instant = parse_schedule(expression), list[date](), int(start.timestamp())
    while len(found) < count and (tick := schedule.next_after(instant)) is not None:
        found.append(datetime.fromtimestamp(tick, UTC).date())
        instant = tick
    return found


def month_of(day: date) -> list[date]:
    length = calendar.monthrange(day.year, day.month)[1]
    return [day.replace(day=number) for number in range(1, length + 1)]


def is_day(item: str, day: date) -> bool:
    """Whether a day is meant, worked out from all days of its month."""
    month = month_of(day)
    workdays = [other for other in month if other.isoweekday() <= 5]
    if item == "L":
        return day == month[-1]
    if item.startswith("L-"):
        return (month[-1] - day).days == int(item[2:])
    if item == "LW":
        return day == workdays[-1]
    if item.endswith("W"):
        number = int(item[:-1])
        if number > len(month):
            return False
        distance = min(abs(other.day - number) for other in workdays)
        return day in workdays and abs(day.day - number) == distance
    name, _, nth = item.partition("#") if "#" in item else (item[:-1], "", "-1")
    weekday = NAMES.index(name) if name in NAMES else int(name) % 7
    same = [other for other in month if other.isoweekday() % 7 == weekday]
    return day in same and same.index(day) == (len(same) - 1 if nth == "-1" else int(nth) - 1)


def walk(item: str, start: date) -> Iterator[date]:
    day = start
    while True:
        day += timedelta(days=1)
        if is_day(item, day):
            yield day


MONTH_DAYS = ["L", "L-1", "L-3", "L-30", "LW", *(f"{n}W" for n in range(1, 32))]
WEEK_DAYS = ["5L", "0L", "7L", "sunL", "satL", "5#2", "0#1", "7#1", "fri#5", "mon#3", "sat#4"]


@pytest.mark.parametrize("item", [*MONTH_DAYS, *WEEK_DAYS])
def test_they_are_the_days_that_they_say(item: str) -> None:
    """Sixty of each, through leap years, in small letters, too."""
    is_weekday = item in WEEK_DAYS
    days = walk(item, START.date() - timedelta(days=1))
    expected = [next(days) for _ in range(60)]
    for text in {item, item.upper(), item.lower()}:
        assert days_of(f"0 12 * * {text}" if is_weekday else f"0 12 {text} * *", 60) == expected


@pytest.mark.parametrize(
    "fields",
    ["L * *", "LW * *", "1,L * *", "L * 5", "15 * 5L", "* * 5#2", "* * 1#1,3#3", "*/2 * 1#2", "L 2 *", "1,15 * 0L"],
)
def test_cronsim_agrees(fields: str) -> None:
    """In lists, with the other day field, in some months."""
    sim = CronSim(f"30 6 {fields}", START)
    assert days_of(f"30 6 {fields}", 50) == [next(sim).date() for _ in range(50)]


@pytest.mark.parametrize(("ours", "theirs"), [("L * *", "L * *"), ("* * 5#3", "* * 5#3"), ("* * 2L", "* * L2")])
def test_croniter_agrees(ours: str, theirs: str) -> None:
    """Where it knows them, in its spelling."""
    other = croniter(f"0 0 {theirs}", START)
    assert days_of(f"0 0 {ours}", 50) == [other.get_next(datetime).date() for _ in range(50)]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    st.sampled_from(["L", "L-2", "LW", "1W", "15W", "31W"]),
    st.sampled_from(["*", "5L", "1#1", "mon,3#2"]),
    st.integers(0, 3 * 10**9),
    st.integers(0, 10**8),
)
def test_a_count_is_that_of_the_ticks(day: str, weekday: str, first: int, length: int) -> None:
    """Counting visits no ticks; walking does."""
    schedule = parse_schedule(f"0 3 {day} * {weekday}")
    ticks, instant = 0, first - 1
    while (tick := schedule.next_after(instant)) is not None and tick <= first + length:
        ticks, instant = ticks + 1, tick
    assert schedule.count_between(first, first + length) == ticks


@pytest.mark.parametrize(
    ("expression", "special"),
    [
        ("0 0 L * *", True),
        ("0 0 1,15w * *", True),
        ("0 0 * * fri#2", True),
        ("0 0 * jul fri", False),
        ("@daily", False),
    ],
)
def test_a_daemon_must_know_them(expression: str, special: bool) -> None:
    """Earlier releases cannot read such a job, and it says what it needs."""
    assert stand_in(expression) is special
    assert derived_needs({}, [expression]) == (["special_days"] if special else [])
