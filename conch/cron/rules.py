"""The rules of which schedules are made: `@every`, and five fields in a zone. Each knows its ticks by arithmetic."""

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from zoneinfo import ZoneInfo

from conch.cron.calendar import Calendar
from conch.cron.zones import changes, offset_at, offsets_at, year_of

END = 253370764800  # 9999-01-01: datetime ends soon after it
# Zones have tables up to 2087, and a rule for all years after them, which repeats with the calendar every 400 years. A
# schedule that does not fire within those never fires.
_TABLES_END = 4102444800  # 2100-01-01
_CYCLE_S = 146097 * 86400
# Longer than a zone ever set its clock back.
_LONGEST_TURN_S = 2 * 86400


@dataclass(frozen=True, slots=True)
class Every:
    """The multiples of some seconds since the Unix epoch."""

    seconds: int

    def next_after(self, instant: int) -> int:
        return (instant // self.seconds + 1) * self.seconds

    def count_between(self, first: int, last: int) -> int:
        return last // self.seconds - (first - 1) // self.seconds

    def resume_after(self, _before: "Rule", instant: int) -> int:
        return instant


@dataclass(frozen=True, slots=True)
class Fields:
    """Five fields in a zone; `fixed` times are those that daylight saving neither drops nor doubles."""

    calendar: Calendar
    zone: ZoneInfo
    fixed: bool

    def next_after(self, instant: int) -> int | None:
        local = instant + offset_at(self.zone, instant)
        end = min(max(instant, _TABLES_END) + _CYCLE_S, END)
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

    def resume_after(self, before: "Rule", instant: int) -> int:
        if not self.fixed or not isinstance(before, Fields):
            return instant
        reached = instant + offset_at(before.zone, instant)
        early, late = offsets_at(self.zone, reached)
        return max(instant, reached - early if early >= late else self._end_of_gap(reached, early, late))


Rule = Every | Fields
