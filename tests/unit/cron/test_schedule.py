"""Cron expressions by tables: the grammar, both changes of the clock, `H` and `@every`."""

from collections import Counter
from datetime import datetime

import pytest

from conch.cron.schedule import parse_schedule
from tests.support.schedules import BERLIN, LORD_HOWE, NEW_YORK, ticks, unix


def minutes(expression: str, *, name: str | None = None) -> list[int]:
    """The minutes of one hour in which an expression fires."""
    schedule = parse_schedule(expression, name=name)
    return [minute for minute in range(60) if schedule.next_after(minute * 60 - 1) == minute * 60]


def hashed_hour(name: str) -> int:
    return int(ticks("0 H * * *", "2025-12-31 23:59", name=name, count=1)[0][11:13])


@pytest.mark.parametrize(
    ("expression", "after", "expected"),
    [
        ("* * * * *", "2026-03-01 12:00:00", ["2026-03-01 12:01", "2026-03-01 12:02", "2026-03-01 12:03"]),
        ("* * * * *", "2026-03-01 12:00:59", ["2026-03-01 12:01", "2026-03-01 12:02", "2026-03-01 12:03"]),
        ("5 4 * * *", "2026-03-01 04:05", ["2026-03-02 04:05", "2026-03-03 04:05", "2026-03-04 04:05"]),
        ("5 4 * * *", "2026-03-01 04:04:59", ["2026-03-01 04:05", "2026-03-02 04:05", "2026-03-03 04:05"]),
        (" \t0  0\t1 1 *\t ", "2026-03-01", ["2027-01-01 00:00", "2028-01-01 00:00", "2029-01-01 00:00"]),
        ("59 23 31 12 *", "2026-12-31 23:59", ["2027-12-31 23:59", "2028-12-31 23:59", "2029-12-31 23:59"]),
        ("0 0 * * *", "2026-12-30 00:00", ["2026-12-31 00:00", "2027-01-01 00:00", "2027-01-02 00:00"]),
        ("0 0 31 * *", "2026-01-31 00:00", ["2026-03-31 00:00", "2026-05-31 00:00", "2026-07-31 00:00"]),
        ("0 0 29 2 *", "2026-01-01", ["2028-02-29 00:00", "2032-02-29 00:00", "2036-02-29 00:00"]),
        ("0 0 29 2 *", "2095-01-01", ["2096-02-29 00:00", "2104-02-29 00:00", "2108-02-29 00:00"]),
        ("0 0 29 2 */7", "2040-01-01", ["2060-02-29 00:00", "2088-02-29 00:00", "2128-02-29 00:00"]),
        ("0 0 30,31 2,4 *", "2026-01-01", ["2026-04-30 00:00", "2027-04-30 00:00", "2028-04-30 00:00"]),
        ("0 12 * jan,JUL *", "2026-01-30 12:00", ["2026-01-31 12:00", "2026-07-01 12:00", "2026-07-02 12:00"]),
        ("0 12 1 Feb-apr *", "2026-01-01", ["2026-02-01 12:00", "2026-03-01 12:00", "2026-04-01 12:00"]),
        ("0 12 * * MON", "2026-03-01", ["2026-03-02 12:00", "2026-03-09 12:00", "2026-03-16 12:00"]),
        ("0 12 * * sat,wed", "2026-03-01", ["2026-03-04 12:00", "2026-03-07 12:00", "2026-03-11 12:00"]),
        ("05 004 1-31 1-12 *", "2026-03-01", ["2026-03-01 04:05", "2026-03-02 04:05", "2026-03-03 04:05"]),
    ],
)
def test_ticks_of_plain_expressions(expression: str, after: str, expected: list[str]) -> None:
    """Strictly later than the instant, over the ends of months and years, and leap days over 2100."""
    assert ticks(expression, after) == expected


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ("*/20", [0, 20, 40]),
        ("*/25", [0, 25, 50]),
        ("*/59", [0, 59]),
        ("*/60", [0]),
        ("*/999", [0]),
        ("10-30/5", [10, 15, 20, 25, 30]),
        ("10-29/5", [10, 15, 20, 25]),
        ("5/15", [5, 20, 35, 50]),
        ("59/15", [59]),
        ("7-7", [7]),
        ("7-7/2", [7]),
        ("0-59/30", [0, 30]),
        ("3,1,2,1-3", [1, 2, 3]),
        ("*,5", list(range(60))),
        ("5,*", list(range(60))),
        ("1-3,50-58/4,30", [1, 2, 3, 30, 50, 54, 58]),
    ],
)
def test_steps_ranges_and_lists(field: str, expected: list[int]) -> None:
    """`5/15` goes on to the end of the hour, and a range of one value is that value."""
    assert minutes(f"{field} * * * *") == expected


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ("7", "Sun"),
        ("0", "Sun"),
        ("sun", "Sun"),
        ("7-7", "Sun"),
        ("0-0", "Sun"),
        ("1-1", "Mon"),
        ("5-7", "Fri Sat Sun"),
        ("fri-sun", "Fri Sat Sun"),
        ("SAT-SUN", "Sat Sun"),
        ("7-2", "Mon Tue Sun"),
        ("sun-tue", "Mon Tue Sun"),
        ("0-7", "Mon Tue Wed Thu Fri Sat Sun"),
        ("1-7", "Mon Tue Wed Thu Fri Sat Sun"),
        ("1-7/3", "Mon Thu Sun"),
        ("1-7/2", "Mon Wed Fri Sun"),
        ("4-7/2", "Thu Sat"),
        ("2/2", "Tue Thu Sat"),
        ("7/3", "Wed Sat Sun"),
        ("*/2", "Tue Thu Sat Sun"),
        ("mon-fri", "Mon Tue Wed Thu Fri"),
        ("0,7,6", "Sat Sun"),
    ],
)
def test_days_of_the_week(field: str, expected: str) -> None:
    """Sunday is 0 and 7, in ranges too."""
    found = ticks(f"0 0 * * {field}", "2026-03-01 00:00", count=len(expected.split()))
    days = [datetime.fromisoformat(day) for day in found]
    assert all(datetime(2026, 3, 2) <= day <= datetime(2026, 3, 8) for day in days)
    assert " ".join(f"{day:%a}" for day in days) == expected


