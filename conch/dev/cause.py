"""Finds in the log of an etcd that has ended the line that says why."""

import json
import re

_LONGEST = 300
_FATAL = ("fatal", "panic")
# etcd begins the message of every error at its start with this, whatever the error is.
_MEANINGLESS = "discovery failed"
_NOT_THE_CAUSE = ("level", "ts", "caller", "msg", "error", "panic", "stacktrace", "job")
# etcd 3.4: "2026-11-26 21:39:40.944732 C | etcdmain: no such file"
_PLAIN = re.compile(r"\d{4}-\d\d-\d\d [\d:.]+ ([A-Z]) \| (.*)")
# a refused option is followed by a page of help, a panic by its stack
_UNPREFIXED = re.compile(
    r"(?:panic: |fatal error: |flag provided but not defined|invalid (?:boolean )?value |error verifying flags)"
)


def cause(log: str) -> str:
    """Return the text of the line that says why etcd ended; else the last line that is not blank; else nothing.

    Reads the JSON of 3.5 and later, the format of 3.4, and what the Go runtime writes itself.
    """
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    # etcd's own line about a panic says more than the one that Go prints
    text = next(filter(None, map(_fatal, reversed(lines))), None) or next(filter(_UNPREFIXED.match, lines), None)
    if text is None:
        text = _text(lines[-1]) if lines else ""
    return text[:_LONGEST]


def _fatal(line: str) -> str | None:
    if plain := _PLAIN.match(line):
        return plain[2] if plain[1] == "C" else None
    return _text(line) if _entry(line).get("level") in _FATAL else None


def _entry(line: str) -> dict[str, object]:
    try:
        entry = json.loads(line) if line.startswith("{") else None
    except ValueError:
        entry = None
    return entry if isinstance(entry, dict) else {}


def _text(line: str) -> str:
    """Return the message of a log line, with its details but without time, level and place in the source."""
    entry = _entry(line)
    if plain := _PLAIN.match(line):
        return plain[2]
    parts = [str(entry[field]) for field in ("msg", "error", "panic") if entry.get(field)]
    if len(parts) > 1 and parts[0] == _MEANINGLESS:
        del parts[0]
    details = " ".join(f"{field}={value}" for field, value in entry.items() if field not in _NOT_THE_CAUSE)
    return (": ".join(parts) + (f" ({details})" if details else "")) if parts else line
