"""How fast conch starts: one alone, and three hundred at the same moment, in turn with `etcdctl lock`."""

import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from tests.support.conch import CONCH, Bench
from tools.bench.measure import in_turn, new_bench, spawn, spend
from tools.bench.table import header, ms, ratio, row

ROUNDS = 40
SERVICES, SERVICE_ROUNDS = 300, 2
PYTHON = (sys.executable, "-I", "-c", "")


def one_process(bench: Bench, what: str, ours: Sequence[str], theirs: Sequence[str], wall: float, cpu: float) -> None:
    """Compare processes from start to end: wall time and CPU time."""
    columns = in_turn(ROUNDS, *(partial(spend, tuple(command), bench.environment) for command in (ours, theirs)))
    for name, limit, pick in (("wall", wall, 0), ("CPU", cpu, 1)):
        mine, other = ([spent[pick] for spent in column] for column in columns)
        row(f"{what}, {name} time", ms(mine), ms(other), ratio(mine, other), f"at most {limit}")


class Start(NamedTuple):
    """Many processes that were started at the same moment."""

    wall_s: float  # until the last has ended
    failed: int


def together(bench: Bench, command: Callable[[int], Sequence[str]]) -> Start:
    """Start a command for each service, and wait for all of them."""
    began = time.perf_counter()
    pids = [spawn(command(number), bench.environment) for number in range(SERVICES)]
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    return Start(time.perf_counter() - began, sum(code != 0 for code in codes))


def services(bench: Bench) -> None:
    """Every service has an office of its own."""
    ours, theirs = [], []
    for _ in range(SERVICE_ROUNDS):
        theirs.append(together(bench, lambda number: ("etcdctl", "lock", f"service{number}", "true")))
        ours.append(together(bench, lambda number: (CONCH, "elect", f"service{number}", "--", "true")))
    ours_s, theirs_s = ([start.wall_s for start in starts] for starts in (ours, theirs))
    shown = (f"{statistics.median(times):.2f} s" for times in (ours_s, theirs_s))
    row(f"{SERVICES} at the same moment, until the last has ended", *shown, ratio(ours_s, theirs_s), "at most 2.5")
    failed = (f"{sum(start.failed for start in starts)} of {SERVICES * SERVICE_ROUNDS}" for starts in (ours, theirs))
    row(f"{SERVICES} at the same moment, not served", *failed, "-", "none")


def main() -> None:
    """Measure starts."""
    with new_bench("boot") as (bench, _):
        header("starts", "conch", "etcdctl", "ratio", "wanted")
        one_process(
            bench, "cold, `true`", (CONCH, "elect", "cold", "--", "true"), ("etcdctl", "lock", "cold", "true"), 2, 2.5
        )
        services(bench)
        header("without etcd", "conch", "Python alone", "ratio", "wanted")
        for option in ("--version", "--help"):
            one_process(bench, f"`conch {option}`", (CONCH, option), PYTHON, 2, 2)
