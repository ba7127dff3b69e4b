"""Requests to run a job now (`cron run`): each gets a tick from the daemon that claims it, in the order they were made.

All hosts know a job's requests in the order of their create-revisions and deal with the oldest alone: the first in rank
immediately, each other one turn later. The claim deletes the request, so everybody goes on to the next.
"""

import os
from collections.abc import Callable, Container
from dataclasses import dataclass, field

from conch.cron.fleet import Turn
from conch.cron.fleet_clock import FleetClock
from conch.cron.job import Job
from conch.cron.job_fields import read_environment
from conch.cron.seconds import free_second, read_seconds
from conch.cron.ticks import (
    PAUSE_MOST_S,
    PAUSE_S,
    Claim,
    PendingTick,
    TickGivenUp,
    TickLost,
    TickState,
    TrackedJob,
    Wishes,
)
from conch.cron.values import fields_of
from conch.cron.waiting_room import HELD_BACK_S
from conch.cron.workers import Alarm, Tasks, Workers
from conch.errors import BadInput
from conch.etcd.store import KeyValue, Store, StoreError
from conch.keys import Keys

Log = Callable[..., None]

# How many requests for jobs that nobody has are remembered.
_UNKNOWN_MOST = 1000
# When to look again for a free second, in seconds: as time goes on, seconds come into reach.
_LOOK_AGAIN_S = 1.0


@dataclass(slots=True, eq=False)
class Request:
    """A request under the number in its key; `tick` is the one at which we try to claim it."""

    name: str
    number: int
    rev: int
    lease: str
    wishes: Wishes
    tick: PendingTick | None = None
    is_gone: bool = False
    pause_s: float = 0.0
    alarm: Alarm = field(default_factory=Alarm)


@dataclass(frozen=True, slots=True)
class RequestPorts:
    """What the requests ask of the other parts.

    `host` is our name; `tracked` is a job as it is followed now; `why_not_here` says why this host may not claim ticks
    of a job; `is_pending` whether a tick (job, tick) is being claimed; `why_closed` why
    no tick can be claimed now; `turn` is our turn at a job's request; `start` begins the life of a tick and
    reports what became of its claim; `draining` says whether nothing more is to be started, `signed_only` whether jobs
    must be signed.
    """

    host: str
    tracked: Callable[[str], TrackedJob | None]
    why_not_here: Callable[[Job], str]
    is_pending: Callable[[tuple[str, int]], bool]
    why_closed: Callable[[], str]
    turn: Callable[[Job, int], Turn]
    start: Callable[[PendingTick, Callable[[Claim], None]], None]
    draining: Callable[[], bool]
    signed_only: bool = False


def _wishes(value: bytes) -> Wishes:
    """Read what a request asks of its run. Raises `ValueError` for odd variables."""
    fields = fields_of(value)
    try:
        return Wishes(read_environment(fields.get("env")), fields.get("keep_output") is True)
    except BadInput as error:
        raise ValueError(str(error)) from None


