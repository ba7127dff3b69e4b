"""The errors that end conch, the exit codes of the contract, and how an unexpected error is reported."""

import errno
import os

from conch.enums import Enum
from conch.static_typing import Mapping, TypeVar

_State = TypeVar("_State", bound=Enum)

EXIT_NO = 1
EXIT_USAGE = 64
EXIT_UNAVAILABLE = 69
EXIT_LOST = 70
EXIT_DEFECT = 71
EXIT_NOT_ACQUIRED = 75
EXIT_NOT_EXECUTABLE = 126
EXIT_NOT_FOUND = 127
EXIT_SIGNAL = 128


class ConchError(Exception):
    """An error that a user, a network or etcd can cause: one line for stderr and an exit code."""

    code = EXIT_UNAVAILABLE

    def __init__(self, message: str, *, code: int | None = None) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code


class CannotWrite(ConchError):
    """Our stdout cannot be written to: an I/O error, by the name that sysexits has for the code."""

    code = 74


class ReaderGone(CannotWrite):
    """Nobody reads our stdout any more: end silently, like a process that SIGPIPE killed."""

    code = EXIT_SIGNAL + 13


class BadInput(ConchError):
    """The user's input is wrong; nothing was sent to etcd."""

    code = EXIT_USAGE


class EndedBySignal(Exception):
    """A signal has ended the command or conch: everything is released, and conch is to die of the same signal."""

    def __init__(self, number: int) -> None:
        super().__init__(f"ended by signal {number}")
        self.number = number


class IllegalTransition(Exception):
    """An event that makes no sense in a state: a defect of conch."""


def checked(table: Mapping[_State, frozenset[_State]], state: _State, following: _State) -> _State:
    """Return the state that follows; raise `IllegalTransition` if the table does not allow it."""
    if following not in table[state]:
        raise IllegalTransition(f"{type(state).__name__} cannot go from {state.value} to {following.value}")
    return following


_SHORTAGES = frozenset({errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC, errno.EDQUOT})


def shortage(error: BaseException | None) -> str:
    """Return what the system is short of, if that is what an error says (so it is no defect); else nothing."""
    if isinstance(error, MemoryError):
        return os.strerror(errno.ENOMEM)
    if isinstance(error, RuntimeError) and "start new thread" in str(error):
        return "cannot start a thread: the limit of processes is reached (ulimit -u), or that of memory"
    # errors of ssl have a `library`, and numbers of their own
    if isinstance(error, OSError) and error.errno in _SHORTAGES and not hasattr(error, "library"):
        return os.strerror(error.errno)
    return ""


def unexpected(error: BaseException | None) -> int:
    """Report an unexpected error in one line on stderr, and return its exit code. Never raises.

    A shortage of the system is named. Anything else is a defect of conch: the line asks for a report, and
    CONCH_DEBUG=1 shows the traceback.
    """
    try:
        short = shortage(error)
        if short:
            _say(short)
            return EXIT_UNAVAILABLE
        if os.environ.get("CONCH_DEBUG") == "1" and error is not None:
            import traceback

            traceback.print_exception(error)
        trace, where = getattr(error, "__traceback__", None), "?"
        while trace is not None:
            where = f"{os.path.basename(trace.tb_frame.f_code.co_filename)}:{trace.tb_lineno}"
            trace = trace.tb_next
        what = ascii(f"{type(error).__name__}: {error}")[1:-1][:300]
        _say(f"a defect of conch ({what}, at {where}): please report it, with what CONCH_DEBUG=1 shows")
    except BaseException:  # whatever else is broken by now, the exit code must be right
        _say("a defect of conch: please report it")
    return EXIT_DEFECT


def end_unexpectedly(error: BaseException | None) -> None:
    """End the process immediately for an error that nobody caught. Does not return."""
    os._exit(unexpected(error))


def _say(text: str) -> None:
    try:
        os.write(2, f"conch: {text}\n".encode("ascii", "replace"))
    except OSError:
        pass  # no stderr: the exit code must suffice
