"""The full hour: many jobs due in the same second, against a loop of `sh` that starts the same commands."""

import json
import resource
import statistics
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tests.support.conch import Wrapper, boottime
from tests.support.cron import Fleet, once
from tools.bench.daemons import KeyCount, StatusProbe, new_fleet, proposals, put_jobs, start_daemons
from tools.bench.measure import daemon_cpu_s, daemon_peak_mb, runs_cpu_s
from tools.bench.table import header, percentile, row

HOSTS, MORE_HOSTS = 3, 6
MANY = 5000
# Appends its name and the time since boot to the log, without a process of its own for that.
START = 'read up _ </proc/uptime; echo "$CONCH_NAME $up" >>starts'
_START_DEADLINE_S = 3600
# the daemons list and plan the jobs meanwhile; more of them take longer
_AHEAD_S, _AHEAD_PER_JOB_S = 20, 0.004
_SETTLED_S = 2.0


def read_starts(folder: Path, zero: float) -> dict[str, list[float]]:
    """Return by name when each command started, in seconds after `zero` on the clock since boot."""
    found: dict[str, list[float]] = {}
    for line in (folder / "starts").read_text().splitlines():
        name, up = line.split()
        found.setdefault(name, []).append(float(up) - zero)
    return found


class Loop(NamedTuple):
    """A loop of `sh` that started the same commands."""

    delays: list[float]  # from the start of the loop to the starts of the commands
    cpu_ms: float  # a command


