"""The quick reader means what Click means, or leaves the line to it."""

import os
import subprocess
import sys
from typing import Any
from unittest import mock

import click
import pytest
from hypothesis import given as over
from hypothesis import settings as how
from hypothesis import strategies as st

from conch.cli.click_adapter import given, made
from conch.cli.cron_show import COMMAND as LS
from conch.cli.elect import COMMAND as ELECT
from conch.cli.sema import COMMAND as SEMA
from conch.cli.spec import Command, Option, read

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
        flag.map(lambda one: [one]),
        st.tuples(flag, _TEXTS).map(list),
        st.tuples(flag, _TEXTS).map(lambda two: ["=".join(two)]),
        st.tuples(flag, _TEXTS).map(lambda two: ["".join(two)]),
    )


@st.composite
def lines(draw: st.DrawFn) -> tuple[Command, list[str], dict[str, str]]:
    """A command, its words, and variables of the environment."""
    command = draw(st.sampled_from([ELECT, SEMA, LS]))
    parts = draw(st.lists(st.sampled_from(command.options).flatmap(words_of), max_size=4))
    parts.insert(
        draw(st.integers(0, len(parts))), draw(st.sampled_from([["name"], ["name"], ["a/b"], [], [], ["a", "b"]]))
    )
    words = [word for part in parts for word in part]
    words += draw(st.sampled_from([[], ["--", "true"], ["--"], ["--", "a", "--", "--who"], ["-h"]]))
    variables = [variable for option in command.options for variable in option.env]
    return command, words, draw(st.dictionaries(st.sampled_from(variables), _TEXTS, max_size=2))


def by_click(command: Command, words: list[str]) -> tuple[dict[str, Any], frozenset[str], list[str] | None] | None:
    try:
        context = made(command).make_context(command.name, list(words))
    except (click.ClickException, click.exceptions.Exit):
        return None
    with context:
        return context.params, given(), context.obj


@how(max_examples=1500)
@over(lines())
def test_what_the_quick_reader_takes_is_what_click_takes(line: tuple[Command, list[str], dict[str, str]]) -> None:
    """Values, where they came from, and the child's command."""
    command, words, variables = line
    clean = {name: text for name, text in os.environ.items() if not name.startswith(("CONCH_", "ETCDCTL_"))}
    with mock.patch.dict(os.environ, {**clean, **variables}, clear=True):
        quick = read(list(words), command)
        if quick is not None:
            assert by_click(command, words) == (quick.values, quick.given, quick.child)


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
    ],
)
def test_everyday_lines_are_read_quickly(command: Command, words: list[str]) -> None:
    """None of these needs Click."""
    quick = read(words, command)
    assert quick is not None
    assert by_click(command, words) == (quick.values, quick.given, quick.child)


@pytest.mark.parametrize(
    ("words", "slow"),
    [
        (["elect", "o", "--who"], ("click", "grpc", "typing", "dataclasses")),
        (["sema", "s", "--max", "1", "--quiet", "--", "true"], ("click", "grpc", "typing", "dataclasses")),
        (["cron", "ls"], ("click", "grpc")),
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
