"""Computes when a job is due: cron expressions, `H` fields and `@every`, as instants in the job's own time zone.

The contract defines the grammar. Where it leaves something open, and where croniter (which expands the fields) differs:

- `5/15` means `5-59/15`, as in croniter. A step longer than its range leaves the first value.
- `5-5` means only 5 (croniter: the whole field). A range that runs backwards is refused, except that
  Sunday counts as 7 at the end of a range and as 0 at its beginning: `fri-sun`, `5-7`, `7-2`.
- Day of month and day of week: a field counts as `*` when it begins with `*`, as in Debian's cron. If neither does, a
  day matches that is in either field; else it must be in both. So `*/2` with `mon` means the Mondays with an odd date.
- `H` is a fixed value: it counts as `*` neither for the days nor for daylight saving. It is drawn from the whole
  field (days of the month: 1 to 28, which every month has); `H/15` draws its start from the first 15 values and
  continues to the end of the field. It may stand in lists, and each field draws its own value.
"""

import re
import time
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from hashlib import sha256
from typing import NamedTuple
from zoneinfo import ZoneInfo

from conch.cron.calendar import DAYS_OF_MONTH, Calendar
from conch.cron.zones import changes, load, offset_at, offsets_at, year_of
from conch.errors import BadInput
from conch.times import parse_duration

LONGEST_EXPRESSION = 1000
_BEGIN = -2208988800  # 1900-01-01: clocks before it kept no zones
_END = 253370764800  # 9999-01-01: datetime ends soon after it
# Zones have tables up to 2087, and a rule for all years after them, which repeats with the calendar every 400 years. A
# schedule that does not fire within those never fires.
_TABLES_END = 4102444800  # 2100-01-01
_CYCLE_S = 146097 * 86400
# Longer than a zone ever set its clock back.
_LONGEST_TURN_S = 2 * 86400

_ALIASES = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}


class _Field(NamedTuple):
    name: str
    low: int
    high: int
    names: tuple[str, ...] = ()


_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_DAY = _Field("day-of-month", 1, 31)
_WEEKDAY = _Field("day-of-week", 0, 6, ("sun", "mon", "tue", "wed", "thu", "fri", "sat"))
_FIELDS = (_Field("minute", 0, 59), _Field("hour", 0, 23), _DAY, _Field("month", 1, 12, _MONTHS), _WEEKDAY)

_VALUE = r"[0-9]{1,9}|[A-Za-z]{1,9}"
_ITEM = re.compile(
    rf"""(?: \* | (?P<hash>[Hh]) (?: \( (?P<hash_low>{_VALUE}) - (?P<hash_high>{_VALUE}) \) )?
           | (?P<low>{_VALUE}) (?: - (?P<high>{_VALUE}) )? )
         (?: / (?P<step>[0-9]{{1,9}}) )?""",
    re.VERBOSE,
)
_HASHED = re.compile(r"(?:^|[ \t,])[Hh]")  # no day or month begins with it
# A key of the IANA database, and no path. The excluded keys are in a host's zone directory, too, but differ by host.
_ZONE = re.compile(r"(?!(?:posix|right)/)[A-Za-z][A-Za-z0-9_+-]*(?:/[A-Za-z0-9_+-]+){0,2}")
# Meaningful only to other crons: the last day, the nearest weekday, a random value.
_OTHER_CRONS = ("l", "w", "lw", "wl", "r")
_NO_ZONES = ("localtime", "posixrules", "Factory")


@dataclass(frozen=True, slots=True)
class Schedule:
    """The ticks of one job. They depend only on its expression, zone and (`H`) name, so all hosts compute the same.

    It keeps no state: its methods may be called in any order, and jobs that are due alike may share one.
    """

    expression: str
    zone: str
    _rule: "_Every | _Fields"

    def next_after(self, instant: int) -> int | None:
        """Return the first tick strictly later than `instant`, both in Unix seconds.

        Returns `None` if none follows (before the year 9999). An instant before 1900 counts as the beginning of 1900.
        """
        if instant >= _END:
            return None
        tick = self._rule.next_after(max(instant, _BEGIN))
        return tick if tick is not None and tick < _END else None

    def count_between(self, first: int, last: int) -> int:
        """Count the ticks from `first` to `last`, both included, without visiting each; from 1900 on."""
        first, last = max(first, _BEGIN), min(last, _END - 1)
        return self._rule.count_between(first, last) if first <= last else 0

    def last_between(self, first: int, last: int) -> int | None:
        """Return the last tick from `first` to `last`, both included; `None` if there is none."""
        if not self.count_between(first, last):
            return None
        instants = range(first, last + 1)
        return instants[bisect_left(instants, True, key=lambda instant: not self.count_between(instant + 1, last))]

    def resume_after(self, before: "Schedule", instant: int) -> int:
        """Return the instant after which this schedule takes over from `before`, whose ticks up to `instant` are past.

        `before` is the same expression under older rules of the zone. The change counts as if the clock had been set
        at `instant`: fixed times that `before` reached on the clock do not come again; all others follow instants.
        """
        return self._rule.resume_after(before._rule, instant)


