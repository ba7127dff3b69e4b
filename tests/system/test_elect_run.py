"""`conch elect`: acquiring, running, handing over, exit codes."""

import os
import signal
import subprocess
import time

import pytest

from tests.conftest import OwnEtcd
from tests.support.conch import CONCH, TRANSPORT, Bench, alive, wait_for
from tests.support.metrics import difference, requests

DEAD = {"CONCH_ENDPOINTS": "127.0.0.1:1"}


def test_child_runs_as_leader_with_token_and_environment(conch: Bench) -> None:
    """Its name, token, lease and key are those in etcd."""
    show = 'echo "$CONCH_NAME $CONCH_REV $CONCH_LEASE $CONCH_HOLD_KEY $CONCH_TREE $OTHER"; sleep 1000'
    wrapper = conch.start("elect", "db", "--", "sh", "-c", show, env={"OTHER": "kept"})
    wait_for(lambda: wrapper.out.count("\n"), "the child's line")
    name, rev, lease, key, tree, other = wrapper.out.split()
    (value, meta), *more = conch.etcd.get_prefix(conch.prefix)
    assert not more
    assert (name, other) == ("db", "kept")
    assert int(rev) == meta.create_revision
    assert int(lease, 16) == meta.lease_id
    assert key == meta.key.decode() == f"{conch.prefix}/elect/db/{lease}"
    assert len(tree) == 16
    (holder,) = conch.jsons(value.decode())
    assert holder["pid"] == wrapper.pid
    assert holder["host"] == os.uname().nodename
    assert holder["cmd"].startswith("sh -c echo")


@pytest.mark.parametrize("code", [0, 1, 70, 75, 255])
def test_conch_exits_with_the_code_of_the_child(conch: Bench, code: int) -> None:
    """A child that ends while the hold is kept decides the exit code."""
    done = conch.run("elect", "o", "--", "sh", "-c", f"exit {code}")
    assert done.returncode == code


def test_child_that_dies_of_a_signal_gives_128_and_its_number(conch: Bench) -> None:
    """A shell does the same."""
    assert conch.run("elect", "o", "--", "sh", "-c", "kill -USR1 $$").returncode == 128 + signal.SIGUSR1


def test_stdin_goes_to_the_child(conch: Bench) -> None:
    """The child reads all of it, and the end of file."""
    text = "line\n" * 50000
    done = conch.run("elect", "o", "--", "cat", input=text)
    assert (done.returncode, done.stdout) == (0, text)


@pytest.mark.parametrize(
    ("make", "code"),
    [(None, 127), ("file", 126), ("folder", 126)],
)
def test_command_that_cannot_run_is_reported_before_etcd_is_called(conch: Bench, make: str | None, code: int) -> None:
    """conch exits 126 or 127 even if there is no etcd."""
    path = conch.file("tool")
    if make == "file":
        path.write_text("not executable")
    elif make == "folder":
        path.mkdir()
    done = conch.run("elect", "o", "--", str(path), env=DEAD)
    assert done.returncode == code
    assert len(done.stderr.splitlines()) == 1
    assert "tool" in done.stderr


def test_command_is_found_on_path_and_scripts_need_no_first_line(conch: Bench) -> None:
    """execvp and shells do the same."""
    script = conch.file("mytool")
    script.write_text("echo ran $1\n")
    script.chmod(0o755)
    path = f"{conch.folder}:{os.environ['PATH']}"
    done = conch.run("elect", "o", "--", "mytool", "arg", env={"PATH": path})
    assert (done.returncode, done.stdout) == (0, "ran arg\n")


def test_broken_interpreter_exits_127_and_the_hold_is_released(conch: Bench) -> None:
    """Only exec finds it, after conch has acquired; nothing is left."""
    script = conch.file("broken")
    script.write_text("#!/does/not/exist\n")
    script.chmod(0o755)
    done = conch.run("elect", "o", "--", str(script))
    assert done.returncode == 127
    assert "cannot run" in done.stderr
    assert conch.keys() == []


@pytest.mark.kinds("elect", "sema")
def test_second_waits_and_starts_when_the_first_ends(conch: Bench) -> None:
    """A clean end hands over immediately, and the token grows."""
    first = conch.hold(
        "o",
        command="echo $CONCH_REV >> revs; read x",
        stdin=subprocess.PIPE,
    )
    second = conch.queue("o", command="echo $CONCH_REV >> revs")
    assert not second.events("acquired")
    assert first.process.stdin is not None
    ended = time.monotonic()
    first.process.stdin.close()
    second.child()
    assert time.monotonic() - ended < 5  # not after the TTL of 10 s
    assert second.wait() == 0
    assert first.wait() == 1
    one, two = conch.read("revs", 2).split()
    assert int(one) < int(two)


