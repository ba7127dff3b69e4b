"""`conch sema`: it never stalls and never oversubscribes; first come, first served."""

import json
import os
import random
import re
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from conch.core.channel import pair
from conch.core.messages import Acquire, Held, Message, Queued, Release
from conch.etcd.connection import Connection
from conch.etcd.endpoints import parse_endpoints
from conch.etcd.open import open_store
from conch.etcd.store import Store
from conch.keeper.acquirer import Acquirer
from conch.keeper.hold_spec import HoldSpec, QueueSpec
from conch.keeper.watchdog import Watchdog
from tests.conftest import OwnEtcd
from tests.support.conch import TRANSPORT, Bench, Wrapper, alive, wait_for
from tests.support.metrics import difference, requests

HOST = os.uname().nodename
FOREVER = "exec sleep 1000"


def hold(conch: Bench, slots: int, *flags: str, command: str = FOREVER, **how: Any) -> Wrapper:
    """Start a wrapper that holds a slot of semaphore s."""
    wrapper = conch.start("sema", "s", "--max", str(slots), *flags, "--", "sh", "-c", command, **how)
    wrapper.child()
    return wrapper


def queue(conch: Bench, slots: int, *flags: str, command: str = FOREVER, **how: Any) -> Wrapper:
    """Start a wrapper that waits for a slot."""
    wrapper = conch.start("sema", "s", "--max", str(slots), *flags, "--", "sh", "-c", command, **how)
    wrapper.wait_event("queued")
    return wrapper


def who(conch: Bench, *flags: str) -> list[dict[str, Any]]:
    return list(conch.jsons(conch.run("sema", "s", "--who", "--json", *flags).stdout))


def keys(conch: Bench) -> list[str]:
    return conch.keys()


def running(wrappers: list[Wrapper]) -> list[Wrapper]:
    """Return the wrappers whose child runs."""
    return [w for w in wrappers if w.events("child-start") and alive(int(w.events("child-start")[0]["pid"]))]


def test_n_plus_one_contenders_make_exactly_n_children(conch: Bench) -> None:
    """etcd and the processes both show this."""
    wrappers = [conch.start("sema", "s", "--max", "3", "--", "sh", "-c", FOREVER) for _ in range(4)]
    wait_for(lambda: len(running(wrappers)) == 3, "three children")
    (waiter,) = (w for w in wrappers if w not in running(wrappers))
    waiter.wait_event("queued")
    seen = who(conch)
    assert [line["state"] for line in seen] == ["HELD", "HELD", "HELD", "WAIT"]
    assert seen[-1]["pid"] == waiter.pid
    assert {line["pid"] for line in seen} == {w.pid for w in wrappers}
    until = time.monotonic() + 1
    while time.monotonic() < until:
        assert len(running(wrappers)) == 3
    running(wrappers)[1].signal(signal.SIGTERM)
    waiter.child()


def test_child_knows_its_slot_and_token(conch: Bench) -> None:
    """Its key and token are the key and create-revision in etcd."""
    wrapper = hold(conch, 2, command=f'echo "$CONCH_NAME $CONCH_REV $CONCH_HOLD_KEY"; {FOREVER}')
    wait_for(lambda: "\n" in wrapper.out, "the line")
    name, rev, key = wrapper.out.split()
    ((_, meta),) = conch.etcd.get_prefix(conch.prefix)
    assert (name, key, int(rev)) == ("s", meta.key.decode(), meta.create_revision)
    assert key == f"{conch.prefix}/sema/s/2/{wrapper.lease():x}"


