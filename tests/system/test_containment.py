"""Runs in cgroups of their own: whatever they do to escape, they are dead before anyone else can hold.

What escaped records that it lives (`tests/support/escape.py`). A beat after the key of the hold is gone is a violation.
Each test starts conch in a cgroup of the test's own, which must be empty at the end.
"""

import contextlib
import os
import re
import shlex
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import OwnEtcd
from tests.support import escape as escape_program
from tests.support.cgroups import Place, place_of_conch, populated
from tests.support.conch import CONCH, Bench, Wrapper, alive, boottime, throughout, wait_for
from tests.support.cron import Fleet

TTL_S = 3.0
FLAGS = ("--ttl", "3s", "--kill-after", "700ms")


@pytest.fixture
def place() -> Iterator[Place]:
    """Where conch is started; requested before `conch`, so that it is checked when all has ended."""
    with place_of_conch() as place:
        yield place


def command(bench: Bench, how: str, end: str = "stays") -> str:
    """Return a shell command that lets something escape, and then stays or ends with an exit code."""
    nested = how == "nested"
    program = [sys.executable, "-I", escape_program.__file__, str(bench.folder), "daemon" if nested else how]
    if not nested:
        return shlex.join([*program, end])
    inner = shlex.join([CONCH, "elect", "inner", "--ttl", "2s", "--kill-after", "300ms", "--", *program, "stays"])
    return f"exec {inner}" if end == "stays" else f"{inner} & while ! test -s beats; do sleep 0.01; done; exit {end}"


def beats(bench: Bench) -> list[tuple[str, int, float]]:
    """Return what the escaped processes recorded: beats and SIGTERMs, by pid and time."""
    lines = (line.split() for line in bench.file("beats").read_text().splitlines())
    return [(what, int(pid), float(at)) for what, pid, at in lines]


def escaped(bench: Bench, place: Place, how: str) -> Path:
    """Wait until something has escaped; check which cgroup it is in; return that of the run."""
    bench.read("beats", 3)
    if how.startswith("moved"):
        assert f"/{place.path.name}/beside;" in bench.read("cgroup")
        return place.path / (place.runs() or ["it has ended"])[0]
    below = "/conch-[0-9a-f]{16}" if how == "nested" else ""
    found = re.search(rf"0::.*/{place.path.name}/(conch-[0-9a-f]{{16}}){below};", bench.read("cgroup"))
    assert found is not None, bench.read("cgroup")
    return place.path / found[1]


def check_dead_since(bench: Bench, at: float) -> None:
    """Check that nothing that escaped has recorded anything after `at`, nor does so now."""
    throughout(0.2, lambda: None)  # a process that lives records something every 5 ms
    after = [beat for beat in beats(bench) if beat[2] > at]
    assert not after, f"{len(after)} signs of life, the last one {after[-1][2] - at:.3f} s too late"
    assert not any(alive(pid) for _, pid, _ in beats(bench)[-3:])


def check_outlived(bench: Bench, key: str, run: Path) -> None:
    """Wait until the key of the hold is gone; by then its run must be dead, and its cgroup is removed next."""
    wait_for(lambda: not exists(bench, key), f"{key} is gone", 20)
    at = boottime()
    with contextlib.suppress(OSError):  # it is removed already
        assert "populated 0" in (run / "cgroup.events").read_text(), "something of the run outlived the hold"
    wait_for(lambda: not run.exists(), "the removal of its cgroup")
    check_dead_since(bench, at)


def exists(bench: Bench, key: str) -> bool:
    return bench.etcd.get(key)[1] is not None


def terms(bench: Bench) -> list[float]:
    return [at for what, _, at in beats(bench) if what == "TERM"]


def end(bench: Bench, wrapper: Wrapper, ending: str, key: str, run: Path) -> None:
    """End a hold in one of many ways, and check that what it ran is dead in time."""
    if ending.startswith("stopped"):
        wrapper.signal(signal.SIGSTOP)
        throughout(TTL_S + 0.5, lambda: exists(bench, key) or pytest.fail("a stopped conch lost its hold"))
        assert boottime() - beats(bench)[-1][2] < 2, "it lives as long as the hold"
    if ending == "supervisor killed":
        wrapper.signal(signal.SIGKILL)
    elif ending == "keeper killed":
        os.kill(wrapper.keeper(), signal.SIGKILL)
    elif ending in ("key deleted", "stopped, key deleted"):
        deleted = boottime()
        bench.etcd.delete(key)
        wait_for(lambda: boottime() - beats(bench)[-1][2] > 0.5, "no sign of life any more")
        assert beats(bench)[-1][2] - deleted < 0.7 + 2, "after kill-after, and what a busy machine takes"
        check_dead_since(bench, deleted + 0.7 + 2)
        wrapper.signal(signal.SIGCONT)
        wait_for(lambda: not run.exists(), "the cgroup is gone")
    elif ending == "terminated":
        wrapper.signal(signal.SIGTERM)
    check_outlived(bench, key, run)


