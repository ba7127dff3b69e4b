"""This version of conch and another one, in turn on one etcd: the ratios of what they cost."""

import signal
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from conch.dev import Cluster
from tests.support.conch import CONCH, Bench
from tests.support.cron import Fleet
from tools.bench.daemons import put_jobs
from tools.bench.measure import background, hand_overs, idle, in_turn, peak_mb, pss_mb, spend
from tools.bench.steady import load
from tools.bench.table import header, ms, ratio, row

ROUNDS = 40
CHAIN = 25
IDLE_S = 20
JOBS, LOAD_S = 50, 15


class Pair:
    """The two commands, each with a prefix of its own on the same etcd."""

    def __init__(self, cluster: Cluster, folder: Path, other: str) -> None:
        self.programs = (CONCH, other)
        self.benches = tuple(Bench(cluster.endpoints, name, folder / name) for name in ("ours", "other"))
        for bench in self.benches:
            bench.folder.mkdir()

    def __iter__(self) -> "zip[tuple[Bench, str]]":
        return zip(self.benches, self.programs, strict=True)


def table_row(what: str, show: Callable[[float], str], ours: float, other: float) -> None:
    row(what, show(ours), show(other), ratio([ours], [other]))


def cold(pair: Pair) -> None:
    """Processes from start to end: wall time and CPU time."""
    for arguments in (("elect", "cold", "--", "true"), ("sema", "cold", "--max", "2", "--", "true"), ("cron", "ls")):
        runs = [partial(spend, (program, *arguments), bench.environment) for bench, program in pair]
        ours, other = in_turn(ROUNDS, *runs)
        name = " ".join(arguments)
        compare(f"`{name}`, wall time", ms, [spent.wall_s for spent in ours], [spent.wall_s for spent in other])
        compare(f"`{name}`, CPU time", ms, [spent.cpu_s for spent in ours], [spent.cpu_s for spent in other])


def compare(what: str, show: Callable[[list[float]], str], ours: list[float], other: list[float]) -> None:
    row(what, show(ours), show(other), ratio(ours, other))


def chain(pair: Pair) -> None:
    """Hand-overs in a queue, two queues of each version in turn."""
    found: tuple[list[float], list[float]] = ([], [])
    for _ in range(2):
        for times, (bench, program) in zip(found, pair, strict=True):
            command = partial(background, bench, program, "elect", "chain", "--", "sh")
            times += hand_overs(bench, command, CHAIN)
    compare(f"hand-over in a chain of {CHAIN}", ms, *found)


def at_rest(pair: Pair) -> None:
    """Memory and wake-ups while holding, both at the same time."""
    holders = [bench.hold("rest", program=[program]) for bench, program in pair]
    time.sleep(2)
    table_row("memory while holding (PSS)", "{:.1f} MB".format, *(pss_mb(holder.pid) for holder in holders))
    table_row("peak memory until then (RSS)", "{:.1f} MB".format, *(peak_mb(holder.pid) for holder in holders))
    (ours_wakes, ours_cpu), (other_wakes, other_cpu) = idle([holder.pid for holder in holders], IDLE_S)
    table_row("wake-ups while holding, TTL 10 s", "{:.2f}/s".format, ours_wakes, other_wakes)
    table_row("CPU while holding", "{:.3f} %".format, ours_cpu, other_cpu)
    for holder in holders:
        holder.signal(signal.SIGTERM)
        holder.wait()


def ticks(pair: Pair) -> None:
    """CPU of conchd per tick, two spells of each version in turn."""
    costs: tuple[list[float], list[float]] = ([], [])
    for _ in range(2):
        for cost, (bench, program) in zip(costs, pair, strict=True):
            fleet = Fleet(bench)
            daemon = fleet.start("h", "--quiet", ready=False, program=[program])
            put_jobs(fleet, JOBS, "@every 1s")
            time.sleep(3)
            cpu_s, _, ran = load(fleet, daemon, JOBS, LOAD_S)
            cost.append(cpu_s / ran)
            fleet.clean()
    compare(f"conchd's CPU per tick, {JOBS} jobs `@every 1s`", ms, *costs)


def main(other: Path) -> None:
    """Compare with the version in another checkout, which has a virtual environment of its own in `.venv`."""
    with Cluster() as cluster, tempfile.TemporaryDirectory() as folder:
        pair = Pair(cluster, Path(folder), str(other / ".venv/bin/conch"))
        header("what", "this version", str(other), "ratio")
        for measure in (cold, chain, at_rest, ticks):
            measure(pair)
