"""The fields of a job, checked one by one. Every reader raises `BadInput`, which names the field."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

from conch.errors import BadInput
from conch.keys import check_name

LONGEST_S = 86400.0
KEEP_OUTPUT = ("failed", "always", "never")
_MOST = 100  # schedules, tags or files that one job names
_TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@:+=-]{0,127}")
_NO_VARIABLES: Mapping[str, str] = {}
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SEMAPHORE = re.compile(r"(.+):([1-9][0-9]{0,3})")


def parse_semaphore(text: str) -> tuple[str, int]:
    """Parse `NAME:N`; raises `BadInput`."""
    match = _SEMAPHORE.fullmatch(text)
    if match is None or int(match[2]) > 1000:
        raise BadInput(f"sema: {text!r} is not NAME:N with N from 1 to 1000")
    return check_name(match[1]), int(match[2])


def parse_variable(text: str) -> tuple[str, str]:
    """Parse `NAME=VALUE` of an environment; raises `BadInput`."""
    name, separator, value = text.partition("=")
    if not separator or not _VARIABLE.fullmatch(name) or "\0" in value:
        raise BadInput(f"env: {text!r} is not NAME=VALUE")
    return name, value


def read_text(data: Mapping[str, Any], field: str, default: str | None = None) -> str:
    """Return a text."""
    value = data.get(field, default)
    if not isinstance(value, str):
        raise BadInput(f"{field}: must be a text")
    return value


def read_number(data: Mapping[str, Any], field: str, default: float) -> float:
    """Return a number."""
    value = data.get(field, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadInput(f"{field}: must be a number")
    return value


def read_seconds(data: Mapping[str, Any], field: str, default: float, *, above: float | None = None) -> float:
    """Return a duration of at most 24 h, in seconds."""
    value = read_number(data, field, default)
    if not 0 <= value <= LONGEST_S or (above is not None and value <= above):
        more = "more than 0 and" if above is not None else "0 or more, and"
        raise BadInput(f"{field}: must be {more} at most 24 h, in seconds")
    return float(value)


def read_count(data: Mapping[str, Any], field: str) -> int:
    """Return a whole number from 0 to 1000."""
    value = read_number(data, field, 0)
    if not isinstance(value, int) or not 0 <= value <= 1000:
        raise BadInput(f"{field}: must be a whole number from 0 to 1000")
    return value


def read_flag(data: Mapping[str, Any], field: str) -> bool:
    """Return a truth value; absent means false."""
    value = data.get(field, False)
    if not isinstance(value, bool):
        raise BadInput(f"{field}: must be true or false")
    return value


def read_command(value: Any) -> tuple[str, ...]:
    """Return a command and its arguments."""
    if not isinstance(value, list) or not value or not all(isinstance(argument, str) for argument in value):
        raise BadInput("cmd: must be a list of texts, the command first")
    if not value[0] or any("\0" in argument for argument in value):
        raise BadInput("cmd: the command is empty, or a NUL is in it")
    return tuple(value)


def read_environment(value: Any) -> Mapping[str, str]:
    """Return variables by name."""
    if value is None or value == {}:
        return _NO_VARIABLES
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise BadInput("env: must be an object of texts")
    for name, text in value.items():
        if not _VARIABLE.fullmatch(name) or "\0" in text:
            raise BadInput(f"env: {name!r} is not a name, or a NUL is in its value")
    return dict(value)


def read_path(field: str, path: str) -> str:
    """Return an absolute path."""
    if not path.startswith("/") or "\0" in path:
        raise BadInput(f"{field}: {path!r} is not an absolute path")
    return path


def read_env_file(path: str) -> str:
    """Return an absolute path; a `-` before it says that the file need not exist."""
    read_path("env_file", path.removeprefix("-"))
    return path


def read_texts(data: Mapping[str, Any], field: str) -> tuple[str, ...]:
    """Return a list of texts without repetitions, in its order; absent means empty."""
    value = data.get(field)
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value) or len(value) > _MOST:
        raise BadInput(f"{field}: must be a list of at most {_MOST} texts")
    return tuple(dict.fromkeys(value))


def read_schedules(data: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the cron expressions: of a text, or of a list of texts."""
    value = data.get("schedule")
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list) or not value:
        raise BadInput("schedule: must be a text, or a list of texts")
    return read_texts(data, "schedule")


def read_tags(data: Mapping[str, Any], field: str) -> tuple[str, ...]:
    """Return the tags that a host needs."""
    return tuple(check_tag(tag) for tag in read_texts(data, field))


def check_tag(tag: str) -> str:
    """Return the tag unchanged if it is one: a word such as `gpu`, or `KEY=VALUE` such as `host=db-1`."""
    if not _TAG.fullmatch(tag):
        raise BadInput(f"bad tag {tag!r}: 1 to 128 of A-Z a-z 0-9 . _ @ : + = - and a letter or digit first")
    return tag


def read_instant(data: Mapping[str, Any], field: str) -> int | None:
    """Return an instant in Unix seconds from RFC 3339 in UTC; None if it is absent."""
    value = data.get(field)
    if value is None:
        return None
    try:
        return int(datetime.strptime(str(value), "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC).timestamp())
    except (ValueError, OverflowError):
        raise BadInput(f"{field}: {value!r} is not a time such as 2026-01-31T12:00:00Z") from None


def read_url(data: Mapping[str, Any], field: str) -> str | None:
    """Return the URL of an HTTP service; None if it is absent."""
    if data.get(field) is None:
        return None
    url = read_text(data, field)
    try:
        parts = urlsplit(url)
        is_url = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_url = False
    if not is_url or not url.isascii() or not url.isprintable() or " " in url:
        raise BadInput(f"{field}: {url!r} is not a URL such as https://host/path")
    return url


def read_shell_command(data: Mapping[str, Any], field: str) -> str | None:
    """Return a command for the shell; None if it is absent."""
    if data.get(field) is None:
        return None
    command = read_text(data, field)
    if not command.strip() or "\0" in command:
        raise BadInput(f"{field}: the command is empty, or a NUL is in it")
    return command
