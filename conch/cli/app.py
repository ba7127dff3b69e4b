"""Finds the subcommand, with Click."""

import sys
from importlib import import_module

import click

from conch import __version__
from conch.cli import spec
from conch.cli.click_adapter import made
from conch.cli.exit import refuse, say
from conch.errors import EXIT_USAGE

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
        module = import_module(_COMMANDS[cmd_name])
        command = getattr(module, "COMMAND", None)
        found = made(command) if isinstance(command, spec.Command) else module.command
        assert isinstance(found, click.Command)  # noqa: S101 - for the type checker
        return found


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="conch", message="%(prog)s %(version)s")
def conch() -> None:
    """Run a command while holding something in etcd."""


def run() -> int:
    """Do what the command line says; return the exit code."""
    try:
        result = conch.main(sys.argv[1:], prog_name="conch", standalone_mode=False)
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.exceptions.NoArgsIsHelpError:
        say("conch: no command given (try 'conch --help')")
        return EXIT_USAGE
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        refuse(context.command_path if context is not None else "conch", error.format_message().replace("\n", " "))
        return EXIT_USAGE
    return result if isinstance(result, int) else 0
