"""Any schedule, any zone, any instant: against a walk over all minutes, against cronsim, and on hosts in any zone."""

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from cronsim import CronSim, CronSimError
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from conch.cron.schedule import Schedule, parse_schedule, parse_schedules
from conch.cron.zones import offsets_at
from conch.errors import BadInput

MINUTE = timedelta(minutes=1)
LIMITS = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 6))
# Instants about which the clocks of a zone change by an hour, by half an hour, by a day, or for good.
CHANGES = [
    ("America/New_York", "2026-03-08T07:00Z"),
    ("America/New_York", "2026-11-01T06:00Z"),
    ("Europe/Berlin", "2026-03-29T01:00Z"),
    ("Europe/Berlin", "2045-10-29T01:00Z"),
    ("Europe/Dublin", "2026-10-25T01:00Z"),
    ("Australia/Lord_Howe", "2026-04-04T15:00Z"),
    ("Australia/Lord_Howe", "2026-10-03T15:30Z"),
    ("America/Havana", "2026-03-08T05:00Z"),
    ("America/Santiago", "2026-09-06T04:00Z"),
    ("Africa/Casablanca", "2026-03-22T02:00Z"),
    ("Asia/Pyongyang", "2015-08-14T15:00Z"),
    ("Asia/Pyongyang", "2018-05-04T15:00Z"),
    ("Africa/Monrovia", "1972-01-07T00:44:30Z"),
    ("Pacific/Apia", "2011-12-30T10:00Z"),
    ("Pacific/Kwajalein", "1969-09-30T13:00Z"),
    ("Asia/Tokyo", "2026-03-08T00:00Z"),
    ("UTC", "2100-02-28T12:00Z"),
]
PLACES = st.sampled_from([(zone, int(datetime.fromisoformat(text).timestamp())) for zone, text in CHANGES])


@dataclass
class Expression:
    """A text, and what it means, worked out without the module under test."""

    text: str
    allowed: list[set[int]]

    def matches(self, local: datetime) -> bool:
        minute, hour, days, months, weekdays = self.allowed
        on_day, on_weekday = local.day in days, local.isoweekday() % 7 in weekdays
        fields = self.text.split()
        both = fields[2][0] == "*" or fields[4][0] == "*"
        day = (on_day and on_weekday) if both else (on_day or on_weekday)
        return day and local.month in months and local.hour in hour and local.minute in minute

    @property
    def fixed(self) -> bool:
        fields = self.text.split()
        return fields[0][0] != "*" and fields[1][0] != "*"


@st.composite
def field(draw: st.DrawFn, index: int) -> tuple[str, set[int]]:
    low, high = LIMITS[index]
    values = st.integers(low, high)
    parts: list[str] = []
    allowed: set[int] = set()
    kinds = st.sampled_from(
        ["*", "*/n", "a", "a-b", "a-b/n"] if index != 4 else ["*", "*/n", "a", "a-b", "a-b/n", "a-7"]
    )
    for _ in range(draw(st.integers(1, 3))):
        kind = draw(kinds)
        step = draw(st.integers(1, high + 2)) if "n" in kind else 1
        first, last = sorted((draw(values), draw(values)))
        if kind.startswith("*"):
            first, last = low, high
        elif kind == "a":
            last = first
        elif kind == "a-7":
            first, last = max(first, 1), 7
        allowed.update(value % 7 if index == 4 else value for value in range(first, last + 1, step))
        shown = kind.replace("n", str(step)).replace("b", str(last)).replace("a", str(first))
        parts.append(shown)
    return ",".join(parts), allowed


@st.composite
def expressions(draw: st.DrawFn) -> Expression:
    days = st.tuples(field(2), field(3), field(4)) | st.just(
        (("*", set(range(1, 32))), ("*", set(range(1, 13))), ("*", set(range(7))))
    )
    fields = [draw(field(0)), draw(field(1)), *draw(days)]
    return Expression(" ".join(text for text, _ in fields), [allowed for _, allowed in fields])


def local(instant: int, zone: ZoneInfo) -> datetime:
    return datetime.fromtimestamp(instant, zone).replace(tzinfo=None, fold=0)


def walk(expression: Expression, zone: ZoneInfo, start: int, end: int) -> Iterator[int]:
    """The ticks in (start, end], by looking at every half minute, as a cron that never sleeps does.

    Fixed times fire when the clock on the wall first reaches or passes them, all others whenever it shows them.
    """
    instant = start - 2 * 86400
    instant -= instant % 30
    reached = local(instant, zone)
    while instant + 30 <= end:
        instant += 30  # offsets have half minutes at most, in the years walked through
        now = local(instant, zone)
        if expression.fixed:
            passed = reached.replace(second=0) + MINUTE
            due = False
            while passed <= now and not due:
                due = expression.matches(passed)
                passed += MINUTE
            reached = max(reached, now)
        else:
            due = now.second == 0 and expression.matches(now)
        if due and instant > start:
            yield instant


