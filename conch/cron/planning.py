"""The jobs as etcd has them, and the heap of their next ticks."""

import heapq
import math
import os
from abc import abstractmethod
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

from conch.core import clock
from conch.cron import zones
from conch.cron.actor import SLICE_S, Base
from conch.cron.claim_store import PendingTick
from conch.cron.job import Job, UnreadableJob, parse
from conch.cron.requests import Requests
from conch.cron.runs import TrackedJob
from conch.cron.values import seconds_of
from conch.errors import BadInput
from conch.etcd.store import KeyValue, Range, Renewal
from conch.keys import check_name

# How often to look at the database of zones; soon again while it is being changed, file by file perhaps.
_ZONES_EVERY_S, _ZONES_CHECK_S = 3600.0, 60.0
# What edits have left in the heap is removed when there is so much more than there are jobs.
_OUTDATED = 1000
# How far the time may go back before all is planned anew.
_BACK_S = 1.0


class _Planned(NamedTuple):
    tick: int
    serial: int
    name: str


class Planning(Requests):
    """Knows when each job is due next: never before this daemon or the job's last change was there."""

    def __init__(self, base: Base) -> None:
        super().__init__(base)
        self._since, self._began = self._clock.now(), clock.now()
        self._planned_off: set[str] = set()  # jobs that were planned while our clock was off
        self._ticks: list[_Planned] = []
        self._last_now = self._since
        self._unreadable: dict[str, tuple[int, bytes]] = {}
        self._registrar.tzdata = zones.scan().version
        self._look_at_zones_at = clock.now() + _ZONES_EVERY_S
        self._reloading = self._reload_again = False
        self._later(_ZONES_CHECK_S, self._on_zones_timer)

    @abstractmethod
    def _list_again(self) -> None:
        """Have everything listed anew."""

    def _next_tick_s(self) -> float | None:
        return self._ticks[0].tick - self._clock.now() if self._ticks and not self._clock_off else None

    def _on_job(self, name: str, kv: KeyValue) -> None:
        known = self.jobs.get(name)
        if known is not None and known.rev == kv.mod_revision and known.value == kv.value:
            return  # an etcd that was wiped has the same revisions for other jobs
        if self._unreadable.get(name) == (kv.mod_revision, kv.value):
            return
        try:
            check_name(name)
            job = parse(name, kv.value)
        except (UnreadableJob, BadInput) as error:
            self._forget_job(name)
            self._unreadable[name] = (kv.mod_revision, kv.value)
            self.tell("warning", "unreadable", key=kv.key.decode("utf-8", "replace"), msg=str(error))
            return
        self._unreadable.pop(name, None)
        if known is not None:
            self._take_up_due(name, known)  # what is due by now is due by the definition that we knew
        after = int(self._changed_at(job, kv.mod_revision))
        if known is None:
            known = self.jobs[name] = TrackedJob(job, kv.mod_revision, job.ticks())
        else:
            known.job, known.rev, known.schedule = job, kv.mod_revision, job.ticks()
        known.value, known.created = kv.value, kv.create_revision
        self._plan(name, known, after)
        self._forget_outdated()
        self._next_request(name)

    def _changed_at(self, job: Job, revision: int) -> float:
        """From when on the ticks of a definition count, at this revision: none from before it was written.

        It was written before etcd answered with that revision, and after it answered with a lower one. In between, the
        job's own word counts, by the clock of whoever wrote it; one that is older is not of this change.
        """
        now, here = self._clock.now(), clock.now()
        after, before = self._store.moments(revision)
        latest = now if before is None else now - max(0.0, here - before)
        said = max(seconds_of(job.raw.get("added_at")), seconds_of(job.raw.get("changed_at")))
        if after is not None and said + 1.0 > now - (here - after):
            latest = min(latest, max(said, now - (here - after)))
        return max(self._since, latest)

    def _forget_outdated(self) -> None:
        """Edits leave what was planned before them in the heap until it is due, which may be in a year."""
        if len(self._ticks) > 2 * len(self.jobs) + _OUTDATED:
            planned = {known.planned for known in self.jobs.values()}
            self._ticks = [one for one in self._ticks if one.serial in planned]
            heapq.heapify(self._ticks)

    def _plan(self, name: str, known: TrackedJob, after: int) -> None:
        """Plan the job's first tick later than `after`, in place of what was planned before."""
        known.past = after
        if self._clock_off:
            self._planned_off.add(name)
        self._expect(name, known, None if known.job.paused else known.schedule.next_after(after))

    def _expect(self, name: str, known: TrackedJob, tick: int | None) -> None:
        known.next_tick, known.planned = tick, next(self._serial)
        if tick is not None:
            heapq.heappush(self._ticks, _Planned(tick, known.planned, name))

    def _plan_all_anew(self) -> None:
        """The time went back: what was planned for what it was is too far off. What is done has its claims."""
        after = int(self._clock.now())
        for name, known in self.jobs.items():
            if known.past > after:
                self._chores.append(partial(self._plan_anew, name, after))

    def _plan_anew(self, name: str, after: int) -> None:
        known = self.jobs.get(name)
        if known is not None and known.past > after:
            self._plan(name, known, after)

    def _on_clock_right(self) -> None:
        """Plan anew what was planned by a wrong time; the rest goes on, and what is too late by now is passed over."""
        now = self._clock.now()
        self._since = now - (clock.now() - self._began)
        for name, known in self.jobs.items():
            if name in self._planned_off or not self._since - _BACK_S <= known.past <= now:
                known.planned = next(self._serial)  # until then nothing
                after = now if name in self._planned_off else max(self._since, min(known.past, now))
                self._chores.append(partial(self._plan_after, name, known.planned, int(after)))
        self._planned_off.clear()

    def _plan_after(self, name: str, planned: int, after: int) -> None:
        known = self.jobs.get(name)
        if known is not None and known.planned == planned:
            self._plan(name, known, after)

    def _run_ticks(self) -> None:
        """Take up what is due now; nothing by a clock that is off."""
        self._follow_clock()
        if self._clock_off:
            return
        now = self._clock.now()
        if now < self._last_now - _BACK_S:
            self._plan_all_anew()
        self._last_now = now
        until = clock.now() + SLICE_S
        while self._ticks and self._ticks[0].tick <= self._clock.now() and clock.now() < until:
            tick, serial, name = heapq.heappop(self._ticks)
            known = self.jobs.get(name)
            if known is not None and known.planned == serial:  # else it was removed, or is planned anew
                self._take_up_tick(name, known, tick)

    def _take_up_tick(self, name: str, known: TrackedJob, tick: int) -> None:
        """A planned tick is due: consider it and plan the next, or pass over what is too late."""
        following = known.schedule.next_after(tick)
        late_at = tick + known.job.late_after_s(tick, following)
        if late_at < self._clock.now():
            self._pass_over(name, known, tick)
            return
        known.past = tick
        self._expect(name, known, following)
        self._consider(PendingTick(known.job, known.rev, tick, late_at, os.urandom(8).hex()))

    def _take_up_due(self, name: str, known: TrackedJob) -> None:
        """What is due of one job, before its definition becomes another."""
        while not self._clock_off and known.next_tick is not None and known.next_tick <= self._clock.now():
            self._take_up_tick(name, known, known.next_tick)

    def _pass_over(self, name: str, known: TrackedJob, first: int) -> None:
        """Go on after ticks that are too late already: the machine was asleep, say."""
        now, schedule = self._clock.now(), known.schedule
        patience_s = known.job.late_after_s(first, None)
        following = schedule.next_after(max(first, math.ceil(now - patience_s) - 1))
        while following is not None:  # a minute's ticks at most
            after = schedule.next_after(following)
            if following + known.job.late_after_s(following, after) >= now:
                break
            following = after
        known.past = int(now) if following is None else following - 1
        self._expect(name, known, following)
        self._missed(name, first, known.past, schedule)

    # -- what is read anew: zones, certificates, the password -----------------------------------------------

    def _on_zones_timer(self) -> None:
        self._later(_ZONES_CHECK_S, self._on_zones_timer)
        if clock.now() >= self._look_at_zones_at:
            self._look_at_zones_at = math.inf
            self._work(zones.scan, self._on_zones, lambda _: None)

    def _on_zones(self, look: zones.Scan) -> None:
        """Go over to the rules of the zones that have changed, and say what the fleet is to know of it."""
        self._look_at_zones_at = clock.now() + (0.0 if look.changed else _ZONES_EVERY_S)
        if look.problem:
            self.tell("warning", "not-reloaded", what="zones", msg=f"{look.problem}; the old rules stay")
        elif look.changed or look.version != self._registrar.tzdata:
            shown = " ".join(look.changed)
            self.tell("info", "zones-changed", tzdata=look.version, zones=shown)
            self._registrar.tzdata = look.version
            self._tell_time()
            for name, known in self.jobs.items():
                if known.job.tz in look.changed:
                    self._chores.append(partial(self._follow_zone, name))
            if self._unreadable:  # a zone that they name may be there now
                self._unreadable.clear()
                self._list_again()

    def _follow_zone(self, name: str) -> None:
        """Plan by the new rules. What was due by the old ones, at whatever time of the clock, does not come again."""
        known = self.jobs.get(name)
        if known is None:
            return
        before = known.schedule
        try:
            known.schedule = known.job.ticks()
        except BadInput as error:
            self.tell("warning", "unreadable", key=self._keys.cron("job", name), msg=str(error))
            self._unreadable[name] = (known.rev, known.value)
            self._forget_job(name)
            return
        self._plan(name, known, known.schedule.resume_after(before, known.past))

    def _on_reload(self) -> None:
        """SIGHUP: read anew what can be; one line says what was."""
        if self._reloading:
            self._reload_again = True
            return
        self._reloading = True
        probe = Range(self._keys.node(self._me.host).encode())

        def work() -> tuple[zones.Scan, Sequence[Renewal]]:
            return zones.scan(), self._store.renew(probe, timeout_s=self._limit_s)

        self._work(work, self._on_reloaded, lambda _: None)

    def _on_reloaded(self, found: tuple[zones.Scan, Sequence[Renewal]]) -> None:
        look, renewals = found
        self._on_zones(look)
        for one in renewals:
            if one.problem:
                self.tell("warning", "not-reloaded", what=one.what, msg=f"{one.problem}; the old one stays")
        read = [] if look.problem else [f"zones ({look.version})"]
        read += [one.what for one in renewals if not one.problem]
        self.tell("info", "reloaded", msg=f"read anew: {', '.join(read) or 'nothing'}")
        self._reloading = False
        if self._reload_again:
            self._reload_again = False
            self._on_reload()
