"""Accepts the common options before the name of a command, as etcdctl does: they are moved behind it."""

from conch.cli.spec import Group
from conch.static_typing import Sequence

# Common options without a value; the others take the next argument, unless it is joined to them by `=`.
_FLAGS = frozenset({"-q", "--quiet", "-v", "--verbose"})
# Options of `conch` itself, for which nothing needs to be imported.
_NO_COMMAND = frozenset({"--help", "-h", "--version", "-V"})


def reorder(words: list[str], group: Group) -> list[str]:
    """Return the same command line with the options that precede the name of a command after that name.

    A line that begins with anything but common options stays as it is.
    """
    path: list[str] = []
    moved: list[str] = []
    at = 0
    while at < len(words):
        argument = words[at]
        if argument.startswith("-"):
            taken = _option(words[at:])
            if not taken:
                break
            moved += taken
            at += len(taken)
            continue
        path.append(argument)
        at += 1
        found = group.members.get(argument)
        if not isinstance(found, Group):
            break
        group = found
    return [*path, *moved, *words[at:]] if moved and path else words


def _option(words: Sequence[str]) -> Sequence[str]:
    """Return the first option with its value; nothing if it is none that all commands share."""
    flag, separator, _ = words[0].partition("=")
    if flag in _FLAGS:
        return () if separator else words[:1]
    if flag in _NO_COMMAND or flag not in _with_values():
        return ()
    return words[:1] if separator else words[:2]


def _with_values() -> frozenset[str]:
    from conch.cli.connection_options import COMMON
    from conch.cli.hold_options import CONTAIN

    return frozenset(flag for option in (*COMMON, CONTAIN) if option.kind is not None for flag in option.flags)
