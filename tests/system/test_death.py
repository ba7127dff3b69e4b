"""What happens when a process of conch dies or stops, the lease is lost, or etcd does not answer.

The key in etcd is the evidence: while it exists nobody else can hold, so a tree that is dead before its key is gone
died in time.
"""

import os
import signal
import time
from pathlib import Path

import pytest

from tests.conftest import OwnEtcd
from tests.support.conch import Bench, Wrapper, alive, boottime, throughout, wait_for

pytestmark = pytest.mark.kinds("elect", "sema")

# A child with a grandchild in the background and one that left the group and session; their pids are in a file.
TREE = "echo $$ >> pids; sleep 1000 & echo $! >> pids; setsid sh -c 'echo $$ >> pids; exec sleep 1000' & wait"

# A child that records SIGTERM and continues; each record has the time on the clock of the deadlines.
STUBBORN = r"""
import os, signal, time
log = os.open("beats", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
def note(what): os.write(log, f"{what} {time.clock_gettime(time.CLOCK_BOOTTIME)}\n".encode())
signal.signal(signal.SIGTERM, lambda *_: note("TERM"))
note("start")
while True:
    time.sleep(0.01)
    note("beat")
"""


def beats(path: Path) -> list[tuple[str, float]]:
    """Return what the stubborn child recorded; its last beat shows when it died."""
    found = []
    for line in path.read_text().splitlines():
        what, at = line.split()
        found.append((what, float(at)))
    return found


def stubborn(bench: Bench, *flags: str) -> Wrapper:
    """Start a wrapper over the child that ignores SIGTERM."""
    import sys

    wrapper = bench.start(*bench.holding("o"), *flags, "--", sys.executable, "-c", STUBBORN)
    bench.read("beats", 2)
    return wrapper


def check_running(*wrappers: Wrapper) -> None:
    for wrapper in wrappers:
        assert wrapper.process.poll() is None, wrapper.err


def all_dead(pids: list[int]) -> bool:
    return not any(alive(pid) for pid in pids)


def held(bench: Bench, wrapper: Wrapper) -> bool:
    """Whether etcd still has the wrapper's key."""
    return any(key.endswith(f"/{wrapper.lease():x}") for key in bench.keys())  # noqa: SIM118 - a method


def test_kill_of_conch_kills_the_tree_and_frees_the_office_immediately(conch: Bench) -> None:
    """A grandchild in its own session dies, too; the next holder starts long before the TTL of 30 s."""
    first = conch.hold("o", "--ttl", "30s", command=TREE)
    pids = conch.pids("pids", 3)
    second = conch.queue("o", command="true")
    first.signal(signal.SIGKILL)
    killed = time.monotonic()
    wait_for(lambda: all_dead(pids), "the tree is dead", 5)
    second.child()
    assert time.monotonic() - killed < 5
    assert second.wait() == 0


def test_kill_of_conch_ends_the_tree_before_the_next_starts(conch: Bench) -> None:
    """The next holder's command starts after the last beat of the child."""
    first = stubborn(conch, "--ttl", "30s")
    second = conch.queue("o", command="cat /proc/uptime >> next; exit 0")
    first.signal(signal.SIGKILL)
    second.wait()
    started = float(conch.read("next").split()[0])
    assert beats(conch.file("beats"))[-1][1] <= started + 0.02  # /proc/uptime has hundredths


def test_kill_of_conch_in_the_queue_leaves_the_queue_immediately(conch: Bench) -> None:
    """The keeper revokes the lease; nobody waits for its TTL of 30 s."""
    first = conch.hold("o")
    second = conch.queue("o", "--ttl", "30s")
    second.signal(signal.SIGKILL)
    wait_for(lambda: len(conch.keys()) == 1, "the waiter's key is gone", 5)
    assert held(conch, first)


