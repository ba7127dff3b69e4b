"""`conch`, the command's entry: what holds something gets its keeper first, and then both sides get ready at once."""

import os
import signal
import sys

# Python would turn Ctrl-C into a traceback, from the first import on; what wants to hear of it says so itself.
if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from functools import partial
from importlib import import_module

from conch.errors import EXIT_UNAVAILABLE, end_unexpectedly
from conch.static_typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from conch.cli.spec import Command
    from conch.core.channel import Channel

_WRAPPERS = ("elect", "sema")
# What is written down as data, so that a plain line of it needs no Click.
_QUICK = {("elect",): "conch.cli.elect", ("sema",): "conch.cli.sema", ("cron", "ls"): "conch.cli.cron_show"}
_NO_RUN = {"--who", "--watch", "--assert", "--help", "-h"}


def main() -> NoReturn:
    """Fork the keeper if this is to hold something, then read the command line and do what it says."""
    # for what is raised outside of `end_with`, as by the imports on the way there
    sys.excepthook = lambda _kind, error, _trace: end_unexpectedly(error)
    _open_standard_descriptors()
    if _will_hold(sys.argv[1:]):
        import gc

        from conch.core import host, keeper_process

        gc.freeze()  # what both have is shared for longer if the collector leaves it alone
        if host.problem() is None:
            keeper_process.fork_early(_keep_when_told)
    from conch.cli.exit import end_with

    end_with(partial(_run, sys.argv[1:]))


def _run(words: list[str]) -> int:
    for path, module in _QUICK.items():
        if words[: len(path)] == list(path):
            from conch.cli.spec import read

            command: Command = import_module(module).COMMAND
            line = read(words[len(path) :], command)
            if line is not None:
                return command.run(line)
    from conch.cli.app import run

    return run()


def _will_hold(arguments: list[str]) -> bool:
    """Whether this looks like a command line that holds something and runs a command."""
    if not arguments or arguments[0] not in _WRAPPERS or "--" not in arguments:
        return False
    return _NO_RUN.isdisjoint(arguments[: arguments.index("--")])


def _keep_when_told(channel: "Channel") -> None:
    from conch.keeper.main import keep_when_told

    keep_when_told(channel)


def _open_standard_descriptors() -> None:
    """Put /dev/null where a standard descriptor is closed: one of our sockets must not become the child's stdout."""
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
