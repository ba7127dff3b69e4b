"""Requests to run a job now (`cron run`): each gets a tick from the daemon that claims it, in the order they were made.

All hosts know a job's requests in the order of their create-revisions and deal with the oldest alone, the first in rank
for it at once, each other a turn later. The claim deletes the request, which tells everybody to go on to the next.
"""

import os
from collections.abc import Container
from dataclasses import dataclass
from functools import partial

from conch.cron.actor import PAUSE_MOST_S, PAUSE_S, Base
from conch.cron.claim_store import PendingTick
from conch.cron.claiming import HELD_BACK_S, TURN_S, Claiming
from conch.cron.runs import TrackedJob
from conch.cron.seconds import free_second, read_seconds
from conch.etcd.store import KeyValue, StoreError

# Requests for jobs that nobody has are not kept without end.
_STRANGE = 1000
# When to look after a request whose claim is under way, should nothing else have led to its end.
_LOOK_AGAIN_S = 1.0


@dataclass(slots=True)
class Request:
    """A request under the number in its key. `due` is the tick at which we try to claim it.

    `planned` says that it will be taken up, and `step` counts the plans: only the newest counts. `looking` says that we
    are finding out which seconds are free.
    """

    name: str
    number: int
    rev: int
    lease: str
    due: PendingTick | None = None
    looking: bool = False
    planned: bool = False
    step: int = 0
    pause_s: float = 0.0


class Requests(Claiming):
    """Knows the requests of all jobs, and gives the oldest of each a tick when it is our turn."""

    def __init__(self, base: Base) -> None:
        super().__init__(base)
        self._asked: dict[str, dict[int, Request]] = {}

    def _on_request(self, name: str, number: int, kv: KeyValue) -> None:
        """A request is there. Raises `ValueError` for one that nobody's end would take away."""
        if not kv.lease:
            raise ValueError("a request needs a lease")
        known = self._asked.get(name, {}).get(number)
        if known is not None and known.rev == kv.create_revision:
            return
        if name not in self.jobs and sum(map(len, self._asked.values())) >= _STRANGE:
            return
        self._asked.setdefault(name, {})[number] = Request(name, number, kv.create_revision, f"{kv.lease:x}")
        self._next_request(name)

    def _forget_request(self, name: str, number: int) -> None:
        """It was claimed, withdrawn, or has expired. A try of ours with an unclear outcome goes on to its end."""
        request = self._asked.get(name, {}).pop(number, None)
        if request is None:
            return
        if not self._asked[name]:
            del self._asked[name]
        if request.due is not None and not request.due.trying and not request.due.unclear:
            self._drop(request.due)
        self._next_request(name)

    def _keep_requests(self, there: Container[bytes]) -> None:
        """Forget those whose keys are not there."""
        for name, number in [(name, number) for name, asked in self._asked.items() for number in asked]:
            if self._keys.cron("now", name, number).encode() not in there:
                self._forget_request(name, number)

    def _first_request(self, name: str) -> Request | None:
        return min(self._asked.get(name, {}).values(), key=lambda one: one.rev, default=None)

    def _next_request(self, name: str) -> None:
        """Take the oldest request of a job up in our turn."""
        request = self._first_request(name)
        if request is not None and not request.planned and name in self.jobs:
            self._take_up_later(request, self._turn(name, request.number) * TURN_S)

    def _take_up_later(self, request: Request, after_s: float) -> None:
        request.planned = True
        request.step += 1
        step = request.step
        self._later(after_s, lambda: self._take_up(request) if request.step == step else None)

    def _take_up(self, request: Request) -> None:
        """Find a free second and claim the request there, unless that is under way or cannot be now."""
        request.planned = False
        known = self.jobs.get(request.name)
        if known is None or self._first_request(request.name) is not request or self._draining:
            return
        if request.looking or (request.due is not None and self._dues.get(request.due.id) is request.due):
            self._take_up_later(request, _LOOK_AGAIN_S)
        elif self._why_not_ready():
            self._take_up_later(request, HELD_BACK_S)
        else:
            self._look_for_second(request, known)

    def _look_for_second(self, request: Request, known: TrackedJob) -> None:
        request.looking = True
        schedule = None if known.job.paused else known.schedule
        rev, now, limit_s = known.rev, int(self._clock.now()), self._limit_s
        is_there = True

        def work() -> int | None:
            nonlocal is_there
            asked = (request.number, request.rev)
            found = read_seconds(self._store, self._keys, request.name, asked, now, timeout_s=limit_s)
            is_there = found is not None
            return None if found is None else free_second(schedule, found.lowest, found.end, found.taken)

        def then(tick: int | None) -> None:
            request.looking = False
            if not is_there:
                if self._asked.get(request.name, {}).get(request.number) is request:
                    self._forget_request(request.name, request.number)
            elif tick is None:
                self._take_up_later(request, _LOOK_AGAIN_S)  # as time goes on seconds come into reach
            else:
                self._claim_request(request, rev, tick)

        self._work(work, then, partial(self._on_no_look, request))

    def _on_no_look(self, request: Request, error: StoreError) -> None:
        request.looking = False
        if not request.pause_s:
            self.tell("warning", "claim-failed", job=request.name, msg=f"a request to run it now waits: {error}")
        request.pause_s = min(2 * request.pause_s or PAUSE_S, PAUSE_MOST_S)
        self._take_up_later(request, request.pause_s)

    def _claim_request(self, request: Request, rev: int, tick: int) -> None:
        known = self.jobs.get(request.name)
        if self._first_request(request.name) is not request:
            return
        if known is None or known.rev != rev or (request.name, tick) in self._dues:
            self._take_up_later(request, PAUSE_S)
            return
        if self._why_not_ready():  # another claim took the room meanwhile: this tick would be of the past
            self._take_up_later(request, HELD_BACK_S)
            return
        late_at = self._clock.now() + known.job.late_after_s(tick, None)
        run = os.urandom(8).hex()
        due = PendingTick(known.job, rev, tick, late_at, run, request.rev, request.lease, request.number)
        request.due = self._dues[due.id] = due
        self._take_up_later(request, _LOOK_AGAIN_S)
        self._attempt(due)

    def _not_claimed(self, due: PendingTick) -> None:
        """A request did not get this tick, for certain: it gets another, if it is still there."""
        request = self._asked.get(due.job.name, {}).get(due.number)
        if request is not None and request.due is due:
            request.due = None
            self._take_up_later(request, request.pause_s)
            request.pause_s = min(2 * request.pause_s or PAUSE_S / 10, PAUSE_MOST_S)
