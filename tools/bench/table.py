"""How the measurements are shown."""

import statistics
from collections.abc import Sequence


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that so much of all are not above."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def ms(values: Sequence[float]) -> str:
    """Median and p99 in milliseconds."""
    return f"{statistics.median(values) * 1000:.1f} ms (p99 {percentile(values, 0.99) * 1000:.1f}, n={len(values)})"


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """Of the medians."""
    return f"{statistics.median(ours) / statistics.median(theirs):.2f}"


def row(what: str, *cells: str) -> None:
    """A line of the table, at once."""
    print("| " + " | ".join((what, *cells)) + " |", flush=True)
