"""The supervisor's process handling, without a keeper or etcd; each test runs it in a process of its own."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.conch import alive, wait_for

HEAD = """
import os, signal, sys, time
from conch.core import clock, keeper_process, linux, process_tree, procfs, spawn
from conch.core.spawn import Dispositions, Spec

def start(*command, start_by=None, apart=False):
    spec = Spec("/bin/" + command[0], command, dict(os.environ), apart=apart)
    return spawn.start(
        spec, run_id="cafe", start_by=start_by, dispositions=Dispositions((), frozenset()), exclude=lambda entry: False
    )

def wait(child):
    while child.exit_code() is None:
        time.sleep(0.01)
    return child.exit_code()

if "LOOK_AT_ALL" in os.environ:
    process_tree.nothing_lives = lambda: False
linux.become_subreaper()
"""


@pytest.fixture(autouse=True, params=["by the kernel's word", "by looking at all"])
def proof(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How a tree is seen to be empty: the kernel says so, or, if conch has other children, a scan of all processes."""
    if request.param == "by looking at all":
        monkeypatch.setenv("LOOK_AT_ALL", "1")
    return str(request.param)


def script(text: str, folder: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", HEAD + text], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def run(text: str, folder: Path) -> str:
    done = script(text, folder)
    out, err = done.communicate(timeout=60)
    assert (done.returncode, err) == (0, "")
    return out


def test_nothing_runs_before_the_gate_is_open(tmp_path: Path) -> None:
    """The child exists, with its group, but has not become the command."""
    text = """
child = start("touch", "ran")
assert os.getpgid(child.pid) == child.pid
time.sleep(0.2)
assert not os.path.exists("ran") and not child.empty()
child.open_gate()
assert wait(child) == 0 and child.empty() and child.exec_error() is None
child.reap()
print(os.path.exists("ran"))
"""
    assert run(text, tmp_path) == "True\n"


def test_child_started_apart_leads_a_session(tmp_path: Path) -> None:
    """Its process group has its pid, like that of any other child."""
    text = """
child = start("sleep", "1000", apart=True)
child.open_gate()
while os.getsid(child.pid) != child.pid or child.exit_code():
    time.sleep(0.01)
assert os.getpgid(child.pid) == child.pid
child.signal_group(signal.SIGTERM)
assert wait(child) == 143 and child.empty()
child.reap()
"""
    assert run(text, tmp_path) == ""


@pytest.mark.parametrize("way", ["signal_group", "signal_tree"])
def test_signal_to_a_child_apart_that_has_no_session_yet(tmp_path: Path, way: str) -> None:
    """The signal is not lost: the command never runs."""
    text = f"""
make = os.setsid
os.setsid = lambda: (time.sleep(0.5), make())
child = start("touch", "ran", apart=True)
assert os.getpgid(child.pid) != child.pid
child.{way}(signal.SIGTERM)
child.open_gate()
print(wait(child), os.path.exists("ran"))
"""
    assert run(text, tmp_path) == "143 False\n"


def test_error_that_names_a_long_command_is_cut(tmp_path: Path) -> None:
    """It is cut, because nobody reads it before the process has ended."""
    text = """
child = start("x" * 100_000)
child.open_gate()
code, error = wait(child), child.exec_error()
assert error.startswith("cannot run xxx") and error.endswith("…: File name too long"), error
print(code, len(error) < 1000)
child = start("\\udcff")
child.open_gate()
print(wait(child), ascii(child.exec_error()))
"""
    assert run(text, tmp_path).splitlines() == ["126 True", "127 'cannot run \\\\udcff: No such file or directory'"]


def test_child_checks_the_time_right_before_exec(tmp_path: Path) -> None:
    """If it is too late the command does not run, even if the gate was opened in time."""
    text = """
child = start("touch", "ran", start_by=clock.now() + 0.2)
os.kill(child.pid, signal.SIGSTOP)
child.open_gate()
time.sleep(0.4)
os.kill(child.pid, signal.SIGCONT)
print(wait(child), child.exec_error(), os.path.exists("ran"))
"""
    assert run(text, tmp_path) == "126 late False\n"


@pytest.mark.parametrize("opened", [True, False])
def test_child_dies_with_its_parent(tmp_path: Path, opened: bool) -> None:
    """The kernel alone does this, before its gate is open and after."""
    process = script(f"""
child = start("sleep", "1000")
if {opened}:
    child.open_gate()
print(child.pid, flush=True)
time.sleep(1000)
""", tmp_path)  # fmt: skip
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    if opened:
        wait_for(lambda: Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"sleep"), "exec")
    process.kill()
    wait_for(lambda: not alive(pid), "the child is dead", 5)
    process.communicate()


