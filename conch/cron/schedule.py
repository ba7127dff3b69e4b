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
- `L`, `LW`, `15W`, `5L` and `fri#2` are values like others: they may stand in lists, and take neither ranges nor steps.
"""

import re
import time
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from hashlib import sha256
from typing import NamedTuple
from zoneinfo import ZoneInfo

from conch.cron.calendar import Calendar
from conch.cron.rules import END, Every, Fields, Rule
from conch.cron.special_days import SpecialDay, parse_day_of_month, parse_day_of_week
from conch.cron.zones import load
from conch.errors import BadInput
from conch.times import parse_duration

LONGEST_EXPRESSION = 1000
_BEGIN = -2208988800  # 1900-01-01: clocks before it kept no zones

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
# What else a field takes, for messages.
_SPECIAL = {_DAY.name: ", or a day as L, L-3, LW, 15W", _WEEKDAY.name: ", or a day as 5L, fri#2"}
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
# Meaningful only in other places or to other crons: the last day, the nearest weekday, a random value.
_OTHER_CRONS = ("l", "w", "lw", "wl", "r")
_NO_ZONES = ("localtime", "posixrules", "Factory")


@dataclass(frozen=True, slots=True)
class Schedule:
    """The ticks of one job: the union of its rules, up to and including `until` (Unix seconds) if that is set.

    They depend only on the expressions, zone and (`H`) name, so all hosts compute the same. It keeps no state: its
    methods may be called in any order, and jobs that are due alike may share one.
    """

    zone: str
    rules: tuple[Rule, ...]
    until: int | None = None

    def next_after(self, instant: int) -> int | None:
        """Return the first tick strictly later than `instant`, both in Unix seconds.

        Returns `None` if none follows (before the year 9999). An instant before 1900 counts as the beginning of 1900.
        """
        end = END if self.until is None else min(END, self.until + 1)
        if instant >= end:
            return None
        instant = max(instant, _BEGIN)
        ticks = [tick for rule in self.rules if (tick := rule.next_after(instant)) is not None and tick < end]
        return min(ticks, default=None)

    def count_between(self, first: int, last: int) -> int:
        """Count the ticks from `first` to `last`, both included; from 1900 on.

        The ticks of the densest rule are not visited, those of the others are.
        """
        first, last = max(first, _BEGIN), min(last, END - 1, END if self.until is None else self.until)
        if first > last:
            return 0
        if len(self.rules) == 1:
            return self.rules[0].count_between(first, last)
        counts = sorted(((rule.count_between(first, last), at) for at, rule in enumerate(self.rules)), reverse=True)
        total, counted = counts[0][0], [self.rules[counts[0][1]]]
        for _, at in counts[1:]:
            rule, tick = self.rules[at], first - 1
            while (tick := rule.next_after(tick) or END) <= last:
                total += all(other.next_after(tick - 1) != tick for other in counted)
            counted.append(rule)
        return total

    def last_between(self, first: int, last: int) -> int | None:
        """Return the last tick from `first` to `last`, both included; `None` if there is none."""
        if not self.count_between(first, last):
            return None
        instants = range(first, last + 1)
        return instants[bisect_left(instants, True, key=lambda instant: not self.count_between(instant + 1, last))]

    def resume_after(self, before: "Schedule", instant: int) -> int:
        """Return the instant after which this schedule takes over from `before`, whose ticks up to `instant` are past.

        `before` has the same expressions under older rules of the zone. The change counts as if the clock had been set
        at `instant`: fixed times that `before` reached on the clock do not come again; all others follow instants.
        """
        pairs = zip(self.rules, before.rules, strict=True)
        return max(rule.resume_after(earlier, instant) for rule, earlier in pairs)


def parse_schedules(
    expressions: Sequence[str], *, zone: str = "UTC", name: str | None = None, until: int | None = None
) -> Schedule:
    """Parse the union of expressions, which has no ticks later than `until`. Raises `BadInput`, as `parse_schedule`."""
    parsed = [parse_schedule(expression, zone=zone, name=name) for expression in expressions]
    if len(parsed) == 1 and until is None:
        return parsed[0]
    rules = {rule: None for schedule in parsed for rule in schedule.rules}
    return Schedule(zone, tuple(rules), until)


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
    return Schedule(zone, (_parse_rule(text, local, name),))


def _parse_zone(zone: str) -> ZoneInfo:
    found = load(zone) if _ZONE.fullmatch(zone) and zone not in _NO_ZONES else None
    if found is not None:
        return found
    raise BadInput(f"unknown time zone {zone[:100]!r} (write a name of the IANA database, as Europe/Berlin)")


def _parse_rule(text: str, zone: ZoneInfo, name: str | None) -> Rule:
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


def _parse_every(words: list[str]) -> Every:
    if len(words) != 1:
        raise BadInput("@every needs one duration, as in @every 90s")
    seconds = parse_duration(words[0])
    if round(seconds) < 1 or abs(seconds - round(seconds)) > 1e-6:  # 300ms + 700ms need not sum to exactly 1.0
        raise BadInput("@every needs whole seconds, at least 1s")
    return Every(round(seconds))


def _parse_fields(texts: list[str], zone: ZoneInfo, name: str | None) -> Fields:
    normalized, special = [], dict[_Field, list[SpecialDay]]()
    for field, text in zip(_FIELDS, texts, strict=True):
        items = [(item, _special_day(item, field)) for item in text.split(",")]
        special[field] = [day for _, day in items if day is not None]
        normalized.append(",".join(_normalize(item, field, name) for item, day in items if day is None))
    minutes, hours, days, months, weekdays = _expand(" ".join(text or "1" for text in normalized))
    starred = [text.startswith("*") for text in texts]
    calendar = Calendar.of(
        *(minutes, hours, days if normalized[2] else (), months, weekdays if normalized[4] else ()),
        either_day=not (starred[2] or starred[4]),
        special_days=special[_DAY],
        special_weekdays=special[_WEEKDAY],
    )
    if calendar.first_from(0, END) is None:
        raise BadInput("it will never fire: no such month has such a day")
    fixed = not (starred[0] or starred[1])
    rule = Fields(calendar, zone, fixed)
    if not fixed and rule.next_after(int(time.time())) is None:
        raise BadInput("it will never fire: its times are those that the clocks of the zone skip")
    return rule


def in_plain_fields(expression: str, name: str | None = None) -> list[str] | None:
    """Return the five fields of a valid expression, with names like `@daily` and `H` written out; None for `@every`."""
    texts = expression.split()
    if texts[0].startswith("@"):
        if texts[0].lower() == "@every":
            return None
        texts = _ALIASES[texts[0].lower()].split()
    return [
        ",".join(_normalize(item, field, name) if _HASHED.match(item) else item for item in text.split(","))
        for field, text in zip(_FIELDS, texts, strict=True)
    ]


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


def _special_day(item: str, field: _Field) -> SpecialDay | None:
    """Parse an item that means another day in each month; None for any other item."""
    try:
        if field is _DAY:
            return parse_day_of_month(item)
        return parse_day_of_week(item, field.names) if field is _WEEKDAY else None
    except BadInput as error:
        raise BadInput(f"bad {field.name} {item[:40]!r}: {error}") from None


def _normalize(item: str, field: _Field, name: str | None) -> str:
    """Check one item of a list, and rewrite it in a form that every cron reads alike: `*`, `5` or `10-30/5`."""
    if item == "*":
        return item
    bad = partial("bad {} {!r}: {}".format, field.name, item[:40])
    match = _ITEM.fullmatch(item)
    if not match or any((match[part] or "").lower() in _OTHER_CRONS for part in ("low", "high")):
        raise BadInput(bad(f"write *, values, ranges 1-5, steps */5, or H{_SPECIAL.get(field.name, '')}"))
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
