"""Ticks that we did not claim in time, until it is known which of them others have."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from conch.cron.schedule import Schedule

# Single ticks of a job that wait for etcd to be asked; more are kept as one stretch, and a number.
_SINGLES = 64


@dataclass(frozen=True, slots=True)
class Missed:
    """Ticks from `first` to `last`: a number of them, or all of a schedule. Nobody can claim them from `ripe_at` on."""

    first: int
    last: int
    ticks: int | Schedule
    ripe_at: float = 0.0

    def count(self) -> int:
        """How many there are."""
        return self.ticks.count_between(self.first, self.last) if isinstance(self.ticks, Schedule) else self.ticks

    def left(self, taken: Collection[int]) -> int:
        """How many there are but for those that were taken; what was taken at no tick of the schedule is none."""
        within = [tick for tick in taken if self.first <= tick <= self.last]
        if isinstance(self.ticks, Schedule):
            within = [tick for tick in within if self.ticks.count_between(tick, tick)]
        return max(0, self.count() - len(within))

    def newest(self) -> int:
        """The last of them."""
        if isinstance(self.ticks, Schedule):
            return self.ticks.last_between(self.first, self.last) or self.last
        return self.last


def joined(all_missed: Sequence[Missed]) -> list[Missed]:
    """The same ticks, in a list that does not grow without end.

    What others have claimed between those that are put together counts against them: rather too few than twice.
    """
    if len(all_missed) <= _SINGLES:
        return list(all_missed)
    first, last = min(one.first for one in all_missed), max(one.newest() for one in all_missed)
    ripe_at = max(one.ripe_at for one in all_missed)
    return [Missed(first, last, sum(one.count() for one in all_missed), ripe_at)]