EXIT_CODES = {
    "supervisor killed": 128 + signal.SIGKILL,
    "keeper killed": 70,
    "key deleted": 70,
    "stopped, key deleted": 70,
    "command ends": 7,
    "terminated": 128 + signal.SIGTERM,
}


@pytest.mark.parametrize(
    ("kind", "how", "ending"),
    [
        ("elect", "daemon", "supervisor killed"),
        ("elect", "nested", "supervisor killed"),
        ("elect", "moved, tagged", "supervisor killed"),
        ("sema", "another user", "supervisor killed"),
        ("sema", "chain", "supervisor killed"),
        ("elect", "chain", "keeper killed"),
        ("sema", "daemon", "keeper killed"),
        ("sema", "moved", "keeper killed"),
        ("elect", "daemon", "stopped, key deleted"),
        ("sema", "chain", "stopped, key deleted"),
        ("elect", "nested", "key deleted"),
        ("sema", "another user", "key deleted"),
        ("elect", "chain", "command ends"),
        ("elect", "moved", "command ends"),
        ("sema", "daemon", "command ends"),
        ("sema", "nested", "command ends"),
        ("elect", "another user", "terminated"),
        ("elect", "moved", "terminated"),
        ("sema", "chain", "terminated"),
    ],
    indirect=["kind"],
)
def test_what_escaped_is_dead_before_the_hold_is_free(place: Place, conch: Bench, how: str, ending: str) -> None:
    """For each way to escape and each way to end; the cgroup is gone by then, too, and the exit code is right."""
    code = "7" if ending == "command ends" else "stays"
    wrapper = conch.hold("o", *FLAGS, command=command(conch, how, code), program=place.conch)
    assert wrapper.wait_event("acquired")["contain"] == "cgroup"
    key = conch.key("o", wrapper.lease())
    end(conch, wrapper, ending, key, escaped(conch, place, how))
    assert wrapper.wait() == EXIT_CODES[ending], wrapper.err
    if how in ("daemon", "another user", "moved") and "killed" not in ending and "stopped" not in ending:
        assert beats(conch)[-1][2] - terms(conch)[0] > 0.3, "it had the time of kill-after"


@pytest.mark.parametrize("how", ["daemon", "chain", "another user"])
def test_what_escaped_is_dead_before_the_lease_can_expire(place: Place, own: OwnEtcd, how: str) -> None:
    """etcd does not answer and the supervisor is stopped: its keeper kills the cgroup by the deadline."""
    bench = own.bench
    wrapper = bench.hold("o", *FLAGS, command=command(bench, how), program=place.conch)
    escaped(bench, place, how)
    os.kill(own.member.pid, signal.SIGSTOP)
    stopped = boottime()
    wrapper.signal(signal.SIGSTOP)
    try:
        wait_for(lambda: boottime() > stopped + TTL_S, "the lease may have expired")
        check_dead_since(bench, stopped + TTL_S)
    finally:
        wrapper.signal(signal.SIGCONT)
        wrapper.wait_event("lost")
        os.kill(own.member.pid, signal.SIGCONT)
    assert wrapper.wait() == 70


def test_all_of_the_run_gets_sigterm_before_sigkill(place: Place, conch: Bench) -> None:
    """What left the group, too, once the command has ended of the signal."""
    wrapper = conch.hold("o", "--kill-after", "1s", command=command(conch, "daemon"), program=place.conch)
    run = escaped(conch, place, "daemon")
    signalled = boottime()
    wrapper.signal(signal.SIGTERM)
    check_outlived(conch, conch.key("o", wrapper.lease()), run)
    assert wrapper.wait() == 128 + signal.SIGTERM
    first = terms(conch)[0]
    assert first > signalled
    assert beats(conch)[-1][2] - first > 0.5


