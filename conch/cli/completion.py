"""`conch completion`: the shell's code for completion, and what it offers, by Click's protocol.

Names of offices, semaphores and jobs come from etcd, within 300 ms or not at all.
"""

import os
import signal
from pathlib import Path

import click
from click.shell_completion import CompletionItem, get_completion_class

from conch.cli.connection_options import COMMON, settings
from conch.cli.fast_parser import option_value
from conch.cli.spec import COMPLETION_VARIABLE, Argument, Command, Line, choice
from conch.errors import BadInput, ConchError
from conch.keys import Keys
from conch.record import replace
from conch.static_typing import TYPE_CHECKING, Any, Iterator

if TYPE_CHECKING:
    from conch.etcd.store import Store

_WITHIN_S = 0.3
_MOST_KEYS, _MOST_FILES = 2000, 2000
_FILES = frozenset({"FILE", "DIR", "PATH", "CRONTAB"})


def run(line: Line) -> int:
    """Print the code that a shell's start-up file evaluates."""
    from conch.cli.output import put_line

    shell = line.values["shell"]
    of_shell = get_completion_class(shell)
    if of_shell is None:
        raise ConchError(f"no completion for {shell}")
    # bash is asked for its version, which is only logged
    source = of_shell(click.Group("conch"), {}, "conch", COMPLETION_VARIABLE)
    put_line((source.source_template % source.source_vars()).rstrip("\n"))
    return 0


COMPLETION = Command(
    "completion",
    "Print the code that completes command lines of conch in a shell.",
    (),
    run,
    Argument("shell", choice("bash", "zsh", "fish"), metavar="bash|zsh|fish"),
    examples=(
        ('eval "$(conch completion bash)"', "in ~/.bashrc; for zsh alike in ~/.zshrc"),
        ("conch completion fish | source", "in ~/.config/fish/config.fish"),
    ),
)


def complete_value(metavar: str | None, incomplete: str) -> list[CompletionItem[str]]:
    """Complete the value of an option: with files, where it takes one."""
    return [CompletionItem(incomplete, type="file")] if metavar in _FILES else []


def complete_command(child: list[str], incomplete: str) -> list[CompletionItem[str]]:
    """Complete the words after `--`: programs first, then files."""
    if child or "/" in incomplete:
        return [CompletionItem(incomplete, type="file")]
    return [CompletionItem(name) for name in sorted(_programs(incomplete))]


def _programs(incomplete: str) -> set[str]:
    found: set[str] = set()
    for folder in os.environ.get("PATH", os.defpath).split(os.pathsep):
        try:
            names = os.listdir(folder or ".")
        except OSError:
            continue
        matching = [name for name in names if name.startswith(incomplete)]
        found.update(name for name in matching[:_MOST_FILES] if os.access(Path(folder or ".", name), os.X_OK))
    return found


def complete_name(command: Command, ctx: click.Context, incomplete: str) -> list[CompletionItem[str]]:
    """Complete the name of an office, a semaphore or a job with those that etcd has."""
    # whatever hangs: without an answer in time there is none
    signal.signal(signal.SIGALRM, lambda *_: os._exit(0))
    signal.setitimer(signal.ITIMER_REAL, _WITHIN_S)
    try:
        return [CompletionItem(name) for name in _names(command, ctx.params, incomplete)]
    except (ConchError, BadInput, OSError):
        return []
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _names(command: Command, written: dict[str, Any], incomplete: str) -> list[str]:
    from conch.etcd.open import open_store

    values = {option.keyword: written.get(option.keyword) or option_value(option, []) for option in COMMON}
    common = settings(Line(values, frozenset(), None))
    store = open_store(replace(common.connection, dial_timeout_s=_WITHIN_S, command_timeout_s=_WITHIN_S))
    try:
        return sorted(set(_read(store, common.keys, command.name, incomplete)))
    finally:
        store.close()


def _read(store: "Store", keys: Keys, command: str, incomplete: str) -> Iterator[str]:
    from conch.etcd.store import Range
    from conch.keys import prefix_end

    below = keys.cron("job") if command.startswith("cron ") else f"{keys.prefix}/{command}/"
    first = f"{below}{incomplete}".encode()
    what = Range(first, prefix_end(first), limit=_MOST_KEYS, keys_only=True)
    for kv in store.range(what, timeout_s=_WITHIN_S).kvs:
        key = keys.parse(kv.key)
        name = getattr(key, "name", "")
        if name:
            yield name
