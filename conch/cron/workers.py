"""The event loop of conchd's keeper: its clock, its coroutines, and the threads for calls that block."""

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any, TypeVar

from conch.core import clock
from conch.etcd.store import StoreError
from conch.limits import is_short

_T = TypeVar("_T")

_ETCD_WORKERS, _DISK_WORKERS = 8, 1
# Work of which there is much, such as planning thousands of jobs, runs in slices of this length, in seconds.
SLICE_S = 0.01


class BoottimeLoop(asyncio.SelectorEventLoop):
    """An event loop on CLOCK_BOOTTIME: a timer that expired during a suspend fires when the machine wakes."""

    def time(self) -> float:
        """Seconds of CLOCK_BOOTTIME."""
        return clock.now()


class Tasks:
    """The coroutines of one loop. An exception in any of them is a defect and ends the loop with it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.ended: asyncio.Future[None] = loop.create_future()
        self._tasks: set[asyncio.Task[None]] = set()
        loop.set_exception_handler(self._on_failed_callback)

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine beside the others."""
        task = self.loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._on_done)

    def later(self, after_s: float, call: Callable[[], object]) -> asyncio.TimerHandle:
        """Call this after so many seconds of CLOCK_BOOTTIME."""
        return self.loop.call_later(after_s, call)

    def cancel_all(self) -> None:
        """Cancel what still runs, when the loop has ended."""
        for task in self._tasks:
            task.cancel()

    @property
    def pending(self) -> set["asyncio.Task[None]"]:
        """The coroutines that have not ended."""
        return set(self._tasks)

    def _on_done(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        defect = None if task.cancelled() else task.exception()
        if defect is not None:
            self._fail(defect)

    def _on_failed_callback(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        defect = context.get("exception")
        if defect is not None:
            self._fail(defect)
        else:
            loop.default_exception_handler(context)

    def _fail(self, defect: BaseException) -> None:
        if not self.ended.done():
            self.ended.set_exception(defect)


class Workers:
    """Runs blocking calls in threads. etcd and the disk have threads of their own: neither waits for the other.

    One thread of each is started immediately, so that work is done even if the system allows no more threads.
    """

    def __init__(self, counts: Counter[tuple[str, str]]) -> None:
        """`counts` gets the errors of etcd, by class."""
        self._counts = counts
        self._etcd = ThreadPoolExecutor(_ETCD_WORKERS, "etcd")
        self._disk = ThreadPoolExecutor(_DISK_WORKERS, "disk")
        for pool in (self._etcd, self._disk):
            pool.submit(int).result()
        self._files = ThreadPoolExecutor(1, "files")  # has no thread before it is used

    async def etcd(self, call: Callable[[], _T]) -> _T:
        """The result of a call to etcd; may raise `StoreError`."""
        try:
            return await self._run(self._etcd, call)
        except StoreError as error:
            self._counts["etcd_errors", type(error).__name__] += 1
            raise

    async def disk(self, call: Callable[[], _T]) -> _T:
        """The result of a call that writes to disk."""
        return await self._run(self._disk, call)

    async def files(self, call: Callable[[], _T]) -> _T:
        """The result of a call that handles temporary files; the journal does not wait for it."""
        return await self._run(self._files, call)

    @staticmethod
    async def _run(pool: Executor, call: Callable[[], _T]) -> _T:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[_T] = loop.create_future()

        def work() -> None:
            try:
                result = call()
            except Exception as error:
                call_in(loop, _set_exception, future, error)
            else:
                call_in(loop, _set_result, future, result)

        try:
            pool.submit(work)
        except RuntimeError as error:
            if not is_short(error):
                raise
            # No further thread can be started. The call is queued all the same, for the threads that are there.
        return await future


def call_in(loop: asyncio.AbstractEventLoop, what: Callable[..., object], *arguments: object) -> None:
    """Call this in the loop's thread; from any thread, also when the loop has ended."""
    try:
        loop.call_soon_threadsafe(what, *arguments)
    except RuntimeError:
        pass  # the loop is closed: nobody waits any more


def ask_in(loop: asyncio.AbstractEventLoop, question: Callable[[], _T]) -> "Future[_T]":
    """Have a question answered in the loop's thread; it is dropped if the future is cancelled before its turn."""
    answer: Future[_T] = Future()

    def reply() -> None:
        if answer.set_running_or_notify_cancel():
            try:
                answer.set_result(question())
            except Exception as error:  # the asker gets it; the loop goes on
                answer.set_exception(error)

    call_in(loop, reply)
    return answer


def _set_result(future: "asyncio.Future[Any]", result: object) -> None:
    if not future.done():
        future.set_result(result)


def _set_exception(future: "asyncio.Future[Any]", error: Exception) -> None:
    if not future.done():
        future.set_exception(error)


class Alarm:
    """One coroutine waits here until a time, or until somebody rings. A ring before the wait ends that wait."""

    __slots__ = ("_rung", "_waiter")

    def __init__(self) -> None:
        self._rung = False
        self._waiter: asyncio.Future[None] | None = None

    def ring(self) -> None:
        """Wake the coroutine that waits, or the next one that will."""
        self._rung = True
        if self._waiter is not None:
            _set_result(self._waiter, None)

    async def wait(self, timeout_s: float | None = None) -> None:
        """Return after so many seconds (None: not before the ring), or when it rings."""
        if not self._rung:
            loop = asyncio.get_running_loop()
            self._waiter = loop.create_future()
            timer = None if timeout_s is None else loop.call_later(timeout_s, _set_result, self._waiter, None)
            try:
                await self._waiter
            finally:
                self._waiter = None
                if timer is not None:
                    timer.cancel()
        self._rung = False


class Chores:
    """Calls that can wait, made in order and in slices of time, with everything else in between."""

    def __init__(self, tasks: Tasks) -> None:
        self._tasks = tasks
        self._calls: deque[Callable[[], None]] = deque()

    def __bool__(self) -> bool:
        return bool(self._calls)

    def add(self, call: Callable[[], None]) -> None:
        """Make this call after those before it."""
        self._calls.append(call)
        if len(self._calls) == 1:
            self._tasks.spawn(self._run())

    async def _run(self) -> None:
        while self._calls:
            until = clock.now() + SLICE_S
            while self._calls and clock.now() < until:
                self._calls[0]()
                self._calls.popleft()
            await asyncio.sleep(0)
