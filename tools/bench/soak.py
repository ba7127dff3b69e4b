"""Long lives: a wrapper through many changes of leaders, and a daemon through many runs.

Exits 1 unless memory, descriptors and threads stay flat.
"""

import itertools
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator

from conch.dev import Cluster
from conch.errors import ConchError
from conch.etcd.store import KeyValue, Range
from conch.keys import prefix_end
from tests.support.conch import Bench, Wrapper, new_store, wait_for
from tests.support.cron import Fleet
from tests.support.members import move_leader
from tools.bench.daemons import metrics_when_idle, start_daemons
from tools.bench.flat import Life, failures
from tools.bench.measure import new_bench
from tools.bench.table import header, row

SAMPLE_EVERY_S = 2.0
START_S = 60.0
OFFICE = "soak"
# Each is due every second; the last two end in time-outs and failures.
JOBS: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("allowed", ("--overlap", "allow"), "echo allowed"),
    ("forbidden", ("--overlap", "forbid"), "sleep 0.3"),
    ("overlapping", ("--overlap", "forbid"), "sleep 1.2"),
    ("replaced", ("--overlap", "replace"), "sleep 1.2"),
    ("limited", ("--overlap", "allow", "--sema", "slots:2"), "sleep 0.1"),
    ("failed", ("--overlap", "allow", "--retries", "1", "--retry-delay", "0.2s"), "exit 3"),
    ("stuck", ("--overlap", "allow", "--run-ttl", "0.5s", "--kill-after", "0.2s"), "trap '' TERM; sleep 100"),
)


class Contenders:
    """Two wrappers that queue for one office for ever. The first lives as long as the soak; the other is replaced."""

    def __init__(self, bench: Bench, cluster: Cluster) -> None:
        self._bench = bench
        self._cluster = cluster
        self._store = new_store(bench.endpoints)
        self.changes: Counter[str] = Counter()
        self.long_lived = self._start("child-start")
        self._rival = self._start()
        self._kinds: Iterator[Callable[[], None]] = itertools.cycle(
            (self._revoke, self._kill_rival, self._move, self._kill_command, self._kill_member)
        )

    def _start(self, ready: str = "queued") -> Wrapper:
        flags = ("--restart", "--restart-min", "0.1s", "--restart-max", "0.5s", "--ttl", "10s")
        wrapper = self._bench.start("elect", OFFICE, *flags, "--", "sleep", "100000")
        wrapper.wait_event(ready, timeout_s=START_S)
        return wrapper

    def change(self) -> None:
        """Make the next change: of the office's leader, or of etcd's."""
        kind = next(self._kinds)
        kind()
        self.changes[kind.__name__.strip("_").replace("_", " ")] += 1

    def _leader(self) -> KeyValue:
        """Return the key of the contender that leads the office."""
        prefix = f"{self._bench.prefix}/elect/{OFFICE}/".encode()

        def first() -> KeyValue | None:
            try:
                found = self._store.range(Range(prefix, prefix_end(prefix), oldest_first=True, limit=1), timeout_s=5)
            except ConchError:
                return None  # etcd elects a leader
            return found.kvs[0] if found.kvs else None

        leader = wait_for(first, "a leader of the office", 60)
        assert leader is not None
        return leader

    def _revoke(self) -> None:
        self._store.revoke(self._leader().lease, timeout_s=10)

    def _kill_rival(self) -> None:
        self._rival.kill()
        self._rival = self._start()

    def _kill_command(self) -> None:
        holder = self.long_lived if f'"pid": {self.long_lived.pid},' in self._leader().value.decode() else self._rival
        os.kill(int(holder.events("child-start")[-1]["pid"]), signal.SIGKILL)

    def _move(self) -> None:
        move_leader(self._cluster)

    def _kill_member(self) -> None:
        member = self._cluster.members[self.changes.total() % len(self._cluster.members)]
        self._cluster.restart(member)
        self._cluster.wait_ready()

    def end(self) -> None:
        """End both in order."""
        for wrapper in (self._rival, self.long_lived):
            wrapper.signal(signal.SIGTERM)
            wrapper.wait(60)


def soak(bench: Bench, cluster: Cluster, minutes: float, changes: int) -> int:
    """Watch both lives for so long, and print them; return how many figures were not flat."""
    contenders, fleet = Contenders(bench, cluster), Fleet(bench)
    (daemon,) = start_daemons(fleet, 1, "--status-addr", "0")
    for name, flags, command in JOBS:
        fleet.add(name, "@every 1s", *flags, command=command)
    lives = [Life("wrapper", contenders.long_lived), Life("conchd", daemon)]
    began = time.monotonic()
    until, every_s = began + minutes * 60, minutes * 60 / changes
    while (now := time.monotonic()) < until:
        if now >= began + (contenders.changes.total() + 0.5) * every_s:
            contenders.change()
        for life in lives:
            life.sample()
        time.sleep(SAMPLE_EVERY_S)
    header(f"{minutes:g} minutes", "first third", "last third", "growth", "wanted")
    found = sum(failures(life) for life in lives)
    row("leader changes", ", ".join(f"{n} {kind}" for kind, n in contenders.changes.items()), "-", "-", "-")
    held = len(contenders.long_lived.events("acquired"))
    row("times that the wrapper held", str(held), "-", "-", "-")
    text = metrics_when_idle(daemon.wait_event("status")["addr"])
    runs = [line for line in text.splitlines() if line.startswith("conch_runs_total{")]
    states = ((line.split('"')[1], int(float(line.split()[1]))) for line in runs)
    row("runs", ", ".join(f"{number} {state}" for state, number in states if number), "-", "-", "-")
    contenders.end()
    fleet.clean()
    return found


def main(minutes: float, changes: int) -> None:
    """Exit 1 where something is not flat."""
    with new_bench("soak", members=3) as (bench, cluster):
        if soak(bench, cluster, minutes, changes):
            sys.exit(1)