def test_a_long_holder_stalls_nobody(conch: Bench) -> None:
    """A holds for long, B briefly, C waits: C starts when B ends, and so do all others behind C."""
    long = hold(conch, 2)
    short = hold(conch, 2, command="read x", stdin=-1)
    third = queue(conch, 2, command="echo third >> order")
    jobs = [queue(conch, 2, command=f"mkdir one && echo {i} >> order && sleep 0.1 && rmdir one") for i in range(4)]
    assert short.process.stdin is not None
    ended = time.monotonic()
    short.process.stdin.close()
    assert third.wait() == 0
    assert [job.wait() for job in jobs] == [0] * 4
    assert time.monotonic() - ended < 8  # not after a TTL, and the long one still holds
    assert conch.read("order", 5).split() == ["third", "0", "1", "2", "3"]
    assert alive(long.child())


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_any_order_of_releases_promotes_exactly_the_next_in_line(conch: Bench, seed: int) -> None:
    """The line is in the order of create-revisions; nobody overtakes, nobody is left out."""
    chance = random.Random(seed)
    holders = [hold(conch, 3) for _ in range(3)]
    waiters = [queue(conch, 3) for _ in range(4)]
    while waiters:
        leaving = holders.pop(chance.randrange(3))
        leaving.signal(chance.choice([signal.SIGTERM, signal.SIGKILL]))
        leaving.wait()
        following = waiters.pop(0)
        following.child()
        assert not any(w.events("acquired") for w in waiters)
        holders.append(following)


def test_waiters_that_leave_promote_nobody_and_those_behind_move_up(conch: Bench) -> None:
    """They leave by timeout, by a signal, and by kill -9."""
    first, second = hold(conch, 2), hold(conch, 2)
    timed = queue(conch, 2, "--wait", "2s")
    signalled, killed, last = queue(conch, 2), queue(conch, 2), queue(conch, 2)
    signalled.signal(signal.SIGINT)
    killed.signal(signal.SIGKILL)
    assert signalled.wait() == 128 + signal.SIGINT
    assert timed.wait() == 75
    wait_for(lambda: [line["pid"] for line in who(conch)] == [first.pid, second.pid, last.pid], "three in line")
    assert not last.events("acquired")
    second.signal(signal.SIGTERM)
    last.child()


def test_nonblock_and_conflict_code(conch: Bench) -> None:
    """A free slot is taken; a full semaphore means 75, or -E; nothing is left in the queue."""
    hold(conch, 2)
    assert conch.run("sema", "s", "--max", "2", "-n", "--", "true").returncode == 0
    hold(conch, 2)
    done = conch.run("sema", "s", "--max", "2", "-n", "--", "true")
    assert done.returncode == 75
    assert "semaphore s/2 is taken" in done.stderr
    assert conch.run("sema", "s", "--max", "2", "--wait", "0", "-E", "4", "--", "true").returncode == 4
    assert len(conch.keys()) == 2


def test_free_slot_costs_one_grant_and_one_transaction(own: OwnEtcd) -> None:
    """One transaction does the put and the ranking."""
    before = requests(own.member.endpoint)
    assert own.bench.run("sema", "s", "--max", "2", "--", "true").returncode == 0
    counted = difference(before, requests(own.member.endpoint))
    assert counted.pop("Watch", 0) <= 2  # etcd 3.6 counts one twice
    assert counted.pop("Check", 0) == (TRANSPORT == "grpc")  # asks once per connection whether this is an etcd member
    assert counted == {"LeaseGrant": 1, "Txn": 1, "LeaseRevoke": 1}


def test_who_shows_the_queue_in_order(conch: Bench) -> None:
    """NAME/MAX HELD|WAIT HOST pid= since= rev=; without --max every capacity; exit 1 if there is nobody."""
    done = conch.run("sema", "s", "--who")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")
    first, second = hold(conch, 1), queue(conch, 1)
    other = hold(conch, 7)
    done = conch.run("sema", "s", "--who", "--max", "1")
    lines = done.stdout.splitlines()
    assert done.returncode == 0
    for line, state, wrapper in zip(lines, ("HELD", "WAIT"), (first, second), strict=True):
        assert re.fullmatch(rf"s/1 {state} {re.escape(HOST)} pid={wrapper.pid} since=\S+Z rev=\d+", line)
    seen = who(conch)
    assert [(line["max"], line["state"], line["rank"], line["pid"]) for line in seen] == [
        (1, "HELD", 0, first.pid),
        (1, "WAIT", 1, second.pid),
        (7, "HELD", 0, other.pid),
    ]
    assert set(seen[0]) == {"name", "max", "state", "rank", "host", "pid", "started", "since", "cmd", "rev", "lease"}
    assert conch.run("sema", "s", "--who", "--max", "2").returncode == 1


