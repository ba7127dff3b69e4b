"""The terminal in pipelines and scripts, under three shells; what ends with it, and what ends by Ctrl-C."""

import os
import signal
from collections.abc import Callable, Iterator

import pytest

from tests.support.conch import CONCH, Bench, alive, marked, throughout, wait_for
from tests.support.terminal import Terminal

ELECT = f"{CONCH} elect o --quiet"
Open = Callable[[str], Terminal]
_UNTIL_HANGUP = "while stty > /dev/null 2>&1; do sleep 0.05; done"


@pytest.fixture
def shell_on_terminal(conch: Bench) -> Iterator[Open]:
    """Start a shell on a terminal."""
    opened: list[Terminal] = []

    def start(shell: str) -> Terminal:
        terminal = Terminal(conch.environment, str(conch.folder), shell)
        opened.append(terminal)
        terminal.wait("$ ")
        return terminal

    yield start
    for terminal in opened:
        terminal.close()


@pytest.mark.parametrize("shell", ["bash", "dash", "zsh"])
def test_command_in_a_pipeline_reads_the_terminal(shell_on_terminal: Open, shell: str) -> None:
    """conch may be at either end of the pipeline."""
    terminal = shell_on_terminal(shell)
    terminal.line(f"{ELECT} -- sh -c 'echo rea''dy; read a; echo got:$a' | cat")
    terminal.wait("ready")
    terminal.line("hello")
    terminal.wait("got:hello")
    terminal.line(f"seq 31 33 | {ELECT} -- less")
    terminal.wait("33")
    terminal.type("q")
    terminal.line("echo co''de=$?")
    terminal.wait("code=0")


@pytest.mark.parametrize("shell", ["bash", "dash", "zsh"])
def test_reader_after_conch_in_a_pipeline_keeps_the_terminal(shell_on_terminal: Open, conch: Bench, shell: str) -> None:
    """The command runs on and does not read from the terminal."""
    terminal = shell_on_terminal(shell)
    command = "sh -c 'echo $$ > pid; echo ready; exec sleep 1000'"
    terminal.line(f"{ELECT} -- {command} | sh -c 'read a; read b < /dev/tty; echo $a:$b'")
    child = int(conch.read("pid"))
    terminal.line("hello")
    terminal.wait("ready:hello")
    assert alive(child)
    terminal.type("\x03")
    wait_for(lambda: terminal.foreground() == terminal.pid, "the shell has the terminal")


@pytest.mark.parametrize("shell", ["bash", "dash", "zsh"])
def test_ctrl_z_and_fg_work_in_a_pipeline(shell_on_terminal: Open, conch: Bench, shell: str) -> None:
    """The command is stopped and continued together with conch."""
    terminal = shell_on_terminal(shell)
    terminal.line(f"{ELECT} -- sh -c 'echo $$ > pid; exec sleep 1000' | cat")
    child = int(conch.read("pid"))
    terminal.type("\x1a")
    wait_for(lambda: state(child) == "T", "the command is stopped")
    wait_for(lambda: terminal.foreground() == terminal.pid, "the shell has the terminal")
    terminal.line("fg")
    wait_for(lambda: state(child) == "S", "the command runs")
    terminal.type("\x03")
    wait_for(lambda: not alive(child), "the end of the command")


@pytest.mark.parametrize("flags", ["", "--restart"])
@pytest.mark.parametrize("end", ["", "| cat"])
def test_hangup_of_the_terminal_ends_conch(shell_on_terminal: Open, conch: Bench, flags: str, end: str) -> None:
    """The shell forwards nothing, because it dies first."""
    terminal = shell_on_terminal("dash")
    terminal.line(f"exec sh -c \"{ELECT} {flags} --restart-min 10ms -- sh -c 'echo x >> runs; exec sleep 1000' {end}\"")
    conch.read("runs")
    terminal.hang_up()
    wait_for(lambda: not marked(conch.mark), "the end of everything")
    assert conch.read("runs") == "x\n"
    assert conch.keys() == []


@pytest.mark.parametrize("end", ["exit 0", "exec cat", "echo $$ > late; exec sleep 1000"])
def test_restart_ends_with_the_terminal_of_a_command_that_outlives_it(
    shell_on_terminal: Open, conch: Bench, end: str
) -> None:
    """A command that ignored the hangup or met the end of its input is not run again on a dead terminal."""
    conch.file("command").write_text(f"trap : HUP; echo x >> runs; {_UNTIL_HANGUP}; {end}")
    terminal = shell_on_terminal("dash")  # it forwards nothing to its jobs
    terminal.line(f"{ELECT} --restart --restart-min 10ms --kill-after 300ms -- sh command")
    conch.read("runs")
    terminal.hang_up()
    if "late" in end:
        os.kill(int(conch.read("late")), signal.SIGTERM)
    wait_for(lambda: not marked(conch.mark), "the end of everything")
    assert conch.read("runs") == "x\n"


