"""Names for jobs that had none: drawn from their commands, so that they are the same each time."""

import hashlib
import re
from collections import Counter
from collections.abc import Sequence

_LONGEST = 100
# Words before the program of a command line, and commands that only prepare it.
_PREFIXES = frozenset(
    (
        *(
            "if",
            "then",
            "else",
            "elif",
            "do",
            "while",
            "until",
            "!",
            "{",
            "(",
            "exec",
            "nice",
            "ionice",
            "chronic",
            "sudo",
        ),
        *("env", "nohup", "time", "command", "setsid", "chrt"),
    )
)
_PREPARING = frozenset(
    (
        *("cd", "test", "[", "[[", "export", "set", "umask", "sleep", ".", "source", ":", "true", "ulimit", "trap"),
        *("fi", "done", "unset"),
    )
)
# Programs that say little without what they run.
_RUNNERS = frozenset(
    (
        *(
            "sh",
            "bash",
            "dash",
            "zsh",
            "ksh",
            "perl",
            "php",
            "ruby",
            "node",
            "java",
            "python",
            "run-parts",
            "make",
            "docker",
        ),
        *("podman", "flock", "timeout", "systemctl", "invoke-rc.d", "service", "rsync", "curl", "wget"),
    )
)


def unique_names(commands: Sequence[tuple[str, str]]) -> list[str]:
    """Return a name for each command, given with all that tells it from others.

    Where several would have the same name, each gets a hash of that; a command that is there twice gets a number too.
    """
    names = [name_of(command) for command, _ in commands]
    count = Counter(names)
    taken: set[str] = set()
    unique = []
    for name, (_, identity) in zip(names, commands, strict=True):
        full = name if count[name] == 1 else f"{name}-{hashlib.sha256(identity.encode()).hexdigest()[:6]}"
        free, number = full, 1
        while free in taken:
            number += 1
            free = f"{full}-{number}"
        taken.add(free)
        unique.append(free)
    return unique


def name_of(command: str) -> str:
    """Return a name after the first program of a command line that does something."""
    for part in re.split(r"&&|\|\||[;|&\n]", command):
        words = [part for part in part.split() if not re.match(r"\w+=", part)]
        while words and (words[0] in _PREFIXES or (words[0].startswith("-") and len(words) > 1)):
            words = words[1:]
        if words and words[0] not in _PREPARING and _plain(words[0]):
            return _joined(words)
    return _plain(command)[:_LONGEST] or "job"


def _joined(words: Sequence[str]) -> str:
    program = _plain(words[0])
    if re.sub(r"[0-9.]+$", "", program) not in _RUNNERS:
        return program[:_LONGEST]
    arguments = [
        _plain(part) for part in words[1:] if not part.startswith("-") and not re.fullmatch(r"[0-9.]+\w?", part)
    ]
    named = [argument for argument in arguments if argument]
    return "-".join([program, *named[:1]])[:_LONGEST]


def _plain(part: str) -> str:
    """Return the last part of a path, with only what a name may have."""
    last = part.rstrip("/").rpartition("/")[2]
    return re.sub(r"[^A-Za-z0-9._@:+-]+", "-", last).strip("-._@:+")