@pytest.mark.parametrize(
    ("days", "expected"),
    [
        ("13 * fri", [6, 13, 20, 27]),
        ("1,15 * mon", [1, 2, 9, 15, 16, 23, 30]),
        ("1-31 * mon", list(range(1, 32))),
        ("10 * 0-6", list(range(1, 32))),
        ("10 * 1,*", list(range(1, 32))),
        ("13 * *", [13]),
        ("* * fri", [6, 13, 20, 27]),
        ("*/2 * mon", [9, 23]),
        ("13 * */5", [13]),
        ("12 * */5", []),
        ("*/10 * *", [1, 11, 21, 31]),
        ("*,5 * mon", [2, 9, 16, 23, 30]),
        ("31 * mon", [2, 9, 16, 23, 30, 31]),
    ],
)
def test_day_of_month_or_day_of_week(days: str, expected: list[int]) -> None:
    """Either when both are restricted; both when one begins with `*`, as in Debian's cron."""
    schedule = parse_schedule(f"0 0 {days}")
    march = [
        day for day in range(1, 32) if schedule.next_after(unix(f"2026-03-{day:02}") - 1) == unix(f"2026-03-{day:02}")
    ]
    assert march == expected


def test_a_day_that_february_has_not_leaves_the_day_of_the_week() -> None:
    """Half of an expression may be impossible."""
    assert ticks("0 0 30 2 mon", "2026-02-10") == ["2026-02-16 00:00", "2026-02-23 00:00", "2027-02-01 00:00"]


@pytest.mark.parametrize(
    ("alias", "expected"),
    [
        ("@hourly", "2026-03-01 13:00"),
        ("@daily", "2026-03-02 00:00"),
        ("@midnight", "2026-03-02 00:00"),
        ("@weekly", "2026-03-08 00:00"),
        ("@monthly", "2026-04-01 00:00"),
        ("@yearly", "2027-01-01 00:00"),
        ("@annually", "2027-01-01 00:00"),
        (" @Daily\t", "2026-03-02 00:00"),
    ],
)
def test_aliases(alias: str, expected: str) -> None:
    """They mean what they mean in cron: nothing is hashed, whatever the job's name."""
    assert ticks(alias, "2026-03-01 12:00", count=1) == [expected]
    assert ticks(alias, "2026-03-01 12:00", count=1, name="backup") == [expected]


