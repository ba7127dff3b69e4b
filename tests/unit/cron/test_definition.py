"""What people write of a job."""

import pytest

from conch.cron.definition import hint_of


@pytest.mark.parametrize(
    ("command", "hint"),
    [
        (["echo a"], "'echo a'"),
        (["a|b"], "'a|b'"),
        (["a>b"], "'a>b'"),
        (["a\tb"], "'a\tb'"),
        (["A=1"], "A=1"),
        (["A=1", "make", "x y"], "'A=1 make '\"'\"'x y'\"'\"''"),
        (["A=", "make"], "'A= make'"),
    ],
)
def test_command_that_only_a_shell_understands_gets_a_hint(command: list[str], hint: str) -> None:
    assert hint_of(command) == f"did you mean: -- sh -c {hint}?"


@pytest.mark.parametrize("command", [["true"], ["echo", "a b"], ["sh", "-c", "A=1 b | c"], ["/opt/a=b"], ["x", "A=1"]])
def test_any_other_command_gets_none(command: list[str]) -> None:
    assert hint_of(command) is None
