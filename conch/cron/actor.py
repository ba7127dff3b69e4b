"""The scheduler's thread: an inbox, timers, and workers for what takes time.

The parts of the scheduler are layers of one actor: each owns its state, and only this thread touches it. What takes
time (etcd, the disk) is done by a few workers; its outcome comes back as a call in this thread. Nothing is polled.
"""

import heapq
import queue
import threading
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from typing import Any, TypeVar

from conch.core import clock
from conch.core.messages import Message, Note
from conch.core.origin import Origin
from conch.cron.clock import FleetClock
from conch.cron.faults import Breaker, Lasting
from conch.cron.run_log import RunLog
from conch.cron.unreadable import Unreadable
from conch.etcd.connection import Connection
from conch.etcd.store import Store, StoreError, Unreachable
from conch.holder import Holder
from conch.keeper.watchdog import Watchdog
from conch.keys import Keys
from conch.limits import is_short

_T = TypeVar("_T")

_WORKERS, _DISK_WORKERS = 8, 4
PAUSE_S, PAUSE_MOST_S = 0.1, 2.0
# What there is much of, as jobs to be planned, is done in such slices of time, and everything else in between.
SLICE_S = 0.01


# Faults that end as soon as etcd takes a write.
_OF_WRITES = ("claim-failed", "not-delivered", "refresh-failed")
# They are over when they have not happened for so long: some writes may be refused for ever, and others made.
_QUIET_S = 15.0
_OFTEN = 3
# What etcd has refused is sent again one write of a kind at a time, this far apart, until one is made.
RETRY_EVERY_S = 1.5


class Unsent(Exception):
    """Nothing was sent: there was no time left, or etcd takes no writes just now."""


@dataclass(frozen=True, slots=True)
class Base:
    """What a scheduler stands on: its supervisor is `here`, `state` is the id of the state directory.

    `leases` are those that an earlier keeper of the same supervisor had.
    The supervisor's words arrive in `inbox`. With a `key`, jobs must be signed by it; `first` says that etcd must
    answer at the start.
    """

    store: Store
    connection: Connection
    keys: Keys
    watchdog: Watchdog
    ledger: RunLog
    me: Holder
    here: Origin
    leases: frozenset[int]
    state: str
    clock: FleetClock
    inbox: "queue.SimpleQueue[Message | Callable[[], None]]"
    ttl_s: int
    max_runs: int
    key: bytes | None
    first: bool