@pytest.mark.parametrize(
    ("expression", "zone", "after", "expected"),
    [
        # New York: 2026-03-08 02:00 to 03:00, 2026-11-01 02:00 back to 01:00
        ("30 2 * * *", NEW_YORK, "2026-03-07 02:30", ["2026-03-08 03:00:00-04", "2026-03-09 02:30:00-04"]),
        ("0,15,30 2 8 3 *", NEW_YORK, "2026-03-01", ["2026-03-08 03:00:00-04", "2027-03-08 02:00:00-05"]),
        ("0,30 2,3 * * *", NEW_YORK, "2026-03-08 01:00", ["2026-03-08 03:00:00-04", "2026-03-08 03:30:00-04"]),
        ("59 1 * * *", NEW_YORK, "2026-03-08 00:00", ["2026-03-08 01:59:00-05", "2026-03-09 01:59:00-04"]),
        ("0 3 * * *", NEW_YORK, "2026-03-08 00:00", ["2026-03-08 03:00:00-04", "2026-03-09 03:00:00-04"]),
        ("30 1 * * *", NEW_YORK, "2026-11-01 00:00", ["2026-11-01 01:30:00-04", "2026-11-02 01:30:00-05"]),
        ("0 1,2 * * *", NEW_YORK, "2026-11-01 00:00", ["2026-11-01 01:00:00-04", "2026-11-01 02:00:00-05"]),
        ("0 0-23 * * *", NEW_YORK, "2026-11-01 00:30", ["2026-11-01 01:00:00-04", "2026-11-01 02:00:00-05"]),
        ("*/30 2 * * *", NEW_YORK, "2026-03-07 02:30", ["2026-03-09 02:00:00-04", "2026-03-09 02:30:00-04"]),
        ("0 * * * *", NEW_YORK, "2026-03-08 00:30", ["2026-03-08 01:00:00-05", "2026-03-08 03:00:00-04"]),
        ("@hourly", NEW_YORK, "2026-11-01 00:30", ["2026-11-01 01:00:00-04", "2026-11-01 01:00:00-05"]),
        ("30 * * * *", NEW_YORK, "2026-11-01 00:45", ["2026-11-01 01:30:00-04", "2026-11-01 01:30:00-05"]),
        ("*/40 1 * * *", NEW_YORK, "2026-11-01 01:30-04:00", ["2026-11-01 01:40:00-04", "2026-11-01 01:00:00-05"]),
        ("* 1 * * *", NEW_YORK, "2026-11-01 01:58-05:00", ["2026-11-01 01:59:00-05", "2026-11-02 01:00:00-05"]),
        ("30 1 * * *", NEW_YORK, "2026-11-01 01:10-05:00", ["2026-11-02 01:30:00-05", "2026-11-03 01:30:00-05"]),
        ("0 */2 * * *", NEW_YORK, "2026-03-08 00:30", ["2026-03-08 04:00:00-04", "2026-03-08 06:00:00-04"]),
        # Berlin: 2026-03-29 02:00 to 03:00, 2026-10-25 03:00 back to 02:00
        ("15 2 * * *", BERLIN, "2026-03-28 02:15", ["2026-03-29 03:00:00+02", "2026-03-30 02:15:00+02"]),
        ("15 2 * * *", BERLIN, "2026-10-24 02:15", ["2026-10-25 02:15:00+02", "2026-10-26 02:15:00+01"]),
        ("15 * * * *", BERLIN, "2026-10-25 01:30", ["2026-10-25 02:15:00+02", "2026-10-25 02:15:00+01"]),
        ("15 * * * *", BERLIN, "2026-03-29 00:30", ["2026-03-29 01:15:00+01", "2026-03-29 03:15:00+02"]),
        ("0 3 * * *", BERLIN, "2026-10-25 00:00", ["2026-10-25 03:00:00+01", "2026-10-26 03:00:00+01"]),
        ("15 2 29 3 *", BERLIN, "2080-01-01", ["2080-03-29 02:15:00+01", "2081-03-29 02:15:00+01"]),
        ("15 2 31 3 *", BERLIN, "2080-01-01", ["2080-03-31 03:00:00+02", "2081-03-31 02:15:00+02"]),
        # Lord Howe: 2026-10-04 02:00 to 02:30, 2026-04-05 02:00 back to 01:30
        ("10 2 * * *", LORD_HOWE, "2026-10-03 02:10", ["2026-10-04 02:30:00+11", "2026-10-05 02:10:00+11"]),
        ("10,30 2 * * *", LORD_HOWE, "2026-10-03 02:30", ["2026-10-04 02:30:00+11", "2026-10-05 02:10:00+11"]),
        ("45 1 * * *", LORD_HOWE, "2026-04-04 01:45", ["2026-04-05 01:45:00+11", "2026-04-06 01:45:00+10:30"]),
        ("45 * * * *", LORD_HOWE, "2026-04-05 01:00", ["2026-04-05 01:45:00+11", "2026-04-05 01:45:00+10:30"]),
        ("15 * * * *", LORD_HOWE, "2026-04-05 01:00", ["2026-04-05 01:15:00+11", "2026-04-05 02:15:00+10:30"]),
        ("15 * * * *", LORD_HOWE, "2026-10-04 01:00", ["2026-10-04 01:15:00+10:30", "2026-10-04 03:15:00+11"]),
        # Apia had no 2011-12-30; Kwajalein had 1969-09-30 twice and no 1993-08-21
        ("0 12 * * *", "Pacific/Apia", "2011-12-29 12:00", ["2011-12-31 00:00:00+14", "2011-12-31 12:00:00+14"]),
        ("0 0,12 30,31 * *", "Pacific/Apia", "2011-12-01", ["2011-12-31 00:00:00+14", "2011-12-31 12:00:00+14"]),
        ("0 12 30 12 *", "Pacific/Apia", "2011-01-01", ["2011-12-31 00:00:00+14", "2012-12-30 12:00:00+14"]),
        ("0 */18 30 12 *", "Pacific/Apia", "2011-01-01", ["2012-12-30 00:00:00+14", "2012-12-30 18:00:00+14"]),
        ("0 12 * * *", "Pacific/Kwajalein", "1969-09-29 12:00", ["1969-09-30 12:00:00+11", "1969-10-01 12:00:00-12"]),
        ("0 */5 30 9 *", "Pacific/Kwajalein", "1969-09-30 20:00", ["1969-09-30 05:00:00-12", "1969-09-30 10:00:00-12"]),
        ("0 12 * * *", "Pacific/Kwajalein", "1993-08-20 12:00", ["1993-08-22 00:00:00+12", "1993-08-22 12:00:00+12"]),
        # a change of the standard offset: Pyongyang at 2018-05-04 23:30 to 2018-05-05 00:00
        ("45 23 * * *", "Asia/Pyongyang", "2018-05-03 23:45", ["2018-05-05 00:00:00+09", "2018-05-05 23:45:00+09"]),
        ("30 2 * * *", "Asia/Tokyo", "2026-03-08 02:30", ["2026-03-09 02:30:00+09", "2026-03-10 02:30:00+09"]),
    ],
)  # fmt: skip
def test_both_changes_of_the_clock(expression: str, zone: str, after: str, expected: list[str]) -> None:
    """`*` in minute or hour goes by every local time there is; fixed times fire once a day, whatever the clock does."""
    assert ticks(expression, after, zone=zone, count=2) == expected


