"""Runs as a process sees them that is not their ancestor: those in cgroups."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conch.core import procfs
from conch.core.cgroup import Cgroup
from conch.core.procfs import Target, kill_from_outside
from tests.support.cgroups import new_place, sleeper

# No process has this pid: the run's first process and its group are gone.
NOBODY = 2**22 + 1


def test_run_is_alive_as_long_as_the_kernel_says_that_its_cgroup_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """What lives there carries no run id, and has not died of the kill yet."""
    with new_place() as place:
        target = Target(NOBODY, "cafe", 0, str(place.path))
        assert kill_from_outside([target]) == [[]]
        with sleeper(place.path) as process:
            with monkeypatch.context() as patch:
                patch.setattr(Cgroup, "kill", lambda _: None)
                ((seen,),) = kill_from_outside([target])
                assert (seen.state, seen.pid) == (procfs.UNSEEN, NOBODY)
            assert process.poll() is None
            kill_from_outside([target])
            assert process.wait(5) == -signal.SIGKILL
        assert Cgroup(str(place.path)).wait_until_empty(5)
        assert kill_from_outside([target]) == [[]]
    assert not Path(target.cgroup).exists()
    assert kill_from_outside([target]) == [[]], "one that is gone is empty"


def test_run_whose_cgroup_cannot_be_read_may_be_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreadable(cgroup: Cgroup) -> bool:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(Cgroup, "kill", unreadable)
    monkeypatch.setattr(Cgroup, "populated", unreadable)
    assert kill_from_outside([Target(NOBODY, "cafe", 0, "/nowhere"), Target(NOBODY + 1, "f00d", 0)]) == [
        [procfs.unseen(NOBODY, cgroup="/nowhere")],
        [],
    ]


def test_wait_for_what_only_a_cgroup_shows_ends_with_it() -> None:
    """The kernel reports its end: whoever waits sleeps until then, and no longer."""
    with new_place() as place:
        with sleeper(place.path) as process:
            entry = procfs.unseen(NOBODY, cgroup=str(place.path))
            began = time.monotonic()
            procfs.wait_for_ends([entry], 0.05)
            assert time.monotonic() - began >= 0.05
            threading.Timer(0.05, process.kill).start()
            procfs.wait_for_ends([entry], 60)
        assert time.monotonic() - began < 30
        assert not Cgroup(str(place.path)).populated()


def test_wait_for_what_nothing_shows_takes_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cgroup that cannot be read says nothing: to return at once would be to poll it."""
    monkeypatch.setattr(Cgroup, "wait_until_empty", lambda *_: False)
    for cgroup in ("", "/nowhere"):
        began = time.monotonic()
        procfs.wait_for_ends([procfs.unseen(NOBODY, cgroup=cgroup)], 0.05)
        assert time.monotonic() - began >= 0.05


@pytest.fixture
def sleepers() -> Iterator[set[int]]:
    """More children than one read of the kernel's list returns."""
    pids = {os.posix_spawn("/bin/sleep", ["sleep", "1000"], {}) for _ in range(700)}
    yield pids
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_all_children_are_listed_but_the_known_ones(sleepers: set[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """A zombie is a child, too; without the kernel's list, all processes are looked at."""
    zombie, *known = sorted(sleepers)[:10]
    os.kill(zombie, signal.SIGKILL)
    os.waitid(os.P_PID, zombie, os.WEXITED | os.WNOWAIT)
    found = procfs.children(known)
    assert sleepers - found.keys() == set(known)
    assert all(entry.parent == os.getpid() for entry in found.values())
    assert found[zombie].dead

    def open_other(path: str, *how: Any) -> int:
        if path.endswith("/children"):
            raise FileNotFoundError
        return open_(path, *how)

    open_ = os.open
    monkeypatch.setattr(os, "open", open_other)
    assert sleepers <= procfs.children(known).keys()
