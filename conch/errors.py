"""The errors that end conch, the exit codes of the contract, and what is said of an error that is none of them."""

import errno
import os

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
    """What a user, a network or etcd can cause: one line for stderr and an exit code."""

    code = EXIT_UNAVAILABLE

    def __init__(self, message: str, *, code: int | None = None) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code


class CannotWrite(ConchError):
    """Our stdout takes nothing any more; as sysexits names it, an I/O error."""

    code = 74


class ReaderGone(CannotWrite):
    """Nobody reads our stdout any more: end silently, as a process does that SIGPIPE killed."""

    code = EXIT_SIGNAL + 13


class BadInput(ConchError):
    """The user's input is wrong; nothing was sent to etcd."""

    code = EXIT_USAGE


class EndedBySignal(Exception):
    """A signal is the end, the command's or conch's own: all is given back, and conch is to die of it, too."""

    def __init__(self, number: int) -> None:
        super().__init__(f"ended by signal {number}")
        self.number = number


_SHORTAGES = frozenset({errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC, errno.EDQUOT})


def shortage(error: BaseException | None) -> str:
    """Of what the system has no more, if that is what an error says (then it is no defect); else empty."""
    if isinstance(error, MemoryError):
        return os.strerror(errno.ENOMEM)
    if isinstance(error, RuntimeError) and "start new thread" in str(error):
        return "cannot start a thread: the limit of processes is reached (ulimit -u), or that of memory"
    # those of ssl have a `library`, and numbers of their own
    if isinstance(error, OSError) and error.errno in _SHORTAGES and not hasattr(error, "library"):
        return os.strerror(error.errno)
    return ""


def unexpected(error: BaseException | None) -> int:
    """Say in one line what nobody expected, and return the exit code that stands for it. Never raises.

    A shortage of the system is named; anything else is a defect of conch, of which the line asks for a report, and
    whose traceback comes with CONCH_DEBUG=1.
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
    except BaseException:  # whatever is broken by now, the code must be right
        _say("a defect of conch: please report it")
    return EXIT_DEFECT


def end_unexpectedly(error: BaseException | None) -> None:
    """End the process here and now for an error that nobody caught. Does not return."""
    os._exit(unexpected(error))


def _say(text: str) -> None:
    try:
        os.write(2, f"conch: {text}\n".encode("ascii", "replace"))
    except OSError:
        pass  # no stderr: the exit code has to do
