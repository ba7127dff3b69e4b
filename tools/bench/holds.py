"""conch and `etcdctl lock` in turn, on one etcd: what a hold costs, and how fast it passes on."""

import os
import secrets
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path

import psutil

from conch.dev import Cluster
from tests.support.conch import Bench, Wrapper, boottime, wait_for
from tests.support.metrics import difference, requests
from tools.bench.table import ms, ratio, row

ROUNDS = 40
CHAIN = 50


class Field:
    """An etcd of its own, and both tools on it."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster = cluster
        self.bench = Bench(cluster.endpoints, secrets.token_hex(4), folder)

    def timed(self, *command: str) -> float:
        """The wall time of a whole process, in seconds."""
        began = time.perf_counter()
        subprocess.run(
            command,
            env=self.bench.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
        )
        return time.perf_counter() - began

    def alternate(self, what: str, ours: tuple[str, ...], theirs: tuple[str, ...], limit: float) -> None:
        """Whole processes in turn."""
        mine, other = [], []
        for at in range(ROUNDS + 2):
            a, b = self.timed(*ours), self.timed(*theirs)
            if at >= 2:
                mine.append(a)
                other.append(b)
        row(what, ms(mine), ms(other), ratio(mine, other), f"at most {limit}")


def conch() -> str:
    """The installed command."""
    from tests.support.conch import CONCH

    return CONCH


def chain(field: Field, start: Callable[[str], "subprocess.Popen[bytes]"]) -> list[float]:
    """A queue of processes, drained: from one command's end to the next one's start, as they see it."""
    log = field.bench.file(f"chain-{secrets.token_hex(3)}")
    go, script = Path(f"{log}-go"), Path(f"{log}.sh")
    script.write_text(f"a=$(date +%s.%N); while [ ! -e {go} ]; do sleep 0.01; done; echo $a $(date +%s.%N) >> {log}\n")
    started = []
    for _ in range(CHAIN):
        started.append(start(str(script)))
        time.sleep(0.06)
    time.sleep(1.5)
    go.touch()
    for one in started:
        one.wait(120)
    times = sorted(tuple(map(float, line.split())) for line in log.read_text().splitlines())
    return [after[0] - before[1] for before, after in pairwise(times)]


def hand_over(field: Field) -> None:
    """One command's end to the next one's start; both are shells that ask `date`, which takes its part."""

    def popen(*command: str) -> "subprocess.Popen[bytes]":
        null = subprocess.DEVNULL
        return subprocess.Popen(command, env=field.bench.environment, stdin=null, stdout=null, stderr=null)

    ours = chain(field, lambda script: popen(conch(), "elect", "chain", "--", "sh", script))
    theirs = chain(field, lambda script: popen("etcdctl", "lock", "chain", "sh", script))
    row(f"(b) hand-over in a chain of {CHAIN}", ms(ours), ms(theirs), ratio(ours, theirs), "at most 1.0")


def crash(field: Field) -> None:
    """kill -9 of the wrapper until the next one's child runs, TTL 10 s."""
    mine = []
    for at in range(10):
        holder = field.bench.hold(f"crash{at}")
        waiter = field.bench.queue(f"crash{at}", command=f"echo x > {field.bench.file(f'c{at}')}; exec sleep 100")
        began = time.perf_counter()
        holder.signal(signal.SIGKILL)
        wait_for(field.bench.file(f"c{at}").exists, "the next")
        mine.append(time.perf_counter() - began)
        waiter.signal(signal.SIGTERM)
        waiter.wait()
        holder.wait()
    theirs = []
    for at in range(2):
        held, free = field.bench.file(f"h{at}"), field.bench.file(f"f{at}")
        for path, then in ((held, "; exec sleep 1000"), (free, "")):
            Path(f"{path}.sh").write_text(f"echo x > {path}{then}\n")
        lock = ("etcdctl", "lock", "--ttl", "10", f"crash{at}", "sh")
        first = subprocess.Popen([*lock, f"{held}.sh"], env=field.bench.environment, start_new_session=True)
        wait_for(held.exists, "the lock")
        second = subprocess.Popen([*lock, f"{free}.sh"], env=field.bench.environment)
        time.sleep(0.5)
        began = time.perf_counter()
        first.kill()
        wait_for(free.exists, "the next", 30)
        theirs.append(time.perf_counter() - began)
        second.wait()
        os.killpg(first.pid, signal.SIGKILL)
    row("(c) kill -9 to the next child, TTL 10 s", ms(mine), ms(theirs), ratio(mine, theirs), "at most 0.05")


def loss(field: Field) -> None:
    """A revoked lease until the child hears of it."""
    times = []
    for at in range(10):
        out = field.bench.file(f"l{at}")
        trap = f"trap 'cut -d\" \" -f1 /proc/uptime > {out}; exit' TERM; while :; do sleep 0.005; done"
        wrapper = field.bench.hold(f"loss{at}", command=trap)
        lease = wrapper.lease()
        began = boottime()
        field.bench.etcd.revoke_lease(lease)
        wrapper.wait_event("term-sent")
        wrapper.wait()
        times.append(max(0.0, float(out.read_text()) - began))
    row("(d) lease revoked to the child's trap (10 ms clock)", ms(times), "-", "-", "under 50 ms")