def test_kill_of_conch_in_a_hook_kills_the_hook(conch: Bench) -> None:
    """Hooks follow the same rules as commands."""
    wrapper = conch.start(*conch.holding("o"), "--ttl", "30s", "--on-acquire", TREE, "--", "true")
    pids = conch.pids("pids", 3)
    wrapper.signal(signal.SIGKILL)
    wait_for(lambda: all_dead(pids), "the hook's tree is dead", 5)
    wait_for(lambda: not conch.keys(), "the office is free", 5)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_keeper_that_dies_or_stops_ends_the_tree_before_the_lease_can_expire(conch: Bench, number: int) -> None:
    """The key still exists when the last process is dead; conch exits 70 and the hold is released."""
    wrapper = conch.hold("o", "--ttl", "6s", "--kill-after", "1s", command="trap '' TERM; " + TREE)
    pids = conch.pids("pids", 3)
    os.kill(wrapper.keeper(), number)
    while not all_dead(pids):
        assert held(conch, wrapper), "the tree outlived the key"
    assert wrapper.wait() == 70
    wait_for(lambda: not conch.keys(), "the hold is given back")
    assert "lost" in [line["event"] for line in wrapper.events("lost")]


def test_keeper_that_dies_in_the_queue_is_replaced(conch: Bench) -> None:
    """conch loses its place in the queue but waits on."""
    first = conch.hold("o", command="read x; exit 0", stdin=-1)
    second = conch.queue("o", command="true")
    os.kill(second.keeper(), signal.SIGKILL)
    second.wait_event("queued", 2)
    wait_for(lambda: len(conch.keys()) == 2, "the dead keeper's key is gone", 5)
    assert first.process.stdin is not None
    first.process.stdin.close()
    assert second.wait() == 0


def test_keeper_that_dies_in_the_queue_twice_ends_conch(conch: Bench) -> None:
    """It exits 69; its keys in etcd expire."""
    conch.hold("o")
    second = conch.queue("o", "--ttl", "2s")
    for count in (1, 2):
        second.wait_event("queued", count)
        os.kill(second.keeper(), signal.SIGKILL)
        if count == 1:
            second.wait_event("keeper-died")
    assert second.wait() == 69
    assert "died twice" in second.err


def test_stopped_supervisor_neither_ends_the_child_nor_lets_another_in(conch: Bench) -> None:
    """It is stopped for two TTLs and then works as before."""
    wrapper = conch.hold("o", "--ttl", "2s")
    second = conch.queue("o", "--ttl", "2s", command="true")
    child = wrapper.child()
    wrapper.signal(signal.SIGSTOP)
    until = boottime() + 4
    while boottime() < until:
        assert alive(child)
        assert held(conch, wrapper)
        time.sleep(0.05)
    wrapper.signal(signal.SIGCONT)
    wrapper.signal(signal.SIGUSR1)  # forwarded, so the supervisor works again; it ends the child
    assert wrapper.wait() == 128 + signal.SIGUSR1
    assert not wrapper.events("lost")
    assert second.wait() == 0


def test_lease_revoked_while_the_supervisor_is_stopped(conch: Bench) -> None:
    """The keeper kills the tree after kill-after; once continued, the supervisor exits 70."""
    wrapper = conch.hold("o", "--ttl", "30s", "--kill-after", "500ms", command=TREE)
    pids = conch.pids("pids", 3)
    wrapper.signal(signal.SIGSTOP)
    conch.etcd.revoke_lease(wrapper.lease())
    wait_for(lambda: all_dead(pids), "the tree is dead", 10)
    assert not wrapper.events("lost")
    wrapper.signal(signal.SIGCONT)
    assert wrapper.wait() == 70


def test_etcd_lost_while_the_supervisor_is_stopped(own: OwnEtcd) -> None:
    """The keeper kills the tree before the lease can expire, by the last confirmed deadline."""
    wrapper = own.bench.hold("o", "--ttl", "4s", command=TREE)
    pids = own.bench.pids("pids", 3)
    os.kill(own.member.pid, signal.SIGSTOP)
    stopped = boottime()
    wrapper.signal(signal.SIGSTOP)
    wait_for(lambda: all_dead(pids), "the tree is dead", 10)
    assert boottime() <= stopped + 4, "the tree outlived the TTL"
    wrapper.signal(signal.SIGCONT)
    wrapper.wait_event("lost")
    os.kill(own.member.pid, signal.SIGCONT)
    assert wrapper.wait() == 70


