"""A job: what to run, when, and under which rules. In etcd it is one line of JSON, signed if its owner wants."""

import hashlib
import hmac
import json
import math
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from conch.cron.schedule import Schedule, parse_schedule
from conch.errors import BadInput
from conch.keys import check_name

LONGEST_S = 86400.0
LARGEST_BYTES = 32768
OVERLAPS = ("forbid", "allow", "replace")
_DEADLINE_S = 60.0
_DEEPEST = 32
# JSON that others wrote may become longer when we write it, but not by more than this factor (as 1e15 written in full).
_GROWTH = 6
_NO_VARIABLES: Mapping[str, str] = {}
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SEMAPHORE = re.compile(r"(.+):([1-9][0-9]{0,3})")


class UnreadableJob(ValueError):
    """A value that is not a job."""


@dataclass(frozen=True, slots=True)
class Job:
    """A job as its value in etcd defines it; durations in seconds.

    `value` is that value, or as it is to be written. It takes a fourth of the memory of its fields.
    """

    name: str
    schedule: str
    cmd: tuple[str, ...]
    tz: str
    run_ttl_s: float
    kill_after_s: float
    overlap: str
    retries: int
    retry_delay_s: float
    start_deadline_s: float | None
    semaphore: tuple[str, int] | None
    env: Mapping[str, str]
    cwd: str | None
    paused: bool
    value: bytes = field(compare=False)

    @property
    def raw(self) -> Mapping[str, Any]:
        """All fields as written, those unknown to us among them; read anew each time."""
        fields: dict[str, Any] = json.loads(self.value)
        return fields

    @property
    def exclusive(self) -> bool:
        """Whether a run holds the job's run key."""
        return self.overlap != "allow"

    def ticks(self) -> Schedule:
        """Parse the schedule: when the job is due."""
        return parse_schedule(self.schedule, zone=self.tz, name=self.name)

    def late_after_s(self, tick: int, following: int | None) -> float:
        """Return how late this tick may be claimed or started."""
        if self.start_deadline_s is not None:
            return self.start_deadline_s
        return _DEADLINE_S if following is None else min(_DEADLINE_S, float(following - tick))

    def encode(self) -> bytes:
        """Encode it as one line of JSON."""
        return _encode(self.raw)

    def signed(self, key: bytes | None) -> "Job":
        """Return the same job signed with this key, or without a signature."""
        raw = {name: value for name, value in self.raw.items() if name != "sig"}
        if key is not None:
            raw["sig"] = self._signature(key)
        return decode(self.name, raw)

    def changed(self, **fields: Any) -> "Job":
        """Return the job with these fields replaced, unsigned."""
        raw = {name: value for name, value in {**self.raw, **fields}.items() if name != "sig"}
        return decode(self.name, raw)

    @property
    def is_signed(self) -> bool:
        """Whether it has a signature, good or bad."""
        return "sig" in self.raw

    def is_signed_by(self, key: bytes) -> bool:
        """Return whether this key made the signature, for this very job."""
        signature = self.raw.get("sig")
        return (
            isinstance(signature, str) and signature.isascii() and hmac.compare_digest(signature, self._signature(key))
        )

    def _signature(self, key: bytes) -> str:
        """Compute HMAC-SHA256 over the canonical job: its name and all its fields, known or not."""
        fields = {name: value for name, value in self.raw.items() if name != "sig"}
        canonical = json.dumps([self.name, fields], sort_keys=True, separators=(",", ":"))
        return hmac.new(key, canonical.encode(), hashlib.sha256).hexdigest()


def parse(name: str, value: bytes) -> Job:
    """Parse the job in a value of etcd. Raises `UnreadableJob`, which says what is wrong."""
    if len(value) > LARGEST_BYTES:
        raise UnreadableJob(f"{len(value)} bytes; a job has at most {LARGEST_BYTES}")
    try:
        data = _JSON.decode(value.decode(json.detect_encoding(value), "surrogatepass"))
    except (ValueError, RecursionError) as error:
        raise UnreadableJob(f"no JSON: {error}") from None
    try:
        return _decode(name, data, value)
    except BadInput as error:
        raise UnreadableJob(str(error)) from None


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number")


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _no_number(text)


_JSON = json.JSONDecoder(parse_constant=_no_number, parse_float=_finite)


def _encode(fields: Mapping[str, Any]) -> bytes:
    text = json.dumps(fields, ensure_ascii=False)
    try:
        return text.encode()
    except UnicodeEncodeError:
        return json.dumps(fields).encode()  # arguments that are not UTF-8 travel as lone surrogates


