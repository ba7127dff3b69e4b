"""The few Linux calls that Python's `os` does not have (or not yet)."""

import errno
import os
import sys
import time

from conch.plain_signal import signal
from conch.static_typing import Any

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_CHILD_SUBREAPER = 36
_TFD_TIMER_ABSTIME = 1
_TFD_TIMER_CANCEL_ON_SET = 2
_TFD_CLOEXEC = 0o2000000
_SYS_CLONE3 = 435  # where an architecture has another number, it has no such call of this one
_CLONE_INTO_CGROUP = 0x200000000
_SYS_CLOSE_RANGE = 436
LAST_DESCRIPTOR = 2**31 - 1
_FAR_S = 2**40
_TFD_FLAGS = 0o2000000 | 0o4000  # TFD_CLOEXEC | TFD_NONBLOCK
_LONG_BYTES = 8 if sys.maxsize > 2**32 else 4


def _load_functions() -> tuple[Any, Any]:
    """Return what finds a function of the C library by its name, and what returns `errno` after a call of one.

    This is the part of `ctypes` that is written in C: the rest costs more at import than all else in this package.
    """
    from _ctypes import FUNCFLAG_CDECL, FUNCFLAG_USE_ERRNO, CFuncPtr, _SimpleCData, dlopen, dlsym, get_errno

    class Int(_SimpleCData):  # type: ignore[type-arg]
        _type_ = "i"

    class Function(CFuncPtr):
        _flags_ = FUNCFLAG_CDECL | FUNCFLAG_USE_ERRNO
        _restype_ = Int

    library = dlopen(None, 0)  # type: ignore[arg-type]
    return lambda name: Function(dlsym(library, name)), get_errno


def _load_functions_with_ctypes() -> tuple[Any, Any]:
    import ctypes

    library = ctypes.CDLL(None, use_errno=True)
    return lambda name: library[name], ctypes.get_errno


try:
    _function, _get_errno = _load_functions()
    _prctl = _function("prctl")
except (ImportError, AttributeError, TypeError):  # nobody promises those names
    _function, _get_errno = _load_functions_with_ctypes()
    _prctl = _function("prctl")
_syscall = _function("syscall")
_timerfd_create, _timerfd_settime = _function("timerfd_create"), _function("timerfd_settime")


_fork_functions_found: tuple[Any, ...] = ()


def _check(result: int) -> int:
    if result < 0:
        number = _get_errno()
        raise OSError(number, os.strerror(number))
    return result


def _itimerspec(sec: int, nsec: int) -> bytes:
    """Return a `struct itimerspec` for one time: no interval, then seconds and nanoseconds."""
    return b"".join(number.to_bytes(_LONG_BYTES, sys.byteorder) for number in (0, 0, sec, nsec))


def become_subreaper() -> None:
    """Make orphaned descendants children of this process (prctl, PR_SET_CHILD_SUBREAPER)."""
    _check(_prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))


def die_with_parent(signal_number: int) -> None:
    """Ask the kernel for a signal when the parent dies (prctl, PR_SET_PDEATHSIG); the request survives exec."""
    _check(_prctl(_PR_SET_PDEATHSIG, signal_number, 0, 0, 0))


def leave_no_core() -> None:
    """Prevent core dumps of this process, whatever handles them on this host (prctl, PR_SET_DUMPABLE)."""
    _check(_prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0))


def close_range(first: int, last: int) -> None:
    """Close all descriptors from `first` to `last`; `OSError` where the kernel has no such call (before 5.9)."""
    if first <= last:
        _check(_syscall(_SYS_CLOSE_RANGE, first, last, 0))


def give_memory_back() -> None:
    """Return memory that start-up has freed to the kernel (malloc_trim; does nothing where the C library lacks it)."""
    try:
        trim = _function("malloc_trim")
    except (AttributeError, OSError):
        return
    trim(0)