def test_gate_of_a_dead_parent_never_opens(tmp_path: Path) -> None:
    """The child holds no end of the gate that keeps it waiting; the test disables the parent-death signal."""
    process = script("""
linux.die_with_parent = lambda number: None
child = start("touch", "ran")
print(child.pid, flush=True)
time.sleep(1000)
""", tmp_path)  # fmt: skip
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    process.kill()
    wait_for(lambda: not alive(pid), "the child is dead", 5)
    process.communicate()
    assert not (tmp_path / "ran").exists()


def test_tree_that_forks_faster_than_a_scan_is_not_taken_for_empty(tmp_path: Path) -> None:
    """Each process of a chain forks the next and exits immediately: the chain is found and killed."""
    (tmp_path / "chain.py").write_text(
        "import os, time\n"
        "os.setsid()\n"
        "until = time.monotonic() + 20\n"
        "n = 0\n"
        "while time.monotonic() < until:\n"
        "    if os.fork():\n"
        "        os._exit(0)\n"
    )
    text = f"""
child = start("sh", "-c", "{sys.executable} chain.py > /dev/null 2>&1 & sleep 0.5; exit 3")
child.open_gate()
wait(child)
for _ in range(20):
    assert not child.empty()
child.signal_tree(signal.SIGKILL)
until = time.monotonic() + 10
while not child.empty() and time.monotonic() < until:
    child.signal_tree(signal.SIGKILL)
assert child.empty()
time.sleep(0.2)
assert child.empty()
print("gone")
"""
    assert run(text, tmp_path) == "gone\n"


def test_emptiness_needs_no_scan_of_all_processes(tmp_path: Path, proof: str) -> None:
    """One system call finds an orphan that left its group and session, and shows when it is gone."""
    text = """
def look():
    raise OSError("looked at all")
process_tree.processes = look
keeper, channel = keeper_process.fork_keeper(lambda channel: channel.wait_for_spec())  # lives outside the tree
child = start("sh", "-c", "(setsid sleep 1000 & echo $! > orphan) & wait; exit 3")
child.open_gate()
assert wait(child) == 3
assert not child.empty()
threads = []
from _thread import start_new_thread
start_new_thread(lambda: threads.append(process_tree.nothing_lives()), ())
while not threads:
    time.sleep(0.01)
assert threads == [False]  # this thread has no children, which proves nothing
with open("orphan") as file:
    os.kill(int(file.read()), signal.SIGKILL)
until = time.monotonic() + 5
while not child.empty() and time.monotonic() < until:
    time.sleep(0.01)
os.kill(keeper, 0)
print(child.empty())
"""
    assert run(text, tmp_path) == ("True\n" if proof == "by the kernel's word" else "False\n")


def test_earlier_children_are_no_part_of_the_tree(tmp_path: Path) -> None:
    """With `job & exec conch …` the kernel's answer includes the job, so all processes are scanned."""
    text = """
import subprocess
job = subprocess.Popen(["sleep", "1000"])
child = start("sh", "-c", "sleep 1000 & echo $! > orphan")
child._exclude = lambda entry: entry.pid == job.pid
child.open_gate()
wait(child)
assert not child.empty()
with open("orphan") as file:
    os.kill(int(file.read()), signal.SIGKILL)
while not child.empty():
    time.sleep(0.01)
print(job.poll())
job.kill()
job.wait()
"""
    assert run(text, tmp_path) == "None\n"


def test_sibling_that_the_main_process_made_is_part_of_the_tree(tmp_path: Path) -> None:
    """clone with CLONE_PARENT makes a child of conch that conch did not fork."""
    (tmp_path / "clone.py").write_text(
        "import ctypes, os, platform, time\n"
        "number = {'x86_64': 56, 'aarch64': 220}[platform.machine()]\n"
        "pid = ctypes.CDLL(None).syscall(number, 0x8000 | 17, 0, 0, 0, 0)\n"  # CLONE_PARENT | SIGCHLD
        "if pid:\n"
        "    with open('sibling', 'w') as file: file.write(str(pid))\n"
        "    os._exit(0)\n"
        "time.sleep(1000)\n"
    )
    text = f"""
keeper, channel = keeper_process.fork_keeper(lambda channel: channel.wait_for_spec())
child = start("sh", "-c", "exec {sys.executable} clone.py")
child._exclude = lambda entry: entry.pid == keeper
child.open_gate()
assert wait(child) == 0
for _ in range(20):
    assert not child.empty()
with open("sibling") as file:
    os.kill(int(file.read()), 0)
until = time.monotonic() + 5
while not child.empty() and time.monotonic() < until:
    child.signal_tree(signal.SIGKILL)
print(child.empty())
"""
    assert run(text, tmp_path) == "True\n"