class Requests:
    """The requests of all jobs. Each job that has some is served by one coroutine."""

    def __init__(
        self,
        store: Store,
        keys: Keys,
        ports: RequestPorts,
        tasks: Tasks,
        workers: Workers,
        fleet_clock: FleetClock,
        log: Log,
        *,
        timeout_s: float,
    ) -> None:
        self._store = store
        self._keys = keys
        self._ports = ports
        self._tasks = tasks
        self._workers = workers
        self._clock = fleet_clock
        self._log = log
        self._timeout_s = timeout_s
        self._requests: dict[str, dict[int, Request]] = {}
        self._served: set[str] = set()

    def on_request(self, name: str, number: int, kv: KeyValue) -> None:
        """A request is there. Raises `ValueError` for one that no lease would ever take away."""
        if not kv.lease:
            raise ValueError("a request needs a lease")
        known = self._requests.get(name, {}).get(number)
        if known is not None and known.rev == kv.create_revision:
            return
        if self._ports.tracked(name) is None and sum(map(len, self._requests.values())) >= _UNKNOWN_MOST:
            return
        request = Request(name, number, kv.create_revision, f"{kv.lease:x}", _wishes(kv.value))
        self._requests.setdefault(name, {})[number] = request
        if known is not None:
            self._end(known)
        self.serve(name)

    def on_gone(self, name: str, number: int) -> None:
        """The request was claimed or withdrawn, or has expired. A claim of ours that is unclear is still settled."""
        request = self._requests.get(name, {}).pop(number, None)
        if request is None:
            return
        if not self._requests[name]:
            del self._requests[name]
        self._end(request)

    @staticmethod
    def _end(request: Request) -> None:
        request.is_gone = True
        request.alarm.ring()
        tick = request.tick
        if tick is not None and tick.state is TickState.WAITING and not tick.unclear:
            tick.cancel()  # a claim that is, or may be, ours has deleted the request, and goes on to its outcome

    def keep_only(self, keys: Container[bytes]) -> None:
        """Forget the requests whose keys are not among these."""
        for name, number in [(name, number) for name, some in self._requests.items() for number in some]:
            if self._keys.cron("now", name, number).encode() not in keys:
                self.on_gone(name, number)

    def serve(self, name: str) -> None:
        """Deal with the requests of a job, if it is tracked, has some, and nobody does so yet."""
        if name in self._requests and name not in self._served and self._ports.tracked(name) is not None:
            self._served.add(name)
            self._tasks.spawn(self._serve(name))

    def _oldest(self, name: str) -> Request | None:
        return min(self._requests.get(name, {}).values(), key=lambda request: request.rev, default=None)

    # -- serving one job ----------------------------------------------------------------------------------

    async def _serve(self, name: str) -> None:
        try:
            while (request := self._oldest(name)) and (tracked := self._ports.tracked(name)) is not None:
                if self._ports.draining():
                    return
                await request.alarm.wait(self._ports.turn(tracked.job, request.number).wait_s)
                while not request.is_gone and request is self._oldest(name) and not self._ports.draining():
                    if self._ports.tracked(name) is None:
                        return
                    await request.alarm.wait(await self._try(request))
        finally:
            self._served.discard(name)

    async def _try(self, request: Request) -> float:
        """Find a free second and try to claim the request at it; how long to wait before the next try, in seconds."""
        tracked = self._ports.tracked(request.name)
        if tracked is None or self._ports.why_closed():
            return HELD_BACK_S
        if self._ports.why_not_here(tracked.job):
            return _LOOK_AGAIN_S
        rev = tracked.rev
        try:
            tick = await self._find_second(request, tracked)
        except StoreError as error:
            if not request.pause_s:
                msg = f"a request to run it now waits: {error}"
                self._log("warning", "claim-failed", job=request.name, msg=msg)
            request.pause_s = min(2 * request.pause_s or PAUSE_S, PAUSE_MOST_S)
            return request.pause_s
        if request.is_gone:
            return 0.0
        if tick is None:
            return _LOOK_AGAIN_S
        tracked = self._ports.tracked(request.name)
        if tracked is None or tracked.rev != rev or self._ports.is_pending((request.name, tick)):
            return PAUSE_S
        if self._ports.why_closed():  # another claim took the room meanwhile: this tick would be of the past
            return HELD_BACK_S
        deadline = self._clock.now() + tracked.job.late_after_s(tick, None)
        run, host = os.urandom(8).hex(), self._ports.host if tracked.job.each else ""
        what = (request.rev, request.lease, request.number)
        pending = PendingTick(tracked.job, rev, tick, deadline, run, *what, wishes=request.wishes, host=host)
        if request.wishes.env and self._ports.signed_only:
            pending.void = "the variables of a request are not signed, and this host runs only what is"
        return await self._claim(request, pending)

    async def _find_second(self, request: Request, tracked: TrackedJob) -> int | None:
        """The tick that the request can get; None if none is in reach. A request that is gone is marked so.

        One for every host says which tick it is, so that all of them have the same.
        """
        if tracked.job.each:
            return request.number
        is_paused = tracked.next_after(int(self._clock.now())) is None
        schedule = None if is_paused else tracked.schedule
        now, asked = int(self._clock.now()), (request.number, request.rev)

        def read() -> tuple[bool, int | None]:
            found = read_seconds(self._store, self._keys, request.name, asked, now, timeout_s=self._timeout_s)
            if found is None:
                return False, None
            return True, free_second(schedule, found.lowest, found.end, found.taken)

        is_there, tick = await self._workers.etcd(read)
        if not is_there and not request.is_gone:
            self.on_gone(request.name, request.number)
        return tick

    async def _claim(self, request: Request, tick: PendingTick) -> float:
        """Claim the tick, to its outcome; how long to wait before the next try if the request is still there."""
        claims: list[Claim] = []
        settled = Alarm()

        def on_claim(claim: Claim) -> None:
            claims.append(claim)
            settled.ring()

        request.tick = tick
        self._ports.start(tick, on_claim)
        await settled.wait()
        request.tick = None
        if not isinstance(claims[0], TickLost | TickGivenUp):
            if not request.is_gone:  # else another request may have its number by now
                self.on_gone(request.name, request.number)  # the claim has deleted it
            return 0.0
        pause_s = request.pause_s
        request.pause_s = min(2 * request.pause_s or PAUSE_S / 10, PAUSE_MOST_S)
        return pause_s
