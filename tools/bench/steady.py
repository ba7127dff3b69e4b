"""What a daemon costs from day to day: ticks every second, and many jobs that rest."""

import json
import statistics
import time
import urllib.request
from functools import partial
from typing import NamedTuple

import psutil

from tests.support.conch import CONCH, Wrapper
from tests.support.cron import Fleet, until_second
from tools.bench.daemons import new_fleet, put_jobs, start_daemons
from tools.bench.measure import Spent, daemon_cpu_s, daemon_pss_mb, in_turn, spend
from tools.bench.table import header, ms, ratio, row

BUSY, BUSY_S = 200, 15
RESTING, RESTING_S = 10_000, 30
# The first sweep of the history takes less time than this.
_SWEEP_S = 60
LISTINGS = 3
_LOOK_EVERY_S = 0.02
# A daemon that has used no more than one clock tick in this time has nothing left to do.
_QUIET_S, _QUIET_CPU_S = 0.5, 0.011


def load(fleet: Fleet, daemon: Wrapper, jobs: int, seconds: int) -> tuple[float, int, int]:
    """Watch a daemon for some time: CPU seconds, full seconds, and results of the ticks within those."""
    first = until_second(0.5)
    before = daemon_cpu_s(daemon)
    time.sleep(seconds)
    cpu_s = daemon_cpu_s(daemon) - before
    last = until_second(0.9)
    ran = sum(first < tick < last for number in range(jobs) for tick in fleet.ticks("result", f"j{number}"))
    return cpu_s, last - first - 1, ran


def shell_cpu_s(commands: int) -> float:
    """Return the CPU time that a loop of `sh` takes for one `true`."""
    script = f"i=0; while [ $i -lt {commands} ]; do env true; i=$((i+1)); done"
    return statistics.median(spend(("sh", "-c", script), {}).cpu_s for _ in range(5)) / commands


def busy() -> None:
    """Many jobs that run `true` every second."""
    with new_fleet() as fleet:
        (daemon,) = start_daemons(fleet, 1)
        shell_s = shell_cpu_s(BUSY)
        put_jobs(fleet, BUSY, "@every 1s")
        time.sleep(3)
        cpu_s, watched_s, ran = load(fleet, daemon, BUSY, BUSY_S)
    what = f"{BUSY} jobs `@every 1s`"
    beside = f"{shell_s * 1000:.2f} ms (loop of `sh`)"
    # what was missed cost next to nothing
    tick_s = (cpu_s / BUSY_S) / (ran / watched_s)
    row(f"{what}: CPU a tick", f"{tick_s * 1000:.2f} ms", beside, ratio([tick_s], [shell_s]), "at most 2 ms")
    expected = BUSY * watched_s
    row(f"{what}: missed", f"{expected - ran} of {expected} ticks", "-", "-", "none")


def start_up_s(daemon: Wrapper, began: float) -> float:
    """Wait until a daemon that has just been started rests, and return how long it was busy."""
    daemon.wait_event("registered", timeout_s=60)
    processes = [psutil.Process(daemon.pid), psutil.Process(daemon.keeper())]
    changed_at, used_s = time.monotonic(), 0.0
    while time.monotonic() - changed_at < _QUIET_S:
        time.sleep(_LOOK_EVERY_S)
        now_s = sum(sum(process.cpu_times()[:2]) for process in processes)
        if now_s - used_s > _QUIET_CPU_S:
            changed_at, used_s = time.monotonic(), now_s
    return changed_at - began


class Rest(NamedTuple):
    """A daemon that has nothing to run."""

    start_up_s: float
    pss_mb: float
    cpu_percent: float


def rest(fleet: Fleet, jobs: int) -> Rest:
    """Start a daemon, leave it alone for a while, check that it has planned each job, and end it."""
    began = time.monotonic()
    daemon = fleet.start("h", "--status-addr", "0", ready=False)
    started_s = start_up_s(daemon, began)
    if jobs:
        time.sleep(_SWEEP_S)
    before = daemon_cpu_s(daemon)
    time.sleep(RESTING_S)
    found = Rest(started_s, daemon_pss_mb(daemon), (daemon_cpu_s(daemon) - before) / RESTING_S * 100)
    with urllib.request.urlopen(f"http://{daemon.wait_event('status')['addr']}/cron", timeout=30) as answer:
        planned = sum(job["next_tick"] is not None for job in json.load(answer)["jobs"])
    assert planned == jobs, f"{planned} of {jobs} jobs are planned"
    daemon.process.terminate()
    daemon.wait()
    return found


def new_year(number: int) -> str:
    """Return a schedule in the first hours of a year; few jobs have the same."""
    return f"{number % 60} {number // 60 % 24} 1 1 *"


def resting() -> None:
    """Many jobs that are due once a year, against a daemon that has none."""
    with new_fleet() as fleet:
        none = rest(fleet, 0)
        put_jobs(fleet, RESTING, new_year)
        many = rest(fleet, RESTING)
        listings: list[list[Spent]] = in_turn(
            LISTINGS,
            *(
                partial(spend, command, fleet.bench.environment)
                for command in (
                    (CONCH, "cron", "ls"),
                    ("etcdctl", "get", "--prefix", f"{fleet.bench.prefix}/cron/job/"),
                )
            ),
        )
    what = f"{RESTING} jobs that rest"

    def compare(name: str, form: str, ours: float, other: float, limit: str) -> None:
        beside = f"{form.format(other)} (no jobs)"
        row(f"{what}: {name}", form.format(ours), beside, ratio([ours], [other]), limit)

    compare("start until all are planned", "{:.2f} s", many.start_up_s, none.start_up_s, "at most 3 s")
    compare("memory of the daemon (PSS)", "{:.0f} MB", many.pss_mb, none.pss_mb, "at most 120 MB")
    compare("CPU", "{:.2f} %", many.cpu_percent, none.cpu_percent, "at most 0.5 %")
    ours, get = ([spent.wall_s for spent in column] for column in listings)
    row(f"{what}: `cron ls`", ms(ours), f"{ms(get)} (etcdctl get)", ratio(ours, get), "at most 2 s")


def main() -> None:
    """Measure steady work and rest."""
    header("from day to day, one daemon", "figure", "compared to", "ratio", "wanted")
    busy()
    resting()
