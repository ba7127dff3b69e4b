"""When this daemon sweeps: once an hour one of the fleet does, in small pieces, so that nothing waits for it."""

import asyncio
from collections.abc import Callable
from functools import partial

from conch.cron.fleet import Fleet
from conch.cron.result_store import ResultStore
from conch.cron.scheduler_spec import SchedulerPort
from conch.cron.sweep import Sweep
from conch.cron.ticks import Registration
from conch.cron.workers import Tasks, Workers
from conch.etcd.store import StoreError

Log = Callable[..., None]

_FIRST_S, EVERY_S = 20.0, 3600.0
_PAUSE_S = 0.05


def make_sweeping(
    port: SchedulerPort,
    workers: Workers,
    results: ResultStore,
    fleet: Fleet,
    registration: Callable[[], Registration | None],
) -> "Sweeping":
    """Make the sweeping of this host."""
    spec = port.spec
    return Sweeping(
        *(port.tasks, workers, port.log),
        new_sweep=lambda now: Sweep(spec.store, spec.keys, results, now, timeout_s=spec.timeout_s),
        is_first=partial(fleet.is_first, ""),
        is_registered=lambda: registration() is not None,
        draining=lambda: port.is_draining,
        now=spec.clock.now,
    )


class Sweeping:
    """Sweeps in the hours in which this host is the first in rank. A daemon that is dead leaves out its hour."""

    def __init__(
        self,
        tasks: Tasks,
        workers: Workers,
        log: Log,
        *,
        new_sweep: Callable[[float], Sweep],
        is_first: Callable[[int], bool],
        is_registered: Callable[[], bool],
        draining: Callable[[], bool],
        now: Callable[[], float],
    ) -> None:
        """`new_sweep(now)` begins one, `is_first(hour)` says whether it is our turn; `now` is the wall clock's time."""
        self._tasks = tasks
        self._workers = workers
        self._log = log
        self._new_sweep = new_sweep
        self._is_first = is_first
        self._is_registered = is_registered
        self._draining = draining
        self._now = now
        self._sweeping = False

    async def run(self) -> None:
        """Sweep whenever it is our turn."""
        while True:
            await asyncio.sleep(EVERY_S if self._is_registered() else _FIRST_S)
            if self._is_registered() and self._is_first(int(self._now() // EVERY_S)):
                self.start()

    def start(self) -> None:
        """Begin a sweep, unless one is under way."""
        if not self._sweeping and not self._draining():
            self._sweeping = True
            self._tasks.spawn(self._sweep())

    async def _sweep(self) -> None:
        sweep = self._new_sweep(self._now())
        pages = sweep.pages()

        def work() -> bool:
            """Whether there is another page."""
            return next(pages, self) is None

        try:
            while await self._workers.etcd(work) and not self._draining():
                await asyncio.sleep(_PAUSE_S)
            if sweep.counts.total():
                self._log("info", "swept", **sweep.counts)
        except StoreError as error:
            self._log("warning", "sweep-failed", msg=f"the next one makes up for it: {error}")
        finally:
            self._sweeping = False
