"""conch and `etcdctl lock` in turn on one etcd: what a hold costs, and how fast it is handed over."""

import os
import signal
import subprocess
import tempfile
import time
from functools import partial
from pathlib import Path

from conch.dev import Cluster
from tests.support.conch import CONCH, Bench, Wrapper, boottime, wait_for
from tests.support.metrics import difference, requests
from tools.bench.measure import background, hand_overs, idle, in_turn, pss_mb, spend
from tools.bench.table import header, ms, ratio, row

ROUNDS = 40
CHAIN = 50
IDLE_S = 20


def whole_runs(bench: Bench, what: str, ours: tuple[str, ...], theirs: tuple[str, ...], limit: float) -> None:
    """Compare the wall time of processes from start to end."""
    environment = bench.environment
    mine, other = in_turn(ROUNDS, partial(spend, ours, environment), partial(spend, theirs, environment))
    ours_s, theirs_s = [spent.wall_s for spent in mine], [spent.wall_s for spent in other]
    row(what, ms(ours_s), ms(theirs_s), ratio(ours_s, theirs_s), f"at most {limit}")


def hand_over(bench: Bench) -> None:
    """From one command's end to the next one's start; both are shells that run `date`, which takes its part."""
    ours = hand_overs(bench, lambda script: background(bench, CONCH, "elect", "chain", "--", "sh", script), CHAIN)
    theirs = hand_overs(bench, lambda script: background(bench, "etcdctl", "lock", "chain", "sh", script), CHAIN)
    row(f"(b) hand-over in a chain of {CHAIN}", ms(ours), ms(theirs), ratio(ours, theirs), "at most 1.0")


def crash(bench: Bench) -> None:
    """From SIGKILL of the wrapper until the next one's child runs, TTL 10 s."""
    ours = [crash_of_conch(bench, number) for number in range(10)]
    theirs = [crash_of_etcdctl(bench, number) for number in range(2)]
    row("(c) kill -9 to the next child, TTL 10 s", ms(ours), ms(theirs), ratio(ours, theirs), "at most 0.05")


def crash_of_conch(bench: Bench, number: int, *flags: str) -> float:
    holder = bench.hold(f"crash{number}", *flags)
    # the time as the next child sees it: a poll for its file would be too coarse
    waiter = bench.queue(f"crash{number}", *flags, command=f"date +%s.%N > c{number}; exec sleep 100")
    began = time.time()
    holder.signal(signal.SIGKILL)
    took_s = float(bench.read(f"c{number}")) - began
    waiter.signal(signal.SIGTERM)
    waiter.wait()
    holder.wait()
    return took_s


def crash_of_etcdctl(bench: Bench, number: int) -> float:
    held, free = bench.file(f"h{number}"), bench.file(f"f{number}")
    for path, rest in ((held, "; exec sleep 1000"), (free, "")):
        Path(f"{path}.sh").write_text(f"echo x > {path}{rest}\n")
    lock = ("etcdctl", "lock", "--ttl", "10", f"crash{number}", "sh")
    first = subprocess.Popen([*lock, f"{held}.sh"], env=bench.environment, start_new_session=True)
    wait_for(held.exists, "the lock")
    second = subprocess.Popen([*lock, f"{free}.sh"], env=bench.environment)
    time.sleep(0.5)
    began = time.perf_counter()
    first.kill()
    wait_for(free.exists, "the next child", 30)
    took_s = time.perf_counter() - began
    second.wait()
    os.killpg(first.pid, signal.SIGKILL)
    return took_s


def loss(bench: Bench) -> None:
    """From a lease's revocation until the child's trap runs."""
    times = []
    for number in range(10):
        out, ready = bench.file(f"l{number}"), bench.file(f"r{number}")
        trap = f"trap 'cut -d\" \" -f1 /proc/uptime > {out}; exit' TERM; : > {ready}; while :; do sleep 0.005; done"
        wrapper = bench.hold(f"loss{number}", command=trap)
        wait_for(ready.exists, "the trap is set")
        lease = wrapper.lease()
        began = boottime()
        bench.etcd.revoke_lease(lease)
        wrapper.wait_event("term-sent")
        wrapper.wait()
        times.append(max(0.0, float(out.read_text()) - began))
    row("(d) lease revoked to the child's trap (10 ms clock)", ms(times), "-", "-", "under 50 ms")