# -- hooks ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["daemon", "chain", "another user", "moved"])
def test_what_escaped_from_a_hook_is_dead_before_the_command_starts(place: Place, conch: Bench, how: str) -> None:
    flags = ("--kill-after", "300ms", "--on-acquire", command(conch, how, "0"))
    show = "cat /proc/uptime > started; ls -d */ > below 2> none; exit 3"
    wrapper = conch.start("elect", "o", *flags, "--", "sh", "-c", show, program=place.conch)
    assert wrapper.wait() == 3, wrapper.err
    started = float(conch.read("started").split()[0])
    assert beats(conch)[-1][2] <= started + 0.02  # /proc/uptime has hundredths


@pytest.mark.parametrize(
    ("how", "ending"),
    [("daemon", "supervisor killed"), ("chain", "keeper killed"), ("another user", "stopped, key deleted")],
)
def test_what_escaped_from_a_hook_is_dead_before_the_hold_is_free(
    place: Place, conch: Bench, how: str, ending: str
) -> None:
    """The hook still runs when its hold ends."""
    wrapper = conch.start("elect", "o", *FLAGS, "--on-acquire", command(conch, how), "--", "true", program=place.conch)
    wrapper.wait_event("hook-start")
    end(conch, wrapper, ending, conch.key("o", wrapper.lease()), escaped(conch, place, how))
    assert wrapper.wait() == EXIT_CODES[ending]


# -- conchd -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "ending", "state"),
    [
        ("chain", "time limit", "timeout"),
        ("nested", "time limit", "timeout"),
        ("another user", "keeper killed", "killed"),
        ("daemon", "supervisor killed", None),
        ("chain", "stopped, key deleted", "killed"),
        ("daemon", "command ends", "failed"),
        ("moved, tagged", "command ends", "failed"),
        ("chain", "terminated", "killed"),
    ],
)
def test_what_escaped_from_a_run_of_conchd_is_dead_before_its_key_is_gone(
    place: Place, conch: Bench, fleet: Fleet, how: str, ending: str, state: str | None
) -> None:
    """The key keeps the next run of the job out."""
    daemon = fleet.start("a", "--ttl", "3s", "--drain", "0", program=place.conch)
    assert daemon.wait_event("registered")["contain"] == "cgroup"
    code = "7" if ending == "command ends" else "stays"
    limit = ("--run-ttl", "2s") if ending == "time limit" else ()
    fleet.add("j", "@yearly", "--kill-after", "700ms", *limit, command=command(conch, how, code))
    tick = fleet.run_now("j")
    end(conch, daemon, ending, f"{conch.prefix}/cron/run/j", escaped(conch, place, how))
    if state is None:
        fleet.start("a", "--ttl", "3s", program=place.conch)
        state = "lost"
    result = fleet.result("j", tick)
    assert result["state"] == state, result
    if ending == "terminated":
        assert daemon.wait() == 0


@pytest.mark.parametrize("how", ["daemon", "another user", "chain"])
def test_survivors_of_both_processes_of_conchd_are_killed_by_their_cgroup(
    place: Place, conch: Bench, fleet: Fleet, how: str
) -> None:
    """They carry no run id; the journal has the names of the runs, and so of their cgroups."""
    daemon = fleet.start("a", "--ttl", "3s", program=place.conch)
    fleet.add("j", "@yearly", command=command(conch, how))
    tick = fleet.run_now("j")
    run = escaped(conch, place, how)
    keeper = daemon.keeper()
    daemon.signal(signal.SIGSTOP)
    os.kill(keeper, signal.SIGKILL)
    daemon.signal(signal.SIGKILL)
    daemon.wait()
    throughout(0.5, lambda: populated(run) or pytest.fail("nothing is left to be killed"))
    again = fleet.start("a", "--ttl", "3s", program=place.conch)
    assert not run.exists()
    check_dead_since(conch, boottime())
    assert again.wait_event("survivors")["pids"]
    assert fleet.result("j", tick)["state"] == "lost"


# -- entering it ------------------------------------------------------------------------------------------------


