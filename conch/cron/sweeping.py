"""When this daemon sweeps: once an hour one of the fleet does, in small pieces, so that nothing waits for it."""

from collections.abc import Iterator

from conch.cron.fleet import order
from conch.cron.planning import Planning
from conch.cron.sweep import Sweep
from conch.etcd.store import StoreError

_FIRST_S, EVERY_S = 20.0, 3600.0
_PAUSE_S = 0.05


class Sweeping(Planning):
    """Sweeps in the hours in which this host is the first in rank; a daemon that is gone leaves out its hour."""

    _sweep: Sweep | None = None

    def _sweep_later(self) -> None:
        self._later(EVERY_S if self._node is not None else _FIRST_S, self._sweep_if_first)

    def _sweep_if_first(self) -> None:
        hour = int(self._clock.now() // EVERY_S)
        if self._node is not None and order(self._takers(), "", hour)[0] == self._me.host:
            self.sweep()
        self._sweep_later()

    def sweep(self) -> None:
        """Begin a sweep, unless one is under way. In the scheduler's thread."""
        if self._sweep is None and not self._draining:
            now = self._clock.now()
            self._sweep = Sweep(self._store, self._keys, self._results, now, timeout_s=self._limit_s)
            self._sweep_on(self._sweep, self._sweep.pages())

    def _sweep_on(self, sweep: Sweep, pages: Iterator[None]) -> None:
        def then(more: bool) -> None:
            if more and not self._draining:
                self._later(_PAUSE_S, lambda: self._sweep_on(sweep, pages))
                return
            self._sweep = None
            if sweep.counts.total():
                self.tell("info", "swept", **sweep.counts)

        def failed(error: StoreError) -> None:
            self._sweep = None
            self.tell("warning", "sweep-failed", msg=f"the next one makes up for it: {error}")

        def work() -> bool:
            for _ in pages:
                return True
            return False

        self._work(work, then, failed)
