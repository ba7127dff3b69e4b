"""`conch cron next`: print the next ticks of a schedule."""

import re
import time
from datetime import datetime

from conch.cli.connection_options import COMMON
from conch.cli.cron_client import JSON, CronClient
from conch.cli.output import put_json, put_line
from conch.cli.spec import NAME, TEXT, Argument, Command, Kind, Line, Option, Usage, int_range
from conch.errors import BadInput
from conch.static_typing import Callable, Sequence


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
    from conch.cron.schedule import parse_schedule
    from conch.times import rfc3339

    values = line.values
    expression, name = values["expression"], values["job"]
    if (expression is None) == (name is None):
        raise Usage(NEXT.path, "give either an expression or --job NAME")
    client = CronClient(line)
    zone = "UTC" if values["tz"] is None else values["tz"]
    if name is None:
        schedule = parse_schedule(expression, zone=zone)
    else:
        with client:
            job = client.read_job(name)[0]
        zone = job.tz if values["tz"] is None else values["tz"]
        schedule = parse_schedule(job.schedule, zone=zone, name=name)
    after = int(time.time()) if values["after"] is None else values["after"]
    for tick in ticks(schedule.next_after, after, values["limit"]):
        if values["as_json"]:
            put_json({"tick": rfc3339(tick), "tick_unix": tick, "local": local_time(tick, zone)})
        else:
            put_line(local_time(tick, zone))
    return 0


def ticks(next_after: Callable[[int], int | None], after: int, limit: int) -> Sequence[int]:
    """Return the first ticks after an instant, fewer than `limit` if the schedule ends."""
    found: list[int] = []
    tick: int | None = after
    while len(found) < limit and tick is not None and (tick := next_after(tick)) is not None:
        found.append(tick)
    return found


def local_time(tick: int, zone: str) -> str:
    """Format a tick as RFC 3339 with the zone's offset."""
    from conch.cron.zones import load

    return datetime.fromtimestamp(tick, load(zone)).isoformat(timespec="seconds")


NEXT = Command(
    "cron next",
    "Show the next ticks of a cron expression, or of a job.",
    (
        Option(("--job",), "Show the ticks of this job in etcd.", NAME),
        Option(("--tz",), "IANA time zone. Default: UTC, or that of the job.", TEXT, metavar="ZONE"),
        Option(("-n",), "Number of ticks to show.", int_range(1, 1000), name="limit", default="5"),
        Option(("--after",), "Show the ticks after this instant (RFC 3339) instead of now.", INSTANT),
        JSON,
        *COMMON,
    ),
    run,
    Argument("expression", TEXT, metavar="[EXPR]", required=False),
)