def test_restart_survives_a_hangup_that_its_caller_ignores(shell_on_terminal: Open, conch: Bench) -> None:
    """As under nohup, a command that had the terminal is run again for as long as the caller wants."""
    conch.file("command").write_text(f"echo $PPID >> runs; {_UNTIL_HANGUP}; sleep 0.1")
    terminal = shell_on_terminal("dash")
    terminal.line("trap '' HUP")
    terminal.line(f"{ELECT} --restart --restart-min 10ms -- sh command")
    conch.read("runs")
    terminal.hang_up()
    pid = conch.pids("runs", 4)[-1]
    os.kill(pid, signal.SIGTERM)
    wait_for(lambda: not alive(pid), "the end of conch")


def test_sighup_to_conch_ends_restart(conch: Bench) -> None:
    """conch forwards it to the command, which may take its time; there is no next run."""
    wrapper = conch.start(
        "elect",
        "o",
        "--restart",
        "--restart-min",
        "10ms",
        "--",
        "sh",
        "-c",
        "trap 'exit 3' HUP; echo x; sleep 1000 & wait",
    )
    wait_for(lambda: wrapper.out == "x\n", "the command")
    wrapper.signal(signal.SIGHUP)
    assert wrapper.wait() == 3
    assert wrapper.out == "x\n"


@pytest.mark.parametrize("shell", ["bash", "dash", "zsh"])
def test_ctrl_c_ends_a_loop_of_the_shell(shell_on_terminal: Open, shell: str) -> None:
    """The shell sees that the process it waits for dies of SIGINT."""
    terminal = shell_on_terminal(shell)
    terminal.line(f"for i in 1 2 3; do {ELECT} -- sh -c 'echo ru''n; exec sleep 1000'; done")
    terminal.wait("run\r\n")
    terminal.type("\x03")
    terminal.line("echo co''de=$?")
    terminal.wait("code=130")
    assert terminal.text.count("run\r\n") == 1


@pytest.mark.parametrize("shell", ["bash", "dash"])
@pytest.mark.parametrize("state", ["running", "queued", "piped"])
def test_ctrl_c_ends_a_script(shell_on_terminal: Open, conch: Bench, shell: str, state: str) -> None:
    """The script's next step does not run."""
    if state == "queued":
        conch.hold("o")
    pipe = "| cat" if state == "piped" else ""
    conch.file("script").write_text(
        f"{CONCH} elect o -- sh -c 'echo x >> runs; exec sleep 1000' {pipe}\necho next >> runs\n"
    )
    terminal = shell_on_terminal("bash")
    terminal.line(f"{shell} script")
    terminal.wait("event=queued" if state == "queued" else "event=child-start")
    if state != "queued":
        conch.read("runs")
    terminal.type("\x03")
    wait_for(lambda: terminal.foreground() == terminal.pid, "the shell has the terminal")
    terminal.line("echo en''d")
    terminal.wait("end")
    assert not conch.file("runs").exists() or "next" not in conch.read("runs")


def test_background_command_that_wants_the_terminal_is_reported(shell_on_terminal: Open, conch: Bench) -> None:
    """It is stopped with conch, which logs the reason; `fg` gives it the terminal."""
    terminal = shell_on_terminal("bash")
    terminal.line(f"{ELECT} -- sh -c 'read a; echo got:$a' &")
    terminal.wait("event=stopped name=o signal=SIGTTIN")
    wait_for(lambda: state(programs(conch)["conch"]) == "T", "conch is stopped, too")
    terminal.line("fg")
    terminal.line("hello")
    terminal.wait("got:hello")


def test_command_in_a_script_without_job_control_reads_the_terminal(shell_on_terminal: Open, conch: Bench) -> None:
    """The whole script is one group; `script` gives it another terminal."""
    conch.file("steps").write_text(f"{ELECT} -- sh -c 'echo ready; read a; echo got:$a' | cat\necho after\n")
    terminal = shell_on_terminal("bash")
    terminal.line("script -qec 'sh steps' /dev/null")
    terminal.wait("ready")
    terminal.line("hello")
    terminal.wait("got:hello")
    terminal.wait("after")


def state(pid: int) -> str:
    """Return the state of a process from /proc."""
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rsplit(")", 1)[1].split()[0]


def programs(conch: Bench) -> dict[str, int]:
    """Return the living processes of this test by the names of their programs; the oldest of each."""
    found: dict[str, int] = {}
    for pid in sorted(marked(conch.mark)):
        try:
            with open(f"/proc/{pid}/comm") as file:
                found.setdefault(file.read().strip(), pid)
        except OSError:  # it has ended meanwhile
            continue
    return found


