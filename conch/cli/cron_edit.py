"""`conch cron add`, `set` and `rm`: change the definitions of jobs in etcd."""

import time

from conch.cli.connection_options import COMMON
from conch.cli.cron_client import JOB_KEY_FILE, CronClient
from conch.cli.cron_next import local_time, ticks
from conch.cli.cron_options import JOB_OPTIONS, author, given_fields
from conch.cli.keyfile import read_key
from conch.cli.output import put_line
from conch.cli.spec import NAME_ARGUMENT, NAMES_ARGUMENT, Command, Kind, Line, Option, Usage
from conch.errors import EXIT_NO, BadInput, ConchError
from conch.record import replace
from conch.static_typing import TYPE_CHECKING, Any, Mapping

if TYPE_CHECKING:
    from conch.cron.job import Job
    from conch.cron.job_store import Change, Decide, Edit, Stored

# -- add ------------------------------------------------------------------------------------------------------


def run_add(line: Line) -> int:
    """Write the job and print its next three ticks."""
    from conch.cron.definition import build, is_same, pause_of
    from conch.cron.job_store import Edit

    client = CronClient(line)
    if not line.child:
        raise Usage(ADD.path, "no command: put it after --")
    fields = {**given_fields(line), **author("added")}
    name = line.values["name"]
    definition = build(name, fields)
    if definition.expires is not None and definition.ticks().next_after(int(time.time())) is None:
        raise BadInput("--expires: the job will never fire: no tick of its schedule comes before that")
    signing_key = read_key(line.values["job_key_file"], client.keys.prefix)

    def decide(_: str, before: "Stored | None") -> "Edit | None":
        pause = {} if fields["paused"] else pause_of(before)
        job = build(name, {**fields, **pause}) if pause else definition
        if before is not None and before.job is not None and is_same(before.job, job, signing_key):
            return None
        return Edit(job, sign=signing_key is not None)

    _edit(client, name, decide, signing_key)
    return 0


def _edit(client: CronClient, name: str, decide: "Decide", signing_key: bytes | None) -> None:
    """Change one job, log what changed, and print its next three ticks."""
    from conch.cli.cron_where import warn_nowhere

    with client:
        (change,) = client.jobs(signing_key).change([name], decide)
        log_change(client, change)
        job = change.after
        if job is not None:
            warn_nowhere(client, [job])
    if job is not None:
        for tick in ticks(job.ticks().next_after, int(time.time()), 3):
            put_line(local_time(tick, job.tz))


def log_change(client: CronClient, change: "Change") -> None:
    """Log what was added or changed, field by field, and what is odd about the job."""
    from conch.cron.changes import changes
    from conch.cron.definition import hint_of

    job, before = change.after, change.before
    if job is None:
        return
    hint = hint_of(job.cmd)
    if hint is not None:
        client.log("warning", "command-hint", job=job.name, msg=hint)
    paused = job.paused or None
    if not change.is_write:
        client.log("info", "job-unchanged", job=job.name, paused=paused)
    elif before is None:
        client.log("info", "job-added", job=job.name, paused=paused)
    elif before.job is None:
        client.log("info", "job-replaced", job=job.name, paused=paused, msg=f"it was unreadable: {before.problem}")
    else:
        for text in changes(before.job, job):
            client.log("info", "job-changed", job=job.name, msg=text)
        if before.job.is_signed and not job.is_signed:
            client.log("warning", "signature-dropped", job=job.name, msg="the job was signed and no longer is")
        client.log("info", "job-replaced", job=job.name, paused=paused)


ADD = Command(
    "cron add",
    "Add or replace a job: conch cron add NAME --schedule EXPR [OPTIONS] -- CMD...\n\n"
    "A paused job stays paused. A definition that changes nothing is not written.",
    (*JOB_OPTIONS, JOB_KEY_FILE, *COMMON),
    run_add,
    NAME_ARGUMENT,
    takes_child=True,
)

# -- set ------------------------------------------------------------------------------------------------------


def run_set(line: Line) -> int:
    """Change the fields that the line names, and print the next three ticks."""
    from conch.cron.definition import check_signature
    from conch.cron.job import define
    from conch.cron.job_store import Edit

    client = CronClient(line)
    if line.child == []:
        raise Usage(SET.path, "no command after --")
    fields = _named_fields(line)
    if not fields:
        raise Usage(SET.path, "nothing to change: name an option of `conch cron add`, or a command after --")
    name = line.values["name"]
    signing_key = read_key(line.values["job_key_file"], client.keys.prefix)

    def decide(_: str, before: "Stored | None") -> "Edit | None":
        job = client.readable(name, before)
        # without a `name` in the value that an older release may have written
        raw = {**job.raw, **_merged(job, fields)}
        edited = define(name, {field: value for field, value in raw.items() if value is not None and field != "sig"})
        if not _differs(job, edited):
            return None
        check_signature(job, signing_key)
        return Edit(edited.changed(**author("changed")), sign=job.is_signed)

    _check(name, fields)
    _edit(client, name, decide, signing_key)
    return 0


