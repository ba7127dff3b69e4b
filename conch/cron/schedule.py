"""When a job is due: cron expressions, `H` fields and `@every`, as absolute instants in the job's own zone.

The grammar is the contract's. Where it leaves something open, and where croniter (which expands the fields) differs:

- `5/15` is `5-59/15`, as in croniter. A step longer than its range leaves the first value.
- `5-5` is 5 alone (croniter: the whole field). A range that runs backwards is refused; only a Sunday at its end counts
  as 7, one at its beginning as 0: `fri-sun`, `5-7`, `7-2`.
- Day of month and day of week: a field counts as `*` when it begins with `*`, as in Debian's cron. Unless one does, a
  day matches that is in either; else one that is in both. So `*/2` with `mon` is the Mondays with an odd date.
- `H` is a fixed value: neither for the days nor for daylight saving does it count as `*`. It is drawn from the whole
  field (days of the month: 1 to 28, which every month has); `H/15` draws its start from the first 15 and goes on to the
  end. It may stand in lists, and each field draws anew.
"""

import re
from bisect import bisect_left
from calendar import monthrange
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from functools import partial
from hashlib import sha256
from typing import NamedTuple
from zoneinfo import ZoneInfo

from conch.durations import parse_duration
from conch.errors import BadInput
from conch.limits import is_short

LONGEST_EXPRESSION = 1000
_BEGIN = -2208988800  # 1900-01-01: clocks before it kept no zones
_END = 253370764800  # 9999-01-01: datetime ends soon after it

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
_DAYS_OF_MONTH = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)

_VALUE = r"[0-9]{1,9}|[A-Za-z]{1,9}"
_ITEM = re.compile(
    rf"""(?: \* | (?P<hash>[Hh]) (?: \( (?P<hash_low>{_VALUE}) - (?P<hash_high>{_VALUE}) \) )?
           | (?P<low>{_VALUE}) (?: - (?P<high>{_VALUE}) )? )
         (?: / (?P<step>[0-9]{{1,9}}) )?""",
    re.VERBOSE,
)
# A key of the IANA database and no path. These also lie in a host's directory of zones, and mean what the host likes.
_ZONE = re.compile(r"(?!(?:posix|right)/)[A-Za-z][A-Za-z0-9_+-]*(?:/[A-Za-z0-9_+-]+){0,2}")
_NO_ZONES = ("localtime", "posixrules", "Factory")


@dataclass(frozen=True, slots=True)
class Schedule:
    """The ticks of one job: the same on every host, for they depend on its expression, zone and (`H`) name alone.

    It keeps no state: ask in any order.
    """

    expression: str
    zone: str
    _rule: "_Every | _Fields"

    def next_after(self, instant: int) -> int | None:
        """Return the first tick strictly later than `instant`, both in Unix seconds.

        `None` means that none follows (before the year 9999). What is before 1900 counts as its beginning.
        """
        if instant >= _END:
            return None
        tick = self._rule.next_after(max(instant, _BEGIN))
        return tick if tick is not None and tick < _END else None


def parse_schedule(expression: str, *, zone: str = "UTC", name: str | None = None) -> Schedule:
    """Read an expression for the job `name` (needed for `H` only) in an IANA zone.

    Raises `BadInput` with one line if it is malformed, if it will never fire, or if the zone is unknown.
    """
    local = _parse_zone(zone)
    if len(expression) > LONGEST_EXPRESSION:
        raise BadInput(f"bad schedule: longer than {LONGEST_EXPRESSION} characters")
    text = expression.strip(" \t")
    try:
        rule = _parse_rule(text, local, name)
    except BadInput as error:
        raise BadInput(f"bad schedule {text[:100]!r}: {error}") from None
    return Schedule(text, zone, rule)


def _parse_zone(zone: str) -> ZoneInfo:
    if _ZONE.fullmatch(zone) and zone not in _NO_ZONES:
        try:
            return ZoneInfo(zone)
        except (KeyError, ValueError, OSError) as error:
            if is_short(error):
                raise
            # not there; not a file of zones; a directory, or a name too long
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
    if round(seconds) < 1 or abs(seconds - round(seconds)) > 1e-6:  # the sum of 300ms and 700ms need not be 1.0
        raise BadInput("@every needs whole seconds, at least 1s")
    return _Every(round(seconds))


