"""The one place where a command's end and its errors become an exit code."""

import os
import sys
from collections.abc import Callable

from conch.cli.line import Usage
from conch.errors import EXIT_UNAVAILABLE, CannotWrite, ConchError, ReaderGone, end_unexpectedly, unexpected
from conch.hints import NoReturn
from conch.log import Log, escape


def end_with(work: Callable[[], int]) -> NoReturn:
    """Do the work and end the process with the code that it returns, or that its error stands for."""
    if sys.stdout is not None:
        # a holder's words may be in letters that this terminal does not have
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    code = _code(work)
    if "conch.core.nursery" in sys.modules:
        sys.modules["conch.core.nursery"].discard_early()
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        say(f"conch: cannot write to stdout: {error.strerror}")
        code = code or CannotWrite.code
    # nothing is left to be done: to take all modules apart takes longer than to give a hold back
    os._exit(code)


def _code(work: Callable[[], int]) -> int:
    try:
        return work()
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