def fork_into(cgroup: int) -> int:
    """As `os.fork`, of a child that is born in the cgroup whose directory is open as `cgroup`; `OSError` if not.

    A process that enters a cgroup waits for all processors first (an RCU grace period, 10 ms and more), and whoever
    makes, removes or enters another one waits for it. A child that is born in one waits for nothing.

    The C library does not notice this fork. So its other threads must sleep, and not for Python's lock (`_Forker` sees
    to that); and the child must not do what the C library does in all threads, as a change of user.
    """
    before, after_in_parent, after_in_child, system_call = _fork_functions()
    # struct clone_args: flags, then pidfd, child_tid, parent_tid, exit_signal, then six more, and the cgroup
    fields = (_CLONE_INTO_CGROUP, 0, 0, 0, signal.SIGCHLD, 0, 0, 0, 0, 0, cgroup)
    arguments = b"".join(int(field).to_bytes(8, sys.byteorder) for field in fields)
    before()
    pid: int = system_call(_SYS_CLONE3, arguments, len(arguments))
    if pid == 0:
        after_in_child()
    else:
        after_in_parent()
    return _check(pid)


def _fork_functions() -> tuple[Any, ...]:
    """Return what Python calls before a fork, after it in the parent and in the child; and any system call.

    They keep Python's lock, as `os.fork` does. `OSError` if this Python does not have them.
    """
    global _fork_functions_found
    if not _fork_functions_found:
        try:
            from _ctypes import FUNCFLAG_CDECL, FUNCFLAG_PYTHONAPI, FUNCFLAG_USE_ERRNO, CFuncPtr, dlopen, dlsym

            class Locked(CFuncPtr):
                _flags_ = FUNCFLAG_CDECL | FUNCFLAG_PYTHONAPI | FUNCFLAG_USE_ERRNO

            library = dlopen(None, 0)  # type: ignore[arg-type]
            names = ("PyOS_BeforeFork", "PyOS_AfterFork_Parent", "PyOS_AfterFork_Child", "syscall")
            _fork_functions_found = tuple(Locked(dlsym(library, name)) for name in names)
        except (ImportError, AttributeError, TypeError):
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS)) from None
    return _fork_functions_found


class Timer:
    """A timerfd on CLOCK_BOOTTIME: readable from an absolute time on; time spent in suspend counts."""

    def __init__(self) -> None:
        self._fd = _check(_timerfd_create(time.CLOCK_BOOTTIME, _TFD_FLAGS))
        self._armed_at: float | None = None

    def fileno(self) -> int:
        """Return the descriptor to poll."""
        return self._fd

    def arm(self, at_s: float | None) -> None:
        """Fire at `at_s` (seconds of CLOCK_BOOTTIME; a past time fires immediately), or never."""
        if at_s == self._armed_at:
            return
        self._armed_at = at_s
        # zero disarms the timer, so a past time is one nanosecond after boot
        nanoseconds = 0 if at_s is None else max(1, int(at_s * 1e9))
        sec, nsec = divmod(nanoseconds, 1_000_000_000)
        _check(_timerfd_settime(self._fd, _TFD_TIMER_ABSTIME, _itimerspec(sec, nsec), None))

    def clear(self) -> None:
        """Make the descriptor unreadable again if the timer fired."""
        try:
            os.read(self._fd, 8)
            self._armed_at = None
        except BlockingIOError:
            pass  # it had not fired, or was armed again since

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self._fd)


class StepTimer:
    """A timerfd on CLOCK_REALTIME that never fires, but reports that the clock was set (or the machine was asleep)."""

    def __init__(self) -> None:
        self._fd = _check(_timerfd_create(time.CLOCK_REALTIME, _TFD_CLOEXEC))

    def wait(self) -> None:
        """Block until the clock is set."""
        flags = _TFD_TIMER_ABSTIME | _TFD_TIMER_CANCEL_ON_SET
        _check(_timerfd_settime(self._fd, flags, _itimerspec(_FAR_S, 0), None))
        try:
            os.read(self._fd, 8)
        except OSError as error:
            if error.errno != errno.ECANCELED:
                raise