def test_a_repeated_hour_is_fired_through_twice_in_order() -> None:
    """From before the first pass, from within it, and from within the second."""
    expected = [f"2026-11-01 01:{minute}:00{offset}" for offset in ("-04", "-05") for minute in ("00", "20", "40")]
    expected.append("2026-11-01 02:00:00-05")
    for after in range(len(expected)):
        start = "2026-11-01 00:59" if after == 0 else expected[after - 1] + ":00"
        assert ticks("*/20 * * * *", start, zone=NEW_YORK, count=len(expected) - after) == expected[after:]


def test_a_schedule_with_hashed_fields_has_fixed_times() -> None:
    """`H/30` in the minute does not begin with `*`: the repeated hour counts once, and the gap fires once."""
    assert ticks("H/30 1 * * *", "2026-11-01 00:00", zone=NEW_YORK, name="x", count=3)[2].startswith("2026-11-02")
    assert ticks("H/30 2 8 3 *", "2026-03-01", zone=NEW_YORK, name="x", count=1) == ["2026-03-08 03:00:00-04"]


@pytest.mark.parametrize(
    ("expression", "name", "expected"),
    [
        ("H * * * *", "backup", [54]),
        ("H * * * *", "db.primary", [7]),
        ("h * * * *", "backup", [54]),
        ("H/15 * * * *", "backup", [9, 24, 39, 54]),
        ("H/15 * * * *", "db.primary", [7, 22, 37, 52]),
        ("H(0-29) * * * *", "backup", [24]),
        ("H(0-29)/10 * * * *", "backup", [4, 14, 24]),
        ("H(0-29),H(30-59) * * * *", "backup", [24, 54]),
        ("0,H * * * *", "backup", [0, 54]),
        ("H(5-5) * * * *", "backup", [5]),
        ("H/1 * * * *", "backup", list(range(60))),
    ],
)
def test_hashed_minutes_never_change(expression: str, name: str, expected: list[int]) -> None:
    """Pinned: another hash would move every job at the next upgrade, and split hosts with two versions."""
    assert minutes(expression, name=name) == expected


