"""The registry of all commands, and how a command line reaches one of them."""

import os

from conch.cli.fast_parser import find_command, read_line
from conch.cli.output import put_line
from conch.cli.overview import plain_answer
from conch.cli.spec import COMPLETION_VARIABLE, Group

_CRON = Group(
    "cron",
    "Schedule commands: each tick runs on exactly one of the hosts that run `conch conchd`.",
    {
        "add": "conch.cli.cron_edit:ADD",
        "apply": "conch.cli.cron_files:APPLY",
        "cordon": "conch.cli.cron_hosts:CORDON",
        "export": "conch.cli.cron_files:EXPORT",
        "history": "conch.cli.cron_show:HISTORY",
        "hosts": "conch.cli.cron_hosts:HOSTS",
        "import": "conch.cli.cron_files:IMPORT",
        "kill": "conch.cli.cron_run:KILL",
        "logs": "conch.cli.cron_logs:LOGS",
        "ls": "conch.cli.cron_show:LS",
        "next": "conch.cli.cron_next:NEXT",
        "pause": "conch.cli.cron_pause:PAUSE",
        "resume": "conch.cli.cron_pause:RESUME",
        "rm": "conch.cli.cron_edit:RM",
        "run": "conch.cli.cron_run:RUN",
        "set": "conch.cli.cron_edit:SET",
        "show": "conch.cli.cron_show:SHOW",
        "uncordon": "conch.cli.cron_hosts:UNCORDON",
    },
)
COMMANDS = Group(
    "conch",
    "Run a command while holding something in etcd.",
    {
        "elect": "conch.cli.elect:ELECT",
        "sema": "conch.cli.sema:SEMA",
        "cron": _CRON,
        "conchd": "conch.cli.conchd:CONCHD",
        "ps": "conch.cli.ps:PS",
        "dev": "conch.cli.dev:DEV",
        "completion": "conch.cli.completion:COMPLETION",
    },
)


def in_order(words: list[str]) -> list[str]:
    """Return the command line with its common options behind the name of the command."""
    groups = sum(isinstance(COMMANDS.members.get(name), Group) for name in words[:1])
    if words[groups : groups + 1] and words[groups].startswith("-"):
        from conch.cli.word_order import reorder

        return reorder(words, COMMANDS)
    return words


def run(words: list[str]) -> int:
    """Run the command that these words name and return conch's exit code; import Click only if the line needs it."""
    instruction = os.environ.get(COMPLETION_VARIABLE)
    if instruction:
        from conch.cli.click_adapter import complete_with_click

        return complete_with_click(instruction, COMMANDS)
    words = in_order(words)
    text = plain_answer(words)
    if text is not None:
        put_line(text)
        return 0
    found = find_command(words, COMMANDS)
    if found is not None:
        command, rest = found
        line = read_line(rest, command)
        if line is not None:
            return command.run(line)
    if words[:1] == ["help"]:
        from conch.cli.topics import topic

        text = topic(words[1:])
        if text is not None:
            put_line(text)
            return 0
        words = [*words[1:], "--help"]
    from conch.cli.click_adapter import run_with_click

    return run_with_click(words, COMMANDS)
