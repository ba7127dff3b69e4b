"""The keys of a job in a TOML file: the flags' names, and how their values become fields of a job."""

import difflib
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from conch.cron.definition import check_set
from conch.cron.job_fields import parse_variable, read_environment
from conch.cron.schedule_advice import check_written
from conch.errors import BadInput
from conch.times import parse_duration, rfc3339

# A value of a file as a field of a job; the key is for messages.
Read = Callable[[str, Any], Any]

# What people call things that are called otherwise here.
_MEANT = {
    **dict.fromkeys(("command", "run", "exec", "argv", "args", "script"), "cmd"),
    **dict.fromkeys(("cron", "schedules", "when", "every", "at", "on-calendar", "time"), "schedule"),
    **dict.fromkeys(("timezone", "time-zone", "zone", "cron-tz"), "tz"),
    **dict.fromkeys(("timeout", "ttl", "max-runtime", "time-limit"), "run-ttl"),
    **dict.fromkeys(("environment", "vars", "variables"), "env"),
    **dict.fromkeys(("dir", "workdir", "working-directory", "working-dir", "chdir", "directory"), "cwd"),
    **dict.fromkeys(("tag", "tags", "host", "hosts", "node", "nodes"), "on"),
    **dict.fromkeys(("every-host", "all-hosts", "each-host"), "each"),
    **dict.fromkeys(("concurrency", "concurrency-policy", "parallel"), "overlap"),
    **dict.fromkeys(("comment", "description", "notes", "doc"), "note"),
    **dict.fromkeys(("retry", "attempts", "max-retries"), "retries"),
    **dict.fromkeys(("disabled", "enabled", "suspend", "suspended", "active"), "paused"),
    **dict.fromkeys(("semaphore", "slots"), "sema"),
    **dict.fromkeys(("healthcheck", "webhook", "url", "notify-url"), "ping"),
    **dict.fromkeys(("notify", "alert", "on-error", "onfailure"), "on-failure"),
    **dict.fromkeys(("random-delay", "randomized-delay-sec", "splay", "spread"), "jitter"),
    **dict.fromkeys(("environment-file", "envfile", "dotenv"), "env-file"),
    **dict.fromkeys(("until", "valid-until", "end"), "expires"),
    **dict.fromkeys(("output", "log", "logs"), "keep-output"),
    **dict.fromkeys(("team", "group"), "set"),
}


def _text(key: str, value: Any) -> str:
    if not isinstance(value, str):
        raise BadInput(f"{key}: must be a text")
    return value


def _texts(key: str, value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise BadInput(f"{key}: must be a text, or a list of texts")
    return list(value)


def _schedules(key: str, value: Any) -> list[str]:
    return [check_written(expression) for expression in _texts(key, value)]


def _set(key: str, value: Any) -> str:
    return check_set(_text(key, value))


def _flag(key: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise BadInput(f"{key}: must be true or false")
    return value


def _count(key: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise BadInput(f"{key}: must be a whole number")
    return value


def _seconds(key: str, value: Any) -> float:
    if isinstance(value, str):
        try:
            return parse_duration(value)
        except BadInput as error:
            raise BadInput(f"{key}: {error}") from None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadInput(f'{key}: must be a duration such as "10m", or a number of seconds')
    if not 0 <= value < float("inf"):
        raise BadInput(f"{key}: {value} is not a duration")
    return float(value) if value < 2**53 else 2.0**53


def _instant(key: str, value: Any) -> str:
    when = value
    if isinstance(value, str):
        try:
            when = datetime.fromisoformat(value)
        except ValueError:
            when = None
    if not isinstance(when, datetime) or when.tzinfo is None:
        raise BadInput(f"{key}: must be an instant with its offset, such as 2026-01-31T12:00:00Z")
    try:
        return rfc3339(when.astimezone(UTC).timestamp())
    except (OverflowError, ValueError):
        raise BadInput(f"{key}: {value} is out of range") from None


def _command(key: str, value: Any) -> list[str]:
    if isinstance(value, str):
        raise BadInput(f'{key}: must be a list, {key} = ["sh", "-c", "…"] for a line of the shell')
    return _texts(key, value)


def _env(key: str, value: Any) -> dict[str, str]:
    if isinstance(value, list):
        return dict(parse_variable(text) for text in _texts(key, value))
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise BadInput(f'{key}: must be a table of texts, {key} = {{LANG = "C"}}')
    return dict(read_environment(value))


KEYS: Mapping[str, Read] = {
    "schedule": _schedules,
    "tz": _text,
    "cmd": _command,
    "run-ttl": _seconds,
    "kill-after": _seconds,
    "overlap": _text,
    "retries": _count,
    "retry-delay": _seconds,
    "start-deadline": _seconds,
    "sema": _text,
    "env": _env,
    "cwd": _text,
    "paused": _flag,
    "paused-until": _instant,
    "paused-reason": _text,
    "on": _texts,
    "each": _flag,
    "expires": _instant,
    "note": _text,
    "jitter": _seconds,
    "keep-output": _text,
    "on-failure": _text,
    "ping": _text,
    "env-file": _texts,
    "set": _set,
}
_FIELDS = {key.replace("-", "_") for key in (*KEYS, "keep")}


def field_of(key: str) -> str | None:
    """Return the field of a job that a key stands for, with `-` or `_` in it; None for an unknown key."""
    field = key.replace("-", "_")
    return field if field in _FIELDS else None


def nearest(key: str) -> str:
    """Return `: did you mean …?` with the known key of that meaning or the nearest spelling, if there is one."""
    plain = key.lower().replace("_", "-").strip()
    if plain in KEYS:
        return f": did you mean {plain}?"
    if plain in _MEANT:
        return f": did you mean {_MEANT[plain]}?"
    known = [*KEYS, *_MEANT]
    close = difflib.get_close_matches(plain, known, 1, 0.6)
    return f": did you mean {_MEANT.get(close[0], close[0])}?" if close else ""


def read_keep(value: Any) -> tuple[str, ...]:
    """Return the paths of fields that stay as etcd has them, such as `env.PASSWORD` or `ping`. Raises `BadInput`."""
    paths = _texts("keep", value)
    for path in paths:
        top, dot, variable = path.partition(".")
        if not top or (dot and (top != "env" or not variable)) or top in ("paused", "keep"):
            raise BadInput(f"keep: {path!r} is neither a field of a job nor env.NAME")
    return tuple(dict.fromkeys(paths))
