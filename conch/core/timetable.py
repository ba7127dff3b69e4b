"""When each of many runs has something to do next: looked up without asking all of them."""

from heapq import heapify, heappop, heappush

# How many outdated times are kept for the sake of speed, beside as many as there are runs.
_OUTDATED = 64


class Timetable:
    """The next time (CLOCK_BOOTTIME) of each run that has one."""

    def __init__(self) -> None:
        self._times: dict[str, float] = {}
        self._heap: list[tuple[float, str]] = []  # these, and outdated ones

    def __len__(self) -> int:
        """How many times are kept, outdated ones among them."""
        return len(self._heap)

    def set(self, run: str, at: float | None) -> None:
        """Replace the time of this run; None: it has none."""
        if at is None:
            self._times.pop(run, None)
        elif self._times.get(run) != at:
            self._times[run] = at
            heappush(self._heap, (at, run))
        if len(self._heap) > 2 * len(self._times) + _OUTDATED:
            self._heap = [(time, name) for name, time in self._times.items()]
            heapify(self._heap)

    @property
    def first(self) -> float | None:
        """The earliest time."""
        while self._heap:
            at, run = self._heap[0]
            if self._times.get(run) == at:
                return at
            heappop(self._heap)
        return None

    def take_due(self, now: float) -> list[str]:
        """Return the runs whose time has come, each once, and forget their times."""
        due: list[str] = []
        while (at := self.first) is not None and at <= now:
            run = heappop(self._heap)[1]
            del self._times[run]
            due.append(run)
        return due
