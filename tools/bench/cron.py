"""What ticks cost: delay, proposals, many jobs, time at rest. Each measurement has an etcd of its own."""

import time

from tests.support.conch import Wrapper
from tests.support.cron import Fleet, until_second
from tools.bench.daemons import new_fleet, proposals, put_jobs
from tools.bench.measure import daemon_cpu_s
from tools.bench.table import header, ms, row

SECONDS = 40


def delay(hosts: int) -> None:
    """Measure one job a second over several daemons."""
    with new_fleet() as fleet:
        endpoint = fleet.bench.endpoints
        for number in range(hosts):
            fleet.start(f"h{number}")
        fleet.add("j", "@every 1s", "--overlap", "allow", command="date +%s.%N >> log")
        fleet.results("j", 2)
        before, had = proposals(endpoint), len(fleet.ticks("result", "j"))
        fleet.results("j", had + SECONDS, timeout_s=2 * SECONDS)
        cost = (proposals(endpoint) - before) / (len(fleet.ticks("result", "j")) - had)
        delays = [float(line) % 1 for line in fleet.bench.file("log").read_text().split()]
        row(f"delay until the command's first output, {hosts} daemons", ms(delays), f"{cost:.2f} proposals a tick")


def load(fleet: Fleet, daemon: Wrapper, jobs: int, seconds: int) -> tuple[float, int, int]:
    """Watch a daemon for some time: CPU seconds, full seconds, and results of the ticks within those."""
    first = until_second(0.5)
    before = daemon_cpu_s(daemon)
    time.sleep(seconds)
    cpu_s = daemon_cpu_s(daemon) - before
    last = until_second(0.9)
    ran = sum(first < tick < last for number in range(jobs) for tick in fleet.ticks("result", f"j{number}"))
    return cpu_s, last - first - 1, ran


def many(jobs: int, schedule: str, seconds: int) -> None:
    """Measure many jobs on one daemon."""
    with new_fleet() as fleet:
        daemon = fleet.start("h", "--quiet", ready=False)
        put_jobs(fleet, jobs, schedule)
        time.sleep(3)
        cpu_s, watched_s, ran = load(fleet, daemon, jobs, seconds)
        expected = jobs * watched_s if schedule == "@every 1s" else 0
        used = f"{cpu_s / seconds * 100:.1f} % CPU of one core"
        row(f"{jobs} jobs {schedule}", used, f"{expected - ran} of {expected} ticks missed")


def main() -> None:
    """Measure everything about cron."""
    header("cron", "delay, or CPU", "and")
    delay(3)
    delay(5)
    many(200, "@every 1s", 15)
    many(2000, "@hourly", 20)
