"""The entry point of `conch`: forks the keeper of a command that holds something, then runs the command line.

The fork comes first so that both processes import what they need at the same time.
"""

import os
import signal
import sys
from functools import partial

from conch.errors import EXIT_UNAVAILABLE, end_unexpectedly
from conch.static_typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from conch.core.channel import Channel

_HOLDING_COMMANDS = ("elect", "sema")
# Options of these commands with which they hold nothing.
_NOT_HOLDING = {"--who", "--watch", "--assert", "--help", "-h"}


def main() -> NoReturn:
    """Fork the keeper if the command line holds something, then run it and end the process."""
    let_ctrl_c_kill()
    # for errors raised outside of `end_with`, such as by the imports before it
    sys.excepthook = lambda _kind, error, _trace: end_unexpectedly(error)
    _open_standard_descriptors()
    words = sys.argv[1:]
    if _will_hold(words):
        import gc

        from conch.core import host, keeper_process

        gc.freeze()  # pages stay shared between the two processes for longer if the collector does not touch them
        if host.problem() is None:
            keeper_process.fork_early(_keep_when_told)
    from conch.cli.exit import end_with

    end_with(partial(_run, words))


def let_ctrl_c_kill() -> None:
    """Let SIGINT kill the process without a traceback; commands that handle it install their own handler."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def _run(words: list[str]) -> int:
    from conch.cli.app import run

    return run(words)


def _will_hold(words: list[str]) -> bool:
    """Return whether this looks like a command line that holds something and runs a command."""
    if not words or words[0] not in _HOLDING_COMMANDS or "--" not in words:
        return False
    return _NOT_HOLDING.isdisjoint(words[: words.index("--")])


def _keep_when_told(channel: "Channel") -> None:
    from conch.keeper.main import keep_when_told

    keep_when_told(channel)


def _open_standard_descriptors() -> None:
    """Open /dev/null for each closed standard descriptor: one of our sockets must not become the child's stdout."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            try:
                os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
            except OSError as error:
                if fd < 2:
                    os.write(2, f"conch: cannot open {os.devnull}: {error.strerror}\n".encode())
                os._exit(EXIT_UNAVAILABLE)
