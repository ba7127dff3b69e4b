"""Cron expressions by tables: the grammar, both changes of the clock, `H`, `@every`, what is refused."""

import itertools
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

import croniter
import pytest

from conch.cron import zones
from conch.cron.schedule import LONGEST_EXPRESSION, Schedule, parse_schedule
from conch.errors import BadInput

NEW_YORK, BERLIN, LORD_HOWE = "America/New_York", "Europe/Berlin", "Australia/Lord_Howe"


def unix(text: str, zone: str = "UTC") -> int:
    at = datetime.fromisoformat(text)
    return int((at if at.tzinfo else at.replace(tzinfo=ZoneInfo(zone))).timestamp())


def ticks(expression: str, after: str, *, zone: str = "UTC", count: int = 3, name: str | None = None) -> list[str]:
    """The ticks after a local time, as local times: with their offset where the zone is not UTC."""
    schedule = parse_schedule(expression, zone=zone, name=name)
    found, instant = [], unix(after, zone)
    for _ in range(count):
        following = schedule.next_after(instant)
        assert following is not None
        instant = following
        shown = datetime.fromtimestamp(instant, ZoneInfo(zone)).isoformat(" ")
        found.append(shown.removesuffix("+00:00").removesuffix(":00"))
    return found


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


@pytest.mark.parametrize(
    "expression",
    ["0 0 30 2 *", "0 0 31 4,6 *", "* * 31 2,4,6,9,11 *", "0 0 30-31 feb *", "0 0 30 2 */2", "0 0 H(30-31) 2 *"],
)
def test_an_expression_that_will_never_fire_is_refused(expression: str) -> None:
    """One line says so, at once."""
    with pytest.raises(BadInput, match="^bad schedule .*: it will never fire"):
        parse_schedule(expression, name="x")


def count_calls(monkeypatch: pytest.MonkeyPatch, name: str, real: Callable[..., Any]) -> list[int]:
    """One entry a call of this function from now on."""
    calls: list[int] = []

    def counted(*given: Any) -> Any:
        calls.append(1)
        return real(*given)

    monkeypatch.setattr(name, counted)
    return calls


# The Sundays (`*/7`, so that both days must match) on which the clocks of a zone are set forward, and what they skip.
GAPS = [
    ("* 2 25-31 3 */7", BERLIN),
    ("* 1 25-31 3 */7", "Europe/London"),
    ("*/20 2 8-14 3 */7", NEW_YORK),
    ("* 0 8-14 3 */7", "America/Havana"),
    ("* 1-2 25-31 3 */7", "Antarctica/Troll"),
]


