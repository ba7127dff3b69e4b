"""Lists field by field what a new definition changes in a job, for the user who changes it."""

import json
import shlex
from typing import Any

from conch.cron.job import Job
from conch.cron.masks import mask_urls

# Who wrote the job and when does not affect what it does; the signature and
# what it needs follow from the rest.
_NOT_COMPARED = frozenset({"name", "added_by", "added_at", "changed_by", "changed_at", "change_id", "sig", "needs"})


def changes(before: Job, after: Job) -> list[str]:
    """Return a line per field that differs, such as `tz: Europe/Berlin → UTC`; a missing field has its default.

    Of environment variables only the names appear, because the values may be secret.
    """
    old, new = _fields(before), _fields(after)
    lines = []
    for field in sorted(old.keys() | new.keys(), key=lambda name: ([*new, *old].index(name), name)):
        if old.get(field) == new.get(field):
            continue
        if field == "env":
            lines.append(f"env: {_variables(before, after)}")
        else:
            lines.append(f"{field}: {_text(field, old.get(field))} → {_text(field, new.get(field))}")
    return lines


def _fields(job: Job) -> dict[str, Any]:
    """Return all fields with their values; fields unknown to us as they are."""
    known = {
        "schedule": job.schedule,
        "tz": job.tz,
        "cmd": list(job.cmd),
        "run_ttl": job.run_ttl_s,
        "kill_after": job.kill_after_s,
        "overlap": job.overlap,
        "retries": job.retries,
        "retry_delay": job.retry_delay_s,
        "start_deadline": job.start_deadline_s,
        "sema": None if job.semaphore is None else "{}:{}".format(*job.semaphore),
        "env": dict(job.env),
        "cwd": job.cwd,
        "paused": job.paused,
        "on": list(job.on),
        "each": job.each,
        "jitter": job.jitter_s,
        "keep_output": job.keep_output,
        "env_file": list(job.env_files),
    }
    return known | {name: value for name, value in job.raw.items() if name not in known.keys() | _NOT_COMPARED}


def _text(field: str, value: Any) -> str:
    if value is None:
        return "-"
    if field == "cmd":
        return shlex.join(value)
    if isinstance(value, float):
        return f"{value:g}"
    return mask_urls(value) if isinstance(value, str) else json.dumps(value)


def _variables(before: Job, after: Job) -> str:
    signs = {
        "added": after.env.keys() - before.env.keys(),
        "removed": before.env.keys() - after.env.keys(),
        "changed": {name for name in before.env.keys() & after.env.keys() if before.env[name] != after.env[name]},
    }
    return ", ".join(f"{name} {how}" for how, names in signs.items() for name in sorted(names))
