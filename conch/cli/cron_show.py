"""`conch cron ls`, `show` and `history`: print what is in etcd about jobs and their ticks."""

import shlex
import time

from conch.cli.connection_options import COMMON
from conch.cli.cron_client import JSON, CronClient
from conch.cli.cron_table import LAST_TICK_HEAD, due_cell, put_table, tick_cells
from conch.cli.cron_where import Nowhere, live_hosts
from conch.cli.output import json_line, put_json, put_lines
from conch.cli.spec import NAME_ARGUMENT, NAMES_ARGUMENT, Command, Line, Option, int_range
from conch.errors import BadInput, ConchError
from conch.log import escape
from conch.static_typing import TYPE_CHECKING, Any, Iterator, Mapping, Sequence

if TYPE_CHECKING:
    from conch.cron.job import Job

# -- ls -------------------------------------------------------------------------------------------------------


def run_ls(line: Line) -> int:
    """List the jobs."""
    with_last, as_json = line.values["last"], line.values["as_json"]
    objects: list[str] = []
    rows: list[list[str]] = []
    with CronClient(line) as client:
        nowhere = Nowhere(client, live_hosts(client))
        for jobs in pages_of_jobs(client):
            nowhere.add([job for job in jobs if job.next_tick(int(time.time())) is not None])
            last = _last_rows(client, jobs) if with_last else None
            now = time.time()
            for job in jobs:
                next_tick = job.next_tick(int(now))
                newest = None if last is None else last.get(job.name, {})
                if as_json:
                    objects.append(json_line(_job_object(job, next_tick, newest)))
                else:
                    rows.append(_job_cells(job, next_tick, newest, now))
    if objects:
        put_lines(objects)
    nowhere.warn()
    put_table(["NAME", "SCHEDULE", "TZ", "NEXT", *(LAST_TICK_HEAD if with_last else []), "COMMAND"], rows)
    return 0


def pages_of_jobs(client: CronClient) -> "Iterator[Sequence[Job]]":
    """Yield the jobs whose value can be read, in pages; warn of the others."""
    from conch.cron.job import UnreadableJob, parse
    from conch.cron.views import everything, pages
    from conch.keys import JobKey

    for found in pages(client.store, everything(client.keys.cron("job")), timeout_s=client.timeout_s):
        jobs = []
        for kv in found.kvs:
            key = client.keys.parse(kv.key)
            try:
                if not isinstance(key, JobKey):
                    raise UnreadableJob("the key has no valid job name")
                jobs.append(parse(key.name, kv.value))
            except (UnreadableJob, BadInput) as error:
                client.log_unreadable(kv.key.decode("utf-8", "replace"), str(error))
        yield jobs


def _last_rows(client: CronClient, jobs: "Sequence[Job]") -> Mapping[str, Mapping[str, Any]]:
    """Return the row of the newest tick of each job that has one; warn of what cannot be read."""
    from conch.cron.views import last_rows

    names = [job.name for job in jobs]
    last, unreadable = last_rows(client.store, client.keys, names, timeout_s=client.timeout_s)
    for key in unreadable:
        client.log_unreadable(key)
    return last


def _job_cells(job: "Job", next_tick: int | None, newest: Mapping[str, Any] | None, now: float) -> list[str]:
    """Return the cells of a job; `newest` is the row of its newest tick, None without --last."""
    following = due_cell(job, next_tick, now)
    last = [] if newest is None else tick_cells(newest, now)
    return [job.name, job.schedule, job.tz, following, *last, shlex.join(job.cmd)]


def _job_object(job: "Job", next_tick: int | None, newest: Mapping[str, Any] | None) -> dict[str, object]:
    """Return the JSON object of a job; `newest` is the row of its newest tick, None without --last."""
    from conch.times import rfc3339

    data: dict[str, object] = {
        "name": job.name,
        "schedule": job.schedule,
        "tz": job.tz,
        "cmd": list(job.cmd),
        "paused": job.is_paused_at(time.time()),
        "next_tick": None if next_tick is None else rfc3339(next_tick),
    }
    if newest is not None:
        data |= {"last_tick": newest.get("tick")}
        data |= {field: newest.get(field) for field in ("node", "exit", "state", "duration_s")}
    return data


LS = Command(
    "cron ls",
    "List the jobs.",
    (Option(("--last",), "Show the newest tick of each job, too."), JSON, *COMMON),
    run_ls,
    argument=None,
)


# -- show -----------------------------------------------------------------------------------------------------


def run_show(line: Line) -> int:
    """Show jobs; exit 1 if one of them does not exist."""
    from conch.cron.masks import masked

    names = dict.fromkeys(line.values["names"])
    with CronClient(line) as client:
        found = client.jobs().read(names)
    failed = None
    for at, name in enumerate(names):
        try:
            job = client.readable(name, found.get(name))
        except ConchError as error:
            failed = failed or error
            continue
        fields = job.raw if line.values["reveal"] else masked(job.raw)
        if line.values["as_json"]:
            shown = {k: v for k, v in fields.items() if k not in ("name", "rev")}
            put_json({"name": name, **shown, "rev": found[name].revision})
            continue
        texts = {field: _field_text(field, value) for field, value in fields.items()}
        lines = [f"name: {name}", *(escape(f"{field}: {text}") for field, text in texts.items() if text)]
        put_lines([*([""] if at else []), *lines])
    if failed is not None:
        raise failed
    return 0


def _field_text(field: str, value: Any) -> str:
    """Format a field of a job; empty for one that is not set."""
    if value is None:
        return ""
    if field == "cmd":
        return shlex.join(value)
    if field == "env":
        return " ".join(shlex.quote(f"{k}={v}") for k, v in value.items())
    if field in ("schedule", "on", "env_file", "needs") and isinstance(value, list):
        return ("; " if field == "schedule" else " ").join(map(str, value))
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:g}" if isinstance(value, float) else str(value)


SHOW = Command(
    "cron show",
    "Show the definition of jobs. What looks like a secret is masked.",
    (Option(("--reveal",), "Show secrets, too."), JSON, *COMMON),
    run_show,
    NAMES_ARGUMENT,
)


# -- history --------------------------------------------------------------------------------------------------


def run_history(line: Line) -> int:
    """Show a job's newest ticks."""
    from conch.cron.views import history

    name = line.values["name"]
    with CronClient(line) as client:
        rows, unreadable = history(client.store, client.keys, name, line.values["limit"], timeout_s=client.timeout_s)
        if not rows and not unreadable:
            client.read_job(name)  # a job that never ran is no error, an unknown job is
        for key in unreadable:
            client.log_unreadable(key)
    if line.values["as_json"]:
        for row in rows:
            put_json(row)
        return 0
    now = time.time()
    put_table(
        ["TICK", "STATE", "EXIT", "NODE", "STARTED", "TOOK", "ATTEMPT", "REASON"],
        [_history_cells(row, now) for row in rows],
    )
    return 0


def _history_cells(row: Mapping[str, Any], now: float) -> list[str]:
    *tick, took = tick_cells(row, now)
    return [*tick, row["started"] or "-", took, str(row["attempt"] or "-"), row["reason"] or ""]


HISTORY = Command(
    "cron history",
    "Show the newest ticks of a job, newest first.",
    (Option(("-n",), "Number of ticks to show.", int_range(1, 1000), name="limit", default="20"), JSON, *COMMON),
    run_history,
    NAME_ARGUMENT,
)
