"""Reads command lines that are plainly right, without Click.

Importing Click takes as long as importing all of conch. This parser accepts a line only if Click would read it the same
way; everything else (errors, help, combined short flags, odd variables) it leaves to Click, which also words what is
wrong.
"""

import os

from conch.cli.spec import Argument, Command, Group, Line, Option, split_command
from conch.errors import BadInput
from conch.static_typing import Any


class _LeaveToClick(Exception):
    """The line is wrong or unusual."""


def find_command(words: list[str], group: Group) -> tuple[Command, list[str]] | None:
    """Return the command that the first words name, and the words after its name; None if they name none."""
    for count, argument in enumerate(words, start=1):
        found = group.member(argument)
        if isinstance(found, Command):
            return found, words[count:]
        if found is None:
            return None
        group = found
    return None


def read_line(words: list[str], command: Command) -> Line | None:
    """Parse the words after a command's name; None leaves the line to Click."""
    try:
        return _read(words, command)
    except (BadInput, _LeaveToClick):
        return None


def _read(words: list[str], command: Command) -> Line:
    words, child = split_command(words)
    if child is not None and not command.takes_child:
        raise _LeaveToClick
    texts, arguments = _sort_words(words, command)
    values: dict[str, Any] = {}
    explicit = set(texts)
    if command.argument is not None:
        values[command.argument.name] = _argument_value(command.argument, arguments)
        if arguments:
            explicit.add(command.argument.name)
    elif arguments:
        raise _LeaveToClick
    for option in command.options:
        values[option.keyword] = option_value(option, texts.get(option.keyword, []))
    return Line(values, frozenset(explicit), child)


def _sort_words(words: list[str], command: Command) -> tuple[dict[str, list[str]], list[str]]:
    """Return the texts given for each option (one empty text for a flag), and the positional arguments."""
    by_flag = {flag: option for option in command.options for flag in option.flags}
    texts: dict[str, list[str]] = {}
    arguments: list[str] = []
    remaining = iter(words)
    for argument in remaining:
        if not argument.startswith("-"):
            arguments.append(argument)
            continue
        flag, separator, text = argument.partition("=")
        option = by_flag.get(flag)
        if option is None or (separator and (option.kind is None or not flag.startswith("--"))):
            raise _LeaveToClick
        if option.kind is not None and not separator:
            text = next(remaining, "-")
            if text.startswith("-"):
                raise _LeaveToClick  # the value was probably forgotten
        texts.setdefault(option.keyword, []).append(text)
    return texts, arguments


def _argument_value(argument: Argument, texts: list[str]) -> Any:
    if argument.repeated:
        if not texts and argument.required:
            raise _LeaveToClick
        return tuple(map(argument.kind.parse, texts))
    if not texts and not argument.required:
        return None
    if len(texts) != 1:
        raise _LeaveToClick
    return argument.kind.parse(texts[0])


def option_value(option: Option, texts: list[str]) -> Any:
    """Return the value of an option that was written so often, its variable or its default; raises `BadInput`."""
    if option.kind is None:
        if not texts and any(os.environ.get(variable) for variable in option.env):
            raise _LeaveToClick  # a boolean in a variable has many spellings: true, yes, 0
        return bool(texts)
    if option.repeated:
        if not texts and (option.required or any(os.environ.get(variable) for variable in option.env)):
            raise _LeaveToClick
        return tuple(option.kind.parse(text) for text in texts)
    if texts:
        text: str | None = texts[-1]
    else:
        text = next((found for variable in option.env if (found := os.environ.get(variable))), option.default)
    if text is None:
        if option.required:
            raise _LeaveToClick
        return None
    return option.kind.parse(text)
