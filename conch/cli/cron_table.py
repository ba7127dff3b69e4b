"""Tables of jobs and ticks for people."""

import sys

from conch.cli.output import put_lines
from conch.log import escape
from conch.static_typing import Any, Mapping, Sequence

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