def test_mark_of_a_process_whose_first_thread_has_ended_is_read(tmp_path: Path) -> None:
    """It appears as a zombie without an environment while its other threads run."""
    (tmp_path / "leave.py").write_text(
        "import ctypes, threading, time\n"
        "threading.Thread(target=time.sleep, args=(1000,)).start()\n"
        "ctypes.CDLL(None).pthread_exit(None)\n"
    )
    text = f"""
child = start("sh", "-c", "exec {sys.executable} leave.py")
child.open_gate()
while procfs.stat(child.pid).state != "Z":
    time.sleep(0.01)
print(procfs.stat(child.pid).dead, procfs.run_ids_of(child.pid), child.empty())
os.kill(child.pid, signal.SIGKILL)
while not child.empty():
    time.sleep(0.01)
print(procfs.run_ids_of(child.pid))
"""
    assert run(text, tmp_path) == "False ['cafe'] False\nNone\n"


def test_run_that_is_started_again_has_not_ended_with_its_first_process(tmp_path: Path) -> None:
    """The first process of the run has ended, but the next one under the same id lives."""
    text = """
from conch.core.containment import Containment
from conch.core.daemon_loop import DaemonLoop
from conch.core.messages import Start
from conch.log import Log
options = {"drain_s": 0, "release_s": 0, "user": None, "kept_open": ()}
crew = DaemonLoop(lambda channel: None, os.environ, Containment("tree", None), Log(quiet=True), **options)
order = Start("r", "j", "t", ["/bin/true"], {}, None, [], 0, 1, 1, 1, 0, 0)
for attempt in (1, 2):
    tree = crew.start_tree(order, attempt, None)
    if attempt == 1:
        crew.open_gate(tree)
        while tree.exit_code() is None:
            time.sleep(0.01)
        crew._note_ends()
        print(list(crew._ended))
        crew.reap(tree)
print(list(crew._ended))
"""
    assert run(text, tmp_path) == "['r']\n[]\n"


def test_member_of_another_group_is_signalled_once(tmp_path: Path) -> None:
    """A process in a group of its own gets the signal once."""
    (tmp_path / "leaver").write_text("trap 'echo got >> got; exit' TERM; echo up >> up; while :; do sleep 0.01; done")
    text = """
child = start("sh", "-c", "setsid sh leaver & wait")
child.open_gate()
while not os.path.exists("up"):
    time.sleep(0.01)
child.signal_tree(signal.SIGTERM)
while not child.empty():
    time.sleep(0.01)
print(open("got").read(), end="")
"""
    done = script(text, tmp_path)
    assert done.communicate(timeout=60)[0] == "got\n"  # on stderr dash says that a job was terminated
    assert done.returncode == 0


def test_signals_are_not_lost_in_a_flood(tmp_path: Path) -> None:
    """The wake-up descriptor may be full, but each kind of signal is recorded."""
    text = """
from conch.core.event_loop import Signals
signals = Signals()
for _ in range(20000):
    os.kill(os.getpid(), signal.SIGUSR1)
os.kill(os.getpid(), signal.SIGTERM)
taken = signals.take()
assert signal.SIGTERM in taken and signal.SIGUSR1 in taken
assert signals.take() == []
print("all")
"""
    assert run(text, tmp_path) == "all\n"


def test_reused_pid_is_not_signalled(tmp_path: Path) -> None:
    """The start time distinguishes the two processes."""
    text = """
from conch import record
child = start("sleep", "1000")
child.open_gate()
entry = procfs.stat(child.pid)
procfs.signal_exactly(record.replace(entry, start=entry.start + 1), signal.SIGKILL)
time.sleep(0.1)
assert child.exit_code() is None
procfs.signal_exactly(entry, signal.SIGKILL)
print(wait(child))
"""
    assert run(text, tmp_path) == f"{128 + signal.SIGKILL}\n"


def test_tree_that_cannot_be_read_is_not_taken_for_dead(tmp_path: Path) -> None:
    """Without a descriptor to read /proc, the tree does not count as empty, and its group is still killed."""
    text = """
import resource
child = start("sh", "-c", "sleep 1000 & exec sleep 1000")
child.open_gate()
while len(procfs.descendants(os.getpid(), procfs.processes(), lambda entry: False)) < 2:
    time.sleep(0.01)
os.kill(child.pid, signal.SIGKILL)
wait(child)
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
for look in (lambda: procfs.stat(child.pid), lambda: procfs.carries(os.getpid(), "cafe")):
    try:
        print(look())
    except OSError:
        print("cannot look")
print(child.empty())
child.signal_tree(signal.SIGKILL)
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
while not child.empty():
    time.sleep(0.01)
print("gone")
"""
    assert run(text, tmp_path) == "cannot look\ncannot look\nFalse\ngone\n"
