"""Forking keepers; the first one before the command line is even read, so that both processes load in parallel.

A process is the child of the very thread that forked it. All keepers are forked by a thread that does nothing else. So
the children of the main thread are only those that run under the hold, and it can ask the kernel whether any lives.
"""

import gc
import os
import sys
from _thread import allocate_lock, start_new_thread

from conch.core.channel import Channel, pair
from conch.errors import EXIT_UNAVAILABLE, shortage, unexpected
from conch.plain_signal import signal
from conch.static_typing import Callable, Collection

# Children of every kind; Python does not name it.
_WALL = 0x40000000
# How long one thread waits before it asks another for Python's lock: in a supervisor, and where all threads work.
_NEVER_S, _SWITCH_S = 1000.0, sys.getswitchinterval()

_forker: "_Forker | None" = None
_early: tuple[int, Channel] | None = None
_was_childless = False  # when the early keeper was forked


def fork_keeper(
    main: Callable[[Channel], None], *, holds: int = 1, kept_open: Collection[int] = ()
) -> tuple[int, Channel]:
    """Fork a keeper: in a session of its own, ignoring signals, with none of our descriptors but channel and stderr."""
    ours, theirs = pair(holds)
    before = signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())
    try:
        pid = _fork_aside(lambda: _become_keeper(main, theirs, kept_open))
    except OSError:
        ours.close()
        theirs.close()
        raise
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    theirs.close()
    return pid, ours


def _fork_aside(child: Callable[[], object]) -> int:
    """Fork a process that runs `child`, which never returns; in the other thread, if one can be started."""
    global _forker
    if _forker is None:
        try:
            _forker = _Forker()
        except RuntimeError:  # the limit of processes, as the fork itself may say
            pid = os.fork()
            if pid == 0:
                child()
            return pid
    return _forker.fork(child)


class _Forker:
    """The thread that forks keepers; it ends with the process.

    It sleeps without holding a lock, so a fork in the main thread copies no locked one. It starts with all signals
    blocked, so that the main thread gets them. It never asks the main thread for Python's lock, but waits until that
    thread sleeps: a child that `linux.fork_into` makes would wait for it to take the lock, and for ever.
    """

    def __init__(self) -> None:
        if sys.warnoptions:
            import warnings  # newer Pythons warn about every fork of a process with several threads

            warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
        self._asked, self._done = allocate_lock(), allocate_lock()
        self._asked.acquire()
        self._done.acquire()
        self._child: Callable[[], object] = int
        self._result: int | OSError = 0
        sys.setswitchinterval(_NEVER_S)
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


def _become_keeper(main: Callable[[Channel], None], channel: Channel, kept_open: Collection[int]) -> None:
    code = EXIT_UNAVAILABLE
    try:
        sys.setswitchinterval(_SWITCH_S)
        os.setsid()
        signal.set_wakeup_fd(-1)
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD}:
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)
        os.dup2(null, 1)
        for name in os.listdir("/proc/self/fd"):
            if int(name) > 2 and int(name) != channel.fileno() and int(name) not in kept_open:
                try:
                    os.close(int(name))
                except OSError:
                    pass  # the listing's own descriptor
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        main(channel)
        code = 0
    except BaseException as error:  # the top of a process
        if not shortage(error):  # a supervisor lacks the same resource, or reports that the keeper died
            code = unexpected(error)
    finally:
        os._exit(code)


def collect_garbage() -> None:
    """Switch the collector of garbage on, which is off while a process starts: what was made until now stays."""
    gc.freeze()
    gc.enable()


def fork_early(main: Callable[[Channel], None]) -> None:
    """Fork a keeper that waits for its spec; if that fails, one is forked later as usual."""
    global _early, _was_childless
    _was_childless = _childless()
    try:
        _early = fork_keeper(main)
    except OSError:
        _early = None


def _childless() -> bool:
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT | _WALL)
    except ChildProcessError:
        return True
    return False


def take_early() -> tuple[int, Channel] | None:
    """Return the keeper that waits for its spec, for the caller to use."""
    global _early
    early, _early = _early, None
    return early


def early_pid() -> int | None:
    """Return the pid of the keeper that waits for its spec."""
    return None if _early is None else _early[0]


def had_children() -> bool:
    """Whether conch had children before any keeper, as a shell leaves them by `job & exec conch`."""
    return not _was_childless and not _childless()


def discard_early() -> None:
    """Kill the keeper that waits: no command needs it."""
    early = take_early()
    if early is not None:
        pid, channel = early
        channel.close()
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
