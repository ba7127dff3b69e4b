"""A run in a cgroup of its own, as the two processes of conch see it; each test runs it in a process of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

from conch.core import containment

pytestmark = pytest.mark.skipif(containment.find("auto").form != "cgroup", reason="no cgroups can be made here")

HEAD = """
import os, signal, subprocess, sys, time
from conch.core import containment, linux, procfs, spawn
from conch.core.cgroup import Cgroup, remove_if_left
from conch.core.spawn import Dispositions, Spec

linux.become_subreaper()
run_id = spawn.new_run_id()
cgroup = containment.find("cgroup").open(run_id)

def start(text, excluded=0):
    child = spawn.start(
        Spec("/bin/sh", ("sh", "-c", text), dict(os.environ)), run_id=run_id, cgroup=cgroup,
        dispositions=Dispositions((), frozenset()), exclude=lambda entry: entry.pid == excluded,
    )
    child.open_gate()
    return child

def wait_for(condition):
    until = time.monotonic() + 10
    while not condition() and time.monotonic() < until:
        time.sleep(0.01)
    print(bool(condition()), flush=True)
"""


def run(text: str, folder: Path) -> str:
    done = subprocess.run([sys.executable, "-c", HEAD + text], cwd=folder, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_command_is_in_its_cgroup_from_its_first_instruction_on(tmp_path: Path) -> None:
    """What it starts at once is born there, too."""
    text = """
child = start("exec cat /proc/self/cgroup > shown")
wait_for(child.empty)
print(open("shown").read().rstrip("\\n").endswith(os.path.basename(cgroup.path)))
child.reap()
child.clear_away()
print(os.path.exists(cgroup.path))
"""
    assert run(text, tmp_path).split() == ["True", "True", "False"]


@pytest.mark.parametrize("error", ["ENOSYS", "EINVAL", "EPERM"])
def test_command_enters_its_cgroup_where_none_can_be_born_there(tmp_path: Path, error: str) -> None:
    """The kernel is too old, or a filter of system calls refuses: the same, but the process does it itself."""
    text = f"""
import errno

def refuse(folder):
    raise OSError(errno.{error}, "no")

linux.fork_into = refuse
child = start("exec cat /proc/self/cgroup > shown")
wait_for(child.empty)
print(open("shown").read().rstrip("\\n").endswith(os.path.basename(cgroup.path)))
child.reap()
child.clear_away()
"""
    assert run(text, tmp_path).split() == ["True", "True"]


def test_child_that_is_born_in_its_cgroup_is_as_any_other(tmp_path: Path) -> None:
    """It has one thread, and Python in it works: locks, blocking calls, imports, its hooks, its children."""
    text = """
from conch.core import keeper_process
os.waitpid(keeper_process._fork_aside(lambda: os._exit(0)), 0)  # a second thread
os.register_at_fork(
    before=lambda: print("before", flush=True),
    after_in_child=lambda: print("child", flush=True),
)
pid = cgroup.fork()
if pid == 0:
    threads = len(os.listdir("/proc/self/task"))
    import json, threading
    thread = threading.Thread(target=time.sleep, args=(0.01,))
    thread.start()
    thread.join()
    print(json.dumps([threads, os.getppid()]), flush=True)
    sys.exit(os.waitstatus_to_exitcode(os.system("exit 7")))
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
print(os.getpid())
"""
    before, child, shown, parent = run(text, tmp_path).splitlines()
    assert (before, child, shown) == ("before", "child", f"[1, {parent}]")


def test_run_is_not_over_while_anything_lives_in_its_cgroup(tmp_path: Path) -> None:
    """Its own processes have ended. What moved in is no descendant of theirs, but the kernel lists it."""
    text = """
guest = subprocess.Popen(["sleep", "1000"])
with open(f"{cgroup.path}/cgroup.procs", "w") as file:
    file.write(str(guest.pid))
child = start("true", excluded=guest.pid)
wait_for(lambda: child.exit_code() == 0)
print(child.empty())
child.signal_tree(signal.SIGKILL)
wait_for(child.empty)
print(guest.wait())
child.reap()
child.clear_away()
"""
    assert run(text, tmp_path).split() == ["True", "False", "True", "-9"]


def test_cgroup_that_is_about_to_be_entered_is_not_removed_as_left_behind(tmp_path: Path) -> None:
    """It is empty, like one that a dead conch left; but its owner lives."""
    text = """
print(remove_if_left(cgroup.path), os.path.exists(cgroup.path))
cgroup.close()
print(remove_if_left(cgroup.path), os.path.exists(cgroup.path))
"""
    assert run(text, tmp_path).split() == ["False", "True", "True", "False"]


def test_process_that_hides_is_killed_from_outside(tmp_path: Path) -> None:
    """It has left its group, has no environment, and is an orphan: only the cgroup shows it."""
    text = """
child = start("setsid sh -c 'env -i sleep 1000 & echo $! > pid.new; mv pid.new pid' & wait")
wait_for(lambda: os.path.exists("pid"))
hidden = int(open("pid").read())
child.signal_group(signal.SIGKILL)
wait_for(lambda: child.exit_code() is not None and procfs.stat(hidden).parent == os.getpid())
procfs.kill_from_outside([procfs.Target(child.pid, run_id, 0, cgroup.path)])
wait_for(child.empty)
child.reap()
child.clear_away()
"""
    assert run(text, tmp_path).split() == ["True", "True", "True"]
