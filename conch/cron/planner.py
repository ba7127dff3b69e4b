"""The jobs as etcd has them, and the heap of their next ticks."""

import asyncio
import heapq
import math
import os
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from typing import NamedTuple

from conch.core import clock
from conch.cron.fleet_clock import FleetClock
from conch.cron.job import Job, UnreadableJob, parse
from conch.cron.missing import Missed
from conch.cron.placement import Place
from conch.cron.ticks import PendingTick, TrackedJob
from conch.cron.values import seconds_of
from conch.cron.workers import SLICE_S, Alarm, Chores
from conch.errors import BadInput
from conch.etcd.store import KeyValue
from conch.keys import check_name

Log = Callable[..., None]

# Outdated entries are removed from the heap when there are so many more entries than jobs.
_OUTDATED = 1000
# How far the time may go back before all is planned anew, in seconds.
_BACK_S = 1.0
# Which ticks a host takes over from those that could claim or report them before, in seconds.
_TAKEN_OVER_S = 120


class _Planned(NamedTuple):
    due: float
    serial: int
    tick: int
    name: str


class Planner:
    """Knows when each job is due next. It plans no tick from before the daemon's start or the job's last change.

    Ticks that are due go to `due`, ticks that it passes over because they are too late to `missed`.
    """

    def __init__(
        self,
        fleet_clock: FleetClock,
        chores: Chores,
        log: Log,
        *,
        moments: Callable[[int], tuple[float | None, float | None]],
        due: Callable[[PendingTick], None],
        missed: Callable[[str, Missed], None],
        is_clock_off: Callable[[], bool],
        place: Callable[[TrackedJob], Place] = lambda _: Place.CLAIM,
        host: str = "",
        now: Callable[[], float] = clock.now,
    ) -> None:
        """`moments` says of a revision after and before which moment (CLOCK_BOOTTIME) it was; None where it cannot.

        `is_clock_off` compares our clock with the fleet's; `place` is what we do about a job's ticks; `host` is our
        name; `now` is CLOCK_BOOTTIME.
        """
        self._clock = fleet_clock
        self._chores = chores
        self._log = log
        self._moments = moments
        self._due = due
        self._missed = missed
        self._is_clock_off = is_clock_off
        self._place = place
        self._host = host
        self._now = now
        self.jobs: dict[str, TrackedJob] = {}
        self.unreadable: dict[str, tuple[int, bytes]] = {}  # definitions that cannot be read, as reported
        self._since, self._began = self._clock.now(), now()
        self._planned_off: set[str] = set()  # jobs that were planned while our clock was off
        self._heap: list[_Planned] = []
        self._serials = count()
        self._last_now = self._since
        self._changed = Alarm()

    # -- what is due --------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Take up each tick when it is due, in slices of time; wake up for the next tick alone."""
        while True:
            self.take_up_due()
            wait_s = self._next_tick_s()
            if wait_s is not None and wait_s <= 0:
                await asyncio.sleep(0)
            else:
                await self._changed.wait(wait_s)

    def wake(self) -> None:
        """Look at the clock again: it was set, or another host's was heard."""
        self._changed.ring()

    def _next_tick_s(self) -> float | None:
        return self._heap[0].due - self._clock.now() if self._heap and not self._is_clock_off() else None

    def take_up_due(self) -> None:
        """Take up what is due now, for one slice of time; nothing while our clock is off."""
        if self._is_clock_off():
            return
        now = self._clock.now()
        if now < self._last_now - _BACK_S:
            self._plan_all_anew()
        self._last_now = now
        until = self._now() + SLICE_S
        while self._heap and self._heap[0].due <= self._clock.now() and self._now() < until:
            _, serial, tick, name = heapq.heappop(self._heap)
            tracked = self.jobs.get(name)
            if tracked is not None and tracked.planned == serial:  # else it was removed, or is planned anew
                self._take_up(name, tracked, tick)

    def _take_up(self, name: str, tracked: TrackedJob, tick: int) -> None:
        """A planned tick is due: pass it on and plan the next, or pass over the ticks that are too late."""
        job, following = tracked.job, tracked.next_after(tick)
        deadline = tracked.deadline_of(tick, following)
        if deadline < self._clock.now():
            self._pass_over(name, tracked, tick)
            return
        tracked.past = tick
        self._expect(name, tracked, following)
        if tracked.place is Place.REPORT:
            self._missed(name, Missed(tick, tick, 1, deadline))
            return
        offset_s, run = job.offset_s(tick, following), os.urandom(8).hex()
        host = self._host if job.each else ""
        self._due(PendingTick(job, tracked.rev, tick, deadline, run, offset_s=offset_s, host=host))

    def _pass_over(self, name: str, tracked: TrackedJob, first: int) -> None:
        """Go on after ticks that are too late already, as after a suspend of the machine."""
        now, schedule = self._clock.now(), tracked.schedule
        patience_s = tracked.job.late_after_s(first, None) + tracked.job.jitter_s
        following = tracked.next_after(max(first, math.ceil(now - patience_s) - 1))
        while following is not None:  # the ticks of a minute and of the jitter at most
            after = tracked.next_after(following)
            if tracked.deadline_of(following, after) >= now:
                break
            following = after
        tracked.past = int(now) if following is None else following - 1
        self._expect(name, tracked, following)
        self._missed(name, Missed(first, tracked.past, schedule))

    # -- definitions --------------------------------------------------------------------------------------

    def on_job(self, name: str, kv: KeyValue) -> bool:
        """A definition was read or written; whether the job is tracked by it now.

        An unreadable one is reported once and makes the job unknown.
        """
        tracked = self.jobs.get(name)
        if tracked is not None and tracked.rev == kv.mod_revision and tracked.value == kv.value:
            return True  # the value is compared too: an etcd that was wiped has the same revisions for other jobs
        if self.unreadable.get(name) == (kv.mod_revision, kv.value):
            return False
        try:
            check_name(name)
            job = parse(name, kv.value)
        except (UnreadableJob, BadInput) as error:
            self.set_unreadable(name, kv.mod_revision, kv.value, kv.key.decode("utf-8", "replace"), error)
            return False
        self.unreadable.pop(name, None)
        if tracked is not None:
            self._take_up_all_due(name, tracked)  # what is due by now is due by the definition that we knew
        after = int(self._changed_at(job, kv.mod_revision))
        if tracked is None:
            tracked = self.jobs[name] = TrackedJob(job, kv.mod_revision, job.ticks())
        else:
            tracked.job, tracked.rev, tracked.schedule = job, kv.mod_revision, job.ticks()
        tracked.value, tracked.created = kv.value, kv.create_revision
        self.plan(name, tracked, after)
        self._remove_outdated()
        return True

    def set_unreadable(self, name: str, rev: int, value: bytes, key: str, error: Exception) -> None:
        """Report a definition that cannot be read, and plan nothing by it."""
        self.unreadable[name] = (rev, value)
        self._log("warning", "unreadable", key=key, msg=str(error))

    def _changed_at(self, job: Job, revision: int) -> float:
        """From when on the ticks of a definition count, at this revision: none from before it was written.

        It was written before etcd answered with that revision, and after it answered with a lower one. In between, the
        time in the definition counts, by the clock of whoever wrote it; an older time is not of this change.
        """
        now, here = self._clock.now(), self._now()
        after, before = self._moments(revision)
        latest = now if before is None else now - max(0.0, here - before)
        if after is not None:
            fields = job.raw
            said = max(seconds_of(fields.get("added_at")), seconds_of(fields.get("changed_at")))
            if said + 1.0 > now - (here - after):
                latest = min(latest, max(said, now - (here - after)))
        return max(self._since, latest)

    def _take_up_all_due(self, name: str, tracked: TrackedJob) -> None:
        """Take up what is due of one job, before its definition becomes another."""
        while not self._is_clock_off() and tracked.next_tick is not None and tracked.next_tick <= self._clock.now():
            self._take_up(name, tracked, tracked.next_tick)

    # -- planning -----------------------------------------------------------------------------------------

    def plan(self, name: str, tracked: TrackedJob, after: int) -> None:
        """Plan the job's first tick later than `after`, in place of what was planned before."""
        tracked.past, tracked.place = after, self._place(tracked)
        if self._is_clock_off():
            self._planned_off.add(name)
        self._expect(name, tracked, None if tracked.place is Place.NONE else tracked.next_after(after))

    def follow_places(self) -> None:
        """Hosts came, went or changed: plan anew the jobs whose ticks we now have to claim or report, or no longer."""
        for name, tracked in self.jobs.items():
            if self._place(tracked) is not tracked.place:
                self._chores.add(partial(self._follow_place, name))

    def _follow_place(self, name: str) -> None:
        tracked = self.jobs.get(name)
        if tracked is None or self._place(tracked) is tracked.place:
            return
        after = tracked.past
        if tracked.place is Place.NONE:  # what was due just before may be nobody's; etcd knows what was claimed
            after = max(after, int(self._clock.now()) - _TAKEN_OVER_S)
        self.plan(name, tracked, after)

    def _expect(self, name: str, tracked: TrackedJob, tick: int | None) -> None:
        tracked.next_tick, tracked.planned = tick, next(self._serials)
        if tick is not None:
            due = tick + tracked.job.offset_s(tick, tracked.next_after(tick)) if tracked.job.jitter_s else tick
            heapq.heappush(self._heap, _Planned(due, tracked.planned, tick, name))
            if self._heap[0].serial == tracked.planned:
                self._changed.ring()

    def _remove_outdated(self) -> None:
        """Edits leave what was planned before them in the heap until it is due, which may be in a year."""
        if len(self._heap) > 2 * len(self.jobs) + _OUTDATED:
            planned = {tracked.planned for tracked in self.jobs.values()}
            self._heap = [entry for entry in self._heap if entry.serial in planned]
            heapq.heapify(self._heap)

    def _plan_all_anew(self) -> None:
        """The wall clock was set back: plan all ticks anew. Claims keep a tick from running twice."""
        after = int(self._clock.now())
        for name, tracked in self.jobs.items():
            if tracked.past > after:
                self._chores.add(partial(self._plan_anew, name, after))

    def _plan_anew(self, name: str, after: int) -> None:
        tracked = self.jobs.get(name)
        if tracked is not None and tracked.past > after:
            self.plan(name, tracked, after)

    def on_clock_right(self) -> None:
        """Our clock was off and is right again: plan anew what was planned by it; the rest goes on.

        Ticks that are too late by now are passed over.
        """
        now = self._clock.now()
        self._since = now - (self._now() - self._began)
        for name, tracked in self.jobs.items():
            if name in self._planned_off or not self._since - _BACK_S <= tracked.past <= now:
                tracked.planned = next(self._serials)  # until the chore runs, nothing of it is due
                after = now if name in self._planned_off else max(self._since, min(tracked.past, now))
                self._chores.add(partial(self._plan_after, name, tracked.planned, int(after)))
        self._planned_off.clear()
        self._changed.ring()

    def _plan_after(self, name: str, planned: int, after: int) -> None:
        tracked = self.jobs.get(name)
        if tracked is not None and tracked.planned == planned:
            self.plan(name, tracked, after)

    def upcoming(self) -> Iterator[tuple[Job, int | None]]:
        """The jobs, and the next tick of each as it is planned here; None: none is."""
        for tracked in self.jobs.values():
            yield tracked.job, tracked.next_tick