@pytest.mark.parametrize("how", ["revoke", "delete"])
def test_manual_loss_is_noticed_immediately(conch: Bench, how: str) -> None:
    """The watch notices it, not the next keepalive (5 s later): SIGTERM, SIGKILL after kill-after, exit 70."""
    wrapper = stubborn(conch, "--ttl", "30s", "--kill-after", "700ms")
    at = boottime()
    if how == "revoke":
        conch.etcd.revoke_lease(wrapper.lease())
    else:
        conch.etcd.delete(conch.key("o", wrapper.lease()))
    assert wrapper.wait() == 70
    seen = beats(conch.file("beats"))
    (term,) = [moment for what, moment in seen if what == "TERM"]
    assert term - at < 2
    assert 0.5 < seen[-1][1] - term < 3
    assert wrapper.events("lost")[0]["reason"] == "our key is gone: deleted, or its lease revoked or run out"


def test_waiter_that_loses_its_place_queues_again_at_the_end(conch: Bench) -> None:
    """It logs this."""
    first = conch.hold("o", command="read x; exit 0", stdin=-1)
    second = conch.queue("o", command="echo second >> order")
    third = conch.queue("o", command="echo third >> order")
    lease = int(second.events("queued")[0]["lease"], 16)
    conch.etcd.revoke_lease(lease)
    second.wait_event("queued", 2)
    assert second.events("place-lost")
    assert first.process.stdin is not None
    first.process.stdin.close()
    assert second.wait() == third.wait() == 0
    assert conch.read("order", 2).split() == ["third", "second"]


def test_waiters_whose_keys_go_with_those_ahead_of_them_start_nothing_under_those(conch: Bench) -> None:
    """All keys of a queue are deleted in one transaction; of one revision, etcd's watches tell in any order.

    A waiter to whom the deletion ahead is told first must not take its turn for come.
    """
    holder = conch.hold("o")
    waiters = [conch.queue("o", command="echo $CONCH_REV >> revs") for _ in range(5)]
    queued = [int(waiter.wait_event("queued")["rev"]) for waiter in waiters]
    conch.etcd.delete_prefix(conch.key("o", 0).rpartition("/")[0] + "/")
    assert holder.wait() == 70
    assert [waiter.wait() for waiter in waiters] == [0] * 5
    assert min(map(int, conch.read("revs", 5).split())) > max(queued)
    assert all(waiter.events("place-lost") for waiter in waiters)


def test_waiter_that_loses_its_place_still_gives_up_in_time(conch: Bench) -> None:
    """--wait counts from the start of conch."""
    conch.hold("o")
    second = conch.queue("o", "--wait", "1500ms")
    conch.etcd.revoke_lease(int(second.events("queued")[0]["lease"], 16))
    assert second.wait() == 75
    assert second.events("place-lost")


def test_short_outage_of_etcd_does_no_harm(own: OwnEtcd) -> None:
    """The child does not notice 2 s without etcd under a TTL of 10 s."""
    wrapper = stubborn(own.bench)
    os.kill(own.member.pid, signal.SIGSTOP)
    throughout(2, lambda: check_running(wrapper))  # the length of the fault
    os.kill(own.member.pid, signal.SIGCONT)
    # by then the deadline of the old renewals has passed, so that a new one must have succeeded
    throughout(8, lambda: check_running(wrapper))
    assert "TERM" not in {what for what, _ in beats(own.bench.file("beats"))}
    assert not wrapper.events("lost")
    wrapper.signal(signal.SIGTERM)
    wrapper.signal(signal.SIGTERM)
    assert wrapper.wait() == 128 + signal.SIGKILL