@pytest.mark.kinds("elect", "sema")
def test_many_contenders_run_one_at_a_time_in_the_order_of_arrival(conch: Bench) -> None:
    """First come, first served; never two together."""
    first = conch.hold("o", command="echo 0 >> order; read x", stdin=subprocess.PIPE)
    others = []
    for i in range(1, 6):
        others.append(conch.queue("o", command=f"mkdir lock && echo {i} >> order && sleep 0.05 && rmdir lock"))
    assert first.process.stdin is not None
    first.process.stdin.close()
    assert [other.wait() for other in others] == [0] * 5
    assert conch.read("order", 6).split() == ["0", "1", "2", "3", "4", "5"]


@pytest.mark.kinds("elect", "sema")
def test_a_waiter_in_the_middle_that_leaves_promotes_nobody(conch: Bench) -> None:
    """The waiter behind it moves up and starts only when the holder ends."""
    first = conch.hold("o", command="read x; exit 0", stdin=subprocess.PIPE)
    middle = conch.queue("o")
    last = conch.queue("o", command="true")
    middle.signal(signal.SIGTERM)
    assert middle.wait() == 128 + signal.SIGTERM
    wait_for(lambda: len(conch.keys()) == 2, "the middle key is gone")
    # the last one has moved up and still waits
    assert not last.events("acquired")
    assert first.process.stdin is not None
    first.process.stdin.close()
    assert last.wait() == 0


def test_nonblock_takes_a_free_office_and_exits_75_on_a_taken_one(conch: Bench) -> None:
    """`-n` and `--wait 0` do so; `-E` replaces the code; nothing is left in the queue."""
    assert conch.run("elect", "o", "-n", "--", "true").returncode == 0
    conch.hold("o")
    for flags, code in ((["-n"], 75), (["--wait", "0"], 75), (["-n", "-E", "3"], 3), (["--nonblock", "-E", "0"], 0)):
        done = conch.run("elect", "o", *flags, "--", "touch", "ran")
        assert done.returncode == code
        assert "office o is taken" in done.stderr
    assert len(conch.keys()) == 1
    assert not conch.file("ran").exists()


@pytest.mark.kinds("elect", "sema")
def test_wait_that_runs_out_exits_75_and_leaves_the_queue(conch: Bench) -> None:
    """Only the holder's key is left."""
    conch.hold("o")
    done = conch.run(*conch.holding("o"), "--wait", "300ms", "--", "touch", "ran")
    assert done.returncode == 75
    assert "gave up waiting for" in done.stderr
    assert len(conch.keys()) == 1
    assert not conch.file("ran").exists()


@pytest.mark.kinds("elect", "sema")
def test_leftovers_of_a_finished_command_end_before_the_hold_does(conch: Bench) -> None:
    """Background processes, even outside the group, get SIGTERM; only when they have ended is the office free."""
    command = (
        "(trap 'sleep 0.3; echo ended >> log; exit' TERM; echo $BASHPID >> pids; while :; do sleep 0.05; done) & "
        "setsid sleep 1000 & echo $! >> pids; sleep 0.2"
    )
    first = conch.start(*conch.holding("o"), "--", "bash", "-c", command)
    first.child()
    second = conch.start(*conch.holding("o"), "--", "sh", "-c", "echo next >> log")
    assert second.wait() == 0
    assert first.wait() == 0
    assert conch.read("log", 2).split() == ["ended", "next"]
    assert not any(alive(pid) for pid in conch.pids("pids", 2))


@pytest.mark.kinds("elect", "sema")
def test_leftover_that_ignores_sigterm_is_killed_after_kill_after(conch: Bench) -> None:
    """It gets SIGTERM, then SIGKILL; conch still exits with the command's code."""
    wrapper = conch.start(
        "elect",
        "o",
        "--kill-after",
        "300ms",
        "--",
        "sh",
        "-c",
        "(trap '' TERM; echo up > up; sleep 1000) & while [ ! -s up ]; do sleep 0.01; done; exit 5",
    )
    assert wrapper.wait() == 5
    assert wrapper.events("kill-sent")