def _parse_fields(texts: list[str], zone: ZoneInfo, name: str | None) -> "_Fields":
    from croniter import CroniterError, croniter  # slow to import, and @every does without

    plain = [
        ",".join(_plain(item, field, name) for item in text.split(","))
        for field, text in zip(_FIELDS, texts, strict=True)
    ]
    try:
        expanded = croniter.expand(" ".join(plain))[0]
    except CroniterError as error:
        raise BadInput(str(error)) from None
    minutes, hours, days, months, weekdays = (
        tuple(range(field.low, field.high + 1)) if "*" in values else tuple(sorted(int(value) for value in values))
        for field, values in zip(_FIELDS, expanded, strict=True)
    )
    starred = [text.startswith("*") for text in texts]
    either_day = not (starred[2] or starred[4])
    if not either_day and all(day > _DAYS_OF_MONTH[month - 1] for month in months for day in days):
        raise BadInput("it will never fire: no such month has such a day")
    fixed = not (starred[0] or starred[1])
    return _Fields(zone, minutes, hours, frozenset(days), months, frozenset(weekdays), either_day, fixed)


def _plain(item: str, field: _Field, name: str | None) -> str:
    """Check one item of a list, and write it so that every cron and croniter agree: `*`, `5` or `10-30/5`."""
    if item == "*":
        return item
    bad = partial("bad {} {!r}: {}".format, field.name, item[:40])
    match = _ITEM.fullmatch(item)
    if not match:
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
        most = 28 if field is _DAY and last is None else high
        choices = most - low + 1
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


@dataclass(frozen=True, slots=True)
class _Fields:
    """Five fields, expanded and sorted; `fixed` times are those that daylight saving neither drops nor doubles."""

    zone: ZoneInfo
    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    days: frozenset[int]
    months: tuple[int, ...]
    weekdays: frozenset[int]
    either_day: bool
    fixed: bool

    def next_after(self, instant: int) -> int | None:
        here = datetime.fromtimestamp(instant, self.zone)
        now = here.replace(tzinfo=None, fold=0)
        tick = self._first(now, instant)
        # Where the clock shows a time twice, earlier times may come again before any later one does.
        turned_back = _offset(here.replace(fold=0)) - _offset(here.replace(fold=1))
        if turned_back and (tick is None or tick > instant + turned_back.total_seconds()):
            tick = self._first(now - turned_back, instant)
        return tick

    def _first(self, after: datetime, instant: int) -> int | None:
        ticks = (tick for time in self._local_times(after) for tick in self._instants(time))
        return next((tick for tick in ticks if tick > instant), None)

    def _local_times(self, after: datetime) -> Iterator[datetime]:
        """Yield the matching whole minutes later than `after`, in order, as the calendar has them in any zone."""
        first = after.replace(second=0) + timedelta(minutes=1)
        for year in range(first.year, 10000):
            for month in self.months:
                if (year, month) < (first.year, first.month):
                    continue
                before = date(year, month, 1).toordinal() - 1
                for day in range(1, monthrange(year, month)[1] + 1):
                    if self._on(day, (before + day) % 7):
                        yield from self._times_of_day(datetime(year, month, day), first)

    def _on(self, day: int, weekday: int) -> bool:
        if self.either_day:
            return day in self.days or weekday in self.weekdays
        return day in self.days and weekday in self.weekdays

    def _times_of_day(self, day: datetime, first: datetime) -> Iterator[datetime]:
        if day.date() < first.date():
            return
        for hour in self.hours:
            if day.date() > first.date() or hour >= first.hour:
                for minute in self.minutes:
                    time = day.replace(hour=hour, minute=minute)
                    if time >= first:
                        yield time

    def _instants(self, time: datetime) -> tuple[int, ...]:
        """Return the ticks that a local time gives: none, one, or two."""
        early, late = (time.replace(tzinfo=self.zone, fold=fold) for fold in (0, 1))
        first, second = int(early.timestamp()), int(late.timestamp())
        if first == second:
            return (first,)
        if first < second:
            return (first,) if self.fixed else (first, second)
        if not self.fixed:
            return ()
        # A gap: reckoned with the offset after it, the time lies before the change; with the one before, after it.
        before = _offset(early)
        instants = range(second, first + 1)
        changed = bisect_left(
            instants, True, key=lambda instant: _offset(datetime.fromtimestamp(instant, self.zone)) != before
        )
        return (instants[changed],)


def _offset(time: datetime) -> timedelta:
    offset = time.utcoffset()
    assert offset is not None  # noqa: S101 -- a ZoneInfo always has one
    return offset
