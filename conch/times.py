"""Durations as people write them (`300ms`, `10s`, `1m30s`, `2h`, plain seconds), and dates in RFC 3339."""

import re
import time

from conch.errors import BadInput

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_NUMBER = r"(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)"
_PLAIN = re.compile(_NUMBER)
_PART = re.compile(rf"({_NUMBER})(ms|s|m|h)")
_COMPOUND = re.compile(rf"(?:{_NUMBER}(?:ms|s|m|h))+")
LONGEST_S = 100 * 365 * 86400.0


def parse_duration(text: str) -> float:
    """Return the duration in seconds; raise `BadInput` for anything negative, endless or unclear."""
    if _PLAIN.fullmatch(text):
        seconds = float(text)
    elif _COMPOUND.fullmatch(text):
        seconds = sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(text))
    else:
        raise BadInput(f"{text!r} is not a duration (write 300ms, 10s, 1m30s, 2h or seconds)")
    if seconds > LONGEST_S:
        raise BadInput(f"{text!r} is too long (at most 100 years)")
    return seconds


def format_duration(seconds: float) -> str:
    """Return seconds as text, to the millisecond: `0.3s`, `10s`."""
    return f"{seconds:.3f}".rstrip("0").rstrip(".") + "s"


def rfc3339(unix: float) -> str:
    """Return a Unix time as a date in UTC, with seconds."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(unix))
