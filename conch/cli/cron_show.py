"""Looking at jobs: the session that all of `conch cron` uses, its tables, and `conch cron ls`."""

import shlex
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence

from conch.cli.connection_options import settings
from conch.cli.spec import COMMON, Command, Line, Option
from conch.errors import EXIT_NO, BadInput, ConchError
from conch.etcd.connection import Settings
from conch.log import Log, escape
from conch.static_typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from conch.cron.job import Job
    from conch.etcd.store import Store


class Session:
    """One command's dealings with etcd."""

    def __init__(self, values: dict[str, Any], given: Collection[str]) -> None:
        """`values` and `given` are of the command line."""
        self.common: Settings = settings(values, given)
        self.log = Log(quiet=self.common.quiet, form=self.common.log_format)
        self.keys = self.common.keys
        connection = self.common.connection
        self.timeout_s = min(connection.dial_timeout_s, connection.command_timeout_s)

    def __enter__(self) -> "Session":
        from conch.cli.exit import guard_threads
        from conch.etcd.open import open_store

        guard_threads()
        self.store: Store = open_store(self.common.connection)
        return self

    def __exit__(self, *_: object) -> None:
        self.store.close()

    def read(self, name: str) -> "tuple[Job, int]":
        """The job and its mod-revision; exit 1 if there is none."""
        from conch.cron.job import UnreadableJob, parse
        from conch.etcd.store import Range

        key = self.keys.cron("job", name)
        found = self.store.range(Range(key.encode()), timeout_s=self.timeout_s).kvs
        if not found:
            raise ConchError(f"there is no job {name}", code=EXIT_NO)
        try:
            return parse(name, found[0].value), found[0].mod_revision
        except UnreadableJob as error:
            raise ConchError(f"job {name} cannot be read ({key}): {error}") from None


def ls(line: Line) -> int:
    """List the jobs."""
    values = dict(line.values)
    from conch.cli.output import put_json, put_line
    from conch.cron.job import UnreadableJob, parse
    from conch.cron.views import everything, last_rows
    from conch.keys import JobKey
    from conch.times import rfc3339

    with Session(values, line.given) as session:
        found = session.store.range(everything(session.keys.cron("job")), timeout_s=session.timeout_s).kvs
        jobs = []
        for kv in found:
            job_key = session.keys.parse(kv.key)
            try:
                if not isinstance(job_key, JobKey):
                    raise UnreadableJob("no name of a job")
                jobs.append(parse(job_key.name, kv.value))
            except (UnreadableJob, BadInput) as error:
                session.log("warning", "unreadable", key=kv.key.decode("utf-8", "replace"), msg=str(error))
        last: Mapping[str, Mapping[str, Any]] = {}
        if values["last"]:
            last, bad = last_rows(session.store, session.keys, [j.name for j in jobs], timeout_s=session.timeout_s)
            for key in bad:
                session.log("warning", "unreadable", key=key)
    now = time.time()
    rows = []
    for job in jobs:
        following = None if job.paused else job.ticks().next_after(int(now))
        data: dict[str, object] = {
            "name": job.name,
            "schedule": job.schedule,
            "tz": job.tz,
            "cmd": list(job.cmd),
            "paused": job.paused,
            "next_tick": None if following is None else rfc3339(following),
        }
        newest = last.get(job.name, {})
        if values["last"]:
            data |= {"last_tick": newest.get("tick")}
            data |= {field: newest.get(field) for field in ("node", "exit", "state", "duration_s")}
        if values["as_json"]:
            put_json(data)
            continue
        cells = [job.name, job.schedule, job.tz, "paused" if job.paused else when(following, now)]
        if values["last"]:
            cells += last_cells(newest, now)
        rows.append([*cells, shlex.join(job.cmd)])
    if rows:
        head = [
            "NAME",
            "SCHEDULE",
            "TZ",
            "NEXT",
            *(["LAST", "STATE", "EXIT", "NODE", "TOOK"] if values["last"] else []),
        ]
        table([*head, "COMMAND"], rows, put_line)
    return 0


COMMAND = Command(
    "cron ls",
    "List the jobs.",
    "",
    (
        Option(("--last",), "With the newest tick of each."),
        Option(("--json",), "One object a line.", name="as_json"),
        *COMMON,
    ),
    ls,
    alone=True,
)


# -- tables -----------------------------------------------------------------------------------------------


def when(tick: int | None, now: float) -> str:
    """A moment as people want it on a terminal, RFC 3339 elsewhere."""
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


def last_cells(row: Mapping[str, Any], now: float) -> list[str]:
    took = row.get("duration_s")
    return [
        when(row.get("tick_unix"), now),
        row.get("state") or "-",
        "-" if row.get("exit") is None else str(row["exit"]),
        row.get("node") or "-",
        "-" if took is None or row.get("started") is None else f"{took:.1f}s",
    ]


def table(head: Sequence[str], rows: Sequence[Sequence[str]], put: Callable[[str], None]) -> None:
    cells = [list(head), *([escape(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    for row in cells:
        put("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
