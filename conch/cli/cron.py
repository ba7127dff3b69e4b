"""`conch cron`: schedules in etcd, and what became of their ticks."""

import getpass
import os
import re
import shlex
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from conch.cli.click_adapter import (
    DURATION,
    NAME,
    POSITIVE_DURATION,
    Parsed,
    WrapperCommand,
    common_options,
    given,
    made,
    whole,
)
from conch.cli.cron_show import COMMAND as LS
from conch.cli.cron_show import Session, last_cells, table
from conch.errors import EXIT_NO, BadInput, ConchError
from conch.log import escape

if TYPE_CHECKING:
    from conch.cron.job import Job
    from conch.etcd.store import KeyValue

_HELP = {"help_option_names": ["-h", "--help"]}
_TRIES = 20


@click.group("cron", context_settings=_HELP)
def command() -> None:
    """Schedule commands: each tick runs on exactly one of the hosts that run `conch conchd`."""


def _instant(text: str) -> int:
    try:
        when = datetime.fromisoformat(re.sub("[zZ]$", "+00:00", text))
        if when.tzinfo is None or "T" not in text.upper():
            raise ValueError("no offset")
        return int(when.timestamp())
    except (ValueError, OverflowError):
        raise BadInput(f"{text!r} is not RFC 3339: write 2026-01-31T12:00:00Z") from None


INSTANT = Parsed("instant", _instant)
KEY_FILE = click.option(
    "--job-key-file", envvar="CONCH_JOB_KEY_FILE", metavar="FILE", help="Sign the job with the key in this file."
)
JSON = click.option("--json", "as_json", is_flag=True, help="One object a line.")


@command.command("add", cls=WrapperCommand, context_settings=_HELP)
@click.argument("name", type=NAME)
@click.option("--schedule", required=True, metavar="EXPR", help="Five fields, @daily and the like, or '@every 30s'.")
@click.option("--tz", default="UTC", show_default=True, metavar="ZONE", help="IANA time zone of the schedule.")
@click.option(
    "--run-ttl", type=POSITIVE_DURATION, default="10m", show_default=True, help="A run that takes longer ends."
)
@click.option("--kill-after", type=DURATION, default="5s", show_default=True, help="SIGTERM to SIGKILL.")
@click.option(
    "--overlap",
    type=click.Choice(["forbid", "allow", "replace"]),
    default="forbid",
    show_default=True,
    help="While a run is alive anywhere: skip the tick, run it too, or end the old run first.",
)
@click.option("--retries", type=whole(0, 1000), default=0, show_default=True, help="Further attempts of a failed run.")
@click.option("--retry-delay", type=DURATION, default="30s", show_default=True, help="Between two attempts.")
@click.option(
    "--start-deadline",
    type=POSITIVE_DURATION,
    help="How late a tick may start; else 60s, or less if the next is sooner.",
)
@click.option("--sema", metavar="NAME:N", help="Run while holding a slot of this semaphore.")
@click.option("--env", multiple=True, metavar="K=V", help="Set in the run's environment; may be given again.")
@click.option("--cwd", metavar="DIR", help="Where it runs; an absolute path.")
@click.option("--paused", is_flag=True, help="Claim no ticks until `cron resume`.")
@KEY_FILE
@common_options
@click.pass_context
def add(context: click.Context, /, **values: Any) -> int:
    """Add or replace a job: conch cron add NAME --schedule EXPR [OPTIONS] -- CMD...

    A paused job stays paused. A definition that changes nothing is not written.
    """
    from conch.cli.keyfile import read_key
    from conch.cli.output import put_line
    from conch.cron.job import decode, parse_variable
    from conch.holder import host_name
    from conch.times import rfc3339

    session = Session(values, given())
    if not context.obj:
        raise click.UsageError("no command: put it after --", context)
    now = time.time()
    fields = {
        "schedule": values["schedule"],
        "tz": values["tz"],
        "cmd": list(context.obj),
        "run_ttl": values["run_ttl"],
        "kill_after": values["kill_after"],
        "overlap": values["overlap"],
        "retries": values["retries"],
        "retry_delay": values["retry_delay"],
        "start_deadline": values["start_deadline"],
        "sema": values["sema"],
        "env": dict(parse_variable(one) for one in values["env"]),
        "cwd": values["cwd"],
        "paused": values["paused"],
        "added_by": f"{_user()}@{host_name()}",
        "added_at": rfc3339(now),
    }
    job = decode(values["name"], {name: value for name, value in fields.items() if value is not None})
    key_file = read_key(values["job_key_file"], session.keys.prefix)
    with session:
        job = _put(session, job, key_file)
    for line in _next_lines(job.ticks(), int(now), 3, job.tz):
        put_line(line)
    return 0