def shell_loop(jobs: int) -> Loop:
    """Start the same commands in a loop of `sh`."""
    script = f"i=0; while [ $i -lt {jobs} ]; do CONCH_NAME=j$i sh -c '{START}' & i=$((i+1)); done; wait"
    with tempfile.TemporaryDirectory() as folder:
        used, zero = resource.getrusage(resource.RUSAGE_CHILDREN), boottime()
        subprocess.run(["sh", "-c", script], cwd=folder, check=True, stdin=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        starts = read_starts(Path(folder), zero)
    assert len(starts) == jobs, f"{jobs - len(starts)} commands of the loop did not start"
    cpu_s = after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime
    return Loop([after for times in starts.values() for after in times], cpu_s / jobs * 1000)


class Burst(NamedTuple):
    """What a second with so many jobs cost: all daemons together, until the last result was in etcd."""

    starts: dict[str, list[float]]
    states: Counter[str]  # of the results
    last_result_s: float
    # a tick
    cpu_ms: float
    runs_cpu_ms: float  # of the commands, and of the forks that became them
    proposals: float

    @property
    def delays(self) -> list[float]:
        """From the second of the tick to the starts of the commands."""
        return [after for times in self.starts.values() for after in times]


def burst(fleet: Fleet, daemons: Sequence[Wrapper], jobs: int, overlap: str) -> Burst:
    """Add jobs that are all due in one second, and watch until each has a result, or no more of them come."""
    count, results = KeyCount(fleet), f"{fleet.bench.prefix}/cron/result/"
    tick = int(time.time() + _AHEAD_S + jobs * _AHEAD_PER_JOB_S)
    command = ["sh", "-c", START]
    put_jobs(fleet, jobs, once(tick), cmd=command, overlap=overlap, start_deadline=_START_DEADLINE_S)
    time.sleep(max(0.0, tick - _SETTLED_S - time.time()))
    endpoint = fleet.bench.endpoints
    cpu_s, runs_s, proposed = sum(map(daemon_cpu_s, daemons)), sum(map(runs_cpu_s, daemons)), proposals(endpoint)
    zero = boottime() + tick - time.time()
    time.sleep(max(0.0, tick - time.time()))
    count.wait("result", jobs)
    last_result_s = boottime() - zero
    time.sleep(_SETTLED_S)
    return Burst(
        read_starts(fleet.bench.folder, zero),
        Counter(str(json.loads(value)["state"]) for value, _ in fleet.bench.etcd.get_prefix(results)),
        last_result_s,
        (sum(map(daemon_cpu_s, daemons)) - cpu_s) / jobs * 1000,
        (sum(map(runs_cpu_s, daemons)) - runs_s) / jobs * 1000,
        (proposals(endpoint) - proposed) / jobs,
    )


def hour(jobs: int, hosts: int, overlap: str) -> Burst:
    """Measure one second on a fleet of its own."""
    with new_fleet() as fleet:
        return burst(fleet, start_daemons(fleet, hosts), jobs, overlap)


def fates(found: Burst, jobs: int) -> str:
    """Say what became of the ticks: each should have started once and have the result `ok`."""
    states = "".join(f"{number} {state}, " for state, number in found.states.most_common())
    twice = sum(len(times) > 1 for times in found.starts.values())
    missing = f"{jobs - found.states.total()} without, {jobs - len(found.starts)} not started"
    return f"{states}{missing}, {twice} started twice"


def starts_against(found: Burst, loops: Sequence[Loop], what: str) -> None:
    """Compare the starts with those of the loop."""
    for name, share, limit in (("last start", 1.0, 5), ("median start", 0.5, 3)):
        ours = percentile(found.delays, share)
        other = statistics.median(percentile(loop.delays, share) for loop in loops)
        beside = f"{other:.2f} s (loop of `sh`)"
        row(f"{what}: {name}", f"{ours:.2f} s", beside, f"{ours / other:.2f}", f"at most {limit}")


def costs(jobs: int) -> None:
    """A thousand jobs: three daemons with each overlap policy, then twice as many daemons."""
    loops, found = [], []
    for hosts, overlap in ((HOSTS, "forbid"), (HOSTS, "allow"), (MORE_HOSTS, "forbid")):
        loops.append(shell_loop(jobs))
        found.append(hour(jobs, hosts, overlap))
    forbid, allow, more = found
    what = f"{jobs} jobs, {HOSTS} daemons"
    starts_against(forbid, loops, f"{what}, `forbid`")
    starts_against(allow, loops, f"{what}, `allow`")
    for overlap, cost in (("forbid", forbid), ("allow", allow)):
        row(f"{what}, `{overlap}`: results", fates(cost, jobs), "-", "-", f"{jobs} ok, no others")
        row(f"{what}, `{overlap}`: CPU a tick", f"{cost.cpu_ms:.2f} ms", "-", "-", "at most 6 ms")
        loop_ms = statistics.median(loop.cpu_ms for loop in loops)
        runs = f"{cost.runs_cpu_ms:.2f} ms", f"{loop_ms:.2f} ms (loop of `sh`)", f"{cost.runs_cpu_ms / loop_ms:.2f}"
        row(f"{what}, `{overlap}`: CPU of forks and commands a tick", *runs, "-")
        row(f"{what}, `{overlap}`: proposals a tick", f"{cost.proposals:.3f}", "-", "-", "at most 0.3")
    what, beside = f"{jobs} jobs, {MORE_HOSTS} daemons", f"({HOSTS} daemons)"
    starts_against(more, loops, f"{what}, `forbid`")
    cpu = f"{more.cpu_ms:.2f} ms", f"{forbid.cpu_ms:.2f} ms {beside}", f"{more.cpu_ms / forbid.cpu_ms:.2f}"
    row(f"{what}: CPU a tick", *cpu, "at most 1.3")
    times = f"{more.proposals / forbid.proposals:.2f}"
    proposed = f"{more.proposals:.3f}", f"{forbid.proposals:.3f} {beside}", times
    row(f"{what}: proposals a tick", *proposed, "at most 1.3")


def flood(jobs: int) -> None:
    """Many more jobs than a second can start: nothing is lost, and the daemons answer and renew meanwhile."""
    with new_fleet() as fleet:
        daemons = start_daemons(fleet, HOSTS, "--status-addr", "0")
        with StatusProbe(daemons) as probe:
            rest_mb = max(map(daemon_peak_mb, daemons))
            found = burst(fleet, daemons, jobs, "forbid")
            peak_mb = max(map(daemon_peak_mb, daemons))
        what = f"{jobs} jobs, {HOSTS} daemons"
        row(f"{what}: results", fates(found, jobs), "-", "-", f"{jobs} ok, no others")
        row(f"{what}: missed", str(probe.missed()), "-", "-", "0")
        row(
            f"{what}: last start, last result", f"{max(found.delays):.1f} s, {found.last_result_s:.1f} s", "-", "-", "-"
        )
        row(f"{what}: cost a tick", f"{found.cpu_ms:.2f} ms CPU, {found.proposals:.3f} proposals", "-", "-", "-")
        slowest = f"{probe.slowest_s:.2f} s, {probe.unhealthy}"
        row(f"{what}: slowest `/healthz`", slowest, "-", "-", "at most 1 s, 0")
        lost = sum(daemon.err.count("event=registration-lost") for daemon in daemons)
        late = sum(daemon.err.count("event=renew-failed") for daemon in daemons)
        lease = f"{probe.lowest_lease_s:.1f} s left at least, {late} renewals failed, {lost} holds lost"
        row(f"{what}: leases of 10 s", lease, "-", "-", "more than 4 s, 0, 0")
        memory = f"{peak_mb:.0f} MB", f"{rest_mb:.0f} MB (without jobs)", f"{peak_mb / rest_mb:.2f}"
        row(f"{what}: peak memory of a daemon (RSS)", *memory, "bounded")


def main(jobs: int, many: int) -> None:
    """Measure the full hour."""
    header("the full hour", "figure", "compared to", "ratio", "wanted")
    costs(jobs)
    if many:
        flood(many)