def read(text: str, zone: str) -> Schedule | None:
    """`None` for what will never fire; every other refusal is an error here."""
    try:
        return parse_schedule(text, zone=zone)
    except BadInput as error:
        if "it will never fire" not in str(error):
            raise
        return None


def all_ticks(text: str, zone: str, start: int, end: int) -> Iterator[int]:
    schedule = read(text, zone)
    tick = schedule.next_after(start) if schedule else None
    while schedule and tick is not None and tick <= end:
        yield tick
        tick = schedule.next_after(tick)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(expressions(), PLACES, st.integers(-90000, 90000))
@example(
    Expression("* * * * *", [set(range(low, high + 1)) for low, high in LIMITS]), ("Pacific/Kwajalein", -7902000), -3600
)
def test_no_tick_too_many_and_none_missing(expression: Expression, place: tuple[str, int], shift: int) -> None:
    """The ticks of a day about a change of the clock are those of a walk over every minute."""
    zone, change = place
    start = change + shift
    end = start + 30 * 3600
    walked = list(walk(expression, ZoneInfo(zone), start, end))
    assert list(all_ticks(expression.text, zone, start, end)) == walked
    schedule = read(expression.text, zone)
    if schedule is None:
        return
    assert schedule.count_between(start + 1, end) == len(walked)
    assert schedule.last_between(start + 1, end) == (walked[-1] if walked else None)
    for first in walked[:3]:
        assert schedule.count_between(first, end) == len(walked) - walked.index(first)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(expressions(), PLACES, st.integers(-(10**7), 10**7), st.integers(0, 10**8), st.floats(0, 1))
def test_a_count_over_years_is_that_of_its_parts(
    expression: Expression, place: tuple[str, int], shift: int, length: int, part: float
) -> None:
    """And of the ticks themselves, as far as they can be walked through."""
    zone, change = place
    schedule = read(expression.text, zone)
    assume(schedule)
    assert schedule
    first = change + shift
    last = first + length
    middle = first + int(length * part)
    total = schedule.count_between(first, last)
    assert total == schedule.count_between(first, middle) + schedule.count_between(middle + 1, last)
    if total < 5000:
        assert total == sum(1 for _ in all_ticks(expression.text, zone, first - 1, last))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(expressions(), PLACES, st.integers(-90000, 90000), st.sampled_from([-14400, -3600, -60, 60, 3600, 14400]))
def test_newrules_of_a_zone_repeat_no_fixed_time(
    expression: Expression, place: tuple[str, int], shift: int, moved: int
) -> None:
    """Whatever was due by the old rules: the next one by the new rules shows a later time on the clock."""
    zone, change = place
    old = read(expression.text, zone)
    assume(old)
    assert old
    new = moved_by(old, moved)
    tick = old.next_after(change + shift)
    assert tick is not None
    after = new.resume_after(old, tick)
    assert after >= tick
    if not expression.fixed:
        assert after == tick
        return
    reached = local(tick, old.rules[0].zone)  # type: ignore[union-attr]
    following = new.next_after(after)
    assert following is not None
    assert local(following, new.rules[0].zone) > reached  # type: ignore[union-attr]
    early, late = offsets_at(new.rules[0].zone, int((reached - datetime(1970, 1, 1)).total_seconds()))  # type: ignore[union-attr]
    skipped = new.next_after(tick)
    while early >= late and skipped is not None and skipped < following:
        assert local(skipped, new.rules[0].zone) <= reached  # type: ignore[union-attr]
        skipped = new.next_after(skipped)


def moved_by(schedule: Schedule, seconds: int) -> Schedule:
    """The same by other rules of its zone: its clock is so much ahead of what it was."""
    rule = schedule.rules[0]
    zone: Any = Moved(rule.zone, timedelta(seconds=seconds))  # type: ignore[union-attr]
    return replace(schedule, rules=(replace(rule, zone=zone),))


class Moved(tzinfo):
    """Another zone's clock, moved."""

    def __init__(self, zone: tzinfo, by: timedelta) -> None:
        self.zone = zone
        self.by = by

    def utcoffset(self, at: datetime | None) -> timedelta:
        assert at is not None
        found = self.zone.utcoffset((at.replace(tzinfo=None) - self.by).replace(fold=at.fold))
        assert found is not None
        return found + self.by

    def dst(self, at: datetime | None) -> None:
        return None

    def tzname(self, at: datetime | None) -> str:
        return "moved"

    def fromutc(self, at: datetime) -> datetime:
        inner = self.zone.fromutc(at.replace(tzinfo=self.zone))
        return (inner.replace(tzinfo=None) + self.by).replace(tzinfo=self, fold=inner.fold)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(expressions(), PLACES, st.integers(-(10**6), 10**6), st.floats(0, 1))
def test_the_next_tick_is_later_and_the_same_from_anywhere_before_it(
    expression: Expression, place: tuple[str, int], shift: int, part: float
) -> None:
    """So a host that looks late, or early, finds the same one."""
    zone, change = place
    schedule = read(expression.text, zone)
    assume(schedule)
    assert schedule
    start = change + shift
    tick = schedule.next_after(start)
    assert tick is not None
    assert tick > start
    between = start + int((tick - 1 - start) * part)
    assert schedule.next_after(between) == tick
    assert schedule.next_after(tick - 1) == tick


