"""Turns the result of a command, or the error that ended it, into an exit code."""

import os
import sys

from conch.cli.spec import Usage
from conch.errors import (
    EXIT_SIGNAL,
    EXIT_UNAVAILABLE,
    CannotWrite,
    ConchError,
    EndedBySignal,
    ReaderGone,
    end_unexpectedly,
    unexpected,
)
from conch.log import Log, escape
from conch.plain_signal import signal
from conch.static_typing import Callable, NoReturn


def end_with(work: Callable[[], int]) -> NoReturn:
    """Call `work` and end the process with the code that it returns, or with that of the error that it raises."""
    if sys.stdout is not None:
        # a holder's command may contain characters that this terminal's encoding lacks
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    fatal_signal = None
    try:
        code = _code(work)
    except EndedBySignal as error:
        code, fatal_signal = EXIT_SIGNAL + error.number, error.number
    if "conch.core.keeper_process" in sys.modules:
        sys.modules["conch.core.keeper_process"].discard_early()
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        say(f"conch: cannot write to stdout: {error.strerror}")
        code = code or CannotWrite.code
    if fatal_signal is not None:
        _die_of(fatal_signal)
    # not sys.exit: tearing down all modules takes longer than releasing a hold
    os._exit(code)


def _die_of(number: int) -> None:
    """Die of this signal without a core dump, so that a shell ends its loop and systemd sees a regular stop.

    Returns only if the signal does not kill us: the first process of a PID namespace is immune.
    """
    from conch.core import linux  # here, because only commands that have imported it already die of a signal

    try:
        linux.leave_no_core()
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
        os.kill(os.getpid(), number)
    except (OSError, ValueError):
        pass  # a real-time signal that the C library reserves


def _code(work: Callable[[], int]) -> int:
    try:
        return work()
    except EndedBySignal:
        raise
    except Usage as error:
        refuse(error.where, str(error))
        return error.code
    except ReaderGone as error:
        _discard_stdout()
        return error.code
    except ConchError as error:
        if isinstance(error, CannotWrite):
            _discard_stdout()
        Log().plain(str(error))
        return error.code
    except OSError as error:
        if _raised_in_click(error):  # help or version could not be written
            say(f"conch: cannot write to stdout: {error.strerror}")
            _discard_stdout()
            return CannotWrite.code
        if error.filename is None:
            return unexpected(error)
        say(f"conch: {escape(f'{error.filename}: {error.strerror}')}")
        return EXIT_UNAVAILABLE
    except BaseException as error:
        return unexpected(error)


def _raised_in_click(error: BaseException) -> bool:
    """Return whether Click's own code raised the error."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and str(trace.tb_frame.f_globals.get("__name__", "")).startswith("click.")


def guard_threads() -> None:
    """Make an uncaught error in any thread end the process. Call it before the first thread starts."""
    from conch import threads  # late: few commands start any

    threads.guard(end_unexpectedly)


def refuse(where: str, text: str) -> None:
    """Print what is wrong with a command line, as one line on stderr."""
    say(f"{where}: {escape(text)} (try '{where} --help')")


def say(text: str) -> None:
    """Print one line on stderr, with characters that cannot be encoded as escapes."""
    try:
        os.write(2, text.encode("utf-8", "backslashreplace") + b"\n")
    except OSError:
        pass  # without stderr only the exit code is left


def _discard_stdout() -> None:
    """Redirect stdout to /dev/null after a failed write, so that the final flush does not fail again."""
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.close(null)
    except OSError:
        pass  # then the final flush reports the failure once more
