"""Computes which local times five cron fields match, by arithmetic: days are bits of a month, no loop visits minutes.

A local time is what the clock on the wall shows, in seconds since it showed 1970-01-01 00:00; zones play no part here.
"""

from bisect import bisect_left, bisect_right
from calendar import monthrange
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date

from conch.cron.special_days import SpecialDay, bits

_DAY_S = 86400
_EPOCH = date(1970, 1, 1).toordinal()
_LAST_YEAR = 9999
# Where a century has no leap day, 40 years may pass between two 29 Februaries on the same day of the week.
_RAREST_YEARS = 40
# Sunday's bit of each of six weeks: multiplied by the days of one week, they repeat for longer than a month.
_WEEKS = sum(1 << 7 * week for week in range(6))


@dataclass(frozen=True, slots=True)
class Calendar:
    """The matching minutes: sorted values, and bits for days of the month (1 is bit 0) and of the week (Sunday is)."""

    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    days: int
    months: tuple[int, ...]
    weekdays: int
    either_day: bool
    special_days: tuple[SpecialDay, ...] = ()  # days of the month that depend on the month
    special_weekdays: tuple[SpecialDay, ...] = ()  # the same in the field of weekdays

    @classmethod
    def of(
        cls,
        minutes: Sequence[int],
        hours: Sequence[int],
        days: Sequence[int],
        months: Sequence[int],
        weekdays: Sequence[int],
        *,
        either_day: bool,
        special_days: Sequence[SpecialDay] = (),
        special_weekdays: Sequence[SpecialDay] = (),
    ) -> "Calendar":
        """Build it from the sorted values of each field; Sunday is 0. `either_day`: a day in either field matches."""
        day_bits = sum(1 << day - 1 for day in set(days))
        weekday_bits = sum(1 << day for day in set(weekdays))
        return cls(
            *(tuple(minutes), tuple(hours), day_bits, tuple(months), weekday_bits, either_day),
            *(tuple(special_days), tuple(special_weekdays)),
        )

    def first_from(self, local: int, end: int) -> int | None:
        """Return the first matching whole minute from `local` on and before `end`; `None` if there is none."""
        day, minute = _split(local)
        found = self._first_day(day)
        if found == day and (at := self._first_minute(minute)) is not None:
            return _if_before(day * _DAY_S + at * 60, end)
        if found == day:
            found = self._first_day(day + 1)
        return None if found is None else _if_before(found * _DAY_S + (self.hours[0] * 60 + self.minutes[0]) * 60, end)

    def count(self, begin: int, end: int) -> int:
        """Count the matching whole minutes from `begin` on and before `end`."""
        if begin >= end:
            return 0
        (first, early), (last, late) = _split(begin), _split(end)
        total = self._count_days(first, last) * len(self.hours) * len(self.minutes)
        if early and self._count_days(first, first + 1):
            total -= self._count_minutes(early)
        if late and self._count_days(last, last + 1):
            total += self._count_minutes(late)
        return total

    def _month(self, year: int, month: int) -> int:
        """Return the matching days of a month, as bits."""
        if month not in self.months:
            return 0
        monday, length = monthrange(year, month)
        first = (monday + 1) % 7  # the weekday of the 1st; Sunday is 0
        by_weekday = self.weekdays * _WEEKS >> first | bits(self.special_weekdays, first, length)
        by_date = self.days | bits(self.special_days, first, length)
        found = by_date | by_weekday if self.either_day else by_date & by_weekday
        return found & (1 << length) - 1

    def _first_day(self, day: int) -> int | None:
        start = date.fromordinal(day + _EPOCH)
        for year in range(start.year, min(start.year + _RAREST_YEARS, _LAST_YEAR) + 1):
            for month in self.months:
                if (year, month) < (start.year, start.month):
                    continue
                days = self._month(year, month)
                if (year, month) == (start.year, start.month):
                    days = days >> start.day - 1 << start.day - 1
                if days:
                    return date(year, month, (days & -days).bit_length()).toordinal() - _EPOCH
        return None

    def _first_minute(self, minute: int) -> int | None:
        hour, minute = divmod(minute, 60)
        if hour in self.hours and (at := bisect_left(self.minutes, minute)) < len(self.minutes):
            return hour * 60 + self.minutes[at]
        after = bisect_right(self.hours, hour)
        return self.hours[after] * 60 + self.minutes[0] if after < len(self.hours) else None

    def _count_days(self, first: int, last: int) -> int:
        """Count the matching days from `first` on and before `last`."""
        total = 0
        for year, month, low, high in _months(first, last):
            total += (self._month(year, month) >> low - 1 & (1 << high - low + 1) - 1).bit_count()
        return total

    def _count_minutes(self, minute: int) -> int:
        """Count the matching minutes of a day before this one."""
        hour, minute = divmod(minute, 60)
        within = bisect_left(self.minutes, minute) if hour in self.hours else 0
        return bisect_left(self.hours, hour) * len(self.minutes) + within


def _split(local: int) -> tuple[int, int]:
    """Return the day of the first whole minute from a local time on, and which minute of the day it is."""
    return divmod(-(-local // 60), 1440)


def _if_before(local: int, end: int) -> int | None:
    return local if local < end else None


def _months(first: int, last: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield year, month, first and last day of each month that has days from `first` on and before `last`."""
    while first < last:
        start = date.fromordinal(first + _EPOCH)
        length = min(monthrange(start.year, start.month)[1] - start.day + 1, last - first)
        yield start.year, start.month, start.day, start.day + length - 1
        first += length
