"""The entry point of `conch`: forks the keeper of a command that holds something, then runs the command line.

The fork comes first so that both processes import what they need at the same time.
"""

import os
import sys

from conch.errors import EXIT_UNAVAILABLE, end_unexpectedly
from conch.plain_signal import let_ctrl_c_kill
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
    if words and words[0].startswith("-"):  # common options may stand before the command
        from conch.cli.app import in_order

        words = in_order(words)
    if _will_hold(words):
        import gc

        gc.disable()  # until all is loaded: what is made meanwhile stays
        # what both processes need: loaded once
        from conch import enums, json_text  # noqa: F401
        from conch.core import deadline, host, keeper_process, linux, procfs  # noqa: F401
        from conch.keeper import hold_spec  # noqa: F401

        if host.problem() is None:
            keeper_process.fork_early(_keep_when_told)
    from conch.cli.exit import end_with

    end_with(lambda: _run(words))


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
