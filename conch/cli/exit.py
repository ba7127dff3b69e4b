"""The one place where a command's end and its errors become an exit code."""

import os
import signal
import sys
from collections.abc import Callable

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
from conch.static_typing import NoReturn


def end_with(work: Callable[[], int]) -> NoReturn:
    """Do the work and end the process with the code that it returns, or that its error stands for."""
    if sys.stdout is not None:
        # a holder's words may be in letters that this terminal does not have
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    died_of = None
    try:
        code = _code(work)
    except EndedBySignal as end:
        code, died_of = EXIT_SIGNAL + end.number, end.number
    if "conch.core.keeper_process" in sys.modules:
        sys.modules["conch.core.keeper_process"].discard_early()
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        say(f"conch: cannot write to stdout: {error.strerror}")
        code = code or CannotWrite.code
    if died_of is not None:
        _die_of(died_of)
    # nothing is left to be done: to take all modules apart takes longer than to give a hold back
    os._exit(code)


def _die_of(number: int) -> None:
    """Die of this signal without a core, so that a shell ends its loop, and systemd takes a stop for a stop.

    Returns only where that cannot be: the first process of a namespace is spared.
    """
    from conch.core import linux  # what ends so has it already

    try:
        linux.leave_no_core()
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
        os.kill(os.getpid(), number)
    except (OSError, ValueError):
        pass  # a signal of the C library's own


def _code(work: Callable[[], int]) -> int:
    try:
        return work()
    except EndedBySignal:
        raise
    except Usage as error:
        refuse(error.where, str(error))
        return error.code
    except ReaderGone as error:
        _forget_stdout()
        return error.code
    except ConchError as error:
        if isinstance(error, CannotWrite):
            _forget_stdout()
        Log().plain(str(error))
        return error.code
    except OSError as error:
        if _of_click(error):  # its own output (help, version) goes to a stdout that takes nothing
            say(f"conch: cannot write to stdout: {error.strerror}")
            _forget_stdout()
            return CannotWrite.code
        if error.filename is None:
            return unexpected(error)
        say(f"conch: {escape(f'{error.filename}: {error.strerror}')}")
        return EXIT_UNAVAILABLE
    except BaseException as error:
        return unexpected(error)


def _of_click(error: BaseException) -> bool:
    """Whether an error was raised in Click's code, as it writes."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and str(trace.tb_frame.f_globals.get("__name__", "")).startswith("click.")


def guard_threads() -> None:
    """Have an error that nobody catches in any thread of a command end it; before the first one is started."""
    import threading

    threading.excepthook = lambda args: end_unexpectedly(args.exc_value)


def refuse(where: str, text: str) -> None:
    """One line on stderr: what is wrong with a command line."""
    say(f"{where}: {escape(text)} (try '{where} --help')")


def say(text: str) -> None:
    """One line on stderr, whatever letters it has."""
    try:
        os.write(2, text.encode("utf-8", "backslashreplace") + b"\n")
    except OSError:
        pass  # no stderr: the exit code has to do


def _forget_stdout() -> None:
    """Nothing more can be written to it."""
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.close(null)
    except OSError:
        pass  # then the flush says so once more
