"""Finds in the log of an etcd that has ended the one line that says why."""

import json
import re

_LONGEST = 300
_FATAL = ("fatal", "panic")
# What it says of every error of its start, whatever the error is.
_EMPTY_WORDS = "discovery failed"
_NOT_THE_CAUSE = ("level", "ts", "caller", "msg", "error", "panic", "stacktrace", "job")
# etcd 3.4: "2026-11-26 21:39:40.944732 C | etcdmain: no such file"
_PLAIN = re.compile(r"\d{4}-\d\d-\d\d [\d:.]+ ([A-Z]) \| (.*)")
# a refused option comes before a page of help, a panic before its stack
_UNPREFIXED = re.compile(
    r"(?:panic: |fatal error: |flag provided but not defined|invalid (?:boolean )?value |error verifying flags)"
)


def cause(log: str) -> str:
    """The last line by which etcd gave up, as text; else the last line that is not blank; else nothing.

    Knows the JSON of 3.5 and later, 3.4's own format, and what Go writes itself.
    """
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    # what etcd logs of a panic says more than what Go prints of it
    said = next(filter(None, map(_fatal, reversed(lines))), None) or next(filter(_UNPREFIXED.match, lines), None)
    if said is None:
        said = _text(lines[-1]) if lines else ""
    return said[:_LONGEST]


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
    """A line without what surrounds its words."""
    entry = _entry(line)
    if plain := _PLAIN.match(line):
        return plain[2]
    words = [str(entry[field]) for field in ("msg", "error", "panic") if entry.get(field)]
    if len(words) > 1 and words[0] == _EMPTY_WORDS:
        del words[0]
    details = " ".join(f"{field}={value}" for field, value in entry.items() if field not in _NOT_THE_CAUSE)
    return (": ".join(words) + (f" ({details})" if details else "")) if words else line