def test_who_reports_unreadable_keys_and_shows_the_rest(conch: Bench) -> None:
    """It names each unreadable key."""
    odd = [f"{conch.prefix}/sema/s/{capacity}" for capacity in ("2/1", "many/2", "02/3", "9" * 5000 + "/4")]
    for key in odd:
        conch.etcd.put(key, "junk")
    wrapper = hold(conch, 2)
    done = conch.run("sema", "s", "--who")
    assert all(key[:60] in done.stderr for key in odd)
    assert done.returncode == 0
    assert f"pid={wrapper.pid} " in done.stdout
    for key in odd:
        conch.etcd.delete(key)


def test_another_capacity_is_a_warning_that_names_both(conch: Bench) -> None:
    """It is another semaphore, so both hold."""
    first = hold(conch, 1)
    assert not first.events("other-capacity")
    for slots in (12, 100):
        second = hold(conch, slots)
        warned = [(line["max"], line["other"]) for line in second.events("other-capacity")]
        assert (str(slots), "1") in warned
    assert not hold(conch, 12).events("place-lost")


def test_tokens_grow_in_start_order_even_if_wrappers_die(conch: Bench) -> None:
    """Each child writes its token when it starts."""
    wrappers = [
        conch.start("sema", "s", "--max", "2", "--", "sh", "-c", "echo $CONCH_REV >> revs; exec sleep 1000")
        for _ in range(6)
    ]
    for count in range(2, 7):
        revs = [int(rev) for rev in conch.read("revs", count).split()]
        wait_for(lambda: len(running(wrappers)) == 2, "two children")
        # the two that started together may write in either order
        assert sorted(revs) == sorted(set(revs))
        assert revs[2:] == sorted(revs[2:])
        if count < 6:
            victim = running(wrappers)[0]
            victim.signal(signal.SIGKILL)
            victim.wait()
            wrappers.remove(victim)


def test_fifty_contenders_of_three_slots(conch: Bench) -> None:
    """Never more than three run together, and all are served in order, as the children's own intervals show."""
    chance = random.Random(7)
    script = (
        "import os, sys, time\n"
        "log = os.open('log', os.O_WRONLY | os.O_CREAT | os.O_APPEND)\n"
        "now = lambda: time.clock_gettime(time.CLOCK_BOOTTIME)\n"
        "start = now(); time.sleep(float(sys.argv[1])); end = now()\n"
        "os.write(log, f'{os.environ[\"CONCH_REV\"]} {start} {end}\\n'.encode())\n"
    )
    import sys

    gate = [hold(conch, 3) for _ in range(3)]
    wrappers = []
    for _ in range(50):
        nap = f"{chance.uniform(0.01, 0.15):.3f}"
        wrappers.append(conch.start("sema", "s", "--max", "3", "--ttl", "60s", "--", sys.executable, "-c", script, nap))
        if len(wrappers) % 5 == 0:
            wrappers[-1].wait_event("queued", timeout_s=60)
    for wrapper in wrappers:
        wrapper.wait_event("queued", timeout_s=60)
    for wrapper in gate:
        wrapper.signal(signal.SIGTERM)
    assert [wrapper.wait(60) for wrapper in wrappers] == [0] * 50
    intervals = [(int(r), float(s), float(e)) for r, s, e in (x.split() for x in conch.read("log", 50).splitlines())]
    check_bounded(intervals, 3)
    with pytest.raises(AssertionError):
        check_bounded(intervals, 2)  # negative control: three did run together


def check_bounded(intervals: list[tuple[int, float, float]], slots: int) -> None:
    """Check that at most so many run at any instant, and that nobody overtakes."""
    edges = sorted([(s, 1) for _, s, _ in intervals] + [(e, -1) for _, _, e in intervals])
    level = 0
    for _, step in edges:
        level += step
        assert level <= slots
    in_line = sorted(intervals)
    for i in range(slots, len(in_line)):
        # of those ahead, all but N-1 had ended: nobody overtook
        assert sum(end > in_line[i][1] for _, _, end in in_line[:i]) < slots


# -- spread -----------------------------------------------------------------------------------------------


def on(host: str) -> dict[str, str]:
    return {"CONCH_HOST": host}