@pytest.mark.parametrize("end", ["sleep 1000 & exit 3", "setsid sleep 1000 & exit 3"])
def test_leftovers_on_a_terminal_change_nothing(shell_on_terminal: Open, conch: Bench, end: str) -> None:
    """They are ended, and conch exits with the command's code, whether or not the command has the terminal."""
    terminal = shell_on_terminal("bash")
    for at, way in enumerate(["", "| cat", "< /dev/null > /dev/null 2>&1"]):
        terminal.line(f"{ELECT} --kill-after 200ms -- sh -c '{end}' {way}; echo co''de=${{PIPESTATUS[0]}}.")
        terminal.wait("code=3.", at + 1)
    assert conch.keys() == []


def test_ctrl_c_with_leftovers_ends_conch_by_sigint(shell_on_terminal: Open, conch: Bench) -> None:
    """The leftover is ended, the hold is released, and conch dies of SIGINT."""
    terminal = shell_on_terminal("bash")
    terminal.line(f"{ELECT} --kill-after 200ms -- sh -c 'setsid sleep 1000 & echo $$ > pid; exec tail -f /dev/null'")
    conch.read("pid")
    wait_for(lambda: "tail" in programs(conch), "the command")  # a shell in between may miss the signal
    terminal.type("\x03")
    wait_for(lambda: terminal.foreground() == terminal.pid, "the shell has the terminal")
    terminal.line("echo co''de=$?")
    terminal.wait("code=130")
    assert conch.keys() == []


def test_terminal_comes_back_from_a_shell_that_was_killed_under_its_job(shell_on_terminal: Open, conch: Bench) -> None:
    """Its last job had the terminal in a group of its own; the next run still gets the terminal."""
    terminal = shell_on_terminal("bash")
    inner = "bash --norc --noprofile -i"
    terminal.line(f"{ELECT} --restart --restart-min 10ms --kill-after 300ms -- {inner}")
    terminal.wait("$ ", 2)
    terminal.line("trap '' TERM; echo x >> up; stty -echo; sh -c 'echo y >> up; exec sleep 1000'")
    conch.read("up", 2)
    (key,) = conch.keys()
    conch.etcd.delete(key)
    wait_for(lambda: len(conch.keys()) == 1 and conch.keys() != [key], "the next hold")
    terminal.line("echo x >> again; exit")
    conch.read("again")
    os.kill(programs(conch)["conch"], signal.SIGTERM)
    wait_for(lambda: "conch" not in programs(conch), "the end of conch")


@pytest.mark.parametrize("outer", [f"{CONCH} elect outer --quiet --", f"{CONCH} dev --"])
def test_command_of_a_conch_under_conch_reads_the_terminal(shell_on_terminal: Open, outer: str) -> None:
    """In a pipeline each conch gets the terminal only when it asks for it."""
    terminal = shell_on_terminal("bash")
    terminal.line(f"{outer} {ELECT} -- sh -c 'echo rea''dy; read a; echo got:$a' | cat")
    terminal.wait("ready")
    terminal.line("hello")
    terminal.wait("got:hello")


@pytest.mark.parametrize("how", [f"{CONCH} dev --", f"{ELECT} --"])
def test_command_in_an_orphaned_group_stays_stopped(shell_on_terminal: Open, conch: Bench, how: str) -> None:
    """If it wants the terminal, this is logged; while it waits, it uses no CPU."""
    terminal = shell_on_terminal("bash")
    terminal.line(f"( {how} sh -c 'echo $$ > pid; read a < /dev/tty' & )")
    child = int(conch.read("pid"))
    terminal.wait("event=stopped")
    wait_for(lambda: state(child) == "T", "the command is stopped")
    before = switches(child)
    throughout(0.5, lambda: None)
    assert (switches(child), state(child)) == (before, "T")
    os.kill(child, signal.SIGKILL)
    wait_for(lambda: not marked_conch(conch), "the end of conch")


def test_hook_that_wants_the_terminal_is_reported(shell_on_terminal: Open) -> None:
    """Hooks have no terminal; the hook is stopped until its timeout."""
    terminal = shell_on_terminal("bash")
    terminal.line(f"{ELECT} --on-acquire 'read a < /dev/tty' --hook-timeout 1s -- true; echo co''de=$?")
    terminal.wait("event=stopped")
    terminal.wait("code=75")


def switches(pid: int) -> str:
    """Return the context switches of a process."""
    with open(f"/proc/{pid}/status") as file:
        return "".join(line for line in file if "ctxt_switches" in line)


def marked_conch(conch: Bench) -> bool:
    return "conch" in programs(conch)