def test_long_outage_ends_the_child_by_the_promised_times(own: OwnEtcd) -> None:
    """The child ignores SIGTERM, which comes by deadline-margin-grace; SIGKILL by deadline-margin; exit 70."""
    ttl, margin, grace = 5.0, 0.25, 5.0 / 3
    wrapper = stubborn(own.bench, "--ttl", "5s")
    os.kill(own.member.pid, signal.SIGSTOP)
    stopped = boottime()
    assert wrapper.wait() == 70
    os.kill(own.member.pid, signal.SIGCONT)
    seen = beats(own.bench.file("beats"))
    (term,) = [moment for what, moment in seen if what == "TERM"]
    # the last renewal was sent before the stop
    assert term <= stopped + ttl - margin - grace
    assert seen[-1][1] <= stopped + ttl - margin
    assert seen[-1][1] - term > grace / 2
    for event in ("renew-failed", "doubt", "lost", "term-sent", "kill-sent"):
        assert wrapper.events(event), event


def test_waiter_survives_an_outage_and_is_served(own: OwnEtcd) -> None:
    """It queues again if its lease expired, and its command runs."""
    first = own.bench.hold("o", "--ttl", "2s")
    second = own.bench.queue("o", "--ttl", "2s", command="echo ran >> ran")
    os.kill(own.member.pid, signal.SIGSTOP)
    assert first.wait() == 70
    os.kill(own.member.pid, signal.SIGCONT)
    assert second.wait() == 0
    assert own.bench.read("ran") == "ran\n"


@pytest.mark.parametrize(
    ("flags", "how"),
    [
        (["--", "true"], "refused"),
        (["--nonblock", "--", "true"], "refused"),
        (["--who"], "refused"),
        (["--nonblock", "--command-timeout", "1s", "--", "true"], "silent"),
        (["--who", "--command-timeout", "1s"], "silent"),
    ],
    ids=lambda part: part if isinstance(part, str) else part[0],
)
def test_etcd_down_at_the_start_exits_69_within_the_dial_timeout(conch: Bench, flags: list[str], how: str) -> None:
    """In every mode one line names the endpoint; a server that accepts but is silent gets the time of one request."""
    import socket

    silent = socket.create_server(("127.0.0.1", 0))
    port = 1 if how == "refused" else silent.getsockname()[1]
    began = time.monotonic()
    done = conch.run(*conch.holding("o"), "--quiet", "--endpoints", f"127.0.0.1:{port}", "--dial-timeout", "1s", *flags)
    took = time.monotonic() - began
    silent.close()
    assert done.returncode == 69, done.stderr
    assert took < 5
    assert len(done.stderr.splitlines()) == 1
    assert f"127.0.0.1:{port}" in done.stderr


def test_wait_that_runs_out_without_an_answer_exits_69(conch: Bench) -> None:
    """It is not 75, because nobody knows whether the office was free."""
    done = conch.run(*conch.holding("o"), "--endpoints", "127.0.0.1:1", "--wait", "300ms", "--", "true")
    assert done.returncode == 69
    assert "127.0.0.1:1" in done.stderr


def test_manual_loss_is_noticed_immediately_after_a_compaction_and_a_reconnection(own: OwnEtcd) -> None:
    """The watch on our own key has seen no event for long: the revision that it would resume from is compacted."""
    wrapper = own.bench.hold("o", "--ttl", "60s", "--kill-after", "1s")
    etcd = own.bench.etcd
    for i in range(10):
        etcd.put(f"{own.bench.prefix}/other", str(i))
    etcd.compact(etcd.get(f"{own.bench.prefix}/other")[1].mod_revision)
    etcd.delete(f"{own.bench.prefix}/other")
    own.cluster.restart(own.member)
    own.cluster.wait_ready()

    def watched() -> bool:
        import urllib.request

        with urllib.request.urlopen(f"http://{own.member.endpoint}/metrics", timeout=5) as answer:
            return b"etcd_debugging_mvcc_watcher_total 1\n" in answer.read()

    wait_for(watched, "the watch is there again")
    at = boottime()
    own.bench.etcd.delete(own.bench.key("o", wrapper.lease()))
    wrapper.wait_event("lost")
    assert boottime() - at < 5  # renewals are 10 s apart
    assert wrapper.wait() == 70


