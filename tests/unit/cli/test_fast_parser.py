"""The fast parser reads a line as Click does, or leaves it to Click."""

import os
import subprocess
import sys
from functools import cache
from typing import Any
from unittest import mock

import click
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conch.cli.app import COMMANDS
from conch.cli.click_adapter import explicit, to_click
from conch.cli.conchd import CONCHD
from conch.cli.cron_edit import ADD
from conch.cli.cron_next import NEXT
from conch.cli.cron_show import LS
from conch.cli.elect import ELECT
from conch.cli.fast_parser import find_command, read_line
from conch.cli.sema import SEMA
from conch.cli.spec import Command, Group, Option

_TEXTS = st.sampled_from(
    [
        *("1s", "0", "2", "10s", "500ms", "a", "-1", "-", "", "1e3", "json", "text", "http", "grpc", "/p/", "p"),
        *("h:1", "h:1,h:2", "https://h", "h:x", "255", "256", "1000", "=", "x=y", "ü", "\udcff", "true", "--", "--who"),
    ]
)


def words_of(option: Option) -> st.SearchStrategy[list[str]]:
    """The option in one of the ways that people write it, right or wrong."""
    flag = st.sampled_from([*option.flags, option.flags[-1][:-1]])
    return st.one_of(
        flag.map(lambda text: [text]),
        st.tuples(flag, _TEXTS).map(list),
        st.tuples(flag, _TEXTS).map(lambda pair: ["=".join(pair)]),
        st.tuples(flag, _TEXTS).map(lambda pair: ["".join(pair)]),
    )


def all_commands(group: Group) -> list[Command]:
    found = []
    for name in group.members:
        member = group.member(name)
        assert member is not None
        found += all_commands(member) if isinstance(member, Group) else [member]
    return found


ALL = all_commands(COMMANDS)


@st.composite
def lines(draw: st.DrawFn) -> tuple[Command, list[str], dict[str, str]]:
    """A command, words after its name, and variables of the environment."""
    # most of the options are those of the first three
    command = draw(st.one_of(st.sampled_from([ELECT, SEMA, LS]), st.sampled_from(ALL)))
    parts: list[list[str]] = []
    if command.options:
        parts = draw(st.lists(st.sampled_from(command.options).flatmap(words_of), max_size=4))
    parts.insert(
        draw(st.integers(0, len(parts))), draw(st.sampled_from([["name"], ["name"], ["a/b"], [], [], ["a", "b"]]))
    )
    words = [word for part in parts for word in part]
    if any(option.required for option in command.options) and draw(st.booleans()):
        words += ["--schedule", "@daily"]
    words += draw(st.sampled_from([[], ["--", "true"], ["--"], ["--", "a", "--", "--who"], ["-h"]]))
    variables = [variable for option in command.options for variable in option.env]
    if not variables:
        return command, words, {}
    return command, words, draw(st.dictionaries(st.sampled_from(variables), _TEXTS, max_size=2))


@cache
def click_command(command: Command) -> click.Command:
    """Made once, which is most of the time that a line takes."""
    return to_click(command)


def by_click(command: Command, words: list[str]) -> tuple[dict[str, Any], frozenset[str], list[str] | None] | None:
    try:
        context = click_command(command).make_context(command.name, list(words))
    except (click.ClickException, click.exceptions.Exit):
        return None
    with context:
        return context.params, explicit(), context.obj


@settings(max_examples=500)
@given(lines())
def test_a_line_that_it_accepts_means_the_same_to_click(
    line: tuple[Command, list[str], dict[str, str]],
) -> None:
    """Values, where they came from, and the child's command."""
    command, words, variables = line
    clean = {name: text for name, text in os.environ.items() if not name.startswith(("CONCH_", "ETCDCTL_"))}
    with mock.patch.dict(os.environ, {**clean, **variables}, clear=True):
        fast = read_line(list(words), command)
        if fast is not None:
            assert by_click(command, words) == (fast.values, fast.explicit, fast.child)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (ELECT, ["o", "--ttl", "5s", "--quiet", "--", "sh", "-c", "x"]),
        (ELECT, ["--wait=0", "o", "-n", "-E", "3", "--on-lose", "true", "--endpoints", "a:1,b:2", "--", "true"]),
        (ELECT, ["o", "--restart", "--log-format=json", "--prefix", "/x", "--user", "u", "--", "true"]),
        (ELECT, ["o", "--assert", "--min-rev", "5", "--json"]),
        (SEMA, ["s", "--max", "3", "--spread", "--kill-after=1s", "--", "true"]),
        (SEMA, ["s", "--who", "--json", "--transport", "http"]),
        (LS, []),
        (LS, ["--last", "--json", "--endpoints", "a:1"]),
        (ADD, ["j", "--schedule", "@daily", "--env", "A=1", "--env=B=2", "--retries", "3", "--", "true"]),
        (NEXT, ["@daily", "-n", "3"]),
        (NEXT, ["--job", "j", "--after", "2026-01-31T12:00:00Z"]),
        (CONCHD, ["--state-dir", "s", "--status-addr", "8080", "--status-host", "a", "--status-host", "b"]),
    ],
)
def test_everyday_lines_are_read_without_click(command: Command, words: list[str]) -> None:
    """None of these needs Click."""
    fast = read_line(words, command)
    assert fast is not None
    assert by_click(command, words) == (fast.values, fast.explicit, fast.child)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["elect", "o", "--who"], (ELECT, ["o", "--who"])),
        (["cron", "ls"], (LS, [])),
        (["cron", "add", "ls"], (ADD, ["ls"])),
        (["cron"], None),
        (["cron", "--help"], None),
        (["cron", "nosuch"], None),
        (["cron ls"], None),
        (["ls"], None),
        (["--version"], None),
        ([], None),
    ],
)
def test_first_words_name_a_command(words: list[str], expected: tuple[Command, list[str]] | None) -> None:
    """Everything else is left to Click."""
    assert find_command(words, COMMANDS) == expected


@pytest.mark.parametrize(
    ("words", "slow"),
    [
        (["elect", "o", "--who"], ("click", "grpc", "typing", "dataclasses")),
        (["sema", "s", "--max", "1", "--quiet", "--", "true"], ("click", "grpc", "typing", "dataclasses")),
        (["cron", "ls"], ("click", "grpc")),
        (["cron", "rm", "j"], ("click", "grpc")),
    ],
)
def test_everyday_lines_load_no_click(words: list[str], slow: tuple[str, ...]) -> None:
    """It takes as long as everything else together."""
    script = (
        f"import os, sys; me, leave, slow = os.getpid(), os._exit, {slow}\n"
        "def end(code):\n"
        "    if os.getpid() == me: print(code, *[m for m in slow if m in sys.modules])\n"
        "    leave(code)\n"
        "os._exit = end; from conch.cli.main import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-uc", script, *words],
        env={**os.environ, "CONCH_ENDPOINTS": "127.0.0.1:1", "CONCH_DIAL_TIMEOUT": "100ms"},
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == ["69"], done.stderr