class Actor(ABC):
    """One thread that owns all state. `ask` and `tell` are for other threads, `run` is the thread."""

    def __init__(self, base: Base) -> None:
        self._store = base.store
        self._connection = base.connection
        self._limit_s = base.connection.command_timeout_s
        self._keys = base.keys
        self._watchdog = base.watchdog
        self._ledger = base.ledger
        self._me = base.me
        self._clock = base.clock
        self._inbox = base.inbox
        self._workers = ThreadPoolExecutor(_WORKERS, "work")
        self._disk = ThreadPoolExecutor(_DISK_WORKERS, "disk")
        for pool in (self._workers, self._disk):
            pool.submit(int).result()  # one thread at least; what takes long would wait for nobody
        self._serial = count()
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._chores: deque[Callable[[], None]] = deque()
        self._writes = Breaker()
        self._recoveries = 0  # how often etcd took writes again
        self._faults: dict[str, Lasting] = {}
        self._report_unreadable = Unreadable(self.tell)
        self._ending_faults = False
        self._retry_at: dict[str, float] = {}
        self.counts: Counter[tuple[str, str]] = Counter()
        self.ended = threading.Event()

    @abstractmethod
    def _handle(self, message: Message) -> None:
        """A message of the supervisor."""

    @abstractmethod
    def _next_tick_s(self) -> float | None:
        """How long until the next tick, None if there is none."""

    @abstractmethod
    def _run_ticks(self) -> None:
        """Take up what is due now."""

    @abstractmethod
    def _probe(self) -> None:
        """Write something, if there is anything to write, to find out whether etcd takes writes again."""

    @abstractmethod
    def _resume(self) -> None:
        """Go on with what was held up: etcd takes writes again."""

    def asked(self, question: Callable[[], _T]) -> "Future[_T]":
        """Put a question to the scheduler's thread; it is dropped if the future is cancelled before its turn."""
        answer: Future[_T] = Future()

        def reply() -> None:
            if answer.set_running_or_notify_cancel():
                try:
                    answer.set_result(question())
                except Exception as error:  # whoever asked is told; the scheduler goes on
                    answer.set_exception(error)

        self._inbox.put(reply)
        return answer

    def ask(self, question: Callable[[], _T], timeout_s: float | None) -> _T:
        """The answer of the scheduler's thread. Raises `TimeoutError`."""
        answer = self.asked(question)
        try:
            return answer.result(timeout_s)
        except TimeoutError:
            answer.cancel()
            raise TimeoutError("the scheduler is busy") from None

    def tell(self, level: str, event: str, **text: str | int | float) -> None:
        """A line for the log."""
        self._watchdog.send(Note(level, event, text))

    def run(self) -> None:
        """Work until everything was given back."""
        while not self.ended.is_set():
            try:
                self._take(self._inbox.get(timeout=self._wait_s()))
                while True:
                    self._take(self._inbox.get_nowait())
            except queue.Empty:
                pass
            self._run_timers()
            self._run_ticks()
            self._run_chores()

    def _take(self, what: Message | Callable[[], None]) -> None:
        if isinstance(what, Message):
            self._handle(what)
        else:
            what()

    def _wait_s(self) -> float | None:
        if self._chores:
            return 0.0
        moments = [self._next_tick_s(), self._timers[0][0] - clock.now() if self._timers else None]
        waits = [moment for moment in moments if moment is not None]
        return max(0.0, min(waits)) if waits else None

    def _later(self, after_s: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._timers, (clock.now() + after_s, next(self._serial), what))

    def _run_timers(self) -> None:
        while self._timers and self._timers[0][0] <= clock.now():
            heapq.heappop(self._timers)[2]()

    def _run_chores(self) -> None:
        """What is in no hurry, in the order in which it came; but for a slice of time only."""
        until = clock.now() + SLICE_S
        while self._chores and clock.now() < until:
            self._chores.popleft()()

    def _work(
        self,
        work: Callable[[], _T],
        then: Callable[[_T], None],
        failed: Callable[[StoreError], None],
        *,
        on_disk: bool = False,
    ) -> None:
        """Have a worker do it; its outcome comes back here. The disk must not wait for etcd, so it has its own."""

        def do() -> None:
            try:
                result = work()
            except StoreError as error:
                self.counts["etcd_errors", type(error).__name__] += 1
                problem = error
                self._inbox.put(lambda: failed(problem))
            except Exception as error:
                defect = error
                self._inbox.put(lambda: _raise(defect))
            else:
                self._inbox.put(lambda: then(result))

        try:
            (self._disk if on_disk else self._workers).submit(do)
        except RuntimeError as error:
            if not is_short(error):
                raise
            # no further thread can be started: it is queued, for those that are there

    def _write(
        self,
        work: Callable[[], _T],
        then: Callable[[_T], None],
        failed: Callable[[StoreError], None],
        unsent: Callable[[], None],
        *,
        probe: bool = False,
    ) -> None:
        """Have a worker write to etcd; `unsent` is called instead, in this thread, while all but probes must wait.

        `work` may raise `Unsent`. `failed` has to call `_on_write_failed`.
        """

        def do() -> list[_T]:
            if self._writes.is_open and not probe:
                return []  # it began to fail while this stood in line
            try:
                return [work()]
            except Unsent:
                return []

        def done(outcome: list[_T]) -> None:
            if not outcome:
                unsent()
                return
            self._on_write_made()
            then(outcome[0])

        if self._writes.is_open and not probe:
            unsent()
        else:
            self._work(do, done, failed)

    def _on_write_failed(self, event: str, error: StoreError, **fields: str | int | float) -> None:
        """After a write that etcd did not take, one probe a pause is sent, and everything else waits."""
        self._fault(event).failed(msg=str(error), **fields)
        if self._writes.failed(str(error)):
            self._probe_later(self._recoveries)

    @staticmethod
    def _was_refused(error: StoreError) -> bool:
        """Whether etcd answered, and made nothing."""
        return not error.unclear and not isinstance(error, Unreachable)

    def _on_write_made(self) -> None:
        if not self._writes.succeeded():
            return
        self._recoveries += 1
        if not self._ending_faults:
            self._ending_faults = True
            self._later(_QUIET_S, self._end_faults)
        self._later(0.0, self._resume)

    def _end_faults(self) -> None:
        lasting = [fault for event in _OF_WRITES if (fault := self._fault(event)).lasts]
        for fault in lasting:
            if not self._writes.is_open and fault.quiet_s() >= _QUIET_S:
                fault.over()
        self._ending_faults = any(fault.lasts for fault in lasting)
        if self._ending_faults:
            self._later(_QUIET_S, self._end_faults)

    def _why_refused(self) -> str:
        """Why some kind of write is refused again and again, others perhaps not; empty if none is."""
        faults = [self._fault(event) for event in _OF_WRITES]
        found = [f for f in faults if f.lasts and f.times >= _OFTEN and f.quiet_s() < _QUIET_S]
        return found[0].reason if found else ""

    def _may_retry(self, event: str) -> bool:
        """Whether a write of the kind whose failure is this event, which etcd has refused, may be sent again now."""
        if clock.now() < self._retry_at.get(event, 0.0):
            return False
        self._retry_at[event] = clock.now() + RETRY_EVERY_S
        return True

    def _retry_made(self, event: str) -> None:
        """One that was refused was made: the others need not wait."""
        self._retry_at.pop(event, None)

    def _probe_later(self, recoveries: int) -> None:
        def probe() -> None:
            if self._recoveries == recoveries:
                self._probe_later(recoveries)
                self._probe()

        self._later(self._writes.next_pause_s(), probe)

    def _fault(self, event: str, **how: Any) -> Lasting:
        """The fault of this name, which is logged a line a minute."""
        if event not in self._faults:
            self._faults[event] = Lasting(event, self.tell, **how)
        return self._faults[event]


def _raise(defect: Exception) -> None:
    raise defect
