"""The few Linux calls that Python's `os` does not have (or not yet)."""

import ctypes
import errno
import os
import time

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_CHILD_SUBREAPER = 36
_TFD_TIMER_ABSTIME = 1
_TFD_TIMER_CANCEL_ON_SET = 2
_TFD_CLOEXEC = 0o2000000
_FAR_S = 2**40
_TFD_FLAGS = 0o2000000 | 0o4000  # TFD_CLOEXEC | TFD_NONBLOCK

_libc = ctypes.CDLL(None, use_errno=True)


class _Timespec(ctypes.Structure):
    _fields_ = [("sec", ctypes.c_long), ("nsec", ctypes.c_long)]


class _Itimerspec(ctypes.Structure):
    _fields_ = [("interval", _Timespec), ("value", _Timespec)]


def _check(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def become_subreaper() -> None:
    """Make orphaned descendants children of this process (prctl, PR_SET_CHILD_SUBREAPER)."""
    _check(_libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))


def die_with_parent(signal_number: int) -> None:
    """Ask the kernel for a signal when the parent dies (prctl, PR_SET_PDEATHSIG); it survives exec."""
    _check(_libc.prctl(_PR_SET_PDEATHSIG, signal_number, 0, 0, 0))


def leave_no_core() -> None:
    """Have no core written of this process, whatever handles cores on this host (prctl, PR_SET_DUMPABLE)."""
    _check(_libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0))


def give_memory_back() -> None:
    """Return to the kernel what start-up has left free (malloc_trim; where the C library has none, nothing)."""
    trim = getattr(_libc, "malloc_trim", None)
    if trim is not None:
        trim(0)


class Timer:
    """A timerfd on CLOCK_BOOTTIME: readable at an absolute moment, time spent in suspend counts."""

    def __init__(self) -> None:
        self._fd = _check(_libc.timerfd_create(time.CLOCK_BOOTTIME, _TFD_FLAGS))

    def fileno(self) -> int:
        """The descriptor to poll."""
        return self._fd

    def arm(self, at_s: float | None) -> None:
        """Fire at `at_s` (seconds of CLOCK_BOOTTIME; the past fires at once), or never."""
        # all zero disarms, so the past is one nanosecond after boot
        nanoseconds = 0 if at_s is None else max(1, int(at_s * 1e9))
        sec, nsec = divmod(nanoseconds, 1_000_000_000)
        spec = _Itimerspec(_Timespec(0, 0), _Timespec(sec, nsec))
        _check(_libc.timerfd_settime(self._fd, _TFD_TIMER_ABSTIME, ctypes.byref(spec), None))

    def clear(self) -> None:
        """Take note that it fired."""
        try:
            os.read(self._fd, 8)
        except BlockingIOError:
            pass  # it had not fired, or was armed anew since

    def close(self) -> None:
        """Give the descriptor back."""
        os.close(self._fd)


class StepTimer:
    """A timerfd on CLOCK_REALTIME that never fires, but tells when that clock is set (or the machine was asleep)."""

    def __init__(self) -> None:
        self._fd = _check(_libc.timerfd_create(time.CLOCK_REALTIME, _TFD_CLOEXEC))

    def wait(self) -> None:
        """Block until the clock is set."""
        spec = _Itimerspec(_Timespec(0, 0), _Timespec(_FAR_S, 0))
        flags = _TFD_TIMER_ABSTIME | _TFD_TIMER_CANCEL_ON_SET
        _check(_libc.timerfd_settime(self._fd, flags, ctypes.byref(spec), None))
        try:
            os.read(self._fd, 8)
        except OSError as error:
            if error.errno != errno.ECANCELED:
                raise
