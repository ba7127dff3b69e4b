"""Paces the writes to etcd while it takes none: one probe at a time finds out when it takes them again."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from enum import Enum
from typing import Any, TypeVar

from conch.core import clock
from conch.cron.faults import Breaker, Lasting
from conch.cron.workers import Tasks, Workers
from conch.etcd.store import StoreError, Unreachable

_T = TypeVar("_T")
Log = Callable[..., None]

# A fault is over when it has not happened for so long: some writes may be refused for ever while others are made.
_QUIET_S = 15.0
# A kind of write that was refused so often counts as refused.
_OFTEN = 3
# A write that etcd has refused is repeated one at a time of its kind, this far apart, until one is made.
RETRY_EVERY_S = 1.5


class WriteKind(Enum):
    """A kind of write, by the log event of its failure."""

    CLAIM = "claim-failed"
    RESULT = "not-delivered"
    REFRESH = "refresh-failed"


class Unsent(Exception):
    """Nothing was sent: there was no time left, or etcd takes no writes now."""


class Faults:
    """The lasting faults of a daemon, by log event; each is logged a line a minute."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._faults: dict[str, Lasting] = {}

    def __call__(self, event: str, **options: Any) -> Lasting:
        """The fault of this event; `options` are those of `Lasting`."""
        if event not in self._faults:
            self._faults[event] = Lasting(event, self._log, **options)
        return self._faults[event]


class Writes:
    """A circuit breaker for writes. While it is open, everything waits but one probe a pause.

    Probes take the kinds of writes in rotation, so that a kind which is refused for itself does not keep the others
    from being tried.
    """

    def __init__(self, tasks: Tasks, workers: Workers, faults: Faults) -> None:
        self._tasks = tasks
        self._workers = workers
        self._faults = faults
        self._breaker = Breaker()
        self._probers: Sequence[Callable[[], bool]] = ()
        self._resumed: Sequence[Callable[[], object]] = ()
        self._turn = 0  # which prober is the next
        self._recoveries = 0  # how often the breaker closed again
        self._ending_faults = False
        self._retry_at: dict[WriteKind, float] = {}

    def connect(self, probers: Sequence[Callable[[], bool]], resumed: Sequence[Callable[[], object]]) -> None:
        """Each of `probers` sends one write if it has one, and returns whether; `resumed` are called after a fault."""
        self._probers, self._resumed = probers, resumed

    @property
    def is_open(self) -> bool:
        """Whether etcd takes no writes, so that all but a probe must wait."""
        return self._breaker.is_open

    @property
    def reason(self) -> str:
        """Why etcd takes no writes, or refuses a kind of them again and again; empty if neither is so."""
        if self._breaker.reason:
            return self._breaker.reason
        faults = [self._faults(kind.value) for kind in WriteKind]
        found = [f for f in faults if f.lasts and f.times >= _OFTEN and f.quiet_s() < _QUIET_S]
        return found[0].reason if found else ""

    async def send(self, call: Callable[[], _T], *, probe: bool = False) -> _T:
        """Make a write. Raises `Unsent` if the breaker is open and this is no probe, `StoreError` if etcd fails.

        Whoever catches a `StoreError` has to report it by `failed`.
        """

        def work() -> _T:
            if not self.may_send(probe=probe):
                raise Unsent  # writes began to fail while this one queued for a worker
            return call()

        return await self.gather(lambda: self._workers.etcd(work), probe=probe)

    async def gather(self, write: Callable[[], Awaitable[_T]], *, probe: bool = False) -> _T:
        """Make a write that is sent together with others; as `send`.

        Its sender has to ask `may_send` when its time has come.
        """
        if not self.may_send(probe=probe):
            raise Unsent
        result = await write()
        self.on_success()
        return result

    def may_send(self, *, probe: bool) -> bool:
        """Whether a write may be sent now; from any thread."""
        return probe or not self._breaker.is_open

    def on_success(self) -> None:
        """A write was made: etcd takes writes."""
        if not self._breaker.succeeded():
            return
        self._recoveries += 1
        if not self._ending_faults:
            self._ending_faults = True
            self._tasks.later(_QUIET_S, self._end_faults)
        self._tasks.later(0.0, self._resume)

    def failed(self, event: str, error: StoreError, **fields: str | int | float) -> None:
        """Etcd did not take a write: log it under this event, and let everything but probes wait."""
        self._faults(event).failed(msg=str(error), **fields)
        if self._breaker.failed(str(error)):
            self._probe_later(self._recoveries)

    def may_retry(self, kind: WriteKind) -> bool:
        """Whether a write of this kind that etcd has refused may be sent again now; True takes the turn."""
        if clock.now() < self._retry_at.get(kind, 0.0):
            return False
        self._retry_at[kind] = clock.now() + RETRY_EVERY_S
        return True

    def retry_made(self, kind: WriteKind) -> None:
        """A refused write was made: the others of its kind need not wait for turns."""
        self._retry_at.pop(kind, None)

    def _probe_later(self, recoveries: int) -> None:
        def probe() -> None:
            if self._recoveries == recoveries:
                self._probe_later(recoveries)
                self._probe()

        self._tasks.later(self._breaker.next_pause_s(), probe)

    def _probe(self) -> None:
        for _ in self._probers:
            self._turn = (self._turn + 1) % len(self._probers)
            if self._probers[self._turn]():
                return

    def _resume(self) -> None:
        for resumed in self._resumed:
            resumed()

    def _end_faults(self) -> None:
        lasting = [fault for kind in WriteKind if (fault := self._faults(kind.value)).lasts]
        for fault in lasting:
            if not self._breaker.is_open and fault.quiet_s() >= _QUIET_S:
                fault.over()
        self._ending_faults = any(fault.lasts for fault in lasting)
        if self._ending_faults:
            self._tasks.later(_QUIET_S, self._end_faults)


class ProbeQueue:
    """Coroutines with writes of one kind that wait while etcd takes none. A probe wakes the first, a recovery all."""

    def __init__(self) -> None:
        self._waiters: deque[asyncio.Future[bool]] = deque()

    async def wait(self) -> bool:
        """Wait for a turn; whether it is that of a probe."""
        waiter: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        return await waiter

    def probe(self) -> bool:
        """Wake the coroutine that waits longest to send a probe; whether there is one."""
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(True)
                return True
        return False

    def resume(self) -> None:
        """Wake all."""
        waiters, self._waiters = self._waiters, deque()
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(False)


def was_refused(error: StoreError) -> bool:
    """Whether etcd answered, and made nothing."""
    return not error.unclear and not isinstance(error, Unreachable)
