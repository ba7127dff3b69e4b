"""The jobs as etcd has them, and the heap of their next ticks."""

import heapq
import os
from typing import NamedTuple

from conch.core import clock
from conch.cron.actor import Base
from conch.cron.claiming import Claiming
from conch.cron.claims import Due
from conch.cron.job import Job, UnreadableJob, parse
from conch.cron.records import seconds_of
from conch.cron.runs import Known
from conch.errors import BadInput
from conch.etcd.store import KeyValue
from conch.names import check_name

# Ticks in a row that are looked at one by one before those that are too late are passed over at once.
_STEPS = 10_000
# How far the clock of whoever makes a request may be behind.
_APART_S = 60.0
# Requests for jobs that nobody has are not kept without end.
_REQUESTS = 1000


# What edits have left in the heap is removed when there is so much more than there are jobs.
_OUTDATED = 1000
# How far the time may go back before all is planned anew.
_BACK_S = 1.0


class _Planned(NamedTuple):
    tick: int
    serial: int
    name: str
    rev: int
    now_rev: int = 0
    request: str = ""


class Planning(Claiming):
    """Knows when each job is due next: never before this daemon or the job's last change was there."""

    def __init__(self, base: Base) -> None:
        super().__init__(base)
        self._since = self._clock.now()
        self._ticks: list[_Planned] = []
        self._requests: dict[str, list[tuple[int, int, str]]] = {}  # for jobs that are not known yet
        self._last_now = self._since
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
        self._run_ticks()  # what is due by now is due by the definition that we knew
        after = int(self._changed_at(job, kv.mod_revision))
        if known is None:
            known = self.jobs[name] = Known(job, kv.mod_revision, job.ticks())
        else:
            known.job, known.rev, known.schedule = job, kv.mod_revision, job.ticks()
        known.created = kv.create_revision
        if not job.paused:
            self._plan(name, known, after)
        self._forget_outdated()
        for tick, now_rev, request in self._requests.pop(name, []):
            self._plan_request(name, known, tick, now_rev, request)

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
            revs = {name: known.rev for name, known in self.jobs.items()}
            self._ticks = [one for one in self._ticks if one.now_rev or revs.get(one.name) == one.rev]
            heapq.heapify(self._ticks)

    def _plan(self, name: str, known: Known, after: int) -> None:
        following = known.schedule.next_after(after)
        if following is not None:
            heapq.heappush(self._ticks, _Planned(following, next(self._serial), name, known.rev))

    def _plan_request(self, name: str, known: Known, tick: int, now_rev: int, request: str) -> None:
        heapq.heappush(self._ticks, _Planned(tick, next(self._serial), name, known.rev, now_rev, request))

    def _plan_all_anew(self) -> None:
        """The time went back: what was planned for what it was is too far off. What is done has its claims."""
        self._ticks = [planned for planned in self._ticks if planned.now_rev]
        heapq.heapify(self._ticks)
        for name, known in self.jobs.items():
            if not known.job.paused:
                self._plan(name, known, int(self._clock.now()))

    def _on_request(self, name: str, tick: int, kv: KeyValue, *, live: bool) -> None:
        known = self.jobs.get(name)
        if tick < self._since - _APART_S or (not live and tick <= self._since):
            return
        request = f"{kv.lease:x}"
        if known is not None:
            self._plan_request(name, known, tick, kv.create_revision, request)
        elif len(self._requests) < _REQUESTS:
            self._requests.setdefault(name, []).append((tick, kv.create_revision, request))

    def _run_ticks(self) -> None:
        """Take up what is due now."""
        now = self._clock.now()
        if now < self._last_now - _BACK_S:
            self._plan_all_anew()
        self._last_now = now
        while self._ticks and self._ticks[0].tick <= self._clock.now():
            tick, _, name, rev, now_rev, request = heapq.heappop(self._ticks)
            known = self.jobs.get(name)
            if known is None or (known.rev != rev and not now_rev):
                continue  # removed, or changed: planned anew by that
            following = known.schedule.next_after(tick)
            # a request is made for a moment ago, on another host's clock
            asked_at = now if now_rev and 0 <= now - tick <= _APART_S else tick
            late_at = asked_at + known.job.late_after_s(tick, None if now_rev else following)
            if not now_rev:
                if late_at < self._clock.now():
                    self._pass_over(name, known, tick)
                    continue
                if following is not None:
                    heapq.heappush(self._ticks, _Planned(following, next(self._serial), name, known.rev))
            self._consider(Due(known.job, known.rev, tick, late_at, os.urandom(8).hex(), now_rev, request))

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