def pss(pid: int) -> float:
    """Proportional memory of a process and all below it, in MB."""
    total = 0
    for one in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
        if one.name() == "sleep":
            continue
        total += one.memory_full_info().pss
    return total / 1e6


def wake_ups(pid: int, seconds: float) -> tuple[float, float]:
    """Wake-ups a second (voluntary context switches of all threads), and CPU in per cent."""

    def look() -> tuple[int, float]:
        switches, cpu = 0, 0.0
        for one in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
            if one.name() == "sleep":
                continue
            for task in Path(f"/proc/{one.pid}/task").iterdir():
                text = (task / "status").read_text()
                switches += int(text.split("nonvoluntary")[0].rsplit("voluntary_ctxt_switches:", 1)[1].split()[0])
            cpu += one.cpu_times().user + one.cpu_times().system
        return switches, cpu

    before = look()
    time.sleep(seconds)
    after = look()
    return (after[0] - before[0]) / seconds, (after[1] - before[1]) / seconds * 100


def idle(field: Field) -> None:
    """Memory and wake-ups while holding and while queued."""
    holder = field.bench.hold("mem", command="exec sleep 1000")
    waiter = field.bench.queue("mem")
    lock = subprocess.Popen(
        ["etcdctl", "lock", "--ttl", "10", "mem", "sleep", "1000"], env=field.bench.environment, start_new_session=True
    )
    time.sleep(2)
    mine, theirs = pss(holder.pid), pss(lock.pid)
    row("(e) memory while holding (PSS)", f"{mine:.1f} MB", f"{theirs:.1f} MB", f"{mine / theirs:.2f}", "at most 1.2")
    row("(e) memory while queued (PSS)", f"{pss(waiter.pid):.1f} MB", "-", "-", "-")
    for what, pid in (("holding", holder.pid), ("queued", waiter.pid)):
        wakes, cpu = wake_ups(pid, 20)
        row(f"(e) idle while {what}, TTL 10 s", f"{wakes:.1f} wake-ups/s, {cpu:.2f} % CPU", "-", "-", "at most 2/s")
    wakes, cpu = wake_ups(lock.pid, 20)
    row("(e) idle while holding", "-", f"{wakes:.1f} wake-ups/s, {cpu:.2f} % CPU", "-", "-")
    os.killpg(lock.pid, signal.SIGKILL)
    lock.wait()
    for one in (waiter, holder):
        one.signal(signal.SIGTERM)
        one.wait()


def in_line(field: Field, count: int) -> bool:
    """Whether the holder and so many waiters are there."""
    return len(field.bench.keys_below(f"elect/line{count}/")) == count + 1


def waiters(field: Field) -> None:
    """What a release costs etcd with many in line."""
    for count in (20, 200):
        line: list[Wrapper] = [field.bench.hold(f"line{count}")]
        for _ in range(count):
            line.append(field.bench.start("elect", f"line{count}", "--ttl", "60s", "--", "sleep", "1000"))
            time.sleep(0.05)
        wait_for(partial(in_line, field, count), "all in line", 60)
        time.sleep(2)
        before = requests(field.cluster.endpoints)
        line[0].signal(signal.SIGTERM)
        line[1].child()
        time.sleep(1)
        made = difference(before, requests(field.cluster.endpoints))
        # each renewal of the others is a keepalive and a read
        made["Range"] = made.get("Range", 0) - made.pop("LeaseKeepAlive", 0)
        row(
            f"(f) a release with {count} waiters",
            ", ".join(f"{n} {what}" for what, n in sorted(made.items())),
            "-",
            "-",
            "",
        )
        for one in line:
            one.process.terminate()
        for one in line:
            one.wait(60)


def looks(field: Field) -> None:
    """Commands that only look."""
    holder = field.bench.hold("look")
    get = ("etcdctl", "get", "--prefix", f"{field.bench.prefix}/elect/look/")
    field.alternate("(h) elect --who", (conch(), "elect", "look", "--who"), get, 4)
    field.alternate("(h) elect --assert", (conch(), "elect", "look", "--assert"), get, 4)
    field.alternate("(h) cron ls", (conch(), "cron", "ls"), get, 4)
    holder.signal(signal.SIGTERM)
    holder.wait()


def main() -> None:
    """All of it."""
    with Cluster() as cluster, tempfile.TemporaryDirectory() as folder:
        field = Field(cluster, Path(folder))
        row("what", "conch", "etcdctl", "ratio", "wanted")
        row("---", "---", "---", "---", "---")
        field.alternate(
            "(a) cold, `true`", (conch(), "elect", "cold", "--", "true"), ("etcdctl", "lock", "cold", "true"), 2.5
        )
        hand_over(field)
        crash(field)
        loss(field)
        idle(field)
        waiters(field)
        looks(field)
