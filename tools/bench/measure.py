"""Measures processes: time, CPU, memory, wake-ups; and how fast a queue of them drains."""

import os
import secrets
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import psutil

from conch.dev import Cluster
from tests.support.conch import Bench, Wrapper

_JOIN_S = 0.06
_ALL_WAIT_S = 1.5


@contextmanager
def new_bench(mark: str, members: int = 1) -> Iterator[tuple[Bench, Cluster]]:
    """A bench on an etcd of its own. However the measurement ends, no process outlives it."""
    with Cluster(members) as cluster, tempfile.TemporaryDirectory() as folder:
        # others may measure on this machine, too
        bench = Bench(cluster.endpoints, f"{mark}-{secrets.token_hex(4)}", Path(folder))
        try:
            yield bench, cluster
        finally:
            bench.finish()


class Spent(NamedTuple):
    """What one process cost, with all descendants that it waited for."""

    wall_s: float
    cpu_s: float


def spawn(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Start a command whose output nobody reads, as cheaply as possible; return its pid, which is to be reaped."""
    actions = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in range(3)]
    return os.posix_spawnp(command[0], list(command), environment, file_actions=actions)


def spend(command: Sequence[str], environment: Mapping[str, str]) -> Spent:
    """Run a command to its end."""
    began = time.perf_counter()
    _, _, usage = os.wait4(spawn(command, environment), 0)
    return Spent(time.perf_counter() - began, usage.ru_utime + usage.ru_stime)


def in_turn(rounds: int, *runs: Callable[[], Spent]) -> list[list[Spent]]:
    """Run each in turn, so that what else the machine does hits all alike; the first two rounds do not count."""
    found = [[run() for run in runs] for _ in range(rounds + 2)][2:]
    return [list(column) for column in zip(*found, strict=True)]


def hand_overs(bench: Bench, start: Callable[[str], "subprocess.Popen[bytes]"], count: int) -> list[float]:
    """Drain a queue of processes; return the times from one command's end to the next one's start, as they see it.

    `start` gets a shell script to run under the hold.
    """
    log = bench.file(f"chain-{secrets.token_hex(3)}")
    go, script = Path(f"{log}-go"), Path(f"{log}.sh")
    script.write_text(f"a=$(date +%s.%N); while [ ! -e {go} ]; do sleep 0.01; done; echo $a $(date +%s.%N) >> {log}\n")
    started = []
    for _ in range(count):
        started.append(start(str(script)))
        time.sleep(_JOIN_S)
    time.sleep(_ALL_WAIT_S)
    go.touch()
    for process in started:
        process.wait(120)
    times = sorted(tuple(map(float, line.split())) for line in log.read_text().splitlines())
    return [after[0] - before[1] for before, after in pairwise(times)]


def background(bench: Bench, *command: str) -> "subprocess.Popen[bytes]":
    """Start a command whose output nobody reads."""
    null = subprocess.DEVNULL
    return subprocess.Popen(command, env=bench.environment, stdin=null, stdout=null, stderr=null)


def _without_command(pid: int) -> Iterator[psutil.Process]:
    """A process and its descendants, but for the `sleep` that stands for the command."""
    process = psutil.Process(pid)
    return (found for found in [process, *process.children(recursive=True)] if found.name() != "sleep")


def pss_mb(pid: int) -> float:
    """Return the proportional memory of a wrapper without its command."""
    return sum(process.memory_full_info().pss for process in _without_command(pid)) / 1e6


def peak_mb(pid: int) -> float:
    """Return the largest resident memory of each of a wrapper's processes so far, added up.

    The kernel's `ru_maxrss` is of no use here: after exec it still counts the memory of the process that forked.
    """
    return sum(map(_peak_mb, _without_command(pid)))


def _peak_mb(process: psutil.Process) -> float:
    text = Path(f"/proc/{process.pid}/status").read_text()
    return int(text.split("VmHWM:")[1].split()[0]) * 1024 / 1e6


class Activity(NamedTuple):
    """Voluntary context switches of all threads, and CPU time, since the processes started."""

    switches: int
    cpu_s: float


def activity(pid: int) -> Activity:
    """Read the counters of a wrapper without its command."""
    switches, cpu_s = 0, 0.0
    for process in _without_command(pid):
        for task in Path(f"/proc/{process.pid}/task").iterdir():
            text = (task / "status").read_text()
            switches += int(text.split("nonvoluntary")[0].rsplit("voluntary_ctxt_switches:", 1)[1].split()[0])
        cpu_s += process.cpu_times().user + process.cpu_times().system
    return Activity(switches, cpu_s)


def idle(pids: Sequence[int], seconds: float) -> list[tuple[float, float]]:
    """Watch several wrappers at the same time: wake-ups per second and CPU in percent of each."""
    before = [activity(pid) for pid in pids]
    time.sleep(seconds)
    after = [activity(pid) for pid in pids]
    return [
        ((last.switches - first.switches) / seconds, (last.cpu_s - first.cpu_s) / seconds * 100)
        for first, last in zip(before, after, strict=True)
    ]


def daemon_processes(daemon: Wrapper) -> list[psutil.Process]:
    """Return a daemon's two processes, without its runs."""
    return [psutil.Process(daemon.pid), psutil.Process(daemon.keeper())]


def daemon_cpu_s(daemon: Wrapper) -> float:
    """Return the CPU time of a daemon's two processes, without its runs."""
    return sum(process.cpu_times().user + process.cpu_times().system for process in daemon_processes(daemon))


def runs_cpu_s(daemon: Wrapper) -> float:
    """Return the CPU time of a daemon's runs that have ended, from their forks on."""
    times = psutil.Process(daemon.pid).cpu_times()
    return times.children_user + times.children_system


def daemon_pss_mb(daemon: Wrapper) -> float:
    """Return the proportional memory of a daemon's two processes."""
    return sum(process.memory_full_info().pss for process in daemon_processes(daemon)) / 1e6


def daemon_peak_mb(daemon: Wrapper) -> float:
    """Return the largest resident memory of each of a daemon's two processes so far, added up."""
    return sum(map(_peak_mb, daemon_processes(daemon)))
