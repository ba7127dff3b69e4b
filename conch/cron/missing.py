"""Ticks that this daemon did not claim in time: which of them nobody claimed."""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from conch.cron.schedule import Schedule
from conch.cron.workers import Tasks, Workers
from conch.cron.writes import Faults, Writes
from conch.etcd.store import StoreError
from conch.times import rfc3339

# Jobs that one transaction asks about, with two reads each: below etcd's limit of operations.
_ASKED_AT_ONCE = 50
_ASK_S, _ASK_MOST_S = 0.5, 10.0
# A fault without an end of its own is over when it has not happened for so long.
_QUIET_S = 5.0
# Single ticks of a job that wait for etcd to be asked; more of them are kept as one span and a count.
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
        """How many of them are not among `taken`. A request's tick that is none of the schedule does not count."""
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

    Where ticks are put together, all that others have claimed between them is subtracted: rather too few than twice.
    """
    if len(all_missed) <= _SINGLES:
        return list(all_missed)
    first, last = min(some.first for some in all_missed), max(some.newest() for some in all_missed)
    ripe_at = max(some.ripe_at for some in all_missed)
    return [Missed(first, last, sum(some.count() for some in all_missed), ripe_at)]


class MissedTicks:
    """Counts the ticks that nobody ran, once each: etcd is asked which of those that we missed others have claimed."""

    def __init__(
        self,
        taken_between: Callable[[dict[str, tuple[int, int]]], Mapping[str, Collection[int]]],
        tasks: Tasks,
        workers: Workers,
        writes: Writes,
        faults: Faults,
        counts: Counter[tuple[str, str]],
        log: Callable[..., None],
        now: Callable[[], float],
        on_missed: Callable[[str, int, int, int], None],
    ) -> None:
        """`taken_between` says of some jobs which ticks between two others were claimed; it blocks.

        `now` is the wall clock's time. `on_missed` gets a job, the first and the last tick and how many were
        missed. What is counted is in `counts`, under `missed`.
        """
        self._taken_between = taken_between
        self._tasks = tasks
        self._workers = workers
        self._writes = writes
        self._faults = faults
        self._counts = counts
        self._log = log
        self._now = now
        self._on_missed = on_missed
        self._missing: dict[str, list[Missed]] = {}  # to be asked about
        self._asked: list[dict[str, list[Missed]]] = []  # being asked about
        self._timer = False
        self._pause_s = _ASK_S

    def add(self, name: str, missed: Missed) -> None:
        """We did not claim these ticks in time."""
        waiting = self._missing.setdefault(name, [])
        waiting.append(missed)
        waiting[:] = joined(waiting)
        self._ask_later()

    def _ask_later(self) -> None:
        if not self._timer:
            self._timer = True
            self._tasks.later(self._pause_s, lambda: self._tasks.spawn(self._ask()))

    def _take_ripe(self) -> dict[str, list[Missed]]:
        """Take out what nobody can claim any more, of some jobs at a time."""
        now = self._now()
        found: dict[str, list[Missed]] = {}
        for name, missed in list(self._missing.items()):
            ripe = [some for some in missed if some.ripe_at <= now]
            if ripe and len(found) < _ASKED_AT_ONCE:
                found[name] = ripe
                del self._missing[name]
                if len(ripe) < len(missed):
                    self._missing[name] = [some for some in missed if some.ripe_at > now]
        return found

    async def _ask(self) -> None:
        """Ask etcd which of the missed ticks others have claimed; without an answer ask again, more rarely."""
        self._timer = False
        ripe = self._take_ripe()
        if ripe:
            await self._count_unclaimed(ripe)
        if self._missing:
            self._ask_later()

    async def _count_unclaimed(self, ripe: dict[str, list[Missed]]) -> None:
        ends = {name: (min(m.first for m in ms), max(m.newest() for m in ms)) for name, ms in ripe.items()}

        def count() -> dict[str, int]:
            taken = self._taken_between(ends)
            return {name: sum(missed.left(taken[name]) for missed in ms) for name, ms in ripe.items()}

        self._asked.append(ripe)
        try:
            unclaimed = await self._workers.etcd(count)
        except StoreError:
            self._pause_s = min(2 * self._pause_s, _ASK_MOST_S)
            for name, missed in ripe.items():
                self._missing[name] = joined([*missed, *self._missing.pop(name, [])])
            return
        finally:
            self._asked.remove(ripe)
        self._pause_s = _ASK_S
        for name, ticks in unclaimed.items():
            if ticks > 0:
                first, last = ends[name]
                self._on_missed(name, first, last, ticks)
                self._count(job=name, tick=rfc3339(first), until=rfc3339(last), ticks=ticks)

    def _count(self, *, ticks: int, **fields: str) -> None:
        self._counts["missed", ""] += ticks
        fault = self._faults("missed", merge=merged)
        if not fault.lasts:
            self._tasks.later(_QUIET_S, self._end_fault)
        fault.failed(**fields, ticks=ticks)

    def _end_fault(self) -> None:
        fault = self._faults("missed", merge=merged)
        if fault.quiet_s() < _QUIET_S or self._writes.is_open:
            self._tasks.later(_QUIET_S, self._end_fault)
        else:
            fault.over()

    def close(self) -> None:
        """Log what was missed and could not be asked about before the end."""
        left = [missed for some in (self._missing, *self._asked) for missed in some.values()]
        ticks = sum(some.count() for missed in left for some in missed)
        if ticks:
            why = "conchd ends before etcd could be asked which of them others have claimed"
            self._log("warning", "missed", ticks=ticks, msg=why)
        self._faults("missed", merge=merged).over()


def merged(earlier: dict[str, Any], later: dict[str, Any]) -> dict[str, Any]:
    """Two gaps in one line of the log: of so many ticks in all, between these moments."""
    return {
        **({"job": earlier["job"]} if earlier.get("job") == later["job"] else {}),
        "tick": min(earlier["tick"], later["tick"]),
        "until": max(earlier["until"], later["until"]),
        "ticks": earlier["ticks"] + later["ticks"],
    }
