"""Says in words when a schedule fires, and what the next changes of the zone's clock do to it."""

from collections.abc import Iterator, Sequence

from cron_descriptor import ExpressionDescriptor, Options

from conch.cron.rules import Every, Fields, Rule
from conch.cron.schedule import in_plain_fields, parse_schedule
from conch.cron.zones import changes, load, offset_at, year_of
from conch.times import format_duration

_YEAR_S = 366 * 86400


def describe(expression: str, name: str | None) -> str:
    """Return in words when one expression fires, such as `At 02:30, Monday through Friday`. It must be valid."""
    fields = in_plain_fields(expression, name)
    if fields is None:
        return f"Every {_plain_duration(expression)}, counted from 1970-01-01T00:00:00Z"
    options = Options()
    options.use_24hour_time_format = True
    text = str(ExpressionDescriptor(" ".join(fields).upper(), options).get_description())
    if (fields[2].startswith("*") or fields[4].startswith("*")) and "*" not in (fields[2], fields[4]):
        # the library follows crons in which a day in either field will do
        text = text.replace(", or ", ", and only ")
    return text


def _plain_duration(expression: str) -> str:
    seconds = parse_schedule(expression).rules[0].next_after(0)
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds and seconds % size == 0:
            return f"{seconds // size}{unit}"
    return format_duration(float(seconds or 0))


def clock_changes(
    expressions: Sequence[str], zone: str, name: str | None, after: int, within_s: int = _YEAR_S
) -> Iterator[str]:
    """Yield a line for each change of the zone's clock within a year that moves, drops or doubles a tick."""
    rules = [(text, parse_schedule(text, zone=zone, name=name).rules[0]) for text in expressions]
    loaded = load(zone)
    if loaded is None:
        return
    for year in range(year_of(after), year_of(after + within_s) + 1):
        for change, later in changes(loaded, year):
            earlier = offset_at(loaded, change - 1)
            if after < change <= after + within_s:
                for text, rule in rules:
                    line = _what_changes(rule, change, earlier, later)
                    if line:
                        day = _wall(change + earlier, with_day=True)
                        yield f"{day} the clock is set to {_wall(change + later)}: {text}: {line}"


def _what_changes(rule: Rule, change: int, earlier: int, later: int) -> str:
    """Say what becomes of the ticks at local times that the clock skips or shows twice; empty if there are none."""
    if isinstance(rule, Every):
        return ""
    begin, end = sorted((change + earlier, change + later))
    times = _matching(rule, begin, end)
    if not times:
        return ""
    if later > earlier:
        return f"{times} does not exist; " + (f"it fires at {_wall(end)} instead" if rule.fixed else "it does not fire")
    return f"{times} comes twice; it fires " + ("the first time" if rule.fixed else "both times")


def _matching(rule: Fields, begin: int, end: int) -> str:
    """Format the local times of a rule from `begin` on and before `end`: the first, and the last if there are more."""
    first = rule.calendar.first_from(begin, end)
    if first is None:
        return ""
    count = rule.calendar.count(begin, end)
    if count == 1:
        return _wall(first)
    last = first
    while (following := rule.calendar.first_from(last + 60, end)) is not None:
        last = following
    return f"{_wall(first)} to {_wall(last)}"


def _wall(local: int, *, with_day: bool = False) -> str:
    """Format a local time, given as seconds since the clock showed 1970."""
    from conch.times import rfc3339

    date, _, time = rfc3339(local).rstrip("Z").partition("T")
    return f"{date} {time[:5]}" if with_day else time[:5]
