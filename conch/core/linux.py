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
    """Ask the kernel for a signal when the parent dies (prctl, PR_SET_PDEATHSIG); the request survives exec."""
    _check(_libc.prctl(_PR_SET_PDEATHSIG, signal_number, 0, 0, 0))


def leave_no_core() -> None:
    """Prevent core dumps of this process, whatever handles them on this host (prctl, PR_SET_DUMPABLE)."""
    _check(_libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0))


def give_memory_back() -> None:
    """Return memory that start-up has freed to the kernel (malloc_trim; does nothing where the C library lacks it)."""
    trim = getattr(_libc, "malloc_trim", None)
    if trim is not None:
        trim(0)


class Timer:
    """A timerfd on CLOCK_BOOTTIME: readable from an absolute time on; time spent in suspend counts."""

    def __init__(self) -> None:
        self._fd = _check(_libc.timerfd_create(time.CLOCK_BOOTTIME, _TFD_FLAGS))

    def fileno(self) -> int:
        """Return the descriptor to poll."""
        return self._fd

    def arm(self, at_s: float | None) -> None:
        """Fire at `at_s` (seconds of CLOCK_BOOTTIME; a past time fires immediately), or never."""
        # zero disarms the timer, so a past time is one nanosecond after boot
        nanoseconds = 0 if at_s is None else max(1, int(at_s * 1e9))
        sec, nsec = divmod(nanoseconds, 1_000_000_000)
        spec = _Itimerspec(_Timespec(0, 0), _Timespec(sec, nsec))
        _check(_libc.timerfd_settime(self._fd, _TFD_TIMER_ABSTIME, ctypes.byref(spec), None))

    def clear(self) -> None:
        """Make the descriptor unreadable again if the timer fired."""
        try:
            os.read(self._fd, 8)
        except BlockingIOError:
            pass  # it had not fired, or was armed again since

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self._fd)


class StepTimer:
    """A timerfd on CLOCK_REALTIME that never fires, but reports that the clock was set (or the machine was asleep)."""

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