def parse_schedule(expression: str, *, zone: str = "UTC", name: str | None = None) -> Schedule:
    """Parse an expression for the job `name` (needed for `H` only) in an IANA zone.

    Raises `BadInput` with one line if it is malformed, if it will never fire from now on, or if the zone is unknown.
    """
    local = _parse_zone(zone)
    if len(expression) > LONGEST_EXPRESSION:
        raise BadInput(f"bad schedule: longer than {LONGEST_EXPRESSION} characters")
    text = expression.strip(" \t")
    try:
        return _parse(text, zone, local, name if _HASHED.search(text) else None)
    except BadInput as error:
        raise BadInput(f"bad schedule {text[:100]!r}: {error}") from None


@lru_cache(maxsize=4096)
def _parse(text: str, zone: str, local: ZoneInfo, name: str | None) -> Schedule:
    """Parse an expression; thousands of jobs have few between them."""
    return Schedule(text, zone, _parse_rule(text, local, name))


def _parse_zone(zone: str) -> ZoneInfo:
    found = load(zone) if _ZONE.fullmatch(zone) and zone not in _NO_ZONES else None
    if found is not None:
        return found
    raise BadInput(f"unknown time zone {zone[:100]!r} (write a name of the IANA database, as Europe/Berlin)")


def _parse_rule(text: str, zone: ZoneInfo, name: str | None) -> "_Every | _Fields":
    if not text.replace("\t", " ").isprintable() or not text.isascii():
        raise BadInput("only printable ascii characters, blanks and tabs may stand in it")
    fields = re.split(r"[ \t]+", text) if text else []
    if text.startswith("@"):
        alias = fields[0].lower()
        if alias == "@every":
            return _parse_every(fields[1:])
        if alias == "@reboot":
            raise BadInput("@reboot is not supported: a host that starts is no tick")
        if alias not in _ALIASES or len(fields) > 1:
            raise BadInput(f"write one of {' '.join(_ALIASES)}, @every DURATION, or five fields")
        fields = _ALIASES[alias].split()
    if len(fields) != len(_FIELDS):
        raise BadInput(f"it has {len(fields)} fields, not five: {' '.join(field.name for field in _FIELDS)}")
    return _parse_fields(fields, zone, name)


def _parse_every(words: list[str]) -> "_Every":
    if len(words) != 1:
        raise BadInput("@every needs one duration, as in @every 90s")
    seconds = parse_duration(words[0])
    if round(seconds) < 1 or abs(seconds - round(seconds)) > 1e-6:  # 300ms + 700ms need not sum to exactly 1.0
        raise BadInput("@every needs whole seconds, at least 1s")
    return _Every(round(seconds))


def _parse_fields(texts: list[str], zone: ZoneInfo, name: str | None) -> "_Fields":
    normalized = [
        ",".join(_normalize(item, field, name) for item in text.split(","))
        for field, text in zip(_FIELDS, texts, strict=True)
    ]
    minutes, hours, days, months, weekdays = _expand(" ".join(normalized))
    starred = [text.startswith("*") for text in texts]
    either_day = not (starred[2] or starred[4])
    if not either_day and all(day > DAYS_OF_MONTH[month - 1] for month in months for day in days):
        raise BadInput("it will never fire: no such month has such a day")
    fixed = not (starred[0] or starred[1])
    rule = _Fields(Calendar.of(minutes, hours, days, months, weekdays, either_day=either_day), zone, fixed)
    if not fixed and rule.next_after(int(time.time())) is None:
        raise BadInput("it will never fire: its times are those that the clocks of the zone skip")
    return rule


@lru_cache(maxsize=1024)
def _expand(normalized: str) -> tuple[tuple[int, ...], ...]:
    """Return the values of each field, sorted."""
    from croniter import CroniterError, croniter  # slow to import, and @every does without

    try:
        expanded = croniter.expand(normalized)[0]
    except CroniterError as error:
        raise BadInput(str(error)) from None
    return tuple(
        tuple(range(field.low, field.high + 1)) if "*" in values else tuple(sorted(int(value) for value in values))
        for field, values in zip(_FIELDS, expanded, strict=True)
    )


def _normalize(item: str, field: _Field, name: str | None) -> str:
    """Check one item of a list, and rewrite it in a form that every cron reads alike: `*`, `5` or `10-30/5`."""
    if item == "*":
        return item
    bad = partial("bad {} {!r}: {}".format, field.name, item[:40])
    match = _ITEM.fullmatch(item)
    if not match or any((match[part] or "").lower() in _OTHER_CRONS for part in ("low", "high")):
        raise BadInput(bad("write *, values, ranges 1-5, steps */5, or H; L, W, # and ? are not supported"))
    step = int(match["step"] or 1)
    if step == 0:
        raise BadInput(bad("a step is at least 1"))
    first, last = match["low"] or match["hash_low"], match["high"] or match["hash_high"]
    low = field.low if first is None else _value(first, field, bad)
    open_high = field.high if first is None or match["step"] else low
    high = open_high if last is None else _value(last, field, bad)
    if field is _WEEKDAY:
        if low == 7 != high:
            low = 0
        if high == 0 < low:
            high = 7
    if low > high:
        raise BadInput(bad("the range runs backwards"))
    if match["hash"]:
        if name is None:
            raise BadInput(bad("H needs a job name to be hashed by"))
        highest = 28 if field is _DAY and last is None else high
        choices = highest - low + 1
        digest = sha256(f"{field.name}:{name}".encode(errors="surrogatepass")).digest()
        low += int.from_bytes(digest[:8], "big") % (min(step, choices) if match["step"] else choices)
        if not match["step"]:
            high = low
    return str(low) if low == high else f"{low}-{high}/{step}"


