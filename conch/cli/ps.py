"""`conch ps`: what runs under conch on this host."""

import shlex

from conch.cli.cron_client import JSON
from conch.cli.output import put_json
from conch.cli.spec import Command, Line
from conch.static_typing import TYPE_CHECKING

if TYPE_CHECKING:
    from conch.core.host_runs import HostRun

_CMD_CHARACTERS = 256


def run(line: Line) -> int:
    """Print the live runs, the oldest first."""
    from conch.cli.cron_table import put_table
    from conch.core.host_runs import host_runs
    from conch.times import rfc3339

    runs = host_runs()
    if line.values["as_json"]:
        for found in runs:
            put_json(
                {
                    "hold": found.hold or None,
                    "tick": None if found.tick is None else rfc3339(found.tick),
                    "pid": found.pid,
                    "processes": found.processes,
                    "cpu_s": round(found.cpu_s, 2),
                    "rss_bytes": found.rss_bytes,
                    "since": rfc3339(found.since),
                    "run": found.run_id,
                    "cmd": shlex.join(found.cmd)[:_CMD_CHARACTERS],
                }
            )
        return 0
    put_table(["HOLD", "PID", "PROCESSES", "CPU", "MEMORY", "SINCE", "COMMAND"], [_cells(found) for found in runs])
    return 0


def _cells(found: "HostRun") -> list[str]:
    from conch.times import rfc3339

    memory = f"{found.rss_bytes / 2**20:.1f} MiB"
    return [
        found.hold or "?",
        *(str(found.pid), str(found.processes), f"{found.cpu_s:.1f}s", memory),
        rfc3339(found.since),
        shlex.join(found.cmd)[:_CMD_CHARACTERS],
    ]


PS = Command(
    "ps",
    "Show what runs under conch on this host.\n\nIt reads /proc and needs no etcd. PID is that of conch itself; the "
    "rest is of the command and all that it started. Without the right to read other users' processes, it shows what "
    "their cgroups show.",
    (JSON,),
    run,
    argument=None,
    examples=(("conch ps", "each run: its hold, its processes, CPU time and memory"),),
)
