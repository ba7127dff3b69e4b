"""Conch on a terminal: the child has the terminal, and Ctrl-C and Ctrl-Z work as they do without conch."""

import os
import re
from collections.abc import Iterator

import pytest

from tests.support.conch import CONCH, Bench, alive, boottime, wait_for
from tests.support.terminal import Terminal

ELECT = f"{CONCH} elect o --quiet"


@pytest.fixture
def terminal(conch: Bench) -> Iterator[Terminal]:
    """A shell on a terminal."""
    terminal = Terminal(conch.environment, str(conch.folder))
    terminal.wait("$ ")
    yield terminal
    terminal.close()


def test_shell_under_conch_has_job_control(terminal: Terminal) -> None:
    """It reads and runs jobs in the foreground, and conch exits with its code."""
    terminal.line(f"{ELECT} -- bash --norc --noprofile -i; echo code=$?")
    terminal.wait("$ ", 2)
    terminal.line("echo in $CONCH_NAME; sleep 1000")
    terminal.wait("in o\r\n")
    wait_for(lambda: program(terminal.foreground()) == "sleep", "the job in the foreground")
    terminal.type("\x03")
    terminal.wait("$ ", 3)
    terminal.line("echo after=$?; exit 7")
    terminal.wait("after=130")
    terminal.wait("code=7")
    assert "no job control" not in terminal.text


def test_editor_under_conch_works(terminal: Terminal, conch: Bench) -> None:
    """vim draws, reads keys and writes the file."""
    terminal.line(f"{ELECT} -- vim -u NONE -N text; echo code=$?")
    terminal.wait("text")
    terminal.wait("~")
    terminal.type("ihello\x1b:wq\n")
    terminal.wait("code=0")
    assert conch.read("text") == "hello\n"


@pytest.mark.parametrize("flags", ["", "--restart"])
def test_ctrl_c_ends_child_and_conch(terminal: Terminal, conch: Bench, flags: str) -> None:
    """This includes --restart; the shell has its terminal back."""
    terminal.line(f"{ELECT} {flags} -- sh -c 'echo up; exec sleep 1000'")
    terminal.wait("up\r\n")
    terminal.type("\x03")
    terminal.wait("$ ", 2)
    terminal.line("echo code=$?")
    terminal.wait("code=130")
    assert conch.keys() == []
    terminal.line("echo still=here")
    terminal.wait("still=here\r\n")


def test_ctrl_c_while_queued_leaves_the_queue(terminal: Terminal, conch: Bench) -> None:
    """conch itself is in the foreground at that time."""
    conch.hold("o")
    terminal.line(f"{CONCH} elect o -- true")
    terminal.wait("event=queued")
    terminal.type("\x03")
    terminal.wait("$ ", 2)
    terminal.line("echo code=$?")
    terminal.wait("code=130")
    assert len(conch.keys()) == 1


def test_ctrl_z_fg_and_bg_work_and_the_hold_lasts(terminal: Terminal, conch: Bench) -> None:
    """The child is stopped for longer than the TTL, and the office is kept; fg gives it the terminal back."""
    terminal.line(f"{ELECT} --ttl 2s -- bash -c 'echo $$ > pid; while read -r x; do echo got:$x; done'; echo code=$?")
    child = int(conch.read("pid"))
    terminal.line("one")
    terminal.wait("got:one")
    terminal.type("\x1a")
    terminal.wait("Stopped")
    assert wait_for(lambda: state(child) == "T", "the child is stopped")
    until = boottime() + 3
    while boottime() < until:
        assert len(conch.keys()) == 1
        assert alive(child)
    terminal.line("echo shell=works")
    terminal.wait("shell=works\r\n")
    terminal.line("fg")
    wait_for(lambda: terminal.foreground() == child, "the child in the foreground")
    terminal.line("two")
    terminal.wait("got:two")
    # in the background, its read stops it again, and conch with it
    terminal.type("\x1a")
    terminal.wait("Stopped", 2)
    terminal.line("set -b; bg")
    terminal.wait("Stopped", 3)
    terminal.line("fg")
    try:
        wait_for(lambda: terminal.foreground() == child, "the child in the foreground")
    except AssertionError:
        raise AssertionError(terminal.read()) from None
    terminal.type("\x04")
    wait_for(lambda: not alive(child), "the child's end")
    terminal.line("echo all=done")
    terminal.wait("all=done\r\n", 2)
    assert conch.keys() == []


def test_fg_of_a_conch_that_was_started_in_the_background(terminal: Terminal, conch: Bench) -> None:
    """The shell has no reason to send SIGCONT; the child gets the terminal when it reads."""
    terminal.line(f"{ELECT} -- bash -c 'echo $$ > pid; while [ ! -e go ]; do sleep 0.01; done; read x; echo got:$x' &")
    child = int(conch.read("pid"))
    terminal.line("fg")
    wait_for(lambda: terminal.foreground() not in (terminal.pid, child), "conch in the foreground")
    conch.file("go").write_text("")
    wait_for(lambda: terminal.foreground() == child, "the child in the foreground")
    terminal.line("one")
    terminal.wait("got:one")
    assert "Stopped" not in terminal.text


def test_child_that_is_killed_in_raw_mode_leaves_a_sane_terminal(terminal: Terminal, conch: Bench) -> None:
    """conch restores the modes from before the child."""
    terminal.line(f"{ELECT} -- bash -c 'stty raw -echo; echo $$ > pid; sleep 1000'; stty -a; echo code=$?")
    child = int(conch.read("pid"))
    os.kill(child, 9)
    terminal.wait("code=0")
    assert re.search(r"[^-]icanon", terminal.text)


def test_pipeline_keeps_the_terminal_with_the_shell(terminal: Terminal) -> None:
    """If stdout is no terminal, the child does not get the terminal; Ctrl-C reaches it through conch."""
    terminal.line(f"{ELECT} -- sh -c 'echo up; exec sleep 1000' | cat")
    terminal.wait("up\r\n")
    terminal.type("\x03")
    terminal.wait("$ ", 2)
    terminal.line("echo code=${PIPESTATUS[0]}")
    terminal.wait("code=130")


def program(pid: int) -> str:
    """Return the name of the program that a process runs."""
    try:
        with open(f"/proc/{pid}/comm") as file:
            return file.read().strip()
    except OSError:
        return ""


def state(pid: int) -> str:
    """Return the process's state letter."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            text = file.read()
    except FileNotFoundError:
        return "X"
    return text[text.rindex(")") + 2]