def _value(text: str, field: _Field, bad: "partial[str]") -> int:
    if not text.isdigit():
        if text.lower() not in field.names:
            raise BadInput(bad(f"{text!r} is neither a number nor a name of this field"))
        return field.names.index(text.lower()) + field.low
    high = 7 if field is _WEEKDAY else field.high
    if not field.low <= int(text) <= high:
        raise BadInput(bad(f"{text} is not between {field.low} and {high}"))
    return int(text)


@dataclass(frozen=True, slots=True)
class _Every:
    """The multiples of some seconds since the Unix epoch."""

    seconds: int

    def next_after(self, instant: int) -> int:
        return (instant // self.seconds + 1) * self.seconds

    def count_between(self, first: int, last: int) -> int:
        return last // self.seconds - (first - 1) // self.seconds

    def resume_after(self, _before: "_Every | _Fields", instant: int) -> int:
        return instant


@dataclass(frozen=True, slots=True)
class _Fields:
    """Five fields in a zone; `fixed` times are those that daylight saving neither drops nor doubles."""

    calendar: Calendar
    zone: ZoneInfo
    fixed: bool

    def next_after(self, instant: int) -> int | None:
        local = instant + offset_at(self.zone, instant)
        end = min(max(instant, _TABLES_END) + _CYCLE_S, _END)
        tick = self._first_tick(local + 1, instant, end)
        # Where the clock shows a time twice, earlier times may come again before any later one does.
        early, late = offsets_at(self.zone, local)
        turned_back = early - late
        if turned_back > 0 and (tick is None or tick > instant + turned_back):
            tick = self._first_tick(local - turned_back, instant, end)
        return tick

    def _first_tick(self, local: int, instant: int, end: int) -> int | None:
        """Return the first tick later than `instant` among the local times from `local` on and before `end`.

        A local time that gives no such tick lies in a gap, or in an hour that comes twice. So the loop takes few turns,
        however far apart the matching days are.
        """
        while (at := self.calendar.first_from(local, end)) is not None:
            ticks, local = self._ticks_of(at)
            for tick in ticks:
                if tick > instant:
                    return tick
        return None

    def _ticks_of(self, local: int) -> tuple[tuple[int, ...], int]:
        """Return the ticks of a local time (none, one or two), and the local time at which to continue."""
        early, late = offsets_at(self.zone, local)
        if early == late:
            return (local - early,), local + 60
        if early > late:
            return (local - early,) if self.fixed else (local - early, local - late), local + 60
        change = self._end_of_gap(local, early, late)
        return (change,) if self.fixed else (), max(local + 60, change + offset_at(self.zone, change))

    def _end_of_gap(self, local: int, early: int, late: int) -> int:
        """Return the instant at which the clock skips a local time.

        Converted with the offset after the gap, the time lies before that instant; with the one before it, after.
        """
        instants = range(local - late, local - early + 1)
        return instants[bisect_left(instants, True, key=lambda instant: offset_at(self.zone, instant) != early)]

    def count_between(self, first: int, last: int) -> int:
        """Count like a clock on the wall: fixed times when it first reaches or passes them, others when it shows them.

        That is one count of local times for each stretch between two changes of the offset.
        """
        count = self.calendar.count
        total, reached = 0, None
        for begin, end, offset in self._stretches(first - _LONGEST_TURN_S if self.fixed else first, last + 1):
            shown = begin + offset
            if self.fixed and reached is not None:
                skipped = count(reached, shown) and not count(shown, shown + 1)
                total += 1 if skipped and begin >= first else 0
                shown = max(shown, reached)
            total += count(max(shown, first + offset), end + offset)
            reached = end + offset if reached is None else max(reached, end + offset)
        return total

    def _stretches(self, begin: int, end: int) -> Iterator[tuple[int, int, int]]:
        """Yield the time from `begin` to `end` (Unix seconds) in parts that have one offset each."""
        offset = offset_at(self.zone, begin)
        for year in range(year_of(begin), year_of(end - 1) + 1):
            for change, following in changes(self.zone, year):
                if begin < change < end:
                    yield begin, change, offset
                    begin, offset = change, following
        yield begin, end, offset

    def resume_after(self, before: "_Every | _Fields", instant: int) -> int:
        if not self.fixed or not isinstance(before, _Fields):
            return instant
        reached = instant + offset_at(before.zone, instant)
        early, late = offsets_at(self.zone, reached)
        return max(instant, reached - early if early >= late else self._end_of_gap(reached, early, late))
