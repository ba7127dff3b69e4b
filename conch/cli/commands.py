"""Finds the subcommand, and is the one place where errors become an exit code."""

import errno
import os
import sys
from importlib import import_module
from typing import NoReturn

import click

from conch import __version__
from conch.errors import EXIT_UNAVAILABLE, EXIT_USAGE, CannotWrite, ConchError, ReaderGone
from conch.log import Log, escape

# What writing to a stdout that takes nothing gives.
_OF_WRITING = (errno.ENOSPC, errno.EIO, errno.EBADF, errno.EDQUOT, errno.EFBIG, errno.EPIPE, errno.EINVAL)
_COMMANDS = {
    "elect": "conch.cli.elect",
    "sema": "conch.cli.sema",
    "cron": "conch.cli.cron",
    "conchd": "conch.cli.conchd",
    "dev": "conch.cli.dev",
}


class _Commands(click.Group):
    """Imports a subcommand when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - Click's protocol
        """The names, in the order of the manual."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """The command of that name."""
        if cmd_name not in _COMMANDS:
            return None
        command = import_module(_COMMANDS[cmd_name]).command
        assert isinstance(command, click.Command)  # noqa: S101 - for the type checker
        return command


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="conch", message="%(prog)s %(version)s")
def conch() -> None:
    """Run a command while holding something in etcd."""


def main() -> NoReturn:
    """Run the command line and exit."""
    if sys.stdout is not None:
        # a holder's words may be in letters that this terminal does not have
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    code = _run(sys.argv[1:])
    if "conch.core.nursery" in sys.modules:
        sys.modules["conch.core.nursery"].discard_early()
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        _say(f"conch: cannot write to stdout: {error.strerror}")
        code = code or CannotWrite.code
        _forget_stdout()
    sys.exit(code)


def _run(arguments: list[str]) -> int:
    try:
        result = conch.main(arguments, prog_name="conch", standalone_mode=False)
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.exceptions.NoArgsIsHelpError:
        _say("conch: no command given (try 'conch --help')")
        return EXIT_USAGE
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        where = context.command_path if context is not None else "conch"
        text = error.format_message().replace("\n", " ")
        _say(f"{where}: {escape(text)} (try '{where} --help')")
        return EXIT_USAGE
    except ReaderGone as error:
        _forget_stdout()
        return error.code
    except ConchError as error:
        if isinstance(error, CannotWrite):
            _forget_stdout()
        Log().plain(str(error))
        return error.code
    except OSError as error:
        if error.filename is not None:
            _say(f"conch: {escape(f'{error.filename}: {error.strerror}')}")
            return EXIT_UNAVAILABLE
        if error.errno not in _OF_WRITING:
            _say(f"conch: {error.strerror or error}")
            return EXIT_UNAVAILABLE
        # Click's own output (help, version) goes to a stdout that takes nothing
        _say(f"conch: cannot write to stdout: {error.strerror}")
        _forget_stdout()
        return CannotWrite.code
    return result if isinstance(result, int) else 0


def _say(line: str) -> None:
    try:
        os.write(2, line.encode("utf-8", "backslashreplace") + b"\n")
    except OSError:
        pass  # no stderr: the exit code has to do


def _forget_stdout() -> None:
    """Python would complain of what it could not write at its exit."""
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.close(null)
    except OSError:
        pass  # then it does complain