def _named_fields(line: Line) -> dict[str, Any]:
    """Return the fields that the line names; None for one that it takes away. Raises `BadInput`."""
    from conch.cron.job_fields import parse_variable
    from conch.times import rfc3339

    values, named = line.values, line.explicit
    fields: dict[str, Any] = {}
    for option in JOB_OPTIONS:
        field = option.keyword
        if field not in named:
            continue
        value = values[field]
        if field == "env":
            # a variable without `=` is taken away
            fields[field] = dict(parse_variable(text) if "=" in text else (text, None) for text in value)
        elif option.repeated:
            fields[field] = [text for text in value if text != ""] or None
        elif field == "expires" and value != "":
            fields[field] = rfc3339(value)
        else:
            fields[field] = None if value == "" else value
    for flag in ("each", "paused"):
        if f"no_{flag}" in named:
            if flag in named:
                raise Usage(SET.path, f"--{flag} and --no-{flag} contradict each other")
            fields[flag] = None
    if fields.get("schedule", "") is None:
        raise Usage(SET.path, "a job needs a --schedule")
    if line.child:
        fields["cmd"] = line.child
    return fields


def _check(name: str, fields: Mapping[str, Any]) -> None:
    """Raise `BadInput` for what no job may have, before etcd is asked for this one."""
    from conch.cron.definition import build

    env = {variable: value for variable, value in (fields.get("env") or {}).items() if value is not None}
    build(name, {"schedule": ["@daily"], "cmd": ["true"], **fields, "env": env})


def _merged(job: "Job", fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields to put into a job: variables are changed one by one, and a pause goes as a whole."""
    merged = dict(fields)
    if "env" in fields:
        env = {} if "" in fields["env"] else dict(job.env)
        env |= {variable: value for variable, value in fields["env"].items() if variable}
        merged["env"] = {variable: value for variable, value in env.items() if value is not None}
    if "paused" in fields:
        merged |= {"paused": fields["paused"] is True, "paused_until": None, "paused_reason": None}
        if fields["paused"] and job.paused and job.paused_until is None:
            del merged["paused_reason"]
    return merged


def _differs(before: "Job", after: "Job") -> bool:
    from conch.cron.changes import changes

    return bool(changes(before, after))


def _emptied(option: Option) -> Option:
    """Return the option as `set` has it: nothing is required or has a default, and an empty text takes it away."""
    kind = option.kind
    if kind is None:
        return replace(option, required=False)

    def parse(text: str) -> Any:
        return "" if text == "" else kind.parse(text)

    return replace(option, kind=Kind(kind.name, parse), required=False, default=None)


SET = Command(
    "cron set",
    "Change what is named of a job, and nothing else: conch cron set NAME [OPTIONS] [-- CMD...]\n\n"
    "An empty value takes a field away (--cwd ''). --env K=V changes one variable, --env K takes it away, and --env '' "
    "all. --schedule, --on and --env-file replace what was there.",
    (
        *map(_emptied, JOB_OPTIONS),
        Option(("--no-each",), "Run each tick on one host."),
        Option(("--no-paused",), "Claim ticks again."),
        JOB_KEY_FILE,
        *COMMON,
    ),
    run_set,
    NAME_ARGUMENT,
    takes_child=True,
)

# -- rm -------------------------------------------------------------------------------------------------------


def run_rm(line: Line) -> int:
    """Delete the jobs; exit 1 if one of them does not exist."""
    from conch.cron.job_store import Edit

    with CronClient(line) as client:
        removed = client.jobs().change(dict.fromkeys(line.values["names"]), lambda _name, _before: Edit(None))
        for change in removed:
            if change.is_write:
                client.log("info", "job-removed", job=change.name)
    check_known(removed)
    return 0


def check_known(changes: "list[Change]") -> None:
    """Raise `ConchError` with exit code 1 if some of these jobs do not exist."""
    unknown = [change.name for change in changes if change.before is None and change.after is None]
    if unknown:
        which = f"is no job {unknown[0]}" if len(unknown) == 1 else f"are no jobs {', '.join(unknown)}"
        raise ConchError(f"there {which}", code=EXIT_NO)


RM = Command(
    "cron rm",
    "Remove jobs. A live run continues; the history stays until it expires.",
    COMMON,
    run_rm,
    NAMES_ARGUMENT,
)
