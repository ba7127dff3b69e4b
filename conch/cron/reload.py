"""What is read anew while the daemon runs: the rules of time zones, certificates, the password."""

import math
from collections.abc import Callable, Sequence
from functools import partial

from conch.core import clock
from conch.cron import zones
from conch.cron.planner import Planner
from conch.cron.workers import Chores, Tasks, Workers
from conch.errors import BadInput
from conch.etcd.store import Renewal, StoreError

Log = Callable[..., None]

# How often the zones are looked at; soon again while the database is being changed, file by file perhaps.
_ZONES_EVERY_S, _CHECK_S = 3600.0, 60.0


class Reload:
    """Follows changes on disk: of time zones by itself, of everything at a SIGHUP."""

    def __init__(
        self,
        planner: Planner,
        tasks: Tasks,
        workers: Workers,
        chores: Chores,
        log: Log,
        *,
        renew: Callable[[], Sequence[Renewal]],
        set_release: Callable[[str], None],
        list_again: Callable[[], None],
        remove_job: Callable[[str], None],
        job_key: Callable[[str], str],
    ) -> None:
        """`renew` reads certificates and password anew (blocking); `set_release` publishes the release of our zones.

        `list_again` has all keys listed anew, `remove_job` stops following a job, `job_key` is a job's key in etcd.
        """
        self._planner = planner
        self._tasks = tasks
        self._workers = workers
        self._chores = chores
        self._log = log
        self._renew = renew
        self._set_release = set_release
        self._list_again = list_again
        self._remove_job = remove_job
        self._job_key = job_key
        self.release = zones.scan().version
        self._zones_at = clock.now() + _ZONES_EVERY_S
        self._asked = 0  # how many reloads were asked for
        self._reloading = False

    def start(self) -> None:
        """Check the zones from now on."""
        self._tasks.later(_CHECK_S, self._on_timer)

    def check_zones_soon(self) -> None:
        """Another host has another release: ours may have been changed, too."""
        self._zones_at = 0.0

    def _on_timer(self) -> None:
        self._tasks.later(_CHECK_S, self._on_timer)
        if clock.now() >= self._zones_at:
            self._zones_at = math.inf
            self._tasks.spawn(self._check_zones())

    async def _check_zones(self) -> None:
        self._follow_zones(await self._workers.etcd(zones.scan))

    def _follow_zones(self, scan: zones.Scan) -> None:
        """Go over to the changed rules, and log what changed."""
        self._zones_at = clock.now() + (0.0 if scan.changed else _ZONES_EVERY_S)
        if scan.problem:
            self._log("warning", "not-reloaded", what="zones", msg=f"{scan.problem}; the old rules stay")
        elif scan.changed or scan.version != self.release:
            self._log("info", "zones-changed", tzdata=scan.version, zones=" ".join(scan.changed))
            self.release = scan.version
            self._set_release(scan.version)
            for name, tracked in self._planner.jobs.items():
                if tracked.job.tz in scan.changed:
                    self._chores.add(partial(self._follow_zone, name))
            if self._planner.unreadable:  # a zone that they name may be there now
                self._planner.unreadable.clear()
                self._list_again()

    def _follow_zone(self, name: str) -> None:
        """Plan by the new rules. A tick that was due by the old rules does not come again by the new ones."""
        tracked = self._planner.jobs.get(name)
        if tracked is None:
            return
        before = tracked.schedule
        try:
            tracked.schedule = tracked.job.ticks()
        except BadInput as error:
            rev, value = tracked.rev, tracked.value
            self._planner.set_unreadable(name, rev, value, self._job_key(name), error)
            self._remove_job(name)
            return
        self._planner.plan(name, tracked, tracked.schedule.resume_after(before, tracked.past))

    # -- SIGHUP -------------------------------------------------------------------------------------------

    def on_request(self) -> None:
        """Read everything anew, once more if that is under way; one line says what was read."""
        self._asked += 1
        if not self._reloading:
            self._reloading = True
            self._tasks.spawn(self._reload())

    async def _reload(self) -> None:
        done = 0
        while done < self._asked:
            done = self._asked
            try:
                scan, renewals = await self._workers.etcd(lambda: (zones.scan(), self._renew()))
            except StoreError:
                break
            self._report(scan, renewals)
        self._reloading = False

    def _report(self, scan: zones.Scan, renewals: Sequence[Renewal]) -> None:
        self._follow_zones(scan)
        for renewal in renewals:
            if renewal.problem:
                self._log("warning", "not-reloaded", what=renewal.what, msg=f"{renewal.problem}; the old one stays")
        read = [] if scan.problem else [f"zones ({scan.version})"]
        read += [renewal.what for renewal in renewals if not renewal.problem]
        self._log("info", "reloaded", msg=f"read anew: {', '.join(read) or 'nothing'}")
