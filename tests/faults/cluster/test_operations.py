"""Operators' work on etcd while conch uses it."""

import secrets
import threading
from pathlib import Path

import pytest

from conch.dev import Cluster
from tests.conftest import OwnEtcd
from tests.support.conch import Bench, alive, wait_for
from tests.support.etcdctl import etcdctl


def test_compaction_and_defragmentation_under_load(own: OwnEtcd) -> None:
    """Holders, waiters and watches continue; the watch misses no change."""
    bench, ctl = own.bench, ["--endpoints", own.member.endpoint]
    holder = bench.hold("o", "--ttl", "5s")
    waiter = bench.queue("o", command="true")
    watch = bench.start("elect", "w", "--watch", "--json")
    wait_for(lambda: watch.out, "the watch")
    stop = threading.Event()
    written = [0]

    def load() -> None:
        while not stop.is_set():
            bench.etcd.put(f"{bench.prefix}/load", "x" * 1000)
            written[0] += 1

    thread = threading.Thread(target=load)
    thread.start()
    try:
        for i in range(5):
            assert bench.run("elect", "w", "--", "true").returncode == 0
            revision = bench.etcd.get(f"{bench.prefix}/load")[1].mod_revision
            etcdctl(*ctl, "compact", str(revision))
            etcdctl(*ctl, "defrag")
            wait_for(lambda: watch.out.count("\n") >= 3 + 2 * i, "both changes")  # noqa: B023 - called immediately
    finally:
        stop.set()
        thread.join()
    assert written[0] > 10
    assert [bool(line.get("vacant")) for line in bench.jsons(watch.out)] == [i % 2 == 0 for i in range(11)]
    assert not holder.events("lost")
    holder.signal(15)
    assert waiter.wait() == 0
    bench.etcd.delete(f"{bench.prefix}/load")


def test_watch_that_fell_behind_a_compaction_lists_again(own: OwnEtcd) -> None:
    """It was frozen while changes were made and compacted: it shows the present state and later changes."""
    import signal

    bench = own.bench
    watch = bench.start("elect", "o", "--watch")
    wait_for(lambda: watch.out == "o -\n", "vacant")
    watch.signal(signal.SIGSTOP)
    own.cluster.kill(own.member)
    own.cluster.restart(own.member)
    own.cluster.wait_ready()
    holder = bench.hold("o")
    for i in range(5):
        bench.etcd.put(f"{bench.prefix}/x", str(i))
    etcdctl("--endpoints", own.member.endpoint, "compact", str(bench.etcd.get(f"{bench.prefix}/x")[1].mod_revision))
    bench.etcd.delete(f"{bench.prefix}/x")
    watch.signal(signal.SIGCONT)
    wait_for(lambda: f"pid={holder.pid} " in watch.out, "the present state")
    holder.signal(15)
    wait_for(lambda: watch.out.endswith("o -\n"), "and what comes then")


@pytest.mark.timeout(180)
def test_full_etcd_gives_a_clear_line_and_holders_keep_their_holds(tmp_path: Path) -> None:
    """Under the NOSPACE alarm new holds are refused with 69; old ones are kept and can be released."""
    with Cluster(arguments=["--quota-backend-bytes", str(2 * 1024 * 1024)]) as cluster:
        bench = Bench(cluster.endpoints, secrets.token_hex(8), tmp_path)
        holder = bench.hold("o", "--ttl", "3s")
        waiter = bench.queue("o", command="echo ran >> ran")
        ctl = ["--endpoints", cluster.endpoints]
        with pytest.raises(AssertionError, match="space exceeded"):
            for i in range(100):
                etcdctl(*ctl, "put", f"/fill/{i}", "x" * 100_000)
        done = bench.run("elect", "other", "--", "true")
        assert done.returncode == 69
        assert "space exceeded" in done.stderr
        assert len([line for line in done.stderr.splitlines() if not line.startswith("ts=")]) == 1
        seen = holder.lease()
        wait_for(lambda: bench.etcd.get_lease_info(seen).TTL >= 2, "still renewed")
        assert alive(holder.child())
        holder.signal(15)
        assert holder.wait() == 143
        assert waiter.wait() == 0
        bench.finish()


def test_manually_written_megabyte_stops_nothing(conch: Bench) -> None:
    """A waiter queues behind the key and runs once it is deleted."""
    key = f"{conch.prefix}/elect/o/ffff"
    conch.etcd.put(key, "x" * 1_000_000)
    waiter = conch.queue("o", command="true")
    conch.etcd.delete(key)
    assert waiter.wait() == 0
