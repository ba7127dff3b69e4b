"""The jobs as etcd has them, and the heap of their next ticks."""

import heapq
import os

from conch.cron.actor import Base
from conch.cron.claiming import Claiming
from conch.cron.claims import Due
from conch.cron.job import UnreadableJob, parse
from conch.cron.runs import Known
from conch.errors import BadInput
from conch.etcd.store import KeyValue
from conch.names import check_name

# Ticks in a row that are looked at one by one before those that are too late are passed over at once.
_STEPS = 10_000


class Planning(Claiming):
    """Knows when each job is due next: never before this daemon or the job's last change was there."""

    def __init__(self, base: Base) -> None:
        super().__init__(base)
        self._since = self._clock.now()
        self._ticks: list[tuple[int, int, str, int, int]] = []  # tick, serial, job, its revision, the request's
        self._unreadable: dict[str, int] = {}

    def _next_tick_s(self) -> float | None:
        return self._ticks[0][0] - self._clock.now() if self._ticks else None

    def _on_job(self, name: str, kv: KeyValue) -> None:
        known = self.jobs.get(name)
        if known is not None and known.rev == kv.mod_revision:
            return
        try:
            check_name(name)
            job = parse(name, kv.value)
        except (UnreadableJob, BadInput) as error:
            self.jobs.pop(name, None)
            if self._unreadable.get(name) != kv.mod_revision:
                self._unreadable[name] = kv.mod_revision
                self.tell("warning", "unreadable", key=kv.key.decode("utf-8", "replace"), msg=str(error))
            return
        self._unreadable.pop(name, None)
        new = Known(job, kv.mod_revision, job.ticks())
        if known is not None:
            new.has_floor, new.run, new.waiting, new.old = known.has_floor, known.run, known.waiting, known.old
        self.jobs[name] = new
        if not job.paused:
            self._plan(name, new, int(self._clock.now()))

    def _plan(self, name: str, known: Known, after: int) -> None:
        following = known.schedule.next_after(after)
        if following is not None:
            heapq.heappush(self._ticks, (following, next(self._serial), name, known.rev, 0))

    def _on_request(self, name: str, tick: int, kv: KeyValue, *, live: bool) -> None:
        known = self.jobs.get(name)
        if known is None or (not live and tick <= self._since):
            return
        heapq.heappush(self._ticks, (tick, next(self._serial), name, known.rev, kv.create_revision))

    def _run_ticks(self) -> None:
        """Take up what is due now."""
        while self._ticks and self._ticks[0][0] <= self._clock.now():
            tick, _, name, rev, now_rev = heapq.heappop(self._ticks)
            known = self.jobs.get(name)
            if known is None or (known.rev != rev and not now_rev):
                continue  # removed, or changed: planned anew by that
            following = known.schedule.next_after(tick)
            late_at = tick + known.job.late_after_s(tick, None if now_rev else following)
            if not now_rev:
                if late_at < self._clock.now():
                    self._pass_over(name, known, tick)
                    continue
                if following is not None:
                    heapq.heappush(self._ticks, (following, next(self._serial), name, known.rev, 0))
            self._consider(Due(known.job, known.rev, tick, late_at, os.urandom(8).hex(), now_rev))

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
            heapq.heappush(self._ticks, (following, next(self._serial), name, known.rev, 0))
        self._missed(name, first, last, steps)
