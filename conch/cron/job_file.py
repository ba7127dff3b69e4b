"""Reads definitions of jobs from TOML files, as `conch cron apply` takes them. See docs/cron.md for the format."""

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from conch.cron.definition import build, check_set
from conch.cron.job_keys import KEYS, field_of, nearest, read_keep
from conch.cron.toml_lines import lines_of
from conch.errors import BadInput
from conch.keys import check_name


@dataclass(frozen=True, slots=True)
class FileJob:
    """A job of a file: its fields as in etcd, and the paths of those that stay as etcd has them."""

    name: str
    fields: Mapping[str, Any]
    keep: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class JobFile:
    """The jobs of a file, and the set that it names, if any. `text` is the file's, for messages."""

    label: str
    text: str
    set: str | None
    jobs: Mapping[str, FileJob]

    def line_of(self, name: str) -> str:
        """Return where a job stands, such as `jobs.toml:7`."""
        return _where(self.label, self.text, ("job", name))


class _Problem(Exception):
    """What is wrong with a value, and the keys that lead to it."""

    def __init__(self, path: tuple[str, ...], text: str) -> None:
        super().__init__(text)
        self.path = path


def read_files(sources: Sequence[tuple[str, bytes]]) -> list[JobFile]:
    """Read files (label and content). Raises `BadInput`: one line that says the file, the line and what is wrong."""
    files = [read_file(label, content) for label, content in sources]
    first: dict[str, JobFile] = {}
    for file in files:
        for name in file.jobs:
            if name in first:
                raise BadInput(f"{file.line_of(name)}: job {name} is in {first[name].line_of(name)}, too")
            first[name] = file
    return files


def read_file(label: str, content: bytes) -> JobFile:
    """Read one file. Raises `BadInput`."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInput(f"{label}:{content[: error.start].count(10) + 1}: not UTF-8") from None
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise BadInput(f"{label}:{_syntax_error(str(error), text)}") from None
    except (RecursionError, ValueError) as error:
        # a number of thousands of digits, or brackets as deep
        raise BadInput(f"{label}: {error}") from None
    try:
        return _file(label, text, data)
    except _Problem as problem:
        raise BadInput(f"{_where(label, text, problem.path)}: {problem}") from None


def _syntax_error(message: str, text: str) -> str:
    match = re.fullmatch(r"(.*) \(at (?:line (\d+), column \d+|end of document)\)", message, re.DOTALL)
    if match is None:
        return f" {message}"
    return f"{match[2] or text.count(chr(10)) + 1}: {match[1]}"


def _where(label: str, text: str, path: tuple[str, ...]) -> str:
    lines = lines_of(text)
    while path and path not in lines:
        path = path[:-1]
    return f"{label}:{lines.get(path, 1)}"


def _file(label: str, text: str, data: Mapping[str, Any]) -> JobFile:
    for key in data:
        if key not in ("set", "job"):
            hint = "jobs are tables such as [job.backup]" if key in KEYS or key == "jobs" else "known: set, job"
            raise _Problem((key,), f"unknown key {key!r}: {hint}")
    jobs = data.get("job", {})
    if not isinstance(jobs, dict):
        raise _Problem(("job",), "job: jobs are tables such as [job.backup]")
    name = _checked(("set",), check_set, data["set"]) if "set" in data else None
    found = {}
    for job, table in jobs.items():
        path = ("job", job)
        _checked(path, check_name, job)
        if not isinstance(table, dict):
            raise _Problem(path, f"job {job}: must be a table, [job.{job}]")
        found[job] = _job(path, table, name)
    return JobFile(label, text, name, found)


def _checked(path: tuple[str, ...], check: Any, value: Any) -> Any:
    if not isinstance(value, str):
        raise _Problem(path, f"{path[-1]}: must be a text")
    try:
        return check(value)
    except BadInput as error:
        raise _Problem(path, str(error)) from None


def _job(path: tuple[str, ...], table: Mapping[str, Any], default_set: str | None) -> FileJob:
    """Read a job's table; check it as `add` does, as far as it does not depend on what is in etcd."""
    name = path[-1]
    fields: dict[str, Any] = {} if default_set is None else {"set": default_set}
    spelled: dict[str, str] = {}
    keep: tuple[str, ...] = ()
    for key, value in table.items():
        field = field_of(key)
        if field is None:
            raise _Problem((*path, key), f"job {name}: unknown key {key!r}{nearest(key)}")
        if field in spelled:
            raise _Problem((*path, key), f"job {name}: {key} and {spelled[field]} are the same key")
        spelled[field] = key
        try:
            if field == "keep":
                keep = read_keep(value)
            else:
                fields[field] = KEYS[field.replace("_", "-")](key, value)
        except BadInput as error:
            raise _Problem((*path, key), f"job {name}: {error}") from None
    _check_all(path, fields, keep, spelled)
    return FileJob(name, fields, keep)


def _check_all(
    path: tuple[str, ...], fields: Mapping[str, Any], keep: Sequence[str], spelled: Mapping[str, str]
) -> None:
    name = path[-1]
    for field in ("schedule", "cmd"):
        if field not in fields and field not in keep:
            raise _Problem(path, f"job {name}: {field} is missing")
    for kept in keep:
        top, _, variable = kept.partition(".")
        if (variable in fields.get("env", {})) if variable else top in fields:
            raise _Problem((*path, "keep"), f"job {name}: keep names {kept}, which the file sets")
    for field in ("paused_until", "paused_reason"):
        if field in fields and fields.get("paused") is not True:
            raise _Problem((*path, spelled[field]), f"job {name}: {spelled[field]} needs paused = true")
    stand_ins = {"schedule": ["@daily"], "cmd": ["true"]}
    try:
        build(name, {**{field: value for field, value in stand_ins.items() if field in keep}, **fields})
    except BadInput as error:
        text = str(error)
        field = "schedule" if "schedule" in text else "tz" if "zone" in text else text.partition(":")[0]
        raise _Problem((*path, spelled.get(field, "")), f"job {name}: {text}") from None
