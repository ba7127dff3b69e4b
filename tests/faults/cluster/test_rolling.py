"""Members are restarted, frozen and killed: commands end only if the quorum or a lease is lost."""

import os
import signal
import time
from collections.abc import Callable

import pytest

from conch.dev import Member
from tests.faults.cluster.conftest import Three
from tests.support.conch import Wrapper, alive, boottime, throughout, wait_for
from tests.support.proxy import Proxy

NOTE = "trap 'echo TERM >> got' TERM; echo up >> up; while :; do sleep 0.05; done"


class Fleet:
    """An election, a semaphore with waiters and a watch, none of which may notice anything."""

    def __init__(self, three: Three) -> None:
        self.bench = three.bench
        self.elect = self.bench.hold("o", command=NOTE)
        self.holders = [self.sema() for _ in range(2)]
        for wrapper in self.holders:
            wrapper.child()
        self.waiters = []
        for _ in range(3):
            self.waiters.append(self.sema())
            self.waiters[-1].wait_event("queued")
        self.watch = self.bench.start("elect", "w", "--watch", "--json")
        wait_for(lambda: self.watch.out.count("\n") == 1, "the watch")
        self.shown = 1

    def sema(self) -> Wrapper:
        return self.bench.start("sema", "s", "--max", "2", "--", "sh", "-c", NOTE)

    def check(self) -> None:
        """Check that everything runs as at the start."""
        for wrapper in (self.elect, *self.holders):
            assert wrapper.process.poll() is None
            assert not wrapper.events("lost"), wrapper.err
            assert alive(wrapper.child())
            assert len(wrapper.events("child-start")) == 1
        for wrapper in self.waiters:
            assert not wrapper.events("acquired")
            assert not wrapper.events("place-lost"), wrapper.err
        assert not self.bench.file("got").exists()

    def gap(self, fault: str) -> None:
        """Print the longest time without a confirmed renewal: the table in docs/guarantees.md."""
        gaps = [
            float(line["gap_s"]) for w in (self.elect, *self.holders, *self.waiters) for line in w.events("renewed")
        ]
        print(f"\nlongest gap: {fault}: {max(gaps, default=0.0):.1f} s")

    def change(self) -> None:
        """Run one more election, which the watch must show: a holder, then vacant."""
        done = self.bench.run("elect", "w", "--", "true", timeout=60)
        assert done.returncode == 0, done.stderr
        self.shown += 2
        wait_for(lambda: self.watch.out.count("\n") >= self.shown, "the watch shows both changes")
        lines = list(self.bench.jsons(self.watch.out))
        assert len(lines) == self.shown
        assert [bool(line.get("vacant")) for line in lines] == [i % 2 == 0 for i in range(self.shown)]

    def hand_over(self) -> None:
        """End a holder of the semaphore; the next waiter must hold."""
        first = self.waiters.pop(0)
        leaving = self.holders.pop(0)
        leaving.signal(signal.SIGTERM)
        leaving.signal(signal.SIGTERM)
        leaving.wait()
        self.bench.file("got").unlink(missing_ok=True)
        first.child()
        self.holders.append(first)


def for_a_while(fleet: Fleet, seconds: float) -> None:
    """Check throughout the time between two faults."""
    throughout(seconds, fleet.check)


@pytest.mark.timeout(240)
def test_rolling_restart_is_not_noticed(three: Three) -> None:
    """Each member restarts in turn, ten seconds apart, the leader last."""
    fleet = Fleet(three)
    for member in three.leader_last():
        three.cluster.kill(member, signal.SIGTERM)
        three.cluster.restart(member)
        three.cluster.wait_ready()
        for_a_while(fleet, 10)
        fleet.change()
    fleet.gap("rolling restart")
    fleet.hand_over()
    fleet.check()


@pytest.mark.timeout(240)
def test_each_member_frozen_for_five_seconds_is_not_noticed(three: Three) -> None:
    """This includes the leader."""
    fleet = Fleet(three)
    for member in three.leader_last():
        os.kill(member.pid, signal.SIGSTOP)
        for_a_while(fleet, 5)
        os.kill(member.pid, signal.SIGCONT)
        for_a_while(fleet, 5)
        fleet.change()
    fleet.gap("each member frozen for 5 s")
    fleet.hand_over()
    fleet.check()


def test_death_of_the_leader_is_not_noticed(three: Three) -> None:
    """It stays dead; the TTL is 10 s."""
    fleet = Fleet(three)
    three.cluster.kill(three.leader())
    for_a_while(fleet, 8)  # longer than any child lives without renewals
    fleet.gap("death of the leader")
    fleet.change()
    fleet.hand_over()


