"""One cgroup, on the real kernel."""

import fcntl
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from conch.core import cgroup as module
from conch.core.cgroup import Cgroup, Usage, remove_if_left
from tests.support.cgroups import Place, new_place, populated, sleeper
from tests.support.conch import alive, wait_for


@pytest.fixture
def place() -> Iterator[Place]:
    with new_place() as place:
        yield place


@pytest.fixture
def cgroup(place: Place) -> Iterator[Cgroup]:
    """An empty cgroup that we own."""
    made = Cgroup.create(f"{place.path}/conch-1")
    yield made
    made.close()


def locked(path: str) -> bool:
    """Whether somebody has locked a directory."""
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(folder)
    return False


# Four chains of processes, each of which forks only the next one, detached from all before it, and ends.
CHAINS = "import os\nos.fork(); os.fork()\nwhile True:\n  if os.fork(): os._exit(0)\n  os.setsid()\n"


def chains(path: str) -> None:
    """Let chains of processes loose in a cgroup; the first process is reaped before this returns."""
    command = ["sh", "-c", 'echo 0 > "$0/cgroup.procs"; exec "$@"', path, sys.executable, "-S", "-c", CHAINS]
    subprocess.run(command, check=True)


# -- to make and to enter it ------------------------------------------------------------------------------------


def test_it_is_made_locked_and_gone_after_its_removal(place: Place) -> None:
    path = f"{place.path}/conch-1"
    cgroup = Cgroup.create(path)
    assert os.path.isdir(path)
    assert locked(path)
    assert not cgroup.populated()
    assert cgroup.remove()
    assert not os.path.exists(path)


def test_process_that_enters_is_in_it_with_what_it_forks(cgroup: Cgroup) -> None:
    """It is listed until it has ended, not until it was reaped."""
    pid = os.fork()
    if pid == 0:
        try:
            cgroup.enter()
            os.fork()
            signal.pause()
        finally:
            os._exit(1)
    wait_for(lambda: len(cgroup.pids()) == 2, "both are in it")
    assert pid in cgroup.pids()
    assert cgroup.populated()
    cgroup.kill()
    assert cgroup.wait_until_empty(5)
    assert cgroup.pids() == set()
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL


def test_enter_where_there_is_none_raises(place: Place) -> None:
    """A process that cannot enter must learn it: it would run outside."""
    with pytest.raises(FileNotFoundError):
        Cgroup(f"{place.path}/conch-1").enter()


def test_empty_one_that_a_dead_conch_left_is_replaced(place: Place) -> None:
    path = place.path / "conch-1"
    (path / "below").mkdir(parents=True)
    cgroup = Cgroup.create(str(path))
    assert locked(str(path))
    assert not (path / "below").exists()
    cgroup.close()


def test_one_that_another_conch_owns_or_lives_in_is_not_replaced(place: Place, cgroup: Cgroup) -> None:
    with pytest.raises(FileExistsError):
        Cgroup.create(cgroup.path)
    assert locked(cgroup.path)
    cgroup.close()
    with sleeper(Path(cgroup.path)) as process:
        with pytest.raises(FileExistsError):
            Cgroup.create(cgroup.path)
        assert process.poll() is None


def test_limit_of_cgroups_is_an_error(place: Place) -> None:
    place.limit(0)
    with pytest.raises(BlockingIOError):
        Cgroup.create(f"{place.path}/conch-1")


# -- what lives in it -------------------------------------------------------------------------------------------


def test_nested_directories_belong_to_it(cgroup: Cgroup) -> None:
    """What a command makes below its own cgroup, threaded cgroups too, is listed, signalled and killed with it."""
    below = Path(cgroup.path, "a", "b")
    below.mkdir(parents=True)
    threaded = Path(cgroup.path, "threaded")
    with sleeper(below) as nested, sleeper(Path(cgroup.path)) as direct:
        threaded.mkdir()
        assert cgroup.pids() == {nested.pid, direct.pid}
        cgroup.signal(signal.SIGTERM)
        assert {nested.wait(5), direct.wait(5)} == {-signal.SIGTERM}
    (threaded / "cgroup.type").write_text("threaded")
    with sleeper(threaded) as process:
        assert cgroup.populated()
        assert cgroup.pids() == {process.pid}
        cgroup.kill()
        assert process.wait(5) == -signal.SIGKILL


def test_signal_spares_one_group(cgroup: Cgroup) -> None:
    """The group of the main process is signalled as a group."""
    with sleeper(Path(cgroup.path), group=True) as excepted, sleeper(Path(cgroup.path), group=True) as other:
        cgroup.signal(signal.SIGTERM, except_group=excepted.pid)
        assert other.wait(5) == -signal.SIGTERM
        assert excepted.poll() is None
        assert cgroup.pids() == {excepted.pid}