@settings(max_examples=200, deadline=None, derandomize=True)
@given(expressions(), st.integers(0, 4 * 10**9))
def test_cronsim_agrees_in_utc(expression: Expression, start: int) -> None:
    """An implementation by other people, over whole years; where nothing is ever due, both say so."""
    assume(not re.search(r"\b([0-9]+)-\1/", expression.text))  # it reads 5-5/2 as 5/2
    schedule = read(expression.text, "UTC")
    found = schedule.next_after(start) if schedule else None
    try:
        expected = int(next(CronSim(expression.text, datetime.fromtimestamp(start, UTC))).timestamp())
    except (CronSimError, StopIteration):  # some it refuses when it reads them, at others it gives up
        expected = None
    assert found == expected


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    st.lists(st.sampled_from(["@every 7m", "@every 90m", "*/10 * * * *", "30 2 * * *", "0 0 L * *"]), min_size=1),
    PLACES,
    st.integers(0, 4 * 86400),
    st.booleans(),
)
def test_a_union_is_all_ticks_of_its_schedules(
    texts: list[str], place: tuple[str, int], length: int, limited: bool
) -> None:
    """Each once, in order, counted without visiting all; none after its end."""
    zone, start = place
    end = start + length
    until = start + length // 2 if limited else None
    expected = sorted({tick for text in texts for tick in all_ticks(text, zone, start - 1, min(end, until or end))})
    schedule, found, tick = parse_schedules(texts, zone=zone, until=until), list[int](), start - 1
    while (following := schedule.next_after(tick)) is not None and following <= end:
        found.append(following)
        tick = following
    assert found == expected
    assert schedule.count_between(start, end) == len(expected)
    assert schedule.last_between(start, end) == (expected[-1] if expected else None)


@pytest.mark.parametrize("host_zone", ["UTC", "America/New_York", "Australia/Lord_Howe", "Pacific/Apia", "XYZ-3:33"])
def test_the_zone_of_the_host_changes_nothing(host_zone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hosts in any zone find the same ticks."""
    cases = [
        (text, zone, int(datetime.fromisoformat(change).timestamp()) - 43200)
        for text in ("*/20 * * * *", "30 1-3 * * *", "0 0 29 2 *", "@every 7h", "H H * * *")
        for zone, change in CHANGES
    ]

    def found() -> list[int | None]:
        return [parse_schedule(text, zone=zone, name="x").next_after(start) for text, zone, start in cases]

    here = found()
    monkeypatch.setenv("TZ", host_zone)
    time.tzset()
    try:
        assert found() == here
    finally:
        monkeypatch.undo()
        time.tzset()


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.integers(1, 10**7), st.integers(-(10**9), 10**11))
def test_every_is_the_next_multiple(seconds: int, start: int) -> None:
    """Of the duration, since the epoch."""
    tick = parse_schedule(f"@every {seconds}s").next_after(start)
    assert tick is not None
    assert tick % seconds == 0
    assert start < tick <= start + seconds


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.text(max_size=30), st.integers(0, 4), st.integers(0, 59), st.integers(1, 70))
def test_hashed_fields_stay_in_their_range(name: str, index: int, low: int, step: int) -> None:
    """For any name, and the same each time."""
    most = LIMITS[index][1]
    low = max(LIMITS[index][0], min(low, most))
    for text in ("H", f"H/{step}", f"H({low}-{most})", f"H({low}-{most})/{step}"):
        fields = ["*"] * 5
        fields[index] = text
        schedule = parse_schedule(" ".join(fields), name=name)
        assert schedule == parse_schedule(" ".join(fields), name=name)
        tick = schedule.next_after(1_700_000_000)
        assert tick is not None
        at = datetime.fromtimestamp(tick, UTC)
        value = (at.minute, at.hour, at.day, at.month, at.isoweekday() % 7)[index]
        assert (low if "(" in text else LIMITS[index][0]) <= value <= most


ODD = st.text("0123456789*/-,@ \tHhLWR#?()janMONevry\n\x00\u00a0٣", max_size=40)
FIVE = st.lists(st.text("0123456789*/-,HhjanMON()", min_size=1, max_size=8), min_size=5, max_size=5).map(" ".join)


@settings(max_examples=500, deadline=None, derandomize=True)
@given(st.text() | ODD | FIVE | FIVE.map("@every ".__add__), st.just("UTC") | st.text() | st.text("./AUTCabc"))
def test_any_text_is_a_schedule_or_bad_input(text: str, zone: str) -> None:
    """Nothing else comes out of the parser, and what it takes has a tick."""
    for named in ("UTC", zone):
        try:
            schedule = parse_schedule(text, zone=named, name="x")
        except BadInput as error:
            if not str(error).isprintable():
                raise
        else:
            assert schedule.next_after(0) is not None