def test_spread_gives_a_host_one_slot_and_keeps_the_order(conch: Bench) -> None:
    """Contenders of one host queue among themselves first, so they do not delay other hosts."""
    first = hold(conch, 2, "--spread", env=on("a"))
    second = queue(conch, 2, "--spread", env=on("a"))
    third = queue(conch, 2, "--spread", env=on("a"))
    other = hold(conch, 2, "--spread", env=on("b"))
    last = queue(conch, 2, "--spread", env=on("c"))
    assert [(line["host"], line["state"]) for line in who(conch)] == [("a", "HELD"), ("b", "HELD"), ("c", "WAIT")]
    first.signal(signal.SIGTERM)
    last.child()  # it was in the semaphore's queue before the second one of host a
    assert not second.events("acquired")
    other.signal(signal.SIGTERM)
    second.child()
    assert not third.events("acquired")
    last.signal(signal.SIGKILL)
    second.signal(signal.SIGKILL)
    third.child()
    assert [line["host"] for line in who(conch)] == ["a"]


def test_spread_holds_two_keys_under_one_lease_and_releases_both(conch: Bench) -> None:
    """They are the host's key and the slot's; the token is the slot's."""
    wrapper = hold(conch, 2, "--spread", env=on("a"))
    lease = f"{wrapper.lease():x}"
    assert sorted(conch.keys()) == [f"{conch.prefix}/sema-host/s/2/a/{lease}", f"{conch.prefix}/sema/s/2/{lease}"]
    ((_, meta),) = conch.etcd.get_prefix(f"{conch.prefix}/sema/")
    assert int(wrapper.events("acquired")[0]["rev"]) == meta.create_revision
    assert conch.run("sema", "s", "--max", "2", "--spread", "-n", "--", "true", env=on("a")).returncode == 75
    assert conch.run("sema", "s", "--max", "2", "--spread", "-n", "--", "true", env=on("b")).returncode == 0
    wrapper.signal(signal.SIGTERM)
    wrapper.wait()
    assert conch.keys() == []


@pytest.mark.parametrize("which", ["sema", "sema-host"])
def test_manual_deletion_of_either_key_is_a_loss(conch: Bench, which: str) -> None:
    """Without the host's key another contender of this host could hold, too."""
    wrapper = hold(conch, 2, "--spread", "--ttl", "60s", env=on("a"))
    (key,) = (key for key in keys(conch) if f"/{which}/" in key)
    conch.etcd.delete(key)
    wrapper.wait_event("lost", timeout_s=5)
    assert wrapper.wait() == 70


def test_slot_taken_after_a_wait_within_the_host_is_watched_too(conch: Bench) -> None:
    """The semaphore itself was free: conch watches the slot's key, too, and notices its deletion immediately."""
    first = hold(conch, 1, "--spread", env=on("a"))
    second = queue(conch, 1, "--spread", "--ttl", "60s", env=on("a"))
    first.signal(signal.SIGTERM)
    second.child()
    conch.etcd.delete(f"{conch.prefix}/sema/s/1/{second.lease():x}")
    second.wait_event("lost", timeout_s=5)
    assert second.wait() == 70


def test_both_keys_of_spread_are_watched_again_after_a_compaction(own: OwnEtcd) -> None:
    """They are watched again once, not in a loop, because no watch resumes from compacted history."""
    endpoint = own.member.endpoint
    hold(own.bench, 1, "--spread", "--ttl", "600s", env=on("a"))
    queue(own.bench, 1, "--spread", "--ttl", "600s", env=on("b"))
    etcd = own.bench.etcd
    for i in range(5):
        etcd.put(f"{own.bench.prefix}/x", str(i))
    etcd.compact(etcd.get(f"{own.bench.prefix}/x")[1].mod_revision)
    etcd.delete(f"{own.bench.prefix}/x")
    own.cluster.restart(own.member)
    own.cluster.wait_ready()
    wait_for(lambda: requests(endpoint).get("Watch", 0) >= 4, "the watches are back")
    wait_for(lambda: settled(endpoint), "quiet")


def test_nonblock_writes_nothing_where_nothing_is_free(own: OwnEtcd) -> None:
    """So no other contender finds its key ahead."""
    hold(own.bench, 1)
    before = requests(own.member.endpoint)
    assert own.bench.run("sema", "s", "--max", "1", "-n", "--", "true").returncode == 75
    counted = difference(before, requests(own.member.endpoint))
    assert not counted.keys() & {"LeaseGrant", "Txn", "LeaseRevoke"}


