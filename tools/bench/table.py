"""Formats measurements as rows of a Markdown table."""

import statistics
from collections.abc import Sequence


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value that this share of all values does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def ms(values: Sequence[float]) -> str:
    """Median and p99 in milliseconds."""
    return f"{statistics.median(values) * 1000:.1f} ms (p99 {percentile(values, 0.99) * 1000:.1f}, n={len(values)})"


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """Ratio of the medians."""
    divisor = statistics.median(theirs)
    return f"{statistics.median(ours) / divisor:.2f}" if divisor else "-"


def row(what: str, *cells: str) -> None:
    """Print one row without delay, so that a run that takes minutes shows its progress."""
    print("| " + " | ".join((what, *cells)) + " |", flush=True)


def header(*cells: str) -> None:
    """Print the first two lines of a table."""
    row(*cells)
    row(*["---"] * len(cells))
