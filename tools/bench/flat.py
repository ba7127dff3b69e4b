"""Whether a long-lived process keeps its memory, descriptors and threads: the judgement of the soak."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import psutil

from tests.support.conch import Wrapper, alive
from tools.bench.table import row

# A life begins with growth: what is loaded late, caches that fill.
WARM_UP = 0.1


class Figure(NamedTuple):
    """A figure of a process, and by how much it may grow from the first third of a life to the last."""

    name: str
    form: str
    margin: float
    margin_share: float

    def allowed(self, first: float) -> float:
        """Return the largest growth that counts as flat."""
        return max(self.margin, self.margin_share * first)


FIGURES = (
    Figure("anonymous memory", "{:.2f} MB", 1.0, 0.1),
    Figure("descriptors", "{:.0f}", 2, 0.0),
    Figure("threads", "{:.0f}", 1, 0.0),
)


def thirds(values: Sequence[float]) -> tuple[float, float]:
    """Return the medians of the first and the last third of what follows the warm-up."""
    kept = values[int(len(values) * WARM_UP) :]
    third = max(1, len(kept) // 3)
    return statistics.median(kept[:third]), statistics.median(kept[-third:])


def is_flat(figure: Figure, values: Sequence[float]) -> bool:
    """Whether the last third is not above the first by more than the margin."""
    first, last = thirds(values)
    return last - first <= figure.allowed(first)


class Life:
    """Samples of the supervisor and the keeper of one conch."""

    def __init__(self, name: str, wrapper: Wrapper) -> None:
        self.name = name
        self._wrapper = wrapper
        self._keeper = wrapper.keeper()
        # by process and figure
        self.samples: dict[tuple[str, str], list[float]] = {}

    def sample(self) -> None:
        """Read all figures of both processes now; one that has just ended is left out this time."""
        assert self._wrapper.process.poll() is None, f"{self.name} has ended; its log is:\n{self._wrapper.err}"
        if not alive(self._keeper):
            self._keeper = self._wrapper.keeper()
        for role, pid in (("supervisor", self._wrapper.pid), ("keeper", self._keeper)):
            try:
                read = read_figures(pid)
            except (OSError, psutil.Error):
                continue
            for figure, value in zip(FIGURES, read, strict=True):
                self.samples.setdefault((role, figure.name), []).append(value)


def read_figures(pid: int) -> tuple[float, float, float]:
    """Return the values of `FIGURES`.

    Memory is what is resident of heap and stacks. PSS would not do: it falls whenever a run has just been forked, and
    changes when other programs that have the same files in memory come and go.
    """
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    memory_kb = int(rollup.split("Anonymous:")[1].split()[0])
    process = psutil.Process(pid)
    return memory_kb / 1000, process.num_fds(), process.num_threads()


def failures(life: Life) -> int:
    """Print a row for each figure; return how many were not flat."""
    found = 0
    for (role, name), values in life.samples.items():
        figure = next(figure for figure in FIGURES if figure.name == name)
        first, last = thirds(values)
        flat = is_flat(figure, values)
        found += not flat
        shown = (figure.form.format(value) for value in (first, last))
        limit = f"at most +{figure.form.format(figure.allowed(first))}"
        row(f"{life.name}, {role}: {name}", *shown, f"{last - first:+.2f}{'' if flat else ' NOT FLAT'}", limit)
    return found