def test_waiter_within_a_host_that_loses_a_key_queues_again(conch: Bench) -> None:
    """It does so for either key."""
    for _ in range(2):
        hold(conch, 2)
    waiter = queue(conch, 2, "--spread", env=on("a"))
    for count, which in ((2, "sema-host"), (3, "sema")):
        lease = waiter.events("queued")[-1]["lease"]
        (key,) = (key for key in keys(conch) if f"/{which}/" in key and key.endswith(lease))
        conch.etcd.delete(key)
        waiter.wait_event("queued", count)
    assert len(waiter.events("place-lost")) == 2


# -- many waiters -----------------------------------------------------------------------------------------


@dataclass
class Waiters:
    """Many keepers in one process, each with its own connection, lease and threads, as in production."""

    endpoints: str
    prefix: str
    slots: int
    stores: list[Store] = field(default_factory=list)
    workers: list[Acquirer] = field(default_factory=list)
    heard: list[list[Message]] = field(default_factory=list)
    ends: list[Callable[[], None]] = field(default_factory=list)

    def add(self) -> int:
        ours, theirs = pair()
        watchdog = Watchdog(theirs, lambda targets: [[] for _ in targets])
        connection = Connection(parse_endpoints(self.endpoints), 60.0, 60.0)
        stage = QueueSpec(f"{self.prefix}/{self.slots}/", self.slots, f"{self.prefix}/")
        store = open_store(connection)
        worker = Acquirer(HoldSpec(connection, "s", (stage,), 600, 5.0, b"{}"), store, watchdog)
        heard: list[Message] = []
        watchdog.send = heard.append  # type: ignore[assignment, method-assign]
        threading.Thread(target=worker.run, daemon=True).start()
        worker.deliver(Acquire(1))
        wait_for(
            lambda: any(isinstance(m, Held | Queued) for m in heard),
            "a place",
            60,
        )
        self.stores.append(store)
        self.workers.append(worker)
        self.heard.append(heard)
        self.ends += [ours.close, theirs.close]
        return len(self.workers) - 1

    def holds(self, index: int) -> bool:
        return any(isinstance(m, Held) for m in self.heard[index])

    def release(self, index: int) -> None:
        self.workers[index].deliver(Release())

    def close(self) -> None:
        # from the end of the line, so that nobody is promoted
        for worker in reversed(self.workers):
            worker.deliver(Release())
            assert worker.released.wait(30)
        for store in self.stores:
            store.close()
        for end in self.ends:
            end()


@pytest.mark.parametrize("slots", [1, 3])
def test_a_release_costs_the_same_with_20_waiters_and_with_200(own: OwnEtcd, slots: int) -> None:
    """etcd counts the revocation, a read by each of at most N waiters, and one more watched key for each."""
    endpoint = own.member.endpoint
    waiters = Waiters(endpoint, f"{own.bench.prefix}/many", slots)
    cost: dict[int, dict[str, int]] = {}
    released = 0
    try:
        for count in (20, 200):
            seen = []
            for _ in range(3):  # the least of three: a loaded machine may reconnect meanwhile
                while len(waiters.workers) < released + slots + count:
                    waiters.add()
                next_in_line = released + slots
                wait_for(lambda: settled(endpoint), "quiet")
                before = requests(endpoint)
                waiters.release(released)
                released += 1
                wait_for(lambda: waiters.holds(next_in_line), "the next in line holds")  # noqa: B023 - called immediately
                wait_for(lambda: settled(endpoint), "quiet")
                seen.append(difference(before, requests(endpoint)))
                assert sum(waiters.holds(i) for i in range(len(waiters.workers))) == released + slots
            cost[count] = min(seen, key=lambda counted: sum(counted.values()))
            assert cost[count]["LeaseRevoke"] == 1
    finally:
        waiters.close()
    print(json.dumps(cost))
    assert cost[20] == cost[200]
    assert sum(cost[200].values()) <= 1 + 2 * slots


def settled(endpoint: str) -> bool:
    """Whether etcd has handled no request for 0.2 s."""
    before = requests(endpoint)
    time.sleep(0.2)
    return requests(endpoint) == before
