"""`conch cron next`: print the next ticks of a schedule."""

import re
import time
from datetime import datetime
from functools import partial

from conch.cli.connection_options import COMMON
from conch.cli.cron_client import JSON, CronClient
from conch.cli.output import put_json, put_line, put_lines
from conch.cli.spec import NAME, TEXT, Argument, Command, Kind, Line, Option, Usage, int_range
from conch.errors import BadInput
from conch.keys import is_name
from conch.static_typing import TYPE_CHECKING, Callable, Sequence

if TYPE_CHECKING:
    from conch.cron.job import Job


def _instant(text: str) -> int:
    try:
        when = datetime.fromisoformat(re.sub("[zZ]$", "+00:00", text))
        if when.tzinfo is None or "T" not in text.upper():
            raise ValueError("no offset")
        return int(when.timestamp())
    except (ValueError, OverflowError):
        raise BadInput(f"{text!r} is not RFC 3339: write 2026-01-31T12:00:00Z") from None


INSTANT = Kind("instant", _instant)


def run(line: Line) -> int:
    """Print the next ticks of an expression, or of a job in etcd."""
    from conch.cron.schedule import parse_schedules
    from conch.times import rfc3339

    values = line.values
    expression, name = values["expression"], values["job"]
    if (expression is None) == (name is None):
        raise Usage(NEXT.path, "give either an expression or --job NAME")
    client = CronClient(line)
    zone = "UTC" if values["tz"] is None else values["tz"]
    job = None
    if name is None:
        expressions: Sequence[str] = (_check_expression(expression),)
        next_after = parse_schedules(expressions, zone=zone).next_after
    else:
        with client:
            job = client.read_job(name)[0]
        zone, expressions = job.tz if values["tz"] is None else values["tz"], job.schedules
        schedule = parse_schedules(expressions, zone=zone, name=name, until=job.expires)
        is_paused = job.paused and job.paused_until is None
        next_after = schedule.next_after if is_paused else partial(job.next_tick, schedule=schedule)
    after = int(time.time()) if values["after"] is None else values["after"]
    if values["explain"]:
        put_lines([*_explanation(expressions, zone, job), *_clock_changes(expressions, zone, name, after)])
        return 0
    found = ticks(next_after, after, values["limit"])
    for tick in found:
        if values["as_json"]:
            put_json({"tick": rfc3339(tick), "tick_unix": tick, "local": local_time(tick, zone)})
        else:
            put_line(local_time(tick, zone))
    if not found and job is not None:
        why = "it has expired" if job.expires is not None else "none follows"
        client.log("warning", "no-ticks", job=job.name, msg=why)
    return 0


def _check_expression(expression: str) -> str:
    from conch.cron.schedule_advice import check_written

    if is_name(expression):
        instead = f"conch cron next --job {expression}"
        raise Usage(NEXT.path, f"{expression!r} is no schedule; for the ticks of a job: {instead}")
    return check_written(expression)


def _explanation(expressions: Sequence[str], zone: str, job: "Job | None") -> list[str]:
    """Return what people want to know of a schedule, in lines."""
    from conch.cron.explain import describe
    from conch.times import format_duration

    name = None if job is None else job.name
    texts = [describe(expression, name) for expression in expressions]
    lines = [text if text.startswith("Every") and "1970" in text else f"{text} ({zone})" for text in texts]
    if job is None:
        return lines
    if job.jitter_s:
        lines.append(f"Each tick is due up to {format_duration(job.jitter_s)} later, at an offset of its own.")
    if job.paused:
        until = "" if job.paused_until is None else f" until {local_time(job.paused_until, zone)}"
        lines.append(f"The job is paused{until}.")
    if job.expires is not None:
        lines.append(f"The last tick comes at {local_time(job.expires, zone)} or before.")
    return lines


def _clock_changes(expressions: Sequence[str], zone: str, name: str | None, after: int) -> list[str]:
    from conch.cron.explain import clock_changes

    return list(clock_changes(expressions, zone, name, after))


def ticks(next_after: Callable[[int], int | None], after: int, limit: int) -> Sequence[int]:
    """Return the first ticks after an instant, fewer than `limit` if the schedule ends."""
    found: list[int] = []
    tick: int | None = after
    while len(found) < limit and tick is not None and (tick := next_after(tick)) is not None:
        found.append(tick)
    return found


def local_time(tick: int, zone: str) -> str:
    """Format a tick as RFC 3339 with the zone's offset; `Z` in UTC, as everywhere."""
    from conch.cron.zones import load
    from conch.times import rfc3339

    return rfc3339(tick) if zone == "UTC" else datetime.fromtimestamp(tick, load(zone)).isoformat(timespec="seconds")


NEXT = Command(
    "cron next",
    "Show the next ticks of a cron expression, or of a job.",
    (
        Option(("--job",), "Show the ticks of this job in etcd.", NAME),
        Option(("--tz",), "IANA time zone. Default: UTC, or that of the job.", TEXT, metavar="ZONE"),
        Option(("-n",), "Number of ticks to show.", int_range(1, 1000), name="limit", default="5"),
        Option(("--after",), "Show the ticks after this instant (RFC 3339) instead of now.", INSTANT),
        Option(("--explain",), "Say in words when it fires, and which ticks the next changes of the clock move."),
        JSON,
        *COMMON,
    ),
    run,
    Argument("expression", TEXT, metavar="[EXPR]", required=False),
)