def _check_depth(data: Any) -> None:
    """Refuse what is nested deeper than any job needs: JSON this deep can be read, but not written again."""
    level, depth = [data], 0
    while level:
        depth += 1
        if depth > _DEEPEST:
            raise BadInput("the job is nested too deep")
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]


def decode(name: str, data: Any) -> Job:
    """Build the job that these fields define; unknown fields are kept and ignored. Raises `BadInput`."""
    return _decode(name, data, None)


def _decode(name: str, data: Any, value: bytes | None) -> Job:
    """Build the job that these fields define, which were read from this value, if from any."""
    check_name(name)
    if not isinstance(data, dict):
        raise BadInput("a job is a JSON object")
    if value is None or value.count(b"[") + value.count(b"{") > _DEEPEST:
        _check_depth(data)
    job = Job(
        name=name,
        schedule=sys.intern(_text(data, "schedule")),
        cmd=_command(data.get("cmd")),
        tz=sys.intern(_text(data, "tz", "UTC")),
        run_ttl_s=_seconds(data, "run_ttl", 600.0, above=0.0),
        kill_after_s=_seconds(data, "kill_after", 5.0),
        overlap=sys.intern(_text(data, "overlap", "forbid")),
        retries=_count(data, "retries"),
        retry_delay_s=_seconds(data, "retry_delay", 30.0),
        start_deadline_s=None
        if data.get("start_deadline") is None
        else _seconds(data, "start_deadline", 0.0, above=0.0),
        semaphore=None if data.get("sema") is None else parse_semaphore(_text(data, "sema")),
        env=_environment(data.get("env")),
        cwd=None if data.get("cwd") is None else _directory(_text(data, "cwd")),
        paused=_flag(data, "paused"),
        value=_encode(data) if value is None else value,
    )
    if job.overlap not in OVERLAPS:
        raise BadInput(f"overlap: {job.overlap!r} is none of {', '.join(OVERLAPS)}")
    if job.run_ttl_s * (job.retries + 1) + job.retry_delay_s * job.retries > LONGEST_S:
        raise BadInput("run-ttl, retries and retry-delay together are more than 24 h")
    job.ticks()
    if len(job.value) > LARGEST_BYTES // _GROWTH and len(job.encode()) > LARGEST_BYTES:
        raise BadInput(f"the job is too large: at most {LARGEST_BYTES} bytes of JSON")
    return job


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


def _text(data: Mapping[str, Any], field: str, default: str | None = None) -> str:
    value = data.get(field, default)
    if not isinstance(value, str):
        raise BadInput(f"{field}: must be a text")
    return value


def _number(data: Mapping[str, Any], field: str, default: float) -> float:
    value = data.get(field, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadInput(f"{field}: must be a number")
    return value


def _seconds(data: Mapping[str, Any], field: str, default: float, *, above: float | None = None) -> float:
    value = _number(data, field, default)
    if not 0 <= value <= LONGEST_S or (above is not None and value <= above):
        more = "more than 0 and" if above is not None else "0 or more, and"
        raise BadInput(f"{field}: must be {more} at most 24 h, in seconds")
    return float(value)


def _count(data: Mapping[str, Any], field: str) -> int:
    value = _number(data, field, 0)
    if not isinstance(value, int) or not 0 <= value <= 1000:
        raise BadInput(f"{field}: must be a whole number from 0 to 1000")
    return value


def _flag(data: Mapping[str, Any], field: str) -> bool:
    value = data.get(field, False)
    if not isinstance(value, bool):
        raise BadInput(f"{field}: must be true or false")
    return value


def _command(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not value or not all(isinstance(argument, str) for argument in value):
        raise BadInput("cmd: must be a list of texts, the command first")
    if not value[0] or any("\0" in argument for argument in value):
        raise BadInput("cmd: the command is empty, or a NUL is in it")
    return tuple(value)


def _environment(value: Any) -> Mapping[str, str]:
    if value is None or value == {}:
        return _NO_VARIABLES
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise BadInput("env: must be an object of texts")
    for name, text in value.items():
        if not _VARIABLE.fullmatch(name) or "\0" in text:
            raise BadInput(f"env: {name!r} is not a name, or a NUL is in its value")
    return dict(value)


def _directory(path: str) -> str:
    if not path.startswith("/") or "\0" in path:
        raise BadInput(f"cwd: {path!r} is not an absolute path")
    return path
