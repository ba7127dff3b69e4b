"""`conch cron pause` and `resume`: stop and start claiming the ticks of jobs."""

import time

from conch.cli.connection_options import COMMON
from conch.cli.cron_client import JOB_KEY_FILE, CronClient
from conch.cli.cron_edit import check_known
from conch.cli.cron_next import INSTANT
from conch.cli.cron_options import author
from conch.cli.keyfile import read_key
from conch.cli.spec import NAME, TEXT, Argument, Command, Kind, Line, Option, Usage
from conch.errors import EXIT_NO, BadInput, ConchError
from conch.static_typing import TYPE_CHECKING, Any, Mapping
from conch.times import parse_duration

if TYPE_CHECKING:
    from conch.cron.job import Job
    from conch.cron.job_store import Change, Edit, Stored


def _until(text: str) -> int:
    """Parse an instant, or a duration from now, as Unix seconds."""
    try:
        until = INSTANT.parse(text) if "-" in text else int(time.time() + parse_duration(text))
    except BadInput:
        raise BadInput(f"{text!r} is neither a duration (2h) nor RFC 3339 (2026-01-31T12:00:00Z)") from None
    if until <= time.time():
        raise BadInput(f"{text!r} is not in the future")
    return int(until)


UNTIL = Kind("instant", _until)


def run_pause(line: Line) -> int:
    """Pause the jobs; a pause that is under way gets the new end."""
    from conch.times import rfc3339

    until, reason = line.values["until"], line.values["reason"]
    fields = {"paused": True, "paused_until": None if until is None else rfc3339(until)}
    return _change(line, "job-paused", fields if reason is None else {**fields, "paused_reason": reason or None})


def run_resume(line: Line) -> int:
    """Resume the jobs."""
    return _change(line, "job-resumed", {"paused": False, "paused_until": None, "paused_reason": None})


def _change(line: Line, event: str, fields: Mapping[str, Any]) -> int:
    """Change the pause of the named jobs or of all, and log what was done.

    Jobs that cannot be changed are left out; the error names the first of them at the end (exit 1).
    """
    from conch.cli.cron_where import warn_nowhere

    client = CronClient(line)
    names = dict.fromkeys(line.values["names"])
    where = PAUSE.path if event == "job-paused" else RESUME.path
    if bool(names) == line.values["all"]:
        raise Usage(where, "give either names or --all")
    signing_key = read_key(line.values["job_key_file"], client.keys.prefix)
    failed: dict[str, ConchError] = {}

    def decide(name: str, before: "Stored | None") -> "Edit | None":
        if before is None:
            return None
        try:
            return _edit(client.readable(name, before), fields, signing_key)
        except ConchError as error:
            failed[name] = error
            return None

    with client:
        jobs = client.jobs(signing_key)
        if line.values["all"]:
            known = {stored.name: stored for page in jobs.pages(client.log_unreadable) for stored in page}
            planned = jobs.plan(known, decide, known)
        else:
            planned = jobs.plan(names, decide)
        done = []
        for batch in jobs.write(planned, decide):
            done += batch
            for change in batch:
                if change.name not in failed:
                    _log(client, event, change)
        if event == "job-resumed":
            warn_nowhere(client, [change.after for change in done if change.after is not None])
    if failed:
        _raise(failed)
    check_known(done)
    return 0


def _edit(job: "Job", fields: Mapping[str, Any], signing_key: bytes | None) -> "Edit | None":
    """Return the edit that gives a job this pause; None if it has it already."""
    from conch.cron.definition import PAUSE as FIELDS
    from conch.cron.definition import check_signature
    from conch.cron.job import define
    from conch.cron.job_store import Edit

    raw = job.raw
    merged = {**raw, **fields}
    if all((raw.get(field) or None) == (merged.get(field) or None) for field in FIELDS):
        return None
    check_signature(job, signing_key)
    cleared = {field for field in (*FIELDS, "sig") if field == "sig" or merged.get(field) is None}
    kept = {field: value for field, value in merged.items() if field not in cleared}
    return Edit(define(job.name, {**kept, **author("changed")}), sign=job.is_signed)


def _log(client: CronClient, event: str, change: "Change") -> None:
    job = change.after
    if job is None:
        return
    raw = job.raw
    until, reason = (None if raw.get(field) is None else str(raw[field]) for field in ("paused_until", "paused_reason"))
    if not change.is_write:
        client.log("info", "job-unchanged", job=job.name, paused=job.paused or None, until=until, reason=reason)
    else:
        client.log("info", event, job=job.name, until=until, reason=reason)


def _raise(failed: Mapping[str, ConchError]) -> None:
    first = next(iter(failed.values()))
    more = f" (and {len(failed) - 1} more jobs were left as they are)" if len(failed) > 1 else ""
    raise ConchError(f"{first}{more}", code=first.code if len(failed) == 1 else EXIT_NO)


_NAMES = Argument("names", NAME, metavar="[NAME...]", required=False, repeated=True)
_ALL = Option(("--all",), "All jobs.")

PAUSE = Command(
    "cron pause",
    "Claim no more ticks of jobs. A live run continues.",
    (
        _ALL,
        Option(("--until",), "Resume by itself: after a duration, or at an instant (RFC 3339).", UNTIL, metavar="TIME"),
        Option(("--reason",), "Why, for people.", TEXT),
        JOB_KEY_FILE,
        *COMMON,
    ),
    run_pause,
    _NAMES,
)
RESUME = Command(
    "cron resume",
    "Claim the ticks of jobs again, starting with the next one.",
    (_ALL, JOB_KEY_FILE, *COMMON),
    run_resume,
    _NAMES,
)
