"""Refuses schedules that are valid, or nearly so, and mean something else than their author wishes; says what to write.

Only what a person writes now is checked: a job that is in etcd already goes on as it is.
"""

import re

from conch.errors import BadInput
from conch.times import parse_duration

# How many values each field has, and the unit of a step for `@every`; "": there is none.
_FIELDS = (
    ("minute", 60, "m"),
    ("hour", 24, "h"),
    ("day-of-month", 31, "d"),
    ("month", 12, ""),
    ("day-of-week", 7, "d"),
)
_STEP = re.compile(r"[^,/]*/([0-9]{1,9})")
_WORDS = frozenset({"from", "at", "starting", "start", "since", "after", "offset", "beginning", "on"})
_TIME = re.compile(r"([01]?[0-9]|2[0-3]):([0-5][0-9])")
# More schedules than these are no help to anybody.
_MOST_SCHEDULES = 4


def check_written(expression: str) -> str:
    """Return the expression unchanged. Raises `BadInput`, which says what to write instead."""
    words = expression.split()
    if words[:1] and words[0].lower() == "@every" and len(words) > 2:
        raise BadInput(f"bad schedule {expression[:100]!r}: {_every_advice(words)}")
    if len(words) == len(_FIELDS) + 1 and not expression.lstrip().startswith("@"):
        raise BadInput(
            f"bad schedule {expression[:100]!r}: it has 6 fields, not five: a schedule has no seconds; "
            "leave out the first field, or write @every 10s"
        )
    if len(words) == len(_FIELDS):
        for text, (name, size, unit) in zip(words, _FIELDS, strict=True):
            _check_steps(expression, text, name, size, unit)
    return expression


def _check_steps(expression: str, text: str, name: str, size: int, unit: str) -> None:
    """Refuse a step that is wider than its field: it leaves the first value alone."""
    for item in text.split(","):
        match = _STEP.fullmatch(item)
        if match is not None and int(match[1]) > size:
            instead = f"write @every {match[1]}{unit}" if unit else "write the values"
            raise BadInput(
                f"bad schedule {expression[:100]!r}: the step of {name} {item!r} is wider than the field, "
                f"which has {size} values: {instead}"
            )


def _every_advice(words: list[str]) -> str:
    """Say how to write `@every 90m from 08:00`: as times of the day, where they are few."""
    plain = "@every takes one duration and counts from the Unix epoch"
    times = [match for text in words[2:] if (match := _TIME.fullmatch(text))]
    if not (set(map(str.lower, words[2:])) & _WORDS or times):
        return f"{plain}, as in @every 90s"
    try:
        every_min = parse_duration(words[1]) / 60
    except BadInput:
        return f"{plain}, as in @every 90s"
    if len(times) == 1 and every_min >= 1 and every_min == int(every_min) and every_min < 1440:
        start = int(times[0][1]) * 60 + int(times[0][2])
        schedules = _times_of_day(start, int(every_min))
        if len(schedules) <= _MOST_SCHEDULES:
            texts = " ".join(f"--schedule '{schedule}'" for schedule in schedules)
            return f"{plain}; for times from {times[0][0]} to midnight, each day, write {texts}"
    return f"{plain}; for times of the day write them, as in --schedule '0 8-20/3 * * *'"


def _times_of_day(start: int, every: int) -> list[str]:
    """Return schedules for every so many minutes from a minute of the day on, until midnight."""
    hours: dict[int, list[int]] = {}
    for minute in range(start, 1440, every):
        hours.setdefault(minute % 60, []).append(minute // 60)
    return [f"{minute} {','.join(map(str, found))} * * *" for minute, found in hours.items()]
