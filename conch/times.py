"""Durations as people write them (`300ms`, `10s`, `1m30s`, `2h`, `1d`, `2w`, plain seconds), and dates in RFC 3339."""

import time

from conch.errors import BadInput

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
LONGEST_S = 100 * 365 * 86400.0


def parse_duration(text: str) -> float:
    """Return the duration in seconds; raise `BadInput` for anything negative, endless or unclear."""
    seconds = _number(text)
    if seconds is None:
        seconds = _compound(text)
    if seconds is None:
        raise BadInput(f"{text!r} is not a duration (write 300ms, 10s, 1m30s, 2h, 1d or seconds)")
    if seconds > LONGEST_S:
        raise BadInput(f"{text!r} is too long (at most 100 years)")
    return seconds


def _number(text: str) -> float | None:
    """Return digits, with or without a decimal point, as a number; None for anything else."""
    digits = text.replace(".", "", 1)
    return float(text) if digits.isascii() and digits.isdecimal() else None


def _compound(text: str) -> float | None:
    """Return the seconds of numbers that each have a unit; None for anything else."""
    seconds = []
    while text:
        after_number = text.lstrip("0123456789.")
        rest = after_number.lstrip("mhsdw")
        number = _number(text[: len(text) - len(after_number)])
        unit = _UNITS.get(after_number[: len(after_number) - len(rest)])
        if number is None or unit is None:
            return None
        seconds.append(number * unit)
        text = rest
    return sum(seconds) if seconds else None


def format_duration(seconds: float) -> str:
    """Return seconds as text, to the millisecond: `0.3s`, `10s`."""
    return f"{seconds:.3f}".rstrip("0").rstrip(".") + "s"


def rfc3339(unix: float) -> str:
    """Return a Unix time as a date in UTC, with seconds."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(unix))
