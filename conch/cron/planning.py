"""The jobs as etcd has them, and the heap of their next ticks."""

import heapq
import os
from typing import NamedTuple

from conch.cron.actor import Base
from conch.cron.claims import Due
from conch.cron.job import UnreadableJob, parse
from conch.cron.requests import Requests
from conch.cron.runs import Known
from conch.errors import BadInput
from conch.etcd.store import KeyValue
from conch.names import check_name

# Ticks in a row that are looked at one by one before those that are too late are passed over at once.
_STEPS = 10_000
# How far the time may go back before all is planned anew.
_BACK_S = 1.0


class _Planned(NamedTuple):
    tick: int
    serial: int
    name: str
    rev: int


class Planning(Requests):
    """Knows when each job is due next: never before this daemon or the job's last change was there."""

    def __init__(self, base: Base) -> None:
        super().__init__(base)
        self._ticks: list[_Planned] = []
        self._last_now = self._clock.now()
        self._unreadable: dict[str, int] = {}

    def _next_tick_s(self) -> float | None:
        return self._ticks[0].tick - self._clock.now() if self._ticks else None

    def _on_job(self, name: str, kv: KeyValue) -> None:
        known = self.jobs.get(name)
        try:
            check_name(name)
            job = parse(name, kv.value)
        except (UnreadableJob, BadInput) as error:
            self._forget_job(name)
            if self._unreadable.get(name) != kv.mod_revision:
                self._unreadable[name] = kv.mod_revision
                self.tell("warning", "unreadable", key=kv.key.decode("utf-8", "replace"), msg=str(error))
            return
        self._unreadable.pop(name, None)
        if known is not None and known.rev == kv.mod_revision and known.job == job:
            return  # an etcd that was wiped has the same revisions for other jobs
        if known is None:
            known = self.jobs[name] = Known(job, kv.mod_revision, job.ticks())
        else:
            known.job, known.rev, known.schedule = job, kv.mod_revision, job.ticks()
        if not job.paused:
            self._plan(name, known, int(self._clock.now()))
        self._next_request(name)

    def _plan(self, name: str, known: Known, after: int) -> None:
        following = known.schedule.next_after(after)
        if following is not None:
            heapq.heappush(self._ticks, _Planned(following, next(self._serial), name, known.rev))

    def _plan_all_anew(self) -> None:
        """The time went back: what was planned for what it was is too far off. What is done has its claims."""
        self._ticks = []
        for name, known in self.jobs.items():
            if not known.job.paused:
                self._plan(name, known, int(self._clock.now()))

    def _run_ticks(self) -> None:
        """Take up what is due now."""
        now = self._clock.now()
        if now < self._last_now - _BACK_S:
            self._plan_all_anew()
        self._last_now = now
        while self._ticks and self._ticks[0].tick <= self._clock.now():
            tick, _, name, rev = heapq.heappop(self._ticks)
            known = self.jobs.get(name)
            if known is None or known.rev != rev:
                continue  # removed, or changed: planned anew by that
            following = known.schedule.next_after(tick)
            late_at = tick + known.job.late_after_s(tick, following)
            if late_at < self._clock.now():
                self._pass_over(name, known, tick)
                continue
            if following is not None:
                heapq.heappush(self._ticks, _Planned(following, next(self._serial), name, known.rev))
            self._consider(Due(known.job, known.rev, tick, late_at, os.urandom(8).hex()))

    def _pass_over(self, name: str, known: Known, first: int) -> None:
        """Go on after ticks that are too late already: the machine was asleep, say."""
        now = self._clock.now()
        last, following, steps = first, known.schedule.next_after(first), 1
        while following is not None and steps < _STEPS:
            after = known.schedule.next_after(following)
            if following + known.job.late_after_s(following, after) >= now:
                break
            last, following, steps = following, after, steps + 1
        else:
            following = known.schedule.next_after(max(last, int(now)))
        if following is not None:
            heapq.heappush(self._ticks, _Planned(following, next(self._serial), name, known.rev))
        self._missed(name, first, last, steps)
