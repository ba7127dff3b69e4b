"""The registry: every command is in it, under its own name."""

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import conch.cli as package
from conch.cli.app import COMMANDS
from conch.cli.spec import Command, Group, Usage


def registered(group: Group, *above: str) -> dict[str, Command]:
    """All commands by the words that call them."""
    found: dict[str, Command] = {}
    for name in group.members:
        member = group.member(name)
        assert member is not None
        if isinstance(member, Group):
            assert member.name == name
            found |= registered(member, *above, name)
        else:
            found[" ".join((*above, name))] = member
    return found


def test_commands_are_called_as_they_are_registered() -> None:
    """Messages about a command begin with its name."""
    commands = registered(COMMANDS)
    assert {name: command.name for name, command in commands.items()} == {name: name for name in commands}
    assert commands["cron ls"].path == "conch cron ls"


def test_every_command_is_registered() -> None:
    """A command that is in no registry could not be called."""
    written: list[Command] = []
    for file in Path(package.__path__[0]).glob("*.py"):
        if file.stem not in ("__init__", "script"):
            module = import_module(f"conch.cli.{file.stem}")
            written += [value for value in vars(module).values() if isinstance(value, Command)]
    assert {command.name for command in written} == set(registered(COMMANDS))


@pytest.mark.parametrize("command", registered(COMMANDS).values(), ids=lambda command: command.name)
def test_options_of_a_command_do_not_collide(command: Command) -> None:
    """Neither by flag nor by keyword; and each has a help text that is a sentence."""
    flags = [flag for option in command.options for flag in option.flags]
    keywords = [option.keyword for option in command.options] + ([command.argument.name] if command.argument else [])
    assert len(flags) == len(set(flags))
    assert len(keywords) == len(set(keywords))
    for option in command.options:
        assert option.help[0].isupper() or option.help.startswith("etcd"), option
        assert option.help.endswith("."), option


def test_importing_the_program_changes_nothing() -> None:
    """Ctrl-C is still Python's, and no command is loaded."""
    script = (
        "import signal, sys, conch.cli.main; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler,"
        " 'conch.cli.app' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "True False\n"


def test_usage_names_its_command() -> None:
    """It is exit code 64."""
    error = Usage("conch elect", "no command")
    assert (error.code, error.where, str(error)) == (64, "conch elect", "no command")
