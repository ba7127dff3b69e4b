"""The answers that need no Click are those of Click."""

import os
import subprocess
import sys

import pytest

from conch.cli.app import COMMANDS
from conch.cli.click_adapter import run_with_click
from conch.cli.overview import plain_answer


@pytest.mark.parametrize("word", ["--version", "-V", "--help", "-h"])
def test_answers_are_those_of_click(
    word: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the letter."""
    monkeypatch.delenv("COLUMNS", raising=False)
    assert run_with_click([word], COMMANDS) == 0
    assert capfd.readouterr().out == f"{plain_answer([word])}\n"


@pytest.mark.parametrize("words", [[], ["--version", "x"], ["elect", "--help"], ["--help", "--version"], ["--hel"]])
def test_everything_else_is_left_to_the_parsers(words: list[str]) -> None:
    assert plain_answer(words) is None


def test_help_for_another_width_is_left_to_click(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the user says it, or as the terminal is."""
    monkeypatch.setenv("COLUMNS", "60")
    assert plain_answer(["--help"]) is None
    monkeypatch.delenv("COLUMNS")
    for columns, plain in ((60, False), (80, True), (200, True), (0, False)):
        size = os.terminal_size((columns, 24))
        monkeypatch.setattr(os, "get_terminal_size", lambda _fd, size=size: size)
        assert (plain_answer(["--help"]) is not None) == plain


@pytest.mark.parametrize("word", ["--version", "--help"])
def test_answers_load_no_click(word: str) -> None:
    """Nor anything else that takes long."""
    slow = ("click", "enum", "re", "json", "typing", "collections", "conch.etcd.connection")
    script = (
        f"import os, sys; leave, slow = os._exit, {slow}\n"
        "os._exit = lambda code: (print(*[m for m in slow if m in sys.modules], flush=True), leave(code))\n"
        "from conch.cli.main import main; main()"
    )
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    command = [sys.executable, "-Ic", script, word]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == ""
