"""Whether this daemon can take another tick, and whether anything is still under way."""

from collections.abc import Callable, Sequence

from conch.cron.claimer import Claimer
from conch.cron.clock_check import ClockCheck
from conch.cron.closer import Closer
from conch.cron.node import Node
from conch.cron.replacement import Replacement
from conch.cron.runner import Runner
from conch.cron.writes import Writes

# How many ticks a daemon has claimed, or is claiming, and not started yet, at most: another host may start the others
# sooner, and if this one dies they are not lost with it.
_AHEAD_MOST = 100


class Readiness:
    """Adds up what the parts have under way. `parts` are asked late: some are made after this one."""

    def __init__(
        self,
        runner: Runner,
        node: Node,
        writes: Writes,
        clock_check: ClockCheck,
        *,
        parts: Callable[[], tuple[Claimer, Closer, Replacement]],
        max_runs: int,
    ) -> None:
        self._runner = runner
        self._node = node
        self._writes = writes
        self._clock_check = clock_check
        self._parts = parts
        self._max_runs = max_runs

    def why_not_ready(self, probe: bool = False) -> str:
        """Why no run could be started now; empty if one could. A `probe` may be sent while etcd takes no writes."""
        if self._node.registration is None:
            return "not registered in etcd"
        if self._used() >= self._max_runs:
            return f"as many runs as this daemon may have: {self._max_runs}"
        if self._ahead() >= _AHEAD_MOST:
            return f"so many runs are yet to be started: {_AHEAD_MOST}"
        if self._writes.is_open and not probe:
            return "etcd takes no writes"
        if not self._parts()[1].has_room:
            return "too many claims are unclear"
        if not self._clock_check.knows_the_time():
            return "the time is not known"
        return "" if self._runner.is_supervisor_answering() else "the supervisor is stopped"

    def free(self) -> int:
        """How many more ticks may be claimed now."""
        return min(self._max_runs - self._used(), _AHEAD_MOST - self._ahead())

    def claims_under_way(self) -> int:
        """How many claims were sent whose outcome is open."""
        under_way: Sequence[int] = [part.under_way for part in self._parts()]
        return sum(under_way)

    def _used(self) -> int:
        return len(self._runner.live()) + self.claims_under_way()

    def _ahead(self) -> int:
        return self._runner.unstarted + self.claims_under_way()
