"""While conch queues, its command already waits behind its gate: nobody may notice, whatever happens to it."""

import os
import signal
import time

import psutil
import pytest

from tests.support.conch import Bench, Wrapper, alive, children, throughout, wait_for

pytestmark = pytest.mark.kinds("elect", "sema")


def stop(pid: int) -> None:
    """Stop a process and wait until it is stopped; until then the signal is only pending."""
    os.kill(pid, signal.SIGSTOP)
    wait_for(lambda: psutil.Process(pid).status() == psutil.STATUS_STOPPED, "the process is stopped")


def waiting_child(wrapper: Wrapper) -> int:
    """Return the process behind the gate: conch's child in its session, but not in its group."""

    def find_child() -> int | None:
        for pid in children(wrapper.pid):
            try:
                if os.getsid(pid) != pid and os.getpgid(pid) == pid:
                    return pid
            except ProcessLookupError:
                continue
        return None

    pid = wait_for(find_child, "a process behind the gate")
    assert pid is not None
    return pid


def test_it_becomes_the_command(conch: Bench) -> None:
    """It keeps its pid and has the environment of the later hold."""
    first = conch.hold("o")
    second = conch.queue("o", command="echo $$ $CONCH_REV $CONCH_LEASE $CONCH_HOLD_KEY $CONCH_TREE >> ran")
    waiting = waiting_child(second)
    first.signal(signal.SIGTERM)
    assert second.wait() == 0
    held = second.wait_event("acquired")
    pid, rev, lease, key, tree = conch.read("ran").split()
    assert (pid, rev, lease) == (str(waiting), held["rev"], held["lease"])
    assert key == conch.key("o", int(lease, 16))
    assert len(tree) == 16


def test_if_killed_it_is_forked_again_when_its_turn_comes(conch: Bench) -> None:
    """It is not forked before: whatever kills it could go on killing."""
    first = conch.hold("o")
    second = conch.queue("o", command="echo ran >> ran")
    waiting = waiting_child(second)
    os.kill(waiting, signal.SIGKILL)
    wait_for(lambda: not alive(waiting), "it is gone")
    throughout(0.5, lambda: children(second.pid) == [second.keeper()])
    first.signal(signal.SIGTERM)
    assert second.wait() == 0
    assert conch.read("ran") == "ran\n"


def test_if_killed_just_before_its_turn_it_is_not_taken_for_the_command(conch: Bench) -> None:
    """conch was stopped, so it finds the death and the hold together."""
    first = conch.hold("o")
    second = conch.queue("o", command="echo ran >> ran")
    second.signal(signal.SIGSTOP)
    os.kill(waiting_child(second), signal.SIGKILL)
    first.signal(signal.SIGTERM)
    first.wait()
    wait_for(lambda: len(conch.keys()) == 1, "its turn has come")
    second.signal(signal.SIGCONT)
    assert second.wait() == 0
    assert conch.read("ran") == "ran\n"


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM, signal.SIGHUP])
def test_signal_that_came_too_early_does_not_reach_the_command(conch: Bench, number: int) -> None:
    """`pkill -P` sends signals to conch's children like this."""
    first = conch.hold("o")
    second = conch.queue("o", command="echo ran >> ran")
    os.kill(waiting_child(second), number)
    first.signal(signal.SIGTERM)
    assert second.wait() == 0, second.err
    assert conch.read("ran") == "ran\n"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_it_ends_with_conch(conch: Bench, number: int) -> None:
    """conch gets a signal while it queues: none of its processes is left, and the command has not run."""
    conch.hold("o")
    second = conch.queue("o", command="echo ran >> ran")
    waiting, keeper = waiting_child(second), second.keeper()
    second.signal(number)
    assert second.wait() == 128 + number
    wait_for(lambda: not alive(waiting) and not alive(keeper), "both are gone")
    assert not conch.file("ran").exists()


def test_if_stopped_until_the_hold_is_lost_it_runs_nothing(conch: Bench) -> None:
    """It is stopped before exec until the hold is lost: the command never runs, and conch exits 70."""
    first = conch.hold("o", "--ttl", "2s")
    second = conch.queue("o", "--ttl", "4s", "--kill-after", "0.2s", command="echo ran >> ran")
    waiting = waiting_child(second)
    stop(waiting)
    first.signal(signal.SIGTERM)
    first.wait()
    second.wait_event("child-start")
    os.kill(second.keeper(), signal.SIGSTOP)  # from now on nothing is renewed
    stopped = time.monotonic()
    wait_for(lambda: second.events("lost") or not alive(waiting), "the loss", 10)
    assert time.monotonic() - stopped < 6
    assert not conch.file("ran").exists()
    os.kill(second.keeper(), signal.SIGCONT)
    assert second.wait() == 70
    assert not conch.file("ran").exists()


def test_it_checks_the_clock_itself(conch: Bench) -> None:
    """As after a suspend of the machine it wakes first, finds that it is too late to start, and exits."""
    first = conch.hold("o", "--ttl", "4s")
    second = conch.queue("o", "--ttl", "4s", command="echo ran >> ran")
    waiting, keeper = waiting_child(second), second.keeper()
    stop(waiting)
    first.signal(signal.SIGTERM)
    second.wait_event("child-start")
    for pid in (keeper, second.pid):
        os.kill(pid, signal.SIGSTOP)
    time.sleep(4 * 2 / 3)  # SIGTERM is due at two thirds of the TTL less the margin, and nothing starts after that
    os.kill(waiting, signal.SIGCONT)
    wait_for(lambda: not alive(waiting), "it ends by itself")
    assert not conch.file("ran").exists()
    for pid in (keeper, second.pid):
        os.kill(pid, signal.SIGCONT)
    assert second.wait() in (0, 70)
    assert (second.process.returncode == 0) == conch.file("ran").exists()


def test_with_restart_each_run_has_a_new_one(conch: Bench) -> None:
    """During a run none waits, so nothing counts as a leftover."""
    if conch.kind == "sema":
        return  # sema has no --restart
    flags = ("--restart", "--restart-min", "0.2s", "--restart-max", "0.2s", "--on-acquire", "true", "--on-lose", "true")
    wrapper = conch.start(*conch.holding("o"), *flags, "--", "sh", "-c", "echo $$ >> pids; sleep 0.3")
    pids = conch.pids("pids", 3)
    assert len(set(pids)) == 3
    wait_for(lambda: alive(conch.pids("pids", 4)[-1]), "a run")
    running = wrapper.child(4)
    assert {pid for pid in children(wrapper.pid) if os.getsid(pid) != pid} <= {running, *children(running)}
    assert not wrapper.events("term-sent")
    wrapper.signal(signal.SIGTERM)
    wrapper.wait()
