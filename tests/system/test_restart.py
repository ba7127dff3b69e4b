"""`--restart`: run again after every end, until a signal."""

import os
import signal

import pytest

from tests.conftest import OwnEtcd
from tests.support.conch import Bench

ENDING = [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT]
FAST = ["--restart", "--restart-min", "10ms", "--restart-max", "30ms"]


def test_restart_runs_again_after_any_end_with_a_new_token(conch: Bench) -> None:
    """It does so after clean and unclean ends; tokens grow; a signal ends it with the child's code."""
    command = "echo $CONCH_REV >> revs; n=$(wc -l < revs); [ $n -lt 4 ] && exit $((n % 2)); exec sleep 1000"
    wrapper = conch.start("elect", "o", *FAST, "--", "sh", "-c", command)
    revs = [int(rev) for rev in conch.read("revs", 4).split()]
    assert revs == sorted(set(revs))
    wrapper.signal(signal.SIGTERM)
    assert wrapper.wait() == 128 + signal.SIGTERM
    assert conch.keys() == []


def test_restart_queues_again_behind_those_who_wait(conch: Bench) -> None:
    """A clean end hands over to the next in line, also with --restart."""
    first = conch.start("elect", "o", *FAST, "--", "sh", "-c", "echo first >> order; read x < gate")
    os.mkfifo(conch.file("gate"))
    first.child()
    second = conch.queue("o", command="echo second >> order; sleep 0.2")
    with conch.file("gate").open("w"):
        pass
    assert second.wait() == 0
    assert conch.read("order", 3).split()[:3] == ["first", "second", "first"]
    first.signal(signal.SIGTERM)
    first.wait()


@pytest.mark.parametrize("number", [*ENDING, signal.SIGHUP])
def test_signal_while_backing_off_ends_conch(conch: Bench, number: int) -> None:
    """It ends immediately with 128+n; it holds nothing during the back-off."""
    wrapper = conch.start("elect", "o", "--restart", "--restart-min", "1h", "--restart-max", "2h", "--", "false")
    wrapper.wait_event("backoff")
    assert conch.keys() == []
    wrapper.signal(number)
    assert wrapper.wait() == 128 + number


def test_restart_after_a_failed_hook_backs_off(conch: Bench) -> None:
    """It does not exit 75."""
    hook = "echo x >> tries; [ $(wc -l < tries) -ge 3 ]"
    wrapper = conch.start("elect", "o", *FAST, "--on-acquire", hook, "--", "sh", "-c", "echo up >> up; exec sleep 1000")
    conch.read("up")
    assert conch.read("tries", 3).count("x") == 3
    wrapper.signal(signal.SIGTERM)
    wrapper.wait()


def test_restart_after_a_loss_runs_again(conch: Bench) -> None:
    """A revoked lease does not end conch."""
    wrapper = conch.start("elect", "o", *FAST, "--", "sh", "-c", "echo $CONCH_REV >> revs; exec sleep 1000")
    conch.read("revs", 1)
    conch.etcd.revoke_lease(wrapper.lease())
    conch.read("revs", 2)
    wrapper.signal(signal.SIGTERM)
    wrapper.wait()


def test_restart_runs_again_when_etcd_is_back(own: OwnEtcd) -> None:
    """An outage never ends `--restart`; the new run has a new token."""
    wrapper = own.bench.hold(
        "o", "--ttl", "3s", "--restart", "--restart-min", "100ms", command="echo $CONCH_REV >> revs; exec sleep 1000"
    )
    own.bench.read("revs", 1)
    os.kill(own.member.pid, signal.SIGSTOP)
    wrapper.wait_event("lost")
    wrapper.wait_event("released")
    os.kill(own.member.pid, signal.SIGCONT)
    one, two = own.bench.read("revs", 2).split()
    assert int(one) < int(two)
    wrapper.signal(signal.SIGTERM)
    assert wrapper.wait() == 128 + signal.SIGTERM


@pytest.mark.parametrize("flags", [["--restart", "--", "true"], ["--watch"], ["--assert"]], ids=lambda flags: flags[0])
def test_etcd_down_at_the_start_is_69_also_for_these(conch: Bench, flags: list[str]) -> None:
    """`--restart` outlasts an outage only after conch has started."""
    done = conch.run("elect", "o", "--quiet", "--endpoints", "127.0.0.1:1", "--dial-timeout", "500ms", *flags)
    assert done.returncode == 69
    assert len(done.stderr.splitlines()) == 1