def test_office_is_not_kept_by_a_stopped_conch_that_runs_nothing(conch: Bench) -> None:
    """Stopped in the queue and then promoted, it cannot start its command, so its lease is not renewed for ever."""
    first = conch.hold("o", command="read x; exit 0", stdin=-1)
    second = conch.queue("o", "--ttl", "2s")
    third = conch.queue("o", command="true")
    second.signal(signal.SIGSTOP)
    assert first.process.stdin is not None
    first.process.stdin.close()
    assert third.wait() == 0
    second.signal(signal.SIGCONT)
    assert second.child()  # it queued again, and now it runs
    assert second.events("lost") or second.events("place-lost")


def test_hung_keeper_does_not_extend_wait(conch: Bench) -> None:
    """conch waits for it for a limited time, then exits without it."""
    conch.hold("o")
    second = conch.queue("o", "--wait", "1s", "--command-timeout", "1s")
    os.kill(second.keeper(), signal.SIGSTOP)
    assert second.wait() == 75
    assert len(conch.keys()) == 1


def test_keeper_that_died_while_conch_was_stopped_and_signalled(conch: Bench) -> None:
    """conch finds all of this together when it is continued, and exits with 128 + n of a signal."""
    conch.hold("o")
    second = conch.queue("o", "--ttl", "2s")
    second.signal(signal.SIGSTOP)
    os.kill(second.keeper(), signal.SIGKILL)
    second.signal(signal.SIGTERM)
    second.signal(signal.SIGINT)
    second.signal(signal.SIGCONT)
    assert second.wait() in (128 + signal.SIGTERM, 128 + signal.SIGINT)


def test_command_dies_when_both_processes_are_killed(conch: Bench) -> None:
    """The kernel kills at least the first process of the tree."""
    wrapper = conch.hold("o", "--ttl", "2s")
    child = wrapper.child()
    keeper = wrapper.keeper()
    os.kill(keeper, signal.SIGSTOP)
    wrapper.signal(signal.SIGKILL)
    os.kill(keeper, signal.SIGKILL)
    wait_for(lambda: not alive(child), "the child is dead", 5)


def test_lost_hold_is_not_renewed_for_a_hook(own: OwnEtcd) -> None:
    """on-lose after a loss holds nothing, so the next in line does not wait for it."""
    first = own.bench.hold("o", "--ttl", "4s", "--on-lose", "sleep 1000")
    second = own.bench.queue("o", "--ttl", "60s")
    os.kill(own.member.pid, signal.SIGSTOP)
    first.wait_event("lost")
    first.wait_event("hook-start")
    os.kill(own.member.pid, signal.SIGCONT)
    second.child()
    assert first.process.poll() is None


def test_turn_is_not_lost_because_the_last_renewal_is_old(own: OwnEtcd) -> None:
    """etcd was down, its leases survived, and the queue moves before the waiters have renewed."""
    first = own.bench.hold("o", "--ttl", "30s", "--command-timeout", "60s")
    second = own.bench.queue("o", "--ttl", "5s", "--command-timeout", "1s", command="echo second >> order")
    third = own.bench.queue("o", "--ttl", "5s", "--command-timeout", "1s", command="echo third >> order")
    own.cluster.kill(own.member)
    first.signal(signal.SIGTERM)
    second.wait_event("doubt")
    # until its deadline has passed; a restarted member gives every lease its whole TTL again
    throughout(3, lambda: check_running(second, third))
    own.cluster.restart(own.member)
    assert second.wait() == third.wait() == 0
    assert own.bench.read("order", 2).split() == ["second", "third"]
    assert not second.events("place-lost")
    assert not second.events("lost")
    first.wait()


def test_child_is_not_started_only_to_be_ended(conch: Bench) -> None:
    """Stopped in the queue, promoted, and continued when renewals have paused: it runs properly or queues again."""
    for delay_s in (1.2, 1.6, 1.9):
        first = conch.hold("o", "--ttl", "2s")
        second = conch.queue("o", "--ttl", "2s")
        second.signal(signal.SIGSTOP)
        first.signal(signal.SIGTERM)
        first.wait()
        time.sleep(delay_s)  # a time within the lease's TTL, not a wait for something
        second.signal(signal.SIGCONT)
        second.child()
        throughout(2.5, lambda: check_running(second))  # noqa: B023 - called immediately
        second.signal(signal.SIGTERM)
        second.wait()
