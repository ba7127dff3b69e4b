"""Follows which jobs this daemon may run: plans anew when hosts come, go, or are cordoned."""

from collections.abc import Callable, Iterable, Mapping

from conch.cron.fleet import Fleet
from conch.cron.placement import Place
from conch.cron.planner import Planner
from conch.cron.ticks import PendingTick
from conch.cron.workers import Tasks


class Placing:
    """Passes on what changes in the fleet: once for all that changes at the same moment."""

    def __init__(
        self,
        fleet: Fleet,
        tasks: Tasks,
        *,
        planner: Callable[[], Planner],
        pending: Mapping[tuple[str, int], PendingTick],
    ) -> None:
        """`pending` are the ticks that we may claim."""
        self._fleet = fleet
        self._tasks = tasks
        self._planner = planner
        self._pending = pending
        self._is_due = False

    def follow_soon(self) -> None:
        """Jobs may have another place than before."""
        if not self._is_due:
            self._is_due = True
            self._tasks.later(0.0, self._follow)

    def _follow(self) -> None:
        self._is_due = False
        self._planner().follow_places()
        for tick in self._pending.values():
            if self._fleet.why_not_here(tick.job):
                tick.alarm.ring()  # to be given up

    def each_here(self, names: Iterable[str]) -> frozenset[str]:
        """Which of these jobs run each tick on every host, this one among them."""
        found = [(name, self._planner().jobs.get(name)) for name in names]
        return frozenset(
            name for name, tracked in found if tracked and tracked.job.each and tracked.place is Place.CLAIM
        )
