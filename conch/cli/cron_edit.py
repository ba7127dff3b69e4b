"""`conch cron add`, `rm`, `pause` and `resume`: change the jobs in etcd."""

import os
import time

from conch.cli.connection_options import COMMON
from conch.cli.cron_client import JOB_KEY_FILE, CronClient
from conch.cli.cron_next import INSTANT
from conch.cli.cron_where import warn_of_place
from conch.cli.keyfile import read_key
from conch.cli.output import put_line
from conch.cli.spec import (
    DURATION,
    NAME_ARGUMENT,
    POSITIVE_DURATION,
    SCHEDULE,
    TEXT,
    Command,
    Kind,
    Line,
    Option,
    Usage,
    choice,
    int_range,
)
from conch.errors import EXIT_NO, ConchError
from conch.static_typing import TYPE_CHECKING

if TYPE_CHECKING:
    from conch.cron.job import Job
    from conch.etcd.store import KeyValue

# How often to write again when others change the same job in between.
_TRIES = 20


def _tag(text: str) -> str:
    from conch.cron.job_fields import check_tag

    return check_tag(text)


TAG = Kind("tag", _tag)

# -- add ------------------------------------------------------------------------------------------------------


def run_add(line: Line) -> int:
    """Write the job and print its next three ticks."""
    from conch.cli.cron_next import local_time, ticks

    client = CronClient(line)
    if not line.child:
        raise Usage(ADD.path, "no command: put it after --")
    now = time.time()
    job = _job(line, now)
    signing_key = read_key(line.values["job_key_file"], client.keys.prefix)
    with client:
        job = _put(client, job, signing_key)
        warn_of_place(client, job)
    for tick in ticks(job.ticks().next_after, int(now), 3):
        put_line(local_time(tick, job.tz))
    return 0


def _job(line: Line, now: float) -> "Job":
    """Make the job that the line describes. Raises `BadInput`."""
    from conch.cron.job import define
    from conch.cron.job_fields import parse_variable
    from conch.holder import host_name
    from conch.times import rfc3339

    values = line.values
    # in the order in which `show` prints them
    fields = {
        "schedule": list(values["schedule"]),
        "tz": values["tz"],
        "cmd": line.child,
        "run_ttl": values["run_ttl"],
        "kill_after": values["kill_after"],
        "overlap": values["overlap"],
        "retries": values["retries"],
        "retry_delay": values["retry_delay"],
        "start_deadline": values["start_deadline"],
        "sema": values["sema"],
        "env": dict(parse_variable(variable) for variable in values["env"]),
        "cwd": values["cwd"],
        "paused": values["paused"],
        "on": list(values["on"]) or None,
        "each": values["each"] or None,
        "expires": None if values["expires"] is None else rfc3339(values["expires"]),
        "note": values["note"],
        "catch_up": values["catch_up"],
        "jitter": values["jitter"],
        "keep_output": values["keep_output"],
        "on_failure": values["on_failure"],
        "ping": values["ping"],
        "env_file": list(values["env_file"]) or None,
        "added_by": f"{_user()}@{host_name()}",
        "added_at": rfc3339(now),
    }
    return define(values["name"], {name: value for name, value in fields.items() if value is not None})


def _user() -> str:
    import getpass

    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return str(os.getuid())


def _put(client: CronClient, definition: "Job", signing_key: bytes | None) -> "Job":
    """Write a definition unless etcd has it already, log what changed, and return the job as it is now.

    A job that is paused stays paused.
    """
    from conch.cron.values import fields_of
    from conch.etcd.store import CreateRevisionIs, ModRevisionIs, Put, Range

    key = client.keys.cron("job", definition.name).encode()
    job, sent, replaced = definition, b"", None
    for _ in range(_TRIES):
        found = client.store.range(Range(key), timeout_s=client.timeout_s).kvs
        existing: KeyValue | None = found[0] if found else None
        if existing is not None and existing.value == sent:
            break  # an earlier try succeeded, but its answer was lost
        if existing is not None and fields_of(existing.value).get("paused") is True:
            job = definition.changed(paused=True)
        else:
            job = definition
        job = job.signed(signing_key)
        before = None if existing is None else _readable(job.name, existing.value)
        if before is not None and _is_same(before, job, signing_key):
            client.log("info", "job-unchanged", job=job.name, paused=job.paused or None)
            return before
        sent, replaced = job.encode(), existing
        unchanged = CreateRevisionIs(key, 0) if existing is None else ModRevisionIs(key, existing.mod_revision)
        if client.store.txn([unchanged], [Put(key, sent)], timeout_s=client.timeout_s).succeeded:
            break
    else:
        raise _too_busy(job.name)
    _log_changes(client, job, replaced)
    return job


