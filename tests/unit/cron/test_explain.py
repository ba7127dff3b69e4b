"""Schedules in words, and what the changes of a clock do to their ticks: compared with the ticks themselves."""

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest

from conch.cron.explain import clock_changes, describe
from conch.cron.schedule import parse_schedule

BERLIN = "Europe/Berlin"
SPRING, AUTUMN = "2027-03-28 02:00 the clock is set to 03:00", "2027-10-31 03:00 the clock is set to 02:00"
AFTER = int(datetime(2026, 11, 27, tzinfo=UTC).timestamp())


@pytest.mark.parametrize(
    ("expression", "text"),
    [
        ("30 2 * * *", "At 02:30"),
        ("@daily", "At 00:00"),
        ("*/5 * * * *", "Every 5 minutes"),
        ("0 0 L * *", "At 00:00, on the last day of the month"),
        ("0 9 * * fri#2", "At 09:00, on the second Friday of the month"),
        ("0 0 1,15 * 5", "At 00:00, on day 1 and 15 of the month, or on Friday"),
        ("0 0 */2 * 1", "At 00:00, every 2 days, and only on Monday"),
        ("@every 90m", "Every 90m, counted from 1970-01-01T00:00:00Z"),
        ("@every 1d", "Every 1d, counted from 1970-01-01T00:00:00Z"),
        ("@every 61s", "Every 61s, counted from 1970-01-01T00:00:00Z"),
    ],
)
def test_in_words(expression: str, text: str) -> None:
    """By the library's words; where its rule for two day fields is not ours, by ours."""
    assert describe(expression, None) == text


def test_hashed_fields_are_shown_as_the_job_has_them() -> None:
    """`H` is a fixed value for each job."""
    tick = parse_schedule("H H * * *", name="backup").next_after(AFTER)
    assert tick is not None
    at = datetime.fromtimestamp(tick, UTC)
    assert describe("H H * * *", "backup") == f"At {at:%H:%M}"


@pytest.mark.parametrize(
    ("expressions", "lines"),
    [
        (["30 2 * * *"], [f"{SPRING}: 30 2 * * *: 02:30 does not exist; it fires at 03:00 instead",
                          f"{AUTUMN}: 30 2 * * *: 02:30 comes twice; it fires the first time"]),
        (["*/30 * * * *"], [f"{SPRING}: */30 * * * *: 02:00 to 02:30 does not exist; it does not fire",
                            f"{AUTUMN}: */30 * * * *: 02:00 to 02:30 comes twice; it fires both times"]),
        (["0 5 * * *", "@every 1h"], []),
        (["0 5 * * *", "15 2 * mar *"], [f"{SPRING}: 15 2 * mar *: 02:15 does not exist; it fires at 03:00 instead"]),
    ],
)  # fmt: skip
def test_what_a_change_of_the_clock_does(expressions: list[str], lines: list[str]) -> None:
    """Only changes that concern a tick are told."""
    assert list(clock_changes(expressions, BERLIN, None, AFTER)) == lines
    assert list(clock_changes(expressions, "UTC", None, AFTER)) == []


def test_the_ticks_are_as_it_says() -> None:
    """Against the schedule: in the gap the fixed time comes at 03:00, in the repeated hour once."""
    schedule, zone = parse_schedule("30 2 * * *", zone=BERLIN), ZoneInfo(BERLIN)
    gap = schedule.next_after(int(datetime(2027, 3, 28, tzinfo=zone).timestamp()))
    twice = int(datetime(2027, 10, 31, tzinfo=zone).timestamp())
    assert gap is not None
    assert f"{datetime.fromtimestamp(gap, zone):%H:%M}" == "03:00"
    assert schedule.count_between(twice, twice + 86400) == 1