def test_signal_reaches_more_than_are_signalled_at_once(cgroup: Cgroup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_AT_ONCE", 2)
    command = "for i in 1 2 3 4; do sleep 1000 & done; wait"
    with sleeper(Path(cgroup.path), command=command):
        wait_for(lambda: len(cgroup.pids()) == 5, "all run")
        cgroup.signal(signal.SIGTERM)
        assert cgroup.wait_until_empty(5)


def test_signal_never_reaches_a_later_process_of_the_pid(cgroup: Cgroup, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pid that was in it and is somebody else's by now is not signalled."""
    with sleeper(Path(cgroup.path).parent) as outside, sleeper(Path(cgroup.path)) as inside:
        answers = [{inside.pid, outside.pid}, {inside.pid}]  # it was in it when it was listed, and is not any more
        monkeypatch.setattr(cgroup, "pids", lambda: answers.pop(0))
        cgroup.signal(signal.SIGTERM)
        assert inside.wait(5) == -signal.SIGTERM
        assert outside.poll() is None


@pytest.mark.parametrize("how", [Cgroup.kill, Cgroup.freeze_and_kill], ids=["kill", "freeze"])
@pytest.mark.parametrize("stopped", [False, True])
def test_kill_ends_all_of_it(cgroup: Cgroup, how: Callable[[Cgroup], None], stopped: bool) -> None:
    """It needs no other user's leave and reaches what is stopped."""
    command = "trap '' TERM; setsid sh -c 'trap \"\" TERM; sleep 1000' & wait"
    with sleeper(Path(cgroup.path), command=command) as process:
        wait_for(lambda: len(cgroup.pids()) == 3, "all run")
        pids = cgroup.pids()
        if stopped:
            cgroup.signal(signal.SIGSTOP)
        how(cgroup)
        assert cgroup.wait_until_empty(5)
        assert process.wait(5) == -signal.SIGKILL
        wait_for(lambda: not any(alive(pid) for pid in pids), "all have ended")


@pytest.mark.parametrize("how", [Cgroup.kill, Cgroup.freeze_and_kill], ids=["kill", "freeze"])
def test_kill_ends_what_forks_faster_than_it_can_be_listed(cgroup: Cgroup, how: Callable[[Cgroup], None]) -> None:
    """Whoever lists the processes of a chain finds only those that have ended."""
    for _ in range(5):
        chains(cgroup.path)
        assert cgroup.populated()
        how(cgroup)
        assert cgroup.wait_until_empty(5)


def test_nothing_can_fork_while_it_is_killed_one_by_one(cgroup: Cgroup, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is frozen by then."""
    events, send = [], cgroup.signal

    def signal_later(number: int) -> None:
        events.append(Path(cgroup.path, "cgroup.events").read_text())
        send(number)

    monkeypatch.setattr(cgroup, "signal", signal_later)
    with sleeper(Path(cgroup.path)) as process:
        cgroup.freeze_and_kill()
        assert process.wait(5) == -signal.SIGKILL
    assert "frozen 1" in events[0]


def test_frozen_one_is_thawed_for_its_end(cgroup: Cgroup) -> None:
    """A command that froze itself, or a kill that was cut short, does not keep the rest from being killed."""
    with sleeper(Path(cgroup.path)) as process:
        Path(cgroup.path, "cgroup.freeze").write_text("1")
        cgroup.freeze_and_kill()
        assert process.wait(5) == -signal.SIGKILL
        assert Path(cgroup.path, "cgroup.freeze").read_text() == "0\n"


def test_kernel_without_kill_freezes(cgroup: Cgroup, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before 5.14 there is no cgroup.kill."""
    write = module._write

    def write_as_before(path: str, data: bytes) -> None:
        if path.endswith("/cgroup.kill"):
            raise FileNotFoundError(2, "No such file or directory", path)
        write(path, data)

    monkeypatch.setattr(module, "_write", write_as_before)
    with sleeper(Path(cgroup.path)) as process:
        cgroup.kill()
        assert process.wait(5) == -signal.SIGKILL


def test_wait_until_empty_ends_with_the_last_process_or_the_time(cgroup: Cgroup) -> None:
    with sleeper(Path(cgroup.path)) as process:
        assert not cgroup.wait_until_empty(0.02)
        threading.Timer(0.05, process.kill).start()
        assert cgroup.wait_until_empty(5)
    assert cgroup.wait_until_empty(0)


def test_one_that_is_gone_is_empty(place: Place) -> None:
    """Nothing of this raises: whoever removed it, nothing can live in it."""
    cgroup = Cgroup(f"{place.path}/conch-1")
    assert not cgroup.populated()
    assert cgroup.pids() == set()
    cgroup.signal(signal.SIGTERM)
    cgroup.kill()
    assert cgroup.wait_until_empty(5)
    assert cgroup.usage() is None
    assert cgroup.remove()


def test_one_that_cannot_be_read_is_not_taken_for_empty(cgroup: Cgroup, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a descriptor nobody knows what lives in it."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            cgroup.populated()
        with pytest.raises(OSError, match="Too many open files"):
            cgroup.pids()
        assert not cgroup.wait_until_empty(0)
        with pytest.raises(OSError, match="Too many open files"):
            cgroup.kill()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_usage_counts_what_has_ended(cgroup: Cgroup) -> None:
    """CPU time is of all that ran in it, reaped by whomever; peak memory needs a controller."""
    before = cgroup.usage()
    assert before is not None
    assert before.cpu_s < 0.001
    busy = f"{sys.executable} -c 'sum(range(3_000_000))'"
    with sleeper(Path(cgroup.path), command=f"setsid {busy}; exit 0") as process:
        assert process.wait(30) == 0
    after = cgroup.usage()
    assert after is not None
    assert after.cpu_s > 0.01
    assert (after.max_rss_kb is None) == (not Path(cgroup.path, "memory.peak").exists())


def test_usage_of_files_as_kernels_write_them(tmp_path: Path) -> None:
    cgroup = Cgroup(str(tmp_path))
    (tmp_path / "cpu.stat").write_text("usage_usec 1500000\nuser_usec 1\nsystem_usec 2\n")
    assert cgroup.usage() == Usage(1.5, None)
    (tmp_path / "memory.peak").write_text("4096\n")
    assert cgroup.usage() == Usage(1.5, 4)
    (tmp_path / "memory.peak").write_text("max\n")
    assert cgroup.usage() is None
    (tmp_path / "cpu.stat").write_text("")
    assert cgroup.usage() is None


# -- to remove it -----------------------------------------------------------------------------------------------


def test_removal_takes_empty_ones_below_with_it(cgroup: Cgroup) -> None:
    Path(cgroup.path, "a", "b").mkdir(parents=True)
    Path(cgroup.path, "c").mkdir()
    assert cgroup.remove()
    assert not os.path.exists(cgroup.path)


@pytest.mark.parametrize("below", ["", "a/b"])
def test_removal_is_refused_while_something_lives_in_it(cgroup: Cgroup, below: str) -> None:
    path = Path(cgroup.path, below)
    path.mkdir(parents=True, exist_ok=True)
    with sleeper(path) as process:
        assert not cgroup.remove()
        assert populated(Path(cgroup.path))
        assert process.poll() is None
    assert cgroup.remove()


def test_removal_waits_for_the_kernel_to_note_an_end(cgroup: Cgroup, monkeypatch: pytest.MonkeyPatch) -> None:
    """For a little while; here, for as long as a busy machine takes to end a process."""
    monkeypatch.setattr(cgroup, "wait_until_empty", partial(cgroup.wait_until_empty, 5))
    with sleeper(Path(cgroup.path)) as process:
        threading.Timer(0.05, process.kill).start()
        assert cgroup.remove()


def test_left_one_is_removed_only_if_it_is_empty_and_not_owned(place: Place) -> None:
    cgroup = Cgroup.create(f"{place.path}/conch-1")
    assert not remove_if_left(cgroup.path), "its conch lives and is about to enter it"
    cgroup.close()
    with sleeper(Path(cgroup.path)) as process:
        assert not remove_if_left(cgroup.path), "something that escaped lives in it"
        assert process.poll() is None
    assert remove_if_left(cgroup.path)
    assert not os.path.exists(cgroup.path)
    assert remove_if_left(cgroup.path)


def test_lock_ends_with_its_process(place: Place) -> None:
    """So what a conch that was killed leaves can be told from what a live one owns."""
    path = f"{place.path}/conch-1"
    pid = os.fork()
    if pid == 0:
        try:
            Cgroup.create(path)
            signal.pause()
        finally:
            os._exit(1)
    wait_for(lambda: os.path.isdir(path) and locked(path), "it is locked")
    assert not remove_if_left(path)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert remove_if_left(path)


def test_others_that_remove_what_is_left_do_not_disturb_one_that_is_made(place: Place) -> None:
    """Between its making and its lock, a cgroup looks like one that was left: then it is made again."""
    path, stop, removed = f"{place.path}/conch-1", threading.Event(), [0]

    def remove_again_and_again() -> None:
        while not stop.is_set():
            removed[0] += os.path.isdir(path) and remove_if_left(path)

    removers = [threading.Thread(target=remove_again_and_again) for _ in range(2)]
    for remover in removers:
        remover.start()
    try:
        for _ in range(500):
            cgroup = Cgroup.create(path)
            assert os.path.isdir(path)
            assert locked(path)
            assert cgroup.remove()
    finally:
        stop.set()
        for remover in removers:
            remover.join()


def test_lock_on_one_that_was_made_anew_meanwhile_is_none(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A conch opens a cgroup that was left; before it locks it, another replaces it by its own of the same name."""
    path = f"{place.path}/conch-1"
    os.mkdir(path)
    flock, made = fcntl.flock, []

    def flock_late(folder: int, how: int) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        made.append(Cgroup.create(path))
        flock(folder, how)

    monkeypatch.setattr(fcntl, "flock", flock_late)
    assert not remove_if_left(path)
    assert os.path.isdir(path)
    assert locked(path)
    made[0].close()
