"""Days that depend on the month: `L`, `L-3`, `LW`, `15W`, `fri#2`, `5L`, as other crons and croniter write them.

- `L` is the last day of the month, `L-3` three days before it, `LW` the last day from Monday to Friday.
- `15W` is the day from Monday to Friday that is nearest to the 15th, in the same month; none if the month is shorter.
- `fri#2` is the second Friday, `5L` the last one.
"""

import re
from collections.abc import Callable, Sequence
from enum import Enum
from typing import NamedTuple

from conch.errors import BadInput

_OF_MONTH = re.compile(r"(?P<last>l(?:-(?P<before>[0-9]{1,2}))?)|(?P<workday>lw)|(?P<near>[0-9]{1,2})w")
_OF_WEEK = re.compile(r"(?P<day>[a-z]{3}|[0-7])(?:(?P<last>l)|\#(?P<nth>[0-9]))")
_SATURDAY = 6


class Special(Enum):
    """How a day is found in a month."""

    BEFORE_LAST = "so many days before the last"
    LAST_WORKDAY = "the last from Monday to Friday"
    NEAREST_WORKDAY = "the nearest from Monday to Friday"
    NTH_WEEKDAY = "the nth of a weekday"
    LAST_WEEKDAY = "the last of a weekday"


class SpecialDay(NamedTuple):
    """A day of any month. `number` is the days before the last, the date or the weekday (Sunday is 0)."""

    how: Special
    number: int = 0
    nth: int = 0


def parse_day_of_month(item: str) -> SpecialDay | None:
    """Parse `L`, `L-n`, `LW` or `nW`; None for any other item. Raises `BadInput` for a day that no month has."""
    match = _OF_MONTH.fullmatch(item.lower())
    if match is None:
        return None
    if match["workday"]:
        return SpecialDay(Special.LAST_WORKDAY)
    if match["last"]:
        before = int(match["before"] or 0)
        if before > 30:
            raise BadInput("L-n goes from L-1 to L-30")
        return SpecialDay(Special.BEFORE_LAST, before)
    date = int(match["near"])
    if not 1 <= date <= 31:
        raise BadInput("nW goes from 1W to 31W")
    return SpecialDay(Special.NEAREST_WORKDAY, date)


def parse_day_of_week(item: str, names: Sequence[str]) -> SpecialDay | None:
    """Parse `5L` or `fri#2`; None for any other item. Raises `BadInput` for a fifth week and more that is none."""
    match = _OF_WEEK.fullmatch(item.lower())
    if match is None or not (match["day"].isdigit() or match["day"] in names):
        return None
    weekday = int(match["day"]) % 7 if match["day"].isdigit() else names.index(match["day"])
    if match["last"]:
        return SpecialDay(Special.LAST_WEEKDAY, weekday)
    nth = int(match["nth"])
    if not 1 <= nth <= 5:
        raise BadInput("a weekday comes up to 5 times a month: #1 to #5")
    return SpecialDay(Special.NTH_WEEKDAY, weekday, nth)


def stand_in(expression: str) -> bool:
    """Return whether a cron expression has such days; False for one that is malformed."""
    fields = expression.split()
    names = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"]
    try:
        return len(fields) == 5 and any(
            [
                *map(parse_day_of_month, fields[2].split(",")),
                *(parse_day_of_week(item, names) for item in fields[4].split(",")),
            ]
        )
    except BadInput:
        return False


def bits(days: Sequence[SpecialDay], first: int, length: int) -> int:
    """Return the days in a month of `length` days whose 1st is the weekday `first`, as bits (the 1st is bit 0)."""
    found = 0
    for day in days:
        date = _DATES[day.how](day, first, length)
        found |= 1 << date - 1 if 1 <= date <= length else 0
    return found


def _weekday(date: int, first: int) -> int:
    return (first + date - 1) % 7


def _nearest_workday(day: SpecialDay, first: int, length: int) -> int:
    date = day.number
    if date > length:
        return 0
    weekday = _weekday(date, first)
    if weekday == _SATURDAY:
        return date - 1 if date > 1 else 3
    if weekday == 0:
        return date + 1 if date < length else date - 2
    return date


def _last_workday(_day: SpecialDay, first: int, length: int) -> int:
    weekday = _weekday(length, first)
    return length - (1 if weekday == _SATURDAY else 2 if weekday == 0 else 0)


def _nth_weekday(day: SpecialDay, first: int, _length: int) -> int:
    return 1 + (day.number - first) % 7 + 7 * (day.nth - 1)


def _last_weekday(day: SpecialDay, first: int, length: int) -> int:
    return length - (_weekday(length, first) - day.number) % 7


_DATES: dict[Special, Callable[[SpecialDay, int, int], int]] = {
    Special.BEFORE_LAST: lambda day, _, length: length - day.number,
    Special.LAST_WORKDAY: _last_workday,
    Special.NEAREST_WORKDAY: _nearest_workday,
    Special.NTH_WEEKDAY: _nth_weekday,
    Special.LAST_WEEKDAY: _last_weekday,
}