def _readable(name: str, value: bytes) -> "Job | None":
    from conch.cron.job import UnreadableJob, parse

    try:
        return parse(name, value)
    except UnreadableJob:
        return None


def _is_same(before: "Job", after: "Job", signing_key: bytes | None) -> bool:
    """Return whether both do the same, and `before` is signed as this key would sign it."""
    from conch.cron.changes import changes

    signed = not before.is_signed if signing_key is None else before.is_signed_by(signing_key)
    return signed and not changes(before, after)


def _log_changes(client: CronClient, job: "Job", replaced: "KeyValue | None") -> None:
    from conch.cron.changes import changes
    from conch.cron.job import UnreadableJob, parse

    if replaced is None:
        client.log("info", "job-added", job=job.name, paused=job.paused or None)
        return
    try:
        before = parse(job.name, replaced.value)
    except UnreadableJob as error:
        client.log("info", "job-replaced", job=job.name, paused=job.paused or None, msg=f"it was unreadable: {error}")
        return
    for change in changes(before, job):
        client.log("info", "job-changed", job=job.name, msg=change)
    if before.is_signed and not job.is_signed:
        client.log("warning", "signature-dropped", job=job.name, msg="the job was signed and no longer is")
    client.log("info", "job-replaced", job=job.name, paused=job.paused or None)


def _too_busy(name: str) -> ConchError:
    return ConchError(f"cannot write job {name}: others keep changing it")


ADD = Command(
    "cron add",
    "Add or replace a job: conch cron add NAME --schedule EXPR [OPTIONS] -- CMD...\n\n"
    "A paused job stays paused. A definition that changes nothing is not written.",
    (
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
        Option(("--catch-up",), "Run the newest missed tick late, if it is at most this old.", DURATION),
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
        JOB_KEY_FILE,
        *COMMON,
    ),
    run_add,
    NAME_ARGUMENT,
    takes_child=True,
)

# -- rm -------------------------------------------------------------------------------------------------------


def run_rm(line: Line) -> int:
    """Delete the job; exit 1 if there is none."""
    from conch.etcd.store import Delete, Range

    name = line.values["name"]
    with CronClient(line) as client:
        key, floor = (client.keys.cron(kind, name).encode() for kind in ("job", "floor"))
        found = client.store.txn(
            [], [Range(key, keys_only=True), Delete(key), Delete(floor)], timeout_s=client.timeout_s
        ).ranges[0]
    if not found.kvs:
        raise ConchError(f"there is no job {name}", code=EXIT_NO)
    return 0


RM = Command(
    "cron rm",
    "Remove a job. A live run continues; the history stays until it expires.",
    COMMON,
    run_rm,
    NAME_ARGUMENT,
)

# -- pause and resume -----------------------------------------------------------------------------------------


def run_pause(line: Line) -> int:
    """Pause the job."""
    return _set_paused(line, paused=True)


def run_resume(line: Line) -> int:
    """Resume the job."""
    return _set_paused(line, paused=False)


def _set_paused(line: Line, *, paused: bool) -> int:
    from conch.etcd.store import ModRevisionIs, Put

    client = CronClient(line)
    name = line.values["name"]
    signing_key = read_key(line.values["job_key_file"], client.keys.prefix)
    with client:
        for _ in range(_TRIES):
            job, rev = client.read_job(name)
            if job.paused == paused:
                return 0
            _check_signature(job, signing_key)
            changed = job.changed(paused=paused)
            if job.is_signed:
                changed = changed.signed(signing_key)
            key = client.keys.cron("job", job.name).encode()
            written = client.store.txn(
                [ModRevisionIs(key, rev)], [Put(key, changed.encode())], timeout_s=client.timeout_s
            )
            if written.succeeded:
                if not paused:
                    warn_of_place(client, changed)
                return 0
    raise _too_busy(name)


def _check_signature(job: "Job", signing_key: bytes | None) -> None:
    """Refuse to change a signed job without the key that signed it."""
    if job.is_signed and signing_key is None:
        raise ConchError(f"job {job.name} is signed: give --job-key-file", code=EXIT_NO)
    if job.is_signed and signing_key is not None and not job.is_signed_by(signing_key):
        # whoever changed it must not get our signature
        raise ConchError(f"the signature of job {job.name} is not by this key: add the job again", code=EXIT_NO)


PAUSE = Command(
    "cron pause",
    "Claim no more ticks of a job. A live run continues.",
    (JOB_KEY_FILE, *COMMON),
    run_pause,
    NAME_ARGUMENT,
)
RESUME = Command(
    "cron resume",
    "Claim the ticks of a job again, starting with the next one.",
    (JOB_KEY_FILE, *COMMON),
    run_resume,
    NAME_ARGUMENT,
)