def _put(session: Session, job: "Job", key_file: bytes | None) -> "Job":
    """Write a definition, unless the job is just that already, and say what it changed; the job as it is now.

    A job that is paused stays so.
    """
    from conch.cron.job import UnreadableJob, parse
    from conch.cron.values import fields_of
    from conch.etcd.store import CreateRevisionIs, KeyValue, ModRevisionIs, Put, Range

    key = session.keys.cron("job", job.name).encode()
    given, sent, replaced = job, b"", None
    for _ in range(_TRIES):
        found = session.store.range(Range(key), timeout_s=session.timeout_s).kvs
        there: KeyValue | None = found[0] if found else None
        if there is not None and there.value == sent:
            break  # an earlier try was made, its answer lost
        job = given.changed(paused=True) if there and fields_of(there.value).get("paused") is True else given
        job = job.signed(key_file)
        try:
            before = None if there is None else parse(job.name, there.value)
        except UnreadableJob:
            before = None
        if before is not None and _is_same(before, job, key_file):
            session.log("info", "job-unchanged", job=job.name, paused=job.paused or None)
            return before
        sent, replaced = job.encode(), there
        compare = CreateRevisionIs(key, 0) if there is None else ModRevisionIs(key, there.mod_revision)
        if session.store.txn([compare], [Put(key, sent)], timeout_s=session.timeout_s).succeeded:
            break
    else:
        raise ConchError(f"job {job.name} is being changed by others all the time")
    _say_what_changed(session, job, replaced)
    return job


def _is_same(before: "Job", after: "Job", key_file: bytes | None) -> bool:
    """Whether there is nothing to write: both do the same, and the signature is as this key makes it."""
    from conch.cron.changes import changes

    signed = not before.is_signed if key_file is None else before.is_signed_by(key_file)
    return signed and not changes(before, after)


def _say_what_changed(session: Session, job: "Job", replaced: "KeyValue | None") -> None:
    from conch.cron.changes import changes
    from conch.cron.job import UnreadableJob, parse

    if replaced is None:
        session.log("info", "job-added", job=job.name, paused=job.paused or None)
        return
    try:
        before = parse(job.name, replaced.value)
    except UnreadableJob as error:
        session.log("info", "job-replaced", job=job.name, paused=job.paused or None, msg=f"it was unreadable: {error}")
        return
    for line in changes(before, job):
        session.log("info", "job-changed", job=job.name, msg=line)
    if before.is_signed and not job.is_signed:
        session.log("warning", "signature-dropped", job=job.name, msg="it was signed before, and is not now")
    session.log("info", "job-replaced", job=job.name, paused=job.paused or None)


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return str(os.getuid())


@command.command("rm", context_settings=_HELP)
@click.argument("name", type=NAME)
@common_options
def rm(**values: Any) -> int:
    """Remove a job. A run in flight goes on; its history stays until it expires."""
    from conch.etcd.store import Delete, Range

    name = values["name"]
    with Session(values, given()) as session:
        key, floor = (session.keys.cron(kind, name).encode() for kind in ("job", "floor"))
        found = session.store.txn(
            [], [Range(key, keys_only=True), Delete(key), Delete(floor)], timeout_s=session.timeout_s
        ).ranges[0]
    if not found.kvs:
        raise ConchError(f"there is no job {name}", code=EXIT_NO)
    return 0


@command.command("show", context_settings=_HELP)
@click.argument("name", type=NAME)
@JSON
@common_options
def show(**values: Any) -> int:
    """Show a job as it is kept in etcd."""
    from conch.cli.output import put_json, put_line

    with Session(values, given()) as session:
        job, rev = session.read(values["name"])
    if values["as_json"]:
        put_json({"name": job.name, **{k: v for k, v in job.raw.items() if k not in ("name", "rev")}, "rev": rev})
        return 0
    put_line(f"name: {job.name}")
    for field, value in job.raw.items():
        if field == "cmd":
            value = shlex.join(value)
        elif field == "env":
            value = " ".join(shlex.quote(f"{k}={v}") for k, v in value.items())
        elif isinstance(value, bool):
            value = "true" if value else "false"
        elif isinstance(value, float):
            value = f"{value:g}"
        if value not in ("", None):
            put_line(escape(f"{field}: {value}"))
    return 0


def _set_paused(values: dict[str, Any], *, paused: bool) -> int:
    from conch.cli.keyfile import read_key
    from conch.etcd.store import ModRevisionIs, Put

    session = Session(values, given())
    key_file = read_key(values["job_key_file"], session.keys.prefix)
    with session:
        for _ in range(_TRIES):
            job, rev = session.read(values["name"])
            if job.paused == paused:
                return 0
            if job.is_signed and key_file is None:
                raise ConchError(f"job {job.name} is signed: give --job-key-file", code=EXIT_NO)
            if job.is_signed and key_file is not None and not job.is_signed_by(key_file):
                # whoever changed it must not get our signature
                raise ConchError(f"the signature of job {job.name} is not by this key: add the job again", code=EXIT_NO)
            changed = job.changed(paused=paused)
            if job.is_signed:
                changed = changed.signed(key_file)
            key = session.keys.cron("job", job.name).encode()
            made = session.store.txn(
                [ModRevisionIs(key, rev)], [Put(key, changed.encode())], timeout_s=session.timeout_s
            )
            if made.succeeded:
                return 0
    raise ConchError(f"job {values['name']} is being changed by others all the time")


