"""Forking keepers; the first one before the command line is even read, so that both sides get ready at once."""

import os
import signal
from collections.abc import Callable, Collection
from functools import partial

from conch.core import forker
from conch.core.link import Link, pair

_early: tuple[int, Link] | None = None


def fork_keeper(main: Callable[[Link], None], *, holds: int = 1, kept_open: Collection[int] = ()) -> tuple[int, Link]:
    """Fork a keeper: a session of its own, deaf to signals, with none of our descriptors but link and stderr."""
    ours, theirs = pair(holds)
    before = signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())
    try:
        pid = forker.fork(partial(_become_keeper, main, theirs, kept_open))
    except OSError:
        ours.close()
        theirs.close()
        raise
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    theirs.close()
    return pid, ours


def _become_keeper(main: Callable[[Link], None], link: Link, kept_open: Collection[int]) -> None:
    code = 1
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
            if int(name) > 2 and int(name) != link.fileno() and int(name) not in kept_open:
                try:
                    os.close(int(name))
                except OSError:
                    pass  # the listing's own descriptor
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        main(link)
        code = 0
    except Exception:
        import traceback  # the top of a process: a defect is shown, and the supervisor fails closed

        traceback.print_exc()
    finally:
        os._exit(code)


def fork_early(main: Callable[[Link], None]) -> None:
    """Fork a keeper that waits to be told its job; if that cannot be, one is forked later as usual."""
    global _early
    try:
        _early = fork_keeper(main)
    except OSError:
        _early = None


def take_early() -> tuple[int, Link] | None:
    """The keeper that waits, for whoever has a job for it."""
    global _early
    taken, _early = _early, None
    return taken


def early_pid() -> int | None:
    """The pid of the keeper that waits."""
    return None if _early is None else _early[0]


def discard_early() -> None:
    """Nobody had a job for it."""
    early = take_early()
    if early is not None:
        pid, link = early
        link.close()
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
