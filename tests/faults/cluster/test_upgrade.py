"""Operators' work on a live cluster: upgrades, new members, compaction. No client notices it."""

import json
import secrets
import signal
import subprocess
import threading
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from conch.dev import Cluster, Member, free_ports
from tests.faults.cluster.conftest import Three
from tests.faults.cluster.test_leases import check_kept
from tests.faults.cluster.test_rolling import Fleet as Holds
from tests.support import cron
from tests.support.conch import Bench, throughout, wait_for
from tests.support.etcdbin import release
from tests.support.etcdctl import etcdctl, leader
from tests.support.members import promote, replace_by_learner

HOSTS = ("a", "b", "c")


class Users:
    """Everything that conch does, together: an election, a semaphore with waiters, a watch, three daemons and a job."""

    def __init__(self, three: Three) -> None:
        self.holds = Holds(three)
        self.daemons = cron.Fleet(three.bench)
        for host in HOSTS:
            self.daemons.start(host)
        # by default a tick that cannot start within its second, as while etcd elects a leader, is skipped
        late = ["--overlap", "allow", "--start-deadline", "10s"]
        self.daemons.add("j", "@every 1s", *late, command="echo $CONCH_TICK >> ticks")
        three.bench.read("ticks", 2)

    def for_a_while(self, seconds: float) -> None:
        """Check that nobody notices anything, and that the watch shows the next change."""
        throughout(seconds, self.holds.check)
        self.holds.change()

    def end(self) -> None:
        """Check that the semaphore's queue still moves and that every tick ran exactly once."""
        self.holds.hand_over()
        self.holds.check()
        bench, daemons = self.daemons.bench, self.daemons
        assert bench.run("cron", "pause", "j").returncode == 0
        wait_for(lambda: set(daemons.ticks("fire", "j")) == set(daemons.ticks("result", "j")), "no run is open")
        results = daemons.ticks("result", "j")
        assert sorted(results) == list(range(min(results), max(results) + 1))
        assert {tick: one["state"] for tick, one in results.items() if one["state"] != "ok"} == {}
        assert Counter(map(int, bench.file("ticks").read_text().split())) == Counter(results.keys())
        # no daemon had to register again
        assert [len(daemons.daemons[host].events("registered")) for host in HOSTS] == [1, 1, 1]
        daemons.clean()


@pytest.fixture
def oldest(tmp_path: Path) -> Iterator[Three]:
    """Three members of the oldest release that can be upgraded to the newest."""
    # 3.7 cannot read what 3.5 wrote to the log: 3.6 must have made a snapshot since, after 10,000 entries by default
    with Cluster(3, binary=release("3.5"), arguments=["--snapshot-count", "50"]) as cluster:
        bench = Bench(cluster.endpoints, secrets.token_hex(8), tmp_path)
        yield Three(cluster, bench)
        bench.finish()
        bench.check_etcd()


@pytest.mark.timeout(240)
def test_upgrade_member_by_member_is_not_noticed(oldest: Three) -> None:
    """From 3.5 to 3.6 to 3.7, the leader last, as in etcd's own guide."""
    users = Users(oldest)
    for line in ("3.6", "3.7"):
        for member in oldest.leader_last():
            oldest.cluster.kill(member, signal.SIGTERM)
            oldest.cluster.restart(member, binary=release(line))
            oldest.cluster.wait_ready()
            users.for_a_while(2)
        wait_for(lambda: cluster_version(oldest) == line, f"a cluster of {line}", 30)  # noqa: B023 - called immediately
    users.holds.gap("upgrade from 3.5 to 3.7")
    users.end()


def cluster_version(three: Three) -> str:
    """Return the release line that all members have agreed on."""
    with urllib.request.urlopen(f"http://{three.cluster.members[0].endpoint}/version", timeout=5) as answer:
        return str(json.load(answer)["etcdcluster"]).rpartition(".")[0]


@pytest.mark.timeout(240)
def test_new_members_at_the_old_address_and_at_another_are_not_noticed(three: Three) -> None:
    """The leader is replaced, too, and meanwhile an endpoint is a learner or one where nobody listens any more."""
    users = Users(three)
    old = three.leader()
    learner = replace_by_learner(three.cluster, old, "same", (old.client_port, old.peer_port))
    users.for_a_while(3)
    # a client that calls the learner first is served by the next endpoint
    first = three.bench.run("elect", "o", "--who", "--endpoints", f"{learner.endpoint},{three.cluster.endpoints}")
    assert first.returncode == 0, first.stderr
    alone = three.bench.run("elect", "o", "--who", "--endpoints", learner.endpoint, "--dial-timeout", "2s")
    assert alone.returncode == 69, alone.stderr
    assert "learner" in alone.stderr
    promote(three.cluster, learner)
    three.cluster.wait_ready()
    users.for_a_while(2)
    learner = replace_by_learner(three.cluster, three.leader(), "other", free_ports(2))
    users.for_a_while(2)
    promote(three.cluster, learner)
    three.cluster.wait_ready()
    users.for_a_while(2)
    users.holds.gap("replaced members")
    three.bench.move(three.cluster.endpoints)  # the client of the test was connected to a member that is gone
    users.end()


@pytest.mark.timeout(240)
def test_defragmentation_of_each_member_under_compaction_is_not_noticed(three: Three) -> None:
    """All history is compacted each second while each member is defragmented in turn, the leader last."""
    users = Users(three)
    stop = threading.Event()
    compacted: list[str] = []

    def compact() -> None:
        ctl = ["--endpoints", three.cluster.endpoints]
        while not stop.wait(1):
            revision = str(three.bench.etcd.get(f"{three.bench.prefix}/cron/job/j")[1].response_header.revision)
            etcdctl(*ctl, "compact", revision)
            compacted.append(revision)

    thread = threading.Thread(target=compact)
    thread.start()
    try:
        for member in three.leader_last():
            etcdctl("--endpoints", member.endpoint, "defrag")
            users.for_a_while(2)
    finally:
        stop.set()
        thread.join()
    assert len(compacted) > 3
    users.end()


@pytest.mark.timeout(120)
def test_downgrade_is_not_noticed(tmp_path: Path) -> None:
    """Three members of 3.6 are to return to 3.5, and the first one does, under a hold and its waiter."""
    with Cluster(3, binary=release("3.6")) as cluster:
        bench = Bench(cluster.endpoints, secrets.token_hex(8), tmp_path)
        first, second = bench.hold("o"), bench.queue("o")
        ctl = release("3.6", "etcdctl")
        command = [ctl, "--endpoints", cluster.endpoints, "downgrade", "enable", "3.5"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
        assert done.returncode == 0, done.stderr
        check_kept(first, second)
        # its status shows when its files have the older format, and 3.5 may take over
        member = next(one for one in cluster.members if one is not leader(cluster))
        wait_for(lambda: storage_is_old(ctl, member), "the files are of the older form", 40)
        cluster.kill(member, signal.SIGTERM)
        cluster.restart(member, binary=release("3.5"))
        cluster.wait_ready()
        throughout(3, lambda: check_kept(first, second))
        first.signal(signal.SIGTERM)
        first.wait()
        second.child()
        bench.finish()
        bench.check_etcd()


def storage_is_old(ctl: str, member: Member) -> bool:
    command = [ctl, "--endpoints", member.endpoint, "endpoint", "status", "-w", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    return '"storageVersion":"3.5' in done.stdout
