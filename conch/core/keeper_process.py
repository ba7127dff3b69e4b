"""Forking keepers; the first one before the command line is even read, so that both sides get ready at once.

A process is the child of the very thread that forked it. All keepers are forked by a thread that does nothing else, so
that the main thread has no children but what runs under the hold, and can ask the kernel whether any of that lives.
"""

import os
import signal
import sys
from _thread import allocate_lock, start_new_thread
from collections.abc import Callable, Collection
from functools import partial

from conch.core.channel import Channel, pair
from conch.errors import EXIT_UNAVAILABLE, shortage, unexpected

# Children of every kind; Python does not name it.
_WALL = 0x40000000

_forker: "_Forker | None" = None
_early: tuple[int, Channel] | None = None
_first_born = False  # the early keeper was our only child


def fork_keeper(
    main: Callable[[Channel], None], *, holds: int = 1, kept_open: Collection[int] = ()
) -> tuple[int, Channel]:
    """Fork a keeper: a session of its own, deaf to signals, with none of our descriptors but link and stderr."""
    ours, theirs = pair(holds)
    before = signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())
    try:
        pid = _fork_aside(partial(_become_keeper, main, theirs, kept_open))
    except OSError:
        ours.close()
        theirs.close()
        raise
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    theirs.close()
    return pid, ours


def _fork_aside(child: Callable[[], object]) -> int:
    """Fork a process that runs `child`, which never returns; in the other thread, if there can be one."""
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
    """The thread; it ends with the process. It sleeps holding nothing, so a fork beside it leaves no lock behind.

    It is started with all signals blocked: they are the main thread's.
    """

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


def _become_keeper(main: Callable[[Channel], None], channel: Channel, kept_open: Collection[int]) -> None:
    code = EXIT_UNAVAILABLE
    try:
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
        if not shortage(error):  # else the supervisor is as short, or says that we died
            code = unexpected(error)
    finally:
        os._exit(code)


def fork_early(main: Callable[[Channel], None]) -> None:
    """Fork a keeper that waits to be told its job; if that cannot be, one is forked later as usual."""
    global _early, _first_born
    _first_born = _childless()
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
    """The keeper that waits, for whoever has a job for it."""
    global _early
    taken, _early = _early, None
    return taken


def early_pid() -> int | None:
    """The pid of the keeper that waits."""
    return None if _early is None else _early[0]


def had_children() -> bool:
    """Whether there were children of ours before any keeper, as a shell leaves them by `job & exec conch`."""
    return not _first_born and not _childless()


def discard_early() -> None:
    """Nobody had a job for it."""
    early = take_early()
    if early is not None:
        pid, channel = early
        channel.close()
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