@pytest.mark.timeout(240)
def test_woken_former_leader_ends_a_hold_only_by_revoking_its_lease(three: Three) -> None:
    """While it is frozen for longer than the TTL the hold is kept; on waking it may revoke leases, which conch logs."""
    beat = "echo start $CONCH_REV >> log; while :; do sleep 0.02; echo beat $CONCH_REV >> log; done"
    wrapper = three.bench.hold("o", "--ttl", "7s", "--restart", "--restart-min", "100ms", command=beat)
    second = three.bench.queue("o", "--ttl", "7s", "--restart", "--restart-min", "100ms", command=beat)
    frozen = three.leader()
    os.kill(frozen.pid, signal.SIGSTOP)
    until = boottime() + 10
    while boottime() < until:
        assert not wrapper.events("lost"), wrapper.err
        time.sleep(0.1)
    os.kill(frozen.pid, signal.SIGCONT)
    # a woken leader revokes within a TTL, if it does
    throughout(8, lambda: check_running(wrapper, second))
    lines = [line.split() for line in three.bench.file("log").read_text().splitlines()]
    losses = wrapper.events("lost") + second.events("lost")
    if not losses:
        assert {rev for _, rev in lines} == {lines[0][1]}
    for loss in losses:
        assert loss["reason"] in (
            "our key is gone: deleted, or its lease revoked or run out",
            "our key is gone",
            "the lease is gone",
        )


def check_running(*wrappers: Wrapper) -> None:
    for wrapper in wrappers:
        assert wrapper.process.poll() is None


def freeze(three: Three, member: Member) -> Callable[[], None]:
    os.kill(member.pid, signal.SIGSTOP)
    return lambda: os.kill(member.pid, signal.SIGCONT)


def die(three: Three, member: Member) -> Callable[[], None]:
    three.cluster.kill(member)
    return lambda: three.cluster.restart(member)


@pytest.mark.timeout(240)
@pytest.mark.parametrize("fault", [freeze, die])
def test_quorum_loss_ends_the_tree_in_time_and_all_continues_afterwards(
    three: Three, fault: Callable[[Three, Member], Callable[[], None]]
) -> None:
    """Two of three fail: the child dies by its deadline, queries exit 69; afterwards --restart and the waiter run."""
    ttl = 6.0
    bench = three.bench
    restarted = bench.hold(
        "o",
        "--ttl",
        "6s",
        "--restart",
        "--restart-min",
        "100ms",
        command="trap '' TERM; echo $$ >> pids; while :; do sleep 0.05; done",
    )
    waiter = bench.queue("o", "--ttl", "6s", command="echo served >> served")
    (pid,) = bench.pids("pids", 1)
    heals = [fault(three, member) for member in three.cluster.members[:2]]
    lost_at = boottime()
    began = time.monotonic()
    for flags in (["--who"], ["--nonblock", "--", "true"]):
        done = bench.run("elect", "x", "--dial-timeout", "1s", "--command-timeout", "1s", *flags)
        assert done.returncode == 69, done.stderr
    assert time.monotonic() - began < 12
    wait_for(lambda: not alive(pid), "the child is dead")
    restarted.wait_event("lost")
    assert boottime() <= lost_at + max(ttl, time.monotonic() - began + 1)
    assert waiter.process.poll() is None
    for heal in heals:
        heal()
    assert waiter.wait(60) == 0
    bench.read("served")
    bench.read("pids", 2, timeout_s=60)
    assert restarted.process.poll() is None
    restarted.signal(signal.SIGTERM)
    restarted.signal(signal.SIGTERM)
    restarted.wait()


def test_watch_on_a_member_without_a_leader_does_not_wait_there_for_ever(three: Three) -> None:
    """The member answers but sends no events; the watch opens another stream and shows the next change."""
    proxies = [Proxy(member.endpoint) for member in three.cluster.members]
    try:
        endpoints = ",".join(proxy.endpoint for proxy in proxies)
        watch = three.bench.start("elect", "o", "--watch", "--endpoints", endpoints)
        wait_for(lambda: watch.out == "o -\n", "the watch")
        wait_for(lambda: any("Watch" in proxy.calls for proxy in proxies), "the watch's stream")
        (at,) = (i for i, proxy in enumerate(proxies) if "Watch" in proxy.calls)
        others = [member for i, member in enumerate(three.cluster.members) if i != at]
        for member in others:
            os.kill(member.pid, signal.SIGSTOP)
        wait_for(lambda: sum(proxy.calls.count("Watch") for proxy in proxies) > 1, "another stream", 30)
        for member in others:
            os.kill(member.pid, signal.SIGCONT)
        holder = three.bench.hold("o")
        wait_for(lambda: f"pid={holder.pid} " in watch.out, "the change", 30)
    finally:
        for proxy in proxies:
            proxy.close()
