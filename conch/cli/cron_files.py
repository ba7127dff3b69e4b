"""`conch cron apply`, `export` and `import`: jobs as TOML files."""

import os
import time

from conch.cli.connection_options import COMMON
from conch.cli.cron_client import JOB_KEY_FILE, CronClient
from conch.cli.cron_options import author
from conch.cli.keyfile import read_key
from conch.cli.output import put_lines
from conch.cli.spec import NAME, TEXT, Argument, Command, Line, Option, Usage
from conch.errors import EXIT_NO, EXIT_UNAVAILABLE, BadInput, ConchError
from conch.limits import cannot
from conch.log import escape
from conch.static_typing import TYPE_CHECKING, Sequence

if TYPE_CHECKING:
    from conch.cron.job_store import Change, Stored

_LARGEST_BYTES = 64 * 2**20

# -- apply ----------------------------------------------------------------------------------------------------


def run_apply(line: Line) -> int:
    """Make the jobs in etcd those of the files, and print what differs."""
    from conch.cron.apply import Application
    from conch.cron.job_file import read_files

    client = CronClient(line)
    paths = line.values["files"]
    if len(set(paths)) < len(paths):
        raise Usage(APPLY.path, "a file is named twice")
    files = read_files([_read(path) for path in paths])
    signing_key = read_key(line.values["job_key_file"], client.keys.prefix)
    application = Application(files, author("added"), signing_key, prune=line.values["prune"])
    dry_run = line.values["dry_run"]
    counts: dict[str, int] = {}
    with client:
        jobs = client.jobs(signing_key)
        planned = application.plan(jobs)
        if dry_run:
            _show(client, planned, counts)
        else:
            for batch in jobs.write(planned, application.decide):
                _show(client, batch, counts)
        client.log("info", "applied", **counts, dry_run=dry_run or None)
    return 0


def _show(client: CronClient, changes: "Sequence[Change]", counts: dict[str, int]) -> None:
    """Print changes, count them by kind, and log what is odd about the jobs."""
    from conch.cron.apply import diff_of, kind_of
    from conch.cron.definition import hint_of

    put_lines([escape(text) for change in changes for text in diff_of(change)])
    for change in changes:
        counts[kind_of(change)] = counts.get(kind_of(change), 0) + 1
        hint = None if change.after is None else hint_of(change.after.cmd)
        if hint is not None:
            client.log("warning", "command-hint", job=change.name, msg=hint)


def _read(path: str) -> tuple[str, bytes]:
    """Return how to name a file, and its content; `-` is stdin. Raises `BadInput` for one that cannot be read."""
    label = "stdin" if path == "-" else path
    try:
        if path == "-":
            with open(0, "rb", closefd=False) as file:
                content = file.read(_LARGEST_BYTES + 1)
        else:
            with open(path, "rb") as file:
                content = file.read(_LARGEST_BYTES + 1)
    except (OSError, ValueError) as error:
        raise cannot(f"cannot read {label}: {getattr(error, 'strerror', None) or error}", error) from None
    if len(content) > _LARGEST_BYTES:
        raise BadInput(f"{label}: more than {_LARGEST_BYTES >> 20} MiB")
    return label, content


_FILES = Argument("files", TEXT, metavar="FILE...", repeated=True)

APPLY = Command(
    "cron apply",
    "Make the jobs in etcd those of TOML files ('-' is stdin).\n\n"
    "All files are checked before anything is written. A job that is paused stays so unless its file says otherwise.",
    (
        Option(("--prune",), "Remove the jobs of the same set that the files lack."),
        Option(("--dry-run",), "Show what would change, and write nothing."),
        JOB_KEY_FILE,
        *COMMON,
    ),
    run_apply,
    _FILES,
)

# -- export ---------------------------------------------------------------------------------------------------


