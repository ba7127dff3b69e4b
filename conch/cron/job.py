"""A job: what to run, when, and under which rules. In etcd it is one line of JSON, signed if its owner wants."""

import hashlib
import hmac
import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from conch.cron.features import derived_needs
from conch.cron.job_fields import (
    KEEP_OUTPUT,
    LONGEST_S,
    parse_semaphore,
    read_command,
    read_count,
    read_env_file,
    read_environment,
    read_flag,
    read_instant,
    read_path,
    read_schedules,
    read_seconds,
    read_shell_command,
    read_tags,
    read_text,
    read_texts,
    read_url,
)
from conch.cron.schedule import Schedule, parse_schedules
from conch.errors import BadInput
from conch.keys import check_name

LARGEST_BYTES = 32768
OVERLAPS = ("forbid", "allow", "replace")
_DEADLINE_S = 60.0
_DEEPEST = 32
# JSON that others wrote may become longer when we write it, but not by more than this factor (as 1e15 written in full).
_GROWTH = 6


class UnreadableJob(ValueError):
    """A value that is not a job."""


@dataclass(frozen=True, slots=True)
class Job:
    """A job as its value in etcd defines it; durations in seconds, instants in Unix seconds.

    `needs` are the features that a daemon must have to run it, see `features`. `value` is that value, or as it is to be
    written. It takes a fourth of the memory of its fields.
    """

    name: str
    schedules: tuple[str, ...]
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
    paused_until: int | None
    on: tuple[str, ...]
    each: bool
    expires: int | None
    jitter_s: float
    keep_output: str
    on_failure: str | None
    ping: str | None
    env_files: tuple[str, ...]
    needs: tuple[str, ...]
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
        return parse_schedules(self.schedules, zone=self.tz, name=self.name, until=self.expires)

    @property
    def schedule(self) -> str:
        """The schedules for people."""
        return "; ".join(self.schedules)

    def is_paused_at(self, instant: float) -> bool:
        """Whether the job is paused at an instant: it may be paused for good, or until a moment."""
        return self.paused and (self.paused_until is None or instant < self.paused_until)

    def next_tick(self, after: int, schedule: Schedule | None = None) -> int | None:
        """Return the first tick later than `after` at which the job is not paused. `schedule` is `ticks()`."""
        if self.paused:
            if self.paused_until is None:
                return None
            after = max(after, self.paused_until - 1)
        return (schedule or self.ticks()).next_after(after)

    def offset_s(self, tick: int, following: int | None) -> float:
        """Return how long after the tick it is due: below `jitter_s`, and before the following tick.

        It is drawn from job and tick, so all hosts have the same; it is in whole milliseconds.
        """
        limit_s = self.jitter_s if following is None else min(self.jitter_s, following - tick)
        if not limit_s:
            return 0.0
        digest = hashlib.sha256(f"jitter\0{self.name}\0{tick}".encode()).digest()
        return int.from_bytes(digest[:8]) % max(1, int(limit_s * 1000)) / 1000

    def late_after_s(self, tick: int, following: int | None) -> float:
        """Return how long after it is due this tick may be claimed or started."""
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
        return define(self.name, raw)

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


def define(name: str, fields: Mapping[str, Any]) -> Job:
    """Build the job to be written with these fields. Raises `BadInput`.

    A job that needs a feature says so, and has a list of schedules: daemons that do not know `needs` find a text there
    or cannot read the job. So no daemon claims its ticks that would run it otherwise than it says.
    """
    schedules = read_schedules(fields)
    needs = derived_needs(fields, schedules)
    written = {name: value for name, value in fields.items() if name != "needs"}
    written["schedule"] = schedules[0] if not needs else list(schedules)
    return decode(name, {**written, **({"needs": needs} if needs else {})})


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
    schedules = tuple(map(sys.intern, read_schedules(data)))
    job = Job(
        name=name,
        schedules=schedules,
        cmd=read_command(data.get("cmd")),
        tz=sys.intern(read_text(data, "tz", "UTC")),
        run_ttl_s=read_seconds(data, "run_ttl", 600.0, above=0.0),
        kill_after_s=read_seconds(data, "kill_after", 5.0),
        overlap=sys.intern(read_text(data, "overlap", "forbid")),
        retries=read_count(data, "retries"),
        retry_delay_s=read_seconds(data, "retry_delay", 30.0),
        start_deadline_s=None
        if data.get("start_deadline") is None
        else read_seconds(data, "start_deadline", 0.0, above=0.0),
        semaphore=None if data.get("sema") is None else parse_semaphore(read_text(data, "sema")),
        env=read_environment(data.get("env")),
        cwd=None if data.get("cwd") is None else read_path("cwd", read_text(data, "cwd")),
        paused=read_flag(data, "paused"),
        paused_until=read_instant(data, "paused_until"),
        on=read_tags(data, "on"),
        each=read_flag(data, "each"),
        expires=read_instant(data, "expires"),
        jitter_s=read_seconds(data, "jitter", 0.0),
        keep_output=sys.intern(read_text(data, "keep_output", "failed")),
        on_failure=read_shell_command(data, "on_failure"),
        ping=read_url(data, "ping"),
        env_files=tuple(read_env_file(path) for path in read_texts(data, "env_file")),
        needs=tuple(derived_needs(data, schedules)),
        value=_encode(data) if value is None else value,
    )
    if job.overlap not in OVERLAPS:
        raise BadInput(f"overlap: {job.overlap!r} is none of {', '.join(OVERLAPS)}")
    if job.keep_output not in KEEP_OUTPUT:
        raise BadInput(f"keep_output: {job.keep_output!r} is none of {', '.join(KEEP_OUTPUT)}")
    if job.run_ttl_s * (job.retries + 1) + job.retry_delay_s * job.retries > LONGEST_S:
        raise BadInput("run-ttl, retries and retry-delay together are more than 24 h")
    job.ticks()
    if len(job.value) > LARGEST_BYTES // _GROWTH and len(job.encode()) > LARGEST_BYTES:
        raise BadInput(f"the job is too large: at most {LARGEST_BYTES} bytes of JSON")
    return job
