"""What users write of a job, as fields of its JSON: the defaults, who wrote it, and what an edit of it keeps."""

from collections.abc import Mapping
from typing import Any

from conch.cron.changes import changes
from conch.cron.job import Job, define
from conch.cron.job_store import Stored
from conch.cron.values import fields_of
from conch.errors import EXIT_NO, BadInput, ConchError
from conch.keys import check_name, is_name

PAUSE = ("paused", "paused_until", "paused_reason")
# All that users may write, in the order in which `show` prints it.
FIELDS = (
    *("schedule", "tz", "cmd", "run_ttl", "kill_after", "overlap", "retries", "retry_delay", "start_deadline", "sema"),
    *("env", "cwd", *PAUSE, "on", "each", "expires", "note", "jitter", "keep_output", "on_failure"),
    *("ping", "env_file", "set"),
)
_DEFAULTS: Mapping[str, Any] = {
    "tz": "UTC",
    "run_ttl": 600.0,
    "kill_after": 5.0,
    "overlap": "forbid",
    "retries": 0,
    "retry_delay": 30.0,
    "env": {},
    "paused": False,
}


def build(name: str, fields: Mapping[str, Any]) -> Job:
    """Build the job of these fields; None and what is missing stand for the default. Raises `BadInput`."""
    complete = {**_DEFAULTS, **{field: value for field, value in fields.items() if value is not None}}
    ordered = {field: complete[field] for field in FIELDS if field in complete}
    return define(name, {**ordered, **{field: value for field, value in complete.items() if field not in ordered}})


def check_set(name: str) -> str:
    """Return the name of a set of jobs unchanged if it is one. Raises `BadInput`."""
    try:
        return check_name(name)
    except BadInput as error:
        raise BadInput(f"set: {error}") from None


def set_of(stored: Stored) -> str | None:
    """Return the set that a job belongs to, if any; the rest of its value need not be readable."""
    name = fields_of(stored.value).get("set")
    return name if isinstance(name, str) and is_name(name) else None


def pause_of(stored: Stored | None) -> dict[str, Any]:
    """Return the fields of the pause that a job is under; none if it is not paused."""
    raw = {} if stored is None else fields_of(stored.value)
    if raw.get("paused") is not True:
        return {}
    if stored is None or stored.job is None:
        return {"paused": True}
    return {field: raw[field] for field in PAUSE if raw.get(field) is not None}


def is_same(before: Job, after: Job, signing_key: bytes | None) -> bool:
    """Return whether both do the same, and `before` is signed as this key would sign it."""
    signed = not before.is_signed if signing_key is None else before.is_signed_by(signing_key)
    return signed and not changes(before, after)


def check_signature(job: Job, signing_key: bytes | None) -> None:
    """Refuse to keep what a signed job says without the key that signed it."""
    if job.is_signed and signing_key is None:
        raise ConchError(f"job {job.name} is signed: give --job-key-file", code=EXIT_NO)
    if job.is_signed and signing_key is not None and not job.is_signed_by(signing_key):
        # whoever changed it must not get our signature
        raise ConchError(f"the signature of job {job.name} is not by this key: add the job again", code=EXIT_NO)


def hint_of(command: "list[str] | tuple[str, ...]") -> str | None:
    """Return what the user probably meant by a command that only a shell would understand; None for any other."""
    import re
    import shlex

    is_line = len(command) == 1 and re.search(r"[\s|>]", command[0]) is not None
    if not is_line and re.match(r"[A-Za-z_][A-Za-z0-9_]*=", command[0]) is None:
        return None
    line = command[0] if len(command) == 1 else _line_of(command)
    return f"did you mean: -- sh -c {shlex.quote(line)}?"


def _line_of(command: "list[str] | tuple[str, ...]") -> str:
    """Return the words as a line for the shell; a leading `K=V` stays an assignment."""
    import shlex

    name, _, value = command[0].partition("=")
    return f"{name}={shlex.quote(value) if value else ''} {shlex.join(command[1:])}"
