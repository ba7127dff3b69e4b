"""What ticks cost: lag, proposals, many jobs, idle time. Each on an etcd of its own."""

import json
import secrets
import tempfile
import time
import urllib.request
from pathlib import Path

import psutil

from conch.dev import Cluster
from tests.support.conch import Bench, Wrapper
from tests.support.cron import Fleet, until_second
from tools.bench.table import ms, row

SECONDS = 40


def proposals(endpoint: str) -> float:
    """How many raft proposals etcd has committed."""
    with urllib.request.urlopen(f"http://{endpoint}/metrics", timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    return next(float(one.split()[1]) for one in lines if one.startswith("etcd_server_proposals_committed_total"))


def cpu_s(daemon: Wrapper) -> float:
    """CPU time of a daemon's two processes, without what it ran."""
    processes = [psutil.Process(daemon.pid), psutil.Process(daemon.keeper())]
    return sum(one.cpu_times().user + one.cpu_times().system for one in processes)


def lag(hosts: int) -> None:
    """One job a second over several daemons."""
    with Cluster() as cluster, tempfile.TemporaryDirectory() as folder:
        fleet = Fleet(Bench(cluster.endpoints, secrets.token_hex(4), Path(folder)))
        for number in range(hosts):
            fleet.start(f"h{number}")
        fleet.add("j", "@every 1s", "--overlap", "allow", command="date +%s.%N >> log")
        fleet.results("j", 2)
        before, had = proposals(cluster.endpoints), len(fleet.ticks("result", "j"))
        fleet.results("j", had + SECONDS, timeout_s=2 * SECONDS)
        cost = (proposals(cluster.endpoints) - before) / (len(fleet.ticks("result", "j")) - had)
        lags = [float(line) % 1 for line in fleet.bench.file("log").read_text().split()]
        row(f"cron: lag to the child's first word, {hosts} daemons", ms(lags), f"{cost:.2f} proposals a tick")
        fleet.clean()


def many(jobs: int, schedule: str, seconds: int) -> None:
    """Many jobs on one daemon."""
    with Cluster() as cluster, tempfile.TemporaryDirectory() as folder:
        fleet = Fleet(Bench(cluster.endpoints, secrets.token_hex(4), Path(folder)))
        daemon = fleet.start("h", "--quiet", ready=False)
        job = json.dumps({"schedule": schedule, "cmd": ["true"], "overlap": "allow"})
        for number in range(jobs):
            fleet.bench.etcd.put(f"{fleet.bench.prefix}/cron/job/j{number}", job)
        time.sleep(3)
        first = until_second(0.5)
        before = cpu_s(daemon)
        time.sleep(seconds)
        used = (cpu_s(daemon) - before) / seconds * 100
        last = until_second(0.9)
        ran = [len([t for t in fleet.ticks("result", f"j{n}") if first < t < last]) for n in range(jobs)]
        expected = jobs * (last - first - 1) if schedule == "@every 1s" else 0
        row(
            f"cron: {jobs} jobs {schedule}",
            f"{used:.1f} % CPU of one core",
            f"{expected - sum(ran)} of {expected} ticks missed",
        )
        fleet.clean()


def main() -> None:
    """All of it."""
    lag(3)
    lag(5)
    many(200, "@every 1s", 15)
    many(2000, "@hourly", 20)