def test_command_and_hooks_are_in_their_cgroups_before_they_begin(place: Place, conch: Bench) -> None:
    """Each has one of its own; the command sees the end of the first hook's."""
    show = f"grep ^0:: /proc/self/cgroup >> seen; ls {place.path} | grep ^conch- >> seen; echo >> seen"
    hooks = ("--on-acquire", show, "--on-lose", show)
    done = conch.run("elect", "o", *hooks, "--", "cat", "/proc/self/cgroup", program=place.conch)
    assert done.returncode == 0, done.stderr
    own = rf"0::.*/{place.path.name}/(conch-[0-9a-f]{{16}})\n"
    child = re.search(own, done.stdout)
    assert child is not None, done.stdout
    text = conch.read("seen")
    hooks_seen = re.findall(own, text)
    assert len({child[1], *hooks_seen}) == 3
    before, after = text.strip().split("\n\n")
    assert sorted(before.split("\n")[1:]) == sorted([child[1], hooks_seen[0]]), "the command waits behind its gate"
    assert after.split("\n")[1:] == [hooks_seen[1]], "that of the command is gone"


def test_run_of_conchd_is_in_its_cgroup_before_it_begins(place: Place, conch: Bench, fleet: Fleet) -> None:
    """Attempts of one run follow each other in cgroups of one name."""
    fleet.start("a", program=place.conch)
    retry = ("--retries", "1", "--retry-delay", "0")
    fleet.add("j", "@yearly", *retry, command="grep ^0:: /proc/self/cgroup >> seen; exit 1")
    result = fleet.result("j", fleet.run_now("j"))
    assert (result["state"], result["attempt"]) == ("failed", 2)
    seen = re.findall(rf"0::.*/{place.path.name}/(conch-\S+)\n", conch.read("seen", 2))
    assert len(seen) == 2
    assert len(set(seen)) == 1


def test_tree_is_left_where_conch_is(place: Place, conch: Bench) -> None:
    done = conch.run("elect", "o", "--contain", "tree", "--", "cat", "/proc/self/cgroup", program=place.conch)
    assert re.search(rf"0::.*/{place.path.name}\n", done.stdout)
    assert "contain=tree" in done.stderr


# -- what is left -----------------------------------------------------------------------------------------------


def kill_both(wrapper: Wrapper) -> None:
    """SIGKILL conch and its keeper so that neither sees the other die."""
    keeper = wrapper.keeper()
    os.kill(keeper, signal.SIGSTOP)
    wrapper.signal(signal.SIGKILL)
    os.kill(keeper, signal.SIGKILL)
    wrapper.wait()


def test_empty_cgroup_that_a_dead_conch_left_is_removed_by_the_next(place: Place, conch: Bench) -> None:
    wrapper = conch.hold("o", "--ttl", "2s", program=place.conch)
    run = place.run()
    kill_both(wrapper)
    wait_for(lambda: not populated(run), "the command died with conch")
    assert run.exists()
    assert conch.run("elect", "other", "--", "true", program=place.conch).returncode == 0
    assert not run.exists()


def test_cgroup_in_which_something_lives_is_left_alone(place: Place, conch: Bench) -> None:
    """What escaped from a conch that is dead with its keeper belongs to nobody else."""
    wrapper = conch.hold("o", "--ttl", "2s", command=command(conch, "daemon"), program=place.conch)
    run = escaped(conch, place, "daemon")
    kill_both(wrapper)
    assert conch.run("elect", "other", "--", "true", program=place.conch).returncode == 0
    assert populated(run)
    assert boottime() - beats(conch)[-1][2] < 1
    (run / "cgroup.kill").write_text("1")
    wait_for(lambda: not populated(run), "it is dead")
    assert conch.run("elect", "other", "--", "true", program=place.conch).returncode == 0
    assert not run.exists()


def test_empty_cgroup_that_a_live_conch_owns_is_left_alone(place: Place, conch: Bench) -> None:
    """It is locked and about to be entered."""
    import fcntl

    run = place.path / "conch-0123456789abcdef"
    run.mkdir()
    folder = os.open(run, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    assert conch.run("elect", "o", "--", "true", program=place.conch).returncode == 0
    assert run.exists()
    os.close(folder)
    assert conch.run("elect", "o", "--", "true", program=place.conch).returncode == 0
    assert not run.exists()


def test_waiters_own_their_cgroups(place: Place, conch: Bench) -> None:
    """A queued conch has made that of its command; others that come and go do not take it for left."""
    first = conch.hold("o", program=place.conch)
    second = conch.queue("o", command="grep ^0:: /proc/self/cgroup > seen", program=place.conch)
    wait_for(lambda: len(place.runs()) == 2, "both have one")
    for _ in range(3):
        assert conch.run("elect", "other", "--", "true", program=place.conch).returncode == 0
    assert len(place.runs()) == 2
    first.signal(signal.SIGTERM)
    first.wait()
    assert second.wait() == 0
    assert "/conch-" in conch.read("seen")
