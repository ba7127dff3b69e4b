"""Writes jobs as the TOML that `job_file` reads."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tomlkit
from tomlkit.items import Item

from conch.cron.definition import FIELDS
from conch.cron.job import Job
from conch.cron.masks import secrets_of
from conch.cron.schedule_advice import check_written
from conch.errors import BadInput
from conch.keys import is_name
from conch.log import escape

_DURATIONS = frozenset({"run_ttl", "kill_after", "retry_delay", "start_deadline", "jitter"})
# What conch itself writes into a job.
_OWN = frozenset({"name", "added_by", "added_at", "changed_by", "changed_at", "change_id", "sig", "needs", "rev"})
_UNITS = (("d", 86400), ("h", 3600), ("m", 60), ("s", 1))
_OF_A_PAUSE = ("paused_until", "paused_reason")
_EMPTY: tuple[object, ...] = (None, {}, [])
_DEFAULTS: Mapping[str, Any] = {
    **{"tz": "UTC", "run_ttl": 600.0, "kill_after": 5.0, "overlap": "forbid", "retries": 0, "retry_delay": 30.0},
    **{"paused": False, "each": False, "jitter": 0.0, "keep_output": "failed"},
}


@dataclass(slots=True)
class Export:
    """A job as TOML. `secrets` are the paths of what was left out, `kept` all that the file leaves to etcd."""

    text: str
    secrets: Sequence[str] = ()
    kept: Sequence[str] = ()


def table_of(name: str, fields: Mapping[str, Any], comments: Sequence[str] = (), keep: Sequence[str] = ()) -> str:
    """Return the table of a job with these fields (as in etcd), without those that have their default.

    `comments` stand above it. No text may have characters that UTF-8 lacks.
    """
    table = tomlkit.table()
    for key in FIELDS:
        value = fields.get(key)
        if value in _EMPTY or (key in _DEFAULTS and value == _DEFAULTS[key]):
            continue
        table.add(key.replace("_", "-"), _item(key, value))
    if keep:
        table.add("keep", _item("keep", list(keep)))
    jobs = tomlkit.table(is_super_table=True)
    jobs.add(name, table)
    document = tomlkit.document()
    for line in comments:
        document.add(tomlkit.comment(escape(line)))
    document.add("job", jobs)
    return tomlkit.dumps(document)


def head_of(set_name: str | None, comments: Sequence[str] = ()) -> str:
    """Return the top of a file: comments, and the set of its jobs, if any."""
    document = tomlkit.document()
    for line in comments:
        document.add(tomlkit.comment(escape(line)))
    if set_name is not None:
        document.add("set", tomlkit.item(set_name))
    return tomlkit.dumps(document)


def export(job: Job, *, reveal: bool, with_set: bool) -> Export:
    """Return a job as TOML; what it cannot or must not say (`reveal`: show secrets) is in `keep`."""
    raw = dict(job.raw)
    secrets = [] if reveal else secrets_of(raw)
    kept = list(secrets)
    fields: dict[str, Any] = {}
    for key, value in raw.items():
        if key in _OWN or key in secrets or value is None or (key == "set" and not with_set):
            continue
        if _can_say(key, value) and (key not in _OF_A_PAUSE or raw.get("paused") is True):
            fields[key] = value
        else:
            kept.append(key)
    if isinstance(fields.get("env"), dict):
        env = fields["env"]
        kept += [f"env.{name}" for name, text in env.items() if f"env.{name}" not in kept and not _is_utf8(text)]
        fields["env"] = {name: text for name, text in env.items() if f"env.{name}" not in kept}
    comments = [f"left out as secrets: {', '.join(secrets)}"] if secrets else []
    return Export(table_of(job.name, fields, comments, kept), secrets, kept)


def _can_say(key: str, value: Any) -> bool:
    """Return whether a file can say this. Of variables each is asked alone; those texts are not checked by `Job`."""
    if key in ("note", "paused_reason") and not isinstance(value, str):
        return False
    if key == "set" and not (isinstance(value, str) and is_name(value)):
        return False
    if key == "schedule" and not _is_written_so(value):
        return False
    return key in FIELDS and (key == "env" or _is_utf8(value))


def _is_written_so(value: Any) -> bool:
    """Return whether a file may have these schedules: an older release took some that are refused now."""
    try:
        for expression in [value] if isinstance(value, str) else value:
            check_written(expression)
    except BadInput:
        return False
    return True


def _is_utf8(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _item(key: str, value: Any) -> Item:
    if key in _DURATIONS:
        return tomlkit.item(_duration(value))
    if key == "schedule" and isinstance(value, list) and len(value) == 1:
        return tomlkit.item(value[0])
    if isinstance(value, dict):
        table = tomlkit.inline_table()
        for name, text in value.items():
            table.add(name, text)
        return table
    if isinstance(value, list):
        array = tomlkit.array()
        for text in value:
            array.append(text)
        return array
    item: Item = tomlkit.item(value)
    return item


def _duration(seconds: float) -> str | float:
    """Return whole seconds as people write them, `1h30m`; others as a number, which is exact."""
    if seconds != int(seconds) or not seconds:
        return float(seconds)
    left, text = int(seconds), ""
    for unit, size in _UNITS:
        if left >= size:
            text += f"{left // size}{unit}"
            left %= size
    return text
