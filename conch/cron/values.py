"""The values that cron writes about a tick: its claim and its result, and the row that users see."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from conch.holder import Holder, UnreadableHolder
from conch.times import rfc3339

# From 2001 to 2286: within these, ticks sort alike as numbers and as texts.
FIRST_TICK, LAST_TICK = 1_000_000_000, 9_999_999_999
_ASKER_CHARACTERS = 200
STATES = ("ok", "failed", "timeout", "skipped", "killed", "lost")
# The states of runs of which somebody is to be told.
FAILED = ("failed", "timeout", "killed", "lost")


def fields_of(value: bytes) -> Mapping[str, Any]:
    """Return the fields of a value; none if it is no JSON object."""
    try:
        data = json.loads(value)
    except (ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}


def claim_value(holder: Holder, run: str, tick: int, request: str = "", *, skip: bool = False) -> bytes:
    """Encode a claim or run key: who has the tick, and the ids of its run and request, which identify repeated tries.

    `skip` says that nothing will run under the claim: nobody waits for it or makes room for it.
    """
    data = {**json.loads(holder.encode()), "tick": tick, "run": run}
    if request:
        data["request"] = request
    if skip:
        data["skip"] = True
    return json.dumps(data, ensure_ascii=False).encode("utf-8", "replace")


def asker(value: bytes) -> str:
    """Say who wrote a request: its user and host, as far as they are a short text."""
    by = fields_of(value).get("by")
    return by[:_ASKER_CHARACTERS] if isinstance(by, str) and by.isprintable() else "somebody"


def whole_tick(value: object) -> int | None:
    """Return a tick read from a value that anyone may have written; None if it is none."""
    return (
        value if isinstance(value, int) and not isinstance(value, bool) and FIRST_TICK <= value <= LAST_TICK else None
    )


def seconds_of(value: object) -> float:
    """Parse an RFC 3339 time in UTC that anyone may have written, as seconds since the epoch; 0 if it is none."""
    try:
        return datetime.strptime(str(value), "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC).timestamp()
    except (ValueError, OverflowError):
        return 0.0


@dataclass(frozen=True, slots=True)
class Result:
    """How a tick ended. `started` is when its first attempt did, in seconds since the epoch (None: there was none).

    `cpu_s` is CPU time in seconds, `max_rss_kb` peak memory in KiB; both None if nothing ran. `output` is the tail
    of what it printed, as far as it is kept.
    """

    node: str
    state: str
    exit: int | None = None
    started: float | None = None
    duration_s: float = 0.0
    attempt: int = 0
    reason: str = ""
    cpu_s: float | None = None
    max_rss_kb: int | None = None
    output: str = ""

    def encode(self) -> bytes:
        """Encode it as one line of JSON, as the contract defines it."""
        return json.dumps(self.fields()).encode()

    def fields(self) -> dict[str, Any]:
        """Return the fields that the contract defines."""
        return {
            "node": self.node,
            "state": self.state,
            "exit": self.exit,
            "started": None if self.started is None else rfc3339(self.started),
            "duration": self.duration_s,
            "attempt": self.attempt,
            "reason": self.reason,
            **({} if self.max_rss_kb is None else {"cpu_s": self.cpu_s, "max_rss_kb": self.max_rss_kb}),
            **({"output": self.output} if self.output else {}),
        }


class Daemons:
    """The daemons that live, as their registrations tell."""

    def __init__(self, registrations: Iterable[bytes] = ()) -> None:
        self._lives = {life for value in registrations if (life := _life(value)) is not None}

    def wrote(self, claim: bytes) -> bool:
        """Whether a daemon that lives made this claim or run key: the very one, not a later one of its host."""
        return _life(claim) in self._lives


def _life(value: bytes) -> tuple[str, int, str] | None:
    """Return what tells one life of a daemon from all others; None if the value does not say it."""
    try:
        holder = Holder.decode(value)
    except UnreadableHolder:
        return None
    return holder.host, holder.pid, holder.started


_NONE_LIVES = Daemons()


def row(
    name: str, tick: int, claim: bytes | None, result: bytes | None, daemons: Daemons = _NONE_LIVES
) -> dict[str, Any]:
    """Return the row shown for a tick: its result, or that it is running, or that a dead daemon has claimed it.

    Raises `UnreadableHolder` if it is neither.
    """
    shown: dict[str, Any] = {"name": name, "tick": rfc3339(tick), "tick_unix": tick}
    names = ("state", "exit", "node", "started", "duration_s", "attempt", "reason", "cpu_s", "max_rss_kb")
    empty = dict.fromkeys(names)
    if result is not None:
        data = fields_of(result)
        state, node = data.get("state"), data.get("node")
        if not isinstance(state, str) or not isinstance(node, str):
            raise UnreadableHolder("not a result")
        return {
            **shown,
            **empty,
            "state": state,
            "exit": _whole_number(data.get("exit")),
            "node": node,
            "started": data.get("started") if isinstance(data.get("started"), str) else None,
            "duration_s": _seconds(data.get("duration")),
            "attempt": _whole_number(data.get("attempt")),
            "reason": str(data.get("reason") or "") or None,
            "cpu_s": _seconds(data.get("cpu_s")),
            "max_rss_kb": _whole_number(data.get("max_rss_kb")),
        }
    holder = Holder.decode(claim or b"")
    state = "running" if daemons.wrote(claim or b"") else "claimed"
    return {**shown, **empty, "state": state, "node": holder.host}


def _whole_number(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**31 else None


def _seconds(value: Any) -> float | None:
    sane = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 2**31
    return value if sane else None