def test_hashed_fields_differ_from_each_other_and_never_change() -> None:
    """The same name gives each field its own value."""
    assert ticks("H H H H *", "2026-01-01", name="backup", count=1) == ["2026-11-05 01:54"]
    assert ticks("0 0 * * H", "2026-03-01", name="backup", count=1) == ["2026-03-07 00:00"]
    assert ticks("0 0 * * H(fri-sun)", "2026-03-01", name="backup", count=1) == ["2026-03-08 00:00"]
    names = [f"job-{i}" for i in range(120)]
    same = sum(minutes("H(0-23) * * * *", name=name) == [hashed_hour(name)] for name in names)
    assert same < 20


def test_hashed_fields_spread_jobs_over_their_range() -> None:
    """600 names: each minute gets about ten of them, and nothing falls outside of the range."""
    names = [f"job-{i}" for i in range(600)]
    hour = Counter(minutes("H * * * *", name=name)[0] for name in names)
    assert len(hour) == 60
    assert max(hour.values()) < 25
    half = Counter(minutes("H(10-29) * * * *", name=name)[0] for name in names[:200])
    assert sorted(half) == list(range(10, 30))
    starts = Counter(minutes("H/15 * * * *", name=name)[0] for name in names[:200])
    assert sorted(starts) == list(range(15))


def test_a_hashed_day_is_one_that_every_month_has() -> None:
    """`0 0 H * *` fires twelve times a year, whatever the name; with a step it may reach the 31st."""
    days = set()
    for i in range(150):
        found = ticks("0 0 H * *", "2025-12-31 23:59", name=str(i), count=12)
        assert [text[5:7] for text in found] == [f"{month:02}" for month in range(1, 13)]
        days.add(int(found[0][8:10]))
    assert days == set(range(1, 29))
    stepped = {ticks("0 0 H/10 * *", "2025-12-31 23:59", name=str(i), count=4)[3] for i in range(60)}
    assert "2026-01-31 00:00" in stepped


@pytest.mark.parametrize(
    ("expression", "after", "expected"),
    [
        ("@every 90s", 0, 90),
        ("@every 90s", 89, 90),
        ("@every 90s", 90, 180),
        ("@every 1s", 1_700_000_000, 1_700_000_001),
        ("@every 7m", 1_700_000_000, 1_700_000_400),
        ("@every 1h30m", 1_700_000_000, 1_700_001_000),
        (" @EVERY \t 5 ", 11, 15),
        ("@every 1000ms", 4, 5),
        ("@every 300ms700ms", 4, 5),
        ("@every 0.5m", 31, 60),
        ("@every 876000h", 1, 3_153_600_000),
        ("@every 60s", -61, -60),
    ],
)
def test_every_is_aligned_to_the_epoch(expression: str, after: int, expected: int) -> None:
    """Multiples of the duration since 1970, in whatever zone."""
    for zone in ("UTC", NEW_YORK, LORD_HOWE):
        assert parse_schedule(expression, zone=zone).next_after(after) == expected