def run_export(line: Line) -> int:
    """Print jobs as TOML; exit 1 if a named one does not exist, 69 if one cannot be read."""
    from conch.cron.definition import set_of
    from conch.cron.job_export import export, head_of

    names = dict.fromkeys(line.values["names"])
    with CronClient(line) as client:
        jobs = client.jobs()
        if names:
            found = jobs.read(names)
            stored = [found[name] for name in names if name in found]
        else:
            stored = [one_job for page in jobs.pages(client.log_unreadable) for one_job in page]
    readable = [job for job in stored if job.job is not None]
    sets = {set_of(job) for job in readable}
    shared = next(iter(sets)) if len(sets) == 1 else None
    parts = [head_of(shared)] if shared is not None else []
    for job in readable:
        assert job.job is not None  # noqa: S101 - for the type checker
        exported = export(job.job, reveal=line.values["reveal"], with_set=shared is None)
        parts.append(exported.text)
        if exported.kept:
            client.log("warning", "left-out", job=job.name, msg=f"only in etcd: {', '.join(exported.kept)}")
    if parts:
        put_lines(["\n".join(parts).removesuffix("\n")])
    _check_all_there(client, names, stored)
    return 0


def _check_all_there(client: CronClient, names: "dict[str, None]", stored: "Sequence[Stored]") -> None:
    """Raise `ConchError` if a job is missing in what was printed."""
    odd = [job for job in stored if job.job is None]
    for job in odd:
        client.log_unreadable(client.keys.cron("job", job.name), job.problem)
    unknown = [name for name in names if name not in {job.name for job in stored}]
    if unknown:
        which = f"is no job {unknown[0]}" if len(unknown) == 1 else f"are no jobs {', '.join(unknown)}"
        raise ConchError(f"there {which}", code=EXIT_NO)
    if odd:
        raise ConchError(f"{len(odd)} of {len(stored)} jobs cannot be read", code=EXIT_UNAVAILABLE)


EXPORT = Command(
    "cron export",
    "Print jobs as the TOML that `conch cron apply` takes: those named, or all. Secrets are left out.",
    (Option(("--reveal",), "Print secrets, too."), *COMMON),
    run_export,
    Argument("names", NAME, metavar="[NAME...]", required=False, repeated=True),
)

# -- import ---------------------------------------------------------------------------------------------------


def run_import(line: Line) -> int:
    """Print a crontab as TOML; needs no etcd."""
    from conch.cron.crontab import Entry, read_crontab, to_toml

    client = CronClient(line)
    zone = line.values["tz"]
    if zone is not None:
        from conch.cron.schedule import parse_schedule

        parse_schedule("@daily", zone=zone)
    label, content = _read(line.values["crontab"])
    crontab = read_crontab(label, content, system=line.values["system"], zone=zone)
    put_lines(["".join(to_toml(crontab, os.path.basename(label))).removesuffix("\n")])
    for warning in crontab.warnings:
        client.log("warning", "not-imported", msg=warning)
    entries = [item for item in crontab.items if isinstance(item, Entry)]
    users = sorted({entry.user for entry in entries if entry.user is not None})
    if users:
        client.log("warning", "users", msg=f"conchd runs jobs as its own user, not as {', '.join(users)}")
    if any("tz" not in entry.fields for entry in entries):
        client.log("warning", "zone", msg=f"the times are taken as UTC{_local_hint()}: give --tz if they are not")
    return 0


def _local_hint() -> str:
    return "" if time.tzname[0] in ("UTC", "GMT") else f", not as {time.tzname[0]}"


IMPORT = Command(
    "cron import",
    "Print a crontab ('-' is stdin) as the TOML that `conch cron apply` takes.",
    (
        Option(("--system",), "Its lines have a user, as in /etc/crontab and /etc/cron.d."),
        Option(("--tz",), "Time zone of lines without CRON_TZ. Default: UTC.", TEXT, metavar="ZONE"),
        *COMMON,
    ),
    run_import,
    Argument("crontab", TEXT, metavar="CRONTAB"),
)