@pytest.mark.parametrize(("expression", "zone"), GAPS)
def test_an_expression_that_can_only_fire_in_a_gap_is_refused(
    expression: str, zone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that never fires; it costs a look at the gaps of some centuries, and not at their minutes."""
    looks = count_calls(monkeypatch, "conch.cron.schedule.offsets_at", zones.offsets_at)
    with pytest.raises(BadInput, match="^bad schedule .*: it will never fire: .* clocks of the zone skip"):
        parse_schedule(expression, zone=zone)
    assert 300 < len(looks) < 600


@pytest.mark.parametrize(
    ("expression", "zone", "expected"),
    [
        ("* 2-3 25-31 3 */7", BERLIN, "2026-03-29 03:00:00+02"),
        ("* 2 25-31 3,4 */7", BERLIN, "2026-04-26 02:00:00+02"),
        ("* 2 24-31 3 */7", BERLIN, "2030-03-24 02:00:00+01"),
        ("30 2 25-31 3 */7", BERLIN, "2026-03-29 03:00:00+02"),
        ("*/29 2 1-7 10 */7", LORD_HOWE, "2026-10-04 02:58:00+11"),
        ("*/30 1-2 25-31 3 */7", "Europe/London", "2026-03-29 02:00:00+01"),
        ("* 1-3 25-31 3 */7", "Antarctica/Troll", "2026-03-29 03:00:00+02"),
        ("* 2 29 2 */7", BERLIN, "2032-02-29 02:00:00+01"),
        ("* 0 30 12 *", "Pacific/Apia", "2026-12-30 00:00:00+13"),
        ("* 2 * * *", "Africa/Casablanca", "2026-01-01 02:00:00+01"),
        ("30 2 29 2 1", "Asia/Tokyo", "2026-02-02 02:30:00+09"),
        ("30 2 29 2 */7", "Asia/Tokyo", "2032-02-29 02:30:00+09"),
    ],
)
def test_what_fires_beside_a_gap_or_in_rare_years_is_taken(expression: str, zone: str, expected: str) -> None:
    """A single minute, day or year that no clock skips is enough; fixed times fire after the gap."""
    assert ticks(expression, "2026-01-01", zone=zone, count=1) == [expected]


def test_an_expression_that_has_stopped_to_fire_is_refused() -> None:
    """New York's second Sunday in March got its gap in 2007: what will fire counts from now on."""
    with pytest.raises(BadInput, match="it will never fire"):
        parse_schedule("* 2 8-14 3 */7", zone=NEW_YORK)


def test_any_search_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever it starts: about changes of the clock, before rare days, in the second pass of a repeated day."""
    looks = count_calls(monkeypatch, "conch.cron.schedule.offsets_at", zones.offsets_at)
    for expression in ("* * * * *", "0 0 29 2 */7", "59 23 31 12 *", "*/59 2 * 3 */7", "0-59 0-23 * * *"):
        for zone, after in (
            (BERLIN, "2026-10-25 02:30"),
            ("Pacific/Kwajalein", "1969-09-30 12:00"),
            ("UTC", "2088-03-01"),
        ):
            looks.clear()
            parse_schedule(expression, zone=zone).next_after(unix(after, zone))
            assert len(looks) < 4000, (expression, zone)


def test_counting_visits_no_ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    """30 years of minutes in a zone cost as much as the changes of its clock."""
    schedule = parse_schedule("* * * * *", zone=BERLIN)
    first, last = unix("2000-01-01"), unix("2030-01-01") - 1
    zones.changes.cache_clear()
    looks = count_calls(monkeypatch, "conch.cron.zones.offset_at", zones.offset_at)
    assert schedule.count_between(first, last) == (last + 1 - first) // 60
    assert len(looks) < 14000
    looks.clear()
    assert schedule.count_between(first + 1, last) == (last + 1 - first) // 60 - 1
    assert not looks


@pytest.mark.parametrize(
    ("expression", "zone", "first", "last", "count"),
    [
        ("@every 90s", "UTC", "1970-01-01 00:01:30", "1970-01-01 00:03", 2),
        ("@every 90s", "UTC", "1970-01-01 00:01:31", "1970-01-01 00:02:59", 0),
        ("* * * * *", "UTC", "2026-03-01 00:00", "2026-03-01 00:00", 1),
        ("* * * * *", "UTC", "2026-03-01 00:00:01", "2026-03-01 00:00:59", 0),
        ("* * * * *", BERLIN, "2026-03-29 00:00", "2026-03-29 23:59", 23 * 60),
        ("* * * * *", BERLIN, "2026-10-25 00:00", "2026-10-25 23:59", 25 * 60),
        ("30 2 * * *", BERLIN, "2026-03-01 00:00", "2026-04-01 00:00", 31),
        ("30 2 * * *", BERLIN, "2026-10-01 00:00", "2026-11-01 00:00", 31),
        ("*/30 2 * * *", BERLIN, "2026-03-01 00:00", "2026-04-01 00:00", 60),
        ("0,30 2,3 * * *", BERLIN, "2026-03-29 00:00", "2026-03-30 00:00", 2),
        ("0 12 * * *", "Pacific/Apia", "2011-12-29 00:00", "2012-01-01 00:00", 3),
        ("0 0 29 2 *", "UTC", "1900-01-01", "2300-01-01", 97),
        ("* * * * *", "UTC", "2026-03-02", "2026-03-01", 0),
    ],
)  # fmt: skip
def test_ticks_between_two_instants_are_counted(expression: str, zone: str, first: str, last: str, count: int) -> None:
    """Both included; over both changes of the clock."""
    assert parse_schedule(expression, zone=zone).count_between(unix(first, zone), unix(last, zone)) == count


def test_the_last_tick_of_a_time_is_found() -> None:
    """Or that there is none."""
    schedule = parse_schedule("30 2 * * *", zone=BERLIN)
    first, last = unix("2026-03-01 02:30", BERLIN), unix("2026-03-29 23:00", BERLIN)
    assert schedule.last_between(first, last) == unix("2026-03-29 03:00", BERLIN)
    assert schedule.last_between(first, first) == first
    assert schedule.last_between(first + 1, first + 3600) is None


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("", "0 fields, not five"),
        (" \t ", "0 fields, not five"),
        ("*", "1 fields, not five"),
        ("* * * *", "4 fields, not five: minute hour day-of-month month day-of-week"),
        ("* * * * * *", "6 fields, not five"),
        ("* * * * * * 2030", "7 fields, not five"),
        ("60 * * * *", "bad minute '60': 60 is not between 0 and 59"),
        ("* 24 * * *", "bad hour '24'"),
        ("* * 0 * *", "bad day-of-month '0'"),
        ("* * 32 * *", "bad day-of-month '32'"),
        ("* * * 0 *", "bad month '0'"),
        ("* * * 13 *", "bad month '13'"),
        ("* * * * 8", "bad day-of-week '8': 8 is not between 0 and 7"),
        ("* * 0-5 * *", "0 is not between 1 and 31"),
        ("50-60 * * * *", "60 is not between"),
        ("61/2 * * * *", "61 is not between"),
        ("-1 * * * *", "bad minute '-1'"),
        ("1- * * * *", "bad minute '1-'"),
        ("1-2-3 * * * *", "bad minute '1-2-3'"),
        ("30-10 * * * *", "runs backwards"),
        ("0 22-2 * * *", "runs backwards"),
        ("0 0 * nov-feb *", "runs backwards"),
        ("0 0 * * fri-mon", "runs backwards"),
        ("*/0 * * * *", "a step is at least 1"),
        ("5-5/0 * * * *", "a step is at least 1"),
        ("H/0 * * * *", "a step is at least 1"),
        ("*/ * * * *", "bad minute"),
        ("*/-5 * * * *", "bad minute"),
        ("*/5/5 * * * *", "bad minute"),
        ("*/1.5 * * * *", "bad minute"),
        ("/5 * * * *", "bad minute"),
        ("*-5 * * * *", "bad minute"),
        ("** * * * *", "bad minute"),
        ("1,,2 * * * *", "bad minute ''"),
        (",1 * * * *", "bad minute ''"),
        ("1, * * * *", "bad minute ''"),
        ("jan * * * *", "'jan' is neither a number nor a name"),
        ("* * * monday *", "bad month"),
        ("* * * * monday", "'monday' is neither"),
        ("* * mon * *", "bad day-of-month"),
        ("0 0 L * *", "bad day-of-month 'L': write *, values"),
        ("0 0 l * *", "L, W, # and ? are not supported"),
        ("0 0 L-3 * *", "not supported"),
        ("0 0 1-L * *", "not supported"),
        ("0 0 1,L * *", "not supported"),
        ("0 0 * * L", "not supported"),
        ("0 0 W * *", "not supported"),
        ("0 0 15W * *", "not supported"),
        ("0 0 LW * *", "bad day-of-month"),
        ("0 0 * * 5L", "not supported"),
        ("0 0 * * L5", "not supported"),
        ("0 0 * * 1#2", "not supported"),
        ("0 0 ? * *", "not supported"),
        ("R * * * *", "bad minute 'R'"),
        ("R/5 * * * *", "bad minute 'R/5'"),
        ("R(0-5) * * * *", "not supported"),
        ("H(0-60) * * * *", "60 is not between"),
        ("H(9-5) * * * *", "runs backwards"),
        ("H(5) * * * *", "bad minute"),
        ("H-5 * * * *", "bad minute"),
        ("H(0-29)/ * * * *", "bad minute"),
        ("H * * * * *", "6 fields"),
        ("1" * 400 + " * * * *", "bad minute"),
        ("*/" + "1" * 400 + " * * * *", "bad minute"),
        ("٣ * * * *", "printable ascii"),
        ("*\N{NO-BREAK SPACE}* * * *", "printable ascii"),
        ("* * * * *\n", "printable ascii"),
        ("*\n* * * *", "printable ascii"),
        ("* * * * *\r", "printable ascii"),
        ("* * * * \x00", "printable ascii"),
        ("\x1b[31m * * * *", "printable ascii"),
        ("* * * * \ud800", "printable ascii"),
        ("*" * (LONGEST_EXPRESSION + 1), "longer than 1000 characters"),
        ("@reboot", "@reboot is not supported"),
        ("@never", "write one of @hourly"),
        ("@", "write one of @hourly"),
        ("@daily *", "write one of @hourly"),
        ("@ daily", "write one of @hourly"),
        ("@everyday", "write one of @hourly"),
        ("@every", "needs one duration"),
        ("@every 1h 30m", "needs one duration"),
        ("@every5m", "write one of @hourly"),
        ("@every 0", "whole seconds, at least 1s"),
        ("@every 500ms", "whole seconds, at least 1s"),
        ("@every 1.5s", "whole seconds, at least 1s"),
        ("@every 1001ms", "whole seconds, at least 1s"),
        ("@every -5s", "is not a duration"),
        ("@every fortnight", "is not a duration"),
        ("@every 1000000h", "too long"),
    ],
)  # fmt: skip
def test_what_is_no_schedule_is_refused(expression: str, message: str) -> None:
    """With one printable line that names the expression and what is wrong with it."""
    with pytest.raises(BadInput) as caught:
        parse_schedule(expression, name="x")
    assert message in str(caught.value)
    assert str(caught.value).startswith("bad schedule")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("expression", ["H * * * *", "0 H/6 * * *", "0 0 * * 1,H(2-3)"])
def test_hashed_fields_need_a_name(expression: str) -> None:
    """`cron next` has none without --job."""
    with pytest.raises(BadInput, match="needs a job name"):
        parse_schedule(expression)


@pytest.mark.parametrize(
    "zone",
    [
        "", " ", "UTC ", "UTC\n", "utc", "Europe/Nowhere", "Europe", "Europe/", "/Europe/Berlin", "Europe//Berlin",
        "..", "../zoneinfo/UTC", "Europe/../UTC", "/etc/localtime", "localtime", "posixrules", "Factory", "posix/UTC",
        "right/UTC", "zone.tab", "tzdata.zi", "leapseconds", "Ä", "UTC\0", "a" * 300, "a/" * 3000 + "a", "\ud800",
        "CET-1CEST", "+01:00", ":UTC", "UTC+1",
    ],
)  # fmt: skip
@pytest.mark.parametrize("expression", ["@daily", "@every 5s"])
def test_what_is_no_time_zone_is_refused(zone: str, expression: str) -> None:
    """A path, what the host calls its own zone, and POSIX rules are none: other hosts would read something else."""
    with pytest.raises(BadInput, match="unknown time zone") as caught:
        parse_schedule(expression, zone=zone)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "zone", ["UTC", "Etc/GMT-14", "GMT0", "EST5EDT", "America/Argentina/Buenos_Aires", "Asia/Ust-Nera", "NZ-CHAT"]
)  # fmt: skip
def test_keys_of_the_iana_database_are_zones(zone: str) -> None:
    """With their digits, signs and levels."""
    assert parse_schedule("@daily", zone=zone).zone == zone


def test_zones_come_from_the_package_where_the_host_has_none() -> None:
    """A minimal container has no /usr/share/zoneinfo."""
    code = "from conch.cron.schedule import *; print(parse_schedule('30 2 * * *', zone='Europe/Berlin').next_after(0))"
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={"PYTHONTZPATH": "", "TZ": "America/New_York"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert run.stdout == "5400\n"


def test_every_needs_no_croniter() -> None:
    """It is slow to import."""
    code = (
        "import sys; from conch.cron.schedule import parse_schedule as p\n"
        "p('@every 5s'); assert 'croniter' not in sys.modules; p('@daily'); assert 'croniter' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_croniter_refuses_is_bad_input(monkeypatch: pytest.MonkeyPatch) -> None:
    """Should another release of it be stricter than we are."""

    def refuse(*args: object) -> None:
        raise croniter.CroniterBadCronError("not today")

    monkeypatch.setattr(croniter.croniter, "expand", refuse)
    with pytest.raises(BadInput, match="not today"):
        parse_schedule("17 3 5 11 1-6/5")


def test_a_schedule_says_what_it_is_and_does_not_change() -> None:
    """The expression without blanks around it, the zone; equal when read alike."""
    schedule = parse_schedule(" 0  5 * * * ", zone=BERLIN)
    assert (schedule.expression, schedule.zone) == ("0  5 * * *", BERLIN)
    assert schedule == parse_schedule("0  5 * * *", zone=BERLIN)
    assert schedule != parse_schedule("0  5 * * *")
    with pytest.raises(AttributeError):
        schedule.zone = "UTC"  # type: ignore[misc]


@pytest.mark.parametrize("expression", ["* * * * *", "@yearly", "@every 1h", "0 0 29 2 *", "30 2 * * *"])
@pytest.mark.parametrize("zone", ["UTC", NEW_YORK, "Pacific/Kiritimati"])
def test_the_ends_of_time_raise_nothing(expression: str, zone: str) -> None:
    """No tick from the year 9999 on; what is before 1900 counts as its beginning."""
    schedule = parse_schedule(expression, zone=zone)
    end = unix("9999-01-01")
    for instant in (end - 86400, end - 3600, end - 1, end, end + 1, 253402300799, 253402300800, 2**63, 10**30):
        tick = schedule.next_after(instant)
        assert tick is None or instant < tick < end
        assert instant < end - 1 or tick is None
    for instant in (0, -1, -(2**31), -2208988801, -62135596800, -(2**63), -(10**30)):
        tick = schedule.next_after(instant)
        assert tick is not None
        assert tick > instant


def test_ticks_far_ahead_and_far_back() -> None:
    """The rule of a zone goes on after its table; local mean time had seconds."""
    assert ticks("0 12 1 7 *", "9990-01-01", zone=NEW_YORK, count=1) == ["9990-07-01 12:00:00-04"]
    monrovia = parse_schedule("0 12 * * *", zone="Africa/Monrovia").next_after(unix("1970-06-01T00:00:00"))
    assert monrovia == unix("1970-06-01T12:44:30")


def test_questions_are_independent() -> None:
    """Asked backwards, the answers are the same."""
    schedule = parse_schedule("*/7 1-3 * * *", zone=BERLIN)
    start = unix("2026-10-24 22:00", BERLIN)
    instants = range(start, start + 6 * 3600, 97)
    forwards = [schedule.next_after(instant) for instant in instants]
    assert [schedule.next_after(instant) for instant in reversed(instants)] == forwards[::-1]


def test_schedules_are_cheap() -> None:
    """2,000 jobs, asked once each, are far below a second; 29 February too."""
    schedules = [parse_schedule(text, zone=BERLIN) for text in ("0 * * * *", "30 2 * * *", "0 0 29 2 */7")]
    start = time.perf_counter()
    for schedule, instant in itertools.product(schedules, range(1_900_000_000, 1_900_000_000 + 2000 * 997, 997)):
        schedule.next_after(instant)
    assert time.perf_counter() - start < 3


def test_the_surface_of_a_schedule_is_small() -> None:
    """The public surface: two names to read, a few questions to ask."""
    assert isinstance(parse_schedule("@daily"), Schedule)
    shown = ["count_between", "expression", "last_between", "next_after", "resume_after", "zone"]
    assert [name for name in dir(Schedule) if not name.startswith("_")] == shown