@command.command("pause", context_settings=_HELP)
@click.argument("name", type=NAME)
@KEY_FILE
@common_options
def pause(**values: Any) -> int:
    """Claim no more ticks of a job. A run in flight goes on."""
    return _set_paused(values, paused=True)


@command.command("resume", context_settings=_HELP)
@click.argument("name", type=NAME)
@KEY_FILE
@common_options
def resume(**values: Any) -> int:
    """Claim the ticks of a job again, from now on."""
    return _set_paused(values, paused=False)


@command.command("run", context_settings=_HELP)
@click.argument("name", type=NAME)
@common_options
def run(**values: Any) -> int:
    """Have a job run now, also a paused one, and print the tick that it got. Exit 1 if no conchd takes it."""
    from conch.cli.ask_run import run_now
    from conch.cli.output import put_line
    from conch.times import rfc3339

    with Session(values, given()) as session:
        tick = run_now(session, values["name"])
    put_line(rfc3339(tick))
    return 0


command.add_command(made(LS), "ls")


@command.command("history", context_settings=_HELP)
@click.argument("name", type=NAME)
@click.option("-n", "limit", type=whole(1, 1000), default=20, show_default=True, help="How many ticks.")
@JSON
@common_options
def history(**values: Any) -> int:
    """Show a job's newest ticks, newest first."""
    from conch.cli.output import put_json, put_line
    from conch.cron.views import history as read_history

    with Session(values, given()) as session:
        rows, bad = read_history(
            session.store, session.keys, values["name"], values["limit"], timeout_s=session.timeout_s
        )
        if not rows and not bad:
            session.read(values["name"])  # a job that never ran is no error, an unknown one is
        for key in bad:
            session.log("warning", "unreadable", key=key)
    if values["as_json"]:
        for one in rows:
            put_json(one)
        return 0
    now = time.time()
    lines = [
        [
            *last_cells(one, now)[:4],
            one["started"] or "-",
            last_cells(one, now)[4],
            str(one["attempt"] or "-"),
            one["reason"] or "",
        ]
        for one in rows
    ]
    if lines:
        table(["TICK", "STATE", "EXIT", "NODE", "STARTED", "TOOK", "ATTEMPT", "REASON"], lines, put_line)
    return 0


@command.command("next", context_settings=_HELP)
@click.argument("expression", required=False, metavar="EXPR")
@click.option("--job", type=NAME, help="Those of a job in etcd instead.")
@click.option("--tz", metavar="ZONE", help="IANA time zone; UTC, or the job's.")
@click.option("-n", "limit", type=whole(1, 1000), default=5, show_default=True, help="How many.")
@click.option("--after", type=INSTANT, help="Those after this instant (RFC 3339) instead of now.")
@JSON
@common_options
@click.pass_context
def next_(context: click.Context, /, **values: Any) -> int:
    """Show the next ticks of a cron expression, or of a job."""
    from conch.cli.output import put_json, put_line
    from conch.cron.schedule import parse_schedule
    from conch.times import rfc3339

    expression, name = values["expression"], values["job"]
    if (expression is None) == (name is None):
        raise click.UsageError("give an expression, or --job NAME", context)
    session = Session(values, given())
    zone = "UTC" if values["tz"] is None else values["tz"]
    if name is None:
        schedule = parse_schedule(expression, zone=zone)
    else:
        with session:
            job = session.read(name)[0]
        zone = job.tz if values["tz"] is None else values["tz"]
        schedule = parse_schedule(job.schedule, zone=zone, name=name)
    at = int(time.time()) if values["after"] is None else values["after"]
    for tick in _ticks(schedule.next_after, at, values["limit"]):
        if values["as_json"]:
            put_json({"tick": rfc3339(tick), "tick_unix": tick, "local": _local(tick, zone)})
        else:
            put_line(_local(tick, zone))
    return 0


def _ticks(next_after: Callable[[int], int | None], after: int, limit: int) -> Sequence[int]:
    found: list[int] = []
    tick: int | None = after
    while len(found) < limit and tick is not None and (tick := next_after(tick)) is not None:
        found.append(tick)
    return found


def _next_lines(schedule: Any, after: int, limit: int, zone: str) -> Sequence[str]:
    return [_local(tick, zone) for tick in _ticks(schedule.next_after, after, limit)]


def _local(tick: int, zone: str) -> str:
    """RFC 3339 with the zone's offset."""
    from conch.cron.zones import load

    return datetime.fromtimestamp(tick, load(zone)).isoformat(timespec="seconds")
