"""Forking in a thread of its own, so that the main thread has no children but what was orphaned below us.

A process is the child of the very thread that forked it, and what is orphaned below a subreaper becomes a child of that
process's first thread. `wait` with __WNOTHREAD asks for the children of the calling thread alone: where it finds none,
nothing was orphaned. That is one system call, true at one moment, however many processes there are.
"""

import os
import sys
from _thread import allocate_lock, get_native_id, start_new_thread
from collections.abc import Callable

# Children of every kind; and of this thread only. Python names neither.
_WALL, _WNOTHREAD = 0x40000000, 0x20000000
_ENDED = os.WEXITED | os.WNOHANG | _WALL

_forker: "_Forker | None" = None
_first_born: bool | None = None  # what we forked first had no older sibling


def fork(child: Callable[[], object]) -> int:
    """Fork a process that runs `child`, which must never return; its pid. `OSError` if that fails.

    Signals are expected to be blocked by the caller, and are in the child.
    """
    global _forker, _first_born
    if _first_born is None:
        _first_born = _childless()
        try:
            _forker = _Forker()
        except RuntimeError:
            pass  # the limit of processes: the fork says so itself, or there is no other way than to look at all
    if _forker is not None:
        return _forker.fork(child)
    pid = os.fork()
    if pid == 0:
        child()
    return pid


def _childless() -> bool:
    try:
        os.waitid(os.P_ALL, 0, _ENDED | os.WNOWAIT)
    except ChildProcessError:
        return True
    return False


def had_children() -> bool:
    """Whether there are children of ours from before the first fork, as a shell leaves them by `job & exec conch`."""
    return not _first_born and not _childless()


def no_orphans() -> bool | None:
    """Whether nothing lives that was orphaned below us, the subreaper; reaps what has ended.

    None: that cannot be told, because this thread has or may have other children, or is not the main thread.
    """
    if _forker is None or not _first_born or get_native_id() != os.getpid():
        return None
    try:
        while os.waitid(os.P_ALL, 0, _ENDED | _WNOTHREAD) is not None:
            pass
    except ChildProcessError:
        return True
    return False


class _Forker:
    """The thread; it ends with the process. It sleeps holding nothing, so a fork leaves no lock of its behind."""

    def __init__(self) -> None:
        if sys.warnoptions:
            import warnings  # newer Pythons warn of every fork beside another thread

            warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
        self._asked, self._done = allocate_lock(), allocate_lock()
        self._asked.acquire()
        self._done.acquire()
        self._child: Callable[[], object] = int
        self._result: int | OSError = 0
        start_new_thread(self._serve, ())

    def fork(self, child: Callable[[], object]) -> int:
        self._child = child
        self._asked.release()
        self._done.acquire()
        if isinstance(self._result, OSError):
            raise self._result
        return self._result

    def _serve(self) -> None:
        while True:
            self._asked.acquire()
            try:
                self._result = os.fork()
            except OSError as error:
                self._result = error
            if self._result == 0:
                self._child()
            self._done.release()
