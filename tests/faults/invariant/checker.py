"""Judges the log of beats: who ran when, under what, and whether more ran at once than may."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

# Beats come every 10 ms; a process that is starved of CPU writes them later, never earlier.
_CLOSE_S = 0.3


@dataclass(frozen=True, slots=True)
class Interval:
    """A process ran from its first word to its last. `rev` is the fencing token, or the tick."""

    kind: str
    name: str
    rev: int
    pid: int
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Allowance:
    """From `at` on a hold was gone by another hand: for so long its command may overlap with the next holder's."""

    at: float
    seconds: float


def read(path: Path) -> list[Interval]:
    """The intervals of a log; a killed process ends with its last beat."""
    found: dict[tuple[str, str, int, int], list[float]] = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        kind, name, rev, pid, _, at = line.split()
        found.setdefault((kind, name, int(rev), int(pid)), []).append(float(at))
    return sorted((Interval(*who, min(times), max(times)) for who, times in found.items()), key=lambda one: one.start)


def holds(intervals: Iterable[Interval]) -> list[Interval]:
    """One interval a fencing token: from the first start to the last beat of anything that ran under it."""
    found: dict[tuple[str, str, int], list[Interval]] = {}
    for one in intervals:
        found.setdefault((one.kind, one.name, one.rev), []).append(one)
    return sorted(
        (
            Interval(*who, some[0].pid, min(one.start for one in some), max(one.end for one in some))
            for who, some in found.items()
        ),
        key=lambda one: one.start,
    )


def overlaps(intervals: Sequence[Interval], most: int, allowances: Sequence[Allowance] = ()) -> list[str]:
    """Every instant at which more than `most` holds ran at once, but for what is allowed."""
    problems = []
    lasting = [one for one in intervals if one.end > one.start]  # the others were killed at their first word
    events = sorted([(one.start, 1, one) for one in lasting] + [(one.end, 0, one) for one in lasting], key=_by_time)
    running: list[Interval] = []
    for at, begins, one in events:
        if not begins:
            running.remove(one)
            continue
        running.append(one)
        if len(running) <= most:
            continue
        # it ends when the first of those that were there before does
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
    """First come, first served: tokens in the order of their starts; where several hold, no start is late by much."""
    problems = []
    starts = [(one.start, one.rev) for one in intervals]
    for (before, first), (after, second) in pairwise(starts):
        if second < first and (most == 1 or after - before > _CLOSE_S):
            problems.append(f"{second} started at {after:.3f}, after {first} at {before:.3f}")
    return problems


def unexplained(missing: Iterable[int], said: Sequence[tuple[float, float]], witnesses: Sequence[float]) -> list[int]:
    """Of the ticks that nobody claimed, those that no daemon called missed (`said`: first and last tick of each word)
    though there is a witness: one that was registered a second before, and is alive.
    """
    return [
        tick
        for tick in missing
        if not any(first <= tick <= last for first, last in said) and any(since < tick - 1 for since in witnesses)
    ]


def gaps(intervals: Sequence[Interval]) -> list[float]:
    """Of an election: from one holder's last sign of life to the next one's first."""
    return [after.start - before.end for before, after in pairwise(intervals)]
