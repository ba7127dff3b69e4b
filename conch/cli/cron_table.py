"""Tables of jobs and ticks for people."""

import sys

from conch.cli.output import put_lines
from conch.log import escape
from conch.static_typing import TYPE_CHECKING, Any, Mapping, Sequence

if TYPE_CHECKING:
    from conch.cron.job import Job

LAST_TICK_HEAD = ["LAST", "STATE", "EXIT", "NODE", "TOOK"]


def put_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows in aligned columns below their head; nothing without rows."""
    if not rows:
        return
    cells = [list(head), *([escape(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    put_lines(["  ".join(map(str.ljust, row, widths)).rstrip() for row in cells])


def tick_cells(row: Mapping[str, Any], now: float) -> list[str]:
    """Return the cells of a tick: when it was due, its state, exit code, node, and how long its run took."""
    took = row.get("duration_s")
    return [
        instant(row.get("tick_unix"), now),
        row.get("state") or "-",
        "-" if row.get("exit") is None else str(row["exit"]),
        row.get("node") or "-",
        "-" if took is None or row.get("started") is None else f"{took:.1f}s",
    ]


def due_cell(job: "Job", next_tick: int | None, now: float) -> str:
    """Return when a job is due next, in its zone: with the time until then on a terminal, as RFC 3339 elsewhere."""
    from conch.cli.cron_next import local_time

    if next_tick is None:
        if job.is_paused_at(now):
            return "paused"
        return "expired" if job.expires is not None else "-"
    at = local_time(next_tick, job.tz)
    if sys.stdout is not None and sys.stdout.isatty():
        at = f"{at[:10]} {at[11:19]} ({instant(next_tick, now)})"
    return f"paused until {at}" if job.is_paused_at(now) else at


def instant(tick: int | None, now: float) -> str:
    """Format a tick relative to now on a terminal, as RFC 3339 elsewhere."""
    from conch.times import rfc3339

    if tick is None:
        return "-"
    if sys.stdout is None or not sys.stdout.isatty():
        return rfc3339(tick)
    seconds = abs(tick - now)
    for limit, size, unit in ((90, 1, "s"), (5400, 60, "min"), (129600, 3600, "h")):
        if seconds < limit:
            amount = f"{round(seconds / size)} {unit}"
            break
    else:
        amount = f"{round(seconds / 86400)} days"
    return f"in {amount}" if tick > now else f"{amount} ago"
