"""conch and `etcdctl lock` in turn on one etcd: what a hold costs, and how fast it is handed over."""

import os
import signal
import subprocess
import time
from functools import partial
from pathlib import Path

from conch.dev import Cluster
from conch.holder import Holder
from tests.support.conch import CONCH, Bench, boottime, wait_for
from tests.support.metrics import difference, requests
from tools.bench.measure import background, hand_overs, idle, in_turn, new_bench, pss_mb, spend
from tools.bench.table import header, ms, ratio, row

ROUNDS = 40
CHAIN = 50
# of the waiters in a long line, those right behind the holder are conchs
REAL = 3
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
    row(f"(b) hand-over in a chain of {CHAIN}", ms(ours), ms(theirs), ratio(ours, theirs), "at most 1.2")


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


def put_waiters(bench: Bench, office: str, count: int) -> None:
    """Put the keys of waiters into a queue, under one lease: to the others in line they are waiters like any."""
    lease = bench.etcd.lease(600)
    value = Holder("elsewhere", 1, "2000-01-01T00:00:00Z", "true").encode()
    for number in range(count):
        bench.etcd.put(f"{bench.prefix}/elect/{office}/{1000 + number:x}", value, lease)


def waiters(bench: Bench, cluster: Cluster) -> None:
    """What a release costs etcd with many in line, and the memory of the last in line."""
    memory_mb = {}
    for count in (20, 200, 1000):
        office = f"line{count}"
        line = [bench.hold(office, "--ttl", "60s"), *(bench.queue(office, "--ttl", "60s") for _ in range(REAL))]
        put_waiters(bench, office, count - REAL - 1)
        line.append(bench.queue(office, "--ttl", "60s"))
        time.sleep(2)
        memory_mb[count] = pss_mb(line[-1].pid)
        before = requests(cluster.endpoints)
        line[0].signal(signal.SIGTERM)
        line[1].child()
        time.sleep(1)
        sent = difference(before, requests(cluster.endpoints))
        # each renewal of the others is a keepalive and a read
        sent["Range"] = sent.get("Range", 0) - sent.pop("LeaseKeepAlive", 0)
        shown = ", ".join(f"{n} {what}" for what, n in sorted(sent.items()) if n)
        row(f"(f) a release with {count} waiters", shown, "-", "-", "the same for all")
        for wrapper in line:
            wrapper.process.terminate()
        for wrapper in line:
            wrapper.wait(60)
    few, many = memory_mb[20], memory_mb[1000]
    beside = f"{few:.1f} MB (conch behind 20)"
    row("(f) memory behind 1000 waiters (PSS)", f"{many:.1f} MB", beside, f"{many / few:.2f}", "at most 1.05")


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
    with new_bench("bench") as (bench, cluster):
        header("what", "conch", "etcdctl", "ratio", "wanted")
        hand_over(bench)
        crash(bench)
        loss(bench)
        at_rest(bench)
        waiters(bench, cluster)
        queries(bench)
