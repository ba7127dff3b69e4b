"""Which runs live on this host, whoever started them: read from /proc, without etcd.

A process belongs to the innermost run whose id is in its environment (`CONCH_TREE`) or in the name of its cgroup.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import psutil

from conch.core.cgroup import PREFIX
from conch.core.procfs import RUN_ID_VARIABLE

_CGROUP = re.compile(rf"/{PREFIX}([0-9a-f]{{16}})(?=/|$)", re.MULTILINE)
_HOLD = re.compile(r"/(elect|sema)/([^/]+)/(?:([0-9]+)/)?[^/]*$")


@dataclass(slots=True)
class HostRun:
    """A live run: what it holds, the pid of its conch, and what its processes use.

    `hold` is such as `elect web`, `sema build/2` or `cron backup`, empty if its processes do not show it. `since` is in
    Unix seconds, CPU time in seconds, memory (resident, shared pages counted once a process) in bytes.
    """

    run_id: str
    hold: str = ""
    tick: int | None = None
    pid: int = 0
    processes: int = 0
    cpu_s: float = 0.0
    rss_bytes: int = 0
    since: float = 0.0
    cmd: list[str] = field(default_factory=list)


def host_runs() -> list[HostRun]:
    """Return the live runs, the oldest first. Not a snapshot: what starts or ends meanwhile may be missing."""
    members: dict[str, list[psutil.Process]] = {}
    environments: dict[str, Mapping[str, str]] = {}
    for process in psutil.process_iter():
        found = _run_of(process)
        if found is not None:
            run_id, environment = found
            members.setdefault(run_id, []).append(process)
            if environment:
                environments.setdefault(run_id, environment)
    runs = [_describe(run_id, processes, environments.get(run_id, {})) for run_id, processes in members.items()]
    return sorted((run for run in runs if run.processes), key=lambda run: run.since)


def _run_of(process: psutil.Process) -> tuple[str, Mapping[str, str]] | None:
    """Return the innermost run of a process, with its environment if that shows the run; None if it has none."""
    try:
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        environment = process.environ()
        tree = environment.get(RUN_ID_VARIABLE, "")
        if tree:
            return tree.rpartition(",")[2], environment
    except (psutil.Error, OSError):
        pass  # another user's, or it has just ended: its cgroup tells, if it has one
    in_cgroups = list(_cgroups_of(process.pid))
    return (in_cgroups[-1], {}) if in_cgroups else None


def _cgroups_of(pid: int) -> Iterator[str]:
    """Yield the ids of the runs in whose cgroups a process is, the outermost first."""
    try:
        with open(f"/proc/{pid}/cgroup", encoding="utf-8", errors="replace") as file:
            yield from dict.fromkeys(_CGROUP.findall(file.read()))
    except OSError:
        return


def _describe(run_id: str, processes: list[psutil.Process], environment: Mapping[str, str]) -> HostRun:
    run = HostRun(run_id, _hold(environment), _tick(environment))
    pids = {process.pid for process in processes}
    for process in sorted(processes, key=lambda process: process.pid):
        try:
            with process.oneshot():
                times, memory = process.cpu_times(), process.memory_info()
                created, parent, cmd = process.create_time(), process.ppid(), process.cmdline()
                if parent not in pids and parent > 1 and psutil.Process(parent).cmdline() == cmd:
                    continue  # conch's own fork, which has yet to become the command
        except (psutil.Error, OSError):
            continue  # it has just ended
        run.processes += 1
        run.cpu_s += times.user + times.system
        run.rss_bytes += memory.rss
        if not run.since or created < run.since:
            run.since, run.cmd = created, cmd
            run.pid = process.pid if parent in pids or parent <= 1 else parent
    return run


def _hold(environment: Mapping[str, str]) -> str:
    """Say what a run holds, from the variables that conch gives it."""
    name, key = environment.get("CONCH_NAME", ""), environment.get("CONCH_HOLD_KEY", "")
    match = _HOLD.search(key)
    if match is None or ("CONCH_TICK" in environment and "," not in environment[RUN_ID_VARIABLE]):
        return f"cron {name}" if name else ""
    kind, queue, slots = match.groups()
    return f"elect {queue}" if kind == "elect" else f"sema {queue}/{slots}"


def _tick(environment: Mapping[str, str]) -> int | None:
    text = environment.get("CONCH_TICK", "")
    is_job = _hold(environment).startswith("cron ")
    return int(text) if is_job and text.isascii() and text.isdigit() and len(text) <= 10 else None