def at_rest(bench: Bench) -> None:
    """Memory and wake-ups while holding and while queued."""
    holder = bench.hold("mem", command="exec sleep 1000")
    waiter = bench.queue("mem")
    lock = subprocess.Popen(
        ["etcdctl", "lock", "--ttl", "10", "mem", "sleep", "1000"], env=bench.environment, start_new_session=True
    )
    time.sleep(2)
    ours, theirs = pss_mb(holder.pid), pss_mb(lock.pid)
    row("(e) memory while holding (PSS)", f"{ours:.1f} MB", f"{theirs:.1f} MB", f"{ours / theirs:.2f}", "at most 1.2")
    row("(e) memory while queued (PSS)", f"{pss_mb(waiter.pid):.1f} MB", "-", "-", "-")
    rates = idle([holder.pid, waiter.pid, lock.pid], IDLE_S)
    holding, queued, locked = (f"{wakes:.1f} wake-ups/s, {cpu:.2f} % CPU" for wakes, cpu in rates)
    row("(e) idle while holding, TTL 10 s", holding, locked, f"{rates[0][0] / rates[2][0]:.2f}", "at most 2/s")
    row("(e) idle while queued, TTL 10 s", queued, "-", "-", "at most 2/s")
    os.killpg(lock.pid, signal.SIGKILL)
    lock.wait()
    for wrapper in (waiter, holder):
        wrapper.signal(signal.SIGTERM)
        wrapper.wait()


def in_line(bench: Bench, count: int) -> bool:
    """Whether the holder and so many waiters are in the queue."""
    return len(bench.keys_below(f"elect/line{count}/")) == count + 1


def waiters(bench: Bench, cluster: Cluster) -> None:
    """Requests that a release costs etcd with many in line."""
    for count in (20, 200):
        line: list[Wrapper] = [bench.hold(f"line{count}")]
        for _ in range(count):
            line.append(bench.start("elect", f"line{count}", "--ttl", "60s", "--", "sleep", "1000"))
            time.sleep(0.05)
        wait_for(partial(in_line, bench, count), "all in line", 60)
        time.sleep(2)
        before = requests(cluster.endpoints)
        line[0].signal(signal.SIGTERM)
        line[1].child()
        time.sleep(1)
        sent = _without_renewals(difference(before, requests(cluster.endpoints)))
        row(f"(f) a release with {count} waiters", sent, "-", "-")
        for wrapper in line:
            wrapper.process.terminate()
        for wrapper in line:
            wrapper.wait(60)


def long_line(bench: Bench, cluster: Cluster, count: int) -> None:
    """What a release costs, and the last in line, with so many in it: all but two of those who wait are plain keys."""
    office = f"long{count}"
    holder, first = bench.hold(office), bench.queue(office)
    lease = bench.etcd.lease(600)
    for number in range(count - 2):
        bench.etcd.put(f"{bench.prefix}/elect/{office}/plain{number}", "{}", lease=lease)
    last = bench.queue(office)
    time.sleep(3)
    row(f"(e) memory of the last of {count} that wait (PSS)", f"{pss_mb(last.pid):.1f} MB", "-", "-", "-")
    before = requests(cluster.endpoints)
    holder.signal(signal.SIGTERM)
    first.child()
    sent = _without_renewals(difference(before, requests(cluster.endpoints)))
    row(f"(f) a release with {count} that wait, most of them plain keys", sent, "-", "-")
    lease.revoke()
    for wrapper in (last, first, holder):
        wrapper.signal(signal.SIGTERM)
        wrapper.wait()


def _without_renewals(sent: dict[str, int]) -> str:
    """Return how many requests of each kind there were, those of renewals left out: a keepalive and a read each."""
    sent["Range"] = sent.get("Range", 0) - sent.pop("LeaseKeepAlive", 0)
    return ", ".join(f"{count} {what}" for what, count in sorted(sent.items()) if count)


def queries(bench: Bench) -> None:
    """Commands that only read."""
    holder = bench.hold("read")
    get = ("etcdctl", "get", "--prefix", f"{bench.prefix}/elect/read/")
    whole_runs(bench, "(h) elect --who", (CONCH, "elect", "read", "--who"), get, 4)
    whole_runs(bench, "(h) elect --assert", (CONCH, "elect", "read", "--assert"), get, 4)
    whole_runs(bench, "(h) cron ls", (CONCH, "cron", "ls"), get, 4)
    holder.signal(signal.SIGTERM)
    holder.wait()


def main() -> None:
    """Measure everything about holds."""
    with Cluster() as cluster, tempfile.TemporaryDirectory() as folder:
        bench = Bench(cluster.endpoints, "bench", Path(folder))
        header("what", "conch", "etcdctl", "ratio", "wanted")
        lock = ("etcdctl", "lock", "cold", "true")
        whole_runs(bench, "(a) cold, `true`", (CONCH, "elect", "cold", "--", "true"), lock, 2.5)
        hand_over(bench)
        crash(bench)
        loss(bench)
        at_rest(bench)
        waiters(bench, cluster)
        for count in (20, 1000):
            long_line(bench, cluster, count)
        queries(bench)
