"""Checks the log of beats: which process ran when, under which token, and whether too many ran at the same time."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

# Beats are due every 10 ms; a process that is starved of CPU writes them later, never earlier.
_CLOSE_S = 0.3


@dataclass(frozen=True, slots=True)
class Interval:
    """A process ran from its first record to its last. `rev` is the fencing token, or the tick."""

    kind: str
    name: str
    rev: int
    pid: int
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Allowance:
    """At `at` a hold was revoked or deleted: for so long its command may overlap with the next holder's."""

    at: float
    seconds: float


def read(path: Path) -> list[Interval]:
    """Return the intervals of a log; a killed process ends with its last beat. A line that is being written is left."""
    found: dict[tuple[str, str, int, int], list[float]] = {}
    text = path.read_text() if path.exists() else ""
    for line in text[: text.rfind("\n") + 1].splitlines():
        kind, name, rev, pid, _, at = line.split()
        found.setdefault((kind, name, int(rev), int(pid)), []).append(float(at))
    return sorted(
        (Interval(*who, min(times), max(times)) for who, times in found.items()), key=lambda interval: interval.start
    )


def holds(intervals: Iterable[Interval]) -> list[Interval]:
    """Return one interval per fencing token: from the first start to the last beat of any process under it."""
    found: dict[tuple[str, str, int], list[Interval]] = {}
    for interval in intervals:
        found.setdefault((interval.kind, interval.name, interval.rev), []).append(interval)
    return sorted(
        (
            Interval(*who, group[0].pid, min(part.start for part in group), max(part.end for part in group))
            for who, group in found.items()
        ),
        key=lambda interval: interval.start,
    )


def overlaps(intervals: Sequence[Interval], most: int, allowances: Sequence[Allowance] = ()) -> list[str]:
    """List the instants from which on more than `most` holds ran at the same time, without allowed overlaps."""
    problems = []
    lasting = [hold for hold in intervals if hold.end > hold.start]  # the others were killed after their first record
    events = sorted(
        [(hold.start, 1, hold) for hold in lasting] + [(hold.end, 0, hold) for hold in lasting], key=_by_time
    )
    running: list[Interval] = []
    for at, begins, hold in events:
        if not begins:
            running.remove(hold)
            continue
        running.append(hold)
        if len(running) <= most:
            continue
        # the overlap lasts until enough of the running holds have ended
        lasts = sorted(other.end for other in running)[len(running) - most - 1] - at
        if any(
            allowed.at <= at and lasts <= allowed.seconds + _CLOSE_S for allowed in allowances if at - allowed.at < 5
        ):
            continue
        who = ", ".join(f"{other.rev} (pid {other.pid})" for other in running)
        problems.append(f"at {at:.3f} for {lasts * 1000:.0f} ms {len(running)} of at most {most} ran: {who}")
    return problems


def _by_time(event: tuple[float, int, Interval]) -> tuple[float, int]:
    return event[0], event[1]


def order(intervals: Sequence[Interval], most: int) -> list[str]:
    """List starts that were not first come, first served; with several slots, a little disorder is allowed."""
    problems = []
    starts = [(hold.start, hold.rev) for hold in intervals]
    for (before, first), (after, second) in pairwise(starts):
        if second < first and (most == 1 or after - before > _CLOSE_S):
            problems.append(f"{second} started at {after:.3f}, after {first} at {before:.3f}")
    return problems


def unexplained(
    missing: Iterable[int], reported: Sequence[tuple[float, float]], witnesses: Sequence[float]
) -> list[int]:
    """Return the unclaimed ticks that no daemon reported as missed although there is a witness.

    `reported` has the first and last tick of each report. A witness is a living daemon that was registered a second
    before the tick.
    """
    return [
        tick
        for tick in missing
        if not any(first <= tick <= last for first, last in reported) and any(since < tick - 1 for since in witnesses)
    ]


def gaps(intervals: Sequence[Interval]) -> list[float]:
    """Return an election's gaps, each from one holder's last sign of life to the next one's first."""
    return [after.start - before.end for before, after in pairwise(intervals)]
