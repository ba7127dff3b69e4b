"""Where an option's value comes from: flag, CONCH_*, ETCDCTL_*, default."""

import os
from typing import Any

import pytest

from conch.cli.click_adapter import to_click
from conch.cli.elect import ELECT
from conch.cli.fast_parser import read_line
from conch.cli.sema import SEMA
from conch.cli.spec import Command
from conch.etcd.endpoints import parse_endpoints

# option, etcdctl has it, three values as written, the four as parsed (flag, CONCH_, ETCDCTL_, default)
TABLE: list[tuple[str, bool, list[str], list[Any]]] = [
    ("endpoints", True, ["a:1", "b:2", "c:3"], [*map(parse_endpoints, ["a:1", "b:2", "c:3", "localhost:2379"])]),
    ("dial-timeout", True, ["1s", "2", "3000ms"], [1.0, 2.0, 3.0, 5.0]),
    ("command-timeout", True, ["1s", "2", "3000ms"], [1.0, 2.0, 3.0, 5.0]),
    ("cacert", True, ["/1", "/2", "/3"], ["/1", "/2", "/3", None]),
    ("cert", True, ["/1", "/2", "/3"], ["/1", "/2", "/3", None]),
    ("key", True, ["/1", "/2", "/3"], ["/1", "/2", "/3", None]),
    ("user", True, ["a", "b", "c"], ["a", "b", "c", None]),
    ("password-file", False, ["/1", "/2"], ["/1", "/2", None]),
    ("prefix", False, ["/1", "/2/"], ["/1", "/2", "/conch/v1"]),
    ("log-format", False, ["json", "text"], ["json", "text", "text"]),
]


def parsed(command: Command, arguments: list[str]) -> dict[str, Any]:
    """As Click reads it, and as the fast parser does if it accepts it."""
    values: dict[str, Any] = to_click(command).make_context(command.name, list(arguments)).params
    fast = read_line(list(arguments), command)
    assert fast is None or fast.values == values
    return values


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable of ours from outside."""
    for name in list(os.environ):
        if name.startswith(("CONCH_", "ETCDCTL_")):
            monkeypatch.delenv(name)


@pytest.mark.parametrize("command", [ELECT, SEMA], ids=["elect", "sema"])
@pytest.mark.parametrize(("option", "etcdctl", "written", "expected"), TABLE, ids=[row[0] for row in TABLE])
def test_precedence(
    monkeypatch: pytest.MonkeyPatch,
    command: Command,
    option: str,
    etcdctl: bool,
    written: list[str],
    expected: list[Any],
) -> None:
    """The nearest wins; empty counts as not set; nothing lasts beyond its own invocation."""
    name = option.replace("-", "_")
    variables = [f"CONCH_{name.upper()}", f"ETCDCTL_{name.upper()}"][: len(written) - 1]
    for variable, text in zip(variables, written[1:], strict=True):
        monkeypatch.setenv(variable, text)
    before = dict(os.environ)
    assert parsed(command, ["n", f"--{option}", written[0]])[name] == expected[0]
    for at, variable in enumerate(variables, start=1):
        assert parsed(command, ["n"])[name] == expected[at]
        monkeypatch.setenv(variable, "")
    assert parsed(command, ["n"])[name] == expected[-1]
    assert os.environ.keys() == before.keys()
    if not etcdctl:
        monkeypatch.setenv(f"ETCDCTL_{name.upper()}", written[0])
        assert parsed(command, ["n"])[name] == expected[-1]


@pytest.mark.parametrize(("text", "quiet"), [("1", True), ("true", True), ("0", False), ("no", False), ("", False)])
def test_quiet_from_the_environment(monkeypatch: pytest.MonkeyPatch, text: str, quiet: bool) -> None:
    """As booleans are written; the flag turns it on."""
    monkeypatch.setenv("CONCH_QUIET", text)
    assert parsed(ELECT, ["n"])["quiet"] is quiet
    assert parsed(ELECT, ["n", "--quiet"])["quiet"] is True
