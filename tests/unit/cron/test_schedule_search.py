"""Searching and counting ticks: schedules that never fire, rare ones, the ends of time, and what it costs."""

import itertools
import time
from collections.abc import Callable
from typing import Any

import pytest

from conch.cron import zones
from conch.cron.schedule import Schedule, parse_schedule
from conch.errors import BadInput
from tests.support.schedules import BERLIN, LORD_HOWE, NEW_YORK, ticks, unix


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
    looks = count_calls(monkeypatch, "conch.cron.rules.offsets_at", zones.offsets_at)
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
    looks = count_calls(monkeypatch, "conch.cron.rules.offsets_at", zones.offsets_at)
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


def test_a_schedule_says_what_it_is_and_does_not_change() -> None:
    """Blanks around an expression do not count; equal when read alike."""
    schedule = parse_schedule(" 0  5 * * * ", zone=BERLIN)
    assert schedule.zone == BERLIN
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
    """The public surface: what it is made of, and a few questions to ask."""
    assert isinstance(parse_schedule("@daily"), Schedule)
    shown = ["count_between", "last_between", "next_after", "resume_after", "rules", "until", "zone"]
    assert [name for name in dir(Schedule) if not name.startswith("_")] == shown
