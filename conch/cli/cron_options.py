"""The options that describe a job, for `conch cron add` and `set`, and the fields of a job that they stand for."""

import os
import time

from conch.cli.cron_next import INSTANT
from conch.cli.spec import DURATION, POSITIVE_DURATION, SCHEDULE, TEXT, Kind, Line, Option, choice, int_range
from conch.static_typing import Any


def _tag(text: str) -> str:
    from conch.cron.job_fields import check_tag

    return check_tag(text)


def _set(text: str) -> str:
    from conch.cron.definition import check_set

    return check_set(text)


TAG = Kind("tag", _tag)
SET = Kind("name", _set)

JOB_OPTIONS = (
    Option(
        ("--schedule",),
        "Cron expression of five fields, @daily and the like, or '@every 30s'. Repeatable: the job is due at each.",
        SCHEDULE,
        metavar="EXPR",
        required=True,
        repeated=True,
    ),
    Option(("--tz",), "IANA time zone of the schedule.", TEXT, default="UTC", metavar="ZONE"),
    Option(("--run-ttl",), "End a run that takes longer.", POSITIVE_DURATION, default="10m"),
    Option(("--kill-after",), "Time from SIGTERM to SIGKILL.", DURATION, default="5s"),
    Option(
        ("--overlap",),
        "If an earlier run is still alive on any host: skip the tick, run both, or end the earlier run first.",
        choice("forbid", "allow", "replace"),
        default="forbid",
    ),
    Option(("--retries",), "How often to run a failed command again.", int_range(0, 1000), default="0"),
    Option(("--retry-delay",), "Time between two attempts.", DURATION, default="30s"),
    Option(
        ("--start-deadline",),
        "Latest start of a run, counted from its tick. Default: 60s, or the time to the next tick if that is less.",
        POSITIVE_DURATION,
    ),
    Option(("--sema",), "Run while holding a slot of this semaphore.", TEXT, metavar="NAME:N"),
    Option(("--env",), "Set a variable in the run's environment. Repeatable.", TEXT, metavar="K=V", repeated=True),
    Option(("--cwd",), "Working directory of the run, an absolute path.", TEXT, metavar="DIR"),
    Option(("--paused",), "Claim no ticks until `conch cron resume`."),
    Option(("--on",), "Run only on hosts with this tag. Repeatable: all are needed.", TAG, repeated=True),
    Option(("--each",), "Run each tick once on every live host (that has the tags)."),
    Option(("--expires",), "Have no ticks after this instant (RFC 3339).", INSTANT),
    Option(("--note",), "What to know about the job, for people.", TEXT),
    Option(("--jitter",), "Start each tick at a fixed offset below this, drawn from job and tick.", DURATION),
    Option(
        ("--keep-output",),
        "When to keep the end of a run's output in its result. Default: failed.",
        choice("failed", "always", "never"),
    ),
    Option(("--on-failure",), "Shell command to run on the host after a run that did not end well.", TEXT),
    Option(("--ping",), "Tell this URL how each run goes (healthchecks.io convention).", TEXT, metavar="URL"),
    Option(
        ("--env-file",),
        "Read variables from this file on the host when a run starts. Repeatable.",
        TEXT,
        metavar="PATH",
        repeated=True,
    ),
    Option(("--set",), "The set of jobs that it belongs to, see `conch cron apply`.", SET),
)


def given_fields(line: Line) -> dict[str, Any]:
    """Return the fields of a job that the line's options and command stand for; None for what it does not say.

    Raises `BadInput`.
    """
    from conch.cron.job_fields import parse_variable
    from conch.times import rfc3339

    values = line.values
    fields = {option.keyword: values[option.keyword] for option in JOB_OPTIONS}
    fields["cmd"] = line.child or None
    fields["schedule"] = list(values["schedule"]) or None
    fields["env"] = dict(parse_variable(variable) for variable in values["env"])
    for field in ("on", "env_file"):
        fields[field] = list(values[field]) or None
    fields["each"] = values["each"] or None
    fields["paused"] = values["paused"] or None
    fields["expires"] = None if values["expires"] is None else rfc3339(values["expires"])
    return fields


def author(what: str) -> dict[str, str]:
    """Return the fields that say who `added` or `changed` a job, and when."""
    from conch.holder import host_name
    from conch.times import rfc3339

    return {f"{what}_by": f"{_user()}@{host_name()}", f"{what}_at": rfc3339(time.time())}


def _user() -> str:
    import getpass

    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return str(os.getuid())
