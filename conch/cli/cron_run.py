"""`conch cron run` and `kill`: have a job run now; end a run."""

import os

from conch.cli.connection_options import COMMON
from conch.cli.cron_client import CronClient
from conch.cli.output import put_line
from conch.cli.spec import NAME_ARGUMENT, TEXT, Command, Kind, Line, Option
from conch.errors import EXIT_NO, BadInput, ConchError
from conch.static_typing import TYPE_CHECKING, Any, Mapping, Sequence

if TYPE_CHECKING:
    from conch.cli.cron_outcome import Claimed
    from conch.cron.job import Job

# How long a request to end a run lives, and how long an end may take beyond SIGKILL, in seconds.
_LEASE_S, _ANSWER_S = 60, 30.0
# Requests that one transaction writes: etcd accepts 128 operations at most.
_AT_ONCE = 100


def run(line: Line) -> int:
    """Request a run and print the tick that a daemon claimed for it; wait for its end if that is asked."""
    from conch.cli.cron_request import request_run
    from conch.cron.job_fields import parse_variable
    from conch.times import rfc3339

    env = dict(parse_variable(variable) for variable in line.values["env"])
    name, wait = line.values["name"], line.values["wait"]
    with CronClient(line) as client:
        if env:
            _check_unsigned(client.read_job(name)[0])
        wishes = {**({"env": env} if env else {}), **({"keep_output": True} if wait else {})}
        tick = request_run(client, name, wishes)
        if not wait:
            put_line(rfc3339(tick))
            return 0
        return _await(client, name, tick)


def _check_unsigned(job: "Job") -> None:
    if job.is_signed:
        raise ConchError(f"job {job.name} is signed: its variables cannot be changed for one run", code=EXIT_NO)


def _await(client: CronClient, name: str, tick: int) -> int:
    """Wait for the end of a run, print the end of its output, and return its exit code.

    Of a job that runs on every host, all runs are waited for; the code is that of the first that did not end well.
    """
    from conch.cli.cron_outcome import await_result, claims_of, exit_code
    from conch.times import rfc3339

    code, about = 0, {"job": name, "tick": rfc3339(tick)}
    claims = claims_of(client, name, tick)
    hosts = " ".join(claimed.host for claimed in claims)
    client.log("info", "running", **about, node=hosts, msg="Ctrl-C ends the waiting, not the run")
    for claimed in claims:
        result = await_result(client, name, claimed)
        _put_output(result)
        if result.get("state") != "ok":
            fields = {field: result.get(field) or None for field in ("state", "exit", "reason")}
            client.log("warning", "run-failed", **about, node=claimed.host, **fields)
        code = code or exit_code(result)
    return code


def _put_output(result: Mapping[str, Any]) -> None:
    from conch.cli.cron_outcome import printable

    output = result.get("output")
    if isinstance(output, str) and output:
        put_line(printable(output).rstrip("\n"))


RUN = Command(
    "cron run",
    "Run a job now, even if it is paused, and print the tick that the run gets. Exit 1 if no conchd takes it.",
    (
        Option(
            ("--wait",),
            "Wait for the end of the run, print the end of its output instead, and exit with the run's exit code: 124 "
            "if it ran out of time, 75 if it was skipped, 70 if it ended otherwise without one.",
        ),
        Option(("--env",), "Set a variable for this run only. Repeatable.", TEXT, metavar="K=V", repeated=True),
        *COMMON,
    ),
    run,
    NAME_ARGUMENT,
)

# -- kill -----------------------------------------------------------------------------------------------------


def run_kill(line: Line) -> int:
    """Have the live runs of a job ended, and print how each ended."""
    from conch.cli.cron_outcome import live_claims

    name, asked = line.values["name"], line.values["tick"]
    with CronClient(line) as client:
        job, _ = client.read_job(name)
        live = [claimed for claimed in live_claims(client, name) if asked in (None, claimed.tick)]
        if not live:
            raise ConchError(f"no run of {name} is alive", code=EXIT_NO)
        return _kill(client, job, live)


def _kill(client: CronClient, job: "Job", live: "Sequence[Claimed]") -> int:
    """Write the requests under a lease that goes when they are answered."""
    import json

    from conch.cli.cron_outcome import await_result
    from conch.core import clock
    from conch.cron.values import fields_of
    from conch.etcd.store import Put, StoreError
    from conch.holder import myself
    from conch.times import rfc3339

    lease = int.from_bytes(os.urandom(8)) >> 1 or 1
    holder = fields_of(myself(["conch", "cron", "kill", job.name]).encode())
    value = json.dumps({**holder, "by": f"{_user()}@{holder['host']}"}).encode()
    until = clock.now() + job.kill_after_s + _ANSWER_S
    client.store.grant(lease, _LEASE_S, timeout_s=client.timeout_s)
    try:
        ticks = sorted({claimed.tick for claimed in live})
        for at in range(0, len(ticks), _AT_ONCE):
            keys = [client.keys.cron("kill", job.name, tick).encode() for tick in ticks[at : at + _AT_ONCE]]
            client.store.txn([], [Put(key, value, lease) for key in keys], timeout_s=client.timeout_s)
        for claimed in live:
            result = await_result(client, job.name, claimed, until)
            put_line(f"{rfc3339(claimed.tick)} on {claimed.host}: {result.get('state')}")
    finally:
        try:
            client.store.revoke(lease, timeout_s=client.timeout_s)
        except StoreError:
            pass  # it expires by itself
    return 0


def _user() -> str:
    import getpass

    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return str(os.getuid())


def _tick(text: str) -> int:
    from conch.cli.cron_next import INSTANT

    if text.isascii() and text.isdigit() and len(text) <= 10:
        return int(text)
    try:
        return int(INSTANT.parse(text))
    except BadInput:
        raise BadInput(f"{text!r} is no tick: write it as history shows it, 2026-01-31T12:00:00Z") from None


TICK = Option(("--tick",), "Only this tick, as history shows it.", Kind("tick", _tick), metavar="TICK")
KILL = Command(
    "cron kill",
    "End the live runs of a job: SIGTERM, and SIGKILL after its kill-after.\n\nThey are recorded as killed, and not "
    "tried again. Exit 1 if no run is alive, 75 without an answer.",
    (TICK, *COMMON),
    run_kill,
    NAME_ARGUMENT,
)