def test_processes_that_conch_had_before_are_not_ended(conch: Bench) -> None:
    """`job & exec conch …` ends neither the job nor an orphan that the job's death leaves to conch."""
    script = (
        "(sleep 1000 & echo $! >> jobs; exec sleep 0.3) > out 2>&1 & "
        f"sleep 0.1; exec {CONCH} elect o -- sh -c 'sleep 0.6'"
    )
    done = subprocess.run(
        ["bash", "-c", script], env=conch.environment, cwd=conch.folder, timeout=30, check=False, capture_output=True
    )
    assert done.returncode == 0
    (job,) = conch.pids("jobs", 1)
    assert alive(job)
    os.kill(job, signal.SIGKILL)


def test_command_that_waits_is_no_leftover_of_a_hook(conch: Bench) -> None:
    """This holds beside an earlier job, too, when conch scans all processes and not only orphans."""
    script = f"sleep 1000 > out 2>&1 & echo $! >> jobs; exec {CONCH} elect o --on-acquire true --on-lose true -- true"
    done = subprocess.run(
        ["bash", "-c", script], env=conch.environment, timeout=30, cwd=conch.folder, check=False, stderr=subprocess.PIPE
    )
    os.kill(conch.pids("jobs", 1)[0], signal.SIGKILL)
    assert done.returncode == 0
    assert b"event=hook-exit" in done.stderr
    assert b"event=term-sent" not in done.stderr


def test_free_office_costs_one_grant_and_one_transaction(own: OwnEtcd) -> None:
    """etcd's own counters show this."""
    before = requests(own.member.endpoint)
    assert own.bench.run("elect", "o", "--", "true").returncode == 0
    counted = difference(before, requests(own.member.endpoint))
    assert counted.pop("Watch", 0) <= 2  # it ends as cancelled, which etcd 3.6 counts twice
    assert counted.pop("Check", 0) == (TRANSPORT == "grpc")  # asks once per connection whether this is an etcd member
    assert counted == {"LeaseGrant": 1, "Txn": 1, "LeaseRevoke": 1}


def test_nested_conch_is_part_of_the_outer_tree(conch: Bench) -> None:
    """Both offices are held; SIGTERM to the outer conch ends the inner child and frees both."""
    outer = conch.start("elect", "a", "--", CONCH, "elect", "b", "--", "sh", "-c", "echo $$ >> pids; exec sleep 1000")
    (inner_child,) = conch.pids("pids", 1)
    assert len(conch.keys()) == 2
    outer.signal(signal.SIGTERM)
    assert outer.wait() == 128 + signal.SIGTERM
    assert not alive(inner_child)
    assert conch.keys() == []


def test_descriptors_of_the_user_reach_the_child_and_no_others_do(conch: Bench) -> None:
    """Like env or timeout, conch passes inherited descriptors on and leaks none of its own."""
    script = f"exec 7>seven; exec {CONCH} elect o -- sh -c 'echo text >&7; ls /proc/self/fd'"
    done = subprocess.run(
        ["bash", "-c", script], env=conch.environment, cwd=conch.folder, timeout=30, check=True, capture_output=True
    )
    assert conch.read("seven") == "text\n"
    # ls itself has opened 3
    assert set(done.stdout.decode().split()) == {"0", "1", "2", "3", "7"}


def test_quiet_is_silent_on_a_good_run(conch: Bench) -> None:
    """stderr is empty."""
    done = conch.run("elect", "o", "--quiet", "--", "echo", "out")
    assert (done.returncode, done.stdout, done.stderr) == (0, "out\n", "")


def test_log_has_a_line_per_transition_in_both_formats(conch: Bench) -> None:
    """The events are in order, with name, token and lease; JSON has the same."""
    expected = ["acquiring", "acquired", "child-start", "child-exit", "child-end", "released"]
    text = conch.run("elect", "o", "--", "true").stderr
    wrapper_events = [line.split("event=")[1].split()[0] for line in text.splitlines()]
    assert wrapper_events == expected
    assert "ttl_s=10 margin_s=0.5 grace_s=3.333" in text
    lines = list(conch.jsons(conch.run("elect", "o", "--log-format", "json", "--", "true").stderr))
    assert [line["event"] for line in lines] == expected
    acquired = lines[1]
    assert acquired["name"] == "o"
    assert acquired["rev"] > 0
    assert int(acquired["lease"], 16) > 0
