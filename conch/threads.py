"""Threads, events and inboxes as `threading` and `queue` have them; importing those takes longer than a keeper's start.

Every thread is a daemon: it does not keep the process from ending.
"""

import sys
import time
from _thread import TIMEOUT_MAX, allocate_lock, start_new_thread

from conch.static_typing import TYPE_CHECKING, Any, Callable

if TYPE_CHECKING:
    from queue import Empty as Empty
    from queue import SimpleQueue as SimpleQueue
else:
    try:
        from _queue import Empty, SimpleQueue
    except ImportError:  # nobody promises this name
        from queue import Empty, SimpleQueue  # noqa: F401

Lock = allocate_lock

_crashed: Callable[[BaseException], None] | None = None


def guard(crashed: Callable[[BaseException], None]) -> None:
    """Have `crashed` called with the error that ends a thread. Call it before the first thread starts."""
    global _crashed
    _crashed = crashed
    if "threading" in sys.modules:
        guard_others()


def guard_others() -> None:
    """Guard the threads of libraries alike. Call it before the first of them starts."""
    import threading

    if _crashed is not None:
        crashed: Callable[[Any], None] = _crashed
        threading.excepthook = lambda args: crashed(args.exc_value)


def start(work: Callable[..., object], *arguments: Any) -> None:
    """Call `work` in a thread of its own; `RuntimeError` if the system has no room for one."""
    start_new_thread(_run, (work, arguments))


def start_later(seconds: float, work: Callable[..., object], *arguments: Any) -> None:
    """Call `work` in a thread of its own, so many seconds from now; `RuntimeError` if there is no room for one."""
    start(_run_later, seconds, work, arguments)


def _run(work: Callable[..., object], arguments: tuple[Any, ...]) -> None:
    try:
        work(*arguments)
    except BaseException as error:
        if _crashed is None:
            raise
        _crashed(error)


def _run_later(seconds: float, work: Callable[..., object], arguments: tuple[Any, ...]) -> None:
    time.sleep(seconds)
    work(*arguments)


class Event:
    """A flag that threads can wait for."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._is_set = False
        self._waiting: list[Any] = []  # a lock for each thread that waits, which `set` releases

    def is_set(self) -> bool:
        """Whether it is set."""
        return self._is_set

    def set(self) -> None:
        """Set it, and wake all that wait."""
        with self._lock:
            self._is_set = True
            for waiter in self._waiting:
                waiter.release()
            self._waiting.clear()

    def clear(self) -> None:
        """Have those that wait from now on wait for the next `set`."""
        with self._lock:
            self._is_set = False

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until it is set, or for so long; return whether it was."""
        with self._lock:
            if self._is_set:
                return True
            waiter = Lock()
            waiter.acquire()
            self._waiting.append(waiter)
        if waiter.acquire(timeout=-1 if timeout_s is None else min(max(0.0, timeout_s), TIMEOUT_MAX)):
            return True
        with self._lock:
            if waiter in self._waiting:
                self._waiting.remove(waiter)
                return False
        return True  # it was set just now
